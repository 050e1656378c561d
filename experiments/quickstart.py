"""The demo: does growing a 2-layer model to 8 layers (G_stack) beat training at equal cost without growing?

    growlm sweep --config=experiments/quickstart.py --workdir=runs/quickstart        # or: make demo

Text: the Python standard library as bytes. Every run costs the same FLOPs, and every learning rate was searched for its
run. `:tiny` is for tests: it takes seconds and is too short to show an effect.

Cost: 3.1e12 FLOPs; 1 min 20 s after installation and 935 MB on two idle cores of an AMD EPYC, at commit ce9e30d. At
805f85e, when the backward pass kept nothing, it was 1 min 50 s and 810 MB.

What was expected: growing far ahead of both controls, since 0.9 tokens a parameter are too few for 8 layers from
scratch.

Result, at commit 805f85e (validation loss, nats a byte, and the speed-up of the grown run):

                                   seed 0    seed 1    seed 2
    grown                           1.993     2.080     2.015
    scratch, equal FLOPs            2.369     2.337     2.328
    average_size, equal FLOPs       2.180     2.164     2.130
    speed-up over scratch           281 %      71 %      71 %
    speed-up over average_size       52 %      20 %      25 %

Growing beats both at every seed; three seeds do not tell how far: over scratch the 95 % interval is -29 to +603 %. And
so short a run has no need of 8 layers at all: 2 layers that never grow, on all of these FLOPs at 3e-3, end at 1.926 at
seed 0 (1.956 at 6e-3), and 3 layers at 1.979. What this shows is the way to 8 layers, not that they are worth it here.

Rates were searched at commit a80f773, at seed 0. From scratch, 1e-3, 1.5e-3, 2e-3 and 3e-3 end at 2.452, 2.410, 2.369
and 2.420; 2e-3 is the best of the last three at seeds 1 and 2 too. 5 layers at 1e-3, 2e-3, 3e-3 and 4e-3 end at 2.254,
2.180, 2.227 and 2.225; 2e-3 is the best of the first three at seeds 1 and 2 too. Grown, 6e-3 and 8e-3 end at 1.990 and
1.993.
"""

from ml_collections import ConfigDict

from growlm.errors import check_name
from growlm.training.recipe import DEMO, Scale

TOKENS = {"": 400_000, "tiny": 16_000}
BATCHES = {"": 16, "tiny": 2}  # of validation text
PROMPT = "def read_lines(path):\n    "


def get_config(variant: str = "") -> ConfigDict:
    check_name("variant", variant, TOKENS)
    tokens = TOKENS[variant]
    scale = Scale(
        layers=8,
        widths=DEMO,
        tokens=tokens,
        batch=8,
        length=128,
        base_lr=3e-3,
        peak_lr=2e-3,
        warmup_tokens=int(0.04 * tokens),
    )
    # The base is cheap: its tokens cost as much as a quarter of them of the large model.
    grown = scale.grown([scale.base(1.0)], "g_stack", peak_lr=8e-3)
    average = scale.controls(grown)["average_size"]
    title = "Quickstart: 2 layers grown to 8 by stacking, against 8 layers from scratch"
    config = scale.sweep(title, {"grown": grown}, {"average_size": average})
    # Losses of all runs are on the same text; the texts that the models write are in the report.
    config.evaluation = {"every_tokens": tokens // 8, "batches": BATCHES[variant], "prompts": (PROMPT,)}
    return config
