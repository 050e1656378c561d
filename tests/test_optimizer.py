"""The optimizer across growth: how old every slice is, how fast it learns, and whether it does."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from representatives import few
from trees import exact_products, largest, leaf_at, noisy

import growlm
from growlm.errors import InputError
from growlm.growth import grow_state, growth_key, plan_growth
from growlm.growth.expand import expand, expand_params
from growlm.growth.maps import MOMENTS, dual
from growlm.growth.plan import CARRIED, slice_mask
from growlm.models import LLAMA, declared, map_weights
from growlm.state import TrainState
from growlm.training.mesh import MeshConfig, make_mesh
from growlm.training.muon import MuonConfig
from growlm.training.optimizer import (
    OptimizerConfig,
    ScaleByAgedAdamState,
    make_optimizer,
    scale_by_aged_adam,
)
from growlm.training.step import StepSpec, abstract_state, lower_step, train_step

exact = pytest.fixture(autouse=True, scope="module")(exact_products.__wrapped__)

SMALL = growlm.ModelConfig(layers=2, embed=8, heads=2, kv_heads=1, head_dim=4, mlp=12, vocab=11)
WIDE = growlm.ModelConfig(layers=2, embed=13, heads=6, kv_heads=2, head_dim=4, mlp=17, vocab=11)
DEEP = growlm.ModelConfig(layers=4, embed=8, heads=2, kv_heads=1, head_dim=4, mlp=12, vocab=11)
BOTH = growlm.ModelConfig(layers=4, embed=13, heads=6, kv_heads=2, head_dim=4, mlp=17, vocab=11)
KEY = jax.random.key(3)
B1, B2, TINY = 0.9, 0.999, 1e-30


def gradients_of(config, seed):
    """A tree like the parameters' in which nothing is zero."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(partial(growlm.init, config), KEY)
    draw = lambda leaf: rng.choice([-1.0, 1.0], leaf.shape) * rng.uniform(0.5, 2, leaf.shape)  # noqa: E731
    return jax.tree.map(lambda leaf: jnp.asarray(draw(leaf), jnp.float32), shapes)


def aged(age, mu, nu):
    ages = jax.tree.map(lambda leaf: tuple(jnp.full(size, age, jnp.int32) for size in leaf.shape), mu)
    return ScaleByAgedAdamState(ages, mu, nu)


def state_of(config, opt_state):
    zero = np.int64(0)
    return TrainState(growlm.init(config, KEY), opt_state, zero, zero, zero, KEY)


def grown_like(source, target, gradient, seed):
    """What the gradient of the source is in the target grown by zero; on what is new it is anything else."""
    growth = plan_growth("zero", source, target, growth_key(KEY, 0))
    old, new = expand_params(growth, source, gradient, dual), gradients_of(target, seed)
    return jax.tree.map(lambda old, new: jnp.where(old == 0, new, old), old, new)


def parts(config, provenance, updates):
    """The updates of what is old, in the shapes of the source, and of what is new."""
    old, new = {}, {}

    def split(weight, leaf):
        carried = [np.flatnonzero(provenance[dim.axis.name][1] == CARRIED) for dim in weight.all_dims]
        old[weight.path] = np.asarray(leaf)[np.ix_(*carried)]
        new[weight.path] = np.asarray(leaf)[np.broadcast_to(slice_mask(weight, provenance), leaf.shape)]

    map_weights(split, config, updates)
    return old, new


# --- Ages ------------------------------------------------------------------------------------------------------------


def test_adam_of_one_age_is_that_of_optax():
    ours, theirs = scale_by_aged_adam(B1, B2, 1e-8), optax.scale_by_adam(B1, B2, 1e-8)
    gradients = [gradients_of(SMALL, seed) for seed in range(5)]
    state, reference = ours.init(gradients[0]), theirs.init(gradients[0])
    for gradient in gradients:
        updates, state = jax.jit(ours.update)(gradient, state)
        expected, reference = theirs.update(gradient, reference)
        for have, want in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(have, want, rtol=3e-7)
    assert {int(age) for ages in jax.tree.leaves(state.ages) for age in ages} == {5}


def first_updates(optimizer, opt_state, how, change=lambda state: state):
    """Long after the start of training, every gradient steady: the first updates after growth, of old and of new."""
    steady = gradients_of(SMALL, 0)
    state = state_of(SMALL, opt_state(mu=steady, nu=jax.tree.map(jnp.square, steady)))
    state, _ = grow_state(state, SMALL, WIDE, optimizer, "zero", how)
    updates, _ = jax.jit(optimizer.update)(grown_like(SMALL, WIDE, steady, 1), change(state.opt_state))
    return parts(WIDE, state.provenance, updates)


def assert_sizes(updates, size):
    assert any(leaf.size for leaf in updates.values())
    for path, leaf in updates.items():
        np.testing.assert_allclose(np.abs(leaf), size, rtol=1e-3, err_msg=path)


stock = partial(optax.ScaleByAdamState, jnp.asarray(100_000, jnp.int32))


@pytest.mark.parametrize(
    ("optimizer", "opt_state"),
    [(optax.scale_by_adam(B1, B2, TINY), stock), (scale_by_aged_adam(B1, B2, TINY), partial(aged, 100_000))],
    ids=["optax", "growlm"],
)
def test_fresh_slices_that_pass_for_old_take_a_first_step_three_times_too_long(optimizer, opt_state):
    old, new = first_updates(optimizer, opt_state, "map")
    assert_sizes(old, 1)
    assert_sizes(new, (1 - B1) / np.sqrt(1 - B2))  # 3.16


def test_kept_moments_under_a_count_of_zero_take_a_first_step_three_times_too_short():
    optimizer = optax.scale_by_adam(B1, B2, TINY)
    old, _ = first_updates(optimizer, stock, "map", lambda state: state._replace(count=jnp.asarray(0)))
    assert_sizes(old, np.sqrt(1 - B2) / (1 - B1))  # 0.32


def test_fresh_slices_of_age_0_take_a_first_step_of_the_right_length_and_old_ones_go_on():
    old, new = first_updates(scale_by_aged_adam(B1, B2, TINY), partial(aged, 100_000), "map_aged")
    assert_sizes(old, 1)
    assert_sizes(new, 1)


@pytest.mark.slow
def test_after_growth_in_depth_and_then_in_width_every_slice_is_adam_since_it_is_there():
    """Stock Adam is run on what is oldest, on what depth added and on what width added, each since its own start."""
    ours, theirs = scale_by_aged_adam(B1, B2, TINY), optax.scale_by_adam(B1, B2, TINY)
    update, update_stock = jax.jit(ours.update), jax.jit(theirs.update)
    state = state_of(SMALL, ours.init(gradients_of(SMALL, 0)))
    oldest = theirs.init(gradients_of(SMALL, 0))

    def step(state, gradient):
        updates, opt_state = update(gradient, state.opt_state)
        return updates, TrainState(state.params, opt_state, state.step, state.tokens, state.examples, state.key)

    for seed in range(4):
        _, state = step(state, gradients_of(SMALL, seed))
        _, oldest = update_stock(gradients_of(SMALL, seed), oldest)
    state, report = grow_state(state, SMALL, DEEP, ours, "zero", "map_aged")
    assert report["zero_residual_layers"] == [2, 3]
    silent = theirs.init(gradients_of(DEEP, 0))

    for seed in range(4, 7):
        gradient = gradients_of(DEEP, seed)
        _, state = step(state, gradient)
        _, silent = update_stock(gradient, silent)
        _, oldest = update_stock(jax.tree.map(lambda leaf: leaf[:2], gradient["blocks"]), blocks_of(oldest))
    state, _ = grow_state(state, DEEP, BOTH, ours, "zero", "map_aged")
    provenance, newest = state.provenance, theirs.init(gradients_of(BOTH, 0))

    for seed in range(7, 9):
        gradient = gradients_of(DEEP, seed)
        wide = grown_like(DEEP, BOTH, gradient, 20 + seed)
        updates, state = step(state, wide)
        old, new = parts(BOTH, provenance, updates)
        of_width, newest = update_stock(wide, newest)
        of_depth, silent = update_stock(gradient, silent)
        of_start, oldest = update_stock(jax.tree.map(lambda leaf: leaf[:2], gradient["blocks"]), oldest)
        _, expected = parts(BOTH, provenance, of_width)
        for path, value in expected.items():
            np.testing.assert_allclose(new[path], value, rtol=2e-4, err_msg=path)
        for kind, name in (("attn", "out"), ("mlp", "down")):
            have = old[f"blocks/{kind}/{name}"]
            np.testing.assert_allclose(have[2:], of_depth["blocks"][kind][name][2:], rtol=2e-4)
            np.testing.assert_allclose(have[:2], of_start[kind][name], rtol=2e-4)


def blocks_of(adam):
    """The part of a stock Adam's state that is for the blocks."""
    return adam if "attn" in adam.mu else adam._replace(mu=adam.mu["blocks"], nu=adam.nu["blocks"])


@pytest.mark.parametrize(("how", "age"), [("map", 5), ("map_aged", 0)])
def test_a_model_without_layers_grows_some_of_the_right_age(how, age):
    none = growlm.ModelConfig(layers=0, embed=8, heads=2, kv_heads=1, head_dim=4, mlp=12, vocab=11)
    moments = gradients_of(none, 0)
    grown, _ = grow_state(state_of(none, aged(5, moments, moments)), none, SMALL, scale_by_aged_adam(), "random", how)
    np.testing.assert_array_equal(grown.opt_state.ages["blocks"]["attn"]["out"][0], [age, age])
    np.testing.assert_array_equal(grown.opt_state.ages["head"][0], [5] * 8)


# --- The trajectory of a doubled model -------------------------------------------------------------------------------

DOUBLE = growlm.ModelConfig(layers=2, embed=16, heads=4, kv_heads=2, head_dim=4, mlp=24, vocab=11)
PLAIN = {"clip": 1e9, "weight_decay": 0.0, "eps": 1e-20}


def tokens_of(seed):
    return jnp.asarray(np.random.default_rng(seed).integers(SMALL.vocab, size=(3, 9)), jnp.int32)


def run_steps(program, arrays, provenance, seeds, rate=1e-2):
    step = jax.jit(partial(train_step, program))
    losses = []
    for seed in seeds:
        arrays, metrics = step(arrays, tokens_of(seed), rate, provenance)
        losses.append(float(metrics["loss"]))
    return arrays, losses


def doubled_and_trained(learning_rates):
    """How far the logits of a doubled model are from the small one's, 25 steps after growth."""
    with jax.enable_x64(True):
        config = OptimizerConfig(**PLAIN)
        optimizer = make_optimizer(config, SMALL)
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), noisy(SMALL))
        small = StepSpec(SMALL, config, dtype="float64")
        arrays, _ = run_steps(small, (params, optimizer.init(params), None), {}, range(3))
        state = dataclasses.replace(state_of(SMALL, arrays[1]), params=arrays[0])
        grown, _ = grow_state(state, SMALL, DOUBLE, optimizer, "direct", "map")
        large = StepSpec(DOUBLE, dataclasses.replace(config, learning_rates=learning_rates), dtype="float64")
        after, _ = run_steps(large, grown.arrays, grown.provenance, range(3, 28))
        arrays, _ = run_steps(small, arrays, {}, range(3, 28))
        logits = partial(growlm.apply, tokens=tokens_of(99), dtype=jnp.float64)
        return largest(logits(DOUBLE, after[0]) - logits(SMALL, arrays[0]))


@pytest.mark.slow
def test_a_doubled_model_trains_as_the_small_one_where_matrices_have_half_the_rate():
    assert doubled_and_trained({"matrices": 0.5, "head": 0.5}) < 1e-9


def test_a_doubled_model_with_undivided_rates_goes_another_way():
    assert doubled_and_trained({}) > 1e-2


@pytest.mark.parametrize(("uneven", "stay"), [(0.0, True), (0.5, False)])
def test_even_copies_stay_copies_and_uneven_ones_do_not(uneven, stay):
    """Why the paper splits unevenly (arXiv 2405.15319, A.1.1); with the paper's AdamW, from a reset state."""
    with jax.enable_x64(True):
        optimizer = make_optimizer(OptimizerConfig(), SMALL)
        state = state_of(SMALL, optimizer.init(noisy(SMALL)))
        state = dataclasses.replace(
            state, params=jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), noisy(SMALL))
        )
        grown, _ = grow_state(state, SMALL, DOUBLE, optimizer, "direct", "reset", split_imbalance=uneven)
        program = StepSpec(DOUBLE, OptimizerConfig(), dtype="float64")
        (params, *_), _ = run_steps(program, grown.arrays, grown.provenance, range(20))
    for path, axis in (("mlp/gate", 2), ("mlp/up", 2), ("attn/query", 2), ("attn/value", 2), ("attn/out", 3)):
        one, other = np.split(leaf_at(params["blocks"], path), 2, axis)
        apart = np.abs(one - other).max() / np.abs(one).max()
        assert apart < 1e-9 if stay else apart > 1e-2, (path, apart)


# --- Muon ------------------------------------------------------------------------------------------------------------

MUON = OptimizerConfig(kind="muon", clip=1e9, weight_decay=0.0)


def test_muon_orthogonalises_every_layer_as_a_matrix_from_what_it_reads_to_what_it_writes():
    gradient = gradients_of(SMALL, 0)
    optimizer = make_optimizer(MUON, SMALL)
    updates, _ = optimizer.update(gradient, optimizer.init(gradient), gradient)
    attn, mlp = updates["blocks"]["attn"], updates["blocks"]["mlp"]
    reading = {"query": attn["query"], "key": attn["key"], "value": attn["value"], "gate": mlp["gate"], "up": mlp["up"]}
    matrices = {name: leaf.reshape(2, 8, -1) for name, leaf in reading.items()}
    matrices |= {"out": attn["out"].reshape(2, 8, 8), "down": mlp["down"]}
    for name, leaf in matrices.items():
        for layer in leaf:
            values = np.linalg.svd(layer / (0.2 * np.sqrt(max(layer.shape))), compute_uv=False)
            assert values.min() > 0.5 and values.max() < 1.3, (name, values)
    adam = make_optimizer(dataclasses.replace(MUON, kind="adamw"), SMALL)
    others, _ = adam.update(gradient, adam.init(gradient), gradient)
    for path in (("embedding",), ("head",), ("final_norm", "scale"), ("blocks", "attn_norm", "scale")):
        ours, theirs = updates, others
        for name in path:
            ours, theirs = ours[name], theirs[name]
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("parts", [{}, {"momentum_steps": 3, "coefficients": "polar_express"}], ids=["plain", "modern"])
def test_muons_iteration_in_bfloat16_is_that_in_float32_but_for_its_rounding(parts):
    after = {}
    for dtype in (None, "bfloat16"):
        optimizer = make_optimizer(dataclasses.replace(MUON, muon=MuonConfig(dtype=dtype, **parts)), SMALL)
        gradient, update = gradients_of(SMALL, 0), jax.jit(optimizer.update)
        state = optimizer.init(gradient)
        for number in (1, 2):
            updates, state = update(gradients_of(SMALL, number), state, gradient)
        after[dtype] = updates, state
    (exact, state), (rounded, of_rounded) = after.values()
    chex.assert_trees_all_close(of_rounded, state, rtol=1e-6)  # momentum and all else stay in float32
    for path in (("attn", "query"), ("attn", "out"), ("mlp", "up"), ("mlp", "down")):
        one, other = (tree["blocks"][path[0]][path[1]] for tree in (exact, rounded))
        assert other.dtype == jnp.float32
        apart = np.linalg.norm(one - other) / np.linalg.norm(one)
        assert 1e-4 < apart < 0.2, (path, apart)


@pytest.mark.parametrize("how", few(["map", "map_aged"], ["map_aged"]))
@pytest.mark.slow
def test_muons_momentum_grows_by_the_dual_map_and_training_goes_on(how):
    optimizer, params = make_optimizer(MUON, SMALL), noisy(SMALL)
    arrays, _ = run_steps(StepSpec(SMALL, MUON), (params, optimizer.init(params), None), {}, range(3))
    state = dataclasses.replace(state_of(SMALL, arrays[1]), params=arrays[0])
    grown, _ = grow_state(state, SMALL, BOTH, optimizer, "zero", how)

    def momentum(opt_state):
        return opt_state[1].inner_states["muon"].inner_state[0].mu["blocks"]["attn"]["out"]

    growth = plan_growth("zero", SMALL, BOTH, growth_key(KEY, 0))
    expected = expand(dual, growth, LLAMA.weights["blocks/attn/out"], momentum(arrays[1]))
    assert np.abs(expected[:2]).max() > 0 and np.abs(expected[2:]).max() == 0
    np.testing.assert_array_equal(momentum(grown.opt_state), expected)
    _, losses = run_steps(StepSpec(BOTH, MUON), grown.arrays, grown.provenance, [3] * 6, rate=2e-2)
    assert losses[-1] < losses[0] - 0.1


# --- Moments in bfloat16, and what a step holds -----------------------------------------------------------------------

SHORT = {kind: OptimizerConfig(kind=kind, moment_dtype="bfloat16") for kind in ("adamw", "muon")}
SHORT["muon in parts"] = dataclasses.replace(SHORT["muon"], muon=MuonConfig(momentum_steps=3, variance="outputs"))


def test_a_first_moment_in_bfloat16_is_rounded_once_an_update():
    short, b1 = scale_by_aged_adam(B1, B2, mu_dtype="bfloat16"), np.float32(B1)
    gradients = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(np.float32)
    state, mu = short.init(gradients[0]), np.zeros((5, 7), np.float32)
    for gradient in gradients:
        updates, state = short.update(gradient, state)
        mu = (np.float32(1 - B1) * gradient + b1 * mu).astype(jnp.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(state.mu, mu)
    assert (state.mu.dtype, state.nu.dtype, updates.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    expected = mu / (1 - B1**3) / np.sqrt(state.nu / (1 - B2**3))
    np.testing.assert_allclose(updates, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", few(SHORT, ["adamw"]))
def test_moments_in_bfloat16_grow_by_their_rules_are_rounded_once_and_stay_so(kind):
    config, params = SHORT[kind], noisy(SMALL)
    optimizer, growth = make_optimizer(config, SMALL), plan_growth("zero", SMALL, BOTH, growth_key(KEY, 0))
    arrays, _ = run_steps(StepSpec(SMALL, config), (params, optimizer.init(params), None), {}, range(2))
    state = dataclasses.replace(state_of(SMALL, arrays[1]), params=arrays[0])
    grown, _ = grow_state(state, SMALL, BOTH, make_optimizer(config, BOTH), "zero", "map_aged")
    later, _ = run_steps(StepSpec(BOTH, config), grown.arrays, grown.provenance, range(1))
    states = (jax.tree_util.tree_leaves_with_path(tree) for tree in (arrays[1], grown.opt_state, later[1]))
    seen = set()
    for (path, before), (_, leaf), (_, after) in zip(*states, strict=True):
        name, weight, _ = LLAMA.match_weight(path)
        if name not in MOMENTS:
            continue
        assert before.dtype == leaf.dtype == after.dtype == (jnp.bfloat16 if name == "mu" else jnp.float32)
        whole = expand(MOMENTS[name], growth, weight, before.astype(jnp.float32))
        np.testing.assert_array_equal(leaf, whole.astype(leaf.dtype))
        assert np.any(before != 0)
        seen.add((name, weight.path))
    assert {path for name, path in seen if name == "mu"} == {weight.path for weight in declared(SMALL)}


@pytest.mark.parametrize("config", [OptimizerConfig(), SHORT["muon in parts"]], ids=["adamw", "muon"])
def test_a_step_puts_all_of_its_state_where_the_one_before_it_was(config):
    program = lower_step(StepSpec(SMALL, config), 2, 5, make_mesh(MeshConfig(), jax.devices()[:1])).compile()
    state = abstract_state(SMALL, config).arrays
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert program.memory_analysis().alias_size_in_bytes == held


# --- The averaged copy -----------------------------------------------------------------------------------------------


def test_the_averaged_copy_follows_the_parameters():
    config = OptimizerConfig(ema=0.75)
    params = noisy(SMALL)
    arrays = (params, make_optimizer(config, SMALL).init(params), jax.tree.map(jnp.copy, params))
    mean = params
    for seed in range(3):
        arrays, _ = run_steps(StepSpec(SMALL, config), arrays, {}, [seed])
        mean = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, mean, arrays[0])
    for have, want in zip(jax.tree.leaves(arrays[2]), jax.tree.leaves(mean), strict=True):
        np.testing.assert_allclose(have, want, atol=1e-6)


# --- Settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (
            {"optimizer": {"kind": "moun"}},
            "optimizer.kind must be one of adamw, muon, got 'moun'; did you mean 'muon'?",
        ),
        ({"optimizer": {"ema": 1.0}}, "optimizer.ema must be >= 0 and < 1, got 1.0"),
        (
            {"optimizer": {"moment_dtype": "float16"}},
            "optimizer.moment_dtype must be one of bfloat16, got 'float16'; did you mean 'bfloat16'?",
        ),
        (
            {"optimizer": {"learning_rates": {"gain": 2}}},
            "group in optimizer.learning_rates must be one of biases, constants, embedding, filters, gains, head, "
            "matrices, new, old, routers, got 'gain'; did you mean 'gains'?",
        ),
        (
            {"optimizer": {"learning_rates": {"head": -1}}},
            "optimizer.learning_rates['head'] must be >= 0, got -1.0",
        ),
        ({"growth": {"train": "fresh"}}, "growth.train must be one of all, new, old, got 'fresh'"),
        (
            {"optimizer": {"learning_rates": {"old": 0.1}}},
            "optimizer.learning_rates must be without 'new' and 'old' in a stage without growth, got 'old'",
        ),
        ({"frozen_layers": 2}, "stage.frozen_layers must be >= 0 and <= 1, got 2"),
        (
            {"growth": {"optimizer_state": "aged"}},
            "growth.optimizer_state must be one of keep_old, map, map_aged, reset, got 'aged'; did you mean "
            "'map_aged'?",
        ),
    ],
)
def test_settings_that_are_not_allowed_are_named_with_what_is(stage, message):
    with pytest.raises(InputError) as error:
        tiny.run_config("none", tiny.stage(3, **stage))
    assert str(error.value).endswith(message)
