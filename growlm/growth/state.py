"""Growing parameters, optimizer state and the whole training state; the report says what came from where."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from growlm.errors import InputError, unknown
from growlm.growth.claims import claim, gradient_claim
from growlm.growth.depth import connection_rate
from growlm.growth.expand import draws, expand, grow_params
from growlm.growth.maps import AxisMap, Rule, dual, dual_squared
from growlm.growth.operators import plan_growth
from growlm.growth.plan import Growth, provenance_of
from growlm.growth.presets import resolve
from growlm.models import DecoderConfig, Params, Weight, check_params, parameter_count, path_of, plain
from growlm.state import TrainState


def grow(
    params: Params,
    source: DecoderConfig,
    target: DecoderConfig,
    operator: str = "direct",
    key: jax.Array | None = None,
    *,
    batches: Iterable[Any] = (),
    **options: Any,
) -> Params:
    """Parameters of the target, grown from the source's. Pure, and may be jitted with the target's shardings.

    Args:
      params: the source's parameters, as `growlm.init` gives them; they are not changed.
      source, target: the two shapes; depth and width grow by what differs between them. They are of one architecture,
        or a lift leads from one to the other (`growlm.growth.LIFTS`).
      operator: a name in `growlm.growth.OPERATORS`, or a preset's in PRESETS, whose options these override.
      key: a JAX key, where fresh values are drawn: for new tokens, by zero in width, for random copies, for noise.
      batches: int[batch, length + 1] tokens, for learn, one for each of its steps.
      **options: the operator's own, such as order="stack", "interleave" or [0, 1, 0, 1]; for all: noise=0.2,
        keep, cancel, noise_on, noise_scale.

    Returns:
      A parameter tree of the target's shapes, in the source's dtypes.

    Raises:
      InputError: a tree that is not the source's, an unknown operator or option, shapes that do not fit, no key.

    Source: arXiv 2405.15319, sections 3 and A.1.
    """
    resolved = resolve(operator, options)
    growth = plan_growth(resolved.operator, source, target, key, **resolved.options)
    _check_key(growth, target, key)
    check_params(source, params)
    if learner := growth.learner:
        matrices, _ = learner.fit(growth, params, batches, key)
        growth = learner.with_matrices(growth, matrices)
    grown = jax.jit(lambda tree: grow_params(growth, source, target, tree, key))(params)
    check_params(target, grown)
    return grown


def _check_key(growth: Growth, target: DecoderConfig, key: Any) -> None:
    if key is None and draws(growth, target):
        raise InputError("this growth draws fresh values: it needs a key, such as jax.random.key(0)")


# What becomes of the optimizer state: started afresh, as the paper does; mapped, what is fresh passing for old, as
# in published code; or mapped, and what is fresh is of age 0 (the bias correction of growlm's Adam knows ages).
OPTIMIZER_STATES = ("reset", "map", "map_aged")

# How a part of an optimizer state that is shaped like the parameters grows, by the name of its field in optax.
MOMENTS: dict[str, Rule] = {"mu": dual, "nu": dual_squared, "trace": dual}
AGES = "ages"
CONSTANTS = ("ns_coeffs",)  # of Muon


def growth_key(run_key: jax.Array, step: int) -> jax.Array:
    """The key from which the growth at that step draws."""
    return jax.random.fold_in(run_key, step)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A growth that was planned and compiled before its time, for the step and the key that the state has then.

    transform: what `growth_transform` gives, and learning: the `programs` of what the growth learns, if it does, both
    compiled. They are given the run's key, and make the growth's own of it. request: for the report, the operator, its
    options and optimizer_state.
    """

    growth: Growth
    transform: Callable
    request: dict[str, Any]
    learning: tuple[Callable, Callable] | None = None


def grow_state(
    state: TrainState,
    source: DecoderConfig,
    target: DecoderConfig,
    optimizer: optax.GradientTransformation,
    operator: str = "direct",
    optimizer_state: str = "reset",
    batches: Iterable[Any] = (),
    **options: Any,
) -> tuple[TrainState, dict[str, Any]]:
    """The whole training state, grown, and a report of what every leaf came from.

    Args:
      state: the source's state; step, tokens, examples and key are kept. Fresh values are drawn from its key and step.
        An EMA copy grows as the parameters do.
      source, target: the two shapes.
      optimizer: the optimizer of the target's stage.
      operator, batches, **options: as in `grow`.
      optimizer_state: "reset" starts the optimizer afresh, as the paper does; "map" grows the moments by the dual map
        (a gradient is read where its weight is written) and keeps the step count, for fresh slices too; "map_aged" is
        the same, but fresh slices are of age 0, for an optimizer that has ages.

    Returns:
      (state, report). The report is plain JSON.

    Raises:
      InputError: as `grow`, and where the mapped state is not one of the target's optimizer.
    """
    if optimizer_state not in OPTIMIZER_STATES:
        raise unknown("optimizer_state", optimizer_state, OPTIMIZER_STATES)
    check_params(source, state.params)
    key = growth_key(state.key, int(state.step))
    resolved = resolve(operator, options)
    growth = plan_growth(resolved.operator, source, target, key, **resolved.options)
    transform = jax.jit(growth_transform(growth, source, target, optimizer, optimizer_state))
    request = {"operator": operator, "options": options, "optimizer_state": optimizer_state}
    prepared = Prepared(growth, transform, request)
    return apply_growth(prepared, state, source, target, key=key, batches=batches)


def apply_growth(
    prepared: Prepared,
    state: TrainState,
    source: DecoderConfig,
    target: DecoderConfig,
    *,
    key: jax.Array,
    batches: Iterable[Any] = (),
) -> tuple[TrainState, dict[str, Any]]:
    """The state grown by a prepared growth, and the report of `grow_state`. `key` is what its programs are given."""
    growth, matrices, took = prepared.growth, None, {}
    if learner := growth.learner:
        matrices, took = learner.fit(growth, state.params, batches, key, prepared.learning)
    params, opt_state, ema = prepared.transform(state.arrays, key, matrices)
    grown = dataclasses.replace(state, params=params, opt_state=opt_state, ema=ema, provenance=provenance_of(growth))
    return grown, describe(growth, source, target) | prepared.request | {"learning": took}


def growth_transform(
    growth: Growth,
    source: DecoderConfig,
    target: DecoderConfig,
    optimizer: optax.GradientTransformation,
    optimizer_state: str,
) -> Callable:
    """What a growth does to the arrays of a state: pure, to be compiled with the target's shardings.

    transform(arrays, key, matrices) -> arrays, as `TrainState.arrays` are. `matrices` are those that learn has learned,
    and None for other operators: they are no constants of the program. What it gives is checked when it is traced.
    """

    def transform(arrays: tuple, key: jax.Array, matrices: Any) -> tuple:
        params, opt_state, ema = arrays
        whole = growth.learner.with_matrices(growth, matrices) if growth.learner else growth
        grown = grow_params(whole, source, target, params, key)
        ema = None if ema is None else grow_params(whole, source, target, ema, key)
        check_params(target, grown)
        if optimizer_state == "reset":
            return grown, optimizer.init(grown), ema
        if growth.lift:
            opt_state = growth.lift.optimizer_state(optimizer, opt_state, growth.lift.params(params))
        opt_state = map_optimizer_state(whole, growth.start(source), opt_state, aged=optimizer_state == "map_aged")
        _check_like(opt_state, jax.eval_shape(optimizer.init, grown))
        return grown, opt_state, ema

    return transform


def map_optimizer_state(growth: Growth, source: DecoderConfig, opt_state: Any, aged: bool) -> Any:
    """Every moment grown by its rule, every age by its axis, every counter kept; what has no rule is refused.

    `source` is what the maps grow: lifted, where the growth lifts.
    """
    match = source.architecture.match
    ages = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(opt_state) if match(path)[0] == AGES]
    if aged and not ages:
        raise InputError("optimizer_state 'map_aged': this optimizer has no ages; allowed are reset, map")
    new = 0 if aged else jnp.max(jnp.concatenate([jnp.zeros(1, jnp.int32), *ages]))
    return jax.tree_util.tree_map_with_path(partial(_map_entry, growth, source, new), opt_state)


def _map_entry(growth: Growth, source: DecoderConfig, new_age: Any, path: tuple, leaf: jax.Array) -> jax.Array:
    if jnp.ndim(leaf) == 0 or path_of(path).endswith(CONSTANTS):
        return leaf
    name, weight, rest = source.architecture.match(path)
    if weight is None or (rest and name != AGES):
        raise InputError(f"optimizer state {path_of(path)!r} of shape {leaf.shape}: no rule grows it; use reset")
    if name == AGES:
        return _grow_ages(growth, weight, int(rest), leaf, new_age)
    if name not in MOMENTS:
        raise unknown("optimizer moment", name, (*MOMENTS, AGES))
    if leaf.shape != weight.shape(source):
        wanted = weight.shape(source)
        raise InputError(f"optimizer state {path_of(path)!r} has shape {leaf.shape}; this model's shape is {wanted}")
    return expand(MOMENTS[name], growth, weight, leaf)


def _grow_ages(growth: Growth, weight: Weight, number: int, age: jax.Array, new_age: Any) -> jax.Array:
    """The ages along one dimension: copies are as old as what they copy; what is fresh has the age of what is new."""
    _, _, read, write = growth.axes(weight)[number]
    origin, new = (read or write).origin, np.zeros((read or write).new, bool)
    new |= (read.fresh_read if read else False) | (write.fresh_write if write else False) | (origin < 0)
    if weight.residual and number == 0:
        new |= np.asarray(growth.residual) == 0
    if not age.size:  # a model without layers grows some
        return jnp.full(new.shape, new_age, age.dtype)
    return jnp.where(new, new_age, age[np.maximum(origin, 0)])


def _check_like(tree: Any, expected: Any) -> None:
    """Path, shape and dtype of every leaf against the target optimizer's own."""
    if jax.tree.structure(tree) != jax.tree.structure(expected):
        raise InputError("the optimizer changed at growth: to map its state needs the same one, use 'reset'")
    leaves = zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(tree), strict=True)
    for (path, want), have in leaves:
        if (have.shape, have.dtype) != (want.shape, want.dtype):
            grown, wanted = f"{have.dtype}{list(have.shape)}", f"{want.dtype}{list(want.shape)}"
            raise InputError(f"optimizer state {path_of(path)!r} grew to {grown}, not {wanted}")


def describe(growth: Growth, source: DecoderConfig, target: DecoderConfig) -> dict[str, Any]:
    """Provenance and claims, as plain JSON: the source of every coordinate of every axis, the axes of every leaf."""
    preserves, reason = claim(growth, source, target)
    exact, why = gradient_claim(growth, source, target)
    grown = {name: axis for name, axis in growth.maps.items() if not axis.identity}
    return {
        "order": list(growth.order),
        "silent_layers": growth.silent,
        "connection_rate": connection_rate(growth.order),
        "preserves_function": preserves,
        "reason": reason,
        "moments_exact": exact,
        "moments_reason": why,
        **{effect.name: effect.report() for effect in growth.effects},
        "lift": growth.lift and {"name": growth.lift.name, "says": growth.lift.says},
        "source": plain(source),
        "target": plain(target),
        "parameters_before": parameter_count(source),
        "parameters_after": parameter_count(target),
        "block_parameters_before": _block_parameters(source),
        "block_parameters_after": _block_parameters(target),
        "axes": {name: _origins(axis) for name, axis in grown.items()},
        "leaves": {weight.path: _grown_along(weight, grown) for weight in target.weights},
    }


def _block_parameters(model: DecoderConfig) -> int:
    return sum(math.prod(weight.shape(model)) for weight in model.weights if weight.stacked)


def _origins(axis: AxisMap) -> dict[str, Any]:
    """Which old coordinate every new one copies (-1: none), and which are the target's initial values."""
    return {"from": axis.origin.tolist(), "fresh": np.flatnonzero(axis.fresh).tolist()}


def _grown_along(weight: Weight, grown: dict[str, AxisMap]) -> list[str]:
    """The axes in `axes` along which a weight was grown; none where it was carried over as it is."""
    axes = [axis.name for dim in weight.all_dims for axis in dim.both if axis.name in grown]
    return list(dict.fromkeys(axes))
