"""Axes with kinds, and weights that read and write them: what a model is declared of.

Shapes, initial scales, counts, shardings, optimizer groups and growth are derived from it, and none of these knows an
axis or a weight by name. Branches and architectures (`architecture.py`) are made of them.
"""

import dataclasses
import enum
import math
import zlib
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from growlm.models.draws import in_one_pass


class Sized(Protocol):
    """What a weight asks of a config, all of which are `DecoderConfig`s."""

    def size(self, axis: "Axis") -> int:
        """The size of an axis."""
        ...

    def base_size(self, axis: "Axis") -> int:
        """The size of an axis in the base of the parametrisation."""
        ...

    @property
    def base_branches(self) -> int:
        """The number of branches in all layers of the base."""
        ...


class Kind(enum.Enum):
    """The kind of an axis, by which growth, claims, masks, learned maps and sharding treat it."""

    STREAM = "stream"  # the residual stream: read through norms
    READ = "read"  # the output of a norm
    NORMED = "normed"  # the output of a branch that has a norm of its own before the stream
    INNER = "inner"  # within a branch, elementwise between its writer and its reader
    HEADS = "heads"  # of attention; query heads share the key and value heads of their group
    HEAD = "head"  # the coordinates of one head, over which queries and keys are multiplied
    EXPERTS = "experts"  # of a mixture, weighed by a router
    STACK = "stack"  # periods of layers, one after the other
    VOCAB = "vocab"
    FIXED = "fixed"  # does not grow


class Role(enum.Enum):
    """The role of a weight in the optimizer, in noise and in FLOP counts; initial values say nothing about it."""

    MATRIX = "matrix"
    LOOKUP = "lookup"  # rows selected by number: no product
    ROUTER = "router"  # a matrix whose outputs weigh experts
    GAIN = "gain"  # multiplies elementwise
    BIAS = "bias"  # added elementwise
    CONSTANT = "constant"  # of a channel of a recurrence, such as its rate of decay; weight decay leaves it alone
    FILTER = "filter"  # of a channel, summed over taps: a product, but no matrix


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis of activations.

    Attributes:
      name: in the dims of weights.
      kind: how growth treats it.
      size: the field of the config with its size; by default the field of its name.
      mesh: the mesh axis over which arrays are sharded along it, or None.
      of: for a READ axis, the stream that its norm reads; for query heads, the key heads that their groups share.
      values: for grouped query heads, the heads whose values they mix.
      chosen: for experts, the field of the config with the number of experts of a token.
      normalised: for experts, whether the router weights of a token's experts sum to 1, or the field that says so.
      zero_reads: padding zeroes what reads a new coordinate, not what writes it: where what is written is zero, its
        writer would have no gradient, since its branch multiplies what two weights write, or is flat at zero.
      rotated: for a head's coordinates, config -> how many, r, are rotated, in pairs (i, i + r/2); None for none.
      base: the field of the config with the base of their frequencies, base^(-2 i / r).
    """

    name: str
    kind: Kind
    size: str = ""
    mesh: str | None = None
    of: str = ""
    values: str = ""
    chosen: str = ""
    normalised: str | bool = True
    zero_reads: bool = False
    rotated: Callable[[Any], int] | None = None
    base: str = ""

    @property
    def field(self) -> str:
        """The field of the config with its size."""
        return self.size or self.name

    def normalises(self, config: Any) -> bool:
        """Whether the router weights of a token's experts sum to 1 in a model."""
        return getattr(config, self.normalised) if isinstance(self.normalised, str) else self.normalised


@dataclasses.dataclass(frozen=True)
class Dim:
    """One array dimension of a weight: the axis that it reads, the axis that it writes, or both if it is elementwise.

    many: the weight is held once for each coordinate (layer, expert), and multiplies nothing along the dimension.
    """

    reads: Axis | None
    writes: Axis | None
    many: bool = False

    @property
    def axis(self) -> Axis:
        """The axis with the size of the dimension."""
        axis = self.reads if self.reads is not None else self.writes
        assert axis is not None, "a dimension reads or writes an axis"
        return axis

    @property
    def both(self) -> tuple[Axis, ...]:
        """The axes that it reads or writes."""
        return tuple(axis for axis in (self.reads, self.writes) if axis is not None)

    @classmethod
    def parse(cls, text: str, axes: Mapping[str, Axis]) -> "Dim":
        """`embed>` reads, `>mlp` writes, `stream>embed` does both elementwise, `experts:` is held once for each."""
        if text.endswith(":"):
            return cls(None, axes[text[:-1]], many=True)
        reads, writes = text.split(">")
        return cls(axes[reads] if reads else None, axes[writes] if writes else None)


# The paper's code: matrices start with standard deviation sqrt(2 / (5 fan_in)).
GAIN = math.sqrt(2 / 5)

# config -> a positive factor of the forward pass: one number, or one for each layer; None for one.
Multiplier = Callable[[Any], Any]


def multiply(multiplier: Multiplier | None, config: Any) -> Any:
    """The factor of a multiplier, as a number or an array [layers]."""
    factor = None if multiplier is None else multiplier(config)
    return 1.0 if factor is None else factor


# (key, config, shape of the weight or of a part of it) -> float32 values.
Initial = Callable[[jax.Array, Any, tuple[int, ...]], jax.Array]

_INITIAL = {Role.GAIN: "ones", Role.BIAS: "zeros"}


def always(config: Any) -> bool:
    """Of every config."""
    return True


def _never(config: Any) -> bool:
    return False


@dataclasses.dataclass(frozen=True)
class WeightSpec:
    """The declaration of a weight, within its branch or architecture.

    Attributes:
      name: within its branch.
      dims: in the syntax of `Dim.parse`, without the layer axis.
      role: its role in the optimizer.
      init: "normal", "ones", "zeros" or a function `Initial`; by default ones for gains, zeros for biases, else normal.
      zero: config -> whether it starts at zero instead.
      gain: initial values have the standard deviation gain / sqrt(fan-in), if they are drawn.
      fan_in: names of axes, if the fan-in is not the product of the axes that are read.
      offset: what is added to the stored value before use; Gemma's gains are stored as their difference from 1.
      present: config -> whether the model has it.
      scores: for what writes queries, config -> the factor of their products with keys; None for other weights.
    """

    name: str
    dims: str
    role: Role = Role.MATRIX
    init: str | Initial = ""
    zero: Callable[[Any], bool] = _never
    gain: float = GAIN
    fan_in: tuple[str, ...] = ()
    offset: float = 0.0
    present: Callable[[Any], bool] = always
    scores: Callable[[Any], float] | None = None

    def placed(
        self, folder: str, axes: Mapping[str, Axis], stack: Axis | None, multiplier: Multiplier | None = None
    ) -> "Weight":
        """The weight at its place in the parameter tree of an architecture."""
        return Weight(
            path=f"{folder}{self.name}",
            dims=tuple(Dim.parse(text, axes) for text in self.dims.split()),
            role=self.role,
            init=self.init or _INITIAL.get(self.role, "normal"),
            zero=self.zero,
            gain=self.gain,
            fan_in=tuple(axes[name] for name in self.fan_in),
            offset=self.offset,
            present=self.present,
            stack=stack,
            multiplier=multiplier,
            scores=self.scores,
        )


@dataclasses.dataclass(frozen=True)
class Weight:
    """One weight of an architecture: path in the parameter tree, dimensions, role and initial values.

    `dims` is without the leading layer axis, `stack`, which every weight of a branch has. `multiplier` is by how much
    the forward pass multiplies what the weight writes, which growth undoes where it changes.
    """

    path: str
    dims: tuple[Dim, ...]
    role: Role
    init: str | Initial
    zero: Callable[[Any], bool]
    gain: float
    fan_in: tuple[Axis, ...]
    offset: float
    present: Callable[[Any], bool]
    stack: Axis | None
    multiplier: Multiplier | None = None
    scores: Callable[[Any], float] | None = None

    @property
    def stacked(self) -> bool:
        """Whether the array has the leading layer axis."""
        return self.stack is not None

    @property
    def all_dims(self) -> tuple[Dim, ...]:
        """The dimensions of the array in the parameter tree, the layer axis included."""
        return (Dim(None, self.stack, many=True), *self.dims) if self.stack else self.dims

    @property
    def elementwise(self) -> bool:
        """Whether it is a gain, a bias or a constant of a recurrence, which are in no product over an axis."""
        return self.role in (Role.GAIN, Role.BIAS, Role.CONSTANT)

    @property
    def neutral(self) -> float:
        """The value at which a new weight changes nothing: one for a gain, less its offset, else zero."""
        return 1.0 - self.offset if self.role is Role.GAIN else 0.0

    @property
    def hidden(self) -> bool:
        """Whether it is in products within a branch."""
        return self.stacked and not self.elementwise and self.role is not Role.LOOKUP

    @property
    def summed(self) -> tuple[Axis, ...]:
        """The axes over which its products sum."""
        return self.fan_in or tuple(dim.reads for dim in self.dims if dim.reads)

    @property
    def residual(self) -> bool:
        """Whether it is a residual writer: its output is added to the stream."""
        return self.stacked and self.writes(Kind.STREAM)

    def reads(self, kind: Kind) -> bool:
        """Whether it reads an axis of that kind."""
        return any(dim.reads is not None and dim.reads.kind is kind for dim in self.dims)

    def writes(self, kind: Kind) -> bool:
        """Whether it writes an axis of that kind."""
        return any(dim.writes is not None and dim.writes.kind is kind for dim in self.dims if not dim.many)

    def block_shape(self, config: "Sized") -> tuple[int, ...]:
        """The shape without the layer axis."""
        return tuple(config.size(dim.axis) for dim in self.dims)

    def shape(self, config: "Sized") -> tuple[int, ...]:
        """The shape in the parameter tree: [layers, ...] for the weights of branches."""
        return tuple(config.size(dim.axis) for dim in self.all_dims)

    def std(self, config: "Sized") -> float:
        """The standard deviation of initial values, if they are drawn."""
        size = config.size if self.hidden else config.base_size
        # The stream sums all branches: each starts smaller, so that the sum keeps its size (GPT-2).
        depth = max(config.base_branches, 1) if self.residual else 1
        return self.gain / math.sqrt(math.prod(size(axis) for axis in self.summed) * depth)

    def key(self, key: jax.Array) -> jax.Array:
        """The weight's key, which depends on its path alone: adding a weight changes no other's values."""
        return jax.random.fold_in(in_one_pass(key), self.number)

    @cached_property
    def number(self) -> int:
        """A hash of the path, equal in all architectures and processes."""
        return zlib.crc32(self.path.encode())

    def initial(self, key: jax.Array, config: "Sized", whole: bool = False) -> jax.Array:
        """float32 initial values of one layer, or, if `whole`, of all layers."""
        return self.values(key, config, self.shape(config) if whole else self.block_shape(config))

    def normal(self, config: "Sized") -> bool:
        """Whether initial values are normal, with the standard deviation `std`."""
        return self.init == "normal" and not self.zero(config)

    def values(self, key: jax.Array, config: "Sized", shape: tuple[int, ...]) -> jax.Array:
        """float32 initial values of a part of it."""
        if self.zero(config):
            return jnp.zeros(shape, jnp.float32)
        if callable(self.init):
            return self.init(key, config, shape)
        if self.normal(config):
            return self.std(config) * jax.random.normal(key, shape, jnp.float32)
        return jnp.full(shape, {"ones": 1.0, "zeros": 0.0}[self.init], jnp.float32)

    def noise(self, key: jax.Array, config: "Sized") -> jax.Array:
        """float32 normal values of all layers with the standard deviation `std`, whatever the initial ones are."""
        return self.std(config) * jax.random.normal(key, self.shape(config), jnp.float32)
