"""muP and CompleteP: factors by hand, sizes that stay over widths and depths, and what growth makes of them."""

import dataclasses
import math
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from oracle import KEY, difference_in_numpy
from representatives import few
from trees import leaf_at, noisy, optimised, random_tokens

import growlm
from growlm import InputError
from growlm.growth import claim, grow_state, plan_growth, verify
from growlm.models import ModelConfig, ModernConfig, Weight, apply, apply_branch, hashed, init, parametrization
from growlm.models.layers import rms_norm
from growlm.training.muon import MuonConfig
from growlm.training.optimizer import OptimizerConfig, make_optimizer
from growlm.training.step import StepSpec, init_state, train_step

BASE = {"embed": 8, "heads": 2, "kv_heads": 1, "mlp": 12}
SHAPE = BASE | {"layers": 2, "head_dim": 4, "vocab": 20}
LLAMA = ModelConfig(**SHAPE, base_layers=2, base_widths=BASE)
MODERN = ModernConfig(**SHAPE, zero_init=False, base_layers=2, base_widths=BASE)
MODELS = {
    "llama": LLAMA,
    "tied": dataclasses.replace(LLAMA, tie_embeddings=True),
    "biases": dataclasses.replace(LLAMA, qkv_bias=True, qk_norm=True),
    "modern": MODERN,
}
every = pytest.mark.parametrize("name", MODELS)
some = pytest.mark.parametrize("name", few(MODELS, ["llama"]))


def times(config, width=1, depth=1):
    """Wider in all sizes that have a base, and deeper."""
    sizes = {name: width * getattr(config, name) for name in BASE}
    return dataclasses.replace(config, **sizes, layers=depth * config.layers)


def factors(config, spectral=False):
    """By weight: learning rate, decay, eps."""
    return {
        weight.path.removeprefix("blocks/"): (
            parametrization.learning_rate(weight, config, spectral),
            parametrization.weight_decay(weight, config, spectral),
            parametrization.eps(weight, config),
        )
        for weight in config.weights
    }


@some
def test_at_its_base_a_model_is_as_ever(name):
    config = MODELS[name]
    plain = dataclasses.replace(config, base_layers=None, base_widths=None)
    params, tokens = init(plain, KEY), random_tokens(config, 2, 9)
    jax.tree.map(np.testing.assert_array_equal, init(config, KEY), params)
    np.testing.assert_array_equal(apply(config, params, tokens), apply(plain, params, tokens))
    assert set(factors(config).values()) == set(factors(plain).values()) == {(1.0, 1.0, 1.0)}
    assert set(factors(times(plain, 4, 3)).values()) == {(1.0, 1.0, 1.0)}
    assert not {"base_layers", "depth_alpha", "base_widths"} & hashed(plain).keys()


def test_factors_are_the_papers():
    """Table 8 of Tensor Programs V, table 1 of CompleteP: 4 times as wide, 3 times as deep."""
    for alpha in (1.0, 0.5):
        config = dataclasses.replace(times(LLAMA, 4, 3), depth_alpha=alpha, qkv_bias=True)
        rate, small = 3 ** (alpha - 1), 3**-alpha / 4
        matrix, other, outside = (rate / 4, 4.0, small), (rate, 1.0, small), (1.0, 1.0, 1 / 4)
        found = factors(config)
        elementwise = [path for path in found if "norm" in path or "bias" in path]
        expected = dict.fromkeys(found, matrix) | dict.fromkeys(elementwise, other)
        expected |= dict.fromkeys(("embedding", "final_norm/scale", "head"), outside)
        np.testing.assert_allclose([*found.values()], [*expected.values()], err_msg=str([*found]))
        assert factors(config, spectral=True)["mlp/up"] == pytest.approx((rate, 1.0, small))
        assert parametrization.residual_scale(config) == pytest.approx(3**-alpha)
        assert parametrization.logit_scale(config) == 1 / 4


def test_factors_are_by_the_axes_that_a_weight_reads_and_writes():
    found = factors(dataclasses.replace(LLAMA, embed=16, mlp=60, heads=6, kv_heads=3))
    read, written = {"embed": 2, "heads": 3, "mlp": 5}, {"stream": 2, "heads": 3, "mlp": 5}
    for path, reads, writes in (
        ("attn/query", "embed", "heads"),
        ("attn/key", "embed", "heads"),
        ("attn/out", "heads", "stream"),
        ("mlp/gate", "embed", "mlp"),
        ("mlp/down", "mlp", "stream"),
    ):
        assert found[path] == pytest.approx((1 / read[reads], read[reads], 1 / written[writes]))


def test_initial_values_have_the_sizes_of_the_papers():
    wide, weights = times(LLAMA, 16, 4), LLAMA.architecture.weights
    params, small = init(wide, KEY), init(times(LLAMA, 4), KEY)  # large enough to measure
    for path in ("attn/query", "attn/out", "mlp/up", "mlp/down"):
        have, base = (np.std(leaf_at(tree, f"blocks/{path}")) for tree in (params, small))
        assert have == pytest.approx(base / math.sqrt(4), rel=0.05), path
        assert base == pytest.approx(weights[f"blocks/{path}"].std(LLAMA) / math.sqrt(4), rel=0.08)
    for path in ("embedding", "head"):
        assert np.std(leaf_at(params, path)) == pytest.approx(weights[path].std(LLAMA), rel=0.05)


def test_scores_are_divided_by_head_dim_where_that_has_a_base():
    config = dataclasses.replace(LLAMA, base_widths=BASE | {"head_dim": 4})
    assert parametrization.query_scale(config) == 0.5
    larger = dataclasses.replace(config, head_dim=16, rope_theta=config.rope_theta**4)
    assert parametrization.query_scale(larger) == parametrization.kernel_scale(larger) == 2 / 16
    assert parametrization.kernel_scale(LLAMA) is None
    found = factors(larger)
    assert found["attn/query"] == (1.0, 1.0, 1 / 4) and found["attn/out"] == (1 / 4, 4.0, 1.0)
    logits, claimed, _ = difference_in_numpy(config, larger, "zero", fill="zeros")
    assert claimed and logits < 1e-11
    other = dataclasses.replace(LLAMA, base_widths={"head_dim": 1})
    logits, claimed, growth = difference_in_numpy(LLAMA, other, "direct")
    assert not claimed and logits > 1e-6 and "factor on scores" in claim(growth, LLAMA, other)[1]


@every
@pytest.mark.parametrize("operator", ["direct", "zero"])
def test_growth_keeps_the_function_where_factors_jump(name, operator, monkeypatch):
    monkeypatch.setattr(Weight, "initial", lambda weight, key, config, whole: np.ones(weight.shape(config)))
    source, options = MODELS[name], {"zero_residual": True} if operator == "direct" else {}
    for target in (times(source, 2), times(source, 1, 3), times(source, 3, 2)):
        logits, claimed, growth = difference_in_numpy(source, target, operator, **options)
        assert claimed and logits < 1e-11
        undone = {path: float(factor[0]) for path, factor in growth.factors.items()}
        deeper, wider = target.layers / source.layers, target.embed / source.embed
        outside = {"final_norm/scale" if name == "tied" else "head": wider} if wider > 1 else {}
        writers = dict.fromkeys(("blocks/attn/out", "blocks/mlp/down"), deeper) if deeper > 1 else {}
        untied = {path: factor for path, factor in undone.items() if path != "head" or name != "tied"}
        assert untied == pytest.approx(outside | writers)


@every
def test_a_parametrisation_folds_into_weights(name):
    """Into a model without factors, such as transformers has."""
    config = times(MODELS[name], 2, 2)
    plain = dataclasses.replace(config, base_layers=None, base_widths=None)
    logits, claimed, _ = difference_in_numpy(config, plain, "direct")
    assert claimed and logits < 1e-11
    assert [one.holds(plain) for one in plain.architecture.families.values()].count(True) >= (name in ("llama", "tied"))
    assert not any(one.holds(config) for one in config.architecture.families.values())


ADAM = OptimizerConfig(eps=1e-2, clip=0.0, weight_decay=0.2)  # an eps that is felt
STEPS, RATE = 4, 1e-2


def train(config, state, tokens, steps=STEPS, optimizer=ADAM):
    """The state after some steps, and the loss before each."""
    spec = StepSpec(config, optimizer, dtype="float64" if jax.config.jax_enable_x64 else "float32")
    step, losses = jax.jit(partial(train_step, spec)), []
    for _ in range(steps):
        arrays, metrics = step(state.arrays, tokens, jnp.float32(RATE), state.provenance)
        state, losses = state.advanced(arrays, *tokens.shape), [*losses, float(metrics["loss"])]
    return state, losses


@some
def test_copies_train_on_exactly_as_the_small_model(name):
    """Rates, decay, eps, moments and multipliers together: of a model that is copied in width, by AdamW."""
    source, wide = MODELS[name], times(MODELS[name], 3)
    with jax.enable_x64(True):
        start = init_state(source, ADAM, 0, params=jax.tree.map(jnp.float64, noisy(source)))
        tokens = random_tokens(source, 2, 9)
        state, _ = train(source, start, tokens)
        how = {"optimizer_state": "map"}
        grown, report = grow_state(state, source, wide, make_optimizer(ADAM, wide), "direct", **how)
        small, large = (train(config, one, tokens)[1] for config, one in ((source, state), (wide, grown)))
        plain = dataclasses.replace(wide, base_widths=None)
        lost, _ = grow_state(state, source, plain, make_optimizer(ADAM, plain), "direct", **how)
        without = train(plain, lost, tokens)[1]
    assert report["preserves_function"] and report["moments_exact"]
    assert large == pytest.approx(small, rel=1e-9)
    assert abs(without[-1] - small[-1]) > 1e-3 and without[0] == pytest.approx(small[0], rel=1e-9)


@some
def test_gradients_and_a_trajectory_are_those_that_a_growth_claims(name):
    source = MODELS[name]
    target = times(source, 2)
    params, tokens, growth = noisy(source), random_tokens(source, 2, 9), plan_growth("direct", source, target)
    report = verify(source, params, target, growlm.grow(params, source, target), tokens, growth, steps=1)
    assert report["ok"] and all(report["items"][name]["claimed"] for name in ("function", "gradients"))


@pytest.mark.parametrize("scale", few(["rms", "spectral"], ["rms"]))
@pytest.mark.slow
def test_muons_matrices_follow_the_size_of_their_updates(scale):
    config = OptimizerConfig(kind="muon", muon=MuonConfig(scale=scale), clip=0.0, weight_decay=0.1)
    wide = times(LLAMA, 4)
    plain, params = dataclasses.replace(wide, base_widths=None), noisy(wide)
    ours, theirs = (
        optimizer.update(params, optimizer.init(params), params)[0]
        for optimizer in (make_optimizer(config, one) for one in (wide, plain))
    )
    for path in ("attn/out", "mlp/up"):
        value, have, want = (leaf_at(tree, f"blocks/{path}") for tree in (params, ours, theirs))
        factor = {"rms": 4, "spectral": 1}[scale]
        np.testing.assert_allclose(have, (want - 0.1 * value) / factor + 0.1 * value, atol=1e-5)


def test_some_of_the_layers_train_at_the_rates_of_the_whole_model():
    config = dataclasses.replace(LLAMA, layers=4, depth_alpha=0.5)
    tokens, state = random_tokens(config, 2, 9), init_state(config, ADAM, 0)
    whole, part = (
        jax.jit(partial(train_step, StepSpec(config, ADAM, frozen_layers=frozen)))(
            state.arrays, tokens, jnp.float32(RATE), state.provenance
        )
        for frozen in (0, 2)
    )
    for path in ("blocks/mlp/up", "blocks/attn_norm/scale"):
        moved, expected = (leaf_at(arrays[0][0], path)[2:] for arrays in (part, whole))
        np.testing.assert_allclose(moved, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base_widths": {"layers": 2}}, "size in model.base_widths must be one of embed, .*, got 'layers'"),
        ({"base_widths": {"embed": 0}}, r"model.base_widths\['embed'\] must be a positive integer, got 0"),
        ({"base_layers": 0}, "model.base_layers must be a positive integer, got 0"),
        ({"depth_alpha": -1.0}, "model.depth_alpha must be a positive number, got -1.0"),
    ],
)
def test_a_base_that_is_none_is_one_line(changes, said):
    for config in (LLAMA, MODERN):
        with pytest.raises(InputError, match=said):
            dataclasses.replace(config, **changes)


# Coordinate checks (Tensor Programs V, section D.1; CompleteP, figure 3).
COORDINATES = OptimizerConfig(clip=0.0, weight_decay=0.0, eps=1e-12)
SMALL = {"embed": 64, "heads": 2, "kv_heads": 2, "mlp": 128}


def rms(values):
    return float(np.sqrt(np.mean(np.square(np.asarray(values, np.float64)))))


@cache
def sizes(kind, width, layers, based):
    """After 10 steps of Adam, RMS: of what branches add, over all layers, of the stream, and of logits' change."""
    widths = {name: size * width // 64 for name, size in SMALL.items()}
    base = {"base_layers": 2, "base_widths": SMALL} if based else {}
    config = kind(**widths, layers=layers, head_dim=32, vocab=64, **base)
    state, tokens = init_state(config, COORDINATES, 0), random_tokens(config, 4, 17)
    logits = jax.jit(partial(apply, config))
    before = logits(state.params, tokens)
    params = train(config, state, tokens, 10, COORDINATES)[0].params
    x, added = params["embedding"][tokens.reshape(-1)], {}
    x = rms_norm(x, config.norm_eps) if kind is ModernConfig else x
    for layer in range(layers):
        for branch in config.architecture.branches:
            names = [name for name in params["blocks"] if name.split("_")[0] == branch.name]
            own = {name: jax.tree.map(lambda leaf, n=layer: leaf[n], params["blocks"][name]) for name in names}
            added.setdefault(branch.name, []).append(apply_branch(config, branch.name, layer, own, x, tokens))
            x = x + added[branch.name][-1]
    found = {name: rms(values) * (layers / 2 if based else 1) for name, values in added.items()}
    return found | {"stream": rms(x), "logits": rms(logits(params, tokens) - before)}


def spread(kind, shapes, based):
    """For each of `sizes`, the largest over the smallest of all shapes."""
    found = [sizes(kind, width, layers, based) for width, layers in shapes]
    return {name: max(one[name] for one in found) / min(one[name] for one in found) for name in found[0]}


def check_spreads(kind, widths, depths):
    """At the base, (64, 2), both parametrisations are one."""
    for shapes, least in (([(width, 2) for width in widths], 4), ([(64, layers) for layers in depths], 2)):
        kept, lost = (spread(kind, shapes, based) for based in (True, False))
        assert max(kept.values()) < 2.5 and lost["stream"] > 2 and max(lost.values()) > least, (kept, lost)


@pytest.mark.slow
def test_sizes_stay_over_widths_and_depths_with_a_base_and_not_without():
    check_spreads(ModelConfig, [64, 256], [2, 8])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ModelConfig, ModernConfig])
def test_sizes_stay_from_64_to_512_wide_and_from_2_to_32_layers_deep(kind):
    check_spreads(kind, [64, 512], [2, 8, 32])


# A toy grid: widths, rates a factor of 2 apart, steps on text of a few words.
NARROW, STEPS_OF_TOY = {"embed": 32, "heads": 1, "kv_heads": 1, "mlp": 64}, 40
RATES = [2.0**power for power in range(-10, -2)]


def best_rate(width, based, batches_NBS):
    """The number, in RATES, of the rate with the lowest loss over the last steps."""
    sizes = {name: size * width // 32 for name, size in NARROW.items()}
    config = ModelConfig(**sizes, layers=2, head_dim=32, vocab=96, base_widths=NARROW if based else None)
    spec = StepSpec(config, OptimizerConfig(weight_decay=0.0))
    state = init_state(config, spec.optimizer, 0)

    @jax.jit
    def losses(rate):
        def step(arrays, batch):
            tokens_BS, number = batch
            arrays, metrics = train_step(spec, arrays, tokens_BS, rate * jnp.minimum(1, number / 5), state.provenance)
            return arrays, metrics["loss"]

        return jax.lax.scan(step, state.arrays, (batches_NBS, 1.0 + jnp.arange(len(batches_NBS))))[1]

    with optimised(True):  # 320 steps are more than what compiling for them takes
        return int(np.argmin([jnp.mean(losses(jnp.float32(rate))[-10:]) for rate in RATES]))


@pytest.mark.slow
def test_the_best_rate_of_a_toy_is_that_of_one_8_times_as_wide_with_a_base_and_not_without(tmp_path):
    text = np.frombuffer(Path(tiny.write_corpus(tmp_path)).read_bytes(), np.uint8).astype(np.int32) - 32
    starts = np.random.default_rng(0).integers(len(text) - 33, size=(STEPS_OF_TOY, 8))
    batches = jnp.asarray(text[starts[..., None] + np.arange(33)])
    narrow, wide, without = (best_rate(*one, batches) for one in ((32, False), (256, True), (256, False)))
    assert 0 < narrow < len(RATES) - 1
    assert abs(wide - narrow) <= 1, "a factor of 2, the grid's own"
    assert without <= narrow - 2
