"""A number with its interval, and how the intervals of this package are made."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from growlm.errors import InputError

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
    check_level(level)
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, level=level)
    half = stdtrit(len(values) - 1, (1 + level) / 2) * np.std(values, ddof=1) / np.sqrt(len(values))
    return Interval(mean, float(mean - half), float(mean + half), level)


def distinct(values: np.ndarray, apart: float = 0.05) -> int:
    """How many different values there are of such as are not negative; those that differ by less than a share are one.

    Zero has no logarithm, and is a value of its own.
    """
    values = np.asarray(values, np.float64)
    positive = np.log(np.sort(values[values > 0]))
    return int(np.any(values == 0)) + (1 + int(np.sum(np.diff(positive) > np.log1p(apart))) if len(positive) else 0)


def check_level(level: float) -> None:
    """Raises InputError unless the level is between 0 and 1."""
    if not 0 < level < 1:
        raise InputError(f"level must be between 0 and 1, such as 0.95, got {level!r}")
