"""Cross-entropy over the vocabulary.

Shape suffixes: B batch, T positions, N = B x T rows, D embed, V vocab.
"""

import jax
import jax.numpy as jnp


def logits(x_ND: jax.Array, head_DV: jax.Array) -> jax.Array:
    """[N, D] times [D, V], in float32 or better."""
    return jnp.matmul(x_ND, head_DV, preferred_element_type=jnp.promote_types(x_ND.dtype, jnp.float32))


def cross_entropy(x_ND: jax.Array, head_DV: jax.Array, target_BT: jax.Array) -> jax.Array:
    """Mean cross-entropy, in nats, of int targets [B, T] given hidden states [B x T, D]; a float32 (or 64) scalar."""
    target_N = target_BT.reshape(-1)
    logits_NV = logits(x_ND, head_DV)
    target_logit_N = jnp.take_along_axis(logits_NV, target_N[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits_NV, axis=1) - target_logit_N)
