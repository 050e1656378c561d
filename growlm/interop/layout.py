"""How Hugging Face lays weights out: a matrix is [what it writes, what it reads], and there is one for every layer."""

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

from growlm.weights import WEIGHTS, ModelConfig, Weight, declared

# The name of every weight there; {} is the number of the layer.
NAMES = {
    "embedding": "model.embed_tokens.weight",
    "blocks/attn_norm/scale": "model.layers.{}.input_layernorm.weight",
    "blocks/attn/query": "model.layers.{}.self_attn.q_proj.weight",
    "blocks/attn/key": "model.layers.{}.self_attn.k_proj.weight",
    "blocks/attn/value": "model.layers.{}.self_attn.v_proj.weight",
    "blocks/attn/query_bias": "model.layers.{}.self_attn.q_proj.bias",
    "blocks/attn/key_bias": "model.layers.{}.self_attn.k_proj.bias",
    "blocks/attn/value_bias": "model.layers.{}.self_attn.v_proj.bias",
    "blocks/attn/query_norm": "model.layers.{}.self_attn.q_norm.weight",
    "blocks/attn/key_norm": "model.layers.{}.self_attn.k_norm.weight",
    "blocks/attn/out": "model.layers.{}.self_attn.o_proj.weight",
    "blocks/mlp_norm/scale": "model.layers.{}.post_attention_layernorm.weight",
    "blocks/mlp/gate": "model.layers.{}.mlp.gate_proj.weight",
    "blocks/mlp/up": "model.layers.{}.mlp.up_proj.weight",
    "blocks/mlp/down": "model.layers.{}.mlp.down_proj.weight",
    "final_norm/scale": "model.norm.weight",
    "head": "lm_head.weight",
}
assert NAMES.keys() == WEIGHTS.keys()

# Buffers that old Llama checkpoints hold, and that are computed from config.json.
COMPUTED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def places(model: ModelConfig) -> Iterator[tuple[str, Weight, int | None]]:
    """Name, weight and layer (None outside the blocks) of every tensor of a model, in the order of the layers."""
    weights = list(declared(model))
    first = [weight for weight in weights if weight.path == "embedding"]
    last = [weight for weight in weights if not weight.stacked and weight not in first]
    yield from ((NAMES[weight.path], weight, None) for weight in first)
    for layer in range(model.layers):
        yield from ((NAMES[w.path].format(layer), w, layer) for w in weights if w.stacked)
    yield from ((NAMES[weight.path], weight, None) for weight in last)


def stored_shape(weight: Weight, model: ModelConfig) -> tuple[int, ...]:
    """The shape that one layer of a weight has in a file."""
    shape = weight.block_shape(model)
    order, writes = _order(weight)
    sizes = [shape[number] for number in order]
    return _flat(weight, sizes, writes)


def from_stored(weight: Weight, model: ModelConfig, stored: np.ndarray) -> np.ndarray:
    """One layer of a weight in the declared shape; a view of what is stored."""
    shape = weight.block_shape(model)
    order, _ = _order(weight)
    return stored.reshape([shape[number] for number in order]).transpose(np.argsort(order))


def to_stored(weight: Weight, value: np.ndarray) -> np.ndarray:
    """One layer of a weight as it is stored; a view where that is possible."""
    order, writes = _order(weight)
    turned = value.transpose(order)
    return turned.reshape(_flat(weight, turned.shape, writes))


def turned(weight: Weight) -> tuple[Weight, int]:
    """The weight with its dimensions in the order in which they are stored, and how many of them the rows are."""
    order, writes = _order(weight)
    return dataclasses.replace(weight, dims=tuple(weight.dims[number] for number in order)), writes


def _order(weight: Weight) -> tuple[list[int], int]:
    """The dimensions in the order in which they are stored, those that are written first, and how many those are.

    A lookup stays as it is: its rows are tokens.
    """
    numbers = range(len(weight.dims))
    if weight.elementwise or weight.path == "embedding":
        return list(numbers), len(numbers) if weight.elementwise else 1
    writes = [number for number in numbers if weight.dims[number].writes]
    return writes + [number for number in numbers if number not in writes], len(writes)


def _flat(weight: Weight, sizes, writes: int) -> tuple[int, ...]:
    flat = math.prod(sizes[:writes]), math.prod(sizes[writes:])
    return flat[:1] if weight.elementwise else flat
