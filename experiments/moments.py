"""First moments in bfloat16 beside float32: from scratch, by Muon, at a longer memory of second moments, and grown.

    growlm sweep --config=experiments/moments.py:small --workdir=runs/moments --config.seeds=0,1,2

NAME_bfloat16 differs from NAME in `optimizer.moment_dtype` alone. scratch has the paper's AdamW, beta2_999 that with a
`beta2` of 0.999, muon Muon with a momentum of 0.95. grown stacks a quarter of the layers after 20 % of the budget's
tokens, with mapped moments and one rate, so that the small model's moments, in 16 bits, become the large one's. `:tiny`
takes seconds a run.

Cost: small 8.9e12 FLOPs and 6 minutes a seed on one core.

What is expected: nothing that is larger than the differences between seeds. First moments forget within some ten steps
what was rounded away; second ones, which do not, stay in float32.

Result: small, three seeds, in nats a byte: 16 bits cost 0.027 [-0.089, 0.144] from scratch, 0.022 [-0.023, 0.066] with
beta2_999, 0.001 [-0.012, 0.014] with Muon and 0.003 [-0.020, 0.026] grown. One seed of scratch has 0.081.
"""

from typing import Any

from ml_collections import ConfigDict

from growlm.training.recipe import Run, scale

SHARE = 0.2
PAIRS: dict[str, dict[str, Any]] = {"scratch": {}, "beta2_999": {"beta2": 0.999}, "muon": {"kind": "muon"}}


def get_config(variant: str = "small") -> ConfigDict:
    size = scale(variant)
    grown = size.grown([size.base(SHARE, peak_lr=size.peak_lr)], "direct", optimizer_state="map")
    runs = {"grown": grown, "grown_bfloat16": with_optimizer(grown, {"moment_dtype": "bfloat16"})}
    others = {name: with_optimizer(size.scratch(), own) for name, own in PAIRS.items()}
    others |= {f"{name}_bfloat16": with_optimizer(run, {"moment_dtype": "bfloat16"}) for name, run in others.items()}
    del others["scratch"]  # every sweep has it
    return size.sweep("First moments in bfloat16", runs, {name: (run, purpose(name)) for name, run in others.items()})


def with_optimizer(run: Run, settings: dict[str, Any]) -> Run:
    """The run with these settings of the optimizer of every stage."""
    stages = (stage | {"optimizer": {**stage.get("optimizer", {}), **settings}} for stage in run["stages"])
    return {"stages": tuple(stages)}


def purpose(name: str) -> str:
    """What a control is there for."""
    of = name.removesuffix("_bfloat16")
    return f"{of} with first moments in 16 bits" if of != name else "what its pair in 16 bits is to be compared with"
