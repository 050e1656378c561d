"""The gain of a grown run along its tokens, and how it goes on: figure 6 of arXiv 2405.15319."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from growlm.errors import InputError
from growlm.laws.intervals import LEVEL, Interval, t_interval
from growlm.laws.speedup import Curve, cost_to_reach, loss_at

FITTED_FROM = 0.5  # of the tokens, ours: before, the gain of the growth itself wears off faster than by a logarithm
LEAST_POINTS = 4  # two coefficients, and two points that may contradict them


@dataclass(frozen=True)
class GainCurve:
    """What one grown run gained over one from scratch at every loss that was measured of it; float64[points].

    Attributes:
        tokens, flops: of the grown run, all stages.
        speedup: FLOPs(scratch) / FLOPs(grown) - 1 at equal loss; NaN where the other has not reached that loss.
        gap: loss of the other less that of the grown run at equal FLOPs, nats; above 0 growing gained.
    """

    tokens: np.ndarray
    flops: np.ndarray
    speedup: np.ndarray
    gap: np.ndarray


@dataclass(frozen=True)
class GainFit:
    """gap = a + b log10 D over the tokens D, by least squares, each seed by itself.

    Attributes:
        a, b: float64[seeds], nats.
        first, last: the range of the tokens that was fitted.
        level: of the intervals.
    """

    a: np.ndarray
    b: np.ndarray
    first: float
    last: float
    level: float = LEVEL

    @property
    def slope(self) -> Interval:
        """b, nats for ten times the tokens; Student's interval over seeds."""
        return t_interval(self.b, self.level)

    def gap(self, tokens: float) -> Interval:
        """The gain at D tokens with Student's interval over seeds; beyond `last` it is extrapolated."""
        return t_interval(self.a + self.b * np.log10(tokens), self.level)


def gain_curve(grown: Curve, scratch: Curve, after: float = 0.0) -> GainCurve:
    """The gain at every measured loss of a grown run, where the other was measured too; never extrapolated.

    Source: arXiv 2405.15319, figure 6 and equation 48.

    Args:
        grown, scratch: the runs; the grown one has tokens.
        after: FLOPs of the grown run from which on points count, those of its last growth.

    Raises:
        InputError: the grown run has no tokens.
    """
    if grown.tokens is None:
        raise InputError("the gain over tokens must have tokens in every record of the grown run, got none")
    rows = []
    for tokens, flops, loss in zip(grown.tokens, grown.flops, grown.loss, strict=True):
        if flops > after and (other := loss_at(scratch, flops)) is not None:
            cost = cost_to_reach(scratch, loss)
            rows.append((tokens, flops, np.nan if cost is None else cost / flops - 1, other - loss))
    return GainCurve(*np.array(rows, np.float64).reshape(-1, 4).T)


def fit_gain(seeds: Sequence[GainCurve], level: float = LEVEL) -> GainFit | None:
    """A logarithm through the gain of every seed, from FITTED_FROM of its tokens on.

    The points of a curve are not independent, seeds are: the intervals are over seeds, and with one there is none.

    Source: the form is that of arXiv 2405.15319, figure 6b, whose coefficients and range are not published. Range: the
    tokens fitted.

    Returns:
        None where a seed has fewer than four points there, or without seeds.
    """
    if not seeds:
        return None
    kept = [curve.tokens >= FITTED_FROM * curve.tokens[-1] if len(curve.tokens) else [] for curve in seeds]
    if min(map(np.sum, kept)) < LEAST_POINTS:
        return None
    fits = [np.polyfit(np.log10(one.tokens[at]), one.gap[at], 1) for one, at in zip(seeds, kept, strict=True)]
    b, a = np.array(fits).T
    ends = [one.tokens[at][[0, -1]] for one, at in zip(seeds, kept, strict=True)]
    return GainFit(a, b, float(min(first for first, _ in ends)), float(max(last for _, last in ends)), level)
