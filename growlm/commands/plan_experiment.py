"""The experiment file that a plan asks for, as text."""

import json

from growlm.laws.planner import Phase, Plan

WARMUP_STEPS, WARMUP_SHARE = 2000, 0.1  # the smaller of the two
HELD_OUT = 64  # examples in a validation batch, where nothing is known of the devices; else one on each

_FILE = '''"""{title}.

Written by: {command}

    growlm sweep --config={name} --workdir=runs/{stem} --list
    growlm sweep --config={name} --workdir=runs/{stem} --run=grown

`grown` and `scratch` cost the same, {flops:.3g} FLOPs each; `scratch` is what a claim of speed-up is measured against,
and has the learning rate that Step Law gives for it. Every schedule is decayed to its end. `:tiny` is the same plan
with models that a CPU trains in a minute.{hours}

What to expect, and what not to trust, at the time of writing:

{notes}
"""

from ml_collections import ConfigDict

from growlm.errors import unknown

# "stdlib" (Python's own library as bytes) is a stand-in: put in the path of your text or tokens.
CORPUS = "{corpus}"
SMALL = {small}
LARGE = {large}
# Tokens before growth, after it, and of training from scratch at the same cost; and how the work is shared out.
PLANNED = {{
    "tokens": ({early}, {late}, {whole}),
    "batch": {batch},
    "length": {length},
    "microbatches": {microbatches},
    "held_out": {held_out},
    "fsdp": {fsdp},
    "dtype": "{dtype}",
    "corpus": CORPUS,
    "sizes": {{}},
}}
TINY = {{
    "tokens": (10_240, 40_960, 43_520),
    "batch": 8,
    "length": 64,
    "microbatches": 1,
    "held_out": 0,
    "fsdp": 1,
    "dtype": "float32",
    "corpus": "stdlib",
    "sizes": {{"embed": 64, "heads": 2, "kv_heads": 2, "head_dim": 32, "mlp": 176, "vocab": 256}},
}}


def get_config(variant: str = "") -> ConfigDict:
    if variant not in ("", "tiny"):
        raise unknown("variant", variant, ("", "tiny"))
    plan = TINY if variant == "tiny" else PLANNED
    small, large = SMALL | plan["sizes"], LARGE | plan["sizes"]
    early, late, whole = plan["tokens"]

    def stage(model, tokens, peak, kind="cosine", **rest):
        warmup = min({warmup_steps} * plan["batch"] * plan["length"], tokens // {warmup_part})
        schedule = {{"kind": kind, "peak": peak, "warmup_tokens": warmup}}
        how = {{name: plan[name] for name in ("batch", "length", "microbatches")}}
        return {{"model": model, "tokens": tokens, "schedule": schedule, **how, **rest}}

    growth = {{"operator": "direct", "options": {{"order": "stack"}}, "optimizer_state": "reset"}}
    base = stage(small, early, {rate_before:.3g}, kind="constant")  # growth at the peak rate, as in the paper

    config = ConfigDict()
    config.title = "{title}"
    config.corpus = plan["corpus"]
    config.seed = 0
    config.dtype = plan["dtype"]
    config.remat = "full"
    config.mesh = {{"data": 0, "fsdp": plan["fsdp"], "tensor": 1}}
    config.evaluation = {{"every_tokens": whole // 100, "batches": 16, "batch": plan["held_out"]}}
    config.checkpoint = {{"every_tokens": whole // 20, "max_to_keep": 2}}
    config.runs = {{
        "grown": {{"stages": (base, stage(large, late, {rate_after:.3g}, growth=growth))}},
        "scratch": {{"stages": (stage(large, whole, {rate_after:.3g}),)}},
    }}
    config.baseline = "scratch"
    config.grown = ("grown",)
    return config
'''


def experiment_file(plan: Plan, name: str, command: str, notes: str, corpus: str = "stdlib") -> str:
    """The Python text of an experiment that trains the plan's two stages and its baseline.

    Args:
        plan: what to train.
        name: the path of the file, for its docstring.
        command: what it was written by.
        notes: what the plan says, lines of text.
        corpus: what to train on.
    """
    hardware = plan.hardware
    stem = name.rsplit("/", 1)[-1].removesuffix(".py")
    return _FILE.format(
        title=_title(plan),
        command=_quoted(command),
        name=_quoted(name),
        stem=_quoted(stem),
        flops=plan.scratch.flops,
        hours=f" Cost, estimated: {hardware.device_hours:,.0f} hours of {hardware.chip} each." if hardware else "",
        dtype="bfloat16" if hardware else "float32",
        notes="\n".join(f"    {_quoted(line)}".rstrip() for line in notes.splitlines()),
        corpus=_quoted(corpus),
        small=_model(plan.before),
        large=_model(plan.after),
        batch=plan.after.batch,
        length=plan.length,
        early=_tokens(plan.before),
        late=_tokens(plan.after),
        whole=_tokens(plan.scratch),
        warmup_steps=WARMUP_STEPS,
        warmup_part=round(1 / WARMUP_SHARE),
        microbatches=hardware.microbatches if hardware else 1,
        held_out=hardware.count if hardware else min(plan.after.batch, HELD_OUT),
        fsdp=hardware.fsdp if hardware else 1,
        rate_before=plan.before.peak_lr,
        rate_after=plan.after.peak_lr,
    )


def _title(plan: Plan) -> str:
    before, after = plan.before.shape, plan.after.shape
    return f"{before.layers} layers grown to {after.layers} by stacking, {after.params:,} parameters"


def _quoted(text: str) -> str:
    """Text that may stand in a docstring."""
    return text.replace("\\", "/").replace('"', "'")


def _model(phase: Phase) -> str:
    return json.dumps(phase.shape.sizes())


def _tokens(phase: Phase) -> str:
    return f"{round(phase.tokens):_}"
