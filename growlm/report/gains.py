"""The gain of grown runs along their tokens: speed-up and loss gain as figures and as a table."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from growlm.laws.gain import FITTED_FROM, GainCurve, GainFit, fit_gain, gain_curve
from growlm.report import style
from growlm.report.charts import COSTS, figure_of, styles, views_of, with_mean
from growlm.report.compare import paired
from growlm.report.figures import Axis, Figure, Series
from growlm.report.records import Group, Run
from growlm.report.shown import shown
from growlm.report.verdict import TUNED

FLOPS, TOKENS = COSTS[0], Axis("tokens", COSTS[1].label, "count", log=True)
SPEEDUP = Axis("speedup", "speed-up at equal validation loss", "percent", signed=True)
GAP = Axis("gap", "loss gain at equal FLOPs (nats per token)", "loss", signed=True)
BANDS = 3  # runs whose bands can be told apart
BEYOND = 10  # times the tokens, where a fit is asked
HEADER = ("gain of", "over", "at the end", "per tenfold tokens", f"at {BEYOND} x the tokens, EXTRAPOLATED")


@dataclass(frozen=True)
class Gains:
    """What a grown run gained over another, seed by seed, and the fit of it; None with too few points."""

    run: str
    over: str
    seeds: tuple[GainCurve, ...]
    fit: GainFit | None


def gains(group: Group) -> list[Gains]:
    """Of every grown run over the baseline, and over scratch at a searched rate; without those that have no points."""
    found = []
    for name, run in group.first.runs.items():
        for over in (group.first.baseline, TUNED):
            if run.role != "grown" or over not in group.first.runs or run.init_from:
                continue
            start = max((_growth(one) for one in group.each(name).values()), default=0.0)
            curves = tuple(gain_curve(*pair, start) for pair in zip(*paired(group, name, over), strict=True))
            if curves and all(len(one.tokens) for one in curves):
                found.append(Gains(name, over, curves, fit_gain(curves)))
    return found


def _growth(run: Run) -> float:
    """The FLOPs before the last growth."""
    last = run.metrics[-1]["stage"] if run.metrics else 0
    return max((float(record.get("flops") or 0) for record in run.metrics if record["stage"] < last), default=0.0)


def gain_lines(found: Sequence[Gains]) -> list[list[str]]:
    """The rows of a table under HEADER, of the gains that were fitted."""
    lines = []
    for one in found:
        if fit := one.fit:
            said = fit.gap(fit.last), fit.slope, fit.gap(BEYOND * fit.last)
            lines.append([one.run, one.over, *(style.interval(each, style.nats) for each in said)])
    return lines


def gain_text(group: Group, found: Sequence[Gains]) -> str:
    """The table of the gains of a group for a terminal; empty without a fit."""
    lines = gain_lines(found)
    return f"{style.table(HEADER, lines, left=('over',))}\n\n{gain_note(group)}" if lines else ""


def gain_note(group: Group) -> str:
    """How the gain was measured and fitted."""
    spread = "Intervals: Student's 95 % over seeds." if len(group.studies) > 1 else "One seed, so there is no interval."
    return (
        "Loss gain: validation loss of the other run less that of the grown one at equal FLOPs, fitted by a + b log10 "
        f"of the tokens from {FITTED_FROM:.0%} of them on. {spread} Whether that form is right is not said, and "
        "schedules that end at other FLOPs than each other's bend the gain."
    )


def gain_figures(group: Group, found: Sequence[Gains], prefix: str = "") -> list[Figure]:
    """Speed-up and loss gain of every grown run over the baseline along its tokens; the gain with its fit."""
    over = [one for one in found if one.over == group.first.baseline]
    bands, looks, figures = len(over) <= BANDS, styles(group), []
    for name, title, y in (("gain_speedup", "Speed-up over tokens", SPEEDUP), ("gain", "Loss gain over tokens", GAP)):
        series = shown(group, {one.run: _curves(one, y, *looks[one.run]) for one in over})
        if not series.drawn:
            continue
        kept = {one.label for one in series.drawn}
        every = [(one.run in kept, _fits(one, bands, looks[one.run][0])) for one in over if y is GAP]
        fits, undrawn = (tuple(fit for seen, own in every if seen is flag for fit in own) for flag in (True, False))
        both = replace(series, drawn=series.drawn + fits, undrawn=series.undrawn + undrawn)
        views = views_of(both.drawn, (TOKENS, FLOPS), y)
        views = {key: (*seen[:2], *_with_zero(*seen[2:])) for key, seen in views.items()}
        note = f"Over {group.first.baseline}, from the last growth on."
        if fits:
            band = " with its 95 % band over seeds" if bands and len(over[0].seeds) > 1 else ""
            note += f" Thin dashed: a + b log10 of the tokens{band}, EXTRAPOLATED beyond the curves."
        figures.append(figure_of(both, prefix + name, title, (TOKENS, FLOPS), y, views, note))
    return figures


def _with_zero(low: float, high: float) -> tuple[float, float]:
    """The range with zero in it, and room beyond."""
    room = 0.05 * (max(high, 0.0) - min(low, 0.0))
    return min(low, 0.0) - room, max(high, 0.0) + room


def _curves(one: Gains, y: Axis, colour: int | None, dash: int) -> list[Series]:
    """A curve of every seed, and their mean."""
    several = len(one.seeds) > 1
    own = []
    for number, curve in enumerate(one.seeds):
        value = curve.speedup if y is SPEEDUP else curve.gap
        at = np.isfinite(value)
        columns = {FLOPS.key: curve.flops[at], TOKENS.key: curve.tokens[at], y.key: value[at]}
        if at.any():
            name = f"{one.run}, {number + 1}" if several else one.run
            own.append(Series(name, one.run, columns, "line", colour, dash))
    return with_mean(own, one.run)


def _fits(one: Gains, band: bool, colour: int | None) -> list[Series]:
    """The fit from its first token to beyond its last, with a band over seeds if asked for."""
    if one.fit is None:
        return []
    along = np.geomspace(one.fit.first, BEYOND * one.fit.last, 40)
    said = [one.fit.gap(tokens) for tokens in along]
    mean = one.seeds[0]
    flops = np.interp(along, mean.tokens, mean.flops, right=np.nan)
    columns = {FLOPS.key: flops, TOKENS.key: along, GAP.key: np.array([each.value for each in said])}
    if band and said[0].low is not None:
        columns |= {end: np.array([getattr(each, end) for each in said]) for end in ("low", "high")}
    return [Series(f"{one.run}, fit", f"{one.run}, fit", columns, "fit", colour, 1)]
