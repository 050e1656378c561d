"""The figures of a study: loss against compute, tokens and time, with the moments of growth marked."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, MultipleLocator, NullFormatter

from growlm.study import numbers
from growlm.study.records import Run, Study

AXES = {
    "flops": "training compute, all stages (FLOPs)",
    "tokens": "tokens, all stages",
    "seconds": "training time, all stages",
}
LOSSES = {"val_loss": "validation loss (nats per token)", "loss": "training loss (nats per token)"}
# The part of the longest run that is left out, and the height of the figure over the spread of the final losses.
VIEW = {"flops": (0.03, 12), "tokens": (0.1, 8), "seconds": (0.1, 8)}
CLOCK = (
    1,
    2,
    5,
    10,
    30,
    60,
    120,
    300,
    600,
    1800,
    3600,
    7200,
    14400,
    21600,
    43200,
    86400,
    172800,
    432000,
    864000,
)


@dataclass(frozen=True)
class Theme:
    """Colours for one kind of screen; runs have Okabe and Ito's, which colour-blind readers tell apart."""

    paper: str
    ink: str
    grid: str
    baseline: str
    runs: tuple[str, ...]


LIGHT = Theme(
    paper="#ffffff",
    ink="#1c2024",
    grid="#e3e6ea",
    baseline="#000000",
    runs=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
)
DARK = Theme(
    paper="#15181c",
    ink="#e6e8ea",
    grid="#30353b",
    baseline="#ffffff",
    runs=("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#0072b2"),
)
THEMES = (LIGHT, DARK)


@dataclass(frozen=True)
class Line:
    """One run as drawn: cost x and loss y, float64[points], and where it grew: the cost, and what changed."""

    run: Run
    colour: str
    dash: str
    x: np.ndarray
    y: np.ndarray
    growths: list[tuple[float, str]]

    def at(self, x: float) -> float:
        """The loss at a cost, held level beyond the ends."""
        return float(np.interp(x, self.x, self.y))


def png(study: Study, axis: str, theme: Theme = LIGHT) -> bytes:
    """The figure of one axis as a PNG file."""
    file = io.BytesIO()
    FigureCanvasAgg(draw(study, axis, theme)).print_png(file)
    return file.getvalue()


def draw(study: Study, axis: str, theme: Theme = LIGHT) -> Figure:
    """Loss against one cost, one line per run that has any.

    The window lies over the end of the curves, where they differ by hundredths: the first fall from
    log(vocabulary) would press them into one line. Validation loss is drawn, or training loss while hardly
    any of it is there.

    Args:
        study: the runs.
        axis: "flops" (on a log scale), "tokens" or "seconds".
        theme: the colours.
    """
    key = _loss_key(study)
    lines = _lines(study, axis, key, theme)
    columns = 1 if any(len(line.run.name) > 24 for line in lines) else 2
    height = 3.7 + 0.22 * -(-len(lines) // columns)
    figure = Figure(figsize=(5.8, height), dpi=170, layout="constrained", facecolor=theme.paper)
    axes = figure.add_subplot()
    _dress(axes, axis, key, theme)
    if not lines:
        axes.text(0.5, 0.5, "nothing measured yet", transform=axes.transAxes, ha="center", color=theme.ink)
        return figure
    for line in lines:
        _plot(axes, line)
    _window(axes, lines, axis)
    _mark_growths(axes, lines, theme)
    _name_ends(axes, lines, theme)
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=9, labelcolor=theme.ink)
    return figure


def change(report: dict) -> str:
    """What a growth did to the shape of the model, as 'layers 6 → 24'; 'growth' if its report is silent."""
    source, target = report.get("source"), report.get("target")
    if not isinstance(source, dict) or not isinstance(target, dict):
        return "growth"
    keys = [key for key in source if key in target and source[key] != target[key]]
    return ", ".join(f"{key} {source[key]} → {target[key]}" for key in keys) or "growth"


def _loss_key(study: Study) -> str:
    """Validation loss where any run has a curve of it, else training loss."""
    measured = (sum(r.get("val_loss") is not None for r in run.metrics) for run in study.runs.values())
    return "val_loss" if max(measured) > 1 else "loss"


def _lines(study: Study, axis: str, key: str, theme: Theme) -> list[Line]:
    """The runs that have something to draw: the baseline in its own colour, the others in turn, controls dashed."""
    others = [name for name, run in study.runs.items() if run.role != "baseline"]
    colours = {name: theme.runs[i % len(theme.runs)] for i, name in enumerate(others)}
    dashes = dict.fromkeys(others[len(theme.runs) :], "-.")
    dashes |= {name: "--" for name, run in study.runs.items() if run.role == "control"}
    lines = []
    for name, run in study.runs.items():
        points = np.asarray(list(_points(run, axis, key)), np.float64)
        if points.size:
            x, y = points[points[:, 0].argsort(kind="stable")].T
            look = colours.get(name, theme.baseline), dashes.get(name, "-")
            lines.append(Line(run, *look, x, y, list(_growths(run, axis))))
    return lines


def _points(run: Run, axis: str, key: str) -> Iterator[tuple[float, float]]:
    """Cost and loss of every record that has both, is finite and has a place on a log scale."""
    for record in run.metrics:
        x, y = record.get(axis), record.get(key)
        if x is not None and y is not None and np.isfinite([x, y]).all() and (x > 0 or axis != "flops"):
            yield x, y


def _growths(run: Run, axis: str) -> Iterator[tuple[float, str]]:
    """Where the stage of a run goes up: the cost of the last record before, and what changed in the model."""
    last_records = [before for before, after in pairwise(run.metrics) if after["stage"] > before["stage"]]
    for number, record in enumerate(last_records):
        if record.get(axis):
            yield float(record[axis]), change(run.growths[number]) if number < len(run.growths) else "growth"


def _dress(axes: Axes, axis: str, key: str, theme: Theme) -> None:
    """Scales, labels and quiet lines."""
    axes.set_facecolor(theme.paper)
    axes.set_xlabel(AXES[axis], color=theme.ink)
    axes.set_ylabel(LOSSES[key], color=theme.ink)
    axes.tick_params(which="both", colors=theme.ink, length=3)
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.ink)
    write = {"flops": numbers.flops_short, "tokens": numbers.count, "seconds": numbers.duration}[axis]
    if axis == "flops":
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: write(x)))


def _plot(axes: Axes, line: Line) -> None:
    """The line of one run: the baseline and the grown ones heavier than the rest."""
    role = line.run.role
    axes.plot(
        line.x,
        line.y,
        color=line.colour,
        linewidth=2.0 if role in ("grown", "baseline") else 1.6,
        linestyle=line.dash,
        marker="o" if len(line.x) <= 25 else "",
        markersize=3,
        label=line.run.name if role == "run" else f"{line.run.name} ({role})",
    )


def _window(axes: Axes, lines: list[Line], axis: str) -> None:
    """Choose what is seen: as much of the past as leaves the final losses room (VIEW), but at least 70%."""
    skip, times = VIEW[axis]
    longest = max(line.x[-1] for line in lines)
    finals = [line.y[-1] for line in lines]
    low = min(line.y.min() for line in lines)
    early, late = (max(line.at(part * longest) for line in lines) for part in (skip, 0.3))
    room = times * (max(finals) - min(finals)) if len(lines) > 1 else np.inf
    high = max(late, min(early, low + room), low + 1e-3)
    pad = 0.06 * (high - low)
    axes.set_ylim(low - pad, high + pad)
    if axis == "flops":
        entries = [line.x[np.argmax(line.y <= high)] for line in lines]
        growths = [x for line in lines for x, _ in line.growths]
        axes.set_xlim(0.8 * min(entries + growths), 1.03 * longest)
    else:
        axes.set_xlim(0, 1.01 * longest)
    if axis == "seconds":
        axes.xaxis.set_major_locator(MultipleLocator(next((t for t in CLOCK if longest / t <= 6), longest / 5)))


def _mark_growths(axes: Axes, lines: list[Line], theme: Theme) -> None:
    """A tick from the top down to each point of growth, and above it what changed, once per place."""
    low, high = axes.get_ylim()
    to_axes = axes.transData + axes.transAxes.inverted()
    taken: list[tuple[float, str]] = []
    for line in lines:
        for x, text in line.growths:
            y, place = line.at(x), to_axes.transform((x, high))[0]
            reach = min(y, high - 0.12 * (high - low))
            axes.vlines(x, reach, high, color=line.colour, linestyle=":", linewidth=1.5, gid="growth")
            axes.plot(x, y, "D", color=line.colour, markeredgecolor=theme.paper, markersize=7, zorder=5)
            near = [said for where, said in taken if abs(where - place) < 0.25]
            if text not in near:
                at = {"xycoords": "axes fraction", "textcoords": "offset points"}
                axes.annotate(text, (place, 1), (-3, 3 + 11 * len(near)), **at, fontsize=8.5, color=theme.ink)
                taken.append((place, text))


def _name_ends(axes: Axes, lines: list[Line], theme: Theme) -> None:
    """The name and last loss of every run to the right of the axes, led to the end of its line."""
    low, high = axes.get_ylim()
    ordered = sorted(lines, key=lambda line: line.y[-1])
    places = _spread(np.array([line.y[-1] for line in ordered]), low, high)
    for line, place in zip(ordered, places, strict=True):
        lead = {"arrowstyle": "-", "color": line.colour, "linestyle": ":", "relpos": (0, 0.5), "shrinkA": 1}
        name = line.run.name if len(line.run.name) <= 20 else line.run.name[:19] + "…"
        axes.annotate(
            f"{name} {line.y[-1]:.3f}",
            (line.x[-1], line.y[-1]),
            xytext=(1.05, place),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            fontsize=9,
            color=theme.ink,
            annotation_clip=False,
            arrowprops=lead,
        )


def _spread(wanted: np.ndarray, low: float, high: float) -> np.ndarray:
    """Places near the wanted ones, which rise, with room for a line of text between any two."""
    gap = min(0.06 * (high - low), (high - low) / len(wanted))
    steps = gap * np.arange(len(wanted))
    places = np.maximum.accumulate(wanted - steps) + steps
    return places - min(np.mean(places - wanted), places[0] - low)
