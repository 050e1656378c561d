"""Causal grouped-query attention: one function, and a kernel for each platform, all with its arguments.

Shape suffixes: B batch, T query positions, S key positions, H heads, K kv_heads, h head_dim.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from growlm.models.sharding import BATCH, batch_parts, current_mesh

# The TPU kernel's vector width, and its largest blocks of positions: in fast memory, and computed on at once. In the
# compiler's schedules for v4 to v6e, at 2,048 positions, blocks of 1,024 take 7 to 13 % fewer instructions forward than
# 512, equally many backward within 8 %, and write half as many partial sums of the queries' gradient.
_LANES, _BLOCK, _COMPUTED = 128, 1024, 512

KERNEL_RESIDUALS = "attention"  # the checkpoint name of what the TPU kernel's backward pass needs


def attention(
    q_BTHh: jax.Array,
    k_BTKh: jax.Array,
    v_BTKh: jax.Array,
    window: int | None = None,
    document_BT: jax.Array | None = None,
    *,
    scale: float | None = None,
    cap: float | None = None,
) -> jax.Array:
    """Causal grouped-query attention, [B, T, H, h], by the kernel of the platform that is compiled for.

    TPUs run splash attention, in bfloat16 and float32, if the length is a multiple of 128 and head_dim at most 256.
    GPUs run cuDNN's flash attention, in 16 bits, from Ampere on, if head_dim is a multiple of 8 and at most 128. The
    scores [B, H, T, S] are never in memory, but with documents cuDNN's mask [B, 1, T, S] is. Otherwise plain XLA runs.

    Args:
      q_BTHh, k_BTKh, v_BTKh: queries, keys and values; K divides H.
      window: the number of positions that a query sees, its own the last of them; None for all before it.
      document_BT: the number of each position's document, to which attention is confined; None for one document.
      scale: of the scores; by default head_dim^-1/2.
      cap: c, if scores are c tanh(score / c) (Gemma 2, arXiv 2408.00118). cuDNN's kernel has none, so plain XLA runs.
    """
    if window is not None and window >= q_BTHh.shape[1]:
        window = None  # it hides nothing
    if scale is not None:
        q_BTHh = q_BTHh * (scale * q_BTHh.shape[3] ** 0.5)  # kernels divide by the root
    kernel = _KERNELS.get(platform(), _library_attention)
    if cap is not None:
        kernel = _CAPPED.get(platform(), _heads_first_attention)
        return kernel(q_BTHh, k_BTKh, v_BTKh, window, document_BT, cap=cap)
    return kernel(q_BTHh, k_BTKh, v_BTKh, window, document_BT)


def kernel_name() -> str:
    """Which kernel runs attention here, in words."""
    names = {"cpu": "plain XLA, heads first", "tpu": "splash attention where its shapes fit, else plain XLA"}
    flash = "cuDNN's flash attention in 16 bits" if platform() == "gpu" and _has_flash_attention() else "plain XLA"
    return names.get(platform(), flash)


def platform() -> str:
    """The platform of the current mesh, whose devices need not be attached, or else of the process."""
    mesh = current_mesh()
    # A device, the name of a platform, or None.
    device = mesh.abstract_device if mesh else getattr(jax.config, "jax_default_device", None)
    return getattr(device, "platform", device) or jax.default_backend()


def _library_attention(q_BTHh, k_BTKh, v_BTKh, window=None, document_BT=None, implementation=None) -> jax.Array:
    before = None if window is None else (window - 1, 0)  # positions seen on either side
    options = {"is_causal": True, "local_window_size": before, "implementation": implementation}
    if document_BT is not None:
        options["mask"] = (document_BT[:, :, None] == document_BT[:, None, :])[:, None]
    return jax.nn.dot_product_attention(q_BTHh, k_BTKh, v_BTKh, **options)


def _heads_first_attention(q_BTHh, k_BTKh, v_BTKh, window=None, document_BT=None, cap=None) -> jax.Array:
    """Attention as products over [batch x kv_heads]: a third faster than the library's on XLA's CPU backend."""
    batch, length, heads, head_dim = q_BTHh.shape
    kv_heads = k_BTKh.shape[2]
    q = q_BTHh.reshape(batch, length, kv_heads, -1, head_dim).transpose(0, 2, 3, 1, 4)
    q_nGh = q.reshape(batch * kv_heads, -1, head_dim) * head_dim**-0.5  # n: batch x kv_heads, G: group x T
    k_nSh, v_nSh = (x.transpose(0, 2, 1, 3).reshape(-1, length, head_dim) for x in (k_BTKh, v_BTKh))
    at_least_float32 = jnp.promote_types(q_nGh.dtype, jnp.float32)
    score_nGS = jnp.einsum("ngh,nsh->ngs", q_nGh, k_nSh, preferred_element_type=at_least_float32)
    if cap is not None:
        score_nGS = cap * jnp.tanh(score_nGS / cap)
    position_G = jnp.tile(jnp.arange(length), heads // kv_heads)
    visible_GS = position_G[:, None] >= jnp.arange(length)
    if window is not None:
        visible_GS &= position_G[:, None] < jnp.arange(length) + window
    visible = visible_GS
    if document_BT is not None:
        document_nS = jnp.repeat(document_BT, kv_heads, axis=0)
        visible = visible_GS & (document_nS[:, position_G, None] == document_nS[:, None])
    weight_nGS = jax.nn.softmax(jnp.where(visible, score_nGS, -1e30)).astype(v_nSh.dtype)
    o_nGh = jnp.einsum("ngs,nsh->ngh", weight_nGS, v_nSh)
    o = o_nGh.reshape(batch, kv_heads, -1, length, head_dim).transpose(0, 3, 1, 2, 4)
    return o.reshape(batch, length, heads, head_dim)


def _tpu_attention(q_BTHh, k_BTKh, v_BTKh, window=None, document_BT=None, cap=None) -> jax.Array:
    length, head_dim, dtype = q_BTHh.shape[1], q_BTHh.shape[3], q_BTHh.dtype
    taken = dtype in (jnp.bfloat16, jnp.float32) and length % _LANES == 0 and head_dim <= 256
    if not taken and cap is not None:
        return _heads_first_attention(q_BTHh, k_BTKh, v_BTKh, window, document_BT, cap)
    if not taken:
        return _library_attention(q_BTHh, k_BTKh, v_BTKh, window, document_BT)
    return _on_every_device(partial(_splash_attention, window=window, cap=cap), q_BTHh, k_BTKh, v_BTKh, document_BT)


def _splash_attention(q_BTHh, k_BTKh, v_BTKh, window=None, document_BT=None, cap=None, interpret=False) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # half a second that only TPUs need

    length, heads, head_dim = q_BTHh.shape[1:]
    square = (length, length)
    head = splash.CausalMask(square) if window is None else splash.LocalMask(square, (window - 1, 0), offset=0)
    mask = splash.MultiHeadMask([head] * heads)
    block = _largest_block(length, _BLOCK * _LANES // max(_LANES, head_dim))  # longer heads take more of the memory
    blocks = block, block, _largest_block(block, _COMPUTED)  # of queries, of keys, of keys computed on at once
    sizes = splash.BlockSizes(*blocks, *blocks, use_fused_bwd_kernel=True)
    options = {"interpret": interpret, "attn_logits_soft_cap": cap, "residual_checkpoint_name": KERNEL_RESIDUALS}
    kernel = splash.make_splash_mha_single_device(mask, block_sizes=sizes, **options)
    q, k, v = (x.swapaxes(1, 2) for x in (q_BTHh * head_dim**-0.5, k_BTKh, v_BTKh))
    document = None if document_BT is None else splash.SegmentIds(document_BT, document_BT)
    o: Any = jax.vmap(kernel)(q, k, v, document)
    return o.swapaxes(1, 2)


def _largest_block(length: int, most: int) -> int:
    """The largest multiple of the vector width, up to `most`, that divides the length."""
    return max(size for size in range(_LANES, most + 1, _LANES) if length % size == 0)


def _on_every_device(kernel: Callable, q_BTHh, k_BTKh, v_BTKh, document_BT=None) -> jax.Array:
    """Runs a kernel that the compiler cannot partition, on every device's part of the batch and heads."""
    mesh = current_mesh()
    if mesh is None:
        return kernel(q_BTHh, k_BTKh, v_BTKh, document_BT=document_BT)
    batch = BATCH if q_BTHh.shape[0] % batch_parts(mesh) == 0 else None
    heads = "tensor" if k_BTKh.shape[2] % mesh.shape["tensor"] == 0 else None
    spec = PartitionSpec(batch, None, heads, None)
    # check_vma is off: the kernels do not declare along which axes their results vary.
    ins = (spec, spec, spec, PartitionSpec(batch))

    def part(q, k, v, document):
        return kernel(q, k, v, document_BT=document)

    return jax.shard_map(part, in_specs=ins, out_specs=spec, check_vma=False)(q_BTHh, k_BTKh, v_BTKh, document_BT)


def _gpu_attention(q_BTHh, k_BTKh, v_BTKh, window=None, document_BT=None) -> jax.Array:
    head_dim, dtype = q_BTHh.shape[3], q_BTHh.dtype
    taken = dtype in (jnp.bfloat16, jnp.float16) and head_dim <= 128 and head_dim % 8 == 0
    if not taken or not _has_flash_attention():
        return _library_attention(q_BTHh, k_BTKh, v_BTKh, window, document_BT)
    kernel = partial(_library_attention, window=window, implementation="cudnn")
    return _on_every_device(kernel, q_BTHh, k_BTKh, v_BTKh, document_BT)


@cache
def _has_flash_attention() -> bool:
    """Whether the attached GPUs have cuDNN's flash attention: NVIDIA's, from Ampere on."""
    try:
        return all(float(gpu.compute_capability) >= 8 for gpu in jax.local_devices(backend="cuda"))
    except RuntimeError:  # no such backend; the library raises where it finds no cuDNN, even for another platform
        return False


_KERNELS = {"cpu": _heads_first_attention, "tpu": _tpu_attention, "gpu": _gpu_attention}
_CAPPED = {"tpu": _tpu_attention}
