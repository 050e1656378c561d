"""The figures of a study: loss and benchmarks against compute, tokens and time, with the moments of growth marked."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from growlm.report.figures import Axis, Figure, Mark, Series
from growlm.report.records import Group, Run
from growlm.report.themes import LIGHT

COSTS = (
    Axis("flops", "training compute, all stages (FLOPs)", "flops", log=True),
    Axis("tokens", "tokens, all stages", "count"),
    Axis("seconds", "training time, all stages", "seconds"),
)
LOSSES = {"val_loss": "validation loss (nats per token)", "loss": "training loss (nats per token)"}
BENCHMARK = "benchmark/"
# The part of the longest run that is left out, and the height of the figure over the spread of the final losses.
VIEW = {"flops": (0.03, 12), "tokens": (0.1, 8), "seconds": (0.1, 8)}
COLOURS = len(LIGHT.runs)
DASHES = (0, 2, 3)  # once all colours are used; 1 is for controls


def loss_figure(group: Group, name: str = "loss") -> Figure:
    """Loss against every cost that was recorded: a curve for every run; of several seeds, thin ones and their mean.

    The view lies over the end of the curves, where they differ by hundredths: the first fall from log(vocabulary)
    would press them into one line. Validation loss is drawn, or training loss while hardly any of it is there.
    """
    key = _loss_key(group)
    y = Axis(key, LOSSES[key], "loss")
    series = curves(group, y)
    axes = _recorded(series)
    return Figure(name, y.label.split(" (")[0].capitalize(), axes, y, series, views_of(series, axes, key))


def benchmark_figures(group: Group, prefix: str = "") -> list[Figure]:
    """A figure for every benchmark that was measured while training, as records with keys "benchmark/..." have it."""
    runs = [run for study in group.studies.values() for run in study.runs.values()]
    keys = {key: None for run in runs for record in run.metrics for key in record if key.startswith(BENCHMARK)}
    figures = []
    for key in keys:
        title = key.removeprefix(BENCHMARK)
        y = Axis(key, title, "number")
        if series := curves(group, y):
            name = prefix + "benchmark_" + "".join(c if c.isalnum() else "_" for c in title)
            axes = _recorded(series)[:2]
            figures.append(Figure(name, title, axes, y, series, views_of(series, axes, None)))
    return figures


def change(report: dict) -> str:
    """What a growth did to the shape of the model, as 'layers 6 → 24'; 'growth' if its report is silent."""
    source, target = report.get("source"), report.get("target")
    if not isinstance(source, dict) or not isinstance(target, dict):
        return "growth"
    keys = [key for key in source if key in target and source[key] != target[key]]
    return ", ".join(f"{key} {source[key]} → {target[key]}" for key in keys) or "growth"


def looks(runs: Sequence[Run]) -> dict[str, tuple[int | None, int]]:
    """(colour, dash) of every run: the baseline has the ink's colour, the others one in turn; controls are dashed."""
    others = [run for run in runs if run.role != "baseline"]
    found = {}
    for number, run in enumerate(others):
        dash = 1 if run.role == "control" else DASHES[number // COLOURS % len(DASHES)]
        found[run.name] = number % COLOURS, dash
    return {run.name: found.get(run.name, (None, 0)) for run in runs}


def curves(group: Group, y: Axis) -> tuple[Series, ...]:
    """The curves of one measured quantity: of every run, and of several seeds each one and their mean."""
    found: list[Series] = []
    look = looks(list(group.first.runs.values()))
    for name, first in group.first.runs.items():
        label = name if first.role == "run" else f"{name} ({first.role})"
        own = [
            _series(run, y, f"{name}, {seed}" if len(group.studies) > 1 else name, label, *look[name])
            for seed, run in group.each(name).items()
        ]
        own = [one for one in own if one is not None]
        mean = mean_of(own, name) if len(own) > 1 else None
        if mean:
            own = [replace(one, style="thin", marks=()) for one in own]
        found += [*own, mean] if mean else own
    return tuple(found)


def _loss_key(group: Group) -> str:
    """Validation loss where any run has a curve of it, else training loss."""
    runs = [run for study in group.studies.values() for run in study.runs.values()]
    measured = (sum(record.get("val_loss") is not None for record in run.metrics) for run in runs)
    return "val_loss" if max(measured) > 1 else "loss"


def _series(run: Run, y: Axis, name: str, label: str, colour: int | None, dash: int) -> Series | None:
    """The curve of one run, in order of cost; None where it has none. A quantity measured twice in a step has two."""
    records = [record for record in run.metrics if _finite(record.get(y.key)) and _finite(record.get("flops"))]
    if not records:
        return None
    records.sort(key=lambda record: record["flops"])
    columns = {
        key: np.array([record[key] if _finite(record.get(key)) else np.nan for record in records], np.float64)
        for key in (*(axis.key for axis in COSTS), y.key)
    }
    return Series(name, label, columns, "line", colour, dash, tuple(_growths(run, columns, y.key)))


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))


def _growths(run: Run, columns: dict[str, np.ndarray], key: str) -> Iterator[Mark]:
    """Where the stage of a run goes up: the costs of the last record before, and what changed in the model."""
    last_records = [before for before, after in pairwise(run.metrics) if after["stage"] > before["stage"]]
    for number, record in enumerate(last_records):
        if record.get("flops"):
            text = change(run.growths[number]) if number < len(run.growths) else "growth"
            costs = {axis.key: float(record[axis.key]) for axis in COSTS if _finite(record.get(axis.key))}
            yield Mark("growth", costs, float(np.interp(record["flops"], columns["flops"], columns[key])), text)


def mean_of(seeds: Sequence[Series], name: str) -> Series | None:
    """The mean of the seeds as far as all have come, with their growths; None where one has hardly begun."""
    one, lengths = seeds[0], [len(series.columns["flops"]) for series in seeds]
    rows = {key: [series.columns[key][: min(lengths)] for series in seeds] for key in one.columns}
    if min(lengths) < 0.5 * max(lengths) or any((flops != rows["flops"][0]).any() for flops in rows["flops"]):
        return None
    columns = {key: np.mean(column, axis=0) for key, column in rows.items()}
    loss = next(reversed(columns.values()))
    marks = tuple(replace(mark, y=float(np.interp(mark.x["flops"], columns["flops"], loss))) for mark in one.marks)
    return Series(f"{name}, mean of {len(seeds)} seeds", one.label, columns, "line", one.colour, one.dash, marks)


def _recorded(series: Sequence[Series]) -> tuple[Axis, ...]:
    """The costs that are known of any curve; FLOPs and tokens are always there."""
    return tuple(
        a for a in COSTS if a.key == "flops" or any(np.nanmax(s.columns[a.key], initial=0) > 0 for s in series)
    )


def views_of(
    series: Sequence[Series], axes: Sequence[Axis], falling: str | None
) -> dict[str, tuple[float, float, float, float]]:
    """What is seen at first, over each cost; of a falling quantity, named by its key, the end; of any other, all."""
    return {axis.key: view for axis in axes if (view := _view(series, axis, falling))}


def _view(series: Sequence[Series], axis: Axis, falling: str | None) -> tuple[float, float, float, float] | None:
    """As much of the past as leaves the final losses room (VIEW), but at least 70%."""
    key = falling or next(reversed(series[0].columns)) if series else ""
    lines = [_sorted(one, axis, key) for one in series]
    lines = [(x, y) for x, y in lines if len(x)]
    if not lines:
        return None
    longest = max(x[-1] for x, _ in lines)
    low, high = min(y.min() for _, y in lines), max(y.max() for _, y in lines)
    if falling:
        high = _top(lines, axis.key, longest, low)
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    start = 0.0
    if axis.log:
        grown = [mark.x[axis.key] for one in series for mark in one.marks if axis.key in mark.x]
        start = 0.8 * min([x[np.argmax(y <= high)] for x, y in lines] + grown)
    return start, (1.03 if axis.log else 1.01) * longest, low - pad, high + pad


def _top(lines: list[tuple[np.ndarray, np.ndarray]], key: str, longest: float, low: float) -> float:
    """The highest loss to be seen, of curves (cost, loss)."""
    skip, times = VIEW[key]
    finals = [y[-1] for _, y in lines]
    early, late = (max(float(np.interp(part * longest, x, y)) for x, y in lines) for part in (skip, 0.3))
    room = times * (max(finals) - min(finals)) if len(lines) > 1 else np.inf
    return max(late, min(early, low + room), low + 1e-3)


def _sorted(series: Series, axis: Axis, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Cost and quantity of the points that have a place on the axis, in order of cost."""
    x, y = series.columns[axis.key], series.columns[key]
    placed = np.isfinite(x) & ((x > 0) | (not axis.log))
    order = np.argsort(x[placed], kind="stable")
    return x[placed][order], y[placed][order]
