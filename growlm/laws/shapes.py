"""The shape of a decoder with so many parameters, in the proportions of Llama."""

import math
from dataclasses import asdict, dataclass, replace

from growlm.errors import InputError

CLOSE = 0.2  # largest relative distance from the parameters that were asked for


@dataclass(frozen=True)
class Shape:
    """The sizes of an untied Llama-like decoder, by the names of growlm.ModelConfig, which needs JAX."""

    layers: int
    embed: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int

    @property
    def block_params(self) -> int:
        """The parameters of all blocks: attention, SwiGLU and two norms each."""
        attention = 2 * (self.heads + self.kv_heads) * self.head_dim * self.embed
        return self.layers * (attention + 3 * self.embed * self.mlp + 2 * self.embed)

    @property
    def params(self) -> int:
        """All parameters N: blocks, embedding, head and the last norm."""
        return self.block_params + 2 * self.vocab * self.embed + self.embed

    @property
    def matmul_params(self) -> int:
        """Parameters that take part in matrix products: all but the embedding and the norms."""
        return self.params - self.vocab * self.embed - (2 * self.layers + 1) * self.embed

    def shallower(self, factor: int) -> "Shape":
        """The shape with `factor` times fewer layers, which G_stack grows to this one."""
        return replace(self, layers=self.layers // factor)

    def sizes(self) -> dict[str, int]:
        """All sizes by name."""
        return asdict(self)


def shape_for(params: float, factor: int, vocab: int) -> Shape:
    """The shape nearest to `params` parameters whose layers are a multiple of the growth factor.

    Proportions: heads of 128 (64 below 1.5B parameters, 32 below 20M), as many for keys and values as for queries below
    30B parameters and 8 above, SwiGLU of 8/3 the width, and width over layers as in Llama 2 7B and 13B, 128, less for
    small models. Width and depth are picked together, N within 20 % and
    as near as the proportions allow; head counts are those that meshes divide.

    Source: Touvron et al. 2023, arXiv 2302.13971 and 2307.09288; that loss depends weakly on these proportions: Kaplan
    et al. 2020, arXiv 2001.08361, section 3.1. Range: 100 thousand to a trillion parameters.

    Args:
        params: all parameters N.
        factor: how many times more layers it has than its base, which has at least 2.
        vocab: tokens of the vocabulary.

    Raises:
        InputError: no such shape has about so many parameters.
    """
    ratio = 128 * min(1.0, (params / 7e9) ** 0.25)
    head_dim = 128 if params >= 1.5e9 else 64 if params >= 2e7 else 32
    shapes = (
        _shape(layers, heads, head_dim, params, vocab)
        for layers in range(2 * factor, max(200, 2 * factor) + 1, factor)
        for heads in range(1, 257)
        if heads % _unit(heads) == 0
    )
    close = [shape for shape in shapes if abs(shape.params / params - 1) <= CLOSE]
    if not close:
        smallest = _shape(2 * factor, 1, 32, params, vocab).params
        raise InputError(
            f"no shape has about {params:.3g} parameters with {vocab} tokens and at least {2 * factor} layers: "
            f"take a smaller --vocab (256 for bytes), or from about {smallest:.2g} parameters on"
        )
    return min(close, key=lambda shape: _distance(shape, params, ratio))


def _shape(layers: int, heads: int, head_dim: int, params: float, vocab: int) -> Shape:
    embed = heads * head_dim
    step = 256 if embed >= 1024 else 16
    mlp = math.ceil(8 * embed / 3 / step) * step
    shared = params >= 3e10 and heads % 8 == 0
    return Shape(layers, embed, heads, 8 if shared else heads, head_dim, mlp, vocab)


def _unit(heads: int) -> int:
    """The number that head counts of this order are multiples of."""
    return 1 if heads <= 4 else 2 if heads <= 16 else 4 if heads <= 32 else 8


def _distance(shape: Shape, params: float, ratio: float) -> float:
    """Distance of a shape from the size and, with less weight, from the proportions."""
    return 3 * abs(math.log(shape.params / params)) + abs(math.log(shape.embed / shape.layers / ratio))
