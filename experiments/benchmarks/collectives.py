"""What a compiled program sends between devices: read off the compiler's text, loops counted as often as they run."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64} | {
    f"{sign}{bits}": bits for sign in "su" for bits in (4, 8, 16, 32, 64)
}

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\) -> .*{$")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
_WHILE = re.compile(r" while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)")
_CALLED = re.compile(r"(?:calls|to_apply|branch_computations)=\{?%?([\w.-]+)")
_ARRAY = re.compile(r"\b([a-z]+\d+|pred)\[([\d,]*)\]")
_BOUND = re.compile(r"= [su]\d+\[\]\S* constant\((\d+)\)")
_GROUPS = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_TILED_GROUPS = re.compile(r"replica_groups=\[\d+,(\d+)\]<=")
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")


class Sent(NamedTuple):
    """Of one kind: how many times a step, and what one device receives in all of them."""

    times: int
    received_bytes: float


def sent(text: str) -> dict[str, Sent]:
    """Collectives of a program by kind, from its text after partitioning (HLO, of one device).

    What a device receives in a group of n, by the algorithms of a ring: (n - 1) / n of what an all-gather gives, of
    what a reduce-scatter or an all-to-all takes, twice that of an all-reduce, and all that is permuted to it.
    """
    computations = _computations(text)
    times: Counter[str] = Counter()
    received: Counter[str] = Counter()
    for name, runs in _runs(text, computations).items():
        for kind, size in _collectives(name, computations[name]):
            times[kind] += runs
            received[kind] += runs * size
    return {kind: Sent(times[kind], received[kind]) for kind in KINDS if times[kind]}


def _computations(text: str) -> dict[str, list[str]]:
    """The lines of every computation, by its name."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            lines = found[match[1]] = []
        elif found and line.startswith(" "):
            lines.append(line)
    return found


def _runs(text: str, computations: dict[str, list[str]]) -> Counter[str]:
    """How often each computation runs in one run of the program."""
    runs: Counter[str] = Counter()

    def run(name: str, times: int) -> None:
        runs[name] += times
        for called, more in _calls(computations, computations[name]):
            run(called, times * more)

    run(re.search(r"^ENTRY %?([\w.-]+) ", text, re.MULTILINE)[1], 1)
    return runs


def _calls(computations: dict[str, list[str]], lines: list[str]) -> Iterator[tuple[str, int]]:
    """What is called in these lines, and how often each time."""
    for line in lines:
        if loop := _WHILE.search(line):
            yield loop[2], _bound(computations[loop[1]])
        elif called := _CALLED.search(line):
            yield called[1], 1


def _bound(condition: list[str]) -> int:
    """How often a loop runs that counts from zero to a constant, as those of scans do."""
    found = [int(bound) for line in condition for bound in _BOUND.findall(line)]
    if len(found) != 1 or not any("direction=LT" in line for line in condition):
        raise RuntimeError(f"this loop's condition does not say how often it runs: {condition}")
    return found[0]


def _collectives(name: str, lines: list[str]) -> Iterator[tuple[str, float]]:
    """Kind and received bytes of every collective in a computation."""
    for line in lines:
        if match := _COLLECTIVE.search(line):
            # The TPU compiler spells a reduce-scatter as an all-reduce of which a part is taken.
            kind = "reduce-scatter" if name.startswith("all-reduce-scatter") else match[2]
            yield kind, _received(kind, match[2], _nbytes(match[1]), line)


def _received(kind: str, spelled: str, result_bytes: float, line: str) -> float:
    if kind == "collective-permute":
        return result_bytes
    group = _group(line)
    whole = result_bytes * (group if spelled == "reduce-scatter" else 1)  # it gives a part of what it takes
    return whole * (group - 1) / group * (2 if kind == "all-reduce" else 1)


def _group(line: str) -> int:
    """How many devices take part with each other."""
    if match := _GROUPS.search(line):
        return match[1].count(",") + 1
    if match := _TILED_GROUPS.search(line):
        return int(match[1])
    if match := _MESH_GROUPS.search(line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    raise RuntimeError(f"this does not say which devices take part: {line}")


def _nbytes(shape: str) -> float:
    return sum(
        BITS[kind] / 8 * math.prod(map(int, filter(None, sizes.split(",")))) for kind, sizes in _ARRAY.findall(shape)
    )
