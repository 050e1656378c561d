"""The plain MLP: two matrices with an elementwise nonlinearity between them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from flax import linen as nn

from growlm.models.architecture import Branch, DecoderConfig, no_memory
from growlm.models.axes import Role, WeightSpec
from growlm.models.layers import Context, biased, dense, weight


class Mlp(nn.Module):
    """down(activation(up x)), with biases if they are declared. The activation must be elementwise."""

    config: DecoderConfig
    dtype: Any
    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x_ND, context: Context):
        """[B x T, D] -> ([B x T, D], {})."""
        h_NF = self._dense(x_ND, "up")
        return self._dense(self.activation(h_NF), "down"), {}

    def _dense(self, x, name: str):
        return biased(self, f"{name}_bias", dense(x, weight(self, name)))


def mlp_branch(activation: Callable[[jax.Array], jax.Array], biases: bool) -> Branch:
    """The MLP as a branch, with or without both biases."""
    weights = [WeightSpec("up", "embed> >mlp"), WeightSpec("down", "mlp> >stream")]
    if biases:
        weights += [WeightSpec("up_bias", ">mlp", Role.BIAS), WeightSpec("down_bias", ">stream", Role.BIAS)]
    return Branch("mlp", partial(Mlp, activation=activation), tuple(weights), memory=no_memory)
