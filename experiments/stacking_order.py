"""Which layer becomes which: 6 layers to 24 by the paper's eight partial stackings, and by interleaving.

    growlm sweep --config=experiments/stacking_order.py:cpu --workdir=runs/stacking_order/cpu-0 --config.seed=0

123456x4 is G_stack. All runs share one base, trained on 20 % of the budget's tokens. `:tiny` takes seconds.

Cost, ESTIMATED and not measured: cpu 1.8e14 FLOPs, 30 minutes a seed on two cores, at quickstart's rate;
gpu 1.9e17 FLOPs, 21 minutes on one H100, at 15 % of its peak.

What is expected (arXiv 2405.15319, section 5.1 and ablations): 123456x4, 12-3456x5-56, 12-345x7-6 and 123-456x7 best,
123x7-456 below training from scratch; interleaving behind stacking. For sources trained to convergence the reverse of
the last is reported (2510.08008).

Result: not run yet.
"""

from ml_collections import ConfigDict

from growlm.growth.depth import PARTIAL
from growlm.training.recipe import scale


def get_config(variant: str = "cpu") -> ConfigDict:
    size = scale(variant, layers=24, tokens=1_800_000)
    base = size.base(0.2, size.model(6))
    runs = {pattern: size.grown([base], f"partial_{pattern}") for pattern in PARTIAL}
    runs["interleave"] = size.grown([base], "direct", options={"order": "interleave"})
    return size.sweep("Stacking orders: 6 layers to 24", runs, size.controls(runs["123456x4"]))
