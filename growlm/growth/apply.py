"""Growing parameters, optimizer state and the whole training state; the report says what came from where."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from growlm.errors import InputError, unknown
from growlm.growth.axis_map import AxisMap, Gather
from growlm.growth.depth import connection_rate
from growlm.growth.operators import Growth, claim, plan_growth
from growlm.state import TrainState
from growlm.weights import (
    Dim,
    ModelConfig,
    Params,
    Weight,
    check_params,
    declared,
    map_weights,
    parameter_count,
    path_of,
)


def _primal(maps: dict[str, AxisMap], dim: Dim) -> Gather:
    """How a weight grows along a dimension: R where it reads, P where it writes, their quotient where both."""
    if dim.reads and dim.writes:
        reads, writes = maps[dim.reads].write, maps[dim.writes].write
        quotient = np.divide(writes.scale, reads.scale, out=np.zeros_like(writes.scale), where=reads.scale != 0)
        return Gather.copies(writes.index, quotient)
    return maps[dim.reads].read if dim.reads else maps[dim.writes].write


def _dual(maps: dict[str, AxisMap], dim: Dim) -> Gather:
    """How its gradient grows: P where the weight reads, R where it writes, their product where both."""
    if dim.reads and dim.writes:
        reads, writes = maps[dim.reads].write, maps[dim.writes].read
        return Gather.copies(writes.index, writes.scale * reads.scale)
    return maps[dim.reads].write if dim.reads else maps[dim.writes].read


def _dual_squared(maps: dict[str, AxisMap], dim: Dim) -> Gather:
    gradient = _dual(maps, dim)
    return Gather.copies(gradient.index, gradient.scale**2)


def _expand(rule: Any, growth: Growth, weight: Weight, value: jax.Array) -> jax.Array:
    """The value along all its dimensions: a gather on the layer axis, then one rule for every other."""
    if weight.stacked:
        value = jnp.take(value, jnp.asarray(growth.order), axis=0)
    for axis, dim in enumerate(weight.dims, start=int(weight.stacked)):
        value = rule(growth.maps, dim).take(value, axis)
    return value


def _fresh_mask(growth: Growth, weight: Weight) -> np.ndarray | None:
    """Where a weight gets the target's initial values, broadcastable to its shape; None where nowhere."""
    mask = np.zeros((1,) * (len(weight.dims) + weight.stacked), bool)
    for axis, dim in enumerate(weight.dims, start=int(weight.stacked)):
        fresh = np.zeros(growth.maps[dim.axis].new, bool)
        if dim.reads:
            fresh |= growth.maps[dim.reads].fresh_read
        if dim.writes:
            fresh |= growth.maps[dim.writes].fresh_write
        mask = mask | fresh.reshape([-1 if other == axis else 1 for other in range(mask.ndim)])
    return mask if mask.any() else None


def _initial(weight: Weight, target: ModelConfig, key: jax.Array) -> jax.Array:
    """The target's initial values of one weight, block by block."""
    if not weight.stacked:
        return weight.initial(key, target)
    return jax.vmap(lambda k: weight.initial(k, target))(jax.random.split(key, target.layers))


def _grow_weight(growth: Growth, target: ModelConfig, weight: Weight, value: jax.Array, key: Any) -> jax.Array:
    grown = _expand(_primal, growth, weight, value)
    if (fresh := _fresh_mask(growth, weight)) is not None:
        number = [other.path for other in declared(target)].index(weight.path)  # every weight draws from its own key
        initial = _initial(weight, target, jax.random.fold_in(key, number))
        grown = jnp.where(fresh, initial.astype(grown.dtype), grown)
    if weight.residual and any(growth.silent):
        silent = np.asarray(growth.silent).reshape(-1, *[1] * len(weight.dims))
        grown = jnp.where(silent, jnp.zeros((), grown.dtype), grown)
    return grown


def _grow_params(growth: Growth, source: ModelConfig, target: ModelConfig, params: Params, key: Any) -> Params:
    return map_weights(lambda weight, value: _grow_weight(growth, target, weight, value, key), source, params)


# How a part of an optimizer state that is shaped like the parameters grows, by the name of its field in optax.
MOMENTS = {"mu": _dual, "nu": _dual_squared}


def _map_optimizer_state(growth: Growth, source: ModelConfig, params: Params, opt_state: Any) -> Any:
    """Grows every moment by the dual map, keeps every counter, and refuses what it does not know."""
    structure = jax.tree.structure(params)

    def is_moment(node: Any) -> bool:
        return jax.tree.structure(node) == structure

    def grow_entry(path: tuple, node: Any) -> Any:
        if is_moment(node):
            name = path_of(path[-1:])
            if name not in MOMENTS:
                raise unknown("optimizer moment", name, MOMENTS)
            return map_weights(lambda weight, value: _expand(MOMENTS[name], growth, weight, value), source, node)
        if jnp.ndim(node) != 0:
            raise InputError(f"optimizer state {path_of(path)!r} of shape {node.shape}: no rule grows it; use reset")
        return node

    return jax.tree_util.tree_map_with_path(grow_entry, opt_state, is_leaf=is_moment)


def _check_key(growth: Growth, target: ModelConfig, key: Any) -> None:
    if key is None and any(_fresh_mask(growth, weight) is not None for weight in declared(target)):
        raise InputError("this growth draws fresh values: it needs a key, such as jax.random.key(0)")


def grow(
    params: Params,
    source: ModelConfig,
    target: ModelConfig,
    operator: str = "direct",
    key: jax.Array | None = None,
    **options: Any,
) -> Params:
    """Parameters of the target, grown from the source's.

    Args:
      params: the source's parameters, as `growlm.init` gives them; they are not changed.
      source, target: the two shapes; depth and width grow by what differs between them.
      operator: a name in `growlm.growth.OPERATORS`.
      key: a JAX key, where fresh values are drawn: for new tokens, by zero in width, for random copies.
      **options: the operator's own, such as order="stack", "interleave" or [0, 1, 0, 1].

    Returns:
      A parameter tree of the target's shapes, in the source's dtypes.

    Raises:
      InputError: a tree that is not the source's, an unknown operator or option, shapes that do not fit, no key.

    Source: arXiv 2405.15319, sections 3 and A.1.
    """
    growth = plan_growth(operator, source, target, key, **options)
    _check_key(growth, target, key)
    check_params(source, params)
    grown = jax.jit(lambda tree: _grow_params(growth, source, target, tree, key))(params)
    check_params(target, grown)
    return grown


OPTIMIZER_STATES = ("reset", "map")


def growth_key(run_key: jax.Array, step: int) -> jax.Array:
    """The key from which the growth at that step draws."""
    return jax.random.fold_in(run_key, step)


def grow_state(
    state: TrainState,
    source: ModelConfig,
    target: ModelConfig,
    optimizer: optax.GradientTransformation,
    operator: str = "direct",
    optimizer_state: str = "reset",
    **options: Any,
) -> tuple[TrainState, dict[str, Any]]:
    """The whole training state, grown, and a report of what every leaf came from.

    Args:
      state: the source's state; step, tokens, examples and key are kept. Fresh values are drawn from its key and step.
      source, target: the two shapes.
      optimizer: the optimizer of the target's stage.
      operator, **options: as in `grow`.
      optimizer_state: "reset" starts the optimizer afresh, as the paper does; "map" grows the moments by the dual map
        (a gradient is read where its weight is written) and keeps the step count.

    Returns:
      (state, report). The report is plain JSON.

    Raises:
      InputError: as `grow`, and where the mapped state is not one of the target's optimizer.
    """
    if optimizer_state not in OPTIMIZER_STATES:
        raise unknown("optimizer_state", optimizer_state, OPTIMIZER_STATES)
    key = growth_key(state.key, int(state.step))
    growth = plan_growth(operator, source, target, key, **options)
    check_params(source, state.params)

    @jax.jit
    def grow_arrays(params: Params, opt_state: Any) -> tuple[Params, Any]:
        grown = _grow_params(growth, source, target, params, key)
        if optimizer_state == "reset":
            return grown, optimizer.init(grown)
        return grown, _map_optimizer_state(growth, source, params, opt_state)

    params, opt_state = grow_arrays(state.params, state.opt_state)
    check_params(target, params)
    _check_like(opt_state, jax.eval_shape(optimizer.init, params))
    report = _report(growth, source, target) | {"operator": operator, "optimizer_state": optimizer_state}
    return dataclasses.replace(state, params=params, opt_state=opt_state), report


def _check_like(tree: Any, expected: Any) -> None:
    """Path, shape and dtype of every leaf against the target optimizer's own."""
    if jax.tree.structure(tree) != jax.tree.structure(expected):
        raise InputError("the optimizer changed at growth: optimizer_state='map' needs the same one, use 'reset'")
    leaves = zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(tree), strict=True)
    for (path, want), have in leaves:
        if (have.shape, have.dtype) != (want.shape, want.dtype):
            grown, wanted = f"{have.dtype}{list(have.shape)}", f"{want.dtype}{list(want.shape)}"
            raise InputError(f"optimizer state {path_of(path)!r} grew to {grown}, not {wanted}")


def _report(growth: Growth, source: ModelConfig, target: ModelConfig) -> dict[str, Any]:
    """Provenance and claim, as plain JSON: the source of every coordinate of every axis, and the axes of every leaf."""
    preserves, reason = claim(growth, source, target)
    grown = {name: axis for name, axis in growth.maps.items() if not axis.identity}
    return {
        "order": list(growth.order),
        "silent_layers": [layer for layer, silent in enumerate(growth.silent) if silent],
        "connection_rate": connection_rate(growth.order),
        "preserves_function": preserves,
        "reason": reason,
        "source": dataclasses.asdict(source),
        "target": dataclasses.asdict(target),
        "parameters_before": parameter_count(source),
        "parameters_after": parameter_count(target),
        "axes": {name: _provenance(axis) for name, axis in grown.items()},
        "leaves": {
            weight.path: _grown_along(weight, grown, growth.order != tuple(range(source.layers)))
            for weight in declared(target)
        },
    }


def _provenance(axis: AxisMap) -> dict[str, Any]:
    """Which old coordinate every new one copies (-1: none), and which are the target's initial values."""
    fresh = np.flatnonzero(axis.fresh_read | axis.fresh_write)
    return {"from": np.maximum(axis.write.index, axis.read.index).tolist(), "fresh": fresh.tolist()}


def _grown_along(weight: Weight, grown: dict[str, AxisMap], moved: bool) -> list[str]:
    """The axes along which a weight came from `order` and `axes`; none where it was carried over as it is."""
    axes = [axis for dim in weight.dims for axis in (dim.reads, dim.writes) if axis in grown]
    return ["layers"] * (weight.stacked and moved) + list(dict.fromkeys(axes))
