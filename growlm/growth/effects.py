"""Effects: what a growth does beside its axis maps, such as noise or copies taken from the next layer.

Callers loop over a growth's effects and know them by the hooks of `Effect` alone. Masks (masks.py) and learned maps
(learned.py) are effects too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from growlm.growth.maps import Array, along, numpy_or_jax, overlay, primal
from growlm.growth.plan import DRAW_NOISE, Draw, Effect, Growth
from growlm.models.architecture import DecoderConfig
from growlm.models.axes import Weight


def _paper_std(weight: Weight, target: DecoderConfig) -> float:
    """arXiv 2405.15319, eq. 53 and 54: variance 1 / (d l^2) for residual writers, 2 / (5 d) elsewhere."""
    width = target.size(target.architecture.stream)
    return 1 / (math.sqrt(width) * max(target.depth, 1)) if weight.residual else math.sqrt(2 / (5 * width))


# (weight, target) -> the standard deviation of the noise.
NOISE_SCALES: dict[str, Callable[[Weight, DecoderConfig], float]] = {
    "initial": lambda weight, target: weight.std(target),
    "paper": _paper_std,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Noise(Effect):
    """Initialisation noise e on every weight but gains and biases: W <- old_weight_scale W + share e.

    cancel: only the part of e that cancels among the copies of a coordinate. only_new: on new slices only. scale: a
    name in NOISE_SCALES. alike: the axes of experts whose copies get equal weights from their router, so that noise on
    what they add cancels too (not in folders, which grow expert by expert).
    """

    name = "noise"
    share: float
    old_weight_scale: float
    cancel: bool
    only_new: bool
    scale: str = "initial"
    alike: tuple[str, ...] = ()

    def breaks(self, growth: Growth, target: DecoderConfig) -> str:
        """Noise that cancels keeps the function, unless only its part in new slices is added."""
        return "" if self.cancel and not self.only_new else f"initialisation noise is mixed in, share {self.share:g}"

    def breaks_gradients(self, growth: Growth, target: DecoderConfig) -> str:
        """Unequal copies have unequal gradients."""
        return "copies are not read alike"

    def hides(self, growth: Growth) -> str:
        """Noise that cancels among the copies of a coordinate is gone in their sum."""
        return "" if self.cancel and not self.only_new else "initialisation noise is mixed in"

    def changes(self, growth: Growth, weight: Weight) -> bool:
        """Matrices, lookups and routers."""
        return not weight.elementwise

    def draws(self) -> bool:
        """Always."""
        return True

    def compares_copies(self) -> bool:
        """Noise that cancels does so among all copies."""
        return self.cancel

    def change(
        self, growth: Growth, target: DecoderConfig, weight: Weight, value: Array, grown: Array, draw: Draw
    ) -> Array:
        """Adds the noise. With cancel, layers with zero residual writers keep them zero."""
        if weight.elementwise:
            return grown
        drawn = (draw(DRAW_NOISE) * (NOISE_SCALES[self.scale](weight, target) / weight.std(target))).astype(grown.dtype)
        if self.cancel:
            drawn = _cancelling(growth, weight, drawn, self.alike)
        mixed = self.old_weight_scale * grown + self.share * drawn
        if not self.only_new:
            return mixed
        return overlay(grown, mixed, growth.added(weight))


def _cancelling(growth: Growth, weight: Weight, drawn: Array, alike: tuple[str, ...]) -> Array:
    """Projects noise so that the function is kept: along read dimensions it sums to zero over a coordinate's copies.

    So it does over the copies of an expert that are weighed alike, in what they add to the stream. A weight with none
    of these gets no noise.
    """
    reads_copies, xp = False, numpy_or_jax(drawn)
    for dimension, read, write in growth.width_maps(weight):
        if read is not None and write is None and read.copied:
            reads_copies, drawn = True, read.gathers[0].remainder(drawn, dimension)
            drawn = xp.where(along(read.origin >= 0, dimension, drawn.ndim), drawn, 0)  # fresh ones have no copies
        elif read is not None and write is None:  # what is written afresh is not read yet
            drawn = xp.where(along(~read.fresh_write, dimension, drawn.ndim), drawn, 0)
        elif write is not None:
            dim = weight.all_dims[dimension]
            if weight.residual and dim.many and dim.axis.name in alike:
                reads_copies, drawn = True, write.gathers[0].remainder(drawn, dimension)
            written = write.fresh_write | (np.asarray(write.gathers[0].scale) != 0)
            drawn = xp.where(along(written, dimension, drawn.ndim), drawn, 0)
    if weight.residual:
        drawn = drawn * along(xp.asarray(growth.residual, drawn.dtype), 0, drawn.ndim)
    return drawn if reads_copies else xp.zeros_like(drawn)


@dataclasses.dataclass(frozen=True, eq=False)
class Aki(Effect):
    """AKI (bert2BERT, arXiv 2110.07143): written coordinates that width adds are copied from the next layer.

    layers: int [new layers], the source layer that each layer takes them from.
    """

    name = "aki"
    first_alone = True
    layers: np.ndarray

    def breaks(self, growth: Growth, target: DecoderConfig) -> str:
        """If width adds coordinates to a layer, and the next layer is another one."""
        grows = any(self.changes(growth, weight) for weight in target.weights)
        another = not np.array_equal(self.layers, growth.order)
        return "new coordinates come from the next layer" if grows and another else ""

    def changes(self, growth: Growth, weight: Weight) -> bool:
        """Matrices of layers that write coordinates which width adds."""
        return weight.stacked and not weight.elementwise and any(map(np.any, self._added(growth, weight)))

    def _added(self, growth: Growth, weight: Weight) -> list[np.ndarray]:
        """For every array dimension, bool [size]: second copies of what it writes."""
        added = [np.zeros(growth.axis(dim.axis, weight).new, bool) for dim in weight.all_dims]
        for number, _, write in growth.width_maps(weight):
            if write is not None:
                added[number] = write.added & (write.origin >= 0)
        return added

    def change(
        self, growth: Growth, target: DecoderConfig, weight: Weight, value: Array, grown: Array, draw: Draw
    ) -> Array:
        """Takes added coordinates of matrices from the next layer."""
        if not self.changes(growth, weight):
            return grown
        later = numpy_or_jax(value).take(value, self.layers, axis=0, mode="clip")
        for dimension, read, write in growth.width_maps(weight):
            later = primal(read, write).take(later, dimension)
        later = growth.scaled(weight, later)
        return overlay(grown, later, self._added(growth, weight))

    def source_layers(self, rows: slice) -> np.ndarray:
        """The next layers."""
        return self.layers[rows]

    def at_layers(self, rows: slice, needed: np.ndarray) -> Aki:
        """With the next layers by their position among the needed ones."""
        return Aki(np.searchsorted(needed, self.layers[rows]))

    def report(self) -> dict[str, Any]:
        """The layers as a list."""
        return {"layers": self.layers.tolist()}


@dataclasses.dataclass(frozen=True, eq=False)
class BlockDiagonal(Effect):
    """A copy of a neuron reads only copies of its own number (HyperCloning's diagonal form, arXiv 2409.12903)."""

    name = "block_diagonal"

    def breaks_gradients(self, growth: Growth, target: DecoderConfig) -> str:
        """Where coordinates of an axis have unequal numbers of copies."""
        for name, axis in growth.maps.items():
            origin = axis.origin
            if np.all(origin >= 0) and len(set(np.bincount(origin)[origin])) > 1:
                return f"coordinates of {name} have unequal numbers of copies, and each reads its own"
        return ""

    def _copied_dims(self, growth: Growth, weight: Weight) -> tuple[list, list]:
        """(dimension, map) of the dimensions that read copies, and of those that write copies."""
        maps = growth.width_maps(weight)
        reads = [(number, read) for number, read, write in maps if write is None and read is not None and read.copied]
        writes = [
            (number, write) for number, read, write in maps if read is None and write is not None and write.copied
        ]
        return reads, writes

    def changes(self, growth: Growth, weight: Weight) -> bool:
        """Matrices that read copies and write copies."""
        return not weight.elementwise and all(self._copied_dims(growth, weight))

    def compares_copies(self) -> bool:
        """They are counted."""
        return True

    def change(
        self, growth: Growth, target: DecoderConfig, weight: Weight, value: Array, grown: Array, draw: Draw
    ) -> Array:
        """Zeroes reads between copies of different numbers, and scales the rest by the number of copies."""
        if not self.changes(growth, weight):
            return grown
        ((row, read), *_), ((column, write), *_) = self._copied_dims(growth, weight)
        xp = numpy_or_jax(grown)
        count = along(xp.asarray(np.bincount(read.read.index)[read.read.index], np.int32), row, grown.ndim)
        of_row = along(xp.asarray(read.read.occurrence, np.int32), row, grown.ndim)
        of_column = along(xp.asarray(write.write.occurrence, np.int32), column, grown.ndim)
        return grown * xp.where(of_column % count == of_row, count, 0).astype(grown.dtype)
