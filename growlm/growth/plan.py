"""What a growth is: a lift, one map for every axis, and effects that are no maps; and the provenance it leaves."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from growlm.growth.effects import Effect
from growlm.growth.lifts import Lifted
from growlm.growth.maps import AxisMap, along, compose
from growlm.models.axes import DecoderConfig, Dim, Kind, Weight


@dataclasses.dataclass(frozen=True, eq=False)
class Growth:
    """What an operator makes of two shapes: a map for every axis of the declaration, by its name.

    Attributes:
      maps: by the name of the axis.
      stack: the name of the axis of layers.
      residual: float [new layers], the factor on what a layer adds to the stream: 0 where it adds nothing yet.
      own: the map of an axis for one weight, by (axis, path), where it differs.
      effects: what is done beside, in order.
      lift: the exact re-parametrisation of the source that comes before, where there is one.
    """

    maps: dict[str, AxisMap]
    stack: str
    residual: np.ndarray
    own: dict[tuple[str, str], AxisMap] = dataclasses.field(default_factory=dict)
    effects: tuple[Effect, ...] = ()
    lift: Lifted | None = None

    @property
    def order(self) -> tuple[int, ...]:
        """The source layer of each target layer, -1 for a fresh one."""
        return tuple(self.maps[self.stack].origin.tolist())

    @property
    def silent(self) -> list[int]:
        """The layers that add nothing to the stream."""
        return np.flatnonzero(np.asarray(self.residual) == 0).tolist()

    @property
    def masks(self) -> Effect | None:
        """The effect that re-parametrises the model while it trains, if there is one."""
        return next((effect for effect in self.effects if effect.reparametrises), None)

    @property
    def learner(self) -> Effect | None:
        """The effect whose maps are learned from batches, if there is one."""
        return next((effect for effect in self.effects if effect.learns), None)

    def start(self, source: DecoderConfig) -> DecoderConfig:
        """What the maps grow: the source, lifted where the growth lifts it."""
        return self.lift.config if self.lift else source

    def axis(self, axis: Any, weight: Weight) -> AxisMap:
        """The map of an axis as one weight sees it."""
        return self.own.get((axis.name, weight.path), self.maps[axis.name])

    def axes(self, weight: Weight) -> list[tuple[int, Dim, AxisMap | None, AxisMap | None]]:
        """For every array dimension its number, the Dim, and the maps of the axes it reads and writes."""
        return [
            (
                number,
                dim,
                self.axis(dim.reads, weight) if dim.reads else None,
                self.axis(dim.writes, weight) if dim.writes else None,
            )
            for number, dim in enumerate(weight.all_dims)
        ]

    def width_axes(self, weight: Weight) -> list[tuple[int, AxisMap | None, AxisMap | None]]:
        """The number and the maps of every array dimension but the layers."""
        return [
            (number, read, write) for number, dim, read, write in self.axes(weight) if dim.axis.kind is not Kind.STACK
        ]

    def fresh(self, weight: Weight) -> np.ndarray | None:
        """Where a weight gets the target's initial values, broadcastable to its shape; None where nowhere."""
        return _any_of(self.fresh_slices(weight))

    def fresh_slices(self, weight: Weight) -> list[np.ndarray]:
        """For every array dimension, bool [size]: the slices all of whose entries are freshly initialised."""
        return self._marked(weight, lambda read: read.fresh_read, lambda write: write.fresh_write)

    def added(self, weight: Weight) -> np.ndarray | None:
        """Where a weight is a second copy or fresh, broadcastable to its shape; None where nowhere."""
        return _any_of(self._marked(weight, lambda read: read.added, lambda write: write.added))

    def _marked(self, weight: Weight, of_read: Callable, of_write: Callable) -> list[np.ndarray]:
        return [
            (of_read(read) if read else False) | (of_write(write) if write else False)
            for _, _, read, write in self.axes(weight)
        ]


def _any_of(slices: list[np.ndarray]) -> np.ndarray | None:
    mask = np.zeros((1,) * len(slices), bool)
    for number, chosen in enumerate(slices):
        mask = mask | along(chosen, number, mask.ndim)
    return mask if mask.any() else None


def after(second: Growth, first: Growth) -> Growth:
    """One growth after another, by maps and silence."""
    maps = {axis: compose(second.maps[axis], first.maps[axis]) for axis in first.maps}
    own = {place: compose(second.maps[place[0]], axis) for place, axis in first.own.items()}
    layers = second.maps[second.stack].origin
    residual = second.residual * np.where(layers < 0, 0.0, first.residual[layers])
    return Growth(maps, first.stack, residual, own, lift=first.lift)


# What provenance says of a coordinate of an axis.
CARRIED, COPY, FRESH = 0, 1, 2


def provenance_of(growth: Growth) -> dict[str, np.ndarray]:
    """For every axis int32[2, new]: the old coordinate of each new one (-1: none), and CARRIED, COPY or FRESH."""
    return {
        name: np.stack([axis.origin, np.where(axis.fresh, FRESH, np.where(axis.added, COPY, CARRIED))]).astype(np.int32)
        for name, axis in growth.maps.items()
    }


def initial_provenance(config: DecoderConfig) -> dict[str, np.ndarray]:
    """The provenance of a model that was never grown: every coordinate is its own."""
    sizes = {axis.name: config.size(axis) for axis in config.architecture.axes}
    return {name: np.stack([np.arange(n), np.full(n, CARRIED)]).astype(np.int32) for name, n in sizes.items()}


def slice_mask(weight: Weight, provenance: dict[str, jax.Array]) -> jax.Array:
    """bool, broadcastable to the weight: which of its slices the last growth added, copies and fresh ones.

    Provenance may be traced: one compiled step serves whatever was grown.
    """
    mask = np.zeros((1,) * len(weight.all_dims), bool)
    for number, dim in enumerate(weight.all_dims):
        for axis in dim.both:
            mask = mask | along(provenance[axis.name][1] >= COPY, number, mask.ndim)
    return mask
