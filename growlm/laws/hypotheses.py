"""What growth has to beat, and what may limit it: laws of others, as plain functions."""

from collections.abc import Sequence

import numpy as np

from growlm.errors import InputError
from growlm.laws.chinchilla import Chinchilla


def average_params(params: Sequence[float], tokens: Sequence[float]) -> float:
    """The parameters of a run with stages, averaged over its tokens: N_mean = sum(N_t D_t) / sum(D_t).

    Source: 'Journey Matters', arXiv 2501.12486, which puts it in the place of N in the law of Chinchilla. Range: fitted
    on runs of 58M to 468M that were PRUNED, not grown.

    Args:
        params: parameters of each stage.
        tokens: tokens of each stage.

    Raises:
        InputError: no stages, or not as many of the one as of the other.
    """
    if not len(params) or len(params) != len(tokens):
        raise InputError(f"{len(params)} sizes and {len(tokens)} token budgets: allowed is one of each for every stage")
    return float(np.average(np.asarray(params, np.float64), weights=np.asarray(tokens, np.float64)))


def null_loss(law: Chinchilla, params: Sequence[float], tokens: Sequence[float]) -> float:
    """The loss of a grown run if growing did nothing: that of a model of the average size on all its tokens.

    At equal FLOPs, 6 N_mean D, a grown run then ends where a smaller model that never grew ends. A claim of
    speed-up should be held against it.

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
    """L(D1, D2) = A D1^-a1 D2^(-a2 + a3 log D1) + E: the loss after going on from a model trained on D1 tokens.

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
