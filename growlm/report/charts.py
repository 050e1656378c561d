"""Curves of runs over compute, tokens and time, with their growths: losses, benchmarks, and how training went."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from growlm.errors import is_number
from growlm.report.figures import Axis, Figure, Mark, Series
from growlm.report.records import Group, Run
from growlm.report.shown import Shown, drawn, shown
from growlm.report.style import LIGHT

COSTS = (
    Axis("flops", "training compute, all stages (FLOPs)", "flops", log=True),
    Axis("tokens", "tokens, all stages", "count"),
    Axis("seconds", "training time, all stages", "seconds"),
)
LOSSES = {"val_loss": "validation loss (nats per token)", "loss": "training loss (nats per token)"}
BENCHMARK = "benchmark/"
TRAINING = {
    "learning_rate": Axis("learning_rate", "learning rate", "number"),
    "gradient_norm": Axis("grad_norm", "gradient norm, before clipping", "number", log=True),
    "throughput": Axis("tokens_per_second", "tokens per second", "count"),
}
# Of a record, beside losses and TRAINING: where it stands, and what is drawn or told elsewhere.
BOOKKEEPING = {"stage", "step", "tokens", "flops", "flops_exact", "seconds", "loss", "val_loss", "pause_seconds"}
BOOKKEEPING |= {"parameters", "data_wait", "mfu", "epochs", "unique_tokens", "samples", "time"}
# The share of the longest run that is left out, and the height of the figure over the spread of the final losses.
VIEW = {"flops": (0.03, 12), "tokens": (0.1, 8), "seconds": (0.1, 8)}
COLOURS = len(LIGHT.runs)
DASHES = (0, 2, 3)  # once all colours are used; 1 is for controls


def loss_figure(group: Group, name: str = "loss") -> Figure:
    """Validation loss, or training loss while there is hardly any, over every cost that was recorded.

    Each run has a curve; at several seeds, each seed a thin one behind their mean. The view lies over the end of the
    curves, where they differ by hundredths: the first fall from log(vocabulary) would press them into one line.
    """
    measured = (sum(record.get("val_loss") is not None for record in run.metrics) for run in group.runs)
    key = "val_loss" if max(measured) > 1 else "loss"
    y = Axis(key, LOSSES[key], "loss")
    found, title = curves(group, y), y.label.split(" (")[0].capitalize()
    axes = _recorded(found.drawn)
    return figure_of(found, name, title, axes, y, views_of(found.drawn, axes, y, end=True))


def benchmark_figures(group: Group, prefix: str = "") -> tuple[list[Figure], list[Figure]]:
    """Of the benchmarks that were measured while training: one figure a task, the average first; all other metrics.

    A task's own figure is of its accuracy, or of what was measured first.
    """
    tasks: dict[str, list[str]] = {}
    for key in group.recorded:
        if key.startswith(BENCHMARK):
            tasks.setdefault(key.removeprefix(BENCHMARK).partition("/")[0], []).append(key)
    own: list[Figure] = []
    others: list[Figure] = []
    for task in sorted(tasks, key=lambda task: task != "average"):
        keys = tasks[task]
        first = next((key for key in keys if key.endswith("/acc")), keys[0])
        own += _recorded_figure(group, first, prefix, ("tokens", "flops"))
        others += [
            figure for key in keys if key != first for figure in _recorded_figure(group, key, prefix, ("tokens",))
        ]
    return own, others


def training_figures(group: Group, prefix: str = "") -> list[Figure]:
    """Learning rate, gradient norm and throughput, and what else models and objectives say of themselves."""
    figures = []
    for name, y in TRAINING.items():
        title = name.replace("_", " ").capitalize()
        figures += whole_figure(group, prefix + name, title, y, ("tokens",))
    known = {y.key for y in TRAINING.values()} | BOOKKEEPING
    for key in group.recorded:
        if key not in known and "/" not in key:  # a task's or a source's: drawn with these
            figures += _recorded_figure(group, key, prefix, ("tokens",))
    return figures


def _recorded_figure(group: Group, key: str, prefix: str, costs: Sequence[str]) -> list[Figure]:
    """A figure of a metric under its own name."""
    title = key.removeprefix(BENCHMARK)
    name = prefix + "".join(c if c.isalnum() else "_" for c in key)
    return whole_figure(group, name, title.replace("_", " "), Axis(key, title, "number"), costs)


def whole_figure(group: Group, name: str, title: str, y: Axis, costs: Sequence[str]) -> list[Figure]:
    """A figure of all that was recorded of a quantity; none where nothing was."""
    found = curves(group, y)
    if not found.drawn:
        return []
    recorded = {axis.key: axis for axis in _recorded(found.drawn)}
    axes = tuple(recorded[key] for key in costs if key in recorded)
    return [figure_of(found, name, title, axes, y, views_of(found.drawn, axes, y))]


def figure_of(
    found: Shown,
    name: str,
    title: str,
    axes: tuple[Axis, ...],
    y: Axis,
    views: Mapping[str, tuple[float, float, float, float]],
    note: str = "",
) -> Figure:
    """The figure of what is shown of some curves."""
    return Figure(name, title, axes, y, found.drawn, views, note, undrawn=found.undrawn, left_out=found.left_out)


def change(run: Run, number: int) -> str:
    """What a growth, from 0, changed in the model's config, as 'layers 6 → 24'; 'growth' where no record says it."""
    report = run.growths[number] if number < len(run.growths) else {}
    models = [stage.get("model") for stage in (run.config.get("stages") or ())[number : number + 2]]
    if "source" in report and "target" in report:
        models = [report["source"], report["target"]]
    if len(models) != 2 or not all(isinstance(model, dict) for model in models):
        return "growth"
    source, target = models
    keys = [key for key in source if key in target and source[key] != target[key]]
    return ", ".join(f"{key} {source[key]} → {target[key]}" for key in keys) or "growth"


def styles(group: Group) -> dict[str, tuple[int | None, int]]:
    """(colour, dash) of every run: the others than the baseline have the colours in turn; controls are dashed.

    Of many runs those that charts show come first, so that their colours differ.
    """
    runs = group.first.runs.values()
    kept = drawn(group, group.first.runs)
    others = sorted((run for run in runs if run.role != "baseline"), key=lambda run: run.name not in kept)
    found = {}
    for number, run in enumerate(others):
        dash = 1 if run.role == "control" else DASHES[number // COLOURS % len(DASHES)]
        found[run.name] = number % COLOURS, dash
    return {run.name: found.get(run.name, (None, 0)) for run in runs}


def curves(group: Group, y: Axis) -> Shown:
    """The curves of a quantity: one for each run; at several seeds, a thin one for each and their mean."""
    found: dict[str, list[Series]] = {}
    style = styles(group)
    for name, first in group.first.runs.items():
        label = name if first.role == "run" else f"{name} ({first.role})"
        own = [
            _series(run, y, f"{name}, {seed}" if len(group.studies) > 1 else name, label, *style[name])
            for seed, run in group.each(name).items()
        ]
        found[name] = with_mean([one for one in own if one is not None], name)
    return shown(group, found)


def _series(run: Run, y: Axis, name: str, label: str, colour: int | None, dash: int) -> Series | None:
    """The curve of one run, in order of cost; None where nothing was recorded."""
    flops = run.column("flops")
    (measured,) = np.nonzero(np.isfinite(flops) & np.isfinite(run.column(y.key)))
    if not measured.size:
        return None
    order = measured[np.argsort(flops[measured], kind="stable")]
    columns = {key: run.column(key)[order] for key in (*(axis.key for axis in COSTS), y.key)}
    return Series(name, label, columns, "line", colour, dash, tuple(_growths(run, columns, y.key)))


def _finite(value: object) -> bool:
    return is_number(value) and math.isfinite(value)


def _growths(run: Run, columns: dict[str, np.ndarray], key: str) -> Iterator[Mark]:
    """The growths of a run, each at the costs of the last record before it."""
    last_records = [before for before, after in pairwise(run.metrics) if after["stage"] > before["stage"]]
    for number, record in enumerate(last_records):
        if record.get("flops"):
            costs = {axis.key: float(record[axis.key]) for axis in COSTS if _finite(record.get(axis.key))}
            yield Mark(
                "growth", costs, float(np.interp(record["flops"], columns["flops"], columns[key])), change(run, number)
            )


def with_mean(seeds: Sequence[Series], name: str) -> list[Series]:
    """Of several seeds thin curves and their mean as far as all have come; without a mean where one has hardly begun.

    Only the mean has marks.
    """
    if len(seeds) < 2:
        return [*seeds]
    first, shortest = seeds[0], min(_points(one) for one in seeds)
    rows = {key: np.stack([one.columns[key][:shortest] for one in seeds]) for key in first.columns}
    if shortest < 0.5 * max(map(_points, seeds)) or (rows["flops"] != rows["flops"][0]).any():
        return [*seeds]
    columns = {key: np.mean(column, axis=0) for key, column in rows.items()}
    y = next(reversed(columns.values()))
    marks = tuple(replace(mark, y=float(np.interp(mark.x["flops"], columns["flops"], y))) for mark in first.marks)
    mean = replace(first, name=f"{name}, mean of {len(seeds)} seeds", columns=columns, marks=marks)
    return [*(replace(one, style="thin", marks=()) for one in seeds), mean]


def _points(series: Series) -> int:
    return len(series.columns["flops"])


def _recorded(series: Sequence[Series]) -> tuple[Axis, ...]:
    """The costs that were recorded; FLOPs always are."""
    return tuple(
        a for a in COSTS if a.key == "flops" or any(np.nanmax(s.columns[a.key], initial=0) > 0 for s in series)
    )


def views_of(
    series: Sequence[Series], axes: Sequence[Axis], y: Axis, end: bool = False
) -> dict[str, tuple[float, float, float, float]]:
    """The ranges at first, over each cost: of everything, or of the end of falling curves."""
    return {axis.key: view for axis in axes if (view := _view(series, axis, y, end))}


def _view(series: Sequence[Series], axis: Axis, y: Axis, end: bool) -> tuple[float, float, float, float] | None:
    """The ranges over one cost; of the end as much as leaves the final losses room (VIEW), but at least 70%."""
    lines = [line for one in series if len((line := _sorted(one, axis, y))[0])]
    if not lines:
        return None
    longest = max(x[-1] for x, _ in lines)
    low, high = min(y.min() for _, y in lines), max(y.max() for _, y in lines)
    if end:
        high = _top(lines, axis.key, longest, low)
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    start = 0.0
    if axis.log:
        grown = [mark.x[axis.key] for one in series for mark in one.marks if axis.key in mark.x]
        start = 0.8 * min([x[np.argmax(y <= high)] for x, y in lines] + grown)
    ends = (0.8 * low, 1.25 * high) if y.log else (low - pad, high + pad)
    return start, (1.03 if axis.log else 1.01) * longest, *ends


def _top(lines: list[tuple[np.ndarray, np.ndarray]], key: str, longest: float, low: float) -> float:
    """The highest loss in view, of curves (cost, loss)."""
    skip, times = VIEW[key]
    finals = [y[-1] for _, y in lines]
    early, late = (max(float(np.interp(part * longest, x, y)) for x, y in lines) for part in (skip, 0.3))
    room = times * (max(finals) - min(finals)) if len(lines) > 1 else np.inf
    return max(late, min(early, low + room), low + 1e-3)


def _sorted(series: Series, axis: Axis, y: Axis) -> tuple[np.ndarray, np.ndarray]:
    """Cost and quantity where the axes have a place for them, in order of cost."""
    columns = [(series.columns[one.key], one.log) for one in (axis, y)]
    placed = np.logical_and.reduce([np.isfinite(values) & ((values > 0) | (not log)) for values, log in columns])
    x, quantity = (values[placed] for values, _ in columns)
    order = np.argsort(x, kind="stable")
    return x[order], quantity[order]
