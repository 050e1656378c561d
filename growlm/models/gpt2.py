"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm and biases, attention and then MLP, a tied head."""

import dataclasses
import re
from functools import partial
from typing import Any, ClassVar

import jax

from growlm.errors import must_be
from growlm.models.architecture import EMBEDDING, HEAD_UNLESS_TIED, Architecture, DecoderConfig, Norm, NormKind
from growlm.models.attention import attention_branch
from growlm.models.axes import Axis, Kind, Role, WeightSpec
from growlm.models.llama import EXAMPLE, STREAM_AXES
from growlm.models.mlp import mlp_branch
from growlm.models.stored import Family, Settings, check_fixed, check_heads, integer, layers_of, stored, with_sizes


@dataclasses.dataclass(frozen=True)
class Gpt2Config(DecoderConfig):
    """The shape of a GPT-2-like decoder. Raises InputError for values out of range.

    Attributes:
      layers, embed, heads, head_dim, mlp, vocab: sizes, positive integers (layers may be 0).
      positions: the number of learned positions, beyond which no sequence may go.
      tie_embeddings: the embedding is the head.
      norm_eps: of LayerNorm.
    """

    layers: int
    embed: int
    heads: int
    head_dim: int
    mlp: int
    vocab: int
    positions: int = 1024
    tie_embeddings: bool = True
    norm_eps: float = 1e-5

    architecture: ClassVar[Architecture]

    def __post_init__(self):
        self._check_integers("layers", least=0)
        self._check_integers("embed", "heads", "head_dim", "mlp", "vocab", "positions")
        self._check_numbers("norm_eps")
        self._check_flags("tie_embeddings")


def _embed(lookups: Any, config: Any, tokens_BT: jax.Array, position_BT: Any = None) -> jax.Array:
    """The stream before the first layer, [B x T, D]: rows of the embedding plus those of the positions."""
    places = slice(tokens_BT.shape[1]) if position_BT is None else position_BT
    x_BTD = lookups["embedding"][tokens_BT] + lookups["positions"][places]
    return x_BTD.reshape(-1, x_BTD.shape[-1])


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
    rotary=lambda config, length: None,
)
_MLP = mlp_branch(partial(jax.nn.gelu, approximate=True), biases=True)

# The files of the bare model, such as the released ones, have names without it.
_PREFIX = "transformer."
_LAYER = _PREFIX + "h.{layers}."
_QKV = [[f"blocks/attn/{name}{kind}" for name in ("query", "key", "value")] for kind in ("", "_bias")]
_TENSORS = (
    stored(_PREFIX + "wte.weight", "embedding"),
    stored(_PREFIX + "wpe.weight", "positions"),
    stored(_LAYER + "ln_1.weight", "blocks/attn_norm/scale"),
    stored(_LAYER + "ln_1.bias", "blocks/attn_norm/bias"),
    # Matrices are stored as (in, out), with all queries, then all keys, then all values as columns.
    stored(_LAYER + "attn.c_attn.weight", *_QKV[0], order="embed heads head_dim", join=1),
    stored(_LAYER + "attn.c_attn.bias", *_QKV[1]),
    stored(_LAYER + "attn.c_proj.weight", "blocks/attn/out", order="heads head_dim stream"),
    stored(_LAYER + "attn.c_proj.bias", "blocks/attn/out_bias"),
    stored(_LAYER + "ln_2.weight", "blocks/mlp_norm/scale"),
    stored(_LAYER + "ln_2.bias", "blocks/mlp_norm/bias"),
    stored(_LAYER + "mlp.c_fc.weight", "blocks/mlp/up", order="embed mlp"),
    stored(_LAYER + "mlp.c_fc.bias", "blocks/mlp/up_bias"),
    stored(_LAYER + "mlp.c_proj.weight", "blocks/mlp/down", order="mlp stream"),
    stored(_LAYER + "mlp.c_proj.bias", "blocks/mlp/down_bias"),
    stored(_PREFIX + "ln_f.weight", "final_norm/scale"),
    stored(_PREFIX + "ln_f.bias", "final_norm/bias"),
    stored("lm_head.weight", "head"),
)

_SIZES = {
    "layers": "n_layer",
    "embed": "n_embd",
    "heads": "n_head",
    "vocab": "vocab_size",
    "positions": "n_positions",
}
_FIXED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "quantization_config": None,
}
_GELUS = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")  # three names of one function


def _read(settings: Settings) -> Gpt2Config:
    check_fixed("gpt2", settings, _FIXED)
    layers_of(settings, _SIZES["layers"])
    if (activation := settings.get("activation_function", _GELUS[0])) not in _GELUS:
        raise must_be("config.json: activation_function of gpt2", f"one of {', '.join(_GELUS)}", activation)
    sizes = {field: integer(key, settings.get(key), least=field != "layers") for field, key in _SIZES.items()}
    if sizes["embed"] % sizes["heads"]:
        raise must_be("config.json: n_embd", f"a multiple of n_head, {sizes['heads']}", sizes["embed"])
    inner = settings.get("n_inner")
    return Gpt2Config(
        **sizes,
        head_dim=sizes["embed"] // sizes["heads"],
        mlp=4 * sizes["embed"] if inner is None else integer("n_inner", inner),
        tie_embeddings=settings.get("tie_word_embeddings", True),
        norm_eps=settings.get("layer_norm_epsilon", 1e-5),
    )


def _write(model: Gpt2Config, settings: Settings) -> dict[str, Any]:
    check_heads("gpt2", model)
    if "model_type" not in settings:
        # For transformers, max_position_embeddings would be another name of n_positions.
        of_others = {key: value for key, value in settings.items() if key != "max_position_embeddings"}
        settings = {**_NEW, **of_others}
    said: dict[str, tuple[Any, Any]] = {key: (getattr(model, field), None) for field, key in _SIZES.items()}
    if settings.get("n_inner", 0) is not None or model.mlp != 4 * model.embed:
        said["n_inner"] = model.mlp, 4 * model.embed
    said["layer_norm_epsilon"] = model.norm_eps, 1e-5
    return with_sizes(settings, said | {"tie_word_embeddings": (model.tie_embeddings, True)})


FAMILY = Family(
    "gpt2",
    "GPT2LMHeadModel",
    _TENSORS,
    read=_read,
    write=_write,
    holds=lambda model: True,
    # Masks in old checkpoints.
    computed=re.compile(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)"),
    prefix=_PREFIX,
)

# The entries of a new config.json that do not depend on sizes.
_NEW = {
    "architectures": [FAMILY.architecture],
    "model_type": FAMILY.model_type,
    "activation_function": _GELUS[0],
    "bos_token_id": None,
    "eos_token_id": None,
}

GPT2 = Architecture(
    name="gpt2",
    config=Gpt2Config,
    axes=(
        Axis("layers", Kind.STACK),
        *STREAM_AXES,
        Axis("heads", Kind.HEADS, mesh="tensor"),
        Axis("head_dim", Kind.FIXED),
        Axis("mlp", Kind.INNER, mesh="tensor"),
        Axis("vocab", Kind.VOCAB, mesh="tensor"),
        Axis("positions", Kind.FIXED),
    ),
    period=((_ATTENTION,), (_MLP,)),
    norm=Norm(NormKind.LAYER, bias=True),
    # Positions start at the scale of the embedding, as there.
    lookups=(EMBEDDING, dataclasses.replace(EMBEDDING, name="positions", dims="positions> >stream")),
    embed=_embed,
    head=HEAD_UNLESS_TIED,
    longest=lambda config: config.positions,
    shared=("tie_embeddings",),
    families={"gpt2": FAMILY},
    example=EXAMPLE | {"positions": 128},
)
