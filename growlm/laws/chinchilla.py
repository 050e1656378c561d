"""The loss as a function of parameters and tokens, L(N, D) = E + A / N^alpha + B / D^beta, and its fit."""

import itertools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from growlm.errors import InputError, check_name, check_range
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
SPARE_POINTS = 3  # beside the coefficients that are fitted: points that may contradict them


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
# MUENNIGHOFF: Muennighoff et al. 2023, arXiv 2305.16264, on C4, alpha = beta; arXiv 2410.11840 borrows its A and alpha.
REANALYSIS = Chinchilla(1.8172, 482.01, 2085.43, 0.3478, 0.3658)
MUENNIGHOFF = Chinchilla(1.87, 521.0, 1488.0, 0.353, 0.353)
PUBLISHED = {"hoffmann": HOFFMANN, "reanalysis": REANALYSIS, "muennighoff": MUENNIGHOFF}
# As read off the figure by the re-analysis: 245 runs, 1.4e18 to 1.3e22 FLOPs.
CHINCHILLA_PARAMS = (5.7e7, 1.62e10)
CHINCHILLA_TOKENS = (2.5e8, 3.2e11)


@dataclass(frozen=True)
class ChinchillaFit:
    """A fit with the interval of every coefficient.

    Attributes:
        law: the fitted law.
        E, A, B, alpha, beta: its coefficients with bootstrap intervals; those that were borrowed have none.
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
    borrowed: Mapping[str, float] | None = None,
    runs: np.ndarray | None = None,
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
        borrowed: coefficients by name that are taken and not fitted, such as A and alpha of MUENNIGHOFF: with both, one
            size is enough (arXiv 2410.11840, section 5).
        runs: [points], which run a loss is of, where several are measured along one: runs are resampled whole, since
            losses of one run do not err independently.

    Raises:
        InputError: too few points or too few sizes for the coefficients (says how many more), values not positive.
    """
    data, known = _checked(params, tokens, loss, borrowed or {})
    best = _descend(data, _promising(data, known), known)
    rng = np.random.default_rng(seed)
    which = np.arange(len(data[0])) if runs is None else np.unique(runs, return_inverse=True)[1]
    of_run = [np.flatnonzero(which == run) for run in range(which.max() + 1)]
    samples = []
    for _ in progress(range(resamples)):
        chosen = np.concatenate([of_run[run] for run in rng.integers(len(of_run), size=len(of_run))])
        samples.append(_descend(tuple(column[chosen] for column in data), [best], known))
    law = _law(best)
    laws = [_law(sample) for sample in samples]

    def interval(read: Callable[[Chinchilla], float]) -> Interval:
        return percentile_interval(read(law), np.array([read(sample) for sample in laws]), level)

    coefficients = {name: interval(operator.attrgetter(name)) for name in Chinchilla.__annotations__}
    coefficients |= {name: Interval(value, level=level) for name, value in (borrowed or {}).items()}
    exponent = interval(Chinchilla.compute_optimal_exponent)
    residual = float(np.sqrt(np.mean(np.square(_residuals(best, data)))))
    return ChinchillaFit(law, **coefficients, exponent=exponent, residual=residual, points=len(data[0]))


def left_out_error(
    params: np.ndarray, tokens: np.ndarray, loss: np.ndarray, borrowed: Mapping[str, float] | None = None
) -> float:
    """How well the law predicts the largest size from the others: the mean of |predicted - measured| / measured.

    It is taken over the last 70 % of the largest size's tokens: its points with at least 30 % of the most.

    Source: arXiv 2410.11840, section 3.2. Range: it is of one size, and depends on how far that is from the others.

    Raises:
        InputError: as `fit_chinchilla`, of the points without the largest size.
    """
    params, tokens, loss = (np.asarray(column, np.float64) for column in (params, tokens, loss))
    largest = params > params.max() / 1.05
    data, known = _checked(params[~largest], tokens[~largest], loss[~largest], borrowed or {})
    law = _law(_descend(data, _promising(data, known), known))
    target = largest & (tokens >= 0.3 * tokens[largest].max())
    return float(np.mean(np.abs(law.loss(params[target], tokens[target]) / loss[target] - 1)))


_NAMES = ("A", "B", "E", "alpha", "beta")  # as in the vector, where the first three are logarithms


def _checked(
    params: np.ndarray, tokens: np.ndarray, loss: np.ndarray, borrowed: Mapping[str, float]
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """The logarithms of the three columns, and the vector of coefficients, NaN where they are fitted.

    Raises:
        InputError: they cannot determine the coefficients, or one that is borrowed is none or not positive.
    """
    columns = positive_columns(params=params, tokens=tokens, loss=loss)
    for name, value in borrowed.items():
        check_name("borrowed coefficient", name, _NAMES)
        check_range(f"borrowed {name}", value, low=0, low_allowed=False)
    known = np.array([borrowed.get(name, np.nan) for name in _NAMES])
    known[:3] = np.log(known[:3])
    free = np.isnan(known)
    if not free.any():
        raise InputError("at most four coefficients of L(N, D) may be borrowed, got all five")
    for what, have, need in (
        ("points", len(columns[0]), free.sum() + SPARE_POINTS),
        ("sizes", distinct(columns[0]), 1 + free[[0, 3]].sum()),
        ("token budgets", distinct(columns[1]), 1 + free[[1, 4]].sum()),
    ):
        if have < need:
            raise InputError(
                f"L(N, D) needs {need} {what[: -1 if need == 1 else None]} and has {have}: {need - have} more"
            )
    return tuple(np.log(column) for column in columns), known


def _terms(start: np.ndarray, data: tuple) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The logarithms of the three terms of the law."""
    log_A, log_B, log_E, alpha, beta = np.moveaxis(start, -1, 0)[..., None]
    return log_A - alpha * data[0], log_B - beta * data[1], log_E + 0 * data[0]


def _residuals(start: np.ndarray, data: tuple) -> np.ndarray:
    """log predicted - log measured, [points] or [starts, points]."""
    size, tokens, floor = _terms(start, data)
    return np.logaddexp(np.logaddexp(size, tokens), floor) - data[2]


def _promising(data: tuple, known: np.ndarray) -> np.ndarray:
    """The starts at which the objective is lowest."""
    from scipy.special import huber

    starts = np.unique(np.where(np.isnan(known), _STARTS, known), axis=0)
    cost = [huber(DELTA, _residuals(part, data)).sum(-1) for part in np.array_split(starts, 10)]
    return starts[np.argsort(np.concatenate(cost), kind="stable")[:_DESCENTS]]


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


def _descend(data: tuple, starts: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The lowest minimum that L-BFGS finds from the starts, over the coefficients that are not known.

    It goes down in (log A - alpha mean log N, log B - beta mean log D, ...), where coefficients and exponents hardly
    depend on each other: in the coefficients themselves the valley is so narrow that it takes ten times as long.
    """
    from scipy.optimize import minimize

    size, tokens = data[0].mean(), data[1].mean()
    centre = np.eye(5)
    centre[0, 3], centre[1, 4] = -size, -tokens
    centred = data[0] - size, data[1] - tokens, data[2]
    free = np.isnan(known)
    moves = np.eye(5)  # of the vector, for a step in each free coordinate
    moves[0, 3], moves[1, 4] = size * free[0], tokens * free[1]
    moves, fixed = moves[:, free], np.where(free, 0, known)

    def objective(step: np.ndarray) -> tuple[float, np.ndarray]:
        cost, gradient = _objective(centre @ (fixed + moves @ step), centred)
        return cost, gradient @ centre @ moves

    options = {"maxiter": 5000, "maxfun": 20_000, "ftol": 1e-11, "gtol": 1e-7}
    steps = [np.linalg.lstsq(moves, start - fixed)[0] for start in starts]
    found = [minimize(objective, step, method="L-BFGS-B", jac=True, options=options) for step in steps]
    return fixed + moves @ min(found, key=lambda result: result.fun).x


def _law(start: np.ndarray) -> Chinchilla:
    A, B, E = np.exp(start[:3])
    return Chinchilla(float(E), float(A), float(B), float(start[3]), float(start[4]))
