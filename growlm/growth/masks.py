"""The annealed masks of G_random, as a reparametrisation of the target's weights.

A mask on an activation is a diagonal map on its axis, which the weights that write or read the axis can absorb. So the
model has no masks in it, and the masked parameters are a pure function of (params, provenance, progress).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from growlm.errors import check_count
from growlm.growth.expand import expand_params
from growlm.growth.maps import Array, AxisMap, Gather, identity, numpy_or_jax
from growlm.growth.norms import NORM_RULES
from growlm.growth.plan import FRESH, Effect, Growth, after
from growlm.models.architecture import DecoderConfig, Params
from growlm.models.axes import Axis, Kind

# The kinds of axes that have masks, in the order of the published code's turns; layers take the whole schedule. Experts
# have none: a router shares out a weight of one, and gives a part of it to new experts at once.
MASKED = (Kind.INNER, Kind.STREAM, Kind.HEADS, Kind.STACK)
CLOSED = np.zeros(len(MASKED))


@dataclasses.dataclass(frozen=True, eq=True)
class Masks(Effect):
    """The mask schedule: masks on fresh coordinates go linearly from 0 to 1 (MSG, arXiv 2305.02869).

    Attributes:
      tokens: the length of the schedule, in training tokens.
      in_turn: one kind of axis after the other, a third of the tokens each.
      whole_blocks: one mask for a fresh layer, instead of one for each of its branches.
      norm: in NORM_OPTIONS, what restores the norms' input while a part of the stream is masked.
    """

    name = "masks"
    reparametrises = True
    tokens: int
    in_turn: bool
    whole_blocks: bool
    norm: str

    def __post_init__(self):
        check_count("masks.tokens", self.tokens, low=1)

    def acting(self, growth: Growth, target: DecoderConfig) -> Growth:
        """With all masks at 0, as training begins."""
        fresh = {name: axis.fresh for name, axis in growth.maps.items()}
        return after(_mask_growth(target, fresh, CLOSED, self.norm), growth)

    def breaks_gradients(self, growth: Growth, target: DecoderConfig) -> str:
        """Masked weights have zero gradients."""
        return "copies are not read alike"

    def progress(self, tokens: int) -> np.ndarray:
        """float32[4]: the mask of each kind in MASKED, so many tokens after growth."""
        done = min(tokens / self.tokens, 1.0)
        turns = [min(max(3 * done - turn, 0.0), 1.0) if self.in_turn else done for turn in range(3)]
        return np.asarray([*turns, done], np.float32)

    def reparametrise(
        self, config: DecoderConfig, params: Params, provenance: Mapping[str, Array], progress: Array
    ) -> tuple[Params, Array | None]:
        """Applies the masks: returns masked parameters and, for whole blocks, the residual scale [layers], else None.

        Args:
          config: the target's shape.
          params: the target's parameters.
          provenance: `TrainState.provenance` after the growth.
          progress: float32[4], from `progress`; may be traced.
        """
        leaves = jax.tree.leaves(params)
        xp = numpy_or_jax(progress, *provenance.values(), *leaves)
        dtype = xp.promote_types(xp.float32, xp.result_type(*leaves))
        fresh = {name: xp.asarray(said[1] >= FRESH, dtype) for name, said in provenance.items()}
        growth = _mask_growth(config, fresh, progress, self.norm)
        if not self.whole_blocks:
            return expand_params(growth, config, params), None
        one = dataclasses.replace(growth, residual=np.ones(len(growth.maps[growth.stack].write.index)))
        return expand_params(one, config, params), growth.residual


def _mask_growth(config: DecoderConfig, fresh: dict[str, Any], progress: Any, norm: str) -> Growth:
    """The masks as a growth of the target into itself.

    With mask c, a neuron or head is read with factor c, but written so where a sum of squares is taken in between; a
    layer adds c times its branches; and a coordinate of the stream is written with factor c, while the others (or
    gains) restore the norm's input.

    Args:
      config: the target's.
      fresh: by axis, [size]: 1 for masked coordinates, else 0.
      progress: [4], the masks by kind.
      norm: in NORM_OPTIONS.
    """
    architecture = config.architecture
    turn = {kind: number for number, kind in enumerate(MASKED)}

    def factors(axis: Axis) -> Any:
        return 1 - fresh[axis.name] * (1 - progress[turn[axis.kind]])

    open_stream = factors(architecture.stream)
    stream = NORM_RULES[architecture.norm.kind].masked(open_stream, norm)
    share = open_stream.mean()
    maps = {}
    for axis in architecture.axes:
        index = np.arange(config.size(axis))
        one = np.ones(len(index))
        if axis.kind in (Kind.STREAM, Kind.NORMED):
            maps[axis.name] = stream
        elif axis.kind is Kind.READ and not architecture.has_gain(axis):
            # Readers undo the factor that a gain would, but for a tied head, which reads as the embedding is written.
            handed = NORM_RULES[architecture.norm.kind].handed(stream)
            tied = axis is architecture.final and architecture.tied(config)
            read = stream.write if tied else Gather(index, open_stream).over(stream.write, stream.rms)
            maps[axis.name] = AxisMap.make(len(index), handed.write, read)
        elif axis is architecture.final and architecture.tied(config):
            write = Gather(index, stream.gathers[0].scale * share / stream.rms**2)
            maps[axis.name] = AxisMap.make(len(index), write, stream.write)
        elif axis.kind is Kind.READ:
            maps[axis.name] = AxisMap.make(len(index), Gather(index, open_stream), Gather(index, one))
        elif any(axis.name in branch.norms2 for branch in architecture.branches):
            maps[axis.name] = AxisMap.make(len(index), Gather(index, factors(axis)), Gather(index, one))
        elif axis.kind in (Kind.INNER, Kind.HEADS) and architecture.is_read(axis):
            maps[axis.name] = AxisMap.make(len(index), Gather(index, one), Gather(index, factors(axis)))
        else:
            maps[axis.name] = identity(len(index))
    stack = architecture.stack
    return Growth(maps, stack.name, factors(stack))
