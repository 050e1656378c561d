"""Which family of Hugging Face a model is of, and how its weights lie in the tensors of that family."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from growlm.errors import InputError, unknown
from growlm.models import ARCHITECTURES
from growlm.models.architecture import DecoderConfig
from growlm.models.axes import Dim, Role, Weight
from growlm.models.stored import Family, Settings, Stored

# What of a config.json goes along where a model changes its family.
_KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings", "torch_dtype", "dtype")


def families() -> dict[str, Family]:
    """All families by model_type, those of architectures that were added to ARCHITECTURES too."""
    return {name: family for one in ARCHITECTURES.values() for name, family in one.families.items()}


def family_of(settings: Settings) -> Family:
    """The family of a config.json. Raises InputError where its model_type is of none."""
    name, known = settings.get("model_type"), families()
    if not isinstance(name, str) or name not in known:
        raise unknown("model_type", name, known)
    return known[name]


def model_of(settings: Settings) -> DecoderConfig:
    """The shape that a config.json describes. Raises InputError: another family, or a variant that is not built."""
    return family_of(settings).read(settings)


def settings_of(model: DecoderConfig, settings: Settings) -> dict[str, Any]:
    """The config.json of a model: that of a smaller one with what growth changes, or a new one where none is given.

    Raises InputError where no family has what the model has.
    """
    if "model_type" in settings:
        family = family_of(settings)
        if family.model_type in model.architecture.families:
            return family.write(model, settings)
        settings = {key: settings[key] for key in _KEPT if key in settings}
    return family_for(model).write(model, settings)


def family_for(model: DecoderConfig) -> Family:
    """The first family of the architecture that has what the model has. Raises InputError."""
    families = model.architecture.families
    if (family := next((one for one in families.values() if one.holds(model)), None)) is None:
        names = ", ".join(families) or "none"
        raise InputError(f"no family of {model.architecture.name} ({names}) has all that this model has")
    return family


@dataclasses.dataclass(frozen=True)
class Place:
    """One tensor of a checkpoint: its name, the weights in it, and the unit of each (its layer, its expert)."""

    name: str
    weights: tuple[Weight, ...]
    unit: tuple[int, ...]
    row: Stored

    @cached_property
    def ordered(self) -> tuple[Weight, ...]:
        """The weights, each with its dimensions in storage order."""
        return tuple(in_storage_order(weight, self.row) for weight in self.weights)


def places(family: Family, model: DecoderConfig) -> Iterator[Place]:
    """Every tensor of a model, in the order of its layers."""
    here = {weight.path: weight for weight in model.weights}  # architectures may share a table
    rows = [(row, tuple(here[path] for path in row.paths if path in here)) for row in family.tensors]
    rows = [(row, weights) for row, weights in rows if weights]
    covered = {weight.path for _, weights in rows for weight in weights}
    if missing := [weight.path for weight in model.weights if weight.path not in covered]:
        raise InputError(f"no tensor of {family.model_type} holds {missing[0]}: its table of tensors needs a row")
    stacked = [(row, weights) for row, weights in rows if weights[0].stacked]
    before = list(itertools.takewhile(lambda row: row not in stacked, rows))
    after = [row for row in rows[len(before) :] if row not in stacked]
    layers = [(layer,) for layer in range(model.depth)]
    for units, group in (([()], before), (layers, stacked), ([()], after)):
        for layer, (row, weights) in itertools.product(units, group):
            axes = [dim.axis for dim in weights[0].dims if dim.many]
            for unit in np.ndindex(*(model.size(axis) for axis in axes)):  # one at a time, of however many experts
                names = [dim.axis.name for dim in weights[0].all_dims if dim.many]
                name = row.name.format(**dict(zip(names, (*layer, *unit), strict=True)))
                yield Place(name, weights, (*layer, *unit), row)


def in_storage_order(weight: Weight, row: Stored) -> Weight:
    """The weight with the dimensions of one unit in the order in which they are stored.

    By default what is written comes first, as in PyTorch's Linear; lookups, gains and biases stay as they are.
    """
    dims = list(unit_dims(weight))
    if row.order:
        by_name = {dim.axis.name: dim for dim in dims}
        dims = [by_name[name] for name in row.order]
    elif not weight.elementwise and weight.role is not Role.LOOKUP:
        dims = [dim for dim in dims if dim.writes] + [dim for dim in dims if not dim.writes]
    return dataclasses.replace(weight, dims=(*(dim for dim in weight.dims if dim.many), *dims))


def unit_dims(weight: Weight) -> tuple[Dim, ...]:
    """The dimensions of one unit of a weight, without layers and experts."""
    return tuple(dim for dim in weight.dims if not dim.many)


def unit_sizes(weight: Weight, model: DecoderConfig) -> list[int]:
    """The shape of one unit of a weight."""
    return [model.size(dim.axis) for dim in unit_dims(weight)]


def row_dims(weight: Weight) -> int:
    """The number of leading dimensions of a unit in storage order that are a matrix's rows; all of a gain or a bias."""
    dims = unit_dims(weight)
    if weight.elementwise:
        return len(dims)
    side = dims[0].reads is None
    return len(list(itertools.takewhile(lambda dim: (dim.reads is None) == side, dims)))


def joined_sizes(place: Place, model: DecoderConfig) -> list[int]:
    """The sizes of a tensor's dimensions, before rows and columns are flattened; its weights side by side."""
    each = [unit_sizes(weight, model) for weight in place.ordered]
    sizes = list(each[0])
    sizes[place.row.join] = sum(one[place.row.join] for one in each)
    return sizes


def stored_shape(place: Place, model: DecoderConfig) -> tuple[int, ...]:
    """The shape of a tensor in a file."""
    return _flat(place, joined_sizes(place, model))


def _flat(place: Place, sizes: Sequence[int]) -> tuple[int, ...]:
    weight = place.ordered[0]
    rows = row_dims(weight)
    flat = math.prod(sizes[:rows]), math.prod(sizes[rows:])
    return flat[:1] if weight.elementwise else flat


def from_stored(place: Place, model: DecoderConfig, stored: np.ndarray) -> list[np.ndarray]:
    """One unit of every weight of a tensor in the declared order; views of what is stored."""
    whole, begin, values = stored.reshape(joined_sizes(place, model)), 0, []
    for weight, ordered in zip(place.weights, place.ordered, strict=True):
        size = unit_sizes(ordered, model)[place.row.join]
        part = whole[(slice(None),) * place.row.join + (slice(begin, begin + size),)]
        begin += size
        order = [unit_dims(weight).index(dim) for dim in unit_dims(ordered)]
        values.append(part.transpose(np.argsort(order)))
    return values


def to_stored(place: Place, values: Sequence[np.ndarray]) -> np.ndarray:
    """A tensor of one unit of every weight; a view where that is possible."""
    parts = []
    for weight, ordered, value in zip(place.weights, place.ordered, values, strict=True):
        parts.append(value.transpose([unit_dims(weight).index(dim) for dim in unit_dims(ordered)]))
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=place.row.join)
    return whole.reshape(_flat(place, whole.shape))
