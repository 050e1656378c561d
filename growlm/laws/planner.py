"""When to grow, by how much and at which learning rate, for one model and budget; what it should save and cost."""

import math
from dataclasses import dataclass

from growlm.errors import InputError, unknown
from growlm.laws.chinchilla import FITTED_PARAMS, FITTED_TOKENS, HOFFMANN, REANALYSIS
from growlm.laws.chips import CHIPS, GIB
from growlm.laws.flops import exact_flops_per_token, training_flops
from growlm.laws.guidelines import GROWTH_FACTOR, TIMING, factor_caveats, law_at, timing_caveats
from growlm.laws.hypotheses import null_loss
from growlm.laws.shapes import Shape, shape_for
from growlm.laws.step_law import FITTED_PARAMS as STEP_LAW_PARAMS
from growlm.laws.step_law import FITTED_TOKENS as STEP_LAW_TOKENS
from growlm.laws.step_law import rate_at, step_law_batch, step_law_caveats

VOCAB = 32_000
LENGTH = 2048
MFU = 0.4
# In the range of the timing law the small model gets 2 to 8 % of the compute, and 6 % in this project's demo. Where the
# law asks for more than MOST_SHARE, or for more tokens than there are, it gets FALLBACK_SHARE.
MOST_SHARE, FALLBACK_SHARE = 0.2, 0.05
# Bytes of training state per parameter: weights and two moments in float32, and the gradient.
STATE_BYTES = 16
# So much of a device's memory may the state take; the rest is activations.
STATE_MEMORY = 0.5
ROWS_PER_DEVICE = 8  # examples that are worked on at a time


@dataclass(frozen=True)
class Evidence:
    """What was measured at one size: the speed-up over training from scratch, lowest and highest, and by whom."""

    params: float
    tokens: float
    low: float
    high: float
    source: str


# What was measured within so many times the size is taken for near.
NEAR = 4
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
    rate: float
    batch: int
    flops: float
    flops_exact: float


@dataclass(frozen=True)
class Hardware:
    """What the plan takes on so many devices.

    Attributes:
        chip, count, mfu: the devices, and the share of their peak that is assumed.
        hours_before, hours_after: of each stage.
        device_hours: of both, over all devices.
        cost_class: "workstation", "lab", "cluster" or "frontier", by device-hours (COST_CLASSES, and beyond).
        fsdp: over how many devices the state is spread, so that it takes half of their memory at most.
        microbatches: in how many parts a batch is worked on.
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
        saved: the same as compute saved.
        evidence: all that was measured.
        null: the loss of the grown run less that of `scratch`, if growing did nothing (the average-size law); None
            like `loss`.
        hardware: what it takes; None without a chip.
        caveats: what not to trust, a line each.
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
    """How to train a model of so many parameters by growing it once by stacking, at the cost of so many tokens.

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
    speedup = min(one.low for one in near), max(one.high for one in near)
    losses = [float(law.loss(shape.params, tokens)) for law in (REANALYSIS, HOFFMANN)]
    stages = [base.params, shape.params], [before.tokens, after.tokens]
    null = null_loss(REANALYSIS, *stages) - losses[0]
    hardware = _hardware(before, after, chip, count, mfu) if chip else None
    caveats = _caveats(params, flops, shape, tokens, base, factor, asked_too_much)
    caveats += _limits(hardware, after) if hardware else []
    known = shape.params >= FITTED_PARAMS[0] and tokens >= FITTED_TOKENS[0]
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
    for name, value in (("params", params), ("tokens", tokens)):
        if not 0 < value < math.inf:
            raise InputError(f"--{name} must be positive numbers such as 7e9, got {value!r}")
    for name, value in (("count", count), ("vocab", vocab), ("length", length)):
        if value < 1:
            raise InputError(f"--{name} must be integers >= 1, got {value!r}")
    if factor < 2:
        raise InputError(f"--factor must be integers >= 2, got {factor!r}")
    if not 0 < mfu <= 1:
        raise InputError(f"--mfu must be > 0 and <= 1, the share of the chips' peak, got {mfu!r}")
    if chip is not None and chip not in CHIPS:
        raise unknown("chip", chip, CHIPS)


def _tokens_before(params: float, flops: float, cost: float, base: Shape) -> tuple[float, bool]:
    """The tokens of the base, and whether the law asked for too many, so that it was not heard."""
    early = float(law_at(TIMING, params, flops))
    too_much = early >= flops / (6 * params) or training_flops(base.params, early) > MOST_SHARE * cost
    return (FALLBACK_SHARE * cost / (6 * base.params) if too_much else early), too_much


def _batch(tokens: float, early: float, length: int, count: int) -> int:
    """Examples of a batch: Step Law's, but at least 50 steps for the base, in whole examples for every device."""
    examples = min(step_law_batch(tokens), early / 50) / length
    if early < 50 * length:
        raise InputError(
            f"{early:.3g} tokens before growth are fewer than 50 examples of {length}: allowed are more --tokens or a "
            "smaller --length"
        )
    unit = count if examples >= count else 1
    return max(int(2 ** round(math.log2(examples / unit))), 1) * unit


def _phase(shape: Shape, tokens: float, horizon: float, batch: int, length: int) -> Phase:
    """A stage at Step Law's rate for all tokens of the run; not below the law's range, where it runs off."""
    rate = rate_at(max(shape.block_params, STEP_LAW_PARAMS[0]), max(horizon, STEP_LAW_TOKENS[0]))
    exact = exact_flops_per_token(shape.matmul_params, shape.layers, shape.heads, shape.head_dim, length)
    return Phase(shape, tokens, float(rate), batch, training_flops(shape.params, tokens), exact * tokens)


def _hardware(before: Phase, after: Phase, name: str, count: int, mfu: float) -> Hardware:
    chip = CHIPS[name]
    hours = [phase.flops_exact / (mfu * chip.peak_flops * count) / 3600 for phase in (before, after)]
    spent = sum(hours) * count
    cost_class = next((label for label, most in COST_CLASSES.items() if spent <= most), "frontier")
    wanted = STATE_BYTES * after.shape.params / (STATE_MEMORY * chip.hbm_bytes)
    fsdp = next((part for part in _divisors(count) if part >= wanted), count)
    parts = [part for part in _divisors(after.batch) if after.batch // part % count == 0]
    microbatches = next((part for part in parts if after.batch // part <= ROWS_PER_DEVICE * count), 1)
    return Hardware(name, count, mfu, *hours, spent, cost_class, fsdp, microbatches)


def _divisors(number: int) -> list[int]:
    return [part for part in range(1, number + 1) if number % part == 0]


def _caveats(params, flops, shape, tokens, base, factor, asked_too_much) -> list[str]:
    said = [*timing_caveats(params, flops), *factor_caveats(factor, base.layers)]
    if asked_too_much:
        said.append(f"growth timing: the base gets {FALLBACK_SHARE:.0%} of the compute instead, which is a guess")
    said += step_law_caveats(shape.block_params, tokens)
    if base.block_params < STEP_LAW_PARAMS[0] or tokens < STEP_LAW_TOKENS[0]:
        said.append("Step Law: below its range, the base's too, the rates are those at its edge")
    for name, value, (low, high) in (("N", shape.params, FITTED_PARAMS), ("D", tokens, FITTED_TOKENS)):
        if not low <= value <= high:
            said.append(f"loss: {name} = {value:.3g} is outside of {low:.2g} to {high:.2g}, where the law was fitted")
    near = _near(params)
    if not 1 / NEAR <= near[0].params / params <= NEAR:
        said.append(f"saving: nothing was measured near {params:.2g} parameters; the nearest is {near[0].params:.2g}")
    elif not any(1 / NEAR <= one.tokens / tokens <= NEAR for one in near):
        at = " and ".join(f"{one.tokens:.2g}" for one in near)
        said.append(f"saving: it was measured at {at} tokens, far from the {tokens:.2g} of this plan")
    return said


def _near(params: float) -> list[Evidence]:
    """What was measured within NEAR times the size, the nearest first; if nothing was, the nearest alone."""
    ordered = sorted(EVIDENCE, key=lambda one: abs(math.log(one.params / params)))
    return [one for one in ordered if 1 / NEAR <= one.params / params <= NEAR] or ordered[:1]


def _limits(hardware: Hardware, after: Phase) -> list[str]:
    """What of the plan these devices cannot do, a line each."""
    said, memory = [], CHIPS[hardware.chip].hbm_bytes
    state = STATE_BYTES * after.shape.params / hardware.fsdp
    if state > STATE_MEMORY * memory:
        said.append(
            f"hardware: weights, gradients and moments take {state / GIB:.1f} GiB of the {memory / GIB:.0f} GiB memory "
            f"of each {hardware.chip}, more than half: take more of them"
        )
    if after.batch % hardware.count:
        said.append(f"hardware: a batch of {after.batch} examples cannot be shared out to {hardware.count} chips")
    return said
