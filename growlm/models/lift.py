"""The declaration of a lift between architectures, which growth applies (`growlm.growth.lifts`)."""

import dataclasses
from collections.abc import Callable, Mapping

from growlm.models.architecture import DecoderConfig
from growlm.models.axes import Weight


@dataclasses.dataclass(frozen=True)
class Origin:
    """The origin of a lifted weight.

    Attributes:
      path: of the weight before the lift; None for a new weight, which starts at one if it is a gain, else at zero.
      dims: for every dimension of the array, its dimension before the lift; None for a new one of size 1.
      drawn: for a new weight, that the growth after the lift gives it initial values; the lift must be exact for any.
      factor: by which the weight before the lift is multiplied.
    """

    path: str | None
    dims: tuple[int | None, ...] = ()
    drawn: bool = False
    factor: float = 1.0


def itself(weight: Weight) -> Origin:
    """The origin of an unchanged weight."""
    return Origin(weight.path, tuple(range(len(weight.all_dims))))


@dataclasses.dataclass(frozen=True)
class Lift:
    """An exact re-parametrisation of a model into a larger family, with nothing grown yet.

    Attributes:
      name: in reports.
      says: what it does, in words.
      config: (source, target) -> the lifted config; None if the lift does not lead from source to target.
      origins: of changed weights, by their path after the lift.
    """

    name: str
    says: str
    config: Callable[[DecoderConfig, DecoderConfig], DecoderConfig | None]
    origins: Mapping[str, Origin]
