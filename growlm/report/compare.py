"""What every run reached and what growing saved, over seeds: the table, the verdict and the figure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from growlm.errors import InputError
from growlm.laws.intervals import Interval, SeedSpeedup, speedup_over_seeds, t_interval
from growlm.laws.speedup import Curve, curve
from growlm.report import style
from growlm.report.figures import Axis, Figure, Mark, Series
from growlm.report.records import Group, Run

HEADER = ("run", "FLOPs", "tokens", "validation loss", "speed-up", "compute saved")
NOT_REACHED = "not reached"
SPEEDUP = Axis("speedup", "speed-up at equal validation loss", "percent", signed=True)
APART = 0.22  # the distance between two comparisons of a run, as a share of that between two runs
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
        over: the speed-up of a grown run over each control.
        note: what is wrong or unfinished, in one line; empty where nothing is.
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
    note: str = ""
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
    return [_row(name, group, loss) for name in group.first.runs]


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
    """The row of one run, compared with the baseline and, if it is a grown one, with the controls."""
    runs, baseline = group.each(name), group.first.baseline
    known = counted(runs.values())
    first = group.first.runs[name]
    curves = [found for run in known if (found := _curve(run)[0])]
    gain = _gain(group, name, baseline, loss) if baseline in group.first.runs and name != baseline else None
    controls = [other.name for other in group.first.runs.values() if other.role == "control"]
    worst = next((run.status for status in ("failed", "pending") for run in runs.values() if run.status == status), "")
    notes = [_status_note(run, seed if len(runs) > 1 else "") for seed, run in runs.items()]
    notes.append(_init_from_note(first))
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
        over={other: _gain(group, name, other, loss) for other in controls} if first.role == "grown" else {},
        note="; ".join(dict.fromkeys(filter(None, notes))),
        status=worst or "done",
    )


def _curve(run: Run) -> tuple[Curve | None, str]:
    """The curve of validation losses, or why there is none."""
    if not run.metrics:
        return None, "no metrics yet"
    try:
        return curve(run.metrics), ""
    except InputError as error:
        return None, str(error)


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
    note = "; ".join(filter(None, (status, _curve(run)[1])))
    return f"{seed}: {note}" if note and seed else note


def _gain(group: Group, name: str, other: str, loss: float | None) -> SeedSpeedup | None:
    """The speed-up of one run over another, seed by seed; None where no seed has both.

    A seed that is not done is left out, unless it is the only one. One that failed did not reach the loss.
    """
    pairs = {seed: (study.runs[name], study.runs[other]) for seed, study in group.studies.items()}
    found = {seed: tuple(_curve(run)[0] for run in pair) for seed, pair in pairs.items()}
    if failed := [seed for seed, pair in pairs.items() if any(run.status == "failed" for run in pair)]:
        which = next(run.name for run in pairs[failed[0]] if run.status == "failed")
        where = f" at {len(failed)} of {len(pairs)} seeds: {failed[0]} of" if len(pairs) > 1 else ":"
        return SeedSpeedup(None, None, (), f"{NOT_REACHED}{where} {which} failed")
    if len(pairs) > 1:
        found = {seed: curves for seed, curves in found.items() if all(run.status == "done" for run in pairs[seed])}
    found = {seed: curves for seed, curves in found.items() if all(curves)}
    if not found:
        return None
    mine, others = zip(*found.values(), strict=True)
    return speedup_over_seeds(mine, others, loss)


def _mean(runs: Sequence[Run], key: str) -> float | None:
    """The mean over runs of a value of their last records."""
    values = [run.metrics[-1].get(key) for run in runs]
    return float(np.mean(values)) if values and None not in values else None


def verdict(rows: Sequence[Row]) -> str:
    """Whether growing beat the baseline, and whether it beat every control, in a few sentences."""
    grown = [row for row in rows if row.role == "grown"]
    baseline = next((row.run for row in rows if row.role == "baseline"), None)
    if not grown or baseline is None:
        return "Nothing to compare here: that takes a grown run and a baseline."
    open_runs = [row.run for row in rows if row.status != "done"]
    caution = f"Preliminary, since these are not done: {', '.join(open_runs)}. " if open_runs else ""
    measured = [row for row in grown if row.speedup is not None]
    if not measured:
        why = grown[0].note or "nothing is measured"
        return f"{caution}Whether growing beats {baseline} cannot be said yet: {why}."
    done = [row for row in measured if row.status == "done"] or measured  # the beginning of a run is no rival
    best = max(done, key=lambda row: row.speedup)
    who = best.run if len(done) == 1 else f"The best of {len(done)} grown runs, {best.run},"
    return f"{caution}{who} {_outcome(best, baseline)} {_against_controls(best)}"


def _outcome(row: Row, baseline: str) -> str:
    """The sentence about a grown run and the baseline."""
    at, seeds = f"validation loss {row.compared_at:.3f}", len(row.gain.seeds)
    interval = row.gain.speedup
    over = f", {seeds} seeds" if seeds > 1 else ""
    gain = f"(speed-up {gained(row.gain)}{over})"
    doubt = f", which {seeds} seeds cannot tell from no difference: the interval includes 0" if 0 in interval else ""
    if row.speedup > 0:
        return f"reached {at} with {row.saved:.1%} less compute than {baseline} {gain}{doubt}."
    if row.speedup == 0:
        return f"needed as much compute as {baseline} to reach {at}."
    return f"did not pay off: it needed {-row.saved:.1%} more compute than {baseline} to reach {at} {gain}{doubt}."


def _against_controls(row: Row) -> str:
    """The sentence about a grown run and the controls; one is beaten if the interval, if any, is above 0."""
    if not row.over:
        return "There is no control, so what made the difference may not be the growing."
    groups: dict[str, list[str]] = {"lost": [], "unclear": [], "beaten": [], "missing": []}
    for name, gain in row.over.items():
        groups[_standing(gain)].append(f"{name} ({gained(gain)})" if gain and gain.speedup else name)
    if len(groups["beaten"]) == len(row.over):
        return f"It beat every control: {', '.join(groups['beaten'])}."
    sentences = {
        "lost": "did not beat {}",
        "unclear": "was not clearly different from {}",
        "beaten": "beat {}",
        "missing": "could not be compared with {}",
    }
    parts = [form.format(", ".join(groups[kind])) for kind, form in sentences.items() if groups[kind]]
    return f"Of the controls, it {'; it '.join(parts)}."


def _standing(gain: SeedSpeedup | None) -> str:
    interval: Interval | None = gain.speedup if gain else None
    if interval is None:
        return "missing"
    if 0 in interval:
        return "unclear"
    return "beaten" if interval.value > 0 else "lost"


def speedup_figure(rows: Sequence[Row], name: str = "speedup") -> Figure | None:
    """Every run over the baseline and over each control, with intervals over seeds; None where nothing is measured."""
    baseline = next((row.run for row in rows if row.role == "baseline"), "")
    gains = {row.run: _measured({baseline: row.gain} | row.over) for row in rows}
    gains = {run: found for run, found in gains.items() if found}
    if not gains:
        return None
    runs = [*reversed(gains)]
    y = Axis("run", "", "name", names=tuple(runs))
    others = list(dict.fromkeys(other for found in gains.values() for other in found))
    series = tuple(_series(gains, runs, other, others) for other in others)
    marks = [mark for one in series for mark in one.marks]
    return Figure(name, "Speed-up", (SPEEDUP,), y, series, {SPEEDUP.key: (*_seen(marks), -0.6, len(runs) - 0.4)})


def _measured(gains: dict[str, SeedSpeedup | None]) -> dict[str, SeedSpeedup]:
    return {other: gain for other, gain in gains.items() if gain and gain.speedup}


def _series(gains: dict[str, dict[str, SeedSpeedup]], runs: list[str], other: str, others: list[str]) -> Series:
    """All runs over one other, a little below those over the others before it."""
    number = others.index(other)
    shift = APART * ((len(others) - 1) / 2 - number)
    marks = []
    for place, run in enumerate(runs):
        if gain := gains[run].get(other):
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
