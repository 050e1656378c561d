"""A part of one weight, grown alone: what a checkpoint that does not fit into memory is grown by."""

import dataclasses
import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import numpy as np
from scipy.special import ndtri

from growlm.growth.axis_map import along, select
from growlm.growth.expand import FRESH, draw_number, grow_weight, primal
from growlm.growth.plan import Growth
from growlm.growth.width import rng_of
from growlm.weights import ModelConfig, Weight

# read(layers, rows): these source layers of a weight (None where it has no layers), and of each these slices along its
# first dimension: [layers, rows, ...], or [rows, ...].
Read = Callable[[np.ndarray | None, np.ndarray], np.ndarray]


def grow_part(
    growth: Growth,
    target: ModelConfig,
    key: Any,
    weight: Weight,
    layer: int | None,
    rows: slice,
    read: Read,
    dtype: Any = np.float32,
) -> np.ndarray:
    """Some slices, along the first dimension, of one layer of a grown weight.

    Without fresh values it is what `growlm.grow` gives there. Fresh values are drawn for every part from a key of its
    own: to draw those of a whole weight and throw most of them away would take the memory that this is to save.

    Args:
      growth, target, key: as for the whole; no growth that learns.
      weight: which; its dimensions may be in any order, and rows, `read` and the result go by that order.
      layer: of the target; None for a weight outside the blocks.
      rows: of the target.
      read: the source, in float32, in which it is computed.
      dtype: to which the result is rounded.
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
    value, place = read(layers, chosen), (layer or 0, rows.start)
    if (grown := _pasted(of_part, target, key, weight, place, value, dtype)) is None:
        draw = partial(_draw, of_part, target, key, weight, place)
        grown = np.asarray(grow_weight(of_part, weight, value, draw)).astype(dtype, copy=False)
    return grown[0] if weight.stacked else grown


def _pasted(
    growth: Growth,
    target: ModelConfig,
    key: Any,
    weight: Weight,
    place: tuple[int, int],
    value: np.ndarray,
    dtype: Any,
) -> np.ndarray | None:
    """The same where all there is to do is to copy with scales and to put fresh slices between the copies.

    Scales and the rounding come first, while the value is small; fresh slices are drawn in the dtype that is stored.
    None where there is more to do.
    """
    slices = growth.fresh_slices(weight)
    drawn = any(np.any(chosen) for chosen in slices)
    if growth.added_from is not None or growth.diagonal or growth.noise or (drawn and weight.elementwise):
        return None
    if (grown := _copied(growth, weight, value, dtype)) is None or not drawn:
        return grown
    rng = rng_of(key, "growth", draw_number(target, weight, FRESH), *place)
    for number, chosen in enumerate(slices):
        if np.any(chosen):
            shape = (*grown.shape[:number], np.count_nonzero(chosen), *grown.shape[number + 1 :])
            grown[(slice(None),) * number + (_run(chosen),)] = _normal(rng, weight.std(target), shape, dtype)
    return grown


def _copied(growth: Growth, weight: Weight, value: np.ndarray, dtype: Any) -> np.ndarray | None:
    """The value scaled, rounded and copied; None where the copies of a slice differ in scale."""
    maps = [primal(read, write) for _, _, read, write in growth.axes(weight)]
    scales = [gather.scale_of_old(size) for gather, size in zip(maps, value.shape, strict=True)]
    if any(scale is None for scale in scales):
        return None
    if weight.residual:
        scales[0] = scales[0] * (growth.residual[0] if weight.stacked else 1)
    for number, scale in enumerate(scales):
        if np.any(scale != 1):
            value = value * along(scale.astype(np.float32), number, value.ndim)
    bits = value.astype(dtype).view(np.dtype(f"u{np.dtype(dtype).itemsize}"))  # NumPy moves plain types faster
    for number, gather in reversed(list(enumerate(maps))):  # rows last: they are copied whole
        bits = select(bits, gather.index, number)
    return bits.view(dtype)


def _run(chosen: np.ndarray) -> np.ndarray | slice:
    """Where it is true, as a slice if it can be: NumPy copies runs faster."""
    where = np.flatnonzero(chosen)
    return slice(where[0], where[-1] + 1) if where[-1] - where[0] == len(where) - 1 else where


def _draw(
    growth: Growth, target: ModelConfig, key: Any, weight: Weight, place: tuple[int, int], kind: int
) -> np.ndarray:
    """The target's initial values for a part, or noise."""
    number = draw_number(target, weight, kind)
    if weight.elementwise:
        return np.asarray(weight.initial(jax.random.fold_in(jax.random.fold_in(key, number), place[0]), target))
    shape = tuple(growth.axis(dim.axis, weight).new for dim in weight.all_dims)
    std = weight.std(target) * (1 if kind == FRESH else growth.noise.over_initial(weight, target))
    return _normal(rng_of(key, "growth", number, *place), std, shape, np.float32)


LEVELS = 2**16


@cache
def _quantiles() -> np.ndarray:
    """float32 [LEVELS]: the middles of so many equally likely parts of the normal distribution, with variance 1."""
    middles = ndtri((np.arange(LEVELS) + 0.5) / LEVELS)
    return (middles / middles.std()).astype(np.float32)


def _normal(rng: np.random.Generator, std: float, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Normal values of 65,536 levels, up to 4.3 std: exact ones would take several times as long as a disk does.

    A bfloat16 has fewer levels.
    """
    count = math.prod(shape)
    levels = rng.integers(2**64, size=-(-count // 4), dtype=np.uint64).view(np.uint16)[:count]  # four in each
    # Other modes than "clip" work on a copy; no level is out of range.
    return (np.float32(std) * _quantiles()).astype(dtype).take(levels, mode="clip").reshape(shape)


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
