"""How far a sweep is: on a terminal a table of its runs below all else, elsewhere a line for every run that ends."""

import json
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from growlm.files import held_elsewhere
from growlm.report import style as numbers
from growlm.training.processes import is_first
from growlm.training.stages import Stage

REFRESH = 2.0  # seconds
HEADER = ("run", "state", "done", "loss")
_END = 1 << 14  # bytes of a file of records in which its last line is looked for


@dataclass(frozen=True)
class Standing:
    """How far one run is.

    Attributes:
        run: its name.
        state: "waiting", "training", "trained by another process", "done" or "failed".
        share: of its FLOPs.
        loss: the last validation loss of a run that is done, of another the last training loss; None without one.
    """

    run: str
    state: str
    share: float
    loss: float | None


def standing(name: str, stages: Sequence[Stage], workdir: Path, store: Path, status: str, current: bool) -> Standing:
    """How far a run is, by what lies in the sweep's folder: other processes may be at work there too.

    Args:
        name: of the run.
        stages: of the run.
        workdir: the sweep's folder.
        store: where its stages are.
        status: what sweep.json says of the run.
        current: whether this process is at it.
    """
    if status == "done":
        return Standing(name, status, 1.0, _last(workdir / name / "metrics.jsonl").get("val_loss"))
    whole = stages[-1].cost_at(stages[-1].last_step).flops
    share, loss, state = 0.0, None, "training" if current else "waiting"
    for stage in stages:
        record = _last(store / stage.address / "metrics.jsonl")
        if record and record["step"] > stage.first_step:
            step = min(record["step"], stage.last_step)
            share = stage.cost_at(step).flops / whole
            loss = record["loss"] if step == record["step"] else None
        unfinished = record.get("step", -1) < stage.last_step
        if unfinished and held_elsewhere(store / stage.address):
            state = "trained by another process"
    return Standing(name, status if status == "failed" else state, share, loss)


def _last(path: Path) -> dict[str, Any]:
    """The last whole record in a file; empty without one."""
    if not path.exists():
        return {}
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _END))
        lines = file.read().split(b"\n")[:-1]
    return json.loads(lines[-1]) if lines else {}


def table(standings: Sequence[Standing]) -> list[str]:
    """The lines of the table."""
    rows = [(one.run, one.state, f"{one.share:.0%}", numbers.loss(one.loss)) for one in standings]
    header, _, *lines = numbers.table(HEADER, rows).splitlines()
    return [header, *lines]


class Screen:
    """A terminal that keeps a block of lines below whatever is written to it, a progress bar among it."""

    def __init__(self, stream: IO[str], block: Callable[[], list[str]]):
        self._stream, self._block = stream, block
        self._lines: list[str] = []  # of the block, as last asked for
        self._tail, self._drawn = "", 0  # what was written of the line that is not at its end yet; lines on the screen
        self._lock = threading.RLock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes above the block. What follows a carriage return overwrites the line, as on a terminal."""
        with self._lock:
            *lines, self._tail = (self._tail + text).split("\n")
            self._tail = _seen(self._tail)
            self._draw([_seen(line) for line in lines])
        return len(text)

    def refresh(self) -> None:
        """Asks for the block anew."""
        lines = self._block()
        with self._lock:
            self._lines = lines
            self._draw([])

    def close(self) -> None:
        """Draws for the last time; what comes then is below."""
        self.refresh()
        self._stream.write("\n")
        self._stream.flush()

    def _draw(self, above: list[str]) -> None:
        width, height = os.get_terminal_size(self._stream.fileno())
        block = self._lines if len(self._lines) < height else [*self._lines[: height - 2], "..."]
        below = [line[: width - 1] for line in ([self._tail, *block] if self._tail else block)]
        erase = "\r" + "\x1b[A" * (self._drawn - 1) + "\x1b[J"
        self._stream.write(erase + "".join(f"{line}\n" for line in above) + "\n".join(below))
        self._stream.flush()
        self._drawn = max(len(below), 1)


def _seen(line: str) -> str:
    return next((part for part in reversed(line.split("\r")) if part), "")


class Board:
    """Shows how far a sweep is while it is trained. Of several processes that train one run, the first does."""

    def __init__(self, runs: Mapping[str, Sequence[Stage]], workdir: Path, store: Path):
        self._runs, self._workdir, self._store = runs, workdir, store
        self._current: str | None = None
        self._screen: Screen | None = None
        self._over = threading.Event()

    def __enter__(self) -> "Board":
        if is_first() and sys.stderr.isatty():
            self._screen = Screen(sys.stderr, lambda: table(self.standings()))
            self._stderr, sys.stderr = sys.stderr, self._screen
            self._thread = threading.Thread(target=self._keep_fresh, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._screen:
            self._over.set()
            self._thread.join()
            sys.stderr = self._stderr
            self._current = None
            self._screen.close()

    def begin(self, name: str) -> None:
        """This process goes on with that run."""
        self._current = name

    def end(self, name: str, error: str | None) -> None:
        """The run of that name is done, or failed."""
        if not is_first() or self._screen:
            return
        standings = self.standings()
        ended = sum(one.state in ("done", "failed") for one in standings)
        loss = next(one.loss for one in standings if one.run == name)
        how = f"failed: {error}" if error else f"is done, validation loss {numbers.loss(loss)}"
        print(f"growlm: {name} {how} ({ended} of {len(standings)} runs)", file=sys.stderr, flush=True)

    def standings(self) -> list[Standing]:
        """How far every run is."""
        summary = json.loads((self._workdir / "sweep.json").read_text(encoding="utf-8"))["runs"]
        return [
            standing(name, stages, self._workdir, self._store, summary[name]["status"], name == self._current)
            for name, stages in self._runs.items()
        ]

    def _keep_fresh(self) -> None:
        while not self._over.is_set():
            self._screen.refresh()
            self._over.wait(REFRESH)
