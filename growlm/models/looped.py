"""Prelude, core and coda: a core of layers that is run again, by itself or by copies of it, and that may grow.

The architecture of arXiv 2609.19107: RMSNorms without gains, also of queries and keys and after the embedding; writers
and head that start at zero; factors on what a branch adds and on logits; and a boundary after every pass through a
core, which normalises the stream and adds what the prelude gave. Without a boundary it is that paper's Vanilla.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from growlm.errors import check_positive, must_be
from growlm.models.architecture import Architecture, DecoderConfig, Norm, NormKind, Section
from growlm.models.attention import attention_branch, rotary_table
from growlm.models.axes import Axis, Kind, Role, WeightSpec
from growlm.models.layers import rms_norm
from growlm.models.llama import EXAMPLE, STREAM_AXES
from growlm.models.swiglu import SWIGLU


@dataclasses.dataclass(frozen=True)
class LoopedConfig(DecoderConfig):
    """The shape of a decoder with a core. Raises InputError for values out of range.

    Attributes:
      layers: all layers that are stored: prelude + cores x (layers of a core) + coda.
      embed, heads, head_dim, mlp, vocab: sizes; head_dim is even, for RoPE.
      prelude, coda: the layers before the first core and after the last one.
      cores: the number of cores with weights of their own.
      passes: how often a single core is run; 1 if there are more.
      injection: alpha, the factor on what the boundary adds; None for no boundary.
      residual_multiplier, output_multiplier: on what a branch adds, and on logits.
      init_scale: u; matrices start uniform in +- u / sqrt(embed).
      embedding_std: s, with which the embedding starts. It is normalised at once, so s acts through the optimizer.
      norm_eps, rope_theta: of RMSNorms (float32's epsilon, PyTorch's default) and of rotary frequencies.
    """

    layers: int
    embed: int
    heads: int
    head_dim: int
    mlp: int
    vocab: int
    prelude: int = 0
    coda: int = 0
    cores: int = 1
    passes: int = 1
    injection: float | None = None
    residual_multiplier: float = 1.0
    output_multiplier: float = 1.0
    init_scale: float = 0.3536
    embedding_std: float = 0.01
    norm_eps: float = 1.1920929e-07
    rope_theta: float = 10000.0

    architecture: ClassVar[Architecture]

    def __post_init__(self):
        self._check_integers("layers", "prelude", "coda", least=0)
        self._check_integers("embed", "heads", "head_dim", "mlp", "vocab", "cores", "passes")
        self._check_numbers("residual_multiplier", "output_multiplier", "init_scale", "embedding_std")
        self._check_numbers("norm_eps", "rope_theta")
        if self.injection is not None:
            check_positive("model.injection", self.injection)
        if self.head_dim % 2:
            raise must_be("model.head_dim", "even, as RoPE rotates pairs", self.head_dim)
        inner = self.layers - self.prelude - self.coda
        if inner < 0 or inner % self.cores:
            ends = f"{self.prelude} + {self.coda}"
            rule = f"model.prelude + model.coda + a multiple of model.cores, {ends} + n x {self.cores}"
            raise must_be("model.layers", rule, self.layers)
        if self.passes > 1 and self.cores > 1:
            raise must_be("model.passes", f"1 with {self.cores} cores, each of which is run once", self.passes)

    @property
    def core(self) -> int:
        """The layers of one core."""
        return (self.layers - self.prelude - self.coda) // self.cores


def _sections(config: Any) -> tuple[Section, ...]:
    core = Section("core", config.core, config.passes, boundary=config.injection is not None)
    return (Section("prelude", config.prelude), *[core] * config.cores, Section("coda", config.coda))


def _boundary(config: Any, x_ND: jax.Array, entry_ND: jax.Array) -> jax.Array:
    """x <- norm(x) + alpha e, with e the stream after the prelude, which is not normalised."""
    return rms_norm(x_ND, config.norm_eps) + jnp.asarray(config.injection, x_ND.dtype) * entry_ND


def _embed(weights: dict[str, jax.Array], config: Any, tokens_BT: jax.Array, position_BT: Any = None) -> jax.Array:
    return rms_norm(weights["embedding"][tokens_BT.reshape(-1)], config.norm_eps)


def _uniform(key: jax.Array, config: Any, shape: tuple[int, ...]) -> jax.Array:
    bound = config.init_scale * config.embed**-0.5
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def _normal(key: jax.Array, config: Any, shape: tuple[int, ...]) -> jax.Array:
    return config.embedding_std * jax.random.normal(key, shape, jnp.float32)


def _rotary(config: Any, length: int) -> tuple[jax.Array, jax.Array]:
    """Tables that turn by minus the angle, as the published code does."""
    cos, sin = rotary_table(length, config.head_dim, config.rope_theta)
    return cos, -sin


def _scale(config: Any) -> float:
    return config.residual_multiplier


_ATTENTION = attention_branch(
    (
        WeightSpec("query", "embed> >heads >head_dim", init=_uniform),
        WeightSpec("key", "embed> >heads >head_dim", init=_uniform),
        WeightSpec("value", "embed> >heads >head_dim", init=_uniform),
        WeightSpec("out", "heads> head_dim> >stream", init="zeros"),
    ),
    rotary=_rotary,
    normed=True,
    scale=_scale,
)
_MLP = dataclasses.replace(
    SWIGLU,
    weights=(
        WeightSpec("gate", "embed> >mlp", init=_uniform),
        WeightSpec("up", "embed> >mlp", init=_uniform),
        WeightSpec("down", "mlp> >stream", init="zeros"),
    ),
    scale=_scale,
)

LOOPED = Architecture(
    name="looped",
    config=LoopedConfig,
    axes=(
        Axis("layers", Kind.STACK),
        *STREAM_AXES,
        Axis("heads", Kind.HEADS, mesh="tensor"),
        Axis("head_dim", Kind.FIXED),
        Axis("mlp", Kind.INNER, mesh="tensor"),
        Axis("vocab", Kind.VOCAB, mesh="tensor"),
    ),
    period=((_ATTENTION,), (_MLP,)),
    norm=Norm(NormKind.RMS, scale=False),
    lookups=(WeightSpec("embedding", "vocab> >stream", Role.LOOKUP, init=_normal),),
    embed=_embed,
    head=WeightSpec("head", "final> >vocab", init="zeros"),
    logit_scale=lambda config: config.output_multiplier,
    sections=_sections,
    boundary=_boundary,
    keeps_scale=True,
    shared=("prelude", "coda", "injection", "rope_theta"),
    example=EXAMPLE | {"layers": 4, "prelude": 1, "coda": 1, "injection": 1.0},
    free=("norm_eps", "cores", "passes", "residual_multiplier", "output_multiplier", "init_scale", "embedding_std"),
)


def thirds(layers: int) -> tuple[int, int, int]:
    """(prelude, core, coda) of a base stack: a remainder of 1 goes to the core, of 2 to core and coda."""
    third, rest = divmod(layers, 3)
    return third, third + (rest > 0), third + (rest > 1)


def before_growth(target: DecoderConfig) -> LoopedConfig:
    """The model from which the paper grows: half of the cores, or of the passes. Raises InputError for odd numbers."""
    if not isinstance(target, LoopedConfig):
        raise must_be("the target's architecture", f"{LOOPED.name}, which has cores", target.architecture.name)
    field = "cores" if target.cores > 1 else "passes"
    number = getattr(target, field)
    if number % 2:
        raise must_be(f"model.{field}", "even, to be doubled by growth", number)
    layers = target.layers - target.core * number // 2 if field == "cores" else target.layers
    return dataclasses.replace(target, layers=layers, **{field: number // 2})
