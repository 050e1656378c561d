"""One hop or many: 2 layers to 8 at once, or by way of 4, by several ways of choosing the layers.

    growlm sweep --config=experiments/gradual.py:cpu --workdir=runs/gradual/cpu-0 --config.seed=0

one_hop stacks by 4. doubling stacks twice by 2 (StackBERT's schedule). top, middle and centre double by repeating the
last, the middle or the central block (gradual stacking, MIDAS, LIDAS). The stages before the last are trained on 15 %
of the budget's tokens each; one_hop's base on as many as their sum, and one_hop_early's on 15 %. `:gpu` goes from 6
layers to 12 and 24. `:tiny` takes seconds.

Cost, ESTIMATED and not measured: cpu 7.6e13 FLOPs, 13 minutes a seed on two cores, at quickstart's rate;
gpu 1.5e17 FLOPs, 16 minutes on one H100, at 15 % of its peak.

What is expected: one hop better than gradual stacking (arXiv 2405.15319, section 5.1: 2.4 points of average accuracy).
MIDAS (2409.19044) and LIDAS (2512.08819) report the middle best.

Result: not run yet.
"""

from ml_collections import ConfigDict

from growlm.training.recipe import scale

SHARE = 0.15


def get_config(variant: str = "cpu") -> ConfigDict:
    size = scale(variant)
    base = size.base(SHARE)
    runs = {
        "one_hop": size.grown([size.base(2 * SHARE)], "g_stack"),
        "one_hop_early": size.grown([base], "g_stack"),
    }
    for name, order in (("doubling", "stack"), ("top", "top"), ("middle", "middle"), ("centre", "centre")):
        growth = {"operator": "direct", "options": {"order": order}, "optimizer_state": "reset"}
        half = size.base(SHARE, size.model(size.layers // 2)) | {"growth": growth}
        runs[name] = size.grown([base, half], "direct", options={"order": order})
    return size.sweep("One hop or gradual growth", runs, size.controls(runs["one_hop"]))
