"""Groups of weights, by what they declare and by what the last growth made of them: their rates, and what is frozen."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from growlm.growth.plan import slice_mask
from growlm.models import Kind, Role, Weight

GROUPS: dict[str, Callable[[Weight], bool]] = {
    "embedding": lambda weight: weight.role is Role.LOOKUP,
    "head": lambda weight: weight.writes(Kind.VOCAB),
    "gains": lambda weight: weight.role is Role.GAIN,
    "biases": lambda weight: weight.role is Role.BIAS,
    "matrices": lambda weight: weight.role is Role.MATRIX and weight.stacked,
    "routers": lambda weight: weight.role is Role.ROUTER,
}

# By provenance: what the last growth added, copies too, and what was there before it.
SLICES = ("new", "old")

# What a stage trains.
TRAIN = ("all", *SLICES)


def rate_factor(rates: Mapping[str, float], weight: Weight, provenance: Mapping[str, Any]) -> float | jax.Array:
    """The product of the rates of all groups that a weight is in; broadcastable to it where slices differ."""
    factor = math.prod(rates[name] for name, holds in GROUPS.items() if name in rates and holds(weight))
    new, old = (rates.get(name, 1.0) for name in SLICES)
    return factor * new if new == old else jnp.where(slice_mask(weight, provenance), factor * new, factor * old)


def trainable(train: str, weight: Weight, provenance: Mapping[str, Any]) -> bool | jax.Array:
    """Which of its slices are trained, by a name in TRAIN; broadcastable to the weight; True, a bool, where all are."""
    return True if train == "all" else slice_mask(weight, provenance) == (train == "new")
