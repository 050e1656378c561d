"""A growth by a rule for each kind of axis: what an operator says of the kinds, put together for an architecture."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from growlm.growth.depth import stack_order
from growlm.growth.effects import Effect
from growlm.growth.heads import head_map, score_maps
from growlm.growth.maps import AxisMap, Gather, identity
from growlm.growth.norms import NORM_RULES
from growlm.growth.plan import Growth
from growlm.growth.width import (
    cycled,
    fresh,
    places,
    tied_final,
)
from growlm.models.architecture import DecoderConfig
from growlm.models.axes import Axis, Kind

AxisRule = Callable[[Axis], AxisMap]


def by_kind(
    source: DecoderConfig,
    target: DecoderConfig,
    *,
    layers: np.ndarray,
    residual: np.ndarray,
    stream: AxisRule,
    width: AxisRule,
    experts: AxisRule | None = None,
    head: AxisRule | None = None,
    effects: Sequence[Effect] = (),
) -> Growth:
    """The growth whose maps are given by a rule for each kind of axis.

    Args:
      layers: int [new layers], the source layer of each, -1 for a fresh one.
      residual: float [new layers], the factor on a layer's residual writers.
      stream: for the residual stream.
      width: for what norms hand on, inner axes and heads.
      experts: by default whole copies.
      head: for the coordinates of a head, by default `head_map`.
      effects: applied after the maps, in order.

    Fixed axes stay, and new tokens are fresh. A tied head reads through the inverse of the stream's own map.
    """
    architecture, none = target.architecture, layers < 0
    norm = NORM_RULES[architecture.norm.kind]
    copies = Gather.copies(layers)
    gains = architecture.norm.scale or architecture.last_norm.scale

    def through_norms(axis: Axis) -> AxisMap:
        return stream(axis) if gains else dataclasses.replace(stream(axis), rms=1.0)  # no gain takes a factor

    def read(axis: Axis) -> AxisMap:
        # Without a gain in between, what a norm hands on has the stream's own scale.
        return width(axis) if architecture.has_gain(axis) else norm.handed(through_norms(architecture.stream))

    rules: dict[Kind, AxisRule] = {
        Kind.STREAM: through_norms,
        Kind.NORMED: through_norms,
        Kind.READ: read,
        Kind.INNER: width,
        Kind.HEADS: width,
        Kind.HEAD: head or (lambda axis: head_map(axis, source, target)),
        Kind.EXPERTS: experts or (lambda axis: cycled(source.size(axis), target.size(axis))),
        Kind.STACK: lambda axis: AxisMap.make(source.size(axis), copies, copies, fresh_write=none, fresh_read=none),
        Kind.FIXED: lambda axis: identity(source.size(axis)),
        Kind.VOCAB: lambda axis: fresh(places(axis, source, target), source.size(axis)),
    }
    maps = {axis.name: rules[axis.kind](axis) for axis in architecture.axes}
    stream_map = maps[architecture.stream.name]
    if architecture.tied(target) and not stream_map.fresh_write.any():
        gain = architecture.has_gain(architecture.final)
        maps[architecture.final.name] = tied_final(stream_map, None if gain else norm.handed(stream_map))
    return Growth(maps, architecture.stack.name, residual, score_maps(source, target, maps), effects=tuple(effects))


def ordered(order: str | Sequence[int], source: DecoderConfig, target: DecoderConfig) -> np.ndarray:
    """int64 [new layers]: the source layer of each, by `stack_order`."""
    return np.asarray(stack_order(order, source, target), np.int64)


def repeats(layers: np.ndarray) -> np.ndarray:
    """bool [new layers]: second and later copies of a source layer."""
    return np.array([layer in layers[:position] for position, layer in enumerate(layers)], bool)
