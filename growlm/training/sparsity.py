"""Sparse pre-training under a static mask (SPDF, arXiv 2303.10464): which weights are kept, and what they cost.

The matrices of blocks are sparse; embedding, head, gains, biases and routers stay dense. Every row, the weights over
which one coordinate of a matrix's output is summed, keeps as many weights as every other, drawn uniformly: no output is
empty, and all layers are as sparse. A mask depends on the run's seed and the weight's path alone, and a mask of lower
sparsity has that of a higher one in it.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from growlm.errors import InputError, check_range
from growlm.models import DecoderConfig, Params, Weight, nest, path_of
from growlm.models.sharding import shardings_of
from growlm.state import TrainState
from growlm.training.optimizer import GROUPS

# Of the key of masks, so that nothing else that a seed starts draws the same.
STREAM = 2303_10464


def _read(weight: Weight) -> list[int]:
    """The dimensions of the array over which a row goes."""
    return [i for i, dim in enumerate(weight.all_dims) if dim.reads and not dim.writes]


def _row(weight: Weight, model: DecoderConfig) -> int:
    return math.prod(weight.shape(model)[i] for i in _read(weight))


def sparse_weights(model: DecoderConfig) -> list[Weight]:
    """The weights that a mask is drawn for."""
    return [weight for weight in model.weights if GROUPS["matrices"](weight) and _read(weight)]


def kept_in_row(weight: Weight, model: DecoderConfig, sparsity: float) -> int:
    """How many weights of each row are kept."""
    return round((1 - sparsity) * _row(weight, model))


def check_sparsity(model: DecoderConfig, sparsity: float) -> None:
    """Raises InputError unless every row keeps a weight."""
    check_range("stage.sparsity", sparsity, low=0, high=1, high_allowed=False)
    for weight in sparse_weights(model):
        if not kept_in_row(weight, model, sparsity):
            row = _row(weight, model)
            raise InputError(
                f"stage.sparsity must leave a weight in each row of {weight.path}, of {row}, got {sparsity}"
            )


def density(model: DecoderConfig, sparsity: float) -> Callable[[Weight], float] | None:
    """weight -> the share of it that is kept; None where all is."""
    if not sparsity:
        return None
    kept = {one.path: kept_in_row(one, model, sparsity) / _row(one, model) for one in sparse_weights(model)}
    return lambda weight: kept.get(weight.path, 1.0)


def draw(model: DecoderConfig, sparsity: float, key: jax.Array) -> Params:
    """bool masks of the sparse weights at their places in the parameter tree: which are kept."""

    def mask(weight: Weight) -> jax.Array:
        read, kept = _read(weight), kept_in_row(weight, model, sparsity)
        drawn = jax.random.uniform(weight.key(jax.random.fold_in(key, STREAM)), weight.shape(model))
        rows = jnp.moveaxis(drawn, read, range(-len(read), 0))
        ranks = rows.reshape(*rows.shape[: -len(read)], -1).argsort(axis=-1).argsort(axis=-1)
        return jnp.moveaxis((ranks < kept).reshape(rows.shape), range(-len(read), 0), read)

    return nest({weight.path: mask(weight) for weight in sparse_weights(model)})


def abstract_kept(model: DecoderConfig, sparsity: float, mesh: Mesh) -> Params:
    """The shapes and shardings of the masks, which are those of the weights."""
    kept = jax.eval_shape(partial(draw, model, sparsity), jax.random.key(0))
    put = partial(jax.ShapeDtypeStruct, dtype=bool)
    return jax.tree.map(lambda leaf, where: put(leaf.shape, sharding=where), kept, shardings_of(kept, model, mesh))


def draw_kept(model: DecoderConfig, sparsity: float, key: jax.Array, mesh: Mesh) -> Params:
    """The masks, each part drawn where it lies."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_kept(model, sparsity, mesh))
    return jax.jit(partial(draw, model, sparsity), out_shardings=shardings)(key)


def by_path(kept: Params | None) -> dict[str, jax.Array]:
    """The masks by the paths of their weights."""
    return {path_of(path): mask for path, mask in jax.tree_util.tree_leaves_with_path(kept)}


def emptied(state: TrainState, kept: Params | None) -> TrainState:
    """A state whose weights are zero where they are not kept, with their averaged copy; as it is without masks."""
    if kept is None:
        return state
    masks = by_path(kept)

    def of_leaf(path: tuple, leaf: jax.Array) -> jax.Array:
        mask = masks.get(path_of(path))
        return leaf if mask is None else jnp.where(mask, leaf, 0)

    def of_trees(*trees: Any) -> Any:
        return [jax.tree_util.tree_map_with_path(of_leaf, tree) for tree in trees]

    trees = state.params, state.ema
    where = [jax.tree.map(lambda leaf: leaf.sharding, tree) for tree in trees]
    params, ema = jax.jit(of_trees, out_shardings=where)(*trees)
    return dataclasses.replace(state, params=params, ema=ema)
