"""The optimizer of a stage: Adam with a step count per slice, Muon, and learning rates and freezing by group.

The learning rate is not in it: the train step takes that as an argument.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from growlm.errors import check_name, check_range
from growlm.growth.plan import slice_mask
from growlm.models import DecoderConfig, Kind, Role, Weight, parametrization, path_of
from growlm.training.ages import Ages, bias, initial_ages
from growlm.training.muon import MuonConfig, muon

# By what a weight declares.
GROUPS: dict[str, Callable[[Weight], bool]] = {
    "embedding": lambda weight: weight.role is Role.LOOKUP,
    "head": lambda weight: weight.writes(Kind.VOCAB),
    "gains": lambda weight: weight.role is Role.GAIN,
    "biases": lambda weight: weight.role is Role.BIAS,
    "constants": lambda weight: weight.role is Role.CONSTANT,
    "filters": lambda weight: weight.role is Role.FILTER,
    "matrices": lambda weight: weight.role is Role.MATRIX and weight.stacked,
    "routers": lambda weight: weight.role is Role.ROUTER,
}
DECAYING = tuple(name for name in GROUPS if name != "constants")
# By provenance: what the last growth added, copies too, and what was there before it.
SLICES = ("new", "old")
TRAIN = ("all", *SLICES)  # what a stage trains
MOMENT_DTYPES = ("bfloat16",)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with the paper's settings (arXiv 2405.15319): weight decay, clipped gradients.

    Attributes:
      kind: a name in `OPTIMIZERS`: "adamw", or "muon" for the matrices of the blocks with AdamW for the rest.
      beta1, beta2: decay per step of the first and the second moment.
      eps: added to the root of the second moment.
      weight_decay: per step, times the learning rate.
      decay: the groups that decay, names in `GROUPS`. By default all but constants of recurrences, gains too, as in the
        paper; small trainers of today take ("matrices",).
      cautious_decay: a parameter decays only where its update has its sign, and so makes it smaller (arXiv 2510.12402).
      clip: largest global norm of the gradients; 0: any.
      ema: decay per step of an averaged copy of the parameters; 0: no copy.
      moment_dtype: of first moments: "bfloat16", or None for that of the parameters. Second ones keep that: a step may
        change them by 1 - beta2, and bfloat16 rounds away what is below 1 / 512.
      learning_rates: factors on the learning rate by group, a name in `GROUPS` or `SLICES`; those that hold multiply.
      muon: the parts of Muon, where it is the optimizer.
    """

    kind: str = "adamw"
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay: tuple[str, ...] = dataclasses.field(default=DECAYING, metadata={"separator": ","})
    cautious_decay: bool = False
    clip: float = 1.0
    ema: float = 0.0
    moment_dtype: str | None = None
    learning_rates: dict[str, float] = dataclasses.field(default_factory=dict, hash=False)
    muon: MuonConfig = dataclasses.field(default_factory=MuonConfig)

    def __post_init__(self):
        check_name("optimizer.kind", self.kind, OPTIMIZERS)
        for name in ("beta1", "beta2", "ema"):
            check_range(f"optimizer.{name}", getattr(self, name), low=0, high=1, high_allowed=False)
        check_range("optimizer.eps", self.eps, low=0, low_allowed=False)
        for name in ("weight_decay", "clip"):
            check_range(f"optimizer.{name}", getattr(self, name), low=0)
        if self.moment_dtype is not None:
            check_name("optimizer.moment_dtype", self.moment_dtype, MOMENT_DTYPES)
        for name in self.decay:
            check_name("group in optimizer.decay", name, GROUPS)
        for name, factor in self.learning_rates.items():
            check_name("group in optimizer.learning_rates", name, (*GROUPS, *SLICES))
            check_range(f"optimizer.learning_rates[{name!r}]", factor, low=0)


def make_optimizer(config: OptimizerConfig, model: DecoderConfig) -> optax.GradientTransformation:
    """The optimizer of a model: clipped gradients, decayed weights. Its updates are to be scaled by -learning_rate."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip) if config.clip else optax.identity(),
        OPTIMIZERS[config.kind](config, model),
        _add_decayed_weights(config, model),
    )


def _add_decayed_weights(config: OptimizerConfig, model: DecoderConfig) -> optax.GradientTransformation:
    """Adds every weight that decays, times `weight_decay`, to its update, and scales both by the parametrisation."""
    weights, by_shape = model.architecture.weights, config.kind == "muon" and config.muon.scale == "spectral"

    def add(path: tuple, update: jax.Array, value: jax.Array) -> jax.Array:
        weight = weights[path_of(path)]
        spectral = by_shape and GROUPS["matrices"](weight)
        rate = parametrization.learning_rate(weight, model, spectral)
        if not any(GROUPS[name](weight) for name in config.decay):
            return rate * update
        decay = config.weight_decay * parametrization.weight_decay(weight, model, spectral)
        decays = jnp.where(update * value >= 0, value, 0) if config.cautious_decay else value
        return rate * (update + decay * decays)

    return optax.stateless(partial(jax.tree_util.tree_map_with_path, add))


def learning_rate_factor(
    factors: Mapping[str, float], weight: Weight, provenance: Mapping[str, Any]
) -> float | jax.Array:
    """The product of the factors of all groups of a weight; broadcastable to it where its slices differ."""
    factor = math.prod(factors[name] for name, holds in GROUPS.items() if name in factors and holds(weight))
    new, old = (factors.get(name, 1.0) for name in SLICES)
    return factor * new if new == old else jnp.where(slice_mask(weight, provenance), factor * new, factor * old)


def trainable(train: str, weight: Weight, provenance: Mapping[str, Any]) -> bool | jax.Array:
    """Which slices of a weight train, by a name in `TRAIN`: True for all, or a mask broadcastable to the weight."""
    return True if train == "all" else slice_mask(weight, provenance) == (train == "new")


class ScaleByAgedAdamState(NamedTuple):
    """Adam's moments, and in `ages`, for each array, one int32 vector of step counts for each of its dimensions.

    An element has seen as many updates as the youngest of its coordinates.
    """

    ages: Any
    mu: Any
    nu: Any


def scale_by_aged_adam(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float | Callable[[tuple], float] = 1e-8,
    mu_dtype: str | None = None,
) -> optax.GradientTransformation:
    """Adam (arXiv 1412.6980) whose bias correction counts the steps of every element by itself.

    Where all counts are equal it is optax.scale_by_adam. One count for all, as there, makes the first update of what a
    growth added (1 - b1) / sqrt(1 - b2) times too large: 3.2 at b2 = 0.999, 0.45 at 0.95.

    eps: a number, or the number of an array by its key path. mu_dtype: of the first moment, by default that of the
    parameters.
    """

    def init(params: Any) -> ScaleByAgedAdamState:
        ages = jax.tree.map(lambda leaf: initial_ages(leaf.shape), params)
        return ScaleByAgedAdamState(ages, optax.tree.zeros_like(params, mu_dtype), optax.tree.zeros_like(params))

    def direction(path: tuple, mu: jax.Array, nu: jax.Array, ages: Ages) -> jax.Array:
        least = eps(path) if callable(eps) else eps
        return mu / bias(b1, ages, mu) / (jnp.sqrt(nu / bias(b2, ages, nu)) + least)

    def update(gradients: Any, state: ScaleByAgedAdamState, params: Any = None) -> tuple[Any, ScaleByAgedAdamState]:
        ages = jax.tree.map(lambda age: age + 1, state.ages)
        mu = optax.tree.update_moment(gradients, optax.tree.cast_like(state.mu, gradients), b1, 1)
        mu = optax.tree.cast(mu, mu_dtype)
        nu = optax.tree.update_moment_per_elem_norm(gradients, state.nu, b2, 2)
        # Rounded, as it is kept: if what is not rounded were used, XLA would read the old one twice, and so copy it.
        updates = jax.tree_util.tree_map_with_path(direction, optax.tree.cast_like(mu, gradients), nu, ages)
        return updates, ScaleByAgedAdamState(ages, mu, nu)

    return optax.GradientTransformation(init, update)


def _adam(config: OptimizerConfig, model: DecoderConfig) -> optax.GradientTransformation:
    weights = model.architecture.weights
    return scale_by_aged_adam(
        config.beta1,
        config.beta2,
        lambda path: config.eps * parametrization.eps(weights[path_of(path)], model),
        config.moment_dtype,
    )


def _muon(config: OptimizerConfig, model: DecoderConfig) -> optax.GradientTransformation:
    """Muon on the matrices of the blocks, Adam on everything else."""
    weights = model.architecture.weights

    def kind(path: tuple, leaf: Any) -> str:
        return "muon" if GROUPS["matrices"](weights[path_of(path)]) else "adam"

    transforms = {"muon": muon(config.muon, model, config.moment_dtype), "adam": _adam(config, model)}
    return optax.partition(transforms, partial(jax.tree_util.tree_map_with_path, kind))


OPTIMIZERS: dict[str, Callable[[OptimizerConfig, DecoderConfig], optax.GradientTransformation]] = {
    "adamw": _adam,
    "muon": _muon,
}
