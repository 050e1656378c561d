"""The description of a figure: axes, curves and marks. The page, the PNG and the CSV are made of it."""

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from growlm.report import style

SHOWN_POINTS = 1000  # of a curve on the page and in the PNG; the CSV has all
WRITE = {"flops": style.flops, "count": style.count, "seconds": style.duration, "loss": style.loss}
WRITE |= {"number": "{:.4g}".format, "percent": style.percent}
UNITS = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86400}


@dataclass(frozen=True)
class Axis:
    """A quantity that a curve has a column of.

    Attributes:
        key: the column; also in the name of the PNG over this axis.
        label: the label of the axis.
        kind: how its numbers are written: "flops", "count", "seconds", "loss", "number" or "percent"; or "name".
        log: whether it is logarithmic at first.
        names: labels of the ticks at 0, 1, 2 ..., of an axis of names.
        ticks: where ticks are; by default at round numbers.
        signed: whether both signs occur: a line is drawn at 0, and there is no logarithm.
    """

    key: str
    label: str
    kind: str
    log: bool = False
    names: tuple[str, ...] = ()
    ticks: tuple[float, ...] = ()
    signed: bool = False

    @property
    def labels(self) -> dict[float, str]:
        """The places of the ticks with their labels; empty where these are left to whoever draws."""
        return dict(enumerate(self.names)) if self.names else {place: self.write(place) for place in self.ticks}

    @property
    def word(self) -> str:
        """The quantity in one word, such as tokens."""
        words = {"flops": "FLOPs", "seconds": "time", "val_loss": "validation loss"}
        return words.get(self.key, self.key.replace("_", " "))

    def write(self, value: float) -> str:
        """A value of the axis as text."""
        return self.names[round(value)] if self.names else WRITE[self.kind](value)


@dataclass(frozen=True)
class Mark:
    """A place on a curve: a growth, a minimum, what was chosen, or an estimate with its interval.

    Attributes:
        kind: "growth", "minimum", "chosen" or "estimate".
        x: its place on each x axis, by key.
        y: its place on the y axis.
        text: what a growth changed, or the estimate in words.
        span: the ends of its interval along the x axis, where it has one.
    """

    kind: str
    x: Mapping[str, float]
    y: float
    text: str
    span: tuple[float, float] | None = None


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        name: of this curve alone.
        label: its entry in the legend, which several curves may share: they are shown and hidden together.
        columns: float64[points] by key of an axis, NaN where not known; "low" and "high" are error bars along y,
            of a "fit" a band.
        style: "line", "thin" (one seed of several), "points" or "fit".
        colour: number of a colour of the theme; None is the baseline's.
        dash: 0 solid, 1 dashed, 2 dash and dot, 3 dotted.
        marks: places on it.
    """

    name: str
    label: str
    columns: Mapping[str, np.ndarray]
    style: str = "line"
    colour: int | None = None
    dash: int = 0
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True)
class Figure:
    """Curves over one of several x axes.

    Attributes:
        name: of its files.
        title: its heading.
        x: the axes to choose from; the page begins with the first.
        y: the other axis.
        series: the curves.
        views: the ranges at first, by key of the x axis: x from, x to, y from, y to.
        note: a sentence below it.
        undrawn: curves that are in the CSV alone, since more than these cannot be read; `left_out` says so.
        left_out: what is not drawn, and where it is; empty where all is.
        row_height: of an axis of names, in times of the usual.
    """

    name: str
    title: str
    x: tuple[Axis, ...]
    y: Axis
    series: tuple[Series, ...]
    views: Mapping[str, tuple[float, float, float, float]] = field(default_factory=dict)
    note: str = ""
    row_height: float = 1.0
    undrawn: tuple[Series, ...] = ()
    left_out: str = ""


def unit(figure: Figure, axis: Axis) -> tuple[float, str]:
    """What the numbers of an axis are divided by, and its label with the unit: times are in the largest that fits."""
    if axis.kind != "seconds" or axis.key not in figure.views:
        return 1, axis.label
    longest = figure.views[axis.key][1]
    name = [name for name, size in UNITS.items() if longest >= 2 * size or size == 1][-1]
    return UNITS[name], f"{axis.label} ({name})"


def growth_labels(figure: Figure, axis: Axis) -> list[tuple[float, str, int]]:
    """What growths changed, to be written above the axes: place, text and line (0 is the lowest).

    A text stands once in a quarter of the width; different ones that near stand above each other.
    """
    if axis.key not in figure.views:
        return []
    left, right = figure.views[axis.key][:2]

    def across(value: float) -> float:
        scaled = (math.log(max(one, 1e-300)) if axis.log else one for one in (left, value, right))
        start, place, end = scaled
        return (place - start) / (end - start)

    found: list[tuple[float, str, int]] = []
    marks = (mark for one in figure.series for mark in one.marks if mark.kind == "growth" and axis.key in mark.x)
    for mark in sorted(marks, key=lambda mark: mark.x[axis.key]):
        place = mark.x[axis.key]
        text = mark.text if len(mark.text) <= 28 else f"{mark.text[:27]}…"
        near = {other: row for value, other, row in found if abs(across(value) - across(place)) < 0.25}
        if text not in near and (place > 0 or not axis.log):
            found.append((place, text, min({*range(len(near) + 1)} - {*near.values()})))
    return found


def as_csv(figure: Figure) -> str:
    """All points and marks as CSV, a row for each: measured or fitted points, growths, estimates."""
    axes = [*figure.x, figure.y]
    keys = [axis.key for axis in axes]
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["curve", "kind", *keys, "low", "high", "text"])
    for series in (*figure.series, *figure.undrawn):
        kind = "fitted" if series.style == "fit" else "measured"
        columns = (series.columns.get(key, np.full(_length(series), np.nan)) for key in [*keys, "low", "high"])
        for row in zip(*(column.tolist() for column in columns), strict=True):
            place = [_cell(axis, value) for axis, value in zip(axes, row, strict=False)]
            bars = ["" if math.isnan(value) else value for value in row[len(axes) :]]
            rows.writerow([series.name, kind, *place, *bars, ""])
        for mark in series.marks:
            place = [_cell(axis, mark.x.get(axis.key, math.nan)) for axis in figure.x]
            rows.writerow(
                [series.name, mark.kind, *place, _cell(figure.y, mark.y), *(mark.span or ("", "")), mark.text]
            )
    return file.getvalue()


def _cell(axis: Axis, value: float) -> str | float:
    """A value as CSV has it: a name, a number, or nothing where it is not known."""
    if math.isnan(value):
        return ""
    return axis.names[round(value)] if axis.names else float(value)


def cells(figure: Figure) -> int:
    """How many cells its CSV has at least, each of two bytes at least."""
    return sum(_length(series) for series in (*figure.series, *figure.undrawn)) * len(figure.x)


def thinned(series: Series, points: int = SHOWN_POINTS) -> dict[str, np.ndarray]:
    """The columns with at most this many points; the last one is kept."""
    step = -(-_length(series) // points)
    return {key: column[::-1][:: max(step, 1)][::-1] for key, column in series.columns.items()}


def _length(series: Series) -> int:
    return len(next(iter(series.columns.values())))
