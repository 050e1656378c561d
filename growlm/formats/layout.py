"""How weights lie in the tensors of a family: which, in which order of dimensions, one for every layer and expert."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from growlm.errors import InputError
from growlm.models.axes import DecoderConfig, Dim, Role, Weight
from growlm.models.stored import Family, Stored


@dataclasses.dataclass(frozen=True)
class Place:
    """One tensor of a checkpoint: its name, the weights in it, and the unit of each (its layer, its expert)."""

    name: str
    weights: tuple[Weight, ...]
    unit: tuple[int, ...]
    row: Stored


def places(family: Family, model: DecoderConfig) -> Iterator[Place]:
    """Every tensor of a model, in the order of its layers."""
    rows = [(row, held) for row in family.tensors if (held := _present(row, model))]
    held_at = {weight.path for _, weights in rows for weight in weights}
    if missing := [weight.path for weight in model.weights if weight.path not in held_at]:
        raise InputError(f"no tensor of {family.model_type} holds {missing[0]}: its table of tensors needs a row")
    of_layers = [number for number, (_, weights) in enumerate(rows) if weights[0].stacked]
    first = of_layers[0] if of_layers else len(rows)
    yield from (_place(row, held, ()) for row, held in rows[:first])
    stack = rows[first][1][0].stack if of_layers else None
    for layer in range(model.size(stack)) if stack else ():
        for row, held in (rows[number] for number in of_layers):
            within = [range(model.size(dim.axis)) for dim in held[0].dims if dim.many]
            yield from (_place(row, held, (layer, *unit)) for unit in itertools.product(*within))
    yield from (_place(row, held, ()) for row, held in rows[first:] if not held[0].stacked)


def _present(row: Stored, model: DecoderConfig) -> tuple[Weight, ...]:
    weights = (model.architecture.weights[path] for path in row.paths)
    return tuple(weight for weight in weights if weight.present(model))


def _place(row: Stored, weights: tuple[Weight, ...], unit: tuple[int, ...]) -> Place:
    axes = [dim.axis.name for dim in weights[0].all_dims if dim.many]
    return Place(row.name.format(**dict(zip(axes, unit, strict=True))), weights, unit, row)


def turned(weight: Weight, row: Stored) -> Weight:
    """The weight with the dimensions of one unit in the order in which they are stored.

    By default what is written comes first, as in PyTorch's Linear; lookups, gains and biases stay as they are.
    """
    dims = [dim for dim in weight.dims if not dim.many]
    if row.order:
        at = {dim.axis.name: dim for dim in dims}
        dims = [at[name] for name in row.order]
    elif not weight.elementwise and weight.role is not Role.LOOKUP:
        dims = [dim for dim in dims if dim.writes] + [dim for dim in dims if not dim.writes]
    return dataclasses.replace(weight, dims=(*(dim for dim in weight.dims if dim.many), *dims))


def unit_dims(weight: Weight) -> tuple[Dim, ...]:
    """The dimensions of one unit of a weight, without layers and experts."""
    return tuple(dim for dim in weight.dims if not dim.many)


def row_dims(weight: Weight) -> int:
    """How many leading dimensions of a unit, in stored order, a matrix's rows are; all of a gain or a bias."""
    dims = unit_dims(weight)
    if weight.elementwise:
        return len(dims)
    side = dims[0].reads is None
    return len(list(itertools.takewhile(lambda dim: (dim.reads is None) == side, dims)))


def _unit_sizes(weight: Weight, model: DecoderConfig) -> list[int]:
    return [model.size(dim.axis) for dim in unit_dims(weight)]


def joined_sizes(place: Place, model: DecoderConfig) -> list[int]:
    """The sizes of a tensor's dimensions, before rows and columns are flattened; its weights side by side."""
    each = [_unit_sizes(turned(weight, place.row), model) for weight in place.weights]
    sizes = list(each[0])
    sizes[place.row.join] = sum(one[place.row.join] for one in each)
    return sizes


def stored_shape(place: Place, model: DecoderConfig) -> tuple[int, ...]:
    """The shape of a tensor in a file."""
    return _flat(place, joined_sizes(place, model))


def _flat(place: Place, sizes: Sequence[int]) -> tuple[int, ...]:
    weight = turned(place.weights[0], place.row)
    rows = row_dims(weight)
    flat = math.prod(sizes[:rows]), math.prod(sizes[rows:])
    return flat[:1] if weight.elementwise else flat


def from_stored(place: Place, model: DecoderConfig, stored: np.ndarray) -> list[np.ndarray]:
    """One unit of every weight of a tensor in the declared order; views of what is stored."""
    whole, at, values = stored.reshape(joined_sizes(place, model)), 0, []
    for weight in place.weights:
        in_order = turned(weight, place.row)
        size = _unit_sizes(in_order, model)[place.row.join]
        part = np.take(whole, range(at, at + size), axis=place.row.join) if len(place.weights) > 1 else whole
        at += size
        order = [unit_dims(weight).index(dim) for dim in unit_dims(in_order)]
        values.append(part.transpose(np.argsort(order)))
    return values


def to_stored(place: Place, values: Sequence[np.ndarray]) -> np.ndarray:
    """A tensor of one unit of every weight; a view where that is possible."""
    parts = []
    for weight, value in zip(place.weights, values, strict=True):
        order = [unit_dims(weight).index(dim) for dim in unit_dims(turned(weight, place.row))]
        parts.append(value.transpose(order))
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=place.row.join)
    return whole.reshape(_flat(place, whole.shape))
