"""Families of Hugging Face models that are one architecture, and the two ways between config.json and a ModelConfig."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from growlm.errors import InputError
from growlm.weights import ModelConfig, RopeScaling

Settings = Mapping[str, Any]

# Fields of ModelConfig that config.json has by another name.
SIZES = {
    "layers": "num_hidden_layers",
    "embed": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "mlp": "intermediate_size",
    "vocab": "vocab_size",
}

# What a config may say and must not, for the model to be the one that is built here.
_FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "quantization_config": None,
    "partial_rotary_factor": 1.0,
    "num_experts": None,
}

MAX_LAYERS = 100_000  # a damaged number should not be counted to

_SLIDING, _FULL = "sliding_attention", "full_attention"


def _window_of_mistral(settings: Settings, layers: int) -> int | None:
    return settings.get("sliding_window", 4096)


def _window_of_qwen(settings: Settings, layers: int) -> int | None:
    """Qwen's window is on the layers from max_window_layers on; here it is on all or on none."""
    window = settings.get("sliding_window", 4096)
    if settings.get("use_sliding_window", False) is not True or window is None:
        return None
    first = _integer("max_window_layers", settings.get("max_window_layers", 28))
    kinds = settings.get("layer_types")
    if kinds is None:
        kinds = [_SLIDING] * max(layers - first, 0) + [_FULL] * min(layers, first)
    if kinds == [_FULL] * layers:
        return None
    if kinds != [_SLIDING] * layers:
        raise InputError(f"a sliding window on some of the {layers} layers is not supported: allowed is all or none")
    return window


@dataclasses.dataclass(frozen=True)
class Family:
    """One `model_type` of transformers: what it is called there, and in what it differs from Llama.

    head_dim: where config.json says none (None: hidden_size / heads). window: the sliding window that a config means.
    """

    architecture: str
    qkv_bias: bool = False
    qk_norm: bool = False
    head_dim: int | None = None
    norm_eps: float = 1e-6
    kv_heads: int | None = None
    window: Callable[[Settings, int], int | None] = lambda settings, layers: None


# Defaults are those of the configuration classes of transformers, which config.json may leave out.
FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaForCausalLM"),
    "mistral": Family("MistralForCausalLM", kv_heads=8, window=_window_of_mistral),
    "qwen2": Family("Qwen2ForCausalLM", qkv_bias=True, kv_heads=32, window=_window_of_qwen),
    "qwen3": Family("Qwen3ForCausalLM", qk_norm=True, kv_heads=32, head_dim=128, window=_window_of_qwen),
}


def family_of(settings: Settings) -> str:
    """The model_type of a config.json. Raises InputError where it is none of FAMILIES."""
    name = settings.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise InputError(f"model_type {name!r} is not supported: allowed are {', '.join(FAMILIES)}")
    return name


def model_of(settings: Settings) -> ModelConfig:
    """The shape that a config.json describes. Raises InputError: another family, or a variant that is not built."""
    name = family_of(settings)
    family = FAMILIES[name]
    for key, allowed in _FIXED.items():
        if settings.get(key, allowed) != allowed:
            raise InputError(f"{name} with {key} {settings[key]!r} is not supported: allowed is {allowed!r}")
    sizes = {field: settings.get(key) for field, key in SIZES.items()}
    layers, embed, heads = (_integer(SIZES[field], sizes[field]) for field in ("layers", "embed", "heads"))
    if layers > MAX_LAYERS:
        raise InputError(f"config.json: num_hidden_layers is {layers}: allowed are {MAX_LAYERS} at most")
    if sizes["kv_heads"] is None:
        sizes["kv_heads"] = heads if "num_key_value_heads" in settings else family.kv_heads or heads
    if sizes["head_dim"] is None:
        sizes["head_dim"] = family.head_dim if "head_dim" not in settings and family.head_dim else embed // heads
    theta, scaling = _rope(settings, name)
    return ModelConfig(
        **sizes,
        tie_embeddings=settings.get("tie_word_embeddings", False),
        norm_eps=settings.get("rms_norm_eps", family.norm_eps),
        rope_theta=theta,
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        rope_scaling=scaling,
        sliding_window=family.window(settings, layers),
    )


def _integer(key: str, value: Any) -> int:
    least = 0 if key in ("num_hidden_layers", "max_window_layers") else 1
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"config.json: {key} is {value!r}: allowed are integers >= {least}")
    return value


def _rope(settings: Settings, name: str) -> tuple[float, RopeScaling | None]:
    """The base of the rotary frequencies and their scaling, as `rope_parameters` or by the two older keys."""
    said = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    if not isinstance(said, dict):
        raise InputError(f"config.json: the rope's parameters are {said!r}: allowed is an object")
    theta = said.get("rope_theta", settings.get("rope_theta", 10000.0))
    kind = said.get("rope_type", said.get("type", "default"))
    if said.get("partial_rotary_factor", 1.0) != 1.0:
        raise InputError(f"{name} with partial_rotary_factor {said['partial_rotary_factor']!r} is not supported")
    if kind == "default":
        return theta, None
    if kind not in ("linear", "llama3") or "factor" not in said:
        raise InputError(f"{name} with the rope {kind!r} is not supported: allowed are default, linear and llama3")
    if kind == "linear":
        return theta, RopeScaling("linear", said["factor"])
    original = said.get("original_max_position_embeddings", settings.get("max_position_embeddings"))
    if missing := [key for key in ("low_freq_factor", "high_freq_factor") if key not in said]:
        raise InputError(f"config.json: the rope 'llama3' has no {missing[0]!r}")
    return theta, RopeScaling("llama3", said["factor"], said["low_freq_factor"], said["high_freq_factor"], original)


def settings_of(model: ModelConfig, settings: Settings) -> dict[str, Any]:
    """The config.json of a model: that of a smaller one with what growth changes; anew where none is given.

    Raises InputError where no family has what the model has.
    """
    settings = dict(settings) if "model_type" in settings else _new(model) | settings
    family = FAMILIES[settings["model_type"]]
    derived = {"kv_heads": family.kv_heads or model.heads, "head_dim": family.head_dim or model.embed // model.heads}
    said = {key: (getattr(model, field), derived.get(field)) for field, key in SIZES.items()}
    said["rms_norm_eps"] = model.norm_eps, family.norm_eps
    settings |= {key: value for key, (value, default) in said.items() if key in settings or value != default}
    settings.pop("auto_map", None)  # names code that is not carried along
    if "layer_types" in settings:
        settings["layer_types"] = [_FULL if model.sliding_window is None else _SLIDING] * model.layers
    if isinstance(below := settings.get("max_window_layers"), int) and model.sliding_window is None:
        settings["max_window_layers"] = max(below, model.layers)
    if settings["model_type"] == "llama" and model.embed % model.heads:
        return _as_mistral(settings)
    return settings


def _as_mistral(settings: dict[str, Any]) -> dict[str, Any]:
    """The same model under another name: transformers' Llama wants heads that divide hidden_size, its Mistral not."""
    kept = {key: value for key, value in settings.items() if key not in (*_FIXED, "pretraining_tp")}
    name = {"model_type": "mistral", "architectures": [FAMILIES["mistral"].architecture], "sliding_window": None}
    return kept | name | {"hidden_act": "silu"}


def _new(model: ModelConfig) -> dict[str, Any]:
    """What of a config.json does not depend on sizes, for a model that has none."""
    name = _family_for(model)
    window = {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": model.sliding_window}
    windows = {"mistral": {"sliding_window": model.sliding_window}, "llama": {}}
    no_window = {"use_sliding_window": False, "sliding_window": None, "max_window_layers": model.layers}
    return {
        "architectures": [FAMILIES[name].architecture],
        "model_type": name,
        "hidden_act": "silu",
        "tie_word_embeddings": model.tie_embeddings,
        "rope_theta": model.rope_theta,
        "rope_scaling": _scaling(model.rope_scaling),
        "bos_token_id": None,
        "eos_token_id": None,
        **windows.get(name, no_window if model.sliding_window is None else window),
    }


def _family_for(model: ModelConfig) -> str:
    if model.qkv_bias and model.qk_norm:
        raise InputError("no family has both qkv_bias and qk_norm: allowed is one of them")
    if model.qkv_bias or model.qk_norm:
        return "qwen2" if model.qkv_bias else "qwen3"
    return "llama" if model.sliding_window is None else "mistral"


def _scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    said = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "linear":
        return said
    factors = {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    return said | factors | {"original_max_position_embeddings": scaling.original_length}
