"""The Llama family: RMSNorm, rotary positions, grouped-query attention, SwiGLU; Mistral, Qwen2, Qwen3, Phi-3."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import jax
import numpy as np

from growlm.errors import must_be
from growlm.models.architecture import HEAD_UNLESS_TIED, Architecture, DecoderConfig, Norm, NormKind
from growlm.models.attention import (
    ROPE_SCALINGS,
    RopeScaling,
    attention_branch,
    check_groups,
    rotary_table,
    score_scale,
)
from growlm.models.axes import Axis, Kind, Role, WeightSpec
from growlm.models.parametrization import (
    FIELDS,
    Parametrised,
    kernel_scale,
    logit_scale,
    query_scale,
    residual_scale,
)
from growlm.models.stored import Family, Settings, check_fixed, integer, layers_of, stored, with_sizes
from growlm.models.swiglu import SWIGLU
from growlm.models.windows import FULL, SLIDING

# The stream, the output of a branch's norm and the output of the last norm have one size, but growth may map each of
# them differently, so they are three axes. The heads of keys and of values are two axes for the same reason.
STREAM_AXES = (
    Axis("stream", Kind.STREAM, "embed", mesh="fsdp"),
    Axis("embed", Kind.READ, mesh="fsdp", of="stream"),
    Axis("final", Kind.READ, "embed", mesh="fsdp", of="stream"),
)
HEAD_AXES = (
    Axis("heads", Kind.HEADS, mesh="tensor", of="key_heads", values="value_heads"),
    Axis("key_heads", Kind.HEADS, "kv_heads", mesh="tensor"),
    Axis("value_heads", Kind.HEADS, "kv_heads", mesh="tensor"),
    Axis("head_dim", Kind.HEAD, rotated=lambda config: config.head_dim, base="rope_theta"),
)
AXES = (
    Axis("layers", Kind.STACK),
    *STREAM_AXES,
    *HEAD_AXES,
    Axis("mlp", Kind.INNER, mesh="tensor"),
    Axis("vocab", Kind.VOCAB, mesh="tensor"),
)


def rotary(config: Any, length: int) -> tuple[jax.Array, jax.Array]:
    """The rotary table of positions below length, scaled as the config says."""
    return rotary_table(length, config.head_dim, config.rope_theta, config.rope_scaling)


def _with_bias(config: Any) -> bool:
    return config.qkv_bias


def _with_norm(config: Any) -> bool:
    return config.qk_norm


# Fields of factors, which growth undoes where they or sizes change.
SCALED_BY = (*FIELDS, "norm_scaling")


def window(config: Any) -> int | None:
    """The number of positions that a query sees, or None."""
    return config.sliding_window


def norm_scale(config: Any) -> np.ndarray | None:
    """The factors of LayerNorm Scaling on what the norms of each layer hand on (arXiv 2502.05795), or None."""
    return np.arange(1, config.layers + 1) ** -0.5 if config.norm_scaling else None


def projections(
    reads: str = "embed", writes: str = "", scores: Callable[[Any], float] = score_scale
) -> tuple[WeightSpec, ...]:
    """The matrices of attention: query, key, value, out. `reads` and `writes` are the branch's, `scores` a weight's."""
    return (
        WeightSpec("query", f"{reads}> >heads >head_dim", scores=scores),
        WeightSpec("key", f"{reads}> >key_heads >head_dim"),
        WeightSpec("value", f"{reads}> >value_heads >head_dim"),
        WeightSpec("out", f"heads> head_dim> >{writes or 'stream'}"),
    )


ATTENTION = attention_branch(
    (
        *projections(scores=query_scale),
        WeightSpec("query_bias", ">heads >head_dim", Role.BIAS, present=_with_bias, scores=query_scale),
        WeightSpec("key_bias", ">key_heads >head_dim", Role.BIAS, present=_with_bias),
        WeightSpec("value_bias", ">value_heads >head_dim", Role.BIAS, present=_with_bias),
        WeightSpec("query_norm", "head_dim>head_dim", Role.GAIN, present=_with_norm),
        WeightSpec("key_norm", "head_dim>head_dim", Role.GAIN, present=_with_norm),
    ),
    rotary=rotary,
    window=window,
    score_scale=kernel_scale,
    scale=residual_scale,
    norm_scale=norm_scale,
)


@dataclasses.dataclass(frozen=True)
class GroupedConfig(DecoderConfig):
    """What the shapes of decoders with grouped query heads and rotary positions have in common.

    Raises InputError, a ValueError, for values out of range, as every config class here.

    Attributes:
      layers, embed, heads, kv_heads, head_dim, mlp, vocab: sizes, positive integers (layers may be 0): model width,
        query heads, key and value heads (a divisor of heads), width of the gated MLP. head_dim is even, for RoPE.
      tie_embeddings: the embedding is the head.
      norm_eps, rope_theta: of norms and of rotary frequencies.
    """

    layers: int
    embed: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    tie_embeddings: bool = False
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0

    def __post_init__(self):
        self._check_integers("layers", least=0)
        self._check_integers("embed", "heads", "kv_heads", "head_dim", "mlp", "vocab")
        self._check_numbers("norm_eps", "rope_theta")
        self._check_flags("tie_embeddings")
        check_groups(self)


def check_scaling(scaling: Any) -> None:
    """Raises InputError unless it is a scaling of rotary frequencies, or None."""
    if scaling is not None and not isinstance(scaling, RopeScaling):
        raise must_be("model.rope_scaling", "None or a RopeScaling", scaling)


@dataclasses.dataclass(frozen=True)
class ModelConfig(GroupedConfig, Parametrised):
    """The shape of a Llama-like decoder.

    Attributes:
      qkv_bias, qk_norm: biases of query, key and value; RMSNorms on query and key heads.
      rope_scaling: of rotary frequencies.
      sliding_window: the number of positions that a query sees, its own the last; None for all before it.
      base_layers, depth_alpha, base_widths: see `Parametrised`.
      norm_scaling: what a norm in layer l (from 1) hands on is divided by sqrt(l) (arXiv 2502.05795).
    """

    qkv_bias: bool = False
    qk_norm: bool = False
    rope_scaling: RopeScaling | None = None
    sliding_window: int | None = None
    norm_scaling: bool = False

    architecture: ClassVar[Architecture]
    newer: ClassVar[tuple[str, ...]] = SCALED_BY

    def __post_init__(self):
        super().__post_init__()
        self._check_flags("qkv_bias", "qk_norm", "norm_scaling")
        self._check_base()
        check_scaling(self.rope_scaling)
        seen = self.sliding_window
        if seen is not None and (isinstance(seen, bool) or not isinstance(seen, int) or seen < 1):
            raise must_be("model.sliding_window", "None or a positive integer", seen)


# The names of fields in config.json.
SIZES = {
    "layers": "num_hidden_layers",
    "embed": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "mlp": "intermediate_size",
    "vocab": "vocab_size",
}

# Values of config.json other than these make a model that is not built here.
FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "quantization_config": None,
    "partial_rotary_factor": 1.0,
    "num_experts": None,
}

# The tensors of all decoders with this naming, without those of the MLP.
DECODER_TENSORS = (
    stored("model.embed_tokens.weight", "embedding"),
    stored("model.layers.{layers}.input_layernorm.weight", "blocks/attn_norm/scale"),
    stored("model.layers.{layers}.self_attn.q_proj.weight", "blocks/attn/query"),
    stored("model.layers.{layers}.self_attn.k_proj.weight", "blocks/attn/key"),
    stored("model.layers.{layers}.self_attn.v_proj.weight", "blocks/attn/value"),
    stored("model.layers.{layers}.self_attn.q_proj.bias", "blocks/attn/query_bias"),
    stored("model.layers.{layers}.self_attn.k_proj.bias", "blocks/attn/key_bias"),
    stored("model.layers.{layers}.self_attn.v_proj.bias", "blocks/attn/value_bias"),
    stored("model.layers.{layers}.self_attn.q_norm.weight", "blocks/attn/query_norm"),
    stored("model.layers.{layers}.self_attn.k_norm.weight", "blocks/attn/key_norm"),
    stored("model.layers.{layers}.self_attn.o_proj.weight", "blocks/attn/out"),
    stored("model.layers.{layers}.post_attention_layernorm.weight", "blocks/mlp_norm/scale"),
    stored("model.norm.weight", "final_norm/scale"),
    stored("lm_head.weight", "head"),
)
MLP_TENSORS = (
    stored("model.layers.{layers}.mlp.gate_proj.weight", "blocks/mlp/gate"),
    stored("model.layers.{layers}.mlp.up_proj.weight", "blocks/mlp/up"),
    stored("model.layers.{layers}.mlp.down_proj.weight", "blocks/mlp/down"),
)
TENSORS = (*DECODER_TENSORS, *MLP_TENSORS)

# Phi-3 stores query, key and value as rows of one matrix, one after the other; gate and up too.
_FUSED = {"self_attn.qkv_proj": ("attn", ("query", "key", "value")), "mlp.gate_up_proj": ("mlp", ("gate", "up"))}
_FUSED_TENSORS = (
    *(row for row in TENSORS if not re.search(r"\.[qkv]_proj\.|\.(gate|up)_proj\.", row.name)),
    *(
        stored(f"model.layers.{{layers}}.{name}.weight", *(f"blocks/{branch}/{part}" for part in parts))
        for name, (branch, parts) in _FUSED.items()
    ),
)


def no_window(settings: Settings, layers: int) -> int | None:
    """The sliding window of a family that has none."""
    return None


def _own_window(settings: Settings, layers: int) -> int | None:
    """The sliding window of a family that has it on all layers where it is given."""
    return settings.get("sliding_window")


def mistral_window(settings: Settings, layers: int) -> int | None:
    """The sliding window of a family that has it on all layers."""
    return settings.get("sliding_window", 4096)


def _qwen_window(settings: Settings, layers: int) -> int | None:
    """Qwen's sliding window, on the layers from max_window_layers on. Raises InputError unless that is all or none."""
    seen = settings.get("sliding_window", 4096)
    if settings.get("use_sliding_window", False) is not True or seen is None:
        return None
    first = integer("max_window_layers", settings.get("max_window_layers", 28), least=0)
    kinds = settings.get("layer_types")
    if kinds is None:
        kinds = [SLIDING] * max(layers - first, 0) + [FULL] * min(layers, first)
    if kinds == [FULL] * layers:
        return None
    if kinds != [SLIDING] * layers:
        raise must_be(f"config.json: a sliding window on {layers} layers", "on all of them or none", kinds)
    return seen


@dataclasses.dataclass(frozen=True)
class Defaults:
    """Defaults of a configuration class of transformers, for keys that a config.json lacks.

    head_dim: None for hidden_size / heads. scalings: the kinds of `RopeScaling` that the class has. keys: of sizes in
    config.json, by field.
    """

    norm_eps: float = 1e-6
    head_dim: int | None = None
    kv_heads: int | None = None
    rope_theta: float = 10000.0
    tied: bool = False
    scalings: tuple[str, ...] = ROPE_SCALINGS
    window: Callable[[Settings, int], int | None] = no_window
    keys: Mapping[str, str] = dataclasses.field(default_factory=lambda: SIZES)


def read_fields(name: str, defaults: Defaults, settings: Settings) -> dict[str, Any]:
    """The fields of `ModelConfig` in a config.json, without qkv_bias and qk_norm. Raises InputError."""
    return read_shape(name, defaults, settings) | {"sliding_window": defaults.window(settings, layers_of(settings))}


def read_shape(name: str, defaults: Defaults, settings: Settings) -> dict[str, Any]:
    """The fields of `GroupedConfig` in a config.json, and rope_scaling. Raises InputError."""
    sizes = {field: settings.get(key) for field, key in defaults.keys.items()}
    layers_of(settings)
    embed, heads = (integer(SIZES[field], sizes[field]) for field in ("embed", "heads"))
    if sizes["kv_heads"] is None:
        sizes["kv_heads"] = heads if "num_key_value_heads" in settings else defaults.kv_heads or heads
    if sizes["head_dim"] is None:
        sizes["head_dim"] = defaults.head_dim if "head_dim" not in settings and defaults.head_dim else embed // heads
    theta, scaling = _rope(settings, name, defaults)
    return sizes | {
        "tie_embeddings": settings.get("tie_word_embeddings", defaults.tied),
        "norm_eps": settings.get("rms_norm_eps", defaults.norm_eps),
        "rope_theta": theta,
        "rope_scaling": scaling,
    }


def _rope(settings: Settings, name: str, defaults: Defaults) -> tuple[float, RopeScaling | None]:
    """The base of rotary frequencies and their scaling, from `rope_parameters` or the older keys."""
    said = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    if not isinstance(said, dict):
        raise must_be("config.json: rope_parameters", "an object", said)
    theta = said.get("rope_theta", settings.get("rope_theta", defaults.rope_theta))
    kind = said.get("rope_type", said.get("type", "default"))
    if said.get("partial_rotary_factor", 1.0) != 1.0:
        raise must_be(f"config.json: partial_rotary_factor of {name}", "1.0", said["partial_rotary_factor"])
    if kind == "default":
        return theta, None
    if kind not in defaults.scalings or "factor" not in said:
        rule = " or ".join(("default", *(f"{scaling} with a factor" for scaling in defaults.scalings)))
        raise must_be(f"config.json: rope_type of {name}", rule, kind)
    if kind == "linear":
        return theta, RopeScaling("linear", said["factor"])
    original = said.get("original_max_position_embeddings", settings.get("max_position_embeddings", 0))
    if missing := [key for key in ("low_freq_factor", "high_freq_factor") if key not in said]:
        raise must_be(f"config.json: {missing[0]} of rope_type llama3", "a number", None)
    return theta, RopeScaling("llama3", said["factor"], said["low_freq_factor"], said["high_freq_factor"], original)


def _read(name: str, settings: Settings) -> ModelConfig:
    check_fixed(name, settings, FIXED)
    fields = read_fields(name, DEFAULTS[name], settings)
    return ModelConfig(**fields, qkv_bias=name == "qwen2", qk_norm=name == "qwen3")


def _write(name: str, model: ModelConfig, settings: Settings) -> dict[str, Any]:
    settings = dict(settings) if "model_type" in settings else {**_new(name, model), **settings}
    settings = write_fields(model, DEFAULTS[name], settings)
    if "layer_types" in settings:
        settings["layer_types"] = [FULL if model.sliding_window is None else SLIDING] * model.layers
    if isinstance(below := settings.get("max_window_layers"), int) and model.sliding_window is None:
        settings["max_window_layers"] = max(below, model.layers)
    if name == "llama" and model.embed % model.heads:
        return _as_mistral(model, settings)
    return settings


def write_fields(model: Any, defaults: Defaults, settings: Settings) -> dict[str, Any]:
    """A config.json with the sizes of a model written into it."""
    derived = {
        "kv_heads": defaults.kv_heads or model.heads,
        "head_dim": defaults.head_dim or model.embed // model.heads,
    }
    said = {key: (getattr(model, field), derived.get(field)) for field, key in defaults.keys.items()}
    if settings.get("head_dim", 0) is None and model.head_dim == model.embed // model.heads:
        del said["head_dim"]  # null means just that
    said |= {"rms_norm_eps": (model.norm_eps, defaults.norm_eps)}
    said |= {"tie_word_embeddings": (model.tie_embeddings, defaults.tied)}
    return _with_theta(with_sizes(settings, said), model, defaults)


def _with_theta(settings: dict[str, Any], model: Any, defaults: Defaults) -> dict[str, Any]:
    """A config.json with the model's base of rotary frequencies, which changes where heads grow."""
    rope = settings.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        return settings | {"rope_parameters": rope | {"rope_theta": model.rope_theta}}
    if isinstance(rope, dict) and any(isinstance(value, dict) for value in rope.values()):
        return settings  # by kind of layer, whose heads have norms and do not grow
    if settings.get("rope_theta", defaults.rope_theta) == model.rope_theta:
        return settings
    return settings | {"rope_theta": model.rope_theta}


def _as_mistral(model: ModelConfig, settings: dict[str, Any]) -> dict[str, Any]:
    """The model as a Mistral: only transformers' Llama needs heads that divide hidden_size."""
    kept = {key: value for key, value in settings.items() if key not in (*FIXED, "pretraining_tp")}
    name = {"model_type": "mistral", "architectures": [FAMILIES["mistral"].architecture], "sliding_window": None}
    # Written out, since Mistral's defaults differ.
    sizes = {SIZES[field]: getattr(model, field) for field in ("kv_heads", "head_dim")}
    return kept | name | sizes | {"hidden_act": "silu"}


def _new(name: str, model: ModelConfig) -> dict[str, Any]:
    """The entries of a new config.json that do not depend on sizes."""
    seen = {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": model.sliding_window}
    windows = {"mistral": {"sliding_window": model.sliding_window}, "llama": {}}
    unseen = {"use_sliding_window": False, "sliding_window": None, "max_window_layers": model.layers}
    of_family = windows.get(name, unseen if model.sliding_window is None else seen)
    return new_settings(name, FAMILIES[name].architecture, model) | of_family


def new_settings(name: str, architecture: str, model: Any) -> dict[str, Any]:
    """The entries of a new config.json that all families with this naming share."""
    return {
        "architectures": [architecture],
        "model_type": name,
        "hidden_act": "silu",
        "tie_word_embeddings": model.tie_embeddings,
        "rope_theta": model.rope_theta,
        "rope_scaling": _scaling(model.rope_scaling),
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    said = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "linear":
        return said
    factors = {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    return said | factors | {"original_max_position_embeddings": scaling.original_length}


DEFAULTS = {
    "llama": Defaults(),
    "mistral": Defaults(kv_heads=8, window=mistral_window),
    "qwen2": Defaults(kv_heads=32, window=_qwen_window),
    "qwen3": Defaults(kv_heads=32, head_dim=128, window=_qwen_window),
    "phi3": Defaults(norm_eps=1e-5, scalings=(), window=_own_window),
}

# model_type -> (qkv_bias, qk_norm, with a sliding window; None for either). A new model is of the first that fits.
_VARIANTS = {
    "llama": (False, False, False),
    "mistral": (False, False, True),
    "qwen2": (True, False, None),
    "qwen3": (False, True, None),
    "phi3": (False, False, None),
}


def _holds(name: str, model: ModelConfig) -> bool:
    bias, norm, windowed = _VARIANTS[name]
    fits = windowed is None or windowed == (model.sliding_window is not None)
    return (model.qkv_bias, model.qk_norm) == (bias, norm) and fits and not has_factors(model)


def has_factors(model: ModelConfig) -> bool:
    """Whether a model has factors that no family has."""
    return model.has_base or model.norm_scaling


FAMILIES = {
    name: Family(
        name,
        architecture,
        _FUSED_TENSORS if name == "phi3" else TENSORS,
        read=partial(_read, name),
        write=partial(_write, name),
        holds=partial(_holds, name),
        # Buffers in old checkpoints.
        computed=re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"),
    )
    for name, architecture in {
        "llama": "LlamaForCausalLM",
        "mistral": "MistralForCausalLM",
        "qwen2": "Qwen2ForCausalLM",
        "qwen3": "Qwen3ForCausalLM",
        "phi3": "Phi3ForCausalLM",
    }.items()
}


EXAMPLE = {"layers": 2, "embed": 16, "heads": 4, "head_dim": 4, "mlp": 24, "vocab": 32}

LLAMA = Architecture(
    name="llama",
    config=ModelConfig,
    axes=AXES,
    period=((ATTENTION,), (dataclasses.replace(SWIGLU, scale=residual_scale, norm_scale=norm_scale),)),
    norm=Norm(NormKind.RMS),
    head=HEAD_UNLESS_TIED,
    shared=("tie_embeddings", "rope_theta", "qkv_bias", "qk_norm", "rope_scaling", "sliding_window"),
    logit_scale=logit_scale,
    free=("norm_eps", *SCALED_BY),
    families=FAMILIES,
    example=EXAMPLE | {"kv_heads": 2},
)
