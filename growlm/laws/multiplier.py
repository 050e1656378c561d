"""Families of final losses over compute, and how the gain of one over another changes: four models, judged by AICc.

A family is runs made alike at several budgets, each trained to its end. All models are L = E + A C^-g. They differ in
which coefficients a family has of its own, and so in what the compute multiplier of one over another does: under a
constant gain it stays about as it is, under a steeper exponent it is a power of compute, under a lower floor it has no
bound.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from growlm.errors import InputError
from growlm.laws.intervals import LEVEL, Interval, aicc, check_level, distinct, positive_columns
from growlm.laws.speedup import Curve, cost_to_reach

# What every family has of its own beside A, by model: "g" the exponent, "E" the floor.
MODELS = {"constant": "", "exponent": "g", "floor": "E", "both": "gE"}
LEAST_BUDGETS = 4  # of a family: three coefficients of its own, and a point that may contradict them
# A model this far behind the best in AICc has "considerably less" support: Burnham & Anderson, Model Selection and
# Multimodel Inference (2002), section 2.6, which has 4 to 7.
BEHIND = 4.0
_FLOORS = np.linspace(0.05, 0.95, 19)  # starts of the fit, as shares of the lowest loss
_HUBER = 1.345  # in standard deviations: 95 % efficient where errors are normal (Huber 1981)
_MAD = 0.6744897501960817  # median absolute deviation of a normal error, in standard deviations


@dataclass(frozen=True)
class Family:
    """Final losses (nats per token) of runs made alike, over their FLOPs; float64[runs], by rising FLOPs.

    Raises:
        InputError: too few budgets (says how many more), values that are not positive, or a loss that does not fall.
    """

    name: str
    flops: np.ndarray
    loss: np.ndarray

    def __post_init__(self) -> None:
        """Put the runs in order and check them."""
        flops, loss = positive_columns(flops=self.flops, loss=self.loss)
        if (have := distinct(flops)) < LEAST_BUDGETS:
            lack = f"{LEAST_BUDGETS - have} more"
            raise InputError(f"{self.name} needs {LEAST_BUDGETS} budgets, 5 % apart at least, and has {have}: {lack}")
        order = np.argsort(flops, kind="stable")
        object.__setattr__(self, "flops", flops[order])
        object.__setattr__(self, "loss", loss[order])
        if np.polyfit(np.log(self.flops), self.loss, 1)[0] >= 0:
            raise InputError(f"the losses of {self.name} must fall with FLOPs, got none that do")

    def curve(self) -> Curve:
        """The mean loss at every budget."""
        flops, which = np.unique(self.flops, return_inverse=True)
        return Curve(flops, np.bincount(which, self.loss) / np.bincount(which))

    def trimmed(self) -> "Family | None":
        """The family without its smallest budget; None where too few are left."""
        kept = self.flops > self.flops[0] * 1.05
        enough = distinct(self.flops[kept]) >= LEAST_BUDGETS
        return Family(self.name, self.flops[kept], self.loss[kept]) if enough else None


@dataclass(frozen=True)
class FamilyFit:
    """One model fitted to families together, by least squares in the loss.

    Attributes:
        model: its name in MODELS.
        places: where the coefficients (log A, g, E) of a family are in the vector.
        vector: all coefficients, with A in units of `unit` FLOPs.
        covariance: of the vector, from the scatter about the curves.
        unit: FLOPs in the middle of the budgets.
        aicc: lower is better, and only differences between models of the same points mean anything.
        residual: root mean square of predicted - measured loss, nats.
        points: how many were fitted.
        level: of the intervals.
    """

    model: str
    places: dict[str, tuple[int, int, int]]
    vector: np.ndarray
    covariance: np.ndarray
    unit: float
    aicc: float
    residual: float
    points: int
    level: float

    def exponent(self, family: str) -> Interval:
        """The exponent g of a family."""
        return self._interval(self.vector[self.places[family][1]], self._one(self.places[family][1]))

    def floor(self, family: str) -> Interval:
        """The floor E of a family, nats; the fit does not bound it."""
        return self._interval(self.vector[self.places[family][2]], self._one(self.places[family][2]))

    def multiplier(self, family: str, baseline: str, flops: float) -> Interval | None:
        """How much more compute the baseline needs for the loss which it has at `flops`: C / C of the other family.

        The interval is Student's in the logarithm, linear in the errors of the coefficients. It says how well the runs
        fix a model of this form; not whether the form is right.

        Returns:
            None where the family never reaches that loss: its floor is above it.
        """
        (a, g, E), (a_b, g_b, E_b) = self.places[family], self.places[baseline]
        x = np.log(flops / self.unit)
        power = np.exp(self.vector[a_b] - self.vector[g_b] * x)
        above = self.vector[E_b] + power - self.vector[E]
        if above <= 0:
            return None
        reached = (self.vector[a] - np.log(above)) / self.vector[g]
        slope = 1 / (above * self.vector[g])
        gradient = np.zeros(len(self.vector))
        # Two families may share a coefficient: the places then repeat, and their parts add up.
        parts = -1 / self.vector[g], reached / self.vector[g], -slope, power * slope, -x * power * slope, slope
        np.add.at(gradient, [a, g, E, a_b, g_b, E_b], parts)
        log = self._interval(x - reached, gradient)
        return Interval(*(float(np.exp(end)) for end in (log.value, log.low, log.high)), self.level)

    def _one(self, place: int) -> np.ndarray:
        return np.eye(len(self.vector))[place]

    def _interval(self, value: float, gradient: np.ndarray) -> Interval:
        from scipy.special import stdtrit

        free = self.points - len(self.vector)
        half = stdtrit(free, (1 + self.level) / 2) * np.sqrt(gradient @ self.covariance @ gradient)
        return Interval(float(value), float(value - half), float(value + half), self.level)


def fit_families(families: Sequence[Family], model: str, level: float = LEVEL) -> FamilyFit:
    """One of MODELS, fitted to families together: least squares of the loss, from many floors.

    Source: the forms are the power law with a floor of Hoffmann et al. 2022; arXiv 2609.19107 fits the exponent under
    one floor. Range: what was fitted; the four part beyond it.

    Args:
        families: two or more.
        model: its name.
        level: of the intervals.

    Raises:
        InputError: fewer than two families.
    """
    from scipy.optimize import least_squares

    check_level(level)
    if len(families) < 2:
        raise InputError(f"families must be two or more, got {len(families)}")
    unit = np.exp(np.mean(np.concatenate([np.log(family.flops) for family in families])))
    x, y = np.log(np.concatenate([f.flops for f in families]) / unit), np.concatenate([f.loss for f in families])
    which = np.repeat(np.arange(len(families)), [len(family.flops) for family in families])
    count = len(families)
    own = {kind: count if kind == "a" or kind in MODELS[model] else 1 for kind in "agE"}
    kinds = "".join(kind * number for kind, number in own.items())
    places = np.array([[kinds.index(kind) + n * (own[kind] > 1) for kind in "agE"] for n in range(count)])
    a, g, E = places[which].T

    def errors(vector: np.ndarray) -> np.ndarray:
        return vector[E] + np.exp(vector[a] - vector[g] * x) - y

    best = None
    for floor in y.min() * _FLOORS:
        slope, height = np.polyfit(x, np.log(y - floor), 1)
        start = [{"a": height, "g": -slope, "E": floor}[kind] for kind in kinds]
        found = least_squares(errors, start, method="lm", xtol=1e-14, ftol=1e-14)
        best = found if best is None or found.cost < best.cost else best
    n, k = len(y), len(kinds)
    # Losses are known to the rounding of float32; a closer fit is chance, and an exact one has no logarithm.
    squares = max(2 * best.cost, n * np.square(np.finfo(np.float32).eps * y.mean()))
    covariance = np.linalg.pinv(best.jac.T @ best.jac) * squares / (n - k)
    named = {family.name: tuple(int(place) for place in row) for family, row in zip(families, places, strict=True)}
    return FamilyFit(
        model, named, best.x, covariance, float(unit), aicc(squares, n, k), float(np.sqrt(squares / n)), n, level
    )


def measured_multipliers(family: Family, baseline: Family) -> tuple[np.ndarray, np.ndarray]:
    """The baseline's budgets whose loss the family reached inside what was measured, and the multipliers there.

    A multiplier is the baseline's FLOPs over those at which the family has the same loss, on a straight line in (log
    FLOPs, loss) between neighbouring budgets.

    Source: the measure of arXiv 2609.19107.
    """
    curve, own = family.curve(), baseline.curve()
    found = []
    for flops, loss in zip(own.flops, own.loss, strict=True):
        if curve.loss[0] >= loss and (cost := cost_to_reach(curve, loss)) is not None:
            found.append((flops, flops / cost))
    budgets, multipliers = np.array(found).reshape(-1, 2).T
    return budgets, multipliers


@dataclass(frozen=True)
class Judgement:
    """What the four models say of one family over a baseline.

    Attributes:
        family, baseline: the two.
        fits: by model, of all runs.
        trimmed: by model, without the smallest budget of either; empty where too few are left.
        flops, multipliers: as `measured_multipliers`.
    """

    family: Family
    baseline: Family
    fits: dict[str, FamilyFit]
    trimmed: dict[str, FamilyFit]
    flops: np.ndarray
    multipliers: np.ndarray

    def supported(self) -> list[tuple[str, FamilyFit]]:
        """Fits less than BEHIND the best of the same runs, with and without the smallest; these are named so."""
        found = []
        for fits, name in ((self.fits, "{}"), (self.trimmed, "{}, without the smallest")):
            least = min((fit.aicc for fit in fits.values()), default=0)
            found += [(name.format(model), fit) for model, fit in fits.items() if fit.aicc - least < BEHIND]
        return found

    def gains(self) -> bool:
        """Whether the multiplier is above 1, its interval too, at both ends of the measured range, in all supported."""
        ends = self.flops[[0, -1]] if len(self.flops) else []
        found = [self.multiplier(fit, flops) for _, fit in self.supported() for flops in ends]
        return bool(found) and all(one is not None and one.low > 1 for one in found) and min(self.multipliers) > 1

    def changes(self) -> bool:
        """Whether the gain is shown to change with compute: a constant one is not supported."""
        return all(fit.model != "constant" for _, fit in self.supported())

    def multiplier(self, fit: FamilyFit, flops: float) -> Interval | None:
        """The multiplier that a fit says."""
        return fit.multiplier(self.family.name, self.baseline.name, flops)


def judge(family: Family, baseline: Family, level: float = LEVEL) -> Judgement:
    """All four models of a family and its baseline, with all runs and without the smallest, which often lie off."""
    pair = [baseline, family]
    rest = [one.trimmed() for one in pair]
    fits = {model: fit_families(pair, model, level) for model in MODELS}
    trimmed = {model: fit_families(rest, model, level) for model in MODELS} if None not in rest else {}
    return Judgement(family, baseline, fits, trimmed, *measured_multipliers(family, baseline))


def exponents_above_floor(
    families: Sequence[Family], baseline: Family, level: float = LEVEL
) -> tuple[float, dict[str, Interval]]:
    """The floor of the baseline alone, and the exponent of every family above that floor, as arXiv 2609.19107 has them.

    The floor is of a Huber fit of the losses, whose scale is that of the least-squares residuals; the exponents are
    slopes of log(L - E) over log C, with Student's intervals. The floor counts as known, and as everybody's: a family
    with a lower one shows a steeper exponent.

    Raises:
        InputError: a loss at or below the baseline's floor.
    """
    from scipy.optimize import least_squares
    from scipy.special import stdtrit

    check_level(level)
    unit = np.exp(np.mean(np.log(baseline.flops)))

    def errors(vector: np.ndarray) -> np.ndarray:
        return vector[2] + np.exp(vector[0] - vector[1] * np.log(baseline.flops / unit)) - baseline.loss

    starts = []
    for floor in baseline.loss.min() * _FLOORS:
        slope, height = np.polyfit(np.log(baseline.flops / unit), np.log(baseline.loss - floor), 1)
        starts.append((height, -slope, floor))
    plain = min((least_squares(errors, start, method="lm") for start in starts), key=lambda fit: fit.cost)
    deviation = np.median(np.abs(plain.fun - np.median(plain.fun))) / _MAD
    fit = least_squares(errors, plain.x, loss="huber", f_scale=max(_HUBER * deviation, 1e-6), xtol=1e-12, ftol=1e-12)
    floor, exponents = float(fit.x[2]), {}
    for family in families:
        if family.loss.min() <= floor:
            lowest = f"{family.loss.min():.4f} of {family.name}"
            raise InputError(f"losses must be above the floor {floor:.4f} of {baseline.name}, got {lowest}")
        x, y = np.log(family.flops / unit), np.log(family.loss - floor)
        (slope, height), free = np.polyfit(x, y, 1), len(x) - 2
        deviation = np.sqrt(np.sum((y - height - slope * x) ** 2) / free / np.sum((x - x.mean()) ** 2))
        half = stdtrit(free, (1 + level) / 2) * deviation
        exponents[family.name] = Interval(-slope, float(-slope - half), float(-slope + half), level)
    return floor, exponents
