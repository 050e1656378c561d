"""Each file's path in front of its text, and at the end of training none: metadata, then cooldown.

    growlm sweep --config=experiments/metadata.py:cpu --workdir=runs/metadata/cpu-0 --config.seed=0

The standard library twice, with paths and without; what is held out is the same, and all runs are validated on text
without paths. 2 layers are grown to 8.

    cooldown          paths in both stages, and none over the last tenth of the budget, in which the schedule goes on
    paths             control: paths to the end
    plain             control: no paths at all, the same growth
    scratch_cooldown  control: 8 layers from scratch, with paths and a cooldown

Cost: cpu 4.3e13 FLOPs, ESTIMATED and not measured 7 minutes on two cores, at quickstart's rate. `:tiny` takes seconds.

What is expected: with the host's name in front of each text and a cooldown of a tenth, 1.6B parameters reach the same
downstream scores on 33 % less data (MeCo, arXiv 2501.01956). That claim is of scores, and this tells whether the loss
gains too: `cooldown` should end below `paths`; whether below `plain` is open. The loss is taken on the paths as well.

Result: not run yet.
"""

from ml_collections import ConfigDict

from growlm.training.recipe import scale

PATHS = {"paths": {"corpus": "stdlib", "metadata": True}}
COOLDOWN = 0.1


def get_config(variant: str = "cpu") -> ConfigDict:
    size = scale(variant)
    told = size.grown([size.base(0.2) | {"corpus": PATHS}], "g_stack", corpus=PATHS)
    scratch = size.ending(size.scratch(corpus=PATHS), COOLDOWN, corpus="stdlib")
    controls = {
        "paths": (told, "paths to the end: it is validated on what it has not seen"),
        "plain": (size.grown([size.base(0.2)], "g_stack"), "the same growth without paths"),
        "scratch_cooldown": (scratch, "paths and a cooldown without growth"),
    }
    grown = {"cooldown": size.ending(told, COOLDOWN, corpus="stdlib")}
    return size.sweep("Paths in front of the text, then a cooldown", grown, controls)
