"""What is shown of many runs: of a chart with hundreds of curves, or a table of every pair, nothing can be read."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from growlm.report.records import Group

MOST_RUNS = 20  # of a chart; as many names have room beside the ends of their curves
MOST_CONTROLS = 8  # columns of the tables of grown runs against controls, and names in a sentence
T = TypeVar("T")


@dataclass(frozen=True)
class Shown:
    """What a chart shows of the curves of runs.

    Attributes:
        drawn: the curves on the page and in the PNG.
        undrawn: the others, which are in the CSV.
        left_out: which are not drawn, and where they are; empty where all are.
    """

    drawn: tuple
    undrawn: tuple = ()
    left_out: str = ""


def shown(group: Group, curves: Mapping[str, Sequence[T]], where: str = "The CSV has all.") -> Shown:
    """What a chart shows of the curves of every run, by its name; `where` says where all are."""
    runs = [name for name, own in curves.items() if own]
    kept = drawn(group, runs)
    seen, unseen = (
        tuple(one for name in runs if (name in kept) is flag for one in curves[name]) for flag in (True, False)
    )
    said = ""
    if len(kept) < len(runs):
        best = "those with the lowest validation loss, of the baseline, grown runs and controls in turn"
        said = f"{len(kept)} of {len(runs)} runs are drawn, {best}. {where}"
    return Shown(seen, unseen, said)


def drawn(group: Group, runs: Collection[str]) -> set[str]:
    """The runs of these that a chart shows: all up to MOST_RUNS, else the baseline, and of each role in turn the best.

    The best has the lowest last validation loss, the mean over seeds.
    """
    if len(runs) <= MOST_RUNS:
        return set(runs)
    roles: dict[str, list[str]] = {}
    for name in sorted(runs, key=lambda name: _last_loss(group, name)):
        roles.setdefault(group.first.runs[name].role, []).append(name)
    turns = {name: turn for role, names in roles.items() for turn, name in enumerate(names, start=role != "baseline")}
    return set(sorted(runs, key=lambda name: turns[name])[:MOST_RUNS])


def named(names: Sequence[str]) -> str:
    """The names; of many the first, and how many there are besides."""
    more = len(names) - MOST_CONTROLS
    return ", ".join(names[:MOST_CONTROLS]) + (f" and {more} more" if more > 0 else "")


def _last_loss(group: Group, name: str) -> float:
    """The mean over seeds of the last validation loss of a run; infinite where there is none."""
    last = [record["val_loss"] for run in group.each(name).values() if (record := run.last_validated)]
    mean = float(np.mean(last)) if last else math.inf
    return mean if math.isfinite(mean) else math.inf
