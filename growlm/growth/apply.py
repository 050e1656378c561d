"""Growing parameters, optimizer state and the whole training state; the report says what came from where."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from growlm.errors import InputError, unknown
from growlm.growth.depth import connection_rate, layer_order
from growlm.state import TrainState
from growlm.weights import (
    ModelConfig,
    Params,
    Weight,
    check_params,
    declared,
    map_weights,
    parameter_count,
    path_of,
)


@dataclasses.dataclass(frozen=True)
class Growth:
    """What an operator does to one pair of shapes: the source layer of each target layer, and what it claims."""

    order: tuple[int, ...]
    preserves_function: bool
    reason: str


def direct(source: ModelConfig, target: ModelConfig, *, order="stack") -> Growth:
    """G_direct in depth: every target layer is an exact copy of a source layer, unscaled (arXiv 2405.15319, eq. 1).

    order: "stack" (G_stack), "interleave", or a list with one source layer for each target layer.
    """
    if wider := [f.name for f in dataclasses.fields(ModelConfig) if _differs(f.name, source, target)]:
        name = wider[0]
        raise InputError(
            f"direct grows layers: model.{name} is {getattr(source, name)} in the source "
            f"and {getattr(target, name)} in the target"
        )
    layers = layer_order(order, source.layers, target.layers)
    same = layers == tuple(range(source.layers))
    reason = "the layers are the source's" if same else "copied layers act twice: the loss jumps, and recovers"
    return Growth(layers, same, reason)


def _differs(name: str, source: ModelConfig, target: ModelConfig) -> bool:
    return name != "layers" and getattr(source, name) != getattr(target, name)


# Adding an operator is one function and one row.
OPERATORS: dict[str, Callable[..., Growth]] = {"direct": direct}


def plan_growth(operator: str, source: ModelConfig, target: ModelConfig, **options: Any) -> Growth:
    """The growth that an operator makes of two shapes.

    Raises InputError: an unknown operator or option, a target smaller than the source, layers that do not fit.
    """
    if operator not in OPERATORS:
        raise unknown("growth operator", operator, OPERATORS)
    for name in ("layers", "embed", "heads", "kv_heads", "mlp", "vocab"):
        before, after = getattr(source, name), getattr(target, name)
        if after < before:
            raise InputError(f"the target's model.{name} {after} is smaller than the source's {before}")
    function = OPERATORS[operator]
    allowed = list(inspect.signature(function).parameters)[2:]
    if extra := sorted(set(options) - set(allowed)):
        raise unknown(f"option of {operator}", extra[0], allowed)
    return function(source, target, **options)


def _grow_weight(growth: Growth, weight: Weight, value: jax.Array) -> jax.Array:
    """Depth growth is one gather on the layer axis; what lies outside the blocks is carried over."""
    return jnp.take(value, jnp.asarray(growth.order), axis=0) if weight.stacked else value


def _grow_tree(growth: Growth, source: ModelConfig, tree: Params) -> Params:
    return map_weights(lambda weight, value: _grow_weight(growth, weight, value), source, tree)


# How a part of an optimizer state that has the parameters' structure grows, by its field's name in optax.
MOMENTS: dict[str, Callable[[Growth, ModelConfig, Params], Params]] = {"mu": _grow_tree, "nu": _grow_tree}


def _map_optimizer_state(growth: Growth, source: ModelConfig, params: Params, opt_state: Any) -> Any:
    """Grows every moment, keeps every counter, and refuses what it does not know."""
    structure = jax.tree.structure(params)

    def is_moment(node: Any) -> bool:
        return jax.tree.structure(node) == structure

    def grow_entry(path: tuple, node: Any) -> Any:
        name = str(getattr(path[-1], "name", path[-1])) if path else ""
        if is_moment(node):
            if name not in MOMENTS:
                raise unknown("optimizer moment", name, MOMENTS)
            return MOMENTS[name](growth, source, node)
        if jnp.ndim(node) != 0:
            raise InputError(f"optimizer state {path_of(path)!r} of shape {node.shape}: no rule grows it; use reset")
        return node

    return jax.tree_util.tree_map_with_path(grow_entry, opt_state, is_leaf=is_moment)


def grow(
    params: Params, source: ModelConfig, target: ModelConfig, operator: str = "direct", key=None, **options: Any
) -> Params:
    """Parameters of the target, grown from the source's.

    Args:
      params: the source's parameters, as `growlm.init` gives them; they are not changed.
      source, target: the two shapes; depth grows by what differs between them.
      operator: a name in `growlm.growth.OPERATORS`.
      key: a JAX key, for operators that draw fresh values; `direct` draws none.
      **options: the operator's own, such as order="stack", "interleave" or [0, 1, 0, 1].

    Returns:
      A parameter tree of the target's shapes, in the source's dtypes.

    Raises:
      InputError: a tree that is not the source's, an unknown operator or option, shapes that do not fit.

    Source: arXiv 2405.15319, section 3 and algorithm 1.
    """
    del key  # no operator of today draws; the contract has it
    growth = plan_growth(operator, source, target, **options)
    check_params(source, params)
    grown = jax.jit(lambda tree: _grow_tree(growth, source, tree))(params)
    check_params(target, grown)
    return grown


OPTIMIZER_STATES = ("reset", "map")


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
      state: the source's state; step, tokens, examples and key are kept.
      source, target: the two shapes.
      optimizer: the optimizer of the target's stage.
      operator, **options: as in `grow`.
      optimizer_state: "reset" starts the optimizer afresh, as the paper does; "map" copies the moments of each layer
        to its copies and keeps the step count.

    Returns:
      (state, report). The report is plain JSON.

    Raises:
      InputError: as `grow`, and where the mapped state is not one of the target's optimizer.
    """
    if optimizer_state not in OPTIMIZER_STATES:
        raise unknown("optimizer_state", optimizer_state, OPTIMIZER_STATES)
    growth = plan_growth(operator, source, target, **options)
    check_params(source, state.params)

    @jax.jit
    def grow_arrays(params: Params, opt_state: Any) -> tuple[Params, Any]:
        grown = _grow_tree(growth, source, params)
        if optimizer_state == "reset":
            return grown, optimizer.init(grown)
        return grown, _map_optimizer_state(growth, source, params, opt_state)

    params, opt_state = grow_arrays(state.params, state.opt_state)
    check_params(target, params)
    _check_like(opt_state, jax.eval_shape(optimizer.init, params))
    report = _report(growth, source, target, operator, optimizer_state)
    return dataclasses.replace(state, params=params, opt_state=opt_state), report


def _check_like(tree: Any, expected: Any) -> None:
    """Path, shape and dtype of every leaf against the target optimizer's own."""
    if jax.tree.structure(tree) != jax.tree.structure(expected):
        raise InputError("the optimizer changed at growth: optimizer_state='map' needs the same one, use 'reset'")
    leaves = zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(tree), strict=True)
    for (path, want), have in leaves:
        if (have.shape, have.dtype) != (want.shape, want.dtype):
            raise InputError(f"optimizer state {path_of(path)!r} grew to {have.shape}, not {want.shape}")


def _report(
    growth: Growth, source: ModelConfig, target: ModelConfig, operator: str, optimizer_state: str
) -> dict[str, Any]:
    order = list(growth.order)
    return {
        "operator": operator,
        "order": order,
        "connection_rate": connection_rate(order),
        "preserves_function": growth.preserves_function,
        "reason": growth.reason,
        "optimizer_state": optimizer_state,
        "source": dataclasses.asdict(source),
        "target": dataclasses.asdict(target),
        "parameters_before": parameter_count(source),
        "parameters_after": parameter_count(target),
        "leaves": {w.path: {"copied_layers": order} if w.stacked else "carried over" for w in declared(target)},
    }
