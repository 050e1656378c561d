"""One run that decides when it grows, and how: by the slope of its loss, and by the best of three operators.

    growlm train --config=experiments/decide.py --workdir=runs/decide

2 layers until their loss falls more slowly per FLOP than that of 8 layers from scratch at equal loss, at most three
million tokens (staged training, arXiv 2203.06211). LAW is of those 8 layers: a line through log loss and log FLOPs of
the first half of scratch_tuned in records/operators/cpu-0. Then three growths to 8 layers are tried for 50 steps each
(LAG, arXiv 2406.02469), and the best goes on. What the probe costs is part of the budget, that of grow_once.py.
`:tiny` takes seconds.

Cost: 6.0e12 FLOPs, of which the probe is a fifteenth; 13 minutes on two cores beside much other work, 3.5 minutes of
their time.

What is expected: growth later than at a million tokens, where the small model is still the faster; stacking catches up
within the probe, but for the share that it lost at growth. Nobody has published how long to probe.

Result: the rule is met after 1.5 million tokens. After 50 steps lemon is at 1.906, stack, from 2.446, at 1.939,
interleave, from 2.780, at 1.977. lemon goes on and ends at 1.580; which would have ended best was not run.
"""

from ml_collections import ConfigDict

from growlm.errors import check_name

SHARE = {"": 1.0, "tiny": 0.005}
BATCH = {"": 8, "tiny": 2}
BATCHES = {"": 16, "tiny": 2}  # of validation text
LAW = {"a": 674.0, "b": -0.2068}  # nats a byte and FLOPs


def get_config(variant: str = "") -> ConfigDict:
    check_name("variant", variant, SHARE)
    share = SHARE[variant]
    small = {"layers": 2, "embed": 64, "heads": 2, "kv_heads": 2, "head_dim": 32, "mlp": 176, "vocab": 256}
    batches = {"batch": BATCH[variant], "length": 128}
    warm = {"peak_lr": 4e-3, "warmup_tokens": int(50_000 * share)}
    candidates = {name: {"operator": "direct", "options": {"order": name}} for name in ("stack", "interleave")}
    candidates["lemon"] = {"operator": "lemon"}

    config = ConfigDict()
    config.corpus = "stdlib"
    config.remat = "full"
    config.budget_flops = 6.0e12 * share
    config.evaluation = {"every_tokens": int(100_000 * share), "batches": BATCHES[variant]}
    config.checkpoint = {"every_tokens": int(100_000 * share), "max_to_keep": 2}
    config.stages = (
        {
            "model": small,
            "tokens": int(3_000_000 * share),
            "schedule": {"kind": "constant", **warm},
            "grow_when": {"rule": "slope", "options": {"law": LAW}, "min_tokens": int(200_000 * share)},
            **batches,
        },
        {
            "model": small | {"layers": 8},
            "tokens": 0,
            "schedule": {"kind": "cosine", **warm},
            "growth": {"operator": "probe", "options": {"candidates": candidates, "steps": int(50 * share) or 1}},
            **batches,
        },
    )
    return config
