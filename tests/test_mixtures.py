"""Mixtures of experts: every way to compute one, shared experts, and what the router says of itself."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from eight import on_eight_devices
from oracle import noisy, swiglu

from growlm.models import MixtralConfig, losses, ragged
from growlm.models.blocked import LARGE, SMALL, blocked_experts
from growlm.models.decoder import Pass, measured
from growlm.models.moe import all_experts
from growlm.models.ragged import ROWS, chosen_experts, tpu_transposes
from growlm.training.run import train

WAYS = {"all": all_experts, "ragged": chosen_experts, "as on GPUs": chosen_experts, "blocks": blocked_experts}


def mixture(rows, experts, chosen, embed=4, mlp=6):
    """Rows, weights, choices and experts; the first expert has all rows, the last has none."""
    rng = np.random.default_rng(0)
    rank = rng.permuted(np.tile(np.arange(1, experts - 1), (rows, 1)), axis=1)[:, : chosen - 1]
    expert_NK = np.concatenate([np.zeros((rows, 1), int), rank], axis=1)
    shapes = (rows, embed), (rows, chosen), (experts, embed, mlp), (experts, embed, mlp), (experts, mlp, embed)
    x_ND, weight_NK, *parts = (rng.standard_normal(shape) / 2 for shape in shapes)
    return x_ND, weight_NK, expert_NK, tuple(parts)


def on_platform_of(way, monkeypatch):
    """Ragged products have a form for each platform."""
    if way == "as on GPUs":
        monkeypatch.setattr(ragged, "platform", lambda: "gpu")
        monkeypatch.setattr(jax.lax, "ragged_dot", None)


@pytest.mark.parametrize(("dtype", "within"), [(np.float64, 1e-12), (np.float32, 1e-5)])
@pytest.mark.parametrize("chosen", [1, 2])  # with one, every row is the first expert's
@pytest.mark.parametrize("way", WAYS)
def test_every_way_weighs_the_same_experts_and_has_their_gradients(way, chosen, dtype, within, monkeypatch):
    """The first expert has blocks of both sizes."""
    on_platform_of(way, monkeypatch)
    x_ND, weight_NK, expert_NK, experts = mixture(LARGE + SMALL + 9, 4, chosen)
    parts = ("gate", "up", "down")
    expected = np.zeros_like(x_ND)
    for row, (weights, numbers) in enumerate(zip(weight_NK, expert_NK, strict=True)):
        for weight, number in zip(weights, numbers, strict=True):
            one = {name: part[number] for name, part in zip(parts, experts, strict=True)}
            expected[row] += weight * swiglu(x_ND[row], one)

    def loss(way, x_ND, weight_NK, experts):
        y_ND = way(x_ND, weight_NK, jnp.asarray(expert_NK), experts)
        return jnp.sum(jnp.sin(y_ND)), y_ND

    def close(found, wanted):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=within * max(1, np.abs(wanted).max()))

    gradient = jax.jit(jax.grad(loss, argnums=(1, 2, 3), has_aux=True), static_argnums=0)
    with jax.enable_x64(True):
        wanted, _ = gradient(all_experts, x_ND, weight_NK, experts)
        arrays = jax.tree.map(lambda array: array.astype(dtype), (x_ND, weight_NK, experts))
        found, y_ND = gradient(WAYS[way], *arrays)
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves((found, y_ND)))
    close(y_ND, expected)
    jax.tree.map(close, found, wanted)
    assert not np.asarray(found[2][0])[-1].any() and np.asarray(found[2][0])[0].any()


@pytest.mark.parametrize("way", ["blocks", "ragged", "as on GPUs"])
def test_in_16_bits_gradients_of_experts_are_summed_in_more(way, monkeypatch):
    """Of more rows than bfloat16 can count."""
    on_platform_of(way, monkeypatch)
    rows, ones = 300, jnp.ones
    arrays = ones((rows, 1), jnp.bfloat16), ones((rows, 1)), jnp.zeros((rows, 1), jnp.int32)
    experts = tuple(ones((2, 1, 1), jnp.bfloat16) for _ in range(3))

    def loss(experts):
        return WAYS[way](*arrays, experts).astype(jnp.float32).sum()

    down = jax.grad(loss)(experts)[2]
    assert abs(float(down[0, 0, 0]) / (rows * float(jax.nn.silu(1.0))) - 1) < 0.01


OTHER_COUNTS = [pytest.param(counts, marks=pytest.mark.slow) for counts in ((512, 0, 0, 0), (128, 128, 128, 128))]


@pytest.mark.parametrize("counts", [(300, 0, 200, 12), *OTHER_COUNTS])
@pytest.mark.parametrize("sizes", [(128, 384), (256, 128)])
def test_a_tpus_kernels_have_the_gradients_of_a_ragged_product(counts, sizes, monkeypatch):
    """In Pallas' interpreter, with more than one tile a side."""
    monkeypatch.setattr(ragged, "SIDES", (1024, 512))
    rng = np.random.default_rng(0)
    shapes = (ROWS, sizes[0]), (len(counts), *sizes), (ROWS, sizes[1])
    x_MI, matrix_EIO, dy_MO = (rng.standard_normal(shape, np.float32) for shape in shapes)
    counts_E = jnp.array(counts, jnp.int32)
    found = tpu_transposes(x_MI, matrix_EIO, counts_E, dy_MO, interpret=True)
    wanted = jax.vjp(lambda x, matrix: jax.lax.ragged_dot(x, matrix, counts_E), x_MI, matrix_EIO)[1](dy_MO)
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


CONFIG = MixtralConfig(
    layers=2, embed=8, heads=2, kv_heads=1, head_dim=4, mlp=6, vocab=11, experts=4, experts_per_token=2
)


def test_a_router_that_knows_nothing_and_one_that_knows_one_answer_say_so():
    tokens, params = np.arange(20).reshape(2, 10) % 11, noisy(CONFIG, np.float32)
    routers = params["blocks"]["moe"]
    routers["router"] = np.zeros_like(routers["router"])
    loss, added, said = jax.jit(measured, static_argnums=(0, 3))(CONFIG, params, tokens, Pass())
    # Ties go to the first two experts.
    assert (said["moe_load_max"], said["moe_load_min"]) == (2, 0)
    assert abs(said["moe_entropy"] - np.log(4)) < 1e-6
    assert added.keys() == {"balance_loss"} and loss == losses(CONFIG, params, tokens)[0]
    none = dataclasses.replace(CONFIG, layers=0)
    empty = jax.tree.map(lambda leaf: leaf[:0], params["blocks"])
    assert measured(none, params | {"blocks": empty}, tokens, Pass())[1:] == ({}, {})


@pytest.mark.slow
def test_it_trains_on_eight_devices_as_on_one():
    """Each device sorts its own rows, and has a part of every expert's units."""
    found = on_eight_devices(Path(__file__).parent / "mixture_on_eight.py")
    for many, one in zip(found["many"], found["one"], strict=True):
        assert many.keys() == one.keys() >= {"loss", "balance_loss", "grad_norm", "moe_load_max", "moe_entropy"}
        for name, value in one.items():
            assert abs(many[name] - value) < 1e-4 * max(1, abs(value)), name
    assert found["apart"].keys() == {"blocks", "ragged"} and max(found["apart"].values()) < 1e-5


def test_a_run_records_what_its_routers_do(tmp_path):
    model = tiny.MODEL | {"architecture": "mixtral", "experts": 4, "experts_per_token": 2}
    settings = tiny.run_config(tiny.write_corpus(tmp_path), tiny.stage(2, model=model, microbatches=2))
    train(settings, tmp_path / "run")
    of_steps = [record for record in tiny.records(tmp_path / "run") if record["step"]]
    assert len(of_steps) == 2
    for record in of_steps:
        assert 0 <= record["moe_load_min"] <= 1 <= record["moe_load_max"] <= 2
        assert 0 < record["moe_entropy"] <= np.log(4) + 1e-6
