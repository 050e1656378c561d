"""Two checkpoints compared by what they compute, neither of which is ever in memory whole: branch by branch.

Shape suffixes: N tokens, D embed.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from growlm.formats.folder import HuggingFaceFolder
from growlm.formats.growing import FolderGrowth
from growlm.formats.safetensors import StoredTensor
from growlm.growth import Growth
from growlm.growth.shrink import forward_of, lost_report, relative_error
from growlm.growth.verify import ARITHMETIC, allowance
from growlm.models import Kind, apply_branch
from growlm.models.axes import multiply
from growlm.models.layers import normalise
from growlm.models.loss import logits

BATCH, LENGTH = 2, 32
HEAD_ROWS = 4096  # of the vocabulary, whose logits are in memory at once
PIECE_BYTES = 2**24  # of a tensor that are looked at at once


def compare(source: HuggingFaceFolder, grown: HuggingFaceFolder, claimed: tuple[bool, str]) -> dict[str, Any]:
    """Whether a grown checkpoint computes what the source does, in float32, on random tokens.

    Args:
      source, grown: the two, as they lie on disk.
      claimed: whether the function is claimed to be kept, and why.

    Returns:
      Plain JSON: "ok", false where a claim is not met or a weight or a logit is not finite; "tokens", their shape;
      "dtype", the coarsest in which weights are stored; "function", as `growlm.growth.verify` has it: the allowance for
      16 bits is what the source's logits do when every weight moves by one unit in its last place.
    """
    length = min(LENGTH, source.model.longest or LENGTH)
    tokens = np.random.default_rng(0).integers(source.model.vocab, size=(BATCH, length))
    dtype = _coarsest(grown)
    claim, note = claimed
    difference, tolerance = math.nan, 0.0
    if bad := _not_finite(grown):
        note = f"not finite: {', '.join(bad[:3])}{f' and {len(bad) - 3} more' if len(bad) > 3 else ''}"
    else:
        difference, tolerance = _measure(source, grown, tokens, dtype)
        note = note if math.isfinite(difference) else "logits are not finite"
    finite, holds = math.isfinite(difference), difference <= tolerance
    function = {
        "claimed": claim,
        "measured": difference if finite else None,
        "tolerance": tolerance,
        "holds": holds,
        "note": note,
    }
    return {"ok": finite and (holds or not claim), "tokens": [BATCH, length], "dtype": dtype, "function": function}


def lost_in_folder(source: HuggingFaceFolder, shrunk: HuggingFaceFolder, growth: Growth) -> dict[str, Any]:
    """What `growlm.growth.lost` measures of a shrink, on random tokens, of two folders as they lie on disk."""
    length = min(LENGTH, shrunk.model.longest or LENGTH)
    tokens = np.random.default_rng(0).integers(shrunk.model.vocab, size=(BATCH, length + 1))
    with jax.default_matmul_precision("highest"):
        before, after = (_hidden(folder, tokens[:, :-1]) for folder in (source, shrunk))
        losses = [_loss(folder, x_ND, tokens[:, 1:]) for folder, x_ND in ((source, before), (shrunk, after))]
        moved = _logit_difference(source, before, shrunk, after)
    errors = _regrown_errors(source, shrunk, growth)
    return lost_report(losses, moved, errors, tokens.shape, _coarsest(source))


def _regrown_errors(source: HuggingFaceFolder, shrunk: HuggingFaceFolder, growth: Growth) -> dict[str, float]:
    """By tensor of the source, how far it is from what the small model grows back to; one tensor at a time."""
    forward = forward_of(growth)
    assert forward is not None, "whoever measures a shrink has one"
    maps = {name: axis.without_fresh() for name, axis in forward.maps.items()}
    back = FolderGrowth(shrunk, source.model, dataclasses.replace(forward, maps=maps), jax.random.key(0))
    errors = {}
    for place in source.places:
        again = back.values(place)
        for weight, have, want in zip(place.weights, source.read(place), again, strict=True):
            error = relative_error(forward, weight, have.astype(np.float32), want, place.unit)
            errors[place.name] = float(np.maximum(error, errors.get(place.name, 0.0)))  # NaN stays
    return errors


def _loss(folder: HuggingFaceFolder, x_ND: jax.Array, answers: np.ndarray) -> float:
    """The mean cross-entropy in nats, with the logits of some rows of the head in memory at once."""
    total_N, answer_N = np.full(x_ND.shape[0], -np.inf), np.zeros(x_ND.shape[0])
    for first in range(0, folder.model.vocab, HEAD_ROWS):
        rows = slice(first, min(first + HEAD_ROWS, folder.model.vocab))
        logits_NV = _logits(folder, x_ND, rows).astype(np.float64)
        total_N = np.logaddexp(total_N, np.logaddexp.reduce(logits_NV, axis=1))
        here = answers.reshape(-1) - first
        inside = (here >= 0) & (here < logits_NV.shape[1])
        answer_N[inside] = logits_NV[inside, here[inside]]
    return float((total_N - answer_N).mean())


def _coarsest(folder: HuggingFaceFolder) -> str:
    """The coarsest dtype in which weights are stored."""
    return max((tensor.dtype for tensor in folder.tensors.values()), key=lambda dtype: jnp.finfo(dtype).eps).name


def _measure(
    source: HuggingFaceFolder, grown: HuggingFaceFolder, tokens: np.ndarray, dtype: str
) -> tuple[float, float]:
    """The relative difference of the logits, and how much of it the arithmetic and the dtype explain."""
    tolerance = ARITHMETIC["float32"]["function"]
    with jax.default_matmul_precision("highest"):
        before, after = (_hidden(folder, tokens) for folder in (source, grown))
        difference = _logit_difference(source, before, grown, after)
        if dtype not in ARITHMETIC:
            rng = np.random.default_rng(1)
            nudged = {name: _Nudged(tensor, rng) for name, tensor in source.tensors.items()}
            nudged = dataclasses.replace(source, tensors=nudged)
            moved = _logit_difference(source, before, nudged, _hidden(nudged, tokens))
            tolerance = allowance(tolerance, moved)
    return difference, tolerance


def _not_finite(folder: HuggingFaceFolder) -> list[str]:
    """The tensors with a value that is not finite."""
    return [
        name
        for name, tensor in folder.tensors.items()
        if not all(np.isfinite(tensor.read(rows).astype(np.float32)).all() for rows in tensor.chunks(PIECE_BYTES))
    ]


@dataclasses.dataclass(frozen=True)
class _Nudged:
    """A tensor whose values, but for zeros, are read one unit in the last place larger or smaller in magnitude."""

    tensor: StoredTensor
    rng: np.random.Generator

    def read(self, rows: slice = slice(None)) -> np.ndarray:
        """These rows; a value that is read again may go the other way."""
        value = self.tensor.read(rows)
        # As 64-bit words: bytes would take eight times as long.
        words = self.rng.integers(2**64, size=-(-value.size // 64), dtype=np.uint64)
        up = np.unpackbits(words.view(np.uint8))[: value.size].reshape(value.shape)
        # Neighbours in size are neighbours as integers, whatever the sign.
        bits = value.view(np.dtype(f"i{value.dtype.itemsize}")) + (2 * up.astype(np.int16) - 1)
        return np.where(value == 0, value, bits.astype(f"i{value.dtype.itemsize}").view(value.dtype))


def describe_comparison(verdict: dict[str, Any]) -> str:
    """The outcome in one line."""
    function, (batch, length) = verdict["function"], verdict["tokens"]
    if function["measured"] is None:
        return f"the grown model is {function['note']}"
    kept = "kept, as claimed" if function["holds"] else "not kept, as claimed"
    if function["holds"] != function["claimed"]:
        kept = "NOT KEPT, which is claimed" if function["claimed"] else "kept, which is not claimed"
    return (
        f"largest difference of logits on {batch} x {length} random tokens, relative to the largest logit: "
        f"{function['measured']:.2g} (tolerance for weights in {verdict['dtype']}: {function['tolerance']:.2g}); "
        f"the function is {kept}"
    )


def _hidden(folder: HuggingFaceFolder, tokens: np.ndarray) -> jax.Array:
    """float32 [tokens, embed]: what the head gets."""
    model, architecture = folder.model, folder.model.architecture
    x_ND = _embed(folder, tokens)
    for layer in model.executed:
        assert layer is not None, "no family has boundaries between its layers"
        for step in architecture.period:
            before_ND = x_ND
            for branch in step:
                parts = tuple(f"blocks/{branch.name}{norm}/" for norm in ("_norm", "", "_post_norm"))
                params = folder.layer(parts, layer)
                x_ND = x_ND + apply_branch(model, branch.name, layer, params, before_ND, tokens)
    stored = folder.layer(("final_norm/",), None).get("final_norm", {})
    weights = {name: value + architecture.weights[f"final_norm/{name}"].offset for name, value in stored.items()}
    return normalise(architecture.last_norm, model, x_ND, weights)


def _embed(folder: HuggingFaceFolder, tokens: np.ndarray) -> jax.Array:
    """The stream before the first layer. Of lookups by token only the rows of these tokens are read."""
    distinct, index = np.unique(tokens, return_inverse=True)
    lookups = {}
    for spec in folder.model.architecture.lookups:
        weight = folder.model.architecture.weights[spec.name]
        tensor = folder.tensors[next(place.name for place in folder.places if place.weights == (weight,))]
        if weight.reads(Kind.VOCAB):
            rows = [tensor.read(slice(token, token + 1))[0] for token in distinct.tolist()]
            lookups[spec.name] = jnp.asarray(np.stack(rows).astype(np.float32))
        else:
            lookups[spec.name] = jnp.asarray(tensor.read().astype(np.float32))
    return folder.model.architecture.embed(lookups, folder.model, jnp.asarray(index.reshape(tokens.shape)))


def _logit_difference(source, before_ND, grown, after_ND) -> float:
    """The largest difference of logits of tokens that both have, relative to the source's largest; NaN if any is.

    In NumPy: XLA's CPU backend passes over NaN in the maximum of 4,096 elements and more.
    """
    difference = largest = np.float32(0)
    vocab = min(source.model.vocab, grown.model.vocab)
    for first in range(0, vocab, HEAD_ROWS):
        rows = slice(first, min(first + HEAD_ROWS, vocab))
        old, new = (_logits(folder, x, rows) for folder, x in ((source, before_ND), (grown, after_ND)))
        difference = np.maximum(difference, np.max(np.abs(new - old)))
        largest = np.maximum(largest, np.max(np.abs(old)))
    return float(difference / max(largest, 1e-30))


def _logits(folder: HuggingFaceFolder, x_ND: jax.Array, rows: slice) -> np.ndarray:
    """The logits of some tokens."""
    model, architecture = folder.model, folder.model.architecture
    x_ND = x_ND * multiply(architecture.logit_scale, model)
    return np.asarray(logits(x_ND, jnp.asarray(_head(folder, rows).T), architecture.logit_cap(model)))


def _head(folder: HuggingFaceFolder, rows: slice) -> np.ndarray:
    path = "embedding" if folder.model.architecture.tied(folder.model) else "head"
    name = next(place.name for place in folder.places if place.weights[0].path == path)
    return folder.tensors[name].read(rows).astype(np.float32)
