"""TokenFormer: which growth of slots keeps the function, what new slots are, and what it costs."""

import dataclasses
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import KEY, TOKENS, difference_in_numpy, grown_in_numpy, noisy
from trees import exact_products

import growlm
from growlm.growth import PRESETS, claim, gradient_claim, plan_growth, plan_target, resolve
from growlm.growth.expand import expand_params, grow_params
from growlm.growth.maps import dual
from growlm.models import (
    TokenformerConfig,
    Weight,
    flops_per_token,
    matmul_parameter_count,
    next_token_loss,
    parameter_count,
)
from growlm.models.tokenformer import half_the_slots, pattention

exact = pytest.fixture(autouse=True, scope="module")(exact_products.__wrapped__)

SMALL = TokenformerConfig(2, 8, 2, 4, qkv_slots=4, out_slots=6, mlp_slots=9, vocab=17, rotary_dim=2, norm_eps=1e-3)
DOUBLE = {"qkv_slots": 8, "out_slots": 12, "mlp_slots": 18}
RAGGED = {"qkv_slots": 5, "out_slots": 12, "mlp_slots": 13}
OTHER = {"out_scale": 2.0}

# (operator, options, sizes, whether scales stay) -> why the function is not kept; empty where it is.
CASES = {
    "padded": ("zero", {}, RAGGED, True, ""),
    "padded, with roots of the new numbers": ("zero", {}, RAGGED, False, "exact would be 2"),
    "padded, deeper and wider": ("zero", {}, RAGGED | {"layers": 3, "embed": 11, "heads": 3}, True, ""),
    "padded, with another scale": ("zero", {}, DOUBLE | OTHER, True, "out_scale is 2.44.* before and 2 after"),
    "plain padding": ("zero", {"fill": "zeros"}, DOUBLE, True, ""),
    "masked": ("random", {"mask_tokens": 10}, RAGGED, True, ""),
    "fresh": ("random", {}, RAGGED, True, "sum of squares over qkv_slots changes"),
    "whole copies": ("direct", {}, DOUBLE | {"embed": 16, "heads": 4}, False, ""),
    "whole copies at the old scales": ("direct", {}, DOUBLE, True, "exact would be 2.8284"),
    "some copies": ("direct", {}, RAGGED, True, "sum of squares over qkv_slots changes"),
    "other axes by copies": ("direct", {"split_imbalance": 0.5}, {"embed": 16, "heads": 3}, False, ""),
}


@pytest.fixture
def in_numpy(monkeypatch):
    """Fresh values with nothing compiled."""

    def initial(weight, key, config, whole=False):
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
        return rng.standard_normal(weight.shape(config))

    monkeypatch.setattr(Weight, "initial", initial)


@pytest.mark.parametrize("name", CASES)
def test_a_growth_of_slots_is_claimed_where_it_is_exact(name, in_numpy):
    operator, options, sizes, stays, reason = CASES[name]
    target = SMALL.grown(**sizes) if stays else dataclasses.replace(SMALL, **sizes)
    logits, claims, growth = difference_in_numpy(SMALL, target, operator, **options)
    assert claims is (not reason) and (logits < 1e-12 if claims else logits > 1e-6)
    assert re.search(reason, claim(growth, SMALL, target)[1])


def test_new_slots_have_keys_of_zero_and_fresh_values(in_numpy):
    """The published code has fresh keys; its claim and the function go the same way."""
    target = SMALL.grown(**RAGGED)
    for operator, fresh in (("tokenformer", False), ("tokenformer_published", True)):
        _, after, growth = grown_in_numpy(SMALL, target, resolve(operator).operator)
        mlp = after["blocks"]["mlp"]
        assert np.all(mlp["values"][:, 9:] != 0) and np.all((mlp["keys"][..., 9:] != 0) == fresh)
        assert claim(growth, SMALL, target)[0] is (not fresh)


def test_the_scale_that_is_left_open_is_what_keeps_the_function():
    """The old one for zeros, the root of the new number for whole copies and for what is published."""
    open_target = dataclasses.replace(SMALL, **DOUBLE)
    found = {
        name: plan_target(resolve(name).operator, SMALL, open_target, KEY)[0].mlp_scale
        for name in ("zero", "tokenformer", "direct", "tokenformer_published")
    }
    assert found == {"zero": 3.0, "tokenformer": 3.0, "direct": None, "tokenformer_published": None}
    given = dataclasses.replace(open_target, mlp_scale=4.0)
    assert plan_target("zero", SMALL, given, KEY)[0].mlp_scale == 4.0


def test_the_schedule_of_the_presets():
    for name in ("tokenformer", "tokenformer_published"):
        target = dataclasses.replace(SMALL, **DOUBLE, out_scale=2.0)
        first, last = (stage.model for stage in PRESETS[name].stages(target))
        assert (first, last) == (dataclasses.replace(target, qkv_slots=4, out_slots=6, mlp_slots=9), target)
    with pytest.raises(growlm.InputError, match="mlp_slots must be even, to be doubled by growth, got 9"):
        half_the_slots(SMALL)


def test_gradients_of_whole_copies_are_the_sources_by_the_dual_map():
    target = dataclasses.replace(SMALL, **DOUBLE, embed=16, heads=4)
    params, growth = noisy(SMALL, np.float32), plan_growth("direct", SMALL, target)
    grown = grow_params(growth, SMALL, target, params, None)
    assert gradient_claim(growth, SMALL, target)[0]
    before, after = (
        jax.jit(jax.grad(partial(next_token_loss, config)))(tree, TOKENS)
        for config, tree in ((SMALL, params), (target, grown))
    )
    assert np.abs(after["blocks"]["mlp"]["keys"]).max() > 1e-3
    expected = expand_params(growth, SMALL, jax.tree.map(np.asarray, before), dual)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6), after, expected)


def test_counts_by_hand():
    """354M of the paper's models: 24 layers of 1024, 16 heads of 64; with 768, 768 and 3072 slots."""
    layers, embed, qkv, out, mlp, vocab, length = 24, 1024, 768, 768, 3072, 50304, 2048
    config = TokenformerConfig(layers, embed, 16, 64, qkv, out, mlp, vocab, rotary_dim=16)
    # Keys and values of query, key, value; of the output; of the MLP.
    matrices = layers * 2 * embed * (3 * qkv + out + mlp) + embed * vocab
    assert matmul_parameter_count(config) == matrices
    assert parameter_count(config) == matrices + embed * vocab + 2 * embed  # the last norm
    # Scores and weighted sums: 2 FLOPs each for 1024 coordinates and (T + 1) / 2 positions; thrice to train.
    assert flops_per_token(config, length) == 6 * matrices + 3 * layers * 4 * embed * (length + 1) / 2


def test_initial_values_are_the_published_ones():
    config = dataclasses.replace(SMALL, layers=5, embed=64, qkv_slots=64, mlp_slots=64)
    weights = config.architecture.weights
    expected = {"keys": 0.02, "values": 2 / (5 * math.sqrt(64))}
    for path in ("blocks/attn/query_", "blocks/attn/out_", "blocks/mlp/"):
        for part, std in expected.items():
            values = np.asarray(weights[path + part].initial(KEY, config, whole=True))
            assert values.std() == pytest.approx(std, rel=0.05)


def test_scores_of_zero_have_no_direction_and_gradients_stay_finite():
    x_ND, key_DS, value_SD = jnp.zeros((2, 3)), jnp.ones((3, 4)), jnp.ones((4, 3))
    loss = lambda *arrays: pattention(*arrays, 2.0).sum()  # noqa: E731
    value, gradients = jax.value_and_grad(loss, argnums=(0, 1, 2))(x_ND, key_DS, value_SD)
    assert value == 0 and all(np.isfinite(leaf).all() for leaf in gradients)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("mlp_slots", 0, "a positive integer"),
        ("out_scale", -1.0, "a positive number"),
        ("rotary_dim", 6, "at most model.head_dim, 4"),
    ],
)
def test_what_is_out_of_range_is_one_line(field, value, rule):
    with pytest.raises(growlm.InputError, match=rf"model\.{field} must be .*{rule}.*, got"):
        dataclasses.replace(SMALL, **{field: value})
