"""When to grow, by how much and at which learning rate, for one model and budget; what it should save and cost."""

import math
from dataclasses import dataclass

from growlm.errors import InputError, check_name, check_positive, check_range
from growlm.laws.chinchilla import CHINCHILLA_PARAMS, CHINCHILLA_TOKENS, HOFFMANN, REANALYSIS
from growlm.laws.compute import CHIPS, GIB, exact_flops_per_token, training_flops
from growlm.laws.published import (
    GROWTH_FACTOR,
    STEP_LAW_PARAMS,
    STEP_LAW_TOKENS,
    TIMING,
    factor_caveats,
    law_at,
    null_loss,
    step_law_at,
    step_law_batch,
    step_law_caveats,
    timing_caveats,
)
from growlm.laws.shapes import Shape, shape_for

VOCAB = 32_000
LENGTH = 2048
MFU = 0.4
# In the range of the timing law the small model gets 2 to 8 % of the compute, and 6 % in this project's demo. Where the
# law asks for more than MOST_SHARE, or for more tokens than there are, it gets FALLBACK_SHARE.
MOST_SHARE, FALLBACK_SHARE = 0.2, 0.05
# Bytes of training state per parameter: weights and two moments in float32, and the gradient.
STATE_BYTES = 16
STATE_MEMORY = 0.5  # share of a device's memory that the state may take; the rest is activations
ROWS_PER_DEVICE = 8  # examples that are worked on at a time


@dataclass(frozen=True)
class Evidence:
    """A measured speed-up over training from scratch at one size, lowest and highest, and its source."""

    params: float
    tokens: float
    low: float
    high: float
    source: str


NEAR = 4  # a measurement is near if its size is within this factor
_PAPER = "arXiv 2405.15319"
EVIDENCE = (
    Evidence(4.35e5, 2.4e6, 0.06, 0.29, "this project's demo, 3 seeds, over scratch with its own rate"),
    Evidence(4.1e8, 7e11, 0.31, 0.53, f"{_PAPER}, falling with tokens"),
    Evidence(1.1e9, 1e11, 0.49, 0.49, _PAPER),
    Evidence(3e9, 2.4e11, 0.49, 0.55, _PAPER),
    Evidence(7e9, 3e11, 0.41, 0.55, _PAPER),
)


@dataclass(frozen=True)
class Phase:
    """One of the two stages: the model, its tokens, its peak learning rate, its batch in examples and its FLOPs.

    `flops` is 6 N D with all parameters of the shape, `flops_exact` the count with attention.
    """

    shape: Shape
    tokens: float
    peak_lr: float
    batch: int
    flops: float
    flops_exact: float


@dataclass(frozen=True)
class Hardware:
    """Time, cost class and layout of the plan on `count` devices.

    Attributes:
        chip, count, mfu: the devices, and the share of their peak that is assumed.
        hours_before, hours_after: of each stage.
        device_hours: of both, over all devices.
        cost_class: "workstation", "lab", "cluster" or "frontier", by device-hours (COST_CLASSES, and beyond).
        fsdp: devices over which the state is sharded, so that it takes at most half of their memory.
        microbatches: parts into which a batch is cut.
    """

    chip: str
    count: int
    mfu: float
    hours_before: float
    hours_after: float
    device_hours: float
    cost_class: str
    fsdp: int
    microbatches: int


COST_CLASSES = {"workstation": 100, "lab": 5_000, "cluster": 250_000}


@dataclass(frozen=True)
class Plan:
    """A plan for growing once, at the compute of training the same shape from scratch.

    Attributes:
        params, tokens: what was asked for: N, and D of training from scratch.
        flops: 6 N D, nominal; what the timing law is asked at.
        before, after: the two stages. Together they cost what `scratch` costs.
        scratch: the baseline, the grown shape on all tokens.
        factor, length: the growth factor and the tokens of an example.
        loss: expected of `scratch`, lowest and highest of two published laws, on their text and tokenizer; None below
            the range of the laws.
        speedup: lowest and highest of what was measured within 4 times the size (EVIDENCE), or at the nearest.
        saved: lowest and highest compute saved, of the same evidence.
        evidence: all that was measured.
        null: the loss of the grown run less that of `scratch`, if growing did nothing (the average-size law); None
            where `loss` is.
        hardware: time and layout; None without a chip.
        caveats: reasons not to trust a number, a line each.
    """

    params: float
    tokens: float
    flops: float
    before: Phase
    after: Phase
    scratch: Phase
    factor: int
    length: int
    loss: tuple[float, float] | None
    speedup: tuple[float, float]
    saved: tuple[float, float]
    evidence: tuple[Evidence, ...]
    null: float | None
    hardware: Hardware | None
    caveats: tuple[str, ...]


def plan(
    params: float,
    tokens: float,
    chip: str | None = None,
    count: int = 1,
    mfu: float = MFU,
    factor: int = GROWTH_FACTOR,
    vocab: int = VOCAB,
    length: int = LENGTH,
) -> Plan:
    """Plans one growth by stacking, at the compute of training the same shape from scratch.

    The base is trained on the tokens of the paper's timing law (equation 2); the grown model on what is left of 6 N D.
    Where the law asks for a fifth of the compute or more, 5 % of it go into the base. The learning rates are
    Step Law's for all tokens at each of the two sizes, the batch its batch; below the range that it was fitted on the
    law is taken at the edge of the range, since it runs off to rates that no small model stands. The loss is that of
    Chinchilla's law. What growing saves is no law but what was measured near the size.

    Source and range: those of `growth_timing`, `step_law_rate`, `Chinchilla`; where this plan is outside of them, it
    says so in `caveats`.

    Args:
        params: N, all parameters of the grown model.
        tokens: D, tokens of training it from scratch: 6 N D is the budget.
        chip: a name in CHIPS, for hours and memory.
        count: of chips, jax devices.
        mfu: the share of their peak FLOP/s that is reached.
        factor: the growth factor, in layers.
        vocab: tokens of the vocabulary.
        length: tokens of an example.

    Raises:
        InputError: a number out of range, an unknown chip, no shape of that size, too few tokens for one batch.
    """
    _check(params, tokens, chip, count, mfu, factor, vocab, length)
    shape = shape_for(params, factor, vocab)
    base = shape.shallower(factor)
    flops, cost = training_flops(params, tokens), training_flops(shape.params, tokens)
    early, asked_too_much = _tokens_before(params, flops, cost, base)
    batch = _batch(tokens, early, length, count)
    before = _phase(base, early, tokens, batch, length)
    after = _phase(shape, (cost - before.flops) / (6 * shape.params), tokens, batch, length)
    scratch = _phase(shape, tokens, tokens, batch, length)
    near = _near(params)
    speedup = min(each.low for each in near), max(each.high for each in near)
    losses = [float(law.loss(shape.params, tokens)) for law in (REANALYSIS, HOFFMANN)]
    stages = [base.params, shape.params], [before.tokens, after.tokens]
    null = null_loss(REANALYSIS, *stages) - losses[0]
    hardware = _hardware(before, after, chip, count, mfu) if chip else None
    caveats = _caveats(params, flops, shape, tokens, base, factor, asked_too_much)
    caveats += _limits(hardware, after) if hardware else []
    known = shape.params >= CHINCHILLA_PARAMS[0] and tokens >= CHINCHILLA_TOKENS[0]
    return Plan(
        params=params,
        tokens=tokens,
        flops=flops,
        before=before,
        after=after,
        scratch=scratch,
        factor=factor,
        length=length,
        loss=(min(losses), max(losses)) if known else None,
        speedup=speedup,
        saved=tuple(1 - 1 / (1 + gain) for gain in speedup),
        evidence=EVIDENCE,
        null=null if known else None,
        hardware=hardware,
        caveats=tuple(caveats),
    )


def _check(params, tokens, chip, count, mfu, factor, vocab, length) -> None:
    check_positive("--params", params)
    check_positive("--tokens", tokens)
    for name, value in (("--count", count), ("--vocab", vocab), ("--length", length)):
        check_range(name, value, low=1)
    check_range("--factor", factor, low=2)
    check_range("--mfu", mfu, low=0, high=1, low_allowed=False)
    if chip is not None:
        check_name("--chip", chip, CHIPS)


def _tokens_before(params: float, flops: float, cost: float, base: Shape) -> tuple[float, bool]:
    """The tokens of the base; and whether the law asked for too many, so that the fallback was taken."""
    early = float(law_at(TIMING, params, flops))
    too_much = early >= flops / (6 * params) or training_flops(base.params, early) > MOST_SHARE * cost
    return (FALLBACK_SHARE * cost / (6 * base.params) if too_much else early), too_much


def _batch(tokens: float, early: float, length: int, count: int) -> int:
    """Examples in a batch: Step Law's, capped so that the base trains for 50 steps, a multiple of the devices."""
    examples = min(step_law_batch(tokens), early / 50) / length
    if early < 50 * length:
        raise InputError(
            f"tokens before growth must be >= {50 * length:,} (50 examples), got {early:.3g}: take more --tokens"
        )
    unit = count if examples >= count else 1
    return max(int(2 ** round(math.log2(examples / unit))), 1) * unit


def _phase(shape: Shape, tokens: float, horizon: float, batch: int, length: int) -> Phase:
    """A stage at Step Law's learning rate for all tokens of the run, which is clamped to the law's range from below."""
    peak_lr = step_law_at(max(shape.block_params, STEP_LAW_PARAMS[0]), max(horizon, STEP_LAW_TOKENS[0]))
    exact = exact_flops_per_token(shape.matmul_params, shape.layers, shape.heads, shape.head_dim, length)
    return Phase(
        shape=shape,
        tokens=tokens,
        peak_lr=float(peak_lr),
        batch=batch,
        flops=training_flops(shape.params, tokens),
        flops_exact=exact * tokens,
    )


def _hardware(before: Phase, after: Phase, name: str, count: int, mfu: float) -> Hardware:
    chip = CHIPS[name]
    hours = [phase.flops_exact / (mfu * chip.peak_flops * count) / 3600 for phase in (before, after)]
    device_hours = sum(hours) * count
    cost_class = next((label for label, most in COST_CLASSES.items() if device_hours <= most), "frontier")
    wanted = STATE_BYTES * after.shape.params / (STATE_MEMORY * chip.hbm_bytes)
    fsdp = next((part for part in _divisors(count) if part >= wanted), count)
    parts = [part for part in _divisors(after.batch) if after.batch // part % count == 0]
    microbatches = next((part for part in parts if after.batch // part <= ROWS_PER_DEVICE * count), 1)
    return Hardware(
        chip=name,
        count=count,
        mfu=mfu,
        hours_before=hours[0],
        hours_after=hours[1],
        device_hours=device_hours,
        cost_class=cost_class,
        fsdp=fsdp,
        microbatches=microbatches,
    )


def _divisors(number: int) -> list[int]:
    return [part for part in range(1, number + 1) if number % part == 0]


def _caveats(params, flops, shape, tokens, base, factor, asked_too_much) -> list[str]:
    caveats = [*timing_caveats(params, flops), *factor_caveats(factor, base.layers)]
    if asked_too_much:
        caveats.append(f"growth timing: the base gets {FALLBACK_SHARE:.0%} of the compute instead, which is a guess")
    caveats += step_law_caveats(shape.block_params, tokens)
    if base.block_params < STEP_LAW_PARAMS[0] or tokens < STEP_LAW_TOKENS[0]:
        caveats.append("Step Law: below its range, the base's too, the rates are those at its edge")
    for name, value, (low, high) in (("N", shape.params, CHINCHILLA_PARAMS), ("D", tokens, CHINCHILLA_TOKENS)):
        if not low <= value <= high:
            caveats.append(f"loss: {name} = {value:.3g} is outside of {low:.2g} to {high:.2g}, the law's range")
    near = _near(params)
    if not 1 / NEAR <= near[0].params / params <= NEAR:
        caveats.append(
            f"saving: nothing was measured near {params:.2g} parameters, the nearest at {near[0].params:.2g}"
        )
    elif not any(1 / NEAR <= each.tokens / tokens <= NEAR for each in near):
        at = " and ".join(f"{each.tokens:.2g}" for each in near)
        caveats.append(f"saving: it was measured at {at} tokens, far from the {tokens:.2g} of this plan")
    return caveats


def _near(params: float) -> list[Evidence]:
    """The evidence within NEAR times the size, the nearest first; if there is none, the nearest alone."""
    ordered = sorted(EVIDENCE, key=lambda evidence: abs(math.log(evidence.params / params)))
    return [evidence for evidence in ordered if 1 / NEAR <= evidence.params / params <= NEAR] or ordered[:1]


def _limits(hardware: Hardware, after: Phase) -> list[str]:
    """Parts of the plan that do not fit these devices, a line each."""
    caveats, memory = [], CHIPS[hardware.chip].hbm_bytes
    state = STATE_BYTES * after.shape.params / hardware.fsdp
    if state > STATE_MEMORY * memory:
        caveats.append(
            f"hardware: weights, gradients and moments take {state / GIB:.1f} GiB of the {memory / GIB:.0f} GiB memory "
            f"of each {hardware.chip}, more than half: take more of them"
        )
    if after.batch % hardware.count:
        caveats.append(f"hardware: a batch of {after.batch} examples cannot be shared out to {hardware.count} chips")
    return caveats
