"""What a lift between architectures is: declared beside the architecture that it leads to, applied by growth."""

import dataclasses
from collections.abc import Callable, Mapping

from growlm.models.axes import DecoderConfig, Weight


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a lifted weight comes from.

    path: of the weight before the lift; None where the weight is new: a gain starts at one, all else at zero. dims: for
    every dimension of the array the dimension that it was, None for a new one of size 1.
    """

    path: str | None
    dims: tuple[int | None, ...] = ()


def itself(weight: Weight) -> Origin:
    """The origin of a weight that no lift changes."""
    return Origin(weight.path, tuple(range(len(weight.all_dims))))


@dataclasses.dataclass(frozen=True)
class Lift:
    """An exact re-parametrisation of a model into a larger family, with nothing grown yet.

    Attributes:
      name: as reports have it.
      says: what it does, in a clause.
      config: (source, target) -> the lifted config; None where this lift does not lead from there to there.
      origins: of the weights that it changes, by their path after the lift; every other weight stays.
    """

    name: str
    says: str
    config: Callable[[DecoderConfig, DecoderConfig], DecoderConfig | None]
    origins: Mapping[str, Origin]
