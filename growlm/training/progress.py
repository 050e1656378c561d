"""How far runs are while they are trained: a live table on a terminal, elsewhere a line at each event."""

import contextlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from growlm.checked import parse_record
from growlm.errors import InputError
from growlm.files import is_locked
from growlm.training.processes import is_first
from growlm.training.stages import Stage

REFRESH = 1.0  # seconds between two pictures of the table
SILENCE = 30.0  # seconds after which a line says how far a run is, where there is no table
TAIL = 1 << 14  # bytes of a file of records in which the last ones are looked for


@dataclass(frozen=True)
class RunStatus:
    """How far one run is.

    Attributes:
        run: its name.
        state: "waiting", "training", "trained by another process", "done" or "failed".
        share: of its FLOPs, from 0 to 1.
        loss, val_loss: the last on record, in nats a token; None without one.
        tokens_per_second: while it is trained.
        seconds_left: at that speed; None where it is not known.
    """

    run: str
    state: str
    share: float = 0.0
    loss: float | None = None
    val_loss: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None


def run_status(
    folder: Path, stages: Sequence[Stage], store: Path, outcome: str = "pending", current: Stage | None = None
) -> RunStatus:
    """How far a run is by what lies in its folders, where other processes may be at work too.

    Args:
        folder, stages: of the run.
        store: the folder of the stages.
        outcome: "done", "failed" or "pending".
        current: the stage that this process trains now.
    """
    name = folder.absolute().name
    if outcome == "done":
        records = _last_records(folder / "metrics.jsonl")
        return RunStatus(name, "done", 1.0, _last(records, "loss"), _last(records, "val_loss"))
    numbers, state = {}, "training" if any(stage is current for stage in stages) else "waiting"
    for stage in stages:
        records = _last_records(store / stage.stage_hash / "metrics.jsonl")
        if not records:
            continue
        ours = current is not None and current.stage_hash == stage.stage_hash
        if records[-1]["step"] < stage.last_step and not ours and is_locked(store / stage.stage_hash):
            state = "trained by another process"
        if records[-1]["step"] > stage.first_step:
            numbers = _numbers(stages, stage, records)
    return RunStatus(name, "failed" if outcome == "failed" else state, **numbers)


def _numbers(stages: Sequence[Stage], stage: Stage, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The numbers of a run that has reached a stage. Records after it left the stage are another run's."""
    whole, step = stages[-1].cost_at(stages[-1].last_step).flops, min(records[-1]["step"], stage.last_step)
    cost = stage.cost_at(step).flops
    own = [record for record in records if record["step"] <= stage.last_step]
    speed, seconds_left = _last(own, "tokens_per_second"), None
    if speed:
        flops_per_token = (cost - stage.first_cost.flops) / (stage.tokens_at(step) - stage.first_tokens)
        seconds_left = (whole - cost) / (flops_per_token * speed)
    return {
        "share": cost / whole,
        "loss": _last(own, "loss"),
        "val_loss": _last(own, "val_loss"),
        "tokens_per_second": speed,
        "seconds_left": seconds_left,
    }


def _last_records(path: Path) -> list[dict[str, Any]]:
    """The last whole records in a file; none without it, and none of a pipe."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        _, *lines = (b"\n" * (file.tell() == 0) + file.read()).split(b"\n")
    records = []
    for line in lines[:-1]:
        with contextlib.suppress(InputError):  # what is damaged is said where it is read for more than a picture
            records.append(parse_record(line, path))
    return records


def _last(records: Sequence[Mapping[str, Any]], name: str) -> Any:
    return next((record[name] for record in reversed(records) if record.get(name) is not None), None)


def table(statuses: Sequence[RunStatus]) -> Table:
    """The live table: a row for every run."""
    shown = Table(box=None, pad_edge=False)
    for header in ("run", "state", "done", "", "loss", "val loss", "tokens/s", "left"):
        shown.add_column(header, justify="left" if header in ("run", "state", "") else "right", no_wrap=True)
    for run in statuses:
        bar = ProgressBar(total=1.0, completed=run.share, width=16)
        speed = "-" if run.tokens_per_second is None else f"{run.tokens_per_second:,.0f}"
        numbers = _loss(run.loss), _loss(run.val_loss), speed, _duration(run.seconds_left)
        shown.add_row(run.run, run.state, f"{run.share:.0%}", bar, *numbers)
    return shown


def _loss(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.4f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


class Display:
    """Shows how far runs are. Of several processes that train one run, the first does.

    Args:
        runs: of each run the store of its stages, and the stages, by the run's folder. Its name is the folder's, with
            that of the folder above where runs of several sweeps are shown.
        outcomes: reads "done", "failed" or "pending" of runs, by folder; runs that it does not name are pending.
    """

    def __init__(
        self,
        runs: Mapping[Path, tuple[Path, Sequence[Stage]]],
        outcomes: Callable[[], Mapping[Path, str]] = dict,
    ):
        self._runs, self._outcomes, self._ended = dict(runs), outcomes, {}
        several = len({folder.parent for folder in runs}) > 1
        self._names = {path: "/".join(path.absolute().parts[-2 if several else -1 :]) for path in runs}
        self._run, self._stage, self._spoken = Path(), None, 0.0
        console = Console(file=sys.stderr)  # this stream: others may put another in the place of sys.stderr
        self._live: Live | None = None
        if is_first() and console.is_terminal:
            self._live = Live(
                get_renderable=lambda: table(self.statuses()),
                console=console,
                refresh_per_second=1 / REFRESH,
                redirect_stdout=False,
            )

    def __enter__(self) -> "Display":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stage = None
        if self._live:
            self._live.stop()

    def statuses(self) -> list[RunStatus]:
        """How far every run is."""
        outcomes = {**self._outcomes(), **self._ended}
        return [
            replace(run_status(path, stages, store, outcomes.get(path, "pending"), self._stage), run=self._names[path])
            for path, (store, stages) in self._runs.items()
        ]

    def begin(self, run: Path, stages: Sequence[Stage], number: int) -> None:
        """This process trains the run of that folder from now on, which has these stages, in the one of that number."""
        self._runs[run] = self._runs[run][0], stages
        self._run, self._stage, self._spoken = run, stages[number], time.monotonic()

    def say(self, text: str) -> None:
        """A line about the stage that is trained, above the table."""
        if is_first():
            number, count = self._stage.number + 1, len(self._runs[self._run][1])
            print(f"growlm: {self._names[self._run]} {number}/{count}: {text}", file=sys.stderr, flush=True)

    def step(self, step: int, loss: float | None, tokens_per_second: float, val_loss: float | None = None) -> None:
        """One step further. Without a table a line says so where there is a validation loss, or it is time."""
        now = time.monotonic()
        if self._live or (val_loss is None and now < self._spoken + SILENCE):
            return
        self._spoken = now
        losses = [] if loss is None else [f"loss {loss:.4f}"]
        losses += [] if val_loss is None else [f"validation loss {val_loss:.4f}"]
        speed = [f"{tokens_per_second:,.0f} tokens/s"] if tokens_per_second else []
        self.say(f"step {step:,} of {self._stage.last_step:,}: {', '.join([*losses, *speed])}")

    def end(self, run: Path, error: str | None) -> None:
        """The run of that folder is done, or failed."""
        self._stage, self._ended[run] = None, "failed" if error else "done"
        if not is_first() or self._live:
            return
        statuses = self.statuses()
        ended = sum(status.state in ("done", "failed") for status in statuses)
        loss = next(status.val_loss for status in statuses if status.run == self._names[run])
        how = f"failed: {error}" if error else f"is done, validation loss {_loss(loss)}"
        print(f"growlm: {self._names[run]} {how} ({ended} of {len(statuses)} runs)", file=sys.stderr, flush=True)
