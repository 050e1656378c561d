"""Gemma (arXiv 2403.08295), and what Gemma 2 and 3 share with it.

Gains are stored minus one, embeddings are multiplied by sqrt(embed), the MLP is a GeGLU, and the head is tied.
"""

import dataclasses
import math
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

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
from growlm.models.swiglu import gated_branch

TANH = "gelu_pytorch_tanh"
GELU_TANH = partial(jax.nn.gelu, approximate=True)
NORM = Norm(NormKind.RMS, offset=1.0)


@dataclasses.dataclass(frozen=True)
class GemmaConfig(GroupedConfig):
    """The shape of a Gemma. `rope_scaling` is of rotary frequencies."""

    tie_embeddings: bool = True
    norm_eps: float = 1e-6
    rope_scaling: RopeScaling | None = None

    architecture: ClassVar[Architecture]

    def __post_init__(self):
        super().__post_init__()
        check_scaling(self.rope_scaling)


def embed_scale(config: Any) -> float:
    """The factor on embeddings."""
    return math.sqrt(config.embed)


def look_up_scaled(weights: Any, config: Any, tokens_BT: jax.Array, position_BT: Any = None) -> jax.Array:
    """The stream before the first layer, [B x T, D]; the factor is in the compute dtype, as in transformers."""
    embedding_VD = weights["embedding"]
    return embedding_VD[tokens_BT.reshape(-1)] * jnp.asarray(embed_scale(config), embedding_VD.dtype)


def check_settings(name: str, settings: Settings, activation: str = "hidden_activation") -> None:
    """Raises InputError where a config.json describes a Gemma that is not built here.

    `activation`: the key that the family has for it.
    """
    fixed = {key: value for key, value in FIXED.items() if key != "hidden_act"}
    said = {key: value for key, value in settings.items() if value is not None}
    check_fixed(name, said, fixed | {"use_bidirectional_attention": False, activation: TANH})


def check_width(name: str, model: GroupedConfig) -> None:
    """Raises InputError for a width that configuration classes of transformers refuse."""
    if model.embed % model.heads:
        rule = f"a multiple of model.heads, {model.heads}, for {name} in transformers"
        raise must_be("model.embed", rule, model.embed)


def new_gemma(name: str, architecture: str, model: GroupedConfig) -> dict[str, Any]:
    """The entries of a new config.json that all Gemmas share."""
    return new_settings(name, architecture, model) | {"hidden_act": TANH, "hidden_activation": TANH}


_DEFAULTS = Defaults(head_dim=256, kv_heads=16, tied=True)


def _read(settings: Settings) -> GemmaConfig:
    if settings.get("hidden_act") == "gelu":  # of old files, which mean the same
        settings = {**settings, "hidden_act": TANH}
    check_settings("gemma", settings, "hidden_act")
    return GemmaConfig(**read_shape("gemma", _DEFAULTS, settings))


def _write(model: GemmaConfig, settings: Settings) -> dict[str, Any]:
    if "model_type" not in settings:
        settings = {**new_gemma("gemma", FAMILY.architecture, model), **settings}
    return write_fields(model, _DEFAULTS, settings)


FAMILY = Family("gemma", "GemmaForCausalLM", TENSORS, read=_read, write=_write, holds=lambda model: True)

GEMMA = Architecture(
    name="gemma",
    config=GemmaConfig,
    axes=AXES,
    period=((attention_branch(projections(), rotary=rotary),), (gated_branch(GELU_TANH),)),
    norm=NORM,
    embed=look_up_scaled,
    embed_scale=embed_scale,
    head=HEAD_UNLESS_TIED,
    shared=("tie_embeddings", "rope_theta", "rope_scaling"),
    families={"gemma": FAMILY},
    example=EXAMPLE | {"kv_heads": 2},
)
