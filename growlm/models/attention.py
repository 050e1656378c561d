"""Causal grouped-query attention, with rotary positions on all of a head or on its first coordinates.

Shape suffixes: B batch, T positions, D embed, H heads, K kv_heads, h head_dim, N = B x T rows.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from growlm.errors import check_positive, must_be, unknown
from growlm.models.architecture import MEMORY, Branch, DecoderConfig
from growlm.models.axes import WeightSpec
from growlm.models.kernels import attention
from growlm.models.layers import Context, biased, dense, exact, has, rms_norm, weight
from growlm.models.past import keys_and_values, recall

ROPE_SCALINGS = ("linear", "llama3")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Scaling of rotary frequencies, which extends the context of a trained model.

    kind "linear" divides every frequency by `factor` (arXiv 2306.15595). "llama3" (Llama 3.1) divides frequencies with
    fewer than low_freq_factor turns in original_length positions, keeps those with more than high_freq_factor, and
    interpolates between; the last three fields are for it alone. Raises InputError.
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
            check_positive(f"model.rope_scaling.{name}", getattr(self, name))
        low, high = self.low_freq_factor, self.high_freq_factor
        if low >= high:
            raise must_be("model.rope_scaling.low_freq_factor", f"below high_freq_factor, {high:g}", low)


def rotary_table(
    length: int, rotated: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines float32[T, 1, r/2] of the rotary embedding (RoFormer, arXiv 2104.09864) of r coordinates."""
    frequency_h = theta ** (-jnp.arange(0, rotated, 2, dtype=jnp.float32) / rotated)
    if scaling is not None:
        frequency_h = _scaled(frequency_h, scaling)
    angle_Th = jnp.arange(length, dtype=jnp.float32)[:, None] * frequency_h
    return jnp.cos(angle_Th)[:, None], jnp.sin(angle_Th)[:, None]


def _scaled(frequency_h: jax.Array, scaling: RopeScaling) -> jax.Array:
    """Frequencies scaled by `RopeScaling`."""
    if scaling.kind == "linear":
        return frequency_h / scaling.factor
    turns_h = scaling.original_length * frequency_h / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept_h = jnp.clip((turns_h - low) / (high - low), 0, 1)
    return (1 - kept_h) * frequency_h / scaling.factor + kept_h * frequency_h


def rotate(x_BTHh: jax.Array, rotary: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates the pairs (i, i + r/2) of the first r coordinates by their position's angle, as Llama and NeoX do."""
    cos, sin = (table.astype(x_BTHh.dtype) for table in rotary)
    rotated = 2 * cos.shape[-1]
    turned, rest = (x_BTHh, None) if rotated == x_BTHh.shape[-1] else jnp.split(x_BTHh, [rotated], axis=-1)
    a, b = jnp.split(turned, 2, axis=-1)
    parts = [a * cos - b * sin, b * cos + a * sin]
    return jnp.concatenate(parts if rest is None else [*parts, rest], axis=-1)


def at_positions(rotary: Any, context: Context) -> Any:
    """The rows of a rotary table at the positions of the tokens, which begin after those of the past."""
    if context.past is None:
        return rotary
    position_BT = context.past.position_BT(context.tokens_BT.shape[1])
    return jax.tree.map(lambda table: table[position_BT], rotary)


def _all_positions(config: DecoderConfig) -> int | None:
    return None


def _none(config: DecoderConfig) -> float | None:
    return None


class Attention(nn.Module):
    """Causal grouped-query attention (arXiv 2305.13245).

    Positions are rotary if the branch has tables of them. Biases of query, key, value and output, and RMSNorms of query
    and key, on each head or on all heads together, are used if their weights are declared, and on each head without
    gains if `normed`.
    """

    config: DecoderConfig
    dtype: Any
    window: Callable[[Any], Any] = _all_positions
    score_scale: Callable[[Any], float | None] = _none
    cap: Callable[[Any], float | None] = _none
    normed: bool = False

    @nn.compact
    def __call__(self, x_ND, context: Context):
        """[B x T, D] -> ([B x T, D], {})."""
        q_BTHh, k_BTKh, v_BTKh = (self._project(x_ND, name, context) for name in ("query", "key", "value"))
        if (rotary := context.tables) is not None:
            if context.variant is not None:
                rotary = jax.tree.map(lambda table: table[context.variant], rotary)
            rotary = at_positions(rotary, context)
            q_BTHh, k_BTKh = rotate(q_BTHh, rotary), rotate(k_BTKh, rotary)
        o_BTHh, said = self._attend(q_BTHh, k_BTKh, v_BTKh, context)
        y_ND = dense(o_BTHh.reshape(x_ND.shape[0], -1), weight(self, "out"))
        return biased(self, "out_bias", y_ND), said

    def _attend(self, q_BTHh, k_BTKh, v_BTKh, context: Context):
        """([B, T, H, h] by the layer's window, the auxiliary dict)."""
        config, length = self.config, q_BTHh.shape[1]
        how = {"scale": self.score_scale(config), "cap": self.cap(config)}
        if context.past is not None:
            window = self.window(config)
            if context.variant is not None:
                room = context.past.kept["key"].shape[3]
                window = jnp.asarray([room if one is None else one for one in window])[context.variant]
            o_BTHh, kept = recall(q_BTHh, k_BTKh, v_BTKh, context.past, window, **how)
            return o_BTHh, {MEMORY: kept}
        return self._attend_at_once(q_BTHh, k_BTKh, v_BTKh, context, length, how), {}

    def _attend_at_once(self, q_BTHh, k_BTKh, v_BTKh, context: Context, length: int, how: dict):
        config = self.config

        def by(window):
            return lambda q, k, v: attention(q, k, v, window, context.document_BT, **how)

        windows = self.window(config)
        if context.variant is None:
            return by(windows)(q_BTHh, k_BTKh, v_BTKh)
        if all(window is None or window >= length for window in windows):
            return by(None)(q_BTHh, k_BTKh, v_BTKh)
        return jax.lax.switch(context.variant, [by(window) for window in windows], q_BTHh, k_BTKh, v_BTKh)

    def _project(self, x_ND, name: str, context: Context):
        """Query, key or value heads [B, T, heads, h], with bias and norm."""
        w_DHh = weight(self, name)
        y = dense(x_ND, w_DHh).reshape(context.batch, -1, *w_DHh.shape[1:])
        y = biased(self, f"{name}_bias", y)
        eps = getattr(self.config, self.config.architecture.norm.eps)
        if self.normed and name != "value":
            return rms_norm(y, eps)
        if has(self, f"{name}_norm"):
            gain = weight(self, f"{name}_norm", exact(y.dtype))
            over = y if gain.ndim == 1 else y.reshape(*y.shape[:2], -1)  # each head, or all heads together
            normed = rms_norm(over.astype(gain.dtype), eps).reshape(y.shape) * gain
            y = normed.astype(y.dtype)
        return y


def check_groups(config: Any) -> None:
    """Raises InputError unless query heads are shared out evenly among key heads, and have pairs to rotate."""
    if config.heads % config.kv_heads:
        raise must_be("model.heads", f"a multiple of model.kv_heads, {config.kv_heads}", config.heads)
    if config.head_dim % 2:
        raise must_be("model.head_dim", "even, as RoPE rotates pairs", config.head_dim)


def score_scale(config: Any) -> float:
    """The factor of the products of queries and keys."""
    return 1 / math.sqrt(config.head_dim)


def attention_flops(heads: int, head_dim: int, length: int, window: int | None = None) -> float:
    """Forward FLOPs a token, averaged over a sequence, of scores and weighted sums; without softmax.

    Position t (from 0) attends to t + 1 keys, at most `window`; each costs 2 x heads x head_dim for the score, and as
    much for the weighted sum.
    """
    seen = min(window or length, length)
    keys = (seen * (seen + 1) / 2 + (length - seen) * seen) / length
    return 4.0 * heads * head_dim * keys


def attention_branch(
    weights: tuple[WeightSpec, ...],
    rotary: Callable[[Any, int], Any],
    window: Callable[[Any], Any] = _all_positions,
    *,
    score_scale: Callable[[Any], float | None] = _none,
    cap: Callable[[Any], float | None] = _none,
    normed: bool = False,
    variants: Callable[[Any], tuple[int, ...]] | None = None,
    **options: Any,
) -> Branch:
    """Attention as a branch.

    Args:
      weights: query, key, value and out, and the optional ones of `Attention`.
      rotary: (config, length) -> `rotary_table`, or None.
      window: config -> the number of positions that a query sees, its own the last; None for all before it.
      score_scale, cap: config -> those of `kernels.attention`.
      normed: whether query and key heads have RMSNorms without gains.
      variants: as in `Branch`, where layers differ: `window` then gives a tuple, one for each variant, and `rotary`
        tables with a leading axis of variants.
      **options: of `Branch`.
    """

    def flops(config: Any, length: int) -> float:
        windows = (window(config),) if variants is None else [window(config)[number] for number in variants(config)]
        each = [attention_flops(config.heads, config.head_dim, length, one) for one in windows]
        return sum(each) / max(len(each), 1)

    module = partial(Attention, window=window, score_scale=score_scale, cap=cap, normed=normed)
    return Branch(
        "attn", module, weights, flops=flops, tables=rotary, variants=variants, memory=keys_and_values, **options
    )
