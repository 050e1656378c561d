"""The weight declaration: every weight says, once, which axes it reads and which it writes.

Shapes, initial scales, counts, shardings and growth are all derived from the table at the end of this file.
The residual stream (`stream`), what a block's norm hands on (`embed`) and what the last norm hands to the head
(`final`) have one size, and are three axes because growth may map each of them differently; so may it map the heads of
keys and of values.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from growlm.errors import InputError, unknown

Params = dict[str, Any]

# The axis `layers` is the leading one of every block weight, and counts as written: a weight is held once per layer.
FIELD_OF_AXIS = {
    "layers": "layers",
    "stream": "embed",
    "embed": "embed",
    "final": "embed",
    "heads": "heads",
    "key_heads": "kv_heads",
    "value_heads": "kv_heads",
    "head_dim": "head_dim",
    "mlp": "mlp",
    "vocab": "vocab",
}


ROPE_SCALINGS = ("linear", "llama3")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are lowered, so that a model reads further than it was trained at first.

    kind "linear" divides every frequency by `factor` (arXiv 2306.15595). "llama3" (Llama 3.1) does so where fewer than
    low_freq_factor turns fit into original_length positions, leaves alone where more than high_freq_factor do, and goes
    from one to the other between; the last three fields are for it alone. Raises InputError.
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192

    def __post_init__(self):
        if self.kind not in ROPE_SCALINGS:
            raise unknown("model.rope_scaling.kind", self.kind, ROPE_SCALINGS)
        for name in ("factor", "low_freq_factor", "high_freq_factor", "original_length"):
            _check_positive(f"model.rope_scaling.{name}", getattr(self, name))
        low, high = self.low_freq_factor, self.high_freq_factor
        if low >= high:
            raise InputError(f"model.rope_scaling: low_freq_factor {low:g} must be below high_freq_factor {high:g}")


def _check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InputError(f"{name} is {value!r}: allowed are positive numbers")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of a Llama-like decoder: the size of every axis, and the variants of the family.

    layers (0 or more), embed (model width), heads (query heads), kv_heads (key and value heads, a divisor of heads),
    head_dim (even, for RoPE), mlp (SwiGLU width) and vocab are positive integers. sliding_window is the number of
    positions that a query sees, its own the last of them; None: all before it. Raises InputError, a ValueError, with
    the offending numbers.
    """

    layers: int
    embed: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    tie_embeddings: bool = False
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    qkv_bias: bool = False
    qk_norm: bool = False
    rope_scaling: RopeScaling | None = None
    sliding_window: int | None = None

    def __post_init__(self):
        for name in ("layers", "embed", "heads", "kv_heads", "head_dim", "mlp", "vocab"):
            value = getattr(self, name)
            least, allowed = (0, "integers >= 0") if name == "layers" else (1, "positive integers")
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"model.{name} is {value!r}: allowed are {allowed}")
        for name in ("norm_eps", "rope_theta"):
            _check_positive(f"model.{name}", getattr(self, name))
        for name in ("tie_embeddings", "qkv_bias", "qk_norm"):
            if not isinstance(value := getattr(self, name), bool):
                raise InputError(f"model.{name} is {value!r}: allowed are True and False")
        if self.rope_scaling is not None and not isinstance(self.rope_scaling, RopeScaling):
            raise InputError(f"model.rope_scaling is {self.rope_scaling!r}: allowed are None and a RopeScaling")
        window = self.sliding_window
        if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
            raise InputError(f"model.sliding_window is {window!r}: allowed are None and positive integers")
        if self.heads % self.kv_heads:
            raise InputError(f"model.heads {self.heads} is not divisible by model.kv_heads {self.kv_heads}")
        if self.head_dim % 2:
            raise InputError(f"model.head_dim is {self.head_dim}: RoPE rotates pairs, so it must be even")

    def size(self, axis: str) -> int:
        """The size of a declared axis."""
        return getattr(self, FIELD_OF_AXIS[axis])


@dataclasses.dataclass(frozen=True)
class Dim:
    """One array dimension of a weight: the axis it reads, the axis it writes, or both for an elementwise weight."""

    reads: str | None
    writes: str | None

    @property
    def axis(self) -> str:
        """The axis that gives the dimension its size."""
        return self.reads or self.writes

    @classmethod
    def parse(cls, text: str) -> "Dim":
        """`embed>` reads embed, `>mlp` writes mlp, `stream>embed` reads one and writes the other elementwise."""
        reads, writes = text.split(">")
        return cls(reads or None, writes or None)


@dataclasses.dataclass(frozen=True)
class Weight:
    """One weight of the model: its path in the parameter tree, its dimensions and how it starts.

    `dims` leaves out the leading layer axis, which every weight under `blocks/` has. `init` is normal, ones or zeros;
    normal has the standard deviation gain / sqrt(fan-in), the fan-in being the product of the axes read.
    """

    path: str
    dims: tuple[Dim, ...]
    init: str = "normal"
    gain: float = math.sqrt(2 / 5)  # the paper's code: std sqrt(2 / (5 fan_in))
    fan_in: tuple[str, ...] | None = None  # where not simply the axes read
    present: Callable[[ModelConfig], bool] = lambda config: True

    @property
    def stacked(self) -> bool:
        """True where the array has the leading layer axis."""
        return self.path.startswith("blocks/")

    @property
    def all_dims(self) -> tuple[Dim, ...]:
        """The dimensions of the array in the parameter tree, the layer axis included."""
        return (Dim(None, "layers"), *self.dims) if self.stacked else self.dims

    @property
    def elementwise(self) -> bool:
        """True for gains and biases: they take part in no matrix product."""
        return self.init != "normal"

    @property
    def residual(self) -> bool:
        """True for the last weight of a residual branch: what it writes is added to the stream."""
        return self.stacked and any(dim.writes == "stream" for dim in self.dims)

    def block_shape(self, config: ModelConfig) -> tuple[int, ...]:
        """The shape in one block, without the layer axis."""
        return tuple(config.size(dim.axis) for dim in self.dims)

    def shape(self, config: ModelConfig) -> tuple[int, ...]:
        """The shape in the parameter tree: [layers, ...] for block weights."""
        layers = (config.layers,) if self.stacked else ()
        return layers + self.block_shape(config)

    def std(self, config: ModelConfig) -> float:
        """The standard deviation of the initial values of a normal weight."""
        reads = self.fan_in or [dim.reads for dim in self.dims if dim.reads]
        # 2 x layers branches add up on the stream: each starts smaller, so that the sum keeps its size (GPT-2).
        depth = 2 * max(config.layers, 1) if self.residual else 1
        return self.gain / math.sqrt(math.prod(config.size(axis) for axis in reads) * depth)

    def initial(self, key: jax.Array, config: ModelConfig, whole: bool = False) -> jax.Array:
        """float32 initial values for one block (or for a weight outside the blocks); whole: for all blocks at once."""
        shape = self.shape(config) if whole else self.block_shape(config)
        if self.init == "normal":
            return self.std(config) * jax.random.normal(key, shape, jnp.float32)
        return jnp.full(shape, {"ones": 1.0, "zeros": 0.0}[self.init], jnp.float32)


def _declare(path: str, dims: str, **options: Any) -> Weight:
    return Weight(path, tuple(map(Dim.parse, dims.split())), **options)


# A small head keeps the initial loss at log(vocab): logits of variance v cost v / 2 nats.
_HEAD_GAIN = 0.25

WEIGHTS: dict[str, Weight] = {
    weight.path: weight
    for weight in (
        # As a tied head the embedding reads `final`, which is also a sane scale for a lookup.
        _declare("embedding", "vocab> >stream", gain=_HEAD_GAIN, fan_in=("final",)),
        _declare("blocks/attn_norm/scale", "stream>embed", init="ones"),
        _declare("blocks/attn/query", "embed> >heads >head_dim"),
        _declare("blocks/attn/key", "embed> >key_heads >head_dim"),
        _declare("blocks/attn/value", "embed> >value_heads >head_dim"),
        _declare("blocks/attn/query_bias", ">heads >head_dim", init="zeros", present=lambda c: c.qkv_bias),
        _declare("blocks/attn/key_bias", ">key_heads >head_dim", init="zeros", present=lambda c: c.qkv_bias),
        _declare("blocks/attn/value_bias", ">value_heads >head_dim", init="zeros", present=lambda c: c.qkv_bias),
        _declare("blocks/attn/query_norm", "head_dim>head_dim", init="ones", present=lambda c: c.qk_norm),
        _declare("blocks/attn/key_norm", "head_dim>head_dim", init="ones", present=lambda c: c.qk_norm),
        _declare("blocks/attn/out", "heads> head_dim> >stream"),
        _declare("blocks/mlp_norm/scale", "stream>embed", init="ones"),
        _declare("blocks/mlp/gate", "embed> >mlp"),
        _declare("blocks/mlp/up", "embed> >mlp"),
        _declare("blocks/mlp/down", "mlp> >stream"),
        _declare("final_norm/scale", "stream>final", init="ones"),
        _declare("head", "final> >vocab", gain=_HEAD_GAIN, present=lambda c: not c.tie_embeddings),
    )
}


def declared(config: ModelConfig) -> Iterator[Weight]:
    """The weights that a model of this shape has."""
    return (weight for weight in WEIGHTS.values() if weight.present(config))


def path_of(key_path: tuple) -> str:
    """A tree path as the declaration spells it: `blocks/mlp/gate`."""
    return "/".join(jax.tree_util.keystr((entry,), simple=True) for entry in key_path)


def place_of(path: tuple) -> tuple[str, Weight | None, str]:
    """Where in a tree with trees like the parameters in it a leaf lies, as in an optimizer state.

    The name of the field that such a tree is, the weight that the leaf belongs to (None: to none), what comes after.
    """
    names = ["", *path_of(path).split("/")]
    for begin in range(1, len(names)):
        for end in range(len(names), begin, -1):
            if (weight := WEIGHTS.get("/".join(names[begin:end]))) is not None:
                return names[begin - 1], weight, "/".join(names[end:])
    return "", None, ""


def map_weights(function: Callable, config: ModelConfig, params: Params, *rest: Params) -> Params:
    """`function(weight, leaf, ...)` over a parameter tree of this shape.

    Raises InputError where a leaf is not declared, a declared weight is missing or a shape is another one: no leaf is
    ever passed over.
    """
    check_params(config, params)
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(WEIGHTS[path_of(path)], *leaves), params, *rest
    )


def check_params(config: ModelConfig, params: Mapping) -> None:
    """Raises InputError unless the tree holds exactly the declared weights, each in its declared shape."""
    found = {path_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    expected = {weight.path: weight.shape(config) for weight in declared(config)}
    if extra := sorted(found.keys() - expected.keys()):
        raise InputError(f"parameter {extra[0]!r} is not declared for this model; allowed: {', '.join(expected)}")
    if missing := sorted(expected.keys() - found.keys()):
        raise InputError(f"parameter {missing[0]!r} is declared for this model and missing")
    for path, shape in expected.items():
        if found[path] != shape:
            raise InputError(f"parameter {path!r} has shape {found[path]}; this model's shape is {shape}")


def parameter_count(config: ModelConfig) -> int:
    """The number of parameters, embedding and head included (the N of the paper's 6 N D)."""
    return sum(math.prod(weight.shape(config)) for weight in declared(config))


def matmul_parameter_count(config: ModelConfig) -> int:
    """The number of parameters that multiply activations: no gains, no biases, the embedding only as a tied head."""
    lookup = 0 if config.tie_embeddings else math.prod(WEIGHTS["embedding"].shape(config))
    products = sum(math.prod(w.shape(config)) for w in declared(config) if not w.elementwise)
    return products - lookup
