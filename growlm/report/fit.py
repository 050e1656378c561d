"""`growlm fit`: a law fitted to the runs of sweeps, in words, with the paper's beside it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from growlm.errors import InputError, unknown
from growlm.laws.chinchilla import REANALYSIS, fit_chinchilla
from growlm.laws.intervals import Interval
from growlm.laws.isoflop import GuidelineFit, Slice, fit_guideline, slices_of
from growlm.laws.published import FACTOR, GROWTH_FACTOR, TIMING, law_at
from growlm.laws.scaling import PowerLaw, fit_power_law
from growlm.report import numbers
from growlm.report.outcomes import Outcome, budget_records, outcomes

LAWS = ("timing", "factor", "scaling")
SLICES = 4

Say = Callable[[str], None]

_UNDECAYED = "all but the last slice of a size are read at undecayed rates, as in the paper (--slices=1: ends only)"


def fit_runs(
    folder: Path, law: str, slices: int | None, say: Say, progress: Callable = iter, resamples: int | None = None
) -> None:
    """Fits a law to the finished runs of a folder, and says what it is.

    Args:
        folder: of a sweep or a run, or of such folders.
        law: "timing", "factor" or "scaling".
        slices: budgets per size at which runs are read off; 4 if None. Not for scaling, which takes final losses.
        say: takes the parts of the text in turn; what is known is said before what is missing raises.
        progress: wraps long loops, such as tqdm.
        resamples: for the intervals; each fit's own number if None.

    Raises:
        InputError: an unknown law, no runs, runs that cannot be compared, too few points (says how many more).
    """
    if slices is not None and slices < 1:
        raise InputError(f"--slices must be integers >= 1, got {slices}")
    if law not in LAWS:
        raise unknown("law", law, LAWS)
    runs, left_out = outcomes(folder)
    if left_out:
        say(f"left out: {', '.join(left_out)}\n")
    how = {} if resamples is None else {"resamples": resamples}
    if law == "scaling":
        _scaling(runs, say, how | {"progress": progress})
    else:
        _growth(law, runs, SLICES if slices is None else slices, say, how)


@dataclass(frozen=True)
class GrowthFit:
    """When, or by how much, to grow, as far as the runs say it.

    Attributes:
        law: "timing" or "factor".
        slices: the losses at every size and budget, and where they are lowest.
        fit: the law through the minima; None where there are too few.
        missing: what it takes for one, in one line; empty where there is one.
    """

    law: str
    slices: tuple[Slice, ...]
    fit: GuidelineFit | None
    missing: str = ""


KEYS = {"timing": "grown_at", "factor": "factor"}


def fit_growth(law: str, runs: Sequence[Outcome], slices: int = SLICES, **how: int) -> GrowthFit:
    """The law of growth timing or factor from runs that grew once.

    Args:
        law: "timing" or "factor".
        runs: which differ in nothing else of their growth.
        slices: budgets per size.
        how: `resamples` of the intervals.

    Raises:
        InputError: runs that cannot be compared, or seeds that differ between the points of a slice.
    """
    _all_alike("growth", [run.growth for run in runs])
    if law == "timing":
        _all_alike("growth factor", [f"{round(run.factor, 1):g}" for run in runs])
    else:
        _all_alike("tokens before growth", [numbers.count(run.grown_at) for run in runs])
    found = slices_of(budget_records(list(runs), slices), KEYS[law], **how)
    try:
        return GrowthFit(law, found, fit_guideline(found, what=f"the {law} law"))
    except InputError as error:
        return GrowthFit(law, found, None, str(error))


def _growth(law: str, runs: Sequence[Outcome], slices: int, say: Say, how: dict) -> None:
    """Says the slices, and the law if there is one."""
    found = fit_growth(law, _grown_once(runs, say), slices, **how)
    say(slices_text(found))
    if found.fit is None:
        raise InputError(found.missing)
    say(law_text(found))


def slices_text(found: GrowthFit) -> str:
    """A row for every slice, as text."""
    if found.law == "timing":
        return _slices(found.slices, "grown after", numbers.count, lambda one: law_at(TIMING, one.params, one.flops))
    return _slices(found.slices, "factor", "{:.3g}".format, lambda one: GROWTH_FACTOR)


def law_text(found: GrowthFit) -> str:
    """The law's coefficients with their intervals and the paper's beside them, as text."""
    if found.law == "timing":
        return f"\n{_guideline(found.fit, 'd', TIMING, 'equation 2')}"
    constant = f"\nthe constant: {_shown(found.fit.mean)}; the paper's: {GROWTH_FACTOR}"
    return f"{constant}\n{_guideline(found.fit, 'g', FACTOR, 'equation 50, which it advises against')}"


def _scaling(runs: Sequence[Outcome], say: Say, how: dict) -> None:
    groups = {
        "from scratch": [run for run in runs if run.stages == 1],
        "grown": [run for run in runs if run.stages > 1],
    }
    missing = [_power_laws(name, group, say, how) for name, group in groups.items()]
    missing.append(_chinchilla(groups["from scratch"], say, how))
    if all(missing):
        raise InputError("; ".join(missing))
    for line in filter(None, missing):
        say(f"not fitted: {line}")


def _power_laws(name: str, runs: Sequence[Outcome], say: Say, how: dict) -> str:
    """Says both power laws of the final losses; returns what is missing for them, or nothing."""
    flops, loss = [run.curve.flops[-1] for run in runs], [run.curve.loss[-1] for run in runs]
    for irreducible in (False, True):
        try:
            fit = fit_power_law(flops, loss, irreducible, **how)
        except InputError as error:
            return f"{name}: {error}"
        say(_power_law(name, fit, irreducible))
    return ""


def _power_law(name: str, fit: PowerLaw, irreducible: bool) -> str:
    form = "L = E + a C^b" if irreducible else "L = a C^b    "
    floor = f"E {_shown(fit.E)}, " if irreducible else ""
    over = " to ".join(map(numbers.flops, fit.flops))
    return (
        f"{name}: {form} {floor}a {_shown(fit.a)}, b {_shown(fit.b)}; {fit.points} runs of {over} FLOPs, residual "
        f"{fit.residual:.2%} (the paper's, without E: not published)"
    )


def _chinchilla(runs: Sequence[Outcome], say: Say, how: dict) -> str:
    """Says L(N, D) of the runs from scratch; returns what is missing for it, or nothing."""
    try:
        columns = [run.params for run in runs], [run.tokens for run in runs], [run.curve.loss[-1] for run in runs]
        fit = fit_chinchilla(*columns, **how)
    except InputError as error:
        return f"from scratch: {error}"
    rows = [("L = E + A/N^alpha + B/D^beta", "fitted", "Chinchilla's")]
    for name in REANALYSIS.__annotations__:
        rows.append((name, _shown(getattr(fit, name)), f"{getattr(REANALYSIS, name):.4g}"))
    rows += [("a of N_opt ~ C^a", _shown(fit.exponent), f"{REANALYSIS.compute_optimal_exponent():.4g}")]
    say("\n".join(["", *numbers.aligned(rows)]))
    return ""


def _grown_once(runs: Sequence[Outcome], say: Say) -> list[Outcome]:
    """The runs with one growth, all by one operator."""
    once = [run for run in runs if run.stages == 2]
    if others := [run.name for run in runs if run.stages != 2]:
        shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        say(f"not grown once, so not in the fit: {shown}\n")
    if not once:
        raise InputError("no run grew once: allowed are runs with two stages")
    return once


def _all_alike(what: str, values: Sequence[str]) -> None:
    if len(kinds := sorted(set(values))) > 1:
        raise InputError(f"the runs differ in {what}: {' and '.join(kinds[:3])}; allowed is one, for a fair comparison")


def _slices(found: Sequence[Slice], what: str, write: Callable[[float], str], paper: Callable[[Slice], float]) -> str:
    """A row for every slice: what was tried, where the loss is lowest, and where the paper's law puts it."""
    sizes = {one.params for one in found}
    rows = [("parameters", "FLOPs", "points", "tried", f"best {what} [95 %]", "the paper's")]
    for one in found:
        tried = f"{write(one.x.min())} to {write(one.x.max())}" if len(one.x) else numbers.UNKNOWN
        best = _shown(one.best, write) if one.best else numbers.UNKNOWN
        size, budget = numbers.count(one.params), numbers.flops(one.flops)
        rows.append((size, budget, str(len(one.x)), tried, best, write(paper(one))))
    reasons = [f"{row[0]}, {row[1]}: {one.reason}" for row, one in zip(rows[1:], found, strict=True) if one.reason]
    return "\n".join([*numbers.aligned(rows), *reasons, *([_UNDECAYED] if len(found) > len(sizes) else [])])


def _guideline(fit: GuidelineFit, name: str, paper: Sequence[float], where: str) -> str:
    rows = [(f"log10 {name} = a log10 N + b / log10 C + c", "fitted [95 %]", f"the paper's ({where})")]
    rows += [(key, _shown(getattr(fit, key)), f"{value:g}") for key, value in zip("abc", paper, strict=True)]
    scatter = f"{fit.used} of {len(fit.slices)} slices; their minima scatter by {fit.scatter:.3f} in log10 {name}"
    return "\n".join([*numbers.aligned(rows), scatter])


def _shown(interval: Interval, write: Callable[[float], str] = "{:.4g}".format) -> str:
    """A value with the ends of its interval."""
    return numbers.interval(interval, write)
