"""A part of one weight, grown alone: what a checkpoint that does not fit into memory is grown by."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from growlm.growth.expand import draw_key, grow_weight
from growlm.growth.plan import Growth
from growlm.weights import ModelConfig, Weight

# read(layers, rows): these source layers of a weight (None where it has no layers), and of each these slices along its
# first dimension: [layers, rows, ...], or [rows, ...].
Read = Callable[[np.ndarray | None, np.ndarray], np.ndarray]


def grow_part(
    growth: Growth, target: ModelConfig, key: Any, weight: Weight, layer: int | None, rows: slice, read: Read
) -> np.ndarray:
    """Some slices, along the first dimension, of one layer of a grown weight.

    Without fresh values it is what `growlm.grow` gives there. Fresh values are drawn for every part from a key of its
    own: to draw those of a whole weight and throw most of them away would take the memory that this is to save.

    Args:
      growth, target, key: as for the whole; no growth that learns.
      weight: which; its dimensions may be in any order, and rows, `read` and the result go by that order.
      layer: of the target; None for a weight outside the blocks.
      rows: of the target.
      read: the source, in the dtype in which it is to be computed.
    """
    axis = weight.dims[0].axis
    if weight.elementwise:  # its first dimension may be read and written at once: it is small, and grown whole
        of_part, chosen = growth, np.arange(growth.maps[axis].old)
    else:
        chosen = growth.maps[axis].needed(rows)
        of_part = dataclasses.replace(growth, maps=growth.maps | {axis: growth.maps[axis].part(rows, chosen)})
    layers = None
    if weight.stacked:
        of_part, layers = _at_layer(of_part, layer)
    shape = tuple(of_part.axis(dim.axis, weight).new for dim in weight.all_dims)

    def draw(kind: int) -> jax.Array:
        own = draw_key(key, target, weight, kind)
        for place in (layer or 0, rows.start):
            own = jax.random.fold_in(own, place)
        return weight.values(own, target, shape)

    grown = np.asarray(grow_weight(of_part, weight, read(layers, chosen), draw))
    return grown[0] if weight.stacked else grown


def _at_layer(growth: Growth, layer: int) -> tuple[Growth, np.ndarray]:
    """The growth of one layer alone, and the source layers that it takes anything from."""
    axis, rows = growth.maps["layers"], slice(layer, layer + 1)
    needed, later = axis.needed(rows), growth.added_from
    if later is not None:
        needed = np.union1d(needed, later[rows])
        later = np.searchsorted(needed, later[rows])
    maps = growth.maps | {"layers": axis.part(rows, needed)}
    return dataclasses.replace(growth, maps=maps, residual=growth.residual[rows], added_from=later), needed


def unchanged(growth: Growth, weight: Weight, layer: int | None) -> bool:
    """Whether one layer of a weight is that of a source layer, to the bit."""
    if growth.noise is not None and not weight.elementwise:
        return False
    if weight.stacked and growth.maps["layers"].fresh[layer]:
        return False
    if weight.residual and growth.residual[layer] != 1:
        return False
    return all((read or write).identity and (write or read).identity for _, read, write in growth.width_axes(weight))
