"""Parameters and FLOPs, counted from the declaration."""

import math
from collections.abc import Callable

from growlm.models.architecture import DecoderConfig
from growlm.models.axes import Role, Weight

# weight -> the share of its entries that are not zero under a static mask; None where all are there.
Density = Callable[[Weight], float] | None


def parameter_count(config: DecoderConfig, active: bool = False, density: Density = None) -> int:
    """The number of parameters with embedding and head (N in the paper's 6 N D).

    active: in a mixture of experts, count only the experts of one token. density: count only what is not masked.
    """
    counts = (_size(w, config, density) * (_share(w, config) if active else 1) for w in config.weights)
    return round(sum(counts))


def _size(weight: Weight, config: DecoderConfig, density: Density) -> float:
    return math.prod(weight.shape(config)) * (density(weight) if density else 1)


def matmul_parameter_count(config: DecoderConfig, density: Density = None) -> int:
    """The number of parameters in matrix products for one token.

    These are matrices, as often as they run, the embedding if it is the tied head, and the experts of one token; no
    gains and biases. density: as in `parameter_count`.
    """
    again = layers_run(config) / max(config.depth, 1)  # all layers have one size
    counts = (
        _size(w, config, density) * _share(w, config) * (again if w.stacked else 1)
        for w in config.weights
        if _multiplies(w, config)
    )
    products = sum(counts)
    return round(products)


def layers_run(config: DecoderConfig) -> int:
    """The number of layers in a forward pass: those of a section with more passes count more than once."""
    return sum(layer is not None for layer in config.executed)


def _multiplies(weight: Weight, config: DecoderConfig) -> bool:
    if weight.role is Role.LOOKUP:
        return weight.path == "embedding" and config.architecture.tied(config)
    return not weight.elementwise


def _share(weight: Weight, config: DecoderConfig) -> float:
    """The share of a weight of experts that one token uses."""
    experts = [dim.axis for dim in weight.dims if dim.many and dim.axis.chosen]
    return math.prod(getattr(config, axis.chosen) / config.size(axis) for axis in experts)


def flops_per_token(config: DecoderConfig, length: int, density: Density = None) -> float:
    """Training FLOPs a token, forward and backward: 6 for each parameter in products, and 3 x those of branches."""
    rest = sum(branch.flops(config, length) for branch in config.architecture.branches)
    return 6.0 * matmul_parameter_count(config, density) + 3.0 * layers_run(config) * rest


def flops_of_layer(config: DecoderConfig, length: int, density: Density = None) -> float:
    """The training FLOPs a token of one layer that runs once."""
    outside = (math.prod(w.shape(config)) for w in config.weights if not w.stacked and _multiplies(w, config))
    return (flops_per_token(config, length, density) - 6.0 * sum(outside)) / max(layers_run(config), 1)
