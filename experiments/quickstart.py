"""The demo: does growing a 2-layer model to 8 layers (G_stack) beat training at equal cost without growing?

    growlm sweep --config=experiments/quickstart.py --workdir=runs/quickstart        # or: make demo

Text: the Python standard library as bytes. Every run costs the same FLOPs, and every learning rate was searched for its
run. `:tiny` is for tests: it takes seconds and is too short to show an effect.

Cost, what was expected, Result: COST_AND_RESULT
"""

from ml_collections import ConfigDict

from growlm.errors import check_name
from growlm.training.recipe import DEMO, Scale

TOKENS = {"": 400_000, "tiny": 40_000}
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
    average = scale.scratch(model=scale.model(5)), "5 layers, the average size of the grown run, at equal FLOPs"
    title = "Quickstart: 2 layers grown to 8 by stacking, against 8 layers from scratch"
    config = scale.sweep(title, {"grown": grown}, {"average_size": average})
    # Losses of all runs are on the same text; the texts that the models write are in the report.
    config.evaluation = {"every_tokens": tokens // 8, "batches": 16, "prompts": (PROMPT,)}
    return config
