"""The maps of one axis under growth: P, by which activations on it expand, and R, by which consumers read them.

Both are matrices [new, old]. Every map works on NumPy arrays, and then gives NumPy arrays, or on JAX arrays.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from growlm.models.axes import Dim

Array = jax.Array | np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Gather:
    """A matrix [new, old] with at most one entry a row, and optionally a rank-one term.

    Attributes:
      index: int [new], the column of each row's entry; -1 for an empty row.
      scale: float64 [new], the entries; traced where they are masks.
      ranks: `occurrence`, given where these are only some rows of a matrix.
      spread: (left [new], right [old]): adds left right^T. It pads a stream with its mean, as LayerNorm needs.
    """

    index: np.ndarray
    scale: Any
    ranks: np.ndarray | None = None
    spread: tuple[Any, Any] | None = None

    @classmethod
    def copies(cls, index: Any, scale: Any = 1.0, spread: tuple[Any, Any] | None = None) -> "Gather":
        """Row i copies column index[i], times scale."""
        index = np.asarray(index, np.int64)
        scale = np.where(index < 0, 0.0, np.asarray(scale, np.float64))
        return cls(index, scale, spread=spread)

    def take(self, x: Array, axis: int) -> Array:
        """The matrix times x along an axis."""
        y = select(x, self.index, axis)
        xp = numpy_or_jax(y, self.scale)
        if not (isinstance(self.scale, np.ndarray) and np.all(self.scale[self.index >= 0] == 1.0)):
            y = y * along(xp.asarray(self.scale, y.dtype), axis, y.ndim)
        if self.spread is None:
            return y
        left, right = (along(xp.asarray(side, y.dtype), axis, y.ndim) for side in self.spread)
        return y + left * xp.sum(right * x, axis=axis, keepdims=True)

    @property
    def spreads(self) -> np.ndarray:
        """bool [new]: rows with a rank-one term, which need every old coordinate."""
        return np.zeros(len(self.index), bool) if self.spread is None else np.asarray(self.spread[0]) != 0

    def columns(self, rows: slice) -> np.ndarray:
        """The old coordinates that these rows come from, some more than once."""
        index = self.index[rows]
        if self.spread is not None and self.spreads[rows].any():
            return np.arange(len(self.spread[1]))
        return index[index >= 0]

    @property
    def plain(self) -> np.ndarray:
        """bool [new]: rows that are an old coordinate as it is."""
        return (self.index >= 0) & (self.scale == 1) & ~self.spreads

    def part(self, rows: slice, needed: np.ndarray) -> "Gather":
        """These rows of the matrix, and the `needed` (sorted) columns alone."""
        index = self.index[rows]
        local = np.where(index < 0, -1, np.searchsorted(needed, index))
        spread = None
        if self.spread is not None and self.spreads[rows].any():
            spread = self.spread[0][rows], self.spread[1][needed]
        return Gather(local, self.scale[rows], self.occurrence[rows], spread)

    def scale_of_old(self, old: int) -> np.ndarray | None:
        """float64 [old]: the scale of each column's copies; None if copies differ or there is a rank-one term."""
        if self.spread is not None:
            return None
        scale, copies = np.ones(old), self.index >= 0
        scale[self.index[copies]] = self.scale[copies]
        return scale if np.array_equal(scale[self.index[copies]], self.scale[copies]) else None

    def over(self, other: Any, factor: float = 1.0) -> "Gather":
        """The map of an elementwise weight that reads `other` and writes this axis: the ratio of their scales."""
        if isinstance(self.scale, np.ndarray):
            scale = np.divide(self.scale, other.scale, out=np.zeros_like(self.scale), where=other.scale != 0)
        else:
            scale = self.scale / jnp.where(other.scale == 0, 1.0, other.scale)
        return Gather(self.index, scale * factor)

    def times(self, other: Any, factor: float = 1.0) -> "Gather":
        """The map of that weight's gradient: the product of their scales."""
        return Gather(self.index, self.scale * other.scale * factor)

    def squared(self) -> "Gather":
        """The elementwise square, by which second moments grow."""
        spread = None if self.spread is None else (self.spread[0] ** 2, self.spread[1] ** 2)
        return Gather(self.index, self.scale**2, spread=spread)

    def after(self, first: "Gather") -> "Gather":
        """The matrix product with `first`; at most one of the two may have a rank-one term."""
        assert self.spread is None or first.spread is None
        index = np.where(self.index < 0, -1, first.index[self.index])
        spread = None
        if first.spread is not None:
            left, right = first.spread
            spread = np.where(self.index < 0, 0.0, self.scale * left[self.index]), right
        elif self.spread is not None:
            left, right = self.spread
            kept, old = first.index >= 0, int(first.index.max(initial=-1)) + 1
            spread = left, np.bincount(first.index[kept], (first.scale * right)[kept], minlength=old)
        return Gather.copies(index, self.scale * first.scale[self.index], spread)

    def remainder(self, x: Array, axis: int) -> Array:
        """Projects x along `axis` onto the null space of P^T: x - P (P^T P)^-1 P^T x."""
        old = int(self.index.max()) + 1
        xp, groups = numpy_or_jax(x), np.maximum(self.index, 0)
        scale = along(xp.asarray(self.scale, x.dtype), axis, x.ndim)
        sums = xp.zeros((*x.shape[:axis], old, *x.shape[axis + 1 :]), x.dtype)
        place: Any = (slice(None),) * axis + (groups,)
        if xp is np:
            np.add.at(sums, place, x * scale)
        else:
            sums = sums.at[place].add(x * scale)
        squares = np.bincount(groups, self.scale**2, minlength=old)
        weight = along(xp.asarray(1 / np.where(squares == 0, 1.0, squares), x.dtype), axis, x.ndim)
        return x - xp.take(sums * weight, groups, axis=axis, mode="clip") * scale

    @cached_property
    def occurrence(self) -> np.ndarray:
        """int [new]: how many earlier rows copy the same column."""
        if self.ranks is not None:
            return self.ranks
        order = np.argsort(self.index, kind="stable")
        ranked = self.index[order]
        occurrence = np.empty_like(self.index)
        occurrence[order] = np.arange(len(ranked)) - np.searchsorted(ranked, ranked)
        return occurrence


@dataclasses.dataclass(frozen=True, eq=False)
class Dense:
    """A full matrix [new, old], or [new a, new b, old a, old b] over two neighbouring dimensions of an array.

    index: int [new], the column that each row starts as a copy of, for provenance; -1 for none.
    """

    matrix: jax.Array
    index: np.ndarray

    def take(self, x: Array, axis: int) -> jax.Array:
        """The matrix times x along an axis, or along it and the next one."""
        many = self.matrix.ndim // 2
        axes = tuple(range(axis, axis + many))
        y = jnp.tensordot(self.matrix.astype(x.dtype), x, axes=(tuple(range(many, 2 * many)), axes))
        return jnp.moveaxis(y, tuple(range(many)), axes)

    def over(self, other: Any, factor: float = 1.0) -> "Dense":
        """The map of an elementwise weight: in LiGO, that of any vector on the axis."""
        return self

    def times(self, other: Any, factor: float = 1.0) -> "Dense":
        """The map of its gradient."""
        return self

    def squared(self) -> "Dense":
        """The elementwise square."""
        return Dense(self.matrix**2, self.index)


@dataclasses.dataclass(frozen=True, eq=False)
class Merge:
    """A left inverse [new, old] of a Gather [old, new]: the mean of what the copies of a coordinate say that it was.

    It is taken as the first copy, divided by its scale, plus the mean difference of the others from it. So copies that
    are still equal give back what they are copies of to the byte where the scale is a power of two, and else within
    a rounding.

    Attributes:
      copies: int [old], the new coordinate that each old one is a copy of; -1 for none.
      scale: float64 [old], the factors of the copies.
      share: float64 [old], the weights of the copies in the mean; those of one coordinate sum to 1.
      new: the number of new coordinates, each of which has a copy.
    """

    copies: np.ndarray
    scale: np.ndarray
    share: np.ndarray
    new: int

    @cached_property
    def _ranked(self) -> list[np.ndarray]:
        """int [new] for every rank of copies: the old coordinate that is the first, second ... copy; -1 for none."""
        held = np.flatnonzero((self.copies >= 0) & (self.share != 0))
        rank = Gather.copies(self.copies[held]).occurrence
        ranked = np.full((int(rank.max(initial=0)) + 1, self.new), -1)
        ranked[rank, self.copies[held]] = held
        return list(ranked)

    @property
    def index(self) -> np.ndarray:
        """int [new]: the first copy of each coordinate."""
        return self._ranked[0]

    def take(self, x: Array, axis: int) -> Array:
        """The matrix times x along an axis."""
        mean: Any = None
        for positions in self._ranked:
            y = select(x, positions, axis)
            xp = numpy_or_jax(y)
            scale, share = (
                along(xp.asarray(np.where(positions < 0, none, of_copy[positions]), y.dtype), axis, y.ndim)
                for none, of_copy in ((1.0, self.scale), (0.0, self.share))
            )
            said = y / scale
            if mean is None:
                first = mean = said
            else:
                step = share * (said - first)
                mean = xp.where(step == 0, mean, mean + step)  # -0 stays -0
        return mean

    def columns(self, rows: slice) -> np.ndarray:
        """The old coordinates that these rows come from."""
        return np.flatnonzero((self.copies >= rows.start) & (self.copies < rows.stop))

    @property
    def plain(self) -> np.ndarray:
        """bool [new]: rows that are an old coordinate as it is."""
        return (np.bincount(self.copies[self.copies >= 0], minlength=self.new) == 1) & (self.scale[self.index] == 1)

    def part(self, rows: slice, needed: np.ndarray) -> "Merge":
        """These rows of the matrix, and the `needed` (sorted) columns alone."""
        copies = self.copies[needed] - rows.start
        size = len(range(*rows.indices(self.new)))
        inside = (copies >= 0) & (copies < size)
        return Merge(np.where(inside, copies, -1), self.scale[needed], self.share[needed], size)

    def scale_of_old(self, old: int) -> None:
        """None: a coordinate comes from several old ones."""

    def over(self, other: Any, factor: float = 1.0) -> "Merge":
        """The left inverse of `Gather.over`, for the factor of the growth that is undone, 1 / `factor`."""
        scale = np.divide(self.scale, other.scale * factor, out=np.ones_like(self.scale), where=other.scale != 0)
        return dataclasses.replace(self, scale=scale)

    def times(self, other: Any, factor: float = 1.0) -> "Merge":
        """The left inverse of `Gather.times`."""
        return dataclasses.replace(self, scale=self.scale * other.scale / factor)

    def squared(self) -> "Merge":
        """The left inverse of `Gather.squared`."""
        return dataclasses.replace(self, scale=self.scale**2)


@dataclasses.dataclass(frozen=True, eq=False)
class AxisMap:
    """The write map P and the read map R of one axis, each [new, old].

    Attributes:
      old: the number of old coordinates.
      write, read: P and R.
      fresh_write, fresh_read: bool [new], coordinates that are freshly initialised where weights write or read them.
      rms: the factor on the root mean square of the axis, by which the gain of a norm that reads it is multiplied.
      whole: (the map that this is a part of, the rows that it is), or None.
    """

    old: int
    write: Gather | Dense | Merge
    read: Gather | Dense | Merge
    fresh_write: np.ndarray
    fresh_read: np.ndarray
    rms: float = 1.0
    whole: "tuple[AxisMap, slice] | None" = None

    @classmethod
    def make(
        cls,
        old: int,
        write: Gather | Dense | Merge,
        read: Gather | Dense | Merge,
        fresh_write: np.ndarray | None = None,
        fresh_read: np.ndarray | None = None,
        rms: Any = 1.0,
    ) -> "AxisMap":
        """A map in which nothing is fresh by default."""
        none = np.zeros(len(write.index), bool)
        return cls(
            old,
            write,
            read,
            fresh_write=none if fresh_write is None else np.asarray(fresh_write, bool),
            fresh_read=none if fresh_read is None else np.asarray(fresh_read, bool),
            rms=rms,
        )

    @property
    def new(self) -> int:
        """The size after growth."""
        return len(self.write.index)

    @property
    def gathers(self) -> tuple[Gather, Gather]:
        """The write and the read map of an operator that learns none."""
        assert isinstance(self.write, Gather) and isinstance(self.read, Gather), "learned maps are dense"
        return self.write, self.read

    @property
    def identity(self) -> bool:
        """Whether the axis does not change."""
        if not isinstance(self.write, Gather) or self.new != self.old or self.fresh.any() or self.rms != 1:
            return False
        return all(
            one.spread is None and np.array_equal(one.index, np.arange(self.new)) and np.all(one.scale == 1)
            for one in self.gathers
        )

    @property
    def fresh(self) -> np.ndarray:
        """bool [new]: coordinates that are freshly initialised on one side or both."""
        return self.fresh_write | self.fresh_read

    @property
    def origin(self) -> np.ndarray:
        """int [new]: the old coordinate of each new one, -1 for none."""
        return np.where(self.fresh_write & self.fresh_read, -1, np.maximum(self.write.index, self.read.index))

    @property
    def added(self) -> np.ndarray:
        """bool [new]: second copies and fresh coordinates."""
        if self.whole is not None:
            whole, rows = self.whole
            return whole.added[rows]
        added = np.ones(self.new, bool)
        added[np.unique(self.origin, return_index=True)[1]] = False
        return added | (self.origin < 0)

    @property
    def copied(self) -> bool:
        """Whether an old coordinate has a second copy."""
        if self.whole is not None:
            return self.whole[0].copied
        return bool(np.any(self.added & (self.origin >= 0)))

    def needed(self, rows: slice) -> np.ndarray:
        """The old coordinates that these new ones come from, sorted."""
        assert not isinstance(self.write, Dense) and not isinstance(self.read, Dense), "learned maps have no parts"
        return np.union1d(self.write.columns(rows), self.read.columns(rows))

    def part(self, rows: slice, needed: np.ndarray) -> "AxisMap":
        """The map of these new coordinates alone, from the needed (sorted) old ones alone."""
        assert not isinstance(self.write, Dense) and not isinstance(self.read, Dense), "learned maps have no parts"
        write, read = self.write.part(rows, needed), self.read.part(rows, needed)
        fresh_write, fresh_read = self.fresh_write[rows], self.fresh_read[rows]
        return AxisMap(len(needed), write, read, fresh_write, fresh_read, rms=self.rms, whole=(self, rows))

    def without_fresh(self) -> "AxisMap":
        """The maps with zeros where coordinates would be freshly initialised."""
        none = np.zeros(self.new, bool)
        return dataclasses.replace(self, fresh_write=none, fresh_read=none)

    def defect(self) -> float:
        """Largest entry of |R^T P - I|, which is 0 if consumers read what was written; infinite if unknown."""
        if not isinstance(self.write, Gather) or not isinstance(self.read, Gather):
            return np.inf
        if self.fresh_write.any() and np.abs(self.read.scale[self.fresh_write]).max() > 0:
            return np.inf
        if self.fresh_read.any() and np.abs(self.write.scale[self.fresh_read]).max() > 0:
            return np.inf
        if (self.fresh_read & self.fresh_write).any():
            return np.inf
        return product_defect(self.read, self.write, self.old)


MANY_RUNS = 8  # above, a gather is faster


def select(x: Array, index: np.ndarray, axis: int) -> Array:
    """x at the indices along an axis; zero where the index is -1."""
    # Runs of neighbours are copied as slices: on XLA's CPU backend a gather works element by element.
    old, times = x.shape[axis], len(index) // max(x.shape[axis], 1)
    xp = np if isinstance(x, np.ndarray) else jnp
    if np.array_equal(index, np.repeat(np.arange(old), times)):
        return x if times == 1 else xp.repeat(x, times, axis=axis)
    together = (np.diff(index) == 1) & (index[:-1] >= 0) | (index[:-1] < 0) & (index[1:] < 0)
    runs = np.split(index, np.flatnonzero(~together) + 1)
    if len(runs) > MANY_RUNS:
        taken = xp.take(x, xp.asarray(np.maximum(index, 0), np.int32), axis=axis, mode="clip")
        return xp.where(along(index >= 0, axis, x.ndim), taken, 0) if np.any(index < 0) else taken
    zeros = [xp.zeros((*x.shape[:axis], len(run), *x.shape[axis + 1 :]), x.dtype) for run in runs if run[0] < 0]
    parts = [zeros.pop(0) if run[0] < 0 else _cut(x, run[0], run[-1] + 1, axis) for run in runs]
    return xp.concatenate(parts, axis=axis)


def overlay(x: Array, y: Array, chosen: Sequence[np.ndarray]) -> Array:
    """y in the slices that are chosen along any dimension, by bool [size] for each, and x elsewhere."""
    for axis, of_axis in enumerate(chosen):
        x = numpy_or_jax(x, y).where(along(of_axis, axis, x.ndim), y, x) if np.any(of_axis) else x
    return x


def _cut(x: Array, begin: int, end: int, axis: int) -> Array:
    if isinstance(x, np.ndarray):
        return x[(slice(None),) * axis + (slice(begin, end),)]
    return jax.lax.slice_in_dim(x, begin, end, axis=axis)


def numpy_or_jax(*arrays: Any) -> Any:
    """The module numpy if all arrays are NumPy's, so that results are too and keep their precision; else jax.numpy."""
    return np if all(isinstance(array, np.ndarray) for array in arrays) else jnp


def along(vector: Any, axis: int, ndim: int) -> Any:
    """Reshapes a vector so that it broadcasts along one axis of an array with ndim dimensions."""
    return vector.reshape([-1 if other == axis else 1 for other in range(ndim)])


def product_defect(a: Gather, b: Gather, old: int) -> float:
    """Largest entry of |A^T B - I|; infinite where a row of A and of B have different columns."""
    if np.any(a.spreads & (b.scale != 0)) or np.any(b.spreads & (a.scale != 0)) or np.any(a.spreads & b.spreads):
        return np.inf
    both = (a.scale != 0) & (b.scale != 0)
    if np.any(a.index[both] != b.index[both]):
        return np.inf
    diagonal = np.bincount(a.index[both], (a.scale * b.scale)[both], minlength=old)
    return float(np.abs(diagonal - 1).max(initial=0.0))


def identity(size: int) -> AxisMap:
    """The map of an axis that does not grow."""
    same = Gather.copies(np.arange(size))
    return AxisMap.make(size, same, same)


def compose(second: AxisMap, first: AxisMap) -> AxisMap:
    """The product of two maps. Fresh coordinates that the second map multiplies by 0 are not fresh any more."""

    def fresh(own: np.ndarray, before: np.ndarray, through: Gather) -> np.ndarray:
        return own | ((through.index >= 0) & before[through.index] & (through.scale != 0))

    (write, read), (first_write, first_read) = second.gathers, first.gathers
    return AxisMap(
        first.old,
        write.after(first_write),
        read.after(first_read),
        fresh(second.fresh_write, first.fresh_write, write),
        fresh(second.fresh_read, first.fresh_read, read),
        rms=first.rms * second.rms,
    )


Rule = Callable[[AxisMap | None, AxisMap | None], Any]


def primal(read: AxisMap | None, write: AxisMap | None) -> Any:
    """The map of a weight along a dimension: R if it reads, P if it writes, their quotient if it is elementwise."""
    if read is None:
        assert write is not None
        return write.write
    return read.read if write is None else write.write.over(read.write, read.rms)


def dual(read: AxisMap | None, write: AxisMap | None) -> Any:
    """The map of its gradient: P if the weight reads, R if it writes, their product if it is elementwise."""
    if read is None:
        assert write is not None
        return write.read
    return read.write if write is None else write.read.times(read.write, 1 / read.rms)


def dual_squared(read: AxisMap | None, write: AxisMap | None) -> Any:
    """The map of its squared gradient: the elementwise square of the dual map."""
    return dual(read, write).squared()


# The power to which each rule takes a factor on a weight: where w' = f w, the gradient by w' is that by w over f.
POWERS: dict[Rule, int] = {primal: 1, dual: -1, dual_squared: -2}

# The growth of a part of an optimizer state that is shaped like the parameters, by the name of its field in optax.
MOMENTS: dict[str, Rule] = {"mu": dual, "nu": dual_squared, "trace": dual}

# Parts of one number for each slice along some dimensions, and of size 1 along the others, whatever a weight's scale: a
# copy has its original's, what is new starts at 0. By the name of the field, the dimensions that it has.
STATISTICS: dict[str, Callable[[Dim], bool]] = {
    "by_output": lambda dim: dim.reads is None,
    "by_input": lambda dim: dim.many or dim.reads is not None,
}
