"""TokenFormer (arXiv 2410.23168): every linear map is attention over learned tokens, of which growth adds more.

Pattention of x over n tokens with keys K and values V is gelu(tau a / ||a||_2) V with a = x K^T. It gives query, key,
value and output of attention, and it is the MLP. LayerNorms of branches have no weights, that before the head does.

Shape suffixes: B batch, T positions, N = B x T rows, D width that is read, S slots (the paper's parameter tokens),
H heads, h head_dim.
"""

import dataclasses
import math
from operator import methodcaller
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from growlm.errors import must_be
from growlm.models.architecture import (
    HEAD_UNLESS_TIED,
    MEMORY,
    Architecture,
    Branch,
    DecoderConfig,
    Norm,
    NormKind,
    no_memory,
)
from growlm.models.attention import at_positions, attention_flops, rotary_table, rotate
from growlm.models.axes import Axis, Initial, Kind, WeightSpec
from growlm.models.kernels import attention
from growlm.models.layers import Context, dense, weight
from growlm.models.llama import EXAMPLE, STREAM_AXES
from growlm.models.past import keys_and_values, recall

_SLOTS = ("qkv", "out", "mlp")  # what has slots, and a scale, of its own
_TINY = 1e-12  # of a sum of squares; the paper has none, and where all scores are 0 that is 0 / 0


@dataclasses.dataclass(frozen=True)
class TokenformerConfig(DecoderConfig):
    """The shape of a TokenFormer. Raises InputError for values out of range.

    Attributes:
      layers, embed, heads, head_dim, vocab: sizes, positive integers (layers may be 0).
      qkv_slots, out_slots, mlp_slots: of query, key and value each, of attention's output, of the MLP.
      rotary_dim: the number of a head's coordinates that are rotated, even; a quarter in the paper's models.
      tie_embeddings: the embedding is the head.
      qkv_scale, out_scale, mlp_scale: tau; None for the square root of the number of slots.
      norm_eps, rope_theta: of LayerNorm and of rotary frequencies.
    """

    layers: int
    embed: int
    heads: int
    head_dim: int
    qkv_slots: int
    out_slots: int
    mlp_slots: int
    vocab: int
    rotary_dim: int
    tie_embeddings: bool = False
    qkv_scale: float | None = None
    out_scale: float | None = None
    mlp_scale: float | None = None
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0

    architecture: ClassVar[Architecture]

    def __post_init__(self):
        self._check_integers("layers", least=0)
        self._check_integers("embed", "heads", "head_dim", "qkv_slots", "out_slots", "mlp_slots", "vocab", "rotary_dim")
        self._check_numbers("norm_eps", "rope_theta")
        self._check_numbers(*(f"{part}_scale" for part in _SLOTS if getattr(self, f"{part}_scale") is not None))
        self._check_flags("tie_embeddings")
        if self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            rule = f"even, as RoPE rotates pairs, and at most model.head_dim, {self.head_dim}"
            raise must_be("model.rotary_dim", rule, self.rotary_dim)

    def tau(self, part: str) -> float:
        """The scale of normalised scores, where `part` is qkv, out or mlp."""
        scale = getattr(self, f"{part}_scale")
        return math.sqrt(getattr(self, f"{part}_slots")) if scale is None else scale

    def grown(self, **sizes: Any) -> "TokenformerConfig":
        """With other sizes; the scale of slots that become more stays what it was, unless another is given."""
        more = [part for part in _SLOTS if sizes.get(f"{part}_slots", 0) > getattr(self, f"{part}_slots")]
        return dataclasses.replace(self, **{f"{part}_scale": self.tau(part) for part in more} | sizes)


def pattention(x_ND: jax.Array, key_DS: jax.Array, value_S: jax.Array, tau: float) -> jax.Array:
    """gelu(tau a / ||a||_2) V with a = x K^T (arXiv 2410.23168, eq. 4 and 5), normalised in float32 or better.

    Slots whose keys are 0 neither change ||a|| nor, as gelu(0) = 0, add anything, whatever their values are: with these
    tau must stay. Where every slot is copied c times, ||a|| is sqrt(c) times as large, and tau must be too.

    Args:
      x_ND: rows.
      key_DS: keys; leading dimensions flatten to D.
      value_S: values [S, ...], which is what is written.
      tau: the scale, the square root of S at first.
    """
    a_NS = dense(x_ND, key_DS)
    wide_NS = a_NS.astype(jnp.promote_types(a_NS.dtype, jnp.float32))
    squares_N1 = jnp.sum(wide_NS * wide_NS, axis=-1, keepdims=True)
    unit_NS = (wide_NS * jax.lax.rsqrt(squares_N1 + _TINY)).astype(a_NS.dtype)
    return dense(nn.gelu(unit_NS * jnp.asarray(tau, a_NS.dtype), approximate=False), value_S)


class TokenAttention(nn.Module):
    """Causal attention whose query, key, value and output are Pattentions."""

    config: Any
    dtype: Any

    @nn.compact
    def __call__(self, x_ND, context: Context):
        """[B x T, D] -> ([B x T, D], {})."""
        config = self.config
        shape = (context.batch, -1, config.heads, config.head_dim)
        parts = (self._over(x_ND, name, config.tau("qkv")).reshape(shape) for name in ("query", "key", "value"))
        q_BTHh, k_BTHh, v_BTHh = parts
        rotary = at_positions(context.tables, context)
        q_BTHh, k_BTHh = rotate(q_BTHh, rotary), rotate(k_BTHh, rotary)
        said = {}
        if context.past is None:
            o_BTHh = attention(q_BTHh, k_BTHh, v_BTHh, None, context.document_BT)
        else:
            o_BTHh, said[MEMORY] = recall(q_BTHh, k_BTHh, v_BTHh, context.past)
        return self._over(o_BTHh.reshape(len(x_ND), -1), "out", config.tau("out")), said

    def _over(self, x_ND, name: str, tau: float):
        return pattention(x_ND, weight(self, f"{name}_keys"), weight(self, f"{name}_values"), tau)


class TokenMlp(nn.Module):
    """The MLP as one Pattention."""

    config: Any
    dtype: Any

    @nn.compact
    def __call__(self, x_ND, context: Context):
        """[B x T, D] -> ([B x T, D], {})."""
        return pattention(x_ND, weight(self, "keys"), weight(self, "values"), self.config.tau("mlp")), {}


def _normal(std: Any) -> Initial:
    return lambda key, config, shape: std(config) * jax.random.normal(key, shape, jnp.float32)


# The published code's: 0.02 for keys, and for all values what GPT-NeoX has for residual writers, 2 / (L sqrt(D)).
_KEYS = _normal(lambda config: 0.02)
_VALUES = _normal(lambda config: 2 / (max(config.layers, 1) * math.sqrt(config.embed)))


def _slots(name: str, reads: str, slots: str, writes: str) -> tuple[WeightSpec, WeightSpec]:
    """The keys and values of a Pattention."""
    return (
        WeightSpec(f"{name}keys", f"{reads} >{slots}", init=_KEYS),
        WeightSpec(f"{name}values", f"{slots}> {writes}", init=_VALUES),
    )


def _norms2(*parts: str) -> dict[str, tuple[str, Any]]:
    return {f"{part}_slots": (f"{part}_scale", methodcaller("tau", part)) for part in parts}


_ATTENTION = Branch(
    "attn",
    TokenAttention,
    (
        *_slots("query_", "embed>", "qkv_slots", ">heads >head_dim"),
        *_slots("key_", "embed>", "qkv_slots", ">heads >head_dim"),
        *_slots("value_", "embed>", "qkv_slots", ">heads >head_dim"),
        *_slots("out_", "heads> head_dim>", "out_slots", ">stream"),
    ),
    flops=lambda config, length: attention_flops(config.heads, config.head_dim, length),
    tables=lambda config, length: rotary_table(length, config.rotary_dim, config.rope_theta),
    norms2=_norms2("qkv", "out"),
    memory=keys_and_values,
)
_MLP = Branch(
    "mlp",
    TokenMlp,
    _slots("", "embed>", "mlp_slots", ">stream"),
    norms2=_norms2("mlp"),
    memory=no_memory,
)

TOKENFORMER = Architecture(
    name="tokenformer",
    config=TokenformerConfig,
    axes=(
        Axis("layers", Kind.STACK),
        *STREAM_AXES,
        Axis("heads", Kind.HEADS, mesh="tensor"),
        Axis("head_dim", Kind.FIXED),
        *(Axis(f"{part}_slots", Kind.INNER, mesh="tensor") for part in _SLOTS),
        Axis("vocab", Kind.VOCAB, mesh="tensor"),
    ),
    period=((_ATTENTION,), (_MLP,)),
    norm=Norm(NormKind.LAYER, scale=False),
    final_norm=Norm(NormKind.LAYER, bias=True),
    head=HEAD_UNLESS_TIED,
    shared=("tie_embeddings", "rope_theta", "rotary_dim"),
    free=("norm_eps", *(f"{part}_scale" for part in _SLOTS)),
    example={name: size for name, size in EXAMPLE.items() if name != "mlp"}
    | {f"{part}_slots": 16 for part in _SLOTS}
    | {"rotary_dim": 2},
)


def half_the_slots(target: TokenformerConfig) -> TokenformerConfig:
    """The model with half of the slots, and the scales of the config. Raises InputError for odd numbers."""
    slots = {f"{part}_slots": getattr(target, f"{part}_slots") for part in _SLOTS}
    for name, number in slots.items():
        if number % 2:
            raise must_be(f"model.{name}", "even, to be doubled by growth", number)
    return dataclasses.replace(target, **{name: number // 2 for name, number in slots.items()})
