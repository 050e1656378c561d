"""Hugging Face folders grown tensor by tensor: what is in memory is a piece of one tensor.

A piece is computed in float32 and stored in the dtype of the tensor that it comes from.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np

from growlm.formats.folder import HuggingFaceFolder
from growlm.formats.layout import (
    Place,
    family_of,
    from_stored,
    joined_sizes,
    places,
    row_dims,
    settings_of,
    stored_shape,
    unit_dims,
    unit_sizes,
)
from growlm.formats.safetensors import NewTensor, PieceFn
from growlm.growth import Growth
from growlm.growth.streaming import grow_part, unchanged
from growlm.models import DecoderConfig, Weight
from growlm.models.lift import Origin, itself

# Bytes in float32 that are grown at once. Larger arrays are mapped and cleared by the kernel every time anew.
PIECE_BYTES = 2**22


@dataclasses.dataclass(frozen=True)
class FolderGrowth:
    """A growth of a Hugging Face folder: which tensors it writes, and the pieces of their values.

    Attributes:
      source: the folder that grows.
      target: the grown shape.
      growth: without masks: config.json has none, what is fresh acts at once.
      key: from which fresh values are drawn.
    """

    source: HuggingFaceFolder
    target: DecoderConfig
    growth: Growth
    key: jax.Array

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The config.json that will be written. Raises InputError where no family has what the target has."""
        return settings_of(self.target, self.source.settings)

    @cached_property
    def places(self) -> dict[str, Place]:
        """What lies in every tensor that will be written, by its name."""
        family = family_of(self.settings).named_as(self.source.tensors)
        return {place.name: place for place in places(family, self.target)}

    @cached_property
    def tensors(self) -> list[NewTensor]:
        """The tensors, each in the dtype of the one that it comes from; fresh ones in the source's most frequent."""
        (frequent, _), *_ = Counter(tensor.dtype for tensor in self.source.tensors.values()).most_common(1)
        found = []
        for name, place in self.places.items():
            origin = self.origin(place.weights[0], place.unit)
            dtype = self.source.tensors[origin.name].dtype if origin else frequent
            found.append(NewTensor(name, dtype, stored_shape(place, self.target)))
        return found

    @property
    def nbytes(self) -> int:
        """The size of all grown weights."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def pieces(self, tensor: NewTensor) -> Iterator[PieceFn]:
        """What makes the values of a grown tensor, some rows at a time."""
        place = self.places[tensor.name]
        if origin := self._copied(place):
            stored = self.source.tensors[origin.name]
            yield from (partial(stored.read, rows) for rows in stored.chunks(PIECE_BYTES))
            return
        grown = [self._rows_of(place, weight, tensor.dtype) for weight in place.ordered]
        if place.row.join == 0:
            for make, size, rows in grown:
                yield from (partial(make, some) for some in _slices(size, rows))
            return
        makes, (_, size, rows) = [make for make, _, _ in grown], grown[0]
        for some in _slices(size, rows):
            yield partial(_side_by_side, makes, some, place.row.join)

    def values(self, place: Place) -> list[np.ndarray]:
        """float32, one unit of every grown weight of a tensor in the declared order, whole."""
        grown = [self._rows_of(place, weight, np.dtype(np.float32)) for weight in place.ordered]
        stored = [make(slice(0, size)) for make, size, _ in grown]
        return from_stored(place, self.target, np.concatenate(stored, axis=place.row.join))

    def _rows_of(self, place: Place, weight: Weight, dtype: np.dtype) -> tuple[Callable[[slice], np.ndarray], int, int]:
        """What makes some rows of a weight in storage order, their number, and how many are made at once."""
        sizes = unit_sizes(weight, self.target)
        rows = max(1, PIECE_BYTES // (4 * int(np.prod(sizes[1:]))))
        rows = sizes[0] if weight.elementwise or self._parts_copies(weight) else rows

        def make(some: slice) -> np.ndarray:
            read = partial(self.read, weight)
            return grow_part(self.growth, self.target, self.key, weight, place.unit, some, read, dtype)

        return make, sizes[0], rows

    def _parts_copies(self, weight: Weight) -> bool:
        """Whether some rows of a weight would be some copies of a coordinate, where an effect must see all of them."""
        read = unit_dims(weight)[0].reads
        if read is None or not self.growth.axis(read, weight).copied:
            return False
        return any(effect.compares_copies() and effect.changes(self.growth, weight) for effect in self.growth.effects)

    def _copied(self, place: Place) -> Place | None:
        """The tensor of the source of which this one is a copy, to the byte; None where it is not."""
        if not all(unchanged(self.growth, weight, place.unit) for weight in place.weights):
            return None
        origins = [self.origin(weight, place.unit) for weight in place.weights]
        if origins[0] is None or any(origin is not origins[0] for origin in origins):
            return None
        if len(origins[0].weights) != len(place.weights) or any(self._lifted(w).factor != 1 for w in place.weights):
            return None
        # Its dimensions must have one order on both sides; what a lift adds is of size 1.
        (origin, *_), new = origins, zip(place.weights, place.ordered, strict=True)
        for (weight, after), old, before in zip(new, origin.weights, origin.ordered, strict=True):
            numbers = [self._lifted(weight).dims[weight.all_dims.index(dim)] for dim in unit_dims(after)]
            if numbers != [old.all_dims.index(dim) for dim in unit_dims(before)]:
                return None
        return origin

    # --- Where the weights of the grown model lie in the source, through the lift if there is one ---

    @cached_property
    def _source_places(self) -> dict[tuple[str, tuple[int, ...]], Place]:
        return {(weight.path, place.unit): place for place in self.source.places for weight in place.weights}

    def _lifted(self, weight: Weight) -> Origin:
        """Where a weight of the lifted model comes from."""
        return self.growth.lift.origins[weight.path] if self.growth.lift else itself(weight)

    def _source_unit(self, weight: Weight, unit: tuple[int, ...]) -> tuple[int, ...]:
        """The source's unit of one of the lifted model: axes that the lift made have none."""
        dims = self._lifted(weight).dims[: len(unit)]
        return tuple(number for number, dim in zip(unit, dims, strict=True) if dim is not None)

    def origin(self, weight: Weight, unit: tuple[int, ...]) -> Place | None:
        """The source's tensor that one unit of a grown weight is a copy of; None where it is fresh."""
        axes = [dim.axis for dim in weight.all_dims if dim.many]
        old = tuple(int(self.growth.axis(axis, weight).origin[n]) for axis, n in zip(axes, unit, strict=True))
        path = self._lifted(weight).path
        if path is None or min(old, default=0) < 0:
            return None
        return self._source_places[path, self._source_unit(weight, old)]

    def read(self, weight: Weight, units: tuple[np.ndarray, ...], rows: np.ndarray) -> np.ndarray:
        """float32 [units ..., rows, ...] of a weight in storage order, as `grow_part` asks for it."""
        lifted, origin = self.growth.start(self.source.model), self._lifted(weight)
        path = origin.path
        values = np.full(
            (*map(len, units), len(rows), *unit_sizes(weight, lifted)[1:]), weight.neutral, dtype=np.float32
        )
        if path is None:
            return values
        for index in np.ndindex(*map(len, units)):
            unit = tuple(int(numbers[n]) for numbers, n in zip(units, index, strict=True))
            values[index] = self._read_rows(path, self._source_places[path, self._source_unit(weight, unit)], rows)
        return values * np.float32(origin.factor)

    def _read_rows(self, path: str, place: Place, rows: np.ndarray) -> np.ndarray:
        """These slices, along the first stored dimension, of one weight of a tensor."""
        model, join = self.source.model, place.row.join
        number = [weight.path for weight in place.weights].index(path)
        sizes = [unit_sizes(weight, model) for weight in place.ordered]
        begin, size, whole = sum(one[join] for one in sizes[:number]), sizes[number], joined_sizes(place, model)
        each = int(np.prod(whole[1 : row_dims(place.ordered[0])]))  # stored rows of one slice
        offset = 0 if join else begin
        parts = [np.zeros((0, *size[1:]), np.float32)]
        for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1) if len(rows) else []:
            first, last = int(run[0]) + offset, int(run[-1]) + 1 + offset
            stored = self.source.tensors[place.name].read(slice(first * each, last * each))
            stored = stored.reshape(len(run), *whole[1:])
            mine = (slice(None),) * join + (slice(begin, begin + size[join]),)
            parts.append((stored[mine] if join else stored).astype(np.float32))
        return np.concatenate(parts)


def _side_by_side(makes: list[Callable[[slice], np.ndarray]], rows: slice, join: int) -> np.ndarray:
    return np.concatenate([make(rows) for make in makes], axis=join)


def _slices(size: int, rows: int) -> Iterator[slice]:
    return (slice(begin, min(begin + rows, size)) for begin in range(0, size, rows))
