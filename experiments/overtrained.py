"""Does the gain of growing fall with tokens? One model trained to 200 tokens a parameter, ten times Chinchilla's 20.

    growlm sweep --config=experiments/overtrained.py:small --workdir=runs/overtrained --config.seeds=0,1,2
    growlm report --runs=runs/overtrained

`grown` stacks by 4 after 5 tokens a parameter, `scratch` has as many FLOPs; each has the best of three peak rates, by
the first seed. Both have a wsd schedule, whose rate is constant up to its last fifth. The report has the gain along
their tokens, at equal FLOPs in nats and as a speed-up at equal loss; at 20 and 60 tokens a parameter it is read off
losses that have not decayed, as the paper does. `:tiny` takes seconds and stays far from 200.

Cost, ESTIMATED and not measured: small 1.6e13 FLOPs, 11 minutes a run on one core, ten runs for three seeds; cpu
2.3e14, 40 minutes a run on two cores.

What is expected: that the gain is smaller at 200 tokens a parameter than at 20 and above zero. The paper's speed-up at
410M falls from 53 % after 400B tokens, 980 a parameter, to 31 % after 700B, and a logarithm of the tokens fits its loss
gain (arXiv 2405.15319, figure 6): far beyond what is trained here. If growth only started better, the loss gain would
be gone by 200.

Result: not run yet.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from growlm.models import parameter_count
from growlm.training.config import build_model
from growlm.training.recipe import scale

BEFORE, ALL = 5, 200  # tokens a parameter before growth, and in all
RATES = (4e-3, 8e-3, 1.6e-2)


def get_config(variant: str = "small") -> ConfigDict:
    size = scale(variant)
    if variant != "tiny":
        size = replace(size, tokens=ALL * parameter_count(build_model(size.model())))
    grown = size.grown([size.base(BEFORE / ALL)], "g_stack", schedule={"kind": "wsd"})
    config = size.sweep("Overtrained: 200 tokens a parameter", {"grown": grown}, search={"peak_lr": RATES})
    config.runs.scratch = size.scratch(schedule={"kind": "wsd"})
    return config
