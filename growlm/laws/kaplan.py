"""The laws of Kaplan et al. 2020, arXiv 2001.08361, with the critical batch, and their fits to one's own runs.

N counts parameters without embeddings, S is updates, B tokens an update, C FLOPs, L nats per token. 'Unraveling the
Mystery of Scaling Laws', arXiv 2403.06563, finds the forms to hold up to 33B parameters, and the constants to depend on
the data, the tokenizer and the context: fit them before use.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from growlm.errors import InputError
from growlm.laws.intervals import LEVEL, Interval, distinct, percentile_interval, positive_columns

PF_DAY = 8.64e19  # FLOPs
SPARE_POINTS = 3  # beside the coefficients: points that may contradict them
_STARTS = 40  # of a fit, drawn at random about the middle of the data


@dataclass(frozen=True)
class KaplanLoss:
    """L(N, D) = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D, of runs that are stopped when D stops helping.

    Source: arXiv 2001.08361, equation 1.5. It has no irreducible loss.
    """

    alpha_N: float
    N_c: float
    alpha_D: float
    D_c: float

    def loss(self, params: float, tokens: float) -> float:
        """The loss of N parameters on D tokens (numbers or arrays)."""
        return ((self.N_c / params) ** (self.alpha_N / self.alpha_D) + self.D_c / tokens) ** self.alpha_D


@dataclass(frozen=True)
class KaplanCurve:
    """L(N, S_min) = (N_c / N)^alpha_N + (S_c / S_min)^alpha_S, and a critical batch B_crit(L) = B_star L^(-1/alpha_B).

    S_min is the fewest updates to a loss, by very large batches; at B tokens an update it takes S_min (1 + B_crit / B)
    of them, and the compute C = 6 N B S is C_min (1 + B / B_crit), which is least for small batches. At the critical
    batch both are twice their least.

    Source: arXiv 2001.08361, equations 1.4, 1.6, 5.2 to 5.5; the loss at any batch as in arXiv 2403.06563.
    """

    alpha_N: float
    N_c: float
    alpha_S: float
    S_c: float
    alpha_B: float
    B_star: float

    def critical_batch(self, loss: float) -> float:
        """B_crit(L): tokens an update (numbers or arrays)."""
        return self.B_star * np.power(loss, -1 / self.alpha_B)

    def loss(self, params: float, min_steps: float) -> float:
        """L(N, S_min) (numbers or arrays)."""
        return (self.N_c / params) ** self.alpha_N + (self.S_c / min_steps) ** self.alpha_S

    def min_steps(self, params: float, loss: float) -> float:
        """S_min of N parameters to a loss; infinite where they never reach it (numbers or arrays)."""
        left = np.maximum(loss - (self.N_c / params) ** self.alpha_N, 0)
        with np.errstate(divide="ignore"):
            return self.S_c * np.power(left, -1 / self.alpha_S)

    def steps(self, params: float, loss: float, batch: float) -> float:
        """Updates of `batch` tokens to a loss: S_min (1 + B_crit(L) / B) (numbers or arrays)."""
        return self.min_steps(params, loss) * (1 + self.critical_batch(loss) / batch)

    def loss_at(self, params: float, steps: float, batch: float) -> float:
        """The loss after `steps` updates of `batch` tokens: where `steps` of it is as many (numbers).

        Source: the trajectory of the loss of arXiv 2403.06563.
        """
        from scipy.optimize import brentq

        floor = (self.N_c / params) ** self.alpha_N

        def excess(log: float) -> float:
            return float(np.log(self.steps(params, floor + np.exp(log), batch) / steps))

        return float(floor + np.exp(brentq(excess, -50, 10)))

    def compute_optimal(self, loss: float) -> tuple[float, float, float]:
        """The least C_min to a loss, FLOPs, with its N and S_min.

        There alpha_N (N_c / N)^alpha_N = alpha_S (S_c / S_min)^alpha_S.

        Source: arXiv 2001.08361, appendix B: models stop alpha_N / alpha_S, some 10 %, above their converged loss.
        """
        of_size = loss / (1 + self.alpha_N / self.alpha_S)
        params = self.N_c * of_size ** (-1 / self.alpha_N)
        steps = self.min_steps(params, loss)
        return 6 * params * self.critical_batch(loss) * steps, params, steps

    @property
    def compute_exponent(self) -> float:
        """alpha_C of L(C_min) ~ C_min^-alpha_C: 1 / (1 / alpha_S + 1 / alpha_B + 1 / alpha_N), equation 1.8."""
        return 1 / (1 / self.alpha_S + 1 / self.alpha_B + 1 / self.alpha_N)


# The published constants: tables 2 and 3, equations 1.3 and 1.4. WebText2, GPT-2's tokens, context 1024, N up to 1.5B.
KAPLAN_LOSS = KaplanLoss(alpha_N=0.076, N_c=6.4e13, alpha_D=0.103, D_c=1.8e13)
KAPLAN_CURVE = KaplanCurve(alpha_N=0.077, N_c=6.5e13, alpha_S=0.76, S_c=2.1e3, alpha_B=0.21, B_star=2.1e8)
_COMPUTE = (0.050, 3.1e8 * PF_DAY)  # alpha_C and C_c of the losses that were measured, equation 1.3


def kaplan_compute_loss(min_flops: float) -> float:
    """L(C_min) = (C_c / C_min)^0.050 with C_c = 3.1e8 PF-days: the loss of the best size at the least compute.

    Source: arXiv 2001.08361, equation 1.3. Range: 1e-8 to 10 PF-days. By its authors' own laws it crosses what the data
    can give near 1e4 PF-days, so it cannot hold beyond; Hoffmann et al. trace its exponent to schedules that were not
    fitted to the length of a run (arXiv 2203.15556).

    Args:
        min_flops: C_min in FLOPs, C / (1 + B / B_crit) (a number or an array).
    """
    exponent, scale = _COMPUTE
    return np.power(scale / np.asarray(min_flops, np.float64), exponent)


@dataclass(frozen=True)
class KaplanFit:
    """A fitted law with bootstrap intervals of its coefficients, by name.

    Attributes:
        law: KaplanLoss or KaplanCurve.
        intervals: of its coefficients.
        residual: root mean square of log(predicted / measured loss).
        points: how many were fitted.
    """

    law: KaplanLoss | KaplanCurve
    intervals: dict[str, Interval]
    residual: float
    points: int


def fit_kaplan_loss(params: np.ndarray, tokens: np.ndarray, loss: np.ndarray, **how) -> KaplanFit:
    """L(N, D) of Kaplan et al., by least squares in log L.

    Args:
        params, tokens, loss: float64[points], positive; N as the law is to count it.
        how: `resamples`, `level`, `seed`, `progress`, `runs` as of `fit_chinchilla`.

    Raises:
        InputError: too few points, sizes or token budgets for four coefficients (says how many more).
    """
    columns = positive_columns(params=params, tokens=tokens, loss=loss)
    _check(columns, KaplanLoss, {"sizes": (columns[0], 3), "token budgets": (columns[1], 3)})

    def predict(law: KaplanLoss, rows: tuple) -> np.ndarray:
        return law.loss(rows[0], rows[1])

    return _fit(KaplanLoss, predict, columns, {"N": columns[0], "D": columns[1]}, **how)


def fit_kaplan_curve(params: np.ndarray, steps: np.ndarray, batch: np.ndarray, loss: np.ndarray, **how) -> KaplanFit:
    """L(N, S_min) with the critical batch, all six coefficients at once, by least squares in log L.

    Each point's S_min is S / (1 + B_crit(L) / B) at its measured loss. arXiv 2403.06563 fits N_c from converged runs,
    then S_c, then B_star; here every measured loss bears on all. Losses along a run may be given, after warm-up:
    at a constant learning rate, as the law knows no decay.

    Source: arXiv 2001.08361, section 5. Range: what was fitted.

    Args:
        params, steps, batch, loss: float64[points]: N, S, tokens an update, nats per token; positive.
        how: `resamples`, `level`, `seed`, `progress`, `runs` as of `fit_chinchilla`.

    Raises:
        InputError: too few points, sizes, lengths or batches for six coefficients (says how many more).
    """
    columns = positive_columns(params=params, steps=steps, batch=batch, loss=loss)
    needs = {"sizes": (columns[0], 3), "lengths": (columns[1], 3), "batches": (columns[2], 3)}
    _check(columns, KaplanCurve, needs)

    def predict(law: KaplanCurve, rows: tuple) -> np.ndarray:
        return law.loss(rows[0], rows[1] / (1 + law.critical_batch(rows[3]) / rows[2]))

    # B_star is fitted as the critical batch at the middle loss: at a loss of 1 it would be far outside of the data.
    scales = {"N": columns[0], "S": columns[1], "B": columns[2]}
    return _fit(KaplanCurve, predict, columns, scales, **how)


def measure_critical_batch(batch: np.ndarray, steps: np.ndarray) -> tuple[float, float]:
    """(S_min, B_crit) at one loss, of runs that reached it with different batches: S = S_min (1 + B_crit / B).

    Source: McCandlish et al. 2018, arXiv 1812.06162: (S / S_min - 1) (E / E_min - 1) = 1 with E = B S.

    Args:
        batch, steps: float64[runs]; least squares of relative errors in S.

    Raises:
        InputError: fewer than three batches, or steps that do not fall with the batch.
    """
    batch, steps = positive_columns(batch=batch, steps=steps)
    if (have := distinct(batch)) < 3:
        raise InputError(f"the critical batch needs 3 batches and has {have}: {3 - have} more")
    (small, slope), *_ = np.linalg.lstsq(np.column_stack([1 / steps, 1 / (batch * steps)]), np.ones(len(steps)))
    if small <= 0 or slope <= 0:
        raise InputError("steps must fall as the batch grows, got some that do not: smaller batches are needed")
    return float(small), float(slope / small)


def _check(columns: tuple[np.ndarray, ...], law: type, needs: dict[str, tuple[np.ndarray, int]]) -> None:
    need, have = len(law.__annotations__) + SPARE_POINTS, len(columns[0])
    counts = {"points": (have, need)} | {what: (distinct(values), least) for what, (values, least) in needs.items()}
    for what, (have, need) in counts.items():
        if have < need:
            name = "L(N, D)" if law is KaplanLoss else "L(N, S) with the critical batch"
            raise InputError(f"{name} needs {need} {what} and has {have}: {need - have} more")


def _fit(
    law: type,
    predict: Callable,
    columns: tuple[np.ndarray, ...],
    scales: dict[str, np.ndarray],
    resamples: int = 200,
    level: float = LEVEL,
    seed: int = 0,
    progress: Callable = iter,
    runs: np.ndarray | None = None,
) -> KaplanFit:
    """Least squares in log L from random starts, and refits of resampled runs from the optimum.

    The vector has, for every scale x, log alpha and the logarithm of the term (x_c / x)^alpha at the middle of x: these
    hardly depend on each other, where alpha and x_c do.
    """
    from scipy.optimize import least_squares

    middle = {name: float(np.exp(np.mean(np.log(values)))) for name, values in scales.items()}
    level_loss = float(np.exp(np.mean(np.log(columns[-1]))))

    def law_of(vector: np.ndarray) -> KaplanLoss | KaplanCurve:
        found = {}
        for name, (log_alpha, log_term) in zip(middle, vector.reshape(-1, 2), strict=True):
            alpha = np.exp(log_alpha)
            if name == "B":  # the critical batch at the middle loss, over the middle batch
                found |= {"alpha_B": alpha, "B_star": middle[name] * np.exp(log_term) * level_loss ** (1 / alpha)}
            else:
                found |= {f"alpha_{name}": alpha, f"{name}_c": middle[name] * np.exp(log_term / alpha)}
        return law(**{name: np.float64(value) for name, value in found.items()})  # 0 and infinity are no errors in them

    def errors(vector: np.ndarray, rows: tuple) -> np.ndarray:
        with np.errstate(all="ignore"):
            found = np.log(predict(law_of(vector), rows)) - np.log(rows[-1])
        return np.nan_to_num(found, nan=1e3, posinf=1e3, neginf=-1e3)

    rng, best = np.random.default_rng(seed), None
    for _ in range(_STARTS):
        exponents, terms = rng.uniform(np.log(0.03), 0, len(scales)), rng.uniform(-2, np.log(level_loss), len(scales))
        found = least_squares(
            errors, np.column_stack([exponents, terms]).ravel(), args=(columns,), x_scale="jac", max_nfev=300
        )
        best = found if best is None or found.cost < best.cost else best
    which = np.arange(len(columns[0])) if runs is None else np.unique(runs, return_inverse=True)[1]
    of_run = [np.flatnonzero(which == run) for run in range(which.max() + 1)]
    samples = []
    for _ in progress(range(resamples)):
        chosen = np.concatenate([of_run[run] for run in rng.integers(len(of_run), size=len(of_run))])
        rows = tuple(column[chosen] for column in columns)
        samples.append(law_of(least_squares(errors, best.x, args=(rows,), x_scale="jac", max_nfev=100).x))
    fitted = law(**{name: float(value) for name, value in vars(law_of(best.x)).items()})
    intervals = {
        name: percentile_interval(getattr(fitted, name), np.array([getattr(one, name) for one in samples]), level)
        for name in law.__annotations__
    }
    residual = float(np.sqrt(2 * best.cost / len(columns[0])))
    return KaplanFit(fitted, intervals, residual, len(columns[0]))
