"""The left inverse of a growth, by its own maps: a growth from the large shape back to the small one.

A weight W grows to P_y W R_x^T. It is found again by R^T on what it writes and by P^T on what it reads, since
R^T P = I: the adjoint of the map of gradients, and the pseudo-inverses of P and R where copies are read evenly. Every
coordinate is a mean over its copies; padding and fresh coordinates are left out, and of layers the first copy is taken.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from growlm.errors import InputError, must_be
from growlm.growth.maps import AxisMap, Gather, Merge, identity
from growlm.growth.plan import Effect, Growth
from growlm.models.axes import DecoderConfig

TOLERANCE = 1e-9  # of shares, which sum to 1


@dataclasses.dataclass(frozen=True, eq=False)
class Shrunk(Effect):
    """What a shrink leaves in its report. No function is claimed: what was no copy is lost.

    forward: the growth from the small shape to the large one, of which this is the left inverse.
    """

    name = "shrunk"
    forward: Growth

    def breaks(self, growth: Growth, target: DecoderConfig) -> str:
        """A smaller model is the larger one's only as far as that is made of copies."""
        return "what is left out is lost, unless it was a copy or added nothing"

    def hides(self, growth: Growth) -> str:
        """A shrink is no growth."""
        return "it made the model smaller"

    def report(self) -> dict[str, Any]:
        """The layers that stay."""
        return {"layers": live_layers(self.forward).tolist()}


def live_layers(growth: Growth) -> np.ndarray:
    """int [old layers]: the first copy of each that adds something to the stream; -1 where there is none."""
    stack = growth.maps[growth.stack]
    first = np.full(stack.old, -1)
    for layer in reversed(np.flatnonzero((stack.origin >= 0) & ~stack.fresh & (growth.residual != 0)).tolist()):
        first[stack.origin[layer]] = layer
    return first


def undoable(growth: Growth) -> str:
    """Why the weights of the source cannot be found in the grown model again; empty if they can."""
    if growth.lift is not None:
        return f"a lift came first ({growth.lift.name})"
    for effect in growth.effects:
        if reason := effect.hides(growth):
            return reason
    if (layers := live_layers(growth)).min(initial=0) < 0:
        return f"layer {int(np.argmin(layers))} was left out"
    for name, axis in growth.maps.items():
        if name != growth.stack and not np.allclose(_share_sums(axis), 1, atol=TOLERANCE, rtol=0):
            return f"reading {name} does not undo writing it"
    for (_, path), axis in growth.per_weight.items():
        if not np.allclose(_share_sums(axis), 1, atol=TOLERANCE, rtol=0):
            return f"{path} was drawn anew"
    return ""


def inverse(growth: Growth, layers: np.ndarray | None = None) -> Growth:
    """The growth that undoes another one, which `undoable` allows.

    layers: int [small layers], the large layer of each, if they are not those of the growth.
    """
    alone = any(effect.first_alone for effect in growth.effects)
    stack = growth.maps[growth.stack]
    chosen = live_layers(growth) if layers is None else layers
    order = Gather.copies(chosen)
    maps = {name: _inverse(axis, alone) for name, axis in growth.maps.items()}
    maps[growth.stack] = AxisMap.make(stack.new, order, order)
    per_weight = {place: _inverse(axis, alone) for place, axis in growth.per_weight.items()}
    residual = np.ones(len(chosen)) if layers is not None else 1 / growth.residual[chosen]
    # One factor for all layers, or one for each.
    factors = {path: 1 / (one[chosen] if len(one) == stack.new else one) for path, one in growth.factors.items()}
    return Growth(maps, growth.stack, residual, per_weight, effects=(Shrunk(growth),), factors=factors)


def _shares(axis: AxisMap) -> np.ndarray:
    """float64 [new]: of each copy p r, which sum to 1 over the copies of a coordinate, as R^T P = I."""
    write, read = axis.gathers
    carried = (write.index == read.index) & (write.index >= 0) & ~axis.fresh
    return np.where(carried, write.scale * read.scale, 0.0)


def _share_sums(axis: AxisMap) -> np.ndarray:
    return np.bincount(np.maximum(axis.gathers[0].index, 0), _shares(axis), minlength=axis.old)


def _inverse(axis: AxisMap, alone: bool) -> AxisMap:
    """The left inverse of an axis's maps. alone: weights are found in the first copies of what they write."""
    if axis.identity:
        return identity(axis.new)
    (write, read), share = axis.gathers, _shares(axis)
    copies = np.where(share != 0, write.index, -1)
    first = ((copies >= 0) & ~_later(copies)).astype(np.float64)
    wrote = Merge(copies, write.scale, first if alone else share, axis.old)
    return AxisMap.make(axis.new, wrote, Merge(copies, read.scale, share, axis.old), rms=1 / axis.rms)


def _later(index: np.ndarray) -> np.ndarray:
    """bool: entries that stood before."""
    return Gather.copies(index).occurrence > 0


# --- What growth reports hold of it ---


def scales_of(growth: Growth) -> dict[str, Any]:
    """The factors of P and of R on every axis that grew, a number where all copies have it, and of norms' gains.

    Those of one weight alone are under its path and the axis: "blocks/attn/query head_dim".
    """
    axes = growth.maps | {f"{path} {name}": axis for (name, path), axis in growth.per_weight.items()}
    return {
        name: {"write": _plain(axis.write), "read": _plain(axis.read), "rms": float(axis.rms)}
        for name, axis in axes.items()
        if not axis.identity and isinstance(axis.write, Gather) and isinstance(axis.read, Gather)
    }


def _plain(gather: Gather) -> float | list[float]:
    copies = np.unique(gather.scale[gather.index >= 0])
    return float(copies[0]) if len(copies) == 1 else np.asarray(gather.scale).tolist()


def read_growth(report: Mapping[str, Any], large: DecoderConfig) -> Growth:
    """The growth that a report is of, for `inverse`: its maps, without effects.

    Args:
      report: as `growlm.growth.describe` makes it.
      large: the grown shape.

    Raises InputError: a report of an older version, a growth that cannot be undone.
    """
    if "undo" not in report:
        raise InputError("growth.json must have the scales of its maps, as growlm writes them since 0.3, got none")
    if reason := report["undo"]["impossible"]:
        raise InputError(f"the growth must be by copies and padding to be undone: {reason}")
    stack, residual = large.architecture.stack, np.ones(large.depth)
    residual[np.asarray(report["zero_residual_layers"], int)] = 0
    maps = {}
    for axis in large.architecture.axes:
        size, said, scale = large.size(axis), report["axes"].get(axis.name), report["scales"].get(axis.name)
        if said is None or scale is None:
            maps[axis.name] = identity(size)
            continue
        index, fresh = np.asarray(said["from"], int), np.zeros(size, bool)
        if len(index) != size:
            raise must_be(f"{axis.name} in growth.json", f"of the model's size, {size}", len(index))
        fresh[said["fresh"]] = True
        write, read = (Gather.copies(index, scale[side]) for side in ("write", "read"))
        old = int(index.max(initial=-1)) + 1
        maps[axis.name] = AxisMap.make(old, write, read, fresh, fresh, rms=scale["rms"])
    per_weight = {}
    for place, scale in report["scales"].items():
        path, _, name = place.rpartition(" ")
        if path:
            index, fresh = maps[name].gathers[0].index, maps[name].fresh
            write, read = (Gather.copies(index, scale[side]) for side in ("write", "read"))
            per_weight[name, path] = AxisMap.make(maps[name].old, write, read, fresh, fresh, rms=scale["rms"])
    effects = (_FirstAlone(),) if report["undo"]["first_alone"] else ()
    return Growth(maps, stack.name, residual, per_weight, effects)


class _FirstAlone(Effect):
    """Stands for effects that are not rebuilt from a report."""

    name = "first_alone"
    first_alone = True
