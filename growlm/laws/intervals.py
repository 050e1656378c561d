"""Estimates with intervals: percentile bootstrap, Student's t, and the speed-up over several seeds."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from growlm.errors import InputError, check_range
from growlm.laws.speedup import Curve, Speedup, loss_at, speedup

LEVEL = 0.95


class RangeWarning(UserWarning):
    """A published law was asked outside the range of the runs that it was fitted on; the message says which."""


def warn(reasons: Iterable[str]) -> None:
    """A RangeWarning for each reason, at the line of whoever called the law."""
    for reason in reasons:
        warnings.warn(reason, RangeWarning, stacklevel=3)


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its interval; both ends are None where the data do not give one.

    Attributes:
        value: the estimate itself, not the middle of the interval.
        low, high: the ends.
        level: the share of repetitions of the experiment in which such an interval holds the true value.
    """

    value: float
    low: float | None = None
    high: float | None = None
    level: float = LEVEL

    def __contains__(self, value: float) -> bool:
        return self.low is not None and self.low <= value <= self.high


def percentile_interval(value: float, samples: np.ndarray, level: float = LEVEL) -> Interval:
    """The percentile bootstrap interval of an estimate.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.

    Args:
        value: the estimate from the data themselves.
        samples: float64[resamples], the same from every resample.
        level: between 0 and 1.
    """
    check_level(level)
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high), level)


def t_interval(values: np.ndarray, level: float = LEVEL) -> Interval:
    """The mean of independent measurements with Student's interval; one measurement has a mean and no interval.

    A bootstrap of three seeds has ten different resamples and an interval that is far too short; Student's is exact
    for normal errors at any number from two on.

    Args:
        values: float64[measurements], in units in which errors may be taken to be normal.
        level: between 0 and 1.
    """
    from scipy.special import stdtrit

    check_level(level)
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, level=level)
    half = stdtrit(len(values) - 1, (1 + level) / 2) * np.std(values, ddof=1) / np.sqrt(len(values))
    return Interval(mean, float(mean - half), float(mean + half), level)


def positive_columns(**columns: np.ndarray) -> tuple[np.ndarray, ...]:
    """The columns as float64[points]. Raises InputError unless they are equally long, positive and finite."""
    arrays = tuple(np.asarray(column, np.float64) for column in columns.values())
    for name, array in zip(columns, arrays, strict=True):
        if array.shape != arrays[0].shape or not (np.isfinite(array) & (array > 0)).all():
            raise InputError(f"{name} must be positive finite numbers, one for every point")
    return arrays


def distinct(values: np.ndarray, apart: float = 0.05) -> int:
    """The number of values >= 0 that differ: each is more than the share `apart` above the last one counted.

    Zero has no logarithm, and is a value of its own.
    """
    values = np.sort(np.asarray(values, np.float64))
    count, last = int(np.any(values == 0)), 0.0
    for value in values[values > 0]:
        if value > last * (1 + apart):
            count, last = count + 1, value
    return count


def aicc(squares: float, points: int, coefficients: int) -> float:
    """n log(RSS / n) + 2 k + 2 k (k + 1) / (n - k - 1) of a least-squares fit; only differences mean anything.

    Source: Burnham & Anderson, Model Selection and Multimodel Inference (2002), section 2.4.
    """
    n, k = points, coefficients
    return float(n * np.log(squares / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1))


def check_level(level: float) -> None:
    """Raises InputError unless the level is between 0 and 1."""
    check_range("level", level, low=0, high=1, low_allowed=False, high_allowed=False)


@dataclass(frozen=True)
class SeedSpeedup:
    """The speed-up over seeds. `speedup` and `saved` are None where a seed does not reach the loss.

    Attributes:
        speedup: FLOPs(scratch) / FLOPs(grown) - 1, with its interval where there are two seeds or more.
        saved: 1 - FLOPs(grown) / FLOPs(scratch), of the same mean and interval.
        seeds: the speed-up of each seed.
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
        raise InputError(f"runs must be a grown and a scratch one a seed, got {len(grown)} and {len(scratch)}")
    seeds = tuple(speedup(mine, other, loss, window) for mine, other in zip(grown, scratch, strict=True))
    missed = [f"{number} ({seed.reason})" for number, seed in enumerate(seeds) if not seed.reached]
    if missed:
        return SeedSpeedup(None, None, seeds, f"not reached at {len(missed)} of {len(seeds)} seeds: {missed[0]}")
    mean = t_interval(np.array([np.log1p(seed.speedup) for seed in seeds]), level)
    count = f"{len(seeds)} seeds" if len(seeds) > 1 else "1 seed, so there is no interval"
    return SeedSpeedup(_transformed(mean, np.expm1), _transformed(mean, lambda log: -np.expm1(-log)), seeds, count)


def loss_gap(mine: Sequence[Curve], others: Sequence[Curve], level: float = LEVEL) -> Interval | None:
    """The loss of a run less that of another at equal FLOPs, nats: the mean over seeds with Student's interval.

    Both are taken where the cheaper one of a seed ends, its schedule complete; the other may be in the middle of its
    own, where its loss is higher than that of a run which ends there.

    Args:
        mine, others: the runs, seed by seed in the same order.
        level: of the interval.

    Returns:
        None where a loss was not measured at that cost, or without seeds.
    """
    ends = [min(run.flops[-1], other.flops[-1]) for run, other in zip(mine, others, strict=True)]
    losses = [[loss_at(run, end) for run, end in zip(runs, ends, strict=True)] for runs in (mine, others)]
    if not ends or None in losses[0] + losses[1]:
        return None
    return t_interval(np.subtract(*losses), level)


def _transformed(interval: Interval, function: Callable[[float], float]) -> Interval:
    """The interval of a rising function of the estimate."""
    ends = (None if end is None else float(function(end)) for end in (interval.low, interval.high))
    return Interval(float(function(interval.value)), *ends, interval.level)
