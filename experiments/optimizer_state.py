"""What becomes of the optimizer's moments at growth: anew, mapped like the weights, or partly either.

    growlm sweep --config=experiments/optimizer_state.py:cpu --workdir=runs/optimizer_state/cpu-0 --config.seed=0

Four growths: copies of a quarter of the layers, stacked, and of half the width, read unevenly by a share that is ours;
new layers that begin as zero, and new width that does. Of each, one run for every treatment: reset begins with no
moments, at step 0; map has those of what a weight was copied from, scaled as its gradient is, and counts on. Of copies,
keep_old maps the first and lets the others begin anew; of what is new, map_aged restarts the bias correction.
All warm up after growth. Bases on 20 % of the budget's tokens. `:tiny` takes seconds.

Cost: small 1.3e13 FLOPs, 13 minutes a seed on one core. ESTIMATED and not measured: cpu 9.2e13, 16 minutes on two.

What is expected: in depth nothing that can be told apart at the end, for AdamW forgets its second moments within some
hundred steps, and arXiv 2405.15319 begins with a fresh state. In width keep_old ahead of map: copies with moments of
their own part, where mapped ones take equal steps and are held apart by their readers' uneven shares alone
(arXiv 2609.19107 has this rule, with Muon). map behind map_aged where values are new, by their first steps.

Result: small, three seeds, in nats a byte: copies_depth 1.789 to 1.791, copies_width 1.882 to 1.886, zero_depth 1.807
to 1.812, zero_width 1.793 to 1.801, scratch 1.847. No two treatments can be told apart: over the four growths map ends
0.002 below reset [-0.014, 0.018], the partial ones 0.001 [-0.016, 0.019]. In depth as expected. In width it disagrees:
keep_old is 0.004 behind map [-0.015, 0.023]. map is not seen behind map_aged: 0.006 in zero_width [-0.009, 0.021], in
zero_depth 0.004 ahead [-0.016, 0.025]. One step after stacking map is 0.073 above reset [0.011, 0.134], and 55 steps
later level with it. beta2 is 0.95 here: at 0.999, and with Muon, it was not run.
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
