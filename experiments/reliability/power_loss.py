"""Cut the power at random moments of training, converting, growing and preparing, and start the command again.

    pip install mfusepy; apt-get install libfuse2
    python experiments/reliability/power_loss.py --tries=200 --seed=0 --workdir=/tmp/power

A command writes to a file system of its own (FUSE) that keeps what was synced and forgets of the rest what is drawn:
lossy.py says what a disk may do. Of one run many moments are taken: what would be left at each goes to a plain folder,
where the same command is started again. One of these is put on a new disk instead, where the power is cut while the
command goes on.

What must hold: no traceback; training goes on from the last checkpoint that was said to be done, or a later one, and
no record is lost until there; what converts and grows leaves a whole folder or none; what a command had ended with exit
code 0 is whole there; and all ends with the same records but for the clock, and the same arrays and files, as one that
was left alone. Prints Markdown; exit code 1 unless all of that held. Ctrl-C ends it, and what is done is reported.
"""

import collections
import contextlib
import importlib.util
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from ctypes.util import find_library
from pathlib import Path
from typing import Any, NamedTuple

from full_disk import begin, commands, looks_whole, written
from killed import followed, replace, trace
from runs import call, options

from growlm.training.checkpoint import quiet_writers

LOSSY = Path(__file__).with_name("lossy.py")
MOMENTS = 16  # of one run
DEPTH = 3  # losses one after the other
watched: list[Path] = []  # the disk that is told what was promised, if there is one
EQUAL = ("goes on", "begins anew", "was done")


def missing() -> str | None:
    """What a file system of one's own needs that is not here."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "a system with FUSE: there is no /dev/fuse that this process may use"
    if not find_library("fuse"):
        return "libfuse 2: apt-get install libfuse2"
    if not importlib.util.find_spec("mfusepy"):
        return "mfusepy: pip install mfusepy"
    try:
        with tempfile.TemporaryDirectory() as folder, mounted(Path(folder, "disk"), Path(folder, "left"), None, [], 0):
            return None
    except RuntimeError:
        return "a system on which this process may mount"


class Loss(NamedTuple):
    """What a loss of power left.

    Attributes:
      folder: has that, and what the command was to write under "new".
      before: the change that did not come to be.
      names: how names come to the disk, see lossy.py.
      said: what the command had promised: "step" of its last finished checkpoint, its exit "code".
      again: whether it had gone on after another loss.
    """

    folder: Path
    before: str
    names: str
    said: dict[str, int]
    again: bool


@contextlib.contextmanager
def mounted(place: Path, left: Path, first: Path | None, moments: list[int], seed: int) -> Iterator[None]:
    """A lossy disk."""
    place.mkdir(exist_ok=True)
    left.mkdir(parents=True)
    command = [sys.executable, LOSSY, place, left, str(seed), first or "-", json.dumps(moments)]
    process = subprocess.Popen(command)
    try:
        while not place.is_mount():
            if process.poll() is not None:
                raise RuntimeError(f"{place} cannot be mounted")
            time.sleep(0.01)
        watched[:] = [place]
        yield
    finally:
        watched.clear()
        process.terminate()
        if process.wait():
            raise RuntimeError("the file system ended by an error")


def promise(name: str, value: int) -> None:
    """Tell the disk what is promised from now on."""
    for disk in watched:
        os.setxattr(disk, f"user.{name}", str(value).encode())


def promising(function: Callable) -> Callable:
    """A method of Checkpoints, after which all are done but that of the state which it was given."""

    def wrapped(checkpoints: Any, *of: Any) -> Any:
        result = function(checkpoints, *of)
        done = [step for step in checkpoints.steps() if not of or step < int(of[0].step)]
        if done:
            promise("step", max(done))
        return result

    return wrapped


class Trials:
    """The commands, how each ends that is left alone, and what was found."""

    def __init__(self, workdir: Path, seed: int):
        self.home, self.place, self.left = workdir / "home", workdir / "disk", workdir / "left"
        self.draw = random.Random(seed)
        self.found: collections.Counter[tuple[str, str]] = collections.Counter()
        self.before: collections.Counter[str] = collections.Counter()
        self.tries = self.rounds = 0
        begin(self.home)
        self.names = [*commands(self.home, self.place)]
        self.want: dict[str, Any] = {}
        self.changes: dict[str, int] = {}

    def _arguments(self, name: str, disk: Path) -> list[str]:
        return commands(self.home, disk / "new")[name]

    def _leave_alone(self, name: str) -> None:
        """See how a command ends, and how many changes that takes."""
        folder = self.home / "alone" / name
        code, said = call(self._arguments(name, folder))
        if code:
            raise RuntimeError(said)
        self.want[name] = written(name, folder / "new" / "out")
        ((_, self.changes[name]),), said = self.run(name, None, [])
        if said not in EQUAL:
            raise RuntimeError(said)

    def run(self, name: str, first: Loss | None, moments: list[int]) -> tuple[list[tuple[Loss, int]], str]:
        """Run a command on a lossy disk: the losses, with the number of changes until then, and what was wrong."""
        self.rounds += 1
        left = self.left / str(self.rounds)
        with mounted(self.place, left, first and first.folder, moments, self.draw.randrange(2**32)):
            wrong = self.go_on(name, self.place, first)
        losses = []
        for number in range(len(list(left.glob("*.json")))):
            known = json.loads((left / f"{number}.json").read_text())
            said = (first.said if first else {}) | known["said"]
            loss = Loss(left / str(number), known["before"], known["names"], said, again=first is not None)
            losses.append((loss, known["change"]))
        return losses, wrong

    def go_on(self, name: str, disk: Path, loss: Loss | None) -> str:
        """Start a command where a loss has left something; says what was wrong, or one of EQUAL."""
        out, said = disk / "new" / "out", loss.said if loss else {}
        try:
            if said.get("code") == 0 and written(name, out) != self.want[name]:
                return "it ended with exit code 0, and what it wrote is something else"
            if name in ("convert", "grow") and out.exists() and any(out.iterdir()):
                looks_whole(out)
                return "was done" if written(name, out) == self.want[name] else "what it wrote is not whole"
        except Exception as error:
            return f"what it wrote cannot be read: {error!r}"
        trace.clear()
        code, message = call(self._arguments(name, disk))
        if code != 0:
            return f"exit code {code}: {message[-3000:]}"
        promise("code", 0)
        if "first" in trace and trace["first"] <= said.get("step", 0):
            return f"it trained step {trace['first']} again, where {said['step']} was said to be done"
        if written(name, out) != self.want[name]:
            return f"it ended otherwise than one that was left alone: {message[-1000:]}"
        if name == "train" and "first" not in trace:
            return "was done"
        return "goes on" if trace.get("first", 1) > 1 else "begins anew"

    def judge(self, name: str, loss: Loss, wrong: str) -> None:
        """Count a try."""
        self.tries += 1
        self.found[name, wrong if wrong in EQUAL else "wrong"] += 1
        self.found[name, loss.names] += 1
        self.found[name, "again"] += loss.again
        self.found[name, "ended"] += "code" in loss.said
        self.before[loss.before.split("/")[0].strip()] += 1
        if wrong not in EQUAL:
            what = f"{name} before {loss.before}, names {loss.names}, {loss.said}"
            print(f"power_loss: try {self.tries}, {what}: {wrong}", file=sys.stderr, flush=True)

    def chain(self, name: str, most: int) -> None:
        """Cut the power in a run, and in what goes on after it; ends after so many tries."""
        loss = None
        if name not in self.want:
            self._leave_alone(name)
        for _ in range(DEPTH):
            moments = sorted(self.draw.sample(range(self.changes[name]), MOMENTS))
            losses, wrong = self.run(name, loss, moments)
            if loss:
                self.judge(name, loss, wrong)
            elif wrong not in EQUAL:
                raise RuntimeError(wrong)
            others = [one for one, _ in losses]
            loss = others.pop(self.draw.randrange(len(others)))
            for other in others:
                if self.tries == most:
                    return
                self._restart(name, other)
            if self.tries == most:
                return
        self._restart(name, loss)

    def _restart(self, name: str, loss: Loss) -> None:
        kept = self.left / f"try-{self.tries + 1}"
        shutil.copytree(loss.folder, kept)
        wrong = self.go_on(name, loss.folder, loss)
        self.judge(name, loss, wrong)
        shutil.rmtree(loss.folder)
        if wrong in EQUAL:
            shutil.rmtree(kept)

    def table(self) -> str:
        """What was found, as Markdown."""
        heads = ["command", "tries", "after another loss", "names in order", "by folder", "after its end"]
        heads += [*EQUAL, "wrong"]
        keys = ("again", "in order", "by folder", "ended", *EQUAL, "wrong")
        lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for name in self.names:
            tries = sum(self.found[name, ending] for ending in (*EQUAL, "wrong"))
            lines.append(f"| {' | '.join(map(str, [name, tries, *(self.found[name, key] for key in keys)]))} |")
        moments = ", ".join(f"{count} before {kind}" for kind, count in self.before.most_common())
        return "\n".join([*lines, "", f"Moments: {moments}."])


def main() -> int:
    """Make all tries; returns the exit code."""
    args = options(__doc__).parse_args()
    if lacks := missing():
        print(f"power_loss: this needs {lacks}", file=sys.stderr)
        return 2
    del globals()["__file__"]  # or each worker of prepare would import this script first, for seconds
    quiet_writers()
    replace("growlm.training.loop:Steps.train", followed)
    for method in ("save", "wait", "close"):
        replace(f"growlm.training.checkpoint:Checkpoints.{method}", promising)
    trials = Trials(args.workdir.absolute(), args.seed)
    with contextlib.suppress(KeyboardInterrupt):  # then what is done is reported
        for name in itertools.cycle(trials.names):
            trials.chain(name, args.tries)
            if trials.tries == args.tries:
                break
    print(trials.table())
    print(json.dumps({"tries": trials.tries, "seed": args.seed}))
    return 1 if any(trials.found[name, "wrong"] for name in trials.names) else 0


if __name__ == "__main__":
    sys.exit(main())
