"""`growlm grow`: a saved model in, a larger one out, checked on the way: plan, grow, verify, write."""

import dataclasses
import inspect
import itertools
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from growlm.data import Corpus, batches, load_corpus, validation_batches
from growlm.errors import BrokenClaimError, InputError, unknown
from growlm.files import check_output, check_space
from growlm.growth import (
    LIFTS,
    OPERATORS,
    OPTIMIZER_STATES,
    Growth,
    claim,
    gradient_claim,
    grow_state,
    growth_key,
    options_of,
    plan_growth,
)
from growlm.growth.presets import Resolved, resolve, table
from growlm.growth.verify import describe_verdict, verify
from growlm.models import ARCHITECTURES, DecoderConfig, parameter_count, plain, sizes_of
from growlm.state import TrainState
from growlm.training.config import build_model, literal
from growlm.training.optimizer import make_optimizer
from growlm.training.saved import Saved, carry_origin, check_open, find_saved, read_state, save_grown
from growlm.training.step import abstract_state, run_keys

# A grown model is checked on so many tokens at most: their logits are held whole, twice.
VERIFY_TOKENS = 4096
RANDOM_BATCH, RANDOM_LENGTH = 4, 64  # where there is no corpus

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for. Sizes and options are texts `key=value`; None is the source's own, or the operator's."""

    source: Path
    output: Path | None
    operator: str = "direct"
    factor: int | None = None
    sizes: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    optimizer_state: str | None = None
    step: int | None = None
    seed: int | None = None


@dataclasses.dataclass(frozen=True)
class GrowPlan:
    """A growth of a saved model, checked, before anything is read or written. `key` is the grown state's."""

    saved: Saved
    output: Path | None
    target: DecoderConfig
    asked: str
    resolved: Resolved
    key: jax.Array
    growth: Growth

    @property
    def source(self) -> DecoderConfig:
        """The shape before."""
        return self.saved.model


def plan_grow(request: Request) -> GrowPlan:
    """Everything that can be wrong with a request is found here. Raises InputError."""
    resolved = resolve_request(request)
    chosen = request.optimizer_state or resolved.optimizer_state
    if chosen not in OPTIMIZER_STATES:
        raise unknown("optimizer_state", chosen, OPTIMIZER_STATES)
    saved = find_saved(request.source, request.step)
    check_open(saved)
    key = saved.key if request.seed is None else run_keys(request.seed)[1]
    target = target_shape(saved.model, request.factor, pairs("--target", request.sizes))
    growth = plan_growth(resolved.operator, saved.model, target, growth_key(key, saved.step), **resolved.options)
    if growth.learner and not saved.data:
        raise InputError(
            f"{request.operator} learns from batches, and {saved.folder} names no corpus: allowed is a run"
        )
    resolved = dataclasses.replace(resolved, optimizer_state=chosen)
    return GrowPlan(saved, request.output, target, request.operator, resolved, key, growth)


def resolve_request(request: Request) -> Resolved:
    """The growth that is asked for, whatever is to grow. Raises InputError: what is wrong before that is looked at."""
    resolved = resolve(request.operator, pairs("--option", request.options))
    try:
        json.dumps(resolved.options)
    except TypeError as error:
        raise InputError(f"an --option cannot be recorded: {error}; allowed are numbers, texts and lists") from None
    if request.seed is not None and not 0 <= request.seed < 2**31:
        raise InputError(f"--seed must be >= 0 and <= {2**31 - 1}, got {request.seed}")
    if request.output:
        check_output(request.output)
    return resolved


def target_shape(source: DecoderConfig, factor: int | None, sizes: dict[str, Any]) -> DecoderConfig:
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
        if factor < 2:
            raise InputError(f"--factor must be integers >= 2, got {factor}")
        depth = source.architecture.stack.field
        if depth in sizes:
            raise InputError(f"--factor={factor} and --target.{depth}={sizes[depth]}: allowed is one of them")
        if not getattr(source, depth):
            raise InputError(f"--factor is {factor} and the source has no layers: allowed is --target.{depth}")
        sizes = sizes | {depth: getattr(source, depth) * factor}
    if architecture is source.architecture:
        rest = {key: value for key, value in sizes.items() if key != "architecture"}
        target = dataclasses.replace(source, **rest)
    else:
        target = build_model({key: value for key, value in plain(source).items() if key in fields} | sizes, "--target")
    if target == source:
        raise InputError("nothing grows: allowed is --factor=4, or a size such as --target.layers=24")
    return target


def pairs(prefix: str, texts: Iterable[str]) -> dict[str, Any]:
    """`key=value` texts as a mapping, values as Python literals or, where they are none, as text."""
    pairs: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InputError(f"'{prefix}.{text}': allowed is {prefix}.key=value")
        if key in pairs:
            raise InputError(f"{prefix}.{key} is given twice: allowed is once")
        pairs[key] = literal(value)
    return pairs


def describe_plan(plan: GrowPlan) -> str:
    """The shapes before and after, the claims with their reasons, and what it takes, for a terminal."""
    notes = {"source": f"{plan.saved.folder}, step {plan.saved.step:,}", "operator": named(plan.asked, plan.resolved)}
    notes |= {"optimizer": plan.resolved.optimizer_state} | claims(plan.source, plan.target, plan.growth)
    return describe_growth(plan.source, plan.target, notes | {"takes": f"{state_bytes(plan):,} bytes of state, grown"})


def named(asked: str, resolved: Resolved) -> str:
    """What was asked for, the operator that it stands for and its options, in one line."""
    options = " ".join(f"{name}={value}" for name, value in resolved.options.items())
    return " ".join(filter(None, [*dict.fromkeys((asked, resolved.operator)), options]))


def claims(source: DecoderConfig, target: DecoderConfig, growth: Growth) -> dict[str, str]:
    """What a growth claims of function and gradients, and why, in a line each."""
    function, gradients = claim(growth, source, target), gradient_claim(growth, source, target)
    lifted = {"lift": f"{growth.lift.name}: {growth.lift.says}"} if growth.lift else {}
    return lifted | {
        "function": f"{'kept' if function[0] else 'not kept'}: {function[1]}",
        "gradients": f"{'mapped exactly' if gradients[0] else 'not mapped exactly'}: {gradients[1]}",
    }


def describe_growth(source: DecoderConfig, target: DecoderConfig, notes: dict[str, str]) -> str:
    """A table of the two shapes, and the notes below it."""
    rows = [("", "before", "after")]
    both = sizes_of(source), sizes_of(target)
    if source.architecture is not target.architecture:
        rows.append(("architecture", source.architecture.name, target.architecture.name))
    rows += [(name, *(f"{sizes[name]:,}" if name in sizes else "-" for sizes in both)) for name in both[0] | both[1]]
    rows += [("parameters", *(f"{parameter_count(model):,}" for model in (source, target)))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{name:<{widths[0]}}  {a:>{widths[1]}}  {b:>{widths[2]}}" for name, a, b in rows]
    width = max(map(len, notes))
    return "\n".join([*lines, "", *(f"{name:<{width}}  {note}" for name, note in notes.items())])


def state_bytes(plan: GrowPlan) -> int:
    """The size of the grown parameters, the optimizer's state and the averaged copy, if any."""
    state = abstract_state(plan.target, plan.saved.optimizer)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((state.params, state.opt_state, state.ema)))


def run_grow(plan: GrowPlan, checked: bool, say: Say) -> str:
    """Grows, verifies unless told not to, and writes the folder; the verdict as text.

    Raises InputError, and BrokenClaimError, with nothing written, where a claim is not met.
    """
    check_space(plan.output, state_bytes(plan))
    say(f"reading {plan.saved.folder}, step {plan.saved.step:,}")
    state = dataclasses.replace(read_state(plan.saved), key=plan.key)
    learns = plan.growth.learner is not None
    corpus = _corpus(plan.saved, needed=learns, say=say) if learns or checked else None
    say(f"growing {parameter_count(plan.source):,} to {parameter_count(plan.target):,} parameters")
    grown, report = _grow(plan, state, corpus)
    verdict = None
    if checked:
        tokens = _tokens(plan, corpus)
        say("verifying on {} x {} {} tokens".format(*_shape(tokens), "validation" if corpus else "random"))
        verdict = verify(plan.source, state.params, plan.target, grown.params, tokens, plan.growth)
        if not verdict["ok"]:
            raise BrokenClaimError(_broken(verdict))
    say(f"writing {plan.output}")
    beside = partial(carry_origin, plan.saved.folder)
    save_grown(plan.output, plan.target, plan.saved.optimizer, grown, report, verdict, plan.saved.data, beside)
    return describe_verdict(verdict) if verdict else "not verified"


def _grow(plan: GrowPlan, state: TrainState, corpus: Corpus | None) -> tuple[TrainState, dict[str, Any]]:
    data, fed = plan.saved.data, ()
    if plan.growth.learner:
        shape = {"batch": data.batch, "length": data.length}
        fed = batches(corpus.train, seed=data.seed, start=int(state.examples), **shape)
    grown, report = grow_state(
        state,
        plan.source,
        plan.target,
        make_optimizer(plan.saved.optimizer, plan.target),
        plan.resolved.operator,
        plan.resolved.optimizer_state,
        fed,
        **plan.resolved.options,
    )
    jax.block_until_ready(grown.params)
    came = {"folder": str(plan.saved.folder.absolute())}
    came |= {name: getattr(plan.saved, name) for name in ("step", "tokens", "flops")}
    return grown, {"grown_from": came, "asked": plan.asked, "train": plan.resolved.train} | report


def _corpus(saved: Saved, needed: bool, say: Say) -> Corpus | None:
    """The corpus of the source. It is needed by what learns; to verify, random tokens will do."""
    try:
        corpus = load_corpus(saved.data.corpus) if saved.data else None
    except InputError as error:
        if needed:
            raise
        say(f"the source's corpus is gone ({error}): random tokens will do")
        return None
    if needed and corpus.fingerprint != saved.data.fingerprint:
        raise InputError(
            f"corpus {corpus.name!r} has changed since {saved.folder} was trained: allowed is the same text"
        )
    return corpus if corpus and corpus.vocab <= saved.model.vocab else None


def _tokens(plan: GrowPlan, corpus: Corpus | None) -> np.ndarray:
    """int32[batch, length + 1]: validation text in the source's own windows, or random tokens."""
    if corpus is None:
        shape = (RANDOM_BATCH, RANDOM_LENGTH + 1)
        return np.random.default_rng(0).integers(plan.source.vocab, size=shape, dtype=np.int32)
    length = min(plan.saved.data.length, VERIFY_TOKENS, len(corpus.validation) - 1)
    fits = min(VERIFY_TOKENS // length, len(corpus.validation) // (length + 1))
    return validation_batches(corpus.validation, batch=min(plan.saved.data.batch, fits), length=length, count=1)[0]


def _shape(tokens: np.ndarray) -> tuple[int, int]:
    return tokens.shape[0], tokens.shape[1] - 1


def _broken(verdict: dict[str, Any]) -> str:
    """The claims that are not met, in one line."""
    items = {name: item for name, item in verdict["items"].items() if item["claimed"] and not item["holds"]}
    shown = (
        f"{name} {item['measured']}, allowed {item['tolerance']:g} ({item['note']})" for name, item in items.items()
    )
    return f"the grown model is not what its growth claims: {'; '.join(shown)}; nothing is written"


def list_growths() -> str:
    """The operators with their options, and the table of presets."""
    width = max(map(len, (*OPERATORS, *LIFTS)))
    lines = []
    for name, operator in OPERATORS.items():
        lines.append(f"{name:<{width}}  {inspect.getdoc(operator).splitlines()[0]}")
        lines.append(f"{'':<{width}}  options: {', '.join(options_of(name))}")
    lifts = [f"{name:<{width}}  a lift between architectures: {one.says}" for name, one in LIFTS.items()]
    return "\n".join(itertools.chain(lines, lifts, ["", table()]))
