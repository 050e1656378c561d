"""Growth of mixtures: what parts the copies of an expert, and at what price; which are copied; their moments."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from oracle import KEY, SMALL, difference_in_numpy, grown_in_numpy, noisy
from trees import leaf_at

from growlm import InputError, ModelConfig
from growlm.growth import claim, plan_growth
from growlm.growth.mixtures import order_by_norm
from growlm.growth.state import map_optimizer_state
from growlm.models import MixtralConfig, OlmoeConfig, Weight

SHAPE = dataclasses.asdict(SMALL) | {"mlp": 8}
FOUR = MixtralConfig(**SHAPE, experts=4, experts_per_token=2)
EIGHT = dataclasses.replace(FOUR, experts=8, experts_per_token=4)
DENSE = ModelConfig(**SHAPE)
PARTS = {"gate": 3, "up": 3, "down": 2}  # the dimension of their units


@pytest.fixture(autouse=True)
def drawn_in_numpy(monkeypatch):
    """What is drawn for a weight, by its key, with nothing compiled."""

    def initial(weight, key, config, whole=False):
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
        shape = weight.shape(config) if whole else weight.block_shape(config)
        return weight.std(config) * rng.standard_normal(shape)

    monkeypatch.setattr(Weight, "initial", initial)
    monkeypatch.setattr(Weight, "noise", lambda weight, key, config: initial(weight, key, config, whole=True))


def test_dropped_units_are_of_one_set_for_all_matrices_of_an_expert_and_look_like_what_they_replace():
    source = dataclasses.replace(DENSE, embed=40, mlp=80)
    target = MixtralConfig(**dataclasses.asdict(source), experts=4, experts_per_token=2)
    before, after, growth = grown_in_numpy(source, target, "direct", drop_units=0.25)
    assert not claim(growth, source, target)[0] and "0.25 of every expert's units" in claim(growth, source, target)[1]
    assert growth.effects[0].report() == {"share": 0.25, "units": {"mlp": 20}}
    sets = {}
    for part, units in PARTS.items():
        old, new = leaf_at(before, f"blocks/mlp/{part}")[:, None], leaf_at(after, f"blocks/moe/{part}")
        other = (np.broadcast_to(old, new.shape) != new).swapaxes(2, units)
        assert np.array_equal(other.any(axis=3), other.all(axis=3))  # whole units, and all else to the bit
        sets[part] = other.any(axis=3)
        replaced = np.broadcast_to(old, new.shape).swapaxes(2, units)[sets[part]].ravel()
        drawn = new.swapaxes(2, units)[sets[part]].ravel()
        assert abs(drawn.std() / replaced.std() - 1) < 0.05 and abs(drawn.mean() - replaced.mean()) < 0.05
        assert abs(np.corrcoef(drawn, replaced)[0, 1]) < 0.1
    assert np.array_equal(sets["gate"], sets["up"]) and np.array_equal(sets["gate"], sets["down"])
    assert np.all(sets["gate"].sum(axis=2) == 20) and len(np.unique(sets["gate"].reshape(-1, 80), axis=0)) == 8


def test_dropped_units_where_there_is_no_mixture_or_none_to_drop_change_nothing():
    for source, target in ((DENSE, dataclasses.replace(DENSE, mlp=16)), (FOUR, dataclasses.replace(EIGHT, mlp=8))):
        change, claimed, _ = difference_in_numpy(source, target, "direct", drop_units=0.01)
        assert claimed and change < 1e-11


def test_noise_that_cancels_parts_what_copies_add_where_they_are_weighed_alike_and_keeps_the_function():
    change, claimed, growth = difference_in_numpy(FOUR, EIGHT, "direct", noise=0.5, cancel=True)
    assert claimed and change < 1e-11 and growth.effects[-1].alike == ("experts",)
    _, after, _ = grown_in_numpy(FOUR, EIGHT, "direct", noise=0.5, cancel=True)
    moe = after["blocks"]["moe"]
    assert np.abs(moe["down"][:, :4] - moe["down"][:, 4:]).min() > 0
    assert all(np.array_equal(moe[part][:, :4], moe[part][:, 4:]) for part in ("gate", "up"))
    # As many chosen as before: which copies are chosen is up to ties, so noise would be heard.
    few = dataclasses.replace(EIGHT, experts_per_token=2)
    _, after, growth = grown_in_numpy(FOUR, few, "direct", noise=0.5, cancel=True)
    down = after["blocks"]["moe"]["down"]
    assert growth.effects[-1].alike == () and np.array_equal(down[:, :4], down[:, 4:])
    # From one MLP the copies have routers of their own, which weigh them as they like.
    assert plan_growth("direct", DENSE, FOUR, KEY, noise=0.5, cancel=True).effects[-1].alike == ()


def test_noise_on_routers_is_on_copies_alone_and_is_heard():
    before, after, _ = grown_in_numpy(FOUR, EIGHT, "direct", router_noise=0.1)
    old, new = before["blocks"]["moe"]["router"], after["blocks"]["moe"]["router"]
    np.testing.assert_array_equal(new[..., :4], old)
    assert 0.05 < (new[..., 4:] - old).std() / old.std() < 0.2
    change, claimed, _ = difference_in_numpy(FOUR, EIGHT, "direct", router_noise=0.1)
    assert not claimed and change > 1e-6
    assert claim(plan_growth("direct", DENSE, FOUR, KEY, router_noise=0.1), DENSE, FOUR)[0]  # fresh ones have none


def test_experts_with_the_largest_weights_are_copied_three_times_each():
    config, params = dataclasses.replace(FOUR, experts=6), noisy(dataclasses.replace(FOUR, experts=6))
    sizes = np.asarray([1, 5, 2, 4, 3, 0.5])
    for part in ("gate", "up", "down"):
        shape = (1, 6, 1, 1)
        moe = params["blocks"]["moe"]
        moe[part] = np.ones_like(moe[part]) * (sizes if part != "down" else 1 / sizes).reshape(shape)
    assert order_by_norm(config, params, 12) == [0, 1, 2, 3, 4, 5, 1, 1, 1, 3, 3, 3]
    assert order_by_norm(config, params, 9, most=1) == [0, 1, 2, 3, 4, 5, 1, 3, 4]
    with pytest.raises(InputError, match="must be a mixture of experts, got 'llama'"):
        order_by_norm(DENSE, noisy(DENSE), 12)


@pytest.mark.parametrize(
    ("order", "claimed"),
    [([0, 1, 2, 3, 3, 2, 1, 0], True), ([0, 1, 2, 3, 0, 0, 0, 1], False)],
    ids=["as many of each", "some more often"],
)
def test_experts_are_copied_in_the_order_that_is_given(order, claimed):
    before, after, _ = grown_in_numpy(FOUR, EIGHT, "direct", expert_order=order)
    for part in ("gate", "router"):
        old, new = (tree["blocks"]["moe"][part] for tree in (before, after))
        axis = 1 if part == "gate" else 2
        np.testing.assert_array_equal(new, np.take(old, order, axis=axis))
    change, says, _ = difference_in_numpy(FOUR, EIGHT, "direct", expert_order=order)
    assert says is claimed and bool(change < 1e-11) is claimed


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"expert_order": "norm"}, '"cycle" or a list'),
        ({"expert_order": [0, 1, 2, 3]}, "8 numbers that have each from 0 to 3"),
        ({"expert_order": [0, 1, 2, 2, 0, 1, 2, 2]}, "8 numbers that have each from 0 to 3"),
        ({"drop_units": 1.5}, "drop_units must be"),
        ({"router_noise": -1}, "router_noise must be"),
    ],
)
def test_options_out_of_range_are_one_line(options, says):
    with pytest.raises(InputError, match=says):
        plan_growth("direct", FOUR, EIGHT, KEY, **options)


def test_moments_of_experts_and_routers_go_by_the_dual_map():
    """Of 2 copies that are chosen together each has half of the gradient, and a quarter of its square."""
    growth, params = plan_growth("direct", FOUR, EIGHT), noisy(FOUR, np.float32)
    state = optax.ScaleByAdamState(count=np.int32(3), mu=params, nu=jax.tree.map(np.square, params))
    after = map_optimizer_state(growth, FOUR, state, "map")
    for field, power in (("mu", 1), ("nu", 2)):
        before, mapped = (getattr(one, field)["blocks"] for one in (state, after))
        for part, axis in {"gate": 1, "up": 1, "down": 1, "router": 2}.items():
            old = before["moe"][part]
            want = np.concatenate([old, old], axis=axis) / 2**power
            np.testing.assert_allclose(mapped["moe"][part], want, rtol=1e-6)
        np.testing.assert_array_equal(mapped["attn"]["out"], before["attn"]["out"])


def test_a_norm_over_all_heads_is_felt_where_heads_are_not_copied_evenly():
    sizes = {"layers": 2, "embed": 12, "heads": 4, "kv_heads": 2, "head_dim": 4, "mlp": 8, "vocab": SMALL.vocab}
    source = OlmoeConfig(**sizes, experts=2, experts_per_token=1)
    even = dataclasses.replace(source, heads=8, kv_heads=4)
    change, claimed, _ = difference_in_numpy(source, even, "direct")
    assert claimed and change < 1e-11
    for operator, target in (("direct", dataclasses.replace(source, heads=6, kv_heads=3)), ("zero", even)):
        change, claimed, growth = difference_in_numpy(source, target, operator)
        assert not claimed and change > 1e-6
        assert "the mean square over" in claim(growth, source, target)[1]
