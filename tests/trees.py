"""Parameter trees for tests: built from the declaration, with every weight of consequence; and one block alone."""

import contextlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from growlm.model import Block, rotary_table
from growlm.weights import ModelConfig, declared


@contextlib.contextmanager
def exact_products_and_short_compiles():
    """Accelerators multiply float32 in fewer bits by default; and in these tests the time goes into compiling."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        with jax.default_matmul_precision("highest"):
            yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


def nest(leaves):
    """A nested dict from path -> leaf."""
    tree = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return tree


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


def random_tokens(config, batch, length, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, config.vocab, (batch, length), np.int32))


class _OneBlock(nn.Module):
    """A block under the name that the declaration has."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x, length):
        rotary = rotary_table(length, self.config.head_dim, self.config.rope_theta, self.config.rope_scaling)
        return Block(self.config, jnp.float32, name="blocks")(x, rotary, x.shape[0] // length)[0]


@partial(jax.jit, static_argnums=(0, 3))
def _one_block(config, block, x, length):
    return _OneBlock(config).apply({"params": {"blocks": block}}, x, length)


def block_by_block(config, params, layers, tokens):
    """What the final norm gets where the blocks of `layers` are applied one after the other."""
    params = jax.tree.map(np.asarray, params)
    x = params["embedding"][tokens.reshape(-1)]
    for layer in layers:
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["blocks"])
        x = _one_block(config, block, x, tokens.shape[1])
    return x
