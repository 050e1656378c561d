"""The annealed masks of G_random, as a reparametrisation: a growth of the target into itself, from its provenance.

The model has no mask in it. What a mask would do to an activation, a diagonal map on its axis does to the weights that
write or read it; so the masked parameters are a pure function of (params, provenance, progress).
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from growlm.growth.effects import Effect
from growlm.growth.expand import expand_params
from growlm.growth.maps import AxisMap, Gather, identity, numpy_or_jax
from growlm.growth.norms import NORM_RULES
from growlm.growth.plan import FRESH, Growth, after
from growlm.models.axes import DecoderConfig, Kind, Params

# What is masked, in the order of the published code's turns; layers come in over the whole schedule. An expert cannot
# be: its router shares out a weight of one, and shares it with the new ones at once.
MASKED = (Kind.INNER, Kind.STREAM, Kind.HEADS, Kind.STACK)
CLOSED = np.zeros(len(MASKED))


@dataclasses.dataclass(frozen=True, eq=True)
class Masks(Effect):
    """How what is fresh comes in: under masks that go from 0 to 1 over so many tokens (MSG, arXiv 2305.02869).

    in_turn: one kind of axis after the other, a third of the tokens each. whole_blocks: a fresh layer is masked as a
    whole, not each of its branches. norm: of NORM_OPTIONS, what makes up for the masked part of the stream.
    """

    name = "ramp"
    reparametrises = True
    tokens: int
    in_turn: bool
    whole_blocks: bool
    norm: str

    def acting(self, growth: Growth, target: DecoderConfig) -> Growth:
        """At the beginning, where all that is fresh is masked."""
        fresh = {name: axis.fresh for name, axis in growth.maps.items()}
        return after(_mask_growth(target, fresh, CLOSED, self.norm), growth)

    def breaks_gradients(self, growth: Growth, target: DecoderConfig) -> str:
        """Masked weights have no gradient, their masks' neighbours another."""
        return "copies are not read alike"

    def progress(self, tokens: int) -> np.ndarray:
        """float32[4]: the mask of each kind in MASKED after so many tokens since growth, 0 to 1, linear."""
        done = min(tokens / self.tokens, 1.0)
        turns = [min(max(3 * done - turn, 0.0), 1.0) if self.in_turn else done for turn in range(3)]
        return np.asarray([*turns, done], np.float32)

    def reparametrise(
        self, config: DecoderConfig, params: Params, provenance: dict[str, jax.Array], progress: jax.Array
    ) -> tuple[Params, jax.Array | None]:
        """Applies the masks: returns masked parameters and, for masks on whole blocks, each layer's factor, else None.

        Args:
          config: the target's shape.
          params: the target's parameters.
          provenance: of the growth that gave initial values, as `TrainState.provenance` has it.
          progress: float32[4], as `progress` gives it; traced or not.
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
    """The masks as a growth from the target to itself. `fresh` says which coordinates of every axis are under a mask.

    A masked neuron or head is read with factor c, a masked layer adds c times its branches, and a masked coordinate of
    the stream is written with factor c while the others make up for what the norm sees of it (or the gain does).
    """
    architecture = config.architecture
    turn = {kind: number for number, kind in enumerate(MASKED)}

    def factors(axis: Any) -> Any:
        return 1 - fresh[axis.name] * (1 - progress[turn[axis.kind]])

    open_stream = factors(architecture.stream)
    stream = NORM_RULES[architecture.norm.kind].masked(open_stream, norm)
    share = open_stream.mean()
    maps = {}
    for axis in architecture.axes:
        index = np.arange(config.size(axis))
        one = np.ones(len(index))
        if axis.kind is Kind.STREAM:
            maps[axis.name] = stream
        elif axis is architecture.final and architecture.tied(config):
            write = Gather(index, stream.write.scale * share / stream.rms**2)
            maps[axis.name] = AxisMap.make(len(index), write, stream.write)
        elif axis.kind is Kind.READ:
            maps[axis.name] = AxisMap.make(len(index), Gather(index, open_stream), Gather(index, one))
        elif axis.kind in (Kind.INNER, Kind.HEADS) and architecture.is_read(axis):
            maps[axis.name] = AxisMap.make(len(index), Gather(index, one), Gather(index, factors(axis)))
        else:
            maps[axis.name] = identity(len(index))
    stack = architecture.stack
    return Growth(maps, stack.name, factors(stack))
