"""Growth of a part of one weight, for checkpoints that do not fit into memory."""

import dataclasses
import math
from collections.abc import Callable
from functools import cache, partial, reduce
from typing import Any

import jax
import numpy as np
from scipy.special import ndtri

from growlm.growth.expand import grow_weight, number_of
from growlm.growth.maps import AxisMap, Dense, along, primal, select
from growlm.growth.plan import DRAW_FRESH, Growth
from growlm.growth.width import rng_of
from growlm.models.architecture import DecoderConfig
from growlm.models.axes import Axis, Kind, Weight

# read(held, rows) -> the source's array [*held, rows, ...]: `held` are the numbers along the axes that a weight is held
# once for (layers, experts), `rows` those along the first dimension after them.
Read = Callable[[tuple[np.ndarray, ...], np.ndarray], np.ndarray]


def grow_part(
    growth: Growth,
    target: DecoderConfig,
    key: Any,
    weight: Weight,
    unit: tuple[int, ...],
    rows: slice,
    read: Read,
    dtype: Any = np.float32,
) -> np.ndarray:
    """Grows some rows (slices along the first dimension) of one unit (a layer, an expert of a layer) of a weight.

    The result equals `growlm.grow` there, except for drawn values: every part draws from its own key, since drawing
    those of a whole weight would take the memory that this saves.

    Args:
      growth, target, key: as for the whole weight; no growth that learns.
      weight: of the lifted source. Its dimensions may be in any order, in which rows, `read` and the result are too.
      unit: the target's number along every axis that the weight is held once for; () outside of layers.
      rows: of the target.
      read: the source, in float32.
      dtype: of the result. Arithmetic is in float32.
    """
    dims = [dim for dim in weight.dims if not dim.many]
    if weight.elementwise:  # small, so grown whole: its first dimension may be read and written at once
        of_part, chosen = growth, np.arange(growth.axis(dims[0].axis, weight).old)
    else:
        axis = growth.axis(dims[0].axis, weight)
        chosen = axis.needed(rows)
        of_part = _with_axis(growth, weight, dims[0].axis, axis.part(rows, chosen))
    of_part, held = _of_unit(of_part, weight, unit)
    value, place = read(held, chosen), (*unit, rows.start)
    if (grown := _pasted(of_part, target, key, weight, place, value, dtype)) is None:
        draw = partial(_draw, of_part, target, key, weight, place)
        grown = np.asarray(grow_weight(of_part, target, weight, value, draw)).astype(dtype, copy=False)
    return grown[(0,) * len(unit)]


def _with_axis(growth: Growth, weight: Weight, axis: Axis, part: AxisMap) -> Growth:
    """The growth with another map of an axis for one weight."""
    return dataclasses.replace(growth, per_weight=growth.per_weight | {(axis.name, weight.path): part})


def _of_unit(growth: Growth, weight: Weight, unit: tuple[int, ...]) -> tuple[Growth, tuple[np.ndarray, ...]]:
    """The growth of one unit of a weight, and the source's slices that it needs along each of the unit's axes."""
    held = []
    for dim, number in zip((dim for dim in weight.all_dims if dim.many), unit, strict=True):
        axis, rows = growth.axis(dim.axis, weight), slice(number, number + 1)
        needed, effects, residual, factors = axis.needed(rows), growth.effects, growth.residual, growth.factors
        if dim.axis.kind is Kind.STACK:
            needed = reduce(np.union1d, (effect.source_layers(rows) for effect in effects), needed).astype(np.int64)
            effects = tuple(effect.at_layers(rows, needed) for effect in effects)
            residual = residual[rows]
            factors = {path: factor[rows] for path, factor in factors.items() if path == weight.path}
        growth = dataclasses.replace(growth, effects=effects, residual=residual, factors=factors)
        growth = _with_axis(growth, weight, dim.axis, axis.part(rows, needed))
        held.append(needed)
    return growth, tuple(held)


def _pasted(
    growth: Growth,
    target: DecoderConfig,
    key: Any,
    weight: Weight,
    place: tuple[int, ...],
    value: np.ndarray,
    dtype: Any,
) -> np.ndarray | None:
    """Fast path of `grow_part` for scaled copies and fresh slices; None if the growth needs the general path.

    Scaling and rounding come first, while the value is small, and fresh slices are drawn in the stored dtype.
    """
    slices = growth.fresh(weight)
    drawn = any(np.any(chosen) for chosen in slices)
    if any(effect.changes(growth, weight) for effect in growth.effects):
        return None
    if weight.offset or (drawn and (weight.elementwise or not weight.normal(target))):
        return None
    if (grown := _copied(growth, weight, value, dtype)) is None or not drawn:
        return grown
    rng = rng_of(key, "growth", number_of(DRAW_FRESH), weight.number, *place)
    for number, chosen in enumerate(slices):
        if np.any(chosen):
            shape = (*grown.shape[:number], int(np.count_nonzero(chosen)), *grown.shape[number + 1 :])
            grown[(slice(None),) * number + (_run(chosen),)] = _normal(rng, weight.std(target), shape, dtype)
    return grown


def _copied(growth: Growth, weight: Weight, value: np.ndarray, dtype: Any) -> np.ndarray | None:
    """Scales, rounds and copies a value; None if the copies of a slice differ in scale."""
    maps = [primal(read, write) for _, _, read, write in growth.dim_maps(weight)]
    scales = [gather.scale_of_old(size) for gather, size in zip(maps, value.shape, strict=True)]
    if any(scale is None for scale in scales):
        return None
    if weight.residual:
        scales[0] = scales[0] * growth.residual[0]
    scales[0] = scales[0] * growth.factors.get(weight.path, 1.0)
    for number, scale in enumerate(scales):
        if np.any(scale != 1):
            value = value * along(scale.astype(np.float32), number, value.ndim)
    bits = value.astype(dtype).view(np.dtype(f"u{np.dtype(dtype).itemsize}"))  # NumPy moves plain types faster
    for number, gather in reversed(list(enumerate(maps))):  # rows last: they are copied whole
        bits = select(bits, gather.index, number)
    return np.asarray(bits).view(dtype)


def _run(chosen: np.ndarray) -> np.ndarray | slice:
    """The chosen positions, as a slice if they are a run, which NumPy copies faster."""
    where = np.flatnonzero(chosen)
    return slice(where[0], where[-1] + 1) if where[-1] - where[0] == len(where) - 1 else where


def _draw(
    growth: Growth, target: DecoderConfig, key: Any, weight: Weight, place: tuple[int, ...], purpose: str
) -> np.ndarray:
    """Random values of the target's for a part."""
    own = weight.key(jax.random.fold_in(key, number_of(purpose)))
    if weight.elementwise:
        return np.asarray(weight.initial(jax.random.fold_in(own, place[0]), target))
    shape = tuple(growth.axis(dim.axis, weight).new for dim in weight.all_dims)
    if not weight.normal(target) and purpose == DRAW_FRESH:
        return np.asarray(weight.values(reduce(jax.random.fold_in, place, own), target, shape))
    rng = rng_of(key, "growth", number_of(purpose), weight.number, *place)
    return _normal(rng, weight.std(target), shape, np.float32)


LEVELS = 2**16


@cache
def _quantiles() -> np.ndarray:
    """float32 [LEVELS]: the midpoints of equally likely parts of the normal distribution, scaled to variance 1."""
    middles = ndtri((np.arange(LEVELS) + 0.5) / LEVELS)
    return (middles / middles.std()).astype(np.float32)


def _normal(rng: np.random.Generator, std: float, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Normal values of 65,536 levels, up to 4.3 std: exact ones take several times as long as a disk write."""
    count = math.prod(shape)
    levels = rng.integers(2**64, size=-(-count // 4), dtype=np.uint64).view(np.uint16)[:count]  # four in each
    # Other modes than "clip" work on a copy; no level is out of range.
    return (np.float32(std) * _quantiles()).astype(dtype).take(levels, mode="clip").reshape(shape)


def unchanged(growth: Growth, weight: Weight, unit: tuple[int, ...]) -> bool:
    """Whether one unit of a weight equals a unit of the source, bit for bit."""
    if weight.path in growth.factors or any(effect.changes(growth, weight) for effect in growth.effects):
        return False
    held = [dim.axis for dim in weight.all_dims if dim.many]
    for axis, number in zip(held, unit, strict=True):
        one = growth.axis(axis, weight)
        if isinstance(one.write, Dense) or one.fresh[number] or not one.write.plain[number]:
            return False
    if weight.residual and growth.residual[unit[0]] != 1:
        return False
    return all(growth.axis(axis, weight).identity for dim in weight.dims if not dim.many for axis in dim.both)
