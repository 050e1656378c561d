"""How transformers names and lays out the weights of an architecture, as its own file declares it.

What is declared here is read by whatever reads or writes such files; nothing here opens one.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from growlm.errors import InputError

Settings = Mapping[str, Any]  # a config.json

MAX_LAYERS = 100_000  # a damaged number should not be counted to


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor of a file, and the weights that lie in it.

    Attributes:
      name: "{layers}" and the like stand for the number of the layer, of the expert: of whatever a weight is held once
        for. One tensor a number.
      paths: of the weights in it, one after the other along dimension `join` of the stored order.
      order: the axes of the weights' dimensions as they are stored; by default what is written comes first, as in
        PyTorch's Linear. Lookups, gains and biases stay as they are.
      join: where several weights lie side by side; 1 in GPT-NeoX, whose heads have query, key and value each.
    """

    name: str
    paths: tuple[str, ...]
    order: tuple[str, ...] = ()
    join: int = 0


def stored(name: str, *paths: str, order: str = "", join: int = 0) -> Stored:
    """One row of a table of tensors."""
    return Stored(name, paths, tuple(order.split()), join)


@dataclasses.dataclass(frozen=True)
class Family:
    """One `model_type` of transformers.

    Attributes:
      model_type: as config.json has it.
      architecture: the class of transformers.
      tensors: every tensor that it may have.
      read: a config.json -> the config of growlm. Raises InputError for a variant that is not built.
      write: (config, config.json of a smaller model or {}) -> config.json. Raises InputError.
      holds: whether a config of the architecture is one of this family; the first family that says so exports it.
      computed: names of buffers in old files that are computed from config.json.
      tied_head: the tensor that may hold a copy of the embedding where the head is tied.
    """

    model_type: str
    architecture: str
    tensors: tuple[Stored, ...]
    read: Callable[[Settings], Any]
    write: Callable[[Any, Settings], dict[str, Any]]
    holds: Callable[[Any], bool]
    computed: re.Pattern = re.compile(r"(?!)")
    tied_head: str = "lm_head.weight"


def check_fixed(name: str, settings: Settings, fixed: Mapping[str, Any]) -> None:
    """Raises InputError where a config.json says what would make it another model than is built here."""
    for key, allowed in fixed.items():
        if settings.get(key, allowed) != allowed:
            raise InputError(f"{name} with {key} {settings[key]!r} is not supported: allowed is {allowed!r}")


def integer(key: str, value: Any, least: int = 1) -> int:
    """An integer of a config.json. Raises InputError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"config.json: {key} must be integers >= {least}, got {value!r}")
    return value


def layers_of(settings: Settings, key: str = "num_hidden_layers") -> int:
    """The number of layers in a config.json. Raises InputError for one that no model has."""
    layers = integer(key, settings.get(key), least=0)
    if layers > MAX_LAYERS:
        raise InputError(f"config.json: {key} must be {MAX_LAYERS} at most, got {layers}")
    return layers


def with_sizes(settings: Settings, said: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    """A config.json with these values, of which each is left out where it is the default and was not said before.

    said: (value, the default of transformers' class or None) by key.
    """
    new = {key: value for key, (value, default) in said.items() if key in settings or value != default}
    changed = {**settings, **new}
    changed.pop("auto_map", None)  # names code that is not carried along
    return changed
