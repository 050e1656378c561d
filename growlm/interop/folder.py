"""Folders of Hugging Face checkpoints: found, checked against their config.json, and read."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from growlm.errors import InputError
from growlm.interop.families import family_of, model_of
from growlm.interop.layout import COMPUTED, NAMES, from_stored, places, stored_shape
from growlm.interop.safetensors_files import StoredTensor, inside, read_json, stored_tensors
from growlm.weights import ModelConfig, Params, Weight, declared, parameter_count

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
    model: ModelConfig
    tensors: dict[str, StoredTensor]

    @property
    def family(self) -> str:
        """The model_type."""
        return self.settings["model_type"]

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

    def read(self, name: str, weight: Weight) -> np.ndarray:
        """One layer of a weight in the declared shape and the stored dtype."""
        return from_stored(weight, self.model, self.tensors[name].read())


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
        family_of(settings)
        tensors, model = stored_tensors(folder), model_of(settings)
        return HuggingFaceFolder(folder, settings, model, _checked(model, tensors))
    except InputError as error:
        raise InputError(f"source {folder}: {error}") from None


def _checked(model: ModelConfig, tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors of the model, in its order; none may be missing, over or of another shape."""
    if model.layers > len(tensors):
        raise InputError(f"num_hidden_layers is {model.layers} and there are {len(tensors)} tensors: some are missing")
    expected = {name: stored_shape(weight, model) for name, weight, _ in places(model)}
    if missing := [name for name in expected if name not in tensors]:
        raise InputError(f"tensor {missing[0]!r} is missing, of {len(expected)} that config.json asks for")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            found = list(tensors[name].shape)
            raise InputError(f"tensor {name!r} has shape {found}, and config.json asks for {list(shape)}")
    for name in tensors.keys() - expected.keys():
        if not COMPUTED.fullmatch(name) and not _is_tied_copy(model, name, tensors):
            raise InputError(f"tensor {name!r} is none that config.json asks for: nothing is left out silently")
    return {name: tensors[name] for name in expected}


def _is_tied_copy(model: ModelConfig, name: str, tensors: dict[str, StoredTensor]) -> bool:
    """Whether this is a tied head that was stored once more, the same as the embedding to the byte."""
    if name != "lm_head.weight" or not model.tie_embeddings:
        return False
    head, embedding = tensors[name], tensors["model.embed_tokens.weight"]
    if (head.shape, head.dtype) != (embedding.shape, embedding.dtype):
        return False
    parts = (slice(row, min(row + 4096, model.vocab)) for row in range(0, model.vocab, 4096))
    return all(np.array_equal(head.read(part).view(np.uint8), embedding.read(part).view(np.uint8)) for part in parts)


def read_params(
    source: HuggingFaceFolder,
    step: Step = lambda nbytes: None,
    place: Callable[[Weight, np.ndarray], Any] = lambda weight, value: value,
) -> Params:
    """The parameter tree, of what `place` makes of every weight, float32, before the next one is read."""
    tree: Params = {}
    for weight in declared(source.model):
        value = np.empty(weight.shape(source.model), np.float32)
        for layer in range(source.model.layers) if weight.stacked else [...]:
            name = NAMES[weight.path].format(layer)
            value[layer] = source.read(name, weight)
            step(source.tensors[name].nbytes)
        leaves, leaf = _node(tree, weight)
        leaves[leaf] = place(weight, value)
    return tree


def _node(tree: Params, weight: Weight) -> tuple[Params, str]:
    """The innermost dict that holds a weight, made where it is not there, and its name in it."""
    *folders, name = weight.path.split("/")
    for key in folders:
        tree = tree.setdefault(key, {})
    return tree, name


def describe_folder(source: HuggingFaceFolder) -> str:
    """What a checkpoint is, for a terminal."""
    count = Counter(str(tensor.dtype) for tensor in source.tensors.values())
    files = {tensor.file.name for tensor in source.tensors.values()}
    stored = {
        "weights": f"{source.nbytes:,} bytes in {len(source.tensors)} tensors and {len(files)} files",
        "dtypes": ", ".join(f"{dtype} {number}" for dtype, number in count.items()),
        "beside": ", ".join(path.name for path in source.carried) or "-",
    }
    return describe_model(source.model, f"Hugging Face, {source.family}", stored)


def describe_model(model: ModelConfig, kind: str, more: dict[str, str]) -> str:
    """A model's shape and variant between the kind of the folder and what more there is to say of it."""
    shape = ", ".join(f"{name} {getattr(model, name):,}" for name in SHAPE)
    lines = {"format": kind, "shape": shape, "parameters": f"{parameter_count(model):,}"}
    lines |= {"variant": ", ".join(_variant(model))} | more
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {line}" for name, line in lines.items())


SHAPE = ("layers", "embed", "heads", "kv_heads", "head_dim", "mlp", "vocab")


def _variant(model: ModelConfig) -> list[str]:
    """What of the family's variants a model has."""
    scaling = model.rope_scaling
    said = [
        "tied head" if model.tie_embeddings else "head of its own",
        f"rope base {model.rope_theta:g}" + (f", {scaling.kind} x {scaling.factor:g}" if scaling else ""),
        f"norm eps {model.norm_eps:g}",
    ]
    said += ["biases of query, key and value"] * model.qkv_bias + ["norms of query and key"] * model.qk_norm
    return said + ([] if model.sliding_window is None else [f"sliding window {model.sliding_window:,}"])
