"""When to grow, by how much and at which learning rate, for one model and budget; what it should save and cost."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from growlm.errors import InputError, check_name, check_positive, check_range
from growlm.laws.chinchilla import CHINCHILLA_PARAMS, CHINCHILLA_TOKENS, HOFFMANN, REANALYSIS
from growlm.laws.compute import CHIPS, GIB, exact_flops_per_token, training_flops
from growlm.laws.evidence import PUBLISHED, Gain, Measured
from growlm.laws.intervals import Interval
from growlm.laws.isoflop import GuidelineFit
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
from growlm.laws.vocabulary import Vocabulary, optimal_vocabulary, vocabulary_caveats

VOCAB = 32_000
LENGTH = 2048
MFU = 0.4
# In the range of the timing law the small model gets 2 to 8 % of the compute, and 6 % in this project's demo. Where the
# law asks for more than MOST_SHARE, or for more tokens than there are, it gets FALLBACK_SHARE.
MOST_SHARE, FALLBACK_SHARE = 0.2, 0.05
LEAST_EXAMPLES = 50  # before growth
# Bytes of training state per parameter: weights and two moments in float32, and the gradient.
STATE_BYTES = 16
STATE_MEMORY = 0.5  # share of a device's memory that the state may take; the rest is activations
ROWS_PER_DEVICE = 8  # examples that are worked on at a time


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
class Own:
    """Fits to one's own runs, each in place of a published constant.

    Attributes:
        source: where the runs are.
        timing: when to grow; None where the runs do not determine it, and the paper's law stands.
        factor: by how much, a constant with its interval; None likewise.
        gains: what growing saved; none where nothing was measured, and the published measurements stand.
        missing: why a published one stands, by "timing", "factor" and "gains".
    """

    source: str
    timing: GuidelineFit | None
    factor: Interval | None
    gains: tuple[Measured, ...]
    missing: Mapping[str, str]


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
        gains: what each of the measurements says of this size and budget, over its own baseline; without those that
            were made too far from it.
        measured: all measurements; the published ones where one's own are too far from the budget.
        own: fits that took the place of published constants; None without any.
        timing: the tokens before growth that the law asks for, with an interval where it is one's own.
        vocabulary: the best for the blocks and the width of the planned shape, at this budget.
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
    gains: tuple[Gain, ...]
    measured: tuple[Measured, ...]
    own: Own | None
    timing: Interval
    vocabulary: Vocabulary
    null: float | None
    hardware: Hardware | None
    caveats: tuple[str, ...]


def plan(
    params: float,
    tokens: float,
    chip: str | None = None,
    count: int = 1,
    mfu: float = MFU,
    factor: int | None = None,
    vocab: int = VOCAB,
    length: int = LENGTH,
    own: Own | None = None,
) -> Plan:
    """Plans one growth by stacking, at the compute of training the same shape from scratch.

    The base is trained on the tokens of the paper's timing law (equation 2); the grown model on what is left of 6 N
    D. Where the law asks for a fifth of the compute or more, or for fewer than 50 examples, 5 % of it go into the
    base. The learning rates are Step Law's for all tokens at each of the two sizes, the batch its batch; below the
    range that it was fitted on the law is taken at the edge of the range, since it runs off to rates that no small
    model stands. The loss is that of Chinchilla's law. What growing saves is no law but what was measured near the
    size.

    Source and range: those of `growth_timing`, `step_law_rate`, `Chinchilla`; where this plan is outside of them, it
    says so in `caveats`.

    Args:
        params: N, all parameters of the grown model.
        tokens: D, tokens of training it from scratch: 6 N D is the budget.
        chip: a name in CHIPS, for hours and memory.
        count: of chips, jax devices.
        mfu: the share of their peak FLOP/s that is reached.
        factor: the growth factor, in layers; by default one's own, rounded, or the paper's 4.
        vocab: tokens of the vocabulary.
        length: tokens of an example.
        own: fits to take in place of the published constants.

    Raises:
        InputError: a number out of range, an unknown chip, no shape of that size, too few tokens for one batch.
    """
    if factor is None:
        factor = max(2, round(own.factor.value)) if own and own.factor else GROWTH_FACTOR
    _check(params, tokens, chip, count, mfu, factor, vocab, length)
    shape = shape_for(params, factor, vocab)
    base = shape.shallower(factor)
    flops, cost = training_flops(params, tokens), training_flops(shape.params, tokens)
    fit = own.timing if own else None
    timing = fit.forecast(params, flops) if fit else Interval(float(law_at(TIMING, params, flops)))
    early, unusable = _tokens_before(timing.value, params, flops, cost, base, length)
    batch = _batch(tokens, early, length, count)
    before = _phase(base, early, tokens, batch, length)
    after = _phase(shape, (cost - before.flops) / (6 * shape.params), tokens, batch, length)
    scratch = _phase(shape, tokens, tokens, batch, length)
    measured = own.gains if own and any(one.at(params, flops) for one in own.gains) else PUBLISHED
    gains = tuple(gain for one in measured if (gain := one.at(params, flops)))
    losses = [float(law.loss(shape.params, tokens)) for law in (REANALYSIS, HOFFMANN)]
    stages = [base.params, shape.params], [before.tokens, after.tokens]
    null = null_loss(REANALYSIS, *stages) - losses[0]
    hardware = _hardware(before, after, chip, count, mfu) if chip else None
    caveats = timing_caveats(params, flops) if fit is None else _own_caveats(fit, params, flops)
    caveats += _caveats(shape, tokens, base, factor, unusable)
    caveats += [f"saving by {gain.source}: {gain.how}" for gain in gains if not gain.inside]
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
        gains=gains,
        measured=measured,
        own=own,
        timing=timing,
        vocabulary=optimal_vocabulary(shape.block_params, shape.embed, flops),
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


def _tokens_before(
    asked: float, params: float, flops: float, cost: float, base: Shape, length: int
) -> tuple[float, bool]:
    """The tokens of the base; and whether what a law asks for cannot be planned, so that the fallback was taken."""
    too_much = asked >= flops / (6 * params) or training_flops(base.params, asked) > MOST_SHARE * cost
    unusable = too_much or asked < LEAST_EXAMPLES * length
    return (FALLBACK_SHARE * cost / (6 * base.params) if unusable else asked), unusable


def _batch(tokens: float, early: float, length: int, count: int) -> int:
    """Examples in a batch: Step Law's, capped so that the base trains for 50 steps, a multiple of the devices."""
    examples = min(step_law_batch(tokens), early / LEAST_EXAMPLES) / length
    if early < LEAST_EXAMPLES * length:
        raise InputError(
            f"tokens before growth must be >= {LEAST_EXAMPLES * length:,} ({LEAST_EXAMPLES} examples), got "
            f"{early:.3g}: take more --tokens"
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


def _own_caveats(fit: GuidelineFit, params: float, flops: float) -> list[str]:
    """Where one's own law of timing is extrapolated, a line each."""
    caveats, used = [], [one for one in fit.slices if one.best is not None]
    sizes, budgets = [one.params for one in used], [one.flops for one in used]
    for name, value, low, high in (
        ("N", params, min(sizes), max(sizes)),
        ("C", flops, min(budgets), max(budgets)),
    ):
        if not low <= value <= high:
            times, side = (low / value, "below") if value < low else (value / high, "above")
            caveats.append(
                f"growth timing: your law is EXTRAPOLATED, {name} = {value:.3g} is {times:.3g} times {side} your "
                f"runs' {low:.3g} to {high:.3g}"
            )
    return caveats


def _caveats(shape: Shape, tokens: float, base: Shape, factor: int, unusable: bool) -> list[str]:
    caveats = factor_caveats(factor, base.layers)
    if unusable:
        caveats.append(
            f"growth timing: what the law asks for cannot be planned; the base gets {FALLBACK_SHARE:.0%} of the "
            "compute instead, which is a guess"
        )
    caveats += step_law_caveats(shape.block_params, tokens)
    if base.block_params < STEP_LAW_PARAMS[0] or tokens < STEP_LAW_TOKENS[0]:
        caveats.append("Step Law: below its range, the base's too, the rates are those at its edge")
    for name, value, (low, high) in (("N", shape.params, CHINCHILLA_PARAMS), ("D", tokens, CHINCHILLA_TOKENS)):
        if not low <= value <= high:
            caveats.append(f"loss: {name} = {value:.3g} is outside of {low:.2g} to {high:.2g}, the law's range")
    return caveats + vocabulary_caveats(shape.block_params)


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
