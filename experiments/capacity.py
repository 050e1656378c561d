"""How much do grown weights know? Synthetic facts, in bits a parameter: before growth, after it and at the end.

    python experiments/capacity.py --facts=runs/facts.jsonl
    growlm prepare --source=runs/facts.jsonl --chat --tokenizer=bytes --validation=1 --output=runs/facts
    growlm prepare --source=runs/facts.jsonl --chat --tokenizer=bytes --validation=0.5 --output=runs/facts_asked
    growlm sweep --config=experiments/capacity.py:small --workdir=runs/capacity --config.seeds=0,1,2
    python experiments/capacity.py --known=runs/capacity

A fact is a key of 6 letters and a value of 8 letters out of 16, drawn by chance: 32 bits that nothing but memory tells,
and 49,152 bits in all. A window is one fact, so that none is known by its neighbours. The loss is of the values alone;
asked are half of the facts, all of which are trained on. A loss of l nats a token leaves 9 l / ln 2 bits of a fact
unknown, with the token that ends it (arXiv 2404.05405, which finds 2 bits a parameter after 1,000 exposures of a fact
and 1 after 100; here it is about 200). No weight decays, as that forgets. Facts, exposures and rate were found at seed
0 by a dozen runs that were thrown away, most of them from scratch: of 2,048 facts seen 100 times nothing was known when
the model would grow, and of 1,024 seen 200 times the large ones, stack among them, know nearly all at the end.

stack and width_copies grow by copies, zero and width_zero by fresh weights, all of a base that has trained on 80 % of
the budget's tokens; untrained is stack of a base that has not; base_only is the small model at equal FLOPs. `:tiny`
takes seconds.

Cost: small 2.5e13 FLOPs, 25 minutes a seed on one core of an Intel Xeon.

What is expected: that a model grown by copies keeps what its base knew, or has it back within a few exposures, and ends
with as many bits a parameter as scratch; that base_only is full well below it; and that fresh weights in depth, which
keep the function, never fall below the base. If copies were no room of their own, stack would end near base_only.

Result: small, three seeds. stack loses all that its base knew, 10,700 to 13,900 bits, and knows it again after 9 to 17
exposures; the others lose nothing. All grown models end with 44,800 to 48,700 bits, 0.4 a parameter, stack with 13,900
to 24,700 more than base_only: as expected, copies are room. scratch knows as much at two seeds, and half at one.
"""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from growlm import files
from growlm.report.records import Group, Run, read_groups
from growlm.training.recipe import scale

FACTS, KEY, VALUE = 1536, 6, 8
LETTERS, VALUES = "abcdefghijklmnopqrstuvwxyz", "abcdefghijklmnop"
BITS = VALUE * math.log2(len(VALUES))  # of a fact
TOKENS = KEY + VALUE + 4  # of a fact: markers before both, an end, and one of the document
COUNTED = VALUE + 1  # tokens of a fact that the loss is of
EXPOSURES = 200
SHARE = 0.8
RATE = 8e-3
HEADER = ("run", "bits before growth", "right after", "again after exposures", "bits at the end", "a parameter")


def get_config(variant: str = "small") -> ConfigDict:
    size = replace(scale(variant, tokens=2 * EXPOSURES * FACTS * TOKENS), length=TOKENS - 1, batch=56)
    size = replace(size, base_lr=RATE, peak_lr=RATE, tuned_lr=None, optimizer={"weight_decay": 0.0})
    deep, wide = size.base(SHARE), size.base(SHARE, size.model(**size.half_widths()))
    runs = {
        "stack": size.grown([deep], "g_stack"),
        "zero": size.grown([deep], "zero", options={"order": "interleave"}),
        "width_copies": size.grown([wide], "direct", options={"split_imbalance": 0.5}),
        "width_zero": size.grown([wide], "zero"),
    }
    alone = size.scratch(size.base_lr, size.model(size.layers // 4))
    untrained = size.controls(runs["stack"])["untrained"]
    controls = {"untrained": untrained, "base_only": (alone, "the small model of stack and zero, equal FLOPs")}
    config = size.sweep("What grown weights know", runs, controls, corpus="runs/facts")
    config.evaluation.corpus = "runs/facts_asked"
    for run in config.runs.values():
        run.stages = tuple(ConfigDict(dict(stage) | {"objective": {"kind": "answers"}}) for stage in run.stages)
    return config


def facts(seed: int = 0) -> Iterator[dict[str, str]]:
    """Keys, all different, with values drawn by chance."""
    draw = np.random.default_rng(seed)
    keys: dict[str, None] = {}
    while len(keys) < FACTS:
        keys["".join(draw.choice([*LETTERS], KEY))] = None
    for key in keys:
        yield {"prompt": key, "response": "".join(draw.choice([*VALUES], VALUE))}


def known(loss: float) -> float:
    """The bits that are known of all facts, at a loss in nats a token; at least none."""
    return FACTS * max(0.0, BITS - COUNTED * loss / math.log(2))


def lines(group: Group) -> list[tuple[str, ...]]:
    """What the runs of a study know, seeds side by side, under `HEADER`."""
    found = []
    for name in group.first.runs:
        if not (runs := [run for run in group.each(name).values() if run.status == "done"]):
            continue
        grown = [_at_growth(run) for run in runs if run.growths]
        before, after, again = map(_side_by_side, zip(*grown, strict=True)) if grown else ("", "", "")
        ends = [known(run.last_validated["val_loss"]) for run in runs]
        share = [f"{end / run.parameters:.2f}" for end, run in zip(ends, runs, strict=True) if run.parameters]
        found.append((name, before, after, again, _side_by_side([f"{end:,.0f}" for end in ends]), _side_by_side(share)))
    return found


def _side_by_side(cells: Sequence[str]) -> str:
    return ", ".join(filter(None, cells))


def _at_growth(run: Run) -> tuple[str, str, str]:
    """Bits before and right after the last growth, and how often facts were seen until those before are known again."""
    stages = (run.of_stage(stage) for stage in (0, 1))
    (*_, before), (after, *later) = ([one for one in of if one.get("val_loss") is not None] for of in stages)
    had, has = (known(one["val_loss"]) for one in (before, after))
    again = [one["tokens"] - after["tokens"] for one in (after, *later) if known(one["val_loss"]) >= had]
    seen = f"{again[0] / (FACTS * (TOKENS - 1)):.0f}" if again else "never"
    return f"{had:,.0f}", f"{has:,.0f}", seen if had else ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--facts", type=Path, metavar="FILE", help="write the facts")
    what.add_argument("--known", type=Path, metavar="DIR", help="print what the runs of a sweep know")
    given = parser.parse_args()
    if given.facts:
        given.facts.parent.mkdir(parents=True, exist_ok=True)
        given.facts.write_text("".join(json.dumps(fact) + "\n" for fact in facts()), encoding="utf-8")
    else:
        (group,) = read_groups(given.known)
        print(files.table([HEADER, *lines(group)], align="<>>>>>", rule=True))
