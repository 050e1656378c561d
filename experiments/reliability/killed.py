"""`growlm` in a process that kills or stops itself at a moment, which nothing in growlm knows of."""

import atexit
import contextlib
import ctypes
import functools
import importlib
import itertools
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

TRACE = "SOAK_TRACE"  # of the environment: the file to which `end` adds a line
PARENT_DEATH = 1  # PR_SET_PDEATHSIG


class Kind(NamedTuple):
    """A kind of moment.

    Attributes:
      function: MODULE:NAME of what is called then; without one the delay is from the start of the process.
      calls: n is at most this.
      delay: so is the delay.
      returns: the signal comes when the function returns, at the latest.
      first: only the first process of a job comes there.
    """

    function: str
    calls: int
    delay: float
    returns: bool = True
    first: bool = False


KINDS = {
    "in a step": Kind("growlm.training.loop:Steps.train", 12, 0.01, returns=False),
    "in an evaluation": Kind("growlm.training.loop:Steps.validate", 4, 0.02),
    "in a checkpoint's write": Kind("growlm.training.checkpoint:Checkpoints.save", 4, 0.2, returns=False),
    "while a checkpoint is read": Kind("growlm.training.checkpoint:Checkpoints.restore", 1, 0.2),
    "in the background compilation": Kind("growlm.training.programs:_background.submit", 3, 0.5),
    "inside the growth": Kind("growlm.growth.state:apply_growth", 1, 0.01),
    "between growth and its first checkpoint": Kind("growlm.training.loop:Steps.train", 5, 0.0),
    "while records are published": Kind("growlm.training.records:publish", 4, 0.01, first=True),
    "while a bucket is written": Kind("growlm.buckets:_Copy.push", 4, 0.1, first=True),
    "at any time": Kind("", 1, 0.0),
}
SINCE_GROWTH = "between growth and its first checkpoint"  # calls are counted from there on

_sent = threading.Lock()
trace: dict[str, Any] = {}  # the first and the last step that were begun


def end(moment: str | None) -> None:
    """Say what was trained, and at which moment it ended, if it was killed."""
    line = json.dumps(trace | {"moment": moment}) + "\n"
    file = os.open(os.environ[TRACE], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, line.encode())
    os.close(file)


def kill(moment: str, delay: float, by: int) -> None:
    """After the delay this process is no more, or stands still until it is told to go on. It happens once."""
    time.sleep(delay)
    if _sent.acquire(blocking=False):
        end(moment)
        os.kill(os.getpid(), by)


def replace(function: str, wrap: Callable[[Callable], Callable]) -> None:
    """Put another function in the place of one, wherever growlm has imported it to."""
    module, _, names = function.partition(":")
    *path, name = names.split(".")
    owner = functools.reduce(getattr, path, importlib.import_module(module))
    before = getattr(owner, name)
    after = wrap(before)
    setattr(owner, name, after)
    for other in [other for key, other in sys.modules.items() if key.startswith("growlm.")]:
        for key in [key for key, value in vars(other).items() if value is before]:
            setattr(other, key, after)


@contextlib.contextmanager
def replaced(function: str, wrap: Callable[[Callable], Callable]) -> Iterator[None]:
    """Within it another function is in the place of one."""
    kept: list[Callable] = []
    replace(function, lambda before: kept.append(before) or wrap(before))
    try:
        yield
    finally:
        replace(function, lambda _: kept[0])


def followed(train: Callable) -> Callable:
    """The training step, which says which one it is."""

    def wrapped(steps: Any, state: Any, *more: Any) -> Any:
        trace["last"] = int(state.step) + 1
        trace.setdefault("first", trace["last"])
        return train(steps, state, *more)

    return wrapped


def marked(grow: Callable) -> Callable:
    """Growth, which says that it was."""

    def wrapped(*of: Any, **options: Any) -> Any:
        result = grow(*of, **options)
        trace["grown"] = True
        return result

    return wrapped


def deadly(name: str, n: int, delay: float, by: int) -> Callable[[Callable], Callable]:
    """A function that ends the process, or stops it, in its nth call."""
    kind, calls = KINDS[name], itertools.count(1)

    def wrap(function: Callable) -> Callable:
        def wrapped(*of: Any, **options: Any) -> Any:
            if (name == SINCE_GROWTH and "grown" not in trace) or next(calls) != n:
                return function(*of, **options)
            threading.Thread(target=kill, args=(name, delay, by), daemon=True).start()
            result = function(*of, **options)
            if kind.returns:
                kill(name, 0.0, by)
            return result

        return wrapped

    return wrap


def submitted(name: str, n: int, delay: float, by: int) -> Callable[[Callable], Callable]:
    """What hands work to the background, where the nth piece of it ends the process."""
    counted = deadly(name, n, delay, by)

    def wrap(submit: Callable) -> Callable:
        run = counted(lambda work, *of: work(*of))
        return lambda work, *of: submit(run, work, *of)

    return wrap


class Moment(NamedTuple):
    """When a process gets a signal: in the nth call of its kind, after so many seconds. Without a kind: never."""

    kind: str = ""
    n: int = 1
    delay: float = 0.0
    by: int = signal.SIGKILL


def end_with_parent() -> None:
    """From now on this process is killed where the one that started it ends."""
    ctypes.CDLL(None).prctl(PARENT_DEATH, signal.SIGKILL)


def end_with_starter() -> None:
    """The same for one that a fork server made for another: the server lives as long as any that it has made."""
    starter = multiprocessing.parent_process()

    def watch() -> None:
        starter.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def run(arguments: list[str], moment: Moment, environment: dict[str, str], log: str) -> None:
    """Run a command of growlm in this process, and end it. The environment is added to that of the parent."""
    end_with_starter()
    os.environ |= environment
    for stream in (sys.stdout, sys.stderr):
        os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), stream.fileno())
    sys.argv = ["growlm", *arguments]
    from growlm.__main__ import main as growlm
    from growlm.training import peers, sweep  # all that is replaced is imported by it

    assert sweep
    replace("growlm.training.loop:Steps.train", followed)
    replace("growlm.growth.state:apply_growth", marked)
    if moment.kind and not KINDS[moment.kind].function:
        threading.Thread(target=kill, args=(moment.kind, moment.delay, moment.by), daemon=True).start()
    elif moment.kind:
        make = submitted if KINDS[moment.kind].function.endswith(".submit") else deadly
        replace(KINDS[moment.kind].function, make(*moment))
    code = growlm(arguments)
    end(None)
    peers.leave_job()  # as the command does in a process of its own
    atexit._run_exitfuncs()  # a process of multiprocessing runs none by itself
    sys.exit(code)
