"""Where the time of a process goes: every second counts under one cause, and is kept with the record that comes next.

So a run's last record has all seconds that lie before it, over all of its stages and starts. What a killed process
spent after its last record is not known.
"""

import collections
import contextlib
import contextvars
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

TRAIN, START, COMPILE, DATA, EVALUATE, SAVE, GROW = "train", "start", "compile", "data", "evaluate", "save", "grow"
LOST = "lost"  # trained, evaluated, saved or grown after the checkpoint from which the run went on, and done again
PRECISION = 4  # digits after the point of a record's seconds

_ledger: contextvars.ContextVar["Ledger | None"] = contextvars.ContextVar("ledger", default=None)


class Ledger:
    """Seconds by cause that no record has yet. One cause runs at a time.

    before: seconds that the process took until now.
    """

    def __init__(self, before: float = 0.0):
        self._spent = collections.Counter({START: before})
        self._cause, self._since = START, time.perf_counter()

    def switch(self, cause: str) -> str:
        """Count under this cause from now on; returns the one until now."""
        now, before = time.perf_counter(), self._cause
        self._spent[before] += now - self._since
        self._cause, self._since = cause, now
        return before

    def take(self) -> dict[str, float]:
        """The seconds since they were taken last, by cause."""
        self.switch(self._cause)
        spent, self._spent = dict(self._spent), collections.Counter()
        return spent


@contextlib.contextmanager
def time_counted(before: float = 0.0) -> Iterator[None]:
    """Count the time within, of this thread; `before`: seconds that the process took until now."""
    token = _ledger.set(Ledger(before))
    try:
        yield
    finally:
        _ledger.reset(token)


@contextlib.contextmanager
def spending(cause: str) -> Iterator[None]:
    """Count the time within under a cause, and none of it under the one around; where no time is counted, nothing."""
    ledger = _ledger.get()
    if ledger is None:
        yield
        return
    before = ledger.switch(cause)
    try:
        yield
    finally:
        ledger.switch(before)


def with_new(seconds: Mapping[str, float]) -> dict[str, float]:
    """Those seconds by cause, and what was counted since this was asked last."""
    ledger = _ledger.get()
    total = collections.Counter(seconds)
    total.update(ledger.take() if ledger else {})
    rounded = {cause: round(total[cause], PRECISION) for cause in sorted(total)}
    return {cause: seconds for cause, seconds in rounded.items() if seconds > 0}


def gone_on(last: Mapping[str, float], kept: Mapping[str, float]) -> dict[str, float]:
    """The seconds by cause of a run that goes on from the record `kept`, where there are records until `last`."""
    whole = {cause: max(last.get(cause, 0.0), kept.get(cause, 0.0)) for cause in (START, COMPILE, LOST)}
    lost = sum(max(seconds - kept.get(cause, 0.0), 0.0) for cause, seconds in last.items() if cause not in whole)
    return dict(kept) | whole | {LOST: whole[LOST] + lost}


def process_seconds() -> float:
    """How long this process has been running; 0 where the system does not say."""
    try:
        began = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return max(float(Path("/proc/uptime").read_text().split()[0]) - began, 0.0)
    except OSError:
        return 0.0
