"""Which layer becomes which: 6 layers to 24 by the paper's eight partial stackings, and by interleaving; 8 to 24 too.

    growlm sweep --config=experiments/stacking_order.py:cpu --workdir=runs/stacking_order/cpu-0 --config.seed=0

123456x4 is G_stack. They and interleave share one base, trained on 20 % of the budget's tokens. by_3 and
by_3_interleave begin with 8 layers, late and late_interleave with 6 that were trained on 60 %. `:tiny` takes seconds.

Cost: small 2.9e13 FLOPs, 31 minutes a seed on one core. ESTIMATED and not measured: cpu 2.2e14 FLOPs, 37 minutes a
seed on two cores, at quickstart's rate; gpu 2.3e17 FLOPs, 26 minutes on one H100, at 15 % of its peak.

What is expected (arXiv 2405.15319, section 5.1 and ablations): 123456x4, 12-3456x5-56, 12-345x7-6 and 123-456x7 best,
123x7-456 below training from scratch; interleaving behind stacking. For sources trained to convergence the reverse of
the last is reported (2510.08008): late_interleave ahead of late, then. By the rate of connections that are kept, the
paper's explanation, losses should fall from interleave's 0 % to 123456x4's 87 %.

Result: small, three seeds. In the means the paper's three groups are in its order and do not overlap, though by seed
at 0 alone; 123x7-456 ends 0.009 to 0.071 nats below scratch. Interleaving is behind stacking from all three bases at
every seed, by 0.046 nats on average [0.020, 0.072], from the late one by 0.042 [0.018, 0.067]: the reverse that
2510.08008 has is not seen. It keeps 22 % of the connections, not the 0 % above. The ranks of loss and connections
correlate by -0.54 [-0.94, -0.14]. A base trained on 60 % of the tokens is ahead of one on 20 % by 0.069 nats [0.032,
0.106].
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
