"""One run with one growth: 2 layers for a million tokens, then 8 layers for two million (G_stack).

    growlm train --config=experiments/grow_once.py --workdir=runs/grow_once

Stop it (Ctrl-C, SIGTERM or SIGKILL) and give the same command again: it goes on from its last checkpoint and
ends with the same losses. About two minutes on two cores. `:tiny` is the same in a few seconds.
"""

from ml_collections import ConfigDict

from growlm.errors import unknown

SHARE = {"": 1.0, "tiny": 0.02}


def get_config(variant: str = "") -> ConfigDict:
    if variant not in SHARE:
        raise unknown("variant", variant, SHARE)
    share = SHARE[variant]
    small = {"layers": 2, "embed": 64, "heads": 2, "kv_heads": 2, "head_dim": 32, "mlp": 176, "vocab": 256}
    batches = {"batch": 8, "length": 128}

    config = ConfigDict()
    config.corpus = "stdlib"  # the Python standard library of this interpreter, or the path of any text
    config.remat = "full"  # on XLA's CPU backend computing twice is faster than storing
    config.evaluation = {"every_tokens": int(100_000 * share), "batches": 16}
    config.checkpoint = {"every_tokens": int(100_000 * share), "max_to_keep": 2}
    config.stages = (
        {
            "model": small,
            "tokens": int(1_000_000 * share),
            "schedule": {"kind": "constant", "peak_lr": 4e-3, "warmup_tokens": int(50_000 * share)},
            **batches,
        },
        {
            "model": small | {"layers": 8},
            "tokens": int(2_000_000 * share),
            "schedule": {"kind": "cosine", "peak_lr": 4e-3, "warmup_tokens": int(50_000 * share)},
            "growth": {"operator": "direct", "options": {"order": "stack"}, "optimizer_state": "reset"},
            **batches,
        },
    )
    return config
