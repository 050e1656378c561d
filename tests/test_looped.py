"""Looped decoders (arXiv 2609.19107) against a twin written by hand in PyTorch, and the paper's own numbers."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracle import difference_in_numpy
from representatives import few
from trees import leaf_at, noisy, random_tokens

from growlm import InputError
from growlm.growth import PRESETS, claim, grow_state, plan_growth
from growlm.models import LoopedConfig, apply, flops_per_token, init, matmul_parameter_count, next_token_loss
from growlm.models import parameter_count as parameters
from growlm.models.looped import before_growth, thirds
from growlm.training.optimizer import OptimizerConfig, make_optimizer
from growlm.training.step import init_state

SIZES = {"embed": 32, "heads": 2, "head_dim": 16, "mlp": 48, "vocab": 40, "prelude": 1, "coda": 2}
FACTORS = {"residual_multiplier": 0.25, "output_multiplier": 0.5}
UNTIED = LoopedConfig(layers=7, cores=2, injection=0.7071, **SIZES, **FACTORS)
TIED = LoopedConfig(layers=5, passes=2, injection=0.7071, **SIZES, **FACTORS)
VANILLA = LoopedConfig(layers=5, **SIZES, **FACTORS)
MODELS = {"untied": UNTIED, "tied": TIED, "vanilla": VANILLA}


def twin(torch, config, params, tokens):
    """Logits, by the paper's facts: no line of it is growlm's. Heads, rotation by minus the angle, then their norm."""
    F, eps, length, size = torch.nn.functional, config.norm_eps, tokens.shape[1], config.head_dim

    def norm(x):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)

    angle = torch.arange(length)[:, None] * config.rope_theta ** (-torch.arange(0, size, 2) / size)
    cos, sin = angle.cos(), angle.sin()

    def rotate(x):  # [batch, heads, length, size]
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos + b * sin, b * cos - a * sin], -1)

    def block(x, layer):
        attn, mlp = params["blocks"]["attn"], params["blocks"]["mlp"]
        y = norm(x)
        q, k, v = (torch.einsum("btd,dhe->bhte", y, attn[name][layer]) for name in ("query", "key", "value"))
        q, k = norm(rotate(q)), norm(rotate(k))
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=size**-0.5)
        x = x + config.residual_multiplier * torch.einsum("bhte,hed->btd", o, attn["out"][layer])
        y = norm(x)
        inner = F.silu(y @ mlp["gate"][layer]) * (y @ mlp["up"][layer])
        return x + config.residual_multiplier * inner @ mlp["down"][layer]

    x = norm(params["embedding"][tokens])
    for layer in range(config.prelude):
        x = block(x, layer)
    entry, first = x, config.prelude
    for core in range(config.cores):
        for _ in range(config.passes):
            for layer in range(first + core * config.core, first + (core + 1) * config.core):
                x = block(x, layer)
            if config.injection is not None:
                x = norm(x) + config.injection * entry
    for layer in range(config.layers - config.coda, config.layers):
        x = block(x, layer)
    return config.output_multiplier * norm(x) @ params["head"]


@pytest.mark.parametrize("name", few(MODELS, ["tied"]))
@pytest.mark.slow
def test_logits_and_one_optimizer_step_are_those_of_a_twin_in_pytorch(name):
    torch = pytest.importorskip("torch")
    config, rate = MODELS[name], 0.01
    params, tokens = noisy(config), np.asarray(random_tokens(config, 2, 25))
    with_grad = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf), requires_grad=True), params)
    logits = twin(torch, config, with_grad, torch.tensor(tokens[:, :-1]).long())
    own = apply(config, params, jnp.asarray(tokens[:, :-1]))
    np.testing.assert_allclose(own, logits.detach().numpy(), atol=1e-4)

    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(tokens[:, 1:]).long().flatten())
    leaves = jax.tree.leaves(with_grad)
    theirs = torch.optim.AdamW(leaves, lr=rate, betas=(0.8, 0.95), eps=1e-8, weight_decay=0.07)
    loss.backward()
    theirs.step()
    adamw = optax.adamw(rate, b1=0.8, b2=0.95, eps=1e-8, weight_decay=0.07)
    gradient = jax.jit(jax.grad(partial(next_token_loss, config)))(params, tokens)
    updates, _ = adamw.update(gradient, adamw.init(params), params)
    # Adam's first step is the sign of a gradient: where that is nearly nothing its rounding decides.
    steady = jax.tree.map(lambda leaf: ((leaf.grad.abs() > 1e-6) | (leaf.grad == 0)).numpy(), with_grad)
    for here, there, sure in zip(
        jax.tree.leaves(optax.apply_updates(params, updates)), leaves, jax.tree.leaves(steady), strict=True
    ):
        np.testing.assert_allclose(np.where(sure, here, 0), np.where(sure, there.detach().numpy(), 0), atol=1e-5)
        assert sure.mean() > 0.9


def test_it_starts_with_the_papers_scales_and_only_the_head_learns_at_first():
    """A public replication started matrices sqrt(embed) times too large."""
    config = dataclasses.replace(UNTIED, embed=256, mlp=512, init_scale=0.0625, embedding_std=0.02)
    params = init(config, jax.random.key(0))
    for path in ("attn/query", "attn/key", "attn/value", "mlp/gate", "mlp/up"):
        values = np.asarray(leaf_at(params, f"blocks/{path}"))
        assert values.std() == pytest.approx(0.0625 / np.sqrt(3 * 256), rel=0.02)
        assert np.abs(values).max() <= 0.0625 / 16 and np.abs(values).max() > 0.99 * 0.0625 / 16
    assert np.std(params["embedding"]) == pytest.approx(0.02, rel=0.02)
    assert not any(np.any(leaf_at(params, path)) for path in ("blocks/attn/out", "blocks/mlp/down", "head"))
    small = init(UNTIED, jax.random.key(0))
    loss, gradient = jax.jit(jax.value_and_grad(partial(next_token_loss, UNTIED)))(small, random_tokens(UNTIED, 2, 17))
    assert float(loss) == pytest.approx(np.log(UNTIED.vocab), abs=1e-6)
    moved = {path for path in UNTIED.architecture.weights if np.any(leaf_at(gradient, path))}
    assert moved == {"head"}


def published(size, cores, passes=1):
    """A size of the paper, with d heads of 128."""
    prelude, core, coda = thirds(size)
    width = 128 * size
    mlp = -(-(8 * width // 3) // 256) * 256
    layers = prelude + cores * core + coda
    shape = {"embed": width, "heads": size, "head_dim": 128, "mlp": mlp, "vocab": 50304}
    return LoopedConfig(layers, **shape, prelude=prelude, coda=coda, cores=cores, passes=passes, injection=1.0)


def test_thirds_are_the_papers():
    assert [thirds(size) for size in (6, 8, 10, 12, 14, 16, 26)] == [
        (2, 2, 2), (2, 3, 3), (3, 4, 3), (4, 4, 4), (4, 5, 5), (5, 6, 5), (8, 9, 9),
    ]  # fmt: skip


def test_parameters_and_flops_are_the_papers():
    counts = {(6, 2): 133_890_048, (6, 4): 162_201_600, (8, 2): 244_318_208, (8, 4): 321_388_544}
    counts |= {(18, 4): 2_525_036_544}
    assert {key: parameters(published(*key)) for key in counts} == counts
    tokens = 524_288 * round(6 * counts[6, 2] / 524_288)
    assert flops_per_token(published(6, 2), 2048) * tokens == pytest.approx(5.197e17, rel=1e-4)
    # A tied loop stores one core, and computes as the untied one does.
    tied = published(6, 1, passes=2)
    assert parameters(tied) < counts[6, 2] and flops_per_token(tied, 2048) == flops_per_token(published(6, 2), 2048)
    assert matmul_parameter_count(tied) == matmul_parameter_count(published(6, 2))


def test_growth_doubles_the_cores_in_place_and_is_not_exact():
    target = dataclasses.replace(UNTIED, layers=11, cores=4)
    assert before_growth(target) == UNTIED
    growth = plan_growth("direct", UNTIED, target)
    assert growth.order == (0, 1, 2, 3, 4, 1, 2, 3, 4, 5, 6)
    kept, reason = claim(growth, UNTIED, target)
    assert not kept and "more than once" in reason
    deeper = plan_growth("direct", VANILLA, dataclasses.replace(VANILLA, layers=7))
    assert deeper.order == (0, 1, 2, 1, 2, 3, 4)  # without a boundary too, prelude and coda stay where they are


def test_a_tied_core_becomes_cores_of_their_own_exactly_and_its_moments_are_a_start():
    untied = dataclasses.replace(TIED, layers=7, cores=2, passes=1)
    logits, claimed, growth = difference_in_numpy(TIED, untied, "direct")
    assert claimed and logits < 1e-12 and growth.order == (0, 1, 2, 1, 2, 3, 4)
    again = dataclasses.replace(TIED, passes=4)
    logits, claimed, _ = difference_in_numpy(TIED, again, "direct")
    assert not claimed and logits > 1e-6


def test_width_is_exact_and_changed_factors_are_undone():
    target = dataclasses.replace(UNTIED, embed=48, heads=3, mlp=64, residual_multiplier=0.5, output_multiplier=0.25)
    for operator, options in (("direct", {}), ("zero", {"fill": "zeros"})):
        logits, claimed, growth = difference_in_numpy(UNTIED, target, operator, **options)
        assert claimed and logits < 1e-12
        assert {path: float(f[0]) for path, f in growth.factors.items() if path != "head"} == {
            "blocks/attn/out": 0.5, "blocks/mlp/down": 0.5,
        }  # fmt: skip
        assert growth.factors["head"] == 2.0
    logits, claimed, _ = difference_in_numpy(UNTIED, target, "zero", norm="gain", fill="zeros")
    assert not claimed and logits > 1e-6


def test_carried_layers_keep_their_moments_and_copies_start_without():
    target, optimizer = dataclasses.replace(UNTIED, layers=11, cores=4), OptimizerConfig(kind="muon")
    state = init_state(UNTIED, optimizer, 0)
    opt_state = jax.tree.map(lambda leaf: leaf + 2 if jnp.ndim(leaf) else leaf, state.opt_state)
    state = dataclasses.replace(state, opt_state=opt_state)
    grown, report = grow_state(state, UNTIED, target, make_optimizer(optimizer, target), "untied_grow", "keep_old")
    assert report["optimizer_state"] == "keep_old"
    carried = [True] * 5 + [False] * 4 + [True] * 2
    checked = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(grown.opt_state):
        _, weight, rest = target.architecture.match_weight(path)
        if weight is not None and weight.stacked and rest in ("", "0"):
            moved = np.asarray(leaf).reshape(11, -1)
            assert np.all(moved[carried] == 2) and not np.any(moved[~np.asarray(carried)])
            checked += 1
    assert checked >= 7


def test_the_papers_growths_are_presets():
    names = ("untied_grow", "loop_grow", "deep_vanilla_grow")
    assert all(PRESETS[name].optimizer_state == "keep_old" for name in names)
    (first, second) = PRESETS["untied_grow"].stages(dataclasses.replace(UNTIED, layers=11, cores=4))
    assert first.model == UNTIED and second.model.cores == 4
    (first, second) = PRESETS["loop_grow"].stages(dataclasses.replace(TIED, passes=4))
    assert first.model == TIED and second.model.passes == 4
    with pytest.raises(InputError, match="cores must be even, to be doubled by growth, got 3"):
        before_growth(dataclasses.replace(UNTIED, layers=9, cores=3))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"layers": 8},
            r"layers must be model.prelude \+ model.coda \+ a multiple of model.cores, 1 \+ 2 \+ n x 2, got 8",
        ),
        ({"passes": 2}, "passes must be 1 with 2 cores, each of which is run once, got 2"),
        ({"injection": 0.0}, "injection must be"),
    ],
)
def test_shapes_that_are_none_are_one_line(changes, said):
    with pytest.raises(InputError, match=said):
        dataclasses.replace(UNTIED, **changes)
