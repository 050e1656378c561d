"""What a growth does that is no map of an axis: noise, coordinates of the next layer, copies that read their own.

Callers loop over a growth's effects and ask them through the hooks of `Effect`; none is known by its name. Masks and
learned maps, which need more of the model, are in files of their own.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import numpy as np

from growlm.growth.maps import along, numpy_or_jax, primal
from growlm.models.axes import DecoderConfig, Weight

Draw = Callable[[str], Any]  # (what for) -> the target's initial values, from a key of their own


@dataclasses.dataclass(frozen=True, eq=False)
class Effect:
    """The hooks; each does nothing unless an effect says otherwise.

    name: as the report has it. reparametrises: it acts on the parameters while the model trains, see masks.py. learns:
    its maps are learned from batches, see learned.py.
    """

    name: ClassVar[str]
    reparametrises: ClassVar[bool] = False
    learns: ClassVar[bool] = False

    def acting(self, growth: Any, target: DecoderConfig) -> Any:
        """The growth as it acts when training begins, of which claims are made."""
        return growth

    def breaks(self) -> str:
        """Why the function is not kept, if this alone is enough."""
        return ""

    def breaks_gradients(self, growth: Any, target: DecoderConfig) -> str:
        """Why gradients are not the source's under the dual map, if this alone is enough."""
        return ""

    def changes(self, growth: Any, weight: Weight) -> bool:
        """Whether it changes the values of a weight beside what the maps do."""
        return False

    def change(self, growth: Any, target: DecoderConfig, weight: Weight, value: Any, grown: Any, draw: Draw) -> Any:
        """The grown values changed; `value` are the source's."""
        return grown

    def draws(self) -> bool:
        """Whether it draws random values."""
        return False

    def source_layers(self, rows: slice) -> np.ndarray:
        """The source layers that it takes anything from for these layers of the target."""
        return np.zeros(0, np.int64)

    def at_layers(self, rows: slice, needed: np.ndarray) -> "Effect":
        """The effect on these layers alone, where only the `needed` (sorted) source layers are there."""
        return self

    def report(self) -> dict[str, Any]:
        """Plain JSON."""
        return dataclasses.asdict(self)


NOISE = "noise"  # what values are drawn for


def _paper_std(weight: Weight, target: DecoderConfig) -> float:
    """arXiv 2405.15319, eq. 53 and 54: variance 1 / (d l^2) for what writes the stream in a layer, 2 / (5 d) elsewhere.

    d is the width and l the number of layers, both of the target, into whose weights it is mixed.
    """
    width = target.size(target.architecture.stream)
    return 1 / (math.sqrt(width) * max(target.depth, 1)) if weight.residual else math.sqrt(2 / (5 * width))


# (matrix, target) -> the standard deviation of the noise.
NOISE_SCALES: dict[str, Callable[[Weight, DecoderConfig], float]] = {
    "initial": lambda weight, target: weight.std(target),  # ours: what the target would start from
    "paper": _paper_std,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Noise(Effect):
    """Initialisation noise mixed into what was grown: W <- keep W + share e, on what is no gain and no bias.

    cancel: only the part of e that the copies of a coordinate do not notice together. only_new: on new slices only.
    scale: a name in NOISE_SCALES, which says how large e is.
    """

    name = "noise"
    share: float
    keep: float
    cancel: bool
    only_new: bool
    scale: str = "initial"

    def breaks(self) -> str:
        """Noise that cancels keeps the function."""
        return "" if self.cancel else f"initialisation noise is mixed in, share {self.share:g}"

    def breaks_gradients(self, growth: Any, target: DecoderConfig) -> str:
        """Copies with different weights have different gradients."""
        return "copies are not read alike"

    def changes(self, growth: Any, weight: Weight) -> bool:
        """Every matrix and lookup."""
        return not weight.elementwise

    def draws(self) -> bool:
        """Always."""
        return True

    def change(self, growth: Any, target: DecoderConfig, weight: Weight, value: Any, grown: Any, draw: Draw) -> Any:
        """Mixed; layers that start silent stay silent where the noise is to cancel."""
        if weight.elementwise:
            return grown
        # What is drawn has the size of the target's initial values.
        drawn = (draw(NOISE) * (NOISE_SCALES[self.scale](weight, target) / weight.std(target))).astype(grown.dtype)
        if self.cancel:
            drawn = _unseen(growth, weight, drawn)
        mixed = self.keep * grown + self.share * drawn
        if not self.only_new:
            return mixed
        added = growth.added(weight)
        return grown if added is None else numpy_or_jax(mixed, grown).where(added, mixed, grown)


def _unseen(growth: Any, weight: Weight, drawn: jax.Array) -> jax.Array:
    """The part of the noise that changes no activation: it reads the copies of a coordinate against each other."""
    against, xp = False, numpy_or_jax(drawn)
    for number, read, write in growth.width_axes(weight):
        if read and not write and read.copied:
            against, drawn = True, read.write.remainder(drawn, number)
            drawn = xp.where(along(read.origin >= 0, number, drawn.ndim), drawn, 0)  # only copies read each other
        elif write:
            written = write.fresh_write | (np.asarray(write.write.scale) != 0)
            drawn = xp.where(along(written, number, drawn.ndim), drawn, 0)
    if weight.residual:
        drawn = drawn * along(xp.asarray(growth.residual, drawn.dtype), 0, drawn.ndim)
    return drawn if against else xp.zeros_like(drawn)


@dataclasses.dataclass(frozen=True, eq=False)
class NextLayer(Effect):
    """AKI (bert2BERT, arXiv 2110.07143): the coordinates that width adds are copied from the next layer.

    layers: int [new layers], the source layer from which every layer takes them.
    """

    name = "next_layer"
    layers: np.ndarray

    def breaks(self) -> str:
        """They are other neurons."""
        return "new coordinates come from the next layer"

    def changes(self, growth: Any, weight: Weight) -> bool:
        """A matrix of a layer that writes coordinates which width adds."""
        return weight.stacked and not weight.elementwise and bool(self._added(growth, weight))

    def _added(self, growth: Any, weight: Weight) -> list[np.ndarray]:
        number_of = len(weight.all_dims)
        axes = growth.width_axes(weight)
        return [along(write.added, number, number_of) for number, _, write in axes if write and write.added.any()]

    def change(self, growth: Any, target: DecoderConfig, weight: Weight, value: Any, grown: Any, draw: Draw) -> Any:
        """What a matrix of the next layer has, where width adds a written coordinate."""
        if not self.changes(growth, weight):
            return grown
        later = numpy_or_jax(value).take(value, self.layers, axis=0, mode="clip")
        for number, read, write in growth.width_axes(weight):
            later = primal(read, write).take(later, number)
        return numpy_or_jax(later, grown).where(sum(self._added(growth, weight)) > 0, later, grown)

    def source_layers(self, rows: slice) -> np.ndarray:
        """The next layers."""
        return self.layers[rows]

    def at_layers(self, rows: slice, needed: np.ndarray) -> "NextLayer":
        """The next layers, by their place among the needed."""
        return NextLayer(np.searchsorted(needed, self.layers[rows]))

    def report(self) -> dict[str, Any]:
        """The layers as a list."""
        return {"layers": self.layers.tolist()}


@dataclasses.dataclass(frozen=True, eq=False)
class BlockDiagonal(Effect):
    """A copy of a neuron reads only its own copies (HyperCloning's diagonal form, arXiv 2409.12903)."""

    name = "diagonal"

    def breaks_gradients(self, growth: Any, target: DecoderConfig) -> str:
        """Copies of a coordinate that has more of them see more of the gradient."""
        for name, axis in growth.maps.items():
            origin = axis.origin
            if np.all(origin >= 0) and len(set(np.bincount(origin)[origin])) > 1:
                return f"coordinates of {name} have unequal numbers of copies, and each reads its own"
        return ""

    def _sides(self, growth: Any, weight: Weight) -> tuple[list, list]:
        axes = growth.width_axes(weight)
        reads = [(number, read) for number, read, write in axes if read and not write and read.copied]
        return reads, [(number, write) for number, read, write in axes if write and not read and write.copied]

    def changes(self, growth: Any, weight: Weight) -> bool:
        """A matrix that reads copies and writes copies."""
        return not weight.elementwise and all(self._sides(growth, weight))

    def change(self, growth: Any, target: DecoderConfig, weight: Weight, value: Any, grown: Any, draw: Draw) -> Any:
        """A copy reads the copies of its own number alone, as often as there are copies."""
        if not self.changes(growth, weight):
            return grown
        ((row, read), *_), ((column, write), *_) = self._sides(growth, weight)
        count = along(np.bincount(read.read.index)[read.read.index], row, grown.ndim)
        of_row = along(read.read.occurrence, row, grown.ndim)
        of_column = along(write.write.occurrence, column, grown.ndim)
        return grown * np.where(of_column % count == of_row, count, 0).astype(grown.dtype)
