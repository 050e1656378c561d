"""Does the gain of growth last with scale? Five rungs of compute, every arm at its own searched rate, decayed to zero.

    growlm sweep --config=experiments/ladder.py:1_search --workdir=runs/ladder_search/rung_1-0
    growlm sweep --config=experiments/ladder.py:1 --workdir=runs/ladder/rung_1-0 --config.seed=0
    growlm fit --runs=runs/ladder --law=multiplier

Rungs 1 to 5 are 12 layers of width 32, 48, 64, 80 and 96, on 10 tokens a parameter: 1.6e12 to 1.1e14 FLOPs. Arms of
equal FLOPs, on the architecture `modern` and Muon with its modern parts: `scratch`; `grown`, G_stack from 3 layers
trained on 20 % of the budget's tokens; on the looped architecture of arXiv 2609.19107 with that paper's betas, schedule
and factors, `untied`, cores copied in place after 75 % of the tokens, and `untied_scratch`, its target from scratch.
`N_search` tries every arm at five peak rates, at rungs 1 and 2 (2: four); `TRIED` has what came out, and a power law in
FLOPs of each arm carries its rate to the other rungs. Rungs 1 and 2 have the controls untrained, average_size and short
as well. The small model of `grown` has the rate of `grown`, which at rung 1 was half of what a first search there, from
0.005 to 0.08, found best, its upper end. `:tiny` and `:tiny_search` take a minute, to compile.

Cost of a run on one core: 1 minute at rung 1 (AMD EPYC), 5 at rung 2 (Intel Xeon), 14 to 19 at rung 3, beside other
work; ESTIMATED from steps of `scratch` on the first 27 and 53 at the others. A seed has 7 runs at rungs 1 and 2, else
4, and a search 20 or 16.

What is expected: a compute multiplier above 1 at every rung, 1.05 to 1.2 for growing alone, as the ladders of
arXiv 2609.19107 have it (1.08 at 2e18 FLOPs to 1.18 at 1e20, one seed), five orders of magnitude above these; less than
the 1.49 to 1.55 of arXiv 2405.15319, whose baseline has one rate and is not decayed. The gate, written before a run:
growing pays if the lower end of the multiplier's 95 % interval over three seeds is above 1 at every rung.

Result: three seeds, in nats a byte. Rung 1: scratch 1.743, grown 1.722, a speed-up of 17 % [1, 35], but average_size,
10 layers, 1.715. Rung 2: scratch 1.466, grown 1.464, 4 % [-9, 18], average_size 1.454. Rung 3: scratch 1.314, grown
1.321, -7 % [-33, 29]. So the gate is not passed. untied 1.626, 1.408 and 1.267, untied_scratch 1.655, 1.427 and 1.282:
15 % [2, 31], 9 % [6, 13] and 9 % [-1, 21]. Rungs 4 and 5 are not run yet.
"""

import math
from dataclasses import replace

from ml_collections import ConfigDict

from growlm.errors import check_name
from growlm.models import parameter_count
from growlm.training.config import build_model
from growlm.training.recipe import MODERN, Scale

WIDTHS = {"1": 32, "2": 48, "3": 64, "4": 80, "5": 96, "tiny": 16}
TOKENS_PER_PARAMETER = 10
SEARCHED = (0.02, 0.04, 0.08, 0.16, 0.32)
# Validation losses of the tries about the best peak rate, in the searches at rungs 1 and 2.
TRIED = {
    "scratch": ({0.04: 1.7549, 0.08: 1.7362, 0.16: 1.7698}, {0.02: 1.4654, 0.04: 1.4630, 0.08: 1.4911}),
    "grown": ({0.02: 1.7474, 0.04: 1.7136, 0.08: 1.7209}, {0.02: 1.4637, 0.04: 1.4636, 0.08: 1.4899}),
    "untied": ({0.02: 1.6879, 0.04: 1.6190, 0.08: 1.6593}, {0.02: 1.4066, 0.04: 1.4058, 0.08: 1.4811}),
    "untied_scratch": ({0.02: 1.7425, 0.04: 1.6389, 0.08: 1.6817}, {0.02: 1.4330, 0.04: 1.4265, 0.08: 1.4933}),
}
# arXiv 2609.19107, Untied-2: rates of embedding and head as shares of the matrices' own, betas and eps.
LOOPED = MODERN | {"beta2": 0.99, "eps": 1e-8, "learning_rates": {"embedding": 0.16, "head": 0.16}}
TO_ZERO = {"kind": "wsd", "decay": 1.0}


def get_config(variant: str = "1") -> ConfigDict:
    rung, _, rest = variant.partition("_")
    check_name("variant", variant, [*WIDTHS, *(f"{name}_search" for name in WIDTHS)])
    size, looped = _scales(rung)
    rates = {arm: carried(arm, rung) for arm in TRIED}
    size = replace(size, base_lr=rates["grown"])
    grown = size.grown([size.base(0.2)], "g_stack", rates["grown"])
    runs = {"grown": grown, "untied": looped.system("untied_grow", rates["untied"])}
    untied_scratch = looped.scratch(rates["untied_scratch"], schedule=TO_ZERO)
    controls = {"untied_scratch": (untied_scratch, "the target of untied from scratch")}
    if rung in ("1", "2") and not rest:
        controls |= replace(size, tuned_lr=rates["scratch"]).controls(grown, claim=0.1)
    config = size.sweep(f"The ladder, rung {rung}", runs, controls, search={"peak_lr": SEARCHED} if rest else None)
    if not rest:
        config.runs.scratch = size.scratch(rates["scratch"])
    return config


def _scales(rung: str) -> tuple[Scale, Scale]:
    """The rung on the architecture `modern`, and on the looped one at equal FLOPs."""
    embed = WIDTHS[rung]
    shape = {"embed": embed, "heads": embed // 16, "head_dim": 16, "vocab": 256}
    modern = shape | {"architecture": "modern", "kv_heads": embed // 16, "mlp": 4 * embed}
    size = Scale(
        layers=12,
        widths=modern,
        tokens=60_000,
        batch=16,
        length=128,
        base_lr=0.04,
        peak_lr=0.08,
        end_lr_ratio=0.0,
        optimizer=MODERN,
    )
    if rung != "tiny":
        size = replace(size, tokens=TOKENS_PER_PARAMETER * _parameters(size))
    # A gate is a third matrix of the MLP: two thirds as wide it has as many parameters.
    gated = shape | {"architecture": "looped", "prelude": 2, "coda": 2, "cores": 4, "injection": 1.0}
    gated |= {"residual_multiplier": 0.25, "mlp": 8 * (embed // 3)}
    looped = replace(size, widths=gated, optimizer=LOOPED)
    return size, replace(looped, tokens=size.tokens * _parameters(size) // _parameters(looped))


def _parameters(size: Scale) -> int:
    return parameter_count(build_model(size.model()))


def carried(arm: str, rung: str) -> float:
    """The peak rate of an arm: at rungs 1 and 2 the best that was tried, and elsewhere by a power law in parameters.

    It goes through the minima at these rungs, each of a parabola in the rate's logarithm: the best of a few rates, a
    factor of 2 apart, would tell the exponent to no better than that.
    """
    if rung in ("1", "2"):
        losses = TRIED[arm][int(rung) - 1]
        return min(losses, key=losses.__getitem__)
    first, second, here = (_parameters(_scales(one)[0]) for one in ("1", "2", rung))
    low, high = map(_minimum, TRIED[arm])
    return low * (high / low) ** (math.log(here / first) / math.log(second / first))


def _minimum(losses: dict[float, float]) -> float:
    """The rate at the minimum of the parabola through the losses at three rates of equal ratios."""
    (left, one), (middle, two), (right, three) = sorted(losses.items())
    return middle * (right / left) ** ((one - three) / (4 * (one - 2 * two + three)))
