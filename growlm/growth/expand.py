"""Applies a growth to parameters, or to a tree of their shapes: one rule for every dimension of every weight."""

import zlib
from functools import partial

import jax
import numpy as np

from growlm.growth.maps import POWERS, Array, Rule, along, numpy_or_jax, overlay, primal
from growlm.growth.plan import DRAW_FRESH, Draw, Growth
from growlm.models.architecture import DecoderConfig, Params, map_weights
from growlm.models.axes import Weight
from growlm.models.draws import in_one_pass


def expand(rule: Rule, growth: Growth, weight: Weight, value: Array) -> Array:
    """Applies the maps of a weight along all its dimensions, its factor, and the residual factors to residual writers.

    They act on the value that the model computes with, which includes the offset of a weight that has one.
    """
    dtype, value = value.dtype, widened(value)
    grown = _expanded(rule, growth, weight, value)
    if weight.offset and rule is primal:
        # The offset grows apart from the value: what is a plain copy then stays as it is, to the bit.
        offset = numpy_or_jax(value).full(value.shape, weight.offset, value.dtype)
        grown = grown + (_expanded(rule, growth, weight, offset) - weight.offset)
    return grown.astype(dtype, copy=False)


def widened(value: Array) -> Array:
    """In float32 where it has 16 bits: it is rounded once, and XLA's CPU backend would convert it at every step."""
    return value.astype(np.promote_types(value.dtype, np.float32), copy=False)


def _expanded(rule: Rule, growth: Growth, weight: Weight, value: Array) -> Array:
    for dimension, _, read, write in growth.dim_maps(weight):
        value = rule(read, write).take(value, dimension)
    if weight.residual and not (isinstance(growth.residual, np.ndarray) and np.all(growth.residual == 1)):
        residual = numpy_or_jax(value, growth.residual).asarray(growth.residual, value.dtype)
        value = value * along(residual, 0, value.ndim)
    return growth.scaled(weight, value, POWERS[rule])


def expand_params(growth: Growth, source: DecoderConfig, params: Params, rule: Rule = primal) -> Params:
    """Applies the maps of a growth to a lifted tree, without fresh values and effects."""
    return map_weights(partial(expand, rule, growth), growth.start(source), params)


def grow_params(
    growth: Growth, source: DecoderConfig, target: DecoderConfig, params: Params, key: jax.Array | None
) -> Params:
    """Grows parameters: the lift, the maps, fresh values, then effects."""
    params = params if growth.lift is None else growth.lift.params(params)
    return map_weights(partial(_grow_weight, growth, target, key), growth.start(source), params)


def draws(growth: Growth, target: DecoderConfig) -> bool:
    """Whether the growth draws random values for any weight."""
    fresh = any(np.any(chosen) for weight in target.weights for chosen in growth.fresh(weight))
    return fresh or any(effect.draws() for effect in growth.effects)


def _grow_weight(growth: Growth, target: DecoderConfig, key: jax.Array | None, weight: Weight, value: Array) -> Array:
    def draw(purpose: str) -> jax.Array:
        assert key is not None, "whoever grows checks the key"
        own = weight.key(jax.random.fold_in(in_one_pass(key), number_of(purpose)))
        return weight.initial(own, target, whole=True) if purpose == DRAW_FRESH else weight.noise(own, target)

    return grow_weight(growth, target, weight, value, draw)


def number_of(purpose: str) -> int:
    """The number that is folded into a growth's key for a purpose."""
    return zlib.crc32(purpose.encode())


def grow_weight(growth: Growth, target: DecoderConfig, weight: Weight, value: Array, draw: Draw) -> Array:
    """Grows one weight, or a part of it by the growth of that part."""
    dtype, value = value.dtype, widened(value)
    grown = expand(primal, growth, weight, value)
    if any(map(np.any, fresh := growth.fresh(weight))):
        grown = overlay(grown, draw(DRAW_FRESH).astype(grown.dtype), fresh)
    for effect in growth.effects:
        grown = effect.change(growth, target, weight, value, grown, draw)
    return grown.astype(dtype, copy=False)
