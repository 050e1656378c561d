"""The train step as a pure function of arrays and a StepSpec, the state that it begins with, and sub-models.

A sub-model of bert2BERT (arXiv 2110.07143) is the first layers of a model, of which a step trains the top ones alone.

    x_BS     examples of a batch, tokens of each (length + 1)
    x_BT     the tokens of them that are predicted
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.stages import Lowered

from growlm.growth.masks import MASKED, Masks
from growlm.growth.plan import initial_provenance, slice_mask
from growlm.models import Architecture, DecoderConfig, Params, Weight, init, map_weights, with_depth
from growlm.models.decoder import Pass, measured, teacher_of
from growlm.models.sharding import by_batch, shardings_of
from growlm.state import TrainState
from growlm.training.mesh import by_rows, on_mesh, replicated
from growlm.training.objectives import ObjectiveConfig
from growlm.training.optimizer import GROUPS, OptimizerConfig, learning_rate_factor, make_optimizer, trainable
from growlm.training.programs import Compiled
from growlm.training.sparsity import abstract_kept, by_path

Arrays = tuple[Params, Any, Params | None]  # params, opt_state, ema
Taught = tuple[Params, jax.Array]  # a teacher's parameters, and its weight in the loss

# The second half of the key of the sub-models' draws, so that nothing else that a seed starts draws the same.
SUBMODEL_STREAM = 2110_07143


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """Static arguments of the train step: all that is not an array.

    unroll: layers in one turn of the loop over them. train: "all", or what a growth made "new" or "old".
    frozen_layers: the first layers, which are constants: their moments and ages stay too. masks: the mask schedule
    of a growth, or None once all masks are 1. depth: layers of the sub-model that is trained, from the first on;
    None for the whole model. microbatches: parts in which the batch is worked on. held_out: examples in a
    validation batch and tokens in each; None: as in a batch. document_end: the token that ends a document, where
    attention stays within documents. two_rates: the learning rate is a pair, of the slices that the growth did not
    add and of those that it did. objective: what is trained on. teacher: the shape of its teacher, or None where
    its weight is 0. sparsity: of the matrices of blocks, under a static mask.
    """

    model: DecoderConfig
    optimizer: OptimizerConfig
    _: dataclasses.KW_ONLY
    dtype: str = "float32"
    remat: str = "none"
    unroll: int = 1
    train: str = "all"
    frozen_layers: int = 0
    masks: Masks | None = None
    depth: int | None = None
    microbatches: int = 1
    held_out: tuple[int, int] | None = None
    document_end: int | None = None
    two_rates: bool = False
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    teacher: DecoderConfig | None = None
    sparsity: float = 0.0

    def for_evaluation(self) -> "StepSpec":
        """The static arguments of a loss alone, of the whole model."""
        forward = {"remat": "none", "unroll": 1, "microbatches": 1, "train": "all", "frozen_layers": 0, "depth": None}
        validated = self.objective if self.objective.row.validates else ObjectiveConfig()
        plain = {"objective": validated, "teacher": None, "sparsity": 0.0}
        return dataclasses.replace(self, **forward, **plain, held_out=None, two_rates=False)


def run_keys(seed: int) -> jax.Array:
    """Two keys: for the initial parameters, and for what the run draws later."""
    return jax.random.split(jax.random.key(seed))


def _initial(
    model: DecoderConfig, optimizer: OptimizerConfig, seed: int, params: Params | None = None
) -> tuple[Arrays, jax.Array]:
    """The arrays and the key with which a run begins."""
    init_key, run_key = run_keys(seed)
    params = init(model, init_key) if params is None else params
    return (params, make_optimizer(optimizer, model).init(params), averaged(optimizer, params, None)), run_key


def init_state(
    model: DecoderConfig, optimizer: OptimizerConfig, seed: int, mesh: Mesh | None = None, params: Params | None = None
) -> TrainState:
    """The state at step 0 of a run; every device of a mesh makes the parts that it will hold.

    params: those to begin with, which lie on the mesh and are donated; None: they are drawn.
    """
    abstract = abstract_state(model, optimizer, mesh)
    out = jax.tree.map(lambda leaf: leaf.sharding, (abstract.arrays, abstract.key)) if mesh else None
    make = jax.jit(_initial, static_argnums=(0, 1, 2), donate_argnums=3, out_shardings=out)
    (params, opt_state, ema), key = make(model, optimizer, seed, params)
    return dataclasses.replace(abstract, params=params, opt_state=opt_state, ema=ema, key=key)


def averaged(optimizer: OptimizerConfig, params: Params, ema: Params | None) -> Params | None:
    """The averaged copy of the parameters, where the optimizer keeps one: `ema`, or a copy where there is none yet."""
    if not optimizer.ema:
        return None
    return jax.tree.map(jnp.copy, params) if ema is None else ema


def abstract_state(model: DecoderConfig, optimizer: OptimizerConfig, mesh: Mesh | None = None) -> TrainState:
    """The shapes, dtypes and shardings of a train state; its counters are 0.

    Counters are NumPy's: JAX would make 32 bits of them.
    """
    arrays, key = jax.eval_shape(partial(_initial, model, optimizer, 0))
    if mesh is not None:
        arrays = jax.tree.map(on_mesh, arrays, shardings_of(arrays, model, mesh))
        key = on_mesh(key, replicated(mesh))
    params, opt_state, ema = arrays
    zero = np.int64(0)
    return TrainState(params, opt_state, zero, zero, zero, key, initial_provenance(model), ema)


def validation_loss(
    spec: StepSpec, params: Params, tokens_BS: jax.Array, provenance: Any, progress: Any
) -> tuple[jax.Array, jax.Array]:
    """The mean of cross-entropy times weight over the predicted tokens, under masks, and that of the weights.

    The loss of several batches is the quotient of their sums.
    """
    weights_BT, share = None, jnp.ones((), jnp.float32)
    if (weights := spec.objective.row.weights) is not None:
        weights_BT = weights(spec.objective, tokens_BS).astype(jnp.float32)
        share = weights_BT.mean()
    return _measured(spec, params, tokens_BS, provenance, progress, weights_BT)[0], share


def _measured(
    spec: StepSpec,
    params: Params,
    tokens_BS: jax.Array,
    provenance: Any,
    progress: Any,
    weights_BT: jax.Array | None = None,
    teacher: Taught | None = None,
) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
    model, scale = spec.model, None
    if spec.masks:
        params, scale = spec.masks.reparametrise(model, params, provenance, progress)
    if spec.depth is not None:
        params = cut(model.architecture, params, slice(spec.depth))
        model = with_depth(model, spec.depth)
        scale = jax.tree.map(lambda factors: factors[: spec.depth], scale)
    how = Pass(jnp.dtype(spec.dtype), spec.remat, spec.frozen_layers, spec.document_end, spec.unroll)
    target = None
    if spec.teacher is not None and teacher is not None:
        forward = dataclasses.replace(how, remat="none", frozen_layers=0)
        target = teacher_of(spec.teacher, teacher[0], tokens_BS, forward, teacher[1], spec.objective.temperature)
    return measured(model, params, tokens_BS, how, scale, weights_BT, target)


def _trained_loss(spec: StepSpec, *arguments: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The objective's loss and what branches add, such as the balance of experts: their sum; the parts, and metrics."""
    loss, added, metrics = _measured(spec, *arguments)
    return sum(added.values(), loss), {"loss": loss, **added, **metrics}


def train_step(
    spec: StepSpec,
    arrays: Arrays,
    tokens_BS: jax.Array,
    learning_rate: jax.Array,
    provenance: dict[str, jax.Array],
    progress: jax.Array | None = None,
    teacher: Taught | None = None,
    kept: Params | None = None,
) -> tuple[Arrays, dict[str, jax.Array]]:
    """One update on int[batch, length + 1] tokens; the metrics are those before it.

    Args:
      spec: the static arguments.
      arrays: the parameters, the optimizer's state and the averaged copy, which may be None.
      tokens_BS: the batch.
      learning_rate: of this step, float32[], or [2] by `StepSpec.two_rates`; groups of weights may have a multiple.
      provenance: as `TrainState` has it: what is new, for learning rates, freezing and masks.
      progress: float32[4], how far the masks are open, from `growlm.growth.masks.Masks.progress`; None without masks.
      teacher: the parameters of `spec.teacher`, which are constants, and float32[], the weight of its distribution.
      kept: bool masks of sparse weights, at their places in the tree, from `growlm.training.sparsity`: all else of them
        is zero, gets no gradient, and stays.
    """
    params, opt_state, ema = arrays
    parts, gradients = _gradients(spec, params, tokens_BS, provenance, progress, teacher)
    part = spec.frozen_layers or spec.depth is not None
    updated = _update_part if part else _update
    params, opt_state, norm = updated(spec, (params, opt_state, gradients, kept), learning_rate, provenance)
    if ema is not None:
        ema = jax.tree.map(lambda mean, leaf: mean + (1 - spec.optimizer.ema) * (leaf - mean), ema, params)
    return (params, opt_state, ema), {**parts, "grad_norm": norm}


def _gradients(
    spec: StepSpec, params: Params, tokens_BS: jax.Array, provenance: Any, progress: Any, teacher: Taught | None
) -> tuple[dict[str, jax.Array], Params]:
    """The parts of the loss, metrics and gradients, as means over the microbatches, of which one is held at a time."""
    value_and_grad = jax.value_and_grad(partial(_trained_loss, spec), has_aux=True)

    def of_part(tokens_BS: jax.Array, weights_BT: jax.Array | None) -> tuple[dict[str, jax.Array], Params]:
        (_, parts), gradients = value_and_grad(params, tokens_BS, provenance, progress, weights_BT, teacher)
        return parts, gradients

    # Weights have a mean of 1 over the batch and not over its parts: what a token counts for is the same in all.
    batch = tokens_BS, spec.objective.row.token_weights(spec.objective, tokens_BS)
    if spec.microbatches == 1:
        return of_part(*batch)
    # Row r goes to part r mod parts: every device, which has neighbouring rows, has some of each part.
    parts = jax.tree.map(lambda rows: rows.reshape(-1, spec.microbatches, rows.shape[1]).swapaxes(0, 1), batch)

    def add(total: Any, part: Any) -> tuple[Any, None]:
        found = of_part(*jax.tree.map(by_batch, part))
        return jax.tree.map(lambda sum_, leaf: sum_ + leaf / spec.microbatches, total, found), None

    abstract = jax.eval_shape(of_part, *jax.tree.map(lambda rows: rows[0], parts))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract)
    return jax.lax.scan(add, zeros, parts)[0]


Updated = tuple[Params, Any, Params, Params | None]  # params, opt_state, gradients, kept


def _update(
    spec: StepSpec,
    trees: Updated,
    learning_rate: jax.Array,
    provenance: dict[str, jax.Array],
    whole: DecoderConfig | None = None,
) -> tuple[Params, Any, jax.Array]:
    """The parameters and the optimizer's state after an update, and the norm of the gradients that are trained on.

    whole: the model that computes, of which `spec.model` may be some of the layers.
    """
    (params, opt_state, gradients, kept), optimizer = trees, spec.optimizer
    masks = by_path(kept)

    def by_weight(function: Callable) -> Any:
        return map_weights(lambda weight, _: function(weight, provenance), spec.model, params)

    def trains(weight: Weight, provenance: dict[str, jax.Array]) -> bool | jax.Array:
        of_slices = trainable(spec.train, weight, provenance)
        return of_slices & masks[weight.path] if weight.path in masks else of_slices

    trained = by_weight(trains)
    factor = by_weight(partial(learning_rate_factor, optimizer.learning_rates))
    gradients = jax.tree.map(lambda mask, leaf: _where(mask, leaf, 0), trained, gradients)  # the norm is of these
    updates, opt_state = make_optimizer(optimizer, whole or spec.model).update(gradients, opt_state, params)
    rate = by_weight(partial(_rate_of, learning_rate) if spec.two_rates else lambda *_: learning_rate)
    updates = jax.tree.map(lambda of_weight, times, leaf: of_weight * times * leaf, rate, factor, updates)
    params = jax.tree.map(lambda mask, leaf, by: _where(mask, leaf - by, leaf), trained, params, updates)
    return params, opt_state, optax.tree.norm(gradients)


def _update_part(
    spec: StepSpec, trees: Updated, learning_rate: jax.Array, provenance: dict[str, jax.Array]
) -> tuple[Params, Any, jax.Array]:
    """`_update` of the layers that train alone: the moments and ages of the others stay as they are."""
    depth = spec.model.depth if spec.depth is None else spec.depth
    layers, architecture = slice(spec.frozen_layers, depth), spec.model.architecture
    model, stack = with_depth(spec.model, depth - spec.frozen_layers), architecture.stack.name
    provenance = provenance | {stack: provenance[stack][:, layers]}
    block = dataclasses.replace(spec, model=model, frozen_layers=0)
    whole = with_depth(spec.model, depth)
    *after, norm = _update(block, cut(architecture, trees, layers), learning_rate, provenance, whole)
    return *put(architecture, trees[:2], tuple(after), layers), norm


def _rate_of(rates: jax.Array, weight: Weight, provenance: dict[str, jax.Array]) -> jax.Array:
    """The rate of each slice of a weight, broadcastable to it."""
    return jnp.where(slice_mask(weight, provenance), rates[1], rates[0])


def _where(mask: bool | jax.Array, value: jax.Array, otherwise: Any) -> jax.Array:
    return value if mask is True else jnp.where(mask, value, otherwise)


def all_finite(arrays: Arrays) -> jax.Array:
    """bool[]: whether the parameters, the optimizer's state and the averaged copy have neither NaN nor infinities."""
    floats = [leaf for leaf in jax.tree.leaves(arrays) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in floats]).all()


def compile_steps(spec: StepSpec, batch: int, length: int, mesh: Mesh) -> tuple[Callable, Callable]:
    """The compiled train step and evaluation step. The runs of a sweep that share a shape share the programs.

    step(arrays, tokens, learning rate, provenance, progress, **more) -> (arrays, metrics); the arrays are donated.
    evaluate(params, tokens, provenance, progress) -> `validation_loss` of the whole model. progress is None without
    masks; `more` are the teacher and the static masks, where there are any.
    """
    step, evaluation = (program(*of) for program, of in _programs(spec, batch, length, mesh))
    return step, evaluation


def compile_check(spec: StepSpec, mesh: Mesh) -> Callable:
    """The compiled `all_finite`."""
    return _compile_check(spec.model, spec.optimizer, mesh)


def compile_check_ahead(spec: StepSpec, mesh: Mesh) -> None:
    """Begin to compile it in the background: no step waits for it."""
    _compile_check.ahead(spec.model, spec.optimizer, mesh)


def compile_steps_ahead(spec: StepSpec, batch: int, length: int, mesh: Mesh) -> None:
    """Begin to compile the steps and the check in the background."""
    for program, of in _programs(spec, batch, length, mesh):
        program.ahead(*of)
    compile_check_ahead(spec, mesh)


def must_compile(spec: StepSpec, batch: int, length: int, mesh: Mesh) -> bool:
    """Whether `compile_steps` would have to compile, or to wait until that is done."""
    return not all(program.is_ready(*of) for program, of in _programs(spec, batch, length, mesh))


def _programs(spec: StepSpec, batch: int, length: int, mesh: Mesh) -> tuple[tuple[Compiled, tuple], ...]:
    """The two with what they are compiled for. The sub-models of a stage share the evaluation."""
    held_out = spec.held_out or (batch, length)
    return (_compile_step, (spec, batch, length, mesh)), (_compile_evaluation, (spec.for_evaluation(), *held_out, mesh))


@Compiled
def _compile_step(spec: StepSpec, batch: int, length: int, mesh: Mesh) -> Callable:
    return lower_step(spec, batch, length, mesh).compile()


def lower_step(spec: StepSpec, batch: int, length: int, mesh: Mesh) -> Lowered:
    """The train step lowered for the devices of the mesh, which need not be here."""
    state = abstract_state(spec.model, spec.optimizer, mesh)
    out = jax.tree.map(lambda leaf: leaf.sharding, state.arrays), replicated(mesh)
    step = jax.jit(partial(train_step, spec), donate_argnums=0, out_shardings=out)
    inputs = _abstract_inputs(spec, batch, length, mesh)
    with jax.set_mesh(mesh):
        return step.lower(state.arrays, *inputs, **_abstract_more(spec, mesh))


@Compiled
def _compile_evaluation(spec: StepSpec, batch: int, length: int, mesh: Mesh) -> Callable:
    state = abstract_state(spec.model, spec.optimizer, mesh)
    evaluate = jax.jit(partial(validation_loss, spec), out_shardings=replicated(mesh))
    tokens, _, provenance, progress = _abstract_inputs(spec, batch, length, mesh)
    with jax.set_mesh(mesh):
        return evaluate.lower(state.params, tokens, provenance, progress).compile()


@Compiled
def _compile_check(model: DecoderConfig, optimizer: OptimizerConfig, mesh: Mesh) -> Callable:
    state = abstract_state(model, optimizer, mesh)
    with jax.set_mesh(mesh):
        return jax.jit(all_finite, out_shardings=replicated(mesh)).lower(state.arrays).compile()


def _abstract_inputs(spec: StepSpec, batch: int, length: int, mesh: Mesh) -> tuple[Any, ...]:
    """Tokens, learning rate, provenance and progress; all but the tokens are replicated."""

    def abstract(shape: tuple[int, ...], dtype: str, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    return (
        abstract((batch, length + 1), "int32", by_rows(mesh)),
        abstract((2,) if spec.two_rates else (), "float32", replicated(mesh)),
        jax.tree.map(partial(on_mesh, sharding=replicated(mesh)), initial_provenance(spec.model)),
        abstract((len(MASKED),), "float32", replicated(mesh)) if spec.masks else None,
    )


def _abstract_more(spec: StepSpec, mesh: Mesh) -> dict[str, Any]:
    """The arguments of the train step that only some objectives and sparse stages have."""
    more: dict[str, Any] = {}
    if spec.teacher is not None:
        params = abstract_state(spec.teacher, spec.optimizer, mesh).params
        more["teacher"] = params, jax.ShapeDtypeStruct((), "float32", sharding=replicated(mesh))
    if spec.sparsity:
        more["kept"] = abstract_kept(spec.model, spec.sparsity, mesh)
    return more


def draw_depths(seed: int, steps: int, layers: int, block: int) -> np.ndarray:
    """int64[steps]: layers of the sub-model of each of a run's steps: block, 2 block, ... or layers, evenly.

    A function of step and seed alone, whatever NumPy's version: words of a counter-based generator.
    """
    words = np.random.Philox(key=[seed, SUBMODEL_STREAM]).random_raw(steps)
    return block * (1 + (words % np.uint64(layers // block)).astype(np.int64))


def cut(architecture: Architecture, tree: Any, layers: slice) -> Any:
    """A parameter tree, or a tree of such trees, with only these of the layers."""

    def leaf_of(path: tuple, leaf: jax.Array) -> jax.Array:
        return leaf[layers] if _by_layer(architecture, path) else leaf

    return jax.tree_util.tree_map_with_path(leaf_of, tree)


def put(architecture: Architecture, whole: Any, part: Any, layers: slice) -> Any:
    """Write a sub-model's trees back into the full ones; the embedding only from a sub-model that starts at layer 0."""

    def leaf_of(path: tuple, old: jax.Array, new: jax.Array) -> jax.Array:
        if _by_layer(architecture, path):
            return old.at[layers].set(new)
        _, weight, _ = architecture.match_weight(path)
        return old if layers.start and weight and GROUPS["embedding"](weight) else new

    return jax.tree_util.tree_map_with_path(leaf_of, whole, part)


def _by_layer(architecture: Architecture, path: tuple) -> bool:
    """Whether the first dimension of a leaf is the layers: of a block's weight, its moments, the first of its ages."""
    _, weight, rest = architecture.match_weight(path)
    return weight is not None and weight.stacked and rest in ("", "0")
