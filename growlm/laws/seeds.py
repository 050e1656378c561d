"""The speed-up over several seeds, with an interval."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from growlm.errors import InputError
from growlm.laws.intervals import LEVEL, Interval, t_interval
from growlm.laws.speedup import Curve, Speedup, speedup


@dataclass(frozen=True)
class SeedSpeedup:
    """What growing saved, over seeds. `speedup` and `saved` are None where a seed does not reach the loss.

    Attributes:
        speedup: FLOPs(scratch) / FLOPs(grown) - 1, with its interval where there are two seeds or more.
        saved: 1 - FLOPs(grown) / FLOPs(scratch), the same in other words.
        seeds: what each seed gave.
        reason: one line on how many seeds there are and which of them do not reach the loss.
    """

    speedup: Interval | None
    saved: Interval | None
    seeds: tuple[Speedup, ...]
    reason: str


def speedup_over_seeds(
    grown: Sequence[Curve],
    scratch: Sequence[Curve],
    loss: float | None = None,
    window: int = 1,
    level: float = LEVEL,
) -> SeedSpeedup:
    """The speed-up of each seed, and their geometric mean with Student's interval.

    A seed's two runs share data and evaluation, so they are compared with each other, and the seeds are the
    independent measurements. What is averaged is log(FLOPs(scratch) / FLOPs(grown)): a ratio and its inverse then
    weigh the same, and the interval of the compute saved is that of the speed-up. Where any seed does not reach the
    loss there is no mean: one over the seeds that did would be a choice of the lucky ones.

    Source: the measure is equation 48 of arXiv 2405.15319, which reports no seeds.

    Args:
        grown, scratch: the runs, seed by seed in the same order.
        loss: the loss to compare at; by default every pair's own, the worse of its two final losses.
        window: points in the running median taken of all curves first (`smooth`).
        level: of the interval.

    Raises:
        InputError: no runs, or a seed without its partner.
    """
    if not grown or len(grown) != len(scratch):
        raise InputError(
            f"{len(grown)} grown runs and {len(scratch)} from scratch: allowed is one of each for every seed"
        )
    found = tuple(speedup(mine, other, loss, window) for mine, other in zip(grown, scratch, strict=True))
    missed = [f"{number} ({one.reason})" for number, one in enumerate(found) if not one.reached]
    if missed:
        return SeedSpeedup(None, None, found, f"not reached at {len(missed)} of {len(found)} seeds: {missed[0]}")
    mean = t_interval(np.array([np.log1p(one.speedup) for one in found]), level)
    count = f"{len(found)} seeds" if len(found) > 1 else "1 seed, so there is no interval"
    return SeedSpeedup(_through(mean, np.expm1), _through(mean, lambda log: -np.expm1(-log)), found, count)


def _through(interval: Interval, function) -> Interval:
    """The interval of a rising function of what it is of."""
    ends = (None if end is None else float(function(end)) for end in (interval.low, interval.high))
    return Interval(float(function(interval.value)), *ends, interval.level)
