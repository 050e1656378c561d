"""What every run reached and what growing saved, over seeds: the table and the figure."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from growlm.laws.intervals import Interval, SeedSpeedup, loss_gap, speedup_over_seeds, t_interval
from growlm.laws.speedup import Curve
from growlm.report import style
from growlm.report.figures import Axis, Figure, Mark, Series
from growlm.report.records import Group, Run
from growlm.report.shown import MOST_CONTROLS, shown

HEADER = ("run", "FLOPs", "tokens", "validation loss", "speed-up", "compute saved")
NOT_REACHED = "not reached"
SPEEDUP = Axis("speedup", "speed-up at equal validation loss", "percent", signed=True)
APART = 0.22  # the distance between two comparisons of a run, as a share of that between two runs
CROWD = 3  # comparisons of a run that have room at the usual distance between two runs
WIDE = 2.0  # the farthest that an interval is in view, in times of the spread of the values


@dataclass(frozen=True)
class Row:
    """One run of a study, over its seeds. A value that is not known, or not measured yet, is None.

    Attributes:
        run: its name.
        role: "grown", "baseline", "control" or "run".
        seeds: the number of seeds that the numbers are means of.
        parameters: parameters N of its last stage, read off its FLOPs.
        tokens: so far, over all stages.
        flops: so far, over all stages, 6 x parameters x tokens.
        flops_exact: so far, over all stages, with attention.
        loss: the last validation loss, with its interval over seeds.
        seconds: of training so far.
        gain: speed-up over the baseline at equal validation loss; None for the baseline.
        over: the speed-up of a grown run over each control; of more than MOST_CONTROLS over those that come nearest to
            the best grown run, or beat it, at equal FLOPs.
        gaps: its validation loss less that of each of these at equal FLOPs; None where one failed or is not measured.
        further: of the best grown run, `gaps` over the other controls, the nearest first.
        searched: whether its learning rate was searched in the sweep.
        decayed: whether its learning rate ends at zero, or as good as that.
        note: what is wrong or unfinished, in one line; empty where nothing is.
        uncounted: the checkpoint that it began from, whose cost is in none of the numbers; empty without one.
        status: "done", "failed" or "pending": the worst of its seeds.
    """

    run: str
    role: str
    seeds: int
    parameters: int | None
    tokens: float | None
    flops: float | None
    flops_exact: float | None
    loss: Interval | None
    seconds: float | None
    gain: SeedSpeedup | None
    over: dict[str, SeedSpeedup | None] = field(default_factory=dict)
    gaps: dict[str, Interval | None] = field(default_factory=dict)
    further: dict[str, Interval | None] = field(default_factory=dict)
    searched: bool = False
    decayed: bool = False
    note: str = ""
    uncounted: str = ""
    status: str = "done"

    @property
    def val_loss(self) -> float | None:
        """The last validation loss, the mean of the seeds."""
        return self.loss.value if self.loss else None

    @property
    def speedup(self) -> float | None:
        """FLOPs(baseline) / FLOPs(run) - 1 at equal validation loss; the geometric mean of the seeds."""
        return self.gain.speedup.value if self.gain and self.gain.speedup else None

    @property
    def saved(self) -> float | None:
        """1 - FLOPs(run) / FLOPs(baseline) at that loss."""
        return self.gain.saved.value if self.gain and self.gain.saved else None

    @property
    def compared_at(self) -> float | None:
        """The validation loss at which it was compared with the baseline, the mean of the seeds."""
        return float(np.mean([one.loss for one in self.gain.seeds])) if self.gain and self.gain.seeds else None

    @property
    def over_controls(self) -> dict[str, float | None]:
        """The speed-up over each control."""
        return {name: gain.speedup.value if gain and gain.speedup else None for name, gain in self.over.items()}


def rows(group: Group, loss: float | None = None) -> list[Row]:
    """One row per run of the group, in the order of the sweep.

    Args:
        group: a study at one seed or several.
        loss: the validation loss to compare at; by default, of every pair of runs, the worse of its two final ones.
    """
    found = [_row(name, group, loss) for name in group.first.runs]
    grown, controls = ([row for row in found if row.role == role] for role in ("grown", "control"))
    if not grown or not controls:
        return found
    best = next(iter(contenders(found)), grown[0]).run
    gaps = {control.run: _gap(group, best, control.run) for control in controls}
    nearest = sorted(gaps, key=lambda name: -math.inf if gaps[name] is None else gaps[name].value, reverse=True)
    kept = [name for name in gaps if name in nearest[:MOST_CONTROLS]]

    def compared(row: Row) -> Row:
        if row.role != "grown":
            return row
        further = {name: gaps[name] for name in nearest[MOST_CONTROLS:]} if row.run == best else {}
        over = {name: gain_over(group, row.run, name, loss) for name in kept}
        own = {name: gaps[name] if row.run == best else _gap(group, row.run, name) for name in kept}
        return replace(row, over=over, gaps=own, further=further)

    return [compared(row) for row in found]


def contenders(rows: Sequence[Row]) -> list[Row]:
    """The grown runs for which a speed-up over the baseline may be claimed, the best first.

    A run that is not done is none while another is: the beginning of a run is no rival.
    """
    measured = [row for row in rows if row.role == "grown" and row.speedup is not None]
    done = [row for row in measured if row.status == "done"] or measured
    return sorted(done, key=lambda row: row.speedup, reverse=True)


def table(rows: Sequence[Row]) -> str:
    """The rows as a table for a terminal, with a column of notes where there are any."""
    if not any(row.note for row in rows):
        return style.table(HEADER, map(cells, rows))
    return style.table((*HEADER, "note"), ([*cells(row), row.note] for row in rows), left=("note",))


def cells(row: Row) -> list[str]:
    """The cells of a row under HEADER."""
    return [
        row.run,
        style.flops(row.flops),
        style.count(row.tokens),
        style.loss(row.val_loss),
        *(["baseline", style.UNKNOWN] if row.role == "baseline" else [gained(row.gain), _saved(row.gain)]),
    ]


def gained(gain: SeedSpeedup | None) -> str:
    """A speed-up with its interval, where it has one; or that the loss was not reached."""
    return _change(gain, gain.speedup if gain else None)


def _saved(gain: SeedSpeedup | None) -> str:
    return _change(gain, gain.saved if gain else None)


def _change(gain: SeedSpeedup | None, interval: Interval | None) -> str:
    if gain is None:
        return style.UNKNOWN
    return style.interval(interval, style.percent) if interval else NOT_REACHED


def counted(runs: Iterable[Run]) -> list[Run]:
    """The runs that are done or, while none is, those that have begun."""
    begun = [run for run in runs if run.metrics]
    return [run for run in begun if run.status == "done"] or begun


def _row(name: str, group: Group, loss: float | None) -> Row:
    """The row of one run, compared with the baseline."""
    runs, baseline = group.each(name), group.first.baseline
    known = counted(runs.values())
    first, search = group.first.runs[name], group.first.search
    curves = [found for run in known if (found := run.curve[0])]
    gain = gain_over(group, name, baseline, loss) if baseline in group.first.runs and name != baseline else None
    worst = next((run.status for status in ("failed", "pending") for run in runs.values() if run.status == status), "")
    notes = [_status_note(run, seed if len(runs) > 1 else "") for seed, run in runs.items()]
    notes.append(uncounted := _init_from_note(first))
    if gain and not gain.speedup and (reason := gain.reason):
        notes.append(reason)
    return Row(
        run=name,
        role=first.role,
        seeds=len(known),
        parameters=next((run.parameters for run in known if run.parameters), None),
        **{key: _mean(known, key) for key in ("tokens", "flops", "flops_exact", "seconds")},
        loss=t_interval(np.array([one.loss[-1] for one in curves])) if curves else None,
        gain=gain,
        searched=search.get("key") == "peak_lr" and name in search.get("runs", {}),
        decayed=bool(known) and all(map(_decays, known)),
        note="; ".join(dict.fromkeys(filter(None, notes))),
        uncounted=uncounted,
        status=worst or "done",
    )


def _init_from_note(run: Run) -> str:
    """The checkpoint that a run began from, if any: its cost is in none of the numbers."""
    if not run.init_from:
        return ""
    flops = run.init_from.get("flops")
    cost = "FLOPs are not known" if flops is None else f"{style.flops(flops)} FLOPs are not counted"
    return f"begins from {Path(run.init_from['folder']).name}, whose {cost}"


def _status_note(run: Run, seed: str) -> str:
    """A note for an unfinished or damaged run; empty for a complete one."""
    error = " ".join((run.error or "").split())
    status = "" if run.status == "done" else f"{run.status}: {error}" if error else run.status
    note = "; ".join(filter(None, (status, run.curve[1])))
    return f"{seed}: {note}" if note and seed else note


def gain_over(group: Group, name: str, other: str, loss: float | None = None) -> SeedSpeedup | None:
    """The speed-up of one run over another, seed by seed; None where no seed has both."""
    if reason := _failed(group, name, other):
        return SeedSpeedup(None, None, (), reason)
    mine, others = paired(group, name, other)
    return speedup_over_seeds(mine, others, loss) if mine else None


def _gap(group: Group, name: str, other: str) -> Interval | None:
    """The validation loss of one run less that of another at equal FLOPs; None where no seed has both."""
    return None if _failed(group, name, other) else loss_gap(*paired(group, name, other))


def _failed(group: Group, name: str, other: str) -> str:
    """Why the loss was not reached, where one of two runs failed at a seed; else empty."""
    pairs = {seed: (study.runs[name], study.runs[other]) for seed, study in group.studies.items()}
    failed = [seed for seed, pair in pairs.items() if any(run.status == "failed" for run in pair)]
    if not failed:
        return ""
    which = next(run.name for run in pairs[failed[0]] if run.status == "failed")
    where = f" at {len(failed)} of {len(pairs)} seeds: {failed[0]} of" if len(pairs) > 1 else ":"
    return f"{NOT_REACHED}{where} {which} failed"


def paired(group: Group, name: str, other: str) -> tuple[list[Curve], list[Curve]]:
    """The curves of two runs, seed by seed. A seed that is not done is left out, unless it is the only one."""
    pairs = [(study.runs[name], study.runs[other]) for study in group.studies.values()]
    if len(pairs) > 1:
        pairs = [pair for pair in pairs if all(run.status == "done" for run in pair)]
    curves = [tuple(run.curve[0] for run in pair) for pair in pairs]
    found = [(mine, others) for mine, others in curves if mine and others]
    return [mine for mine, _ in found], [others for _, others in found]


def _decays(run: Run) -> bool:
    """Whether the learning rate of the last stage ends below a hundredth of its highest."""
    rates = [record.get("learning_rate") or 0.0 for record in run.of_stage(run.metrics[-1]["stage"])]
    return rates[-1] <= 0.01 * max(rates)


def _mean(runs: Sequence[Run], key: str) -> float | None:
    """The mean over runs of a value of their last records."""
    values = [run.metrics[-1].get(key) for run in runs]
    return float(np.mean(values)) if values and None not in values else None


def speedup_figure(group: Group, rows: Sequence[Row], name: str = "speedup") -> Figure | None:
    """Every run over the baseline and over each control, with intervals over seeds; None where nothing is measured.

    Of many runs it has those that other charts show.
    """
    baseline = next((row.run for row in rows if row.role == "baseline"), "")
    gains = {row.run: _measured({baseline: row.gain} | row.over) for row in rows}
    seen = shown(group, {run: [run] for run, found in gains.items() if found}, "The tables of the report have all.")
    gains = {run: gains[run] for run in seen.drawn}
    if not gains:
        return None
    runs = [*reversed(gains)]
    y = Axis("run", "", "name", names=tuple(runs))
    others = list(dict.fromkeys(other for found in gains.values() for other in found))
    tall = max(1.0, max(map(len, gains.values())) / CROWD)
    series = tuple(_series(gains, runs, other, others, APART / tall) for other in others)
    marks = [mark for one in series for mark in one.marks]
    views = {SPEEDUP.key: (*_seen(marks), -0.6, len(runs) - 0.4)}
    return Figure(name, "Speed-up", (SPEEDUP,), y, series, views, row_height=tall, left_out=seen.left_out)


def _measured(gains: dict[str, SeedSpeedup | None]) -> dict[str, SeedSpeedup]:
    return {other: gain for other, gain in gains.items() if gain and gain.speedup}


def _series(
    gains: dict[str, dict[str, SeedSpeedup]], runs: list[str], other: str, others: list[str], apart: float
) -> Series:
    """All runs over one other; the comparisons of a run stand above each other in the order of `others`."""
    number, marks = others.index(other), []
    for place, run in enumerate(runs):
        if gain := gains[run].get(other):
            own = [name for name in others if name in gains[run]]
            shift = apart * ((len(own) - 1) / 2 - own.index(other))
            seeds = f"{len(gain.seeds)} seeds" if len(gain.seeds) > 1 else "1 seed"
            span = None if gain.speedup.low is None else (gain.speedup.low, gain.speedup.high)
            text = f"{run} over {other}: {gained(gain)}, {seeds}"
            marks.append(Mark("estimate", {SPEEDUP.key: gain.speedup.value}, place + shift, text, span))
    no_points = {SPEEDUP.key: np.empty(0), "run": np.empty(0)}
    label = f"over {other}"
    return Series(label, label, no_points, "points", None if number == 0 else number - 1, marks=tuple(marks))


def _seen(marks: Sequence[Mark]) -> tuple[float, float]:
    """The range of x: 0 and all values, and of intervals what is near them."""
    values = [0.0, *(mark.x[SPEEDUP.key] for mark in marks)]
    low, high = min(values), max(values)
    room = max(WIDE * (high - low), 0.02)
    ends = [end for mark in marks if mark.span for end in mark.span]
    low, high = max(min([low, *ends]), low - room), min(max([high, *ends]), high + room)
    pad = 0.05 * (high - low) or 0.01
    return low - pad, high + pad
