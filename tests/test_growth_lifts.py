"""Lifts: the same function in a larger family, and moments and ages that go with their weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import SMALL, TOKENS, forward, noisy
from trees import leaf_at

from growlm import InputError
from growlm.growth import LIFTS, plan_growth
from growlm.growth.lifts import lift
from growlm.growth.state import map_optimizer_state
from growlm.models import GptNeoxConfig, MixtralConfig, apply, path_of
from growlm.training.muon import MuonConfig
from growlm.training.optimizer import OptimizerConfig, make_optimizer

EXPERTS = {"experts": 1, "experts_per_token": 1, "router_aux_loss": 0.01}
FEW = {"experts": 3, "experts_per_token": 2, "normalised": False}
TIED = dataclasses.replace(SMALL, tie_embeddings=True, qkv_bias=True, qk_norm=True)


def mixtral(config, **changes):
    return MixtralConfig(**dataclasses.asdict(config) | EXPERTS | changes)


NEOX = GptNeoxConfig(layers=2, embed=6, heads=2, head_dim=4, mlp=5, vocab=17, rotary_dim=2, tie_embeddings=True)
# The names of the lifts that lead from a source to a target.
CHAINS = {
    "untie": (TIED, dataclasses.replace(TIED, tie_embeddings=False)),
    "experts": (SMALL, mixtral(SMALL)),
    "untie, experts": (TIED, mixtral(TIED, tie_embeddings=False)),
    "shared": (SMALL, mixtral(SMALL, mlp=3, shared_mlp=SMALL.mlp, **FEW)),
    "weighed": (SMALL, mixtral(SMALL, mlp=3, shared_mlp=SMALL.mlp, shared_router=True, **FEW)),
    "beside": (mixtral(SMALL, **FEW), mixtral(SMALL, shared_mlp=4, shared_router=True, **FEW)),
}
CASES = CHAINS | {
    "untie a GPT-NeoX": (NEOX, dataclasses.replace(NEOX, tie_embeddings=False)),
    "untie a mixture": (mixtral(TIED), mixtral(TIED, tie_embeddings=False)),
    "experts, tied": (TIED, mixtral(TIED)),
}


def test_every_lift_is_tried_here():
    assert set(LIFTS) <= CHAINS.keys()


@pytest.mark.parametrize("name", CASES)
def test_a_lift_keeps_the_logits(name):
    source, target = CASES[name]
    lifted, params = lift(source, target), noisy(source)
    assert lifted.config == target
    if name in CHAINS:
        assert lifted.name == name
    after = lifted.params(params)
    scale = np.abs(forward(source, params, TOKENS)).max()
    np.testing.assert_allclose(forward(target, after, TOKENS), forward(source, params, TOKENS), atol=1e-12 * scale)


@pytest.mark.parametrize("name", CHAINS)
def test_a_lift_keeps_the_logits_of_growlms_own_models(name):
    source, target = CHAINS[name]
    with jax.enable_x64(True):
        params, tokens = noisy(source), jnp.asarray(TOKENS, jnp.int32)
        before = apply(source, params, tokens, dtype=jnp.float64)
        after = apply(target, lift(source, target).params(params), tokens, dtype=jnp.float64)
    np.testing.assert_allclose(after, before, atol=1e-12 * np.abs(before).max())


def test_no_lift_leads_from_a_model_to_itself_nor_back():
    assert lift(SMALL, dataclasses.replace(SMALL, layers=5)) is None
    for source, target in ((mixtral(SMALL), SMALL), (NEOX, SMALL), (SMALL, NEOX)):
        with pytest.raises(InputError, match=r"architecture must be .* or one that a lift leads to"):
            lift(source, target)
    with pytest.raises(InputError, match="tie_embeddings"):
        plan_growth("direct", dataclasses.replace(TIED, tie_embeddings=False), TIED)


def numbered(tree, begin=1):
    """A tree of these shapes in which every number of every leaf is another one."""
    leaves, structure = jax.tree.flatten(tree)
    sizes = np.cumsum([begin] + [int(np.prod(leaf.shape)) for leaf in leaves])
    numbers = [
        np.arange(a, b).reshape(leaf.shape).astype(leaf.dtype)
        for a, b, leaf in zip(sizes, sizes[1:], leaves, strict=False)
    ]
    return jax.tree.unflatten(structure, numbers)


def at(opt_state, field, path):
    """What a state has for a weight in the tree of that name; None where it has nothing."""
    leaves = jax.tree_util.tree_leaves_with_path(opt_state)
    found = [leaf for place, leaf in leaves if f"/{path_of(place)}".endswith(f"/{field}/{path}")]
    assert len(found) <= 1
    return np.asarray(found[0]) if found else None


def ages(opt_state, path, ndim):
    return [at(opt_state, "ages", f"{path}/{number}") for number in range(ndim)]


def before_the_lift(source, target, path):
    """The path of a weight in the source; None of a new one."""
    mlp = "/moe/shared_" if getattr(target, "shared_mlp", 0) else "/moe/"
    old = path.replace(mlp, "/mlp/").replace("moe_norm", "mlp_norm")
    old = "embedding" if path == "head" and source.tie_embeddings else old
    held = {weight.path for weight in source.weights}
    return path if path in held else old if old in held else None


NEURONS = OptimizerConfig(kind="muon", muon=MuonConfig(variance="longer"))


@pytest.mark.parametrize(
    "config", [OptimizerConfig(), OptimizerConfig(kind="muon"), NEURONS], ids=["adamw", "muon", "neurons"]
)
@pytest.mark.parametrize("name", CHAINS)
def test_moments_and_ages_go_with_their_weights(name, config):
    source, target = CHAINS[name]
    lifted = lift(source, target)
    before = numbered(jax.eval_shape(make_optimizer(config, source).init, noisy(source, np.float32)))
    optimizer, params = make_optimizer(config, target), lifted.params(noisy(source, np.float32))
    after = lifted.optimizer_state(optimizer, before, params)
    like = jax.eval_shape(optimizer.init, params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), like)
    seen = 0
    for weight in target.weights:
        path, shape = weight.path, weight.shape(target)
        origin = before_the_lift(source, target, path)
        turned, fresh = path != origin and path == "head", origin is None
        halved = path.endswith("shared_down") and target.shared_router and not fresh
        powers = {"mu": 1, "nu": 2, "by_output": 0, "by_input": 0}
        for field, power in powers.items():
            if (have := at(after, field, path)) is None:
                continue
            seen += 1
            old = None if fresh else at(before, field, origin)
            if old is None:  # a weight of another group, or new
                assert not have.any(), (field, path)
                continue
            want = (old.T if turned else old.reshape(have.shape)) / (2 * halved * power or 1)
            np.testing.assert_array_equal(have, want, err_msg=f"{field}/{path}")
        of_dims = ages(after, path, len(shape))
        if of_dims[0] is None:
            continue
        if fresh:
            assert not any(age.any() for age in of_dims if age is not None)
            continue
        old = ages(before, origin, leaf_at(noisy(source), origin).ndim)
        if turned:
            old = old[::-1]
        if len(shape) > len(old):  # layers, then the expert, which is as old as the oldest
            oldest = np.max(np.concatenate([age for age in old if age is not None]), keepdims=True)
            old = [old[0], oldest, *old[1:]]
        for have, want in zip(of_dims, old, strict=True):
            np.testing.assert_array_equal(have, want, err_msg=path)
    assert seen > len(list(target.weights))
    counters = [leaf for place, leaf in jax.tree_util.tree_leaves_with_path(after) if path_of(place).endswith("count")]
    assert all(int(leaf) > 0 for leaf in counters)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_lifted_moments_grow_by_the_maps(kind):
    source, target = SMALL, mixtral(SMALL, experts=3, experts_per_token=2, layers=3, mlp=20)
    growth, config = plan_growth("direct", source, target, jax.random.key(0)), OptimizerConfig(kind=kind)
    before = numbered(jax.eval_shape(make_optimizer(config, source).init, noisy(source, np.float32)))
    begun = growth.lift.params(noisy(source, np.float32))
    state = growth.lift.optimizer_state(make_optimizer(config, growth.lift.config), before, begun)
    after = map_optimizer_state(growth, growth.lift.config, state, "map_aged")
    old, new = at(before, "mu", "blocks/mlp/down"), at(after, "mu", "blocks/moe/down")
    # Three copies of the expert have a third of its gradient each; the neurons are read in halves, so written whole.
    want = np.concatenate([old, old], axis=1)[[0, 1, 0]] / 3
    for expert in range(3):
        np.testing.assert_allclose(new[:, expert], want, rtol=1e-6)
