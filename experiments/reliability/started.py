"""Processes of growlm's commands that are started and watched from outside: those of a job, and warm ones."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from killed import TRACE, Moment, end_with_starter, run
from runs import call
from soak import FORKED, free_port

from growlm.training import processes
from growlm.training.checkpoint import quiet_writers

PATIENCE = 20  # seconds of GROWLM_PEER_TIMEOUT
JOIN = 120  # seconds in which both processes of a job must have joined, five minutes otherwise
LIMIT = 900  # seconds in which a job must end
ALONE = Moment()


def job(
    command: list[str], folder: Path, moment: Moment = ALONE, victim: int = 0, seconds: float | None = None
) -> list[tuple[int | None, str]]:
    """A job of two processes: the exit code of each, None where it did not end, and what it said.

    Args:
      command: what both start.
      folder: for their logs.
      moment, victim: which process is killed or stopped, and when.
      seconds: after which one that stands still goes on; None: it is killed once the other one has ended.
    """
    names = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    names |= {"GROWLM_PEER_TIMEOUT": str(PATIENCE)}
    peers = []
    for n in range(2):
        trace, log = (folder / f"peer-{n}.{kind}" for kind in ("trace", "log"))
        for path in (trace, log):
            path.unlink(missing_ok=True)
        own = names | {"JAX_PROCESS_ID": str(n), TRACE: str(trace)}
        of = command, moment if n == victim else ALONE, own, str(log)
        peers.append(FORKED.Process(target=as_peer, args=of, daemon=True))
        peers[-1].start()
    trace, stopped, until = folder / f"peer-{victim}.trace", None, time.monotonic() + LIMIT
    while any(one.exitcode is None for one in peers) and time.monotonic() < until:
        time.sleep(0.05)
        if moment.by == signal.SIGSTOP and stopped is None and trace.exists():
            stopped = time.monotonic()
        if stopped is None or peers[victim].exitcode is not None:
            continue
        if seconds is not None and time.monotonic() > stopped + seconds:
            os.kill(peers[victim].pid, signal.SIGCONT)
        elif seconds is None and peers[1 - victim].exitcode is not None:
            peers[victim].kill()
    codes = [one.exitcode for one in peers]
    for process in peers:
        process.kill()
        process.join()
    logs = [folder / f"peer-{n}.log" for n in range(2)]
    return [(code, log.read_text() if log.exists() else "") for code, log in zip(codes, logs, strict=True)]


def as_peer(*of: Any) -> None:
    """`killed.run`, which waits less long for the other process of a job."""
    processes.JOIN_SECONDS = JOIN
    run(*of)


def failed(ended: list[tuple[int | None, str]]) -> bool:
    """Whether a process of a job has not ended with 0."""
    return any(code != 0 for code, _ in ended)


class Worker:
    """A process that starts commands when it is told to."""

    def __init__(self):
        self._line, line = FORKED.Pipe()
        self._process = FORKED.Process(target=serve, args=(line,), daemon=True)
        self._process.start()
        line.close()

    def start(self, command: list[str]) -> Callable[[], tuple[int | None, str]]:
        """Start a command; what is returned waits for its exit code and what it said."""
        self._line.send(command)
        return self._line.recv

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


def serve(line: Any) -> None:
    """Do in this process what is asked for on a line, one command after the other."""
    end_with_starter()
    quiet_writers()
    with contextlib.suppress(EOFError):  # whoever told it what to do has ended
        while True:
            line.send(call(line.recv()))
