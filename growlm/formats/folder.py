"""Folders of Hugging Face checkpoints: found, checked against their config.json, and read."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from growlm.buckets import OTHER_WEIGHTS, here
from growlm.checked import check_files
from growlm.errors import InputError
from growlm.files import inside, read_object, table
from growlm.formats.layout import Place, family_of, from_stored, model_of, places, stored_shape
from growlm.formats.safetensors import INDEX, Progress, StoredTensor, stored_tensors
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


@dataclasses.dataclass(frozen=True)
class HuggingFaceFolder:
    """A checkpoint, found and checked, of which no weight has been read."""

    folder: Path
    settings: dict[str, Any]  # config.json
    model: DecoderConfig
    tensors: dict[str, StoredTensor]

    @property
    def family(self) -> Family:
        """What it is in transformers, with the names of these tensors."""
        return family_of(self.settings).named_as(self.tensors)

    @cached_property
    def places(self) -> list[Place]:
        """Every tensor, and what lies in it."""
        return list(places(self.family, self.model))

    @property
    def carried(self) -> list[Path]:
        """The files that go with the weights wherever they go."""
        return [inside(self.folder, name) for name in CARRIED if (self.folder / name).exists()]

    @property
    def nbytes(self) -> int:
        """The size of all weights."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def check_weights(self) -> None:
        """Read every byte of the weights of a folder that growlm wrote. Raises DamagedError."""
        check_files(self.folder, *{tensor.file.name for tensor in self.tensors.values()})

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
    path = here(folder / CONFIG)
    return path.is_file() and "model_type" in read_object(inside(path.parent, path.name))


def open_folder(folder: Path) -> HuggingFaceFolder:
    """A checkpoint whose weights are what config.json says.

    Raises InputError: another family, weights that are no safetensors, damaged or leading elsewhere, and tensors that
    are missing, too many or of another shape.
    """
    folder = here(folder, OTHER_WEIGHTS)
    if not folder.is_dir() or not (folder / CONFIG).exists():
        reason = f"and has no {CONFIG}" if folder.is_dir() else "which is no folder"
        raise InputError(f"source must be a folder with {CONFIG} and safetensors, got {folder}, {reason}")
    check_files(folder, CONFIG, INDEX, *CARRIED)
    settings = read_object(inside(folder, CONFIG))
    try:
        family = family_of(settings)
        tensors, model = stored_tensors(folder, family.computed), model_of(settings)
        return HuggingFaceFolder(folder, settings, model, _checked(family.named_as(tensors), model, tensors))
    except InputError as error:
        raise InputError(f"source {folder}: {error}") from None


def _checked(family: Family, model: DecoderConfig, tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors of the model, in its order; none may be missing, over or of another shape."""
    if model.depth > len(tensors):  # a damaged number should not be counted to
        raise InputError(f"{CONFIG} has {model.depth} layers and there are {len(tensors)} tensors: some are missing")
    expected = {}
    for place in places(family, model):  # only as far as there are tensors
        if place.name not in tensors:
            raise InputError(f"tensor {place.name!r} is missing, for which {CONFIG} asks")
        expected[place.name] = stored_shape(place, model)
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            found = list(tensors[name].shape)
            raise InputError(f"tensor {name!r} must have shape {list(shape)}, as {CONFIG} says, got {found}")
    for name in tensors.keys() - expected.keys():
        if not _is_tied_copy(family, model, name, tensors):
            raise InputError(f"tensor {name!r} is none that {CONFIG} asks for, and nothing is left out silently")
    return {name: tensors[name] for name in expected}


def _is_tied_copy(family: Family, model: DecoderConfig, name: str, tensors: dict[str, StoredTensor]) -> bool:
    """Whether a tensor is a tied head that was stored once more, equal to the embedding to the byte."""
    if name != family.tied_head or not model.architecture.tied(model):
        return False
    head, embedding = tensors[name], tensors[next(row.name for row in family.tensors if row.paths == ("embedding",))]
    if (head.shape, head.dtype) != (embedding.shape, embedding.dtype):
        return False
    pairs = ((head.read(rows), embedding.read(rows)) for rows in head.chunks(2**24))
    return all(np.array_equal(a.view(np.uint8), b.view(np.uint8)) for a, b in pairs)


def read_params(
    source: HuggingFaceFolder,
    progress: Progress = lambda nbytes: None,
    place: Callable[[Weight, np.ndarray], Any] = lambda weight, value: value,
) -> Params:
    """The parameter tree: of every weight, in float32, what `place` returns for it before the next one is read."""
    source.check_weights()
    leaves: dict[str, Any] = {}
    tensors_of: dict[tuple[str, ...], list[Place]] = {}
    for tensor in source.places:
        tensors_of.setdefault(tensor.row.paths, []).append(tensor)
    for tensors in tensors_of.values():
        weights = tensors[0].weights
        values = [np.empty(weight.shape(source.model), np.float32) for weight in weights]
        for tensor in tensors:
            for value, part in zip(values, source.read(tensor), strict=True):
                value[tensor.unit] = part
            progress(source.tensors[tensor.name].nbytes)
        leaves |= {weight.path: place(weight, value) for weight, value in zip(weights, values, strict=True)}
    # A model without layers has no tensor of them.
    for weight in (weight for weight in source.model.weights if weight.path not in leaves):
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
    """A model's shape and variant, after the kind of its folder and before what more there is to say, as a table."""
    lines = {
        "format": kind,
        "architecture": model.architecture.name,
        "shape": ", ".join(f"{name} {size:,}" for name, size in sizes_of(model).items()),
        "parameters": f"{parameter_count(model):,}",
        "variant": ", ".join(_variant(model)),
    }
    return table(list((lines | more).items()))


def _variant(model: DecoderConfig) -> list[str]:
    """What of a model is no size: whether its head is tied, and every other field that is not at its default."""
    parts = ["tied head" if model.architecture.tied(model) else "separate head"]
    for field in dataclasses.fields(model):
        name, value = field.name.replace("_", " "), getattr(model, field.name)
        if field.name in sizes_of(model) or field.name == "tie_embeddings":
            continue
        if dataclasses.is_dataclass(value):
            parts.append(f"{name} {value.kind} x {value.factor:g}")
        elif value is True:
            parts.append(name)
        elif field.name in ("norm_eps", "rope_theta") or value not in (None, False):
            parts.append(f"{name} {value:g}")
    return parts
