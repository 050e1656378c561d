"""The laws of growth fitted to the runs of sweeps, as text with the paper's beside them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from growlm.errors import InputError
from growlm.laws.isoflop import GuidelineFit, Slice, fit_guideline, slices_of
from growlm.laws.published import FACTOR, GROWTH_FACTOR, TIMING, law_at
from growlm.report import style
from growlm.report.outcomes import Outcome, budget_records, check_alike

SLICES = 4  # budgets per size

_UNDECAYED = (
    "all but the last slice of a size are read before the learning rate decayed, as in the paper "
    "(--slices=1: at the end only)"
)


@dataclass(frozen=True)
class GrowthFit:
    """The law of growth timing or of the growth factor, as far as the runs determine it.

    Attributes:
        law: "timing" or "factor".
        slices: the losses at every size and budget, and their minima.
        fit: the law through the minima; None where there are too few.
        missing: what a fit lacks, in one line; empty where there is one.
    """

    law: str
    slices: tuple[Slice, ...]
    fit: GuidelineFit | None
    missing: str = ""


KEYS = {"timing": "grown_at", "factor": "factor"}


def fit_growth(law: str, runs: Sequence[Outcome], slices: int = SLICES, **how: int) -> GrowthFit:
    """The law of growth timing or of the growth factor, of runs that grew once.

    Args:
        law: "timing" or "factor".
        runs: runs whose growth differs in nothing else; for the factor, at every size.
        slices: budgets per size.
        how: `resamples` of the intervals.

    Raises:
        InputError: runs that cannot be compared, or seeds that differ between the points of a slice.
    """
    check_alike("growth", [run.growth for run in runs])
    check_alike("schedule", [run.schedule for run in runs])
    if law == "timing":
        check_alike("growth factor", [fixed(law, run) for run in runs])
    else:  # the time to grow is another one at every size
        for params in {run.params for run in runs}:
            check_alike("tokens before growth", [fixed(law, run) for run in runs if run.params == params])
    found = slices_of(budget_records(list(runs), slices), KEYS[law], **how)
    try:
        return GrowthFit(law, found, fit_guideline(found, what=f"the {law} law"))
    except InputError as error:
        return GrowthFit(law, found, None, str(error))


def fixed(law: str, run: Outcome) -> str:
    """What is alike in the runs of a law: the growth factor, or at every size the tokens before growth."""
    return f"{round(run.factor, 1):g}" if law == "timing" else style.count(run.grown_at)


def alike(law: str, run: Outcome, other: Outcome) -> bool:
    """Whether two runs may be fitted together."""
    if (run.growth, run.schedule) != (other.growth, other.schedule):
        return False
    return (law == "factor" and run.params != other.params) or fixed(law, run) == fixed(law, other)


def slices_text(found: GrowthFit) -> str:
    """A table of the slices: what was tried, where the loss is lowest, and where the paper's law puts the minimum."""
    timing = found.law == "timing"
    what, write = ("grown after", style.count) if timing else ("factor", "{:.3g}".format)
    rows = []
    for one in found.slices:
        paper = law_at(TIMING, one.params, one.flops) if timing else GROWTH_FACTOR
        tried = f"{write(one.x.min())} to {write(one.x.max())}" if len(one.x) else style.UNKNOWN
        best = style.interval(one.best, write)
        size, budget = style.count(one.params), style.flops(one.flops)
        rows.append((size, budget, str(len(one.x)), tried, best, write(paper)))
    header = ("parameters", "FLOPs", "points", "tried", f"best {what} [95 %]", "the paper's")
    reasons = [f"{row[0]}, {row[1]}: {one.reason}" for row, one in zip(rows, found.slices, strict=True) if one.reason]
    several = len(found.slices) > len({one.params for one in found.slices})
    return "\n".join([style.table(header, rows), *reasons, *([_UNDECAYED] if several else [])])


def law_text(found: GrowthFit) -> str:
    """A table of the law's coefficients with their intervals and the paper's."""
    if found.law == "timing":
        return f"\n{_guideline(found.fit, 'd', TIMING, 'equation 2')}"
    constant = f"\nthe constant: {style.figures(found.fit.mean)}; the paper's: {GROWTH_FACTOR}"
    return f"{constant}\n{_guideline(found.fit, 'g', FACTOR, 'equation 50, which it advises against')}"


def grown_once(runs: Sequence[Outcome], log: Callable[[str], None]) -> list[Outcome]:
    """The runs that grew once, after some training: an untrained base, or one without layers, has no logarithm."""
    once = [run for run in runs if run.stages == 2 and run.grown_at and math.isfinite(run.factor)]
    if others := [run.name for run in runs if run not in once]:
        shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        log(f"not grown once from a trained model, so not in the fit: {shown}\n")
    if not once:
        raise InputError("the law must have runs that grew once, got none with two stages")
    return once


def _guideline(fit: GuidelineFit, name: str, paper: Sequence[float], where: str) -> str:
    header = (f"log10 {name} = a log10 N + b / log10 C + c", "fitted [95 %]", f"the paper's ({where})")
    rows = [(key, style.figures(getattr(fit, key)), f"{value:g}") for key, value in zip("abc", paper, strict=True)]
    scatter = f"{fit.used} of {len(fit.slices)} slices; their minima scatter by {fit.scatter:.3f} in log10 {name}"
    return f"{style.table(header, rows)}\n{scatter}"
