"""A growth: a lift, one map for every axis, and effects; and the provenance that it leaves in the training state.

Callers loop over a growth's effects and know them by the hooks of `Effect` alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import Any, ClassVar

import jax
import numpy as np

from growlm.growth.lifts import Lifted
from growlm.growth.maps import Array, AxisMap, along, compose, numpy_or_jax
from growlm.models.architecture import DecoderConfig
from growlm.models.axes import Axis, Dim, Kind, Weight, multiply

Draw = Callable[[str], Array]  # purpose -> random values of the target's, from the key of that purpose

DRAW_FRESH, DRAW_NOISE = "fresh", "noise"  # the purposes: initial values, and normal ones of the weight's deviation


@dataclasses.dataclass(frozen=True, eq=False)
class Effect:
    """The hooks of an effect; each does nothing by default.

    Attributes:
      name: its key in growth reports.
      reparametrises: it acts on the parameters throughout training, see masks.py.
      learns: its maps are learned from batches, see learned.py.
      first_alone: further copies hold other values than the maps give them, so that to undo it takes first copies.
    """

    name: ClassVar[str]
    reparametrises: ClassVar[bool] = False
    learns: ClassVar[bool] = False
    first_alone: ClassVar[bool] = False

    def acting(self, growth: Growth, target: DecoderConfig) -> Growth:
        """The growth as it acts when training begins, on which claims are made."""
        return growth

    def breaks(self, growth: Growth, target: DecoderConfig) -> str:
        """Why the function is not kept; empty if this effect keeps it."""
        return ""

    def breaks_gradients(self, growth: Growth, target: DecoderConfig) -> str:
        """Why gradients do not follow the dual map; empty if this effect leaves them so."""
        return ""

    def hides(self, growth: Growth) -> str:
        """Why the maps alone do not undo the growth; empty if they do."""
        return ""

    def changes(self, growth: Growth, weight: Weight) -> bool:
        """Whether it changes a weight after the maps."""
        return False

    def change(
        self, growth: Growth, target: DecoderConfig, weight: Weight, value: Array, grown: Array, draw: Draw
    ) -> Array:
        """The grown weight, changed; `value` is the source's."""
        return grown

    def draws(self) -> bool:
        """Whether it draws random values."""
        return False

    def compares_copies(self) -> bool:
        """Whether what it does to one copy that a weight reads depends on the other copies, so none may be left out."""
        return False

    def source_layers(self, rows: slice) -> np.ndarray:
        """The source layers that it reads for these layers of the target."""
        return np.zeros(0, np.int64)

    def at_layers(self, rows: slice, needed: np.ndarray) -> Effect:
        """The effect on these layers of the target, given the `needed` (sorted) source layers alone."""
        return self

    def report(self) -> dict[str, Any]:
        """Its settings, as plain JSON."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, eq=False)
class Growth:
    """What an operator makes of two shapes.

    Attributes:
      maps: the map of every axis, by name.
      stack: the name of the axis of layers.
      residual: float [new layers], the factor on a layer's residual writers; 0 where it adds nothing to the stream yet.
      per_weight: maps that hold for one weight alone, by (axis, path of the weight).
      effects: applied after the maps, in order.
      factors: by path of a weight, float [layers] or [1]: what undoes a change of `Weight.multiplier`.
      lift: the exact re-parametrisation that comes before the maps, or None.
    """

    maps: dict[str, AxisMap]
    stack: str
    residual: np.ndarray
    per_weight: dict[tuple[str, str], AxisMap] = dataclasses.field(default_factory=dict)
    effects: tuple[Effect, ...] = ()
    factors: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    lift: Lifted | None = None

    @property
    def order(self) -> tuple[int, ...]:
        """The source layer of each target layer, -1 for a fresh one."""
        return tuple(self.maps[self.stack].origin.tolist())

    @property
    def zero_residual_layers(self) -> list[int]:
        """The layers whose residual writers are zero, so they add nothing to the stream yet."""
        return np.flatnonzero(np.asarray(self.residual) == 0).tolist()

    @property
    def masks(self) -> Any:
        """The effect that reparametrises the model throughout training, or None."""
        return next((effect for effect in self.effects if effect.reparametrises), None)  # Masks, which is above

    @property
    def learner(self) -> Any:
        """The effect whose maps are learned from batches, or None."""
        return next((effect for effect in self.effects if effect.learns), None)  # Learned, which is above

    @property
    def static(self) -> StaticGrowth:
        """The growth as a static argument of `jax.jit`."""
        return StaticGrowth(self, _content(self))

    def with_matrices(self, matrices: Any) -> Growth:
        """The growth with learned matrices for its maps; itself where none are learned."""
        return self if self.learner is None else self.learner.with_matrices(self, matrices)

    def start(self, source: DecoderConfig) -> DecoderConfig:
        """The config that the maps grow: the source's, lifted if the growth has a lift."""
        return self.lift.config if self.lift else source

    def writes_zeros(self, axis: Axis, target: DecoderConfig) -> bool:
        """Whether the experts of an axis write zeros, because a lift made them."""
        writers = [w for w in target.weights if w.residual and any(dim.many and dim.axis is axis for dim in w.dims)]
        return self.lift is not None and all(map(self.lift.writes_zeros, writers))

    def axis(self, axis: Axis, weight: Weight) -> AxisMap:
        """The map of an axis for one weight."""
        return self.per_weight.get((axis.name, weight.path), self.maps[axis.name])

    def dim_maps(self, weight: Weight) -> list[tuple[int, Dim, AxisMap | None, AxisMap | None]]:
        """For every array dimension: its number, its Dim, and the maps of the axes that it reads and writes."""

        def of(axis: Axis | None) -> AxisMap | None:
            return None if axis is None else self.axis(axis, weight)

        return [(number, dim, of(dim.reads), of(dim.writes)) for number, dim in enumerate(weight.all_dims)]

    def width_maps(self, weight: Weight) -> list[tuple[int, AxisMap | None, AxisMap | None]]:
        """(number, read map, write map) of every array dimension but that of layers."""
        maps = self.dim_maps(weight)
        return [(number, read, write) for number, dim, read, write in maps if dim.axis.kind is not Kind.STACK]

    def scaled(self, weight: Weight, value: Array, power: int = 1) -> Array:
        """The grown weight times its factor to a power; itself where it has none."""
        if (factor := self.factors.get(weight.path)) is None:
            return value
        return value * along(numpy_or_jax(value).asarray(factor**power, value.dtype), 0, value.ndim)

    def fresh(self, weight: Weight) -> list[np.ndarray]:
        """For every array dimension, bool [size]: the slices all of whose entries are freshly initialised."""
        return self._marked(weight, lambda read: read.fresh_read, lambda write: write.fresh_write)

    def added(self, weight: Weight) -> list[np.ndarray]:
        """For every array dimension, bool [size]: the slices that are second copies or fresh."""
        return self._marked(weight, lambda read: read.added, lambda write: write.added)

    def _marked(
        self, weight: Weight, of_read: Callable[[AxisMap], np.ndarray], of_write: Callable[[AxisMap], np.ndarray]
    ) -> list[np.ndarray]:
        marked = []
        for _, dim, read, write in self.dim_maps(weight):
            chosen = np.zeros(self.axis(dim.axis, weight).new, bool)
            chosen = chosen if read is None else chosen | of_read(read)
            marked.append(chosen if write is None else chosen | of_write(write))
        return marked


@dataclasses.dataclass(frozen=True, eq=False)
class StaticGrowth:
    """A growth that equals every growth of equal content, so that `jax.jit` compiles once for all of them."""

    growth: Growth
    content: Hashable

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StaticGrowth) and self.content == other.content

    def __hash__(self) -> int:
        return hash(self.content)


def _content(value: Any) -> Hashable:
    """What a growth computes with, as a nested tuple; without learned matrices, which are arguments of programs."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        compared = (field.name for field in dataclasses.fields(value) if field.compare)
        return type(value), *(_content(getattr(value, name)) for name in compared)
    if isinstance(value, Mapping):
        return tuple((key, _content(item)) for key, item in value.items())
    if isinstance(value, tuple | list):
        return tuple(map(_content, value))
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str, value.tobytes()
    return (value.shape, value.dtype.name) if isinstance(value, jax.Array) else value


def factors_of(growth: Growth, source: DecoderConfig, target: DecoderConfig) -> dict[str, np.ndarray]:
    """For every weight whose multiplier changes, the factor that undoes it: of its layer's origin over its own."""
    layers, factors = np.asarray(growth.order, np.int64), {}
    for weight in target.weights:
        if weight.multiplier is None:
            continue
        before, after = (
            np.asarray(multiply(weight.multiplier, config), np.float64).reshape(-1) for config in (source, target)
        )
        if weight.stacked:
            before, after = np.broadcast_to(before, source.depth), np.broadcast_to(after, target.depth)
            before = np.where(layers < 0, after, before[layers] if len(before) else after)  # fresh layers owe nothing
        if not np.array_equal(before, after) and not np.allclose(before, after, rtol=1e-15, atol=0):
            factors[weight.path] = before / after
    return factors


def after(second: Growth, first: Growth) -> Growth:
    """The composition of two growths, by their maps and residual factors; the second one changes no multipliers."""
    maps = {axis: compose(second.maps[axis], first.maps[axis]) for axis in first.maps}
    per_weight = {place: compose(second.maps[place[0]], axis) for place, axis in first.per_weight.items()}
    layers = second.maps[second.stack].origin
    residual = second.residual * np.where(layers < 0, 0.0, first.residual[layers])
    return Growth(maps, first.stack, residual, per_weight, factors=first.factors, lift=first.lift)


# The provenance of a coordinate: the first of an old one, a second copy, or freshly initialised.
CARRIED, COPY, FRESH = 0, 1, 2


def provenance_of(growth: Growth) -> dict[str, np.ndarray]:
    """For every axis, int32[2, new]: the old coordinate of each new one (-1: none), and CARRIED, COPY or FRESH."""
    return {
        name: np.stack([axis.origin, np.where(axis.fresh, FRESH, np.where(axis.added, COPY, CARRIED))]).astype(np.int32)
        for name, axis in growth.maps.items()
    }


def initial_provenance(config: DecoderConfig) -> dict[str, np.ndarray]:
    """The provenance of a model that was never grown."""
    sizes = {axis.name: config.size(axis) for axis in config.architecture.axes}
    return {name: np.stack([np.arange(n), np.full(n, CARRIED)]).astype(np.int32) for name, n in sizes.items()}


def slice_mask(weight: Weight, provenance: dict[str, jax.Array]) -> jax.Array:
    """bool, broadcastable to the weight: the slices that the last growth added, copies and fresh ones.

    Provenance may be traced, so that one compiled step serves all growths.
    """
    mask: Any = np.zeros((1,) * len(weight.all_dims), bool)
    for number, dim in enumerate(weight.all_dims):
        for axis in dim.both:
            mask = mask | along(provenance[axis.name][1] >= COPY, number, mask.ndim)
    return mask
