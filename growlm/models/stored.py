"""Declarations of how transformers names and lays out the weights of an architecture.

`growlm.formats` reads and writes files by them; nothing here opens a file.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from growlm.errors import check_count, must_be

Settings = Mapping[str, Any]  # a config.json

MAX_LAYERS = 100_000  # beyond it, a number is damaged


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor of a file, and the weights stored in it.

    Attributes:
      name: with "{layers}", "{experts}" for the number along each axis that the weight is held once for.
      paths: of the weights in it, concatenated along dimension `join` of the stored order.
      order: the axes of the stored dimensions; by default written axes come first, as in PyTorch's Linear, and lookups,
        gains and biases keep their order.
      join: 1 in GPT-NeoX, where query, key and value of each head are next to each other.
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
      model_type: in config.json.
      architecture: the class in transformers.
      tensors: every tensor that a model may have.
      read: config.json -> growlm's config. Raises InputError for a variant that is not built.
      write: (config, config.json of a smaller model or {}) -> config.json. Raises InputError.
      holds: config -> whether it is of this family; a model is exported as the first family that holds it.
      computed: names of buffers in old files, which are computed from config.json.
      tied_head: the tensor that may hold a copy of the embedding if the head is tied.
      prefix: of names, which files of the bare model lack.
    """

    model_type: str
    architecture: str
    tensors: tuple[Stored, ...]
    read: Callable[[Settings], Any]
    write: Callable[[Any, Settings], dict[str, Any]]
    holds: Callable[[Any], bool]
    computed: re.Pattern = re.compile(r"(?!)")
    tied_head: str = "lm_head.weight"
    prefix: str = ""

    def named_as(self, names: Iterable[str]) -> "Family":
        """The family as a file with these names has it: without the prefix if none of them begins with it."""
        names = list(names)
        if not names or any(name.startswith(self.prefix) for name in names):
            return self
        rows = tuple(dataclasses.replace(row, name=row.name.removeprefix(self.prefix)) for row in self.tensors)
        return dataclasses.replace(self, tensors=rows)


def check_fixed(name: str, settings: Settings, fixed: Mapping[str, Any]) -> None:
    """Raises InputError where a config.json describes a model that is not built here."""
    for key, value in fixed.items():
        if settings.get(key, value) != value:
            raise must_be(f"config.json: {key} of {name}", repr(value), settings[key])


def integer(key: str, value: Any, least: int = 1) -> int:
    """An integer of a config.json. Raises InputError."""
    check_count(f"config.json: {key}", value, low=least)
    return value


def check_heads(name: str, model: Any) -> None:
    """Raises InputError for heads that transformers, which derives their size from embed, cannot describe."""
    if model.heads * model.head_dim != model.embed:
        rule = f"heads x head_dim = {model.heads} x {model.head_dim} for {name} in transformers"
        raise must_be("model.embed", rule, model.embed)


def layers_of(settings: Settings, key: str = "num_hidden_layers") -> int:
    """The number of layers in a config.json. Raises InputError above MAX_LAYERS."""
    layers = integer(key, settings.get(key), least=0)
    if layers > MAX_LAYERS:
        raise must_be(f"config.json: {key}", f"at most {MAX_LAYERS}", layers)
    return layers


def with_sizes(settings: Settings, said: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    """A config.json with these values; defaults that it did not have before are left out.

    said: by key, (value, the default in transformers or None).
    """
    new = {key: value for key, (value, default) in said.items() if key in settings or value != default}
    return {**settings, **new}
