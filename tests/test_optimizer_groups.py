"""Groups of weights: each has its learning rate, and what is frozen keeps every bit."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from representatives import few
from test_optimizer import SMALL, run_steps, state_of, tokens_of
from trees import exact_products, noisy

from growlm.growth import grow_state
from growlm.growth.plan import slice_mask
from growlm.models import declared, map_weights, next_token_loss
from growlm.models.decoder import measured
from growlm.training import step as step_module
from growlm.training.mesh import MeshConfig, make_mesh
from growlm.training.optimizer import GROUPS, OptimizerConfig, ScaleByAgedAdamState, make_optimizer
from growlm.training.step import StepSpec, compile_steps, train_step

exact = pytest.fixture(autouse=True, scope="module")(exact_products.__wrapped__)

FULL = dataclasses.replace(SMALL, qkv_bias=True, qk_norm=True)
TALL = dataclasses.replace(FULL, layers=4, mlp=15)


def test_every_weight_is_in_one_group():
    members = {name: {w.path.split("/")[-1] for w in declared(FULL) if holds(w)} for name, holds in GROUPS.items()}
    assert members == {
        "embedding": {"embedding"},
        "head": {"head"},
        "gains": {"scale", "query_norm", "key_norm"},
        "biases": {"query_bias", "key_bias", "value_bias"},
        "matrices": {"query", "key", "value", "out", "gate", "up", "down"},
        "routers": set(),
        "constants": set(),
        "filters": set(),
    }
    for config in (FULL, dataclasses.replace(FULL, tie_embeddings=True)):
        assert all(sum(holds(weight) for holds in GROUPS.values()) == 1 for weight in declared(config))


def grown_full():
    """A state grown in depth and width, by copies, in which no value is 0."""
    optimizer = make_optimizer(OptimizerConfig(), SMALL)
    state = dataclasses.replace(state_of(FULL, optimizer.init(noisy(FULL))), params=noisy(FULL))
    state, _ = grow_state(state, FULL, TALL, optimizer, "direct", "map_aged")
    return state


@pytest.mark.slow
def test_rates_are_multiplied_by_those_of_all_groups():
    state, rates = grown_full(), {"gains": 0.5, "matrices": 0.25, "head": 0.0, "new": 3.0, "old": 0.125}

    def moved(learning_rates):
        program = StepSpec(TALL, OptimizerConfig(learning_rates=learning_rates))
        (params, _, _), _ = run_steps(program, state.arrays, state.provenance, [0])
        return jax.tree.map(lambda after, before: np.asarray(after - before), params, state.params)

    def check(weight, ours, plain):
        factor = {"scale": 0.5, "query_norm": 0.5, "key_norm": 0.5, "head": 0.0, "embedding": 1.0}
        factor |= dict.fromkeys(("query_bias", "key_bias", "value_bias"), 1.0)
        of_group = factor.get(weight.path.split("/")[-1], 0.25)
        of_slice = np.broadcast_to(np.where(slice_mask(weight, state.provenance), 3.0, 0.125), plain.shape)
        if weight.stacked:
            assert (of_slice[2:] == 3).all() and (of_slice[:2] == 0.125).any()
        np.testing.assert_allclose(ours, of_group * of_slice * plain, atol=3e-7, err_msg=weight.path)
        assert np.abs(plain).max() > 1e-3

    map_weights(check, TALL, moved(rates), moved({}))


def settle(train, frozen_layers):
    """Which values three steps leave as they are to the bit, by weight, and the gradient norms."""
    state = grown_full()
    program = StepSpec(TALL, OptimizerConfig(), train=train, frozen_layers=frozen_layers)
    step, arrays, norms = jax.jit(partial(train_step, program)), state.arrays, []
    for seed in range(3):
        arrays, metrics = step(arrays, tokens_of(seed), 1e-2, state.provenance)
        norms.append(float(metrics["grad_norm"]))
    same = {}
    map_weights(
        lambda weight, a, b: same.update({weight.path: np.asarray(a).view(np.int32) == np.asarray(b).view(np.int32)}),
        TALL,
        arrays[0],
        state.params,
    )
    return state, same, norms


@pytest.mark.parametrize(
    ("train", "frozen_layers"),
    few([("new", 0), ("old", 0), ("all", 1), ("all", 4), ("old", 1), ("all", 0)], [("new", 0), ("old", 1)]),
)
def test_what_is_frozen_keeps_every_bit_and_the_rest_is_trained(train, frozen_layers):
    state, same, norms = settle(train, frozen_layers)
    for weight in declared(TALL):
        new = np.broadcast_to(slice_mask(weight, state.provenance), same[weight.path].shape)
        frozen = {"all": np.zeros_like(new), "new": ~new, "old": new}[train].copy()
        if weight.stacked:
            frozen[:frozen_layers] = True
        if weight.path == "embedding" and frozen_layers:
            frozen[:] = True
        assert same[weight.path][frozen].all(), weight.path
        assert not same[weight.path][~frozen].any(), weight.path
    if (train, frozen_layers) == ("new", 0):
        gradient = jax.jit(jax.grad(partial(next_token_loss, TALL)))(state.params, tokens_of(0))
        squares = map_weights(
            lambda w, g: (jnp.where(slice_mask(w, state.provenance), g, 0) ** 2).sum(), TALL, gradient
        )
        assert norms[0] == pytest.approx(float(jnp.sqrt(sum(jax.tree.leaves(squares)))), rel=1e-5)


def test_frozen_layers_keep_their_moments_and_ages_too():
    """A later stage may train them: moments that decayed meanwhile would make its first updates wrong."""
    state = grown_full()
    program = StepSpec(TALL, OptimizerConfig(), frozen_layers=2)
    arrays, _ = run_steps(program, state.arrays, state.provenance, [0, 1])
    before, after = (
        next(part for part in opt if isinstance(part, ScaleByAgedAdamState)) for opt in (state.arrays[1], arrays[1])
    )
    for old, new in ((before.mu, after.mu), (before.nu, after.nu), (before.ages, after.ages)):
        old, new = (jax.tree.leaves((tree["blocks"]["mlp"]["up"], tree["embedding"])) for tree in (old, new))
        np.testing.assert_array_equal(new[0][:2], old[0][:2])
        assert np.all(new[0][2:] != old[0][2:])
        np.testing.assert_array_equal(new[-1], old[-1])


@pytest.mark.slow
def test_gradients_of_what_is_frozen_do_not_count_where_they_are_clipped():
    """The clip lies between the norm of what is trained and that of all: it must not be felt."""
    state = grown_full()
    gradient = jax.jit(jax.grad(partial(next_token_loss, TALL)))(state.params, tokens_of(0))
    of_new = map_weights(lambda w, g: jnp.where(slice_mask(w, state.provenance), g, 0), TALL, gradient)
    least, most = float(optax.tree.norm(of_new)), float(optax.tree.norm(gradient))
    assert most > 1.3 * least
    trained = []
    for clip in (1.1 * least, 1e9):
        program = StepSpec(TALL, OptimizerConfig(clip=clip, eps=1.0), train="new")
        arrays, _ = run_steps(program, state.arrays, state.provenance, [0])
        trained.append(np.asarray(arrays[0]["blocks"]["mlp"]["up"]))
    np.testing.assert_array_equal(*trained)


def test_frozen_layers_are_given_to_the_model_for_training_and_not_for_evaluation(monkeypatch):
    given = []

    def loss(config, params, tokens, how, *rest):
        given.append(how.frozen_layers)
        return measured(config, params, tokens, how, *rest)

    monkeypatch.setattr(step_module, "measured", loss)
    compile_steps(StepSpec(SMALL, OptimizerConfig(), frozen_layers=1), 2, 5, make_mesh(MeshConfig()))
    assert given == [1, 0]
