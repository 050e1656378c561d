"""OLMoE: a mixture in every layer, with RMSNorms over all query heads and over all key heads (arXiv 2409.02060)."""

import dataclasses
from typing import Any, ClassVar

from growlm.errors import must_be
from growlm.models.attention import RopeScaling, attention_branch, rotary_table
from growlm.models.axes import Architecture, DecoderConfig, Norm, NormKind, Role, WeightSpec, head
from growlm.models.llama import AXES, FIXED, Defaults, check_heads
from growlm.models.mixtral import COMPUTED, EXPERT_TENSORS, EXPERTS, Mixture, read_mixture, write_mixture
from growlm.models.moe import ROUTED, check_mixture
from growlm.models.stored import Family, Settings


@dataclasses.dataclass(frozen=True)
class OlmoeConfig(DecoderConfig):
    """The shape of an OLMoE-like decoder. Raises InputError, a ValueError, for values out of range.

    Attributes:
      layers, embed, heads, kv_heads, head_dim, mlp, vocab: sizes, as in `ModelConfig`; mlp is the width of one expert.
      experts, experts_per_token, normalised, router_aux_loss: as in `MixtralConfig`.
      tie_embeddings: the embedding is the head.
      norm_eps, rope_theta, rope_scaling: of RMSNorm and of rotary frequencies.
    """

    layers: int
    embed: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    experts: int = 64
    experts_per_token: int = 8
    normalised: bool = False
    router_aux_loss: float = 0.01
    tie_embeddings: bool = False
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None

    architecture: ClassVar[Architecture]

    def __post_init__(self):
        self._check_integers("layers", least=0)
        self._check_integers("embed", "heads", "kv_heads", "head_dim", "mlp", "vocab")
        self._check_numbers("norm_eps", "rope_theta")
        self._check_flags("tie_embeddings")
        if self.rope_scaling is not None and not isinstance(self.rope_scaling, RopeScaling):
            raise must_be("model.rope_scaling", "None or a RopeScaling", self.rope_scaling)
        check_heads(self)
        check_mixture(self)


_ATTENTION = attention_branch(
    (
        WeightSpec("query", "embed> >heads >head_dim"),
        WeightSpec("key", "embed> >key_heads >head_dim"),
        WeightSpec("value", "embed> >value_heads >head_dim"),
        WeightSpec("query_norm", "heads>heads head_dim>head_dim", Role.GAIN),
        WeightSpec("key_norm", "key_heads>key_heads head_dim>head_dim", Role.GAIN),
        WeightSpec("out", "heads> head_dim> >stream"),
    ),
    rotary=lambda config, length: rotary_table(length, config.head_dim, config.rope_theta, config.rope_scaling),
    means=("heads", "key_heads"),
)

_MIXTURE = Mixture(
    "olmoe",
    "OlmoeForCausalLM",
    {"experts": (("num_experts", "num_local_experts"), 64), "experts_per_token": (("num_experts_per_tok",), 8)},
    aux=0.01,
    normalised=False,
    defaults=Defaults(norm_eps=1e-5),
    own=lambda model: {},
    fixed={key: value for key, value in FIXED.items() if key != "num_experts"} | {"clip_qkv": None},
)


def _read(settings: Settings) -> OlmoeConfig:
    fields = read_mixture(_MIXTURE, settings)
    del fields["sliding_window"]
    return OlmoeConfig(**fields)


def _write(model: OlmoeConfig, settings: Settings) -> dict[str, Any]:
    if model.heads * model.head_dim != model.embed:
        rule = f"heads x head_dim = {model.heads} x {model.head_dim} for olmoe in transformers"
        raise must_be("model.embed", rule, model.embed)
    return write_mixture(_MIXTURE, model, settings)


FAMILY = Family(
    "olmoe",
    "OlmoeForCausalLM",
    tuple(row for row in EXPERT_TENSORS if not row.name.endswith(".bias")),
    read=_read,
    write=_write,
    holds=lambda model: True,
    computed=COMPUTED,
)

OLMOE = Architecture(
    name="olmoe",
    config=OlmoeConfig,
    axes=(*AXES, EXPERTS),
    period=((_ATTENTION,), (ROUTED,)),
    norm=Norm(NormKind.RMS),
    head=head(present=lambda config: not config.tie_embeddings),
    shared=("tie_embeddings", "rope_theta", "rope_scaling", "normalised"),
    free=("norm_eps", "experts_per_token", "router_aux_loss"),
    families={"olmoe": FAMILY},
)
