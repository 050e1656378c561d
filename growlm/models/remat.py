"""Rematerialisation: what the backward pass computes again instead of keeping it."""

from typing import Any

import jax

from growlm.models.attention_blocks import RESIDUALS
from growlm.models.sharding import GATHERED, current_mesh


def _is_attention(primitive: Any, *_: Any, **__: Any) -> bool:
    """Whether this is cuDNN's attention, which the library gives no name that a policy could keep."""
    return primitive.name == "dot_product_attention_fwd_wrapper"


# Rematerialisation: what the backward pass keeps of a block's forward pass, from everything (None) to nothing.
# "attention" keeps what attention gives, of the size of the stream.
_DOTS = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
_ATTENTION = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.save_only_these_names(RESIDUALS), _is_attention
)
REMAT_POLICIES = {
    "none": None,
    "dots": _DOTS,
    "attention": _ATTENTION,
    "dots_and_attention": jax.checkpoint_policies.save_from_both_policies(_DOTS, _ATTENTION),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def policy_of(remat: str) -> Any:
    """The rematerialisation policy of that name."""
    # All-gathered weights are never kept for the backward pass: fsdp would save no memory.
    mesh = current_mesh()
    if remat == "none" and mesh and mesh.shape["fsdp"] > 1:
        return jax.checkpoint_policies.save_anything_except_these_names(GATHERED)
    return REMAT_POLICIES[remat]
