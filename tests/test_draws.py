"""Keys of growlm/models/draws.py: the values of JAX's own, in one pass over memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from growlm.models.draws import in_one_pass

KEY = jax.random.fold_in(jax.random.key(2024), 7)


@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 4), (2, 1, 65), (0, 3)])
def test_values_are_those_of_jax(shape):
    ours = in_one_pass(KEY)
    for draw in (jax.random.normal, jax.random.uniform, jax.random.bits, jax.random.bernoulli):
        np.testing.assert_array_equal(draw(ours, shape=shape), draw(KEY, shape=shape))
    np.testing.assert_array_equal(jax.random.bits(ours, shape, "uint8"), jax.random.bits(KEY, shape, "uint8"))


def test_keys_made_of_it_are_those_of_jax():
    ours, data = in_one_pass(KEY), jax.random.key_data
    for number in (0, 1, 2**31, 2**32 - 1):
        number = np.uint32(number)
        np.testing.assert_array_equal(data(jax.random.fold_in(ours, number)), data(jax.random.fold_in(KEY, number)))
    np.testing.assert_array_equal(data(jax.random.split(ours, 3)), data(jax.random.split(KEY, 3)))
    assert in_one_pass(ours) is ours


def test_key_of_another_generator_is_left_alone():
    other = jax.random.key(0, impl="rbg")
    assert in_one_pass(other) is other


def test_draw_needs_no_memory_but_the_result():
    def temporary(key):
        return jax.jit(lambda key: jax.random.normal(key, (64, 1024))).lower(key).compile().memory_analysis()

    assert temporary(in_one_pass(KEY)).temp_size_in_bytes < 1024 < jnp.zeros((64, 1024)).nbytes
