"""Every published system against an example worked out by hand, and its claim against the function it computes."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from trees import build, exact_products, leaf_at, noisy

import growlm
from growlm import InputError, ModelConfig
from growlm.growth import PARTIAL, PRESETS, connection_rate, grow_state, plan_growth, resolve
from growlm.growth.depth import partial_order
from growlm.growth.plan import provenance_of, slice_mask
from growlm.models import LLAMA, declared, next_token_loss
from growlm.state import TrainState

exact = pytest.fixture(autouse=True, scope="module")(exact_products.__wrapped__)

KEY = jax.random.key(3)
TINY = ModelConfig(layers=1, embed=2, heads=1, kv_heads=1, head_dim=2, mlp=2, vocab=3)
SILENT = ("blocks/attn/out", "blocks/mlp/down")
LAYER, LEAF = 1 << 8, 1 << 14
NUMBER = {weight.path: number for number, weight in enumerate(declared(TINY))}


def sized(**sizes):
    return dataclasses.replace(TINY, **sizes)


def grow(name, params, source, target, **overrides):
    plan = resolve(name, overrides)
    return growlm.grow(params, source, target, plan.operator, KEY, **plan.options)


def coded(config):
    """Every value is 16384 leaf + 256 layer + place + 1, which says where it came from; none is zero."""

    def values(weight):
        shape = weight.block_shape(config)
        code = np.arange(np.prod(shape)).reshape(shape) + LEAF * NUMBER[weight.path] + 1
        return np.stack([code + LAYER * layer for layer in range(config.layers)]) if weight.stacked else code

    return build(config, values)


def filled(config, **matrices):
    """Ones, but for the named leaves (slashes as double underscores), which are as they are given."""
    given = {name.replace("__", "/"): value for name, value in matrices.items()}
    return build(config, lambda weight: np.broadcast_to(given.get(weight.path, 1.0), weight.shape(config)))


def state_of(params, moments=None):
    optimizer = optax.scale_by_adam()
    opt_state = optimizer.init(params)
    if moments is not None:
        opt_state = opt_state._replace(count=jnp.int32(7), mu=moments, nu=jax.tree.map(jnp.square, moments))
    place = np.int64(0)
    return TrainState(params, opt_state, place, place, place, KEY), optimizer


# Depth: which layer every layer copies, and which are silent


SIX = [0, 1, 2, 3, 4, 5]
DEPTH = [
    ("g_stack", 6, SIX + SIX + SIX + SIX, []),
    ("g_stack", 2, [0, 1, 0, 1, 0, 1], []),
    ("interpose", 3, [0, 0, 1, 1, 2, 2], []),
    ("stackbert", 3, [0, 1, 2, 0, 1, 2], []),
    ("gradual_stacking", 4, [0, 1, 2, 3, 2, 3], []),
    ("mslt", 6, [0, 1, 2, 3, 4, 5, 3, 4, 5], []),
    ("bert2bert_fpi", 3, [0, 1, 2, 0, 1, 2, 1, 2], []),
    ("bert2bert_aki", 3, [0, 1, 2, 0, 1, 2, 2], []),
    ("lemon", 2, [0, 0, 1, 1], [1, 3]),
    ("staged_training", 3, [0, 0, 1, 1, 2, 2], [1, 3, 5]),
    ("llama_pro", 4, [0, 1, 1, 2, 3, 3], [2, 5]),
    ("llama_pro", 4, [0, 1, 2, 3, 3], [4]),
    ("solar", 4, [0, 1, 2, 1, 2, 3], []),
    ("midas", 6, [0, 1, 2, 3, 2, 3, 4, 5], []),
    ("midas", 8, [0, 1, 2, 3, 2, 3, 4, 5, 6, 7], []),  # blocks 01 23 45 67
    ("lidas", 8, [0, 1, 2, 3, 4, 3, 4, 5, 6, 7], []),  # layers 4 and 5 of 8
    ("one_layer", 1, [0, 0, 0, 0], []),
    ("partial_123456x4", 6, SIX * 4, []),
    ("partial_12-3456x5-56", 6, [0, 1] + [2, 3, 4, 5] * 5 + [4, 5], []),
    ("partial_12-345x7-6", 6, [0, 1] + [2, 3, 4] * 7 + [5], []),
    ("partial_123-456x7", 6, [0, 1, 2] + [3, 4, 5] * 7, []),
    ("partial_1234-56x10", 6, [0, 1, 2, 3] + [4, 5] * 10, []),
    ("partial_12-34x10-56", 6, [0, 1] + [2, 3] * 10 + [4, 5], []),
    ("partial_1-234x7-56", 6, [0] + [1, 2, 3] * 7 + [4, 5], []),
    ("partial_123x7-456", 6, [0, 1, 2] * 7 + [3, 4, 5], []),
]


@pytest.mark.parametrize(("name", "layers", "order", "silent"), DEPTH, ids=lambda value: str(value)[:24])
def test_every_layer_is_the_one_worked_out_by_hand(name, layers, order, silent):
    source, target = sized(layers=layers), sized(layers=len(order))
    after = grow(name, coded(source), source, target)
    for path, number in NUMBER.items():
        leaf, found = leaf_at(after, path), leaf_at(coded(source), path)
        if not path.startswith("blocks/"):
            np.testing.assert_array_equal(leaf, found)
            continue
        for layer, origin in enumerate(order):
            if layer in silent and path in SILENT:
                assert not leaf[layer].any(), (path, layer)
                continue
            assert set((leaf[layer] // LEAF).ravel()) == {number}
            assert set((leaf[layer] % LEAF // LAYER).ravel()) == {origin}, (path, layer)
            np.testing.assert_array_equal(leaf[layer], found[origin])


def test_solar_is_the_first_24_and_the_last_24_of_32_layers():
    order = plan_growth("direct", sized(layers=32), sized(layers=48), **PRESETS["solar"].options).order
    assert order == (*range(24), *range(8, 32))


def test_zero_layer_grows_every_layer_from_initial_values():
    source, target = sized(layers=0, embed=24, mlp=64), sized(layers=5, embed=24, mlp=64)
    before = noisy(source)
    after = grow("zero_layer", before, source, target)
    for path in ("embedding", "final_norm/scale", "head"):
        np.testing.assert_array_equal(leaf_at(after, path), leaf_at(before, path))
    assert (leaf_at(after, "blocks/mlp_norm/scale") == 1).all()
    gate = leaf_at(after, "blocks/mlp/gate")
    assert np.std(gate) == pytest.approx(np.sqrt(2 / 5 / 24), rel=0.05)
    assert not np.array_equal(gate[0], gate[1])


# What trains, and the schedules


def test_llama_pro_trains_its_copies_and_nothing_else():
    assert resolve("llama_pro").train == "new"
    growth = plan_growth("zero", sized(layers=4), sized(layers=6), KEY, **PRESETS["llama_pro"].options)
    provenance = provenance_of(growth)
    new = [False, False, True, False, False, True]
    for path, weight in LLAMA.weights.items():
        mask = np.asarray(slice_mask(weight, provenance))
        assert mask.any() == path.startswith("blocks/"), path
        if mask.any():
            layers = mask.reshape(6, -1)
            assert layers.all(1).tolist() == layers.any(1).tolist() == new, path


@pytest.mark.parametrize(
    ("name", "layers", "depths"),
    [
        ("g_stack", 24, [6, 24]),
        ("interpose", 24, [12, 24]),
        ("stackbert", 12, [3, 6, 12]),
        ("gradual_stacking", 24, [4, 8, 12, 16, 20, 24]),
        ("midas", 24, [4, 8, 12, 16, 20, 24]),
        ("lidas", 12, [2, 4, 6, 8, 10, 12]),
        ("mslt", 12, [3, 6, 9, 12, 12]),
        ("bert2bert_fpi", 12, [6, 12]),
        ("bert2bert_aki", 12, [6, 12]),
        ("bert2bert_two_stage", 12, [6, 12, 12]),
        ("llama_pro", 40, [32, 40]),
        ("llama_pro", 12, [9, 12]),
        ("solar", 48, [32, 48]),
        ("zero_layer", 7, [0, 7]),
        ("one_layer", 7, [1, 7]),
        ("partial_12-345x7-6", 24, [6, 24]),
        ("hypercloning", 7, [7, 7]),
    ],
)
def test_depths_of_the_stages(name, layers, depths):
    target = ModelConfig(layers=layers, embed=12, heads=6, kv_heads=6, head_dim=2, mlp=12, vocab=5)
    stages = PRESETS[name].stages(target)
    assert [stage.model.layers for stage in stages] == depths
    assert stages[-1].model == target
    assert all(stage.frozen_layers == 0 for stage in stages) or name == "mslt"


def test_mslt_freezes_what_is_below_the_new_layers_until_its_last_stage():
    stages = PRESETS["mslt"].stages(sized(layers=12))
    assert [(stage.model.layers, stage.frozen_layers) for stage in stages] == [(3, 0), (6, 3), (9, 6), (12, 9), (12, 0)]


def test_aki_trains_sub_models_in_the_first_stage_after_growth_and_then_all():
    target = sized(layers=12, embed=6, heads=3, kv_heads=3, mlp=6)
    stages = PRESETS["bert2bert_two_stage"].stages(target)
    assert [(stage.model.layers, stage.submodel_layers, stage.frozen_layers) for stage in stages] == [
        (6, 0, 0),
        (12, 4, 0),
        (12, 0, 0),
    ]
    assert [stage.model.embed for stage in stages] == [4, 6, 6] and stages[1].model == target
    others = [preset for preset in PRESETS.values() if preset.name != "bert2bert_two_stage"]
    assert not any(stage.submodel_layers for preset in others for stage in preset.stages(divisible(preset)))
    params = coded(target)
    after = grow("bert2bert_two_stage", params, target, target)
    for path in NUMBER:
        np.testing.assert_array_equal(leaf_at(after, path), leaf_at(params, path))


def divisible(preset):
    return preset.example or sized(layers=preset.layers, embed=12, heads=6, kv_heads=6, mlp=12)


def test_widths_of_the_stages():
    target = ModelConfig(layers=12, embed=768, heads=12, kv_heads=6, head_dim=64, mlp=3072, vocab=5)
    ligo, same = (stage.model for stage in PRESETS["ligo"].stages(target))
    assert ligo == dataclasses.replace(target, layers=6, embed=512, heads=8, kv_heads=4, mlp=2048)
    half, _ = (stage.model for stage in PRESETS["hypercloning"].stages(target))
    assert half == dataclasses.replace(target, embed=384, heads=6, kv_heads=3, mlp=1536)
    assert same == target


def test_a_target_that_the_schedule_does_not_divide_is_refused():
    with pytest.raises(InputError) as error:
        PRESETS["stackbert"].stages(sized(layers=6))
    assert str(error.value) == "model.layers must be an integer in every stage of preset 'stackbert', got 1.5, 3, 6"
    with pytest.raises(InputError) as error:
        PRESETS["bert2bert_two_stage"].stages(sized(layers=8, embed=6, heads=3, kv_heads=3, mlp=6))
    assert str(error.value) == "model.layers must be a multiple of 3 for preset 'bert2bert_two_stage', got 8"
    with pytest.raises(
        InputError, match=r"model\.heads must be an integer in every stage of preset 'hypercloning', got 0\.5, 1"
    ):
        PRESETS["hypercloning"].stages(TINY)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_every_stage_can_be_grown_into_the_next(preset):
    target = preset.example or ModelConfig(preset.layers, embed=12, heads=6, kv_heads=6, head_dim=2, mlp=18, vocab=5)
    for before, after in itertools.pairwise(preset.stages(target)):
        growth = plan_growth(preset.operator, before.model, after.model, KEY, **preset.options)
        assert len(growth.order) == after.model.layers
        new = [layer for layer, added in enumerate(growth.maps["layers"].added) if added]
        assert after.frozen_layers == 0 or new == [*range(after.frozen_layers, after.model.layers)]


def test_connection_rates_of_the_partial_stackings():
    rates = [connection_rate(partial_order(pattern)) for pattern in PARTIAL]
    np.testing.assert_allclose(np.multiply(rates, 23), [20, 18, 17, 17, 14, 14, 17, 17], rtol=1e-12)
    printed = [87.0, 78.3, 74.0, 74.0, 60.7, 60.7, 74.0, 74.0]  # arXiv 2405.15319, rounded as there
    assert list(PARTIAL.values()) == printed
    np.testing.assert_allclose(np.multiply(rates, 100), printed, atol=0.2)


# Width: matrices worked out by hand, in x out


W = np.array([[1.0, 2], [3, 4]])
WIDE = sized(embed=4, heads=2, kv_heads=2, mlp=4)


def cloned(name):
    """TINY grown to twice its width, from a gate W, an embedding, gains, a head and an out-projection that show it."""
    params = filled(
        TINY,
        embedding=[[5, 6], [7, 8], [9, 10]],
        blocks__mlp__gate=[W],
        blocks__attn__query=[W[:, None]],
        blocks__attn__out=[W[None]],
        blocks__mlp_norm__scale=[[7, 8]],
        final_norm__scale=[3, 5],
        head=[[2, 4, 6], [8, 10, 12]],
    )
    after = grow(name, params, TINY, WIDE)
    np.testing.assert_array_equal(after["embedding"], [[5, 6, 5, 6], [7, 8, 7, 8], [9, 10, 9, 10]])
    np.testing.assert_array_equal(after["blocks"]["mlp_norm"]["scale"], [[7, 8, 7, 8]])
    np.testing.assert_array_equal(after["final_norm"]["scale"], [3, 5, 3, 5])
    return after


def test_hypercloning_puts_w_over_2_in_all_four_places():
    after = cloned("hypercloning")
    half = [[0.5, 1, 0.5, 1], [1.5, 2, 1.5, 2], [0.5, 1, 0.5, 1], [1.5, 2, 1.5, 2]]
    np.testing.assert_array_equal(after["blocks"]["mlp"]["gate"][0], half)
    np.testing.assert_array_equal(after["blocks"]["attn"]["query"][0].reshape(4, 4), half)
    np.testing.assert_array_equal(after["blocks"]["attn"]["out"][0].reshape(4, 4), half)
    np.testing.assert_array_equal(after["head"], [[1, 2, 3], [4, 5, 6], [1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize("name", ["hypercloning_diagonal", "staged_training"])
def test_diagonal_cloning_puts_w_twice_on_the_diagonal_and_halves_the_head(name):
    after = cloned(name)
    diagonal = [[1, 2, 0, 0], [3, 4, 0, 0], [0, 0, 1, 2], [0, 0, 3, 4]]
    np.testing.assert_array_equal(after["blocks"]["mlp"]["gate"][0], diagonal)
    np.testing.assert_array_equal(after["blocks"]["attn"]["query"][0].reshape(4, 4), diagonal)
    np.testing.assert_array_equal(after["blocks"]["attn"]["out"][0].reshape(4, 4), diagonal)
    np.testing.assert_array_equal(after["head"], [[1, 2, 3], [4, 5, 6], [1, 2, 3], [4, 5, 6]])


def test_hypercloning_noise_cancels_between_the_copies():
    after = cloned("hypercloning_noisy")
    gate = np.asarray(after["blocks"]["mlp"]["gate"][0])
    np.testing.assert_allclose(gate[:2] + gate[2:], [[1, 2, 1, 2], [3, 4, 3, 4]], rtol=1e-6)
    assert np.abs(gate[:2] - gate[2:]).min() > 0


def test_hypercloning_noise_is_10_decibel_of_the_initialisation_over_the_root_of_2():
    source, target = sized(embed=64, mlp=64), sized(embed=128, mlp=128)
    gate = leaf_at(grow("hypercloning_noisy", filled(source), source, target), "blocks/mlp/gate")
    wanted = np.sqrt(0.1) * LLAMA.weights["blocks/mlp/gate"].std(target) / np.sqrt(2)
    assert np.std(gate - 0.5) == pytest.approx(wanted, rel=0.03)


def test_staged_training_halves_first_moments_and_quarters_second_ones():
    state, optimizer = state_of(filled(TINY), filled(TINY, blocks__mlp__gate=[W], final_norm__scale=[3, 5], head=6.0))
    plan = resolve("staged_training")
    after, _ = grow_state(state, TINY, WIDE, optimizer, plan.operator, plan.optimizer_state, **plan.options)
    mu, nu = after.opt_state.mu, after.opt_state.nu
    half = [[0.5, 1, 0.5, 1], [1.5, 2, 1.5, 2], [0.5, 1, 0.5, 1], [1.5, 2, 1.5, 2]]
    np.testing.assert_array_equal(mu["blocks"]["mlp"]["gate"][0], half)  # off the diagonal too
    np.testing.assert_array_equal(nu["blocks"]["mlp"]["gate"][0], np.square(half))
    np.testing.assert_array_equal(mu["final_norm"]["scale"], [1.5, 2.5, 1.5, 2.5])
    np.testing.assert_array_equal(mu["head"], np.full((4, 3), 6.0))
    assert after.opt_state.count == 7


def test_gradients_on_and_off_the_diagonal_are_the_mapped_ones():
    source = ModelConfig(layers=1, embed=6, heads=2, kv_heads=1, head_dim=4, mlp=5, vocab=7)
    target = dataclasses.replace(source, embed=12, heads=4, kv_heads=2, mlp=10)
    tokens = jnp.asarray(np.random.default_rng(0).integers(7, size=(2, 9)), jnp.int32)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), noisy(source))
        gradient = jax.jit(jax.grad(partial(next_token_loss, dtype=jnp.float64), argnums=1), static_argnums=0)
        state, optimizer = state_of(params, gradient(source, params, tokens))
        plan = resolve("staged_training")
        after, _ = grow_state(state, source, target, optimizer, plan.operator, plan.optimizer_state, **plan.options)
        own = gradient(target, after.params, tokens)
        for mapped, found in zip(jax.tree.leaves(after.opt_state.mu), jax.tree.leaves(own), strict=True):
            np.testing.assert_allclose(mapped, found, atol=1e-12)


def test_lemon_reads_copies_in_unequal_parts_of_one():
    params = filled(TINY, blocks__mlp__gate=[W], embedding=[[5, 6]] * 3)
    after = grow("lemon", params, TINY, WIDE)
    np.testing.assert_array_equal(after["embedding"], [[5, 6, 5, 6]] * 3)
    gate = np.asarray(after["blocks"]["mlp"]["gate"][0])
    np.testing.assert_allclose(gate[:2] + gate[2:], [[1, 2, 1, 2], [3, 4, 3, 4]], rtol=1e-6)
    part = gate / np.tile(W, (2, 2))  # of each row: one part for all that the row is read by
    np.testing.assert_allclose(part, np.broadcast_to(part[:, :1], part.shape), rtol=1e-6)
    assert np.abs(part[:2] - 0.5).min() > 1e-3 and part.min() >= 0.25


def test_fpi_divides_by_the_number_of_copies_and_copies_norms():
    source, target = TINY, sized(embed=3)
    params = filled(source, embedding=[[5, 6]] * 3, blocks__mlp__gate=[W], blocks__mlp_norm__scale=[[7, 8]])
    after = grow("bert2bert_fpi", params, source, target)
    by_hand = {  # which coordinate the third one copies, drawn at random: its row of the embedding, gains, gate
        5: ([7, 8, 7], [[0.5, 1], [3, 4], [0.5, 1]]),
        6: ([7, 8, 8], [[1, 2], [1.5, 2], [1.5, 2]]),
    }
    row = after["embedding"][0].tolist()
    assert row[:2] == [5, 6]
    gains, gate = by_hand[row[2]]
    np.testing.assert_array_equal(after["blocks"]["mlp_norm"]["scale"][0], gains)
    np.testing.assert_array_equal(after["blocks"]["mlp"]["gate"][0], gate)


def test_fpi_copies_coordinates_at_random():
    index = [
        plan_growth("direct", sized(embed=8), sized(embed=24), jax.random.key(seed), **PRESETS["bert2bert_fpi"].options)
        .maps["stream"]
        .write.index.tolist()
        for seed in (0, 1)
    ]
    assert index[0][:8] == index[1][:8] == [*range(8)]
    assert index[0][8:] != index[1][8:] and set(index[0]) == set(range(8))


def test_aki_takes_added_columns_from_the_next_layer():
    source, target = sized(layers=2), sized(layers=2, embed=4, mlp=4)
    two = [W, 10 * W]
    gains = [[7, 8], [9, 10]]
    params = filled(source, blocks__mlp__gate=two, blocks__mlp__down=two, blocks__mlp_norm__scale=gains)
    after = grow("bert2bert_aki", params, source, target, select="cycle")
    first = [[0.5, 1, 5, 10], [1.5, 2, 15, 20], [0.5, 1, 5, 10], [1.5, 2, 15, 20]]
    last = [[5, 10, 5, 10], [15, 20, 15, 20], [5, 10, 5, 10], [15, 20, 15, 20]]
    np.testing.assert_array_equal(after["blocks"]["mlp"]["gate"], [first, last])
    np.testing.assert_array_equal(after["blocks"]["mlp"]["down"], [first, last])
    np.testing.assert_array_equal(after["blocks"]["mlp_norm"]["scale"], [[7, 8, 7, 8], [9, 10, 9, 10]])


def test_aki_in_depth_takes_the_next_layer_of_the_source():
    source, target = sized(layers=2), sized(layers=5, mlp=3)
    params = filled(source, blocks__mlp__gate=[W, 10 * W])
    gate = leaf_at(grow("bert2bert_aki", params, source, target, select="cycle"), "blocks/mlp/gate")
    assert gate[:, 0].tolist() == [[1, 2, 10], [10, 20, 10], [1, 2, 10], [10, 20, 10], [10, 20, 10]]


def test_ligo_is_the_stack_at_its_start_in_depth():
    source, target = sized(layers=2), sized(layers=5)
    after = grow("ligo", coded(source), source, target, steps=0)
    found = leaf_at(after, "blocks/mlp/gate") % LEAF // LAYER
    assert found[:, 0, 0].tolist() == [0, 1, 0, 1, 0]


def test_ligo_grows_all_that_lies_on_the_model_width_by_one_matrix():
    source, target = sized(vocab=2), sized(embed=5, vocab=2)
    gain, head, down = np.array([7.0, 8]), np.array([[2.0, 3], [5, 7]]), np.array([[2.0, 1], [6, 3]])
    params = filled(
        source,
        embedding=np.eye(2),
        blocks__mlp__gate=[W],
        blocks__mlp__down=[down],
        blocks__mlp_norm__scale=[gain],
        head=head,
    )
    after = grow("ligo", params, source, target, steps=0)
    width = leaf_at(after, "embedding").T  # B, as the embedding is I B^T
    np.testing.assert_array_equal(width[:2], np.eye(2))
    assert np.abs(width[2:]).min() > 0
    blocks = after["blocks"]
    np.testing.assert_allclose(blocks["mlp"]["gate"][0], width @ W, rtol=1e-6)
    np.testing.assert_allclose(blocks["mlp"]["down"][0], down @ width.T, rtol=1e-6)
    np.testing.assert_allclose(blocks["mlp_norm"]["scale"][0], width @ gain, rtol=1e-6)
    np.testing.assert_allclose(after["head"], width @ head, rtol=1e-6)


def test_ligo_trains_for_100_steps_unless_it_is_told_otherwise():
    assert plan_growth("learn", TINY, TINY, KEY, **resolve("ligo").options).learner.steps == 100
    assert resolve("ligo", {"steps": 5}).options == {"steps": 5}


def test_msg_keeps_the_old_block_and_gives_new_structure_zero_moments():
    moments = filled(TINY, blocks__mlp__gate=[W])
    state, optimizer = state_of(filled(TINY, blocks__mlp__gate=[W]), moments)
    plan = resolve("msg")
    target = sized(layers=2, embed=4, mlp=3)
    after, report = grow_state(state, TINY, target, optimizer, plan.operator, plan.optimizer_state, **plan.options)
    gate, mu = (leaf_at(tree, "blocks/mlp/gate") for tree in (after.params, after.opt_state.mu))
    np.testing.assert_array_equal(gate[0, :2, :2], W)
    assert np.abs(gate[0, 2:]).min() > 0 and np.abs(gate[0, :, 2]).min() > 0 and np.abs(gate[1]).min() > 0
    np.testing.assert_array_equal(mu, [[[1, 2, 0], [3, 4, 0], [0, 0, 0], [0, 0, 0]], np.zeros((4, 3))])
    assert after.opt_state.count == 7
    assert report["masks"] == {"tokens": 10_485_760_000, "in_turn": True, "whole_blocks": True, "norm": "isometry"}


def test_msg_takes_a_ramp_of_ones_own():
    assert resolve("msg", {"mask_tokens": 5}).options == PRESETS["msg"].options | {"mask_tokens": 5}
    assert resolve("msg").options["mask_tokens"] == 5000 * 2_097_152


def test_shrink_zero_pad_perturb_is_just_that():
    source, target = sized(embed=64, mlp=64), sized(embed=128, mlp=96)
    params = filled(source, blocks__mlp__gate=3.0, blocks__mlp_norm__scale=7.0)
    after = grow("szp", params, source, target)
    gate = leaf_at(after, "blocks/mlp/gate")[0]
    padded = np.zeros((128, 96))
    padded[:64, :64] = 0.4 * 3
    assert np.std(gate - padded) == pytest.approx(LLAMA.weights["blocks/mlp/gate"].std(target), rel=0.03)
    assert abs(np.mean(gate - padded)) < 0.005
    np.testing.assert_array_equal(after["blocks"]["mlp_norm"]["scale"][0], [7.0] * 64 + [0.0] * 64)


# Names


def test_an_operator_resolves_to_itself():
    plan = resolve("zero", {"norm": "gain"})
    assert dataclasses.astuple(plan) == ("zero", {"norm": "gain"}, "reset", "all")


def test_options_given_override_the_presets_and_leave_the_table_alone():
    before = dict(PRESETS["lemon"].options)
    plan = resolve("lemon", {"split_imbalance": 0.1, "noise": 0.2})
    assert plan.options == {"order": "interleave", "zero_residual": True, "split_imbalance": 0.1, "noise": 0.2}
    plan.options["order"] = "stack"
    assert PRESETS["lemon"].options == before


def test_optimizer_states_of_the_presets():
    mapped = {name: resolve(name).optimizer_state for name in PRESETS if resolve(name).optimizer_state != "reset"}
    mapping = "mup_upscaling", "msg", "staged_training", "midas", "lidas", "one_layer", "expert_upcycling"
    moments = dict.fromkeys(mapping, "map")
    kept = dict.fromkeys(("untied_grow", "loop_grow", "deep_vanilla_grow", "sparkling"), "keep_old")
    assert mapped == moments | kept | {"zero_layer": "map_aged"}


def test_unknown_names_are_refused_with_the_nearest_one():
    with pytest.raises(
        InputError, match=r"growth operator or preset must be one of .* got 'hypercloning_noise'; did you mean 'hyper"
    ):
        resolve("hypercloning_noise")
    with pytest.raises(
        InputError, match=r"growth operator or preset must be one of .* got 'dirct'; did you mean 'direct'"
    ):
        resolve("dirct")


def test_zero_residual_copies_and_aki_exclude_each_other():
    with pytest.raises(InputError, match="aki and zero_residual exclude each other"):
        plan_growth("direct", TINY, TINY, aki=True, zero_residual=True)
