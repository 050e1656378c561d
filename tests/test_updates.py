"""What an optimizer makes of gradients, against a few lines of NumPy: weight decay, clipping, Muon's parts."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from trees import exact_products, leaf_at, noisy

import growlm
from growlm.errors import InputError
from growlm.models import ARCHITECTURES, Role
from growlm.training.optimizer import DECAYING, GROUPS, OptimizerConfig, make_optimizer

exact = pytest.fixture(autouse=True, scope="module")(exact_products.__wrapped__)

# What a head of attention reads is 8 x 8, what the MLP writes 12 x 8, and reads 8 x 12.
SMALL = growlm.ModelConfig(layers=2, embed=8, heads=2, kv_heads=1, head_dim=4, mlp=12, vocab=11)
KEY = jax.random.key(3)


def gradients_of(config, seed):
    """A tree like the parameters' in which nothing is zero."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(partial(growlm.init, config), KEY)
    draw = lambda leaf: rng.choice([-1.0, 1.0], leaf.shape) * rng.uniform(0.5, 2, leaf.shape)  # noqa: E731
    return jax.tree.map(lambda leaf: jnp.asarray(draw(leaf), jnp.float32), shapes)


def updates_of(config, gradients, params):
    """The updates of a few steps, one after the other, with the parameters where they were."""
    optimizer = make_optimizer(config, SMALL)
    step, state, updates = jax.jit(optimizer.update), optimizer.init(params), []
    for gradient in gradients:
        update, state = step(gradient, state, params)
        updates.append(update)
    return updates


# --- Weight decay and clipping ---------------------------------------------------------------------------------------


def test_a_weight_is_in_one_group_and_all_but_constants_decay():
    for architecture in ARCHITECTURES.values():
        for weight in architecture.weights.values():
            (group,) = (name for name, holds in GROUPS.items() if holds(weight))
            assert (group in DECAYING) == (weight.role is not Role.CONSTANT), weight.path


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_groups_that_decay_decay_and_no_other(kind):
    params, gradient = noisy(SMALL), gradients_of(SMALL, 0)
    config = OptimizerConfig(kind=kind, weight_decay=0.3, decay=("matrices", "head"))
    (ours,), (without,) = (
        updates_of(one, [gradient], params) for one in (config, dataclasses.replace(config, weight_decay=0.0))
    )
    for weight in SMALL.weights:
        decays = weight.path == "head" or weight.role is Role.MATRIX
        expected = leaf_at(without, weight.path) + (0.3 if decays else 0.0) * leaf_at(params, weight.path)
        np.testing.assert_allclose(leaf_at(ours, weight.path), expected, rtol=1e-6, atol=1e-7, err_msg=weight.path)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_cautious_decay_only_goes_the_way_of_the_update(kind):
    params, gradient = noisy(SMALL), gradients_of(SMALL, 0)
    config = OptimizerConfig(kind=kind, weight_decay=0.3, cautious_decay=True)
    (ours,), (without,) = (
        updates_of(one, [gradient], params) for one in (config, dataclasses.replace(config, weight_decay=0.0))
    )
    for weight in SMALL.weights:
        update, value = (np.asarray(leaf_at(tree, weight.path)) for tree in (without, params))
        expected = update + 0.3 * value * (update * value >= 0)
        np.testing.assert_allclose(leaf_at(ours, weight.path), expected, rtol=1e-6, atol=1e-7, err_msg=weight.path)
        assert weight.elementwise or 0.2 < np.mean(update * value >= 0) < 0.8


def test_without_a_clip_a_gradient_is_of_any_norm():
    params, gradient = noisy(SMALL), gradients_of(SMALL, 0)
    large = jax.tree.map(lambda leaf: 1e12 * leaf, gradient)
    shared = {"weight_decay": 0.0, "eps": 1e6}
    (ours,), (clipped,) = (updates_of(OptimizerConfig(clip=clip, **shared), [large], params) for clip in (0.0, 1.0))
    np.testing.assert_allclose(np.abs(ours["head"]), 1, rtol=1e-4)
    assert np.abs(clipped["head"]).max() < 1e-5
    trees = (make_optimizer(OptimizerConfig(clip=clip), SMALL).init(params) for clip in (0.0, 1.0))
    assert len({jax.tree.structure(tree) for tree in trees}) == 1  # a stage without one goes on from one with


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"decay": ("matrix",)},
            "group in optimizer.decay must be one of biases, constants, embedding, filters, gains, head, matrices, "
            "routers, got 'matrix'; did you mean 'matrices'?",
        ),
        ({"clip": -1.0}, "optimizer.clip must be >= 0, got -1.0"),
    ],
)
def test_settings_that_are_not_allowed_are_named_with_what_is(settings, message):
    with pytest.raises(InputError) as error:
        tiny.run_config("none", tiny.stage(3, optimizer=settings))
    assert str(error.value).endswith(message)
