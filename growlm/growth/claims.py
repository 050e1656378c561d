"""Claims of function preservation, read off the maps of a growth and the declaration of the architecture."""

import numpy as np

from growlm.growth.heads import breaks_scores
from growlm.growth.maps import AxisMap, Gather
from growlm.growth.norms import NORM_RULES
from growlm.growth.plan import Growth
from growlm.models.architecture import DecoderConfig
from growlm.models.axes import Axis, Kind

TOLERANCE = 1e-12


def claim(growth: Growth, source: DecoderConfig, target: DecoderConfig) -> tuple[bool, str]:
    """Whether the grown model computes the source's function, and why.

    It follows from the maps, the kinds of axes, the kind of norm and the roles of weights; nothing else is claimed.
    """
    source = growth.start(source)
    for effect in growth.effects:
        if reason := effect.breaks(growth, target):
            return False, reason
    note = ""
    for effect in growth.effects:
        growth, before = effect.acting(growth, target), growth
        note = note or ("" if growth is before else "while the mask is 0: ")
    holds, reason = _claim_of_maps(growth, source, target)
    return holds, note + reason


def _claim_of_maps(growth: Growth, source: DecoderConfig, target: DecoderConfig) -> tuple[bool, str]:
    architecture, norm = target.architecture, target.architecture.norm
    if reason := _depth(growth, source, target):
        return False, reason
    stream = growth.maps[architecture.stream.name]
    rule = NORM_RULES[norm.kind]
    for axis in architecture.of_kind(Kind.STREAM, Kind.NORMED):
        if not rule.defect(growth.maps[axis.name]) <= TOLERANCE:  # NaN is no claim either
            return False, f"the stream's {rule.keeps.replace(' and ', ' or ')} changes, and with it every norm"
    if architecture.of_kind(Kind.NORMED) and stream.gathers[0].spreads.any():
        # What such a norm hands on has no mean, with which the stream is padded.
        return False, "norms after branches take away the mean that pads the stream"
    if stream.rms != 1 and (architecture.keeps_scale or not norm.scale or not architecture.last_norm.scale):
        return False, "norms without a gain cannot absorb the stream's scale"
    if architecture.tied(target) and not architecture.last_norm.scale:
        before, after = (architecture.tied_multiplier(config) for config in (source, target))
        if before != after:
            return False, f"a tied head is multiplied by {before:g} before and {after:g} after, and no gain undoes it"
    for branch in architecture.branches:
        for name in branch.means:
            if not _mean_stays(growth.maps[name]):
                return False, f"the mean square over {name} changes, and with it a norm"
        for name, (field, factor) in branch.norms2.items():
            if reason := _sum_of_squares(name, growth.maps[name], field, factor(source), factor(target)):
                return False, reason
    for axis in architecture.of_kind(Kind.STREAM, Kind.READ, Kind.INNER, Kind.HEADS, Kind.HEAD):
        if architecture.is_read(axis) and not growth.maps[axis.name].defect() <= TOLERANCE:
            return False, f"reading {axis.name} does not undo writing it"
    if reason := breaks_scores(growth, source, target):
        return False, reason
    for axis in architecture.of_kind(Kind.EXPERTS):
        if reason := _experts(growth, axis, source, target):
            return False, reason
    before, after = (getattr(config, norm.eps) for config in (source, target))
    if not np.isclose(after, before * stream.rms**2, rtol=1e-9, atol=0):
        exact = f": exact would be {before * stream.rms**2:g}"
        return False, f"every norm's eps is felt: norm_eps is {before:g} before and {after:g} after{exact}"
    note = "".join(_new_tokens(growth.maps[axis.name]) for axis in architecture.of_kind(Kind.VOCAB))
    if growth.factors:
        note += f"; {', '.join(growth.factors)} undo what changes with a layer's place or the model's sizes"
    return True, f"every axis is read back as it was written, and the stream keeps its {rule.keeps}{note}"


def _depth(growth: Growth, source: DecoderConfig, target: DecoderConfig) -> str:
    """Why the layers of the target do not run as the source's; empty if they do."""
    order, residual = growth.order, growth.residual
    live = [n if n is None else order[n] for n in target.executed if n is None or residual[n] != 0]
    reason = (
        "" if live == list(source.executed) else "layers act more than once or not at all: the loss jumps, and recovers"
    )
    for branch in target.architecture.branches:
        if branch.variants is None:
            continue
        before, after = branch.variants(source), branch.variants(target)
        for layer, origin in enumerate(order):
            if origin >= 0 and residual[layer] != 0 and before[origin] != after[layer]:
                pattern = f"layer {layer} runs {branch.name} in another way than layer {origin}, of which it is a copy"
                return f"{reason}; {pattern}" if reason else pattern
    return reason


def _new_tokens(tokens: AxisMap) -> str:
    """What the logits of new tokens are."""
    if tokens.fresh.any():
        return "; new tokens get logits of their own"
    if not np.any(tokens.origin < 0):
        return ""
    mean = tokens.gathers[0].spread is not None
    return "; a new token's logit is the mean of the old ones'" if mean else "; new tokens have logit 0"


def _copies_of_each(axis: AxisMap) -> int | None:
    """How often each old coordinate is written, as it was, with zeros beside it at most; None if that differs."""
    write = axis.write
    if not isinstance(write, Gather) or axis.fresh_write.any() or write.spread is not None:
        return None
    counts = np.bincount(write.index[write.scale != 0], minlength=axis.old)
    return int(counts[0]) if np.all(np.isin(write.scale, (0, 1))) and np.all(counts == counts[0]) else None


def _mean_stays(axis: AxisMap) -> bool:
    """Whether the mean square of what is written on an axis stays: as many copies of each coordinate, as they are."""
    copies = _copies_of_each(axis)
    return copies is not None and copies * axis.old == axis.new


def _sum_of_squares(name: str, axis: AxisMap, field: str, before: float, after: float) -> str:
    """Why what is divided by the root of a sum of squares over an axis is another; empty if it is not.

    Zeros do not count; of c copies of each coordinate the root is sqrt(c) times as large, and so must be the factor.
    """
    if not (copies := _copies_of_each(axis)):
        return f"the sum of squares over {name} changes, with another share of each coordinate"
    if np.isclose(after, exact := before * np.sqrt(copies), rtol=1e-12, atol=0):
        return ""
    return f"{field} is {before:.17g} before and {after:.17g} after: exact would be {exact:.17g}"


def _experts(growth: Growth, axis: Axis, source: DecoderConfig, target: DecoderConfig) -> str:
    """Why the router weights of an expert's copies do not sum to the expert's; empty if they do."""
    experts = growth.maps[axis.name]
    before, after = (getattr(config, axis.chosen) for config in (source, target))
    if growth.writes_zeros(axis, target):
        return ""  # whatever the router says
    if experts.fresh.any():
        return f"fresh {axis.name} take a share of the router's weight"
    counts = np.bincount(experts.origin, minlength=experts.old)
    normalised = axis.normalises(target)
    if normalised and before == 1 and after <= counts.min():
        return ""  # all chosen experts are copies of one, and their weights sum to 1
    if len(set(counts)) > 1:
        return f"{axis.name} have unequal numbers of copies, and the router shares its weight among them"
    if after != before * counts[0]:
        wanted, less = before * int(counts[0]), "" if normalised else ", and weights of fewer sum to less than before"
        return f"{axis.chosen} is {before} before and {after} after: the copies of all chosen would be {wanted}{less}"
    return ""


def gradient_claim(growth: Growth, source: DecoderConfig, target: DecoderConfig) -> tuple[bool, str]:
    """Whether the gradients of the grown model are the source's, grown by the dual map, and why."""
    holds, reason = claim(growth, source, target)
    if not holds:
        return False, f"the function changes: {reason}"
    if growth.lift:
        return False, f"a lift comes before ({growth.lift.name}): mapped moments are a start"
    for effect in growth.effects:
        if reason := effect.breaks_gradients(growth, target):
            return False, reason
    if len(set(source.executed) - {None}) < sum(layer is not None for layer in source.executed):
        return False, "a layer that ran more than once has the gradient of all its passes: mapped moments are a start"
    if growth.zero_residual_layers:
        return False, "layers with zero residual writers have gradients of their own: mapped moments are a start"
    if growth.per_weight:
        return False, "a router's rows are fresh: mapped moments are a start"
    even_by_norm = (growth.stack, target.architecture.stream.name)
    for axis in target.architecture.of_kind(Kind.EXPERTS):
        copies, (before, after) = growth.maps[axis.name], (getattr(one, axis.chosen) for one in (source, target))
        if after * copies.old != before * copies.new:
            return False, f"of the copies of {axis.name} not all are chosen together: mapped moments are a start"
    for name, axis in growth.maps.items():
        if axis.fresh.any() or np.any(axis.origin < 0):
            return False, f"{name} has coordinates that are no copies: mapped moments are a start"
        count = np.bincount(axis.origin)[axis.origin]
        if name not in even_by_norm and not np.allclose(axis.gathers[0].scale * axis.gathers[1].scale * count, 1):
            return False, f"copies on {name} are read unevenly: mapped moments are a start"
    return True, "copies are read evenly, so each has the source's gradient under the dual map"
