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
from growlm.growth import grow_state
from growlm.models import ARCHITECTURES, Role
from growlm.state import TrainState
from growlm.training.muon import MuonConfig, ScaleByNeuronsState, muon, scale_by_neurons
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


# --- Muon ------------------------------------------------------------------------------------------------------------

STEPS = 4  # updates, and the rise of the momentum
POLAR = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)  # of the published code


def as_matrices(weight, leaf):
    """[layers, in, out]: what a weight reads and what it writes, each as one dimension."""
    leaf = np.asarray(leaf, np.float64)
    reads = [number for number, dim in enumerate(weight.all_dims) if dim.reads is not None]
    writes = [number for number in range(1, leaf.ndim) if number not in reads]
    sizes = [int(np.prod([leaf.shape[number] for number in dims])) for dims in (reads, writes)]
    return leaf.transpose([0, *reads, *writes]).reshape(leaf.shape[0], *sizes)


def iterate(matrix, table, safety=1.0):
    x = matrix / (safety * np.linalg.norm(matrix))
    for a, b, c in table:
        product = x @ x.T
        x = a * x + (b * product + c * product @ product) @ x
    return x


def published(gradients, muon):
    """Muon as arXiv 2609.19107 has it, on one [in, out] matrix: what it makes of gradients, one after the other."""
    momentum = variance = 0.0
    updates = []
    for step, gradient in enumerate(gradients):
        beta = muon["momentum_start"] + min(step / muon["momentum_steps"], 1) * (0.95 - muon["momentum_start"])
        momentum = beta * momentum + (1 - beta) * gradient
        ahead = (1 - beta) * gradient + beta * momentum
        ahead = ahead / np.linalg.norm(ahead, axis=0, keepdims=True)
        x = iterate(ahead, POLAR[: muon["steps"]], safety=1.02)
        side = 0 if x.shape[1] >= x.shape[0] or muon["variance"] == "outputs" else 1
        variance = 0.95 * variance + 0.05 * np.mean(x**2, axis=side, keepdims=True)
        divided = x / np.sqrt(variance)
        updates.append(divided * np.linalg.norm(x) / np.linalg.norm(divided) * max(1, x.shape[1] / x.shape[0]) ** 0.5)
    return updates


MODERN = {
    "momentum_steps": STEPS - 1,
    "momentum_start": 0.6,
    "coefficients": "polar_express",
    "normalise_rows": True,
    "scale": "spectral",
}


@pytest.mark.parametrize(("variance", "steps"), [("longer", 5), ("outputs", 4)])
def test_muon_with_all_its_parts_is_the_published_one(variance, steps):
    """The published second moment has no bias correction, which the norm takes out where all slices are of one age."""
    muon = MODERN | {"variance": variance, "steps": steps}
    gradients = [gradients_of(SMALL, seed) for seed in range(STEPS)]
    config = OptimizerConfig(kind="muon", muon=MuonConfig(**muon), clip=0.0, weight_decay=0.0)
    updates = updates_of(config, gradients, noisy(SMALL))
    shapes = set()
    for weight in filter(GROUPS["matrices"], SMALL.weights):
        ours, given = (
            [as_matrices(weight, leaf_at(tree, weight.path)) for tree in trees] for trees in (updates, gradients)
        )
        for layer in range(SMALL.layers):
            expected = published([matrix[layer] for matrix in given], muon)
            for step in range(STEPS):
                np.testing.assert_allclose(ours[step][layer], expected[step], rtol=2e-4, atol=2e-5, err_msg=weight.path)
        shapes.add(np.sign(given[0].shape[2] - given[0].shape[1]))
    assert shapes == {-1, 0, 1}


def test_polar_express_comes_near_to_an_orthogonal_matrix():
    matrix = np.random.default_rng(0).normal(size=(24, 40))
    weight, model = SMALL.architecture.weights["blocks/mlp/gate"], dataclasses.replace(SMALL, embed=24, mlp=40)
    optimizer = muon(MuonConfig(coefficients="polar_express", momentum=0.0), model)
    gradient = {"blocks": {"mlp": {"gate": jnp.asarray(matrix, jnp.float32)[None]}}}
    update, _ = optimizer.update(gradient, optimizer.init(gradient))
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    np.testing.assert_allclose(leaf_at(update, weight.path)[0] / (0.2 * 40**0.5), left @ right, atol=0.05)


NEURONS = OptimizerConfig(kind="muon", muon=MuonConfig(variance="outputs"), clip=0.0)
DOUBLE, WIDE = dataclasses.replace(SMALL, layers=4, mlp=24), dataclasses.replace(SMALL, mlp=24)


def grown_by(operator, how, target):
    """The second moments and ages of the neurons of `gate`, before and after a growth."""
    optimizer, params, gradient = make_optimizer(NEURONS, SMALL), noisy(SMALL), gradients_of(SMALL, 0)
    step, opt_state, zero = jax.jit(optimizer.update), optimizer.init(params), np.int64(0)
    for _ in range(20):
        _, opt_state = step(gradient, opt_state, params)
    after = make_optimizer(NEURONS, target)
    grown, _ = grow_state(TrainState(params, opt_state, zero, zero, zero, KEY), SMALL, target, after, operator, how)
    assert jax.tree.structure(after.init(grown.params)) == jax.tree.structure(grown.opt_state)

    def gate(opt_state):
        (held,) = (p for p in opt_state[1].inner_states["muon"].inner_state if isinstance(p, ScaleByNeuronsState))
        return ScaleByNeuronsState(*({"blocks": {"mlp": {"gate": tree["blocks"]["mlp"]["gate"]}}} for tree in held))

    return gate(opt_state), gate(grown.opt_state)


@pytest.mark.parametrize("how", ["map", "map_aged", "keep_old"])
def test_a_copy_has_the_second_moment_of_its_original_unless_it_starts_anew(how):
    before, after = grown_by("direct", how, DOUBLE)
    old, new = (leaf_at(held.by_output, "blocks/mlp/gate") for held in (before, after))
    assert old.shape == (2, 1, 12) and np.min(old) > 0.1
    kept = np.ones((4, 1, 24), bool)
    if how == "keep_old":
        kept[2:], kept[:, :, 12:] = False, False
    np.testing.assert_array_equal(new, np.where(kept, np.tile(old, (2, 1, 2)), 0))
    layers, none, neurons = after.ages["blocks"]["mlp"]["gate"]
    anew = 0 if how == "keep_old" else 20
    assert layers.tolist() == [20] * 2 + [anew] * 2 and neurons.tolist() == [20] * 12 + [anew] * 12
    assert none is None and after.by_input["blocks"]["mlp"]["gate"] is None


@pytest.mark.parametrize(("how", "ratio"), [("map", ((1 - 0.95**21) / 0.05) ** 0.5), ("map_aged", 1)])
def test_fresh_neurons_of_age_0_are_as_fast_as_the_old_ones_beside_them(how, ratio):
    """With one count for all their zero moments pass for whole ones, and they are 3.6 times too fast."""
    _, held = grown_by("zero", how, WIDE)
    held = held._replace(by_output=jax.tree.map(lambda leaf: jnp.where(leaf > 0, 1 - 0.95**20, 0.0), held.by_output))
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (2, 8, 24)) / 24**0.5
    scale = scale_by_neurons(NEURONS.muon, WIDE.architecture.weights)
    update, _ = scale.update({"blocks": {"mlp": {"gate": jnp.asarray(signs, jnp.float32)}}}, held)
    sizes = np.abs(leaf_at(update, "blocks/mlp/gate"))
    np.testing.assert_allclose(sizes[:, :, 12:] / sizes[:, :, :12], ratio, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"decay": ("matrix",)},
            "group in optimizer.decay must be one of biases, constants, embedding, filters, gains, head, matrices, "
            "routers, got 'matrix'; did you mean 'matrices'?",
        ),
        ({"clip": -1.0}, "optimizer.clip must be >= 0, got -1.0"),
        (
            {"muon": {"variance": "rows"}},
            "optimizer.muon.variance must be one of longer, none, outputs, got 'rows'",
        ),
        (
            {"muon": {"coefficients": "polar_express", "steps": 6}},
            "optimizer.muon.steps must be <= 5 of Polar Express, got 6",
        ),
        ({"muon": {"momentum": 1.0}}, "optimizer.muon.momentum must be >= 0 and < 1, got 1.0"),
    ],
)
def test_settings_that_are_not_allowed_are_named_with_what_is(settings, message):
    with pytest.raises(InputError) as error:
        tiny.run_config("none", tiny.stage(3, optimizer=settings))
    assert str(error.value).endswith(message)
