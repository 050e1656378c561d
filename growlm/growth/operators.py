"""The growth operators: from two shapes to one map per axis, by a rule for each kind of axis. One function and one row.

No operator knows the name of an axis or of a weight.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from growlm.errors import InputError, unknown
from growlm.growth.depth import layer_order
from growlm.growth.effects import NOISE_SCALES, BlockDiagonal, Effect, NextLayer, Noise
from growlm.growth.expand import number_of
from growlm.growth.learned import learn
from growlm.growth.lifts import lift
from growlm.growth.maps import AxisMap, Gather, identity
from growlm.growth.masks import Masks
from growlm.growth.norms import NORM_RULES, check_norm
from growlm.growth.plan import Growth
from growlm.growth.width import (
    SELECTIONS,
    check_selection,
    copied,
    cycled,
    fresh,
    padded,
    places,
    query_heads,
    rng_of,
    tied_final,
)
from growlm.models.axes import Axis, DecoderConfig, Kind, Role

# By the kind of an axis, its map; only of the kinds of which an operator has its own idea.
Rules = Mapping[Kind, Callable[[Axis], AxisMap]]


def direct(
    source: DecoderConfig,
    target: DecoderConfig,
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
    list. `silent`: a layer that repeats an earlier one has zeros in what writes the stream, and adds nothing yet
    (LEMON, arXiv 2310.07999; LLaMA Pro, 2401.02415). In width every coordinate is a copy, written as it is and read in
    parts: `select` "cycle" (the published code with from_left), "repeat" or "random" (the published code's default)
    picks what is copied. `uneven` in [0, 1) says how unequal the parts are: 0, even, is the published code, and such
    copies stay copies for good; the paper says uneven (LEMON). `diagonal`: a copy reads only its own copies
    (HyperCloning, staged training). `next_layer`: the coordinates that width adds are copied from the next layer
    (bert2BERT's AKI). `norm`: "isometry", exact for any target under RMSNorm and for whole copies under LayerNorm;
    "gain", the paper's formula; "none", the published code. Experts are copied as neurons are; copies of a single one
    get routers of their own.
    """
    check_selection(select)
    check_norm(norm)
    _check_share("uneven", uneven, below_one=True)
    if diagonal and uneven:
        raise InputError(f"diagonal and uneven {uneven:g} exclude each other: allowed is one of them")
    if next_layer and silent:
        raise InputError("next_layer and silent exclude each other: allowed is one of them")
    if uneven or select == "random":
        rng_of(key, "direct with uneven or random copies")  # refused before anything is planned

    def index(axis: Axis) -> np.ndarray:
        # What a norm hands on follows the stream; axes of one size copy alike, as values follow keys.
        axis = _axis(target, axis.of) if axis.kind is Kind.READ else axis
        rng = rng_of(key, "direct", number_of(axis.field)) if select == "random" else None
        if axis.kind is Kind.HEADS and axis.of:
            return query_heads(axis, source, target, index(_axis(target, axis.of)), copies=True)
        return SELECTIONS[select](source.size(axis), target.size(axis), rng)

    def copies(axis: Axis) -> AxisMap:
        share = uneven if target.architecture.is_read(axis) else 0.0
        rng = rng_of(key, "direct", number_of(axis.name)) if share else None
        return copied(index(axis), source.size(axis), share, rng)

    rule = NORM_RULES[target.architecture.norm.kind]
    rules = {
        Kind.STREAM: lambda axis: rule.stream(index(axis), source.size(axis), norm),
        Kind.READ: copies,
        Kind.INNER: copies,
        Kind.HEADS: copies,
    }
    layers = _layers(order, source, target)
    last = source.depth - 1
    effects: list[Effect] = [NextLayer(np.minimum(layers + 1, last))] if next_layer else []
    effects += [BlockDiagonal()] if diagonal else []
    residual = np.where(_repeats(layers) & silent, 0.0, 1.0)
    return by_kind(source, target, rules, layers, residual, effects)


def zero(
    source: DecoderConfig,
    target: DecoderConfig,
    key: jax.Array | None = None,
    *,
    order: str | Sequence[int] = "stack",
    norm: str = "isometry",
    fill: str = "initial",
) -> Growth:
    """G_zero: the old model, and around it what adds nothing yet (arXiv 2405.15319, section A.1.3; LEMON, 2310.07999).

    In depth a layer that repeats an earlier one keeps its weights but for what writes the stream, which is zero
    (order "interleave" is the published code's). In width new coordinates are zero on one side and the target's initial
    values on the other (`fill` "initial"), or zero on both ("zeros": plain padding); under LayerNorm the stream's new
    coordinates are the mean of the old. `norm`: "isometry" scales the stream by sqrt(new / old), so that no norm
    notices; "gain" is the paper's sqrt(d / D) on the gains, exact up to eps; "none" the published code, which has
    neither and changes the function. An expert cannot add nothing, its router shares out a weight of one: experts are
    copied.
    """
    if fill not in ("initial", "zeros"):
        raise unknown("fill", fill, ("initial", "zeros"))
    rule, plain = NORM_RULES[target.architecture.norm.kind], fill == "zeros"

    def filled(axis: AxisMap) -> AxisMap:
        return AxisMap.make(axis.old, axis.write, axis.read, rms=axis.rms) if plain else axis

    rules = {
        Kind.STREAM: lambda axis: filled(rule.stream(places(axis, source, target), source.size(axis), norm)),
        Kind.READ: lambda axis: filled(padded(places(axis, source, target), source.size(axis))),
        Kind.INNER: lambda axis: filled(padded(places(axis, source, target), source.size(axis))),
        # A new query head may share an old value head, so it is what reads it that must be zero.
        Kind.HEADS: lambda axis: filled(padded(places(axis, source, target), source.size(axis), fresh_write=True)),
    }
    layers = _layers(order, source, target)
    return by_kind(source, target, rules, layers, np.where(_repeats(layers), 0.0, 1.0))


def random(
    source: DecoderConfig,
    target: DecoderConfig,
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
    the published code, instead of the paper's two, on attention and on FFN. `norm` as in zero, under the mask. Fresh
    experts are under no mask.
    """
    if isinstance(ramp_tokens, bool) or not isinstance(ramp_tokens, int | float) or not 0 <= ramp_tokens < np.inf:
        raise InputError(f"ramp_tokens must be tokens >= 0, got {ramp_tokens!r}")
    check_norm(norm)  # also where nothing is masked
    kinds = (Kind.STREAM, Kind.READ, Kind.INNER, Kind.HEADS, Kind.EXPERTS)
    rules = dict.fromkeys(kinds, lambda axis: fresh(places(axis, source, target), source.size(axis)))
    layers = _layers(order, source, target) if source.depth else np.zeros(0, np.int64)
    layers = np.where(_repeats(layers), -1, layers) if source.depth else np.full(target.depth, -1)
    masks = [Masks(int(ramp_tokens), in_turn, whole_blocks, norm)] if ramp_tokens else []
    return by_kind(source, target, rules, layers, np.ones(len(layers)), masks)


# Adding an operator is one function and one row.
OPERATORS: dict[str, Callable[..., Growth]] = {"direct": direct, "zero": zero, "random": random, "learn": learn}


def _axis(config: DecoderConfig, name: str) -> Axis:
    return config.architecture.axis[name]


def _layers(order: str | Sequence[int], source: DecoderConfig, target: DecoderConfig) -> np.ndarray:
    return np.asarray(layer_order(order, source.depth, target.depth), np.int64)


def _repeats(layers: np.ndarray) -> np.ndarray:
    """Which layers come from a source layer that an earlier one comes from."""
    return np.array([layer in layers[:position] for position, layer in enumerate(layers)], bool)


def by_kind(
    source: DecoderConfig,
    target: DecoderConfig,
    rules: Rules,
    layers: np.ndarray,
    residual: np.ndarray,
    effects: Sequence[Effect] = (),
) -> Growth:
    """The maps that an operator's rules make, and those that most treat alike, which its rules may replace.

    What is fixed stays, new tokens are new, experts are copied: one cannot add nothing. A tied head reads through the
    stream's own map.
    """
    architecture = target.architecture
    copies, none = Gather.copies(layers), layers < 0
    stack = architecture.stack
    common: Rules = {
        Kind.STACK: lambda axis: AxisMap.make(source.size(axis), copies, copies, fresh_write=none, fresh_read=none),
        Kind.FIXED: lambda axis: identity(source.size(axis)),
        Kind.VOCAB: lambda axis: padded(places(axis, source, target), source.size(axis)),
        Kind.EXPERTS: lambda axis: cycled(source.size(axis), target.size(axis)),
    }
    maps = {axis.name: {**common, **rules}[axis.kind](axis) for axis in architecture.axes}
    final, stream = architecture.final, maps[architecture.stream.name]
    if architecture.tied(target) and not stream.fresh_write.any():
        maps[final.name] = tied_final(stream)
    return Growth(maps, stack.name, residual, effects=tuple(effects))


def _routers(target: DecoderConfig, maps: dict[str, AxisMap]) -> dict[tuple[str, str], AxisMap]:
    """Copies of a single expert would tie for ever, and any router weighs them to the same sum: they get fresh ones."""
    own = {}
    for weight in target.weights:
        for dim in weight.dims:
            axis = maps[dim.axis.name]
            if weight.role is Role.ROUTER and dim.axis.kind is Kind.EXPERTS and axis.old == 1 and axis.new > 1:
                everything = np.ones(axis.new, bool)
                own[dim.axis.name, weight.path] = dataclasses.replace(axis, fresh_write=everything)
    return own


def _check_share(name: str, value: float, below_one: bool = False) -> None:
    inside = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
    if not inside or (below_one and value == 1):
        raise InputError(f"{name} must be 0 <= {name} {'<' if below_one else '<='} 1, got {value!r}")


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
    operator: str, source: DecoderConfig, target: DecoderConfig, key: jax.Array | None = None, /, **options: Any
) -> Growth:
    """The growth that an operator makes of two shapes, after the lifts that lead to the target's architecture.

    Raises InputError: an unknown operator or option, a target smaller than the source, an architecture to which no lift
    leads, heads or layers that do not fit, a missing key.
    """
    allowed = (*options_of(operator), *_NOISE_OPTIONS)
    lifted = lift(source, target)
    start = lifted.config if lifted else source
    for name in target.architecture.sizes:
        before, after = getattr(start, name), getattr(target, name)
        if after < before:
            raise InputError(f"the target's model.{name} {after} is smaller than the source's {before}")
    for name in target.architecture.kept:
        before, after = getattr(start, name), getattr(target, name)
        if before != after:
            raise InputError(
                f"model.{name} is {before} in the source and {after} in the target: growth cannot change it"
            )
    if extra := sorted(set(options) - set(allowed)):
        raise unknown(f"option of {operator}", extra[0], allowed)
    noise = _noise(**{name: options.pop(name) for name in _NOISE_OPTIONS if name in options})
    growth = OPERATORS[operator](start, target, key, **options)
    effects = growth.effects + ((noise,) if noise else ())
    return dataclasses.replace(growth, effects=effects, own=growth.own | _routers(target, growth.maps), lift=lifted)
