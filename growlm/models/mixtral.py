"""Llama's decoder with a mixture of SwiGLUs in every layer: Mixtral (arXiv 2401.04088), Qwen2-MoE, Qwen3-MoE."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

from growlm.errors import must_be
from growlm.models.architecture import HEAD_UNLESS_TIED, Architecture, DecoderConfig, Norm, NormKind
from growlm.models.axes import Axis, Kind
from growlm.models.lift import Lift, Origin
from growlm.models.llama import (
    ATTENTION,
    AXES,
    DECODER_TENSORS,
    EXAMPLE,
    FIXED,
    LLAMA,
    SCALED_BY,
    SIZES,
    Defaults,
    ModelConfig,
    has_factors,
    new_settings,
    no_window,
    norm_scale,
    read_fields,
    write_fields,
)
from growlm.models.moe import MOE, SHARED, check_mixture
from growlm.models.parametrization import logit_scale, residual_scale
from growlm.models.stored import Family, Settings, check_fixed, integer, stored, with_sizes
from growlm.models.windows import FULL


@dataclasses.dataclass(frozen=True)
class MixtralConfig(ModelConfig):
    """The shape of a Mixtral-like decoder: Llama's, with experts; mlp is the width of one expert.

    Attributes:
      experts: in every layer.
      experts_per_token: the number chosen for a token, at most experts.
      normalised: the router weights of a token's experts are divided by their sum.
      router_aux_loss: the coefficient of the load-balancing loss in training.
      shared_mlp: the width of an expert beside these that every token gets; 0 for none.
      shared_router: a sigmoid of its own weighs the shared expert.
    """

    experts: int = 8
    experts_per_token: int = 2
    router_aux_loss: float = 0.001
    normalised: bool = True
    shared_mlp: int = 0
    shared_router: bool = False

    architecture: ClassVar[Architecture]
    newer: ClassVar[tuple[str, ...]] = (*ModelConfig.newer, "normalised", "shared_mlp", "shared_router")

    def __post_init__(self):
        super().__post_init__()
        check_mixture(self)
        self._check_integers("shared_mlp", least=0)
        self._check_flags("shared_router")
        if self.shared_router and not self.shared_mlp:
            raise must_be("model.shared_router", "False without a shared expert", True)


MIXTURE_TENSORS = (
    *(row for row in DECODER_TENSORS if row.paths != ("blocks/mlp_norm/scale",)),
    stored("model.layers.{layers}.post_attention_layernorm.weight", "blocks/moe_norm/scale"),
)
_MIXTRAL_TENSORS = (
    *MIXTURE_TENSORS,
    stored("model.layers.{layers}.block_sparse_moe.gate.weight", "blocks/moe/router"),
    stored("model.layers.{layers}.block_sparse_moe.experts.{experts}.w1.weight", "blocks/moe/gate"),
    stored("model.layers.{layers}.block_sparse_moe.experts.{experts}.w3.weight", "blocks/moe/up"),
    stored("model.layers.{layers}.block_sparse_moe.experts.{experts}.w2.weight", "blocks/moe/down"),
)
EXPERT_TENSORS = (
    *MIXTURE_TENSORS,
    stored("model.layers.{layers}.mlp.gate.weight", "blocks/moe/router"),
    *(
        stored(f"model.layers.{{layers}}.mlp.experts.{{experts}}.{name}_proj.weight", f"blocks/moe/{name}")
        for name in ("gate", "up", "down")
    ),
)
_SHARED_TENSORS = (
    *EXPERT_TENSORS,
    *(
        stored(f"model.layers.{{layers}}.mlp.shared_expert.{name}_proj.weight", f"blocks/moe/shared_{name}")
        for name in ("gate", "up", "down")
    ),
    stored("model.layers.{layers}.mlp.shared_expert_gate.weight", "blocks/moe/shared_router"),
)
COMPUTED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")  # in old files


@dataclasses.dataclass(frozen=True)
class Mixture:
    """What a family of transformers says of its experts.

    Attributes:
      name, architecture: its model_type and class.
      sizes: by field, (keys in config.json, of which a new one gets the first; default).
      aux: the default of router_aux_loss_coef.
      normalised: the default of norm_topk_prob; None where there is no such key, and weights always sum to 1.
      defaults: of all else.
      own: what a new config.json has beside that, from a config.
      fixed: values of keys other than which make a model that is not built here.
    """

    name: str
    architecture: str
    sizes: Mapping[str, tuple[tuple[str, ...], int]]
    aux: float
    normalised: bool | None
    defaults: Defaults
    own: Callable[[Any], dict[str, Any]]
    fixed: Mapping[str, Any]


def read_mixture(mixture: Mixture, settings: Settings) -> dict[str, Any]:
    """The fields of a config in a config.json. Raises InputError."""
    check_fixed(mixture.name, settings, mixture.fixed)
    if dense := settings.get("mlp_only_layers"):
        raise must_be(f"config.json: mlp_only_layers of {mixture.name}", "empty", dense)
    fields = read_fields(mixture.name, mixture.defaults, settings)
    for field, (keys, default) in mixture.sizes.items():
        key = next((key for key in keys if key in settings), keys[0])
        fields[field] = integer(key, settings.get(key, default))
    fields["router_aux_loss"] = settings.get("router_aux_loss_coef", mixture.aux)
    if mixture.normalised is not None:
        fields["normalised"] = settings.get("norm_topk_prob", mixture.normalised)
    return fields


def write_mixture(mixture: Mixture, model: Any, settings: Settings) -> dict[str, Any]:
    """A config.json with what a model is written into it."""
    if "model_type" not in settings:
        sizes = {keys[0]: default for keys, default in mixture.sizes.values()}  # written out even at their defaults
        new = new_settings(mixture.name, mixture.architecture, model) | mixture.own(model) | sizes
        settings = {**new, **settings}
    said: dict[str, tuple[Any, Any]] = {"router_aux_loss_coef": (model.router_aux_loss, mixture.aux)}
    for field, (keys, default) in mixture.sizes.items():
        held = [key for key in keys if key in settings] or keys[:1]
        said |= {key: (getattr(model, field), default) for key in held}
    if mixture.normalised is not None:
        said["norm_topk_prob"] = model.normalised, mixture.normalised
    settings = with_sizes(write_fields(model, mixture.defaults, settings), said)
    if "layer_types" in settings:
        settings["layer_types"] = [FULL] * model.layers
    return settings


def without_mlp(defaults: Defaults) -> Defaults:
    """The defaults of a family in which intermediate_size is not the width of an expert."""
    return dataclasses.replace(defaults, keys={field: key for field, key in SIZES.items() if field != "mlp"})


def _qwen3_window(settings: Settings, layers: int) -> int | None:
    return settings.get("sliding_window", 4096) if settings.get("use_sliding_window") is True else None


_SPARSE = {key: value for key, value in FIXED.items() if key != "num_experts"} | {"decoder_sparse_step": 1}
_MIXTURES = {
    "mixtral": Mixture(
        "mixtral",
        "MixtralForCausalLM",
        {"experts": (("num_local_experts",), 8), "experts_per_token": (("num_experts_per_tok",), 2)},
        aux=0.001,
        normalised=None,
        defaults=Defaults(
            norm_eps=1e-5, kv_heads=8, rope_theta=1e6, window=lambda settings, layers: settings.get("sliding_window")
        ),
        own=lambda model: {"sliding_window": model.sliding_window},
        fixed=FIXED | {"router_jitter_noise": 0.0},
    ),
    "qwen3_moe": Mixture(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        {
            "experts": (("num_experts", "num_local_experts"), 128),
            "experts_per_token": (("num_experts_per_tok",), 8),
            "mlp": (("moe_intermediate_size",), 768),
        },
        aux=0.001,
        normalised=False,
        defaults=without_mlp(Defaults(kv_heads=4, window=_qwen3_window)),
        own=lambda model: {
            "use_sliding_window": model.sliding_window is not None,
            "sliding_window": model.sliding_window,
        },
        fixed=_SPARSE,
    ),
    "qwen2_moe": Mixture(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        {
            "experts": (("num_experts",), 60),
            "experts_per_token": (("num_experts_per_tok",), 4),
            "mlp": (("moe_intermediate_size",), 1408),
            "shared_mlp": (("shared_expert_intermediate_size",), 5632),
        },
        aux=0.001,
        normalised=False,
        defaults=without_mlp(Defaults(kv_heads=16, window=no_window)),
        own=lambda model: {"use_sliding_window": False},
        fixed=_SPARSE | {"use_sliding_window": False, "qkv_bias": True},
    ),
}

# model_type -> (qkv_bias, qk_norm, shared_router).
_VARIANTS = {"mixtral": (False, False, False), "qwen3_moe": (False, True, False), "qwen2_moe": (True, False, True)}


def _read(name: str, settings: Settings) -> MixtralConfig:
    bias, norm, router = _VARIANTS[name]
    fields = read_mixture(_MIXTURES[name], settings)
    return MixtralConfig(**fields, qkv_bias=bias, qk_norm=norm, shared_router=router)


def _holds(name: str, model: MixtralConfig) -> bool:
    if has_factors(model):
        return False
    has = model.qkv_bias, model.qk_norm, model.shared_router
    shared, windowed = model.shared_mlp > 0, model.sliding_window is not None
    if name == "mixtral":
        return has == _VARIANTS[name] and model.normalised and not shared
    return has == _VARIANTS[name] and (not windowed and shared if name == "qwen2_moe" else not shared)


FAMILIES = {
    name: Family(
        name,
        _MIXTURES[name].architecture,
        tensors,
        read=partial(_read, name),
        write=partial(write_mixture, _MIXTURES[name]),
        holds=partial(_holds, name),
        computed=COMPUTED,
    )
    for name, tensors in {
        "mixtral": _MIXTRAL_TENSORS,
        "qwen3_moe": EXPERT_TENSORS,
        "qwen2_moe": _SHARED_TENSORS,
    }.items()
}

EXPERTS = Axis("experts", Kind.EXPERTS, chosen="experts_per_token", normalised="normalised")
MIXTRAL = Architecture(
    name="mixtral",
    config=MixtralConfig,
    axes=(*AXES, EXPERTS, *SHARED),
    period=((ATTENTION,), (dataclasses.replace(MOE, scale=residual_scale, norm_scale=norm_scale),)),
    norm=Norm(NormKind.RMS),
    head=HEAD_UNLESS_TIED,
    logit_scale=logit_scale,
    shared=(*LLAMA.shared, "normalised"),
    free=("norm_eps", *SCALED_BY, "experts_per_token", "router_aux_loss"),
    families=FAMILIES,
    example=EXAMPLE | {"kv_heads": 2, "experts": 4, "experts_per_token": 2},
)


def _dense(source: DecoderConfig, target: DecoderConfig) -> bool:
    return source.architecture is LLAMA and target.architecture is MIXTRAL


def _of_router(target: MixtralConfig) -> dict[str, Any]:
    return {"normalised": target.normalised, "router_aux_loss": target.router_aux_loss}


def _to_experts(source: DecoderConfig, target: DecoderConfig) -> MixtralConfig | None:
    if not _dense(source, target):
        return None
    assert isinstance(source, ModelConfig) and isinstance(target, MixtralConfig)
    fields = {field.name: getattr(source, field.name) for field in dataclasses.fields(source)}
    return None if target.shared_mlp else MixtralConfig(**fields, experts=1, experts_per_token=1, **_of_router(target))


def _to_shared(router: bool, source: DecoderConfig, target: DecoderConfig) -> MixtralConfig | None:
    if not _dense(source, target):
        return None
    assert isinstance(source, ModelConfig) and isinstance(target, MixtralConfig)
    if not target.shared_mlp or target.shared_router is not router:
        return None
    fields = {field.name: getattr(source, field.name) for field in dataclasses.fields(source)}
    experts = {name: getattr(target, name) for name in ("mlp", "experts", "experts_per_token", "shared_router")}
    return MixtralConfig(**fields | experts, shared_mlp=source.mlp, **_of_router(target))


def _with_shared(source: DecoderConfig, target: DecoderConfig) -> MixtralConfig | None:
    if source.architecture is not MIXTRAL or target.architecture is not MIXTRAL:
        return None
    assert isinstance(source, MixtralConfig) and isinstance(target, MixtralConfig)
    if source.shared_mlp or not target.shared_mlp:
        return None
    return dataclasses.replace(source, shared_mlp=target.shared_mlp, shared_router=target.shared_router)


_NORM = {"blocks/moe_norm/scale": Origin("blocks/mlp_norm/scale", (0, 1))}
_PARTS = ("gate", "up", "down")


def _writing_zeros(prefix: str) -> dict[str, Origin]:
    """Experts that add nothing yet: what they write into the stream is zero, and what they read is drawn."""
    return {f"blocks/moe/{prefix}{part}": Origin(None, drawn=part != "down") for part in _PARTS}


DENSE_TO_EXPERTS = Lift(
    "experts",
    "each MLP becomes a mixture of one expert",
    _to_experts,
    _NORM
    | {"blocks/moe/router": Origin(None)}
    | {f"blocks/moe/{part}": Origin(f"blocks/mlp/{part}", (0, None, 1, 2)) for part in _PARTS},
)
_SHARED_MLP = {f"blocks/moe/shared_{part}": Origin(f"blocks/mlp/{part}", (0, 1, 2)) for part in _PARTS}
_BESIDE_SHARED = _NORM | {"blocks/moe/router": Origin(None, drawn=True)} | _writing_zeros("")
DENSE_TO_SHARED = Lift(
    "shared",
    "each MLP becomes the shared expert of a mixture whose own experts add nothing yet",
    partial(_to_shared, False),
    _BESIDE_SHARED | _SHARED_MLP,
)
# A sigmoid of zeros is a half.
DENSE_TO_WEIGHED = Lift(
    "weighed",
    "each MLP becomes the shared expert, twice as large and weighed by a half, of a mixture whose own experts add "
    "nothing yet",
    partial(_to_shared, True),
    _BESIDE_SHARED
    | _SHARED_MLP
    | {
        "blocks/moe/shared_router": Origin(None),
        "blocks/moe/shared_down": Origin("blocks/mlp/down", (0, 1, 2), factor=2.0),
    },
)
WITH_SHARED = Lift(
    "beside",
    "each mixture gets a shared expert that adds nothing yet",
    _with_shared,
    {"blocks/moe/shared_router": Origin(None)} | _writing_zeros("shared_"),
)
