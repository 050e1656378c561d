"""G_stack at the paper's sizes (arXiv 2405.15319, section 4.1): a quarter of the layers for 10B tokens, then all.

    growlm prepare --source=hf:cerebras/SlimPajama-627B --filter='meta.redpajama_set_name!=RedPajamaGithub' \\
        --tokenizer=TinyLlama --output=data/slimpajama
    growlm sweep --config=experiments/paper/gstack.py:7B_v5p --workdir=gs://BUCKET/7B --run=grown
    growlm sweep --config=experiments/paper/gstack.py:7B_v5p --workdir=gs://BUCKET/7B --run=scratch

Variants are 410M, 1.1B, 3B and 7B on a machine, the rows of `MACHINES`; `:tiny`, or `:410M_tiny`, has 8 narrow layers
and takes seconds. What is the paper's, what the released code's and what ours, what a chip has to hold, and the
published numbers to compare with: README.md beside this file.

Cost, ESTIMATED by `growlm plan` at an MFU of 0.40 for each of the two runs: 410M on 750B tokens 1.68e21 FLOPs, 2,664
hours of v5p, 1,332 of v6e or 1,236 of H100; 1.1B on 100B tokens 8.18e20, 1,264, 632 or 587; 3B on 300B tokens 4.32e21,
6,663, 3,332 or 3,091; 7B on 300B tokens 1.07e22, 16,411, 8,206 or 7,613.

What is expected: the paper's speed-up at equal training loss, 31 % (410M, 700B tokens), 49 % (1.1B), 54.5 % (3B, 240B
tokens) and 54.6 % (7B); less over a baseline with a rate of its own and a decayed schedule.

Result: not run.
"""

from dataclasses import dataclass, replace

from ml_collections import ConfigDict

from growlm.errors import check_name
from growlm.training.recipe import Scale

BATCH, LENGTH = 1024, 2048
UPDATE = BATCH * LENGTH
# Updates. Table 1: warm-up. The released code: of a cosine, and of the base before growth, 10.49B tokens.
WARMUP, HORIZON, BASE = 3_000, 300_000, 5_000
# The base of 1.1B has a peak of 1e-3 (released script); those of other bases are not published: the same factor, ours.
BASE_FACTOR = 1e-3 / 3e-4
TINY = 2_000  # updates for which a tiny variant makes one


def _size(layers: int, embed: int, heads: int, kv_heads: int, mlp: int, tokens: float, peak_lr: float) -> Scale:
    """A model as the released code has it, the tokens of the paper's run from scratch, and Table 1's peak rate."""
    head_dim = 64 if embed <= 2048 else 128
    widths = {"embed": embed, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "mlp": mlp, "vocab": 32000}
    rates = {"base_lr": BASE_FACTOR * peak_lr, "peak_lr": peak_lr}
    scale = Scale(layers=layers, widths=widths, tokens=int(tokens), batch=BATCH, length=LENGTH, **rates)
    return replace(scale, dtype="bfloat16", warmup_tokens=WARMUP * UPDATE)


SIZES = {
    "410M": _size(24, 1024, 16, 16, 2816, 750e9, 6e-4),
    "1.1B": _size(24, 2048, 32, 32, 5632, 100e9, 3e-4),
    "3B": _size(32, 2560, 20, 4, 7040, 300e9, 1.6e-4),
    "7B": _size(32, 4096, 32, 8, 11008, 300e9, 1e-4),
}


@dataclass(frozen=True)
class Machine:
    """Where a size is trained, and what makes it fit: README.md has the memory that the compiler asks for.

    Attributes:
      chips: a slice of TPUs as its topology, or nodes of GPUs.
      mesh: `data` 0 takes as many nodes as there are.
      microbatches, remat: as in the settings of a run and its stages.
    """

    chips: str
    mesh: dict[str, int]
    microbatches: int
    remat: str


MACHINES = {
    "410M_v5p": Machine("v5p:2x2x4", {"data": 1, "fsdp": 16}, 4, "none"),
    "1.1B_v5p": Machine("v5p:2x2x4", {"data": 1, "fsdp": 16}, 8, "none"),
    "3B_v5p": Machine("v5p:2x4x4", {"data": 2, "fsdp": 16}, 8, "none"),
    "7B_v5p": Machine("v5p:4x4x4", {"data": 4, "fsdp": 16}, 4, "none"),
    "1.1B_v6e": Machine("v6e:4x4", {"data": 1, "fsdp": 16}, 8, "attention"),
    "3B_v6e": Machine("v6e:4x8", {"data": 1, "fsdp": 32}, 8, "attention"),
    "7B_v6e": Machine("v6e:8x8", {"data": 1, "fsdp": 64}, 4, "attention"),
    "410M_h100": Machine("1 node of 8", {"data": 0, "fsdp": 8}, 8, "dots"),
    "1.1B_h100": Machine("1 node of 8", {"data": 0, "fsdp": 8}, 16, "dots"),
    "3B_h100": Machine("4 nodes of 8", {"data": 0, "fsdp": 8}, 8, "dots"),
    "7B_h100": Machine("8 nodes of 8", {"data": 0, "fsdp": 8}, 8, "dots"),
}


def get_config(variant: str = "7B_v5p") -> ConfigDict:
    variant = "7B_tiny" if variant == "tiny" else variant
    check_name("variant", variant, [*MACHINES, *(f"{name}_tiny" for name in SIZES), "tiny"])
    name, machine = variant.split("_")
    tiny = machine == "tiny"
    size, horizon, base = _tiny(SIZES[name]) if tiny else (SIZES[name], HORIZON * UPDATE, BASE * UPDATE)
    on = None if tiny else MACHINES[variant]
    if on:
        size = replace(size, microbatches=on.microbatches, remat=on.remat)
    cosine = {"horizon_tokens": horizon}
    small = size.stage(size.model(size.layers // 4), base, size.base_lr, schedule=cosine)
    config = size.sweep(f"G_stack at {name}", {"grown": size.grown([small], "g_stack", schedule=cosine)})
    config.runs.scratch = size.scratch(schedule=cosine)
    config.evaluation = {"every_tokens": size.part(0.25), "batches": 2}
    if on:
        config.corpus = "data/slimpajama"
        config.mesh = on.mesh
        config.evaluation = {"every_tokens": 1_000 * UPDATE, "batches": 8, "batch": 256}
        config.checkpoint = {"every_tokens": 1_000 * UPDATE, "max_to_keep": 2}
    return config


def _tiny(size: Scale) -> tuple[Scale, int, int]:
    """A size with 8 layers, a 32nd of its widths, and an update for every `TINY`; its horizon and its base's tokens."""
    widths = {name: value if "heads" in name else value // 32 for name, value in size.widths.items()} | {"vocab": 256}
    batch, length = 8, 64
    tokens = size.tokens // UPDATE // TINY * batch * length
    tiny = replace(size, layers=8, widths=widths, tokens=tokens, batch=batch, length=length, dtype="float32")
    step = batch * length
    return replace(tiny, warmup_tokens=WARMUP * step // TINY), HORIZON // TINY * step, BASE // TINY * step
