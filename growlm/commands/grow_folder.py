"""`growlm grow` on a Hugging Face folder: the same growths, tensor by tensor, and a Hugging Face folder again.

What is in memory is a piece of one tensor. The piece is computed in float32 and stored in the dtype that it came in.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from growlm.commands.grow_run import Request, Say, claims, describe_growth, named, pairs, resolve_request, target_shape
from growlm.errors import BrokenClaimError, InputError
from growlm.files import write_json, write_whole
from growlm.formats.card import CARD, model_card
from growlm.formats.check import compare, describe_comparison
from growlm.formats.export import BESIDE, write_folder
from growlm.formats.families import family_of, settings_of
from growlm.formats.folder import HuggingFaceFolder, open_folder
from growlm.formats.layout import Place, places, stored_shape, turned, unit_dims
from growlm.formats.origins import Origins
from growlm.formats.writer import SHARD_BYTES, Make, NewTensor
from growlm.growth import Growth, claim, describe, growth_key, plan_growth
from growlm.growth.presets import Resolved
from growlm.growth.streaming import grow_part, unchanged
from growlm.models import DecoderConfig, Weight
from growlm.training.saved import GROWTH, VERIFY
from growlm.training.step import run_keys

# Bytes in float32 of what is grown at once. Larger ones are mapped and cleared by the kernel every time anew.
PIECE = 2**22
WORKSPACE = 400 * 10**6  # of Python, JAX and the pieces


@dataclasses.dataclass(frozen=True)
class FolderPlan:
    """A growth of a Hugging Face folder, checked, before any weight is read."""

    source: HuggingFaceFolder
    output: Path | None
    target: DecoderConfig
    asked: str
    resolved: Resolved
    key: jax.Array
    growth: Growth
    settings: dict[str, Any]  # the config.json that will be written
    tensors: tuple[NewTensor, ...]
    shard: int = SHARD_BYTES

    @property
    def places(self) -> list[Place]:
        """Every tensor that will be written, and what lies in it."""
        return list(places(family_of(self.settings), self.target))

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
    if growth.learner:
        raise InputError(
            f"{request.operator} learns from batches, and {request.source} names no corpus: allowed is a run whose "
            "first stage has it as init_from and whose second grows it, and then growlm convert --to=huggingface"
        )
    # config.json has no masks: what is fresh acts at once.
    acting = tuple(effect for effect in growth.effects if not effect.reparametrises)
    growth = dataclasses.replace(growth, effects=acting)
    settings = settings_of(target, source.settings)  # refused before anything is written
    plan = FolderPlan(source, request.output, target, request.operator, resolved, key, growth, settings, ())
    return dataclasses.replace(plan, tensors=tuple(_new_tensors(plan)))


def _new_tensors(plan: FolderPlan) -> Iterator[NewTensor]:
    """Every tensor in the dtype of the one that it comes from; of what is fresh, in the most usual one."""
    (usual, _), *_ = Counter(tensor.dtype for tensor in plan.source.tensors.values()).most_common(1)
    origins = Origins(plan.source, plan.growth)
    for place in plan.places:
        came = origins.place(place.weights[0], place.unit)
        dtype = plan.source.tensors[came.name].dtype if came else usual
        yield NewTensor(place.name, dtype, stored_shape(place, plan.target))


def describe_plan(plan: FolderPlan) -> str:
    """The shapes before and after, the claims with their reasons, and what it takes, for a terminal."""
    before, largest = plan.source.nbytes, max(tensor.nbytes for tensor in plan.tensors)
    notes = {
        "source": f"{plan.source.folder}, Hugging Face, {plan.source.family.model_type}",
        "operator": named(plan.asked, plan.resolved),
        **claims(plan.source.model, plan.target, plan.growth),
        "disk": f"{plan.nbytes + BESIDE:,} bytes (the source has {before:,})",
        "memory": f"about {WORKSPACE + largest:,} bytes; to verify, {_verify_bytes(plan):,} more",
    }
    return describe_growth(plan.source.model, plan.target, notes)


def _verify_bytes(plan: FolderPlan) -> int:
    """The largest branch of a grown layer, in float32."""
    sizes: Counter[str] = Counter()
    for place in plan.places:
        if place.unit[:1] == (0,):
            sizes[place.weights[0].path.split("/")[1]] += 4 * int(np.prod(stored_shape(place, plan.target)))
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

    held = {place.name: place for place in plan.places}
    pieces = partial(_pieces, plan, Origins(plan.source, plan.growth), held)
    write_folder(
        plan.output, plan.target, plan.settings, plan.tensors, pieces, plan.source.carried, plan.shard, beside=beside
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
    card = model_card(plan.source.folder.absolute().name, plan.source.family.model_type, report, shapes, said)
    write_whole(part / CARD, card.encode())


def _pieces(plan: FolderPlan, origins: Origins, held: dict[str, Place], tensor: NewTensor) -> Iterator[Make]:
    """What makes the values of a grown tensor, some rows at a time."""
    place = held[tensor.name]
    if came := _copy_of(plan, origins, place):
        stored = plan.source.tensors[came.name]
        rows = max(1, PIECE // max(stored.nbytes // max(stored.shape[0], 1), 1))
        yield from (partial(stored.read, some) for some in _cut(stored.shape[0], rows))
        return
    makes = [_rows_of(plan, origins, place, weight, tensor.dtype) for weight in place.weights]
    if place.row.join == 0:
        for make, size, rows in makes:
            yield from (partial(make, some) for some in _cut(size, rows))
        return
    _, size, rows = makes[0]
    for some in _cut(size, rows):
        yield partial(_side_by_side, [make for make, _, _ in makes], some, place.row.join)


def _rows_of(
    plan: FolderPlan, origins: Origins, place: Place, weight: Weight, dtype: np.dtype
) -> tuple[Callable[[slice], np.ndarray], int, int]:
    """What makes some rows of a weight, how many there are, and how many are made at once."""
    in_order = turned(weight, place.row)
    sizes = [plan.target.size(dim.axis) for dim in unit_dims(in_order)]
    size = sizes[0]
    rows = size if weight.elementwise else max(1, PIECE * size // (4 * int(np.prod(sizes))))
    read = partial(origins.read, in_order)

    def make(some: slice) -> np.ndarray:
        return grow_part(plan.growth, plan.target, plan.key, in_order, place.unit, some, read, dtype)

    return make, size, rows


def _side_by_side(makes: list[Callable[[slice], np.ndarray]], some: slice, join: int) -> np.ndarray:
    return np.concatenate([make(some) for make in makes], axis=join)


def _copy_of(plan: FolderPlan, origins: Origins, place: Place) -> Place | None:
    """The tensor of the source of which this one is a copy, to the byte; None where it is not."""
    if not all(unchanged(plan.growth, weight, place.unit) for weight in place.weights):
        return None
    came = [origins.place(weight, place.unit) for weight in place.weights]
    if came[0] is None or any(one is not came[0] for one in came) or len(came[0].weights) != len(place.weights):
        return None
    # The same dimensions in the same order on both sides; what a lift adds is of size 1.
    for weight, own in zip(place.weights, came[0].weights, strict=True):
        after, before = (unit_dims(turned(one, at.row)) for one, at in ((weight, place), (own, came[0])))
        numbers = [origins.of(weight).dims[weight.all_dims.index(dim)] for dim in after]
        if numbers != [own.all_dims.index(dim) for dim in before]:
            return None
    return came[0]


def _cut(size: int, rows: int) -> Iterator[slice]:
    return (slice(begin, min(begin + rows, size)) for begin in range(0, size, rows))
