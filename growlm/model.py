"""The decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU. The only file that imports Flax.

Shape suffixes: B batch, T query positions, S key positions, D embed, H heads, K kv_heads, h head_dim, F mlp,
V vocab, N = B x T rows. Dense layers work on rows, [N, D]: XLA's CPU products on three axes run at half the speed,
and on other backends the reshape is free.
"""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from growlm.attention import KEPT, attention
from growlm.errors import InputError, unknown
from growlm.loss import cross_entropy, logits
from growlm.sharding import GATHERED, by_batch, current_mesh, gathered
from growlm.weights import WEIGHTS, ModelConfig, Params, RopeScaling, check_params

# What the backward pass may keep of a block's forward pass, by less and less; None keeps everything. "attention" is for
# TPUs: it keeps what their kernel gives, of the size of the stream, and is "full" elsewhere.
REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names(KEPT),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def _weight(module: nn.Module, name: str) -> jax.Array:
    """The declared weight of that name, in the compute dtype."""
    weight = WEIGHTS["/".join((*module.path, name))]
    value = module.param(name, weight.initial, module.config)
    return gathered(weight, module.config, value.astype(module.dtype))


def _dense(x: jax.Array, w: jax.Array) -> jax.Array:
    """Contracts the axes that x and w share (x's last, w's first): rows times a matrix."""
    return x @ w.reshape(x.shape[-1], -1)


def _at_least_float32(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)


def rms_norm(x: jax.Array, eps: float) -> jax.Array:
    """x over its root mean square along the last axis, computed in float32 or better."""
    y = x.astype(_at_least_float32(x.dtype))
    return (y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)).astype(x.dtype)


def rotary_table(
    length: int, head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines float32[T, 1, h/2] of the rotary embedding (RoFormer, arXiv 2104.09864)."""
    frequency_h = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling is not None:
        frequency_h = _scaled(frequency_h, scaling)
    angle_Th = jnp.arange(length, dtype=jnp.float32)[:, None] * frequency_h
    return jnp.cos(angle_Th)[:, None], jnp.sin(angle_Th)[:, None]


def _scaled(frequency_h: jax.Array, scaling: RopeScaling) -> jax.Array:
    """Frequencies lowered as `RopeScaling` says."""
    if scaling.kind == "linear":
        return frequency_h / scaling.factor
    turns_h = scaling.original_length * frequency_h / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept_h = jnp.clip((turns_h - low) / (high - low), 0, 1)  # 0: lowered wholly, 1: left alone
    return (1 - kept_h) * frequency_h / scaling.factor + kept_h * frequency_h


def rotate(x_BTHh: jax.Array, rotary: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns each pair (i, i + h/2) by its position's angle, the layout of Llama checkpoints."""
    cos, sin = (table.astype(x_BTHh.dtype) for table in rotary)
    a, b = jnp.split(x_BTHh, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


class Norm(nn.Module):
    """RMSNorm with a gain (arXiv 1910.07467)."""

    config: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(self, x_ND):
        """[..., D] -> [..., D]."""
        return rms_norm(x_ND, self.config.norm_eps) * _weight(self, "scale")


class Attention(nn.Module):
    """Causal grouped-query attention (arXiv 2305.13245) with rotary positions."""

    config: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(self, x_ND, rotary, batch: int, document_BT=None):
        """[B x T, D] -> [B x T, D]: what the block adds to the stream."""
        q_BTHh = rotate(self._project(x_ND, "query", batch), rotary)
        k_BTKh = rotate(self._project(x_ND, "key", batch), rotary)
        v_BTKh = self._project(x_ND, "value", batch)
        o_BTHh = attention(q_BTHh, k_BTKh, v_BTKh, self.config.sliding_window, document_BT)
        return _dense(o_BTHh.reshape(x_ND.shape[0], -1), _weight(self, "out"))

    def _project(self, x_ND, name: str, batch: int):
        """Query, key or value heads [B, T, heads, h], with the bias and the norm that the family may have."""
        w_DHh = _weight(self, name)
        y = _dense(x_ND, w_DHh).reshape(batch, -1, *w_DHh.shape[1:])
        if self.config.qkv_bias:
            y = y + _weight(self, f"{name}_bias")
        if self.config.qk_norm and name != "value":
            y = rms_norm(y, self.config.norm_eps) * _weight(self, f"{name}_norm")
        return y


class Mlp(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    config: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(self, x_ND):
        """[B x T, D] -> [B x T, D]: what the block adds to the stream."""
        gate_NF = _dense(x_ND, _weight(self, "gate"))
        up_NF = _dense(x_ND, _weight(self, "up"))
        return _dense(nn.silu(gate_NF) * up_NF, _weight(self, "down"))


class Block(nn.Module):
    """One decoder layer, pre-norm."""

    config: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(self, x_ND, rotary, batch: int, scale=None, document_BT=None):
        """The stream [B x T, D] -> (the stream, None), the form that a scan carries; what is added, times the scale."""
        x_ND = by_batch(x_ND)
        parts = {"config": self.config, "dtype": self.dtype}
        normed_ND = Norm(**parts, name="attn_norm")(x_ND)
        y_ND = x_ND + Attention(**parts, name="attn")(normed_ND, rotary, batch, document_BT)
        y_ND = y_ND + Mlp(**parts, name="mlp")(Norm(**parts, name="mlp_norm")(y_ND))
        return y_ND if scale is None else x_ND + scale.astype(self.dtype) * (y_ND - x_ND), None


class _Branch(nn.Module):
    """One of the two branches of a block, "attn" or "mlp", alone; what a block does is one after the other."""

    config: ModelConfig
    dtype: Any
    kind: str

    @nn.compact
    def __call__(self, x_ND, rotary, batch: int):
        parts = {"config": self.config, "dtype": self.dtype}
        y_ND = Norm(**parts, name=f"{self.kind}_norm")(x_ND)
        if self.kind == "attn":
            return x_ND + Attention(**parts, name="attn")(y_ND, rotary, batch)
        return x_ND + Mlp(**parts, name="mlp")(y_ND)


class _Alone(nn.Module):
    """A branch under the name that its weights are declared with."""

    config: ModelConfig
    dtype: Any
    kind: str

    @nn.compact
    def __call__(self, x_ND, batch: int):
        config = self.config
        rotary = rotary_table(x_ND.shape[0] // batch, config.head_dim, config.rope_theta, config.rope_scaling)
        return _Branch(config, self.dtype, self.kind, name="blocks")(x_ND, rotary, batch)


@partial(jax.jit, static_argnums=(0, 1, 4))
def apply_branch(config: ModelConfig, kind: str, params: Params, x_ND: jax.Array, batch: int) -> jax.Array:
    """The stream after one branch, "attn" or "mlp", of one block: for a model that is never in memory whole.

    `params` has what `blocks` has of it, without the layer axis: {"attn_norm": ..., "attn": ...}, or the same for mlp.
    """
    return _Alone(config, x_ND.dtype, kind).apply({"params": {"blocks": params}}, x_ND, batch)


def documents(tokens_BT: jax.Array, document_end: int) -> jax.Array:
    """int32[B, T]: the number of each position's document in its row; the token that ends one still belongs to it."""
    ends_BT = (tokens_BT == document_end).astype(jnp.int32)
    return jnp.cumsum(ends_BT, axis=1) - ends_BT


def _policy(remat: str) -> Any:
    """The policy of that name; what layers gathered from other devices is not kept, or fsdp would be for nothing."""
    mesh = current_mesh()
    if remat == "none" and mesh and mesh.shape["fsdp"] > 1:
        return jax.checkpoint_policies.save_anything_except_these_names(GATHERED)
    return REMAT_POLICIES[remat]


class Decoder(nn.Module):
    """Tokens to hidden states, the layers as one scan: every block leaf is [layers, ...].

    Where two of them share out the layers, the `top` of the second goes on from the `bottom` of the first.
    """

    config: ModelConfig
    dtype: Any = jnp.float32
    remat: str = "none"
    document_end: int | None = None

    def setup(self):
        """The weights, in the order in which they draw their initial values."""
        self.embedding_VD = _weight(self, "embedding")
        self.blocks = self._layers()
        self.final_norm = Norm(self.config, self.dtype)
        if not self.config.tie_embeddings:
            self.head_DV = _weight(self, "head")

    def __call__(self, tokens_BT, scale_L=None):
        """int[B, T] -> (hidden [B x T, D], head [D, V]); their product are the logits."""
        return self.top(self._embed(tokens_BT), tokens_BT, scale_L)

    def bottom(self, tokens_BT, scale_L=None):
        """int[B, T] -> the stream [B x T, D] after the last layer."""
        return self._through(self._embed(tokens_BT), tokens_BT, scale_L)

    def top(self, x_ND, tokens_BT, scale_L=None):
        """The stream [B x T, D] before the first layer -> (hidden, head)."""
        x_ND = self.final_norm(self._through(x_ND, tokens_BT, scale_L))
        return x_ND, self.embedding_VD.T if self.config.tie_embeddings else self.head_DV

    def _embed(self, tokens_BT):
        return by_batch(self.embedding_VD[tokens_BT.reshape(-1)])

    def _through(self, x_ND, tokens_BT, scale_L):
        config, (batch, length) = self.config, tokens_BT.shape
        rotary = rotary_table(length, config.head_dim, config.rope_theta, config.rope_scaling)
        document_BT = None if self.document_end is None else documents(tokens_BT, self.document_end)
        x_ND, _ = self.blocks(x_ND, rotary, batch, scale_L, document_BT)
        return x_ND

    def _layers(self) -> nn.Module:
        block = Block
        if (policy := _policy(self.remat)) is not None:
            block = nn.remat(Block, policy=policy, prevent_cse=False, static_argnums=(3,))
        scanned = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, 0, nn.broadcast),
            length=self.config.layers,
        )
        return scanned(self.config, self.dtype)


def _check_tokens(tokens: jax.Array, least: int) -> None:
    shape, dtype = np.shape(tokens), jnp.asarray(tokens).dtype
    if len(shape) != 2 or not jnp.issubdtype(dtype, jnp.integer) or shape[0] < 1 or shape[1] < least:
        raise InputError(f"tokens are {dtype}{list(shape)}: allowed are integers [batch >= 1, length >= {least}]")


def _check_options(config: ModelConfig, remat: str, block_scale: Any, frozen_layers: int) -> None:
    if remat not in REMAT_POLICIES:
        raise unknown("remat policy", remat, REMAT_POLICIES)
    whole = isinstance(frozen_layers, int) and not isinstance(frozen_layers, bool)
    if not whole or not 0 <= frozen_layers <= config.layers:
        raise InputError(f"frozen_layers is {frozen_layers!r}: allowed are integers from 0 to {config.layers}")
    if block_scale is not None:
        shape, dtype = jnp.shape(block_scale), jnp.result_type(block_scale)
        if shape != (config.layers,) or not jnp.issubdtype(dtype, jnp.floating):
            raise InputError(f"block_scale is {dtype}{list(shape)}: allowed are floats [{config.layers}], one a layer")


def _cut(config: ModelConfig, params: Params, scale_L: jax.Array | None, layers: slice):
    """The model that has only these of the layers: its shape, its parameters and its scale."""
    blocks, scale_L = jax.tree.map(lambda leaf: leaf[layers], (params["blocks"], scale_L))
    config = dataclasses.replace(config, layers=len(range(config.layers)[layers]))
    return config, {"params": {**params, "blocks": blocks}}, scale_L


def _hidden(
    config: ModelConfig,
    params: Params,
    tokens_BT: jax.Array,
    dtype: Any,
    remat: str,
    scale_L: jax.Array | None,
    frozen_layers: int,
    document_end: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """What `Decoder` gives."""
    _check_options(config, remat, scale_L, frozen_layers)
    check_params(config, params)
    if not frozen_layers:
        return Decoder(config, dtype, remat, document_end).apply({"params": params}, tokens_BT, scale_L)
    # A scan goes backward through all of its layers or none: those that are constants need one of their own.
    params = {**params, "embedding": jax.lax.stop_gradient(params["embedding"])}  # as a tied head too
    bottom, *constants = _cut(config, params, scale_L, slice(frozen_layers))
    variables, bottom_scale_L = jax.lax.stop_gradient(constants)
    below = Decoder(bottom, dtype, document_end=document_end)
    x_ND = below.apply(variables, tokens_BT, bottom_scale_L, method="bottom")
    top, variables, top_scale_L = _cut(config, params, scale_L, slice(frozen_layers, None))
    above = Decoder(top, dtype, remat, document_end)
    return above.apply(variables, x_ND, tokens_BT, top_scale_L, method="top")


@partial(jax.jit, static_argnames="config")
def _init(config: ModelConfig, key: jax.Array) -> Params:
    # The parameters depend on no token: the shortest batch will do.
    return Decoder(config).init(key, jnp.zeros((1, 1), jnp.int32))["params"]


def init(config: ModelConfig, key: jax.Array) -> Params:
    """Fresh parameters: a nested dict of float32 arrays in the declared shapes, block weights as [layers, ...].

    Matrices start with the standard deviation sqrt(2 / (5 fan_in)) of the paper's code (arXiv 2405.15319, lit_gpt
    `_init_weights`), those that write the stream at 1 / sqrt(2 layers) of it (GPT-2), embedding and head at
    0.25 / sqrt(embed), so small that the initial loss is log(vocab); gains are 1, biases 0.
    """
    return _init(config, key)


def apply(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    *,
    dtype: Any = jnp.float32,
    remat: str = "none",
    block_scale: jax.Array | None = None,
) -> jax.Array:
    """Logits of every next token.

    Args:
      config: the model's shape.
      params: as `init` gives them.
      tokens: int32[batch, length], from 0 to config.vocab - 1 (not checked: that would fetch them).
      dtype: the compute dtype of the layers, float32 or bfloat16 (float64 under jax_enable_x64).
      remat: a name in REMAT_POLICIES.
      block_scale: float[layers], or None for ones: layer i gives x + block_scale[i] * (block(x) - x).

    Returns:
      float32[batch, length, vocab] (float64 where that is the compute dtype).

    Raises:
      InputError: tokens or a scale of another rank, size or type, a tree that is not this model's, an unknown remat
        policy.
    """
    _check_tokens(tokens, 1)
    return _apply(config, params, tokens, jnp.dtype(dtype), remat, block_scale)


@partial(jax.jit, static_argnames=("config", "dtype", "remat"))
def _apply(
    config: ModelConfig, params: Params, tokens: jax.Array, dtype: Any, remat: str, block_scale: jax.Array | None
) -> jax.Array:
    x_ND, head_DV = _hidden(config, params, tokens, dtype, remat, block_scale, 0)
    return logits(x_ND, head_DV).reshape(*tokens.shape, config.vocab)


def hidden_states(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    *,
    dtype: Any = jnp.float32,
    block_scale: jax.Array | None = None,
    document_end: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """What the logits are the product of: (hidden states [batch x length, embed], head [embed, vocab]), in `dtype`.

    For whoever needs the logits of some positions only. Arguments and errors are those of `apply`, document_end is as
    in `next_token_loss`.
    """
    _check_tokens(tokens, 1)
    return _hidden(config, params, tokens, dtype, "none", block_scale, 0, document_end)


def next_token_loss(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    *,
    dtype: Any = jnp.float32,
    remat: str = "none",
    block_scale: jax.Array | None = None,
    frozen_layers: int = 0,
    document_end: int | None = None,
) -> jax.Array:
    """Mean cross-entropy, in nats a token, of predicting tokens[:, 1:] from what comes before each.

    Args:
      config, params, dtype, remat, block_scale: as in `apply`.
      tokens: int[batch, length + 1].
      frozen_layers: so many of the first layers, and the embedding with them, are constants: their gradients are zero
        and cost nothing. With 0 everything trains, with config.layers the final norm and an untied head.
      document_end: the token that ends a document: a position sees its own document alone. None: all before it, as in
        the paper. What ends one predicts the first token of the next in both cases.

    Returns:
      A float32 scalar: softmax and loss are float32 whatever the compute dtype (float64 where that is it).

    Raises:
      InputError: as `apply`, and for more frozen layers than there are.
    """
    _check_tokens(tokens, 2)
    options = dtype, remat, block_scale, frozen_layers, document_end
    x_ND, head_DV = _hidden(config, params, tokens[:, :-1], *options)
    return cross_entropy(x_ND, head_DV, tokens[:, 1:])
