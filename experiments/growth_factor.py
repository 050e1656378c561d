"""By how much to grow: bases of 1 to half of the layers, all trained on 20 % of the budget's tokens, then stacked.

    growlm sweep --config=experiments/growth_factor.py:cpu --workdir=runs/growth_factor/cpu-0 --config.seed=0
    growlm fit --runs=runs/growth_factor --law=factor

12 layers (`:gpu` 24) from 6, 4, 3, 2 and 1. Seeds 0, 1 and 2 have a folder each. `:small`, half as wide, is a second
size for the law. `:tiny` takes seconds.

Cost: cpu 8.9e13 FLOPs, 4 to 7 minutes a run on one core, in part beside other work; gpu, ESTIMATED and not measured,
1.5e17 FLOPs, 17 minutes on one H100, at 15 % of its peak; small 1.2e13, 11 minutes a seed on one core.

What is expected: the best between 2 and 4, and a base of 1 layer worse than training from scratch (arXiv 2405.15319,
section 4.2); against it, growth from 1 layer is said to work (2511.04981).

Result: cpu, three seeds. By 4 is the lowest, the parabola's minimum is at 4.18 [3.58, 4.66]; from 1 layer is the worst,
+20 % [-2, 46] over the same recipe from scratch. small, three seeds: by 2, 3 and 4 level, from 1 layer no better than
scratch that can be told. Of the law over both sizes the constant is 3.77 [2.19, 4.26]. At cpu the controls untrained,
average_size and short, and the gpu variant, are not run yet.
"""

from ml_collections import ConfigDict

from growlm.training.recipe import scale

FACTORS = (2, 3, 4, 6, 12)


def get_config(variant: str = "cpu") -> ConfigDict:
    size = scale(variant, layers=12, tokens=2_400_000)
    runs = {
        f"by_{factor}": size.grown([size.base(0.2, size.model(size.layers // factor))], "g_stack")
        for factor in (*FACTORS, size.layers)
    }
    controls = size.controls(runs["by_4"])
    return size.sweep(f"Growth factor: {size.layers} layers from fewer, by stacking", runs, controls)
