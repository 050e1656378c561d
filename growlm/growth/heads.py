"""Growth of the coordinates of a head: old ones keep their places among the rotated pairs, new ones add nothing yet.

With n coordinates that become m, scores q k / sqrt(n) stay where P_q^T P_k = sqrt(m / n) I: queries are scaled, and
zero where keys are fresh. Values are fresh there too, and what reads them is zero, as `zero` has it for new heads: were
it the other way round, a new coordinate of a new head would be fresh on both sides.
Rotary frequencies theta^(-2 i / r) of r rotated coordinates stay where theta becomes theta^(r' / r): the old pairs have
the old frequencies, and new pairs turn more slowly.
"""

import math

import numpy as np

from growlm.errors import InputError, must_be
from growlm.growth.maps import AxisMap, Gather, identity
from growlm.growth.plan import Growth
from growlm.models.architecture import DecoderConfig
from growlm.models.axes import Axis, Kind, Role, Weight

TOLERANCE = 1e-9
LARGEST = float(np.finfo(np.float32).max)  # rotary tables are in float32


def head_map(axis: Axis, source: DecoderConfig, target: DecoderConfig) -> AxisMap:
    """The map of what keys and values write, fresh in new coordinates, and of what reads values, zero there."""
    old, new = source.size(axis), target.size(axis)
    if old == new:
        return identity(old)
    index = _places(axis, source, target)
    copies = Gather.copies(index)
    return AxisMap.make(old, copies, copies, fresh_write=index < 0)


def _places(axis: Axis, source: DecoderConfig, target: DecoderConfig) -> np.ndarray:
    """int [new]: the old coordinate of each; -1 for a new one. Pairs are (i, i + r/2) of r rotated coordinates."""
    before, after = (0, 0) if axis.rotated is None else (axis.rotated(source), axis.rotated(target))
    old, index = source.size(axis), np.full(target.size(axis), -1)
    index[: before // 2] = np.arange(before // 2)
    index[after // 2 : after // 2 + before // 2] = np.arange(before // 2, before)
    index[after : after + old - before] = np.arange(before, old)
    return index


def score_maps(
    source: DecoderConfig, target: DecoderConfig, maps: dict[str, AxisMap]
) -> dict[tuple[str, str], AxisMap]:
    """By (axis, path), the maps of weights of queries: scaled by what the factor of scores lost, zero where new."""
    found = {}
    for weight, axis in _queries(target):
        head = maps[axis.name]
        if not head.identity:
            scale, index = _scale(weight, source, target), head.gathers[0].index
            write, read = Gather.copies(index, scale), Gather.copies(index, 1 / scale)
            found[axis.name, weight.path] = AxisMap.make(head.old, write, read)
    return found


def _queries(config: DecoderConfig) -> list[tuple[Weight, Axis]]:
    """The weights that write queries, each with its axis of a head's coordinates."""
    return [
        (weight, dim.writes)
        for weight in config.weights
        for dim in weight.dims
        if weight.scores is not None and dim.writes is not None and dim.writes.kind is Kind.HEAD
    ]


def _scale(weight: Weight, source: DecoderConfig, target: DecoderConfig) -> float:
    assert weight.scores is not None, "only of weights of queries"
    return weight.scores(source) / weight.scores(target)


def breaks_scores(growth: Growth, source: DecoderConfig, target: DecoderConfig) -> str:
    """Why products of queries and keys, or their scale, change; empty if they stay."""
    queries = _queries(target)
    undone = [weight for weight, axis in queries if not growth.maps[axis.name].identity]
    for weight in target.weights:
        changes = weight.scores is not None and not np.isclose(_scale(weight, source, target), 1, rtol=TOLERANCE)
        if changes and weight not in undone:
            return "the factor on scores changes, and heads do not grow with it"
    for axis in target.architecture.of_kind(Kind.HEAD):
        keys = growth.maps[axis.name]
        if keys.identity:
            continue
        mine = [weight for weight, of in queries if of is axis]
        if not mine:
            return f"no weight on {axis.name} says that it writes queries"
        for weight in mine:
            query, scale = growth.axis(axis, weight), _scale(weight, source, target)
            undone = Gather(query.gathers[0].index, query.gathers[0].scale / scale)
            product = AxisMap.make(keys.old, keys.write, undone, keys.fresh_write, query.fresh_write)
            if not product.defect() <= TOLERANCE:
                return f"products on {axis.name} change"
    return ""


def check_heads(source: DecoderConfig, target: DecoderConfig) -> None:
    """Raises InputError where a norm takes its mean over coordinates of a head that grows."""
    for axis in target.architecture.of_kind(Kind.HEAD):
        before, after = source.size(axis), target.size(axis)
        normed = [weight.path for weight in target.weights if weight.role is Role.GAIN and _reads(weight, axis)]
        if before != after and normed:
            rule = f"the source's, {before}, since {normed[0].rpartition('/')[2]} is of a norm over it"
            raise must_be(f"the target's model.{axis.field}", rule, after)


def _reads(weight: Weight, axis: Axis) -> bool:
    return any(dim.reads is axis for dim in weight.dims)


def check_base(name: str, source: DecoderConfig, target: DecoderConfig) -> bool:
    """Whether a field is the base of rotary frequencies that growth changes. Raises InputError for another base."""
    for axis in target.architecture.of_kind(Kind.HEAD):
        if axis.base != name or axis.rotated is None:
            continue
        before, after = axis.rotated(source), axis.rotated(target)
        if before == after or not before:
            return False
        try:
            wanted = getattr(source, name) ** (after / before)
        except OverflowError:
            wanted = math.inf
        if not wanted < LARGEST:
            raise InputError(f"the target's model.{axis.field} must be smaller: model.{name} would be above 3e38")
        if not math.isclose(getattr(target, name), wanted, rel_tol=1e-9):
            rule = f"{wanted:.12g} with model.{axis.field} {target.size(axis)}, so that rotary frequencies stay"
            raise must_be(f"the target's model.{name}", rule, getattr(target, name))
        return True
    return False
