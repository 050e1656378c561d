"""What `growlm grow` does with a checkpoint of either kind: plan, grow or shrink, verify, write.

A run's state is grown whole, on its own corpus where its maps are learned; a Hugging Face folder tensor by tensor.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from growlm.data import Mixture, batches, load_corpus, load_mixture, read_sources, validation_batches
from growlm.errors import BrokenClaimError, InputError, check_name, check_range, must_be, unknown
from growlm.files import check_output, check_space, read_json, table, write_json
from growlm.formats.card import grown_or_shrunk, growth_lines, write_card
from growlm.formats.check import compare, describe_comparison, lost_in_folder
from growlm.formats.export import OTHER_BYTES, write_folder
from growlm.formats.folder import HuggingFaceFolder, is_hugging_face, open_folder
from growlm.formats.growing import FolderGrowth
from growlm.formats.layout import family_of, stored_shape
from growlm.growth import (
    OPTIMIZER_STATES,
    SHRINKS,
    Growth,
    claim,
    describe,
    describe_lost,
    gradient_claim,
    growth_key,
    lost,
    plan_target,
    plan_undo,
)
from growlm.growth.presets import Resolved, resolve
from growlm.growth.shrink import forward_of
from growlm.growth.state import apply_growth, prepare
from growlm.growth.verify import describe_verdict, verify
from growlm.hub import local_folder, name_of, pinned, recorded
from growlm.models import ARCHITECTURES, DecoderConfig, parameter_count, plain, sizes_of
from growlm.state import TrainState
from growlm.training.config import build_model
from growlm.training.optimizer import make_optimizer
from growlm.training.saved import (
    GROWTH_FILE,
    VERIFY_FILE,
    Saved,
    check_open,
    copy_imported,
    find_saved,
    read_state,
    save_grown,
)
from growlm.training.step import abstract_state, run_keys

VERIFY_TOKENS = 4096  # at most: the logits of both models are in memory whole
RANDOM_BATCH, RANDOM_LENGTH = 4, 64  # where there is no corpus
WORKSPACE = 400 * 10**6  # bytes of Python, JAX and the pieces of a folder's tensors

Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class GrowPlan:
    """A growth of a saved model, checked before any weight is read.

    Attributes:
      source: a run's checkpoint, or a Hugging Face folder.
      output: the new folder; None where nothing will be written.
      target: the grown shape.
      asked, resolved: the operator or preset that was asked for, and what it stands for.
      key: of the grown state.
      growth: the maps; of a folder without masks, since config.json has none: what is fresh acts at once.
      folder: the growth of a Hugging Face folder's tensors; None for a run.
      undoes: what is undone, in words; empty for other growths.
    """

    source: Saved | HuggingFaceFolder
    output: Path | None
    target: DecoderConfig
    asked: str
    resolved: Resolved
    key: jax.Array
    growth: Growth
    folder: FolderGrowth | None
    undoes: str = ""


def plan_grow(
    source: Path,
    *,
    output: Path | None = None,
    operator: str = "direct",
    options: Mapping[str, Any] | None = None,
    factor: float | None = None,
    sizes: Mapping[str, Any] | None = None,
    optimizer_state: str | None = None,
    step: int | None = None,
    seed: int | None = None,
) -> GrowPlan:
    """Find everything that can be wrong with a growth before anything is read or written.

    Args:
      source: a folder of `growlm train`, of a sweep's run or of `growlm grow`, a Hugging Face folder or hf:ORG/NAME.
      output: a new or empty folder.
      operator, options: as in `growlm.grow`.
      factor: multiplies the layers.
      sizes: of the target, where they differ from the source's; its architecture too.
      optimizer_state: as in `grow_state`; the preset's unless it is given.
      step: of a run; its last checkpoint by default.
      seed: of fresh values; by default they are drawn from the source's key.

    Raises:
      InputError: anything of it is wrong.
    """
    resolved = resolve(operator, options)
    try:
        json.dumps(resolved.options)
    except TypeError as error:
        raise InputError(f"an --option must be a number, a text or a list of them: {error}") from None
    if seed is not None:
        check_range("--seed", seed, 0, 2**31 - 1)
    found = _find(source, output, optimizer_state, step)
    imported = isinstance(found, HuggingFaceFolder)
    resolved = dataclasses.replace(resolved, optimizer_state=optimizer_state or resolved.optimizer_state)
    if isinstance(found, HuggingFaceFolder):
        key, grown_at = run_keys(seed or 0)[1], 0
    else:
        check_open(found)
        key, grown_at = found.key if seed is None else run_keys(seed)[1], found.step
    draws = growth_key(key, grown_at)
    target = target_shape(found.model, factor, dict(sizes or {}), shrinks=resolved.operator in SHRINKS)
    target, growth = plan_target(resolved.operator, found.model, target, draws, **resolved.options)
    if growth.learner and (imported or not found.data):
        advice = ", and then growlm convert --to=huggingface" if imported else ""
        raise InputError(
            f"{operator} learns from batches, and {source} names no corpus: grow it in a run whose first stage has it "
            f"as init_from{advice}"
        )
    folder = None
    if isinstance(found, HuggingFaceFolder):
        growth = dataclasses.replace(growth, effects=tuple(e for e in growth.effects if not e.reparametrises))
        folder = _folder_growth(found, target, growth, draws)
    return GrowPlan(found, output, target, operator, resolved, key, growth, folder)


def _find(
    source: Path, output: Path | None, optimizer_state: str | None, step: int | None
) -> Saved | HuggingFaceFolder:
    """The checkpoint in a folder; the options that every plan has are checked."""
    if output:
        check_output(output)
    if optimizer_state is not None:
        check_name("optimizer_state", optimizer_state, OPTIMIZER_STATES)
    source = local_folder(source)
    if not is_hugging_face(source):
        return find_saved(source, step)
    for option, value in (("optimizer_state", optimizer_state), ("step", step)):
        if value is not None:
            raise InputError(f"--{option} is of runs, and {source} is a Hugging Face folder: weights alone")
    return open_folder(source)


def _folder_growth(found: HuggingFaceFolder, target: DecoderConfig, growth: Growth, key: jax.Array) -> FolderGrowth:
    """The growth of a folder's tensors. Raises InputError for a model that no family has."""
    folder = FolderGrowth(found, target, growth, key)
    family_of(folder.settings)
    return folder


def plan_undone(
    source: Path, *, output: Path | None = None, optimizer_state: str | None = None, step: int | None = None
) -> GrowPlan:
    """Find everything that can be wrong with undoing the growth that a folder is of, by its growth.json.

    Args are those of `plan_grow`. A run is undone to the shape before its last growth.

    Raises:
      InputError: a folder that was not grown, a growth that cannot be undone, masks that are neither closed nor open.
    """
    found = _find(source, output, optimizer_state, step)
    path = (found.folder if isinstance(found, HuggingFaceFolder) else found.checkpoints.parent) / GROWTH_FILE
    if not path.exists():
        raise InputError(f"source must be a model that growlm grew, got {source}, which has no {GROWTH_FILE}")
    report = read_json(path, GROWTH_FILE)
    if not isinstance(report, dict) or not isinstance(report.get("source"), dict):
        raise InputError(f"{path} must be the report of a growth, got another file")
    target = build_model(report["source"], GROWTH_FILE)
    try:
        growth = plan_undo(report, found.model, target)
    except InputError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise InputError(f"{path} must be the report of a growth, got another: {reason}") from None
    undoes = f"{report.get('operator')}, of {path}"
    key, folder = run_keys(0)[1], None
    if isinstance(found, HuggingFaceFolder):
        folder = _folder_growth(found, target, growth, key)
    else:
        key = found.key
        steps = found.step - report.get("step", report.get("grown_from", {}).get("step", 0))
        if found.masks is None or found.masks[1].any():
            check_open(found)
        if steps:
            undoes += f"; trained for {steps:,} steps since: what each weight's copies have in common stays"
    resolved = Resolved("undo", {}, optimizer_state or "reset", "all")
    return GrowPlan(found, output, target, "undo", resolved, key, growth, folder, undoes)


def target_shape(
    source: DecoderConfig, factor: float | None, sizes: dict[str, Any], shrinks: bool = False
) -> DecoderConfig:
    """The source with `factor` times the layers, and with these sizes, of another architecture if one is named.

    Raises InputError, also where nothing grows.
    """
    name = sizes.get("architecture", source.architecture.name)
    if name != source.architecture.name and name not in ARCHITECTURES:
        raise unknown("architecture", name, ARCHITECTURES, where="--target")
    architecture = ARCHITECTURES[name] if name != source.architecture.name else source.architecture
    fields = ["architecture", *(field.name for field in dataclasses.fields(architecture.config))]
    if extra := [name for name in sizes if name not in fields]:
        raise unknown("size", extra[0], fields, where="--target")
    if factor is not None:
        check_range("--factor", factor, *((0, 1) if shrinks else (2, None)))
        depth = source.architecture.stack.field
        if depth in sizes:
            raise InputError(f"--factor={factor:g} and --target.{depth}={sizes[depth]} must not be given both")
        if not getattr(source, depth):
            raise InputError(f"--factor must multiply layers, and the source has none: say --target.{depth}")
        if not (layers := float(getattr(source, depth) * factor)).is_integer():
            raise must_be("--factor", f"a factor of which {getattr(source, depth)} layers are whole layers", factor)
        sizes = sizes | {depth: int(layers)}
    if architecture is source.architecture:
        target = dataclasses.replace(source, **{key: value for key, value in sizes.items() if key != "architecture"})
    else:
        target = build_model({key: value for key, value in plain(source).items() if key in fields} | sizes, "--target")
    if target == source:
        raise InputError("nothing grows: say --factor=4, or a size such as --target.layers=24")
    return target


def describe_plan(plan: GrowPlan) -> str:
    """The shapes before and after, the claims with their reasons, and what it takes, for a terminal."""
    options = " ".join(f"{name}={value}" for name, value in plan.resolved.options.items())
    names = dict.fromkeys((plan.asked, plan.resolved.operator))  # one, where they are the same
    source = pinned(plan.source.folder) or plan.source.folder
    notes = {"source": f"{source}, ", "operator": " ".join(filter(None, [*names, options]))}
    notes |= {"undoes": plan.undoes} if plan.undoes else {}
    if plan.folder:
        largest = max(tensor.nbytes for tensor in plan.folder.tensors)
        needed = f"about {WORKSPACE + largest:,} bytes; to verify, {_verify_bytes(plan.folder):,} more"
        notes["source"] += f"Hugging Face, {plan.source.family.model_type}"
        disk = f"{plan.folder.nbytes + OTHER_BYTES:,} bytes (the source has {plan.source.nbytes:,})"
        takes = {"disk": disk, "memory": needed}
    else:
        notes["source"] += f"step {plan.source.step:,}"
        notes["optimizer"] = plan.resolved.optimizer_state
        takes = {"takes": f"{_state_bytes(plan):,} bytes of state, grown"}
    return _shapes_and_notes(plan, notes | _claims(plan) | takes)


def _shapes_and_notes(plan: GrowPlan, notes: dict[str, str]) -> str:
    """A table of the two shapes, and the notes below it."""
    source, target = plan.source.model, plan.target
    before, after = sizes_of(source), sizes_of(target)
    rows = [("", "before", "after")]
    if source.architecture is not target.architecture:
        rows.append(("architecture", source.architecture.name, target.architecture.name))
    rows += [
        (name, *(f"{sizes[name]:,}" if name in sizes else "-" for sizes in (before, after))) for name in before | after
    ]
    rows.append(("parameters", *(f"{parameter_count(model):,}" for model in (source, target))))
    return f"{table(rows, '<>')}\n\n{table(list(notes.items()))}"


def _claims(plan: GrowPlan) -> dict[str, str]:
    """What the growth claims of function and gradients and why, and what else changes, in a line each."""
    source, target, growth = plan.source.model, plan.target, plan.growth
    notes = {"lift": f"{growth.lift.name}: {growth.lift.says}"} if growth.lift else {}
    if plan.folder:
        before, after = plan.source.family, family_of(plan.folder.settings)
        if after.model_type != before.model_type:
            notes["class"] = f"{after.architecture}, was {before.architecture}"
            if source.architecture is target.architecture:
                notes["class"] += f": transformers' {before.architecture} cannot have this shape"
    kept, reason = claim(growth, source, target)
    exact, why = gradient_claim(growth, source, target)
    notes["function"] = f"{'kept' if kept else 'not kept'}: {reason}"
    return notes | {"gradients": f"{'mapped exactly' if exact else 'not mapped exactly'}: {why}"}


def _state_bytes(plan: GrowPlan) -> int:
    """The size of the grown parameters, the optimizer's state and the averaged copy, if any."""
    state = abstract_state(plan.target, plan.source.optimizer)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((state.params, state.opt_state, state.ema)))


def _verify_bytes(folder: FolderGrowth) -> int:
    """The largest branch of a grown layer, in float32."""
    sizes: Counter[str] = Counter()
    for place in folder.places.values():
        if place.unit[:1] == (0,):
            sizes[place.weights[0].path.split("/")[1]] += 4 * int(np.prod(stored_shape(place, folder.target)))
    return max(sizes.values(), default=0)


def run_grow(plan: GrowPlan, *, verified: bool, log: Log) -> str:
    """Grow, verify unless told not to, and write the folder; returns the verdict as text.

    Raises InputError, and BrokenClaimError, with nothing written, where a claim is not met.
    """
    return (_grow_folder if plan.folder else _grow_run)(plan, verified, log)


# --- A Hugging Face folder ---


def _grow_folder(plan: GrowPlan, verified: bool, log: Log) -> str:
    source, folder = plan.source, plan.folder
    source.check_weights()
    log(f"growing {pinned(source.folder) or source.folder}, {source.nbytes:,} bytes, to {folder.nbytes:,} bytes")
    outcome = "not verified"

    def write_reports(part: Path) -> None:
        nonlocal outcome
        if verified and forward_of(plan.growth) is not None:
            log("measuring on random tokens what is lost")
            verdict = lost_in_folder(source, open_folder(part), plan.growth)
            outcome = describe_lost(verdict)
            write_json(part / VERIFY_FILE, verdict)
        elif verified:
            log("verifying the function on random tokens")
            verdict = compare(source, open_folder(part), claim(plan.growth, source.model, plan.target))
            outcome = describe_comparison(verdict)
            if not verdict["ok"]:
                raise BrokenClaimError(f"the grown model is not what its growth claims: {outcome}; nothing is written")
            write_json(part / VERIFY_FILE, verdict)
        report = describe(plan.growth, source.model, plan.target)
        origin = recorded(source.folder)
        report |= {"grown_from": {"folder": origin}, "asked": plan.asked}
        report |= {"operator": plan.resolved.operator, "options": plan.resolved.options}
        write_json(part / GROWTH_FILE, report)
        name, made = name_of(origin) or source.folder.absolute().name, grown_or_shrunk(report)
        weights = f"the weights of `{pinned(source.folder) or name}` ({source.family.model_type})"
        grown = growth_lines(report, outcome if verified else "nothing, it was written unchecked")
        says = [f"These are {weights}, {made} and not trained since.", grown]
        says += [f"```\n{_shapes_and_notes(plan, _claims(plan))}\n```"]
        says += [f"`{GROWTH_FILE}` says of every coordinate of every axis which one of the source it comes from."]
        write_card(part, f"{name}, {made} by growlm", says, record=origin, source=source.folder)

    write_folder(
        plan.output,
        plan.target,
        folder.settings,
        tensors=folder.tensors,
        pieces=folder.pieces,
        carried=source.carried,
        beside=write_reports,
    )
    return outcome


# --- A run's whole state ---


def _grow_run(plan: GrowPlan, verified: bool, log: Log) -> str:
    saved, source = plan.source, plan.source.model
    check_space(plan.output, _state_bytes(plan))
    log(f"reading {saved.folder}, step {saved.step:,}")
    state = dataclasses.replace(read_state(saved), key=plan.key)
    learns = plan.growth.learner is not None
    corpus = _corpus(saved, plan.target, needed=learns, log=log) if learns or verified else None
    log(f"growing {parameter_count(source):,} to {parameter_count(plan.target):,} parameters")
    grown, report = _grown(plan, state, corpus)
    verdict, outcome = None, "not verified"
    if verified:
        tokens = _tokens(saved, corpus, min(source.vocab, plan.target.vocab))
        batch, length = tokens.shape
        log(f"verifying on {batch} x {length - 1} {'validation' if corpus else 'random'} tokens")
        measure = lost if forward_of(plan.growth) else verify
        verdict = measure(source, state.params, plan.target, grown.params, tokens, plan.growth)
        outcome = (describe_lost if forward_of(plan.growth) else describe_verdict)(verdict)
        if not verdict.get("ok", True):
            raise BrokenClaimError(
                f"the grown model is not what its growth claims: {_broken(verdict)}; nothing is written"
            )
    log(f"writing {plan.output}")
    save_grown(
        plan.output,
        plan.target,
        saved.optimizer,
        grown,
        growth=report,
        verdict=verdict,
        data=saved.data,
        beside=partial(copy_imported, saved.folder),
    )
    return outcome


def _grown(plan: GrowPlan, state: TrainState, corpus: Mixture | None) -> tuple[TrainState, dict[str, Any]]:
    """The grown state, and its report."""
    saved, fed = plan.source, ()
    if plan.growth.learner:
        data = saved.data
        portions, start = corpus.portions({}), int(state.examples)
        fed = batches(portions, seed=data.seed, batch=data.batch, length=data.length, start=start)
    models, optimizer = (saved.model, plan.target), make_optimizer(saved.optimizer, plan.target)
    request = {name: getattr(plan.resolved, name) for name in ("operator", "options", "optimizer_state")}
    prepared = prepare(plan.growth, *models, optimizer, request)
    grown, report = apply_growth(prepared, state, *models, key=growth_key(state.key, saved.step), batches=fed)
    jax.block_until_ready(grown.params)
    origin = {"folder": recorded(saved.folder), "step": saved.step, "tokens": saved.tokens, "flops": saved.flops}
    return grown, {"grown_from": origin, "asked": plan.asked, "train": plan.resolved.train} | report


def _corpus(saved: Saved, target: DecoderConfig, needed: bool, log: Log) -> Mixture | None:
    """The text of the source. Maps that are learned need it; to verify, random tokens will do."""
    try:
        corpus = load_mixture(read_sources(saved.data.corpus), load_corpus) if saved.data else None
    except InputError as error:
        if needed:
            raise
        log(f"the source's corpus is gone ({error}): random tokens will do")
        return None
    if needed and corpus.fingerprint != saved.data.fingerprint:
        raise InputError(f"{saved.data.corpus!r} must be the text that {saved.folder} was trained on, and has changed")
    return corpus if corpus and corpus.first.vocab <= min(saved.model.vocab, target.vocab) else None


def _tokens(saved: Saved, corpus: Mixture | None, vocab: int) -> np.ndarray:
    """int32[batch, length + 1]: validation text in the source's own windows, or random tokens."""
    if corpus is None:
        shape = (RANDOM_BATCH, min(RANDOM_LENGTH, saved.model.longest or RANDOM_LENGTH) + 1)
        return np.random.default_rng(0).integers(vocab, size=shape, dtype=np.int32)
    held_out = corpus.first.validation
    length = min(saved.data.length, VERIFY_TOKENS, len(held_out) - 1)
    fits = min(VERIFY_TOKENS // length, len(held_out) // (length + 1))
    return validation_batches(held_out, batch=min(saved.data.batch, fits), length=length, count=1)[0]


def _broken(verdict: dict[str, Any]) -> str:
    """The claims that are not met."""
    items = {name: item for name, item in verdict["items"].items() if item["claimed"] and not item["holds"]}
    return "; ".join(
        f"{name} must differ by at most {item['tolerance']:g}, got {item['measured']} ({item['note']})"
        for name, item in items.items()
    )
