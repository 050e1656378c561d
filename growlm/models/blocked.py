"""The chosen experts of every row in blocks of rows, for backends without ragged products.

Rows are sorted by expert, and each expert works on its own in blocks, large ones while it has enough rows and then
small ones. A small block that ends among the rows of the next expert computes a few of them for nothing: what it writes
there, the next expert overwrites.

Shape suffixes: N rows, D embed, E experts, K experts of a row, F mlp, M = N x K assignments in the order of experts, S
the same and one block more, b rows of a block.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

LARGE, SMALL = 256, 64  # rows: each block moves an expert's weights, or their gradients; half a small one is wasted


class _Order(NamedTuple):
    """row_S: the row of each assignment; place_NK: where it is; begin_E, count_E: which are an expert's."""

    row_S: jax.Array
    place_NK: jax.Array
    begin_E: jax.Array
    count_E: jax.Array


def _by_expert(expert_NK: jax.Array, experts: int) -> _Order:
    order_M = jnp.argsort(expert_NK.reshape(-1))
    count_E = jnp.bincount(expert_NK.reshape(-1), length=experts).astype(jnp.int32)
    row_S = jnp.pad(order_M // expert_NK.shape[1], (0, SMALL))
    return _Order(row_S, jnp.argsort(order_M).reshape(expert_NK.shape), jnp.cumsum(count_E) - count_E, count_E)


def _fold(step: Callable, carry: Any, order: _Order, experts: Any, sums: Any) -> tuple[Any, Any]:
    """Folds step((carry, sums), first row, live rows bool[b, 1], one expert) over the blocks of all experts in order.

    Returns (carry, the sums of every expert), of which `sums` is the initial value.
    """

    def of_expert(carry: Any, part: Any) -> tuple[Any, Any]:
        begin, count, expert = part

        def block(size: int, first: jax.Array, number: jax.Array, both: Any) -> Any:
            done = first + number * size
            return step(both, begin + done, jnp.arange(size)[:, None] < count - done, expert)

        both, done = (carry, sums), jnp.zeros_like(count)
        if order.place_NK.size >= LARGE:
            both = jax.lax.fori_loop(0, count // LARGE, partial(block, LARGE, done), both)
            done = count // LARGE * LARGE
        return jax.lax.fori_loop(0, -(-(count - done) // SMALL), partial(block, SMALL, done), both)

    return jax.lax.scan(of_expert, carry, (order.begin_E, order.count_E, experts))


def _cut(array_S: jax.Array, begin: jax.Array, live_b1: jax.Array) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(array_S, begin, len(live_b1))


def _put(arrays: tuple[jax.Array, ...], blocks: tuple[jax.Array, ...], begin: jax.Array) -> tuple[jax.Array, ...]:
    pairs = zip(arrays, blocks, strict=True)
    return tuple(jax.lax.dynamic_update_slice_in_dim(a, block.astype(a.dtype), begin, 0) for a, block in pairs)


@jax.custom_vjp
def blocked_experts(x_ND: jax.Array, weight_NK: jax.Array, expert_NK: jax.Array, experts: Any) -> jax.Array:
    """The weighted sum of the chosen SwiGLUs, [N, D]; arguments are those of `moe.apply_experts`."""
    return _forward(x_ND, weight_NK, expert_NK, experts)[0]


def _sorted(order: _Order, weight_NK: jax.Array, dtype: Any) -> jax.Array:
    """The weight of every assignment, [S, 1]."""
    weight_S1 = jnp.zeros((len(order.row_S), 1), dtype)
    return weight_S1.at[order.place_NK.reshape(-1), 0].set(weight_NK.reshape(-1).astype(dtype))


def _forward(x_ND: jax.Array, weight_NK: jax.Array, expert_NK: jax.Array, experts: Any) -> tuple[jax.Array, Any]:
    order = _by_expert(expert_NK, len(experts[0]))
    x_SD, weight_S1 = x_ND[order.row_S], _sorted(order, weight_NK, x_ND.dtype)

    def step(both, begin, live_b1, expert):
        (arrays, _), (gate_DF, up_DF, down_FD) = both, expert
        x_bD = _cut(x_SD, begin, live_b1)
        gate_bF, up_bF = x_bD @ gate_DF, x_bD @ up_DF
        y_bD = (jax.nn.silu(gate_bF) * up_bF * _cut(weight_S1, begin, live_b1)) @ down_FD
        return _put(arrays, (gate_bF, up_bF, y_bD), begin), ()

    wide, (rows, embed) = (len(x_SD), experts[0].shape[2]), x_SD.shape
    empty = tuple(jnp.zeros(shape, x_ND.dtype) for shape in (wide, wide, (rows, embed)))
    (gate_SF, up_SF, y_SD), _ = _fold(step, empty, order, experts, ())
    return y_SD[order.place_NK].sum(axis=1), (x_ND, weight_NK, order, experts, gate_SF, up_SF)


def _backward(kept: Any, dy_ND: jax.Array) -> tuple[Any, ...]:
    x_ND, weight_NK, order, experts, gate_SF, up_SF = kept
    x_SD, dy_SD, weight_S1 = x_ND[order.row_S], dy_ND[order.row_S], _sorted(order, weight_NK, x_ND.dtype)
    exact = jnp.promote_types(x_ND.dtype, jnp.float32)  # gradients of weights are sums over many blocks

    def step(both, begin, live_b1, expert):
        (arrays, sums), (gate_DF, up_DF, down_FD) = both, expert
        x_bD, gate_bF, up_bF, weight_b1 = (_cut(array, begin, live_b1) for array in (x_SD, gate_SF, up_SF, weight_S1))
        dy_bD = jnp.where(live_b1, _cut(dy_SD, begin, live_b1), 0)
        sigmoid_bF = jax.nn.sigmoid(gate_bF)
        silu_bF = gate_bF * sigmoid_bF
        h_bF = silu_bF * up_bF
        dh_bF = dy_bD @ down_FD.T  # before the weight
        dweight_b1 = jnp.sum(h_bF * dh_bF, axis=1, keepdims=True)
        dup_bF = dh_bF * weight_b1 * silu_bF
        dgate_bF = dh_bF * weight_b1 * up_bF * (sigmoid_bF + silu_bF * (1 - sigmoid_bF))
        dx_bD = dgate_bF @ gate_DF.T + dup_bF @ up_DF.T
        pairs = (x_bD, dgate_bF), (x_bD, dup_bF), (h_bF * weight_b1, dy_bD)
        products = tuple(jnp.matmul(a.T, b, preferred_element_type=exact) for a, b in pairs)
        return _put(arrays, (dx_bD, dweight_b1), begin), jax.tree.map(jnp.add, sums, products)

    empty = jnp.zeros(x_SD.shape, x_ND.dtype), jnp.zeros(weight_S1.shape, exact)
    zeros = tuple(jnp.zeros(one.shape[1:], exact) for one in experts)
    (dx_SD, dweight_S1), sums = _fold(step, empty, order, experts, zeros)
    dexperts = tuple(total.astype(one.dtype) for total, one in zip(sums, experts, strict=True))
    dweight_NK = dweight_S1[order.place_NK, 0].astype(weight_NK.dtype)
    return dx_SD[order.place_NK].sum(axis=1), dweight_NK, None, dexperts


blocked_experts.defvjp(_forward, _backward)
