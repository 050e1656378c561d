"""A figure as plotly draws it: traces, layouts and buttons as plain dicts, without importing plotly.

Curves take their colours from the template of the theme, so that one change of template turns a chart light or dark.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from growlm.report.figures import SHOWN_POINTS, Axis, Figure, Mark, Series, growth_labels, thinned, unit
from growlm.report.style import DARK, LIGHT, Theme

DASHES = ("solid", "dash", "dashdot", "dot")
SYMBOLS = ("circle", "triangle-up", "square", "triangle-down")  # of points, in place of dashes
EXPONENTS = {"flops": "power", "count": "B"}
FORMATS = {"percent": "+.0%"}
CONFIG = {
    "responsive": True,
    "displaylogo": False,
    "displayModeBar": True,
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "sendChartToCloud"],
}


def plotly(figure: Figure, points: int = SHOWN_POINTS) -> dict[str, Any]:
    """The arguments of Plotly.newPlot, and the template of each theme.

    points: that a curve has at most; if they are fewer than usual they have no texts, which take most of the room.
    """
    axis = figure.x[0]
    traces = [
        {**trace, "x": x} for trace, x in zip(_traces(figure, points), _places(figure, axis, points), strict=True)
    ]
    colours = [one.colour for one in figure.series for _ in range(1 + _banded(one) + bool(one.marks))]
    x_range, y_range, lines = _view(figure, axis)
    above = 4 + 15 * max((1 + row for one in figure.x for _, _, row in growth_labels(figure, one)), default=0)
    menus = _menus(figure, above, points)
    layout = {
        "margin": {"l": 8, "r": 8, "b": 8, "t": 28 + above + (30 if menus else 0)},
        "hovermode": "closest",
        "xaxis": {**_axis(axis, figure), "range": x_range, "automargin": True},
        "yaxis": {**_axis(figure.y, figure), "range": y_range, "automargin": True},
        "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "tracegroupgap": 0},
        "updatemenus": menus,
        **lines,
    }
    config = CONFIG | {"toImageButtonOptions": {"filename": figure.name, "scale": 2}}
    templates = {name: _template(theme, colours) for name, theme in (("light", LIGHT), ("dark", DARK))}
    return {"data": traces, "layout": layout, "config": config, "templates": templates}


def _traces(figure: Figure, most: int) -> Iterator[dict[str, Any]]:
    """A trace for every curve, and after it one for its band and one for its marks; all but their x."""
    y, in_legend = figure.y, set()
    for one in figure.series:
        points = thinned(one, most)
        trace = {"type": "scatter", "name": _plain(one.label), "legendgroup": one.label}
        shown, empty = one.style != "thin" and one.label not in in_legend, not len(points[y.key])
        curve = trace | _style(one, points, y) | {"y": _numbers(points[y.key]), "showlegend": shown and not empty}
        if one.style == "thin" or most < SHOWN_POINTS:  # the texts of all seeds would be most of the page
            yield curve | {"hovertemplate": f"<b>{_plain(one.name)}</b><br>{_plain(y.word)} %{{y}}<extra></extra>"}
        else:
            rows = zip(*(column.tolist() for column in points.values()), strict=True)
            texts = [_point_text(figure, dict(zip(points, row, strict=True))) for row in rows]
            yield curve | {"text": texts, "hovertemplate": f"<b>{_plain(one.name)}</b><br>%{{text}}<extra></extra>"}
        if _banded(one):
            edge = _numbers(np.concatenate([points["high"], points["low"][::-1]]))
            band = {"mode": "lines", "line": {"width": 0}, "fill": "toself", "opacity": 0.25, "hoverinfo": "skip"}
            yield trace | band | {"y": edge, "showlegend": False}
        if one.marks:
            texts = [_mark_text(one.name, figure, mark) for mark in one.marks]
            marks = {"mode": "markers", "marker": {"symbol": "diamond", "size": 11}, **_spans(one.marks, figure.x[0])}
            marks |= {"text": texts, "hovertemplate": "%{text}<extra></extra>", "showlegend": shown and empty}
            yield trace | marks | {"y": _numbers(mark.y for mark in one.marks)}
        if shown:
            in_legend.add(one.label)


def _style(one: Series, points: dict[str, np.ndarray], y: Axis) -> dict[str, Any]:
    """Means and the baseline heavy, single seeds thin, points without a line."""
    if one.style == "points":
        bars = {}
        if "low" in points:
            value = points[y.key]
            bars = {"array": _numbers(points["high"] - value), "arrayminus": _numbers(value - points["low"])}
        return {"mode": "markers", "marker": {"symbol": SYMBOLS[one.dash], "size": 7}, "error_y": bars}
    width = {"thin": 1, "fit": 1.5}.get(one.style, 2.5 if one.dash != 1 else 2)
    few = one.style == "line" and len(points[y.key]) <= 25
    return {
        "mode": "lines+markers" if few else "lines",
        "line": {"width": width, "dash": DASHES[one.dash]},
        "marker": {"size": 5},
        "opacity": 0.4 if one.style == "thin" else 1,
    }


def _banded(one: Series) -> bool:
    """Whether a curve has a band: a fit with the ends of its interval."""
    return one.style == "fit" and "low" in one.columns


def _spans(marks: Sequence[Mark], axis: Axis) -> dict[str, Any]:
    """The intervals of marks as error bars."""
    if not any(mark.span for mark in marks):
        return {}
    spans = [(mark.x[axis.key], mark.span or (mark.x[axis.key],) * 2) for mark in marks]
    high, low = [span[1] - x for x, span in spans], [x - span[0] for x, span in spans]
    return {"error_x": {"array": _numbers(high), "arrayminus": _numbers(low)}}


def _places(figure: Figure, axis: Axis, points: int) -> list[list[float | None]]:
    """The x of every trace over one axis."""
    size = unit(figure, axis)[0]
    found = []
    for one in figure.series:
        x = thinned(one, points)[axis.key] / size
        found.append(_numbers(np.where(x > 0, x, np.nan) if axis.log else x))
        if _banded(one):
            found.append(found[-1] + found[-1][::-1])
        if one.marks:
            found.append(_numbers(mark.x.get(axis.key, math.nan) / size for mark in one.marks))
    return found


def _axis(axis: Axis, figure: Figure) -> dict[str, Any]:
    """Scale, title and ticks of an axis."""
    found = {
        "title": {"text": _plain(unit(figure, axis)[1])},
        "type": "log" if axis.log else "linear",
        "zeroline": axis.signed,
    }
    if labels := axis.labels:
        found |= {"tickmode": "array", "tickvals": [*labels], "ticktext": [*map(_plain, labels.values())]}
    return found | {"exponentformat": EXPONENTS.get(axis.kind, "none"), "tickformat": FORMATS.get(axis.kind, "")}


def _view(figure: Figure, axis: Axis) -> tuple[list[float] | None, list[float] | None, dict[str, list]]:
    """The ranges of x and y at first over one x axis, and lines at growths with what these changed above them."""
    if axis.key not in figure.views:
        return None, None, {"shapes": [], "annotations": []}
    left, right, low, high = figure.views[axis.key]
    size = unit(figure, axis)[0]
    grown = {m.x[axis.key] / size for s in figure.series for m in s.marks if m.kind == "growth" and axis.key in m.x}
    line = {"type": "line", "y0": 0, "y1": 1, "yref": "paper", "layer": "below"}
    above = {"yref": "paper", "y": 1, "yanchor": "bottom", "xanchor": "left", "showarrow": False, "xshift": -4}
    texts = [
        {**above, "x": math.log10(x / size) if axis.log else x / size, "text": _plain(text), "yshift": 15 * row}
        for x, text, row in growth_labels(figure, axis)
    ]
    shapes = [{**line, "x0": x, "x1": x} for x in sorted(grown)]
    ranges = _range(axis, left / size, right / size), _range(figure.y, low, high)
    return *ranges, {"shapes": shapes, "annotations": texts}


def _menus(figure: Figure, above: int, points: int) -> list[dict[str, Any]]:
    """The buttons above a chart: switches between linear and logarithmic axes, and one button for each x axis.

    They are `above` pixels over the axes.
    """
    menu = {"type": "buttons", "direction": "right", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom"}
    menu["font"] = {"size": 12}
    found = []
    for name, axis in (("x", figure.x[0]), ("y", figure.y)):
        if axis.kind != "name" and not axis.signed:  # negative values have no logarithm
            to_log, to_linear = ([{f"{name}axis.type": kind}] for kind in ("log", "linear"))
            button = {"label": f"log {name}", "method": "relayout", "args": to_log, "args2": to_linear}
            found.append({**menu, "active": _on(axis), "buttons": [button]})
    if len(figure.x) > 1:
        buttons = [
            {"label": axis.word, "method": "update", "args": _to_axis(figure, axis, points)} for axis in figure.x
        ]
        found.append({**menu, "buttons": buttons})
    left = 0
    for placed in [*found[2:], *found[:2]]:
        placed["pad"] = {"l": left, "b": above}
        left += 4 + sum(7 * len(button["label"]) + 25 for button in placed["buttons"])
    return found


def _on(axis: Axis) -> int:
    """The active button of the switch of an axis: the only one, or none."""
    return 0 if axis.log else -1


def _to_axis(figure: Figure, axis: Axis, points: int) -> list[dict[str, Any]]:
    """What changes in traces and layout when an x axis is chosen, the switches included."""
    x_range, y_range, lines = _view(figure, axis)
    layout = {f"xaxis.{key}": value for key, value in {**_axis(axis, figure), "range": x_range}.items()}
    layout |= {"yaxis.type": "log" if figure.y.log else "linear", "yaxis.range": y_range}
    switches = {"updatemenus[0].active": _on(axis), "updatemenus[1].active": _on(figure.y)}
    return [{"x": _places(figure, axis, points)}, layout | lines | switches]


def _template(theme: Theme, colours: Sequence[int | None]) -> dict[str, Any]:
    """The colours of a chart in a theme; `colours` are those of its traces."""
    title = {"font": {"size": 13}}
    axis = {
        "title": title,
        "gridcolor": theme.grid,
        "linecolor": theme.quiet,
        "zerolinecolor": theme.ink,
        "zerolinewidth": 1,
    }
    layout = {
        "paper_bgcolor": theme.paper,
        "plot_bgcolor": theme.paper,
        "font": {"color": theme.ink, "family": "system-ui, sans-serif", "size": 13},
        "colorway": [theme.colour(colour) for colour in colours],
        "xaxis": axis,
        "yaxis": axis,
        "shapedefaults": {"line": {"color": theme.quiet, "width": 1, "dash": "dot"}},
        "annotationdefaults": {"font": {"size": 12, "color": theme.ink}},
        "hoverlabel": {"bgcolor": theme.box, "bordercolor": theme.quiet, "font": {"color": theme.ink}, "align": "left"},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": theme.quiet, "activecolor": theme.mark},
        "updatemenudefaults": {"bgcolor": theme.paper, "bordercolor": theme.grid},
    }
    return {"layout": layout}


def _point_text(figure: Figure, row: dict[str, float]) -> str:
    """The value of a point, its error bar and its costs."""
    y = figure.y
    lines = [f"{_plain(y.word)} {y.write(row[y.key])}"]
    if "low" in row:
        lines.append(f"95 %: {y.write(row['low'])} to {y.write(row['high'])}")
    lines += [f"{axis.word} {axis.write(row[axis.key])}" for axis in figure.x if math.isfinite(row[axis.key])]
    return "<br>".join(lines)


def _mark_text(name: str, figure: Figure, mark: Mark) -> str:
    if mark.kind == "estimate":
        return _plain(mark.text)
    lines = [f"<b>{_plain(name)}</b>", _plain(mark.text), f"{figure.y.word} {figure.y.write(mark.y)}"]
    return "<br>".join([*lines, *(f"{a.word} {a.write(mark.x[a.key])}" for a in figure.x if a.key in mark.x)])


def _plain(text: str) -> str:
    """Text without what plotly takes for markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _range(axis: Axis, low: float, high: float) -> list[float]:
    return [math.log10(max(end, 1e-300)) if axis.log else end for end in (low, high)]


def _numbers(values: Any) -> list[float | None]:
    """Seven digits, which is more than a screen shows."""
    return [float(f"{value:.7g}") if math.isfinite(value) else None for value in values]
