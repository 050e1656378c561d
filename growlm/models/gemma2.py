"""Gemma 2 (arXiv 2408.00118): Gemma with norms before and after each branch, capped scores and logits, and windows."""

import dataclasses
from typing import Any, ClassVar

from growlm.errors import check_positive
from growlm.models.architecture import HEAD_UNLESS_TIED, Architecture
from growlm.models.attention import attention_branch, rotary_table
from growlm.models.axes import Axis, Kind
from growlm.models.gemma import (
    GELU_TANH,
    NORM,
    GemmaConfig,
    check_settings,
    check_width,
    embed_scale,
    look_up_scaled,
    new_gemma,
)
from growlm.models.llama import AXES, EXAMPLE, TENSORS, Defaults, projections, read_shape, write_fields
from growlm.models.stored import Family, Settings, integer, stored, with_sizes
from growlm.models.swiglu import gated_branch
from growlm.models.windows import check_windows, read_windows, tables, variants, windows, write_windows


@dataclasses.dataclass(frozen=True)
class WindowedGemmaConfig(GemmaConfig):
    """What the shapes of Gemma 2 and Gemma 3 have in common.

    Attributes:
      query_scalar: scores are divided by its root, which need not be head_dim's.
      sliding_window: the number of positions that a query sees, its own the last; None for all before it.
      global_every: layers of this number, counted from 1, and its multiples have no window; 1 without windows.
      logit_cap: c, if logits are c tanh(logits / c).
    """

    query_scalar: int = 256
    sliding_window: int | None = None
    global_every: int = 1
    logit_cap: float | None = None

    def __post_init__(self):
        super().__post_init__()
        self._check_integers("query_scalar", "global_every")
        check_windows(self.sliding_window, self.global_every)
        self._check_cap("logit_cap")

    def _check_cap(self, name: str) -> None:
        if (cap := getattr(self, name)) is not None:
            check_positive(f"model.{name}", cap)


@dataclasses.dataclass(frozen=True)
class Gemma2Config(WindowedGemmaConfig):
    """The shape of a Gemma 2. `score_cap` is c, if scores of attention are c tanh(score / c)."""

    sliding_window: int | None = 4096
    global_every: int = 2
    logit_cap: float | None = 30.0
    score_cap: float | None = 50.0

    architecture: ClassVar[Architecture]

    def __post_init__(self):
        super().__post_init__()
        self._check_cap("score_cap")


def score_scale(config: Any) -> float:
    """The factor on scores."""
    return config.query_scalar**-0.5


# What a branch writes goes through a norm before the stream.
SANDWICH_AXES = (*AXES, Axis("added", Kind.NORMED, "embed", mesh="fsdp"))
SANDWICH_MLP = gated_branch(GELU_TANH, writes="added")

# The name of Llama's norm before the MLP is that of the one after attention.
SANDWICH_TENSORS = (
    *(row for row in TENSORS if row.paths != ("blocks/mlp_norm/scale",)),
    stored("model.layers.{layers}.post_attention_layernorm.weight", "blocks/attn_post_norm/scale"),
    stored("model.layers.{layers}.pre_feedforward_layernorm.weight", "blocks/mlp_norm/scale"),
    stored("model.layers.{layers}.post_feedforward_layernorm.weight", "blocks/mlp_post_norm/scale"),
)
SHARED = ("tie_embeddings", "rope_theta", "rope_scaling", "query_scalar", "sliding_window", "global_every", "logit_cap")

_SCALAR, _CAP = ("query_pre_attn_scalar", 256), "final_logit_softcapping"


@dataclasses.dataclass(frozen=True)
class GemmaDefaults(Defaults):
    """Defaults of a configuration class of transformers: global_every and logit_cap as well."""

    norm_eps: float = 1e-6
    head_dim: int | None = 256
    kv_heads: int | None = 4
    tied: bool = True
    global_every: int = 2
    logit_cap: float | None = None


def read_windowed(name: str, defaults: GemmaDefaults, settings: Settings) -> dict[str, Any]:
    """The fields of `WindowedGemmaConfig` in a config.json. Raises InputError."""
    check_settings(name, settings)
    fields = read_shape(name, defaults, settings)
    fields |= read_windows(name, settings, fields["layers"], defaults.global_every)
    scalar = integer(_SCALAR[0], settings.get(*_SCALAR))
    return fields | {"query_scalar": scalar, "logit_cap": settings.get(_CAP, defaults.logit_cap)}


def write_windowed(
    name: str, defaults: GemmaDefaults, model: WindowedGemmaConfig, settings: Settings
) -> dict[str, Any]:
    """A config.json with the sizes and windows of a model written into it. Raises InputError as `check_width`."""
    check_width(name, model)
    said = {_CAP: (model.logit_cap, defaults.logit_cap), _SCALAR[0]: (model.query_scalar, _SCALAR[1])}
    settings = write_fields(model, defaults, with_sizes(settings, said))
    return write_windows(model, settings, defaults.global_every)


_DEFAULTS = GemmaDefaults(logit_cap=30.0)
_SCORE_CAP = ("attn_logit_softcapping", 50.0)


def _rotary(config: Any, length: int):
    table = rotary_table(length, config.head_dim, config.rope_theta, config.rope_scaling)
    return tables(table, table)


def _read(settings: Settings) -> Gemma2Config:
    fields = read_windowed("gemma2", _DEFAULTS, settings)
    return Gemma2Config(**fields, score_cap=settings.get(*_SCORE_CAP))


def _write(model: Gemma2Config, settings: Settings) -> dict[str, Any]:
    if "model_type" not in settings:
        settings = {**new_gemma("gemma2", FAMILY.architecture, model), **settings}
    settings = with_sizes(settings, {_SCORE_CAP[0]: (model.score_cap, _SCORE_CAP[1])})
    return write_windowed("gemma2", _DEFAULTS, model, settings)


FAMILY = Family("gemma2", "Gemma2ForCausalLM", SANDWICH_TENSORS, read=_read, write=_write, holds=lambda model: True)

GEMMA2 = Architecture(
    name="gemma2",
    config=Gemma2Config,
    axes=SANDWICH_AXES,
    period=(
        (
            attention_branch(
                projections(writes="added", scores=score_scale),
                rotary=_rotary,
                window=windows,
                score_scale=score_scale,
                cap=lambda config: config.score_cap,
                variants=variants,
                writes="added",
            ),
        ),
        (SANDWICH_MLP,),
    ),
    norm=NORM,
    embed=look_up_scaled,
    embed_scale=embed_scale,
    head=HEAD_UNLESS_TIED,
    logit_cap=lambda config: config.logit_cap,
    shared=(*SHARED, "score_cap"),
    families={"gemma2": FAMILY},
    example=EXAMPLE | {"kv_heads": 2, "sliding_window": 8},
)
