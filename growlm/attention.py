"""Causal grouped-query attention: one function, the kernel is chosen by the platform that it is compiled for.

Shape suffixes: B batch, T query positions, S key positions, H heads, K kv_heads, h head_dim.
"""

from functools import partial

import jax
import jax.numpy as jnp


def attention(q_BTHh: jax.Array, k_BTKh: jax.Array, v_BTKh: jax.Array) -> jax.Array:
    """Causal grouped-query attention, [B, T, H, h]; the kernel is chosen by the platform that it is compiled for."""
    return jax.lax.platform_dependent(
        q_BTHh,
        k_BTKh,
        v_BTKh,
        cpu=_heads_first_attention,
        default=partial(jax.nn.dot_product_attention, is_causal=True),
    )


def _heads_first_attention(q_BTHh: jax.Array, k_BTKh: jax.Array, v_BTKh: jax.Array) -> jax.Array:
    """Causal attention as products over [batch x kv_heads]: a third faster than the library's on XLA's CPU backend."""
    batch, length, heads, head_dim = q_BTHh.shape
    kv_heads = k_BTKh.shape[2]
    q = q_BTHh.reshape(batch, length, kv_heads, -1, head_dim).transpose(0, 2, 3, 1, 4)
    q_nGh = q.reshape(batch * kv_heads, -1, head_dim) * head_dim**-0.5  # n: batch x kv_heads, G: group x T
    k_nSh, v_nSh = (x.transpose(0, 2, 1, 3).reshape(-1, length, head_dim) for x in (k_BTKh, v_BTKh))
    at_least_float32 = jnp.promote_types(q_nGh.dtype, jnp.float32)
    score_nGS = jnp.einsum("ngh,nsh->ngs", q_nGh, k_nSh, preferred_element_type=at_least_float32)
    position_G = jnp.tile(jnp.arange(length), heads // kv_heads)
    visible_GS = position_G[:, None] >= jnp.arange(length)
    weight_nGS = jax.nn.softmax(jnp.where(visible_GS, score_nGS, -1e30)).astype(v_nSh.dtype)
    o_nGh = jnp.einsum("ngs,nsh->ngh", weight_nGS, v_nSh)
    o = o_nGh.reshape(batch, kv_heads, -1, length, head_dim).transpose(0, 3, 1, 2, 4)
    return o.reshape(batch, length, heads, head_dim)
