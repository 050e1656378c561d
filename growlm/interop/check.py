"""Two checkpoints compared by what they compute, neither of which is ever in memory whole: branch by branch."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from growlm.growth.verify import TOLERANCES
from growlm.interop.folder import HuggingFaceFolder
from growlm.interop.layout import NAMES, from_stored
from growlm.model import apply_branch, rms_norm
from growlm.weights import WEIGHTS, Params, declared

BATCH, LENGTH = 2, 32
HEAD_ROWS = 4096  # of the vocabulary, whose logits are there at once

# What a branch of a block consists of, by the beginning of the path in the declaration.
BRANCHES = {"attn": ("blocks/attn_norm/", "blocks/attn/"), "mlp": ("blocks/mlp_norm/", "blocks/mlp/")}


def compare(source: HuggingFaceFolder, grown: HuggingFaceFolder, claimed: tuple[bool, str]) -> dict[str, Any]:
    """Whether a grown checkpoint computes what the source does, in float32, on random tokens.

    Args:
      source, grown: the two, as they lie on disk.
      claimed: whether the function is claimed to be kept, and why.

    Returns:
      Plain JSON: "ok", false where a claim is not met or a logit is not finite; "tokens", their shape; "dtype", the
      coarsest in which weights are stored; "function", as `growlm.growth.verify` has it.
    """
    tokens = np.random.default_rng(0).integers(source.model.vocab, size=(BATCH, LENGTH))
    dtype = max((tensor.dtype for tensor in grown.tensors.values()), key=lambda dtype: jnp.finfo(dtype).eps).name
    with jax.default_matmul_precision("highest"):
        before, after = (_hidden(folder, tokens) for folder in (source, grown))
        difference, largest = _logit_difference(source, before, grown, after)
    measured, tolerance = difference / max(largest, 1e-30), TOLERANCES[dtype]["function"]
    finite, holds = math.isfinite(difference), measured <= tolerance
    function = {
        "claimed": claimed[0],
        "measured": measured if finite else None,
        "tolerance": tolerance,
        "holds": holds,
        "note": claimed[1],
    }
    ok = finite and (holds or not claimed[0])
    return {"ok": ok, "tokens": [BATCH, LENGTH], "dtype": dtype, "function": function}


def describe_comparison(verdict: dict[str, Any]) -> str:
    """What was found, in one line."""
    found, (batch, length) = verdict["function"], verdict["tokens"]
    measured = "not finite" if found["measured"] is None else f"{found['measured']:.2g}"
    kept = "kept, as claimed" if found["holds"] else "not kept, as claimed"
    if found["holds"] != found["claimed"]:
        kept = "NOT KEPT, which is claimed" if found["claimed"] else "kept, which is not claimed"
    return (
        f"largest difference of logits on {batch} x {length} random tokens, relative to the largest logit: {measured} "
        f"(allowed for weights in {verdict['dtype']}: {found['tolerance']:g}); the function is {kept}"
    )


def _hidden(folder: HuggingFaceFolder, tokens: np.ndarray) -> jax.Array:
    """float32 [tokens, embed]: what the head gets."""
    model, embedding = folder.model, folder.tensors[NAMES["embedding"]]
    distinct, place = np.unique(tokens, return_inverse=True)
    rows = [embedding.read(slice(token, token + 1))[0] for token in distinct.tolist()]
    x_ND = jnp.asarray(np.stack(rows).astype(np.float32)[place.reshape(-1)])
    for layer in range(model.layers):
        for kind, paths in BRANCHES.items():
            x_ND = apply_branch(model, kind, _branch(folder, paths, layer), x_ND, len(tokens))
    gain = folder.tensors[NAMES["final_norm/scale"]].read().astype(np.float32)
    return rms_norm(x_ND, model.norm_eps) * gain


def _branch(folder: HuggingFaceFolder, paths: tuple[str, ...], layer: int) -> Params:
    """The weights of one branch of one block, as `apply_branch` takes them."""
    tree: Params = {}
    for weight in declared(folder.model):
        if weight.path.startswith(paths):
            _, group, name = weight.path.split("/")
            stored = folder.tensors[NAMES[weight.path].format(layer)].read()
            value = from_stored(weight, folder.model, stored.astype(np.float32))
            tree.setdefault(group, {})[name] = value
    return tree


def _logit_difference(source, before_ND, grown, after_ND) -> tuple[float, float]:
    """The largest difference of logits of the source's tokens, and the source's largest logit."""
    difference = largest = 0.0
    for row in range(0, source.model.vocab, HEAD_ROWS):
        some = slice(row, min(row + HEAD_ROWS, source.model.vocab))
        old, new = (x @ _head(folder, some).T for folder, x in ((source, before_ND), (grown, after_ND)))
        difference = np.maximum(difference, float(jnp.max(jnp.abs(new - old))))  # of NaN, NaN
        largest = max(largest, float(jnp.max(jnp.abs(old))))
    return float(difference), largest


def _head(folder: HuggingFaceFolder, rows: slice) -> np.ndarray:
    path = "embedding" if folder.model.tie_embeddings else "head"
    assert path in WEIGHTS
    return folder.tensors[NAMES[path]].read(rows).astype(np.float32)
