"""How far the loss jumps at every growth and how long it takes to come back: table and figures.

The jump is that of the validation loss, which is measured on the same batches before and after a growth: training
losses are of one batch each, and scatter by more than some jumps. Recovery is measured on both.

Source: arXiv 2405.15319, appendix K.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from growlm.laws.intervals import Interval, t_interval
from growlm.report import style
from growlm.report.charts import DASHES, figure_of, styles, with_mean
from growlm.report.compare import counted
from growlm.report.figures import Axis, Figure, Series
from growlm.report.records import Group, Run
from growlm.report.shown import Shown, shown

AVERAGED = 3  # training losses in a row of which the mean is taken
SAME = 1e-4  # nats; a growth that preserves the function does so to float32's rounding
NO_RISE, NOT_RECOVERED = "no rise", "not recovered"
SINCE = Axis("since_growth", "tokens since growth", "count", signed=True)
# For each loss: name and title of the figure, label of the axis, and the attribute of Spike that is the level before.
LOSSES = {
    "val_loss": ("spike", "Validation loss around growth", "change of validation loss (nats)", "before"),
    "loss": ("spike_training", "Training loss around growth", "change of training loss (nats)", "level"),
}
LONGEST = 2.5  # the range of the figures after a growth, in times of the longest recovery; half of it before
RECORDS = 5  # the least number of records in that range
HEADER = (
    "growth",
    "after tokens",
    "loss before",
    "after",
    "jump",
    "highest",
    "back after",
    "share",
    "training loss back after",
    "share",
)


@dataclass(frozen=True)
class Back:
    """When the loss was back at its level before the growth.

    Attributes:
        tokens: since the growth; 0 where the loss did not rise.
        flops: since the growth, 6 x parameters x tokens.
        at_most: whether it was back where it was first measured, so that it may have been back earlier.
    """

    tokens: float
    flops: float
    at_most: bool = False


@dataclass(frozen=True)
class Spike:
    """One growth of one run. What was not measured is None.

    Attributes:
        tokens: of the run before the growth.
        total: tokens of the whole run so far.
        before: the last validation loss before the growth, nats per token.
        after: the first one after it, before any training where the run was validated at both ends of its stages.
        highest: the highest validation loss of the stage after it.
        back: when the validation loss was back, counted from its highest on, interpolated linearly over tokens.
        level: the training loss before the growth, the mean of the last AVERAGED records of that stage.
        training: when the mean of AVERAGED training losses in a row was back; its place is the mean of theirs.
        validated, trained: whether enough was measured on both sides: only then does `back` or `training` None mean
            that the loss did not recover.
    """

    tokens: float
    total: float
    before: float | None
    after: float | None
    highest: float | None
    back: Back | None
    level: float | None
    training: Back | None
    validated: bool
    trained: bool

    @property
    def jump(self) -> float | None:
        """Nats per token."""
        return None if self.before is None or self.after is None else self.after - self.before


@dataclass(frozen=True)
class SpikeRow:
    """One growth of a run, over its seeds."""

    name: str
    run: str
    number: int
    seeds: tuple[Spike, ...]

    @property
    def jump(self) -> Interval | None:
        """The mean over seeds with Student's interval."""
        found = [one.jump for one in self.seeds if one.jump is not None]
        return t_interval(np.array(found)) if found else None

    def mean(self, key: str) -> float | None:
        """The mean of an attribute over seeds; None where one lacks it."""
        found = [getattr(one, key) for one in self.seeds]
        return None if None in found else float(np.mean(found))


def spike_rows(group: Group) -> list[SpikeRow]:
    """A row for every growth of every run, in the order of the sweep; seeds that are not done count as in `rows`.

    A growth of fresh weights is left out: there was no loss to jump from.
    """
    found = []
    for name in group.first.runs:
        runs = [spikes(run) for run in counted(group.each(name).values())]
        count = max(map(len, runs), default=0)
        for number in range(count):
            seeds = tuple(one[number] for one in runs if len(one) > number)
            found.append(SpikeRow(f"{name}, growth {number + 1}" if count > 1 else name, name, number + 1, seeds))
    return [row for row in found if group.first.runs[row.run].init_from or any(one.tokens for one in row.seeds)]


def spikes(run: Run) -> list[Spike]:
    """The growths of a run so far, in order."""
    stages = sorted({record["stage"] for record in run.metrics})
    return [_spike(run, parent, stage) for parent, stage in pairwise([-1, *stages]) if stage > 0]


def spike_table(group: Group, rows: Sequence[SpikeRow]) -> str:
    """The rows of a group as a table for a terminal, with its notes; empty without a growth."""
    if not rows:
        return ""
    return "\n".join([style.table(HEADER, map(spike_cells, rows)), "", *spike_notes(group)])


def spike_notes(group: Group) -> list[str]:
    """How the numbers of the table were measured."""
    found = [
        "Validation loss in nats per token: the last before a growth, the first after it, the highest after it, and "
        "after how many tokens since the growth, and what share of the run's, it was back at the loss before.",
        f"Training loss: back when the mean of {AVERAGED} records in a row is that of the last {AVERAGED} before the "
        f"growth; ≤ where it is at the first {AVERAGED}. Between two records a straight line.",
    ]
    if len(group.studies) > 1:
        found.append("Means over seeds, the jump's with Student's 95 % interval, the tokens' with their range.")
    if any(len(run.held_out) > 1 for study in group.studies.values() for run in study.runs.values()):
        found.append("Batch or length of validation change with a stage: part of a jump may be that of the text.")
    return found


def spike_cells(row: SpikeRow) -> list[str]:
    """The cells of a row under HEADER."""
    jump = style.interval(row.jump, style.nats)
    losses = [style.loss(row.mean(key)) for key in ("before", "after", "highest")]
    cells = [row.name, style.count(row.mean("tokens")), *losses[:2], jump, losses[2]]
    for key, measured in (("back", "validated"), ("training", "trained")):
        cells += [_back(row, key, measured, style.count, lambda one: one.tokens)]
        cells += [_share(row, key, measured)]
    return cells


def back_flops(row: SpikeRow) -> str:
    """The cell with the FLOPs after which the validation loss was back."""
    return _back(row, "back", "validated", style.flops, lambda one: one.flops)


def spike_figures(group: Group, rows: Sequence[SpikeRow], prefix: str = "") -> list[Figure]:
    """The change of validation and of training loss around growth, over tokens since it; a curve for every growth."""
    looks = styles(group)
    known = {row.run: {seed: (run, spikes(run)) for seed, run in group.each(row.run).items()} for row in rows}
    figures = []
    for key, (_, _, label, level) in LOSSES.items():
        y = Axis("rise", label, "loss", signed=True)
        curves: dict[str, list[Series]] = {}
        for row in rows:
            curves.setdefault(row.run, []).extend(_curves(row, known[row.run], looks[row.run], key, level, y))
        if any(curves.values()):
            figures.append(_figure(rows, shown(group, curves), key, y, prefix))
    return figures


def _figure(rows: Sequence[SpikeRow], found: Shown, key: str, y: Axis, prefix: str) -> Figure:
    """The figure of one of the losses, of the curves around growth."""
    name, title, _, _ = LOSSES[key]
    left, right = _reach(rows, found.drawn)
    parts = found.drawn, found.undrawn
    drawn, undrawn = (tuple(kept for one in part if (kept := _cut(one, left, right))) for part in parts)
    view = _view(drawn, left, right, y)
    note = "Zero is the last validation loss before the growth."
    if key == "loss":
        note = f"Zero is the mean of the last {AVERAGED} training losses before the growth; a point is one batch's."
    cut = replace(found, drawn=drawn, undrawn=undrawn)
    return figure_of(cut, f"{prefix}{name}", title, (SINCE,), y, {SINCE.key: view}, note)


def _curves(
    row: SpikeRow,
    seeds: Mapping[str, tuple[Run, list[Spike]]],
    look: tuple[int | None, int],
    key: str,
    level: str,
    y: Axis,
) -> list[Series]:
    """The curves of one growth: those of its seeds, and their mean."""
    colour, dash = look
    if row.number > 1:  # the growths of one run have its colour
        dash = DASHES[(row.number - 1) % len(DASHES)]
    own = []
    for seed, (run, found) in seeds.items():
        if len(found) < row.number or getattr(found[row.number - 1], level) is None:
            continue
        spike, label = found[row.number - 1], f"{row.name}, {seed}" if len(seeds) > 1 else row.name
        stages = sorted({record["stage"] for record in run.metrics})
        after = stages.index([stage for stage in stages if stage > 0][row.number - 1])
        near = [record for stage in stages[max(after - 1, 0) : after + 1] for record in run.of_stage(stage)]
        tokens, flops, loss = column(near, key)
        if len(loss) > 1:
            columns = {"flops": flops, SINCE.key: tokens - spike.tokens, y.key: loss - getattr(spike, level)}
            own.append(Series(label, row.name, columns, "line", colour, dash))
    return with_mean(own, row.name)


def _reach(rows: Sequence[SpikeRow], series: Sequence[Series]) -> tuple[float, float]:
    """The range in tokens before a growth and after it; to the end where a loss did not recover."""
    after = [one.columns[SINCE.key][one.columns[SINCE.key] > 0] for one in series]
    least = max((float(one[:RECORDS][-1]) for one in after if len(one)), default=1.0)
    backs = [one.back for row in rows for one in row.seeds if one.validated]
    if None in backs:
        return -least / 2, max((float(one[-1]) for one in after if len(one)), default=1.0)
    right = max([least, *(LONGEST * back.tokens for back in backs)])
    return -right / 2, right


def _cut(one: Series, left: float, right: float) -> Series | None:
    """The part of a curve within a range; None if there is none."""
    x = one.columns[SINCE.key]
    seen = (x >= left) & (x <= right)
    columns = {key: values[seen] for key, values in one.columns.items()}
    return replace(one, columns=columns) if seen.any() else None


def _view(series: Sequence[Series], left: float, right: float, y: Axis) -> tuple[float, float, float, float]:
    """The ranges: along y of all that came after the growths."""
    values = np.concatenate([one.columns[y.key][one.columns[SINCE.key] >= 0] for one in series] or [np.zeros(1)])
    low, high = min(float(values.min(initial=0)), 0.0), max(float(values.max(initial=0)), 0.0)
    high = max(high, 0.3 * (high - low))
    pad = 0.06 * (high - low) or 0.01
    return left, right, low - pad, high + pad


def _back(row: SpikeRow, key: str, measured: str, write: Callable[[float], str], of: Callable[[Back], float]) -> str:
    """The cell of a recovery: the mean of the seeds, if all of them recovered."""
    backs = [getattr(one, key) for one in row.seeds if getattr(one, measured)]
    if not backs:
        return style.UNKNOWN
    if missing := backs.count(None):
        return NOT_RECOVERED if missing == len(row.seeds) else f"{NOT_RECOVERED} at {missing} of {len(row.seeds)} seeds"
    values = [of(one) for one in backs]
    if max(values) == 0:
        return NO_RISE
    text = ("≤ " if any(one.at_most for one in backs) else "") + write(float(np.mean(values)))
    ends = [write(end) for end in (min(values), max(values))]
    return text if len(set(ends)) == 1 else f"{text} ({ends[0]} to {ends[1]})"


def _share(row: SpikeRow, key: str, measured: str) -> str:
    """The tokens of a recovery over those of the run; a dash where it has no number."""
    backs = [(getattr(one, key), one.total) for one in row.seeds if getattr(one, measured)]
    if not backs or any(back is None for back, _ in backs) or not any(back.tokens for back, _ in backs):
        return style.UNKNOWN
    share = float(np.mean([back.tokens / total for back, total in backs]))
    return ("≤ " if any(back.at_most for back, _ in backs) else "") + f"{share:.2%}"


def _spike(run: Run, parent: int, stage: int) -> Spike:
    """The growth with which a stage begins, after its parent."""
    own, left = run.of_stage(stage), run.of_stage(parent)
    start = left[-1] if left else own[0]
    grown_at, paid = (float(start.get(key) or 0) for key in ("tokens", "flops"))

    def since(costs: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        return costs[0] - grown_at, costs[1] - paid, costs[2]

    before, last = column(left, "val_loss")[2], column(left, "loss")[2][-AVERAGED:]
    validation, training = since(column(own, "val_loss")), since(_running(*column(own, "loss")))
    validated, trained = len(before) > 0 < len(validation[2]), len(last) > 0 < len(training[2])
    level = float(np.mean(last)) if len(last) else None
    return Spike(
        tokens=grown_at,
        total=float(run.metrics[-1].get("tokens") or 0),
        before=float(before[-1]) if len(before) else None,
        after=float(validation[2][0]) if len(validation[2]) else None,
        highest=float(np.max(validation[2])) if len(validation[2]) else None,
        back=_validation_back(*validation, float(before[-1])) if validated else None,
        level=level,
        training=_training_back(*training, level) if trained else None,
        validated=validated,
        trained=trained,
    )


def column(records: Sequence[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, FLOPs and a loss, float64[points], of the records that have it and where it is finite."""
    found = [record for record in records if _has(record, key)]
    return tuple(np.array([record.get(name) or 0 for record in found], np.float64) for name in ("tokens", "flops", key))


def _has(record: dict[str, Any], key: str) -> bool:
    return record.get(key) is not None and math.isfinite(record[key])


def _running(*columns: np.ndarray) -> tuple[np.ndarray, ...]:
    """The means of AVERAGED points in a row, of every column; none where there are fewer points."""
    if len(columns[0]) < AVERAGED:
        return tuple(np.empty(0) for _ in columns)
    return tuple(np.mean(np.lib.stride_tricks.sliding_window_view(one, AVERAGED), axis=-1) for one in columns)


def _validation_back(tokens: np.ndarray, flops: np.ndarray, loss: np.ndarray, level: float) -> Back | None:
    """No more than rounding above the level is no rise; otherwise it counts from the highest loss on."""
    top = int(np.argmax(loss))
    return Back(0.0, 0.0) if loss[top] <= level + SAME else _down(tokens[top:], flops[top:], loss[top:], level)


def _training_back(tokens: np.ndarray, flops: np.ndarray, loss: np.ndarray, level: float) -> Back | None:
    """Where the first mean is at the level, a rise before it cannot be told from none."""
    if loss[0] <= level:
        return Back(float(tokens[0]), float(flops[0]), at_most=True)
    return _down(tokens, flops, loss, level)


def _down(tokens: np.ndarray, flops: np.ndarray, loss: np.ndarray, level: float) -> Back | None:
    """Where a loss that begins above a level first comes down to it; None if it does not."""
    below = np.flatnonzero(loss <= level)
    if not below.size:
        return None
    after = int(below[0])
    part = (loss[after - 1] - level) / (loss[after - 1] - loss[after])
    return Back(*(float(cost[after - 1] + part * (cost[after] - cost[after - 1])) for cost in (tokens, flops)))
