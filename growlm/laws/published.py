"""Published laws as plain functions, each with its source and the range it was fitted on.

When to grow and by how much (the paper, arXiv 2405.15319), learning rate and batch (Step Law), and what growth has to
beat or what limits it. A law that is asked outside of its range warns (RangeWarning).
"""

from collections.abc import Iterator, Sequence

import numpy as np

from growlm.errors import InputError
from growlm.laws.chinchilla import Chinchilla
from growlm.laws.intervals import warn

# Equation 2: log10 d = a log10 N + b / log10 C + c.
TIMING = (0.88, 163.27, -5.74)
# Equation 50: log10 g = a log10 N + b / log10 C + c. Its authors advise against it.
FACTOR = (1.01, -29.88, -7.36)

# The runs that both were fitted on: targets of 410M, 1.1B and 3B, budgets from the first slice of the smallest to
# the last of the largest (figures 8 and 23 to 28).
TIMING_PARAMS = (4.1e8, 3e9)
TIMING_FLOPS = (8e19, 1.2e21)

# By how much to grow: 4, at any size and budget (section 4.2). The evidence: at 1.1B (24 layers) factors of 2, 4, 8 and
# 24 were tried, at 3B (32 layers) 4, 8, 16 and 32, all grown after 10B tokens and without seeds. The best lies between
# 2 and 4; a base of 2 layers, factor 16, still clearly beats training from scratch at 3B; bases of 1 layer, factors 24
# and 32, are worse than scratch. Others find 2 the most reliable and an upper factor beyond which scratch wins (arXiv
# 2605.13405), or growth from 0 or 1 layer to work when it comes late (2511.04981): an open contradiction. The factor is
# the ratio of the parameters in blocks; in depth, that of the layers.
GROWTH_FACTOR = 4

# Peak learning rates of the paper's models, grown or not, by parameters (table 1).
PAPER_RATES = {4.1e8: 6e-4, 1.1e9: 3e-4, 3e9: 1.6e-4, 7e9: 1e-4}

# What Step Law was fitted on: parameters in blocks, and tokens.
STEP_LAW_PARAMS = (6e7, 1.07e9)
STEP_LAW_TOKENS = (2e9, 1e11)


def growth_timing(params: float, flops: float) -> float:
    """Tokens to train the small model on before it is grown: the paper's guideline for a growth factor of 4.

    log10 d = 0.88 log10 N + 163.27 / log10 C - 5.74. With N the nominal size and C = 6 N D it gives the paper's
    examples: Llama 3 8B at 15T tokens 6.58B, Llama 2 7B, 13B and 70B at 2T tokens 11.11B, 15.84B and 42.48B.

    Source: arXiv 2405.15319, equation 2, section 4.2. The text calls N non-embedding, its examples take all.
    Range: fitted on N from 410M to 3B and C from 8e19 to 1.2e21 FLOPs, with G_stack by 4; the paper itself uses it
    up to 8.4e23. It explodes at small C: below about 1e20 FLOPs it asks for more tokens than the run has.

    Args:
        params: parameters of the grown model N (a number or an array).
        flops: the budget C of the whole run, both models (a number or an array that broadcasts with it).

    Returns:
        Tokens d.
    """
    warn(timing_caveats(params, flops))
    return law_at(TIMING, params, flops)


def timing_caveats(params: float, flops: float) -> list[str]:
    """Reasons not to trust `growth_timing` here, a line each; none inside of its range."""
    params, flops = np.asarray(params, np.float64), np.asarray(flops, np.float64)
    tokens, asked = np.broadcast_arrays(flops / (6 * params), law_at(TIMING, params, flops))
    caveats = [
        f"growth timing: {name} = {value:.3g} is {side} the range, the paper fitted it on {name} from {low:.2g} to "
        f"{high:.2g}" + ("; beyond, it is extrapolated" if side == "above" else "")
        for name, values, (low, high) in (("N", params, TIMING_PARAMS), ("C", flops, TIMING_FLOPS))
        for side, value in _outside(values, low, high)
    ]
    if np.any(asked >= tokens):
        worst = np.argmax(asked / tokens)
        caveats.append(
            f"growth timing: it says to grow after {asked.flat[worst]:.3g} tokens, and the whole run has "
            f"{tokens.flat[worst]:.3g}: the law explodes at small budgets; sweep the timing instead, at 1 to 10 % of "
            "the compute"
        )
    return caveats


def factor_caveats(factor: float, base_layers: int) -> list[str]:
    """Reasons against growing by this factor from a base of so many layers, a line each.

    Source: arXiv 2405.15319, section 4.2 (see GROWTH_FACTOR); arXiv 2605.13405 on large factors.
    """
    caveats = []
    if base_layers < 2:
        caveats.append("growth factor: a base of 1 layer was worse than training from scratch at 1.1B and at 3B")
    if not 2 <= factor <= 16:
        caveats.append(f"growth factor: {factor:g} is outside of 2 to 16, where growing beat training from scratch")
    return caveats


def growth_factor_equation(params: float, flops: float) -> float:
    """NOT RECOMMENDED, by the authors either: the growth factor as a fitted law. Use GROWTH_FACTOR.

    log10 g = 1.01 log10 N - 29.88 / log10 C - 7.36. It gives 2.2 at 1.1B and 100B tokens, where the paper found the
    best between 2 and 4, and runs off beyond: 19 at 7B and 2T tokens, 221 at 70B and 2T. Always warns (RangeWarning).

    Source: arXiv 2405.15319, equation 50, appendix. Range: N of 1.1B and 3B, factors 2 to 32, grown after 10B tokens.

    Args:
        params: parameters of the grown model N (a number or an array).
        flops: the budget C of the whole run.
    """
    warn(["growth factor: the authors advise against this equation and for the constant 4"])
    return law_at(FACTOR, params, flops)


def law_at(law: tuple[float, float, float], params: float, flops: float) -> float:
    """10 ^ (a log10 N + b / log10 C + c), with no warning about its range."""
    a, b, c = law
    return 10.0 ** (a * np.log10(params) + b / np.log10(flops) + c)


def step_law_rate(params: float, tokens: float) -> float:
    """The best peak learning rate for training from scratch: 1.79 N^-0.713 D^0.307.

    Source: arXiv 2503.04715 (Step Law). The intervals of the exponents by its authors' 1000 bootstraps: -0.774 to
    -0.655 and 0.271 to 0.345. Range: N from 60M to 1.07B parameters without the embedding, D from 2B to 100B tokens,
    dense Llama-like decoders, AdamW, cosine to a final rate of 1e-5, from scratch. Nobody has fitted it for grown
    models.

    Args:
        params: parameters without embedding and head N (a number or an array).
        tokens: tokens of the whole training D.
    """
    warn(step_law_caveats(params, tokens))
    return step_law_at(params, tokens)


def step_law_at(params: float, tokens: float) -> float:
    """`step_law_rate` with no warning about its range."""
    return 1.79 * np.power(params, -0.713) * np.power(tokens, 0.307)


def step_law_batch(tokens: float) -> float:
    """The best batch in tokens: 0.58 D^0.571, at any size of the model.

    Source: arXiv 2503.04715; the interval of the exponent is 0.534 to 0.606. Range: as for `step_law_rate`.

    Args:
        tokens: tokens of the whole training D.
    """
    return 0.58 * np.power(tokens, 0.571)


def rate_factor_at_growth(factor: float) -> float:
    """Factor of Step Law's learning rate when a model grows by `factor` at unchanged D: factor^-0.713.

    0.37 for a factor of 4, near the paper's own 1e-3 before and 3e-4 after (arXiv 2405.15319, code). An inference, not
    a measurement: the law is of training from scratch. At very small scale the opposite was measured (6e-3 after 4e-3
    in experiments/README.md).

    Args:
        factor: parameters without embedding after over before (a number or an array).
    """
    return np.power(factor, -0.713)


def step_law_caveats(params: float, tokens: float) -> list[str]:
    """Where (params, tokens) are outside of the range that Step Law was fitted on, a line each."""
    return [
        f"Step Law: {name} = {value:.3g} is outside of {low:.3g} to {high:.3g}, where it was fitted"
        for name, values, (low, high) in (("N", params, STEP_LAW_PARAMS), ("D", tokens, STEP_LAW_TOKENS))
        for _, value in list(_outside(values, low, high))[:1]
    ]


def average_params(params: Sequence[float], tokens: Sequence[float]) -> float:
    """The parameters of a run with stages, averaged over its tokens: N_mean = sum(N_t D_t) / sum(D_t).

    Source: 'Journey Matters', arXiv 2501.12486, which puts it in the place of N in the law of Chinchilla. Range: fitted
    on runs of 58M to 468M that were PRUNED, not grown.

    Args:
        params: parameters of each stage.
        tokens: tokens of each stage.

    Raises:
        InputError: no stages, or a number of sizes that is not the number of token budgets.
    """
    if not len(params) or len(params) != len(tokens):
        raise InputError(f"params and tokens must be one each a stage, got {len(params)} and {len(tokens)}")
    return float(np.average(np.asarray(params, np.float64), weights=np.asarray(tokens, np.float64)))


def null_loss(law: Chinchilla, params: Sequence[float], tokens: Sequence[float]) -> float:
    """The loss of a grown run if growing did nothing: that of a model of the average size on all its tokens.

    At equal FLOPs, 6 N_mean D, a grown run then ends where a smaller model that never grew ends. A claim of
    speed-up should be compared with it.

    Source and range: as for `average_params` and for the law.
    """
    return float(law.loss(average_params(params, tokens), float(np.sum(tokens))))


def saturated_loss(
    first_tokens: float,
    second_tokens: float,
    coefficient: float,
    first: float,
    second: float,
    coupling: float,
    floor: float,
) -> float:
    """L(D1, D2) = A D1^-a1 D2^(-a2 + a3 log D1) + E: the loss after D2 more tokens from a model trained on D1.

    The more the small model has been trained, the smaller the exponent of what comes after it: growth saturates.

    Source: arXiv 2510.06548. Range: its coefficients belong to its data and models and carry over to no others, so
    they are arguments here: fit them before use. The logarithm is the natural one.

    Args:
        first_tokens: D1, tokens before (a number or an array).
        second_tokens: D2, tokens after.
        coefficient, first, second, coupling, floor: A, a1, a2, a3 and E.
    """
    first_tokens = np.asarray(first_tokens, np.float64)
    exponent = -second + coupling * np.log(first_tokens)
    return coefficient * first_tokens**-first * np.power(second_tokens, exponent) + floor


def _outside(values: float, low: float, high: float) -> Iterator[tuple[str, float]]:
    """("below", smallest value) and ("above", largest value), where they are outside of a range."""
    if np.min(values) < low:
        yield "below", np.min(values)
    if np.max(values) > high:
        yield "above", np.max(values)
