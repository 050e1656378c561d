"""Scaling laws of final losses, as text: L(C) with and without a floor, and L(N, D)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from growlm.errors import InputError
from growlm.laws.chinchilla import REANALYSIS, fit_chinchilla
from growlm.laws.scaling import PowerLaw, fit_power_law
from growlm.report import style
from growlm.report.outcomes import finished
from growlm.report.tables import FAMILY, read_table

SCRATCH = "from scratch"


@dataclass(frozen=True)
class Points:
    """Final losses (nats per token) of the runs of one family; params and tokens are None where not known, or mixed."""

    name: str
    flops: np.ndarray
    loss: np.ndarray
    params: np.ndarray | None = None
    tokens: np.ndarray | None = None


def fit_scaling(
    source: Path,
    log: Callable[[str], None],
    column: Mapping[str, str] | None = None,
    floor: float | None = None,
    at: Sequence[float] = (),
    **how: Any,
) -> None:
    """Fits the scaling laws to final losses, and prints them.

    Args:
        source: a folder of runs; or a table with the columns flops and loss, and family, params and tokens if it has
            them.
        log: prints a part of the text.
        column: what the table calls a column, where that is another name.
        floor: E of L(C), where it is known; fitted if None.
        at: FLOPs at which the laws are asked.
        how: `progress` and `resamples` of the intervals.

    Raises:
        InputError: no runs, a table that lacks a column, or no family with enough points (says how many more).
    """
    families = _of_runs(source, log) if source.is_dir() else _of_table(source, column or {})
    missing = [_power_laws(one, floor, at, log, how) for one in families]
    missing += [_chinchilla(one, log, how) for one in families if one.params is not None and one.tokens is not None]
    if all(missing):
        raise InputError("; ".join(missing))
    for line in filter(None, missing):
        log(f"not fitted: {line}")


def _of_runs(folder: Path, log: Callable[[str], None]) -> list[Points]:
    """The runs from scratch, and those that grew: these have no one size."""
    runs, families = finished(folder, log), []
    for name, grown in ((SCRATCH, False), ("grown", True)):
        group = [run for run in runs if (run.stages > 1) is grown]
        ends = (np.array([getattr(run.curve, key)[-1] for run in group]) for key in ("flops", "loss"))
        sizes = () if grown else (np.array([getattr(run, key) for run in group]) for key in ("params", "tokens"))
        families.append(Points(name, *ends, *sizes))
    return families


def _of_table(path: Path, columns: Mapping[str, str]) -> list[Points]:
    table = read_table(path, ("flops", "loss"), columns, (FAMILY, "params", "tokens"))
    names = table.pop(FAMILY, np.full(len(table["loss"]), path.stem))
    return [
        Points(str(name), **{key: column[names == name] for key, column in table.items()})
        for name in dict.fromkeys(names)
    ]


def _power_laws(points: Points, floor: float | None, at: Sequence[float], log: Callable[[str], None], how: dict) -> str:
    """Prints the power laws of the final losses; returns what they lack, or nothing."""
    forms = [{"irreducible": False}, {"irreducible": True} if floor is None else {"floor": floor}]
    for form in forms:
        try:
            fit = fit_power_law(points.flops, points.loss, **form, **how)
        except InputError as error:
            return f"{points.name}: {error}"
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


def _chinchilla(points: Points, log: Callable[[str], None], how: dict) -> str:
    """Prints L(N, D); returns what it lacks, or nothing."""
    try:
        fit = fit_chinchilla(points.params, points.tokens, points.loss, **how)
    except InputError as error:
        return f"{points.name}: {error}"
    names = REANALYSIS.__annotations__
    rows = [(name, style.figures(getattr(fit, name)), f"{getattr(REANALYSIS, name):.4g}") for name in names]
    rows.append(("a of N_opt ~ C^a", style.figures(fit.exponent), f"{REANALYSIS.compute_optimal_exponent():.4g}"))
    log("\n" + style.table(("L = E + A/N^alpha + B/D^beta", points.name, "Chinchilla's"), rows))
    return ""
