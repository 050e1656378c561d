"""The figures of a loss around growth: how it differs from its level before, against tokens since the growth."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from growlm.report.charts import DASHES, looks, mean_of
from growlm.report.figures import Axis, Figure, Series
from growlm.report.records import Group
from growlm.report.spikes import AVERAGED, Spike, SpikeRow, column, spikes

SINCE = Axis("since_growth", "tokens since growth", "count", signed=True)
# Of each loss: the figure's name, its title, the axis, and which attribute of a spike is the level before.
LOSSES = {
    "val_loss": ("spike", "Validation loss around growth", "change of validation loss (nats)", "before"),
    "loss": ("spike_training", "Training loss around growth", "change of training loss (nats)", "level"),
}
LONGEST = 2.5  # times the longest way back are seen after a growth, half of it before,
RECORDS = 5  # but at least so many records


def spike_figures(group: Group, rows: Sequence[SpikeRow], prefix: str = "") -> list[Figure]:
    """Of validation and of training loss, a curve for every growth of every run; none where nothing is measured.

    Of several seeds there are thin curves and their mean.
    """
    return [figure for key in LOSSES if (figure := _figure(group, rows, key, prefix))]


def _figure(group: Group, rows: Sequence[SpikeRow], key: str, prefix: str) -> Figure | None:
    name, title, label, level = LOSSES[key]
    y = Axis("rise", label, "loss", signed=True)
    series = tuple(one for row in rows for one in _curves(group, row, key, level, y))
    if not series:
        return None
    left, right = _reach(rows, series)
    cut = tuple(kept for one in series if (kept := _cut(one, left, right)))
    view = _view(cut, left, right, y)
    note = "Zero is the last validation loss before the growth."
    if key == "loss":
        note = f"Zero is the mean of the last {AVERAGED} training losses before the growth. Every point is one batch's."
    return Figure(f"{prefix}{name}", title, (SINCE,), y, cut, {SINCE.key: view}, note)


def _curves(group: Group, row: SpikeRow, key: str, level: str, y: Axis) -> list[Series]:
    """Those of one growth: of every seed, and their mean."""
    colour, dash = looks(list(group.first.runs.values()))[row.run]
    if row.number > 1:  # the growths of one run have its colour
        dash = DASHES[(row.number - 1) % len(DASHES)]
    own = []
    for seed, run in group.each(row.run).items():
        found = spikes(run)
        if len(found) < row.number or getattr(found[row.number - 1], level) is None:
            continue
        spike, label = found[row.number - 1], f"{row.name}, {seed}" if len(group.studies) > 1 else row.name
        near = [record for record in run.metrics if record["stage"] in _stages(run.metrics, row.number)]
        columns = _columns(near, key, spike, getattr(spike, level), y)
        if len(columns[y.key]) > 1:
            own.append(Series(label, row.name, columns, "line", colour, dash))
    mean = mean_of(own, row.name) if len(own) > 1 else None
    return [*(replace(one, style="thin") for one in own), mean] if mean else own


def _stages(metrics: Sequence[dict], number: int) -> set[int]:
    """The stage before a growth and the one after it."""
    stages = sorted({record["stage"] for record in metrics})
    after = [stage for stage in stages if stage > 0][number - 1]
    return {after, *[stage for stage in stages if stage < after][-1:]}


def _columns(records: Sequence[dict], key: str, spike: Spike, level: float, y: Axis) -> dict[str, np.ndarray]:
    tokens, flops, loss = column(records, key)
    return {"flops": flops, SINCE.key: tokens - spike.tokens, y.key: loss - level}


def _reach(rows: Sequence[SpikeRow], series: Sequence[Series]) -> tuple[float, float]:
    """How many tokens are seen before a growth and after it; where a loss was not back, all there are."""
    after = [one.columns[SINCE.key][one.columns[SINCE.key] > 0] for one in series]
    least = max((float(one[:RECORDS][-1]) for one in after if len(one)), default=1.0)
    backs = [one.back for row in rows for one in row.seeds if one.validated]
    if None in backs:
        return -least / 2, max((float(one[-1]) for one in after if len(one)), default=1.0)
    right = max([least, *(LONGEST * back.tokens for back in backs)])
    return -right / 2, right


def _cut(one: Series, left: float, right: float) -> Series | None:
    """As much of a curve as is seen."""
    x = one.columns[SINCE.key]
    seen = (x >= left) & (x <= right)
    columns = {key: values[seen] for key, values in one.columns.items()}
    return replace(one, columns=columns) if seen.any() else None


def _view(series: Sequence[Series], left: float, right: float, y: Axis) -> tuple[float, float, float, float]:
    """Along y all that came after the growths, and of what came before as much as lies beside it."""
    values = np.concatenate([one.columns[y.key][one.columns[SINCE.key] >= 0] for one in series] or [np.zeros(1)])
    low, high = min(float(values.min(initial=0)), 0.0), max(float(values.max(initial=0)), 0.0)
    high = max(high, 0.3 * (high - low))
    pad = 0.06 * (high - low) or 0.01
    return left, right, low - pad, high + pad
