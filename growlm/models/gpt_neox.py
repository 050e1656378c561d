"""GPT-NeoX (arXiv 2204.06745), the architecture of Pythia.

LayerNorm and biases everywhere, rotary positions on a part of each head, and parallel residuals: attention and MLP of a
layer read one stream, each through its own norm.
"""

import dataclasses
import math
import re
from functools import partial
from typing import Any, ClassVar

import jax

from growlm.errors import check_positive, must_be
from growlm.models.architecture import HEAD_UNLESS_TIED, Architecture, DecoderConfig, Norm, NormKind
from growlm.models.attention import attention_branch, rotary_table, score_scale
from growlm.models.axes import Axis, Kind, Role, WeightSpec
from growlm.models.llama import EXAMPLE, STREAM_AXES
from growlm.models.mlp import mlp_branch
from growlm.models.stored import Family, Settings, check_fixed, check_heads, integer, layers_of, stored, with_sizes


@dataclasses.dataclass(frozen=True)
class GptNeoxConfig(DecoderConfig):
    """The shape of a GPT-NeoX-like decoder. Raises InputError for values out of range.

    Attributes:
      layers, embed, heads, head_dim, mlp, vocab: sizes, positive integers (layers may be 0).
      rotary_dim: the number of a head's coordinates that are rotated, even.
      tie_embeddings: the embedding is the head.
      norm_eps, rope_theta: of LayerNorm and of rotary frequencies.
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
            rule = f"even, as RoPE rotates pairs, and at most model.head_dim, {self.head_dim}"
            raise must_be("model.rotary_dim", rule, self.rotary_dim)


_ATTENTION = attention_branch(
    (
        WeightSpec("query", "embed> >heads >head_dim", scores=score_scale),
        WeightSpec("key", "embed> >heads >head_dim"),
        WeightSpec("value", "embed> >heads >head_dim"),
        WeightSpec("query_bias", ">heads >head_dim", Role.BIAS, scores=score_scale),
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
    # Query, key and value of a head are stored next to each other.
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
        raise must_be("config.json: rope_parameters of gpt_neox", "of rope_type default", rope)
    head_dim = sizes["embed"] // sizes["heads"]
    share = _stored_share(settings)
    check_positive("config.json: rotary_pct", share)
    return GptNeoxConfig(
        **sizes,
        head_dim=head_dim,
        rotary_dim=int(head_dim * share),
        tie_embeddings=settings.get("tie_word_embeddings", False),
        norm_eps=settings.get("layer_norm_eps", 1e-5),
        rope_theta=rope.get("rope_theta", settings.get("rotary_emb_base", 10000.0)),
    )


def _stored_share(settings: Settings) -> float:
    """The rotated share of a head in a config.json."""
    rope = settings.get("rope_parameters") or {}
    return rope.get("partial_rotary_factor", settings.get("rotary_pct", 0.25))


def _write(model: GptNeoxConfig, settings: Settings) -> dict[str, Any]:
    check_heads("gpt_neox", model)
    if "model_type" not in settings:
        settings = {**_new(model), **settings}
    settings = with_sizes(
        settings,
        {key: (getattr(model, field), None) for field, key in _SIZES.items()}
        | {"layer_norm_eps": (model.norm_eps, 1e-5), "tie_word_embeddings": (model.tie_embeddings, False)},
    )
    rope = settings.get("rope_parameters")
    if int(model.head_dim * _stored_share(settings)) == model.rotary_dim:
        return settings
    # Heads grew, and no more of them is rotated.
    if isinstance(rope, dict) and "partial_rotary_factor" in rope:
        return settings | {"rope_parameters": rope | {"partial_rotary_factor": _share(model)}}
    return settings | {"rotary_pct": _share(model)}


def _new(model: GptNeoxConfig) -> dict[str, Any]:
    """The entries of a new config.json that do not depend on sizes."""
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
    """The rotated share of a head: int(share x head_dim), as in transformers, is exactly rotary_dim."""
    share = model.rotary_dim / model.head_dim
    return share if int(model.head_dim * share) == model.rotary_dim else math.nextafter(share, 1.0)


FAMILY = Family(
    "gpt_neox",
    "GPTNeoXForCausalLM",
    _TENSORS,
    read=_read,
    write=_write,
    holds=lambda model: True,
    # Masks and frequencies in old checkpoints.
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
        Axis("head_dim", Kind.HEAD, rotated=lambda config: config.rotary_dim, base="rope_theta"),
        Axis("mlp", Kind.INNER, mesh="tensor"),
        Axis("vocab", Kind.VOCAB, mesh="tensor"),
    ),
    period=((_ATTENTION, _MLP),),
    norm=Norm(NormKind.LAYER, bias=True),
    head=HEAD_UNLESS_TIED,
    shared=("tie_embeddings", "rope_theta", "rotary_dim"),
    families={"gpt_neox": FAMILY},
    example=EXAMPLE | {"rotary_dim": 2},
)
