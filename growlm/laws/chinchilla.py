"""The loss as a function of parameters and tokens, L(N, D) = E + A / N^alpha + B / D^beta, and its fit."""

import itertools
import operator
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from growlm.errors import InputError
from growlm.laws.intervals import LEVEL, Interval, distinct, percentile_interval, positive_columns

# Where the Huber loss of log-losses turns from squares to absolute values.
DELTA = 1e-3
# The starts, in (log A, log B, log E, alpha, beta): those of Hoffmann et al.
_STARTS = np.array(
    list(
        itertools.product(
            np.arange(0, 30, 5),
            np.arange(0, 30, 5),
            np.arange(-1, 1.5, 0.5),
            np.arange(0, 2.5, 0.5),
            np.arange(0, 2.5, 0.5),
        )
    ),
    np.float64,
)
_DESCENTS = 6  # of the best starts, followed down by L-BFGS
LEAST_POINTS = 8  # five coefficients, and points that may contradict them


@dataclass(frozen=True)
class Chinchilla:
    """L(N, D) = E + A / N^alpha + B / D^beta, in nats per token. N counts all parameters.

    Source: Hoffmann et al. 2022, arXiv 2203.15556, equation 10.
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, params: float, tokens: float) -> float:
        """The loss of a model of `params` parameters after `tokens` tokens (numbers or arrays)."""
        return self.E + self.A * np.power(params, -self.alpha) + self.B * np.power(tokens, -self.beta)

    def tokens_to(self, params: float, loss: float) -> float | None:
        """The tokens that a model of `params` parameters needs to reach a loss; None where it never does."""
        left = loss - self.E - self.A * params**-self.alpha
        return (self.B / left) ** (1 / self.beta) if left > 0 else None

    def compute_optimal_exponent(self) -> float:
        """a in N_opt ~ C^a, for C = 6 N D: beta / (alpha + beta)."""
        return self.beta / (self.alpha + self.beta)


# The published fits. Both are of the runs of Hoffmann et al. on MassiveText with its tokenizer: another text or
# tokenizer has another E, and other absolute losses.
# HOFFMANN: arXiv 2203.15556, approach 3. REANALYSIS: Besiroglu et al. 2024, arXiv 2404.10102, who found that the former
# does not fit its own data; standard errors E 0.03, A 124.58, B 1293.23, alpha 0.02, beta 0.02.
HOFFMANN = Chinchilla(1.69, 406.4, 410.7, 0.34, 0.28)
REANALYSIS = Chinchilla(1.8172, 482.01, 2085.43, 0.3478, 0.3658)
# As read off the figure by the re-analysis: 245 runs, 1.4e18 to 1.3e22 FLOPs.
CHINCHILLA_PARAMS = (5.7e7, 1.62e10)
CHINCHILLA_TOKENS = (2.5e8, 3.2e11)


@dataclass(frozen=True)
class ChinchillaFit:
    """A fit with the interval of every coefficient.

    Attributes:
        law: the fitted law.
        E, A, B, alpha, beta: its coefficients with bootstrap intervals.
        exponent: a in N_opt ~ C^a.
        residual: root mean square of log(predicted / measured loss).
        points: how many were fitted.
    """

    law: Chinchilla
    E: Interval
    A: Interval
    B: Interval
    alpha: Interval
    beta: Interval
    exponent: Interval
    residual: float
    points: int


def fit_chinchilla(
    params: np.ndarray,
    tokens: np.ndarray,
    loss: np.ndarray,
    resamples: int = 200,
    level: float = LEVEL,
    seed: int = 0,
    progress: Callable = iter,
) -> ChinchillaFit:
    """Approach 3 of Hoffmann et al.: the sum of the Huber losses (delta 1e-3) of log-losses, from many starts.

    The prediction is taken in the log-sum-exp form, so that no coefficient needs a bound. All 4500 starts of the paper
    are tried at once, and L-BFGS goes down from the best 6. The sum is minimised, not the mean: with the mean the
    original fit stopped early (Besiroglu et al.). Intervals: points are resampled with replacement and refitted from
    the optimum; percentiles.

    Source: arXiv 2203.15556, equations 2 and 3 of appendix D.3; 2404.10102. Range: what was fitted; extrapolation in D
    is uncertain, since beta and E trade off. Runs at fewer than about 0.4 tokens a parameter do not follow the law
    (2404.10102 leaves five out).

    Args:
        params, tokens: float64[points]; N counted as the law is to count it.
        loss: float64[points], final losses in nats per token, positive.
        resamples: bootstrap refits, some 30 ms each at 240 points.
        level: of the intervals.
        seed: of the resampling.
        progress: wraps the loop over resamples, such as tqdm.

    Raises:
        InputError: too few points or too few sizes for five coefficients (says how many more), values not positive.
    """
    data = _checked(params, tokens, loss)
    best = _descend(data, _promising(data))
    rng, count = np.random.default_rng(seed), len(data[0])
    samples = []
    for _ in progress(range(resamples)):
        chosen = rng.integers(count, size=count)
        samples.append(_descend(tuple(column[chosen] for column in data), [best]))
    law = _law(best)
    laws = [_law(sample) for sample in samples]

    def interval(read: Callable[[Chinchilla], float]) -> Interval:
        return percentile_interval(read(law), np.array([read(sample) for sample in laws]), level)

    coefficients = {name: interval(operator.attrgetter(name)) for name in Chinchilla.__annotations__}
    exponent = interval(Chinchilla.compute_optimal_exponent)
    residual = float(np.sqrt(np.mean(np.square(_residuals(best, data)))))
    return ChinchillaFit(law, **coefficients, exponent=exponent, residual=residual, points=count)


def _checked(params: np.ndarray, tokens: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The logarithms of the three. Raises InputError where they cannot determine five coefficients."""
    columns = positive_columns(params=params, tokens=tokens, loss=loss)
    for what, have, need in (
        ("points", len(columns[0]), LEAST_POINTS),
        ("sizes", distinct(columns[0]), 3),
        ("token budgets", distinct(columns[1]), 3),
    ):
        if have < need:
            raise InputError(f"L(N, D) needs {need} {what} and has {have}: {need - have} more")
    return tuple(np.log(column) for column in columns)


def _terms(start: np.ndarray, data: tuple) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The logarithms of the three terms of the law."""
    log_A, log_B, log_E, alpha, beta = np.moveaxis(start, -1, 0)[..., None]
    return log_A - alpha * data[0], log_B - beta * data[1], log_E + 0 * data[0]


def _residuals(start: np.ndarray, data: tuple) -> np.ndarray:
    """log predicted - log measured, [points] or [starts, points]."""
    size, tokens, floor = _terms(start, data)
    return np.logaddexp(np.logaddexp(size, tokens), floor) - data[2]


def _promising(data: tuple) -> np.ndarray:
    """The starts at which the objective is lowest."""
    from scipy.special import huber

    cost = np.array([huber(DELTA, _residuals(part, data)).sum(-1) for part in np.array_split(_STARTS, 10)], object)
    return _STARTS[np.argsort(np.concatenate(cost).astype(np.float64))[:_DESCENTS]]


def _objective(start: np.ndarray, data: tuple) -> tuple[float, np.ndarray]:
    """The sum of Huber losses over delta, and its gradient."""
    from scipy.special import huber

    terms = np.stack(_terms(start, data))
    predicted = np.logaddexp.reduce(terms)
    residual = predicted - data[2]
    share = np.exp(terms - predicted)
    slope = np.clip(residual, -DELTA, DELTA) * share
    sums = slope.sum(-1)
    gradient = np.array([*sums, -slope[0] @ data[0], -slope[1] @ data[1]])
    return float(huber(DELTA, residual).sum() / DELTA), gradient / DELTA


def _descend(data: tuple, starts: np.ndarray) -> np.ndarray:
    """The lowest minimum that L-BFGS finds from the starts.

    It goes down in (log A - alpha mean log N, log B - beta mean log D, ...), where coefficients and exponents hardly
    depend on each other: in the coefficients themselves the valley is so narrow that it takes ten times as long.
    """
    from scipy.optimize import minimize

    size, tokens = data[0].mean(), data[1].mean()
    centre = np.eye(5)
    centre[0, 3], centre[1, 4] = -size, -tokens
    centred = data[0] - size, data[1] - tokens, data[2]
    options = {"maxiter": 5000, "maxfun": 20_000, "ftol": 1e-11, "gtol": 1e-7}
    found = [
        minimize(_objective, centre @ start, (centred,), "L-BFGS-B", jac=True, options=options) for start in starts
    ]
    return np.linalg.solve(centre, min(found, key=lambda result: result.fun).x)


def _law(start: np.ndarray) -> Chinchilla:
    A, B, E = np.exp(start[:3])
    return Chinchilla(float(E), float(A), float(B), float(start[3]), float(start[4]))
