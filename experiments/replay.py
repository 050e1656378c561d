"""A grown model trained on new text: how much of the old text to replay, and what re-warming forgets.

    growlm sweep --config=experiments/replay.py:cpu:NOVELS --workdir=runs/replay/cpu-0 --config.seed=0

The old text is code, the standard library; the new one NOVELS, a folder of text files. Without a folder they are two
packages of the library, asyncio, which cpu reads four times, and the texts of its help.

Three fifths of the budget go to the old text: 2 layers, grown to 8, whose schedule ends there. All runs share that
checkpoint, and go on from it for two fifths with the optimizer's state, on the new text, with the rate warmed up to its
peak once more and decayed again:

    replay_0, replay_5, replay_25   0, 5 or 25 % of the examples are old: the next ones of that text, not the first ones
    low                             control: 5 %, at the rate at which the schedule had ended, without a re-warm
    scratch, scratch_tuned          both texts in these shares from the beginning, in one schedule

Losses are by source, old beside new; `val_loss` is the mean of the two.

Cost: cpu 3.1e13 FLOPs, ESTIMATED and not measured 5 minutes on two cores, at quickstart's rate. `:tiny` takes seconds.

What is expected: re-warming alone raises the loss on the old text. 5 % of replay avoid most of that where the texts are
near each other, 25 % where they are far apart, at little cost on the new text, and reach training on both from scratch
(arXiv 2403.08763, 405M to 10B parameters). Without a re-warm less is forgotten and less is learned.

Result: not run yet.
"""

import sysconfig

from ml_collections import ConfigDict

from growlm.training.recipe import SAME_MODEL, scale

BEFORE = 0.6  # the share of the budget on the old text
LOW = 0.1  # of the peak rate: where schedules end
PACKAGES = tuple(f"{sysconfig.get_path('stdlib')}/{name}" for name in ("asyncio", "pydoc_data"))


def get_config(variant: str = "cpu") -> ConfigDict:
    name, _, folder = variant.partition(":")
    size, sources = scale(name), ("stdlib", folder) if folder else PACKAGES

    def mixture(old: float, new: float) -> dict:
        weights = zip(("old", "new"), sources, (old, new), strict=True)
        return {name: {"corpus": corpus, "weight": weight} for name, corpus, weight in weights if weight}

    before, only_old = size.resized({}, BEFORE), mixture(1, 0)
    checkpoint = before.grown([before.base(0.2) | {"corpus": only_old}], "g_stack", corpus=only_old)["stages"]

    def continued(replay: float, peak_lr: float = size.peak_lr, kind: str = "cosine") -> dict:
        more = {"corpus": mixture(replay, 1 - replay), "growth": SAME_MODEL}
        return {"stages": (*checkpoint, size.stage(size.model(), size.part(1 - BEFORE), peak_lr, kind, **more))}

    grown = {f"replay_{share:.0%}".rstrip("%"): continued(share) for share in (0.0, 0.05, 0.25)}
    low = continued(0.05, LOW * size.peak_lr, "constant")
    controls = {"low": (low, "5 % of replay, at the rate at which the schedule had ended")}
    config = size.sweep("Replay in continued training", grown, controls, corpus=mixture(BEFORE, round(1 - BEFORE, 4)))
    config.evaluation.corpus = mixture(1, 1)
    config.evaluation.batch = 8  # little is held out of a package
    return config
