"""Branches and architectures, made of declared weights, and the base of their config classes.

An architecture is a value in a file of its own, and its config class carries it.
"""

import dataclasses
import enum
import math
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import jax
from flax.traverse_util import unflatten_dict

from growlm.errors import InputError, check_positive, check_range, must_be
from growlm.models.axes import Axis, Kind, Multiplier, Role, Weight, WeightSpec, always, multiply

Params = dict[str, Any]
MOST, MOST_LAYERS = 2**24, 10**5  # of a size and of layers: what is larger is a slip, and would be counted to
MEMORY = "memory"  # the entry of a branch's auxiliary dict with what all layers keep for the next positions


class NormKind(enum.Enum):
    """The kind of a norm, which determines what growth of the stream must keep."""

    RMS = "rms"  # divides by the root mean square (arXiv 1910.07467)
    LAYER = "layer"  # takes the mean away and divides by the standard deviation (arXiv 1607.06450)


@dataclasses.dataclass(frozen=True)
class Norm:
    """The norm through which an architecture reads its stream.

    Attributes:
      kind: what it computes.
      scale, bias: whether it has a gain and a bias.
      eps: the field of the config with its eps.
      offset: of the gain, see `WeightSpec`.
    """

    kind: NormKind
    scale: bool = True
    bias: bool = False
    eps: str = "norm_eps"
    offset: float = 0.0

    def weights(self, reads: str, writes: str) -> tuple[WeightSpec, ...]:
        """Its gain and bias, if it has them."""
        initial = "zeros" if self.offset else "ones"
        gain = WeightSpec("scale", f"{reads}>{writes}", Role.GAIN, init=initial, offset=self.offset)
        bias = WeightSpec("bias", f">{writes}", Role.BIAS)
        return (gain,) * self.scale + (bias,) * self.bias


def _no_flops(config: Any, length: int) -> float:
    return 0.0


def _no_tables(config: Any, length: int) -> Any:
    return None


def no_memory(config: Any, batch: int, length: int, dtype: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """What a branch that reads every position by itself keeps of those before."""
    return {}


def _any_length(config: Any) -> int | None:
    return None


@dataclasses.dataclass(frozen=True, eq=False)
class Branch:
    """A residual branch: y = x + scale norm(module(norm_scale norm(x))), most of them without the outer norm.

    Attributes:
      name: its weights are blocks/NAME/..., those of its norms blocks/NAME_norm/... and blocks/NAME_post_norm/....
      module: a Linen module of (config, dtype), called with (x_ND, context); returns (what is added to the stream
        [N, D], an auxiliary dict).
      weights: without those of its norm.
      flops: (config, length) -> forward FLOPs of a token in products of activations with each other.
      tables: (config, length) -> arrays that all layers share, such as rotary tables, passed in the context.
      losses: (config, auxiliary dict stacked over layers) -> auxiliary losses by name, added in training.
      metrics: the same -> scalars by name, which training records.
      reads: the axis that its norm writes; the stream for a branch that reads it without a norm.
      writes: an axis of kind NORMED that it writes, if a norm stands between it and the stream.
      scale, norm_scale: factors on what it adds, and on what it gets from its norm.
      variants: config -> int [layers], which variant of the branch each layer runs (`Context.variant`), such as one of
        two windows. Weights know nothing of it: a layer that moves to a place of another variant computes otherwise.
      means: the inner axes over which it takes a mean square, as a norm over all heads does.
      memory: (config, batch, length, dtype) -> what one layer keeps of up to `length` positions in generation, a dict
        of shapes and types [batch, ...], initially zeros; `no_memory` for a branch that reads every position by itself.
        The module finds it as `context.past.memory`, and returns `context.past.replaced` of the new one in its
        auxiliary dict as MEMORY. None: it has not been declared, and generation runs the whole text through the model
        for every token.
      norms2: the inner axes over which it divides by the root of a sum of squares, each with the factor on the result:
        a field of the config, and config -> its value. A nonlinearity that keeps 0 may follow.
    """

    name: str
    module: Callable[..., Any]
    weights: tuple[WeightSpec, ...]
    flops: Callable[[Any, int], float] = _no_flops
    tables: Callable[[Any, int], Any] = _no_tables
    losses: Callable[[Any, Any], dict[str, jax.Array]] | None = None
    metrics: Callable[[Any, Any], dict[str, jax.Array]] | None = None
    reads: str = "embed"
    writes: str = ""
    scale: Multiplier | None = None
    norm_scale: Multiplier | None = None
    variants: Callable[[Any], tuple[int, ...]] | None = None
    means: tuple[str, ...] = ()
    memory: Callable[[Any, int, int, Any], dict[str, jax.ShapeDtypeStruct]] | None = None
    norms2: Mapping[str, tuple[str, Callable[[Any], float]]] = dataclasses.field(default_factory=dict)


# A small head keeps the initial loss at log(vocab): logits of variance v cost v / 2 nats.
_HEAD_GAIN = 0.25

# The fan-in is that of a tied head, which reads `final`.
EMBEDDING = WeightSpec("embedding", "vocab> >stream", Role.LOOKUP, gain=_HEAD_GAIN, fan_in=("final",))


def head(present: Callable[[Any], bool] = always) -> WeightSpec:
    """The head, from the last hidden state to logits. If it is not present, the embedding is the head (tied)."""
    return WeightSpec("head", "final> >vocab", gain=_HEAD_GAIN, present=present)


# The head of every config with tie_embeddings: a tied model has none of its own.
HEAD_UNLESS_TIED = head(present=lambda config: not config.tie_embeddings)


def look_up(weights: Mapping[str, jax.Array], config: Any, tokens_BT: jax.Array, position_BT: Any = None) -> jax.Array:
    """The stream before the first layer, [B x T, D]: rows of the embedding."""
    return weights["embedding"][tokens_BT.reshape(-1)]


class Section(NamedTuple):
    """Consecutive layers of the stack, which run one after the other, `passes` times with the same weights.

    Attributes:
      name: sections of one name grow as one.
      layers: their number.
      passes: how often they run.
      boundary: whether `Architecture.boundary` follows every pass.
    """

    name: str
    layers: int
    passes: int = 1
    boundary: bool = False


def _no_cap(config: Any) -> float | None:
    return None


def _one_section(config: "DecoderConfig") -> tuple[Section, ...]:
    return (Section("layers", config.depth),)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Architecture:
    """A family of decoders: one stream through periods of branches, a norm, a head.

    Attributes:
      name: in configs.
      config: its config class, which carries the architecture from then on.
      axes: every axis that weights read or write.
      period: the repeated unit: steps in sequence, each of branches in parallel.
      norm: through which branches and head read the stream.
      final_norm: the head's, if it differs in its weights.
      lookups: the weights that `embed` uses; by default the embedding.
      embed: (lookups by name, config, tokens[B, T], positions[B, T]) -> the stream before the first layer, [B x T, D].
        No positions, or None, are 0, 1, ...
      head: from the last hidden state to logits; absent if it is tied to the embedding.
      longest: config -> the most tokens of a sequence, where positions are learned; None for any number.
      embed_scale, logit_scale: factors on what `embed` looks up, which applies the first, and on logits.
      logit_cap: config -> c, or None; logits are then c tanh(logits / c).
      sections: config -> the sections of the stack in the order in which they run; by default one.
      boundary: (config, x, entry) -> x: the stream [N, D] after a section with a boundary, given the stream before the
        first of them.
      keeps_scale: whether `embed` or `boundary` normalises the stream, so that gains cannot absorb its scale.
      shared: fields of the config that growth cannot change, besides sizes of FIXED axes.
      free: fields that may differ between source and target.
      families: its families in transformers, by model_type (`growlm.models.stored`).
      example: the fields of a small model.
    """

    name: str
    config: type["DecoderConfig"]
    axes: tuple[Axis, ...]
    period: tuple[tuple[Branch, ...], ...]
    norm: Norm
    final_norm: Norm | None = None
    lookups: tuple[WeightSpec, ...] = (EMBEDDING,)
    embed: Callable[..., jax.Array] = look_up
    head: WeightSpec = dataclasses.field(default_factory=head)
    longest: Callable[[Any], int | None] = _any_length
    embed_scale: Multiplier | None = None
    logit_scale: Multiplier | None = None
    logit_cap: Callable[[Any], float | None] = _no_cap
    sections: Callable[[Any], tuple[Section, ...]] = _one_section
    boundary: Callable[..., jax.Array] | None = None
    keeps_scale: bool = False
    shared: tuple[str, ...] = ()
    free: tuple[str, ...] = ("norm_eps",)
    families: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    example: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        self.config.architecture = self

    def __repr__(self):
        return f"<architecture {self.name}>"

    @cached_property
    def axis(self) -> dict[str, Axis]:
        """Its axes by name."""
        return {axis.name: axis for axis in self.axes}

    @cached_property
    def branches(self) -> tuple[Branch, ...]:
        """The branches of one period, in order."""
        return tuple(branch for step in self.period for branch in step)

    @cached_property
    def weights(self) -> dict[str, Weight]:
        """Every weight by its path, in the order of a forward pass, present in a config or not."""
        axes, stack, stream = self.axis, self.stack, self.stream.name
        weights = [spec.placed("", axes, None, self.embed_scale) for spec in self.lookups]
        for branch in self.branches:
            if branch.reads != stream:
                norm = self.norm.weights(stream, branch.reads)
                weights += [spec.placed(f"blocks/{branch.name}_norm/", axes, stack) for spec in norm]
            for spec in branch.weights:
                multiplier = self._multiplier(branch, spec.placed("", axes, stack))
                weights.append(spec.placed(f"blocks/{branch.name}/", axes, stack, multiplier))
            if branch.writes:
                assert self.norm.scale, "a norm after a branch needs a gain: growth in depth sets it to zero"
                norm = self.norm.weights(branch.writes, stream)
                weights += [spec.placed(f"blocks/{branch.name}_post_norm/", axes, stack, branch.scale) for spec in norm]
        final = next(dim.reads.name for dim in self.head.placed("", axes, None).dims if dim.reads)
        norm = self.last_norm.weights(stream, final)
        weights += [spec.placed("final_norm/", axes, None, self.tied_multiplier) for spec in norm]
        weights.append(self.head.placed("", axes, None, self.logit_scale))
        return {weight.path: weight for weight in weights}

    def _multiplier(self, branch: Branch, weight: Weight) -> Multiplier | None:
        """The factor of the forward pass on what a weight of a branch writes."""
        read = any(dim.reads is self.axis[branch.reads] for dim in weight.dims) and not weight.elementwise
        factors = (branch.norm_scale if read else None, branch.scale if weight.residual else None)
        found = [factor for factor in factors if factor is not None]
        return (lambda config: math.prod(multiply(factor, config) for factor in found)) if found else None

    def tied_multiplier(self, config: "DecoderConfig") -> float:
        """That on what the last norm writes: a tied head cannot undo a changed factor on logits or embedding itself."""
        if not self.tied(config):
            return 1.0
        return multiply(self.logit_scale, config) / multiply(self.embed_scale, config)

    @property
    def last_norm(self) -> Norm:
        """The norm before the head."""
        return self.final_norm or self.norm

    def has_gain(self, axis: Axis) -> bool:
        """Whether a gain writes the axis, which then may grow by other maps than the stream."""
        return any(w.role is Role.GAIN and dim.writes is axis for w in self.weights.values() for dim in w.dims)

    @cached_property
    def stream(self) -> Axis:
        """The residual stream."""
        return self.of_kind(Kind.STREAM)[0]

    @cached_property
    def stack(self) -> Axis:
        """The axis of layers, or of periods of them."""
        return self.of_kind(Kind.STACK)[0]

    @cached_property
    def final(self) -> Axis:
        """The axis from the last norm to the head."""
        return next(dim.reads for dim in self.weights["head"].dims if dim.reads)

    def of_kind(self, *kinds: Kind) -> tuple[Axis, ...]:
        """Its axes of these kinds."""
        return tuple(axis for axis in self.axes if axis.kind in kinds)

    @cached_property
    def sizes(self) -> tuple[str, ...]:
        """The fields of the config that growth may change."""
        return tuple(dict.fromkeys(axis.field for axis in self.axes if axis.kind is not Kind.FIXED))

    @cached_property
    def widths(self) -> tuple[str, ...]:
        """The sizes of one layer."""
        depth = {axis.field for axis in self.of_kind(Kind.STACK, Kind.VOCAB)}
        return tuple(field for field in self.sizes if field not in depth)

    @cached_property
    def kept(self) -> tuple[str, ...]:
        """The fields of the config that growth cannot change."""
        fixed = [axis.field for axis in self.of_kind(Kind.FIXED)]
        return tuple(dict.fromkeys([*fixed, *self.shared]))

    def is_read(self, axis: Axis) -> bool:
        """Whether a matrix reads the axis, so that R^T P = I is needed on it."""
        return any(dim.reads is axis for w in self.weights.values() if not w.elementwise for dim in w.dims)

    @cached_property
    def remembers(self) -> bool:
        """Whether all branches have declared their memory."""
        return all(branch.memory is not None for branch in self.branches)

    def tied(self, config: "DecoderConfig") -> bool:
        """Whether the embedding is the head."""
        return not self.weights["head"].present(config)

    def match_weight(self, path: tuple) -> tuple[str, Weight | None, str]:
        """Splits a key path of e.g. an optimizer state into (field, weight, rest).

        `0/mu/blocks/mlp/gate` is (`mu`, gate, ``). The weight is None if the leaf belongs to none.
        """
        names = ["", *path_of(path).split("/")]
        for begin in range(1, len(names)):
            for end in range(len(names), begin, -1):
                if (weight := self.weights.get("/".join(names[begin:end]))) is not None:
                    return names[begin - 1], weight, "/".join(names[end:])
        return "", None, ""


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The base of the config classes of architectures: frozen, validated dataclasses."""

    architecture: ClassVar[Architecture]
    # Fields that are newer than runs of 0.2: at their defaults they are left out of the hash of what a run begins from.
    newer: ClassVar[tuple[str, ...]] = ()
    depth_alpha = 1.0  # of a config without a base, see `growlm.models.parametrization`

    def size(self, axis: Axis) -> int:
        """The size of a declared axis; of a flag, 1 or 0."""
        return int(getattr(self, axis.field))

    def base_size(self, axis: Axis) -> int:
        """The size of an axis at which the model is as in the standard parametrisation."""
        return self.size(axis)

    @property
    def depth(self) -> int:
        """The number of periods of layers."""
        return self.size(self.architecture.stack)

    @property
    def base_branches(self) -> int:
        """The number of branches in all layers of the base."""
        return len(self.architecture.branches) * self.base_size(self.architecture.stack)

    @property
    def longest(self) -> int | None:
        """The most tokens of a sequence, or None."""
        return self.architecture.longest(self)

    def grown(self, **sizes: Any) -> "DecoderConfig":
        """With other sizes, where what the config derives from a size by default stays the number that it was."""
        return dataclasses.replace(self, **sizes)

    def check_length(self, name: str, length: int) -> None:
        """Raises InputError where sequences are longer than the model has positions."""
        if self.longest is not None and length > self.longest:
            raise must_be(name, f"at most {self.longest}, the positions of the model", length)

    @property
    def executed(self) -> tuple[int | None, ...]:
        """The numbers of the layers in the order in which they run; None for a boundary."""
        order: list[int | None] = []
        begin = 0
        for section in self.architecture.sections(self):
            one_pass = [*range(begin, begin + section.layers), *[None] * section.boundary]
            order += one_pass * section.passes
            begin += section.layers
        return tuple(order)

    @property
    def weights(self) -> Iterator[Weight]:
        """The weights of the model."""
        return (weight for weight in self.architecture.weights.values() if weight.present(self))

    def _check_integers(self, *names: str, least: int = 1) -> None:
        for name in names:
            check_integer(f"model.{name}", getattr(self, name), least)
            most = MOST_LAYERS if name == self.architecture.stack.field else MOST
            check_range(f"model.{name}", getattr(self, name), high=most)

    def _check_numbers(self, *names: str) -> None:
        for name in names:
            check_positive(f"model.{name}", getattr(self, name))
            if name == self.architecture.norm.eps:  # of a mean square that is about 1
                check_range(f"model.{name}", getattr(self, name), high=1)

    def _check_flags(self, *names: str) -> None:
        for name in names:
            if not isinstance(value := getattr(self, name), bool):
                raise must_be(f"model.{name}", "True or False", value)


def check_integer(name: str, value: object, least: int = 1) -> None:
    """Raises InputError unless the value is an integer and no smaller."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise must_be(name, "a positive integer" if least == 1 else f"an integer >= {least}", value)


def path_of(key_path: tuple) -> str:
    """A key path as text: `blocks/mlp/gate`."""
    return "/".join(jax.tree_util.keystr((entry,), simple=True) for entry in key_path)


def map_weights(function: Callable, config: DecoderConfig, params: Params, *rest: Params) -> Params:
    """Maps `function(weight, leaf, ...)` over a parameter tree. Raises InputError as `check_params`."""
    check_params(config, params)
    weights = config.architecture.weights
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(weights[path_of(path)], *leaves), params, *rest
    )


def check_params(config: DecoderConfig, params: Mapping) -> None:
    """Raises InputError unless the tree holds exactly the declared weights, each in its declared shape."""
    found = {path_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    expected = {weight.path: weight.shape(config) for weight in config.weights}
    if extra := sorted(found.keys() - expected.keys()):
        raise must_be("a parameter of this model", f"one of {', '.join(expected)}", extra[0])
    if missing := sorted(expected.keys() - found.keys()):
        raise InputError(f"parameter {missing[0]!r} must be in the tree of this model, got none")
    for path, shape in expected.items():
        if found[path] != shape:
            raise must_be(f"the shape of parameter {path!r}", f"{shape} for this model", found[path])


def nest(leaves: dict[str, Any]) -> Params:
    """A nested dict from leaves by path."""
    return unflatten_dict(leaves, sep="/")
