"""When to grow: the small model is trained on 3 to 72 % of the budget's tokens, then stacked by 4.

    growlm sweep --config=experiments/growth_timing.py:cpu --workdir=runs/growth_timing/cpu-0 --config.seed=0
    growlm sweep --config=experiments/growth_timing.py:cpu_narrow --workdir=runs/growth_timing/cpu_narrow-0
    growlm fit --runs=runs/growth_timing --law=timing

One sweep has one size; the law needs two sizes, and its intervals seeds 0, 1 and 2, each with a folder of its own. All
runs of a size cost the same, whatever they grow at, and share one base. `:cpu_wide` is a third size; `:cpu_short` is
cpu on a quarter of its tokens and `:cpu_narrow_long` the small size on four times its own, which tell the exponent of
the size better than a third one would: with `--slices=1` every budget is of runs that decayed at its end. `:gpu` and
`:gpu_wide` are the larger pair; `:tiny` and `:tiny_narrow` take seconds and show nothing.

Cost: cpu 7.0e13 FLOPs, 3 to 8 minutes a run on one core beside other work; cpu_narrow 9.4e12, of which all but the
controls untrained, average_size and short took 5 minutes a seed on one core. ESTIMATED and not measured: cpu_wide
3.3e14, 51 minutes a seed on two cores, at quickstart's rate, cpu_short 1.9e13, 13 minutes a seed on one core, and
cpu_narrow_long 4.1e13, 27 minutes; gpu 1.3e17 FLOPs, 15 minutes, and gpu_wide 1.1e18, 2 hours, on one H100, at 15 % of
its peak.

What is expected: a valley (arXiv 2405.15319, figure 8). Where it lies at this size no law says: the paper's, used so
far below its range, asks for more tokens than the runs have.

Result: three seeds. cpu has a valley with its minimum after 421,000 tokens [372,000, 494,000], 15 % of the budget;
cpu_narrow a flat one. Of the law b is 76 [30, 209], a cannot be told. Growth after 72 %, the controls untrained,
average_size and short, and the other variants, are not run yet.
"""

from ml_collections import ConfigDict

from growlm.errors import check_name
from growlm.training.recipe import scale

SHARES = (0.03, 0.06, 0.12, 0.24, 0.48, 0.72)
_NARROW = {"embed": 32, "heads": 1, "kv_heads": 1, "mlp": 88}
# The other sizes and budgets: widths, and how many times the tokens.
_CPU = {
    "short": ({}, 0.25),
    "narrow": (_NARROW, 0.5),
    "narrow_long": (_NARROW, 2),
    "wide": ({"embed": 96, "heads": 3, "kv_heads": 3, "mlp": 256}, 2),
}
SIZES = {
    "cpu": _CPU,
    "tiny": {name: (widths, 1) for name, (widths, _) in _CPU.items()},
    "gpu": {"wide": ({"embed": 512, "heads": 8, "kv_heads": 8, "mlp": 1408}, 2)},
}


def get_config(variant: str = "cpu") -> ConfigDict:
    name, _, other = variant.partition("_")
    size = scale(name)
    if other:
        check_name("variant", variant, [f"{name}_{known}" for known in SIZES[name]])
        size = size.resized(*SIZES[name][other])
    # Losses before the end of the run are read off too: wsd keeps the rate constant up to the last fifth.
    runs = {
        f"after_{100 * share:02.0f}_percent": size.grown([size.base(share)], "g_stack", schedule={"kind": "wsd"})
        for share in SHARES
    }
    title = f"Growth timing at embed {size.widths['embed']}: when to stack by 4"
    return size.sweep(title, runs, size.controls(runs["after_12_percent"]))
