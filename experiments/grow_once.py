"""One run with one growth: 2 layers for a million tokens, then 8 layers for two million (G_stack).

    growlm train --config=experiments/grow_once.py --workdir=runs/grow_once

Stop it (Ctrl-C, SIGTERM or SIGKILL) and give the same command again: it goes on from its last checkpoint. It is the
plainest of the experiments, to copy from. `:tiny` takes seconds.

Cost: 6.0e12 FLOPs, about two minutes on two cores.

What is expected: stopped or not, the same losses to the bit.

Result: that holds, `tests/test_restart.py` proves it. One run compares nothing: see quickstart.py.
"""

from ml_collections import ConfigDict

from growlm.errors import check_name

SHARE = {"": 1.0, "tiny": 0.005}
BATCH = {"": 8, "tiny": 2}
BATCHES = {"": 16, "tiny": 2}  # of validation text


def get_config(variant: str = "") -> ConfigDict:
    check_name("variant", variant, SHARE)
    share = SHARE[variant]
    small = {"layers": 2, "embed": 64, "heads": 2, "kv_heads": 2, "head_dim": 32, "mlp": 176, "vocab": 256}
    batches = {"batch": BATCH[variant], "length": 128}

    config = ConfigDict()
    config.corpus = "stdlib"  # the Python standard library of this interpreter, or the path of any text
    config.remat = "full"  # on XLA's CPU backend computing twice is faster than storing
    config.evaluation = {"every_tokens": int(100_000 * share), "batches": BATCHES[variant]}
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
