"""The four operators in depth and in width against training from scratch, the paper's figure 3.

    growlm sweep --config=experiments/operators.py:cpu --workdir=runs/operators/cpu-0 --config.seed=0

Bases of a quarter of the layers, or of half the width, trained on 20 % of the budget's tokens; all operators in depth
share one, and all in width the other. Options are the paper's where known: zero interleaves, random opens its masks
over a tenth of the tokens. LiGO learns for 50 steps instead of 100, at a higher rate, since the paper's 100 are 0.2 %
of its tokens; they are billed. `:tiny` takes seconds.

Cost: cpu 7.1e13 FLOPs, 66 minutes a seed on one core beside other work, 12 on two idle ones at quickstart's rate;
gpu, ESTIMATED and not measured, 1.4e17 FLOPs, 15 minutes on one H100, at 15 % of its peak.

What is expected (arXiv 2405.15319, speed-up over scratch at 1.1B): in depth direct 49 %, learn 49 %, zero 47 %, random
-26 %; in width -1, -15, -18 and -14 %.

Result: cpu, three seeds, over scratch_tuned. In depth direct +23, learn +20, random +7, zero -5 %; in width random +19,
zero +14, learn +2, direct -34 %. The gpu variant is not run yet.
"""

from ml_collections import ConfigDict

from growlm.study.recipe import Scale, scale

LEARN = {"steps": 50, "peak": 1e-3, "final": 1e-4, "warmup": 10}
SHARE = 0.2


def get_config(variant: str = "cpu") -> ConfigDict:
    size = scale(variant)
    depth, width = size.base(SHARE), size.base(SHARE, half_width(size))
    ramp = {"ramp_tokens": size.part(0.1)}
    zero = {"order": "interleave"}
    options = {"direct": ({}, {}), "zero": (zero, {}), "random": (ramp, ramp), "learn": (LEARN, LEARN)}
    runs = {}
    for operator, (in_depth, in_width) in options.items():
        spent = LEARN["steps"] * size.batch * size.length if operator == "learn" else 0
        runs[f"{operator}_depth"] = size.grown([depth], operator, spent=spent, options=in_depth)
        runs[f"{operator}_width"] = size.grown([width], operator, spent=spent, options=in_width)
    return size.sweep("Four growth operators, in depth and in width", runs)


def half_width(size: Scale) -> dict[str, int]:
    """The large model with half of every width, a quarter of the parameters in its blocks; heads keep their size."""
    return size.model(**{name: size.widths[name] // 2 for name in ("embed", "heads", "kv_heads", "mlp")})
