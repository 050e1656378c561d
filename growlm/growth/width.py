"""Axis maps of the width axes: copies split among their readers, zeros, fresh ones, and query heads in their groups."""

from collections.abc import Callable

import jax
import numpy as np

from growlm.errors import InputError, unknown
from growlm.growth.maps import AxisMap, Gather
from growlm.models.axes import Axis, DecoderConfig, Kind


def _cycle(old: int, new: int, rng: np.random.Generator) -> np.ndarray:
    return np.arange(new) % old


def _repeat(old: int, new: int, rng: np.random.Generator) -> np.ndarray:
    return np.arange(new) * old // new


def _random(old: int, new: int, rng: np.random.Generator) -> np.ndarray:
    return np.concatenate([np.arange(old), rng.integers(old, size=new - old)])


# Which old coordinate each new one copies.
SELECTIONS: dict[str, Callable[[int, int, np.random.Generator], np.ndarray]] = {
    "cycle": _cycle,  # the whole axis again and again (bert2BERT and the paper's code with from_left)
    "repeat": _repeat,  # every coordinate in place (muP upscaling)
    "random": _random,  # Net2Net: extra coordinates drawn with replacement
}


def rng_of(key: jax.Array | None, operator: str, *place: int) -> np.random.Generator:
    """A NumPy generator from a JAX key, and from numbers, one of its own for every place.

    Indices are plain numbers, known when growth is compiled.
    """
    if key is None:
        raise InputError(f"{operator} draws fresh values: it needs a key, such as jax.random.key(0)")
    return np.random.default_rng([*np.asarray(jax.random.key_data(key), np.uint32).ravel(), *place])


def query_heads(
    axis: Axis, source: DecoderConfig, target: DecoderConfig, kv_index: np.ndarray, copies: bool
) -> np.ndarray:
    """The source query head of each target query head (-1: a new one), given the source of each key-value head.

    A query head attends to the key-value head of its group, so a copy must sit in a group that copies its own. The
    groups that copy one group hand out its query heads in turn; with copies, again and again.
    """
    groups = target.architecture.axis[axis.of]
    new_heads, new_kv = target.size(axis), target.size(groups)
    old_group, new_group = source.size(axis) // source.size(groups), new_heads // new_kv
    index = np.full(new_heads, -1, np.int64)
    for kv_head in range(source.size(groups)):
        held = np.flatnonzero(kv_index == kv_head)
        slots = (held[:, None] * new_group + np.arange(new_group)).reshape(-1)
        if len(slots) < old_group:
            raise InputError(
                f"model.{axis.field} {new_heads} over model.{groups.field} {new_kv} leaves {len(slots)} query heads "
                f"for the {old_group} that share key-value head {kv_head}: allowed is a target with as many"
            )
        number = np.arange(len(slots))
        index[slots] = np.where(copies | (number < old_group), kv_head * old_group + number % old_group, -1)
    return index


def places(axis: Axis, source: DecoderConfig, target: DecoderConfig) -> np.ndarray:
    """The old coordinate in whose place each new one is, -1 for a new one; query heads stay in their groups.

    Where groups shrink, the old query heads need more key-value heads: then these are copies.
    """
    old, new = source.size(axis), target.size(axis)
    queries = axis if axis.of else next((a for a in target.architecture.of_kind(Kind.HEADS) if a.of), None)
    if axis.kind is not Kind.HEADS or queries is None:
        return pad_index(old, new)
    groups = target.architecture.axis[queries.of]
    before, after = (config.size(queries) // config.size(groups) for config in (source, target))
    old_kv, new_kv = source.size(groups), target.size(groups)
    kv = np.arange(new_kv) % old_kv if after < before else pad_index(old_kv, new_kv)
    return query_heads(axis, source, target, kv, copies=False) if axis.of else kv


def shares(index: np.ndarray, uneven: float, rng: np.random.Generator | None) -> np.ndarray:
    """The part of a coordinate that is read from each of its copies; the parts of one coordinate add up to 1.

    uneven 0 is the even split, 1 / copies. Else each part is scaled by 1 + uneven x U(-1, 1) before the parts are
    brought back to 1: copies that are read differently learn differently (LEMON, arXiv 2310.07999).
    """
    part = np.ones(len(index)) if uneven == 0 else 1 + uneven * rng.uniform(-1, 1, len(index))
    return part / np.bincount(index, part)[index]


def copied(index: np.ndarray, old: int, uneven: float = 0.0, rng: np.random.Generator | None = None) -> AxisMap:
    """An ordinary axis grown by copies: written as they are, read in parts, so that R^T P = I."""
    return AxisMap.make(old, Gather.copies(index), Gather.copies(index, shares(index, uneven, rng)))


def cycled(old: int, new: int) -> AxisMap:
    """An axis grown by copies of the whole of it, again and again, in even parts."""
    return copied(np.arange(new) % old, old)


def pad_index(old: int, new: int) -> np.ndarray:
    """Old coordinates first, then new ones, which copy none (-1)."""
    return np.where(np.arange(new) < old, np.arange(new), -1)


def padded(index: np.ndarray, old: int, fresh_write: bool = False) -> AxisMap:
    """An ordinary axis grown by zeros. One side of a new coordinate is zero, the other the target's initial values.

    fresh_write: what writes the coordinate is fresh and what reads it zero; else the other way round.
    """
    copy, new = Gather.copies(index), index < 0
    return AxisMap.make(old, copy, copy, **{"fresh_write" if fresh_write else "fresh_read": new})


def fresh(index: np.ndarray, old: int) -> AxisMap:
    """An axis grown by fresh coordinates: what writes and what reads them gets the target's initial values."""
    copy, new = Gather.copies(index), index < 0
    return AxisMap.make(old, copy, copy, fresh_write=new, fresh_read=new)


def tied_final(stream: AxisMap) -> AxisMap:
    """What the last norm hands to a tied head, which reads with the stream's own P, so the norm undoes it.

    That asks P_final = P (P^T P)^-1, as the stream is read back.
    """
    return AxisMap.make(stream.old, stream.read, stream.write, fresh_read=stream.fresh_read)


def check_selection(select: str) -> None:
    """Raises InputError for a name that is not in SELECTIONS."""
    if not isinstance(select, str) or select not in SELECTIONS:
        raise unknown("selection", select, SELECTIONS)
