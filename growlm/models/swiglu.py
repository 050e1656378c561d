"""The gated MLP: SwiGLU, as in Llama, and its relatives (arXiv 2002.05202)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from flax import linen as nn

from growlm.models.architecture import Branch, DecoderConfig, no_memory
from growlm.models.axes import WeightSpec
from growlm.models.layers import Context, dense, weight


class GatedMlp(nn.Module):
    """down(activation(gate x) * up x). The activation must be elementwise."""

    config: DecoderConfig
    dtype: Any
    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x_ND, context: Context):
        """[B x T, D] -> ([B x T, D], {})."""
        gate_NF = dense(x_ND, weight(self, "gate"))
        up_NF = dense(x_ND, weight(self, "up"))
        return dense(self.activation(gate_NF) * up_NF, weight(self, "down")), {}


def gated_branch(activation: Callable[[jax.Array], jax.Array], *, reads: str = "embed", writes: str = "") -> Branch:
    """The gated MLP as a branch.

    Args:
      activation: of the gate, elementwise.
      reads, writes: as in `Branch`.
    """
    weights = (
        WeightSpec("gate", f"{reads}> >mlp"),
        WeightSpec("up", f"{reads}> >mlp"),
        WeightSpec("down", f"mlp> >{writes or 'stream'}"),
    )
    module = partial(GatedMlp, activation=activation)
    return Branch("mlp", module, weights, reads=reads, writes=writes, memory=no_memory)


SWIGLU = gated_branch(nn.silu)
