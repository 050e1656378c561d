"""The report of a run or a sweep: what each run reached, what growing saved, and whether that stands up."""

from dataclasses import dataclass, field
from pathlib import Path

from growlm.errors import InputError
from growlm.files import write_whole
from growlm.laws.speedup import Curve, curve, speedup
from growlm.study import figures, numbers
from growlm.study.page import page
from growlm.study.records import Run, Study, read

HEADER = ("run", "FLOPs", "tokens", "validation loss", "speed-up", "compute saved")


@dataclass(frozen=True)
class Row:
    """One run of a study. What is not known, or cannot be measured yet, is None.

    Attributes:
        run: its name.
        role: "grown", "baseline", "control" or "run".
        parameters: parameters of its last stage, by the paper's count of FLOPs turned round.
        tokens: trained on so far, over all stages.
        flops: spent so far over all stages, 6 x parameters x tokens.
        flops_exact: the same with attention.
        val_loss: the last validation loss measured.
        speedup: FLOPs(baseline) / FLOPs(run) - 1 at equal validation loss.
        saved: 1 - FLOPs(run) / FLOPs(baseline) at that loss.
        seconds: of training so far.
        compared_at: the validation loss of that comparison, the worse of the two final ones.
        over_controls: for a grown run, its speed-up over each control of the study.
        note: what is wrong or unfinished, in one line; empty where nothing is.
        status: "done", "failed" or "pending".
    """

    run: str
    role: str
    parameters: int | None
    tokens: float | None
    flops: float | None
    flops_exact: float | None
    val_loss: float | None
    speedup: float | None
    saved: float | None
    seconds: float | None
    compared_at: float | None
    over_controls: dict[str, float | None] = field(default_factory=dict)
    note: str = ""
    status: str = "done"


def summarise(folder: str | Path) -> list[Row]:
    """One row per run of a sweep folder, in the order of the sweep, or the one row of a run folder.

    Raises:
        InputError: the folder is missing, is of neither kind, or has no metrics.
    """
    return _rows(read(folder))


def table(rows: list[Row]) -> str:
    """The rows as aligned text for a terminal, with a column of notes where there are any."""
    text = numbers.aligned([HEADER, *map(_cells, rows)], rule=True)
    notes = [row.note for row in rows]
    if any(notes):
        text = [f"{line}  {note}" for line, note in zip(text, ["note", "----", *notes], strict=True)]
    return "\n".join(line.rstrip() for line in text)


def verdict(rows: list[Row]) -> str:
    """Whether growing beat the baseline, and whether it also beat every control; a few plain sentences."""
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
    best = max(measured, key=lambda row: row.speedup)
    who = best.run if len(grown) == 1 else f"The best of {len(grown)} grown runs, {best.run},"
    return f"{caution}{who} {_outcome(best, baseline)} {_against_controls(best)}"


def write_report(folder: str | Path) -> Path:
    """Write report.html and the figures (loss_flops.png, loss_tokens.png, loss_seconds.png) into the folder.

    The page is one file that needs no network: its figures are inside it, for a light and a dark screen.

    Returns:
        the path of the page.

    Raises:
        InputError: the folder is missing, is of neither kind, or has no metrics.
    """
    folder = Path(folder)
    study = read(folder)
    rows = _rows(study)
    drawn = {axis: tuple(figures.png(study, axis, theme) for theme in figures.THEMES) for axis in figures.AXES}
    for axis, (light, _) in drawn.items():
        write_whole(folder / f"loss_{axis}.png", light)
    target = folder / "report.html"
    write_whole(target, page(study, verdict(rows), *_results(rows), _notes(study, rows), drawn).encode())
    return target


def _rows(study: Study) -> list[Row]:
    """One row per run of the study."""
    curves, problems = {}, {}
    for name, run in study.runs.items():
        try:
            curves[name] = curve(run.metrics)
        except InputError as error:
            problems[name] = str(error) if run.metrics else "no metrics yet"
    return [_row(run, study, curves, problems) for run in study.runs.values()]


def _row(run: Run, study: Study, curves: dict[str, Curve], problems: dict[str, str]) -> Row:
    """The row of one run, compared with the baseline and, if it is a grown one, with the controls."""
    last = run.metrics[-1] if run.metrics else {}
    mine, base = curves.get(run.name), curves.get(study.baseline)
    gain = speedup(mine, base) if mine and base and run.role != "baseline" else None
    notes = [_standing(run), problems.get(run.name, "")]
    if gain and not gain.reached:
        notes.append(f"too few validation losses to compare with {study.baseline}")
    controls = [other.name for other in study.runs.values() if other.role == "control"]
    return Row(
        run=run.name,
        role=run.role,
        parameters=_parameters(run.metrics),
        **{key: last.get(key) for key in ("tokens", "flops", "flops_exact", "seconds")},
        val_loss=float(mine.loss[-1]) if mine else None,
        speedup=gain.speedup if gain else None,
        saved=gain.saved if gain else None,
        compared_at=gain.loss if gain else None,
        over_controls={n: _over(mine, curves.get(n)) for n in controls} if run.role == "grown" else {},
        note="; ".join(filter(None, notes)),
        status=run.status,
    )


def _standing(run: Run) -> str:
    """How far a run is, if it is not done."""
    if run.status == "done":
        return ""
    error = " ".join((run.error or "").split())
    return f"{run.status}: {error}" if error else run.status


def _over(mine: Curve | None, other: Curve | None) -> float | None:
    """The speed-up of one run over another, where both have a curve."""
    return speedup(mine, other).speedup if mine and other else None


def _parameters(metrics: list[dict]) -> int | None:
    """The parameters of the last stage: its FLOPs are counted as 6 x parameters x tokens."""
    stage = [record for record in metrics if record["stage"] == metrics[-1]["stage"]]
    spent = [(r["flops"], r["tokens"]) for r in stage if r.get("flops") is not None and r.get("tokens") is not None]
    if not spent or spent[-1][1] == spent[0][1]:
        return None
    return round((spent[-1][0] - spent[0][0]) / (6 * (spent[-1][1] - spent[0][1])))


def _outcome(row: Row, baseline: str) -> str:
    """What a grown run did against the baseline."""
    at = f"validation loss {row.compared_at:.3f}"
    if row.speedup > 0:
        saved, gain = f"{row.saved:.1%}", numbers.percent(row.speedup)
        return f"reached {at} with {saved} less compute than {baseline} (speed-up {gain})."
    if row.speedup == 0:
        return f"needed as much compute as {baseline} to reach {at}."
    lost = f"{-row.saved:.1%} more compute than {baseline} to reach {at}"
    return f"did not pay off: it needed {lost} (speed-up {numbers.percent(row.speedup)})."


def _against_controls(row: Row) -> str:
    """What a grown run did against the controls."""
    if not row.over_controls:
        return "There is no control, so what made the difference may not be the growing."
    named = {name: f"{name} ({numbers.percent(gain)})" for name, gain in row.over_controls.items()}
    known = {name: gain for name, gain in row.over_controls.items() if gain is not None}
    beaten = [named[name] for name, gain in known.items() if gain > 0]
    lost = [named[name] for name, gain in known.items() if gain <= 0]
    missing = [name for name in named if name not in known]
    if len(beaten) == len(named):
        return f"It beat every control: {', '.join(beaten)}."
    parts = [f"did not beat {', '.join(lost)}"] if lost else []
    parts += [f"beat {', '.join(beaten)}"] if beaten else []
    parts += [f"could not be compared with {', '.join(missing)}"] if missing else []
    return f"Of the controls, it {'; it '.join(parts)}."


def _cells(row: Row) -> list[str]:
    """The cells of a row under HEADER."""
    change = [numbers.percent(row.speedup), numbers.percent(row.saved)]
    return [
        row.run,
        numbers.flops(row.flops),
        numbers.count(row.tokens),
        numbers.loss(row.val_loss),
        *(["baseline", numbers.UNKNOWN] if row.role == "baseline" else change),
    ]


def _results(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of the page's table, which says more than the terminal's."""
    header = [*HEADER, "at loss", "role", "parameters", "exact FLOPs", "time"]
    lines = []
    for row in rows:
        cost = [numbers.count(row.parameters), numbers.flops(row.flops_exact), numbers.duration(row.seconds)]
        lines.append([*_cells(row), numbers.loss(row.compared_at), row.role, *cost])
    return header, lines


def _notes(study: Study, rows: list[Row]) -> dict[str, str]:
    """What each run is for, where a sweep says so, and what is wrong with it."""
    return {row.run: "; ".join(filter(None, (study.runs[row.run].purpose, row.note))) for row in rows}
