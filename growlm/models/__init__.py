"""Models: the declaration, branches, architectures, and the decoder that runs them."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from growlm.models.architecture import (
    Architecture,
    Branch,
    DecoderConfig,
    Norm,
    NormKind,
    Params,
    check_params,
    map_weights,
    nest,
    path_of,
)
from growlm.models.attention import RopeScaling
from growlm.models.axes import Axis, Dim, Kind, Role, Weight, WeightSpec
from growlm.models.counts import flops_per_token, matmul_parameter_count, parameter_count
from growlm.models.decoder import (
    apply,
    apply_branch,
    hidden_states,
    init,
    losses,
    next_token_loss,
    with_depth,
)
from growlm.models.gemma import GEMMA, GemmaConfig
from growlm.models.gemma2 import GEMMA2, Gemma2Config
from growlm.models.gemma3 import GEMMA3, Gemma3Config
from growlm.models.gpt2 import GPT2, Gpt2Config
from growlm.models.gpt_neox import GPT_NEOX, GptNeoxConfig
from growlm.models.llama import LLAMA, ModelConfig
from growlm.models.looped import LOOPED, LoopedConfig
from growlm.models.mixtral import MIXTRAL, MixtralConfig
from growlm.models.modern import MODERN, ModernConfig
from growlm.models.olmo import OLMO, OlmoConfig
from growlm.models.olmo2 import OLMO2, Olmo2Config
from growlm.models.olmoe import OLMOE, OlmoeConfig
from growlm.models.remat import REMAT_POLICIES
from growlm.models.samba import SAMBA, SambaConfig
from growlm.models.tokenformer import TOKENFORMER, TokenformerConfig

# An architecture is one file and one row, which gives it a name in configs.
_ALL = (LLAMA, GPT2, GPT_NEOX, MIXTRAL, OLMO, OLMO2, OLMOE, GEMMA, GEMMA2, GEMMA3, SAMBA, TOKENFORMER, LOOPED, MODERN)
ARCHITECTURES: dict[str, Architecture] = {one.name: one for one in _ALL}


def plain(config: DecoderConfig) -> dict[str, Any]:
    """A config as plain JSON, with the name of its architecture."""
    return {"architecture": config.architecture.name} | dataclasses.asdict(config)


def hashed(config: DecoderConfig) -> dict[str, Any]:
    """`plain` without newer fields at their defaults, so that a new field orphans no stored run."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    return {
        name: value
        for name, value in plain(config).items()
        if name not in config.newer or getattr(config, name) != defaults[name]
    }


def declared(config: DecoderConfig) -> Iterator[Weight]:
    """The weights of a model."""
    return config.weights


def sizes_of(config: DecoderConfig) -> dict[str, int]:
    """The sizes of a model's axes by the fields of its config."""
    return {axis.field: config.size(axis) for axis in config.architecture.axes}


__all__ = [
    "ARCHITECTURES",
    "GEMMA",
    "GEMMA2",
    "GEMMA3",
    "GPT2",
    "GPT_NEOX",
    "LLAMA",
    "LOOPED",
    "MIXTRAL",
    "MODERN",
    "OLMO",
    "OLMO2",
    "OLMOE",
    "REMAT_POLICIES",
    "SAMBA",
    "TOKENFORMER",
    "Architecture",
    "Axis",
    "Branch",
    "DecoderConfig",
    "Dim",
    "Gemma2Config",
    "Gemma3Config",
    "GemmaConfig",
    "Gpt2Config",
    "GptNeoxConfig",
    "Kind",
    "LoopedConfig",
    "MixtralConfig",
    "ModelConfig",
    "ModernConfig",
    "Norm",
    "NormKind",
    "Olmo2Config",
    "OlmoConfig",
    "OlmoeConfig",
    "Params",
    "Role",
    "RopeScaling",
    "SambaConfig",
    "TokenformerConfig",
    "Weight",
    "WeightSpec",
    "apply",
    "apply_branch",
    "check_params",
    "declared",
    "flops_per_token",
    "hashed",
    "hidden_states",
    "init",
    "losses",
    "map_weights",
    "matmul_parameter_count",
    "nest",
    "next_token_loss",
    "parameter_count",
    "path_of",
    "plain",
    "sizes_of",
    "with_depth",
]
