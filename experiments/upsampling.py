"""The good source upsampled at the end of training, at equal cost, after growth.

    growlm sweep --config=experiments/upsampling.py:cpu:NOVELS --workdir=runs/upsampling/cpu-0 --config.seed=0

NOVELS is a folder of text files, which a tenth of the examples are of; nine tenths are code, the standard library.
2 layers are grown to 8, and over the last tenth or fifth of the budget half of the examples are prose. Without a folder
the sources are two packages of the library, asyncio, which cpu reads six times, and the texts of its help.

    end_10, end_20    prose is upsampled over the last 10 % or 20 % of the budget
    as_it_is          control: the mixture stays what it is
    spread            control: as many examples of prose as end_20 has, spread over all of training

Losses are by source; `val_loss` is their mean by the usual mixture, nine parts of ten of code.

Cost: cpu 3.8e13 FLOPs, ESTIMATED and not measured 6 minutes on two cores, at quickstart's rate. `:tiny` takes seconds.

What is expected: upsampling over the last 10 to 20 % is the best trade between the good domain and all others, for 7B
parameters on a trillion tokens (arXiv 2406.03476), by downstream scores. So prose should gain in end_10 and end_20 over
as_it_is, and more than in spread, where the same text came while the rate was high; code should lose little.

Result: not run yet.
"""

import sysconfig

from ml_collections import ConfigDict

from growlm.training.recipe import scale

USUAL, UPSAMPLED = 0.1, 0.5  # the share of prose
PACKAGES = tuple(f"{sysconfig.get_path('stdlib')}/{name}" for name in ("asyncio", "pydoc_data"))


def get_config(variant: str = "cpu") -> ConfigDict:
    name, _, folder = variant.partition(":")
    size, sources = scale(name), ("stdlib", folder) if folder else PACKAGES

    def mixture(prose: float) -> dict:
        shares = zip(("code", "prose"), sources, (1 - prose, prose), strict=True)
        return {name: {"corpus": corpus, "weight": round(share, 4)} for name, corpus, share in shares}

    as_it_is = size.grown([size.base(0.2)], "g_stack")
    tokens, at_end = sum(stage["tokens"] for stage in as_it_is["stages"]), size.part(0.2)
    spread = mixture((USUAL * (tokens - at_end) + UPSAMPLED * at_end) / tokens)
    controls = {
        "as_it_is": (as_it_is, "the mixture stays what it is"),
        "spread": (
            size.grown([size.base(0.2) | {"corpus": spread}], "g_stack", corpus=spread),
            "as much prose as end_20, spread over all of training",
        ),
    }
    ends = {f"end_{end:.0%}".rstrip("%"): size.ending(as_it_is, end, corpus=mixture(UPSAMPLED)) for end in (0.1, 0.2)}
    config = size.sweep("Prose upsampled at the end", ends, controls, corpus=mixture(USUAL))
    config.evaluation.batch = 8  # little is held out of a package
    return config
