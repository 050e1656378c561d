"""What a published system is: an operator with its options, and how it is trained: stages, budgets, rates, optimizer.

A preset is a named choice of an operator and its options, not a code path.
"""

import dataclasses
import itertools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from growlm.errors import InputError, must_be
from growlm.models import DecoderConfig, Kind

Sizes = Callable[[int], tuple[float, ...]]

# How the schedules of a system's stages relate to its target's:
# "restart": each stage has it for itself. "rewind": the same, but without warm-up after a growth. "constant": stages
# before the last stay at its peak. "continue": it is one schedule over all stages.
RATES = ("restart", "rewind", "constant", "continue")


def parts(text: str) -> Sizes:
    """Sizes as parts of a target's: "1/4 1" is a quarter of it, then the whole."""
    shares = [Fraction(part) for part in text.split()]
    return lambda size: tuple(float(size * share) for share in shares)


WHOLE = parts("1")
STILL = (Kind.EXPERTS, Kind.HEAD)


def growing(stages: int, power: float) -> tuple[float, ...]:
    """PROP-a of MIDAS (arXiv 2409.19044): stage i of k has the share i^a / sum_j j^a."""
    return tuple((number + 1) ** power for number in range(stages))


def _nothing(tokens: int, steps: int) -> dict[str, Any]:
    return {}


@dataclasses.dataclass(frozen=True)
class StageShape:
    """One stage of a published schedule: its model, and the `StageConfig` settings by which it trains.

    share: of the run's tokens.
    """

    model: DecoderConfig
    frozen_layers: int = 0
    submodel_layers: int = 0
    share: float = 1.0
    sparsity: float = 0.0


@dataclasses.dataclass(frozen=True)
class Preset:
    """A published system.

    Attributes:
      name: its name here.
      paper: where it was published, and its name there.
      published, ours, unknown: what of the row is the paper's, what ours, and what nobody has published.
      operator, options: the growth, as for `growlm.grow`.
      by_budget: from the tokens and updates of training the target from scratch to further options.
      optimizer_state: as for `grow_state`.
      train: what trains after growth, "all" or the "new" slices.
      depths, widths: from a target's size to the sizes of all stages; the last one is the target's. They are from an
        experiment of the paper where known; otherwise a doubling.
      still: the kinds of axes whose sizes `widths` leaves as they are.
      experts, chosen: the same for the number of experts of a mixture, and of those of a token, at most all.
      shares: how the tokens of a run are shared out among its stages, as any numbers; empty for equal parts.
      rates: in `RATES`.
      schedule: settings of the schedule that are the system's.
      rewarm_steps, rewarm: with "continue", the updates after a growth over which the rate rises to it again, and of
        what, "all" or the "new" slices.
      based: the target must name a base, by which rates hold over widths.
      frozen_below: stages that add layers on top freeze the layers below them.
      submodels: the number of sub-models of which the stage after the first growth samples one for each step; 0: none.
      sparsities: of the stages, from a static mask to none.
      layers: a target depth that the schedule divides, the published one where known.
      before: from a target to the shape before the growth, where sizes alone do not say it.
      example: a target, where a Llama of the schedule's sizes is none.
    """

    name: str
    paper: str
    published: str
    ours: str = ""
    unknown: str = ""
    operator: str = "direct"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    by_budget: Callable[[int, int], dict[str, Any]] = _nothing
    optimizer_state: str = "reset"
    train: str = "all"
    depths: Sizes = WHOLE
    widths: Sizes = WHOLE
    still: tuple[Kind, ...] = STILL
    experts: Sizes = WHOLE
    chosen: Sizes = WHOLE
    shares: tuple[float, ...] = ()
    rates: str = "restart"
    schedule: dict[str, Any] = dataclasses.field(default_factory=dict)
    rewarm_steps: int = 0
    rewarm: str = "all"
    based: bool = False
    frozen_below: bool = False
    submodels: int = 0
    sparsities: tuple[float, ...] = ()
    layers: int = 24
    before: Callable[[Any], DecoderConfig] | None = None
    example: DecoderConfig | None = None

    def stages(self, target: DecoderConfig) -> tuple[StageShape, ...]:
        """The published schedule, scaled to a target, from the first shape to the target itself.

        All widths scale by one factor, numbers of heads too; heads keep their size. Raises InputError where a size
        is not an integer.
        """
        if self.based and not getattr(target, "base_widths", None):
            raise must_be("model.base_widths", f"sizes of a base, for muP, in preset {self.name!r}", None)
        if self.before is not None and self.example is not None and not isinstance(target, type(self.example)):
            own = self.example.architecture.name
            raise must_be(f"the architecture of preset {self.name!r}", own, target.architecture.name)
        if self.before is not None:
            return tuple(map(StageShape, (self.before(target), target), (0, 0), (0, 0), self._shares(2)))
        depth = target.architecture.stack.field
        routed = target.architecture.of_kind(Kind.EXPERTS)
        number = max(
            len(self.depths(getattr(target, depth))),
            len(self.widths(target.size(target.architecture.stream))),
            *(len(self.experts(target.size(axis))) for axis in routed),
            len(self.sparsities),
        )
        depths = self._sizes(target, depth, self.depths, number)
        widths = {name: self._sizes(target, name, self.widths, number) for name in scaled_widths(target, self.still)}
        for axis in routed:
            experts, chosen = (
                self._sizes(target, field, rule, number)
                for field, rule in ((axis.field, self.experts), (axis.chosen, self.chosen))
            )
            widths |= {axis.field: experts, axis.chosen: [min(pair) for pair in zip(experts, chosen, strict=True)]}
        models = [
            dataclasses.replace(target, **{depth: layers}, **{name: sizes[stage] for name, sizes in widths.items()})
            for stage, layers in enumerate(depths)
        ]
        frozen = [0, *(a if self.frozen_below and b > a else 0 for a, b in itertools.pairwise(depths))]
        blocks = [self._block(depths) if self.submodels and stage == 1 else 0 for stage in range(number)]
        sparsities = self.sparsities or (0.0,) * number
        return tuple(map(StageShape, models, frozen, blocks, self._shares(number), sparsities))

    def _shares(self, number: int) -> list[float]:
        shares = self.shares or (1.0,) * number
        return [share / sum(shares) for share in shares]

    def _block(self, depths: list[int]) -> int:
        """The number of layers by which sub-models differ."""
        if depths[1] % self.submodels:
            raise must_be("model.layers", f"a multiple of {self.submodels} for preset {self.name!r}", depths[1])
        return depths[1] // self.submodels

    def _sizes(self, target: DecoderConfig, name: str, rule: Sizes, number: int) -> list[int]:
        size = getattr(target, name)
        sizes = [*rule(size), *[size] * number][:number]
        if any(part != int(part) for part in sizes):
            shown = ", ".join(f"{part:g}" for part in sizes)
            raise InputError(f"model.{name} must be an integer in every stage of preset {self.name!r}, got {shown}")
        return [int(part) for part in sizes]


def scaled_widths(config: DecoderConfig, still: tuple[Kind, ...] = STILL) -> tuple[str, ...]:
    """The sizes that a schedule in width scales: those of a layer, without those of axes that stand still."""
    fields = {axis.field for axis in config.architecture.of_kind(*still)}
    return tuple(field for field in config.architecture.widths if field not in fields)
