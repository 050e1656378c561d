"""The growth operators: from two shapes to one map for every axis, by a rule for each kind of axis.

P is the write map of an axis (how an activation expands), R its read map (how a consumer reads the expanded one). An
operator is one function and one row of OPERATORS; none knows the name of an axis or of a weight.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from growlm.errors import InputError, check_range, is_number, must_be, unknown
from growlm.growth.depth import layer_order
from growlm.growth.effects import NOISE_SCALES, Aki, BlockDiagonal, Effect, Noise
from growlm.growth.expand import number_of
from growlm.growth.heads import check_base, check_heads, head_map
from growlm.growth.inverse import inverse
from growlm.growth.learned import learn
from growlm.growth.lifts import lift
from growlm.growth.maps import Array, AxisMap, Gather
from growlm.growth.masks import Masks
from growlm.growth.mixtures import (
    DropUnits,
    RouterNoise,
    expert_index,
    fresh_in_lift,
    fresh_routers,
    weighed_alike,
)
from growlm.growth.norms import NORM_OPTIONS, NORM_RULES
from growlm.growth.plan import Growth, factors_of
from growlm.growth.rules import AxisRule, by_kind, ordered, repeats
from growlm.growth.width import (
    SELECTIONS,
    copied,
    fresh,
    pad_index,
    padded,
    places,
    query_heads,
    rng_of,
)
from growlm.models.architecture import DecoderConfig
from growlm.models.axes import Axis, Kind


def direct(
    source: DecoderConfig,
    target: DecoderConfig,
    key: jax.Array | None = None,
    *,
    order: str | Sequence[int] = "stack",
    select: str = "cycle",
    zero_residual: bool = False,
    split_imbalance: float = 0.0,
    block_diagonal: bool = False,
    aki: bool = False,
    norm: str = "isometry",
    expert_order: str | Sequence[int] = "cycle",
    drop_units: float = 0.0,
    router_noise: float = 0.0,
) -> Growth:
    """G_direct: copies in depth and in width (arXiv 2405.15319, sections 3.1 and A.1.1). Experts are copied as well.

    Args:
      order: which source layer each layer copies: "stack" (G_stack), another name in ORDERS, or a list.
      select: which coordinate each added one copies: "cycle" (the published code with from_left), "repeat" or
        "random" (the published code's default).
      zero_residual: second copies of a layer start with zero residual writers, so they add nothing to the stream yet
        (LEMON, arXiv 2310.07999; LLaMA Pro, 2401.02415).
      split_imbalance: in [0, 1), how unequally the copies of a coordinate share its read weights. 0 is the even split
        of the published code, under which copies stay equal throughout training; the paper writes a + b = 1 (LEMON).
      block_diagonal: a copy reads only copies of its own number (HyperCloning, staged training).
      aki: coordinates that width adds are copied from the next layer (bert2BERT's AKI).
      norm: "isometry" is exact for every target under RMSNorm, and for whole copies under LayerNorm; "gain" is the
        paper's formula; "none" the published code.
      expert_order: which expert each one copies: "cycle", or a list, such as `growth.mixtures.order_by_norm` gives.
      drop_units: the share of every expert's units that is drawn anew (Drop-Upcycling, 2502.19261).
      router_noise: noise on the routers of added experts, as a share of their standard deviation (2510.08008).
    """
    _check_fraction("split_imbalance", split_imbalance, below_one=True)
    _check_fraction("drop_units", drop_units)
    _check_fraction("router_noise", router_noise)
    if block_diagonal and split_imbalance:
        raise InputError("block_diagonal and split_imbalance exclude each other: one of them must be left out")
    if aki and zero_residual:
        raise InputError("aki and zero_residual exclude each other: one of them must be left out")
    if split_imbalance or select == "random":
        rng_of(key, "direct with unequal or random copies")  # a missing key is refused before anything is planned

    def index(axis: Axis) -> np.ndarray:
        # What a norm hands on follows the stream. Axes of one size copy alike, as values follow keys.
        axis = target.architecture.axis[axis.of] if axis.kind is Kind.READ and axis.of else axis
        if axis.kind is Kind.HEADS and axis.of:
            return query_heads(axis, source, target, index(target.architecture.axis[axis.of]), copies=True)
        rng = rng_of(key, "direct", number_of(axis.field)) if select == "random" else None
        return SELECTIONS[select](source.size(axis), target.size(axis), rng)

    def copies(axis: Axis) -> AxisMap:
        imbalance = split_imbalance if target.architecture.is_read(axis) else 0.0
        rng = rng_of(key, "direct", number_of(axis.name)) if imbalance else None
        return copied(index(axis), source.size(axis), imbalance, rng)

    stream_of = NORM_RULES[target.architecture.norm.kind].stream
    layers = ordered(order, source, target)
    effects: list[Effect] = [Aki(np.minimum(layers + 1, source.depth - 1))] if aki else []
    effects += [BlockDiagonal()] if block_diagonal else []
    if drop_units:
        effects.append(DropUnits.drawn(drop_units, target, rng_of(key, "direct", number_of("drop_units"))))
    effects += [RouterNoise(router_noise)] if router_noise else []

    def experts(axis: Axis) -> AxisMap:
        old = source.size(axis)
        return copied(expert_index(expert_order, old, target.size(axis)), old)

    return by_kind(
        source,
        target,
        layers=layers,
        residual=np.where(repeats(layers) & zero_residual, 0.0, 1.0),
        stream=lambda axis: stream_of(index(axis), source.size(axis), norm),
        width=copies,
        experts=experts,
        effects=effects,
    )


def zero(
    source: DecoderConfig,
    target: DecoderConfig,
    key: jax.Array | None = None,
    *,
    order: str | Sequence[int] = "stack",
    norm: str = "isometry",
    fill: str = "initial",
) -> Growth:
    """G_zero: the old model, with additions that contribute nothing yet (arXiv 2405.15319, A.1.3; LEMON, 2310.07999).

    In depth, second copies of a layer start with zero residual writers. In width, new coordinates are zero on one side;
    under LayerNorm, new coordinates of the stream are the mean of the old. Experts are copied instead: a router shares
    out a weight of one, so an expert cannot contribute nothing.

    Args:
      order: as in `direct`; "interleave" is the published code's.
      norm: "isometry" scales the stream by sqrt(new / old), so no norm notices; "gain" is the paper's sqrt(d / D) on
        the gains, exact up to eps; "none" is the published code, which changes the function.
      fill: the other side of a new coordinate: the target's "initial" values, or "zeros" (plain padding).
    """
    stream_of = NORM_RULES[target.architecture.norm.kind].stream

    def padding(axis: Axis) -> AxisMap:
        # A new query head may share an old value head: its reader must be zero, so its writer is fresh.
        fresh_write = axis.kind is Kind.HEADS or axis.zero_reads
        return padded(places(axis, source, target), source.size(axis), fresh_write=fresh_write)

    def filled(rule: AxisRule) -> AxisRule:
        return (lambda axis: rule(axis).without_fresh()) if fill == "zeros" else rule

    layers = ordered(order, source, target)
    return by_kind(
        source,
        target,
        layers=layers,
        residual=np.where(repeats(layers), 0.0, 1.0),
        stream=filled(lambda axis: stream_of(places(axis, source, target), source.size(axis), norm)),
        width=filled(padding),
        head=filled(lambda axis: head_map(axis, source, target)),
    )


def random(
    source: DecoderConfig,
    target: DecoderConfig,
    key: jax.Array | None = None,
    *,
    order: str | Sequence[int] = "stack",
    mask_tokens: int = 0,
    in_turn: bool = False,
    whole_blocks: bool = False,
    norm: str = "isometry",
) -> Growth:
    """G_random: the old model, with freshly initialised additions (arXiv 2405.15319, A.1.4; MSG, 2305.02869).

    Additions are multiplied by masks that go linearly from 0 to 1; at 0 the function is the source's. Fresh experts
    have no mask.

    Args:
      order: as in `direct`, but second copies of a layer are fresh; "stack" puts them on top, as the published code.
      mask_tokens: length of the mask schedule in training tokens; 0 for no masks.
      in_turn: FFN, stream and heads are unmasked one after the other, a third of the schedule each, as in the published
        code; otherwise together.
      whole_blocks: one mask for each new block, as in the published code, instead of the paper's two (attention, FFN).
      norm: as in `zero`, while masks are below 1.
    """
    if not (mask_tokens == 0 or 1 <= mask_tokens < math.inf):  # a part of a token would be a schedule of none
        raise must_be("mask_tokens", "0 or at least 1", mask_tokens)
    layers = np.full(target.depth, -1)
    if source.depth:
        layers = ordered(order, source, target)
        layers = np.where(repeats(layers), -1, layers)

    def rule(axis: Axis) -> AxisMap:
        return fresh(places(axis, source, target), source.size(axis))

    masks = [Masks(int(mask_tokens), in_turn, whole_blocks, norm)] if mask_tokens else []
    return by_kind(
        source,
        target,
        layers=layers,
        residual=np.ones(len(layers)),
        stream=rule,
        width=rule,
        experts=rule,
        effects=masks,
    )


def shrink(
    source: DecoderConfig,
    target: DecoderConfig,
    key: jax.Array | None = None,
    *,
    order: str | Sequence[int] = "stack",
    undoes: str = "direct",
    select: str = "cycle",
) -> Growth:
    """A smaller model: the left inverse of the growth that would lead from the target back to the source.

    Args:
      order: of that growth: "stack" keeps the first layers (Inheritune, arXiv 2404.08634), "interleave" layers at equal
        distances, "overlap" the first and the last ones. Or the list of layers that stay.
      undoes: "direct": a coordinate is the mean of those that would be its copies; "zero": the first ones stay.
      select: of direct, "cycle" or "repeat".
    """
    if select == "random":
        raise must_be("select", "cycle or repeat for shrink, which copies nothing", select)
    named = order if isinstance(order, str) else "stack"
    if undoes == "direct":
        growth = direct(target, source, key, order=named, select=select)
    else:
        growth = zero(target, source, key, order=named, fill="zeros")
    growth = dataclasses.replace(growth, factors=factors_of(growth, target, source))
    if isinstance(order, str):
        return inverse(growth)
    layers = np.asarray(layer_order(order, source.depth, target.depth), np.int64)
    if len(set(order)) < len(order):
        raise must_be("order", "a list of different layers of the source", order)
    back = np.full(source.depth, -1)
    back[layers] = np.arange(target.depth)
    copies = Gather.copies(back)
    stack = AxisMap.make(target.depth, copies, copies, fresh_write=back < 0, fresh_read=back < 0)
    maps = growth.maps | {growth.stack: stack}
    return inverse(dataclasses.replace(growth, maps=maps, residual=np.ones(source.depth)), layers)


# An operator is one function and one row.
OPERATORS: dict[str, Callable[..., Growth]] = {"direct": direct, "zero": zero, "random": random, "learn": learn}

# Operators whose target is the smaller shape.
SHRINKS: dict[str, Callable[..., Growth]] = {"shrink": shrink}

# The values of options that are names, checked for every operator that has such an option.
CHOICES: dict[str, Collection[str]] = {
    "select": SELECTIONS,
    "norm": NORM_OPTIONS,
    "fill": ("initial", "zeros"),
    "undoes": ("direct", "zero"),
    "vocab": ("initial", "zeros", "mean"),
    "noise_on": ("all", "new"),
    "noise_scale": NOISE_SCALES,
}

# Options renamed in 0.3, read by their old names until 0.4.
RENAMED_OPTIONS = {
    "silent": "zero_residual",
    "uneven": "split_imbalance",
    "diagonal": "block_diagonal",
    "next_layer": "aki",
    "ramp_tokens": "mask_tokens",
    "keep": "old_weight_scale",
    "peak": "peak_lr",
    "final": "end_lr",
}


@functools.cache  # by the function: a row of OPERATORS may become another
def _parameters(function: Callable) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def _check_types(operator: str, options: Mapping[str, Any]) -> None:
    """An option is a flag or a number where its default is one: 'false', a text, would act as true."""
    parameters = [_parameters(function) for function in (function_of(operator), _noise)]
    for name, value in options.items():
        default = next((found[name].default for found in parameters if name in found), None)
        if isinstance(default, bool) and not isinstance(value, bool | np.bool_):
            raise must_be(name, "true or false", value)
        if is_number(default) and not is_number(value):
            raise must_be(name, "a number", value)


def _check_fraction(name: str, value: float, below_one: bool = False) -> None:
    if not is_number(value):
        raise must_be(name, "a number", value)
    check_range(name, value, low=0, high=1, high_allowed=not below_one)


def _noise(
    noise: float = 0.0,
    old_weight_scale: float | None = None,
    cancel: bool = False,
    noise_on: str = "all",
    noise_scale: str = "initial",
) -> Noise | None:
    """Initialisation noise for any operator: W <- old_weight_scale W + noise e (arXiv 2405.15319, section 5.2 and I).

    Args:
      noise: the factor of e, 0 to 1.
      old_weight_scale: the factor of the grown weights; by default 1 - noise, as in the paper, and 1 with cancel.
      cancel: adds only the part of e that cancels among the copies of a coordinate, so the function is kept.
      noise_on: "all" matrices, or their "new" slices.
      noise_scale: the standard deviation of e. "initial": the target's initial values, `Weight.std`. "paper", eq. 53
        and 54: variance 1 / (d l^2) for residual writers and 2 / (5 d) elsewhere, of the target's width d and layers l.
    """
    _check_fraction("noise", noise)
    if old_weight_scale is None:
        old_weight_scale = 1.0 if cancel else 1.0 - noise
    _check_fraction("old_weight_scale", old_weight_scale)
    if cancel and old_weight_scale != 1:
        raise must_be("old_weight_scale", "1 with cancel, which keeps the function", old_weight_scale)
    if not noise and old_weight_scale == 1:
        return None
    return Noise(float(noise), float(old_weight_scale), cancel, noise_on == "new", noise_scale)


_NOISE_OPTIONS = tuple(inspect.signature(_noise).parameters)
_COMMON_OPTIONS = (*_NOISE_OPTIONS, "vocab")  # of every operator


def _vocabulary(growth: Growth, target: DecoderConfig, vocab: str = "initial") -> dict[str, AxisMap]:
    """The maps of axes of tokens, for the option `vocab` of every operator: what new tokens begin with.

    "initial": initial values, in embedding and head. "zeros": zeros, so their logits are 0. "mean": the mean of all old
    tokens, so a new token's logit is the mean of theirs.
    """
    if vocab == "initial":
        return {}
    maps = {}
    for axis in target.architecture.of_kind(Kind.VOCAB):
        old = growth.maps[axis.name].old
        index = pad_index(old, target.size(axis))
        spread = (np.where(index < 0, 1.0, 0.0), np.full(old, 1 / old)) if vocab == "mean" else None
        tokens = Gather.copies(index, spread=spread if np.any(index < 0) else None)
        maps[axis.name] = AxisMap.make(old, tokens, tokens)
    return maps


def function_of(operator: str) -> Callable[..., Growth]:
    """The function of an operator, one that grows or one that shrinks. Raises InputError."""
    known = OPERATORS | SHRINKS
    if operator not in known:
        raise unknown("growth operator", operator, known)
    return known[operator]


def options_of(operator: str) -> tuple[str, ...]:
    """The options of an operator, without those that every operator has (noise's, vocab). Raises InputError."""
    return tuple(_parameters(function_of(operator)))[3:]


def current_options(operator: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options by their present names. Raises InputError where one is given by both of its names.

    An operator of one's own may have an option by a name that growlm's operators no longer use.
    """
    have = (*options_of(operator), *_COMMON_OPTIONS)
    named: dict[str, Any] = {}
    for name, value in options.items():
        new = RENAMED_OPTIONS.get(name, name)
        present = new if name not in have and new in have else name
        if present in named or (present != name and present in options):
            raise InputError(f"option {present} must be given once, got {name} as well, its name until 0.3")
        named[present] = value
    return named


def hashed_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options by the names under which stage hashes have known them from the start, so that no hash changes."""
    first = {new: old for old, new in RENAMED_OPTIONS.items()}
    return {first.get(name, name): value for name, value in options.items()}


def plan_growth(
    operator: str, source: DecoderConfig, target: DecoderConfig, key: Array | None = None, /, **options: Any
) -> Growth:
    """Plans the growth of one shape into another, after the lifts that lead to the target's architecture.

    Raises InputError: an unknown operator or option, a target smaller than the source (of a shrink: larger), no lift to
    its architecture, heads or layers that do not fit, a missing key.
    """
    options = current_options(operator, options)
    lifted = lift(source, target)
    start = lifted.config if lifted else source
    for name in target.architecture.sizes:
        before, after = getattr(start, name), getattr(target, name)
        if (after > before) if operator in SHRINKS else (after < before):
            side = "<=" if operator in SHRINKS else ">="
            raise must_be(f"the target's model.{name}", f"{side} the source's, {before}", after)
    check_heads(start, target)
    bases = {axis.base for axis in target.architecture.of_kind(Kind.HEAD)}
    for name in sorted(target.architecture.kept, key=lambda name: name in bases):  # bases follow from the rest
        before, after = getattr(start, name), getattr(target, name)
        if not check_base(name, start, target) and before != after:
            raise must_be(f"the target's model.{name}", f"the source's, {before!r}, which no growth changes", after)
    have = (*options_of(operator), *_COMMON_OPTIONS)
    if extra := sorted(set(options) - set(have)):
        raise unknown(f"option of {operator}", extra[0], have)
    for name in options.keys() & CHOICES.keys():
        if not isinstance(options[name], str) or options[name] not in CHOICES[name]:
            raise unknown(name, options[name], CHOICES[name])
    _check_types(operator, options)
    noise = _noise(**{name: options.pop(name) for name in _NOISE_OPTIONS if name in options})
    tokens = options.pop("vocab", "initial")
    growth = function_of(operator)(start, target, key, **options)
    growth = dataclasses.replace(growth, maps=growth.maps | _vocabulary(growth, target, tokens))
    per_weight = growth.per_weight | fresh_routers(target, growth.maps) | fresh_in_lift(growth, lifted)
    factors = factors_of(growth, start, target)
    if noise is not None:
        noise = dataclasses.replace(noise, alike=weighed_alike(growth, start, target))
    effects = growth.effects if noise is None else (*growth.effects, noise)
    return dataclasses.replace(growth, effects=effects, per_weight=per_weight, factors=factors, lift=lifted)
