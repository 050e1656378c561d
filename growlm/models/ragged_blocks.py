"""Ragged products as batched products of blocks of rows, for GPUs, where XLA's is a masked dense one of all experts.

Every expert's rows are padded to whole blocks, of which there are at most M / R + E whatever the counts: shapes are
static, and nothing is dropped. Each block's product has a copy of its expert's matrix, and the gradient of a matrix is
the sum of its blocks'.

Shape suffixes: M rows in the order of experts, E experts, B blocks, R rows of a block, S = B x R places, I what a
matrix reads, O what it writes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

PER_EXPERT, LEAST = 4, 16  # blocks of an expert's mean number of rows, at least; rows of a block, at least


class _Blocks(NamedTuple):
    """row_S: the row in each place, M where it is padding; place_M: the place of each row; expert_B: of each block."""

    row_S: jax.Array
    place_M: jax.Array
    expert_B: jax.Array


def _block_rows(rows: int, experts: int) -> int:
    """The largest power of two of which an expert with the mean number of rows has `PER_EXPERT`."""
    return max(LEAST, 1 << max(rows // (PER_EXPERT * experts), 1).bit_length() - 1)


def _blocks(rows: int, counts_E: jax.Array) -> _Blocks:
    experts = len(counts_E)
    size = _block_rows(rows, experts)
    blocks = rows // size + experts
    first_E = jnp.cumsum(counts_E) - counts_E  # row
    begin_E = jnp.cumsum(-(-counts_E // size)) - -(-counts_E // size)  # block
    expert_B = jnp.searchsorted(begin_E, jnp.arange(blocks), side="right") - 1  # the last that begins there
    within_S = jnp.arange(blocks * size) - jnp.repeat(begin_E[expert_B] * size, size)
    expert_S = jnp.repeat(expert_B, size)
    row_S = jnp.where(within_S < counts_E[expert_S], first_E[expert_S] + within_S, rows)
    expert_M = jnp.searchsorted(jnp.cumsum(counts_E), jnp.arange(rows), side="right")
    place_M = begin_E[expert_M] * size + jnp.arange(rows) - first_E[expert_M]
    return _Blocks(row_S, place_M, expert_B)


def _padded(x_MI: jax.Array, blocks: _Blocks) -> jax.Array:
    """[B, R, I], zero where there is no row."""
    x_SI = x_MI.at[blocks.row_S].get(mode="fill", fill_value=0)
    return x_SI.reshape(len(blocks.expert_B), -1, x_MI.shape[1])


def block_product(x_MI: jax.Array, matrix_EIO: jax.Array, counts_E: jax.Array) -> jax.Array:
    """`jax.lax.ragged_dot`: each row times the matrix of its expert, [M, O]. The counts must sum to M."""
    blocks = _blocks(len(x_MI), counts_E)
    y_BRO = jnp.einsum("bri,bio->bro", _padded(x_MI, blocks), matrix_EIO[blocks.expert_B])
    return y_BRO.reshape(-1, y_BRO.shape[2])[blocks.place_M]


def block_transposes(x_MI, matrix_EIO, counts_E, dy_MO) -> tuple[jax.Array, jax.Array]:
    """The gradients of `block_product` by rows and by matrices; sums over blocks are of float32 or better."""
    blocks = _blocks(len(x_MI), counts_E)
    dy_BRO, exact = _padded(dy_MO, blocks), jnp.promote_types(x_MI.dtype, jnp.float32)
    dx_BRI = jnp.einsum("bro,bio->bri", dy_BRO, matrix_EIO[blocks.expert_B])
    parts_BIO = jnp.einsum("bri,bro->bio", _padded(x_MI, blocks), dy_BRO, preferred_element_type=exact)
    # A product with ones and zeros: a sum by index would be one of many threads that wait for each other.
    expert_BE = jax.nn.one_hot(blocks.expert_B, len(matrix_EIO), dtype=exact)
    dmatrix_EIO = jnp.einsum("be,bio->eio", expert_BE, parts_BIO)
    return dx_BRI.reshape(-1, dx_BRI.shape[2])[blocks.place_M], dmatrix_EIO.astype(matrix_EIO.dtype)
