"""A run with two growths, to be made under two versions of jax and compared: its losses differ in their last digits.

    growlm train --config=experiments/reliability/versions.py --config.corpus=TEXT --workdir=runs/versions

TEXT is a file, for the standard library, the usual corpus, is another one in each version of Python. Takes 20 seconds.
"""

from ml_collections import ConfigDict

STEPS, BATCH, LENGTH = 300, 4, 64  # of a stage
MODEL = {"embed": 32, "heads": 2, "kv_heads": 2, "head_dim": 16, "mlp": 88, "vocab": 256}


def get_config() -> ConfigDict:
    tokens = STEPS * BATCH * LENGTH
    schedule = {"kind": "cosine", "peak_lr": 1e-2, "warmup_tokens": tokens // 15}
    shared = {"tokens": tokens, "batch": BATCH, "length": LENGTH, "schedule": schedule}
    stages = [{"model": MODEL | {"layers": layers}, **shared} for layers in (1, 2, 4)]
    for stage in stages[1:]:
        stage["growth"] = {"operator": "direct", "optimizer_state": "map"}
    return ConfigDict({"corpus": "", "stages": stages, "log_every_steps": 10})
