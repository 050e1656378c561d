"""The modern decoder: what it starts with, and that all of it learns, what growth adds too."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import KEY
from representatives import few
from trees import leaf_at, random_tokens

from growlm import InputError
from growlm.growth import grow
from growlm.models import ModernConfig, init, next_token_loss
from growlm.training.optimizer import OptimizerConfig
from growlm.training.step import StepSpec, init_state, train_step

SMALL = ModernConfig(layers=2, embed=16, heads=2, kv_heads=1, head_dim=4, mlp=24, vocab=32)
TOKENS = random_tokens(SMALL, 4, 13)


def trained(config, params, steps):
    state = init_state(config, OptimizerConfig(), 0, params=jax.tree.map(jnp.copy, params))
    step, arrays = jax.jit(partial(train_step, StepSpec(config, OptimizerConfig()))), state.arrays
    for _ in range(steps):
        arrays, metrics = step(arrays, TOKENS, jnp.float32(1e-2), state.provenance)
    return arrays[0], float(metrics["loss"])


def test_it_starts_without_an_opinion_and_all_of_it_learns():
    params = init(SMALL, KEY)
    assert float(next_token_loss(SMALL, params, TOKENS)) == pytest.approx(np.log(SMALL.vocab), abs=1e-6)
    zeros = {weight.path for weight in SMALL.weights if not np.any(leaf_at(params, weight.path))}
    assert zeros == {"blocks/attn/out", "blocks/mlp/down", "head"}
    after, loss = trained(SMALL, params, 4)
    assert loss < 3.3
    for weight in SMALL.weights:
        moved = leaf_at(after, weight.path) - leaf_at(params, weight.path) * (1 - 1e-2 * 0.1) ** 4
        assert np.abs(moved).max() > 1e-4, weight.path


def test_without_zeros_it_starts_as_other_decoders():
    config = dataclasses.replace(SMALL, zero_init=False, embed=128, mlp=256)
    params = init(config, KEY)
    for weight in config.weights:
        assert np.std(leaf_at(params, weight.path)) == pytest.approx(weight.std(config), rel=0.1), weight.path
    assert next_token_loss(config, params, random_tokens(config, 4, 13)) == pytest.approx(np.log(32), rel=0.1)


@pytest.mark.parametrize("field", few(["mlp", "heads", "embed"], ["mlp"]))
def test_what_padding_adds_learns(field):
    """A squared ReLU is flat at zero, and a zero writer with a zero reader never learns."""
    target = dataclasses.replace(SMALL, **{field: 2 * getattr(SMALL, field)})
    before, _ = trained(SMALL, init(SMALL, KEY), 3)
    grown = grow(before, SMALL, target, "zero", KEY)
    after, _ = trained(target, grown, 3)
    decay = (1 - 1e-2 * 0.1) ** 3
    for weight in target.weights:
        for number, (old, new) in enumerate(zip(weight.shape(SMALL), weight.shape(target), strict=True)):
            moved = leaf_at(after, weight.path) - leaf_at(grown, weight.path) * decay
            if old != new:
                added = np.abs(np.take(moved, range(old, new), number))
                assert np.all(added.max(axis=tuple(n for n in range(added.ndim) if n != number)) > 1e-5), weight.path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"logit_cap": 0}, "logit_cap must be a positive number, got 0"),
        ({"residual_multiplier": 0}, "residual_multiplier must be a positive number, got 0"),
        ({"zero_init": 1}, "zero_init must be True or False, got 1"),
        ({"heads": 3, "kv_heads": 2}, "heads must be a multiple of model.kv_heads, 2, got 3"),
        ({"head_dim": 5}, "head_dim must be even, as RoPE rotates pairs, got 5"),
    ],
)
def test_shapes_that_are_none_are_one_line(changes, said):
    with pytest.raises(InputError, match=said):
        dataclasses.replace(SMALL, **changes)
