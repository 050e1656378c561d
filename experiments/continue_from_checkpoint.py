"""A checkpoint you have, grown and trained on: which learning rate for what is new, and for what was there.

    growlm train --config=experiments/grow_once.py --workdir=runs/grow_once         # a checkpoint, if you have none
    growlm sweep --config=experiments/continue_from_checkpoint.py:cpu:runs/grow_once --workdir=runs/continue

`:cpu:DIR` continues what DIR holds: a run, one of a sweep's runs, a folder of `growlm grow`, or a Hugging Face
checkpoint, on a text that was prepared with its tokenizer:

    growlm prepare --source=TEXT --tokenizer=TinyLlama --output=runs/text
    growlm sweep --config=experiments/continue_from_checkpoint.py:gpu:TinyLlama --workdir=runs/tinyllama \\
        --config.corpus=runs/text

LLaMA Pro's growth by about a quarter of the layers, which keeps the function, and from there on

    rewarm        all of it, up to the full rate once more and down again
    new_slices    the new layers so, and what was there at a tenth of it, at most the rate at which it had ended
    llama_pro     the new layers alone; what was there is frozen

against controls of equal cost: no_rewarm, the grown model at a tenth of the rate from its beginning to its end; small,
the model as it is, up and down again, and small_no_rewarm. What the checkpoint itself has cost is in no count: it is
the same for all, and `init_from.json` in every run's folder says it where it is known. `:tiny:DIR` takes seconds.

Cost: cpu 2.0e13 FLOPs with the checkpoint above, 9 minutes on one core beside other work; gpu, ESTIMATED and not
measured, 2.2e18 FLOPs with TinyLlama, 90 minutes on one H100, at 40 % of its peak.

What is expected: the frozen original forgets nothing and learns the least (arXiv 2401.02415 trained 80B tokens so);
re-warming costs some loss at first and is paid back late (arXiv 2403.08763). On the same kind of text, so early, no
growth need win over `small`.

Result: cpu with the checkpoint above. Growing does not pay so early: small ends at 1.487, new_slices and rewarm at
1.490, no_rewarm at 1.500, llama_pro at 1.502. small_no_rewarm, at 1.497, shows that it is re-warming that helps.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from growlm import read_config
from growlm.errors import check_name, must_be
from growlm.models import DecoderConfig, parameter_count, plain, with_depth

LOW = 0.1  # of the full rate: where schedules end, and so where a checkpoint's has ended


class Budget(NamedTuple):
    """How much is trained: `tokens` of the grown model, in examples of `length`; `held_out` batches of validation."""

    tokens: int
    length: int
    batch: int
    microbatches: int
    peak_lr: float
    dtype: str
    held_out: int


BUDGETS = {
    "cpu": Budget(1_000_000, 128, 8, 1, 4e-3, "float32", 16),
    "gpu": Budget(50_000_000, 2048, 32, 8, 2e-4, "bfloat16", 4),
    "tiny": Budget(2_500, 128, 2, 1, 4e-3, "float32", 2),
}


def get_config(variant: str = "") -> ConfigDict:
    name, _, folder = variant.partition(":")
    check_name("variant", name, BUDGETS)
    if not folder:
        raise must_be("variant", f"{name}:DIR, DIR being a checkpoint", variant)
    budget, small = BUDGETS[name], read_config(folder)
    large = with_depth(small, small.depth + added(small.depth))
    rewarm = {"kind": "cosine", "peak_lr": budget.peak_lr, "end_lr_ratio": LOW, "warmup_tokens": budget.tokens // 20}
    low = {"kind": "constant", "peak_lr": LOW * budget.peak_lr}

    def stage(model: DecoderConfig, tokens: int, schedule: dict, **rest) -> dict:
        batches = {"batch": budget.batch, "length": budget.length, "microbatches": budget.microbatches}
        return {"model": plain(model), "tokens": tokens, "schedule": schedule, **batches, **rest}

    def grown(schedule: dict, train: str = "all", **rates: float) -> dict:
        more = {"growth": {"operator": "llama_pro", "train": train}, "optimizer": {"learning_rates": rates}}
        return {"stages": (stage(small, 0, low, init_from=folder), stage(large, budget.tokens, schedule, **more))}

    def as_it_is(schedule: dict) -> dict:
        tokens = budget.tokens * parameter_count(large) // parameter_count(small)
        return {"stages": (stage(small, tokens, schedule, init_from=folder),)}

    config = ConfigDict()
    config.title = f"{folder}, grown by {large.depth - small.depth} layers and trained on"
    config.corpus = "stdlib"
    config.seed = 1  # not that of the checkpoint, or the same examples come first
    config.dtype, config.remat = budget.dtype, "full"
    config.evaluation = {"every_tokens": budget.tokens // 20, "batches": budget.held_out}
    config.checkpoint = {"every_tokens": budget.tokens // 5, "max_to_keep": 1}
    config.runs = {
        "small": as_it_is(rewarm),
        "small_no_rewarm": as_it_is(low),
        "rewarm": grown(rewarm),
        "new_slices": grown(rewarm, old=LOW),
        "llama_pro": grown(rewarm, train="new"),
        "no_rewarm": grown(low),
    }
    config.baseline = "small"
    config.grown = ("rewarm", "new_slices", "llama_pro")
    config.controls = {
        "small_no_rewarm": "the model as it is, at the rate at which its schedule had ended",
        "no_rewarm": "the grown model, at that rate",
    }
    return config


def added(layers: int) -> int:
    """The largest divisor of the layers that is no more than a quarter of them."""
    return next(count for count in range(max(layers // 4, 1), 0, -1) if layers % count == 0)
