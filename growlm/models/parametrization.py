"""Parametrisation: muP in width (Tensor Programs V, arXiv 2203.03466) and CompleteP in depth (arXiv 2505.01618).

A config names a base. There nothing differs from the standard parametrisation; away from it initial values, factors of
the forward pass, learning rates, decay and Adam's eps change such that activations, and what a step changes of them,
keep their size. All of it follows from the axes that a weight reads and writes, and from its role. With n / b the size
of an axis over its base, m their product over what a weight reads, and l = layers / base_layers:

    factor on what a branch adds        l^-alpha
    factor on logits                    1 / m of the head
    factor on scores                    sqrt(b) / n of head_dim, if that has a base
    initial values of matrices          as ever, / sqrt(m); residual writers depend on base_layers, not on layers
    of lookups and head                 those of the base
    learning rate of matrices           l^(alpha - 1) / m
    of other weights of blocks          l^(alpha - 1)
    of lookups, last norm, head         1
    weight decay of matrices            m, so that learning rate x decay stays
    eps                                 as gradients: / product of n / b over what is written, x l^-alpha in blocks,
                                        / m for the head
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, ClassVar

from growlm.errors import unknown
from growlm.models.architecture import DecoderConfig, check_integer
from growlm.models.attention import score_scale
from growlm.models.axes import Axis, Kind, Weight

# The fields, none of which growth keeps: it undoes the factors that change.
FIELDS = ("base_layers", "depth_alpha", "base_widths")


@dataclasses.dataclass(frozen=True)
class Parametrised(DecoderConfig):
    """A config with a base.

    Attributes:
      base_layers: the layers of the base, for CompleteP; None: nothing depends on the number of layers but the initial
        values of residual writers.
      depth_alpha: alpha; 1 is CompleteP's, 1/2 that of Depth-muP.
      base_widths: the base's sizes by field, for muP, such as {"embed": 64, "heads": 2, "mlp": 176}. A size without a
        base may not differ between models that share learning rates. None: the standard parametrisation.
    """

    base_layers: int | None = dataclasses.field(default=None, kw_only=True)
    depth_alpha: float = dataclasses.field(default=1.0, kw_only=True)
    base_widths: dict[str, int] | None = dataclasses.field(default=None, kw_only=True, hash=False)

    newer: ClassVar[tuple[str, ...]] = FIELDS

    def _check_base(self) -> None:
        if self.base_layers is not None:
            self._check_integers("base_layers")
        if self.depth_alpha != 0:
            self._check_numbers("depth_alpha")
        no_width = (Kind.STACK, Kind.VOCAB, Kind.EXPERTS)
        widths = {axis.field for axis in self.architecture.axes if axis.kind not in no_width}
        for field, size in (self.base_widths or {}).items():
            if field not in widths:
                raise unknown("size in model.base_widths", field, widths)
            check_integer(f"model.base_widths[{field!r}]", size)

    def base_size(self, axis: Axis) -> int:
        """The size of an axis in the base."""
        if axis.kind is Kind.STACK:
            return self.size(axis) if self.base_layers is None else self.base_layers
        return (self.base_widths or {}).get(axis.field, self.size(axis))

    @property
    def has_base(self) -> bool:
        """Whether it has a base, whose factors no family of transformers knows."""
        return self.base_layers is not None or self.base_widths is not None


def residual_scale(config: Any) -> float | None:
    """The factor on what a branch adds, or None."""
    return None if config.base_layers is None else _deeper(config) ** -config.depth_alpha


def logit_scale(config: Any) -> float | None:
    """The factor on logits, or None."""
    return None if config.base_widths is None else 1 / _wider([config.architecture.final], config)


def query_scale(config: Any) -> float:
    """The factor on products of queries and keys."""
    heads = [axis for axis in config.architecture.axes if axis.field == "head_dim"]
    return score_scale(config) / math.sqrt(_wider(heads, config))


def kernel_scale(config: Any) -> float | None:
    """`query_scale`, or None where it is the kernels' own."""
    return query_scale(config) if "head_dim" in (config.base_widths or {}) else None


def learning_rate(weight: Weight, config: DecoderConfig, spectral: bool = False) -> float:
    """The factor on a weight's learning rate.

    spectral: an update has the spectral norm sqrt(out / in), which is muP's by itself (arXiv 2310.17813). Otherwise its
    entries have one size over all shapes, as Adam's have.
    """
    if not weight.stacked:
        return 1.0
    return _deeper(config) ** (config.depth_alpha - 1) / (1.0 if spectral else weight_decay(weight, config))


def weight_decay(weight: Weight, config: DecoderConfig, spectral: bool = False) -> float:
    """The factor on a weight's decay, which its learning rate multiplies; `spectral` as for that."""
    return _wider(weight.summed, config) if weight.hidden and not spectral else 1.0


def eps(weight: Weight, config: DecoderConfig) -> float:
    """The factor on Adam's eps: that of the weight's gradient."""
    head = weight.writes(Kind.VOCAB)
    written = [dim.writes for dim in weight.dims if dim.writes and not dim.many]
    by_depth = _deeper(config) ** -config.depth_alpha if weight.stacked else 1.0
    return by_depth / _wider(weight.summed if head else written, config)


def _wider(axes: Iterable[Axis], config: DecoderConfig) -> float:
    """The product of the sizes of axes, each over its size in the base."""
    return math.prod(config.size(axis) / config.base_size(axis) for axis in axes)


def _deeper(config: DecoderConfig) -> float:
    """The layers over those of the base."""
    stack = config.architecture.stack
    return max(config.size(stack), 1) / max(config.base_size(stack), 1)
