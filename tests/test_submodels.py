"""Training on sampled sub-models, bert2BERT's first stage: what a step sees and leaves, what is drawn, the cost."""

import dataclasses
import itertools
import threading
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from representatives import few
from trees import noisy, random_tokens

from growlm import InputError
from growlm.data import load_corpus, validation_batches
from growlm.growth.plan import COPY, initial_provenance
from growlm.models import ModelConfig, init, next_token_loss, parameter_count
from growlm.training import loop
from growlm.training.muon import MuonConfig
from growlm.training.optimizer import OptimizerConfig, make_optimizer
from growlm.training.run import train
from growlm.training.stages import resolve
from growlm.training.step import StepSpec, compile_steps, draw_depths, train_step

STEP = tiny.STEP
GO_ON = threading.Event()  # never set
MODEL = ModelConfig(layers=6, embed=8, heads=2, kv_heads=1, head_dim=4, mlp=12, vocab=11)
BLOCK = 2
DEPTHS = (2, 4, 6)
TRAINED_ALWAYS = ("final_norm", "head")
TOKENS = random_tokens(MODEL, 3, 8)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.write_corpus(tmp_path_factory.mktemp("corpus"))


def program(depth, model=MODEL, **options):
    """Of a sub-model's step."""
    optimizer = OptimizerConfig(**{"clip": 1e9} | options)
    return StepSpec(model, optimizer, depth=depth, frozen_layers=depth - BLOCK)


def begin(config, model=MODEL, ema=False):
    """Arrays of which none is zero: every moment and age is of steps on gradients of all weights."""
    params = noisy(model)
    optimizer = make_optimizer(config, MODEL)
    _, opt_state = jax.jit(optimizer.update)(noisy(model, 1), optimizer.init(params), params)
    return params, opt_state, noisy(model, 2) if ema else None


def take(program, arrays, rate=1e-2, tokens=TOKENS):
    return compiled(program)(arrays, tokens, jnp.float32(rate), initial_provenance(program.model))


@lru_cache
def compiled(program):
    return jax.jit(partial(train_step, program))


def leaves(tree):
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def first_layers(params, depth):
    return params | {"blocks": jax.tree.map(lambda leaf: leaf[:depth], params["blocks"])}


# --- The step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", few([False, True], [False]), ids=["untied", "tied"])
@pytest.mark.parametrize("depth", few(DEPTHS, [4]))
def test_the_gradient_is_that_of_the_smaller_model_on_its_own(depth, tied):
    whole = dataclasses.replace(MODEL, tie_embeddings=tied)
    params, plan = noisy(whole), program(depth, whole)
    arrays = (params, make_optimizer(plan.optimizer, MODEL).init(params), None)
    (_, opt_state, _), metrics = take(plan, arrays)

    small = dataclasses.replace(whole, layers=depth)
    both = jax.jit(jax.value_and_grad(partial(next_token_loss, small)))
    loss, own = both(first_layers(params, depth), TOKENS)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    found, squares = leaves(opt_state[1].mu), 0.0
    for path, gradient in leaves(own).items():
        moment = found[path] / (1 - plan.optimizer.beta1)
        if "blocks" in path:
            moment, gradient = moment[depth - BLOCK : depth], gradient[depth - BLOCK :]
        elif "embedding" in path and depth > BLOCK:
            assert not moment.any()  # a tied head does not train either
            continue
        np.testing.assert_allclose(moment, gradient, atol=1e-6, rtol=1e-4, err_msg=path)
        squares += np.sum(np.square(gradient))
    np.testing.assert_allclose(metrics["grad_norm"], np.sqrt(squares), rtol=1e-5)


OPTIMIZERS = {"adamw": {}, "muon": {"kind": "muon", "muon": MuonConfig(variance="longer")}}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("depth", few(DEPTHS, [4]))
def test_what_is_not_trained_keeps_every_bit_and_its_moments_and_ages(depth, optimizer):
    plan = program(depth, **optimizer)
    before = begin(plan.optimizer)
    (params, opt_state, _), _ = take(plan, before)
    trained = slice(depth - BLOCK, depth)
    old, new = leaves(before[:2]), leaves((params, opt_state))
    for path in old:
        changed = old[path] != new[path]
        if "blocks" in path and ("ages" not in path or path.endswith("[0]")):
            by_layer = changed.reshape(MODEL.layers, -1).any(1)
            assert by_layer[trained].all() and by_layer.sum() == BLOCK, path
        elif "embedding" in path:
            assert changed.any() == (depth == BLOCK), path
        elif any(name in path for name in TRAINED_ALWAYS):
            assert changed.any(), path
    assert sum("ages" in path for path in old) > 2 and sum("mu" in path for path in old) > 10


def test_a_step_of_the_lowest_sub_model_is_that_of_a_model_that_has_no_other_layers():
    plan = program(BLOCK, clip=0.1, weight_decay=0.3, learning_rates={"matrices": 0.5, "embedding": 2.0})
    small = StepSpec(dataclasses.replace(MODEL, layers=BLOCK), plan.optimizer)
    params = noisy(MODEL)
    arrays, own = (
        (tree, make_optimizer(plan.optimizer, MODEL).init(tree), None) for tree in (params, first_layers(params, BLOCK))
    )
    for seed in range(3):
        tokens = random_tokens(MODEL, 3, 8, seed)
        (arrays, _), (own, _) = take(plan, arrays, tokens=tokens), take(small, own, tokens=tokens)
    have, want = leaves(first_layers(arrays[0], BLOCK)), leaves(own[0])
    for path in want:
        np.testing.assert_allclose(have[path], want[path], rtol=1e-5, atol=1e-6, err_msg=path)


def test_one_sub_model_is_the_whole_model():
    whole = StepSpec(MODEL, OptimizerConfig())
    arrays = begin(whole.optimizer)
    one, _ = take(dataclasses.replace(whole, depth=MODEL.layers), arrays)
    other, _ = take(whole, arrays)
    for path, leaf in leaves(other).items():
        np.testing.assert_allclose(leaves(one)[path], leaf, rtol=1e-5, atol=1e-7, err_msg=path)


def test_every_layer_is_as_old_as_the_updates_it_has_seen():
    plan = program(BLOCK)
    params = noisy(MODEL)
    arrays = (params, make_optimizer(plan.optimizer, MODEL).init(params), None)
    for depth in (2, 6, 6, 2, 6, 4):
        arrays, _ = take(program(depth), arrays)
    layers, *others = arrays[1][1].ages["blocks"]["mlp"]["gate"]
    assert layers.tolist() == [2, 2, 1, 1, 3, 3] and {int(age) for ages in others for age in ages} == {6}
    assert set(arrays[1][1].ages["embedding"][0].tolist()) == {2}


@pytest.mark.parametrize("options", [{"train": "new"}, {"train": "all", "rates": {"old": 0.0}}], ids=str)
def test_what_the_growth_added_is_told_from_the_rest_in_a_sub_model_too(options):
    plan = program(4, learning_rates=options.get("rates", {}))
    provenance = initial_provenance(MODEL)
    new = np.array([False, True, False, True, False, False])
    provenance["layers"] = np.stack([provenance["layers"][0], COPY * new])
    before = begin(plan.optimizer)
    step = compiled(dataclasses.replace(plan, train=options["train"]))
    (params, _, _), _ = step(before, TOKENS, jnp.float32(1e-2), provenance)
    for path, leaf in leaves(params).items():
        changed = leaf != leaves(before[0])[path]
        assert np.flatnonzero(changed.reshape(changed.shape[0], -1).any(1)).tolist() == [3] * ("blocks" in path), path


def test_the_averaged_copy_follows_all_of_the_model():
    plan = program(4, ema=0.75)
    before = begin(plan.optimizer, ema=True)
    (params, _, mean), _ = take(plan, before)
    for path, leaf in leaves(mean).items():
        expected = 0.75 * leaves(before[2])[path] + 0.25 * leaves(params)[path]
        np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-6, err_msg=path)


# --- What is drawn ---------------------------------------------------------------------------------------------------


def test_all_sub_models_are_drawn_equally_often_and_not_in_turn():
    drawn = draw_depths(seed=3, steps=40_000, layers=12, block=3)
    assert sorted(set(drawn.tolist())) == [3, 6, 9, 12]
    for before in (None, 3, 6, 9, 12):
        then = drawn if before is None else drawn[1:][drawn[:-1] == before]
        expected = len(then) / 4
        counts = np.bincount(then, minlength=13)[[3, 6, 9, 12]]
        assert np.abs(counts - expected).max() < 4.5 * np.sqrt(expected * 0.75), before


def test_a_draw_depends_on_the_seed_and_the_step_alone():
    drawn = draw_depths(seed=0, steps=20, layers=8, block=2)
    assert drawn[:8].tolist() == [6, 2, 6, 2, 2, 2, 6, 8]  # from version to version, or runs go on as others
    assert draw_depths(seed=0, steps=7, layers=8, block=2).tolist() == drawn[:7].tolist()
    assert draw_depths(seed=1, steps=20, layers=8, block=2).tolist() != drawn.tolist()
    for steps, before in ((4, 3), (9, 3), (4, 11)):
        config = tiny.run_config("none", tiny.stage(before), tiny.grown(steps, 8, submodel_layers=2))
        first, second = resolve(config, "fingerprint")
        assert [first.depth_at(step) for step in (1, before)] == [None, None]
        found = [second.depth_at(step) for step in range(before + 1, before + steps + 1)]
        assert found == drawn[before : before + steps].tolist()


# --- Runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_step_of_a_run_trains_what_was_drawn_and_validation_is_of_the_whole(corpus, tmp_path, monkeypatch):
    events, evaluations = [], set()

    def compile_and_watch(program, *args):
        events.append(program.depth)
        step, evaluate = compile_steps(program, *args)
        evaluations.add(id(evaluate))

        def watched(*args):
            events.append("step")
            return step(*args)

        return watched, evaluate

    monkeypatch.setattr(loop, "compile_steps", compile_and_watch)
    watching = {"evaluation": {"every_tokens": STEP, "batches": 1}}
    watching |= {"checkpoint": {"every_tokens": STEP, "max_to_keep": 9}}
    config = tiny.run_config(corpus, tiny.stage(1, 4), tiny.grown(7, 4, submodel_layers=1), **watching)
    train(config, tmp_path / "run", GO_ON)
    assert events == [None, "step", 1, 2, 3, 4, *["step"] * 7]  # all compiled before the first
    assert len(evaluations) == 1

    stage = resolve(config, "fingerprint")[1]
    saved = {step: tiny.read_checkpoint(path) for (_, step), path in tiny.checkpoints(tmp_path / "run").items()}
    drawn = [stage.depth_at(step) for step in range(2, 9)]
    assert set(drawn) == {1, 3, 4}
    for before, after in itertools.pairwise(range(1, 9)):
        changed = {path: saved[before][path] != saved[after][path] for path in saved[after] if "params" in path}
        for path, where in changed.items():
            if "blocks" in path:
                (layer,) = np.flatnonzero(where.reshape(4, -1).any(1))
                assert layer == stage.depth_at(after) - 1, path
            else:
                assert where.any() == ("embedding" not in path or stage.depth_at(after) == 1), path

    model = ModelConfig(**tiny.MODEL | {"layers": 4})
    params = jax.eval_shape(partial(init, model), jax.random.key(0))
    params = jax.tree_util.tree_map_with_path(lambda p, _: saved[8]["['params']" + jax.tree_util.keystr(p)], params)
    (held_out,) = validation_batches(load_corpus(corpus).validation, count=1, batch=tiny.BATCH, length=tiny.LENGTH)
    last = tiny.records(tmp_path / "run")[-1]
    assert last["val_loss"] == pytest.approx(float(next_token_loss(model, params, held_out)), abs=1e-5)


@pytest.mark.slow
def test_a_run_stopped_at_every_step_ends_with_the_same_bits(corpus, tmp_path):
    """Through a ramp and both sub-models, with an averaged copy."""
    growth = {"operator": "random", "options": {"mask_tokens": 2 * STEP}, "optimizer_state": "map_aged"}
    second = tiny.grown(5, 4, growth=growth, optimizer={"ema": 0.5}, submodel_layers=2)
    config = tiny.run_config(corpus, tiny.stage(1), second, seed=3)
    train(config, tmp_path / "whole", GO_ON)
    assert tiny.train_in_parts(config, tmp_path / "parts") == 6
    assert tiny.timeless(tmp_path / "parts") == tiny.timeless(tmp_path / "whole")
    have, want = (tiny.checkpoints(tmp_path / name) for name in ("parts", "whole"))
    tiny.assert_same_arrays(tiny.read_checkpoint(have[1, 6]), tiny.read_checkpoint(want[1, 6]))


# --- Cost ------------------------------------------------------------------------------------------------------------


def test_the_cost_is_the_sum_over_the_sub_models_of_the_steps():
    config = tiny.run_config("none", tiny.stage(3), tiny.grown(40, 6, submodel_layers=2), tiny.grown(1, 6))
    first, second, third = resolve(config, "fingerprint")
    flops, exact = first.cost_at(3).flops, first.cost_at(3).flops_exact
    block = 16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 24  # query, key and value, out, mlp
    for step in range(3, 44):
        if step > 3:
            depth = second.depth_at(step)
            flops += 6 * parameter_count(ModelConfig(**tiny.MODEL | {"layers": depth})) * STEP
            # Forward, and backward through the top two of the layers; the head is a matrix too.
            layer = 2 * block + 2 * 16 * 17
            exact += (depth * layer + 2 * 2 * layer + 6 * 16 * 256) * STEP
        cost = second.cost_at(step)
        assert (cost.flops, cost.flops_exact) == pytest.approx((flops, exact), rel=1e-12), step
    assert len({second.depth_at(step) for step in range(4, 44)}) == 3
    whole = 6 * parameter_count(ModelConfig(**tiny.MODEL | {"layers": 6})) * STEP
    assert third.cost_at(44).flops == pytest.approx(flops + whole, rel=1e-12)


# --- Settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"submodel_layers": 4}, ("stage.submodel_layers must be", "6", "4")),
        ({"submodel_layers": 7}, ("stage.submodel_layers must be >= 0 and <= 6, got 7",)),
        ({"submodel_layers": -2}, ("stage.submodel_layers must be >= 0 and <= 6, got -2",)),
        ({"submodel_layers": 2, "frozen_layers": 1}, ("frozen_layers", "sub-models freeze what is below them", "1")),
    ],
)
def test_settings_that_are_not_allowed_are_named_with_what_is(options, parts):
    with pytest.raises(InputError) as error:
        tiny.run_config("none", tiny.stage(3, 6, **options))
    assert all(part in str(error.value) for part in parts)
