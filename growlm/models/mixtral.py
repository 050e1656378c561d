"""Mixtral: Llama's decoder with a mixture of SwiGLUs in every layer (arXiv 2401.04088)."""

import dataclasses
import re
from typing import Any, ClassVar

from growlm.errors import must_be
from growlm.models.axes import Architecture, Axis, DecoderConfig, Kind, Norm, NormKind, head
from growlm.models.lift import Lift, Origin
from growlm.models.llama import (
    ATTENTION,
    AXES,
    DECODER_TENSORS,
    DEPTH_FIELDS,
    EXAMPLE,
    FIXED,
    LLAMA,
    Defaults,
    ModelConfig,
    new_settings,
    norm_scale,
    read_fields,
    residual_scale,
    scales_by_depth,
    write_fields,
)
from growlm.models.moe import MOE
from growlm.models.stored import Family, Settings, check_fixed, integer, stored, with_sizes


@dataclasses.dataclass(frozen=True)
class MixtralConfig(ModelConfig):
    """The shape of a Mixtral-like decoder: Llama's, with experts; mlp is the width of one expert.

    Attributes:
      experts: in every layer.
      experts_per_token: the number chosen for a token, at most experts; their router weights are normalised to sum 1.
      router_aux_loss: the coefficient of the load-balancing loss in training.
    """

    experts: int = 8
    experts_per_token: int = 2
    router_aux_loss: float = 0.001

    architecture: ClassVar[Architecture]

    def __post_init__(self):
        super().__post_init__()
        self._check_integers("experts", "experts_per_token")
        if self.experts_per_token > self.experts:
            raise must_be("model.experts_per_token", f"<= model.experts, {self.experts}", self.experts_per_token)
        if self.router_aux_loss != 0:
            self._check_numbers("router_aux_loss")


_TENSORS = (
    *(row for row in DECODER_TENSORS if row.paths != ("blocks/mlp_norm/scale",)),
    stored("model.layers.{layers}.post_attention_layernorm.weight", "blocks/moe_norm/scale"),
    stored("model.layers.{layers}.block_sparse_moe.gate.weight", "blocks/moe/router"),
    stored("model.layers.{layers}.block_sparse_moe.experts.{experts}.w1.weight", "blocks/moe/gate"),
    stored("model.layers.{layers}.block_sparse_moe.experts.{experts}.w3.weight", "blocks/moe/up"),
    stored("model.layers.{layers}.block_sparse_moe.experts.{experts}.w2.weight", "blocks/moe/down"),
)
_DEFAULTS = Defaults(
    norm_eps=1e-5, kv_heads=8, rope_theta=1e6, window=lambda settings, layers: settings.get("sliding_window")
)
_EXPERTS = {"experts": ("num_local_experts", 8), "experts_per_token": ("num_experts_per_tok", 2)}
_AUX = ("router_aux_loss_coef", 0.001)


def _read(settings: Settings) -> MixtralConfig:
    check_fixed("mixtral", settings, FIXED | {"router_jitter_noise": 0.0})
    experts = {field: integer(key, settings.get(key, default)) for field, (key, default) in _EXPERTS.items()}
    fields = read_fields("mixtral", _DEFAULTS, settings)
    fields |= experts | {"router_aux_loss": settings.get(*_AUX)}
    return MixtralConfig(**fields)


def _write(model: MixtralConfig, settings: Settings) -> dict[str, Any]:
    new = new_settings("mixtral", FAMILY.architecture, model) | {"sliding_window": model.sliding_window}
    new |= dict(_EXPERTS.values())  # written out even at their defaults
    settings = settings if "model_type" in settings else {**new, **settings}
    said: dict[str, tuple[Any, Any]] = {
        key: (getattr(model, field), default) for field, (key, default) in _EXPERTS.items()
    }
    said[_AUX[0]] = model.router_aux_loss, _AUX[1]
    return with_sizes(write_fields(model, _DEFAULTS, settings), said)


FAMILY = Family(
    "mixtral",
    "MixtralForCausalLM",
    _TENSORS,
    read=_read,
    write=_write,
    holds=lambda model: not (model.qkv_bias or model.qk_norm or scales_by_depth(model)),
    computed=re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"),
)

MIXTRAL = Architecture(
    name="mixtral",
    config=MixtralConfig,
    axes=(*AXES, Axis("experts", Kind.EXPERTS, chosen="experts_per_token", normalised=True)),
    period=((ATTENTION,), (dataclasses.replace(MOE, scale=residual_scale, norm_scale=norm_scale),)),
    norm=Norm(NormKind.RMS),
    head=head(present=lambda config: not config.tie_embeddings),
    shared=LLAMA.shared,
    free=("norm_eps", *DEPTH_FIELDS, "experts_per_token", "router_aux_loss"),
    families={"mixtral": FAMILY},
    example=EXAMPLE | {"kv_heads": 2, "experts": 4, "experts_per_token": 2},
)


def _to_experts(source: DecoderConfig, target: DecoderConfig) -> MixtralConfig | None:
    if source.architecture is not LLAMA or target.architecture is not MIXTRAL:
        return None
    assert isinstance(source, ModelConfig) and isinstance(target, MixtralConfig)
    return MixtralConfig(
        **{field.name: getattr(source, field.name) for field in dataclasses.fields(source)},
        experts=1,
        experts_per_token=1,
        router_aux_loss=target.router_aux_loss,
    )


DENSE_TO_EXPERTS = Lift(
    "experts",
    "each MLP becomes a mixture of one expert",
    _to_experts,
    {
        "blocks/moe_norm/scale": Origin("blocks/mlp_norm/scale", (0, 1)),
        "blocks/moe/router": Origin(None),
        "blocks/moe/gate": Origin("blocks/mlp/gate", (0, None, 1, 2)),
        "blocks/moe/up": Origin("blocks/mlp/up", (0, None, 1, 2)),
        "blocks/moe/down": Origin("blocks/mlp/down", (0, None, 1, 2)),
    },
)
