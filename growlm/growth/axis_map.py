"""One axis under growth: how an activation on it expands (write), and how a consumer reads the expanded one (read)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Gather:
    """A matrix [new, old] with at most one entry in each row: scale[i] in column index[i]; index -1 is an empty row."""

    index: np.ndarray  # int [new]
    scale: np.ndarray  # float64 [new]

    @classmethod
    def copies(cls, index, scale=1.0) -> "Gather":
        """Row i copies column index[i], times scale."""
        index = np.asarray(index, np.int64)
        return cls(index, np.where(index < 0, 0.0, np.broadcast_to(np.asarray(scale, np.float64), index.shape)))

    def take(self, x: jax.Array, axis: int) -> jax.Array:
        """The matrix times x along an axis: one gather, and a product where a scale is not 1."""
        y = jnp.take(x, jnp.asarray(np.maximum(self.index, 0)), axis=axis)
        if np.all(self.scale == 1.0):
            return y
        shape = [1] * x.ndim
        shape[axis] = -1
        return y * jnp.asarray(self.scale, y.dtype).reshape(shape)


@dataclasses.dataclass(frozen=True, eq=False)
class AxisMap:
    """The write map P and the read map R of one axis of `old` coordinates, each float64 [new, old].

    `fresh_write` and `fresh_read` mark new coordinates that get the target's own initial values where a weight writes
    or reads them, whatever the maps say.
    """

    old: int
    write: Gather
    read: Gather
    fresh_write: np.ndarray  # bool [new]
    fresh_read: np.ndarray  # bool [new]

    @classmethod
    def make(cls, old: int, write: Gather, read: Gather, fresh_write=None, fresh_read=None) -> "AxisMap":
        """A map with nothing fresh unless it is said."""
        none = np.zeros(len(write.index), bool)
        return cls(
            old,
            write,
            read,
            none if fresh_write is None else np.asarray(fresh_write, bool),
            none if fresh_read is None else np.asarray(fresh_read, bool),
        )

    @property
    def new(self) -> int:
        """The size after growth."""
        return len(self.write.index)

    @property
    def identity(self) -> bool:
        """Whether nothing changes on this axis."""
        same = self.new == self.old and not (self.fresh_write.any() or self.fresh_read.any())
        unit = Gather.copies(np.arange(self.new))
        return same and all(
            np.array_equal(m.index, unit.index) and np.array_equal(m.scale, unit.scale) for m in (self.write, self.read)
        )

    def defect(self) -> float:
        """How far R^T P is from the identity: 0 where reading undoes writing, the condition on an ordinary axis."""
        if self.fresh_write.any() and np.abs(self.read.scale[self.fresh_write]).max() > 0:
            return np.inf
        if self.fresh_read.any() and np.abs(self.write.scale[self.fresh_read]).max() > 0:
            return np.inf
        return _product_defect(self.read, self.write, self.old)

    def isometry_defect(self) -> float:
        """How far P^T P is from (new / old) I: 0 where the mean square stays, the condition on the stream."""
        mean = Gather(self.write.index, self.write.scale * self.old / self.new)
        return _product_defect(mean, self.write, self.old)


def _product_defect(a: Gather, b: Gather, old: int) -> float:
    """Largest entry of |A^T B - I|; infinite where a new coordinate is read as another one than it was written."""
    both = (a.scale != 0) & (b.scale != 0)
    if np.any(a.index[both] != b.index[both]):
        return np.inf
    diagonal = np.bincount(a.index[both], (a.scale * b.scale)[both], minlength=old)
    return float(np.abs(diagonal - 1).max())


def identity(size: int) -> AxisMap:
    """An axis that does not grow."""
    same = Gather.copies(np.arange(size))
    return AxisMap.make(size, same, same)
