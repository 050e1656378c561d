"""An architecture that growlm does not know: all of it is in this file.

Parallel attention and ReLU-squared MLP, LayerNorm without bias, learned positions, a value embedding in every layer.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from growlm.models import Architecture, Axis, Branch, DecoderConfig, Kind, Norm, NormKind, Role, WeightSpec
from growlm.models.architecture import EMBEDDING
from growlm.models.attention import score_scale
from growlm.models.kernels import attention
from growlm.models.layers import dense, weight
from growlm.models.mlp import mlp_branch


@dataclasses.dataclass(frozen=True)
class OwnConfig(DecoderConfig):
    layers: int
    embed: int
    heads: int
    head_dim: int
    mlp: int
    vocab: int
    positions: int = 64
    norm_eps: float = 1e-5

    architecture: ClassVar[Architecture]


class ValueAttention(nn.Module):
    config: OwnConfig
    dtype: Any

    @nn.compact
    def __call__(self, x_ND, context):
        shape = (context.batch, -1, self.config.heads, self.config.head_dim)
        q, k, v = (dense(x_ND, weight(self, name)).reshape(shape) for name in ("query", "key", "value"))
        v = v + weight(self, "value_embedding")[context.tokens_BT]
        y = attention(q, k, v, None, context.document_BT)
        return dense(y.reshape(len(x_ND), -1), weight(self, "out")), {}


def embed(lookups, config, tokens_BT, position_BT=None):
    x_BTD = lookups["embedding"][tokens_BT] + lookups["positions"][: tokens_BT.shape[1]]
    return x_BTD.reshape(-1, x_BTD.shape[-1])


QUERY = WeightSpec("query", "embed> >heads >head_dim", scores=score_scale)
PROJECTIONS = [QUERY, *(WeightSpec(name, "embed> >heads >head_dim") for name in ("key", "value"))]
VALUES = WeightSpec("value_embedding", "vocab> >heads >head_dim", Role.LOOKUP)
ATTENTION = Branch("attn", ValueAttention, (*PROJECTIONS, VALUES, WeightSpec("out", "heads> head_dim> >stream")))
READS = (Axis("embed", Kind.READ, of="stream"), Axis("final", Kind.READ, "embed", of="stream"))
FIXED = (Axis("head_dim", Kind.HEAD), Axis("positions", Kind.FIXED), Axis("vocab", Kind.VOCAB))
WIDE = (Axis("heads", Kind.HEADS, mesh="tensor"), Axis("mlp", Kind.INNER, mesh="tensor"))
OWN = Architecture(
    name="own",
    config=OwnConfig,
    axes=(Axis("layers", Kind.STACK), Axis("stream", Kind.STREAM, "embed", mesh="fsdp"), *READS, *FIXED, *WIDE),
    period=((ATTENTION, mlp_branch(lambda x: jnp.square(jax.nn.relu(x)), biases=False)),),
    norm=Norm(NormKind.LAYER),
    lookups=(EMBEDDING, WeightSpec("positions", "positions> >stream", Role.LOOKUP)),
    embed=embed,
    longest=lambda config: config.positions,
)
