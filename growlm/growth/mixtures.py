"""Growth of mixtures: effects that part the copies of an expert, which experts to copy, and routers that are fresh."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from growlm.errors import InputError, must_be
from growlm.growth.lifts import Lifted
from growlm.growth.maps import Array, AxisMap, along, numpy_or_jax
from growlm.growth.plan import Draw, Effect, Growth
from growlm.models.architecture import DecoderConfig, Params, map_weights
from growlm.models.axes import Axis, Kind, Role, Weight

DRAW_UNITS, DRAW_ROUTER = "units", "router noise"  # the purposes


def _experts_of(weight: Weight) -> tuple[int, Axis] | None:
    """The array dimension and the axis of experts, for a weight that each of them has."""
    dims = enumerate(weight.all_dims)
    return next(((number, dim.axis) for number, dim in dims if dim.many and dim.axis.kind is Kind.EXPERTS), None)


def _units_of(weight: Weight) -> tuple[int, Axis] | None:
    """The array dimension and the axis of a weight's units, neurons within a branch."""
    dims = enumerate(weight.all_dims)
    return next(((number, dim.axis) for number, dim in dims if dim.axis.kind is Kind.INNER), None)


def _rows(axis: AxisMap) -> slice:
    """Which coordinates of the whole axis a map is for."""
    return slice(None) if axis.whole is None else axis.whole[1]


@dataclasses.dataclass(frozen=True, eq=False)
class DropUnits(Effect):
    """Drop-Upcycling (arXiv 2502.19261, section 3.2): a share of every expert's units is drawn anew.

    A unit has one column in each matrix that writes it and one row in each that reads it. All of them are drawn from
    normal distributions with the mean and the standard deviation of what they replace in their matrix, or in the part
    of it that is grown at once.

    Attributes:
      share: of the units.
      units: by the name of their axis, bool [layers, experts, units]: those that are drawn.
    """

    name = "drop_units"
    share: float
    units: Mapping[str, np.ndarray]

    @classmethod
    def drawn(cls, share: float, target: DecoderConfig, rng: np.random.Generator) -> DropUnits:
        """Of every expert of every layer the same number of units, by chance."""
        units: dict[str, np.ndarray] = {}
        for weight in target.weights:
            experts, inner = _experts_of(weight), _units_of(weight)
            if experts is None or inner is None or inner[1].name in units:
                continue
            size = target.size(inner[1])
            order = rng.random((target.depth, target.size(experts[1]), size)).argsort(axis=2)
            units[inner[1].name] = order < round(share * size)
        return cls(share, units)

    def breaks(self, growth: Growth, target: DecoderConfig) -> str:
        """Unless there are no such units, or their experts add nothing yet."""
        changed = [weight for weight in target.weights if self.changes(growth, weight)]
        axes = {experts[1] for weight in changed if (experts := _experts_of(weight)) is not None}
        heard = any(not growth.writes_zeros(axis, target) for axis in axes)
        return f"a share of {self.share:g} of every expert's units is drawn anew" if heard else ""

    def breaks_gradients(self, growth: Growth, target: DecoderConfig) -> str:
        """What is drawn has gradients of its own."""
        return "experts have units that are no copies: mapped moments are a start" if self.units else ""

    def changes(self, growth: Growth, weight: Weight) -> bool:
        """Weights that every expert has, and that write or read such units."""
        inner = _units_of(weight)
        return _experts_of(weight) is not None and inner is not None and bool(self.units[inner[1].name].any())

    def draws(self) -> bool:
        """Where there are units."""
        return bool(self.units)

    def change(
        self, growth: Growth, target: DecoderConfig, weight: Weight, value: Array, grown: Array, draw: Draw
    ) -> Array:
        """Draws the units of a weight anew."""
        if not self.changes(growth, weight):
            return grown
        experts, inner = _experts_of(weight), _units_of(weight)
        assert experts is not None and inner is not None
        numbers = (0, experts[0], inner[0])
        part = tuple(_rows(growth.axis(weight.all_dims[number].axis, weight)) for number in numbers)
        chosen, order = self.units[inner[1].name][part], np.argsort(numbers)
        shape = [1] * grown.ndim
        for number, size in zip(numbers, chosen.shape, strict=True):
            shape[number] = size
        xp, chosen = numpy_or_jax(grown), chosen.transpose(order).reshape(shape)
        over = tuple(number for number in range(grown.ndim) if number not in numbers[:2])
        count = np.maximum(np.broadcast_to(chosen, grown.shape).sum(axis=over, keepdims=True), 1).astype(grown.dtype)
        mean = xp.where(chosen, grown, 0).sum(axis=over, keepdims=True) / count
        spread = xp.sqrt(xp.where(chosen, (grown - mean) ** 2, 0).sum(axis=over, keepdims=True) / count)
        normal = (draw(DRAW_UNITS) / weight.std(target)).astype(grown.dtype)
        return numpy_or_jax(grown, normal).where(chosen, mean + spread * normal, grown)

    def report(self) -> dict[str, Any]:
        """The share and the numbers of units of an expert."""
        return {"share": self.share, "units": {name: int(units[0, 0].sum()) for name, units in self.units.items()}}


@dataclasses.dataclass(frozen=True, eq=False)
class RouterNoise(Effect):
    """Noise on the routers of added experts, of `share` times the standard deviation of their router.

    It parts copies, and keeps no function: for weights w_j exp(x . e_j) of the copies j to sum to what they summed to
    for every x, all e_j must be zero. Copies of a single expert have routers of their own already.
    """

    name = "router_noise"
    share: float

    def _added(self, growth: Growth, weight: Weight) -> tuple[int, np.ndarray] | None:
        """The dimension of experts, and bool [experts]: second copies, unless the whole router is drawn anyway."""
        if weight.role is not Role.ROUTER:
            return None
        for number, dim in enumerate(weight.all_dims):
            axis = growth.axis(dim.axis, weight)
            added = axis.added & ~axis.fresh_write
            if dim.axis.kind is Kind.EXPERTS and added.any():
                return number, added
        return None

    def breaks(self, growth: Growth, target: DecoderConfig) -> str:
        """Where experts are added."""
        changed = any(self.changes(growth, weight) for weight in target.weights)
        return f"noise of {self.share:g} parts the router weights of copies" if changed else ""

    def breaks_gradients(self, growth: Growth, target: DecoderConfig) -> str:
        """The same."""
        return self.breaks(growth, target)

    def changes(self, growth: Growth, weight: Weight) -> bool:
        """Routers of added experts."""
        return self._added(growth, weight) is not None

    def draws(self) -> bool:
        """Always."""
        return True

    def change(
        self, growth: Growth, target: DecoderConfig, weight: Weight, value: Array, grown: Array, draw: Draw
    ) -> Array:
        """Adds the noise."""
        if (found := self._added(growth, weight)) is None:
            return grown
        number, added = found
        size = grown.std(axis=tuple(range(1, grown.ndim)), keepdims=True)
        noise = self.share * size * (draw(DRAW_ROUTER) / weight.std(target)).astype(grown.dtype)
        return numpy_or_jax(grown, noise).where(along(added, number, grown.ndim), grown + noise, grown)


def weighed_alike(growth: Growth, source: DecoderConfig, target: DecoderConfig) -> tuple[str, ...]:
    """The axes of experts with as many copies of each, which have one router and are chosen together."""
    found = []
    for axis in target.architecture.of_kind(Kind.EXPERTS):
        experts, (before, after) = growth.maps[axis.name], (getattr(one, axis.chosen) for one in (source, target))
        even = not experts.fresh.any() and len(set(np.bincount(experts.origin))) == 1
        if even and experts.old > 1 and after * experts.old == before * experts.new:
            found.append(axis.name)
    return tuple(found)


def fresh_in_lift(growth: Growth, lifted: Lifted | None) -> dict[tuple[str, str], AxisMap]:
    """Maps of weights that a lift made and left to be drawn: fresh in every layer."""
    layers = growth.maps[growth.stack]
    fresh = dataclasses.replace(layers, fresh_write=np.ones(layers.new, bool))
    return {} if lifted is None else {(growth.stack, path): fresh for path in lifted.drawn}


def fresh_routers(target: DecoderConfig, maps: dict[str, AxisMap]) -> dict[tuple[str, str], AxisMap]:
    """Maps of routers over copies of a single expert: fresh, since equal rows would tie for ever.

    Any router gives such copies weights that sum to one, so the function is kept.
    """
    per_weight = {}
    for weight in target.weights:
        for dim in weight.dims:
            axis = maps[dim.axis.name]
            if weight.role is Role.ROUTER and dim.axis.kind is Kind.EXPERTS and axis.old == 1 and axis.new > 1:
                everything = np.ones(axis.new, bool)
                per_weight[dim.axis.name, weight.path] = dataclasses.replace(axis, fresh_write=everything)
    return per_weight


def expert_index(order: str | Sequence[int], old: int, new: int) -> np.ndarray:
    """int [new]: the source of each expert, by "cycle" or a list. Raises InputError unless the list has all of them."""
    if isinstance(order, str):
        if order != "cycle":
            raise must_be("expert_order", '"cycle" or a list of numbers', order)
        return np.arange(new) % old
    whole = all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < old for n in order)
    if len(order) != new or not whole or set(order) != set(range(old)):
        raise InputError(f"expert_order must be {new} numbers that have each from 0 to {old - 1}, got {list(order)}")
    return np.asarray(order, np.int64)


def order_by_norm(config: DecoderConfig, params: Params, experts: int, most: int = 3) -> list[int]:
    """The `expert_order` of a growth to so many experts that copies those with the largest weights.

    Expert upcycling (arXiv 2604.19835): the one whose writing matrices have the largest norm is copied `most` times,
    then the next one, until there are enough; where none is left, it begins again. One order for all layers, by the sum
    of their norms; the published code has one for each.
    """
    found: list[np.ndarray] = []  # [layers, experts], squares of each matrix

    def add(weight: Weight, leaf: Any) -> Any:
        if (held := _experts_of(weight)) is not None and weight.writes(Kind.INNER):
            others = tuple(number for number in range(1, leaf.ndim) if number != held[0])
            found.append(np.square(np.asarray(leaf, np.float64)).sum(axis=others))
        return leaf

    map_weights(add, config, params)
    if not found:
        raise must_be("the model", "a mixture of experts", config.architecture.name)
    norms = np.sqrt(sum(found)).sum(axis=0)
    ranked = np.argsort(-norms, kind="stable")
    return [*range(len(norms)), *np.resize(np.repeat(ranked, most), experts - len(norms)).tolist()]
