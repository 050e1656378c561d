"""Kaplan's laws fitted to runs or a table, as text with the published constants beside them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from growlm.errors import InputError
from growlm.laws.kaplan import KAPLAN_CURVE, KAPLAN_LOSS, KaplanFit, fit_kaplan_curve, fit_kaplan_loss
from growlm.report import style
from growlm.report.points import Points, read_points

_CAUTION = (
    "Kaplan's constants are of WebText2 with N without embeddings; arXiv 2403.06563 finds the forms elsewhere, with "
    "other constants. The laws have no floor and know no decay of the learning rate."
)


def fit_kaplan(
    source: Path,
    log: Callable[[str], None],
    column: Mapping[str, str] | None = None,
    checkpoints: float | None = None,
    **how: Any,
) -> dict[str, list[KaplanFit]]:
    """Fits L(N, D), and L(N, S_min) with the critical batch where there are several batches, and prints them.

    Returns them by family.

    Args:
        source: a folder of runs from scratch; or a table with the columns flops, loss, params and tokens, and family
            and batch (tokens an update) if it has them.
        log: prints a part of the text.
        column: what the table calls a column, where that is another name.
        checkpoints: takes every loss that was measured after this share of a run's tokens, and not the last alone.
        how: `progress` and `resamples` of the intervals.

    Raises:
        InputError: no runs, a table that lacks a column, or no family with enough points (says how many more).
    """
    missing, found = [], {}
    for points in read_points(source, log, column or {}, checkpoints, ("params", "tokens")):
        lacking = [name for name in ("params", "tokens") if getattr(points, name) is None]
        if lacking:
            missing.append(f"{points.name}: no {' and no '.join(lacking)}")
            continue
        for fit in (_loss, _curve):
            try:
                fitted, text = fit(points, how)
            except InputError as error:
                missing.append(f"{points.name}: {error}")
            else:
                found.setdefault(points.name, []).append(fitted)
                log(f"\n{text}")
    if not found:
        raise InputError("; ".join(missing))
    for line in missing:
        log(f"not fitted: {line}")
    log(f"\n{_CAUTION}")
    return found


def _loss(points: Points, how: dict) -> tuple[KaplanFit, str]:
    fit = fit_kaplan_loss(points.params, points.tokens, points.loss, runs=points.run, **how)
    return fit, _table("L = ((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D", points.name, fit, KAPLAN_LOSS)


def _curve(points: Points, how: dict) -> tuple[KaplanFit, str]:
    if points.batch is None:
        raise InputError("the critical batch needs a column batch, tokens an update")
    steps = points.tokens / points.batch
    fit = fit_kaplan_curve(points.params, steps, points.batch, points.loss, runs=points.run, **how)
    law, best, worst = fit.law, points.loss.min(), points.loss.max()
    at = "; ".join(f"{style.count(law.critical_batch(loss))} at a loss of {loss:.3f}" for loss in (worst, best))
    flops, params, steps = law.compute_optimal(best)
    lines = (
        f"critical batch, tokens: {at}",
        f"least compute to {best:.3f}: {style.flops(flops)} FLOPs with {style.count(params)} parameters in "
        f"{style.count(steps)} updates of a very large batch, more with smaller ones",
        f"L ~ C_min^-alpha_C with alpha_C {law.compute_exponent:.4f}; Kaplan's {KAPLAN_CURVE.compute_exponent:.4f}",
    )
    title = "L = (N_c/N)^alpha_N + (S_c/S_min)^alpha_S"
    return fit, "\n".join([_table(title, points.name, fit, KAPLAN_CURVE), *lines])


def _table(title: str, name: str, fit: KaplanFit, published: Any) -> str:
    rows = [(key, style.figures(value), f"{getattr(published, key):.4g}") for key, value in fit.intervals.items()]
    table = style.table((title, f"{name} [95 %]", "Kaplan's"), rows)
    return f"{table}\n{fit.points} losses, residual {fit.residual:.2%}"
