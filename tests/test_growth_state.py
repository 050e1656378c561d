"""The whole state at growth: parameters, moments and counters, the report of it, and which states are refused."""

import dataclasses
import json
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_growth import NUMBER, OPTIMIZER, OUTSIDE, SOURCE, adam_of, age_of, assert_grown_by, coded, deep, trained
from trees import exact_products, noisy, random_tokens

from growlm import InputError
from growlm.growth import grow_state
from growlm.models import parameter_count, plain
from growlm.training.optimizer import OptimizerConfig
from growlm.training.step import StepSpec, abstract_state, train_step

exact = pytest.fixture(autouse=True, scope="module")(exact_products.__wrapped__)


@pytest.mark.parametrize("how", ["reset", "map"])
def test_grown_state_is_one_of_the_targets_and_keeps_its_place(how):
    state, target = trained(SOURCE), deep(7)
    grown, _ = grow_state(state, SOURCE, target, OPTIMIZER, optimizer_state=how, order="interleave")
    assert_grown_by([0, 0, 0, 1, 1, 2, 2], SOURCE, target, state.params, grown.params)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        (grown.params, grown.opt_state),
        (lambda abstract: (abstract.params, abstract.opt_state))(abstract_state(target, OptimizerConfig())),
    )
    assert (grown.step, grown.tokens, grown.examples) == (11, 300_000_000_000, 23)
    assert {type(grown.step), type(grown.tokens), type(grown.examples)} == {np.int64}
    np.testing.assert_array_equal(jax.random.key_data(grown.key), jax.random.key_data(state.key))


def test_reset_starts_the_optimizer_afresh():
    grown, report = grow_state(trained(SOURCE), SOURCE, deep(6), OPTIMIZER, optimizer_state="reset")
    adam = adam_of(grown.opt_state)
    chex.assert_trees_all_equal((adam.mu, adam.nu), (jax.tree.map(jnp.zeros_like, grown.params),) * 2)
    assert age_of(grown.opt_state) == 0
    assert report["optimizer_state"] == "reset"


def test_reset_is_the_default_as_in_the_paper():
    grown, report = grow_state(trained(SOURCE), SOURCE, deep(6), OPTIMIZER)
    assert report["optimizer_state"] == "reset" and age_of(grown.opt_state) == 0


def test_map_grows_both_moments_like_the_weights_and_keeps_the_count():
    order = [2, 0, 1, 1, 0, 2]
    state = trained(SOURCE)
    grown, report = grow_state(state, SOURCE, deep(6), OPTIMIZER, optimizer_state="map", order=order)
    adam = adam_of(grown.opt_state)
    assert_grown_by(order, SOURCE, deep(6), coded(SOURCE, 0.25), adam.mu)
    assert_grown_by(order, SOURCE, deep(6), coded(SOURCE, 0.5), adam.nu)
    assert age_of(grown.opt_state) == 7
    assert report["optimizer_state"] == "map"


def test_reset_may_change_the_optimizer():
    other = optax.adafactor(1e-3)
    grown, _ = grow_state(trained(SOURCE), SOURCE, deep(6), other, optimizer_state="reset")
    chex.assert_trees_all_equal(grown.opt_state, other.init(grown.params))


step_of_five = jax.jit(partial(train_step, StepSpec(deep(5), OptimizerConfig())))


@pytest.mark.parametrize("how", ["reset", "map"])
def test_training_goes_on_from_the_grown_state(how):
    state = trained(SOURCE, params=noisy(SOURCE))
    small = jax.tree.map(lambda leaf: 1e-3 * jnp.abs(leaf), noisy(SOURCE, seed=1))
    opt_state = optax.tree_utils.tree_set(state.opt_state, mu=small, nu=small)
    grown, _ = grow_state(
        dataclasses.replace(state, opt_state=opt_state), SOURCE, deep(5), OPTIMIZER, optimizer_state=how
    )
    arrays, losses = grown.arrays, []
    for _ in range(8):
        arrays, metrics = step_of_five(arrays, random_tokens(SOURCE, 2, 9), jnp.float32(3e-3), grown.provenance)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.1
    assert age_of(arrays[1]) == (8 if how == "reset" else 15)


# The report


def test_report_is_json_and_says_where_every_leaf_came_from():
    source, target = deep(6), deep(24)
    _, report = grow_state(trained(source), source, target, OPTIMIZER, optimizer_state="map")
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    order = [0, 1, 2, 3, 4, 5] * 4
    assert report["operator"] == "direct" and report["order"] == order
    assert report["connection_rate"] == pytest.approx(20 / 23)
    assert report["preserves_function"] is False
    assert report["source"] == plain(source) and report["target"] == plain(target)
    assert (report["parameters_before"], report["parameters_after"]) == (
        parameter_count(source),
        parameter_count(target),
    )
    assert report["leaves"] == {path: [] if path in OUTSIDE else ["layers"] for path in NUMBER}


@pytest.mark.parametrize(
    ("order", "rate"), [("stack", 21 / 23), ("interleave", 7 / 23), ([7] * 17 + list(range(7)), 6 / 23)]
)
def test_report_of_8_to_24_layers_has_the_connection_rate(order, rate):
    _, report = grow_state(trained(deep(8)), deep(8), deep(24), OPTIMIZER, order=order)
    assert report["connection_rate"] == pytest.approx(rate)
    assert json.loads(json.dumps(report)) == report


def test_report_of_growth_by_nothing_claims_the_function():
    _, report = grow_state(trained(SOURCE), SOURCE, SOURCE, OPTIMIZER)
    assert report["preserves_function"] is True and report["connection_rate"] == 1.0


# What is refused


def test_unknown_treatment_of_the_optimizer_state_is_refused():
    with pytest.raises(InputError, match="optimizer_state must be one of keep_old, map, map_aged, reset, got 'rest'"):
        grow_state(trained(SOURCE), SOURCE, deep(6), OPTIMIZER, optimizer_state="rest")


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (optax.adafactor(1e-3), "optimizer moment must be one of .* got 'v_row'"),
        (optax.amsgrad(1e-3), "optimizer moment must be one of .* got 'nu_max'"),
        (optax.MultiSteps(optax.adam(1e-3), 2), "optimizer moment must be one of .* got 'acc_grads'"),
        (optax.sm3(1e-3), "optimizer_state must be reset: no rule grows"),
    ],
    ids=["adafactor", "amsgrad", "accumulation", "sm3"],
)
def test_map_refuses_a_state_that_it_has_no_rule_for(optimizer, message):
    state = dataclasses.replace(trained(SOURCE), opt_state=optimizer.init(coded(SOURCE)))
    with pytest.raises(InputError, match=message):
        grow_state(state, SOURCE, deep(6), optimizer, optimizer_state="map")


@pytest.mark.parametrize(
    "optimizer", [optax.adam(1e-3), optax.lion(1e-3), optax.sgd(1e-3)], ids=["adam", "lion", "sgd"]
)
def test_map_refuses_the_state_of_another_optimizer(optimizer):
    with pytest.raises(InputError, match="optimizer_state must be reset where the optimizer changes at growth"):
        grow_state(trained(SOURCE), SOURCE, deep(6), optimizer, optimizer_state="map")


def test_ages_are_asked_only_of_an_optimizer_that_has_them():
    state = dataclasses.replace(trained(SOURCE), opt_state=optax.adam(1e-3).init(coded(SOURCE)))
    with pytest.raises(
        InputError, match="optimizer_state must be reset or map for an optimizer without ages, got 'map_aged'"
    ):
        grow_state(state, SOURCE, deep(6), optax.adam(1e-3), optimizer_state="map_aged")


def test_map_refuses_moments_of_another_depth_or_precision():
    state = trained(SOURCE)
    shallow = dataclasses.replace(state, opt_state=OPTIMIZER.init(coded(deep(2))))
    with pytest.raises(InputError, match=r"must be \(3, 16, 2, 6\), got \(2, 16, 2, 6\)"):
        grow_state(shallow, SOURCE, deep(6), OPTIMIZER, optimizer_state="map")
    low = optax.tree_utils.tree_set(state.opt_state, mu=jax.tree.map(jnp.bfloat16, coded(SOURCE)))
    with pytest.raises(InputError, match="optimizer state '1/mu/"):
        grow_state(dataclasses.replace(state, opt_state=low), SOURCE, deep(6), OPTIMIZER, optimizer_state="map")
