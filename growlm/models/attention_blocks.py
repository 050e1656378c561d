"""Causal grouped-query attention in blocks of queries, for platforms without a kernel of their own.

A block of queries meets the keys that it may see and no others, and its scores fit the cache. The backward pass
computes scores again from the logarithms of their sums (FlashAttention, arXiv 2205.14135), so scores are never stored.

Shape suffixes: B batch, T positions, H heads, K kv_heads, h head_dim, n pairs of a sequence and a key head, g query
heads of a key head, t queries of a block, s keys that the block sees.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from growlm.models.sharding import on_every_device

RESIDUALS = "attention"  # the checkpoint name of what the backward pass needs besides queries, keys and values

# The least queries of a block, and the most blocks, each of which is compiled by itself. At 64 queries XLA's products
# on a CPU reach their rate.
QUERIES, BLOCKS = 64, 8
SCORES = 2**18  # in memory at a time, if one key head has no more: about what a core's cache holds


def attention_in_blocks(q_BTHh, k_BTKh, v_BTKh, window=None, document_BT=None, cap=None) -> jax.Array:
    """Attention with the arguments of `kernels.attention`; queries are divided by the root of head_dim."""
    return _attention(window, cap, q_BTHh, k_BTKh, v_BTKh, document_BT)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(window: int | None, cap: float | None, q_BTHh, k_BTKh, v_BTKh, document_BT) -> jax.Array:
    return _forward(window, cap, q_BTHh, k_BTKh, v_BTKh, document_BT)[0]


def _forward(window: int | None, cap: float | None, q_BTHh, k_BTKh, v_BTKh, document_BT) -> tuple[jax.Array, tuple]:
    forward = partial(_forward_here, window, cap)
    found = on_every_device(forward, (q_BTHh, k_BTKh, v_BTKh), document_BT)
    o_BTHh, log_sum_BTH = checkpoint_name(found, RESIDUALS)
    return o_BTHh, (q_BTHh, k_BTKh, v_BTKh, o_BTHh, log_sum_BTH, document_BT)


def _backward(window: int | None, cap: float | None, kept: tuple, do_BTHh: jax.Array) -> tuple:
    *arrays, document_BT = kept
    return *on_every_device(partial(_backward_here, window, cap), (*arrays, do_BTHh), document_BT), None


_attention.defvjp(_forward, _backward)


def _forward_here(window, cap, q_BTHh, k_BTKh, v_BTKh, *, document_BT) -> tuple[jax.Array, ...]:
    """(what attention gives [B, T, H, h], the logarithm of each query's sum of exponentials [B, T, H])."""
    batch, length, heads, head_dim = q_BTHh.shape
    kv_heads, exact = k_BTKh.shape[2], jnp.promote_types(q_BTHh.dtype, jnp.float32)

    def part(q_ngTh, k_nTh, v_nTh, document_nT):
        outputs, log_sums = [], []
        for keys, queries in _blocks(length, window):
            k_nsh, v_nsh, q_ngth = k_nTh[:, keys], v_nTh[:, keys], q_ngTh[:, :, queries]
            score_ngts = jnp.einsum("ngth,nsh->ngts", q_ngth, k_nsh, preferred_element_type=exact)
            if cap is not None:
                score_ngts = cap * jnp.tanh(score_ngts / cap)
            score_ngts = jnp.where(_visible(keys, queries, window, document_nT)[:, None], score_ngts, -1e30)
            top_ngt1 = score_ngts.max(axis=-1, keepdims=True)
            weight_ngts = jnp.exp(score_ngts - top_ngt1)
            sum_ngt1 = weight_ngts.sum(axis=-1, keepdims=True)
            weight_ngts = weight_ngts.astype(v_nsh.dtype)
            o_ngth = jnp.einsum("ngts,nsh->ngth", weight_ngts, v_nsh, preferred_element_type=exact) / sum_ngt1
            outputs.append(o_ngth.astype(v_nsh.dtype))
            log_sums.append(top_ngt1[..., 0] + jnp.log(sum_ngt1[..., 0]))
        return jnp.concatenate(outputs, axis=2), jnp.concatenate(log_sums, axis=2)

    first = partial(_heads_first, kv_heads)
    arrays = first(q_BTHh * head_dim**-0.5), first(k_BTKh)[:, 0], first(v_BTKh)[:, 0], _by_head(kv_heads, document_BT)
    found = _in_chunks(part, arrays, heads // kv_heads * _largest(length, window))
    return tuple(_heads_last(batch, x_ngT) for x_ngT in found)


def _backward_here(
    window, cap, q_BTHh, k_BTKh, v_BTKh, o_BTHh, log_sum_BTH, do_BTHh, *, document_BT
) -> tuple[jax.Array, ...]:
    """The gradients by queries, keys and values.

    Scores are [keys, queries]: so two of the three products over them have nothing to transpose, and the third the keys
    alone. XLA's CPU backend multiplies with a transposed left side at half the rate.
    """
    batch, length, heads, head_dim = q_BTHh.shape
    kv_heads, exact = k_BTKh.shape[2], log_sum_BTH.dtype
    mean_BTH = jnp.sum(do_BTHh * o_BTHh, axis=-1, dtype=exact)  # of the gradients by weights, under the weights

    def part(q_ngTh, k_nTh, v_nTh, log_sum_ngT, do_ngTh, mean_ngT, document_nT):
        kT_nhT = jax.lax.optimization_barrier(k_nTh.swapaxes(1, 2))
        dqs, dk_nTh, dv_nTh = [], jnp.zeros(k_nTh.shape, exact), jnp.zeros(v_nTh.shape, exact)
        for keys, queries in _blocks(length, window):
            k_nsh, v_nsh, q_ngth, do_ngth = (
                k_nTh[:, keys],
                v_nTh[:, keys],
                q_ngTh[:, :, queries],
                do_ngTh[:, :, queries],
            )
            score_nsgt = jnp.einsum("nsh,ngth->nsgt", k_nsh, q_ngth, preferred_element_type=exact)
            if cap is not None:
                score_nsgt = cap * jnp.tanh(score_nsgt / cap)
            visible_nst = _visible(keys, queries, window, document_nT).swapaxes(1, 2)
            weight_nsgt = jnp.exp(score_nsgt - log_sum_ngT[:, None, :, queries])
            weight_nsgt = jnp.where(visible_nst[:, :, None], weight_nsgt, 0)
            dweight_nsgt = jnp.einsum("nsh,ngth->nsgt", v_nsh, do_ngth, preferred_element_type=exact)
            dscore_nsgt = weight_nsgt * (dweight_nsgt - mean_ngT[:, None, :, queries])
            if cap is not None:
                dscore_nsgt = dscore_nsgt * (1 - jnp.square(score_nsgt / cap))
            weight_nsgt, dscore_nsgt = weight_nsgt.astype(v_nsh.dtype), dscore_nsgt.astype(v_nsh.dtype)
            sums = partial(jnp.einsum, "nsgt,ngth->nsh", preferred_element_type=exact)
            dv_nTh = dv_nTh.at[:, keys].add(sums(weight_nsgt, do_ngth))
            dk_nTh = dk_nTh.at[:, keys].add(sums(dscore_nsgt, q_ngth))
            dqs.append(jnp.einsum("nhs,nsgt->nhgt", kT_nhT[:, :, keys], dscore_nsgt))
        dq_ngTh = jnp.concatenate(dqs, axis=3).transpose(0, 2, 3, 1)
        return dq_ngTh, dk_nTh[:, None].astype(k_nTh.dtype), dv_nTh[:, None].astype(v_nTh.dtype)

    first = partial(_heads_first, kv_heads)
    q_ngTh, k_nTh, v_nTh = first(q_BTHh * head_dim**-0.5), first(k_BTKh)[:, 0], first(v_BTKh)[:, 0]
    arrays = q_ngTh, k_nTh, v_nTh, first(log_sum_BTH), first(do_BTHh), first(mean_BTH), _by_head(kv_heads, document_BT)
    found = _in_chunks(part, arrays, heads // kv_heads * _largest(length, window))
    dq_BTHh, dk_BTKh, dv_BTKh = (_heads_last(batch, x_ngTh) for x_ngTh in found)
    return dq_BTHh * head_dim**-0.5, dk_BTKh, dv_BTKh


def _blocks(length: int, window: int | None) -> Iterator[tuple[slice, slice]]:
    """The keys that a block of queries may see, and the queries."""
    size = max(QUERIES, -(-length // BLOCKS))
    for begin in range(0, length, size):
        end = min(begin + size, length)
        yield slice(0 if window is None else max(begin - window + 1, 0), end), slice(begin, end)


def _largest(length: int, window: int | None) -> int:
    """The scores of one head in the largest block."""
    return max((keys.stop - keys.start) * (queries.stop - queries.start) for keys, queries in _blocks(length, window))


def _visible(keys: slice, queries: slice, window: int | None, document_nT: jax.Array | None) -> jax.Array:
    """Which keys each query sees, bool[1 or n, t, s]."""
    key_s, query_t1 = jnp.arange(keys.start, keys.stop), jnp.arange(queries.start, queries.stop)[:, None]
    visible_ts = query_t1 >= key_s
    if window is not None:
        visible_ts &= query_t1 < key_s + window
    if document_nT is None:
        return visible_ts[None]
    return visible_ts & (document_nT[:, queries, None] == document_nT[:, None, keys])


def _in_chunks(function: Callable, arrays: tuple, scores: int) -> Any:
    """function(*arrays) by as many of the first dimension at once as have no more than SCORES, `scores` each."""
    count = len(arrays[0])
    size = max(size for size in range(1, count + 1) if count % size == 0 and size * scores <= max(SCORES, scores))
    if size == count:
        return function(*arrays)
    chunks = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), arrays)
    found = jax.lax.map(lambda chunk: function(*chunk), chunks)
    return jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), found)


# A transposition is a loop of its own: fused with what reshapes it, XLA's CPU backend takes several times as long.


def _heads_first(kv_heads: int, x_BTH: jax.Array) -> jax.Array:
    """[B, T, H, ...] -> [B x K, g, T, ...]."""
    batch, length, heads, *rest = x_BTH.shape
    x_BTKg = x_BTH.reshape(batch, length, kv_heads, heads // kv_heads, *rest)
    x_BKgT = jax.lax.optimization_barrier(jnp.moveaxis(x_BTKg, 1, 3))
    return x_BKgT.reshape(batch * kv_heads, heads // kv_heads, length, *rest)


def _heads_last(batch: int, x_ngT: jax.Array) -> jax.Array:
    """[B x K, g, T, ...] -> [B, T, H, ...]."""
    _, group, length, *rest = x_ngT.shape
    x_BTKg = jax.lax.optimization_barrier(jnp.moveaxis(x_ngT.reshape(batch, -1, group, length, *rest), 3, 1))
    return x_BTKg.reshape(batch, length, -1, *rest)


def _by_head(kv_heads: int, document_BT: jax.Array | None) -> jax.Array | None:
    return None if document_BT is None else jnp.repeat(document_BT, kv_heads, axis=0)
