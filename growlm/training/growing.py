"""The growth with which a stage begins: compiled, ahead of need where there is time, and applied to a state."""

import time
from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh
from jax.stages import Lowered

from growlm.growth import growth_key
from growlm.growth.state import Prepared, apply_growth, growth_transform
from growlm.models.sharding import shardings_of
from growlm.state import TrainState
from growlm.training.mesh import by_rows, on_mesh, replicated
from growlm.training.optimizer import make_optimizer
from growlm.training.programs import Compiled
from growlm.training.stages import Stage
from growlm.training.step import abstract_state, averaged


def grow_into(
    stage: Stage, before: TrainState, batches: Iterable[jax.Array], mesh: Mesh
) -> tuple[TrainState, dict[str, Any]]:
    """Grow the parent's last state, which is kept, into a stage's first; with the report, and the seconds it took.

    batches: those that the stage will begin with, which learned maps learn on.
    """
    prepared = prepared_growth(stage, mesh)
    began = time.perf_counter()  # not before: compiling counts as little as that of steps does
    models = stage.parent.config.model, stage.config.model
    state, report = apply_growth(prepared, before, *models, key=before.key, batches=batches)
    jax.block_until_ready(state.arrays)
    return state, report | {"seconds": time.perf_counter() - began}


@partial(Compiled, key=lambda stage, mesh: (stage.growth_hash, mesh))
def prepared_growth(stage: Stage, mesh: Mesh) -> Prepared:
    """The growth with which a stage begins, compiled."""
    config, transform = stage.config.growth.resolved, lower_growth(stage, mesh).compile()
    request = {"operator": config.operator, "options": config.options, "optimizer_state": config.optimizer_state}
    if not stage.growth.learner:
        return Prepared(stage.growth, transform, request)
    begin, step = (lowered.compile() for lowered in lower_learning(stage, mesh))
    learning = (lambda key: begin(jax.device_put(key, replicated(mesh))), step)
    return Prepared(stage.growth, transform, request, learning)


def lower_growth(stage: Stage, mesh: Mesh) -> Lowered:
    """The growth with which a stage begins, lowered as by `lower_step`: of (arrays, the run's key, matrices)."""
    config, parent, growth = stage.config, stage.parent.config, stage.growth
    source = abstract_state(parent.model, parent.optimizer, mesh)
    optimizer = make_optimizer(config.optimizer, config.model)
    transform = growth_transform(growth, parent.model, config.model, optimizer, config.growth.resolved.optimizer_state)

    def grow(arrays: Any, key: jax.Array, matrices: Any) -> Any:
        params, opt_state, ema = transform(arrays, growth_key(key, stage.first_step), matrices)
        return params, opt_state, averaged(config.optimizer, params, ema)

    matrices = growth.learner.matrices(growth) if growth.learner else None
    inputs = source.arrays, source.key, jax.tree.map(partial(on_mesh, sharding=replicated(mesh)), matrices)
    out = shardings_of(jax.eval_shape(grow, *inputs), config.model, mesh)
    with jax.set_mesh(mesh):
        return jax.jit(grow, out_shardings=out).lower(*inputs)


def lower_learning(stage: Stage, mesh: Mesh) -> tuple[Lowered, Lowered]:
    """The two functions of a growth that learns its maps, lowered; the first takes its key, the second the run's."""
    config, parent = stage.config, stage.parent.config
    begin, step = stage.growth.learner.programs(stage.growth)
    whole = partial(on_mesh, sharding=replicated(mesh))
    key = whole(stage.growth.learner.key)
    learner = jax.tree.map(whole, jax.eval_shape(begin, key))
    source = abstract_state(parent.model, parent.optimizer, mesh)
    tokens = jax.ShapeDtypeStruct((config.batch, config.length + 1), "int32", sharding=by_rows(mesh))

    def learn(learner: Any, params: Any, tokens: jax.Array, key: jax.Array) -> Any:
        return step(learner, params, tokens, growth_key(key, stage.first_step))

    with jax.set_mesh(mesh):
        first = jax.jit(begin, out_shardings=replicated(mesh)).lower(key)
        return first, jax.jit(learn, out_shardings=replicated(mesh)).lower(learner, source.params, tokens, source.key)
