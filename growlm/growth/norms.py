"""Growth of the residual stream from n to m coordinates, by a rule for each kind of norm that reads it.

Under RMSNorm, P must be a scaled isometry, P^T P = (m / n) I: the mean square then stays, and with it eps. Under
LayerNorm, P must keep the mean too: padding with the mean does (LEMON, arXiv 2310.07999).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from growlm.growth.maps import AxisMap, Gather, product_defect
from growlm.models.axes import NormKind

# "isometry": exact, and eps does not change. "gain": the paper's sqrt(n / m) on gains (arXiv 2405.15319, A.1), exact
# for padding up to eps, not for copies. "none": neither, as in the published code (prts_lit/scaling/zero.py), exact for
# whole copies, not for padding.
NORM_OPTIONS = ("isometry", "gain", "none")


class NormRule(NamedTuple):
    """The rule for one kind of norm.

    stream: (index [m], -1 for a new coordinate; n; a name in NORM_OPTIONS) -> the stream's map, with R = P (P^T P)^-1.
    defect: how far a map is from its condition, up to the factor `rms` that gains absorb; 0 if the norm's output stays.
    handed: the stream's map -> the map of what a norm without a gain hands on.
    masked: (masks [m] from 0 to 1; a name in NORM_OPTIONS) -> the map that multiplies coordinates by their masks.
    keeps: the statistics that the norm computes, in words.
    """

    stream: Callable[[np.ndarray, int, str], AxisMap]
    defect: Callable[[AxisMap], float]
    handed: Callable[[AxisMap], AxisMap]
    masked: Callable[[Any, str], AxisMap]
    keeps: str


def _stream(index: np.ndarray, old: int, scale: Any, rms: float, spread: Any = None) -> AxisMap:
    count = np.bincount(index[index >= 0], minlength=old)[index]
    read = Gather.copies(index, np.ones(len(index)) / (scale * count))
    return AxisMap.make(old, Gather.copies(index, scale, spread), read, fresh_read=index < 0, rms=rms)


def _rms_stream(index: np.ndarray, old: int, norm: str) -> AxisMap:
    """P^T P = (m / n) I: each copy scaled by sqrt(m / (n copies)), so the mean square stays, to any size."""
    count, new = np.bincount(index[index >= 0], minlength=old)[index], len(index)
    scale = np.sqrt(new / (old * count)) if norm == "isometry" else 1.0
    return _stream(index, old, scale, np.sqrt(old / new) if norm == "gain" else 1.0)


def _rms_defect(axis: AxisMap) -> float:
    """How far P^T P is from rms^2 (m / n) I."""
    if not isinstance(axis.write, Gather) or axis.fresh_write.any() or axis.write.spread is not None:
        return np.inf
    mean = Gather(axis.write.index, axis.write.scale * axis.old / axis.new / axis.rms**2)
    return product_defect(mean, axis.write, axis.old)


def _layer_stream(index: np.ndarray, old: int, norm: str) -> AxisMap:
    """Plain copies, and padding with the mean, so the mean stays; all scaled so that the variance does.

    Exact where all coordinates have equally many copies; otherwise the mean moves, and no scale restores it.
    """
    new, copies = len(index), np.count_nonzero(index >= 0)
    scale = np.sqrt(new / copies) if norm == "isometry" else 1.0
    pads = norm != "none" and copies < new
    spread = (np.where(index < 0, scale, 0.0), np.full(old, 1 / old)) if pads else None
    return _stream(index, old, scale, np.sqrt(old / new) if norm == "gain" else 1.0, spread)


def _layer_defect(axis: AxisMap) -> float:
    """How far P is from P 1 = a 1, 1^T P = a (m / n) 1^T and P^T C P = rms^2 (m / n) C, where C subtracts the mean.

    With P = G + l r^T, G with one entry a row, P^T P is diagonal plus |l|^2 r r^T if no row is in both G and l.
    """
    write, old, new = axis.write, axis.old, axis.new
    if not isinstance(write, Gather) or axis.fresh_write.any():
        return np.inf
    left, right = write.spread or (np.zeros(new), np.zeros(old))
    if np.any((left != 0) & (write.scale != 0)):
        return np.inf
    rows = write.scale + left * right.sum()
    copies = write.index >= 0
    columns = np.bincount(write.index[copies], write.scale[copies], minlength=old) + left.sum() * right
    squares = np.bincount(write.index[copies], write.scale[copies] ** 2, minlength=old)
    a, kept = rows[0], axis.rms**2 * new / old
    rank_one = np.square(left).sum() * right**2 - a**2 * new / old**2
    errors = [rows - a, columns - a * new / old, squares - kept, old * rank_one + kept, np.ptp(right, keepdims=True)]
    return float(max(np.abs(error).max(initial=0.0) for error in errors))


def _same(stream: AxisMap) -> AxisMap:
    return stream


def _centred(stream: AxisMap) -> AxisMap:
    """LayerNorm takes the mean away, so a coordinate that is padded with it is handed on as 0."""
    write, read = stream.gathers
    return dataclasses.replace(stream, write=dataclasses.replace(write, spread=None), read=read)


def _diagonal(c: Any, factor: Any, rms: Any, spread: Any = None) -> AxisMap:
    """Coordinates are written times c and the factor; what reads them without a norm undoes the factor."""
    index = np.arange(len(c))
    write, read = Gather(index, c * factor, spread=spread), Gather(index, np.ones(len(index)) / factor)
    return AxisMap.make(len(index), write, read, rms=rms)


def _scaled(c: Any, norm: str) -> tuple[Any, Any]:
    """(factor on writers, factor on gains) that restore the norm's input where a share 1 - mean(c) is masked."""
    share = c.mean()
    return (share**-0.5 if norm == "isometry" else 1.0), (share**0.5 if norm == "gain" else 1.0)


def _rms_masked(c: Any, norm: str) -> AxisMap:
    """Coordinates times their masks, rescaled to the old mean square."""
    factor, rms = _scaled(c, norm)
    return _diagonal(c, factor, rms)


def _layer_masked(c: Any, norm: str) -> AxisMap:
    """Coordinates times their masks plus (1 - mask) times the mean of unmasked ones, rescaled to the old variance."""
    factor, rms = _scaled(c, norm)
    spread = None if norm == "none" else ((1 - c) * factor, c / c.sum())
    return _diagonal(c, factor, rms, spread)


NORM_RULES: dict[NormKind, NormRule] = {
    NormKind.RMS: NormRule(_rms_stream, _rms_defect, _same, _rms_masked, "mean square"),
    NormKind.LAYER: NormRule(_layer_stream, _layer_defect, _centred, _layer_masked, "mean and variance"),
}
