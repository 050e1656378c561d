"""One run that decides when it grows, and how: by the slope of its loss, and by the best of three operators.

    growlm train --config=experiments/decide.py --workdir=runs/decide

2 layers until the loss falls as slowly over compute as staged training says of a growth in depth (arXiv 2203.06211), at
most a million tokens. There three growths to 8 layers are tried for 50 steps each, as LAG does (arXiv 2406.02469), and
the best goes on. The budget is that of grow_once.py; what the probe costs is part of it. `:tiny` takes seconds.

Cost: 6.0e12 FLOPs, about two minutes on two cores, of which the probe is a twelfth.

What is expected: 50 steps are past the rise of the loss after stacking (arXiv 2405.15319 sees it gone within a few
hundred), so the best is not simply the one that keeps the function. Nobody has published how long to probe.

Result: not run yet.
"""

from ml_collections import ConfigDict

from growlm.errors import check_name

SHARE = {"": 1.0, "tiny": 0.02}


def get_config(variant: str = "") -> ConfigDict:
    check_name("variant", variant, SHARE)
    share = SHARE[variant]
    small = {"layers": 2, "embed": 64, "heads": 2, "kv_heads": 2, "head_dim": 32, "mlp": 176, "vocab": 256}
    batches = {"batch": 8, "length": 128}
    warm = {"peak_lr": 4e-3, "warmup_tokens": int(50_000 * share)}
    candidates = {name: {"operator": "direct", "options": {"order": name}} for name in ("stack", "interleave")}
    candidates["lemon"] = {"operator": "lemon"}

    config = ConfigDict()
    config.corpus = "stdlib"
    config.remat = "full"
    config.budget_flops = 6.0e12 * share
    config.evaluation = {"every_tokens": int(100_000 * share), "batches": 16}
    config.checkpoint = {"every_tokens": int(100_000 * share), "max_to_keep": 2}
    config.stages = (
        {
            "model": small,
            "tokens": int(1_000_000 * share),
            "schedule": {"kind": "constant", **warm},
            "grow_when": {"rule": "slope", "options": {"threshold": -0.0575}, "min_tokens": int(200_000 * share)},
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
