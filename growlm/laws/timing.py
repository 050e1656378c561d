"""When to grow as a share of the tokens: the valley of the loss at every budget, and the answers of others on one axis.

A share is that of a run's tokens which are seen before growth: at 1 the small model never grows. All runs of a budget
cost the same, so the later a run grows, the more tokens it sees.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from growlm.errors import InputError
from growlm.laws.intervals import LEVEL, Interval, aicc, t_interval
from growlm.laws.isoflop import Slice, slices_of
from growlm.laws.published import GROWTH_FACTOR, TIMING, law_at

NEAR_BEST = 0.002  # nats; two to three times the noise of one cell of arXiv 2609.19107
LEAST_VALLEYS = 4  # two coefficients of the law, a scatter, and a valley that may contradict it


@dataclass(frozen=True)
class Valley:
    """The losses at one size and budget over the share of the tokens before growth.

    Attributes:
        slice: the parabola in the share, and its minimum where it has one between the shares that were tried.
        small_tokens: tokens that the budget pays for if the small model never grows.
        cost: what a token costs after growth over what it costs before.
        gain: mean loss of the runs that never grew less the parabola's minimum, nats; None without either.
        flat: the share to either side of the minimum within which less than NEAR_BEST is lost; None without one.
    """

    slice: Slice
    small_tokens: float
    cost: float
    gain: float | None
    flat: float | None

    @property
    def tokens_per_param(self) -> float:
        """Tokens of the small model, if it never grows, over its parameters."""
        return self.small_tokens / self.slice.params


@dataclass(frozen=True)
class SharesFit:
    """The valleys of one family, with a constant share and with the law of arXiv 2609.19107 through their minima.

    That law makes the tokens per parameter of the best grown run, D / N = a D_small / N + b, a line in those of the
    small model that never grows at that budget.

    Attributes:
        family: its name.
        valleys: of all sizes and budgets.
        used: those with a minimum.
        mean: the constant share with Student's interval over the valleys.
        spread: root mean square of the best shares about it.
        a, b: of the law; None with fewer than four minima.
        error: root mean square of the best shares about the law; None where a is.
        ahead: how far the law is ahead of the constant in AICc, of shares; None where a is.
    """

    family: str
    valleys: tuple[Valley, ...]
    used: tuple[Valley, ...]
    mean: Interval
    spread: float
    a: float | None = None
    b: float | None = None
    error: float | None = None
    ahead: float | None = None

    def lost(self) -> np.ndarray:
        """What the constant share loses to each valley's own, nats."""
        return np.array(
            [one.slice.height(self.mean.value) - one.slice.height(one.slice.best.value) for one in self.used]
        )


def fit_shares(family: str, records: Iterable[Mapping[str, Any]], **how: Any) -> SharesFit:
    """The valleys of a family's cells, and how the best share changes with size and budget.

    Source: arXiv 2609.19107 for cells of this form and for the law. Its cells that never grow are on the parabolas, as
    growth at the very end. Range: the cells fitted.

    Args:
        family: its name.
        records: one for every cell, with `params` (N before growth), `flops` (the budget), `tokens` (of the whole run),
            `share`, `loss` (nats per token) and `seed`.
        how: `resamples`, `level` and `seed` of the intervals.

    Raises:
        InputError: as `slices_of`; a share that is not above 0 and at most 1, or no valley with a minimum.
    """
    records = list(records)
    for number, record in enumerate(records):
        if not 0 < record["share"] <= 1:
            raise InputError(f"share of cell {number} of {family} must be > 0 and <= 1, got {record['share']:g}")
    found = tuple(_valley(one, records) for one in slices_of(records, "share", log=False, **how))
    used = tuple(one for one in found if one.slice.best is not None)
    if not used:
        raise InputError(f"{family} has no budget with a best share: {found[0].slice.reason}")
    best = np.array([one.slice.best.value for one in used])
    mean = t_interval(best, how.get("level", LEVEL))
    constant = SharesFit(family, found, used, mean, float(best.std()))
    return _with_law(constant, best) if len(used) >= LEAST_VALLEYS else constant


def _valley(one: Slice, records: Sequence[Mapping[str, Any]]) -> Valley:
    rows = [row for row in records if (row["params"], row["flops"]) == (one.params, one.flops)]
    share, tokens, loss = (np.array([row[key] for row in rows], float) for key in ("share", "tokens", "loss"))
    # At equal compute 1 / tokens is a line in the share, from cost / small_tokens at 0 to 1 / small_tokens at 1.
    slope, start = np.polyfit(share, 1 / tokens, 1) if len(set(share)) > 1 else (0.0, 1 / tokens.mean())
    small = 1 / (start + slope)
    gain = flat = None
    if one.best is not None:
        low, high = np.clip((one.best.low, one.best.high), 0, 1)
        one = replace(one, best=replace(one.best, low=float(low), high=float(high)))
        flat = float(np.sqrt(NEAR_BEST / one.parabola[0]))
        if (share == 1).any():
            gain = float(loss[share == 1].mean() - one.height(one.best.value))
    return Valley(one, float(small), float(start * small), gain, flat)


def _with_law(fit: SharesFit, best: np.ndarray) -> SharesFit:
    """The fit with the law through the best shares."""
    small, cost = np.array([[one.tokens_per_param, one.cost] for one in fit.used]).T
    a, b = np.polyfit(small, small / (best + (1 - best) * cost), 1)
    errors = share_of_law(small, cost, float(a), float(b)) - best
    points, squares = len(best), float(np.sum(errors**2))
    ahead = aicc(points * fit.spread**2, points, 1) - aicc(squares, points, 2)
    return replace(fit, a=float(a), b=float(b), error=float(np.sqrt(squares / points)), ahead=ahead)


def share_of_law(small: float, cost: float, a: float, b: float) -> float:
    """The best share by the law of arXiv 2609.19107: 1 - (x / (a x + b) - 1) / (cost - 1), x tokens per parameter.

    Args:
        small: x, tokens per parameter of the small model that never grows (a number or an array).
        cost: of a token after growth over one before.
        a, b: of the law. Refitted to its cells: .8827 and .102 for copied cores, .9019 and .216 for tied ones.
    """
    return 1 - (small / (a * small + b) - 1) / (cost - 1)


@dataclass(frozen=True)
class Answer:
    """A published answer to when to grow; arrays are float64[budgets].

    Attributes:
        name, source: what grows, and the paper.
        flops: budgets; none where the answer is one share for all.
        share: of the tokens before growth.
        cost: of a token after growth over one before; None where it is not known.
        low, high: ends of the intervals of the shares, where they were fitted here.
    """

    name: str
    source: str
    flops: np.ndarray
    share: np.ndarray
    cost: np.ndarray | None = None
    low: np.ndarray | None = None
    high: np.ndarray | None = None

    @property
    def flops_share(self) -> np.ndarray | None:
        """The share of the FLOPs that is spent before growth."""
        return None if self.cost is None else self.share / (self.share + (1 - self.share) * self.cost)


# Of the ladders of arXiv 2609.19107, from its training scripts: FLOPs and the share, untied and tied, and the cost of a
# token with four cores over one with two, without attention. Its largest run is left out here.
_LADDER_COST = (1.2972, 1.3997, 1.4659, 1.4271, 1.4692, 1.4999, 1.4648)
_UNTIED = (
    (6.991e17, 2.542e18, 7.664e18, 1.696e19, 3.987e19, 8.510e19, 1.486e20),
    (0.60, 0.71, 0.75, 0.73, 0.76, 0.77, 0.75),
)
_TIED = (
    (5.453e17, 1.871e18, 5.382e18, 1.206e19, 2.749e19, 5.727e19, 1.018e20),
    (0.75, 0.82, 0.86, 0.85, 0.86, 0.88, 0.87),
)
# Parameters and budgets, first and last, of the slices that equation 2 of arXiv 2405.15319 was fitted to: figure 8.
_SLICES = ((4.1e8, 8e19, 2.2e20), (1.1e9, 2e20, 7e20), (3e9, 4e20, 1.2e21))


def published_answers() -> tuple[Answer, ...]:
    """What others say, over the budgets that they say it of.

    - G_stack: equation 2 of arXiv 2405.15319, at the sizes and budgets that it was fitted to.
    - Q Labs: the shares of the ladders of arXiv 2609.19107; its cores are copied (untied) or run again (tied).
    - Zero or one layer: 0.8 of the tokens, arXiv 2511.04981, before a decay from 0.9 on.
    - SPARKLING: half of the tokens, arXiv 2602.02472, growth in width.
    """
    cost, none = np.array(_LADDER_COST), np.array([])
    ladders = [
        Answer(f"Q Labs, {name}", "arXiv 2609.19107", np.array(budgets), np.array(shares), cost)
        for name, (budgets, shares) in (("untied", _UNTIED), ("tied", _TIED))
    ]
    guidelines = [
        Answer(
            f"G_stack, {params / 1e9:g}B",
            "arXiv 2405.15319",
            flops := np.geomspace(first, last, 10),
            guideline_share(params, flops),
            np.full(len(flops), float(GROWTH_FACTOR)),
        )
        for params, first, last in _SLICES
    ]
    return (
        *guidelines,
        *ladders,
        Answer("zero or one layer", "arXiv 2511.04981", none, np.array([0.8])),
        Answer("SPARKLING", "arXiv 2602.02472", none, np.array([0.5])),
    )


def guideline_share(params: float, flops: float, factor: float = GROWTH_FACTOR) -> float:
    """The share of a run's tokens that equation 2 of arXiv 2405.15319 puts before growth (numbers or arrays).

    The small model has 1 / factor of the parameters. Above 1 the law asks for more than there is: it explodes at small
    budgets.
    """
    before = law_at(TIMING, params, flops)
    return before / (before + flops / (6 * params) - before / factor)
