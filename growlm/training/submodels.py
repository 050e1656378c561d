"""Sub-models of bert2BERT (arXiv 2110.07143): bottoms of one model, of which a step trains the top layers alone."""

from typing import Any

import jax
import numpy as np

from growlm.models import Architecture
from growlm.training.groups import GROUPS

# The second half of the key of the draws, so that nothing else that a seed starts draws the same.
_STREAM = 2110_07143


def draw_depths(seed: int, steps: int, layers: int, block: int) -> np.ndarray:
    """int64[steps]: how many layers the sub-model of each of a run's steps has: block, 2 block, ... or layers, evenly.

    It depends on the step and the seed alone, and not on NumPy's version: words of a counter-based generator.
    """
    words = np.random.Philox(key=[seed, _STREAM]).random_raw(steps)
    return block * (1 + (words % np.uint64(layers // block)).astype(np.int64))


def cut(architecture: Architecture, tree: Any, layers: slice) -> Any:
    """A tree like the parameters, or with such trees in it, with only these of the layers."""

    def leaf_of(path: tuple, leaf: jax.Array) -> jax.Array:
        return leaf[layers] if _by_layer(architecture, path) else leaf

    return jax.tree_util.tree_map_with_path(leaf_of, tree)


def put(architecture: Architecture, whole: Any, part: Any, layers: slice) -> Any:
    """Writes a part that was cut back into the whole tree; the embedding only where the part starts at layer 0."""

    def leaf_of(path: tuple, old: jax.Array, new: jax.Array) -> jax.Array:
        if _by_layer(architecture, path):
            return old.at[layers].set(new)
        _, weight, _ = architecture.match_weight(path)
        return old if layers.start and weight and GROUPS["embedding"](weight) else new

    return jax.tree_util.tree_map_with_path(leaf_of, whole, part)


def _by_layer(architecture: Architecture, path: tuple) -> bool:
    """Whether the first dimension of a leaf is the layers: of a block's weight, its moments, the first of its ages."""
    _, weight, rest = architecture.match_weight(path)
    return weight is not None and weight.stacked and rest in ("", "0")
