"""Noise at growth: W <- (1 - a) W + a e, in depth and in width, and noise that keeps the function.

    growlm sweep --config=experiments/noise.py:cpu --workdir=runs/noise/cpu-0 --config.seed=0

depth_N stacks with N % of the initialisation's noise, width_N copies half the width; width_cancel_20 adds the noise so
that it cancels among the copies, and the function stays. Bases on 20 % of the budget's tokens. `:tiny` takes seconds.

Cost, ESTIMATED and not measured: cpu 7.1e13 FLOPs, 12 minutes a seed on two cores, at quickstart's rate;
gpu 1.4e17 FLOPs, 15 minutes on one H100, at 15 % of its peak.

What is expected (arXiv 2405.15319, section 5.2 and appendix I): 20 % helps a little in width and in depth, more
in depth hurts. In width copies without noise stay copies.

Result: not run yet.
"""

from ml_collections import ConfigDict

from growlm.study.recipe import scale

SHARE = 0.2


def get_config(variant: str = "cpu") -> ConfigDict:
    size = scale(variant)
    half = {name: size.widths[name] // 2 for name in ("embed", "heads", "kv_heads", "mlp")}
    depth, width = size.base(SHARE), size.base(SHARE, size.model(**half))
    runs = {f"depth_{n}": size.grown([depth], "direct", options={"noise": n / 100}) for n in (0, 10, 20, 40)}
    runs |= {f"width_{n}": size.grown([width], "direct", options={"noise": n / 100}) for n in (0, 20, 40)}
    runs["width_cancel_20"] = size.grown([width], "direct", options={"noise": 0.2, "cancel": True})
    return size.sweep("Noise at growth", runs)
