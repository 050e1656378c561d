"""GPT-NeoX, the architecture of Pythia: LayerNorm and biases everywhere, rotary on a part of a head, parallel residual.

arXiv 2204.06745: attention and MLP of a layer read one stream, each through a norm of its own.
"""

import dataclasses
import math
import re
from functools import partial
from typing import Any, ClassVar

import jax

from growlm.errors import InputError, check_positive
from growlm.models.attention import attention_branch, rotary_table
from growlm.models.axes import (
    Architecture,
    Axis,
    DecoderConfig,
    Kind,
    Norm,
    NormKind,
    Role,
    WeightSpec,
    head,
)
from growlm.models.llama import STREAM_AXES
from growlm.models.mlp import mlp_branch
from growlm.models.stored import Family, Settings, check_fixed, integer, layers_of, stored, with_sizes


@dataclasses.dataclass(frozen=True)
class GptNeoxConfig(DecoderConfig):
    """The shape of a GPT-NeoX-like decoder.

    layers (0 or more), embed, heads, head_dim, mlp and vocab are positive integers; rotary_dim, even, is how many of a
    head's coordinates are rotated. Raises InputError.
    """

    layers: int
    embed: int
    heads: int
    head_dim: int
    mlp: int
    vocab: int
    rotary_dim: int
    tie_embeddings: bool = False
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0

    architecture: ClassVar[Architecture]

    def __post_init__(self):
        self._check_integers("layers", least=0)
        self._check_integers("embed", "heads", "head_dim", "mlp", "vocab", "rotary_dim")
        self._check_numbers("norm_eps", "rope_theta")
        self._check_flags("tie_embeddings")
        if self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            raise InputError(
                f"model.rotary_dim is {self.rotary_dim}: RoPE rotates pairs, so it must be even, and at most "
                f"model.head_dim, {self.head_dim}"
            )


_ATTENTION = attention_branch(
    (
        WeightSpec("query", "embed> >heads >head_dim"),
        WeightSpec("key", "embed> >heads >head_dim"),
        WeightSpec("value", "embed> >heads >head_dim"),
        WeightSpec("query_bias", ">heads >head_dim", Role.BIAS),
        WeightSpec("key_bias", ">heads >head_dim", Role.BIAS),
        WeightSpec("value_bias", ">heads >head_dim", Role.BIAS),
        WeightSpec("out", "heads> head_dim> >stream"),
        WeightSpec("out_bias", ">stream", Role.BIAS),
    ),
    rotary=lambda config, length: rotary_table(length, config.rotary_dim, config.rope_theta),
)
_MLP = mlp_branch(partial(jax.nn.gelu, approximate=False), biases=True)

_LAYER = "gpt_neox.layers.{layers}."
_QKV = [[f"blocks/attn/{name}{kind}" for name in ("query", "key", "value")] for kind in ("", "_bias")]
_TENSORS = (
    stored("gpt_neox.embed_in.weight", "embedding"),
    stored(_LAYER + "input_layernorm.weight", "blocks/attn_norm/scale"),
    stored(_LAYER + "input_layernorm.bias", "blocks/attn_norm/bias"),
    # Every head has its query, its key and its value, one after the other.
    stored(_LAYER + "attention.query_key_value.weight", *_QKV[0], join=1),
    stored(_LAYER + "attention.query_key_value.bias", *_QKV[1], join=1),
    stored(_LAYER + "attention.dense.weight", "blocks/attn/out"),
    stored(_LAYER + "attention.dense.bias", "blocks/attn/out_bias"),
    stored(_LAYER + "post_attention_layernorm.weight", "blocks/mlp_norm/scale"),
    stored(_LAYER + "post_attention_layernorm.bias", "blocks/mlp_norm/bias"),
    stored(_LAYER + "mlp.dense_h_to_4h.weight", "blocks/mlp/up"),
    stored(_LAYER + "mlp.dense_h_to_4h.bias", "blocks/mlp/up_bias"),
    stored(_LAYER + "mlp.dense_4h_to_h.weight", "blocks/mlp/down"),
    stored(_LAYER + "mlp.dense_4h_to_h.bias", "blocks/mlp/down_bias"),
    stored("gpt_neox.final_layer_norm.weight", "final_norm/scale"),
    stored("gpt_neox.final_layer_norm.bias", "final_norm/bias"),
    stored("embed_out.weight", "head"),
)

_SIZES = {
    "layers": "num_hidden_layers",
    "embed": "hidden_size",
    "heads": "num_attention_heads",
    "mlp": "intermediate_size",
    "vocab": "vocab_size",
}
_FIXED = {
    "hidden_act": "gelu",
    "attention_bias": True,
    "use_parallel_residual": True,
    "rope_scaling": None,
    "quantization_config": None,
}


def _read(settings: Settings) -> GptNeoxConfig:
    check_fixed("gpt_neox", settings, _FIXED)
    layers_of(settings)
    sizes = {field: integer(key, settings.get(key), least=field != "layers") for field, key in _SIZES.items()}
    rope = settings.get("rope_parameters") or {}
    if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default":
        raise InputError(f"gpt_neox with the rope {rope!r} is not supported: allowed is default")
    head_dim = sizes["embed"] // sizes["heads"]
    share = rope.get("partial_rotary_factor", settings.get("rotary_pct", 0.25))
    check_positive("config.json: the share of a head that is rotated, rotary_pct,", share)
    return GptNeoxConfig(
        **sizes,
        head_dim=head_dim,
        rotary_dim=int(head_dim * share),
        tie_embeddings=settings.get("tie_word_embeddings", False),
        norm_eps=settings.get("layer_norm_eps", 1e-5),
        rope_theta=rope.get("rope_theta", settings.get("rotary_emb_base", 10000.0)),
    )


def _write(model: GptNeoxConfig, settings: Settings) -> dict[str, Any]:
    if model.heads * model.head_dim != model.embed:
        raise InputError(
            f"model.embed is {model.embed}, and gpt_neox in transformers has heads x head_dim = {model.heads} x "
            f"{model.head_dim}: allowed are heads that fill the width"
        )
    if "model_type" not in settings:
        settings = _new(model) | settings
    return with_sizes(
        settings,
        {key: (getattr(model, field), None) for field, key in _SIZES.items()}
        | {"layer_norm_eps": (model.norm_eps, 1e-5), "tie_word_embeddings": (model.tie_embeddings, False)},
    )


def _new(model: GptNeoxConfig) -> dict[str, Any]:
    """What of a config.json does not depend on sizes, for a model that has none."""
    return {
        "architectures": [FAMILY.architecture],
        "model_type": "gpt_neox",
        "hidden_act": "gelu",
        "use_parallel_residual": True,
        "tie_word_embeddings": model.tie_embeddings,
        "rotary_pct": _share(model),
        "rotary_emb_base": model.rope_theta,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _share(model: GptNeoxConfig) -> float:
    """Of a head, what is rotated; times head_dim and cut to an integer, as transformers does, it is rotary_dim."""
    share = model.rotary_dim / model.head_dim
    return share if int(model.head_dim * share) == model.rotary_dim else math.nextafter(share, 1.0)


FAMILY = Family(
    "gpt_neox",
    "GPTNeoXForCausalLM",
    _TENSORS,
    read=_read,
    write=_write,
    holds=lambda model: True,
    # Masks and frequencies that old checkpoints hold.
    computed=re.compile(r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)"),
    tied_head="embed_out.weight",
)

GPT_NEOX = Architecture(
    name="gpt_neox",
    config=GptNeoxConfig,
    axes=(
        Axis("layers", Kind.STACK),
        *STREAM_AXES,
        Axis("heads", Kind.HEADS, mesh="tensor"),
        Axis("head_dim", Kind.FIXED),
        Axis("mlp", Kind.INNER, mesh="tensor"),
        Axis("vocab", Kind.VOCAB, mesh="tensor"),
    ),
    period=((_ATTENTION, _MLP),),
    norm=Norm(NormKind.LAYER, bias=True),
    head=head(present=lambda config: not config.tie_embeddings),
    shared=("tie_embeddings", "rope_theta", "rotary_dim"),
    families={"gpt_neox": FAMILY},
)
