"""Causal grouped-query attention: one function, and a kernel for each platform, all with its arguments.

Shape suffixes: B batch, T query positions, S key positions, H heads, K kv_heads, h head_dim.
"""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp

from growlm.models.attention_blocks import RESIDUALS, attention_in_blocks
from growlm.models.sharding import current_mesh, on_every_device

# The TPU kernel's vector width, and its largest blocks of positions: in fast memory, and computed on at once. In the
# compiler's schedules for v4 to v6e, at 2,048 positions, blocks of 1,024 take 7 to 13 % fewer instructions forward than
# 512, equally many backward within 8 %, and write half as many partial sums of the queries' gradient.
_LANES, _BLOCK, _COMPUTED = 128, 1024, 512


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
    GPUs run cuDNN's flash attention, in 16 bits, from Ampere on, if the length is even and head_dim is a multiple of 8
    and at most 128. The scores [B, H, T, S] are never in memory, but with documents cuDNN's mask [B, 1, T, S] is.
    Otherwise plain XLA runs.

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
        kernel = _CAPPED.get(platform(), attention_in_blocks)
        return kernel(q_BTHh, k_BTKh, v_BTKh, window, document_BT, cap=cap)
    return kernel(q_BTHh, k_BTKh, v_BTKh, window, document_BT)


def kernel_name() -> str:
    """Which kernel runs attention here, in words."""
    names = {"cpu": "plain XLA, in blocks", "tpu": "splash attention where its shapes fit, else plain XLA"}
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


def _tpu_attention(q_BTHh, k_BTKh, v_BTKh, window=None, document_BT=None, cap=None) -> jax.Array:
    length, head_dim, dtype = q_BTHh.shape[1], q_BTHh.shape[3], q_BTHh.dtype
    taken = dtype in (jnp.bfloat16, jnp.float32) and length % _LANES == 0 and head_dim <= 256
    if not taken and cap is not None:
        return attention_in_blocks(q_BTHh, k_BTKh, v_BTKh, window, document_BT, cap)
    if not taken:
        return _library_attention(q_BTHh, k_BTKh, v_BTKh, window, document_BT)
    return on_every_device(partial(_splash_attention, window=window, cap=cap), (q_BTHh, k_BTKh, v_BTKh), document_BT)


def _splash_attention(q_BTHh, k_BTKh, v_BTKh, window=None, document_BT=None, cap=None, interpret=False) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # half a second that only TPUs need

    length, heads, head_dim = q_BTHh.shape[1:]
    square = (length, length)
    head = splash.CausalMask(square) if window is None else splash.LocalMask(square, (window - 1, 0), offset=0)
    mask = splash.MultiHeadMask([head] * heads)
    block = _largest_block(length, _BLOCK * _LANES // max(_LANES, head_dim))  # longer heads take more of the memory
    blocks = block, block, _largest_block(block, _COMPUTED)  # of queries, of keys, of keys computed on at once
    sizes = splash.BlockSizes(*blocks, *blocks, use_fused_bwd_kernel=True)
    options = {"interpret": interpret, "attn_logits_soft_cap": cap, "residual_checkpoint_name": RESIDUALS}
    kernel = splash.make_splash_mha_single_device(mask, block_sizes=sizes, **options)
    q, k, v = (x.swapaxes(1, 2) for x in (q_BTHh * head_dim**-0.5, k_BTKh, v_BTKh))
    document = None if document_BT is None else splash.SegmentIds(document_BT, document_BT)
    o: Any = jax.vmap(kernel)(q, k, v, document)
    return o.swapaxes(1, 2)


def _largest_block(length: int, most: int) -> int:
    """The largest multiple of the vector width, up to `most`, that divides the length."""
    return max(size for size in range(_LANES, most + 1, _LANES) if length % size == 0)


def _gpu_attention(q_BTHh, k_BTKh, v_BTKh, window=None, document_BT=None) -> jax.Array:
    length, head_dim, dtype = q_BTHh.shape[1], q_BTHh.shape[3], q_BTHh.dtype
    # An odd length is refused in training: JAX takes it for one with a bias, whose gradient cuDNN has in pairs alone.
    taken = dtype in (jnp.bfloat16, jnp.float16) and length % 2 == 0 and head_dim <= 128 and head_dim % 8 == 0
    if not taken or not _has_flash_attention():
        return _library_attention(q_BTHh, k_BTKh, v_BTKh, window, document_BT)
    kernel = partial(_library_attention, window=window, implementation="cudnn")
    return on_every_device(kernel, (q_BTHh, k_BTKh, v_BTKh), document_BT)


@cache
def _has_flash_attention() -> bool:
    """Whether the attached GPUs have cuDNN's flash attention: NVIDIA's, from Ampere on."""
    try:
        return all(float(gpu.compute_capability) >= 8 for gpu in jax.local_devices(backend="cuda"))
    except RuntimeError:  # no such backend; the library raises where it finds no cuDNN, even for another platform
        return False


_KERNELS = {"cpu": attention_in_blocks, "tpu": _tpu_attention, "gpu": _gpu_attention}
_CAPPED = {"tpu": _tpu_attention}
