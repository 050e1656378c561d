"""Which layer becomes which: 6 layers to 24 by the paper's eight partial stackings, and by interleaving; 8 to 24 too.

    growlm sweep --config=experiments/stacking_order.py:cpu --workdir=runs/stacking_order/cpu-0 --config.seed=0

123456x4 is G_stack. They and interleave share one base, trained on 20 % of the budget's tokens. by_3 and
by_3_interleave begin with 8 layers, late and late_interleave with 6 that were trained on 60 %. `:tiny` takes seconds.

Cost: small 2.9e13 FLOPs, 33 minutes on one core, of which it stood still for some. ESTIMATED and not measured: cpu
2.2e14 FLOPs, 37 minutes a seed on two cores, at quickstart's rate; gpu 2.3e17 FLOPs, 26 minutes on one H100, at 15 %
of its peak.

What is expected (arXiv 2405.15319, section 5.1 and ablations): 123456x4, 12-3456x5-56, 12-345x7-6 and 123-456x7 best,
123x7-456 below training from scratch; interleaving behind stacking. For sources trained to convergence the reverse of
the last is reported (2510.08008): late_interleave ahead of late, then. By the rate of connections that are kept, the
paper's explanation, losses should fall from interleave's 0 % to 123456x4's 87 %.

Result: small at seed 0, the paper's three groups without an overlap, 123x7-456 last and level with scratch. Of the four
that keep 74 % of the connections, the nearer to the front what is repeated, the worse. Interleaving is behind stacking
by 0.043 nats, and as much from a base trained late. It keeps 22 % of the connections, not the 0 % above.
"""

from ml_collections import ConfigDict

from growlm.growth.depth import PARTIAL
from growlm.training.recipe import scale

SHARE, LATE = 0.2, 0.6  # of the budget's tokens, on which a base is trained
INTERLEAVE = {"order": "interleave"}


def get_config(variant: str = "cpu") -> ConfigDict:
    size = scale(variant, layers=24, tokens=1_800_000)
    base = size.base(SHARE, size.model(6))
    runs = {pattern: size.grown([base], f"partial_{pattern}") for pattern in PARTIAL}
    bases = {"": base, "by_3": size.base(SHARE, size.model(8)), "late": size.base(LATE, size.model(6))}
    for name, before in bases.items():
        if name:
            runs[name] = size.grown([before], "g_stack")
        runs["_".join(filter(None, (name, "interleave")))] = size.grown([before], "direct", options=INTERLEAVE)
    return size.sweep("Stacking orders: 6 layers to 24", runs, size.controls(runs["123456x4"]))
