"""What a growth is: one map for every axis, and what is done to the weights beside; and the provenance it leaves."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from growlm.growth.axis_map import AxisMap, along, compose
from growlm.weights import FIELD_OF_AXIS, Dim, ModelConfig, Weight


@dataclasses.dataclass(frozen=True)
class Noise:
    """Initialisation noise mixed into what was grown: W <- keep W + share e, on matrices.

    cancel: only the part of e that the copies of a coordinate do not notice together. only_new: on new slices only.
    scale: a name in NOISE_SCALES, which says how large e is.
    """

    share: float
    keep: float
    cancel: bool
    only_new: bool
    scale: str = "initial"

    def over_initial(self, weight: Weight, target: ModelConfig) -> float:
        """The standard deviation of e over that of the target's initial values, from which e is drawn."""
        return NOISE_SCALES[self.scale](weight, target) / weight.std(target)


def _paper_std(weight: Weight, target: ModelConfig) -> float:
    """arXiv 2405.15319, eq. 53 and 54: variance 1 / (d l^2) for what writes the stream in a block, 2 / (5 d) elsewhere.

    d is the width and l the number of layers, both of the target, into whose weights it is mixed.
    """
    if weight.residual:
        return 1 / (math.sqrt(target.embed) * max(target.layers, 1))
    return math.sqrt(2 / (5 * target.embed))


# (matrix, target) -> the standard deviation of the noise.
NOISE_SCALES: dict[str, Callable[[Weight, ModelConfig], float]] = {
    "initial": lambda weight, target: weight.std(target),  # ours: what the target would start from
    "paper": _paper_std,
}


@dataclasses.dataclass(frozen=True)
class Ramp:
    """How what is fresh comes in: under a mask that goes from 0 to 1 over so many tokens (MSG, arXiv 2305.02869)."""

    tokens: int
    in_turn: bool
    whole_blocks: bool
    norm: str


@dataclasses.dataclass(frozen=True, eq=False)
class Growth:
    """What an operator makes of two shapes: a map for every axis of the declaration.

    `residual` is the factor on what a layer adds to the stream: 0 where it starts silent. `own` holds the map of an
    axis for one weight, by (axis, path), where it differs. `added_from` is the layer from which every layer takes the
    coordinates that width adds (bert2BERT's AKI). `diagonal`: a copy of a neuron reads only its own copies.
    """

    maps: dict[str, AxisMap]
    residual: np.ndarray
    own: dict[tuple[str, str], AxisMap] = dataclasses.field(default_factory=dict)
    added_from: np.ndarray | None = None
    diagonal: bool = False
    noise: Noise | None = None
    ramp: Ramp | None = None
    recipe: Any = None  # of learn: how its matrices are trained

    @property
    def order(self) -> tuple[int, ...]:
        """The source layer of each target layer, -1 for a fresh one."""
        return tuple(self.maps["layers"].origin.tolist())

    @property
    def silent(self) -> list[int]:
        """The layers that add nothing to the stream."""
        return np.flatnonzero(np.asarray(self.residual) == 0).tolist()

    def axis(self, name: str, weight: Weight) -> AxisMap:
        """The map of an axis as one weight sees it."""
        return self.own.get((name, weight.path), self.maps[name])

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
        return [(number, read, write) for number, dim, read, write in self.axes(weight) if dim.writes != "layers"]

    def fresh(self, weight: Weight) -> np.ndarray | None:
        """Where a weight gets the target's initial values, broadcastable to its shape; None where nowhere."""
        return _any_of(self.fresh_slices(weight))

    def fresh_slices(self, weight: Weight) -> list[np.ndarray]:
        """The same, bool [new] for every array dimension: which of its slices are fresh throughout."""
        return self._marked(weight, lambda read: read.fresh_read, lambda write: write.fresh_write)

    def added(self, weight: Weight) -> np.ndarray | None:
        """Where a weight is a second copy or fresh, broadcastable to its shape; None where nowhere."""
        return _any_of(self._marked(weight, lambda read: read.added, lambda write: write.added))

    def _marked(self, weight: Weight, of_read: Any, of_write: Any) -> list[np.ndarray]:
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
    layers = second.maps["layers"].origin
    return Growth(maps, second.residual * np.where(layers < 0, 0.0, first.residual[layers]))


# What provenance says of a coordinate of an axis.
CARRIED, COPY, FRESH = 0, 1, 2


def provenance_of(growth: Growth) -> dict[str, np.ndarray]:
    """For every axis int32[2, new]: the old coordinate of each new one (-1: none), and CARRIED, COPY or FRESH."""
    return {
        name: np.stack([axis.origin, np.where(axis.fresh, FRESH, np.where(axis.added, COPY, CARRIED))]).astype(np.int32)
        for name, axis in growth.maps.items()
    }


def initial_provenance(config: ModelConfig) -> dict[str, np.ndarray]:
    """The provenance of a model that was never grown: every coordinate is its own."""
    return {
        axis: np.stack([np.arange(size), np.full(size, CARRIED)]).astype(np.int32)
        for axis in FIELD_OF_AXIS
        for size in [config.size(axis)]
    }


def slice_mask(weight: Weight, provenance: dict[str, jax.Array]) -> jax.Array:
    """bool, broadcastable to the weight: which of its slices the last growth added, copies and fresh ones.

    Provenance may be traced: one compiled step serves whatever was grown.
    """
    mask = np.zeros((1,) * len(weight.all_dims), bool)
    for number, dim in enumerate(weight.all_dims):
        for axis in filter(None, (dim.reads, dim.writes)):
            mask = mask | along(provenance[axis][1] >= COPY, number, mask.ndim)
    return mask
