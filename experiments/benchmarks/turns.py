"""Work that takes turns, so that a machine whose load changes meets all of it alike, and what is said of its times."""

import contextlib
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from growlm.errors import InputError

Times = dict[str, list[float]]  # by name: seconds of each round
CPU_TIME = "time of the processor, all threads, instead of the clock: for a machine with other work on it"


def processor_time() -> float:
    """Processor seconds of this process, of all its threads, and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def clock(cpu_time: bool) -> Callable[[], float]:
    """What seconds are read from."""
    return processor_time if cpu_time else time.perf_counter


def take_turns(work: Mapping[str, Callable[[], Any]], rounds: int, now: Callable[[], float]) -> Times:
    """The seconds of each, round after round."""
    times: Times = {name: [] for name in work}
    for _ in range(rounds):
        for name, do in work.items():
            began = now()
            do()
            times[name].append(now() - began)
    return times


def spread(ratios: list[float]) -> dict[str, float]:
    """The median of ratios, each of neighbours in a round, the least and the most."""
    return {"ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def speed(times: Times, one: str, other: str) -> dict[str, float]:
    """How often `one` is done in the time of one `other`: above 1 it is faster."""
    return spread([theirs / own for own, theirs in zip(times[one], times[other], strict=True)])


def ratios_of(cases: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The ratios of a record's cases by their names, as bench.py reads them."""
    return {f"{case['case']}": {key: case[key] for key in ("ratio", "least", "most")} for case in cases}


def in_words(ratio: Mapping[str, float]) -> str:
    """A ratio with its range."""
    return f"{ratio['ratio']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})"


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keeps this thread, and those and the processes that it starts, on one core."""
    if not hasattr(os, "sched_setaffinity"):
        raise InputError("this system cannot keep a process on one core: allowed is Linux")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
