"""Trackers: the curves of runs in TensorBoard, Weights & Biases and trackio, fed from what is on record.

At every publish a tracker gets those records of a run that it has not got yet, by their number in its metrics.jsonl.
So a run that goes on repeats none, whatever it was ended by, and each of the runs that share a stage has its whole
curve. A tracker that fails is said once, and stops nothing. One more is a row of TRACKERS.
"""

import contextlib
import hashlib
import io
import os
import re
import struct
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from growlm.buckets import absolute
from growlm.errors import check_name, import_library, in_one_line
from growlm.files import read_json, write_json
from growlm.training.metrics import read_records
from growlm.training.processes import is_first

EXTRA = "tracking"
PROJECT = "growlm"
TRACKED = "tracked.json"  # in a run's folder: of each tracker with sessions, how many records it has, and if it ended
EVENTS = "tensorboard"  # in a run's folder
# Of a log of LevelDB: bytes of a block, what a piece of a record begins with, and which piece it is.
BLOCK, PIECE = 2**15, struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4

Record = dict[str, Any]


class TrackedRun(NamedTuple):
    """What a tracker is told of a run.

    Attributes:
      folder: where its records lie.
      name: its own, within a sweep that of its seed before it.
      group: the sweep, or the run itself.
      id: the same whenever it goes on, and no other run's.
    """

    folder: Path
    name: str
    group: str
    id: str


class Tracker(Protocol):
    """A run's curve in a tracker."""

    def sent(self) -> int:
        """How many of the run's records it has."""

    def send(self, records: Sequence[Record]) -> None:
        """Take of all the run's records those that it has not."""

    def close(self) -> None:
        """End it; all that was taken is kept."""


class Kind(NamedTuple):
    """A row of TRACKERS: the module that must be there, and what makes the tracker of a run."""

    module: str
    make: Callable[[TrackedRun], Tracker]


@contextlib.contextmanager
def tracked(names: Sequence[str], place: Path, records: Path, title: str | None = None) -> Iterator[Callable]:
    """What follows runs by trackers: a function of the folder of a run that has new records.

    Args:
      names: of trackers.
      place: the folder of the run or the sweep, as it was asked for.
      records: where its records lie on this machine.
      title: of a sweep.
    """
    trackers = _Trackers(names if is_first() else (), place, records, title)
    try:
        yield trackers.follow
    finally:
        trackers.close()


def check_trackers(names: Sequence[str]) -> None:
    """Raises InputError for a name that is none, or whose library is not installed."""
    for name in names:
        check_name("track", name, TRACKERS)
    with _silent():
        for name in names:
            import_library(TRACKERS[name].module, EXTRA)


class _Trackers:
    """The trackers of the run that trains now."""

    def __init__(self, names: Sequence[str], place: Path, records: Path, title: str | None):
        self._left, self._place, self._records, self._title = list(names), absolute(place), records, title
        self._folder: Path | None = None
        self._open: dict[str, Tracker] = {}

    def follow(self, folder: Path) -> None:
        """Send what is new of a run."""
        if folder != self._folder:
            self.close()
            self._folder = folder
            self._open = {name: TRACKERS[name].make(self._run(folder)) for name in self._left}
        records = read_records(folder / "metrics.jsonl")
        for name, tracker in list(self._open.items()):
            with self._apart(name):
                if tracker.sent() < len(records):
                    tracker.send(records)

    def close(self) -> None:
        """End those of the run before."""
        for name, tracker in list(self._open.items()):
            with self._apart(name):
                tracker.close()
        self._open = {}

    def _run(self, folder: Path) -> TrackedRun:
        inside = folder.relative_to(self._records).as_posix()
        name = self._place.name if inside == "." else inside
        digest = hashlib.sha256(f"{self._place}/{inside}".encode()).hexdigest()[:16]
        return TrackedRun(folder, name, self._title or self._place.name, digest)

    @contextlib.contextmanager
    def _apart(self, name: str) -> Iterator[None]:
        """What fails within is said, and the tracker is done without from then on."""
        try:
            with _silent():
                yield
        except Exception as error:  # theirs are of any kind
            line = f"training goes on without the tracker {name}: {in_one_line(error)}"
            print(f"growlm: {line}", file=sys.stderr, flush=True)
            self._left = [other for other in self._left if other != name]
            self._open.pop(name, None)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Standard output is growlm's: trackers greet there."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _numbers(record: Record) -> dict[str, float]:
    """What of a record is a point of a curve."""
    kinds = {name: value for name, value in record.items() if isinstance(value, int | float)}
    return {name: value for name, value in kinds.items() if not isinstance(value, bool) and name != "step"}


def _texts(record: Record) -> str:
    """What the model wrote, verbatim in Markdown; empty where it wrote nothing."""
    texts = (sample["prompt"] + sample["text"] for sample in record.get("samples", ()))
    return "\n\n---\n\n".join(textwrap.indent(text, "    ", lambda line: True) for text in texts)


class _TensorBoard:
    """Event files in the run's folder: one for all records that came at once, which it is named after.

    A file is there whole or not at all, and the next one begins where the last one ended: nothing is there twice.
    """

    def __init__(self, run: TrackedRun):
        self._folder = run.folder / EVENTS

    def sent(self) -> int:
        """The end of the last file."""
        ends = (re.fullmatch(r"events\.out\.tfevents\.\d+-(\d+)", path.name) for path in self._folder.glob("events.*"))
        return max((int(end[1]) for end in ends if end), default=0)

    def send(self, records: Sequence[Record]) -> None:
        """Write one file."""
        first, records = self.sent(), records[self.sent() :]
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.record_writer import RecordWriter
        from tensorboardX.summary import text

        self._folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{first:09}-{first + len(records):09}"
        part = self._folder / f".{name}.{os.getpid()}.part"
        writer = RecordWriter(str(part))
        writer.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        for record in records:
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in _numbers(record).items()]
            if written := _texts(record):
                values += text("samples", written).value
            event = Event(wall_time=time.time(), step=record["step"], summary=Summary(value=values))
            writer.write(event.SerializeToString())
        writer.close()
        part.replace(self._folder / name)

    def close(self) -> None:
        """Nothing is open."""


class Library(NamedTuple):
    """What is called of a library with sessions.

    Attributes:
      begin: (run, config) -> a session, of a run that has been begun too.
      has: (session, run, number) -> how many records of the run it has, where so many were sent before its end or kill.
      log: (session, record).
    """

    begin: Callable[[TrackedRun, dict[str, Any]], Any]
    has: Callable[[Any, TrackedRun, int], int]
    log: Callable[[Any, Record], None]


class _Session:
    """A run of a library with sessions. What a killed one had is asked when the next begins: its last may be lost."""

    def __init__(self, name: str, library: Library, run: TrackedRun):
        self._name, self._library, self._run = name, library, run
        self._session: Any = None
        kept = self._kept().get(name, {"records": 0, "ended": True})
        self._sent = kept["records"]
        self._known = self._sent if kept["ended"] else 0

    def sent(self) -> int:
        """As far as it is known without a session."""
        return self._known

    def send(self, records: Sequence[Record]) -> None:
        """Log what is new, and keep how many there are."""
        if self._session is None:
            self._session = self._library.begin(self._run, read_json(self._run.folder / "config.json", "config"))
            self._known = self._library.has(self._session, self._run, self._sent)
        for record in records[self._known :]:
            self._library.log(self._session, record)
        self._known = max(self._known, len(records))
        self._keep(ended=False)

    def close(self) -> None:
        """Finish the session, if there is one."""
        if self._session is not None:
            self._session.finish()
            self._keep(ended=True)

    def _kept(self) -> dict[str, Any]:
        path = self._run.folder / TRACKED
        return read_json(path, TRACKED) if path.exists() else {}

    def _keep(self, ended: bool) -> None:
        write_json(self._run.folder / TRACKED, self._kept() | {self._name: {"records": self._known, "ended": ended}})


def _begin_wandb(run: TrackedRun, config: dict[str, Any]) -> Any:
    import wandb

    session = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        dir=_wandb_folder(run),
        id=run.id,
        name=run.name,
        group=run.group,
        config=config,
        resume="allow",
        reinit="create_new",
        # Its metadata are the command and the environment as they are; records have what is needed, without secrets.
        settings=wandb.Settings(
            silent=True, console="off", disable_git=True, x_disable_meta=True, x_transaction_log_flush_interval=1.0
        ),
    )
    session.define_metric("step")
    session.define_metric("*", step_metric="step")
    return session


def _has_wandb(session: Any, run: TrackedRun, number: int) -> int:
    """Rows that the server has, or the files of a run that is not uploaded: a record is a row."""
    return sum(map(_wandb_rows, Path(_wandb_folder(run)).glob(f"wandb/offline-run-*-{run.id}/*.wandb"))) or session.step


def _log_wandb(session: Any, record: Record) -> None:
    import wandb

    samples = [[sample["prompt"], sample["text"]] for sample in record.get("samples", ())]
    written = {"samples": wandb.Table(columns=["prompt", "text"], data=samples)} if samples else {}
    # Not its own step: a growth has two records at one.
    session.log({"step": record["step"]} | _numbers(record) | written)


def _wandb_folder(run: TrackedRun) -> str:
    return os.environ.get("WANDB_DIR", str(run.folder))


def _wandb_rows(path: Path) -> int:
    """The rows in a file of wandb, which is a log of LevelDB: in blocks, a record in one or several pieces."""
    from wandb.proto.wandb_internal_pb2 import Record as Entry

    content, at, whole, rows = path.read_bytes(), len(b":W&B") + 3, b"", 0
    while at + PIECE.size <= len(content):
        if (left := BLOCK - at % BLOCK) < PIECE.size:
            at += left
            continue
        _, length, kind = PIECE.unpack_from(content, at)
        at += PIECE.size + length
        if kind not in (FULL, FIRST, MIDDLE, LAST) or at > len(content):  # the end of what was killed
            break
        whole += content[at - length : at]
        if kind in (FULL, LAST):
            rows, whole = rows + (Entry.FromString(whole).WhichOneof("record_type") == "history"), b""
    return rows


def _begin_trackio(run: TrackedRun, config: dict[str, Any]) -> Any:
    import trackio

    return trackio.init(
        project=os.environ.get("TRACKIO_PROJECT", PROJECT),
        name=_trackio_name(run),
        group=run.group,
        space_id=os.environ.get("TRACKIO_SPACE_ID"),
        config=config,
        resume="allow",
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )


def _has_trackio(session: Any, run: TrackedRun, number: int) -> int:
    """What lies in its database on this machine; of a Space, what was sent."""
    from trackio.sqlite_storage import SQLiteStorage

    if os.environ.get("TRACKIO_SPACE_ID"):
        return number
    return SQLiteStorage.get_log_count(os.environ.get("TRACKIO_PROJECT", PROJECT), _trackio_name(run))


def _log_trackio(session: Any, record: Record) -> None:
    import trackio

    written = _texts(record)
    texts = {"samples": trackio.Markdown(written)} if written else {}
    session.log(_numbers(record) | texts, step=record["step"])


def _trackio_name(run: TrackedRun) -> str:
    return f"{run.group}/{run.name}-{run.id[:6]}"


def _with_sessions(name: str, module: str, library: Library) -> Kind:
    return Kind(module, partial(_Session, name, library))


TRACKERS: dict[str, Kind] = {
    "tensorboard": Kind("tensorboardX", _TensorBoard),
    "wandb": _with_sessions("wandb", "wandb", Library(_begin_wandb, _has_wandb, _log_wandb)),
    "trackio": _with_sessions("trackio", "trackio", Library(_begin_trackio, _has_trackio, _log_trackio)),
}
