"""The loss as a power of compute, L = a C^b, and with a floor, L = E + a C^b."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from growlm.errors import InputError, check_range
from growlm.laws.intervals import LEVEL, Interval, distinct, percentile_interval, positive_columns


@dataclass(frozen=True)
class PowerLaw:
    """A fitted L = E + a C^b, with C in FLOPs and L in nats per token.

    Attributes:
        a, b: coefficient and exponent with their intervals; b is negative where compute helps.
        E: the irreducible loss; with no interval where it was given, and 0 where the law has none.
        residual: root mean square of log(predicted / measured loss).
        flops: the range of C that was fitted.
        points: how many were fitted.
        level: of the intervals.
        samples: float64[resamples, 4], of every refit a, b, E and an error in log L, drawn from the fit's.
    """

    a: Interval
    b: Interval
    E: Interval
    residual: float
    flops: tuple[float, float]
    points: int
    level: float
    samples: np.ndarray = field(repr=False, compare=False)

    def loss(self, flops: float) -> float:
        """The loss at a budget (a number or an array); outside of `flops` it is extrapolated."""
        return self.E.value + self.a.value * np.power(flops, self.b.value)

    def forecast(self, flops: float) -> Interval:
        """The loss of one more run at a budget, with its interval: the law's own uncertainty and the runs' scatter.

        It takes the form for granted; beyond `flops` the form is the larger doubt.
        """
        a, b, floor, error = self.samples.T
        losses = (floor + a * np.power(flops, b)) * np.exp(error)
        return percentile_interval(float(self.loss(flops)), losses, self.level)


def power_law(flops: float, a: float, b: float, floor: float = 0.0) -> float:
    """L = E + a C^b.

    Source: arXiv 2405.15319, section 4.1, without a floor, of its final losses at 410M, 1.1B, 3B and 7B; its
    coefficients are not published. Range: without a floor a power law cannot hold at large C.

    Args:
        flops: C in FLOPs (a number or an array).
        a, b: coefficient and exponent.
        floor: the irreducible loss E.
    """
    return floor + a * np.power(np.asarray(flops, np.float64), b)


def fit_power_law(
    flops: np.ndarray,
    loss: np.ndarray,
    irreducible: bool = False,
    resamples: int = 500,
    level: float = LEVEL,
    seed: int = 0,
    progress: Callable = iter,
    floor: float | None = None,
) -> PowerLaw:
    """L = a C^b, or with `irreducible` or `floor` L = E + a C^b, by least squares in log L.

    Intervals: residuals, corrected for leverage, are resampled and the law refitted; percentiles. They say how well
    the points fix a law of this form, not whether the form is right.

    Source: arXiv 2405.15319, section 4.1 (form without E); Hoffmann et al. 2022 (with). Range: the budgets fitted.

    Args:
        flops: float64[points], C in FLOPs, positive.
        loss: float64[points], final losses in nats per token, positive.
        irreducible: fit E as well.
        resamples: bootstrap refits.
        level: of the intervals.
        seed: of the resampling.
        progress: wraps the loop over resamples, such as tqdm.
        floor: E in nats per token where it is known, such as that of other runs on the same text; it is not fitted.

    Raises:
        InputError: fewer points or budgets than one more than there are coefficients (says how many more), values
            that are not positive, or a floor that is not below every loss.
    """
    flops, loss = positive_columns(flops=flops, loss=loss)
    if floor is not None:
        if irreducible:
            raise InputError("the floor must be fitted or given, got both")
        check_range("floor", floor, low=0, high=float(loss.min()), low_allowed=False, high_allowed=False)
    need, have = 4 if irreducible else 3, distinct(flops)
    if have < need:
        raise InputError(f"the power law needs {need} budgets, 5 % apart at least, and has {have}: {need - have} more")
    # In units of the middle of the budgets a and b are nearly independent, and a has the size of a loss.
    unit = np.exp(np.mean(np.log(flops)))
    x, y = np.log(flops / unit), np.log(loss)
    fit = _fit_with_floor if irreducible else _fit_line if floor is None else partial(_fit_above, floor)
    best = fit(x, y)
    predicted = _predict(best, x)
    errors = (y - predicted) * np.sqrt(len(y) / (len(y) - (need - 1)))
    errors -= errors.mean()
    rng = np.random.default_rng(seed)
    samples = [fit(x, predicted + rng.choice(errors, len(y)), best) for _ in progress(range(resamples))]
    a, b, E = _in_flops(np.array([best, *samples]), unit)
    scatter = rng.choice(errors, len(samples))
    return PowerLaw(
        percentile_interval(a[0], a[1:], level),
        percentile_interval(b[0], b[1:], level),
        percentile_interval(E[0], E[1:], level) if irreducible else Interval(floor or 0.0, level=level),
        float(np.sqrt(np.mean(np.square(y - predicted)))),
        (float(flops.min()), float(flops.max())),
        len(y),
        level,
        np.stack([a[1:], b[1:], E[1:], scatter], axis=-1),
    )


def _fit_line(x: np.ndarray, y: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
    """(log a, b) of y = log a + b x."""
    slope, intercept = np.polyfit(x, y, 1)
    return np.array([intercept, slope])


def _fit_above(floor: float, x: np.ndarray, y: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
    """(log a, b, log E) of exp(y) = E + a exp(b x) with E given."""
    from scipy.optimize import least_squares

    if start is None:
        start = _fit_line(x, np.log(np.exp(y) - floor))
    found = least_squares(lambda line: _predict(np.append(line, np.log(floor)), x) - y, start[:2], method="lm")
    return np.append(found.x, np.log(floor))


def _fit_with_floor(x: np.ndarray, y: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
    """(log a, b, log E) of exp(y) = E + a exp(b x), from the best of many floors below the lowest loss."""
    from scipy.optimize import least_squares

    if start is None:
        floors = np.exp(y.min()) * np.linspace(0.02, 0.99, 50)
        lines = [np.append(_fit_line(x, np.log(np.exp(y) - floor)), np.log(floor)) for floor in floors]
        start = min(lines, key=lambda line: np.sum(np.square(_predict(line, x) - y)))
    return least_squares(lambda line: _predict(line, x) - y, start, method="lm").x


def _predict(line: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The log-loss at log-budgets."""
    power = line[0] + line[1] * x
    return np.logaddexp(power, line[2]) if len(line) == 3 else power


def _in_flops(lines: np.ndarray, unit: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(a, b, E) for C in FLOPs, of lines in C / unit."""
    b = lines[:, 1]
    floor = np.exp(lines[:, 2]) if lines.shape[1] == 3 else np.zeros(len(lines))
    return np.exp(lines[:, 0] - b * np.log(unit)), b, floor
