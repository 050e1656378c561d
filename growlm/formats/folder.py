"""Folders of Hugging Face checkpoints: found, checked against their config.json, and read."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from growlm.errors import InputError
from growlm.formats.families import family_of, model_of
from growlm.formats.layout import Place, from_stored, places, stored_shape
from growlm.formats.safetensors_files import StoredTensor, inside, read_json, stored_tensors
from growlm.models import DecoderConfig, Params, Weight, nest, parameter_count, sizes_of
from growlm.models.stored import Family

CONFIG = "config.json"

# What is carried along beside the weights: tokenizers, how to generate, and the licence. No code and no pickles.
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")  # one of these is there if any is
CARRIED = (
    *TOKENIZERS,
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "USE_POLICY.md",
    "NOTICE",
)

Step = Callable[[int], Any]  # is told of so many bytes more


@dataclasses.dataclass(frozen=True)
class HuggingFaceFolder:
    """A checkpoint, found and checked, of which no weight has been read."""

    folder: Path
    settings: dict[str, Any]  # config.json
    model: DecoderConfig
    tensors: dict[str, StoredTensor]

    @property
    def family(self) -> Family:
        """What it is in transformers."""
        return family_of(self.settings)

    @cached_property
    def places(self) -> list[Place]:
        """Every tensor, and what lies in it."""
        return list(places(self.family, self.model))

    @property
    def carried(self) -> list[Path]:
        """The files that go with the weights wherever they go."""
        return [inside(self.folder, name) for name in CARRIED if (self.folder / name).exists()]

    @property
    def origin(self) -> tuple[dict[str, Any], dict[str, str], list[Path]]:
        """What is needed to write it again, beside the weights: its config, its tensors' dtypes, its other files."""
        return self.settings, {name: tensor.dtype.name for name, tensor in self.tensors.items()}, self.carried

    @property
    def nbytes(self) -> int:
        """The size of all weights."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def layer(self, prefixes: tuple[str, ...], layer: int | None) -> Params:
        """float32 weights whose paths begin so, of one layer (None: outside of layers), as a tree below `blocks`."""
        leaves: dict[str, np.ndarray] = {}
        for place in self.places:
            if place.unit[:1] == (() if layer is None else (layer,)) and place.weights[0].path.startswith(prefixes):
                for weight, value in zip(place.weights, self.read(place), strict=True):
                    whole = leaves.setdefault(weight.path, np.empty(weight.block_shape(self.model), np.float32))
                    whole[place.unit[1:]] = value
        return nest({path.removeprefix("blocks/"): value for path, value in leaves.items()})

    def read(self, place: Place) -> list[np.ndarray]:
        """One unit of every weight of a tensor in the declared order and the stored dtype."""
        return from_stored(place, self.model, self.tensors[place.name].read())


def is_hugging_face(folder: Path) -> bool:
    """Whether a folder claims to hold a Hugging Face checkpoint: its config.json names a model_type."""
    path = folder / CONFIG
    return path.is_file() and "model_type" in read_json(path)


def open_folder(folder: Path) -> HuggingFaceFolder:
    """A checkpoint whose weights are what config.json says.

    Raises InputError: another family, weights that are no safetensors, damaged or leading elsewhere, and tensors that
    are missing, too many or of another shape.
    """
    if not folder.is_dir():
        raise InputError(f"source {folder} is no folder: allowed is a folder with {CONFIG} and safetensors")
    if not (folder / CONFIG).exists():
        raise InputError(f"source {folder} has no {CONFIG}: allowed is the folder of a Hugging Face checkpoint")
    settings = read_json(inside(folder, CONFIG))
    try:
        family = family_of(settings)
        tensors, model = stored_tensors(folder), model_of(settings)
        return HuggingFaceFolder(folder, settings, model, _checked(family, model, tensors))
    except InputError as error:
        raise InputError(f"source {folder}: {error}") from None


def _checked(family: Family, model: DecoderConfig, tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors of the model, in its order; none may be missing, over or of another shape."""
    if model.depth > len(tensors):
        raise InputError(
            f"config.json: num_hidden_layers is {model.depth} and there are {len(tensors)} tensors: some missing"
        )
    expected = {place.name: stored_shape(place, model) for place in places(family, model)}
    if missing := [name for name in expected if name not in tensors]:
        raise InputError(f"tensor {missing[0]!r} is missing, of {len(expected)} that config.json asks for")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            found = list(tensors[name].shape)
            raise InputError(f"tensor {name!r} has shape {found}, and config.json asks for {list(shape)}")
    for name in tensors.keys() - expected.keys():
        if not family.computed.fullmatch(name) and not _is_tied_copy(family, model, name, tensors):
            raise InputError(f"tensor {name!r} is none that config.json asks for: nothing is left out silently")
    return {name: tensors[name] for name in expected}


def _is_tied_copy(family: Family, model: DecoderConfig, name: str, tensors: dict[str, StoredTensor]) -> bool:
    """Whether this is a tied head that was stored once more, the same as the embedding to the byte."""
    if name != family.tied_head or not model.architecture.tied(model):
        return False
    head, embedding = tensors[name], tensors[next(row.name for row in family.tensors if row.paths == ("embedding",))]
    if (head.shape, head.dtype) != (embedding.shape, embedding.dtype):
        return False
    parts = (slice(row, min(row + 4096, head.shape[0])) for row in range(0, head.shape[0], 4096))
    return all(np.array_equal(head.read(part).view(np.uint8), embedding.read(part).view(np.uint8)) for part in parts)


def read_params(
    source: HuggingFaceFolder,
    step: Step = lambda nbytes: None,
    place: Callable[[Weight, np.ndarray], Any] = lambda weight, value: value,
) -> Params:
    """The parameter tree, of what `place` makes of every weight, float32, before the next one is read."""
    leaves: dict[str, Any] = {}
    by_weight: dict[tuple[str, ...], list[Place]] = {}
    for one in source.places:
        by_weight.setdefault(one.row.paths, []).append(one)
    for held in by_weight.values():
        values = [np.empty(weight.shape(source.model), np.float32) for weight in held[0].weights]
        for one in held:
            for value, part in zip(values, source.read(one), strict=True):
                value[one.unit] = part
            step(source.tensors[one.name].nbytes)
        for weight, value in zip(held[0].weights, values, strict=True):
            leaves[weight.path] = place(weight, value)
    # A model without layers has no tensor of them.
    for weight in (one for one in source.model.weights if one.path not in leaves):
        leaves[weight.path] = place(weight, np.empty(weight.shape(source.model), np.float32))
    return nest({weight.path: leaves[weight.path] for weight in source.model.weights})


def describe_folder(source: HuggingFaceFolder) -> str:
    """What a checkpoint is, for a terminal."""
    count = Counter(str(tensor.dtype) for tensor in source.tensors.values())
    files = {tensor.file.name for tensor in source.tensors.values()}
    stored = {
        "weights": f"{source.nbytes:,} bytes in {len(source.tensors)} tensors and {len(files)} files",
        "dtypes": ", ".join(f"{dtype} {number}" for dtype, number in count.items()),
        "beside": ", ".join(path.name for path in source.carried) or "-",
    }
    return describe_model(source.model, f"Hugging Face, {source.family.model_type}", stored)


def describe_model(model: DecoderConfig, kind: str, more: dict[str, str]) -> str:
    """A model's shape and variant between the kind of the folder and what more there is to say of it."""
    shape = ", ".join(f"{name} {size:,}" for name, size in sizes_of(model).items())
    lines = {"format": kind, "architecture": model.architecture.name, "shape": shape}
    lines |= {"parameters": f"{parameter_count(model):,}", "variant": ", ".join(_variant(model))} | more
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {line}" for name, line in lines.items())


def _variant(model: DecoderConfig) -> list[str]:
    """What of a model is no size: every other field that is not at its default, and whether the head is tied."""
    head = "tied head" if model.architecture.tied(model) else "head of its own"
    sizes = {*sizes_of(model), "tie_embeddings"}
    fields = [field for field in dataclasses.fields(model) if field.name not in sizes]
    said = {field.name: getattr(model, field.name) for field in fields}
    shown = [name for name in said if name in ("norm_eps", "rope_theta") or said[name] not in (None, False)]
    return [head, *(_said(name.replace("_", " "), said[name]) for name in shown)]


def _said(name: str, value: Any) -> str:
    if dataclasses.is_dataclass(value):
        return f"{name} {value.kind} x {value.factor:g}"
    return name if value is True else f"{name} {value:g}"
