"""The optimizer of a stage. The learning rate is not in it: the train step takes that as an argument."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from growlm.errors import check_name, check_range
from growlm.models import DecoderConfig, Weight, path_of
from growlm.training.adam import scale_by_aged_adam
from growlm.training.groups import GROUPS, SLICES

MUON_MOMENTUM = 0.95
MUON_RMS = 0.2  # the root mean square of its updates, about Adam's, so that both take one rate (arXiv 2502.16982)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW as the paper uses it: weight decay on every parameter, gradients clipped by their global norm.

    kind: "adamw", or "muon", which is Muon on the matrices of the blocks and AdamW on the rest. ema: the decay of an
    averaged copy of the parameters, 0 for none. learning_rates: factors on the learning rate by group, "embedding",
    "head", "gains", "biases", "matrices" (those of the layers), "routers", and "new" and "old", what the last growth
    added and what was there before; where several hold, they multiply.
    """

    kind: str = "adamw"
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0
    ema: float = 0.0
    learning_rates: dict[str, float] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self):
        check_name("optimizer.kind", self.kind, OPTIMIZERS)
        for name in ("beta1", "beta2"):
            check_range(f"optimizer.{name}", getattr(self, name), low=0, high=1, high_allowed=False)
        check_range("optimizer.eps", self.eps, low=0, low_allowed=False)
        check_range("optimizer.weight_decay", self.weight_decay, low=0)
        check_range("optimizer.clip", self.clip, low=0, low_allowed=False)
        check_range("optimizer.ema", self.ema, low=0, high=1, high_allowed=False)
        for name, factor in self.learning_rates.items():
            check_name("group in optimizer.learning_rates", name, (*GROUPS, *SLICES))
            check_range(f"optimizer.learning_rates[{name!r}]", factor, low=0)


def make_optimizer(config: OptimizerConfig, model: DecoderConfig) -> optax.GradientTransformation:
    """The optimizer of a model: clipped gradients, decayed weights. Its updates are to be scaled by minus the rate."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        OPTIMIZERS[config.kind](config, model),
        optax.add_decayed_weights(config.weight_decay),
    )


def _adam(config: OptimizerConfig, model: DecoderConfig) -> optax.GradientTransformation:
    return scale_by_aged_adam(config.beta1, config.beta2, config.eps)


def _muon(config: OptimizerConfig, model: DecoderConfig) -> optax.GradientTransformation:
    """Muon on the matrices of the blocks, Adam on everything else."""

    def by_weight(function: Callable[..., Any]) -> Callable[[Any], Any]:
        """Maps (weight, leaf) over a tree like the parameters, or a part of it."""
        weights = model.architecture.weights
        return lambda tree: jax.tree_util.tree_map_with_path(lambda path, x: function(weights[path_of(path)], x), tree)

    numbers = by_weight(lambda weight, _: dimension_numbers(weight))
    orthogonal = scale_by_muon(beta=MUON_MOMENTUM, weight_dimension_numbers=numbers)
    scaled = optax.stateless(lambda updates, params: by_weight(_scale_by_shape)(updates))
    kind = by_weight(lambda weight, _: "muon" if GROUPS["matrices"](weight) else "adam")
    return optax.partition({"muon": optax.chain(orthogonal, scaled), "adam": _adam(config, model)}, kind)


OPTIMIZERS: dict[str, Callable[[OptimizerConfig, DecoderConfig], optax.GradientTransformation]] = {
    "adamw": _adam,
    "muon": _muon,
}


def dimension_numbers(weight: Weight) -> MuonDimensionNumbers:
    """The matrix that a weight is: from all that it reads to all that it writes, one for each layer and expert."""
    dims = [(number, dim) for number, dim in enumerate(weight.all_dims) if not dim.many]
    reads = tuple(number for number, dim in dims if dim.reads)
    return MuonDimensionNumbers(reads, tuple(number for number, dim in dims if not dim.reads))


def _scale_by_shape(weight: Weight, update: jax.Array) -> jax.Array:
    """An orthogonal matrix to one whose root mean square does not depend on its shape."""
    numbers = dimension_numbers(weight)
    return MUON_RMS * math.sqrt(max(math.prod(update.shape[n] for n in axes) for axes in numbers)) * update
