"""The figure of speed-ups: every run against the baseline and against each control, with intervals over seeds."""

from collections.abc import Sequence

import numpy as np

from growlm.laws.intervals import SeedSpeedup
from growlm.report.charts import COLOURS
from growlm.report.compare import Row, gained
from growlm.report.figures import Axis, Figure, Mark, Series

SPEEDUP = Axis("speedup", "speed-up at equal validation loss", "percent", signed=True)
APART = 0.22  # of the distance between two runs, between two comparisons of one
WIDE = 2.0  # an interval is seen out to so many times the spread of the values


def speedup_figure(rows: Sequence[Row], name: str = "speedup") -> Figure | None:
    """A place for every run, from the top down; None where nothing is measured."""
    baseline = next((row.run for row in rows if row.role == "baseline"), "")
    gains = {row.run: _measured({baseline: row.gain} | row.over) for row in rows}
    gains = {run: found for run, found in gains.items() if found}
    if not gains:
        return None
    runs = [*reversed(gains)]
    y = Axis("run", "", "name", names=tuple(runs))
    others = list(dict.fromkeys(other for found in gains.values() for other in found))
    series = tuple(_series(gains, runs, other, others) for other in others)
    marks = [mark for one in series for mark in one.marks]
    return Figure(name, "Speed-up", (SPEEDUP,), y, series, {SPEEDUP.key: (*_seen(marks), -0.6, len(runs) - 0.4)})


def _measured(gains: dict[str, SeedSpeedup | None]) -> dict[str, SeedSpeedup]:
    return {other: gain for other, gain in gains.items() if gain and gain.speedup}


def _series(gains: dict[str, dict[str, SeedSpeedup]], runs: list[str], other: str, others: list[str]) -> Series:
    """All runs against one other, a little below those against the others before."""
    number = others.index(other)
    shift = APART * ((len(others) - 1) / 2 - number)
    marks = []
    for place, run in enumerate(runs):
        if gain := gains[run].get(other):
            seeds = f"{len(gain.seeds)} seeds" if len(gain.seeds) > 1 else "1 seed"
            span = None if gain.speedup.low is None else (gain.speedup.low, gain.speedup.high)
            text = f"{run} over {other}: {gained(gain)}, {seeds}"
            marks.append(Mark("estimate", {SPEEDUP.key: gain.speedup.value}, place + shift, text, span))
    nothing = {SPEEDUP.key: np.empty(0), "run": np.empty(0)}
    label = f"over {other}"
    return Series(label, label, nothing, "points", None if number == 0 else (number - 1) % COLOURS, marks=tuple(marks))


def _seen(marks: Sequence[Mark]) -> tuple[float, float]:
    """What is seen along x: 0 and all values, and of intervals what is not far from them."""
    values = [0.0, *(mark.x[SPEEDUP.key] for mark in marks)]
    low, high = min(values), max(values)
    room = max(WIDE * (high - low), 0.02)
    ends = [end for mark in marks if mark.span for end in mark.span]
    low, high = max(min([low, *ends]), low - room), min(max([high, *ends]), high + room)
    pad = 0.05 * (high - low) or 0.01
    return low - pad, high + pad
