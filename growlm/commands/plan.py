"""`growlm plan`: when to grow a model, by how much, at which learning rates; what it should save and cost."""

import argparse
import textwrap
from pathlib import Path

from growlm.commands.options import Keys, command_line, one, positive
from growlm.commands.plan_experiment import experiment_file
from growlm.errors import InputError
from growlm.files import write_whole
from growlm.laws.planner import COST_CLASSES, Evidence, Hardware, Plan, plan
from growlm.laws.published import PAPER_RATES
from growlm.report import numbers

OPTIONS = {
    "--params": one("N", "parameters of the grown model, such as 7e9 or 7B", positive, required=True),
    "--tokens": one("N", "tokens of training it from scratch", positive, required=True),
    "--chip": one("NAME", "chip for hours and memory, such as v5e or h100-sxm"),
    "--count": one("N", "chips (default: 1)", int),
    "--mfu": one("X", "share of the chips' peak (default: 0.4)", float),
    "--factor": one("N", "growth factor (default: 4)", int),
    "--vocab": one("N", "vocabulary (default: 32000)", int),
    "--length": one("N", "tokens of an example (default: 2048)", int),
    "--write": one("FILE.py", "write the experiment that runs the plan", Path),
    "--corpus": one("PATH", "corpus of that experiment (default: stdlib)"),
}
WIDTH = 110

_NUMBERS = ("count", "mfu", "factor", "vocab", "length")
_UNCONTROLLED = (
    "the paper's are of one seed, with rates that are not decayed and a baseline whose rate is not tuned; a "
    "re-implementation in nanochat found the gains small"
)


def describe(plan: Plan) -> str:
    """The two stages as a table, then what to expect, what it is based on and what not to trust."""
    said = {
        "saving": saving(plan),
        "loss": _loss(plan),
        "learning rate": _rates(plan),
        "hardware": _hardware(plan.hardware),
        "measured": "\n".join([*map(_measured, plan.evidence), _UNCONTROLLED]),
        "caution": "\n".join(plan.caveats) or "none: inside the range of every law used",
    }
    size, tokens = numbers.count(plan.params), numbers.count(plan.tokens)
    head = f"{size} parameters, {tokens} tokens: a budget of {numbers.flops(plan.flops)} FLOPs"
    return "\n".join([head, "", _table(plan), "", *(_paragraph(*item) for item in said.items())])


def write_experiment(plan: Plan, path: Path, command: str, corpus: str) -> None:
    """Writes the experiment file that would run the plan; a new file, in a folder that is there. Raises InputError."""
    problems = {
        "its name does not end in .py": path.suffix != ".py",
        "it exists": path.exists(),
        "no such folder": not path.parent.is_dir(),
    }
    if why := [problem for problem, holds in problems.items() if holds]:
        raise InputError(f"--write={path}: {why[0]}; allowed is a new file such as experiments/mine.py")
    write_whole(path, experiment_file(plan, str(path), command, describe(plan), corpus).encode())


def saving(plan: Plan) -> str:
    """What growing should save, with its uncertainty."""
    (low, high), (less, more) = plan.speedup, plan.saved
    sooner = " to ".join(dict.fromkeys(numbers.count(plan.tokens / (1 + gain)) for gain in (high, low)))
    speedup = " to ".join(dict.fromkeys(f"{gain:+.0%}" for gain in (low, high)))
    saved = " to ".join(dict.fromkeys(f"{part:.0%}" for part in (less, more)))
    return (
        f"{saved} of the compute at equal loss (speed-up {speedup}), if it goes as where it was measured near this "
        f"size: the loss of {numbers.count(plan.tokens)} tokens from scratch for the cost of {sooner}. It may be "
        "nothing: what is left over a baseline with a tuned rate and a decayed schedule is not known at scale"
    )


def _measured(one: Evidence) -> str:
    gains = " to ".join(dict.fromkeys(f"{gain:+.0%}" for gain in (one.low, one.high)))
    return f"{gains} at {numbers.count(one.params)} parameters and {numbers.count(one.tokens)} tokens ({one.source})"


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
        f"{numbers.count(near)} parameters, and 1e-3 for the base of its 1.1B. Grown models have no law: try some"
    )


def _rate(rate: float) -> str:
    return f"{rate:.3g}" if rate >= 0.01 else f"{rate:.2e}".replace("e-0", "e-")


def _hardware(hardware: Hardware | None) -> str:
    if hardware is None:
        return "not asked: --chip=v5e --count=256 gives hours"
    hours = [numbers.duration(3600 * part) for part in (hardware.hours_before, hardware.hours_after)]
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
        ("parameters", *(numbers.count(phase.shape.params) for phase in phases)),
        ("tokens", *(numbers.count(phase.tokens) for phase in phases)),
        ("FLOPs", *(numbers.flops(phase.flops) for phase in phases)),
        ("learning rate", *(_rate(phase.peak_lr) for phase in phases)),
        ("batch", *(f"{phase.batch} x {plan.length}" for phase in phases)),
    ]
    return "\n".join(line.rstrip() for line in numbers.aligned(rows))


def _paragraph(name: str, text: str) -> str:
    """A name to the left of lines that are wrapped."""
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, WIDTH - 15, subsequent_indent="  ")]
    return "\n".join(f"{name if number == 0 else '':<15}{line}" for number, line in enumerate(lines))


def run(args: argparse.Namespace, keys: Keys) -> int:
    """Runs the command; returns the exit code."""
    given = {name: getattr(args, name) for name in _NUMBERS if getattr(args, name) is not None}
    planned = plan(args.params, args.tokens, args.chip, **given)
    print(describe(planned))
    if args.write:
        write_experiment(planned, args.write, command_line(), args.corpus or "stdlib")
        print(f"\nwritten: {args.write}")
    return 0
