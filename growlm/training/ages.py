"""How many updates each slice of an array has seen: one count along each dimension, the youngest of which counts."""

from collections.abc import Callable, Sequence
from functools import reduce

import jax
import jax.numpy as jnp

from growlm.growth.maps import along

Ages = tuple[jax.Array | None, ...]  # int32[size] for each dimension; None where a sum was taken


def initial_ages(shape: Sequence[int], held: Callable[[int], bool] = lambda dimension: True) -> Ages:
    """No update yet, along the dimensions that are held."""
    return tuple(jnp.zeros(size, jnp.int32) if held(number) else None for number, size in enumerate(shape))


def bias(decay: float, ages: Ages, moment: jax.Array) -> jax.Array:
    """1 - decay ^ age, broadcastable to the moment: the powers are of vectors, their minimum is taken by element."""
    biases = [(number, 1 - decay**age) for number, age in enumerate(ages) if age is not None]
    return reduce(jnp.minimum, [along(one.astype(moment.dtype), number, moment.ndim) for number, one in biases])
