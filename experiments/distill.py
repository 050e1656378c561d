"""Growth with the model before growth as a teacher: 2 layers to 8, with and without, at equal FLOPs.

    growlm sweep --config=experiments/distill.py:cpu --workdir=runs/distill/cpu-0 --config.seed=0

SALT (arXiv 2410.18779) trains a large model on the distribution of a smaller one first, and without it later. Here the
smaller one is what grows. grown stacks by 4. In salt the first fifth of the budget's tokens after growth have the
teacher at a weight of 2/3; in linear the weight falls to 0 over them; always keeps the teacher to the end. What its
forward pass costs is in the budget, so these runs have fewer tokens than grown. salt_choice is salt with the paper's
choice of examples (SALT-DS): while there is a teacher, the text is the half that is the hardest for it of what it finds
learnable, of twice as much; what scoring costs is in the budget too. Shares and k are ours: the paper's were not at
hand. `:gpu` goes from 6 layers to 24, and what is chosen comes twice there, for want of text. `:tiny` takes seconds.

Cost, ESTIMATED and not measured: cpu 6.9e13 FLOPs, 12 minutes a seed on two cores, at quickstart's rate; gpu 1.3e17
FLOPs, 15 minutes on one H100, at 15 % of its peak.

What is expected: little. A grown model begins with the function of its teacher scrambled, and is at its loss soon; the
paper's large model begins with nothing, and reaches the baseline's quality in 70 % of its steps. always should end
behind salt, as its teacher is the worse model by then. salt_choice should be ahead of salt while both are taught, if at
all, and fall back on all text: the text is Python's library, of which little is noise.

Result: not run yet.
"""

from ml_collections import ConfigDict

from growlm.training.recipe import scale

BASE, TAUGHT = 0.15, 0.2  # of the tokens: before growth, and with a teacher after it
KEPT, MOST = 0.5, 12_000_000  # of what is scored; and the most tokens, of a text of 32 MB, that are chosen


def get_config(variant: str = "cpu") -> ConfigDict:
    size = scale(variant)
    teacher = {"kind": "distill", "teacher": "parent", "weight": 2 / 3}
    objectives = {
        "salt": teacher | {"weight_tokens": size.part(TAUGHT)},
        "linear": teacher | {"weight_tokens": size.part(TAUGHT), "decay": "linear"},
        "always": teacher,
    }
    base = [size.base(BASE)]
    runs = {"grown": size.grown(base, "g_stack")}
    runs |= {name: size.grown(base, "g_stack", objective=objective) for name, objective in objectives.items()}
    choice = {"scorer": "parent", "keep": KEPT, "tokens": min(size.part(TAUGHT), MOST)}
    chosen = size.grown(base, "g_stack", objective=objectives["salt"], choice=choice)
    on_all = chosen["stages"][-1]["tokens"] / size.tokens - TAUGHT
    runs["salt_choice"] = size.ending(chosen, on_all, objective={}, choice=None)
    return size.sweep("The model before growth as a teacher", runs, size.controls(runs["grown"]))
