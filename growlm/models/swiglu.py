"""The gated MLP of Llama: SwiGLU (arXiv 2002.05202)."""

from typing import Any

from flax import linen as nn

from growlm.models.axes import Branch, DecoderConfig, WeightSpec
from growlm.models.layers import Context, dense, weight


class SwiGlu(nn.Module):
    """down(silu(gate x) * up x)."""

    config: DecoderConfig
    dtype: Any

    @nn.compact
    def __call__(self, x_ND, context: Context):
        """[B x T, D] -> ([B x T, D], {})."""
        gate_NF = dense(x_ND, weight(self, "gate"))
        up_NF = dense(x_ND, weight(self, "up"))
        return dense(nn.silu(gate_NF) * up_NF, weight(self, "down")), {}


SWIGLU = Branch(
    "mlp",
    SwiGlu,
    (
        WeightSpec("gate", "embed> >mlp"),
        WeightSpec("up", "embed> >mlp"),
        WeightSpec("down", "mlp> >stream"),
    ),
)
