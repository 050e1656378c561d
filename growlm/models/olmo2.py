"""OLMo 2 (arXiv 2501.00656): RMSNorm after each branch and none before it, and on all query and all key heads together.

OLMo 3 is OLMo 2 with a sliding window on all layers but every fourth.
"""

import dataclasses
from functools import partial
from typing import Any, ClassVar

from flax import linen as nn

from growlm.errors import must_be
from growlm.models.architecture import HEAD_UNLESS_TIED, Architecture, Norm, NormKind
from growlm.models.attention import RopeScaling, attention_branch, rotary_table
from growlm.models.axes import Axis, Kind, Role, WeightSpec
from growlm.models.llama import (
    EXAMPLE,
    FIXED,
    HEAD_AXES,
    TENSORS,
    Defaults,
    GroupedConfig,
    check_scaling,
    new_settings,
    projections,
    read_shape,
    write_fields,
)
from growlm.models.stored import Family, Settings, check_fixed, stored
from growlm.models.swiglu import gated_branch
from growlm.models.windows import FULL, SLIDING, check_windows, read_windows, tables, variants, windows, write_windows


@dataclasses.dataclass(frozen=True)
class Olmo2Config(GroupedConfig):
    """The shape of an OLMo 2, or of an OLMo 3, which has windows.

    Attributes:
      rope_scaling: of rotary frequencies, on layers without a window.
      sliding_window: the number of positions that a query sees, its own the last; None for all before it.
      global_every: layers of this number, counted from 1, and its multiples have no window; 1 without windows.
    """

    rope_scaling: RopeScaling | None = None
    sliding_window: int | None = None
    global_every: int = 1

    architecture: ClassVar[Architecture]

    def __post_init__(self):
        super().__post_init__()
        self._check_integers("global_every")
        check_scaling(self.rope_scaling)
        check_windows(self.sliding_window, self.global_every)


def _rotary(config: Any, length: int):
    table = partial(rotary_table, length, config.head_dim, config.rope_theta)
    return tables(table(config.rope_scaling), table())


# Branches read the stream itself, and what they write goes through a norm before the stream.
_ATTENTION = attention_branch(
    (
        *projections(reads="stream", writes="added"),
        WeightSpec("query_norm", "heads>heads head_dim>head_dim", Role.GAIN),
        WeightSpec("key_norm", "key_heads>key_heads head_dim>head_dim", Role.GAIN),
    ),
    rotary=_rotary,
    window=windows,
    variants=variants,
    reads="stream",
    writes="added",
    means=("heads", "key_heads"),
)
_MLP = gated_branch(nn.silu, reads="stream", writes="added")

# Tensors whose names are Llama's, though the norm there is another one.
_NORMS = ("blocks/attn_norm/scale", "blocks/mlp_norm/scale")
_TENSORS = (
    *(row for row in TENSORS if row.paths[0] not in _NORMS),
    stored("model.layers.{layers}.post_attention_layernorm.weight", "blocks/attn_post_norm/scale"),
    stored("model.layers.{layers}.post_feedforward_layernorm.weight", "blocks/mlp_post_norm/scale"),
)
_DEFAULTS = {"olmo2": Defaults(norm_eps=1e-5), "olmo3": Defaults(norm_eps=1e-5, rope_theta=500000.0)}
_EVERY = 4  # in OLMo 3


def _read(name: str, settings: Settings) -> Olmo2Config:
    check_fixed(name, settings, FIXED)
    if name == "olmo2":
        return Olmo2Config(**read_shape(name, _DEFAULTS[name], settings))
    fields = read_shape(name, _DEFAULTS[name], _with_rope_of_full_layers(settings))
    return Olmo2Config(**fields, **read_windows(name, settings, fields["layers"], _EVERY))


def _with_rope_of_full_layers(settings: Settings) -> Settings:
    """A config.json of OLMo 3 that has the rotary settings of full layers alone. Raises InputError."""
    rope = settings.get("rope_parameters")
    if not isinstance(rope, dict) or FULL not in rope:
        return settings
    full, sliding = (rope.get(kind) or {} for kind in (FULL, SLIDING))
    expected = {"rope_type": "default", "rope_theta": full.get("rope_theta")}
    if {key: sliding.get(key, value) for key, value in expected.items()} != expected:
        raise must_be("config.json: rope_parameters of olmo3 on sliding_attention", str(expected), sliding)
    return {**settings, "rope_parameters": full}


def _write(name: str, model: Olmo2Config, settings: Settings) -> dict[str, Any]:
    if "model_type" not in settings:
        settings = {**_new(name, model), **settings}
    settings = write_fields(model, _DEFAULTS[name], settings)
    return settings if name == "olmo2" else write_windows(model, settings, _EVERY)


def _new(name: str, model: Olmo2Config) -> dict[str, Any]:
    """The entries of a new config.json that do not depend on sizes."""
    new = new_settings(name, FAMILIES[name].architecture, model)
    if name == "olmo2":
        return new
    # By kind of layer, as the older keys leave the windowed ones at the default.
    plain = {"rope_type": "default", "rope_theta": model.rope_theta}
    full = plain | (new["rope_scaling"] or {})
    return new | {"rope_parameters": {FULL: full, SLIDING: plain}}


FAMILIES = {
    name: Family(
        name,
        f"O{name[1:]}ForCausalLM",
        _TENSORS,
        read=partial(_read, name),
        write=partial(_write, name),
        holds=holds,
    )
    for name, holds in {
        "olmo2": lambda model: model.sliding_window is None,
        "olmo3": lambda model: True,
    }.items()
}

OLMO2 = Architecture(
    name="olmo2",
    config=Olmo2Config,
    axes=(
        Axis("layers", Kind.STACK),
        Axis("stream", Kind.STREAM, "embed", mesh="fsdp"),
        Axis("added", Kind.NORMED, "embed", mesh="fsdp"),
        Axis("final", Kind.READ, "embed", mesh="fsdp", of="stream"),
        *HEAD_AXES,
        Axis("mlp", Kind.INNER, mesh="tensor"),
        Axis("vocab", Kind.VOCAB, mesh="tensor"),
    ),
    period=((_ATTENTION,), (_MLP,)),
    norm=Norm(NormKind.RMS),
    head=HEAD_UNLESS_TIED,
    shared=("tie_embeddings", "rope_theta", "rope_scaling", "sliding_window", "global_every"),
    families=FAMILIES,
    example=EXAMPLE | {"kv_heads": 2, "sliding_window": 8, "global_every": 2},
)
