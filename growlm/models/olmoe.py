"""OLMoE: a mixture in every layer, with RMSNorms over all query heads and over all key heads (arXiv 2409.02060)."""

import dataclasses
from typing import Any, ClassVar

from growlm.models.architecture import HEAD_UNLESS_TIED, Architecture, Norm, NormKind
from growlm.models.attention import RopeScaling, attention_branch
from growlm.models.axes import Role, WeightSpec
from growlm.models.llama import AXES, EXAMPLE, FIXED, Defaults, GroupedConfig, check_scaling, projections, rotary
from growlm.models.mixtral import COMPUTED, EXPERT_TENSORS, EXPERTS, Mixture, read_mixture, write_mixture
from growlm.models.moe import ROUTED, check_mixture
from growlm.models.stored import Family, Settings, check_heads


@dataclasses.dataclass(frozen=True)
class OlmoeConfig(GroupedConfig):
    """The shape of an OLMoE-like decoder; mlp is the width of one expert.

    Attributes:
      rope_scaling: of rotary frequencies.
      experts, experts_per_token, normalised, router_aux_loss: as in `MixtralConfig`.
    """

    rope_scaling: RopeScaling | None = None
    experts: int = 64
    experts_per_token: int = 8
    normalised: bool = False
    router_aux_loss: float = 0.01

    architecture: ClassVar[Architecture]

    def __post_init__(self):
        super().__post_init__()
        check_scaling(self.rope_scaling)
        check_mixture(self)


_ATTENTION = attention_branch(
    (
        *projections(),
        WeightSpec("query_norm", "heads>heads head_dim>head_dim", Role.GAIN),
        WeightSpec("key_norm", "key_heads>key_heads head_dim>head_dim", Role.GAIN),
    ),
    rotary=rotary,
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
    check_heads("olmoe", model)
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
    head=HEAD_UNLESS_TIED,
    shared=("tie_embeddings", "rope_theta", "rope_scaling", "normalised"),
    free=("norm_eps", "experts_per_token", "router_aux_loss"),
    families={"olmoe": FAMILY},
    example=EXAMPLE | {"kv_heads": 2, "experts": 4, "experts_per_token": 2},
)
