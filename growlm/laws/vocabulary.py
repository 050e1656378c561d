"""How large a vocabulary should be: three laws of 'Scaling Laws with Vocabulary', Tao et al. 2024, arXiv 2407.13623.

Two counts of parameters go into them: those outside of the vocabulary, N_nv, and those of one vocabulary matrix, N_v =
tokens x width. All three say that N_v grows more slowly than N_nv, about as N_nv^0.83.
"""

from dataclasses import dataclass

import numpy as np

from growlm.errors import check_positive

# What they were fitted on, without the vocabulary; one size beyond, 2.87B, was predicted and tried.
VOCABULARY_PARAMS = (3.3e7, 1.13e9)
# Approach 1: the runs lowest at their FLOPs have N_nv = exp(-2.48) C^0.5, the exponent fixed, N_v = exp(-1.59) C^0.42.
_ISOFLOPS_SIZE = -2.4846510161625193
_ISOFLOPS = (-1.589031299255507, 0.4163622634135234)
# Approach 2: N_v of the smallest model as measured, and how it grows.
_DERIVATIVE = (3145728.0, 3.3e7, 0.8353974035228025)
# Approach 3: L = A1/N_nv^a1 + A2/N_v^a2 + B/D^b - E, of the loss less that of a unigram model; in millions of
# parameters and billions of tokens. Its vocabulary follows from A2, a2, B and b alone.
_A2, _a2, _B, _b = 0.19584238398665638, 0.6707374679896795, 2.1241123120064955, 0.44660634152009615


@dataclass(frozen=True)
class Vocabulary:
    """The best number of tokens in a vocabulary by three approaches, and what any of them says at least and at most.

    Attributes:
        isoflops: from the lowest losses at equal FLOPs.
        derivative: from where the FLOPs of a text are least, scaled up from the smallest model.
        loss: from the minimum of a fitted loss at these FLOPs.
    """

    isoflops: float
    derivative: float
    loss: float

    @property
    def low(self) -> float:
        """The smallest of the three."""
        return min(self.isoflops, self.derivative, self.loss)

    @property
    def high(self) -> float:
        """The largest of the three."""
        return max(self.isoflops, self.derivative, self.loss)


def optimal_vocabulary(params: float, embed: int, flops: float | None = None) -> Vocabulary:
    """The vocabulary with which a model of this size and budget reaches the lowest loss, by three approaches.

    The first two take the budget to be the one that is best for the size, C = (N_nv / 0.0834)^2; only the third heeds
    `flops`: less text asks for a smaller vocabulary.

    Source: arXiv 2407.13623, section 4; the coefficients in full digits are those of its code. Range: N_nv from 33M to
    1.13B, vocabularies of 4K to 96K tokens by BPE, one language. The loss is per character and less a unigram model's,
    so that it does not depend on the tokenizer.

    Args:
        params: N_nv, parameters without embedding and head.
        embed: width of the model, which turns N_v into tokens.
        flops: C of the training, 6 N D with N = N_nv + N_v; the best for the size if None.

    Raises:
        InputError: a number that is not positive.
    """
    best = vocabulary_flops(params) if flops is None else flops
    for name, value in (("params", params), ("embed", embed), ("flops", best)):
        check_positive(name, value)
    start, power = _ISOFLOPS
    measured, size, exponent = _DERIVATIVE
    own = np.exp(start) * vocabulary_flops(params) ** power
    counts = own, measured * (params / size) ** exponent, _least_loss(params, best)
    return Vocabulary(*(float(count / embed) for count in counts))


def vocabulary_flops(params: float) -> float:
    """The FLOPs at which N_nv parameters are best, by approach 1 of arXiv 2407.13623: some 1.3e21 at 3B."""
    return float((params / np.exp(_ISOFLOPS_SIZE)) ** 2)


def vocabulary_caveats(params: float) -> list[str]:
    """Reasons not to trust `optimal_vocabulary` here, a line each."""
    low, high = VOCABULARY_PARAMS
    if low <= params <= high:
        return []
    side = "below" if params < low else "above"
    return [
        f"vocabulary: {params:.3g} parameters without it are {side} the range, {low:.2g} to {high:.3g}, that its laws "
        "were fitted on"
    ]


def _least_loss(params: float, flops: float) -> float:
    """N_v of the least fitted loss at `flops`: there a2 A2 / N_v^(a2 + 1) = b B (6/C)^b / (N_nv + N_v)^(1 - b)."""
    from scipy.optimize import brentq

    millions, budget = params / 1e6, flops / 1e15

    def excess(log: float) -> float:
        slope = (_a2 + 1) * log - (1 - _b) * np.log(millions + np.exp(log))
        return slope - np.log(_a2 * _A2 / (_b * _B)) + _b * np.log(6 / budget)

    return 1e6 * np.exp(brentq(excess, -60, 60))  # it rises in log N_v, since a2 + 1 > 1 - b
