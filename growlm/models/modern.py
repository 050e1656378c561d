"""The decoder of today's small trainers: norms without gains, normed queries and keys, squared ReLU, capped logits.

What nanochat (github.com/karpathy/nanochat) and modded-nanogpt (github.com/KellerJordan/modded-nanogpt) start from,
without the parts that are theirs alone, such as value embeddings and skips from the first layer.
"""

import dataclasses
from typing import Any, ClassVar

import jax

from growlm.errors import check_positive
from growlm.models.architecture import Architecture, Norm, NormKind, head, look_up
from growlm.models.attention import attention_branch, check_groups, rotary_table
from growlm.models.axes import Axis, Kind, WeightSpec, multiply
from growlm.models.layers import rms_norm
from growlm.models.llama import EXAMPLE, HEAD_AXES, STREAM_AXES, projections
from growlm.models.mlp import mlp_branch
from growlm.models.parametrization import FIELDS, Parametrised, kernel_scale, logit_scale, query_scale, residual_scale


@dataclasses.dataclass(frozen=True)
class ModernConfig(Parametrised):
    """The shape of a modern small decoder. Raises InputError for values out of range.

    RMSNorms have no gains (as OLMo's LayerNorms, arXiv 2402.00838); one follows the embedding, and queries and keys are
    normed too, after rotary positions (2010.04245, 2302.05442). The MLP is down(relu(up x)^2) (Primer, 2109.08668).
    Nothing has biases, and the head is untied.

    Attributes:
      layers, embed, heads, kv_heads, head_dim, mlp, vocab: as in `ModelConfig`; mlp is 4 embed in nanochat.
      residual_multiplier: on what a branch adds (the Power scheduler's recipe has 0.22 to 0.28, arXiv 2408.13359).
      logit_cap: c; logits are c tanh(logits / c) (Gemma 2, 2408.00118; nanochat has 15). None: they are as they come.
      zero_init: residual writers and head start at zero, so that the first loss is log(vocab) (Fixup, 1901.09321;
        nanochat). False: they start as other matrices do, see `growlm.init`.
      base_layers, depth_alpha, base_widths: see `Parametrised`.
      norm_eps, rope_theta: of norms (float32's epsilon, PyTorch's default) and of rotary frequencies.
    """

    layers: int
    embed: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    residual_multiplier: float = 1.0
    logit_cap: float | None = 15.0
    zero_init: bool = True
    norm_eps: float = 1.1920929e-07
    rope_theta: float = 10000.0

    architecture: ClassVar[Architecture]

    def __post_init__(self):
        self._check_integers("layers", least=0)
        self._check_integers("embed", "heads", "kv_heads", "head_dim", "mlp", "vocab")
        self._check_numbers("residual_multiplier", "norm_eps", "rope_theta")
        self._check_flags("zero_init")
        self._check_base()
        check_groups(self)
        if self.logit_cap is not None:
            check_positive("model.logit_cap", self.logit_cap)


def _zero(config: Any) -> bool:
    return config.zero_init


def _embed(weights: Any, config: Any, tokens_BT: jax.Array, position_BT: Any = None) -> jax.Array:
    return rms_norm(look_up(weights, config, tokens_BT), config.norm_eps)


def _scale(config: Any) -> float:
    return config.residual_multiplier * multiply(residual_scale, config)


def _relu2(x: jax.Array) -> jax.Array:
    return jax.nn.relu(x) ** 2


_ATTENTION = attention_branch(
    (*projections(scores=query_scale)[:3], WeightSpec("out", "heads> head_dim> >stream", zero=_zero)),
    rotary=lambda config, length: rotary_table(length, config.head_dim, config.rope_theta),
    normed=True,
    score_scale=kernel_scale,
    scale=_scale,
)
_MLP = dataclasses.replace(
    mlp_branch(_relu2, biases=False),
    weights=(WeightSpec("up", "embed> >mlp"), WeightSpec("down", "mlp> >stream", zero=_zero)),
    scale=_scale,
)

MODERN = Architecture(
    name="modern",
    config=ModernConfig,
    axes=(
        Axis("layers", Kind.STACK),
        *STREAM_AXES,
        *(axis for axis in HEAD_AXES if axis.kind is Kind.HEADS),
        Axis("head_dim", Kind.FIXED),  # normed as a whole
        # The slope of the squared ReLU is zero at zero: padded with zeros in what writes it, a unit would stay zero.
        Axis("mlp", Kind.INNER, mesh="tensor", zero_reads=True),
        Axis("vocab", Kind.VOCAB, mesh="tensor"),
    ),
    period=((_ATTENTION,), (_MLP,)),
    norm=Norm(NormKind.RMS, scale=False),
    embed=_embed,
    head=dataclasses.replace(head(), zero=_zero),
    logit_scale=logit_scale,
    logit_cap=lambda config: config.logit_cap,
    keeps_scale=True,
    shared=("logit_cap", "rope_theta"),
    free=("norm_eps", "residual_multiplier", "zero_init", *FIELDS),
    example=EXAMPLE | {"kv_heads": 2},
)
