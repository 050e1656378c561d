"""Cross-entropy over the vocabulary in chunks of rows, so that not all logits are in memory.

The gradient by logits is softmax minus targets, known as soon as the loss of a chunk is. So the forward pass of
differentiation computes the gradients, and the backward pass only scales them. On a mesh, every device loops over
chunks of its own rows and its own part of the vocabulary, and row sums are reduced over devices once, at the end. Rows
may have weights, and a teacher whose logits are made chunk by chunk too.

Shape suffixes: B batch, T positions, N = B x T rows, n rows of one device, C rows of a chunk, D embed, E embed of the
teacher, V vocab, W its part on one device.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import axis_index, pmax, psum
from jax.sharding import PartitionSpec

from growlm.models.sharding import BATCH, current_mesh

CHUNK = 2**26  # logits in memory at a time, on one device


def logits(x_ND: jax.Array, head_DV: jax.Array, cap: float | None = None) -> jax.Array:
    """[N, D] x [D, V], accumulated in float32 or better. With a cap c, c tanh(x / c) of it (Gemma 2, 2408.00118)."""
    raw_NV = jnp.matmul(x_ND, head_DV, preferred_element_type=jnp.promote_types(x_ND.dtype, jnp.float32))
    return raw_NV if cap is None else cap * jnp.tanh(raw_NV / cap)


@partial(jax.tree_util.register_dataclass, data_fields=["x", "head", "weight"], meta_fields=["cap", "temperature"])
@dataclasses.dataclass(frozen=True)
class Teacher:
    """A model whose distribution is a part of the target: softmax of its logits / temperature.

    x: its hidden states [N, E]. head: [E, V]. weight: the part, a scalar. cap: that of its logits. They are constants.
    """

    x: Any
    head: Any
    weight: Any
    cap: float | None = None
    temperature: float = 1.0


def cross_entropy(
    x_ND: jax.Array,
    head_DV: jax.Array,
    target_BT: jax.Array,
    cap: float | None = None,
    weight_BT: jax.Array | None = None,
    teacher: Teacher | None = None,
) -> jax.Array:
    """Mean cross-entropy in nats of int targets [B, T] given hidden states [B x T, D]; a float32 (or 64) scalar.

    Args:
      x_ND, head_DV, cap: of the model, see `logits`.
      target_BT: the tokens that come.
      weight_BT: factors on the loss of every row; the mean is over all rows all the same.
      teacher: the loss is (1 - w) CE + w KL(teacher || model), w its weight (arXiv 2410.18779).
    """
    weight_N = None if weight_BT is None else weight_BT.reshape(-1)
    return _mean_loss(CHUNK, cap, x_ND, head_DV, (target_BT.reshape(-1).astype(jnp.int32), weight_N, teacher))


def token_losses(
    x_ND: jax.Array, head_DV: jax.Array, target_N: jax.Array, cap: float | None = None
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of every row, float32[N] (or 64) in nats, and the rank of its target, int32[N].

    The rank is the number of larger logits: 0 for the first choice, and less than k among the top k.
    """
    axes = _axes(x_ND, head_DV)
    rows = PartitionSpec(axes.rows)
    each = partial(_token_losses, CHUNK, cap, axes)
    return _on_mesh(each, axes, (rows, rows))(x_ND, head_DV, target_N.astype(jnp.int32))


# The targets, the weights and the teacher of rows.
Aims = tuple[jax.Array, jax.Array | None, Teacher | None]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _mean_loss(most: int, cap: float | None, x_ND: jax.Array, head_DV: jax.Array, aims: Aims) -> jax.Array:
    """The loss without gradients; `most` is the largest number of logits at a time, `cap` that of `logits`."""
    axes = _axes(x_ND, head_DV)
    return _on_mesh(partial(_loss, most, cap, axes), axes, PartitionSpec())(x_ND, head_DV, *aims) / len(x_ND)


def _mean_loss_forward(most: int, cap: float | None, x_ND: jax.Array, head_DV: jax.Array, aims: Aims) -> tuple:
    axes, rows = _axes(x_ND, head_DV), len(x_ND)
    outs = (PartitionSpec(), PartitionSpec(axes.rows), PartitionSpec(None, axes.vocab))
    each = partial(_loss_and_gradients, most, cap, axes, rows)
    loss, *gradients = _on_mesh(each, axes, outs)(x_ND, head_DV, *aims)
    return loss / rows, gradients


def _mean_loss_backward(most: int, cap: float | None, gradients: list[jax.Array], scale: jax.Array) -> tuple:
    return *((scale * gradient).astype(gradient.dtype) for gradient in gradients), None


_mean_loss.defvjp(_mean_loss_forward, _mean_loss_backward)


class _Axes(NamedTuple):
    """The mesh axes over which rows and vocabulary are sharded, if they divide."""

    rows: tuple[str, ...] = ()
    vocab: tuple[str, ...] = ()


def _axes(x_ND: jax.Array, head_DV: jax.Array) -> _Axes:
    if (mesh := current_mesh()) is None:
        return _Axes()

    def over(axes: tuple[str, ...], size: int) -> tuple[str, ...]:
        axes = tuple(axis for axis in axes if mesh.shape[axis] > 1)  # XLA's CPU backend sends to a group of one too
        return () if size % math.prod(mesh.shape[axis] for axis in axes) else axes

    return _Axes(over(BATCH, len(x_ND)), over(("tensor",), head_DV.shape[1]))


def _on_mesh(function: Callable, axes: _Axes, outs: Any) -> Callable:
    """Maps a function of (x_nD, head_DW, target_n, weight_n, teacher) over every device's part."""
    if current_mesh() is None:
        return function
    rows, vocab = PartitionSpec(axes.rows), PartitionSpec(None, axes.vocab)

    def spec(given: Any) -> Any:
        if isinstance(given, Teacher):
            return dataclasses.replace(given, x=rows, head=vocab, weight=PartitionSpec())
        return None if given is None else rows

    def mapped(x_ND: jax.Array, head_DV: jax.Array, *aims: Any) -> Any:
        ins = (rows, vocab, *map(spec, aims))
        return jax.shard_map(function, in_specs=ins, out_specs=outs, check_vma=False)(x_ND, head_DV, *aims)

    return mapped


def _token_losses(
    most: int, cap: float | None, axes: _Axes, x_nD: jax.Array, head_DW: jax.Array, target_n: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Loss and rank of every row, chunk by chunk."""

    def step(_, rows):
        x_CD, target_C = rows
        loss_C, rank_C, _ = _chunk(cap, axes, x_CD, target_C, head_DW)
        return (), (loss_C, rank_C)

    return _fold(step, (), (x_nD, target_n), most // head_DW.shape[1])[1]


def _loss(
    most: int,
    cap: float | None,
    axes: _Axes,
    x_nD: jax.Array,
    head_DW: jax.Array,
    target_n: jax.Array,
    weight_n: jax.Array | None,
    teacher: Teacher | None,
) -> jax.Array:
    """The loss summed over all rows."""

    def step(total, rows):
        loss_C, _ = _aimed(cap, axes, rows, head_DW, teacher)
        return total + loss_C.sum(), ()

    zero = jnp.zeros((), jnp.promote_types(x_nD.dtype, jnp.float32))
    rows = x_nD, target_n, weight_n, teacher and teacher.x
    total, _ = _fold(step, zero, rows, most // head_DW.shape[1])
    return psum(total, axes.rows)


def _loss_and_gradients(
    most: int,
    cap: float | None,
    axes: _Axes,
    all_rows: int,
    x_nD: jax.Array,
    head_DW: jax.Array,
    target_n: jax.Array,
    weight_n: jax.Array | None,
    teacher: Teacher | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The loss summed over all rows, and the gradients of its mean."""

    def step(carry, rows):
        (total, dhead_DW), (x_CD, *_) = carry, rows
        loss_C, dlogits_CW = _aimed(cap, axes, rows, head_DW, teacher)
        # Products of 16 bits, if the model's are: on a GPU, those with float32 on one side take twice the time. What
        # they give is divided in float32: a rounding error that all rows share would not average out.
        dlogits_CW = dlogits_CW.astype(x_CD.dtype)
        dx_CD = (psum(logits(dlogits_CW, head_DW.T), axes.vocab) / all_rows).astype(x_CD.dtype)
        return (total + loss_C.sum(), dhead_DW + logits(x_CD.T, dlogits_CW)), dx_CD

    exact = jnp.promote_types(x_nD.dtype, jnp.float32)
    zeros = jnp.zeros((), exact), jnp.zeros(head_DW.shape, exact)
    rows = x_nD, target_n, weight_n, teacher and teacher.x
    sums, dx_nD = _fold(step, zeros, rows, most // head_DW.shape[1])
    total, dhead_DW = psum(sums, axes.rows)
    return total, dx_nD, (dhead_DW / all_rows).astype(head_DW.dtype)


def _aimed(
    cap: float | None, axes: _Axes, rows: tuple, head_DW: jax.Array, teacher: Teacher | None
) -> tuple[jax.Array, jax.Array]:
    """The loss of every row with its weight and a teacher, and the gradient by logits before the cap."""
    x_CD, target_C, weight_C, x_CE = rows
    teacher = teacher and dataclasses.replace(teacher, x=x_CE)
    loss_C, _, gradient_CW = _chunk(cap, axes, x_CD, target_C, head_DW, teacher)
    if weight_C is None:
        return loss_C, gradient_CW
    return weight_C * loss_C, weight_C[:, None] * gradient_CW


def _chunk(
    cap: float | None,
    axes: _Axes,
    x_CD: jax.Array,
    target_C: jax.Array,
    head_DW: jax.Array,
    teacher: Teacher | None = None,
) -> tuple[jax.Array, ...]:
    """The loss of every row, the number of logits above its target's, and the gradient by logits before the cap."""
    logits_CW = logits(x_CD, head_DW, cap)
    part = head_DW.shape[1]
    target_C = target_C - axis_index(axes.vocab) * part if axes.vocab else target_C
    here_C = (target_C >= 0) & (target_C < part)
    own_logit_C = jnp.take_along_axis(logits_CW, target_C[:, None], axis=1, mode="clip")[:, 0]
    top_C = pmax(logits_CW.max(axis=1), axes.vocab)
    exp_CW = jnp.exp(logits_CW - top_C[:, None])
    sums = exp_CW.sum(axis=1), jnp.where(here_C, own_logit_C, 0), here_C.astype(exp_CW.dtype)
    sum_C, target_logit_C, found_C = psum(sums, axes.vocab)
    target_logit_C = target_logit_C / found_C  # NaN for a target outside of the vocabulary
    rank_C = psum((~(logits_CW <= target_logit_C[:, None])).sum(axis=1, dtype=jnp.int32), axes.vocab)  # NaN: all are
    loss_C = jnp.log(sum_C) + top_C - target_logit_C
    gradient_CW = exp_CW / sum_C[:, None] - (target_C[:, None] == jnp.arange(part))
    if teacher is not None:  # the gradient of the divergence is softmax minus the teacher's
        soft_CW, log_soft_CW = _softmax(logits(teacher.x, teacher.head, teacher.cap) / teacher.temperature, axes)
        log_model_CW = logits_CW - (jnp.log(sum_C) + top_C)[:, None]
        divergence_C = psum((soft_CW * (log_soft_CW - log_model_CW)).sum(axis=1), axes.vocab)
        soft_gradient_CW = exp_CW / sum_C[:, None] - soft_CW
        loss_C = (1 - teacher.weight) * loss_C + teacher.weight * divergence_C
        gradient_CW = (1 - teacher.weight) * gradient_CW + teacher.weight * soft_gradient_CW
    if cap is not None:
        gradient_CW = gradient_CW * (1 - jnp.square(logits_CW / cap))  # the derivative of c tanh(x / c)
    return loss_C, rank_C, gradient_CW


def _softmax(logits_CW: jax.Array, axes: _Axes) -> tuple[jax.Array, jax.Array]:
    """Softmax over the vocabulary of all devices, and its logarithm."""
    top_C = pmax(logits_CW.max(axis=1), axes.vocab)
    sum_C = psum(jnp.exp(logits_CW - top_C[:, None]).sum(axis=1), axes.vocab)
    log_CW = logits_CW - (top_C + jnp.log(sum_C))[:, None]
    return jnp.exp(log_CW), log_CW


def _fold(step: Callable, carry: Any, rows: Any, most: int) -> tuple[Any, Any]:
    """Scans over chunks of at most `most` rows (at least one), of equal size but for a rest at the end."""
    count = len(rows[1])
    size = count // -(-count // max(most, 1))
    whole = count // size * size
    chunks = jax.tree.map(lambda x: x[:whole].reshape(-1, size, *x.shape[1:]), rows)
    carry, ys = jax.lax.scan(step, carry, chunks)
    ys = jax.tree.map(lambda y: y.reshape(whole, *y.shape[2:]), ys)
    if whole < count:
        carry, rest = step(carry, jax.tree.map(lambda x: x[whole:], rows))
        ys = jax.tree.map(lambda *parts: jnp.concatenate(parts), ys, rest)
    return carry, ys
