"""Rules that say when to grow, judged at the evaluations of a stage."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from growlm.errors import InputError, check_count, check_name, check_positive, check_range, is_number, must_be, unknown


@dataclasses.dataclass(frozen=True)
class Curve:
    """The evaluations of a stage until now, in order.

    Attributes:
      flops: float64[evaluations], 6 N D since the run began.
      loss: float64[evaluations], validation loss in nats a token.
    """

    flops: np.ndarray
    loss: np.ndarray


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a rule has measured: the stage ends where `value` is below `limit`."""

    value: float
    limit: float


Rule = Callable[..., Measured | None]


def loss(curve: Curve, *, below: float) -> Measured | None:
    """The validation loss is below a number of nats a token."""
    check_positive("below", below)
    return Measured(float(curve.loss[-1]), below) if len(curve.loss) else None


def plateau(curve: Curve, *, improvement: float, evaluations: int = 3) -> Measured | None:
    """The validation loss has fallen by less than `improvement` nats a token over the last `evaluations`."""
    check_positive("improvement", improvement)
    check_count("evaluations", evaluations, low=1)
    if len(curve.loss) <= evaluations:
        return None
    return Measured(float(curve.loss[-1 - evaluations] - curve.loss[-1]), improvement)


def slope(
    curve: Curve,
    *,
    threshold: float | None = None,
    law: Mapping[str, float] | None = None,
    window: int = 5,
) -> Measured | None:
    """The loss falls more slowly over compute than the grown model's would: staged training (arXiv 2203.06211, sec. 4).

    The slope d log L / d log C is that of a power law through the last evaluations. It must have been steeper than
    expected before: it is shallow in a warm-up, and a growth may raise the loss first. One of two says what is
    expected:

    Args:
      curve: the stage's.
      threshold: a slope d log L / d log C; published for a doubling of GPT-2's depth -0.0575, of its width -0.0475, of
        both -0.03.
      law: {"a": ..., "b": ..., "floor": ...} of the grown model from scratch, L = floor + a C^b. Slopes dL / dC are
        compared at equal loss, where a growth that keeps the function goes on.
      window: how many evaluations the power law goes through.
    """
    check_count("window", window, low=2)
    if (threshold is None) == (law is None):
        raise must_be("slope", "given one of threshold and law", "none" if law is None else "threshold and law")
    if threshold is not None:
        _check_negative("threshold", threshold)
    expected = None if law is None else _of_law(law)
    if len(curve.loss) <= window:
        return None
    slopes, levels = power_laws(curve, window)
    if expected is None:
        values, limits = -slopes, np.full(len(slopes), -threshold)
    else:
        values = -slopes * levels / curve.flops[window - 1 :]
        limits = np.array([expected(float(level)) for level in levels])
    fell_faster = np.any(values[:-1] >= limits[:-1])
    return Measured(float(values[-1]), float(limits[-1])) if fell_faster else None


def _of_law(law: Mapping[str, float]) -> Callable[[float], float]:
    """-dL / dC of a law at a loss, in nats a FLOP; 0 at losses that it does not reach."""
    if not isinstance(law, Mapping) or not {"a", "b"} <= law.keys() <= {"a", "b", "floor"}:
        raise must_be("law", "a mapping of a, b and perhaps floor", law)
    a, b, floor = law["a"], law["b"], law.get("floor", 0.0)
    check_positive("law.a", a)
    _check_negative("law.b", b)
    if floor:
        check_positive("law.floor", floor)

    def falls(level: float) -> float:
        excess = level - floor
        with np.errstate(over="ignore"):  # so little is left that the compute to it is infinite
            return float(-b * excess / np.float64(excess / a) ** (1 / b)) if excess > 0 else 0.0

    return falls


def power_laws(curve: Curve, window: int) -> tuple[np.ndarray, np.ndarray]:
    """The power law through every `window` evaluations: d log L / d log C, and its loss at the last of them."""
    x, y = (np.lib.stride_tricks.sliding_window_view(np.log(of), window) for of in (curve.flops, curve.loss))
    x_mean, y_mean = x.mean(axis=1, keepdims=True), y.mean(axis=1, keepdims=True)
    slopes = np.sum((x - x_mean) * (y - y_mean), axis=1) / np.sum(np.square(x - x_mean), axis=1)
    return slopes, np.exp(y_mean[:, 0] + slopes * (x[:, -1] - x_mean[:, 0]))


def _check_negative(name: str, value: object) -> None:
    if not is_number(value) or not -math.inf < value < 0:
        raise must_be(name, "a number below 0", value)


# One row a rule: (curve, options) -> Measured, or None where it is too early to say. A rule checks its options first,
# and is tried on an empty curve before anything is trained.
RULES: dict[str, Rule] = {"slope": slope, "loss": loss, "plateau": plateau}


@dataclasses.dataclass(frozen=True)
class GrowWhen:
    """When a stage ends and the next one grows it, if not after its tokens.

    Attributes:
      rule: a name in `growlm.training.criteria.RULES`: "slope", "loss" or "plateau".
      options: of the rule.
      min_tokens: tokens of the stage before which it does not end.
    """

    rule: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    min_tokens: int = 0

    def __post_init__(self):
        check_name("grow_when.rule", self.rule, RULES)
        check_range("grow_when.min_tokens", self.min_tokens, low=0)
        parameters = list(inspect.signature(RULES[self.rule]).parameters.values())[1:]
        names = [one.name for one in parameters]
        if extra := sorted(self.options.keys() - set(names)):
            raise unknown(f"option of {self.rule}", extra[0], names)
        if missing := [one.name for one in parameters if one.default is one.empty and one.name not in self.options]:
            raise InputError(f"grow_when.options must have {missing[0]!r} for {self.rule}, got none")

    def check(self) -> None:
        """Raises InputError for options that are not what the rule takes."""
        self.measure(Curve(np.zeros(0), np.zeros(0)))

    def measure(self, curve: Curve) -> Measured | None:
        """What the rule measures on a curve."""
        try:
            return RULES[self.rule](curve, **self.options)
        except InputError as error:
            raise InputError(f"grow_when.{error}") from None
