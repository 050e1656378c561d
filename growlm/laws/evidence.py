"""What growing was measured to save, over which baseline, and what that says of another size and budget."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from growlm.laws.multiplier import Family, Judgement, judge

NEAR = 4  # a measurement is near if its size is within this factor
FAR = 1000  # times outside of the compute measured: beyond, a measurement is taken to say nothing


@dataclass(frozen=True)
class Gain:
    """What a measurement says of one budget: speed-ups over training from scratch, lowest and highest.

    Attributes:
        low, high: FLOPs(scratch) / FLOPs(grown) - 1 at equal loss.
        what, source: was grown, and who measured it.
        baseline: what training from scratch was, since a weak baseline makes a gain large.
        how: whether the budget lies between those measured or beyond them, in words.
        inside: whether it lies between them or near by.
    """

    low: float
    high: float
    what: str
    source: str
    baseline: str
    how: str
    inside: bool

    @property
    def saved(self) -> tuple[float, float]:
        """The lowest and the highest compute saved, 1 - FLOPs(grown) / FLOPs(scratch)."""
        return 1 - 1 / (1 + self.low), 1 - 1 / (1 + self.high)


class Measured(Protocol):
    """Measurements over one baseline."""

    what: str
    source: str
    baseline: str

    @property
    def rows(self) -> tuple[tuple[float, float, float, float, str], ...]:
        """What was measured: speed-ups and budgets, the lowest and the highest of each, and a note."""
        ...

    def at(self, params: float, flops: float) -> Gain | None:
        """What they say of a model of N parameters at C FLOPs; None where that is FAR outside of what was measured."""
        ...


@dataclass(frozen=True)
class Evidence:
    """A measured speed-up at one size, lowest and highest, and where it is from."""

    params: float
    tokens: float
    low: float
    high: float
    note: str = ""

    @property
    def flops(self) -> float:
        """6 N D."""
        return 6 * self.params * self.tokens


@dataclass(frozen=True)
class Points:
    """Speed-ups at several sizes; of a size, those within NEAR times count, or the nearest."""

    what: str
    source: str
    baseline: str
    points: tuple[Evidence, ...]

    @property
    def rows(self) -> tuple[tuple[float, float, float, float, str], ...]:
        """One for every size."""
        return tuple((one.low, one.high, one.flops, one.flops, one.note) for one in self.points)

    def at(self, params: float, flops: float) -> Gain | None:
        """The lowest and the highest of the points near this size."""
        ordered = sorted(self.points, key=lambda one: abs(math.log(one.params / params)))
        near = [one for one in ordered if 1 / NEAR <= one.params / params <= NEAR]
        used = near or ordered[:1]
        budgets = [one.flops for one in used]
        if not min(budgets) / FAR <= flops <= max(budgets) * FAR:
            return None
        how, inside = _placed(flops, min(budgets), max(budgets))
        if not near:
            nearest = f"the nearest at {used[0].params:.2g}"
            how, inside = f"nothing was measured near {params:.2g} parameters, {nearest}; {how}", False
        low, high = min(one.low for one in used), max(one.high for one in used)
        return Gain(low, high, self.what, self.source, self.baseline, how, inside)


@dataclass(frozen=True)
class Ladder:
    """Two families of runs over compute: between their budgets a multiplier is interpolated, beyond models are asked.

    Attributes:
        what, source, baseline: as in `Gain`.
        grown, scratch: final losses over FLOPs.
    """

    what: str
    source: str
    baseline: str
    grown: Family
    scratch: Family

    @cached_property
    def judgement(self) -> Judgement:
        """The four models of both families."""
        return judge(self.grown, self.scratch)

    @property
    def rows(self) -> tuple[tuple[float, float, float, float, str], ...]:
        """One, of the whole range."""
        flops, gains = self.judgement.flops, self.judgement.multipliers - 1
        ends = (gains[0], gains[-1], flops[0], flops[-1], f"{len(flops)} budgets") if len(flops) else None
        return (tuple(ends),) if ends else ()

    def at(self, params: float, flops: float) -> Gain | None:
        """The multiplier at C, less 1; the size does not matter, since each budget had its own."""
        found = self.judgement
        if not len(found.flops) or not found.flops[0] / FAR <= flops <= found.flops[-1] * FAR:
            return None
        how, inside = _placed(flops, found.flops[0], found.flops[-1])
        if found.flops[0] <= flops <= found.flops[-1]:
            gain = float(np.interp(math.log(flops), np.log(found.flops), found.multipliers)) - 1
            return Gain(gain, gain, self.what, self.source, self.baseline, how, True)
        said = [(one.value - 1, name) for name, fit in found.supported() if (one := found.multiplier(fit, flops))]
        if not said:
            return None
        (low, less), (high, more) = min(said), max(said)
        how += f"; of the models that these runs support {less} says least, {more} most"
        return Gain(low, high, self.what, self.source, self.baseline, how, inside)


def _placed(flops: float, first: float, last: float) -> tuple[str, bool]:
    """Where a budget lies beside those measured, in words, and whether it is between them or near."""
    over = " to ".join(dict.fromkeys(f"{end:.2e}".replace("e+", "e") for end in (first, last))) + " FLOPs"
    if first <= flops <= last:
        return f"within what was measured, {over}", True
    times, side = (first / flops, "below") if flops < first else (flops / last, "above")
    if times <= NEAR:
        return f"near what was measured, {over}", True
    return f"EXTRAPOLATED, {times:.3g} times {side} what was measured, {over}", False


# Growth alone: a stack of layers with and without one growth by half in depth, each budget with its own rates, decayed
# to zero; FineWeb, Muon. FLOPs and validation losses, nats per token, of table fineweb_ladders.csv of arXiv 2609.19107.
_DEEP = (5.197356e17, 1.898823e18, 5.735252e18, 1.269738e19, 2.987236e19, 6.378079e19, 1.114294e20)
_DEEP_LOSS = (3.449959, 3.212122, 3.039412, 2.929162, 2.819387, 2.726474, 2.662482)
_GROWN = (5.251740e17, 1.910934e18, 5.758239e18, 1.273183e19, 2.992752e19, 6.386320e19, 1.115291e20)
_GROWN_LOSS = (3.434678, 3.196272, 3.023743, 2.913993, 2.801904, 2.707674, 2.642910)

TUNED = Ladder(
    "growth alone, in depth by half, late",
    "arXiv 2609.19107",
    "tuned at every size and decayed to zero; Muon, one seed",
    Family("deep_vanilla_grow", np.array(_GROWN), np.array(_GROWN_LOSS)),
    Family("deep_vanilla", np.array(_DEEP), np.array(_DEEP_LOSS)),
)
UNTUNED = Points(
    "G_stack by 4, early",
    "arXiv 2405.15319",
    "at a rate that was not tuned and is not decayed; AdamW, one seed",
    (
        Evidence(4.1e8, 7e11, 0.31, 0.53, "falling with tokens"),
        Evidence(1.1e9, 1e11, 0.49, 0.49),
        Evidence(3e9, 2.4e11, 0.49, 0.55),
        Evidence(7e9, 3e11, 0.41, 0.55),
    ),
)
# Intervals over seeds, over scratch: of the demo, and in experiments/records of direct_depth of operators_small and
# operators_small_modern, and of the ladder's grown.
OURS = Points(
    "G_stack by 4",
    "this project's own",
    "at a rate of its own, decayed to a tenth; AdamW, 3 seeds",
    (Evidence(4.35e5, 2.4e6, 0.06, 0.29), Evidence(1.17e5, 1.4e6, 0.13, 0.29, "both sides at the best of five rates")),
)
OUR_MUON = Points(
    "G_stack by 4",
    "this project's own, with Muon",
    "at a searched rate, decayed to zero; Muon, 3 seeds",
    (
        Evidence(1.17e5, 1.4e6, 0.07, 0.28, "a model of its average size does as well"),
        Evidence(1.64e5, 1.64e6, 0.01, 0.35, "a model of its average size does as well"),
        Evidence(3.56e5, 3.56e6, -0.09, 0.18, "a model of its average size does as well"),
        Evidence(6.23e5, 6.23e6, -0.33, 0.29, "both sides at rates carried from smaller sizes"),
    ),
)
PUBLISHED: tuple[Measured, ...] = (TUNED, UNTUNED, OURS, OUR_MUON)
