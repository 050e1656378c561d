"""The chosen experts of every row in blocks of rows, for backends without ragged products.

Rows are sorted by expert, and each expert works on its own in blocks, large ones while it has enough rows and then
small ones. A small block that ends among the rows of the next expert computes a few of them for nothing. Blocks take
their rows and add their results where they stand: sorted copies would be memory that glibc maps anew in every step.

Shape suffixes: N rows, D embed, E experts, K experts of a row, F mlp, M = N x K assignments, numbered row by row, S
the same in the order of experts and one block more, b assignments of a block.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

LARGE, SMALL = 256, 64  # rows: each block moves an expert's weights, or their gradients; half a small one is wasted


class _Order(NamedTuple):
    """number_S: the assignments by expert; begin_E, count_E: which are an expert's."""

    number_S: jax.Array
    begin_E: jax.Array
    count_E: jax.Array


def _by_expert(expert_NK: jax.Array, experts: int) -> _Order:
    count_E = jnp.bincount(expert_NK.reshape(-1), length=experts).astype(jnp.int32)
    number_S = jnp.pad(jnp.argsort(expert_NK.reshape(-1)), (0, SMALL))
    return _Order(number_S, jnp.cumsum(count_E) - count_E, count_E)


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
        if len(order.number_S) - SMALL >= LARGE:
            both = jax.lax.fori_loop(0, count // LARGE, partial(block, LARGE, done), both)
            done = count // LARGE * LARGE
        return jax.lax.fori_loop(0, -(-(count - done) // SMALL), partial(block, SMALL, done), both)

    return jax.lax.scan(of_expert, carry, (order.begin_E, order.count_E, experts))


def _cut(array_S: jax.Array, begin: jax.Array, live_b1: jax.Array) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(array_S, begin, len(live_b1))


def _put(array_S: jax.Array, block: jax.Array, begin: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(array_S, block, begin, 0)


@jax.custom_vjp
def blocked_experts(x_ND: jax.Array, weight_NK: jax.Array, expert_NK: jax.Array, experts: Any) -> jax.Array:
    """The weighted sum of the chosen SwiGLUs, [N, D]; arguments are those of `moe.apply_experts`."""
    return _forward(x_ND, weight_NK, expert_NK, experts)[0]


def _forward(x_ND: jax.Array, weight_NK: jax.Array, expert_NK: jax.Array, experts: Any) -> tuple[jax.Array, Any]:
    order = _by_expert(expert_NK, len(experts[0]))
    chosen, weight_M = expert_NK.shape[1], weight_NK.reshape(-1).astype(x_ND.dtype)
    exact = jnp.promote_types(x_ND.dtype, jnp.float32)

    def step(both, begin, live_b1, expert):
        ((y_ND, gate_SF, up_SF), _), (gate_DF, up_DF, down_FD) = both, expert
        number_b = _cut(order.number_S, begin, live_b1)
        x_bD = jnp.where(live_b1, x_ND[number_b // chosen], 0)
        gate_bF, up_bF = x_bD @ gate_DF, x_bD @ up_DF
        y_bD = (jax.nn.silu(gate_bF) * up_bF * weight_M[number_b][:, None]) @ down_FD
        y_ND = y_ND.at[number_b // chosen].add(y_bD.astype(exact))
        return (y_ND, _put(gate_SF, gate_bF, begin), _put(up_SF, up_bF, begin)), ()

    wide = jnp.zeros((len(order.number_S), experts[0].shape[2]), x_ND.dtype)
    (y_ND, gate_SF, up_SF), _ = _fold(step, (jnp.zeros(x_ND.shape, exact), wide, wide), order, experts, ())
    return y_ND.astype(x_ND.dtype), (x_ND, weight_NK, order, experts, gate_SF, up_SF)


def _backward(kept: Any, dy_ND: jax.Array) -> tuple[Any, ...]:
    x_ND, weight_NK, order, experts, gate_SF, up_SF = kept
    chosen, weight_M = weight_NK.shape[1], weight_NK.reshape(-1).astype(x_ND.dtype)
    exact = jnp.promote_types(x_ND.dtype, jnp.float32)  # gradients of weights are sums over many blocks

    def step(both, begin, live_b1, expert):
        ((dx_ND, dweight_M), sums), (gate_DF, up_DF, down_FD) = both, expert
        number_b = _cut(order.number_S, begin, live_b1)
        row_b, weight_b1 = number_b // chosen, weight_M[number_b][:, None]
        gate_bF, up_bF = _cut(gate_SF, begin, live_b1), _cut(up_SF, begin, live_b1)
        dy_bD = jnp.where(live_b1, dy_ND[row_b], 0)
        sigmoid_bF = jax.nn.sigmoid(gate_bF)
        silu_bF = gate_bF * sigmoid_bF
        h_bF = silu_bF * up_bF
        dh_bF = dy_bD @ down_FD.T  # before the weight
        dweight_b = jnp.sum(h_bF * dh_bF, axis=1, dtype=exact)
        dup_bF = dh_bF * weight_b1 * silu_bF
        dgate_bF = dh_bF * weight_b1 * up_bF * (sigmoid_bF + silu_bF * (1 - sigmoid_bF))
        dx_bD = dgate_bF @ gate_DF.T + dup_bF @ up_DF.T
        pairs = (x_ND[row_b], dgate_bF), (x_ND[row_b], dup_bF), (h_bF * weight_b1, dy_bD)
        products = tuple(jnp.matmul(a.T, b, preferred_element_type=exact) for a, b in pairs)
        carry = dx_ND.at[row_b].add(dx_bD.astype(exact)), dweight_M.at[number_b].add(dweight_b)
        return carry, jax.tree.map(jnp.add, sums, products)

    empty = jnp.zeros(x_ND.shape, exact), jnp.zeros(weight_M.shape, exact)
    zeros = tuple(jnp.zeros(one.shape[1:], exact) for one in experts)
    (dx_ND, dweight_M), sums = _fold(step, empty, order, experts, zeros)
    dexperts = tuple(total.astype(one.dtype) for total, one in zip(sums, experts, strict=True))
    dweight_NK = dweight_M.reshape(weight_NK.shape).astype(weight_NK.dtype)
    return dx_ND.astype(x_ND.dtype), dweight_NK, None, dexperts


blocked_experts.defvjp(_forward, _backward)
