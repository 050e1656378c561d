"""Scaling laws of final losses, as text: L(C) with and without a floor, and L(N, D)."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from growlm.errors import InputError, check_name
from growlm.laws.chinchilla import PUBLISHED, REANALYSIS, ChinchillaFit, fit_chinchilla, left_out_error
from growlm.laws.scaling import PowerLaw, fit_power_law
from growlm.report import style
from growlm.report.points import Points, read_points

_CHECKPOINTS = (
    "losses along a run: before the learning rate decayed they are higher than at the end of a run of that length; "
    "they are not the lowest of their compute, so that L(C) is not fitted"
)
_EXPECT = (
    "what to expect (arXiv 2410.11840): 4 % is the best error typically reached, other seeds differ by up to 3.5 %, "
    "and 20 % still tells many choices apart; five sizes are a safe bet"
)
_BORROWED = "with what is borrowed of another family, from under 1 % to 37 %, larger the farther one extrapolates"


def fit_scaling(
    source: Path,
    log: Callable[[str], None],
    column: Mapping[str, str] | None = None,
    floor: float | None = None,
    at: Sequence[float] = (),
    checkpoints: float | None = None,
    borrow: Mapping[str, Any] | None = None,
    **how: Any,
) -> dict[str, list[PowerLaw | ChinchillaFit]]:
    """Fits the scaling laws to losses, prints them, and returns them by family.

    Args:
        source: a folder of runs; or a table with the columns flops and loss, and family, params and tokens if it has
            them.
        log: prints a part of the text.
        column: what the table calls a column, where that is another name.
        floor: E of L(C), where it is known; fitted if None.
        at: FLOPs at which L(C) is asked.
        checkpoints: fits L(N, D) alone, to all losses that were measured after this share of a run's tokens.
        borrow: coefficients of L(N, D) that are not fitted: numbers, or names of PUBLISHED.
        how: `progress` and `resamples` of the intervals.

    Raises:
        InputError: no runs, a table that lacks a column, or no family with enough points (says how many more).
    """
    families, borrowed = read_points(source, log, column or {}, checkpoints), _borrowed(borrow or {})
    missing, found = [], {one.name: [] for one in families}
    if checkpoints is None:
        missing += [_power_laws(one, floor, at, log, how, found[one.name]) for one in families]
    else:
        log(_CHECKPOINTS)
    known = [one for one in families if one.params is not None and one.tokens is not None]
    missing += [_chinchilla(one, borrowed, log, how, found[one.name]) for one in known]
    if (borrowed or checkpoints is not None) and not known:
        missing.append("L(N, D) needs params and tokens, which the table does not have")
    if all(missing):
        raise InputError("; ".join(missing))
    for line in filter(None, missing):
        log(f"not fitted: {line}")
    if borrowed or checkpoints is not None:
        log(f"{_EXPECT}{f'; {_BORROWED}' if borrowed else ''}")
    return found


def _borrowed(borrow: Mapping[str, Any]) -> dict[str, float]:
    """The coefficients as numbers: a name is that of a published law, whose coefficient is meant."""
    found = {}
    for coefficient, value in borrow.items():
        check_name("--borrow", coefficient, REANALYSIS.__annotations__)
        if not isinstance(value, int | float):
            check_name(f"--borrow.{coefficient}, where it is no number,", str(value), PUBLISHED)
            value = getattr(PUBLISHED[value], coefficient)
        found[coefficient] = float(value)
    return found


def _power_laws(
    points: Points, floor: float | None, at: Sequence[float], log: Callable[[str], None], how: dict, found: list
) -> str:
    """Prints the power laws of the final losses, and adds them to what is found; returns what they lack, or nothing."""
    forms = [{"irreducible": False}, {"irreducible": True} if floor is None else {"floor": floor}]
    for form in forms:
        try:
            fit = fit_power_law(points.flops, points.loss, **form, **how)
        except InputError as error:
            return f"{points.name}: {error}"
        found.append(fit)
        log(_power_law(points.name, fit))
        for flops in at:
            beyond = "" if flops <= fit.flops[1] else f", {flops / fit.flops[1]:.3g} x the largest"
            said = style.interval(fit.forecast(flops), style.loss)
            log(f"  one more run at {style.flops(flops)} FLOPs{beyond}: {said}")
    return ""


def _power_law(name: str, fit: PowerLaw) -> str:
    form = "L = E + a C^b" if fit.E.value else "L = a C^b    "
    floor = f"E {style.figures(fit.E)}, " if fit.E.value else ""
    over = " to ".join(map(style.flops, fit.flops))
    return (
        f"{name}: {form} {floor}a {style.figures(fit.a)}, b {style.figures(fit.b)}; {fit.points} runs of {over} FLOPs, "
        f"residual {fit.residual:.2%} (the paper's, without E: not published)"
    )


def _chinchilla(
    points: Points, borrowed: Mapping[str, float], log: Callable[[str], None], how: dict, found: list
) -> str:
    """Prints L(N, D) and how well it predicts the largest size, and adds it to what is found; returns what it lacks."""
    columns = points.params, points.tokens, points.loss
    try:
        fit = fit_chinchilla(*columns, borrowed=borrowed, runs=points.run, **how)
    except InputError as error:
        return f"{points.name}: {error}"
    found.append(fit)
    rows = []
    for name in REANALYSIS.__annotations__:
        mine = style.figures(getattr(fit, name)) + (" borrowed" if name in borrowed else "")
        rows.append((name, mine, f"{getattr(REANALYSIS, name):.4g}"))
    rows.append(("a of N_opt ~ C^a", style.figures(fit.exponent), f"{REANALYSIS.compute_optimal_exponent():.4g}"))
    log("\n" + style.table(("L = E + A/N^alpha + B/D^beta", points.name, "Chinchilla's"), rows))
    runs = len(set(points.run))
    log(f"{fit.points} losses of {runs} run{'s' * (runs > 1)}, residual {fit.residual:.2%}")
    try:
        error = left_out_error(*columns, borrowed)
        log(f"the largest size, left out, is predicted with an error of {error:.1%}")
    except InputError as reason:
        log(f"the largest size cannot be left out and predicted: without it {reason}")
    return ""
