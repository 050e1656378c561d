"""`growlm grow` on a Hugging Face folder: the same growths, tensor by tensor, and a Hugging Face folder again.

What is in memory is a piece of one tensor. The piece is computed in float32 and stored in the dtype that it came in.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from growlm.errors import InputError
from growlm.files import write_json, write_whole
from growlm.growth import Growth, claim, describe, growth_key, plan_growth
from growlm.growth.part import grow_part, unchanged
from growlm.growth.presets import Resolved
from growlm.interop.card import CARD, model_card
from growlm.interop.check import compare, describe_comparison
from growlm.interop.export import BESIDE, write_folder
from growlm.interop.families import settings_of
from growlm.interop.folder import HuggingFaceFolder, open_folder
from growlm.interop.layout import NAMES, places, stored_shape, turned
from growlm.interop.writer import SHARD_BYTES, Make, NewTensor
from growlm.training.grow import (
    BrokenClaimError,
    Request,
    Say,
    claims,
    describe_growth,
    named,
    pairs,
    resolve_request,
    target_shape,
)
from growlm.training.saved import GROWTH, VERIFY
from growlm.training.step import run_keys
from growlm.weights import ModelConfig, Weight

# Bytes in float32 of what is grown at once. Larger ones are mapped and cleared by the kernel every time anew.
PIECE = 2**22
WORKSPACE = 400 * 10**6  # of Python, JAX and the pieces


@dataclasses.dataclass(frozen=True)
class FolderPlan:
    """A growth of a Hugging Face folder, checked, before any weight is read."""

    source: HuggingFaceFolder
    output: Path | None
    target: ModelConfig
    asked: str
    resolved: Resolved
    key: jax.Array
    growth: Growth
    tensors: tuple[NewTensor, ...]
    shard: int = SHARD_BYTES

    @property
    def nbytes(self) -> int:
        """The size of all grown weights."""
        return sum(tensor.nbytes for tensor in self.tensors)


def plan_grow(request: Request) -> FolderPlan:
    """Everything that can be wrong with a request is found here. Raises InputError."""
    for option in ("optimizer_state", "step"):
        if getattr(request, option) is not None:
            raise InputError(
                f"--{option} is of runs: {request.source} is a Hugging Face folder and holds weights alone"
            )
    resolved = resolve_request(request)
    source = open_folder(request.source)
    target = target_shape(source.model, request.factor, pairs("--target", request.sizes))
    key = growth_key(run_keys(request.seed or 0)[1], 0)
    growth = plan_growth(resolved.operator, source.model, target, key, **resolved.options)
    if growth.recipe:
        raise InputError(
            f"{request.operator} learns from batches, and {request.source} names no corpus: allowed is a run whose "
            "first stage has it as init_from and whose second grows it, and then growlm convert --to=huggingface"
        )
    growth = dataclasses.replace(growth, ramp=None)  # config.json has no masks: what is fresh acts at once
    settings_of(target, source.settings)  # refused before anything is written
    tensors = tuple(_new_tensors(source, target, growth))
    return FolderPlan(source, request.output, target, request.operator, resolved, key, growth, tensors)


def _new_tensors(source: HuggingFaceFolder, target: ModelConfig, growth: Growth) -> Iterator[NewTensor]:
    """Every tensor in the dtype of the one that it comes from; of fresh layers, in the most usual one."""
    (usual, _), *_ = Counter(tensor.dtype for tensor in source.tensors.values()).most_common(1)
    for name, weight, layer in places(target):
        origin = NAMES[weight.path] if layer is None else NAMES[weight.path].format(growth.order[layer])
        dtype = source.tensors[origin].dtype if origin in source.tensors else usual
        yield NewTensor(name, dtype, stored_shape(weight, target))


def describe_plan(plan: FolderPlan) -> str:
    """The shapes before and after, the claims with their reasons, and what it takes, for a terminal."""
    before, largest = plan.source.nbytes, max(tensor.nbytes for tensor in plan.tensors)
    notes = {
        "source": f"{plan.source.folder}, Hugging Face, {plan.source.family}",
        "operator": named(plan.asked, plan.resolved),
        **claims(plan.source.model, plan.target, plan.growth),
        "disk": f"{plan.nbytes + BESIDE:,} bytes (the source has {before:,})",
        "memory": f"about {WORKSPACE + largest:,} bytes; to verify, {_verify_bytes(plan):,} more",
    }
    return describe_growth(plan.source.model, plan.target, notes)


def _verify_bytes(plan: FolderPlan) -> int:
    """The larger branch of a grown layer, in float32."""
    sizes = Counter()
    for name, weight, layer in places(plan.target):
        if layer == 0:
            sizes["mlp" in name] += 4 * int(np.prod(stored_shape(weight, plan.target)))
    return max(sizes.values(), default=0)


def run_grow(plan: FolderPlan, checked: bool, say: Say) -> str:
    """Grows, verifies unless told not to, and writes the folder; the verdict as text.

    Raises InputError, and BrokenClaimError, with nothing written, where a claim is not met.
    """
    say(f"growing {plan.source.folder}, {plan.source.nbytes:,} bytes, to {plan.nbytes:,} bytes")
    verdict: dict[str, Any] = {}

    def beside(part: Path) -> None:
        if checked:
            say("verifying the function on random tokens")
            verdict.update(compare(plan.source, open_folder(part), claim(plan.growth, plan.source.model, plan.target)))
            if not verdict["ok"]:
                raise BrokenClaimError(
                    f"the grown model is not what its growth claims: {describe_comparison(verdict)}; nothing is written"
                )
            write_json(part / VERIFY, verdict)
        _write_report(plan, part, verdict)

    settings = settings_of(plan.target, plan.source.settings)
    pieces = partial(_pieces, plan, {name: (weight, layer) for name, weight, layer in places(plan.target)})
    write_folder(
        plan.output, plan.target, settings, plan.tensors, pieces, plan.source.carried, plan.shard, beside=beside
    )
    return describe_comparison(verdict) if verdict else "not verified"


def _write_report(plan: FolderPlan, part: Path, verdict: dict[str, Any]) -> None:
    """growth.json, as growth of our own folders writes it, and the model card."""
    report = describe(plan.growth, plan.source.model, plan.target)
    report |= {"grown_from": {"folder": str(plan.source.folder.absolute())}, "asked": plan.asked}
    report |= {"operator": plan.resolved.operator, "options": plan.resolved.options}
    write_json(part / GROWTH, report)
    said = describe_comparison(verdict) if verdict else "Nothing: it was written unchecked."
    models = plan.source.model, plan.target
    shapes = describe_growth(*models, claims(*models, plan.growth))
    card = model_card(plan.source.folder.absolute().name, plan.source.family, report, shapes, said)
    write_whole(part / CARD, card.encode())


def _pieces(plan: FolderPlan, held: dict[str, tuple[Weight, int | None]], tensor: NewTensor) -> Iterator[Make]:
    """What makes the values of a grown tensor, some rows at a time."""
    weight, layer = held[tensor.name]
    if unchanged(plan.growth, weight, layer):
        stored = plan.source.tensors[_source_name(weight, layer if layer is None else plan.growth.order[layer])]
        rows = max(1, PIECE // max(stored.nbytes // max(stored.shape[0], 1), 1))
        yield from (partial(stored.read, some) for some in _cut(stored.shape[0], rows))
        return
    weight, many = turned(weight)
    size = plan.target.size(weight.dims[0].axis)
    rows = size if weight.elementwise else max(1, PIECE * size // (4 * int(np.prod(tensor.shape))))
    read = partial(_read, plan.source, weight, many)
    grow = partial(grow_part, plan.growth, plan.target, plan.key, weight, layer, read=read, dtype=tensor.dtype)
    yield from (partial(grow, rows=some) for some in _cut(size, rows))


def _cut(size: int, rows: int) -> Iterator[slice]:
    return (slice(begin, min(begin + rows, size)) for begin in range(0, size, rows))


def _source_name(weight: Weight, layer: int | None) -> str:
    return NAMES[weight.path] if layer is None else NAMES[weight.path].format(layer)


def _read(
    source: HuggingFaceFolder, weight: Weight, many: int, layers: np.ndarray | None, rows: np.ndarray
) -> np.ndarray:
    """float32 [layers, rows, ...] of a weight in its stored order, as `grow_part` asks for it."""
    shape = [source.model.size(dim.axis) for dim in weight.dims]
    each = int(np.prod(shape[1:many]))  # of what is stored as rows, to one slice of the first dimension
    values = np.empty((1 if layers is None else len(layers), len(rows), *shape[1:]), np.float32)
    for number, layer in enumerate([None] if layers is None else layers):
        tensor, at = source.tensors[_source_name(weight, layer)], 0
        for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1) if len(rows) else []:
            stored = tensor.read(slice(int(run[0]) * each, (int(run[-1]) + 1) * each))
            values[number, at : at + len(run)] = stored.reshape(len(run), *shape[1:])
            at += len(run)
    return values[0] if layers is None else values
