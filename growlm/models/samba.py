"""Samba (arXiv 2406.07522): Mamba-1 and sliding-window attention in turn, each with a SwiGLU after it.

A period is what the paper counts as two layers, (Mamba, SwiGLU) and (attention, SwiGLU): its 12 layers are 6 periods.
The stack counts periods, so depth grows by whole ones.
"""

import dataclasses
from typing import Any, ClassVar

from growlm.models.architecture import HEAD_UNLESS_TIED, Architecture, DecoderConfig, Norm, NormKind
from growlm.models.attention import attention_branch, check_groups, rotary_table
from growlm.models.axes import Axis, Kind
from growlm.models.llama import EXAMPLE, HEAD_AXES, STREAM_AXES, projections, window
from growlm.models.mamba import MAMBA
from growlm.models.swiglu import SWIGLU

AXES = (
    Axis("periods", Kind.STACK),
    *STREAM_AXES,
    # Padded with zeros in what writes it, a channel would stay zero: both factors of the gated product would be.
    Axis("channels", Kind.INNER, mesh="tensor", zero_reads=True),
    Axis("dt_rank", Kind.INNER),
    Axis("state", Kind.FIXED),
    Axis("taps", Kind.FIXED),
    *HEAD_AXES,
    Axis("mlp", Kind.INNER, mesh="tensor"),
    Axis("vocab", Kind.VOCAB, mesh="tensor"),
)


def _rotary(config: Any, length: int):
    return rotary_table(length, config.head_dim, config.rope_theta)


ATTENTION = attention_branch(
    (*projections(),),
    rotary=_rotary,
    window=window,
)


@dataclasses.dataclass(frozen=True)
class SambaConfig(DecoderConfig):
    """The shape of a Samba. Raises InputError, a ValueError, for values out of range.

    Attributes:
      periods: of (Mamba, SwiGLU, attention, SwiGLU); half of what the paper calls layers. It may be 0.
      embed, heads, kv_heads, head_dim, mlp, vocab: as in `ModelConfig`; both SwiGLUs are mlp wide.
      channels: of Mamba; 2 embed in the paper.
      dt_rank: the rank of the map from channels to their time steps; embed / 16, rounded up, in the paper.
      state, taps: of every channel, the size of the recurrent state and of the convolution.
      sliding_window: the number of positions that a query sees, its own the last; None for all before it.
      tie_embeddings, norm_eps, rope_theta: as in `ModelConfig`.
    """

    periods: int
    embed: int
    channels: int
    dt_rank: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    state: int = 16
    taps: int = 4
    sliding_window: int | None = 2048
    tie_embeddings: bool = False
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0

    architecture: ClassVar[Architecture]

    def __post_init__(self):
        self._check_integers("periods", least=0)
        self._check_integers("embed", "channels", "dt_rank", "state", "taps")
        self._check_integers("heads", "kv_heads", "head_dim", "mlp", "vocab")
        if self.sliding_window is not None:
            self._check_integers("sliding_window")
        self._check_numbers("norm_eps", "rope_theta")
        self._check_flags("tie_embeddings")
        check_groups(self)


SAMBA = Architecture(
    name="samba",
    config=SambaConfig,
    axes=AXES,
    period=(
        (MAMBA,),
        (dataclasses.replace(SWIGLU, name="mamba_mlp"),),
        (ATTENTION,),
        (dataclasses.replace(SWIGLU, name="attn_mlp"),),
    ),
    norm=Norm(NormKind.RMS),
    head=HEAD_UNLESS_TIED,
    shared=("tie_embeddings", "rope_theta", "sliding_window"),
    example={key: size for key, size in EXAMPLE.items() if key != "layers"}
    | {"periods": 1, "channels": 16, "dt_rank": 2, "kv_heads": 2, "state": 4, "sliding_window": 8},
)
