"""Growth of a stream that LayerNorm reads: what keeps mean and variance, what does not, and masks between the two."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import KEY, TOKENS, apart, difference_in_numpy, forward, noisy
from own_architecture import OwnConfig

import growlm
from growlm.growth import claim, plan_growth
from growlm.growth.masks import CLOSED, MASKED
from growlm.growth.norms import NORM_OPTIONS, NORM_RULES
from growlm.growth.plan import provenance_of
from growlm.models import GptNeoxConfig, NormKind, Weight

SHAPE = {"layers": 2, "embed": 6, "heads": 2, "head_dim": 4, "mlp": 5, "vocab": 17, "norm_eps": 1e-3}
NEOX = GptNeoxConfig(**SHAPE, rotary_dim=2)
TIED = dataclasses.replace(NEOX, tie_embeddings=True)
MODELS = {"gpt_neox": NEOX, "tied gpt_neox": TIED, "own": OwnConfig(**SHAPE, positions=16)}


@pytest.fixture(autouse=True)
def initial_values_in_numpy(monkeypatch):
    """Nothing is compiled in this file: growth of NumPy's arrays with NumPy's initial values."""

    def initial(weight, key, config, whole=False):
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
        return 0.1 * rng.standard_normal(weight.shape(config)) + (weight.init == "ones")

    monkeypatch.setattr(Weight, "initial", initial)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("embed", [6, 7, 9, 11, 12, 13, 18, 29])
def test_padding_with_the_mean_is_exact_for_any_width(name, embed):
    source = MODELS[name]
    logits, claims, _ = difference_in_numpy(source, dataclasses.replace(source, embed=embed), "zero")
    assert claims and logits < 1e-12


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("select", ["cycle", "repeat"])
@pytest.mark.parametrize("times", [2, 3, 5])
def test_whole_copies_are_exact(name, select, times):
    source = MODELS[name]
    target = dataclasses.replace(source, embed=6 * times)
    for norm in ("isometry", "none"):
        logits, claims, _ = difference_in_numpy(source, target, "direct", select=select, norm=norm)
        assert claims and logits < 1e-12


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("embed", [7, 9, 11, 13])
def test_uneven_copies_are_refused_a_claim_and_change_the_function(name, embed):
    source = MODELS[name]
    target = dataclasses.replace(source, embed=embed)
    for select in ("cycle", "repeat", "random"):
        growth = plan_growth("direct", source, target, KEY, select=select)
        assert claim(growth, source, target) == (False, "the stream's mean or variance changes, and with it every norm")
        assert difference_in_numpy(source, target, "direct", select=select)[0] > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_the_papers_gain_is_exact_up_to_eps(name):
    source = MODELS[name]
    target = dataclasses.replace(source, embed=15)
    logits, claims, _ = difference_in_numpy(source, target, "zero", norm="gain")
    assert not claims and 1e-9 < logits < 0.1
    scaled = dataclasses.replace(target, norm_eps=source.norm_eps * 6 / 15)
    logits, claims, _ = difference_in_numpy(source, scaled, "zero", norm="gain")
    assert claims and logits < 1e-12
    logits, claims, _ = difference_in_numpy(source, target, "zero", norm="none")
    assert not claims and logits > 0.01


@pytest.mark.parametrize("kind", NormKind)
@pytest.mark.parametrize("norm", NORM_OPTIONS)
def test_the_defect_is_zero_where_the_norm_of_random_vectors_does_not_change(kind, norm):
    """The rule's number against what the norm does, over paddings and copies."""
    x, seen = np.random.default_rng(0).standard_normal((50, 4)), set()

    def normed(y):
        y = y - y.mean(-1, keepdims=True) * (kind is NormKind.LAYER)
        return y / np.sqrt(np.square(y).mean(-1, keepdims=True))

    for index in ([0, 1, 2, 3], [0, 1, 2, 3, -1, -1], [0, 1, 2, 3, 0, 1, 2, 3], [0, 1, 2, 3, 0], [0, 1, 2, 3, 2, -1]):
        axis = NORM_RULES[kind].stream(np.asarray(index), 4, norm)
        wide = axis.write.take(x, 1)
        read = np.stack([axis.read.take(row, 0) for row in np.eye(4)]).T
        kept = np.allclose(normed(wide) * axis.rms @ read, normed(x), atol=1e-12)
        assert (NORM_RULES[kind].defect(axis) < 1e-12) == kept, (index, norm)
        seen.add(kept)
    assert seen == {True, False} or (kind, norm) == (NormKind.RMS, "isometry")


@pytest.mark.parametrize("norm", ["isometry", "gain"])
@pytest.mark.parametrize("name", MODELS)
def test_a_mask_is_the_source_at_0_and_the_plain_model_at_1_and_neither_at_half(name, norm):
    source, options = MODELS[name], {"mask_tokens": 10, "norm": norm}
    target = dataclasses.replace(source, layers=3, embed=11, heads=3, mlp=8)
    if norm == "gain":  # the paper's form, made exact
        target = dataclasses.replace(target, norm_eps=source.norm_eps * 6 / 11)
    growth = plan_growth("random", source, target, KEY, **options)
    before = noisy(source)
    after = growlm.growth.expand.grow_params(growth, source, target, before, KEY)

    def masked(progress):
        return growth.masks.reparametrise(target, after, provenance_of(growth), np.asarray(progress, float))[0]

    assert claim(growth, source, target)[0]
    assert apart(source, before, target, masked(CLOSED)) < 1e-12
    plain = forward(target, after, TOKENS)
    np.testing.assert_allclose(forward(target, masked(np.ones(len(MASKED))), TOKENS), plain, atol=1e-11)
    old = forward(source, before, TOKENS)
    for part in range(len(MASKED)):
        half = forward(target, masked(np.where(np.arange(len(MASKED)) == part, 0.5, 0.0)), TOKENS)
        assert np.abs(half - old).max() > 1e-4, MASKED[part]
        assert np.abs(half - plain).max() > 1e-4


def test_masks_on_whole_blocks_are_the_source_at_0():
    for source in MODELS.values():
        target = dataclasses.replace(source, layers=4, embed=11)
        options = {"mask_tokens": 10, "whole_blocks": True, "order": "interleave"}
        logits, claims, _ = difference_in_numpy(source, target, "random", **options)
        assert claims and logits < 1e-12


def test_a_mask_in_a_compiled_step_is_the_one_of_numpy():
    source = MODELS["own"]
    target = dataclasses.replace(source, layers=3, embed=11, heads=3, mlp=8)
    growth = plan_growth("random", source, target, KEY, mask_tokens=10)
    after = growlm.growth.expand.grow_params(growth, source, target, noisy(source), KEY)
    with jax.enable_x64(True):
        progress = jnp.asarray([0.2, 0.5, 0.7, 0.9])
        masked = jax.jit(lambda *traced: growth.masks.reparametrise(target, *traced)[0])
        compiled = masked(after, provenance_of(growth), progress)
    eager, _ = growth.masks.reparametrise(target, after, provenance_of(growth), np.asarray(progress))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), compiled, eager)
