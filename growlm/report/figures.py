"""A figure as a value: axes, curves and marks. The page, the PNG and the CSV are three views of it."""

import csv
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# A longer curve is thinned out on the page and in the PNG, to one point in so many; the CSV has all.
SHOWN_POINTS = 1500


@dataclass(frozen=True)
class Axis:
    """A quantity that a curve has a column of.

    Attributes:
        key: the column; also what a file of this axis is called.
        label: what stands at the axis.
        kind: how its numbers are written: "flops", "count", "seconds", "loss", "number" or "percent"; or "name".
        log: whether it is logarithmic at first.
        names: what stands at 0, 1, 2 ... of an axis of names.
        signed: whether 0 divides it: a line stands there, and there is no logarithm.
    """

    key: str
    label: str
    kind: str
    log: bool = False
    names: tuple[str, ...] = ()
    signed: bool = False


@dataclass(frozen=True)
class Mark:
    """A place on a curve: a growth, with what it changed, or a minimum or another estimate with its interval.

    Attributes:
        kind: "growth", "minimum" or "estimate".
        x: where on each x axis, by key.
        y: where on the y axis.
        text: what is to be said of it.
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
        label: its entry in the legend; curves that share it are shown and hidden together.
        columns: float64[points] by key of an axis, NaN where not known; "low" and "high" are error bars along y.
        style: "line", "thin" (one seed of several), "points" or "fit".
        colour: number of a colour; None is the ink's, of the baseline.
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
    """A figure that may be looked at over several x axes.

    Attributes:
        name: of its files.
        title: above it.
        x: the axes to choose from; the first is shown at first.
        y: the other axis.
        series: the curves.
        views: for each x axis what is seen at first: x from, x to, y from, y to.
        note: a sentence below it.
    """

    name: str
    title: str
    x: tuple[Axis, ...]
    y: Axis
    series: tuple[Series, ...]
    views: Mapping[str, tuple[float, float, float, float]] = field(default_factory=dict)
    note: str = ""


def as_csv(figure: Figure) -> str:
    """All points and marks as CSV, a row for each: measured or fitted points, growths, estimates."""
    keys = [*(axis.key for axis in figure.x), figure.y.key]
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["curve", "kind", *keys, "low", "high", "text"])
    for series in figure.series:
        rows.writerows(_csv_points(series, keys))
        for mark in series.marks:
            y = figure.y.names[round(mark.y)] if figure.y.names else mark.y
            place = [*(mark.x.get(axis.key, "") for axis in figure.x), y]
            rows.writerow([series.name, mark.kind, *place, *(mark.span or ("", "")), mark.text])
    return file.getvalue()


def _csv_points(series: Series, keys: list[str]) -> Iterator[list[Any]]:
    kind = "fitted" if series.style == "fit" else "measured"
    columns = [series.columns.get(key, np.full(_length(series), np.nan)) for key in [*keys, "low", "high"]]
    for row in zip(*columns, strict=True):
        yield [series.name, kind, *("" if math.isnan(value) else float(value) for value in row), ""]


def plain(figure: Figure) -> dict[str, Any]:
    """The figure as values that JSON has, for the page."""
    axes = [vars(axis) for axis in figure.x]
    series = [
        {
            "name": one.name,
            "label": one.label,
            "style": one.style,
            "colour": one.colour,
            "dash": one.dash,
            "columns": {key: [_short(value) for value in column] for key, column in thinned(one).items()},
            "marks": [vars(mark) | {"x": dict(mark.x)} for mark in one.marks],
        }
        for one in figure.series
    ]
    views = {key: [_short(end) for end in view] for key, view in figure.views.items()}
    return {"name": figure.name, "x": axes, "y": vars(figure.y), "series": series, "views": views}


def thinned(series: Series) -> dict[str, np.ndarray]:
    """The columns with no more points than can be seen; the last one is kept."""
    step = -(-_length(series) // SHOWN_POINTS)
    return {key: column[::-1][:: max(step, 1)][::-1] for key, column in series.columns.items()}


def _length(series: Series) -> int:
    return len(next(iter(series.columns.values())))


def _short(value: float) -> float | None:
    """Seven digits: more than can be seen, and half the page."""
    return float(f"{value:.7g}") if math.isfinite(value) else None
