"""Noise of the paper's scale at growth, W <- (1 - a) W + a e, in depth and in width, and noise that keeps the function.

    growlm sweep --config=experiments/noise.py:cpu --workdir=runs/noise/cpu-0 --config.seed=0

depth_N stacks with N % of noise, width_N copies half the width; width_cancel_20 adds the noise so that it cancels among
the copies, and the function stays. Copies are read unevenly, as the paper says, by a share that is ours. width_even_0,
a null run, has even copies and no noise. Bases on 20 % of the budget's tokens. `:tiny` takes seconds.

Cost, ESTIMATED and not measured: cpu 9.7e13 FLOPs, 16 minutes a seed on two cores, at quickstart's rate;
gpu 1.9e17 FLOPs, 21 minutes on one H100, at 15 % of its peak.

What is expected (arXiv 2405.15319, section 5.2 and appendix I): 20 % helps a little in width and in depth, more
in depth hurts. width_even_0 is far behind width_0: even copies without noise stay copies.

Result: small, three seeds, in nats a byte: in width 1.884 without noise, 1.851 with 20 and 1.829 with 40 %, 1.865 with
20 % that cancels; in depth 1.789 without, 1.791, 1.787 and 1.794 with 10, 20 and 40 %, which cannot be told apart;
width_even_0 2.050, scratch 1.832. So 40 % of noise helps in width, and none hurts in
depth that can be seen.
"""

from ml_collections import ConfigDict

from growlm.training.recipe import scale

SHARE = 0.2
UNEVEN = 0.5  # ours, as in operators.py


def get_config(variant: str = "cpu") -> ConfigDict:
    size = scale(variant)
    depth, width = size.base(SHARE), size.base(SHARE, size.model(**size.half_widths()))
    copies = {"split_imbalance": UNEVEN}
    runs = {f"depth_{n}": size.grown([depth], "direct", options=noise(n)) for n in (0, 10, 20, 40)}
    runs |= {f"width_{n}": size.grown([width], "direct", options=copies | noise(n)) for n in (0, 20, 40)}
    runs["width_cancel_20"] = size.grown([width], "direct", options=copies | noise(20) | {"cancel": True})
    runs["width_even_0"] = size.grown([width], "direct")
    return size.sweep("Noise at growth", runs, size.controls(runs["depth_0"]))


def noise(percent: int) -> dict[str, float | str]:
    """The options for so much noise of the size that the paper gives (eq. 53 and 54)."""
    return {"noise": percent / 100, "noise_scale": "paper"}
