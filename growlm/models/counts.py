"""How large a model is and what a token costs, counted from the declaration."""

import math

from growlm.models.axes import DecoderConfig, Role, Weight


def parameter_count(config: DecoderConfig, active: bool = False) -> int:
    """The number of parameters, embedding and head included (the N of the paper's 6 N D).

    active: of a mixture of experts, those that one token meets.
    """
    counts = (math.prod(w.shape(config)) * (_share(w, config) if active else 1) for w in config.weights)
    return round(sum(counts))


def matmul_parameter_count(config: DecoderConfig) -> int:
    """The number of parameters that multiply one token's activations.

    No gains, no biases, a lookup only where it is the tied head, and of experts those that the token gets.
    """
    products = sum(math.prod(w.shape(config)) * _share(w, config) for w in config.weights if _multiplies(w, config))
    return round(products)


def _multiplies(weight: Weight, config: DecoderConfig) -> bool:
    if weight.role is Role.LOOKUP:
        return weight.path == "embedding" and config.architecture.tied(config)
    return not weight.elementwise


def _share(weight: Weight, config: DecoderConfig) -> float:
    """Of a weight that is held once an expert, the share that a token meets."""
    experts = [dim.axis for dim in weight.dims if dim.many and dim.axis.chosen]
    return math.prod(getattr(config, axis.chosen) / config.size(axis) for axis in experts)


def flops_per_token(config: DecoderConfig, length: int) -> float:
    """FLOPs that one training token costs, forward and backward: 6 a parameter in a product, and what branches say."""
    rest = sum(branch.flops(config, length) for branch in config.architecture.branches)
    return 6.0 * matmul_parameter_count(config) + 3.0 * config.depth * rest
