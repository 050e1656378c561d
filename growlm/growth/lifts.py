"""Lifts: exact re-parametrisations of a model into a larger family, before the maps of a growth."""

import dataclasses
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from growlm.errors import InputError
from growlm.growth.maps import MOMENTS, POWERS, STATISTICS, numpy_or_jax, primal
from growlm.models import nest
from growlm.models.architecture import DecoderConfig, Params, check_params, path_of
from growlm.models.axes import Weight
from growlm.models.lift import Lift, Origin, itself
from growlm.models.mixtral import DENSE_TO_EXPERTS, DENSE_TO_SHARED, DENSE_TO_WEIGHED, WITH_SHARED

if TYPE_CHECKING:
    import optax  # takes long to load, and a plan needs none


def _untied(source: DecoderConfig, target: DecoderConfig) -> DecoderConfig | None:
    tied = source.architecture.tied(source) and not target.architecture.tied(target)
    return dataclasses.replace(source, tie_embeddings=False) if tied else None


UNTIE = Lift("untie", "the head becomes a copy of the embedding", _untied, {"head": Origin("embedding", (1, 0))})

# Adding a lift is one value and one row.
LIFTS: dict[str, Lift] = {
    lift.name: lift for lift in (UNTIE, DENSE_TO_EXPERTS, DENSE_TO_SHARED, DENSE_TO_WEIGHED, WITH_SHARED)
}


@dataclasses.dataclass(frozen=True, eq=False)
class Lifted:
    """A source, the lifts that it goes through in order, and its config after them."""

    source: DecoderConfig
    config: DecoderConfig
    steps: tuple[Lift, ...]

    @property
    def name(self) -> str:
        """The names of the lifts."""
        return ", ".join(lift.name for lift in self.steps)

    @property
    def says(self) -> str:
        """What they do, in words."""
        return "; ".join(lift.says for lift in self.steps)

    @cached_property
    def origins(self) -> dict[str, Origin]:
        """Where every weight of the lifted model comes from in the source."""
        known = {weight.path: itself(weight) for weight in self.source.weights}
        for lift in self.steps:
            moved = {path: _through(known, origin) for path, origin in lift.origins.items()}
            known = known | moved
        return {weight.path: known[weight.path] for weight in self.config.weights}

    @property
    def drawn(self) -> tuple[str, ...]:
        """The new weights that the growth gives initial values."""
        return tuple(path for path, origin in self.origins.items() if origin.drawn)

    def writes_zeros(self, weight: Weight) -> bool:
        """Whether a weight is new and writes zeros."""
        origin = self.origins[weight.path]
        return origin.path is None and not origin.drawn and weight.neutral == 0

    def leaf(self, path: str, value: Any, power: int = 1) -> Any:
        """The lifted array of a weight, from the array that it comes from; of a moment, by the power of its rule."""
        dims, factor = self.origins[path].dims, self.origins[path].factor ** power
        value = value if factor == 1 else value * numpy_or_jax(value).asarray(factor, value.dtype)
        kept = [dim for dim in dims if dim is not None]
        moved = value if kept == sorted(kept) else value.transpose(kept)
        new = tuple(number for number, dim in enumerate(dims) if dim is None)
        return numpy_or_jax(value).expand_dims(moved, new) if new else moved

    def params(self, params: Params) -> Params:
        """The lifted parameters, in the dtypes of the source; new weights start at `Weight.neutral`."""
        check_params(self.source, params)
        leaves = {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
        xp = numpy_or_jax(*leaves.values())
        dtype = xp.result_type(*leaves.values())

        def of(weight: Weight) -> Any:
            if (path := self.origins[weight.path].path) is None:
                return xp.full(weight.shape(self.config), weight.neutral, dtype)
            return self.leaf(weight.path, leaves[path])

        return nest({weight.path: of(weight) for weight in self.config.weights})

    def optimizer_state(self, optimizer: "optax.GradientTransformation", opt_state: Any, params: Params) -> Any:
        """The optimizer state of the lifted model: moments and ages go with their weights; new moments are zero.

        Args:
          optimizer: of the lifted model.
          opt_state: of the source.
          params: the lifted parameters, or their shapes.

        Raises InputError where the state is not that of `optimizer`.
        """
        held = {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(opt_state)}

        def of(path: tuple, like: Any) -> Any:
            text = path_of(path)
            field, weight, rest = self.config.architecture.match_weight(path)
            if weight is None:
                return _held(held, text)
            origin = self.origins[weight.path]
            if origin.path is None:
                return jnp.zeros(like.shape, like.dtype)
            before = text.removesuffix(f"/{rest}" if rest else "").removesuffix(weight.path) + origin.path
            if not rest:
                power = 0 if field in STATISTICS else POWERS[MOMENTS.get(field, primal)]
                return self.leaf(weight.path, _held(held, before), power)
            if (dim := origin.dims[int(rest)]) is not None:
                return _held(held, f"{before}/{dim}")
            oldest = [leaf.max(initial=0) for name, leaf in held.items() if name.startswith(f"{before}/")]
            return jnp.full(like.shape, jnp.max(jnp.stack(oldest)), like.dtype)

        return jax.tree_util.tree_map_with_path(of, jax.eval_shape(optimizer.init, params))


def _held(held: dict[str, Any], path: str) -> Any:
    if path not in held:
        raise InputError("optimizer_state must be reset where the optimizer changes at growth")
    return held[path]


def _through(known: dict[str, Origin], origin: Origin) -> Origin:
    """An origin before a lift, traced back to the source."""
    if origin.path is None or known[origin.path].path is None:
        return origin if origin.path is None else known[origin.path]
    before = known[origin.path]
    dims = tuple(None if dim is None else before.dims[dim] for dim in origin.dims)
    return Origin(before.path, dims, factor=before.factor * origin.factor)


def lift(source: DecoderConfig, target: DecoderConfig) -> Lifted | None:
    """The lifts that lead from a source to the architecture of a target; None if none is needed.

    Raises InputError if none leads there.
    """
    steps: list[Lift] = []
    config = source
    for _ in LIFTS:
        for one in LIFTS.values():
            if one not in steps and (lifted := one.config(config, target)) is not None:
                config = lifted
                steps.append(one)
    if config.architecture is not target.architecture:
        lifts = ", ".join(f"{one.name} ({one.says})" for one in LIFTS.values())
        raise InputError(
            f"the target's architecture must be {source.architecture.name} or one that a lift leads to ({lifts}), "
            f"got {target.architecture.name}"
        )
    return Lifted(source, config, tuple(steps)) if steps else None
