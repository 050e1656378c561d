"""What a growth does to a tree that is shaped like the parameters: one rule for every dimension of every weight."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from growlm.growth.axis_map import AxisMap, along
from growlm.growth.plan import Growth, Noise
from growlm.weights import WEIGHTS, ModelConfig, Params, Weight, declared, map_weights

Rule = Callable[[AxisMap | None, AxisMap | None], Any]


def primal(read: AxisMap | None, write: AxisMap | None) -> Any:
    """How a weight grows along a dimension: R where it reads, P where it writes, their quotient where both."""
    if read and write:
        return write.write.over(read.write, read.rms)
    return read.read if read else write.write


def dual(read: AxisMap | None, write: AxisMap | None) -> Any:
    """How its gradient grows: P where the weight reads, R where it writes, their product where both."""
    if read and write:
        return write.read.times(read.write, 1 / read.rms)
    return read.write if read else write.read


def dual_squared(read: AxisMap | None, write: AxisMap | None) -> Any:
    """How the squared gradient grows."""
    return dual(read, write).squared()


def expand(rule: Rule, growth: Growth, weight: Weight, value: jax.Array) -> jax.Array:
    """The value along all its dimensions, the layers first; silent layers are silent."""
    for number, _, read, write in growth.axes(weight):
        value = rule(read, write).take(value, number)
    if weight.residual and not (isinstance(growth.residual, np.ndarray) and np.all(growth.residual == 1)):
        value = value * along(jnp.asarray(growth.residual, value.dtype), 0, value.ndim)
    return value


def expand_params(growth: Growth, source: ModelConfig, params: Params, rule: Rule = primal) -> Params:
    """The maps of a growth on a whole tree, and nothing beside."""
    return map_weights(partial(expand, rule, growth), source, params)


def grow_params(growth: Growth, source: ModelConfig, target: ModelConfig, params: Params, key: Any) -> Params:
    """The parameters grown: maps, then what has a rule of its own, then fresh values and noise."""
    return map_weights(partial(_grow_weight, growth, target, key), source, params)


def draws(growth: Growth, target: ModelConfig) -> bool:
    """Whether the growth draws random values for any weight."""
    return growth.noise is not None or any(growth.fresh(weight) is not None for weight in declared(target))


def _grow_weight(growth: Growth, target: ModelConfig, key: Any, weight: Weight, value: jax.Array) -> jax.Array:
    def draw(kind: int) -> jax.Array:
        own = jax.random.fold_in(key, draw_number(target, weight, kind))
        initial = weight.initial(own, target, whole=True)
        return initial if kind == FRESH else initial * growth.noise.over_initial(weight, target)

    return grow_weight(growth, weight, value, draw)


FRESH, NOISE = 0, 1  # what values are drawn for


def draw_number(target: ModelConfig, weight: Weight, kind: int) -> int:
    """Every weight draws from its own keys: what is folded into the growth's."""
    return kind * len(WEIGHTS) + [other.path for other in declared(target)].index(weight.path)


def grow_weight(growth: Growth, weight: Weight, value: jax.Array, draw: Callable[[int], jax.Array]) -> jax.Array:
    """One weight grown, or a part of it by the growth of that part; draw(kind) gives its initial values, or noise."""
    grown = expand(primal, growth, weight, value)
    if growth.added_from is not None:
        grown = _from_next_layer(growth, weight, value, grown)
    if growth.diagonal:
        grown = _diagonal(growth, weight, grown)
    if (fresh := growth.fresh(weight)) is not None:
        initial = draw(FRESH).astype(grown.dtype)
        where = np.where if all(isinstance(x, np.ndarray) for x in (grown, initial)) else jnp.where
        grown = where(fresh, initial, grown)
    if growth.noise and not weight.elementwise:
        grown = _mix(growth, growth.noise, weight, grown, draw(NOISE).astype(grown.dtype))
    return grown


def _from_next_layer(growth: Growth, weight: Weight, value: jax.Array, grown: jax.Array) -> jax.Array:
    """AKI (bert2BERT, arXiv 2110.07143): what a matrix of the next layer has, where width adds a written coordinate."""
    added = [
        along(write.added, number, grown.ndim)
        for number, _, write in growth.width_axes(weight)
        if write and write.added.any()
    ]
    if weight.elementwise or not weight.stacked or not added:
        return grown
    later = jnp.take(value, jnp.asarray(growth.added_from), axis=0, mode="clip")
    for number, read, write in growth.width_axes(weight):
        later = primal(read, write).take(later, number)
    return jnp.where(sum(added) > 0, later, grown)


def _diagonal(growth: Growth, weight: Weight, grown: jax.Array) -> jax.Array:
    """A copy reads the copies of its own number alone, as often as there are copies (HyperCloning's diagonal form)."""
    axes = growth.width_axes(weight)
    reads = [(n, read) for n, read, write in axes if read and not write and read.copied]
    writes = [(n, write) for n, read, write in axes if write and not read and write.copied]
    if weight.elementwise or not reads or not writes:
        return grown
    (row, read), (column, write) = reads[0], writes[0]
    count = along(np.bincount(read.read.index)[read.read.index], row, grown.ndim)
    of_row = along(read.read.occurrence, row, grown.ndim)
    of_column = along(write.write.occurrence, column, grown.ndim)
    return grown * jnp.where(jnp.asarray(of_column) % count == of_row, count, 0).astype(grown.dtype)


def _mix(growth: Growth, noise: Noise, weight: Weight, grown: jax.Array, drawn: jax.Array) -> jax.Array:
    """Noise as the growth asks for it; layers that start silent stay silent where it is to cancel."""
    if noise.cancel:
        drawn = _unseen(growth, weight, drawn)
    mixed = noise.keep * grown + noise.share * drawn
    if not noise.only_new:
        return mixed
    added = growth.added(weight)
    return grown if added is None else jnp.where(added, mixed, grown)


def _unseen(growth: Growth, weight: Weight, drawn: jax.Array) -> jax.Array:
    """The part of the noise that changes no activation: it reads the copies of a coordinate against each other."""
    against = False
    for number, read, write in growth.width_axes(weight):
        if read and not write and read.copied:
            against, drawn = True, read.write.remainder(drawn, number)
            drawn = jnp.where(along(read.origin >= 0, number, drawn.ndim), drawn, 0)  # only copies read each other
        elif write:
            written = write.fresh_write | (np.asarray(write.write.scale) != 0)
            drawn = jnp.where(along(written, number, drawn.ndim), drawn, 0)
    if weight.residual:
        drawn = drawn * along(jnp.asarray(growth.residual, drawn.dtype), 0, drawn.ndim)
    return drawn if against else jnp.zeros_like(drawn)
