"""G_learn: the maps by hand, where they start, what training them does; and noise, which any operator may mix in."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import exact_products, leaf_at, noisy, random_tokens

import growlm
from growlm.growth import plan_growth
from growlm.growth.expand import expand_params, grow_params, number_of
from growlm.growth.plan import DRAW_NOISE, provenance_of, slice_mask
from growlm.growth.streaming import grow_part
from growlm.models import LLAMA, declared, next_token_loss, parameter_count

exact = pytest.fixture(autouse=True, scope="module")(exact_products.__wrapped__)

SOURCE = growlm.ModelConfig(layers=3, embed=8, heads=4, kv_heads=2, head_dim=4, mlp=10, vocab=19, qkv_bias=True)
DEEP = dataclasses.replace(SOURCE, layers=5)
BOTH = dataclasses.replace(DEEP, embed=13, heads=6, kv_heads=3, mlp=17)
KEY = jax.random.key(3)


def start(target):
    """The growth that learns, as it begins, and its matrices by axis."""
    growth = plan_growth("learn", SOURCE, target, KEY, steps=0)
    return growth, growth.learner.initial()


def test_a_plan_has_shapes_and_draws_nothing():
    growth, matrices = start(BOTH)
    planned = jax.tree.leaves(growth.learner.matrices(growth))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in planned)
    assert [leaf.shape for leaf in planned] == [leaf.shape for leaf in jax.tree.leaves(matrices)]


def batches(count, config=SOURCE):
    return [random_tokens(config, 2, 9, seed=seed) for seed in range(count)]


@pytest.mark.parametrize("layers", [3, 5, 6, 7])
def test_in_depth_it_starts_exactly_at_the_stack(layers):
    target = dataclasses.replace(SOURCE, layers=layers)
    params = noisy(SOURCE)
    learned = growlm.grow(params, SOURCE, target, "learn", key=KEY, steps=0)
    stacked = growlm.grow(params, SOURCE, target, order="stack")
    jax.tree.map(np.testing.assert_array_equal, learned, stacked)


def test_in_width_it_starts_at_the_identity_and_noise_of_variance_one_over_new():
    wide = dataclasses.replace(SOURCE, embed=400, mlp=600)
    _, matrices = start(wide)
    for name, old, new in (("stream", 8, 400), ("mlp", 10, 600)):
        np.testing.assert_array_equal(matrices[name][:old], np.eye(old))
        assert np.std(matrices[name][old:]) == pytest.approx(new**-0.5, rel=0.05)
    np.testing.assert_array_equal(matrices["heads"].reshape(16, 16), np.eye(16))
    grown = growlm.grow(noisy(SOURCE), SOURCE, BOTH, "learn", key=KEY, steps=0)
    for path, kept in (("blocks/mlp/gate", (slice(3), slice(8), slice(10))), ("embedding", (slice(19), slice(8)))):
        np.testing.assert_allclose(leaf_at(grown, path)[kept], leaf_at(noisy(SOURCE), path), rtol=1e-6)


def random_matrices():
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda matrix: jnp.asarray(rng.standard_normal(matrix.shape), jnp.float32), start(BOTH)[1])


def test_every_weight_is_ligos_formula():
    """arXiv 2405.15319, A.1.2, in rows: W_Q' = B_Q W_Q B_emb^T, W_O' = B_emb W_O B_V^T, norms B_emb mu, and so on."""
    matrices, old = random_matrices(), jax.tree.map(np.asarray, noisy(SOURCE))
    growth = start(BOTH)[0]
    growth = growth.learner.with_matrices(growth, matrices)
    grown = jax.jit(lambda p: expand_params(growth, SOURCE, p))(noisy(SOURCE))
    emb, mlp = np.asarray(matrices["stream"]), np.asarray(matrices["mlp"])
    axes = {"query": "heads", "key": "key_heads", "value": "value_heads"}
    rows = {name: np.asarray(matrices[axis]) for name, axis in axes.items()}
    blocks = old["blocks"]

    def deep(path, value):
        return np.tensordot(np.asarray(matrices["layers"][path]), value, 1)

    wanted = {
        "embedding": old["embedding"] @ emb.T,
        "head": emb @ old["head"],
        "final_norm/scale": emb @ old["final_norm"]["scale"],
        "blocks/attn_norm/scale": deep("blocks/attn_norm/scale", blocks["attn_norm"]["scale"] @ emb.T),
        "blocks/mlp/gate": deep("blocks/mlp/gate", np.einsum("Dd,ldf,Ff->lDF", emb, blocks["mlp"]["gate"], mlp)),
        "blocks/mlp/down": deep("blocks/mlp/down", np.einsum("Ff,lfd,Dd->lFD", mlp, blocks["mlp"]["down"], emb)),
    }
    for name, matrix in rows.items():
        path = f"blocks/attn/{name}"
        wanted[path] = deep(path, np.einsum("Dd,ldhe,HEhe->lDHE", emb, blocks["attn"][name], matrix))
        bias = blocks["attn"][f"{name}_bias"]
        wanted[f"{path}_bias"] = deep(f"{path}_bias", np.einsum("lhe,HEhe->lHE", bias, matrix))
    # query head m of group K reads value head K: here groups of 2 in both, 2 old and 3 new
    out = blocks["attn"]["out"].reshape(3, 2, 2, 4, 8)
    through = np.einsum("KEke,lkmed,Dd->lKmED", rows["value"], out, emb).reshape(3, 6, 4, 13)
    wanted["blocks/attn/out"] = deep("blocks/attn/out", through)
    for path, value in wanted.items():
        np.testing.assert_allclose(leaf_at(grown, path), value, rtol=2e-4, atol=2e-4, err_msg=path)


def test_training_the_maps_lowers_the_loss_and_leaves_the_small_weights():
    params, data = noisy(SOURCE), batches(1) * 30
    before = jax.tree.map(np.asarray, params)
    growth = plan_growth("learn", SOURCE, BOTH, KEY, steps=30, peak_lr=3e-3, end_lr=3e-4, warmup=3)
    learner = growth.learner
    learned, took = learner.fit(growth, params, data, KEY)
    assert took["loss_after"] < took["loss_before"] - 0.2
    assert took["tokens"] == 30 * 2 * 8 and took["flops"] == 6 * parameter_count(BOTH) * took["tokens"]
    jax.tree.map(np.testing.assert_array_equal, before, params)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), learner.initial(), learned)
    assert min(jax.tree.leaves(moved)) > 0  # every matrix has a gradient
    grown = grow_params(learner.with_matrices(growth, learned), SOURCE, BOTH, params, KEY)
    assert float(next_token_loss(BOTH, grown, data[0])) < took["loss_before"] - 0.2


def test_the_defaults_are_the_authors_recipe():
    """github.com/tongxuluo/prts, issue 2: 100 steps, 7e-5 to 7e-6, 50 of warm-up, weight decay 0.1."""
    recipe = plan_growth("learn", SOURCE, DEEP, KEY).learner
    assert (recipe.steps, recipe.peak_lr, recipe.end_lr, recipe.warmup, recipe.weight_decay) == (
        100,
        7e-5,
        7e-6,
        50,
        0.1,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps must be an integer >= 0, got -1"),
        ({"peak_lr": float("nan")}, "peak_lr must be >= 0, got nan"),
        ({"steps": 3}, "the batches of learn must be one for each of its 3 steps, got 2"),
    ],
)
def test_bad_recipes_are_refused(options, message):
    with pytest.raises(growlm.InputError) as error:
        growlm.grow(noisy(SOURCE), SOURCE, DEEP, "learn", key=KEY, batches=batches(2), **options)
    assert str(error.value) == message
    with pytest.raises(growlm.InputError, match="needs a key"):
        growlm.grow(noisy(SOURCE), SOURCE, DEEP, "learn")


# Noise


def test_noise_is_a_share_of_the_initialisations_own_on_matrices_alone():
    """arXiv 2405.15319, section 5.2: W <- (1 - a) W + a e."""
    source = dataclasses.replace(SOURCE, embed=64, mlp=96, vocab=300)
    target = dataclasses.replace(source, layers=6)
    params = noisy(source)
    plain = growlm.grow(params, source, target)
    mixed = growlm.grow(params, source, target, key=KEY, noise=0.2)
    for weight in declared(target):
        was, now = leaf_at(plain, weight.path), leaf_at(mixed, weight.path)
        if weight.elementwise:
            np.testing.assert_array_equal(now, was)
        else:
            noise = (now - 0.8 * was) / 0.2
            assert np.std(noise) == pytest.approx(weight.std(target), rel=0.1), weight.path
            assert abs(np.corrcoef(noise.ravel(), was.ravel())[0, 1]) < 0.05
    one = growlm.grow(params, source, target, key=KEY, noise=1.0)
    other = growlm.grow(jax.tree.map(jnp.zeros_like, params), source, target, key=KEY, noise=1.0)
    np.testing.assert_array_equal(leaf_at(one, "head"), leaf_at(other, "head"))


def std_by_hand(path, scale, layers, embed, mlp):
    """Ours: 2 / (5 fan-in), over 2 layers on the stream. arXiv 2405.15319: 1 / (d l^2) (eq. 53), 2 / (5 d) (eq. 54)."""
    stream = path in ("blocks/attn/out", "blocks/mlp/down")
    if scale == "paper":
        return np.sqrt(1 / (embed * layers**2)) if stream else np.sqrt(2 / (5 * embed))
    if path in ("embedding", "head"):
        return 0.25 / np.sqrt(embed)
    return np.sqrt(2 / (5 * (mlp if path == "blocks/mlp/down" else embed)) / (2 * layers if stream else 1))


@pytest.mark.parametrize("scale", ["initial", "paper"])
def test_noise_is_as_large_as_its_scale_says_in_the_whole_and_in_parts(scale):
    """Every matrix, in a target of another depth and width than the source; noise alone: nothing is kept."""
    source = dataclasses.replace(SOURCE, embed=32, heads=8, kv_heads=4, mlp=80, vocab=200)
    target = dataclasses.replace(source, layers=12, embed=64, heads=16, kv_heads=8, mlp=160)
    growth = plan_growth("direct", source, target, noise=0.5, old_weight_scale=0.0, noise_scale=scale)
    whole = grow_params(growth, source, target, noisy(source), KEY)
    for weight in declared(target):
        if weight.elementwise:
            continue
        expected = std_by_hand(weight.path, scale, layers=12, embed=64, mlp=160)
        value = np.asarray(leaf_at(noisy(source), weight.path))
        read = lambda held, rows: value[held[0]][:, rows] if held else value[rows]  # noqa: B023, E731
        rows = slice(0, weight.block_shape(target)[0])
        part = grow_part(growth, target, KEY, weight, (7,) if weight.stacked else (), rows, read)
        for grown in (leaf_at(whole, weight.path), part):
            assert np.std(grown / 0.5) == pytest.approx(expected, rel=0.06), weight.path


def test_noise_without_a_scale_is_the_initial_one_to_the_bit():
    """And what is drawn for a weight goes by its path, whatever other weights there are."""
    grown = [
        growlm.grow(noisy(SOURCE), SOURCE, DEEP, key=KEY, noise=0.2, **o) for o in ({}, {"noise_scale": "initial"})
    ]
    jax.tree.map(np.testing.assert_array_equal, *grown)
    own = jax.random.fold_in(jax.random.fold_in(KEY, number_of(DRAW_NOISE)), number_of("head"))
    drawn = LLAMA.weights["head"].initial(own, DEEP)
    np.testing.assert_allclose(
        leaf_at(grown[0], "head"), 0.8 * leaf_at(noisy(SOURCE), "head") + 0.2 * drawn, rtol=1e-6, atol=1e-7
    )


def test_noise_on_new_slices_leaves_the_old_ones_bit_for_bit():
    target = dataclasses.replace(SOURCE, layers=6, mlp=17)
    plain = growlm.grow(noisy(SOURCE), SOURCE, target)
    mixed = growlm.grow(noisy(SOURCE), SOURCE, target, key=KEY, noise=0.2, noise_on="new")
    provenance = provenance_of(plan_growth("direct", SOURCE, target))
    for path, changed in (("blocks/mlp/gate", True), ("blocks/attn/query", True), ("embedding", False)):
        was, now = leaf_at(plain, path), leaf_at(mixed, path)
        new = np.broadcast_to(slice_mask(LLAMA.weights[path], provenance), was.shape)
        np.testing.assert_array_equal(now[~new], was[~new])
        assert np.all(now[new] != was[new]) and new.any() == changed
    np.testing.assert_array_equal(
        leaf_at(mixed, "blocks/mlp/gate")[:3, :, :10], leaf_at(plain, "blocks/mlp/gate")[:3, :, :10]
    )


def test_cancelling_noise_makes_copies_differ():
    target = dataclasses.replace(SOURCE, mlp=20)
    grown = growlm.grow(noisy(SOURCE), SOURCE, target, key=KEY, noise=0.3, cancel=True)
    down = leaf_at(grown, "blocks/mlp/down")
    np.testing.assert_allclose(down[:, :10] + down[:, 10:], leaf_at(noisy(SOURCE), "blocks/mlp/down"), atol=1e-6)
    assert np.abs(down[:, :10] - down[:, 10:]).min(axis=(1, 2)).max() > 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": -0.1}, "noise must be >= 0 and <= 1, got -0.1"),
        ({"old_weight_scale": 2}, "old_weight_scale must be >= 0 and <= 1, got 2"),
        (
            {"noise": 0.1, "cancel": True, "old_weight_scale": 0.9},
            "old_weight_scale must be 1 with cancel, which keeps the function, got 0.9",
        ),
        ({"noise": 0.1, "noise_on": "old"}, "noise_on must be one of all, new, got 'old'"),
        (
            {"noise": 0.1, "noise_scale": "papr"},
            "noise_scale must be one of initial, paper, got 'papr'; did you mean 'paper'?",
        ),
        ({"noise": 0.1, "noise_scale": 1}, "noise_scale must be one of initial, paper, got '1'"),
        ({"noise": 0.1}, "this growth draws fresh values: it needs a key, such as jax.random.key(0)"),
    ],
)
def test_bad_noise_is_refused(options, message):
    with pytest.raises(growlm.InputError) as error:
        growlm.grow(noisy(SOURCE), SOURCE, DEEP, **options)
    assert str(error.value) == message
