"""A figure as a PNG, by matplotlib, which takes half a second to import: whoever writes figures imports this then."""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from growlm.files import write_whole
from growlm.report.figures import Axis, Figure, Series, as_csv, growth_labels, thinned, unit
from growlm.report.style import LIGHT, Theme, count, percent

DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "^", "s", "v")  # of points, in place of dashes
# From so large a range on only powers of ten have ticks on a logarithmic axis: labels below one another take less room.
WIDE, TALL = 300, 1e5
TICKS = {
    "flops": lambda value: f"{value:.0e}".replace("e+0", "e").replace("e+", "e"),
    "count": count,
    "seconds": "{:g}".format,
    "number": "{:.3g}".format,
    "percent": lambda value: percent(value).replace(".0%", "%") if abs(value) > 1e-9 else "0%",
}


def write_figure(folder: Path, figure: Figure) -> None:
    """The PNGs of a figure, one for each x axis, and its CSV."""
    for axis in figure.x:
        name = f"{figure.name}_{axis.key}.png" if len(figure.x) > 1 else f"{figure.name}.png"
        write_whole(folder / name, png(figure, axis))
    write_whole(folder / f"{figure.name}.csv", as_csv(figure).encode())


def png(figure: Figure, axis: Axis, theme: Theme = LIGHT) -> bytes:
    """The figure over one of its x axes as a PNG file."""
    file = io.BytesIO()
    with rc_context({"text.parse_math": False}):  # a run may be named $_$
        FigureCanvasAgg(draw(figure, axis, theme)).print_png(file)
    return file.getvalue()


def draw(figure: Figure, axis: Axis, theme: Theme = LIGHT) -> Canvas:
    """The figure over one of its x axes, in its ranges at first."""
    named = [one for one in figure.series if one.style != "thin"]
    columns = 1 if any(len(one.label) > 24 for one in named) else 2
    labels = {one.label for one in named}
    rows = 0.28 * figure.row_height * len(figure.y.names) if figure.y.names else 2.7
    said = textwrap.fill(figure.left_out, 90)
    height = 1 + rows + 0.22 * -(-len(labels) // columns) + 0.18 * len(said.splitlines())
    canvas = Canvas((5.8, height), 170, layout="constrained", facecolor=theme.paper)
    axes = canvas.add_subplot()
    if axis.key not in figure.views:
        axes.text(0.5, 0.5, "nothing measured yet", transform=axes.transAxes, ha="center", color=theme.ink)
        return canvas
    left, right, low, high = figure.views[axis.key]
    size, label = unit(figure, axis)
    axes.set(xlabel=label, xlim=(left / size, right / size), ylim=(low, high))
    _style_axes(axes, axis, figure.y, theme)
    for one in figure.series:
        _plot(axes, one, axis, figure.y, size, theme)
    _plot_marks(axes, figure, axis, size, theme)
    for line in [axes.axvline] * axis.signed + [axes.axhline] * figure.y.signed:
        line(0, color=theme.ink, linewidth=1, zorder=1.5)  # below the curves
    if all(one.style == "line" for one in named):
        _name_ends(axes, named, axis, figure.y, size, theme)
    # matplotlib's own list lacks a name such as _a; a list, for axes.lines looks through all artists for each line.
    drawn = {line.get_label(): line for line in reversed([*axes.lines])}
    entries = {label: drawn[label] for label in dict.fromkeys(one.label for one in named)}
    look = {"frameon": False, "fontsize": 9, "labelcolor": theme.ink}
    legend = canvas.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, **look)
    if said:
        legend.set_title(said, {"size": 9})
        legend.get_title().set_color(theme.ink)
    return canvas


def _style_axes(axes: Axes, axis: Axis, y: Axis, theme: Theme) -> None:
    """Scales, ticks, grid and colours."""
    axes.set_facecolor(theme.paper)
    axes.set_ylabel(y.label)
    axes.xaxis.label.set_color(theme.ink)
    axes.yaxis.label.set_color(theme.ink)
    axes.tick_params(which="both", colors=theme.ink, length=3)
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.ink)
    for place, one in ((axes.xaxis, axis), (axes.yaxis, y)):
        if one.log:
            (axes.set_xscale if one is axis else axes.set_yscale)("log")
            first, last = place.get_view_interval()
            most = WIDE if one is axis else TALL
            place.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if last < most * first else (1.0,)))
            place.set_minor_formatter(NullFormatter())
        elif one is axis:
            place.set_major_locator(MaxNLocator(6))
        if labels := one.labels:
            place.set_minor_locator(NullLocator())
            place.set_ticks([*labels], [*labels.values()])
        elif one.kind != "loss":
            place.set_major_formatter(FuncFormatter(lambda value, _, kind=one.kind: TICKS[kind](value)))


def _plot(axes: Axes, one: Series, axis: Axis, y: Axis, size: float, theme: Theme) -> None:
    """One curve: means and the baseline heavy, single seeds thin, points without a line."""
    columns = thinned(one)
    x, colour = columns[axis.key] / size, theme.colour(one.colour)
    x = np.where(x > 0, x, np.nan) if axis.log else x
    common = {"color": colour, "label": "_seed" if one.style == "thin" else one.label}  # the legend shows the mean
    if one.style == "points":
        axes.plot(x, columns[y.key], MARKERS[one.dash], markersize=4, **common)
        if "low" in columns:
            errors = np.abs(np.stack([columns["low"], columns["high"]]) - columns[y.key])
            axes.errorbar(x, columns[y.key], errors, fmt="none", ecolor=colour, capsize=3)
        return
    width = {"thin": 0.8, "fit": 1.3}.get(one.style, 1.9 if one.dash != 1 else 1.6)
    few = one.style == "line" and len(columns[y.key]) <= 25
    line = {"linestyle": DASHES[one.dash], "alpha": 0.55 if one.style == "thin" else 1, "marker": "o" if few else ""}
    axes.plot(x, columns[y.key], linewidth=width, markersize=3, **line, **common)
    if "low" in columns:
        axes.fill_between(x, columns["low"], columns["high"], color=colour, alpha=0.12, linewidth=0)


def _plot_marks(axes: Axes, figure: Figure, axis: Axis, size: float, theme: Theme) -> None:
    """A diamond at every mark; from the top down to a growth a tick, and above it what changed."""
    low, high = axes.get_ylim()
    for one, mark in ((s, m) for s in figure.series for m in s.marks if axis.key in m.x):
        x, colour = mark.x[axis.key] / size, theme.colour(one.colour)
        axes.plot(x, mark.y, "D", color=colour, markeredgecolor=theme.paper, markersize=7, zorder=5)
        if mark.span:
            axes.hlines(mark.y, *mark.span, color=colour, linewidth=2.5, alpha=0.6)
        if mark.kind == "growth":
            reach = min(mark.y, high - 0.12 * (high - low))
            axes.vlines(x, reach, high, color=colour, linestyle=":", linewidth=1.5, gid="growth")
    across = axes.get_xaxis_transform()
    for x, text, line in growth_labels(figure, axis):
        at = {"xycoords": across, "textcoords": "offset points"}
        axes.annotate(text, (x / size, 1), (-3, 3 + 11 * line), **at, fontsize=8.5, color=theme.ink)


def _name_ends(axes: Axes, series: Sequence[Series], axis: Axis, y: Axis, size: float, theme: Theme) -> None:
    """The name and last value of every curve to the right of the axes, led to its end."""
    low, high = axes.get_ylim()
    least = 0.0 if axis.log else -np.inf  # a run that has only begun has no place on a logarithmic axis
    placed = [one for one in series if one.columns[axis.key][-1] > least]
    ordered = sorted(placed, key=lambda one: one.columns[y.key][-1])
    places = _spread(np.array([one.columns[y.key][-1] for one in ordered]), low, high)
    for one, place in zip(ordered, places, strict=True):
        x, value = one.columns[axis.key][-1] / size, one.columns[y.key][-1]
        lead = {
            "arrowstyle": "-",
            "color": theme.colour(one.colour),
            "linestyle": ":",
            "relpos": (0, 0.5),
            "shrinkA": 1,
        }
        name = one.label.rpartition(" (")[0] or one.label
        name = name if len(name) <= 20 else name[:19] + "…"
        axes.annotate(
            f"{name} {value:.3f}" if y.kind == "loss" else f"{name} {y.write(value)}",
            (x, value),
            xytext=(1.05, place),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            fontsize=9,
            color=theme.ink,
            annotation_clip=False,
            arrowprops=lead,
        )


def _spread(wanted: np.ndarray, low: float, high: float) -> np.ndarray:
    """Places near the wanted ones, which are in order, with room for a line of text between any two."""
    gap = min(0.06 * (high - low), (high - low) / len(wanted))
    steps = gap * np.arange(len(wanted))
    places = np.maximum.accumulate(wanted - steps) + steps
    return places - min(np.mean(places - wanted), places[0] - low)
