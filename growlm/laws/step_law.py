"""Step Law: the learning rate and the batch that suit a model and its tokens, and what growing makes of the rate."""

import numpy as np

from growlm.laws.intervals import warn

# 59M to 1.07B parameters in blocks and 2B to 100B tokens.
FITTED_PARAMS = (6e7, 1.07e9)
FITTED_TOKENS = (2e9, 1e11)


def step_law_rate(params: float, tokens: float) -> float:
    """The best peak learning rate for training from scratch: 1.79 N^-0.713 D^0.307.

    Source: arXiv 2503.04715 (Step Law). The intervals of the exponents by its authors' 1000 bootstraps: -0.774 to
    -0.655 and 0.271 to 0.345. Range: N from 60M to 1.07B parameters without the embedding, D from 2B to 100B tokens,
    dense Llama-like decoders, AdamW, cosine to a final rate of 1e-5, from scratch. Nobody has fitted it for grown
    models. Warns (RangeWarning) outside.

    Args:
        params: parameters without embedding and head N (a number or an array).
        tokens: tokens of the whole training D.
    """
    warn(step_law_caveats(params, tokens))
    return rate_at(params, tokens)


def rate_at(params: float, tokens: float) -> float:
    """The same without a word on its range."""
    return 1.79 * np.power(params, -0.713) * np.power(tokens, 0.307)


def step_law_batch(tokens: float) -> float:
    """The best batch in tokens: 0.58 D^0.571, at any size of the model.

    Source: arXiv 2503.04715; the interval of the exponent is 0.534 to 0.606. Range: as for `step_law_rate`.

    Args:
        tokens: tokens of the whole training D.
    """
    return 0.58 * np.power(tokens, 0.571)


def rate_factor_at_growth(factor: float) -> float:
    """What Step Law makes of the learning rate when a model grows by `factor` at unchanged D: factor^-0.713.

    0.37 for a factor of 4, near the paper's own 1e-3 before and 3e-4 after (arXiv 2405.15319, code). An inference, not
    a measurement: the law is of training from scratch. At very small scale the opposite was measured (6e-3 after 4e-3
    in experiments/README.md).

    Args:
        factor: parameters without embedding after over before (a number or an array).
    """
    return np.power(factor, -0.713)


def step_law_caveats(params: float, tokens: float) -> list[str]:
    """Where (params, tokens) are outside of the range that Step Law was fitted on, a line each."""
    said = []
    for name, values, (low, high) in (("N", params, FITTED_PARAMS), ("D", tokens, FITTED_TOKENS)):
        if np.min(values) < low or np.max(values) > high:
            outside = np.min(values) if np.min(values) < low else np.max(values)
            said.append(f"Step Law: {name} = {outside:.3g} is outside of {low:.3g} to {high:.3g}, where it was fitted")
    return said
