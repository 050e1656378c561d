"""Parameter trees for tests: built from the declaration, with every weight of consequence; and one block alone."""

import contextlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from growlm.models import DecoderConfig, declared, nest
from growlm.models.decoder import Period, of_layers, tables_of
from growlm.models.layers import Context


@contextlib.contextmanager
def exact_products():
    """Accelerators multiply float32 in fewer bits by default. That programs compile quickly is conftest's."""
    with jax.default_matmul_precision("highest"):
        yield


@contextlib.contextmanager
def optimised(wanted):
    """As users compile, where wanted: by the tests' quick compiler noise is computed twice and rounded differently."""
    jax.config.update("jax_disable_most_optimizations", not wanted)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", True)


def leaf_at(tree, path):
    for name in path.split("/"):
        tree = tree[name]
    return np.asarray(tree)


def build(config, leaf_of):
    """The float32 parameter tree of leaf_of(weight)."""
    return nest({weight.path: jnp.asarray(np.asarray(leaf_of(weight), np.float32)) for weight in declared(config)})


def noisy(config, seed=0):
    """Parameters in which every weight matters: no gain is one, no bias zero, and no two layers are alike."""
    rng = np.random.default_rng(seed)

    def values(weight):
        noise = rng.standard_normal(weight.shape(config))
        return (weight.init == "ones") + 0.3 * noise if weight.elementwise else 2 * weight.std(config) * noise

    return build(config, values)


def largest(values):
    """The largest size of any value; NaN of NaN, which a maximum on XLA's CPU backend passes over in 4,096 values."""
    return float(np.max(np.abs(np.asarray(values))))


def random_tokens(config, batch, length, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, config.vocab, (batch, length), np.int32))


class _OneBlock(nn.Module):
    """A block under the name that the declaration has."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x, tokens):
        context = Context(tokens, None, tables_of(self.config, tokens.shape[1]))
        return Period(self.config, jnp.float32, name="blocks")((x, {}), context, of_layers(self.config))[0][0]


@partial(jax.jit, static_argnums=0)
def _one_block(config, block, x, tokens):
    return _OneBlock(config).apply({"params": {"blocks": block}}, x, tokens)


def block_by_block(config, params, layers, tokens):
    """What the final norm gets where the blocks of `layers` are applied one after the other."""
    params = jax.tree.map(np.asarray, params)
    x = params["embedding"][tokens.reshape(-1)]
    for layer in layers:
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["blocks"])
        x = _one_block(config, block, x, tokens)
    return x
