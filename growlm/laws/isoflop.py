"""Slices of equal compute: a parabola through the losses of each, its lowest point, and a law through those.

Legend: P points of a slice, R resamples, S slices, K columns of a design.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm

from growlm.errors import InputError, check_range
from growlm.laws.intervals import LEVEL, Interval, check_level, distinct, percentile_interval

LEAST_VALUES = 4  # three for a parabola, and one that may contradict it
LEAST_SLICES = 4  # likewise for a law with three coefficients
FLAT = 0.05  # where more than this share of resamples has no minimum, neither has the slice


@dataclass(frozen=True)
class Slice:
    """The losses at one size and one budget over what was varied, and where they are lowest.

    Attributes:
        params, flops: the size N and the budget C; `params` is None where the size is what was varied.
        x, loss: float64[points], what was varied and the losses, in order of x.
        best: the x of the parabola's minimum with its interval; None where the slice has none.
        reason: why it has none; empty where it has.
        samples: float64[resamples], log10 of the minimum in every resample, NaN where one has none; x itself if not
            `log`.
        parabola: float64[3], the loss as a polynomial in log10 x, or x, highest power first, at the mean height of the
            seeds; None where there are too few points.
        log: whether the parabola is in log10 x.
    """

    params: float | None
    flops: float
    x: np.ndarray
    loss: np.ndarray
    best: Interval | None
    reason: str
    samples: np.ndarray
    parabola: np.ndarray | None = None
    log: bool = True

    def height(self, x: float) -> float:
        """The loss of the parabola at x (a number or an array)."""
        return np.polyval(self.parabola, np.log10(x) if self.log else x)


@dataclass(frozen=True)
class GuidelineFit:
    """log10 x_best = a log10 N + b / log10 C + c, fitted to the minima of slices.

    Attributes:
        a, b, c: the coefficients with their intervals.
        slices: all slices, those without a minimum too.
        used: how many had one and were fitted.
        scatter: root mean square of the minima about the law, in log10 x.
        mean: the geometric mean of the minima with its interval: the law that is a constant.
    """

    a: Interval
    b: Interval
    c: Interval
    slices: tuple[Slice, ...]
    used: int
    scatter: float
    mean: Interval

    def predict(self, params: float, flops: float) -> float:
        """The best x for N and C (numbers or arrays); outside of the slices it is extrapolated."""
        return 10.0 ** (self.a.value * np.log10(params) + self.b.value / np.log10(flops) + self.c.value)

    def forecast(self, params: float, flops: float) -> Interval:
        """`predict` with its interval, from the resamples of all slices at once; it widens outside of them."""
        used = [each for each in self.slices if each.best is not None]
        row_K = np.array([np.log10(params), 1 / np.log10(flops), 1.0])
        samples_R = _common_samples(used) @ (row_K @ np.linalg.pinv(_design_of(used)))
        return percentile_interval(float(self.predict(params, flops)), 10**samples_R, self.a.level)


def fit_growth_timing(
    records: Iterable[Mapping[str, Any]], resamples: int = 2000, level: float = LEVEL, seed: int = 0
) -> GuidelineFit:
    """The paper's guideline for when to grow, fitted to one's own runs.

    For every (N, C): a parabola in log10 d through the losses, one height per seed, and its minimum d. Then
    log10 d = a log10 N + b / log10 C + c by least squares over the minima. A minimum outside of the d that were tried,
    or one that more than 5 % of the resamples do not have, is not used. Runs that never grew (d = 0) have no place on
    a logarithmic axis and are left out. Intervals: within every slice the residuals, corrected for leverage, are
    resampled and everything is refitted; slices of one size draw the same residuals, since they are read off the same
    runs. Percentiles.

    Source: arXiv 2405.15319, section 4.2, equation 2 (method: figures 8 and 23 to 28). Range: the slices fitted.

    Args:
        records: one for every run and budget, with `params` (N of the grown model), `flops` (C), `grown_at` (d in
            tokens), `loss` (in nats per token) and `seed`.
        resamples: for the intervals.
        level: of the intervals.
        seed: of the resampling.

    Raises:
        InputError: a record lacks a key, a number is not finite, seeds differ between the points of a slice, or there
            are too few values, slices, sizes or budgets (says how many more).
    """
    return fit_guideline(slices_of(records, "grown_at", resamples, level, seed), level, "growth timing")


def fit_growth_factor(
    records: Iterable[Mapping[str, Any]], resamples: int = 2000, level: float = LEVEL, seed: int = 0
) -> GuidelineFit:
    """By how much to grow, fitted to one's own runs: as `fit_growth_timing`, over `factor` instead of `grown_at`.

    `mean` is the constant factor, which is what the paper recommends; a, b, c are those of its equation 50, which it
    advises against.

    Source: arXiv 2405.15319, section 4.2 and equation 50. Range: the slices fitted.
    """
    return fit_guideline(slices_of(records, "factor", resamples, level, seed), level, "growth factor")


def slices_of(
    records: Iterable[Mapping[str, Any]],
    key: str,
    resamples: int = 2000,
    level: float = LEVEL,
    seed: int = 0,
    log: bool = True,
) -> tuple[Slice, ...]:
    """Every (params, flops) of the records with the best `key`, in order of size and budget.

    The parabolas are in log10 of the key, or with `log` off in the key itself, such as a share.

    Raises:
        InputError: as `fit_growth_timing`, but for what concerns the law through the slices.
    """
    groups: dict[tuple[float, float], list[Mapping[str, Any]]] = {}
    for number, record in enumerate(records):
        _check_record(record, number, key)
        groups.setdefault((record["params"], record["flops"]), []).append(record)
    found = []
    for (params, flops), rows in sorted(groups.items()):
        rows = sorted((row for row in rows if row[key] > 0), key=lambda row: (row["seed"], row[key]))
        _check_seeds(rows, key, params, flops)
        columns = (np.array([row[name] for row in rows]) for name in (key, "loss", "seed"))
        rng = np.random.default_rng([seed, int(params)])
        found.append(slice_of(params, flops, *columns, rng, resamples, level, log))
    return tuple(found)


def slice_of(
    params: float | None,
    flops: float,
    x: np.ndarray,
    loss: np.ndarray,
    seeds: np.ndarray,
    rng: np.random.Generator,
    resamples: int = 2000,
    level: float = LEVEL,
    log: bool = True,
) -> Slice:
    """A parabola in log10 x with a height of its own for every seed, its minimum, and the minima of resamples.

    Source: Hoffmann et al. 2022, arXiv 2203.15556, approach 2; the interval is this package's.

    Args:
        params, flops: N and C of the slice.
        x, loss, seeds: [points], what was varied (positive), the losses, and whose seed it was.
        rng: of the resampling.
        resamples, level: of the interval.
        log: off, the parabola is in x itself.
    """
    check_level(level)
    if (missing := LEAST_VALUES - len(np.unique(x))) > 0:
        reason = f"{LEAST_VALUES - missing} values tried: a parabola with an interval needs {missing} more"
        return Slice(params, flops, x, loss, None, reason, np.full(resamples, np.nan), log=log)
    u = np.log10(x) if log else x
    middle = u.mean()
    heights_PK = (seeds[:, None] == np.unique(seeds)).astype(np.float64)
    design_PK = np.column_stack([heights_PK, u - middle, np.square(u - middle)])
    losses_RP = np.vstack([loss, _resampled(design_PK, loss, resamples, rng)])
    fitted_RK = losses_RP @ np.linalg.pinv(design_PK).T
    slope_R, bend_R = fitted_RK[:, -2:].T
    with np.errstate(divide="ignore", invalid="ignore"):
        lowest_R = np.where(bend_R > 0, middle - slope_R / (2 * bend_R), np.nan)
    best, samples = lowest_R[0], lowest_R[1:]
    reason = _problem(best, samples, u, x)
    interval = None
    if not reason:
        ends = best, samples[np.isfinite(samples)]
        interval = percentile_interval(*(10**end if log else end for end in ends), level)
    height, slope, bend = fitted_RK[0, :-2].mean(), slope_R[0], bend_R[0]
    parabola = np.array([bend, slope - 2 * bend * middle, height - slope * middle + bend * middle**2])
    return Slice(params, flops, x, loss, interval, reason, samples, parabola, log)


def fit_guideline(slices: Sequence[Slice], level: float = LEVEL, what: str = "the law") -> GuidelineFit:
    """log10 x = a log10 N + b / log10 C + c through the minima of slices, by least squares.

    Raises:
        InputError: fewer than four slices with a minimum, or they do not differ in N or in C (says how many more).
    """
    used = [each for each in slices if each.best is not None]
    _check_slices(used, slices, what)
    design_SK = _design_of(used)
    minima_S = np.log10([each.best.value for each in used])
    samples_RS = _common_samples(used)
    solve_SK = np.linalg.pinv(design_SK).T
    a, b, c = (
        percentile_interval(value, column, level)
        for value, column in zip(minima_S @ solve_SK, (samples_RS @ solve_SK).T, strict=True)
    )
    errors_S = minima_S - design_SK @ np.array([a.value, b.value, c.value])
    mean = mean_minimum(used, level)
    return GuidelineFit(a, b, c, tuple(slices), len(used), float(np.sqrt(np.mean(np.square(errors_S)))), mean)


def guideline_half_widths(
    params: np.ndarray, flops: np.ndarray, error: float, level: float = LEVEL
) -> tuple[float, float, float]:
    """How well a study would tell the law's coefficients before it is run: half of the intervals of a, b and c.

    The law is linear in them, so their covariance is error^2 (X^T X)^-1 whatever the losses turn out to be.

    Args:
        params, flops: float64[slices], N and C of slices that share no runs.
        error: standard error of the log10 x at which one slice has its minimum.
        level: of the intervals, of a normal distribution.
    """
    design_SK = _guideline_design(params, flops)
    spread_K = error * np.sqrt(np.diag(np.linalg.inv(design_SK.T @ design_SK)))
    a, b, c = float(norm.ppf(0.5 + level / 2)) * spread_K
    return float(a), float(b), float(c)


def mean_minimum(slices: Sequence[Slice], level: float = LEVEL) -> Interval:
    """The geometric mean of the minima of slices with its interval; each has one."""
    minima_S = np.log10([each.best.value for each in slices])
    return percentile_interval(10 ** minima_S.mean(), 10 ** _common_samples(slices).mean(-1), level)


def fit_compute_optimal(
    flops: np.ndarray, params: np.ndarray, loss: np.ndarray, nearest: int = 7, resamples: int = 2000, seed: int = 0
) -> tuple[Interval, tuple[Slice, ...]]:
    """a in N_opt ~ C^a: a parabola over log10 N in every slice of equal C, and a line through its minima.

    Source: Hoffmann et al. 2022, arXiv 2203.15556, approach 2. Range: the budgets fitted.

    Args:
        flops, params, loss: float64[points].
        nearest: so many points about the lowest of a slice are fitted: far from it a loss is no parabola.
        resamples, seed: of the interval.

    Returns:
        The exponent with its interval, and the slices.

    Raises:
        InputError: fewer than three slices with a minimum (says how many more).
    """
    flops, params, loss = (np.asarray(column, np.float64) for column in (flops, params, loss))
    rng, slices = np.random.default_rng(seed), []
    for budget in np.unique(flops):
        x, y = params[flops == budget], loss[flops == budget]
        x, y = (column[np.argsort(x)] for column in (x, y))
        first = int(np.clip(np.argmin(y) - nearest // 2, 0, max(len(x) - nearest, 0)))
        x, y = x[first : first + nearest], y[first : first + nearest]
        slices.append(slice_of(None, float(budget), x, y, np.zeros(len(x)), rng, resamples))
    used = [each for each in slices if each.best is not None]
    if (missing := 3 - len(used)) > 0:
        raise InputError(
            f"the compute-optimal exponent needs 3 slices with a minimum and has {len(used)}: {missing} more"
        )
    design_SK = np.column_stack([np.log10([each.flops for each in used]), np.ones(len(used))])
    solve_S = np.linalg.pinv(design_SK)[0]
    samples_RS = np.stack([each.samples for each in used], -1)
    samples_R = samples_RS[np.isfinite(samples_RS).all(-1)] @ solve_S
    return percentile_interval(np.log10([each.best.value for each in used]) @ solve_S, samples_R), tuple(slices)


def _check_record(record: Mapping[str, Any], number: int, key: str) -> None:
    for name in ("params", "flops", key, "loss", "seed"):
        if record.get(name) is None:
            raise InputError(f"record {number} has no {name!r}: each needs params, flops, {key}, loss and seed")
        low = None if name == "seed" else 0
        check_range(f"{name} of record {number}", record[name], low=low, low_allowed=name == key)


def _check_seeds(rows: list[Mapping[str, Any]], key: str, params: float, flops: float) -> None:
    """Raises InputError unless every seed is at every value once: a missing one would pull the parabola there."""
    have = [(row["seed"], row[key]) for row in rows]
    seeds, values = sorted({seed for seed, _ in have}), sorted({value for _, value in have})
    where = f"the slice of {params:.3g} parameters and {flops:.3g} FLOPs"
    if twice := [pair for pair in have if have.count(pair) > 1]:
        raise InputError(f"{where} has seed {twice[0][0]} twice at {key} {twice[0][1]:.3g}")
    if lacking := [(seed, value) for seed in seeds for value in values if (seed, value) not in have]:
        seed, value = lacking[0]
        raise InputError(f"{where} has no seed {seed} at {key} {value:.3g}: every value needs every seed")


def _check_slices(used: Sequence[Slice], slices: Sequence[Slice], what: str) -> None:
    lacking = {
        "slice": LEAST_SLICES - len(used),
        "size": 2 - distinct([each.params for each in used]),
        "budget": 2 - distinct([each.flops for each in used]),
    }
    missing = [f"{count} more {name}{'s' * (count > 1)}" for name, count in lacking.items() if count > 0]
    if not missing and np.linalg.matrix_rank(_design_of(used)) < 3:
        missing = ["1 more slice, of a size at two budgets"]
    if missing:
        why = next((f"; one of {len(slices)} has none: {each.reason}" for each in slices if each.best is None), "")
        raise InputError(f"{what} needs {', '.join(missing)} with a minimum inside of what was tried{why}")


def _common_samples(used: Sequence[Slice]) -> np.ndarray:
    """[resamples, slices]: log10 of the minima in the resamples in which every slice has one."""
    samples_RS = np.stack([each.samples for each in used], -1)
    return samples_RS[np.isfinite(samples_RS).all(-1)]


def _guideline_design(params: np.ndarray, flops: np.ndarray) -> np.ndarray:
    """[slices, 3]: log10 N, 1 / log10 C, 1."""
    size, budget = np.log10(params), np.log10(flops)
    return np.column_stack([size, 1 / budget, np.ones(len(size))])


def _design_of(slices: Sequence[Slice]) -> np.ndarray:
    """The design of slices that were measured."""
    return _guideline_design(*np.array([(each.params, each.flops) for each in slices], np.float64).T)


def _resampled(design_PK: np.ndarray, loss: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """[resamples, points]: the fitted losses with residuals drawn anew, each scaled up by its leverage."""
    hat_PP = design_PK @ np.linalg.pinv(design_PK)
    fitted = hat_PP @ loss
    errors = (loss - fitted) / np.sqrt(np.maximum(1 - np.diag(hat_PP), 1e-9))
    return fitted + rng.choice(errors - errors.mean(), (resamples, len(loss)))


def _problem(best: float, samples: np.ndarray, u: np.ndarray, x: np.ndarray) -> str:
    """Why a slice has no minimum that can be used, or nothing."""
    if np.isnan(best):
        return "the losses do not curve upwards: there is no minimum"
    if not u.min() <= best <= u.max():
        end, way, last = ("smallest", "smaller", x.min()) if best < u.min() else ("largest", "larger", x.max())
        return f"the lowest point lies beyond the {end} value tried, {last:.3g}: try {way} ones"
    without = float(np.mean(np.isnan(samples)))
    return f"{without:.0%} of the resamples have no minimum: more seeds or values" if without > FLAT else ""
