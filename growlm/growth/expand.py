"""What a growth does to a tree that is shaped like the parameters: one rule for every dimension of every weight."""

import zlib
from functools import partial
from typing import Any

import jax
import numpy as np

from growlm.growth.effects import Draw
from growlm.growth.maps import Rule, along, numpy_or_jax, primal
from growlm.growth.plan import Growth
from growlm.models.axes import DecoderConfig, Params, Weight, map_weights


def expand(rule: Rule, growth: Growth, weight: Weight, value: jax.Array) -> jax.Array:
    """The value along all its dimensions, the layers first; silent layers are silent."""
    for number, _, read, write in growth.axes(weight):
        value = rule(read, write).take(value, number)
    if weight.residual and not (isinstance(growth.residual, np.ndarray) and np.all(growth.residual == 1)):
        residual = numpy_or_jax(value, growth.residual).asarray(growth.residual, value.dtype)
        value = value * along(residual, 0, value.ndim)
    return value


def expand_params(growth: Growth, source: DecoderConfig, params: Params, rule: Rule = primal) -> Params:
    """The maps of a growth on a whole tree that is lifted where the growth lifts, and nothing beside."""
    return map_weights(partial(expand, rule, growth), growth.start(source), params)


def grow_params(growth: Growth, source: DecoderConfig, target: DecoderConfig, params: Params, key: Any) -> Params:
    """The parameters grown: the lift, maps, fresh values, and then effects."""
    params = growth.lift.params(params) if growth.lift else params
    return map_weights(partial(_grow_weight, growth, target, key), growth.start(source), params)


def draws(growth: Growth, target: DecoderConfig) -> bool:
    """Whether the growth draws random values for any weight."""
    fresh = any(growth.fresh(weight) is not None for weight in target.weights)
    return fresh or any(effect.draws() for effect in growth.effects)


def _grow_weight(growth: Growth, target: DecoderConfig, key: Any, weight: Weight, value: jax.Array) -> jax.Array:
    def draw(purpose: str) -> jax.Array:
        return weight.initial(weight.key(jax.random.fold_in(key, number_of(purpose))), target, whole=True)

    return grow_weight(growth, target, weight, value, draw)


FRESH = "fresh"  # what values are drawn for, beside what effects draw


def number_of(purpose: str) -> int:
    """What is folded into a growth's key for a purpose."""
    return zlib.crc32(purpose.encode())


def grow_weight(growth: Growth, target: DecoderConfig, weight: Weight, value: jax.Array, draw: Draw) -> jax.Array:
    """One weight grown, or a part of it by the growth of that part; draw(purpose) gives initial values."""
    grown = expand(primal, growth, weight, value)
    if (fresh := growth.fresh(weight)) is not None:
        initial = draw(FRESH).astype(grown.dtype)
        grown = numpy_or_jax(grown, initial).where(fresh, initial, grown)
    for effect in growth.effects:
        grown = effect.change(growth, target, weight, value, grown, draw)
    return grown
