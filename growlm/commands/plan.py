"""`growlm plan`: when to grow a model, by how much, at which learning rates; what it should save and cost."""

import argparse
import json
import sys
import textwrap
from functools import partial
from pathlib import Path

from growlm.commands.options import JSON, Keys, command_line, local, one, positive, print_json, records
from growlm.errors import must_be
from growlm.files import write_whole
from growlm.laws.evidence import FAR, Gain, Measured
from growlm.laws.planner import COST_CLASSES, Hardware, Plan, plan
from growlm.laws.published import GROWTH_FACTOR, PAPER_RATES
from growlm.report import style
from growlm.report.contours import plan_figure
from growlm.report.own import own_fits

OPTIONS = {
    "--params": one("N", "parameters of the grown model, such as 7e9 or 7B", positive, required=True),
    "--tokens": one("N", "tokens of training it from scratch", positive, required=True),
    "--chip": one("NAME", "chip for hours and memory, such as v5e or h100-sxm"),
    "--count": one("N", "chips (default: 1)", int),
    "--mfu": one("X", "share of the chips' peak (default: 0.4)", float),
    "--factor": one("N", "growth factor (default: 4, or that of --records)", int),
    "--vocab": one("N", "vocabulary (default: 32000)", int),
    "--length": one("N", "tokens of an example (default: 2048)", int),
    "--records": one("DIR", "folder of sweeps: your fits in place of the published constants", records),
    "--figure": one("FILE.png", "draw when to grow over size and compute, with the plan in it", local),
    "--write": one("FILE.py", "write the experiment that runs the plan", local),
    "--system": one("NAME", "published system of that experiment, in place of G_stack: growlm grow --list"),
    "--corpus": one("PATH", "corpus of that experiment (default: stdlib)"),
    **JSON,
}
WIDTH = 110  # characters of a line
WARMUP_STEPS, WARMUP_SHARE = 2000, 0.1  # of all stages: so many updates, at most this share of the base's tokens
HELD_OUT = 64  # examples of a validation batch where the devices are not known; else one on each

_NOT_KNOWN = (
    "It may be nothing: no measurement has a second seed at scale, and a re-implementation in nanochat found little"
)
_FILE = '''"""{title}.

Written by: {command}

    growlm sweep --config={path} --workdir=runs/{stem} --list
    growlm sweep --config={path} --workdir=runs/{stem} --run=grown

Cost: {flops:.3g} FLOPs for each of the two runs{hours}.

A claim of speed-up is measured against `scratch`, which has the learning rate that Step Law gives for it; the schedules
of both decay to their end. `:tiny` has the same layers, so narrow that a CPU trains them in a minute. `:train` and
`:train_tiny` are the grown run alone, for `growlm train`.

What is expected, and what not to trust, at the time of writing:

{notes}

Result: not run yet.
"""

from dataclasses import replace

from growlm.errors import check_name
from growlm.training.recipe import {tiny}, Scale, alone

TITLE = "{title}"
PLANNED = Scale(
    layers={layers},
    widths={widths},
    tokens={tokens},
    batch={batch},
    length={length},
    base_lr={base_lr:.3g},
    peak_lr={peak_lr:.3g},
    dtype="{dtype}",
    microbatches={microbatches},
    warmup_tokens={warmup},
)
TINY = {{"tokens": 20_000, "batch": 4, "length": 64, "microbatches": 1, "warmup_tokens": 500, "validation_batches": 2}}


def get_config(variant: str = ""):
    check_name("variant", variant, ("", "tiny", "train", "train_tiny"))
    tiny = variant.endswith("tiny")
    size = replace(PLANNED, widths={tiny}, dtype="float32", **TINY) if tiny else PLANNED
    {grown}
    config = size.sweep(TITLE, {{"grown": grown}})
    if not tiny:
        config.corpus = "{corpus}"  # stdlib, Python's own library as bytes, is a stand-in for your text or tokens
        config.mesh = {{"fsdp": {fsdp}}}
        config.evaluation.update(every_tokens=size.part(0.01), batch={held_out})
        config.checkpoint.update(every_tokens=size.part(0.05), max_to_keep=2)
    return alone(config, "grown") if variant.startswith("train") else config
'''


def describe(plan: Plan) -> str:
    """The two stages as a table, then what to expect, what it is based on and what not to trust."""
    said = {
        "saving": saving(plan),
        "laws": "\n".join(_laws(plan)),
        "loss": _loss(plan),
        "vocabulary": _vocabulary(plan),
        "learning rate": _rates(plan),
        "hardware": _hardware(plan.hardware),
        "measured": "\n".join(map(_measured, plan.measured)),
        "caution": "\n".join(plan.caveats) or "none: inside the range of every law used",
    }
    size, tokens = style.count(plan.params), style.count(plan.tokens)
    head = f"{size} parameters, {tokens} tokens: a budget of {style.flops(plan.flops)} FLOPs"
    return "\n".join([head, "", _table(plan), "", *(_paragraph(*item) for item in said.items())])


_STACKED = """base = size.base(0.25 if tiny else {tokens} / PLANNED.tokens, size.model({layers}))
    grown = size.grown([base], "g_stack")"""


def write_experiment(plan: Plan, path: Path, command: str, corpus: str, system: str | None = None) -> None:
    """Writes the experiment that trains the plan's stages, or a system's, and its baseline, a new file.

    Raises InputError: where it cannot be written, and where the system does not divide the plan's target.
    """
    if path.suffix != ".py" or path.exists() or not path.parent.is_dir():
        raise must_be("--write", "a new .py file in a folder that exists", str(path))
    before, after, hardware = plan.before, plan.after, plan.hardware
    small, large, widths = before.shape, after.shape, after.shape.sizes()
    way = f"{small.layers} layers grown to {large.layers} by stacking"
    grown = _STACKED.format(tokens=f"{round(before.tokens):_}", layers=small.layers)
    if system:
        way, grown = f"{large.layers} layers by {system}", f'grown = size.system("{system}")'
    text = _FILE.format(
        title=f"{way}, {large.params:,} parameters",
        grown=grown,
        tiny="SIXFOLD" if system else "DEMO",
        command=_quoted(command),
        path=_quoted(str(path)),
        stem=_quoted(path.stem),
        flops=plan.scratch.flops,
        hours=f", ESTIMATED {hardware.device_hours:,.0f} hours of {hardware.chip}" if hardware else "",
        notes="\n".join(f"    {_quoted(line)}".rstrip() for line in describe(plan).splitlines()),
        layers=widths.pop("layers"),
        widths=json.dumps(widths),
        tokens=f"{round(plan.scratch.tokens):_}",
        batch=after.batch,
        length=plan.length,
        base_lr=before.peak_lr,
        peak_lr=after.peak_lr,
        dtype="bfloat16" if hardware else "float32",
        microbatches=hardware.microbatches if hardware else 1,
        warmup=f"{round(min(WARMUP_STEPS * after.batch * plan.length, WARMUP_SHARE * before.tokens)):_}",
        corpus=_quoted(corpus),
        fsdp=hardware.fsdp if hardware else 1,
        held_out=hardware.count if hardware else min(after.batch, HELD_OUT),
    )
    write_whole(path, text.encode())


def _quoted(text: str) -> str:
    """Text that may stand in a docstring."""
    return text.replace("\\", "/").replace('"', "'")


def saving(plan: Plan) -> str:
    """What growing should save over each baseline that it was measured against, with its uncertainty."""
    if not plan.gains:
        return f"not known: nothing was measured within {FAR:,} times of this compute"
    return "\n".join([*(_gain(plan, one) for one in plan.gains), _NOT_KNOWN])


def _gain(plan: Plan, one: Gain) -> str:
    sooner = " to ".join(dict.fromkeys(style.count(plan.tokens / (1 + gain)) for gain in (one.high, one.low)))
    speedup = " to ".join(dict.fromkeys(f"{gain:+.0%}" for gain in (one.low, one.high)))
    saved = " to ".join(dict.fromkeys(f"{part:.0%}" for part in one.saved))
    return (
        f"speed-up {speedup} by {one.what} ({one.source}) over scratch {one.baseline}: {one.how}. At equal loss "
        f"{saved} of the compute, {style.count(plan.tokens)} tokens from scratch for the cost of {sooner}"
    )


def _measured(one: Measured) -> str:
    said = []
    for low, high, first, last, note in one.rows:
        gains = " to ".join(dict.fromkeys(f"{gain:+.0%}" for gain in (low, high)))
        budgets = " to ".join(dict.fromkeys(style.flops(end) for end in (first, last)))
        said.append(f"{gains} at {budgets} FLOPs{f' ({note})' if note else ''}")
    return f"{one.what} ({one.source}), over scratch {one.baseline}: {'; '.join(said)}"


def _laws(plan: Plan) -> list[str]:
    """Which law each number of the plan is of, a line each, and why a published one stands where runs were given."""
    own = plan.own
    when = style.interval(plan.timing, style.count)
    lines = [f"when: {when} tokens by equation 2 of arXiv 2405.15319"]
    if own and own.timing:
        used, every = own.timing.used, len(own.timing.slices)
        lines = [f"when: {when} tokens by YOUR law, {used} of {every} slices of {own.source}, in place of equation 2"]
    lines.append(f"factor: {plan.factor}; the paper's constant is {GROWTH_FACTOR}")
    if own and own.factor:
        lines[-1] = f"factor: {plan.factor}; YOURS is {style.figures(own.factor)}, in place of {GROWTH_FACTOR}"
    if own and own.gains:
        yours = "YOUR speed-ups, in place of the published ones"
        far = f"not yours, which were measured more than {FAR:,} times away from this compute"
        lines.append(f"saving: {yours if plan.measured is own.gains else far}")
    if own:
        lines += [f"{name}: not yours, {why}" for name, why in own.missing.items()]
    return lines


def _vocabulary(plan: Plan) -> str:
    best, planned = plan.vocabulary, plan.after.shape.vocab
    ends = " to ".join(dict.fromkeys(style.count(end) for end in (best.low, best.high)))
    side = "fewer than" if planned < best.low else "more than" if planned > best.high else "within"
    return (
        f"{style.count(planned)} are planned (--vocab), {side} the {ends} that three laws of arXiv 2407.13623 say for "
        "these blocks, this width and budget"
    )


def _loss(plan: Plan) -> str:
    if plan.loss is None:
        return "not known: below the range of Chinchilla's law, which would say nonsense here"
    low, high = plan.loss
    return (
        f"{low:.3f} to {high:.3f} nats per token from scratch, by two fits of Chinchilla's law, on its text and "
        "tokenizer; lower if growing saves. Null hypothesis, that a grown model is worth its average size: "
        f"{plan.null:+.4f}"
    )


def _rates(plan: Plan) -> str:
    near = min(PAPER_RATES, key=lambda params: abs(params / plan.params - plan.params / params))
    factor = plan.after.peak_lr / plan.before.peak_lr
    return (
        f"by Step Law, times {factor:.2f} at growth; the paper used {_rate(PAPER_RATES[near])} at "
        f"{style.count(near)} parameters, and 1e-3 for the base of its 1.1B. Grown models have no law: try some"
    )


def _rate(rate: float) -> str:
    return f"{rate:.3g}" if rate >= 0.01 else f"{rate:.2e}".replace("e-0", "e-")


def _hardware(hardware: Hardware | None) -> str:
    if hardware is None:
        return "not asked: --chip=v5e --count=256 gives hours"
    hours = [style.duration(3600 * part) for part in (hardware.hours_before, hardware.hours_after)]
    classes = ", ".join(f"{name} up to {most:,}" for name, most in COST_CLASSES.items())
    spread = f"state spread over {hardware.fsdp}" if hardware.fsdp > 1 else "state whole on each"
    return (
        f"{hardware.count} x {hardware.chip} at an assumed MFU of {hardware.mfu:.2f} (--mfu): {hours[0]} before "
        f"growth, {hours[1]} after it, {hardware.device_hours:,.0f} device-hours, cost class "
        f"{hardware.cost_class} (device-hours: {classes}); {spread}, microbatches {hardware.microbatches}. From "
        "scratch as much"
    )


def _table(plan: Plan) -> str:
    """The stages before and after growth, and the baseline, side by side."""
    phases = (plan.before, plan.after, plan.scratch)
    rows = [("", "before", "after", "scratch")]
    rows += [
        (name, *(str(getattr(phase.shape, name)) for phase in phases))
        for name in ("layers", "embed", "heads", "kv_heads", "mlp", "vocab")
    ]
    rows += [
        ("parameters", *(style.count(phase.shape.params) for phase in phases)),
        ("tokens", *(style.count(phase.tokens) for phase in phases)),
        ("FLOPs", *(style.flops(phase.flops) for phase in phases)),
        ("learning rate", *(_rate(phase.peak_lr) for phase in phases)),
        ("batch", *(f"{phase.batch} x {plan.length}" for phase in phases)),
    ]
    return style.table(rows[0], rows[1:])


def system_stages(plan: Plan, name: str) -> str:
    """The stages of a system that ends with the plan's target, at its cost. Raises InputError."""
    from growlm.training.config import build_run
    from growlm.training.systems import written_out

    target = {"model": plan.after.shape.sizes(), "tokens": round(plan.scratch.tokens)}
    target |= {"batch": plan.after.batch, "length": plan.length}
    stages = written_out(build_run({"system": name, "stages": [target]})).stages
    said = [f"{each.model.layers} layers x {each.model.embed} on {style.count(each.tokens)} tokens" for each in stages]
    return "\n" + _paragraph(name, ", ".join(said) + ". The stages and savings above are stacking's")


def _paragraph(name: str, text: str) -> str:
    """A name to the left of lines that are wrapped."""
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, WIDTH - 15, subsequent_indent="  ")]
    return "\n".join(f"{name if number == 0 else '':<15}{line}" for number, line in enumerate(lines))


def run(args: argparse.Namespace, keys: Keys) -> int:
    """Runs the command; returns the exit code."""
    names = ("count", "mfu", "factor", "vocab", "length")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    if args.figure and (args.figure.suffix != ".png" or args.figure.exists() or not args.figure.parent.is_dir()):
        raise must_be("--figure", "a new .png file in a folder that exists", str(args.figure))
    if args.records:
        given["own"] = own_fits(args.records)
    planned = plan(args.params, args.tokens, args.chip, **given)
    if args.system and not args.write:
        raise must_be("--system", "given with --write, which has the experiment", args.system)
    stages = system_stages(planned, args.system) if args.system else ""
    said = partial(print, file=sys.stderr if args.json else None)
    if args.json:
        print_json(planned)
    else:
        print(describe(planned) + stages)
    if args.figure:
        from growlm.report.drawing import png

        figure = plan_figure(planned)
        write_whole(args.figure, png(figure, figure.x[0]))
        said(f"\nfigure: {args.figure}")
    if args.write:
        write_experiment(planned, args.write, command_line(), args.corpus or "stdlib", args.system)
        said(f"\nwritten: {args.write}")
    return 0
