"""Threefry in one pass over memory: keys whose random bits are those of JAX's, drawn without a loop.

On CPUs JAX runs the five blocks of rounds of Threefry-2x32 (Salmon et al., SC 2011, section 2.3) as a loop over whole
arrays, which takes four times the result in temporary memory and most of the compiler's time. Here rounds are
unrolled, so that a draw is one loop over its elements.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.extend.random import define_prng_impl

JAX = "threefry2x32"
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def in_one_pass(key: jax.Array) -> jax.Array:
    """The same key, from which all of `jax.random` draws the same values; one that is not Threefry's as it is."""
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=_ONE_PASS) if _is_threefry(key) else key


def _is_threefry(key: jax.Array) -> bool:
    return str(jax.random.key_impl(key)) == JAX


def _hash(key_2: jax.Array, high: jax.Array, low: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Threefry-2x32 of counters, the 32 high and the 32 low bits of each, in 20 rounds."""
    first, second = key_2
    schedule = first, second, first ^ second ^ jnp.uint32(0x1BD11BDA)
    a, b = high + schedule[0], low + schedule[1]
    for block in range(5):
        for bits in _ROTATIONS[block % 2]:
            a = a + b
            b = a ^ ((b << jnp.uint32(bits)) | (b >> jnp.uint32(32 - bits)))
        a = a + schedule[(block + 1) % 3]
        b = b + schedule[(block + 2) % 3] + jnp.uint32(block + 1)
    return a, b


def _random_bits(key_2: jax.Array, width: int, shape: tuple[int, ...]) -> jax.Array:
    size = math.prod(shape)
    if width != 32 or size > 2**32:  # counters beyond 32 bits
        return jax.random.bits(jax.random.wrap_key_data(key_2, impl=JAX), shape, f"uint{width}")
    count, stride = jnp.zeros(shape, jnp.uint32), size
    for dimension, length in enumerate(shape):
        stride //= max(length, 1)
        count += jnp.uint32(stride) * jax.lax.broadcasted_iota(jnp.uint32, shape, dimension)
    a, b = _hash(key_2, jnp.zeros_like(count), count)
    return a ^ b


@partial(jax.jit, inline=True)  # outside of a program one call, not one for each of fifty operations
def _fold_in(key_2: jax.Array, number: int) -> jax.Array:
    return jnp.stack(_hash(key_2, jnp.uint32(0), jnp.asarray(number, jnp.uint32)))


def _seed(number: jax.Array) -> jax.Array:
    return jax.random.key_data(jax.random.key(number, impl=JAX))


def _split(key_2: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.key_data(jax.random.split(jax.random.wrap_key_data(key_2, impl=JAX), shape))


_ONE_PASS = define_prng_impl(
    key_shape=(2,), seed=_seed, split=_split, random_bits=_random_bits, fold_in=_fold_in, name="one_pass", tag="one"
)
