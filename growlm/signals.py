"""Ctrl-C and SIGTERM while a command is loaded: they end it at once, in a line, as nothing is begun yet.

Python's own KeyboardInterrupt is raised wherever the interpreter is, and is lost in a callback of an import.
"""

import os
import signal

INTERRUPTED = "growlm: interrupted, and nothing was begun or left half-done"
STOPPED = "growlm: stopped; all that was trained is saved, the same command goes on"
ENDS = {signal.SIGINT: (INTERRUPTED, 130), signal.SIGTERM: (STOPPED, os.EX_TEMPFAIL)}

_before: dict = {}


def take_signals() -> None:
    """From now on these signals end the process."""
    for number in ENDS:
        _before[number] = signal.signal(number, _end)


def restore_signals(*numbers: int) -> None:
    """Give back what `take_signals` has taken, by default all of it."""
    for number in numbers or (*ENDS,):
        if number in _before:
            signal.signal(number, _before.pop(number))


def _end(number: int, frame: object) -> None:
    line, code = ENDS[signal.Signals(number)]
    os.write(2, f"{line}\n".encode())
    os._exit(code)
