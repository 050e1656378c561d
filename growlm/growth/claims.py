"""Claims of function preservation, read off the maps of a growth and the declaration of the architecture."""

import numpy as np

from growlm.growth.heads import breaks_scores
from growlm.growth.maps import AxisMap
from growlm.growth.norms import NORM_RULES
from growlm.growth.plan import Growth
from growlm.models.axes import Axis, DecoderConfig, Kind

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
    live = [layer for layer, residual in zip(growth.order, growth.residual, strict=True) if residual != 0]
    if live != list(range(growth.maps[growth.stack].old)):
        return False, "layers act more than once or not at all: the loss jumps, and recovers"
    stream = growth.maps[architecture.stream.name]
    rule = NORM_RULES[norm.kind]
    if not rule.defect(stream) <= TOLERANCE:  # NaN is no claim either
        return False, f"the stream's {rule.keeps.replace(' and ', ' or ')} changes, and with it every norm"
    for axis in architecture.of_kind(Kind.READ, Kind.INNER, Kind.HEADS, Kind.HEAD):
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
    return True, f"every axis is read back as it was written, and the stream keeps its {rule.keeps}{note}"


def _new_tokens(tokens: AxisMap) -> str:
    """What the logits of new tokens are."""
    if tokens.fresh.any():
        return "; new tokens get logits of their own"
    if not np.any(tokens.origin < 0):
        return ""
    mean = tokens.gathers[0].spread is not None
    return "; a new token's logit is the mean of the old ones'" if mean else "; new tokens have logit 0"


def _experts(growth: Growth, axis: Axis, source: DecoderConfig, target: DecoderConfig) -> str:
    """Why the router weights of an expert's copies do not sum to the expert's; empty if they do."""
    experts = growth.maps[axis.name]
    before, after = (getattr(config, axis.chosen) for config in (source, target))
    if experts.fresh.any():
        return f"fresh {axis.name} take a share of the router's weight"
    counts = np.bincount(experts.origin, minlength=experts.old)
    if axis.normalised and before == 1 and after <= counts.min():
        return ""  # all chosen experts are copies of one, and their weights sum to 1
    if len(set(counts)) > 1:
        return f"{axis.name} have unequal numbers of copies, and the router shares its weight among them"
    if after != before * counts[0]:
        wanted = before * int(counts[0])
        return f"{axis.chosen} is {before} before and {after} after: the copies of all chosen would be {wanted}"
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
