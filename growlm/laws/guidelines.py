"""When to grow and by how much, as the paper puts it (arXiv 2405.15319), each with where it comes from and holds."""

import numpy as np

from growlm.laws.intervals import warn

# Equation 2: log10 d = a log10 N + b / log10 C + c.
TIMING = (0.88, 163.27, -5.74)
# Equation 50: log10 g = a log10 N + b / log10 C + c. Its authors advise against it.
FACTOR = (1.01, -29.88, -7.36)

# The runs that both were fitted on: targets of 410M, 1.1B and 3B, budgets from the first slice of the smallest to
# the last of the largest (figures 8 and 23 to 28).
FITTED_PARAMS = (4.1e8, 3e9)
FITTED_FLOPS = (8e19, 1.2e21)

# By how much to grow: 4, at any size and budget (section 4.2). The evidence: at 1.1B (24 layers) factors of 2, 4, 8 and
# 24 were tried, at 3B (32 layers) 4, 8, 16 and 32, all grown after 10B tokens and without seeds. The best lies between
# 2 and 4; a base of 2 layers, factor 16, still clearly beats training from scratch at 3B; bases of 1 layer, factors 24
# and 32, are worse than scratch. Others find 2 the most reliable and an upper factor beyond which scratch wins (arXiv
# 2605.13405), or growth from 0 or 1 layer to work when it comes late (2511.04981): an open contradiction. The factor is
# the ratio of the parameters in blocks; in depth, that of the layers.
GROWTH_FACTOR = 4

# The peak learning rates that the paper trained its models with, grown or not (table 1).
PAPER_RATES = {4.1e8: 6e-4, 1.1e9: 3e-4, 3e9: 1.6e-4, 7e9: 1e-4}


def growth_timing(params: float, flops: float) -> float:
    """How many tokens to train the small model on before it is grown: the paper's guideline for a growth factor of 4.

    log10 d = 0.88 log10 N + 163.27 / log10 C - 5.74. With N the nominal size and C = 6 N D it gives the paper's
    examples: Llama 3 8B at 15T tokens 6.58B, Llama 2 7B, 13B and 70B at 2T tokens 11.11B, 15.84B and 42.48B.

    Source: arXiv 2405.15319, equation 2, section 4.2. The text calls N non-embedding, its examples take all.
    Range: fitted on N from 410M to 3B and C from 8e19 to 1.2e21 FLOPs, with G_stack by 4; the paper itself uses it
    up to 8.4e23. It explodes at small C: below about 1e20 FLOPs it asks for more tokens than the run has. Warns
    (RangeWarning) outside of the fitted range, with the reason.

    Args:
        params: parameters of the grown model N (a number or an array).
        flops: the budget C of the whole run, both models (a number or an array that broadcasts with it).

    Returns:
        Tokens d.
    """
    warn(timing_caveats(params, flops))
    return law_at(TIMING, params, flops)


def timing_caveats(params: float, flops: float) -> list[str]:
    """Why `growth_timing` should not be trusted here, a line each; none inside of the range it was fitted on."""
    params, flops = np.asarray(params, np.float64), np.asarray(flops, np.float64)
    tokens, asked = flops / (6 * params), law_at(TIMING, params, flops)
    worst = np.argmax(asked / tokens)
    caveats = _outside("growth timing", params, flops)
    if np.any(asked >= tokens):
        after, of = (np.broadcast_to(a, np.broadcast(params, flops).shape).ravel()[worst] for a in (asked, tokens))
        caveats.append(
            f"growth timing: it says to grow after {after:.3g} tokens, and the whole run has {of:.3g}: the law "
            "explodes at small budgets; sweep the timing instead, at 1 to 10 % of the compute"
        )
    return caveats


def factor_caveats(factor: float, base_layers: int) -> list[str]:
    """What speaks against growing by this factor from a base of so many layers, a line each.

    Source: arXiv 2405.15319, section 4.2 (see GROWTH_FACTOR); arXiv 2605.13405 on large factors.
    """
    said = []
    if base_layers < 2:
        said.append("growth factor: a base of 1 layer was worse than training from scratch at 1.1B and at 3B")
    if not 2 <= factor <= 16:
        said.append(f"growth factor: {factor:g} is outside of 2 to 16, where growing beat training from scratch")
    return said


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
    """10 ^ (a log10 N + b / log10 C + c), without a word on its range."""
    a, b, c = law
    return 10.0 ** (a * np.log10(params) + b / np.log10(flops) + c)


def _outside(what: str, params: np.ndarray, flops: np.ndarray) -> list[str]:
    """A line for each of the two that is outside of what the paper fitted on."""
    said = []
    for name, values, (low, high) in (("N", params, FITTED_PARAMS), ("C", flops, FITTED_FLOPS)):
        where = f"the paper fitted it on {name} from {low:.2g} to {high:.2g}"
        if np.any(values < low):
            said.append(f"{what}: {name} = {values.min():.3g} is below the range, {where}")
        if np.any(values > high):
            said.append(f"{what}: {name} = {values.max():.3g} is above the range, {where}; beyond, it is extrapolated")
    return said
