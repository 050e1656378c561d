"""The growth operators: from two shapes to one map per axis and an order of layers. One function and one row each."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from growlm.errors import InputError, unknown
from growlm.growth.axis_map import AxisMap, identity
from growlm.growth.depth import layer_order
from growlm.growth.width import (
    SELECTIONS,
    check_selection,
    copied,
    final_axis,
    isometric,
    pad_index,
    padded,
    padded_stream,
    query_heads,
    rng_of,
)
from growlm.weights import ModelConfig

# Sizes may grow; these must be shared. norm_eps may change, and then no function is kept.
SIZES = ("layers", "embed", "heads", "kv_heads", "mlp", "vocab")
SHARED = ("head_dim", "tie_embeddings", "rope_theta", "qkv_bias", "qk_norm")

TOLERANCE = 1e-12


@dataclasses.dataclass(frozen=True, eq=False)
class Growth:
    """What an operator does to one pair of shapes: a map for every width axis, and the source of every layer.

    `silent` marks layers whose residual writers are zero: they add nothing to the stream.
    """

    maps: dict[str, AxisMap]
    order: tuple[int, ...]
    silent: tuple[bool, ...]


def direct(
    source: ModelConfig,
    target: ModelConfig,
    key: jax.Array | None = None,
    *,
    order: str | Sequence[int] = "stack",
    select: str = "cycle",
    uneven: float = 0.0,
) -> Growth:
    """G_direct: copies (arXiv 2405.15319, sections 3.1 and A.1.1).

    In depth every layer is an exact copy of a source layer: order "stack" (G_stack), "interleave" or a list. In width
    every coordinate is a copy, written as it is and read in parts: `select` "cycle", "repeat" or "random" picks what is
    copied, `uneven` in [0, 1) how unequal the parts are (0: even, as the published code; the paper says uneven).
    """
    check_selection(select)
    if isinstance(uneven, bool) or not isinstance(uneven, int | float) or not 0 <= uneven < 1:
        raise InputError(f"uneven is {uneven!r}: allowed is 0 <= uneven < 1")
    rng = rng_of(key, "direct with uneven or random copies") if uneven or select == "random" else None

    def index(axis: str) -> np.ndarray:
        return SELECTIONS[select](source.size(axis), target.size(axis), rng)

    stream, kv = index("stream"), index("kv_heads")
    streams = isometric(stream, source.embed)
    maps = {
        "stream": streams,
        "embed": copied(stream, source.embed, uneven, rng),
        "final": final_axis(streams, copied(stream, source.embed, uneven, rng), target.tie_embeddings),
        "heads": copied(query_heads(kv, source, target), source.heads, uneven, rng),
        "kv_heads": copied(kv, source.kv_heads),
        "mlp": copied(index("mlp"), source.mlp, uneven, rng),
    }
    layers = layer_order(order, source.layers, target.layers)
    return Growth(maps | _rest(source, target), layers, (False,) * len(layers))


def zero(
    source: ModelConfig, target: ModelConfig, key: jax.Array | None = None, *, order: str | Sequence[int] = "stack"
) -> Growth:
    """G_zero: the old model, and around it what adds nothing yet (arXiv 2405.15319, section A.1.3; LEMON, 2310.07999).

    In depth a layer that repeats an earlier one keeps its weights but for attn/out and mlp/down, which are zero
    (order "interleave" is the published code's). In width new coordinates are zero on one side and the target's initial
    values on the other; the stream is scaled by sqrt(new / old), so that no norm notices.
    """
    stream = padded_stream(source.embed, target.embed)
    kv = pad_index(source.kv_heads, target.kv_heads)
    maps = {
        "stream": stream,
        "embed": padded(pad_index(source.embed, target.embed), source.embed),
        "final": final_axis(stream, padded(stream.write.index, source.embed), target.tie_embeddings),
        # A new query head may share an old value head, so it is what reads it that must be zero.
        "heads": padded(_pad_heads(source, target), source.heads, fresh_write=True),
        "kv_heads": padded(kv, source.kv_heads, fresh_write=True),
        "mlp": padded(pad_index(source.mlp, target.mlp), source.mlp),
    }
    layers = layer_order(order, source.layers, target.layers)
    silent = tuple(layer in layers[:position] for position, layer in enumerate(layers))
    return Growth(maps | _rest(source, target), layers, silent)


# Adding an operator is one function and one row.
OPERATORS: dict[str, Callable[..., Growth]] = {"direct": direct, "zero": zero}


def _pad_heads(source: ModelConfig, target: ModelConfig) -> np.ndarray:
    """Old query heads first in their old group; the others, and those of new groups, are new."""
    old_group, new_group = source.heads // source.kv_heads, target.heads // target.kv_heads
    if new_group < old_group:
        raise InputError(
            f"model.heads {target.heads} over model.kv_heads {target.kv_heads} makes groups of {new_group}: "
            f"allowed are groups no smaller than the source's {old_group}"
        )
    group, member = np.divmod(np.arange(target.heads), new_group)
    return np.where((group < source.kv_heads) & (member < old_group), group * old_group + member, -1)


def _rest(source: ModelConfig, target: ModelConfig) -> dict[str, AxisMap]:
    """The axes that every operator treats alike: heads keep their size, and new tokens are new."""
    return {
        "head_dim": identity(source.head_dim),
        "vocab": padded(pad_index(source.vocab, target.vocab), source.vocab),
    }


def plan_growth(
    operator: str, source: ModelConfig, target: ModelConfig, key: jax.Array | None = None, /, **options: Any
) -> Growth:
    """The growth that an operator makes of two shapes.

    Raises InputError: an unknown operator or option, a target smaller than the source or of another family, heads or
    layers that do not fit, a missing key.
    """
    if operator not in OPERATORS:
        raise unknown("growth operator", operator, OPERATORS)
    for name in SIZES:
        before, after = getattr(source, name), getattr(target, name)
        if after < before:
            raise InputError(f"the target's model.{name} {after} is smaller than the source's {before}")
    for name in SHARED:
        before, after = getattr(source, name), getattr(target, name)
        if before != after:
            raise InputError(
                f"model.{name} is {before} in the source and {after} in the target: growth cannot change it"
            )
    function = OPERATORS[operator]
    allowed = list(inspect.signature(function).parameters)[3:]
    if extra := sorted(set(options) - set(allowed)):
        raise unknown(f"option of {operator}", extra[0], allowed)
    return function(source, target, key, **options)


def claim(growth: Growth, source: ModelConfig, target: ModelConfig) -> tuple[bool, str]:
    """Whether the grown model computes the source's function, read off the maps, and why."""
    live = [layer for layer, silent in zip(growth.order, growth.silent, strict=True) if not silent]
    if live != list(range(source.layers)):
        return False, "layers act more than once or not at all: the loss jumps, and recovers"
    if growth.maps["stream"].isometry_defect() > TOLERANCE:
        return False, "the stream's mean square changes, and with it every norm"
    for axis in ("embed", "final", "heads", "mlp"):
        if growth.maps[axis].defect() > TOLERANCE:
            return False, f"reading {axis} does not undo writing it"
    if source.norm_eps != target.norm_eps:
        return False, f"norm_eps changes from {source.norm_eps} to {target.norm_eps}"
    note = "; new tokens get logits of their own" if target.vocab > source.vocab else ""
    return True, f"every axis is read back as it was written, and the stream keeps its mean square{note}"
