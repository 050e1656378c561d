"""Maps of width axes: copies with shared read weights, padding, fresh coordinates, query heads in their groups."""

from collections.abc import Callable

import jax
import numpy as np

from growlm.errors import InputError
from growlm.growth.maps import Array, AxisMap, Gather
from growlm.models.architecture import DecoderConfig
from growlm.models.axes import Axis, Kind


def _cycle(old: int, new: int, rng: np.random.Generator | None) -> np.ndarray:
    return np.arange(new) % old


def _repeat(old: int, new: int, rng: np.random.Generator | None) -> np.ndarray:
    return np.arange(new) * old // new


def _random(old: int, new: int, rng: np.random.Generator | None) -> np.ndarray:
    assert rng is not None
    return np.concatenate([np.arange(old), rng.integers(old, size=new - old)])


# Which old coordinate each new one copies.
SELECTIONS: dict[str, Callable[[int, int, np.random.Generator | None], np.ndarray]] = {
    "cycle": _cycle,  # the whole axis again and again (bert2BERT and the paper's code with from_left)
    "repeat": _repeat,  # every coordinate in place (muP upscaling)
    "random": _random,  # Net2Net: extra coordinates drawn with replacement
}


def rng_of(key: Array | None, operator: str, *place: int) -> np.random.Generator:
    """A NumPy generator for a JAX key, or its data, and a place: indices must be known when growth is compiled.

    Raises InputError without a key.
    """
    if key is None:
        raise InputError(f"{operator} draws fresh values: it needs a key, such as jax.random.key(0)")
    data = key if isinstance(key, np.ndarray) else jax.random.key_data(key)
    return np.random.default_rng([*np.asarray(data, np.uint32).ravel().tolist(), *place])


def query_heads(
    axis: Axis, source: DecoderConfig, target: DecoderConfig, kv_index: np.ndarray, copies: bool
) -> np.ndarray:
    """int [new heads]: the source query head of each target query head, -1 for a new one.

    A query head attends to the key-value head of its group, so a copy must sit in a group that copies its own.

    Args:
      axis: of the query heads.
      source, target: the two shapes.
      kv_index: int [new kv_heads], the source of each key-value head.
      copies: fill groups with second copies instead of new heads.

    Raises InputError where a target has too few query heads in a group.
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
                f"the target must have at least {old_group} query heads for key-value head {kv_head}, got {len(slots)} "
                f"(model.{axis.field} {new_heads} over model.{groups.field} {new_kv})"
            )
        number = np.arange(len(slots))
        index[slots] = np.where(copies | (number < old_group), kv_head * old_group + number % old_group, -1)
    return index


def places(axis: Axis, source: DecoderConfig, target: DecoderConfig) -> np.ndarray:
    """int [new]: the old coordinate of each position, -1 for a new one; query heads stay in their groups.

    Where groups shrink, old query heads need more key-value heads, which are then copies.
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


def shares(index: np.ndarray, imbalance: float, rng: np.random.Generator | None) -> np.ndarray:
    """float64 [new]: the read weight of each copy; those of one coordinate sum to 1, so that R^T P = I.

    Imbalance 0 is the even split, 1 / copies. Otherwise shares are proportional to 1 + imbalance x U(-1, 1): copies
    with unequal read weights get unequal gradients and diverge (LEMON, arXiv 2310.07999).
    """
    part = np.ones(len(index)) if rng is None else 1 + imbalance * rng.uniform(-1, 1, len(index))
    return part / np.bincount(index, part)[index]


def copied(index: np.ndarray, old: int, imbalance: float = 0.0, rng: np.random.Generator | None = None) -> AxisMap:
    """Growth by copies: P copies, R reads each copy by its share."""
    return AxisMap.make(old, Gather.copies(index), Gather.copies(index, shares(index, imbalance, rng)))


def cycled(old: int, new: int) -> AxisMap:
    """Growth by copies of the whole axis, again and again, with even shares."""
    return copied(np.arange(new) % old, old)


def pad_index(old: int, new: int) -> np.ndarray:
    """int [new]: the old coordinates, then -1 for new ones."""
    return np.where(np.arange(new) < old, np.arange(new), -1)


def padded(index: np.ndarray, old: int, fresh_write: bool = False) -> AxisMap:
    """Growth by padding: a new coordinate is zero on one side and freshly initialised on the other.

    fresh_write: the writer is fresh and the reader zero; otherwise the other way round.
    """
    copy, new = Gather.copies(index), index < 0
    return AxisMap.make(
        old, copy, copy, fresh_write=new if fresh_write else None, fresh_read=None if fresh_write else new
    )


def fresh(index: np.ndarray, old: int) -> AxisMap:
    """Growth by coordinates that are freshly initialised in their writers and readers."""
    copy, new = Gather.copies(index), index < 0
    return AxisMap.make(old, copy, copy, fresh_write=new, fresh_read=new)


def tied_final(stream: AxisMap, handed: AxisMap | None = None) -> AxisMap:
    """The map of what the last norm hands to a tied head, P_final = P (P^T P)^-1.

    A tied head reads with the stream's own P, so the last norm's gain must undo it; a norm without gain cannot, and
    hands on by `handed`.
    """
    write = stream.read if handed is None else handed.write
    return AxisMap.make(stream.old, write, stream.write, fresh_read=stream.fresh_read)
