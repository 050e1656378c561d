"""Growth of parameters, of optimizer state and of the whole training state, with a report of where leaves came from."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from growlm.errors import InputError, must_be, unknown
from growlm.growth.claims import claim, gradient_claim
from growlm.growth.depth import connection_rate
from growlm.growth.expand import draws, expand, grow_params
from growlm.growth.inverse import scales_of, undoable
from growlm.growth.maps import MOMENTS, STATISTICS, Array, AxisMap, overlay, select
from growlm.growth.operators import plan_growth
from growlm.growth.plan import Growth, StaticGrowth, provenance_of
from growlm.growth.presets import resolve
from growlm.models import DecoderConfig, Params, Weight, check_params, nest, parameter_count, path_of, plain
from growlm.state import TrainState

if TYPE_CHECKING:
    import optax  # takes long to load, and a plan needs none


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
    """Grows parameters. Pure; may be jitted with the target's shardings. Equal growths are compiled once.

    Args:
      params: the source's parameters, from `growlm.init`; they are not changed.
      source, target: the two shapes, which may differ in depth and in width. They are of one architecture, or a lift
        leads from one to the other (`growlm.growth.LIFTS`).
      operator: a name in `growlm.growth.OPERATORS` or PRESETS; `options` override those of a preset.
      key: a JAX key, needed where values are drawn: for new tokens, zero in width, random, random copies and noise.
      batches: int[batch, length + 1] tokens for learn, one for each of its steps.
      **options: the operator's, such as order="stack", "interleave" or [0, 1, 0, 1]; and those of every operator,
        noise=0.2, old_weight_scale, cancel, noise_on and noise_scale.

    Returns:
      A parameter tree of the target's shapes, in the source's dtypes.

    Raises:
      InputError: a tree that is not the source's, an unknown operator or option, shapes that do not fit, no key.

    Source: arXiv 2405.15319, sections 3 and A.1.
    """
    resolved = resolve(operator, options)
    growth = plan_growth(resolved.operator, source, target, key, **resolved.options)
    if key is None and draws(growth, target):
        raise InputError("this growth draws fresh values: it needs a key, such as jax.random.key(0)")
    check_params(source, params)
    matrices = None
    if growth.learner is not None:
        matrices, _ = growth.learner.fit(growth, params, batches, key)
    grown = _grow_params(growth.static, source, target, params, key, matrices)
    check_params(target, grown)
    return grown


@partial(jax.jit, static_argnums=(0, 1, 2))
def _grow_params(
    growth: StaticGrowth,
    source: DecoderConfig,
    target: DecoderConfig,
    params: Params,
    key: jax.Array | None,
    matrices: Any,
) -> Params:
    return grow_params(growth.growth.with_matrices(matrices), source, target, params, key)


# What becomes of the optimizer state. reset: a fresh state, as in the paper. map: moments mapped, one step count for
# all, as in published code. map_aged: moments mapped, and fresh slices restart Adam's bias correction at step 0.
# keep_old: as map_aged, and second copies start anew like fresh slices (arXiv 2609.19107, with Muon).
OPTIMIZER_STATES = ("reset", "map", "map_aged", "keep_old")

RESET = "optimizer_state must be reset"
AGES = "ages"
CONSTANTS = ("ns_coeffs",)  # of Muon: settings that optax holds in the state


def growth_key(run_key: jax.Array, step: int) -> jax.Array:
    """The key of the growth at a step."""
    return jax.random.fold_in(run_key, step)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A growth that was planned and compiled before the step at which it happens.

    Attributes:
      growth: planned with the key that it will have.
      transform: `growth_transform`, compiled. It takes the run's key, and derives the growth's from it.
      request: the operator, its options and optimizer_state, for the report.
      learning: the compiled `programs` of learned maps, or None.
    """

    growth: Growth
    transform: Callable
    request: dict[str, Any]
    learning: tuple[Callable, Callable] | None = None


def grow_state(
    state: TrainState,
    source: DecoderConfig,
    target: DecoderConfig,
    optimizer: "optax.GradientTransformation",
    operator: str = "direct",
    optimizer_state: str = "reset",
    batches: Iterable[Any] = (),
    **options: Any,
) -> tuple[TrainState, dict[str, Any]]:
    """Grows the whole training state, and reports where every leaf came from.

    Args:
      state: the source's state. Step, tokens, examples and key are kept; fresh values are drawn from its key and step;
        an EMA copy grows like the parameters.
      source, target: the two shapes.
      optimizer: of the target's stage.
      operator, batches, **options: as in `grow`.
      optimizer_state: "reset" gives a fresh state, as in the paper; "map" maps the moments by the dual map (a gradient
        is read where its weight is written) and keeps the step count; "map_aged" maps them, and restarts the bias
        correction of fresh slices, for an optimizer that counts the steps of slices; "keep_old" does so too, and
        second copies have no moments.

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
    request = {"operator": operator, "options": options, "optimizer_state": optimizer_state}
    prepared = prepare(growth, source, target, optimizer, request)
    return apply_growth(prepared, state, source, target, key=key, batches=batches)


def prepare(
    growth: Growth,
    source: DecoderConfig,
    target: DecoderConfig,
    optimizer: "optax.GradientTransformation",
    request: dict[str, Any],
) -> Prepared:
    """A planned growth for `apply_growth`, compiled when it is applied."""
    state = request["optimizer_state"]
    return Prepared(growth, partial(_grow_arrays_compiled, growth.static, source, target, optimizer, state), request)


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
    if growth.learner is not None:
        matrices, took = growth.learner.fit(growth, state.params, batches, key, prepared.learning)
    params, opt_state, ema = prepared.transform(state.arrays, key, matrices)
    grown = dataclasses.replace(state, params=params, opt_state=opt_state, ema=ema, provenance=provenance_of(growth))
    return grown, describe(growth, source, target) | prepared.request | {"learning": took}


def growth_transform(
    growth: Growth,
    source: DecoderConfig,
    target: DecoderConfig,
    optimizer: "optax.GradientTransformation",
    optimizer_state: str,
) -> Callable:
    """The growth of the arrays of a training state, a pure function for the caller to compile with shardings.

    Returns:
      transform(arrays, key, matrices) -> arrays, both as `TrainState.arrays`. `matrices` are learned ones, None for
      operators that learn none.
    """
    return partial(_grow_arrays, growth.static, source, target, optimizer, optimizer_state)


def _grow_arrays(
    static: StaticGrowth,
    source: DecoderConfig,
    target: DecoderConfig,
    optimizer: "optax.GradientTransformation",
    optimizer_state: str,
    arrays: tuple[Params, Any, Params | None],
    key: jax.Array,
    matrices: Any,
) -> tuple[Params, Any, Params | None]:
    growth, (params, opt_state, ema) = static.growth.with_matrices(matrices), arrays
    grown = grow_params(growth, source, target, params, key)
    ema = None if ema is None else grow_params(growth, source, target, ema, key)
    check_params(target, grown)
    return grown, _grow_opt_state(growth, source, optimizer, optimizer_state, opt_state, params, grown), ema


_grow_arrays_compiled = jax.jit(_grow_arrays, static_argnums=(0, 1, 2, 3, 4))


def _grow_opt_state(
    growth: Growth,
    source: DecoderConfig,
    optimizer: "optax.GradientTransformation",
    how: str,
    opt_state: Any,
    params: Params,
    grown: Params,
) -> Any:
    """The state of the target's optimizer, of `params` grown to `grown`."""
    if how == "reset":
        return optimizer.init(grown)
    if growth.lift is not None:
        opt_state = growth.lift.optimizer_state(optimizer, opt_state, growth.lift.params(params))
    opt_state = map_optimizer_state(growth, growth.start(source), opt_state, how)
    return _as_of(optimizer, opt_state, grown)


def check_optimizer_state(
    growth: Growth,
    source: DecoderConfig,
    target: DecoderConfig,
    before: "optax.GradientTransformation",
    after: "optax.GradientTransformation",
    how: str,
) -> None:
    """Try on shapes alone whether the optimizer after a growth can hold what becomes of the state of the one before.

    Raises:
      InputError: 'optimizer_state must be ...'.
    """
    if how == "reset":  # nothing becomes of it: tracing the optimizer is most of the time that planning takes
        return
    params, grown = (
        nest({w.path: jax.ShapeDtypeStruct(w.shape(config), jnp.float32) for w in config.weights})
        for config in (source, target)
    )
    matrices = None if growth.learner is None else growth.learner.matrices(growth)

    def grow(opt_state: Any, params: Params, grown: Params, matrices: Any) -> Any:
        return _grow_opt_state(growth.with_matrices(matrices), source, after, how, opt_state, params, grown)

    jax.eval_shape(grow, jax.eval_shape(before.init, params), params, grown, matrices)


def map_optimizer_state(growth: Growth, source: DecoderConfig, opt_state: Any, how: str) -> Any:
    """Grows every moment by its rule and ages by their axis, and keeps counters.

    `source` is lifted if the growth has a lift; `how` is in OPTIMIZER_STATES. Raises InputError for a part that has no
    rule.
    """
    aged = how != "map"
    match = source.architecture.match_weight
    ages = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(opt_state) if match(path)[0] == AGES]
    if aged and not ages:
        raise must_be("optimizer_state", "reset or map for an optimizer without ages", how)
    new = 0 if aged else jnp.max(jnp.concatenate([jnp.zeros(1, jnp.int32), *ages]))
    return jax.tree_util.tree_map_with_path(partial(_map_entry, growth, source, new, how == "keep_old"), opt_state)


def _map_entry(
    growth: Growth, source: DecoderConfig, new_age: Any, copies_anew: bool, path: tuple, leaf: jax.Array
) -> Array:
    if jnp.ndim(leaf) == 0 or path_of(path).endswith(CONSTANTS):
        return leaf
    name, weight, rest = source.architecture.match_weight(path)
    if weight is None or (rest and name != AGES):
        raise InputError(f"{RESET}: no rule grows {path_of(path)!r} of shape {leaf.shape}")
    if name == AGES:
        return _grow_ages(growth, weight, int(rest), leaf, new_age, copies_anew)
    if name not in MOMENTS and name not in STATISTICS:
        raise InputError(f"{RESET}: {unknown('optimizer moment', name, (*MOMENTS, *STATISTICS, AGES))}")
    has = STATISTICS.get(name, lambda dim: True)
    shape = tuple(source.size(dim.axis) if has(dim) else 1 for dim in weight.all_dims)
    if leaf.shape != shape:
        raise InputError(f"{RESET}: {must_be(f'the shape of {path_of(path)!r}', f'{shape}', leaf.shape)}")
    if name in STATISTICS:
        carried: Array = leaf
        for number in (number for number, dim in enumerate(weight.all_dims) if has(dim)):
            origin, new = _slices(growth, weight, number, copies_anew)
            carried = select(carried, np.where(new, -1, origin), number)
        return carried
    grown = expand(MOMENTS[name], growth, weight, leaf)
    return overlay(grown, jnp.zeros_like(grown), growth.added(weight)) if copies_anew else grown


def _grow_ages(
    growth: Growth, weight: Weight, number: int, age: jax.Array, new_age: Any, copies_anew: bool
) -> jax.Array:
    """The ages along one dimension: copies have that of their original unless they start anew, new slices `new_age`."""
    origin, new = _slices(growth, weight, number, copies_anew)
    if not age.size:  # a model without layers grows some
        return jnp.full(new.shape, new_age, age.dtype)
    return jnp.where(new, new_age, age[np.maximum(origin, 0)])


def _slices(growth: Growth, weight: Weight, number: int, copies_anew: bool) -> tuple[np.ndarray, np.ndarray]:
    """Along one dimension, the old coordinate of each new one, and which start anew, for lack of one too."""
    axis = growth.axis(weight.all_dims[number].axis, weight)
    new = growth.fresh(weight)[number] | (axis.origin < 0)
    if copies_anew:
        new |= axis.added
    if weight.residual and number == 0:
        new |= np.asarray(growth.residual) == 0
    return axis.origin, new


def _as_of(optimizer: "optax.GradientTransformation", tree: Any, params: Params) -> Any:
    """A grown state with the constants of the target's optimizer. Raises InputError unless its leaves are as there."""
    own = optimizer.init(params)
    if jax.tree.structure(tree) != jax.tree.structure(own):
        raise InputError(f"{RESET} where the optimizer changes at growth")

    def leaf_of(path: tuple, have: Array, want: Array) -> Array:
        if path_of(path).endswith(CONSTANTS):
            return want
        if (have.shape, have.dtype) != (want.shape, want.dtype):
            grown, wanted = f"{have.dtype}{list(have.shape)}", f"{want.dtype}{list(want.shape)}"
            raise InputError(f"{RESET}: {must_be(f'grown optimizer state {path_of(path)!r}', wanted, grown)}")
        return have

    return jax.tree_util.tree_map_with_path(leaf_of, tree, own)


def describe(growth: Growth, source: DecoderConfig, target: DecoderConfig) -> dict[str, Any]:
    """A report of the growth as plain JSON: claims, for every axis the source of every coordinate, what undo needs."""
    preserves, reason = claim(growth, source, target)
    exact, why = gradient_claim(growth, source, target)
    grown = {name: axis for name, axis in growth.maps.items() if not axis.identity}
    return {
        "order": list(growth.order),
        "zero_residual_layers": growth.zero_residual_layers,
        "connection_rate": connection_rate(growth.order),
        "preserves_function": preserves,
        "reason": reason,
        "moments_exact": exact,
        "moments_reason": why,
        **{effect.name: effect.report() for effect in growth.effects},
        "lift": None if growth.lift is None else {"name": growth.lift.name, "says": growth.lift.says},
        "source": plain(source),
        "target": plain(target),
        "parameters_before": parameter_count(source),
        "parameters_after": parameter_count(target),
        "block_parameters_before": _block_parameters(source),
        "block_parameters_after": _block_parameters(target),
        "axes": {name: _origins(axis) for name, axis in grown.items()},
        "scales": scales_of(growth),
        "undo": {"impossible": undoable(growth), "first_alone": any(one.first_alone for one in growth.effects)},
        "leaves": {weight.path: _grown_along(weight, grown) for weight in target.weights},
    }


def _block_parameters(model: DecoderConfig) -> int:
    return sum(math.prod(weight.shape(model)) for weight in model.weights if weight.stacked)


def _origins(axis: AxisMap) -> dict[str, Any]:
    """The old coordinate of every new one (-1: none), and the freshly initialised ones."""
    return {"from": axis.origin.tolist(), "fresh": np.flatnonzero(axis.fresh).tolist()}


def _grown_along(weight: Weight, grown: dict[str, AxisMap]) -> list[str]:
    """The axes along which a weight was grown, empty if it was only carried."""
    axes = [axis.name for dim in weight.all_dims for axis in dim.both if axis.name in grown]
    return list(dict.fromkeys(axes))
