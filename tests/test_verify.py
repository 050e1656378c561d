"""Verify: a right growth passes, and every way of spoiling one is found by the check that is for it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from representatives import few
from trees import exact_products, noisy, random_tokens

import growlm
from growlm.growth import describe_verdict, plan_growth, verify

exact = pytest.fixture(autouse=True, scope="module")(exact_products.__wrapped__)

SMALL = growlm.ModelConfig(layers=2, embed=12, heads=4, kv_heads=2, head_dim=4, mlp=10, vocab=17)
KEY = jax.random.key(7)
TOKENS = random_tokens(SMALL, 2, 9)
EVEN = {"embed": 24, "mlp": 20, "heads": 8, "kv_heads": 4}


def grow(change, operator="direct", **options):
    """(source, params, target, grown, growth)."""
    target, params = dataclasses.replace(SMALL, **change), noisy(SMALL)
    growth = plan_growth(operator, SMALL, target, KEY, **options)
    return SMALL, params, target, growlm.grow(params, SMALL, target, operator, key=KEY, **options), growth


def check(source, params, target, grown, growth=None, **options):
    """The report, which must be plain JSON and have a table."""
    report = verify(source, params, target, grown, TOKENS, growth, **{"steps": 2} | options)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert describe_verdict(report)
    return report


def broken(report):
    """The checks whose claim is not met."""
    return {name for name, item in report["items"].items() if item["claimed"] and not item["holds"]}


def changed(params, path, change):
    """The tree with one leaf changed."""
    *folders, name = path.split("/")
    tree = jax.tree.map(lambda leaf: leaf, params)
    node = tree
    for folder in folders:
        node = node[folder]
    node[name] = change(node[name])
    return tree


# --- What is right ---------------------------------------------------------------------------------------------------

RIGHT = {
    "even copies": (EVEN, "direct", {}, {"function", "gradients"}),
    "ragged copies": ({"embed": 19, "mlp": 13}, "direct", {}, {"function", "gradients"}),
    "uneven copies": (EVEN, "direct", {"split_imbalance": 0.5}, {"function"}),
    "zeros in depth and width": ({"layers": 4, "embed": 17, "mlp": 13}, "zero", {}, {"function"}),
    "masks": ({"layers": 3, "embed": 17}, "random", {"mask_tokens": 64, "in_turn": True}, {"function"}),
    "masks on blocks": ({"layers": 3}, "random", {"mask_tokens": 64, "whole_blocks": True}, {"function"}),
    "the stack": ({"layers": 4}, "direct", {}, set()),
    "noise": (EVEN, "direct", {"noise": 0.3}, set()),
    "new tokens": ({"vocab": 20}, "zero", {}, {"function"}),
    "learned maps": ({"layers": 4, "embed": 17}, "learn", {"steps": 0}, set()),
}


@pytest.mark.parametrize("name", few(RIGHT, ["the stack", "new tokens", "learned maps"]))
def test_a_right_growth_passes_with_the_claims_that_it_makes(name):
    change, operator, options, claims = RIGHT[name]
    report = check(*grow(change, operator, **options))
    assert report["ok"] and not broken(report)
    claimed = {name for name, item in report["items"].items() if item["claimed"]}
    recomputed = {"weights"} if name not in ("noise", "learned maps") else set()
    assert claimed == claims | recomputed | {"finite", "training"}
    if "function" in claims and name != "new tokens":
        assert report["loss_after"] == pytest.approx(report["loss_before"], abs=1e-5)
    else:
        assert abs(report["loss_after"] - report["loss_before"]) > 1e-4
    assert len(report["losses"]) == 3 and report["losses"][0] == pytest.approx(report["loss_after"], abs=1e-5)
    assert report["losses"] == sorted(report["losses"], reverse=True)


def test_gradients_of_even_copies_are_the_mapped_ones():
    report = check(*grow(EVEN))
    assert report["items"]["gradients"]["measured"] < 1e-5 and report["items"]["function"]["measured"] < 1e-5


def test_what_is_kept_though_nobody_claims_it_is_noted():
    """A mask at 0 hides what is fresh: the gradient of the rest is the source's, and the claim is careful."""
    report = check(*grow({"mlp": 14}, "random", mask_tokens=64))
    item = report["items"]["gradients"]
    assert item["holds"] and item["claimed"] is False
    assert "holds, not claimed" in describe_verdict(report)


def test_without_a_growth_nothing_is_claimed_and_the_function_is_still_measured():
    *pair, _ = grow(EVEN)
    report = check(*pair)
    assert set(report["items"]) == {"finite", "function", "training"}
    assert report["items"]["function"]["claimed"] is None and report["items"]["function"]["holds"]
    *pair, _ = grow({"layers": 4})
    report = check(*pair)
    assert report["ok"] and not report["items"]["function"]["holds"]


DTYPES = ("float64", "float32", "float16", "bfloat16")
EXACT = {
    "copies in width": ({"embed": 19, "mlp": 13, "heads": 8, "kv_heads": 4}, "direct", {"split_imbalance": 0.5}),
    "zeros in both": ({"layers": 3, "embed": 17, "mlp": 13}, "zero", {}),
}


def in_dtype(dtype, change, operator, options):
    """As `grow`, from weights in that dtype."""
    target, params = dataclasses.replace(SMALL, **change), jax.tree.map(lambda x: x.astype(dtype), noisy(SMALL))
    growth = plan_growth(operator, SMALL, target, KEY, **options)
    return SMALL, params, target, growlm.grow(params, SMALL, target, operator, key=KEY, **options), growth


@pytest.mark.parametrize("dtype", few(DTYPES, ["bfloat16"]))
@pytest.mark.parametrize("name", EXACT)
def test_an_exact_growth_is_found_exact_in_every_dtype_and_swapped_layers_are_not(name, dtype):
    """The allowance for 16 bits comes from the source's own rounding: other layers are far beyond it."""
    with jax.enable_x64(dtype == "float64"):
        source, params, target, grown, growth = in_dtype(dtype, *EXACT[name])
        report = check(source, params, target, grown, growth)
        assert report["ok"] and report["dtype"] == dtype
        function = report["items"]["function"]
        assert function["claimed"] and function["measured"] <= function["tolerance"]
        for layers in ([1, 0], [0, 0]):  # swapped, and a layer in its neighbour's place
            order = np.asarray([*layers, *range(2, target.layers)])
            wrong = grown | {"blocks": jax.tree.map(lambda leaf: leaf[order], grown["blocks"])}  # noqa: B023
            assert {"function", "weights"} <= broken(check(source, params, target, wrong, growth))


def test_a_nan_among_many_values_is_in_every_measure():
    """XLA's CPU backend passes over NaN in a maximum of 4,096 values and more."""
    wide = dataclasses.replace(SMALL, vocab=4099)
    tokens, params = random_tokens(SMALL, 2, 9), noisy(wide)
    growth = plan_growth("direct", wide, wide)
    spoilt = params | {"head": params["head"].at[3, 2000].set(jnp.nan)}
    report = verify(wide, params, wide, spoilt, tokens, growth, steps=1)
    assert not report["ok"] and broken(report) >= {"finite", "function", "weights"}
    assert report["items"]["function"]["measured"] is None


def test_float64_is_held_to_its_own_tolerance():
    with jax.enable_x64(True):
        source, params, target, _, growth = grow({"embed": 19, "mlp": 13})
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
        grown = growlm.grow(params, source, target, "direct")
        report = check(source, params, target, grown, growth)
        assert report["ok"] and report["dtype"] == "float64"
        assert report["items"]["function"]["measured"] < 1e-12
        # What float32 would take for rounding is none here.
        spoilt = changed(grown, "blocks/mlp/down", lambda leaf: leaf.at[0, 0, 0].multiply(1 + 1e-7))
        assert broken(check(source, params, target, spoilt, growth)) >= {"weights", "function"}
    float32 = [jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), tree) for tree in (params, spoilt)]
    assert check(source, float32[0], target, float32[1], growth)["ok"]


# --- What is broken --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["embedding", "blocks/attn/out", "blocks/mlp_norm/scale", "head"])
def test_one_perturbed_weight_is_found_and_named(path):
    source, params, target, grown, growth = grow(EVEN)
    spoilt = changed(grown, path, lambda leaf: leaf.at[(-1,) * leaf.ndim].add(0.1))
    report = check(source, params, target, spoilt, growth)
    if path == "embedding":  # of a token that may not occur: its weights alone say so
        assert "weights" in broken(report)
    else:
        assert broken(report) == {"weights", "function", "gradients"}
    assert path in report["items"]["weights"]["note"] and not report["ok"]
    assert "BROKEN" in describe_verdict(report)
    # Without the growth the function alone is measured, and nobody claimed it.
    alone = check(source, params, target, spoilt)
    assert alone["ok"] and alone["items"]["function"]["holds"] == report["items"]["function"]["holds"]


@pytest.mark.parametrize(("operator", "also"), [("zero", {"function"}), ("direct", set())])
def test_a_wrong_layer_order_is_found(operator, also):
    """Where a growth keeps the function that shows it; the stack does not, and its weights do."""
    source, params, target, grown, growth = grow({"layers": 4}, operator)
    blocks = jax.tree.map(lambda leaf: leaf[np.array([1, 0, 2, 3])], grown["blocks"])
    assert broken(check(source, params, target, grown | {"blocks": blocks}, growth)) == {"weights"} | also


def test_copies_that_are_read_whole_are_found():
    """Net2Net without the division: every reader of mlp sees each neuron twice."""
    source, params, target, grown, growth = grow({"mlp": 20})
    spoilt = changed(grown, "blocks/mlp/down", lambda leaf: 2 * leaf)
    report = check(source, params, target, spoilt, growth)
    assert broken(report) == {"weights", "function", "gradients"}
    assert report["items"]["weights"]["measured"] == pytest.approx(1)


def test_a_weight_that_should_be_silent_and_is_not_is_found():
    source, params, target, grown, growth = grow({"layers": 3}, "zero")
    spoilt = changed(grown, "blocks/attn/out", lambda leaf: leaf.at[2].set(leaf[0]))
    assert broken(check(source, params, target, spoilt, growth)) == {"weights", "function"}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_found_and_named(value):
    source, params, target, grown, growth = grow(EVEN)
    spoilt = changed(grown, "blocks/mlp/up", lambda leaf: leaf.at[1, 2, 3].set(value))
    report = check(source, params, target, spoilt, growth)
    assert broken(report) == {"finite", "weights", "function", "gradients", "training"}
    assert "blocks/mlp/up" in report["items"]["finite"]["note"] and report["items"]["finite"]["measured"] == 1
    assert report["loss_after"] is None and report["losses"] == [None] * 3
    assert "not finite" in describe_verdict(report)


def test_a_fresh_value_that_is_not_finite_is_found():
    """No claim says what fresh values are, and where zeros hide one from the logits it is still there."""
    source, params, target, grown, growth = grow({"vocab": 20}, "zero")
    spoilt = changed(grown, "embedding", lambda leaf: leaf.at[19].set(jnp.nan))
    assert "finite" in broken(check(source, params, target, spoilt, growth))


def test_a_model_that_cannot_train_is_found():
    """A head of zeros over a stream of zeros: no gradient, no step, no fall."""
    source, params, target, grown, _ = grow({"layers": 3}, "zero")
    report = check(source, params, target, jax.tree.map(jnp.zeros_like, grown))
    assert broken(report) == {"training"} and report["items"]["training"]["measured"] == 0


def test_a_loss_that_is_not_finite_after_a_step_is_no_fall():
    report = check(*grow(EVEN), learning_rate=1e30)
    assert broken(report) == {"training"} and report["losses"][-1] is None


def test_a_ramp_is_measured_under_its_mask():
    """The same parameters without the mask are another function."""
    source, params, target, grown, growth = grow({"layers": 3, "mlp": 14}, "random", mask_tokens=64)
    bare = dataclasses.replace(growth, effects=())
    assert check(source, params, target, grown, growth)["items"]["function"]["measured"] < 1e-5
    assert check(source, params, target, grown, bare)["items"]["function"]["measured"] > 1e-3


# --- What cannot be measured -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        (np.zeros((2, 1), np.int32), r"tokens must be integers .*, got int32\[2, 1\]"),
        (np.zeros((0, 4), np.int32), r"tokens must be integers .*, got int32\[0, 4\]"),
        (np.zeros((2, 4), np.float32), r"tokens must be integers .*, got float32\[2, 4\]"),
        (np.zeros(4, np.int32), r"tokens must be integers .*, got int32\[4\]"),
        (np.full((2, 4), 17), "tokens must be from 0 to 16, got 17"),
        (np.full((2, 4), -1), "tokens must be from 0 to 16, got -1"),
    ],
)
def test_bad_tokens(tokens, says):
    source, params, target, grown, growth = grow({"layers": 3}, "zero")
    with pytest.raises(growlm.InputError, match=says):
        verify(source, params, target, grown, tokens, growth)


def test_bad_trees_and_numbers():
    source, params, target, grown, growth = grow({"layers": 3}, "zero")
    for pair, says in (((params, params), "shape"), ((grown, grown), "shape"), (({}, grown), "got none")):
        with pytest.raises(growlm.InputError, match=says):
            verify(source, pair[0], target, pair[1], TOKENS, growth)
    for steps in (0, -1, True, 1.5):
        with pytest.raises(growlm.InputError, match=f"steps must be an integer >= 1, got {steps}"):
            verify(source, params, target, grown, TOKENS, growth, steps=steps)
    for rate in (0, -1.0, np.inf, np.nan):
        with pytest.raises(growlm.InputError, match=f"learning_rate must be a positive number, got {rate}"):
            verify(source, params, target, grown, TOKENS, growth, learning_rate=rate)


def test_neither_tree_is_changed():
    source, params, target, grown, growth = grow(EVEN)
    before = jax.tree.map(np.array, (params, grown))
    check(source, params, target, grown, growth)
    assert jax.tree.all(jax.tree.map(np.array_equal, before, jax.tree.map(np.asarray, (params, grown))))
