"""Growth in width: the function is kept exactly, for any target, and gradients follow the dual map."""

import dataclasses
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracle import KEY, SMALL, TOKENS, difference, forward, noisy
from representatives import few
from trees import exact_products

import growlm
from growlm.growth import gradient_claim, grow_state, plan_growth
from growlm.growth.expand import expand_params
from growlm.growth.maps import dual
from growlm.growth.width import rng_of
from growlm.models import RopeScaling, next_token_loss
from growlm.state import TrainState

exact = pytest.fixture(autouse=True, scope="module")(exact_products.__wrapped__)


def test_a_keys_data_draws_what_the_key_draws():
    of_key, of_data = (rng_of(one, "direct", 3).random(4) for one in (KEY, np.asarray(jax.random.key_data(KEY))))
    assert np.array_equal(of_key, of_data) and not np.array_equal(of_key, rng_of(KEY, "direct", 4).random(4))


@pytest.mark.parametrize("family", [{}, {"tie_embeddings": True, "qkv_bias": True, "qk_norm": True}], ids=str)
def test_the_oracle_is_the_model(family):
    config = dataclasses.replace(SMALL, **family)
    with jax.enable_x64(True):
        params = noisy(config)
        logits = growlm.apply(config, params, jnp.asarray(TOKENS, jnp.int32), dtype=jnp.float64)
    np.testing.assert_allclose(logits, forward(config, params, TOKENS), atol=1e-6)  # RoPE's table is float32


@pytest.mark.parametrize(
    ("operator", "options", "change"),
    [
        ("direct", {}, {"layers": 4}),
        ("direct", {"order": [1, 0]}, {}),
        ("direct", {}, {"embed": 24, "norm_eps": 1e-2}),
        ("zero", {"order": [0, 0, 1, 0]}, {"layers": 4}),
        ("zero", {"order": [1, 0, 0]}, {"layers": 3}),
    ],
)
def test_a_claim_is_made_where_it_holds_and_only_there(operator, options, change):
    logits, claims = difference(SMALL, dataclasses.replace(SMALL, **change), operator, **options)
    assert claims == (logits < 1e-11)


WIDE = dataclasses.replace(SMALL, layers=4, embed=2 * SMALL.embed, heads=8, kv_heads=4, mlp=2 * SMALL.mlp)
BY_ENTRY = [
    ("zero", {}),
    ("random", {"order": "interleave"}),
    ("direct", {"noise": 0.2, "noise_on": "new"}),
    ("direct", {"block_diagonal": True}),
]


@pytest.mark.parametrize(("operator", "options"), few(BY_ENTRY, BY_ENTRY[:1]), ids=str)
def test_a_growth_in_bfloat16_is_that_in_float32_rounded_once(operator, options):
    short = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), noisy(SMALL))
    grow = partial(growlm.grow, source=SMALL, target=WIDE, operator=operator, key=KEY, **options)
    exact = grow(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), short))
    for leaf, rounded in zip(*map(jax.tree.leaves, (grow(short), exact)), strict=True):
        np.testing.assert_array_equal(leaf, rounded.astype(jnp.bfloat16))
        assert leaf.dtype == jnp.bfloat16


@pytest.mark.parametrize(("operator", "options"), BY_ENTRY, ids=str)
def test_what_is_new_is_said_by_axis_and_not_by_entry_in_the_program(operator, options):
    """An array of the program's own is no larger than the longest axis."""
    grow = partial(growlm.grow, source=SMALL, target=WIDE, operator=operator, key=KEY, **options)
    program = jax.jit(grow).lower(noisy(SMALL)).as_text()
    shapes = re.findall(r'dense<["\[].*> : tensor<([\dx]+)x[a-z]\w+>', program)
    sizes = [math.prod(map(int, shape.split("x"))) for shape in shapes]
    assert sizes and max(sizes) <= max(WIDE.mlp, WIDE.vocab, WIDE.embed)


def test_new_query_heads_join_the_group_of_their_key():
    order = plan_growth("direct", SMALL, dataclasses.replace(SMALL, heads=8), KEY).maps["heads"].write.index
    assert order.tolist() == [0, 1, 0, 1, 2, 3, 2, 3]


def test_heads_that_fit_no_group_are_refused():
    wide = dataclasses.replace(SMALL, heads=6)
    for operator in ("direct", "zero", "random"):
        with pytest.raises(growlm.InputError, match=r"got 2 \(model\.heads 6 over model\.kv_heads 3\)"):
            plan_growth(operator, wide, dataclasses.replace(wide, kv_heads=3), KEY)


def test_a_fresh_value_needs_a_key_and_depends_on_it():
    target = dataclasses.replace(SMALL, mlp=20)
    params = growlm.init(SMALL, KEY)
    with pytest.raises(growlm.InputError, match="needs a key"):
        growlm.grow(params, SMALL, target, "zero")
    one, same, other = (
        growlm.grow(params, SMALL, target, "zero", key=jax.random.key(seed))["blocks"]["mlp"]["down"]
        for seed in (1, 1, 2)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one[:, 10:], other[:, 10:])
    assert np.array_equal(one[:, :10], params["blocks"]["mlp"]["down"])


UNCHANGED = {"rope_theta": 5.0, "rope_scaling": RopeScaling("linear", 2.0), "sliding_window": 4}


@pytest.mark.parametrize("name", [*UNCHANGED, "tie_embeddings", "qkv_bias", "qk_norm"])
def test_what_growth_cannot_change(name):
    value = UNCHANGED.get(name, True)
    with pytest.raises(growlm.InputError, match=f"model.{name} must be the source's, .* which no growth changes"):
        plan_growth("direct", SMALL, dataclasses.replace(SMALL, **{name: value}), KEY)


gradient_of = jax.jit(jax.grad(next_token_loss, argnums=1), static_argnums=0, static_argnames="dtype")

# Whole factors, and ragged ones, in every axis; for heads the groups stay as they are.
DUAL_TARGETS = [{"embed": 24}, {"embed": 19}, {"mlp": 20}, {"mlp": 17}, {"kv_heads": 4, "heads": 8}, {"heads": 8}]


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("change", [*DUAL_TARGETS, {"embed": 31, "mlp": 23, "heads": 8, "kv_heads": 4}], ids=str)
def test_gradients_of_the_grown_model_are_the_mapped_gradients(change, tied):
    """The gradient as a first moment: what `map` makes of it is what the grown model's own gradient is."""
    config = dataclasses.replace(SMALL, tie_embeddings=tied)
    target = dataclasses.replace(config, **change)
    with jax.enable_x64(True):
        tokens = jnp.asarray(TOKENS, jnp.int32)
        params = noisy(config)
        gradient = partial(gradient_of, tokens=tokens, dtype=jnp.float64)
        optimizer = optax.scale_by_adam()
        opt_state = optimizer.init(params)._replace(mu=gradient(config, params))
        zero = np.int64(0)
        state = TrainState(params, opt_state, zero, zero, zero, KEY)
        after, _ = grow_state(state, config, target, optimizer, "direct", "map")
        wanted = gradient(target, after.params)
        for mapped, own in zip(jax.tree.leaves(after.opt_state.mu), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(mapped, own, atol=1e-12 * np.abs(own).max(), rtol=1e-10)


def test_the_gradient_of_a_gain_that_absorbs_the_scale_of_padding_is_divided_by_that_scale():
    """No gradient is claimed where coordinates are new; those of old coordinates follow the dual map all the same."""
    target = dataclasses.replace(SMALL, embed=2 * SMALL.embed, norm_eps=SMALL.norm_eps / 2)
    with jax.enable_x64(True):
        params, tokens, zero = noisy(SMALL), jnp.asarray(TOKENS, jnp.int32), np.int64(0)
        gradient = partial(gradient_of, tokens=tokens, dtype=jnp.float64)
        optimizer = optax.scale_by_adam()
        opt_state = optimizer.init(params)._replace(mu=gradient(SMALL, params))
        state = TrainState(params, opt_state, zero, zero, zero, KEY)
        after, report = grow_state(state, SMALL, target, optimizer, "zero", "map", norm="gain")
        assert report["preserves_function"]
        wanted = gradient(target, after.params)
        for mapped, own in ((after.opt_state.mu, wanted), (after.opt_state.mu["blocks"], wanted["blocks"])):
            for norm in {"final_norm", "attn_norm", "mlp_norm"} & set(mapped):
                old = slice(SMALL.embed)
                np.testing.assert_allclose(mapped[norm]["scale"][..., old], own[norm]["scale"][..., old], rtol=1e-9)


def test_the_report_says_which_coordinates_are_copies_of_what_and_which_are_new():
    target = dataclasses.replace(SMALL, layers=3, mlp=13, heads=6)
    zero = np.int64(0)
    optimizer = optax.scale_by_adam()
    params = growlm.init(SMALL, KEY)
    state = TrainState(params, optimizer.init(params), zero, zero, zero, KEY)
    _, report = grow_state(state, SMALL, target, optimizer, "zero")
    assert report["preserves_function"] and report["zero_residual_layers"] == [2]
    assert report["axes"]["mlp"] == {"from": [*range(10), -1, -1, -1], "fresh": [10, 11, 12]}
    assert report["axes"]["heads"] == {"from": [0, 1, -1, 2, 3, -1], "fresh": [2, 5]}
    assert report["leaves"]["blocks/attn/out"] == ["layers", "heads"]
    assert report["leaves"]["blocks/mlp/gate"] == ["layers", "mlp"]
    assert report["leaves"]["embedding"] == []


@pytest.mark.parametrize("tied", few([False, True], [False]), ids=["untied", "tied"])
@pytest.mark.parametrize("diagonal", few([False, True], [True]), ids=["even", "diagonal"])
def test_gradients_in_float32(diagonal, tied):
    config = dataclasses.replace(SMALL, tie_embeddings=tied)
    target = dataclasses.replace(config, embed=24, mlp=20, heads=8, kv_heads=4)
    params, tokens = noisy(config, np.float32), jnp.asarray(TOKENS, jnp.int32)
    growth = plan_growth("direct", config, target, block_diagonal=diagonal)
    assert gradient_claim(growth, config, target)[0]
    grown = growlm.grow(params, config, target, block_diagonal=diagonal)
    small, own = (gradient_of(c, p, tokens) for c, p in ((config, params), (target, grown)))
    mapped = expand_params(growth, config, small, rule=dual)
    for have, want in zip(jax.tree.leaves(mapped), jax.tree.leaves(own), strict=True):
        np.testing.assert_allclose(have, want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(
    ("operator", "options", "change"),
    [
        ("direct", {"split_imbalance": 0.5}, {"embed": 24}),
        ("direct", {"block_diagonal": True}, {"embed": 19, "mlp": 17}),
        ("direct", {"noise": 0.3, "cancel": True}, {"mlp": 20}),
        ("direct", {"zero_residual": True}, {"layers": 4}),
        ("zero", {}, {"embed": 24}),
    ],
    ids=str,
)
def test_where_gradients_are_not_claimed_they_differ(operator, options, change):
    target = dataclasses.replace(SMALL, **change)
    growth = plan_growth(operator, SMALL, target, KEY, **options)
    assert not gradient_claim(growth, SMALL, target)[0]
    params, tokens = noisy(SMALL, np.float32), jnp.asarray(TOKENS, jnp.int32)
    grown = growlm.grow(params, SMALL, target, operator, key=KEY, **options)
    small, own = (gradient_of(c, p, tokens) for c, p in ((SMALL, params), (target, grown)))
    mapped = expand_params(growth, SMALL, small, rule=dual)
    worst = jax.tree.map(lambda have, want: float(np.abs(have - want).max() / np.abs(want).max()), mapped, own)
    assert np.max(jax.tree.leaves(worst)) > 1e-3
