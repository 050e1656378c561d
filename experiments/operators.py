"""The four operators in depth and in width against training from scratch, the paper's figure 3.

    growlm sweep --config=experiments/operators.py:cpu --workdir=runs/operators/cpu-0 --config.seed=0

Bases of a quarter of the layers, or of half the width, trained on 20 % of the budget's tokens; all operators in depth
share one, and all in width the other. Options are the paper's where known: zero interleaves, random opens its masks
over a tenth of the tokens. In width direct reads its copies in uneven parts, as the paper says (A.1.1); how uneven it
does not publish, UNEVEN is ours. direct_width_even, a null run, reads them in equal parts. LiGO learns for 50 steps
instead of 100, at a higher rate, since the paper's 100 are 0.2 % of its tokens; they are billed. `:tiny` takes seconds.

Cost: cpu 9.7e13 FLOPs, ESTIMATED 16 minutes a seed on two idle cores at quickstart's rate; the ten runs of the result,
7.1e13, took 45 to 66 on one core beside other work. gpu, ESTIMATED and not measured, 1.9e17 FLOPs, 21 minutes on one
H100, at 15 % of its peak.

What is expected (arXiv 2405.15319, speed-up over scratch at 1.1B): in depth direct 49 %, learn 49 %, zero 47 %, random
-26 %; in width direct -1, learn -15, zero -18 and random -14 %. direct_width_even far below scratch: copies read
evenly, without noise, get equal gradients and stay copies, so the model has the capacity of its base.

Result: cpu, three seeds, over scratch_tuned. In depth direct +23, learn +20, random +7, zero -5 %; in width random +19,
zero +14, learn +2 %. Direct in width, -34 %, is of the even split: what the records call direct_width is
direct_width_even here. small, three seeds, every rate searched, over scratch: random +28 % in width and +29 in depth,
zero +23 and +18, learn +12 and +23, direct +11 (uneven; even: -44) and +21. So the uneven split is level with scratch
as in the paper, stacking pays and is not seen to be the best, and random, zero and learn in width do better than the
paper has them. small_modern, the same with Muon and schedules that decay to zero: random +16 % in width and -2 in
depth, zero +15 and +15, learn +11 and +13, direct -47 (uneven; even: -55) and +17; none is ahead of the average size
beyond its interval, and stacked from an untrained base it ends as scratch does. The gpu variant is not run yet.
"""

from ml_collections import ConfigDict

from growlm.training.recipe import scale

LEARN = {"steps": 50, "peak_lr": 1e-3, "end_lr": 1e-4, "warmup": 10}
SHARE = 0.2
UNEVEN = 0.5  # ours, as in the preset lemon: of two copies one is read by 1/4 to 3/4, drawn for each pair


def get_config(variant: str = "cpu") -> ConfigDict:
    size = scale(variant)
    depth, width = size.base(SHARE), size.base(SHARE, size.model(**size.half_widths()))
    masks = {"mask_tokens": size.part(0.1)}
    zero = {"order": "interleave"}
    direct = {"split_imbalance": UNEVEN}
    options = {"direct": ({}, direct), "zero": (zero, {}), "random": (masks, masks), "learn": (LEARN, LEARN)}
    runs = {}
    for operator, (in_depth, in_width) in options.items():
        spent = LEARN["steps"] * size.batch * size.length if operator == "learn" else 0
        runs[f"{operator}_depth"] = size.grown([depth], operator, spent=spent, options=in_depth)
        runs[f"{operator}_width"] = size.grown([width], operator, spent=spent, options=in_width)
    runs["direct_width_even"] = size.grown([width], "direct")
    controls = size.controls(runs["direct_depth"])
    return size.sweep("Four growth operators, in depth and in width", runs, controls)
