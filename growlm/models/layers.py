"""Building blocks of branches: declared weights, products, norms.

Shape suffixes: B batch, T positions, N = B x T rows, D embed. Dense layers work on rows [N, D]: on XLA's CPU backend,
products on three axes run at half the speed, and elsewhere the reshape is free.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from growlm.models.architecture import DecoderConfig, Norm, NormKind
from growlm.models.sharding import all_gather


class Context(NamedTuple):
    """Arguments of every branch, besides the stream.

    Attributes:
      tokens_BT: the tokens.
      document_BT: the number of each position's document, if attention is confined to documents.
      tables: from `Branch.tables`.
      variant: the layer's number in `Branch.variants`, an integer scalar; None for a branch without them.
      past: the positions before the tokens (`growlm.models.past.Past`), with tables for all of them; None where the
        tokens are whole texts.
    """

    tokens_BT: jax.Array
    document_BT: jax.Array | None = None
    tables: Any = None
    variant: Any = None
    past: Any = None

    @property
    def batch(self) -> int:
        """The batch size."""
        return self.tokens_BT.shape[0]


def has(module: nn.Module, name: str) -> bool:
    """Whether a weight of the module is declared, and present in its config."""
    weight = module.config.architecture.weights.get("/".join((*module.path, name)))
    return weight is not None and weight.present(module.config)


def weight(module: nn.Module, name: str, dtype: Any = None) -> jax.Array:
    """A declared weight of the module, in the compute dtype or another one, all-gathered over fsdp."""
    declared = module.config.architecture.weights["/".join((*module.path, name))]
    value = module.param(name, declared.initial, module.config)
    value = value + declared.offset if declared.offset else value
    return all_gather(declared, module.config, value.astype(dtype or module.dtype))


def biased(module: nn.Module, name: str, y: jax.Array) -> jax.Array:
    """Adds a bias of the module, where it is declared, in float32 or better: its gradient is a sum over all rows."""
    if not has(module, name):
        return y
    return (y + weight(module, name, exact(y.dtype))).astype(y.dtype)


def dense(x: jax.Array, w: jax.Array) -> jax.Array:
    """Rows [N, D] times a matrix whose leading dimensions flatten to D."""
    return x @ w.reshape(x.shape[-1], -1)


def exact(dtype: Any) -> Any:
    """Float32, or float64 where that is computed in."""
    return jnp.promote_types(dtype, jnp.float32)


def rms_norm(x: jax.Array, eps: float) -> jax.Array:
    """RMSNorm without gain along the last axis, computed in float32 or better."""
    y = x.astype(exact(x.dtype))
    return (y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)).astype(x.dtype)


def layer_norm(x: jax.Array, eps: float) -> jax.Array:
    """LayerNorm without gain and bias along the last axis, computed in float32 or better."""
    y = x.astype(exact(x.dtype))
    return rms_norm(y - jnp.mean(y, axis=-1, keepdims=True), eps).astype(x.dtype)


NORMALISE = {NormKind.RMS: rms_norm, NormKind.LAYER: layer_norm}


def normalise(norm: Norm, config: DecoderConfig, x_ND: jax.Array, weights: dict[str, jax.Array]) -> jax.Array:
    """[..., D] -> [..., D], with the weights `scale` and `bias` if the norm has them.

    They are of float32 or better: their gradients are sums over all rows.
    """
    y_ND = NORMALISE[norm.kind](x_ND.astype(exact(x_ND.dtype)), getattr(config, norm.eps))
    y_ND = y_ND * weights["scale"] if norm.scale else y_ND
    return (y_ND + weights["bias"] if norm.bias else y_ND).astype(x_ND.dtype)


class NormLayer(nn.Module):
    """One of the architecture's norms."""

    config: DecoderConfig
    dtype: Any
    norm: Norm

    @nn.compact
    def __call__(self, x_ND):
        """[..., D] -> [..., D]."""
        names = ("scale",) * self.norm.scale + ("bias",) * self.norm.bias
        weights = {name: weight(self, name, exact(self.dtype)) for name in names}
        return normalise(self.norm, self.config, x_ND, weights)
