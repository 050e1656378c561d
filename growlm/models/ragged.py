"""The chosen experts of every row by ragged products: rows sorted by expert, one product for each matrix.

On a GPU the products are batched ones of blocks of rows. XLA's ragged product is a kernel on TPUs, its transposes are
not as good: the one for rows takes transposed copies of the experts, the one for experts is a masked convolution that
takes twice the time of its FLOPs. There the library's kernels, megablox, run backward, if the sizes are multiples of
128 and the assignments of 512.

Shape suffixes: N rows, D embed, E experts, K experts of a row, F mlp, M = N x K assignments in the order of experts, I
what a matrix reads, O what it writes.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from growlm.models.kernels import platform
from growlm.models.ragged_blocks import block_product, block_transposes

# The kernels' tiles: rows, rows that are summed over, and the bytes of the two sides of a part of a matrix. Larger ones
# are more than the 16 MiB of fast memory that a v5e's kernel gets, smaller ones wait for memory.
ROWS, SUMMED_ROWS, SIDES = 512, 128, (2816, 2048)
_LANES = 128


def tile_rows(assignments: int, experts: int) -> int:
    """Of the kernel by rows, which computes a tile for every expert with a part of it: half where experts have few."""
    return ROWS if assignments >= 2 * ROWS * experts else ROWS // 2


def _rows_of(array_MD: jax.Array, place_NK: jax.Array) -> jax.Array:
    """The sum of every row's assignments, [N, D]: the transpose of array_ND[row_M], without a scatter."""
    return sum((array_MD[place_NK[:, k]] for k in range(1, place_NK.shape[1])), array_MD[place_NK[:, 0]])


def _hidden(gate_MF: jax.Array, up_MF: jax.Array, weight_M1: jax.Array) -> jax.Array:
    return (jax.nn.silu(gate_MF) * up_MF * weight_M1).astype(gate_MF.dtype)


def _transposes(x_MI, matrix_EIO, counts_E, dy_MO) -> tuple[jax.Array, jax.Array]:
    """The gradients of ragged_dot(x, matrix, counts) by rows and by matrices."""
    sizes = matrix_EIO.shape[1:]
    if platform() == "gpu":
        return block_transposes(x_MI, matrix_EIO, counts_E, dy_MO)
    if platform() == "tpu" and len(x_MI) % ROWS == 0 and not any(size % _LANES for size in sizes):
        return tpu_transposes(x_MI, matrix_EIO, counts_E, dy_MO)
    return jax.vjp(lambda x, matrix: jax.lax.ragged_dot(x, matrix, counts_E), x_MI, matrix_EIO)[1](dy_MO)


def tpu_transposes(x_MI, matrix_EIO, counts_E, dy_MO, interpret: bool = False) -> tuple[jax.Array, jax.Array]:
    """The same by the library's kernels."""
    from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm, tgmm  # half a second that only TPUs need

    def tiles(rows: int, _, read: int, written: int) -> tuple[int, int, int]:
        large, small = (side // x_MI.itemsize for side in SIDES)
        first = _tile(read, large)
        return rows, first, _tile(written, large if first <= small else small)

    of_rows = partial(tiles, tile_rows(len(x_MI), len(matrix_EIO)))
    dx_MI = gmm(dy_MO, matrix_EIO, counts_E, x_MI.dtype, tiling=of_rows, transpose_rhs=True, interpret=interpret)
    x_IM, dtype, of_sums = x_MI.swapaxes(0, 1), matrix_EIO.dtype, partial(tiles, SUMMED_ROWS)
    return dx_MI, tgmm(x_IM, dy_MO, counts_E, dtype, tiling=of_sums, interpret=interpret)


def _tile(size: int, most: int) -> int:
    """The width of equal tiles, in whole vectors and as few as may be."""
    return -(-size // (-(-size // most) * _LANES)) * _LANES


@jax.custom_vjp
def chosen_experts(x_ND: jax.Array, weight_NK: jax.Array, expert_NK: jax.Array, experts: Any) -> jax.Array:
    """The weighted sum of the chosen SwiGLUs, [N, D]; arguments are those of `moe.apply_experts`."""
    return _forward(x_ND, weight_NK, expert_NK, experts)[0]


def _forward(x_ND: jax.Array, weight_NK: jax.Array, expert_NK: jax.Array, experts: Any) -> tuple[jax.Array, Any]:
    order_M = jnp.argsort(expert_NK.reshape(-1))
    place_NK = jnp.argsort(order_M).reshape(expert_NK.shape)
    counts_E = jnp.bincount(expert_NK.reshape(-1), length=len(experts[0])).astype(jnp.int32)
    x_MD, weight_M1 = x_ND[order_M // expert_NK.shape[1]], weight_NK.reshape(-1, 1)[order_M]
    product = block_product if platform() == "gpu" else jax.lax.ragged_dot
    gate_MF, up_MF = (product(x_MD, matrix, counts_E) for matrix in experts[:2])
    y_MD = product(_hidden(gate_MF, up_MF, weight_M1), experts[2], counts_E)
    return _rows_of(y_MD, place_NK), (x_ND, weight_NK, order_M, place_NK, counts_E, experts, gate_MF, up_MF)


def _backward(kept: Any, dy_ND: jax.Array) -> tuple[Any, ...]:
    x_ND, weight_NK, order_M, place_NK, counts_E, (gate, up, down), gate_MF, up_MF = kept
    row_M, weight_M1 = order_M // weight_NK.shape[1], weight_NK.reshape(-1, 1)[order_M]
    x_MD, dy_MD = x_ND[row_M], dy_ND[row_M]
    h_MF, transposed = jax.vjp(_hidden, gate_MF, up_MF, weight_M1)
    dh_MF, ddown = _transposes(h_MF, down, counts_E, dy_MD)
    dgate_MF, dup_MF, dweight_M1 = transposed(dh_MF)
    dx_MD, dgate = _transposes(x_MD, gate, counts_E, dgate_MF)
    more_MD, dup = _transposes(x_MD, up, counts_E, dup_MF)
    dweight_NK = dweight_M1[place_NK, 0].astype(weight_NK.dtype)
    return _rows_of(dx_MD + more_MD, place_NK), dweight_NK, None, (dgate, dup, ddown)


chosen_experts.defvjp(_forward, _backward)
