"""The chunked cross-entropy is the plain one, and never holds all logits."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growlm import loss
from growlm.loss import cross_entropy


def plain(x_ND, head_DV, target_BT):
    logits_NV = loss.logits(x_ND, head_DV)
    return optax.softmax_cross_entropy_with_integer_labels(logits_NV, target_BT.reshape(-1)).mean()


def drawn(batch, length, embed, vocab, dtype, seed=0):
    """Hidden states, a head and targets: logits of about 1, as different as those of a model that has learned a bit."""
    keys = jax.random.split(jax.random.key(seed), 3)
    x_ND = jax.random.normal(keys[0], (batch * length, embed), dtype)
    head_DV = jax.random.normal(keys[1], (embed, vocab), dtype) * embed**-0.5
    return x_ND, head_DV.astype(dtype), jax.random.randint(keys[2], (batch, length), 0, vocab)


def with_gradients(function, x_ND, head_DV, target_BT):
    """The loss and its gradients, scaled on the way as a sum of losses would."""
    return jax.value_and_grad(lambda x, head: 3 * function(x, head, target_BT), argnums=(0, 1))(x_ND, head_DV)


@settings(max_examples=25)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 7),
    embed=st.integers(1, 5),
    vocab=st.integers(1, 9),
    most=st.integers(1, 80),
)
def test_any_chunks_give_the_plain_loss_and_gradients(batch, length, embed, vocab, most):
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "CHUNK", most)
        given = drawn(batch, length, embed, vocab, jnp.float64)
        want = with_gradients(plain, *given)
        for have, expected in zip(*map(jax.tree.leaves, (with_gradients(cross_entropy, *given), want)), strict=True):
            assert have.dtype == jnp.float64
            np.testing.assert_allclose(have, expected, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(3 * cross_entropy(*given), want[0], rtol=1e-13)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rounding_is_no_worse_than_of_the_plain_loss(dtype, monkeypatch):
    monkeypatch.setattr(loss, "CHUNK", 7 * 50)
    given = drawn(4, 16, 32, 50, dtype)
    with jax.enable_x64(True):
        exact = with_gradients(plain, *(leaf.astype(jnp.float64) for leaf in given[:2]), given[2])
        exact = jax.tree.map(np.asarray, exact)
    found = {name: with_gradients(function, *given) for name, function in (("ours", cross_entropy), ("plain", plain))}
    for number, expected in enumerate(jax.tree.leaves(exact)):
        have = {name: np.asarray(jax.tree.leaves(tree)[number], np.float64) for name, tree in found.items()}
        error = {name: np.linalg.norm(value - expected) / np.linalg.norm(expected) for name, value in have.items()}
        assert error["ours"] <= 1.5 * error["plain"] + 1e-7


def test_the_logits_are_never_all_there():
    """By the compiler's own account: the temporary bytes of differentiation are fewer than those of all logits."""
    shapes = drawn(8, 256, 16, 4096, jnp.float32)
    whole = 8 * 256 * 4096 * 4

    def temporary(chunk):
        compiled = jax.jit(partial(with_gradients, partial(loss._mean_loss, chunk))).lower(
            shapes[0], shapes[1], shapes[2].reshape(-1)
        )
        return compiled.compile().memory_analysis().temp_size_in_bytes

    assert temporary(4096 * 64) < whole / 8
    assert temporary(2**40) >= whole  # in one chunk they are: what is asked above can fail
