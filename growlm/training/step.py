"""The train step: a pure function of arrays, for a program that says all else; and the state that it begins with."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from growlm.growth.masks import Masks
from growlm.growth.plan import initial_provenance
from growlm.models import DecoderConfig, Params, init, losses, map_weights, with_depth
from growlm.models.sharding import by_batch, shardings_of
from growlm.state import TrainState
from growlm.training.mesh import replicated
from growlm.training.optimizer import OptimizerConfig, learning_rate_factor, make_optimizer, trainable
from growlm.training.submodels import cut, put

Arrays = tuple[Params, Any, Params | None]  # params, opt_state, ema


@dataclasses.dataclass(frozen=True)
class Program:
    """What a step is compiled for: all that is not an array. `ramp` where the model is under masks.

    depth: the step is of the sub-model of so many of the first layers; None for the whole model. Frozen layers, and
    those above a sub-model, keep their moments and ages too. microbatches: the batch is worked on in so many parts.
    held_out: examples in a validation batch and tokens in each; None: as in a batch. document_end: the token that ends
    a document, where attention stays within documents.
    """

    model: DecoderConfig
    optimizer: OptimizerConfig
    dtype: str = "float32"
    remat: str = "none"
    train: str = "all"
    frozen_layers: int = 0
    ramp: Masks | None = None
    depth: int | None = None
    microbatches: int = 1
    held_out: tuple[int, int] | None = None
    document_end: int | None = None

    def for_evaluation(self) -> "Program":
        """The same of a loss alone, of the whole model."""
        forward = {"remat": "none", "train": "all", "frozen_layers": 0, "depth": None, "microbatches": 1}
        return dataclasses.replace(self, **forward, held_out=None)


def run_keys(seed: int) -> jax.Array:
    """Two keys: for the initial parameters, and for what the run draws later."""
    return jax.random.split(jax.random.key(seed))


def _initial(
    model: DecoderConfig, optimizer: OptimizerConfig, seed: int, params: Params | None = None
) -> tuple[Arrays, jax.Array]:
    """What a run begins with: its arrays and its key."""
    init_key, run_key = run_keys(seed)
    params = params or init(model, init_key)
    return (params, make_optimizer(optimizer, model).init(params), averaged(optimizer, params, None)), run_key


def init_state(
    model: DecoderConfig, optimizer: OptimizerConfig, seed: int, mesh: Mesh | None = None, params: Params | None = None
) -> TrainState:
    """The state at step 0 of a run; every device of a mesh makes the parts that it will hold.

    params: those to begin with, which lie on the mesh and are used up; by default they are drawn.
    """
    abstract = abstract_state(model, optimizer, mesh)
    out = jax.tree.map(lambda leaf: leaf.sharding, (abstract.arrays, abstract.key)) if mesh else None
    make = jax.jit(_initial, static_argnums=(0, 1, 2), donate_argnums=3, out_shardings=out)
    (params, opt_state, ema), key = make(model, optimizer, seed, params)
    return dataclasses.replace(abstract, params=params, opt_state=opt_state, ema=ema, key=key)


def averaged(optimizer: OptimizerConfig, params: Params, ema: Params | None) -> Params | None:
    """The averaged copy with which training goes on where the optimizer keeps one: what there is, or else a copy."""
    return (ema or jax.tree.map(jnp.copy, params)) if optimizer.ema else None


def abstract_state(model: DecoderConfig, optimizer: OptimizerConfig, mesh: Mesh | None = None) -> TrainState:
    """The shapes and dtypes of such a state, and where its arrays lie on a mesh; the counters are 0.

    Counters are outside JAX, which would make 32 bits of them.
    """
    arrays, key = jax.eval_shape(partial(_initial, model, optimizer, 0))
    if mesh is not None:
        arrays = jax.tree.map(_lying, arrays, shardings_of(arrays, model, mesh))
        key = _lying(key, replicated(mesh))
    params, opt_state, ema = arrays
    zero = np.int64(0)
    return TrainState(params, opt_state, zero, zero, zero, key, initial_provenance(model), ema)


def _lying(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def train_loss(program: Program, params: Params, tokens_BS: jax.Array, provenance: Any, progress: Any) -> jax.Array:
    """The cross-entropy of the model or of its sub-model, under its masks where it has some."""
    return _losses(program, params, tokens_BS, provenance, progress)[0]


def _losses(
    program: Program, params: Params, tokens_BS: jax.Array, provenance: Any, progress: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
    model, scale = program.model, None
    if program.ramp:
        params, scale = program.ramp.reparametrise(model, params, provenance, progress)
    if program.depth is not None:
        params = cut(model.architecture, params, slice(program.depth))
        model = with_depth(model, program.depth)
        scale = jax.tree.map(lambda factors: factors[: program.depth], scale)
    options = {"dtype": jnp.dtype(program.dtype), "remat": program.remat, "frozen_layers": program.frozen_layers}
    options["document_end"] = program.document_end
    return losses(model, params, tokens_BS, block_scale=scale, **options)


def _trained_loss(program: Program, *arguments: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What is trained on, the cross-entropy and what branches add, such as the balance of experts; and its parts."""
    loss, added = _losses(program, *arguments)
    return sum(added.values(), loss), {"loss": loss, **added}


def train_step(
    program: Program,
    arrays: Arrays,
    tokens_BS: jax.Array,
    learning_rate: jax.Array,
    provenance: dict[str, jax.Array],
    progress: jax.Array | None = None,
) -> tuple[Arrays, dict[str, jax.Array]]:
    """One update on int[batch, length + 1] tokens; the metrics are those before it.

    Args:
      program: what the step is for.
      arrays: the parameters, the optimizer's state and the averaged copy, which may be None.
      tokens_BS: the batch.
      learning_rate: of this step; groups of weights may have a multiple of it.
      provenance: as `TrainState` has it: what is new, for rates, freezing and masks.
      progress: float32[4], how far the masks of a ramp are open, as `growlm.growth.masks.Masks.progress` gives it.
    """
    params, opt_state, ema = arrays
    parts, gradients = _gradients(program, params, tokens_BS, provenance, progress)
    part = program.frozen_layers or program.depth is not None
    updated = _update_part if part else _update
    params, opt_state, norm = updated(program, (params, opt_state, gradients), learning_rate, provenance)
    if ema is not None:
        ema = jax.tree.map(lambda mean, leaf: mean + (1 - program.optimizer.ema) * (leaf - mean), ema, params)
    return (params, opt_state, ema), {**parts, "grad_norm": norm}


def _gradients(
    program: Program, params: Params, tokens_BS: jax.Array, provenance: Any, progress: Any
) -> tuple[dict[str, jax.Array], Params]:
    """The parts of the loss and its gradients, as means over the microbatches, of which one is held at a time."""
    value_and_grad = jax.value_and_grad(partial(_trained_loss, program), has_aux=True)

    def of_part(*arguments: Any) -> tuple[dict[str, jax.Array], Params]:
        (_, parts), gradients = value_and_grad(*arguments)
        return parts, gradients

    if program.microbatches == 1:
        return of_part(params, tokens_BS, provenance, progress)
    # Row r goes to part r mod parts: every device, which has neighbouring rows, has some of each part.
    tokens_RMS = tokens_BS.reshape(-1, program.microbatches, tokens_BS.shape[1])

    def add(total: Any, tokens_RS: jax.Array) -> tuple[Any, None]:
        part = of_part(params, by_batch(tokens_RS), provenance, progress)
        return jax.tree.map(lambda sum_, leaf: sum_ + leaf / program.microbatches, total, part), None

    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(of_part, params, tokens_RMS[:, 0], provenance, progress),
    )
    return jax.lax.scan(add, zeros, tokens_RMS.swapaxes(0, 1))[0]


def _update(
    program: Program, trees: tuple[Params, Any, Params], learning_rate: jax.Array, provenance: dict[str, jax.Array]
) -> tuple[Params, Any, jax.Array]:
    """The parameters and the optimizer's state after these gradients, and the norm of what of them is trained on."""
    (params, opt_state, gradients), optimizer = trees, program.optimizer

    def by_weight(function: Callable) -> Any:
        return map_weights(lambda weight, _: function(weight, provenance), program.model, params)

    trained = by_weight(partial(trainable, program.train))
    factor = by_weight(partial(learning_rate_factor, optimizer.learning_rates))
    gradients = jax.tree.map(lambda mask, leaf: _where(mask, leaf, 0), trained, gradients)  # the norm is of these
    updates, opt_state = make_optimizer(optimizer, program.model).update(gradients, opt_state, params)
    updates = jax.tree.map(lambda times, leaf: learning_rate * times * leaf, factor, updates)
    params = jax.tree.map(lambda mask, leaf, by: _where(mask, leaf - by, leaf), trained, params, updates)
    return params, opt_state, optax.tree.norm(gradients)


def _update_part(
    program: Program, trees: tuple[Params, Any, Params], learning_rate: jax.Array, provenance: dict[str, jax.Array]
) -> tuple[Params, Any, jax.Array]:
    """As `_update`, as if there were no layers but those that train: of the others moments and ages stay too."""
    depth = program.model.depth if program.depth is None else program.depth
    layers, architecture = slice(program.frozen_layers, depth), program.model.architecture
    model, stack = with_depth(program.model, depth - program.frozen_layers), architecture.stack.name
    provenance = provenance | {stack: provenance[stack][:, layers]}
    block = dataclasses.replace(program, model=model, frozen_layers=0)
    *after, norm = _update(block, cut(architecture, trees, layers), learning_rate, provenance)
    return *put(architecture, trees[:2], tuple(after), layers), norm


def _where(mask: bool | jax.Array, value: jax.Array, otherwise: Any) -> jax.Array:
    return value if mask is True else jnp.where(mask, value, otherwise)
