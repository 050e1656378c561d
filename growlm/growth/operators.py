"""The growth operators: from two shapes to one map per axis. One function and one row each."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from growlm.errors import InputError, unknown
from growlm.growth.axis_map import AxisMap, Gather, identity
from growlm.growth.depth import layer_order
from growlm.growth.learned import learn
from growlm.growth.plan import NOISE_SCALES, Growth, Noise, Ramp
from growlm.growth.width import (
    SELECTIONS,
    check_selection,
    copied,
    final_axis,
    fresh,
    old_heads,
    pad_index,
    padded,
    query_heads,
    rng_of,
    stream_map,
)
from growlm.weights import FIELD_OF_AXIS, ModelConfig

# Sizes may grow; these must be shared. norm_eps may change, and then no function is kept.
SIZES = ("layers", "embed", "heads", "kv_heads", "mlp", "vocab")
SHARED = ("head_dim", "tie_embeddings", "rope_theta", "qkv_bias", "qk_norm", "rope_scaling", "sliding_window")


def direct(
    source: ModelConfig,
    target: ModelConfig,
    key: jax.Array | None = None,
    *,
    order: str | Sequence[int] = "stack",
    select: str = "cycle",
    silent: bool = False,
    uneven: float = 0.0,
    diagonal: bool = False,
    next_layer: bool = False,
    norm: str = "isometry",
) -> Growth:
    """G_direct: copies (arXiv 2405.15319, sections 3.1 and A.1.1).

    In depth every layer is an exact copy of a source layer: `order` "stack" (G_stack), another name in ORDERS, or a
    list. `silent`: a layer that repeats an earlier one has zeros in attn/out and mlp/down, and adds nothing yet (LEMON,
    arXiv 2310.07999; LLaMA Pro, 2401.02415). In width every coordinate is a copy, written as it is and read in parts:
    `select` "cycle" (the published code with from_left), "repeat" or "random" (the published code's default) picks what
    is copied. `uneven` in [0, 1) says how unequal the parts are: 0, even, is the published code, and such copies stay
    copies for good; the paper says uneven (LEMON). `diagonal`: a copy reads only its own copies (HyperCloning, staged
    training). `next_layer`: the coordinates that width adds are copied from the next layer (bert2BERT's AKI). `norm`:
    "isometry", exact for any target; "gain", the paper's formula; "none", the published code.
    """
    check_selection(select)
    _check_share("uneven", uneven, below_one=True)
    if diagonal and uneven:
        raise InputError(f"diagonal and uneven {uneven:g} exclude each other: allowed is one of them")
    if next_layer and silent:
        raise InputError("next_layer and silent exclude each other: allowed is one of them")
    rng = rng_of(key, "direct with uneven or random copies") if uneven or select == "random" else None

    def index(axis: str) -> np.ndarray:
        return SELECTIONS[select](source.size(axis), target.size(axis), rng)

    stream, kv = index("stream"), index("key_heads")
    streams = stream_map(stream, source.embed, norm)
    maps = {
        "stream": streams,
        "embed": copied(stream, source.embed, uneven, rng),
        "final": final_axis(streams, copied(stream, source.embed, uneven, rng), target.tie_embeddings),
        "heads": copied(query_heads(kv, source, target, copies=True), source.heads, uneven, rng),
        "key_heads": copied(kv, source.kv_heads),
        "value_heads": copied(kv, source.kv_heads),
        "mlp": copied(index("mlp"), source.mlp, uneven, rng),
    }
    layers = np.asarray(layer_order(order, source.layers, target.layers), np.int64)
    following = np.minimum(layers + 1, source.layers - 1) if next_layer else None
    residual = np.where(_repeats(layers) & silent, 0.0, 1.0)
    return _growth(source, target, maps, layers, residual, added_from=following, diagonal=diagonal)


def zero(
    source: ModelConfig,
    target: ModelConfig,
    key: jax.Array | None = None,
    *,
    order: str | Sequence[int] = "stack",
    norm: str = "isometry",
    fill: str = "initial",
) -> Growth:
    """G_zero: the old model, and around it what adds nothing yet (arXiv 2405.15319, section A.1.3; LEMON, 2310.07999).

    In depth a layer that repeats an earlier one keeps its weights but for attn/out and mlp/down, which are zero
    (order "interleave" is the published code's). In width new coordinates are zero on one side and the target's initial
    values on the other (`fill` "initial"), or zero on both ("zeros": plain padding). `norm`: "isometry" scales the
    stream by sqrt(new / old), so that no norm notices; "gain" is the paper's sqrt(d / D) on the gains, exact up to eps;
    "none" the published code, which has neither and changes the function.
    """
    if fill not in ("initial", "zeros"):
        raise unknown("fill", fill, ("initial", "zeros"))
    stream = stream_map(pad_index(source.embed, target.embed), source.embed, norm)
    kv, heads = old_heads(source, target)
    maps = {
        "stream": stream,
        "embed": padded(stream.write.index, source.embed),
        "final": final_axis(stream, padded(stream.write.index, source.embed), target.tie_embeddings),
        # A new query head may share an old value head, so it is what reads it that must be zero.
        "heads": padded(heads, source.heads, fresh_write=True),
        "key_heads": padded(kv, source.kv_heads, fresh_write=True),
        "value_heads": padded(kv, source.kv_heads, fresh_write=True),
        "mlp": padded(pad_index(source.mlp, target.mlp), source.mlp),
    }
    if fill == "zeros":
        maps = {name: AxisMap.make(axis.old, axis.write, axis.read, rms=axis.rms) for name, axis in maps.items()}
    layers = np.asarray(layer_order(order, source.layers, target.layers), np.int64)
    return _growth(source, target, maps, layers, np.where(_repeats(layers), 0.0, 1.0))


def random(
    source: ModelConfig,
    target: ModelConfig,
    key: jax.Array | None = None,
    *,
    order: str | Sequence[int] = "stack",
    ramp_tokens: int = 0,
    in_turn: bool = False,
    whole_blocks: bool = False,
    norm: str = "isometry",
) -> Growth:
    """G_random: the old model, and around it the target's initial values (arXiv 2405.15319, A.1.4; MSG, 2305.02869).

    A layer that repeats an earlier one in `order` is fresh instead: with "stack" the fresh ones are on top, as in the
    published code. What is fresh comes in under masks that go linearly from 0 to 1 over `ramp_tokens` tokens of
    training (0: no mask); at 0 the function is the source's. `in_turn`: FFN, residual stream and heads one after the
    other, a third of the ramp each, as the published code; else together. `whole_blocks`: one mask on a new block, as
    the published code, instead of the paper's two, on attention and on FFN. `norm` as in zero, under the mask.
    """
    if isinstance(ramp_tokens, bool) or not isinstance(ramp_tokens, int | float) or not 0 <= ramp_tokens < np.inf:
        raise InputError(f"ramp_tokens is {ramp_tokens!r}: allowed are tokens >= 0")
    stream_map(np.arange(1), 1, norm)  # the name is checked also where nothing is masked
    kv, heads = old_heads(source, target)
    embed = fresh(pad_index(source.embed, target.embed), source.embed)
    maps = {
        "stream": embed,
        "embed": embed,
        "final": embed,
        "heads": fresh(heads, source.heads),
        "key_heads": fresh(kv, source.kv_heads),
        "value_heads": fresh(kv, source.kv_heads),
        "mlp": fresh(pad_index(source.mlp, target.mlp), source.mlp),
    }
    layers = np.asarray(layer_order(order, source.layers, target.layers) if source.layers else (), np.int64)
    layers = np.where(_repeats(layers), -1, layers) if source.layers else np.full(target.layers, -1)
    ramp = Ramp(int(ramp_tokens), in_turn, whole_blocks, norm) if ramp_tokens else None
    return _growth(source, target, maps, layers, np.ones(len(layers)), ramp=ramp)


# Adding an operator is one function and one row.
OPERATORS: dict[str, Callable[..., Growth]] = {"direct": direct, "zero": zero, "random": random, "learn": learn}


def _repeats(layers: np.ndarray) -> np.ndarray:
    """Which layers come from a source layer that an earlier one comes from."""
    return np.array([layer in layers[:position] for position, layer in enumerate(layers)], bool)


def _growth(source: ModelConfig, target: ModelConfig, maps: dict, layers: np.ndarray, residual, **parts: Any) -> Growth:
    """The maps that an operator chose, and those that all treat alike: heads keep their size, new tokens are new."""
    copies, none = Gather.copies(layers), layers < 0
    rest = {
        "layers": AxisMap.make(source.layers, copies, copies, fresh_write=none, fresh_read=none),
        "head_dim": identity(source.head_dim),
        "vocab": padded(pad_index(source.vocab, target.vocab), source.vocab),
    }
    assert FIELD_OF_AXIS.keys() == maps.keys() | rest.keys()
    return Growth(maps | rest, residual, **parts)


def _check_share(name: str, value: float, below_one: bool = False) -> None:
    inside = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
    if not inside or (below_one and value == 1):
        raise InputError(f"{name} is {value!r}: allowed is 0 <= {name} {'<' if below_one else '<='} 1")


def _noise(
    noise: float = 0.0,
    keep: float | None = None,
    cancel: bool = False,
    noise_on: str = "all",
    noise_scale: str = "initial",
) -> Noise | None:
    """Initialisation noise on what any operator grew: W <- keep W + noise e (arXiv 2405.15319, section 5.2 and I).

    noise: the share of e, 0 to 1. keep: of the grown weights, 1 - noise unless it is given, as in the paper. cancel:
    adds the part that cancels among the copies of a coordinate: symmetry breaks and the function stays (then keep is
    1). noise_on: "all" matrices or "new" slices. noise_scale: how large e is. "initial", ours: as the target's initial
    values (`Weight.std`): variance 2 / (5 fan-in), over 2 l for what writes the stream in a block, 1 / (16 d) for the
    embedding and the head. "paper", its eq. 53 and 54: variance 1 / (d l^2) for what writes the stream in a block,
    2 / (5 d) for every other matrix, the embedding too. d and l are the target's width and layers.
    """
    _check_share("noise", noise)
    if keep is not None:
        _check_share("keep", keep)
    if noise_on not in ("all", "new"):
        raise unknown("noise_on", noise_on, ("all", "new"))
    if not isinstance(noise_scale, str) or noise_scale not in NOISE_SCALES:
        raise unknown("noise_scale", noise_scale, NOISE_SCALES)
    if cancel and keep not in (None, 1):
        raise InputError(f"keep is {keep!r} with cancel: allowed is 1, the function is kept whole")
    keep = (1.0 if cancel else 1.0 - noise) if keep is None else float(keep)
    return Noise(float(noise), keep, cancel, noise_on == "new", noise_scale) if noise or keep != 1 else None


_NOISE_OPTIONS = tuple(inspect.signature(_noise).parameters)


def options_of(operator: str) -> tuple[str, ...]:
    """The options that an operator has of its own; noise is for all. Raises InputError: an unknown operator."""
    if operator not in OPERATORS:
        raise unknown("growth operator", operator, OPERATORS)
    return tuple(inspect.signature(OPERATORS[operator]).parameters)[3:]


def plan_growth(
    operator: str, source: ModelConfig, target: ModelConfig, key: jax.Array | None = None, /, **options: Any
) -> Growth:
    """The growth that an operator makes of two shapes.

    Raises InputError: an unknown operator or option, a target smaller than the source or of another family, heads or
    layers that do not fit, a missing key.
    """
    allowed = (*options_of(operator), *_NOISE_OPTIONS)
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
    if extra := sorted(set(options) - set(allowed)):
        raise unknown(f"option of {operator}", extra[0], allowed)
    noise = _noise(**{name: options.pop(name) for name in _NOISE_OPTIONS if name in options})
    return dataclasses.replace(OPERATORS[operator](source, target, key, **options), noise=noise)
