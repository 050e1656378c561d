"""Gemma 3 (arXiv 2503.19786), its text model: Gemma 2 with norms on query and key heads, and two rotary bases."""

import dataclasses
from typing import Any, ClassVar

from growlm.models.architecture import HEAD_UNLESS_TIED, Architecture
from growlm.models.attention import attention_branch, rotary_table
from growlm.models.axes import Role, WeightSpec
from growlm.models.gemma import NORM, embed_scale, look_up_scaled, new_gemma
from growlm.models.gemma2 import (
    SANDWICH_AXES,
    SANDWICH_MLP,
    SANDWICH_TENSORS,
    SHARED,
    GemmaDefaults,
    WindowedGemmaConfig,
    read_windowed,
    score_scale,
    write_windowed,
)
from growlm.models.llama import EXAMPLE, projections
from growlm.models.stored import Family, Settings, check_fixed
from growlm.models.windows import FULL, SLIDING, tables, variants, windows


@dataclasses.dataclass(frozen=True)
class Gemma3Config(WindowedGemmaConfig):
    """The shape of a Gemma 3.

    Attributes:
      rope_theta, rope_scaling: of layers that see all positions.
      local_rope_theta: of layers with a window.
    """

    rope_theta: float = 1e6
    sliding_window: int | None = 4096
    global_every: int = 6
    local_rope_theta: float = 10000.0

    architecture: ClassVar[Architecture]

    def __post_init__(self):
        super().__post_init__()
        self._check_numbers("local_rope_theta")


def _rotary(config: Any, length: int):
    full = rotary_table(length, config.head_dim, config.rope_theta, config.rope_scaling)
    return tables(full, rotary_table(length, config.head_dim, config.local_rope_theta))


_ATTENTION = attention_branch(
    (
        *projections(writes="added", scores=score_scale),
        WeightSpec("query_norm", "head_dim>head_dim", Role.GAIN, init="zeros", offset=1.0),
        WeightSpec("key_norm", "head_dim>head_dim", Role.GAIN, init="zeros", offset=1.0),
    ),
    rotary=_rotary,
    window=windows,
    score_scale=score_scale,
    variants=variants,
    writes="added",
)

_DEFAULTS = GemmaDefaults(rope_theta=1e6, global_every=6)
_LOCAL = ("rope_local_base_freq", 10000.0)


def _read(settings: Settings) -> Gemma3Config:
    # transformers has the key and does nothing with it.
    check_fixed("gemma3_text", settings, {"attn_logit_softcapping": None})
    rope, local = settings.get("rope_parameters"), settings.get(*_LOCAL)
    if isinstance(rope, dict) and {FULL, SLIDING} & rope.keys():
        full, sliding = (rope.get(kind) or {} for kind in (FULL, SLIDING))
        check_fixed("gemma3_text on layers with a window", sliding, {"rope_type": "default"})
        settings, local = {**settings, "rope_parameters": full}, sliding.get("rope_theta", local)
    fields = read_windowed("gemma3_text", _DEFAULTS, settings)
    return Gemma3Config(**fields, local_rope_theta=local)


def _write(model: Gemma3Config, settings: Settings) -> dict[str, Any]:
    if "model_type" not in settings:
        new = new_gemma("gemma3_text", FAMILY.architecture, model) | {_LOCAL[0]: model.local_rope_theta}
        settings = {**new, **settings}
    return write_windowed("gemma3_text", _DEFAULTS, model, settings)


FAMILY = Family(
    "gemma3_text", "Gemma3ForCausalLM", SANDWICH_TENSORS, read=_read, write=_write, holds=lambda model: True
)

GEMMA3 = Architecture(
    name="gemma3_text",
    config=Gemma3Config,
    axes=SANDWICH_AXES,
    period=((_ATTENTION,), (SANDWICH_MLP,)),
    norm=NORM,
    embed=look_up_scaled,
    embed_scale=embed_scale,
    head=HEAD_UNLESS_TIED,
    logit_cap=lambda config: config.logit_cap,
    shared=(*SHARED, "local_rope_theta"),
    families={"gemma3_text": FAMILY},
    example=EXAMPLE | {"kv_heads": 2, "sliding_window": 8, "global_every": 2},
)
