"""Mamba-1 and Samba: the recurrence and its gradients, documents, initial values, and what becomes of channels."""

import dataclasses
import itertools
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from representatives import few
from trees import exact_products, leaf_at, noisy

import growlm
from growlm import InputError
from growlm.growth import plan_growth
from growlm.growth.streaming import grow_part
from growlm.models import Role, SambaConfig, flops_per_token, hidden_states, mamba, next_token_loss, parameter_count
from growlm.models.mamba import conv, selective_scan
from growlm.training.optimizer import OptimizerConfig, make_optimizer

exact = pytest.fixture(autouse=True, scope="module")(exact_products.__wrapped__)

HERE, KEY = Path(__file__).parent, jax.random.key(3)
SMALL = SambaConfig(
    periods=1, embed=6, channels=7, dt_rank=2, heads=2, kv_heads=1, head_dim=4, mlp=5, vocab=11, state=3
)
WIDE = dataclasses.replace(SMALL, channels=12, dt_rank=3)
PAPER = SambaConfig(
    6, embed=1536, channels=3072, dt_rank=96, heads=12, kv_heads=12, head_dim=128, mlp=4096, vocab=32000
)
# Within and across chunks of 4 positions.
DOCUMENTS = np.array([[0, 0, 1, 1, 1, 1, 1, 2, 3, 3, 3], [0] * 11, [0, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3]])
CHUNKS = {"by position": {jax.default_backend(): mamba._by_position}, "by pairs": {}}


def inputs(dtype, rows=3, length=11, channels=5, state=4):
    """u, dt, a, b and c."""
    rng = np.random.default_rng(0)
    u, b, c = (rng.standard_normal((rows, length, n)).astype(dtype) for n in (channels, state, state))
    dt = rng.uniform(0.01, 1, u.shape).astype(dtype)
    return u, dt, -rng.uniform(0.1, 4, (channels, state)).astype(dtype), b, c


def plain(u, dt, a, b, c, document):
    """One scan over all positions, with nothing computed twice."""

    def step(h, now):
        u, dt, b, c, first = now
        h = jnp.where(first[:, None, None], 0, h)
        h = jnp.exp(dt[..., None] * a) * h + (dt * u)[..., None] * b[:, None]
        return h, (h * c[:, None]).sum(-1)

    first = np.diff(document, axis=1, prepend=-1) != 0
    inputs = [jnp.swapaxes(x, 0, 1) for x in (u, dt, b, c, first)]
    return jnp.swapaxes(jax.lax.scan(step, jnp.zeros((len(u), *a.shape), u.dtype), inputs)[1], 0, 1)


@pytest.mark.parametrize("way", CHUNKS)
@pytest.mark.parametrize(
    ("dtype", "within"),
    few([(np.float32, 1e-5), (np.float64, 1e-11)], [(np.float64, 1e-11)]),
    ids=["float32", "float64"],
)
def test_the_recurrence_and_its_gradients_are_those_of_single_steps(way, dtype, within, monkeypatch):
    monkeypatch.setattr(mamba, "_CHUNKS", CHUNKS[way])
    values = inputs(dtype)
    for document in (None, DOCUMENTS):
        numbers = np.zeros((3, 11), int) if document is None else document

        @jax.jit
        def both(*values, document=document):
            y, back = jax.vjp(partial(selective_scan, document_BT=document, chunk=4), *values)
            return y, back(jnp.cos(y))

        with jax.enable_x64(dtype is np.float64):
            (y, gradients), (expected, back) = both(*values), jax.vjp(partial(plain, document=numbers), *values)
            for have, want in zip(gradients, back(jnp.cos(expected)), strict=True):
                assert have.dtype == dtype
                np.testing.assert_allclose(have, want, atol=within * np.abs(want).max())
        np.testing.assert_allclose(y, oracle.recur(*values, numbers), atol=within)


def test_the_convolution_sees_earlier_positions_of_its_document_alone():
    x = np.random.default_rng(1).standard_normal((3, 11, 2))
    taps, bias = np.array([[1.0, 10, 100], [1, 0, 0]]), np.array([0.5, 0])
    for document in (None, DOCUMENTS):
        y = np.asarray(conv(x, taps, bias, document))
        for row, t in itertools.product(range(3), range(11)):
            seen = [s >= 0 and (document is None or document[row, s] == document[row, t]) for s in (t - 2, t - 1, t)]
            parts = [x[row, s] if yes else np.zeros(2) for s, yes in zip((t - 2, t - 1, t), seen, strict=True)]
            np.testing.assert_allclose(y[row, t], sum(p * taps[:, k] for k, p in enumerate(parts)) + bias, rtol=1e-5)
    assert np.asarray(conv(x[:, :1], taps, bias, None)).shape == (3, 1, 2)


def test_a_document_is_computed_as_if_it_were_alone():
    params, tokens = noisy(SMALL), np.array([[3, 4, 8, 0], [5, 6, 7, 0], [9, 2, 4, 1]], np.int32)
    alone = jax.jit(partial(hidden_states, SMALL))(params, tokens)[0]
    packed = jax.jit(partial(hidden_states, SMALL, document_end=0))(params, tokens.reshape(1, -1))[0]
    np.testing.assert_allclose(packed, alone, atol=2e-5)


def test_initial_values_are_those_of_the_authors():
    config = dataclasses.replace(SMALL, channels=4000, dt_rank=9)
    of = {name: config.architecture.weights[f"blocks/mamba/{name}"] for name in ("A_log", "D_skip", "dt_up", "dt_bias")}
    values = {name: np.asarray(weight.initial(KEY, config)) for name, weight in of.items()}
    np.testing.assert_allclose(values["A_log"], np.tile(np.log([1, 2, 3]), (4000, 1)), rtol=1e-6)
    assert np.all(values["D_skip"] == 1)
    dt = np.logaddexp(0, values["dt_bias"].astype(float))
    assert dt.min() > 0.00099 and dt.max() < 0.1001
    assert abs(np.log(dt).mean() - np.log(0.01)) < 0.1 and abs(np.log(dt).std() - np.log(100) / 12**0.5) < 0.05
    up = values["dt_up"]
    assert up.shape == (9, 4000) and 0.33 < np.abs(up).max() < 1 / 3
    assert up.std() == pytest.approx(of["dt_up"].std(config), rel=0.02)  # what noise is measured by


def test_the_paper_s_model_has_its_number_of_parameters_and_flops_are_those_by_hand():
    """421 million, with one matrix for embedding and head."""
    assert round(parameter_count(dataclasses.replace(PAPER, tie_embeddings=True)) / 1e6, 1) == 421.8
    # Input, gate, out; conv; what reads dt, b and c; dt_up. Query and out, key and value; two SwiGLUs; the head.
    products = 3 * 6 * 7 + 4 * 7 + 7 * (2 + 3 + 3) + 2 * 7 + 2 * 6 * 8 + 2 * 6 * 4 + 2 * 3 * 6 * 5 + 6 * 11
    keys = (1 + 2 + 3 + 3) / 4  # seen of 4 positions, in a window of 3
    config = dataclasses.replace(SMALL, sliding_window=3)
    assert flops_per_token(config, 4) == 6 * products + 3 * (6 * 7 * 3 + 4 * 8 * keys)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_constants_of_channels_do_not_decay_and_neither_they_nor_filters_are_orthogonalised(kind):
    params = oracle.noisy(SMALL, np.float32)
    gradients = jax.tree.map(np.zeros_like, params)
    optimizer = make_optimizer(OptimizerConfig(kind=kind, weight_decay=0.1), SMALL)
    updates, state = jax.jit(lambda *trees: optimizer.update(trees[0], optimizer.init(trees[1]), trees[1]))(
        gradients, params
    )
    for weight in SMALL.weights:
        decay = 0.0 if weight.role is Role.CONSTANT else 0.1
        np.testing.assert_allclose(leaf_at(updates, weight.path), decay * leaf_at(params, weight.path), rtol=1e-6)
    constants = {weight.path.split("/")[-1] for weight in SMALL.weights if weight.role is Role.CONSTANT}
    assert constants == {"conv_bias", "dt_bias", "A_log", "D_skip"}
    if kind == "muon":
        by_adam = state[1].inner_states["adam"].inner_state.mu["blocks"]["mamba"]
        matrices = {"input", "gate", "dt_down", "dt_up", "to_B", "to_C", "out"}
        assert {name for name, leaf in by_adam.items() if isinstance(leaf, optax.MaskedNode)} == matrices


def test_channels_that_zero_adds_are_those_of_a_new_model_and_have_gradients():
    """Nothing reads them yet, so the function is kept; with zero writers they would stay zero for ever."""
    params = noisy(SMALL)
    grown = growlm.grow(params, SMALL, WIDE, "zero", key=KEY)
    mamba, first = grown["blocks"]["mamba"], params["blocks"]["mamba"]
    written = {name: mamba[name][0, ..., 7:] for name in ("input", "gate", "dt_up", "dt_bias")}
    for name, fresh in written.items():
        assert np.all(np.abs(fresh) > 1e-4), name
        np.testing.assert_array_equal(mamba[name][0, ..., :7][: first[name].shape[1]], first[name][0])
    assert np.all(mamba["conv"][0, 7:] != 0) and np.all(mamba["conv_bias"][0, 7:] == 0)
    np.testing.assert_allclose(mamba["A_log"][0, 7:], np.log([[1, 2, 3]] * 5), rtol=1e-6)
    assert np.all(mamba["D_skip"][0, 7:] == 1)
    assert not any(mamba[name][0, 7:].any() for name in ("to_B", "to_C", "dt_down", "out"))
    gradient = jax.jit(jax.grad(partial(next_token_loss, WIDE)))(grown, np.array([[3, 4, 5, 6, 7]], np.int32))
    for name in ("to_B", "to_C", "out"):
        assert np.all(np.abs(gradient["blocks"]["mamba"][name][0, 7:]).max(axis=1) > 0), name


def test_a_part_of_a_weight_draws_its_own_initial_values():
    """As checkpoints that do not fit into memory grow."""
    growth = plan_growth("zero", SMALL, WIDE, KEY)
    for name, rows, shape in (("dt_up", slice(1, 3), (2, 12)), ("A_log", slice(12), (12, 3))):
        weight = WIDE.architecture.weights[f"blocks/mamba/{name}"]
        source = np.full(weight.shape(SMALL), 0.125, np.float32)
        part = grow_part(growth, WIDE, KEY, weight, (0,), rows, lambda held, rows, s=source: s[held][:, rows])
        assert part.shape == shape
        if name == "A_log":
            np.testing.assert_allclose(part[7:], np.log([[1, 2, 3]] * 5), rtol=1e-6)
            assert np.all(part[:7] == 0.125)
        else:
            assert np.all(part[0, :7] == 0.125)
            drawn = np.concatenate([part[0, 7:], part[1]])
            assert len(set(drawn)) == 17 and 0.4 < np.abs(drawn).max() <= 3**-0.5


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("periods", -1, "an integer >= 0"),
        ("channels", 0, "a positive integer"),
        ("dt_rank", 1.5, "a positive integer"),
        ("sliding_window", 0, "a positive integer"),
        ("head_dim", 3, "even, as RoPE rotates pairs"),
        ("kv_heads", 3, "a multiple of model.kv_heads, 3"),
    ],
)
def test_what_is_out_of_range_is_a_line(field, value, what):
    with pytest.raises(InputError, match=rf"model\.\w+ must be {what}, got"):
        dataclasses.replace(SMALL, **{field: value})
