import contextlib
import dataclasses
from functools import partial
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import block_by_block, build, exact_products, largest, leaf_at, noisy, random_tokens

import growlm
from growlm import InputError, ModelConfig
from growlm.growth import (
    OPERATORS,
    ORDERS,
    PRESETS,
    RENAMED_OPTIONS,
    SHRINKS,
    claim,
    grow_state,
    hashed_options,
    layer_order,
    options_of,
    plan_growth,
    resolve,
)
from growlm.growth.effects import Effect
from growlm.models import check_params, declared
from growlm.models.layers import rms_norm
from growlm.state import TrainState
from growlm.training.optimizer import OptimizerConfig, ScaleByAgedAdamState, make_optimizer

SOURCE = ModelConfig(layers=3, embed=16, heads=4, kv_heads=2, head_dim=6, mlp=20, vocab=40, qkv_bias=True, qk_norm=True)
OPTIMIZER = make_optimizer(OptimizerConfig(), SOURCE)
OUTSIDE = ("embedding", "final_norm/scale", "head")

apply = jax.jit(growlm.apply, static_argnums=0)


@pytest.fixture(scope="module", autouse=True)
def short_compiles():
    with exact_products():
        yield


def deep(layers, config=SOURCE):
    return dataclasses.replace(config, layers=layers)


NUMBER = {weight.path: number for number, weight in enumerate(declared(SOURCE))}
LAYER, LEAF = 1 << 10, 1 << 14  # below them the place in a block, and 16 layers


def coded(config, offset=0.0):
    """Every value says which leaf, which layer and which place in it: whole numbers that float32 holds exactly."""

    def values(weight):
        shape = weight.block_shape(config)
        place = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
        assert place.size <= LAYER and config.layers <= 16
        code = place + LEAF * NUMBER[weight.path] + offset
        return np.stack([code + LAYER * layer for layer in range(config.layers)]) if weight.stacked else code

    return build(config, values)


def assert_grown_by(order, source, target, before, after):
    """Layer t of every block weight is layer order[t] of the source, all else is the source's, bit for bit."""
    check_params(target, after)
    assert len(order) == target.layers
    for weight in declared(target):
        old, new = leaf_at(before, weight.path), leaf_at(after, weight.path)
        assert new.dtype == old.dtype
        if weight.stacked:
            for layer, origin in enumerate(order):
                np.testing.assert_array_equal(new[layer], old[origin], err_msg=f"{weight.path} {layer}")
        else:
            np.testing.assert_array_equal(new, old, err_msg=weight.path)


def trained(config, optimizer=OPTIMIZER, params=None):
    """A state in the middle of training: non-zero counters, and moments that are coded like the weights."""
    params = coded(config) if params is None else params
    opt_state = optimizer.init(params)
    if optimizer is OPTIMIZER:
        ages = jax.tree.map(lambda age: age + 7, adam_of(opt_state).ages)
        opt_state = optax.tree_utils.tree_set(opt_state, ages=ages, mu=coded(config, 0.25), nu=coded(config, 0.5))
    # more tokens than 32 bits count
    return TrainState(params, opt_state, np.int64(11), np.int64(300e9), np.int64(23), jax.random.key(5))


def adam_of(opt_state):
    (adam,) = (part for part in opt_state if isinstance(part, ScaleByAgedAdamState))
    return adam


def age_of(opt_state):
    """The number of updates that every element has seen."""
    (age,) = {int(age) for ages in jax.tree.leaves(adam_of(opt_state).ages) for age in ages}
    return age


# Orders


@pytest.mark.parametrize(
    ("order", "source", "target", "layers"),
    [
        ("stack", 2, 8, [0, 1, 0, 1, 0, 1, 0, 1]),
        ("interleave", 2, 8, [0, 0, 0, 0, 1, 1, 1, 1]),
        ("stack", 3, 6, [0, 1, 2, 0, 1, 2]),
        ("interleave", 3, 6, [0, 0, 1, 1, 2, 2]),
        ("stack", 3, 7, [0, 1, 2, 0, 1, 2, 0]),
        ("interleave", 3, 7, [0, 0, 0, 1, 1, 2, 2]),
        ("stack", 3, 3, [0, 1, 2]),
        ("interleave", 3, 3, [0, 1, 2]),
        ("stack", 1, 3, [0, 0, 0]),
        ("stack_top", 3, 7, [0, 1, 2, 0, 1, 2, 2]),
        ("stack_top", 3, 8, [0, 1, 2, 0, 1, 2, 1, 2]),
        ("stack_top", 3, 3, [0, 1, 2]),
        ("top", 4, 6, [0, 1, 2, 3, 2, 3]),
        ("top", 3, 6, [0, 1, 2, 0, 1, 2]),
        ("top", 3, 3, [0, 1, 2]),
        ("middle", 6, 8, [0, 1, 2, 3, 2, 3, 4, 5]),  # blocks 01 23 45: the second
        ("middle", 4, 6, [0, 1, 0, 1, 2, 3]),  # blocks 01 23: the lower middle
        ("middle", 5, 6, [0, 1, 2, 2, 3, 4]),
        ("middle", 2, 4, [0, 1, 0, 1]),
        ("middle", 3, 3, [0, 1, 2]),
        ("centre", 4, 6, [0, 1, 2, 1, 2, 3]),  # layers 2 and 3 of 4
        ("centre", 5, 6, [0, 1, 2, 2, 3, 4]),  # layer 3 of 5
        ("centre", 5, 7, [0, 1, 2, 3, 2, 3, 4]),  # layers 3 and 4 of 5
        ("centre", 6, 9, [0, 1, 2, 3, 1, 2, 3, 4, 5]),  # layers 2, 3 and 4 of 6
        ("centre", 3, 6, [0, 1, 2, 0, 1, 2]),
        ("centre", 3, 3, [0, 1, 2]),
        ("overlap", 4, 6, [0, 1, 2, 1, 2, 3]),
        ("overlap", 4, 7, [0, 1, 2, 3, 1, 2, 3]),
        ("overlap", 3, 3, [0, 1, 2]),
        ("expand", 4, 6, [0, 1, 1, 2, 3, 3]),
        ("expand", 3, 4, [0, 1, 2, 2]),
        ("expand", 3, 6, [0, 0, 1, 1, 2, 2]),
        ("expand", 3, 3, [0, 1, 2]),
        ([2, 0, 1, 1], 3, 4, [2, 0, 1, 1]),
        ((0, 0), 1, 2, [0, 0]),
    ],
)
def test_layer_order_and_the_slices_that_come_of_it(order, source, target, layers):
    assert layer_order(order, source, target) == tuple(layers)
    before = coded(deep(source))
    after = growlm.grow(before, deep(source), deep(target), "direct", order=order)
    assert_grown_by(layers, deep(source), deep(target), before, after)
    # and the code of every value says so itself
    for path in NUMBER:
        value = leaf_at(after, path)
        np.testing.assert_array_equal(value // LEAF, NUMBER[path])
        if path not in OUTSIDE:
            found = value % LEAF // LAYER
            np.testing.assert_array_equal(found, np.reshape(layers, (-1,) + (1,) * (value.ndim - 1)) + 0 * value)


# The function of the grown model


def logits_of_the_blocks(params, order, tokens):
    """The logits of the source's blocks applied in that order, one after the other."""
    x = rms_norm(block_by_block(SOURCE, params, order, tokens), SOURCE.norm_eps) * params["final_norm"]["scale"]
    return (x @ params["head"]).reshape(*tokens.shape, -1)


def names_that_fit(source, target):
    """The named orders that grow so many layers to so many."""
    fits = []
    for name in sorted(ORDERS):
        with contextlib.suppress(InputError):
            layer_order(name, source, target)
            fits.append(name)
    return fits


@st.composite
def depths_and_orders(draw):
    source = draw(st.integers(1, 4))
    target = draw(st.integers(source, 5))
    every_list = st.lists(st.integers(0, source - 1), min_size=target, max_size=target)
    return source, target, draw(st.sampled_from(names_that_fit(source, target)) | every_list)


@settings(deadline=None, max_examples=15)
@given(depths_and_orders())
def test_grown_model_applies_the_sources_blocks_in_that_order(case):
    # arXiv 2405.15319, equation 1 and algorithm 1: the large model is M o M o ... o M
    source, target, order = case
    params, tokens = noisy(deep(source), seed=source), random_tokens(SOURCE, 2, 5)
    grown = growlm.grow(params, deep(source), deep(target), order=order)
    layers = layer_order(order, source, target)
    assert_grown_by(layers, deep(source), deep(target), params, grown)
    np.testing.assert_allclose(
        apply(deep(target), grown, tokens), logits_of_the_blocks(params, layers, tokens), atol=2e-5
    )


@pytest.mark.parametrize("order", ["stack", "interleave", [0, 1, 2]])
def test_growth_by_nothing_keeps_the_function_and_says_so(order):
    params, tokens = noisy(SOURCE), random_tokens(SOURCE, 2, 5)
    grown = growlm.grow(params, SOURCE, SOURCE, order=order)
    chex.assert_trees_all_equal(grown, params)
    np.testing.assert_array_equal(apply(SOURCE, grown, tokens), apply(SOURCE, params, tokens))
    assert claim(plan_growth("direct", SOURCE, SOURCE, order=order), SOURCE, SOURCE)[0]


@pytest.mark.parametrize(("layers", "order"), [(5, "stack"), (5, "interleave"), (3, [2, 1, 0])])
def test_copied_or_moved_layers_change_the_function_and_the_plan_says_so(layers, order):
    params, tokens = noisy(SOURCE), random_tokens(SOURCE, 2, 5)
    grown = growlm.grow(params, SOURCE, deep(layers), order=order)
    assert largest(apply(deep(layers), grown, tokens) - apply(SOURCE, params, tokens)) > 0.1
    claims, reason = claim(plan_growth("direct", SOURCE, deep(layers), order=order), SOURCE, deep(layers))
    assert not claims and "more than once" in reason


def test_default_is_g_stack():
    params = coded(SOURCE)
    chex.assert_trees_all_equal(
        growlm.grow(params, SOURCE, deep(6)), growlm.grow(params, SOURCE, deep(6), "direct", order="stack")
    )


def test_tied_model_grows_without_a_head():
    tied = dataclasses.replace(SOURCE, tie_embeddings=True, qkv_bias=False, qk_norm=False)
    before = coded(tied)
    after = growlm.grow(before, tied, deep(6, tied))
    assert "head" not in after
    assert_grown_by([0, 1, 2, 0, 1, 2], tied, deep(6, tied), before, after)


def test_growing_twice_is_growing_by_the_composed_order():
    params = coded(deep(2))
    twice = growlm.grow(growlm.grow(params, deep(2), deep(4)), deep(4), deep(8), order="interleave")
    once = growlm.grow(params, deep(2), deep(8), order=[0, 0, 1, 1, 0, 0, 1, 1])
    chex.assert_trees_all_equal(twice, once)


def test_growth_leaves_its_input_as_it_was():
    params = coded(SOURCE)
    growlm.grow(params, SOURCE, deep(6))
    chex.assert_trees_all_equal(params, coded(SOURCE))
    for how in ("reset", "map"):
        state = trained(SOURCE)
        grow_state(state, SOURCE, deep(6), OPTIMIZER, optimizer_state=how)
        chex.assert_trees_all_equal(state.params, coded(SOURCE))
        chex.assert_trees_all_equal(adam_of(state.opt_state).mu, coded(SOURCE, 0.25))
        assert age_of(state.opt_state) == 7


# What is refused, by grow and by grow_state alike

NOISE = ("noise", "old_weight_scale", "cancel", "noise_on", "noise_scale", "vocab")
NAMES = ("stack", "stack_top", "interleave", "top", "middle", "centre", "overlap", "expand")


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        (
            deep(6),
            {"operator": "dirct"},
            f"growth operator or preset must be one of {', '.join(sorted([*OPERATORS, *SHRINKS, *PRESETS]))}, "
            "got 'dirct'; did you mean 'direct'?",
        ),
        (
            deep(6),
            {"ordr": "stack"},
            f"option of direct must be one of {', '.join(sorted([*options_of('direct'), *NOISE]))}, got 'ordr'; "
            "did you mean 'order'?",
        ),
        (deep(6), {"noise": 1.2}, "noise must be >= 0 and <= 1, got 1.2"),
        (
            deep(6),
            {"order": "stak"},
            f"layer order must be one of {', '.join(sorted(NAMES))}, got 'stak'; did you mean 'stack'?",
        ),
        (deep(6), {"zero_residual": "no"}, "zero_residual must be true or false, got 'no'"),
        (deep(6), {"cancel": 1}, "cancel must be true or false, got 1"),
        (deep(6), {"split_imbalance": "0,5"}, "split_imbalance must be a number, got '0,5'"),
        (deep(6), {"noise": True}, "noise must be a number, got True"),
        (deep(6), {"order": 3}, f"order must be {', '.join(NAMES)} or a list of the source's layers, got 3"),
        (deep(6), {"order": None}, f"order must be {', '.join(NAMES)} or a list of the source's layers, got None"),
        (deep(6), {"order": [0, 1, 2]}, "order must be a list of 6 layers, as many as the target has, got 3"),
        (deep(6), {"order": []}, "order must be a list of 6 layers, as many as the target has, got 0"),
        (deep(7), {"order": "top"}, "the layers that order 'top' adds to 3 must be at most 3, got 4"),
        (deep(7), {"order": "centre"}, "the layers that order 'centre' adds to 3 must be at most 3, got 4"),
        (deep(7), {"order": "overlap"}, "the layers that order 'overlap' adds to 3 must be at most 3, got 4"),
        (deep(5), {"order": "middle"}, "the layers that order 'middle' adds to 3 must be a divisor of 3, got 2"),
        (deep(9), {"order": "expand"}, "the layers that order 'expand' adds to 3 must be a divisor of 3, got 6"),
        (deep(4), {"order": [0, 1, 2, 3]}, "order must be a list of the source's layers, 0 to 2, got 3"),
        (deep(4), {"order": [0, 1, 2, -1]}, "order must be a list of the source's layers, 0 to 2, got -1"),
        (deep(4), {"order": [0, True, 2, 0]}, "order must be a list of the source's layers, 0 to 2, got True"),
        (deep(4), {"order": [0, 1.0, 2, 0]}, "order must be a list of the source's layers, 0 to 2, got 1.0"),
        (deep(4), {"order": ["0", 1, 2, 0]}, "order must be a list of the source's layers, 0 to 2, got '0'"),
        (deep(2), {}, "the target's model.layers must be >= the source's, 3, got 2"),
        (
            dataclasses.replace(SOURCE, layers=6, embed=8),
            {},
            "the target's model.embed must be >= the source's, 16, got 8",
        ),
        (dataclasses.replace(SOURCE, vocab=39), {}, "the target's model.vocab must be >= the source's, 40, got 39"),
        (
            deep(6),
            {"select": "rndom"},
            "select must be one of cycle, random, repeat, got 'rndom'; did you mean 'random'?",
        ),
        (deep(6), {"split_imbalance": 1.0}, "split_imbalance must be >= 0 and < 1, got 1.0"),
        (
            dataclasses.replace(SOURCE, head_dim=4),
            {},
            "the target's model.head_dim must be >= the source's, 6, got 4",
        ),
        (
            dataclasses.replace(SOURCE, layers=6, tie_embeddings=True),
            {},
            "the target's model.tie_embeddings must be the source's, False, which no growth changes, got True",
        ),
    ],
)
def test_growth_that_does_not_fit_is_refused(target, options, message):
    with pytest.raises(InputError) as error:
        growlm.grow(coded(SOURCE), SOURCE, target, **options)
    assert str(error.value) == message
    with pytest.raises(InputError) as error:
        grow_state(trained(SOURCE), SOURCE, target, OPTIMIZER, **options)
    assert str(error.value) == message


def test_parameters_that_are_not_the_sources_are_refused():
    cases = [
        (coded(deep(2)), "the shape of parameter 'blocks/attn_norm/scale' must be (3, 16) for this model, got (2, 16)"),
        (coded(SOURCE) | {"lm_head": jnp.zeros(3)}, "a parameter of this model must be one of embedding, "),
        (
            {k: v for k, v in coded(SOURCE).items() if k != "head"},
            "parameter 'head' must be in the tree of this model, got none",
        ),
        (
            coded(SOURCE) | {"embedding": jnp.zeros((41, 16))},
            "the shape of parameter 'embedding' must be (40, 16) for this model, got (41, 16)",
        ),
    ]
    for params, message in cases:
        with pytest.raises(InputError) as error:
            growlm.grow(params, SOURCE, deep(6))
        assert message in str(error.value)
        for how in ("reset", "map"):
            with pytest.raises(InputError) as error:
                state = dataclasses.replace(trained(SOURCE), params=params)
                grow_state(state, SOURCE, deep(6), OPTIMIZER, optimizer_state=how)
            assert message in str(error.value)


# --- Compiled once, and options by their old names -------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Counted(Effect):
    """Counts how often a growth is traced."""

    name = "counted"
    traces: ClassVar[list] = []

    def change(self, growth, target, weight, value, grown, draw):
        self.traces.append(weight.path)
        return grown


def test_equal_growths_are_compiled_once(monkeypatch):
    def counted(source, target, key=None, *, order="stack"):
        return dataclasses.replace(plan_growth("direct", source, target, key, order=order), effects=(Counted(),))

    monkeypatch.setitem(OPERATORS, "counted", counted)
    monkeypatch.setattr(Counted, "traces", [])

    def traced(grow):
        Counted.traces.clear()
        grow()
        return len(Counted.traces)

    weights, state = len(list(declared(SOURCE))), trained(SOURCE)
    for grow in (
        lambda **options: growlm.grow(coded(SOURCE), SOURCE, deep(6), "counted", **options),
        lambda **options: grow_state(state, SOURCE, deep(6), OPTIMIZER, "counted", **options),
    ):
        first = traced(grow)
        assert first >= weights and traced(grow) == 0
        assert traced(partial(grow, order="interleave")) == first
    seeds = [growlm.grow(coded(SOURCE), SOURCE, deep(6), "random", key=jax.random.key(seed)) for seed in (0, 0, 1)]
    chex.assert_trees_all_equal(*seeds[:2])
    assert not np.array_equal(leaf_at(seeds[0], "blocks/mlp/gate")[-1], leaf_at(seeds[2], "blocks/mlp/gate")[-1])


def test_a_mask_schedule_has_at_least_a_token():
    def plan(tokens):
        return plan_growth("random", SOURCE, deep(6), jax.random.key(0), mask_tokens=tokens)

    assert [[effect.tokens for effect in plan(tokens).effects] for tokens in (1e6, 2.5, 0)] == [[1_000_000], [2], []]
    for tokens in (0.5, -1, float("inf"), float("nan")):
        with pytest.raises(InputError, match="mask_tokens must be 0 or at least 1, got"):
            plan(tokens)


def test_options_are_read_by_their_names_until_0_3():
    for operator, old in {
        "direct": {"silent": True, "uneven": 0.5, "keep": 0.9},
        "lemon": {"silent": False, "uneven": 0.1},
        "random": {"ramp_tokens": 10},
        "learn": {"peak": 1e-3, "final": 1e-4},
    }.items():
        new = {RENAMED_OPTIONS[name]: value for name, value in old.items()}
        assert resolve(operator, old) == resolve(operator, new)
        assert hashed_options(new) == old and hashed_options(old) == old
    before, after = (
        growlm.grow(coded(SOURCE), SOURCE, deep(6), **{name: True}) for name in ("silent", "zero_residual")
    )
    chex.assert_trees_all_equal(before, after)
    with pytest.raises(InputError, match="option zero_residual must be given once"):
        growlm.grow(coded(SOURCE), SOURCE, deep(6), silent=True, zero_residual=True)


def test_an_operator_of_ones_own_may_have_an_option_by_an_old_name(monkeypatch):
    monkeypatch.setitem(OPERATORS, "own", lambda source, target, key=None, *, silent=False: plan_growth(
        "direct", source, target, key, zero_residual=silent
    ))  # fmt: skip
    assert plan_growth("own", SOURCE, deep(6), silent=True).zero_residual_layers == [3, 4, 5]
