"""One hop or many: 2 layers to 8 at once, or by way of 4, or of 4 and 6 with several ways of choosing the layers.

    growlm sweep --config=experiments/gradual.py:cpu --workdir=runs/gradual/cpu-0 --config.seed=0

one_hop stacks by 4. doubling stacks twice by 2. top, middle and centre add a quarter of the layers in each of three
growths, by repeating the last, the middle or the central block (gradual stacking, MIDAS, LIDAS). The stages before the
last are trained on 30 % of the budget's tokens together, equally each; one_hop_early's base on half as many. `:gpu`
goes from 6 layers to 24. `:tiny` takes seconds.

Cost, ESTIMATED and not measured: cpu 7.6e13 FLOPs, 13 minutes a seed on two cores, at quickstart's rate;
gpu 1.5e17 FLOPs, 16 minutes on one H100, at 15 % of its peak.

What is expected: one hop better than gradual stacking (arXiv 2405.15319, section 5.1: 2.4 points of average accuracy).
MIDAS (2409.19044) and LIDAS (2512.08819) report the middle best.

Result: small, three seeds, in nats a byte: doubling 1.767, one_hop 1.768, top 1.776, centre 1.791, middle 1.804,
one_hop_early 1.812, scratch 1.832. One hop and two end alike, and the middle is not the best; apart from one_hop_early
no difference from one_hop is beyond its interval. scratch_tuned, 1.910, has the rate of a wider model and is no tuned
baseline here. One seed of a first version at commit 1446ebc (records/gradual_doubling), at 435,000 parameters, in which
top, middle and centre doubled: one_hop 1.464, doubling 1.466, one_hop_early 1.469, scratch 1.551 and, at its own rate,
1.520.
"""

from ml_collections import ConfigDict

from growlm.training.recipe import Run, Scale, scale

SHARE = 0.3  # of the tokens, in all stages before the last


def get_config(variant: str = "cpu") -> ConfigDict:
    size = scale(variant)
    runs = {
        "one_hop": size.grown([size.base(SHARE)], "g_stack"),
        "one_hop_early": size.grown([size.base(SHARE / 2)], "g_stack"),
        "doubling": _gradual(size, "stack", (1, 2)),
    }
    runs |= {order: _gradual(size, order, (1, 2, 3)) for order in ("top", "middle", "centre")}
    return size.sweep("One hop or gradual growth", runs, size.controls(runs["one_hop"]))


def _gradual(size: Scale, order: str, quarters: tuple[int, ...]) -> Run:
    """Stages of so many quarters of the layers, and the whole, each grown from the one before."""
    options = {"order": order}
    growth = {"operator": "direct", "options": options, "optimizer_state": "reset"}
    before = [size.base(SHARE / len(quarters), size.model(number * size.layers // 4)) for number in quarters]
    return size.grown([before[0], *(stage | {"growth": growth} for stage in before[1:])], "direct", options=options)
