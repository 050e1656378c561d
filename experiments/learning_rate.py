"""Which learning rate after growth, and whether to warm up again; G_stack by 4.

    growlm sweep --config=experiments/learning_rate.py:cpu --workdir=runs/learning_rate/cpu-0 --config.seed=0

before_B_after_A has B and A times the scale's rate of the small model, before and after growth, and scratch_A the same
rates from scratch: each grown run has a baseline of its own rate. Step Law says A = 0.37 B (`growlm plan`), the paper
has 0.3. no_warmup starts at the full rate; continue goes on with the small model's schedule, which is constant. Bases
on 20 % of the budget's tokens. `:tiny` takes seconds.

Cost, ESTIMATED and not measured: cpu 9.7e13 FLOPs, 16 minutes a seed on two cores, at quickstart's rate;
gpu 2.2e17 FLOPs, 24 minutes on one H100, at 15 % of its peak.

What is expected: nobody has fitted a law for grown models. In quickstart the best was 1.5 times the rate before.

Result: small, three seeds, in nats a byte: 1.789 at 150 % after growth, 1.846 at 75 and 1.976 at 37, where the base had
100 %, and about as much where it had 50; from scratch 1.832, 1.910 and 2.038. So Step Law's factor is too small here,
and the best rate is at the end of what was tried. no_warmup 1.823, continue 1.905.
"""

from ml_collections import ConfigDict

from growlm.training.recipe import scale

BEFORE = (0.5, 1.0)
AFTER = (0.37, 0.75, 1.5)


def get_config(variant: str = "cpu") -> ConfigDict:
    size = scale(variant)
    unit = size.base_lr
    runs = {}
    for early in BEFORE:
        base = size.base(0.2, peak_lr=early * unit)
        for late in AFTER:
            runs[_name("before", early) + _name("_after", late)] = size.grown([base], "g_stack", late * unit)
    base = size.base(0.2)
    runs["no_warmup"] = size.grown([base], "g_stack", unit, schedule={"warmup_tokens": 0})
    runs["continue"] = size.grown([base], "g_stack", unit, schedule={"kind": "constant", "at_growth": "continue"})
    others = {_name("scratch", late): (size.scratch(late * unit), "its rate, from scratch") for late in AFTER}
    return size.sweep("The learning rate at growth", runs, others | size.controls(runs["before_100_after_150"]))


def _name(what: str, factor: float) -> str:
    return f"{what}_{round(100 * factor)}"
