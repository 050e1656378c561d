"""What becomes of the optimizer's moments at growth: anew, mapped like the weights, or partly either.

    growlm sweep --config=experiments/optimizer_state.py:cpu --workdir=runs/optimizer_state/cpu-0 --config.seed=0

Four growths: copies of a quarter of the layers, stacked, and of half the width, read unevenly by a share that is ours;
new layers that begin as zero, and new width that does. Of each, one run for every treatment: reset begins with no
moments, at step 0; map has those of what a weight was copied from, scaled as its gradient is, and counts on. Of copies,
keep_old maps the first and lets the others begin anew; of what is new, map_aged restarts the bias correction.
All warm up after growth. Bases on 20 % of the budget's tokens. `:tiny` takes seconds.

Cost, ESTIMATED and not measured: small 1.4e13 FLOPs, 8 minutes a seed on one core; cpu 9.2e13, 16 minutes on two.

What is expected: in depth nothing that can be told apart at the end, for AdamW forgets its second moments within some
hundred steps, and arXiv 2405.15319 begins with a fresh state. In width keep_old ahead of map: copies with moments of
their own part, where mapped ones take equal steps and are held apart by their readers' uneven shares alone
(arXiv 2609.19107 has this rule, with Muon). map behind map_aged where values are new, by their first steps.

Result: not run yet.
"""

from ml_collections import ConfigDict

from growlm.training.recipe import scale

SHARE = 0.2  # of the budget's tokens, on which the bases are trained
UNEVEN = 0.5  # ours, as in operators.py


def get_config(variant: str = "cpu") -> ConfigDict:
    size = scale(variant)
    depth, width = size.base(SHARE), size.base(SHARE, size.model(**size.half_widths()))
    growths = {
        "copies_depth": (depth, "direct", {}, "keep_old"),
        "copies_width": (width, "direct", {"split_imbalance": UNEVEN}, "keep_old"),
        "zero_depth": (depth, "zero", {"order": "interleave"}, "map_aged"),
        "zero_width": (width, "zero", {}, "map_aged"),
    }
    runs = {}
    for name, (base, operator, options, partly) in growths.items():
        for treatment in ("reset", "map", partly):
            grown = size.grown([base], operator, options=options, optimizer_state=treatment)
            runs[f"{name}_{treatment}"] = grown
    return size.sweep("The optimizer's state at growth", runs)
