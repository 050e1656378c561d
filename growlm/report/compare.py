"""What each run of a study reached and what growing saved, over seeds where there are several."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from growlm.errors import InputError
from growlm.laws.intervals import Interval, SeedSpeedup, speedup_over_seeds, t_interval
from growlm.laws.speedup import Curve, curve
from growlm.report import numbers
from growlm.report.records import Group, Run

HEADER = ("run", "FLOPs", "tokens", "validation loss", "speed-up", "compute saved")
NOT_REACHED = "not reached"


@dataclass(frozen=True)
class Row:
    """One run of a study, over all its seeds. What is not known, or cannot be measured yet, is None.

    Attributes:
        run: its name.
        role: "grown", "baseline", "control" or "run".
        seeds: how many of its seeds the numbers are of.
        parameters: parameters of its last stage, by the paper's count of FLOPs turned round.
        tokens: trained on so far, over all stages.
        flops: spent so far over all stages, 6 x parameters x tokens.
        flops_exact: the same with attention.
        loss: the last validation loss measured, with its interval over seeds.
        seconds: of training so far, the mean of the seeds.
        gain: against the baseline at equal validation loss; None for the baseline, and where nothing is measured.
        over: for a grown run, the same against each control of the study.
        note: what is wrong or unfinished, in one line; empty where nothing is.
        status: "done", "failed" or "pending": of the worst of its seeds.
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
        """The validation loss of that comparison, the mean of the seeds'."""
        return float(np.mean([one.loss for one in self.gain.seeds])) if self.gain and self.gain.seeds else None

    @property
    def over_controls(self) -> dict[str, float | None]:
        """The speed-up over each control."""
        return {name: gain.speedup.value if gain and gain.speedup else None for name, gain in self.over.items()}


def rows(group: Group, loss: float | None = None) -> list[Row]:
    """One row per run of the group, in the order of the sweep.

    Args:
        group: a study, or the same study at several seeds.
        loss: the validation loss to compare at; by default, of every pair of runs, the worse of its two final ones.
    """
    return [_row(name, group, loss) for name in group.first.runs]


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text for a terminal, with a column of notes where there are any."""
    text = numbers.aligned([HEADER, *map(cells, rows)], rule=True)
    notes = [row.note for row in rows]
    if any(notes):
        text = [f"{line}  {note}" for line, note in zip(text, ["note", "----", *notes], strict=True)]
    return "\n".join(line.rstrip() for line in text)


def cells(row: Row) -> list[str]:
    """The cells of a row under HEADER."""
    return [
        row.run,
        numbers.flops(row.flops),
        numbers.count(row.tokens),
        numbers.loss(row.val_loss),
        *(["baseline", numbers.UNKNOWN] if row.role == "baseline" else [gained(row.gain), _saved(row.gain)]),
    ]


def gained(gain: SeedSpeedup | None) -> str:
    """A speed-up with its interval, where it has one; or that the loss was not reached."""
    return _change(gain, gain.speedup if gain else None)


def _saved(gain: SeedSpeedup | None) -> str:
    return _change(gain, gain.saved if gain else None)


def _change(gain: SeedSpeedup | None, interval: Interval | None) -> str:
    if gain is None:
        return numbers.UNKNOWN
    return numbers.interval(interval, numbers.percent) if interval else NOT_REACHED


def counted(runs: Iterable[Run]) -> list[Run]:
    """The runs whose numbers count: those that are done or, while none is, those that have begun."""
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
    notes = [_standing(run, seed if len(runs) > 1 else "") for seed, run in runs.items()]
    notes.append(_begun(first))
    if gain and not gain.speedup and (reason := gain.reason):
        notes.append(reason)
    return Row(
        run=name,
        role=first.role,
        seeds=len(known),
        parameters=next((found for run in known if (found := _parameters(run.metrics))), None),
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


def _begun(run: Run) -> str:
    """The saved model that a run began from, if it did: what that has cost is in no number here."""
    if not run.begun:
        return ""
    flops = run.begun.get("flops")
    cost = "FLOPs are not known" if flops is None else f"{numbers.flops(flops)} FLOPs are not counted"
    return f"begins from {Path(run.begun['folder']).name}, whose {cost}"


def _standing(run: Run, seed: str) -> str:
    """How far a run is, if it is not done, and what is wrong with its records."""
    error = " ".join((run.error or "").split())
    status = "" if run.status == "done" else f"{run.status}: {error}" if error else run.status
    said = "; ".join(filter(None, (status, _curve(run)[1])))
    return f"{seed}: {said}" if said and seed else said


def _gain(group: Group, name: str, other: str, loss: float | None) -> SeedSpeedup | None:
    """One run against another, seed by seed; None where no seed has both.

    A seed that is not done yet is left out, unless it is all there is. One that failed did not reach the loss.
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
    """The mean over runs of what their last records say."""
    values = [run.metrics[-1].get(key) for run in runs]
    return float(np.mean(values)) if values and None not in values else None


def _parameters(metrics: list[dict]) -> int | None:
    """The parameters of the last stage: its FLOPs are counted as 6 x parameters x tokens."""
    stage = [record for record in metrics if record["stage"] == metrics[-1]["stage"]]
    spent = [(r["flops"], r["tokens"]) for r in stage if r.get("flops") is not None and r.get("tokens") is not None]
    if not spent or spent[-1][1] == spent[0][1]:
        return None
    return round((spent[-1][0] - spent[0][0]) / (6 * (spent[-1][1] - spent[0][1])))
