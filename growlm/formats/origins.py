"""Where the weights of a grown model lie in the tensors of the checkpoint that it is grown from."""

import numpy as np

from growlm.formats.folder import HuggingFaceFolder
from growlm.formats.layout import Place, joined_sizes, row_dims, turned, unit_dims
from growlm.growth import Growth
from growlm.models.axes import Weight
from growlm.models.lift import Origin, itself


class Origins:
    """The source's tensors by the weights of the grown model, through the lift if there is one."""

    def __init__(self, source: HuggingFaceFolder, growth: Growth):
        self._source, self._growth = source, growth
        self._places = {(weight.path, one.unit): one for one in source.places for weight in one.weights}

    def of(self, weight: Weight) -> Origin:
        """Its origin among the source's weights."""
        if self._growth.lift:
            return self._growth.lift.origins[weight.path]
        return itself(weight)

    def place(self, weight: Weight, unit: tuple[int, ...]) -> Place | None:
        """The tensor that one unit of a grown weight is a copy of; None where it is fresh."""
        held = [dim.axis for dim in weight.all_dims if dim.many]
        old = tuple(int(self._growth.axis(axis, weight).origin[n]) for axis, n in zip(held, unit, strict=True))
        path = self.of(weight).path
        return None if path is None or min(old, default=0) < 0 else self._places[path, self._unit(weight, old)]

    def _unit(self, weight: Weight, unit: tuple[int, ...]) -> tuple[int, ...]:
        """The source's unit of one of the lifted model: axes that the lift made have none."""
        dims = self.of(weight).dims[: len(unit)]
        return tuple(number for number, dim in zip(unit, dims, strict=True) if dim is not None)

    def read(self, weight: Weight, held: tuple[np.ndarray, ...], rows: np.ndarray) -> np.ndarray:
        """float32 [units ..., rows, ...] of a weight in its stored order, as `grow_part` asks for it."""
        model, origin = self._growth.start(self._source.model), self.of(weight)
        shape = [model.size(dim.axis) for dim in unit_dims(weight)]
        values = np.full((*map(len, held), len(rows), *shape[1:]), weight.neutral, np.float32)
        if origin.path is None:
            return values
        for at in np.ndindex(*map(len, held)):
            unit = self._unit(weight, tuple(int(of[n]) for of, n in zip(held, at, strict=True)))
            values[at] = self._rows(origin.path, self._places[origin.path, unit], rows)
        return values

    def _rows(self, path: str, place: Place, rows: np.ndarray) -> np.ndarray:
        """These slices, along the first stored dimension, of one weight of a tensor."""
        model, join = self._source.model, place.row.join
        number = [one.path for one in place.weights].index(path)
        in_order = [turned(one, place.row) for one in place.weights]
        sizes = [[model.size(dim.axis) for dim in unit_dims(one)] for one in in_order]
        skip, own, whole = sum(size[join] for size in sizes[:number]), sizes[number], joined_sizes(place, model)
        each = int(np.prod(whole[1 : row_dims(in_order[0])]))  # of what is stored as rows, to one slice
        tensor, begin = self._source.tensors[place.name], 0 if join else skip
        parts = [np.zeros((0, *own[1:]), np.float32)]
        for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1) if len(rows) else []:
            first, last = int(run[0]) + begin, int(run[-1]) + 1 + begin
            stored = tensor.read(slice(first * each, last * each)).reshape(len(run), *whole[1:])
            mine = (slice(None),) * join + (slice(skip, skip + own[join]),)
            parts.append((stored[mine] if join else stored).astype(np.float32))
        return np.concatenate(parts)
