"""OLMo (arXiv 2402.00838): Llama's decoder with LayerNorms that have neither gain nor bias."""

import dataclasses
from typing import Any, ClassVar

from growlm.errors import must_be
from growlm.models.architecture import HEAD_UNLESS_TIED, Architecture, Norm, NormKind
from growlm.models.attention import RopeScaling, attention_branch
from growlm.models.llama import (
    AXES,
    EXAMPLE,
    FIXED,
    TENSORS,
    Defaults,
    GroupedConfig,
    check_scaling,
    new_settings,
    projections,
    read_shape,
    rotary,
    write_fields,
)
from growlm.models.stored import Family, Settings, check_fixed
from growlm.models.swiglu import SWIGLU


@dataclasses.dataclass(frozen=True)
class OlmoConfig(GroupedConfig):
    """The shape of an OLMo. `rope_scaling` is of rotary frequencies."""

    rope_scaling: RopeScaling | None = None

    architecture: ClassVar[Architecture]

    def __post_init__(self):
        super().__post_init__()
        check_scaling(self.rope_scaling)


_EPS = 1e-5  # in transformers' code, and in no config.json
_DEFAULTS = Defaults(norm_eps=_EPS)


def _read(settings: Settings) -> OlmoConfig:
    check_fixed("olmo", settings, FIXED | {"clip_qkv": None})
    return OlmoConfig(**read_shape("olmo", _DEFAULTS, {**settings, "rms_norm_eps": _EPS}))


def _write(model: OlmoConfig, settings: Settings) -> dict[str, Any]:
    if model.norm_eps != _EPS:
        raise must_be("model.norm_eps", f"{_EPS:g} for olmo in transformers", model.norm_eps)
    if "model_type" not in settings:
        settings = {**new_settings("olmo", FAMILY.architecture, model), **settings}
    return write_fields(model, _DEFAULTS, settings)


FAMILY = Family("olmo", "OlmoForCausalLM", TENSORS, read=_read, write=_write, holds=lambda model: True)

OLMO = Architecture(
    name="olmo",
    config=OlmoConfig,
    axes=AXES,
    period=((attention_branch(projections(), rotary=rotary),), (SWIGLU,)),
    norm=Norm(NormKind.LAYER, scale=False),
    head=HEAD_UNLESS_TIED,
    shared=("tie_embeddings", "rope_theta", "rope_scaling"),
    families={"olmo": FAMILY},
    example=EXAMPLE | {"kv_heads": 2},
)
