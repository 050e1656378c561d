"""Growth of the stream, by the norm through which it is read: what that norm takes out of it must stay what it was.

Source of the conditions: LEMON (arXiv 2310.07999) for mean padding under LayerNorm; for the scaled isometry, which
leaves eps alone, DESIGN's one idea. n old coordinates become m.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from growlm.errors import unknown
from growlm.growth.maps import AxisMap, Dense, Gather, product_defect
from growlm.models.axes import NormKind

# "isometry": no norm notices, nor its eps. "gain": the paper's sqrt(n / m) on the gain (arXiv 2405.15319, A.1), exact
# for padding up to eps, for copies not. "none": neither, as the published code (prts_lit/scaling/zero.py): exact for
# copies by a whole factor under RMSNorm and LayerNorm, for zeros not.
NORM_OPTIONS = ("isometry", "gain", "none")


class NormRule(NamedTuple):
    """How the stream grows under one kind of norm.

    stream: (index [m], -1 for a new coordinate; n; a name in NORM_OPTIONS) -> its map, read back by P (P^T P)^-1.
    defect: how far such a map is from one that the norm does not notice, but for the factor `rms` that gains make up.
    masked: (masks [m], each from 0 to 1; option) -> the map under which masked coordinates add nothing.
    keeps: what of the stream the norm sees, in words.
    """

    stream: Callable[[np.ndarray, int, str], AxisMap]
    defect: Callable[[AxisMap], float]
    masked: Callable[[Any, str], AxisMap]
    keeps: str


def check_norm(norm: str) -> None:
    """Raises InputError for a name that is not in NORM_OPTIONS."""
    if norm not in NORM_OPTIONS:
        raise unknown("norm", norm, NORM_OPTIONS)


def _stream(index: np.ndarray, old: int, scale: Any, rms: float, spread: Any = None) -> AxisMap:
    count = np.bincount(index[index >= 0], minlength=old)[index]
    read = Gather.copies(index, np.ones(len(index)) / (scale * count))
    return AxisMap.make(old, Gather.copies(index, scale, spread), read, fresh_read=index < 0, rms=rms)


def _rms_stream(index: np.ndarray, old: int, norm: str) -> AxisMap:
    """P^T P = (m / n) I: each copy scaled by sqrt(m / (n copies)), so the mean square stays, to any size."""
    check_norm(norm)
    count, new = np.bincount(index[index >= 0], minlength=old)[index], len(index)
    scale = np.sqrt(new / (old * count)) if norm == "isometry" else 1.0
    return _stream(index, old, scale, np.sqrt(old / new) if norm == "gain" else 1.0)


def _rms_defect(axis: AxisMap) -> float:
    """How far P^T P is from rms^2 (m / n) I."""
    if isinstance(axis.write, Dense) or axis.fresh_write.any() or axis.write.spread is not None:
        return np.inf
    mean = Gather(axis.write.index, axis.write.scale * axis.old / axis.new / axis.rms**2)
    return product_defect(mean, axis.write, axis.old)


def _layer_stream(index: np.ndarray, old: int, norm: str) -> AxisMap:
    """Copies as they are, new coordinates the mean of the old: the mean stays. All scaled so that the variance does.

    Exact where every coordinate has as many copies; else the mean moves, and no scale makes up for it.
    """
    check_norm(norm)
    new, copies = len(index), np.count_nonzero(index >= 0)
    scale = np.sqrt(new / copies) if norm == "isometry" else 1.0
    pads = norm != "none" and copies < new
    spread = (np.where(index < 0, scale, 0.0), np.full(old, 1 / old)) if pads else None
    return _stream(index, old, scale, np.sqrt(old / new) if norm == "gain" else 1.0, spread)


def _layer_defect(axis: AxisMap) -> float:
    """How far P is from keeping mean and variance: P 1 = a 1, 1^T P = a (m / n) 1^T, P^T C P = rms^2 (m / n) C.

    C takes the mean away. With P = G + l r^T, where G has one entry a row, P^T P is diagonal plus |l|^2 r r^T if G and
    l meet in no row, which is asked.
    """
    write, old, new = axis.write, axis.old, axis.new
    if isinstance(write, Dense) or axis.fresh_write.any():
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


def _diagonal(write: Any, rms: Any, spread: Any = None) -> AxisMap:
    index = np.arange(len(write))
    return AxisMap.make(len(index), Gather(index, write, spread=spread), Gather(index, np.ones(len(index))), rms=rms)


def _scaled(c: Any, norm: str) -> tuple[Any, Any]:
    """(factor on what is written, factor on gains) that make up for the share of the stream that is masked."""
    share = c.mean()
    return (share**-0.5 if norm == "isometry" else 1.0), (share**0.5 if norm == "gain" else 1.0)


def _rms_masked(c: Any, norm: str) -> AxisMap:
    """A masked coordinate is written with its factor, and the others make up for the mean square."""
    factor, rms = _scaled(c, norm)
    return _diagonal(c * factor, rms)


def _layer_masked(c: Any, norm: str) -> AxisMap:
    """The same, and what a masked coordinate lacks is the mean of what is open."""
    factor, rms = _scaled(c, norm)
    spread = None if norm == "none" else ((1 - c) * factor, c / c.sum())
    return _diagonal(c * factor, rms, spread)


NORM_RULES: dict[NormKind, NormRule] = {
    NormKind.RMS: NormRule(_rms_stream, _rms_defect, _rms_masked, "mean square"),
    NormKind.LAYER: NormRule(_layer_stream, _layer_defect, _layer_masked, "mean and variance"),
}
