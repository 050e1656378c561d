"""Makes every table and figure of the pages that come from records again, from the records alone.

    make results
    python experiments/study/results.py --check

A table stands in a page between `<!-- results: NAME -->` and `<!-- end of results -->`. With --check nothing is
written, and a table that is not what the records give is named, with exit code 1. A study's records are a folder of
experiments/records; a table of it is one row of TABLES, a figure one row of FIGURES.
"""

import argparse
import math
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from tables import (
    ROOT,
    apart,
    at_growth,
    connections,
    differences,
    elsewhere,
    fitted,
    last_loss,
    law,
    league,
    lens,
    made,
    minima,
    over,
    percent,
    ranks,
    report,
    rounded,
    study,
    table,
    tried,
    written,
)

from growlm.growth.depth import PARTIAL
from growlm.laws.intervals import t_interval
from growlm.laws.isoflop import guideline_half_widths
from growlm.laws.published import FACTOR, GROWTH_FACTOR, TIMING
from growlm.report import style
from growlm.report.drawing import png

DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", ROOT / "experiments" / "README.md", *sorted(DOCS.glob("*.md")))
BLOCK = re.compile(r"(<!-- results: (\w+) -->\n\n).*?<!-- end of results -->", re.DOTALL)

WAYS = [(name, way) for name in ("direct", "learn", "random", "zero") for way in ("depth", "width")]
OPERATORS = {f"{name}_{way}": f"{name} in {way}" for name, way in WAYS}
OPERATORS |= {"direct_depth": "direct in depth (G_stack)", "direct_width": "direct in width, even split"}
SMALL = {**OPERATORS, "direct_width": "direct in width, uneven split", "direct_width_even": OPERATORS["direct_width"]}
SEARCHED = {"labels": SMALL, "without": ("scratch_tuned",)}  # the baseline was searched as well
ARMS = {
    "grown": "G_stack by 4, after 20 % of the tokens",
    "scratch": "scratch, for G_stack",
    "untied": "untied growth, after 75 % of the tokens",
    "untied_scratch": "scratch, for untied growth",
}
SAME_RATE = ("scratch_150", "scratch_tuned")  # at this scale they are scratch and scratch_75 by other names
# arXiv 2405.15319: speed-up over scratch at 1.1B, one seed.
PAPER = dict(zip(OPERATORS, ("49 %", "-1 %, uneven", "49 %", "-15 %", "-26 %", "-14 %", "47 %", "-18 %"), strict=True))
PAPER_SMALL = PAPER | {"direct_width": "-1 %", "direct_width_even": ""}
SHARES = {f"after_{percent:02}_percent": f"{percent} % of the budget's tokens" for percent in (3, 6, 12, 24, 48)}
# N and C of growth_timing's sizes; and larger studies of it: sizes, budgets as multiples of these, seeds.
SIZES = {"117K": (117_280, 9.85e11), "435K": (435_264, 7.31e12), "936K": (935_520, 3.14e13)}
DESIGNS = (
    (("117K", "435K"), (1, 1 / 4), 3),
    (("117K", "435K", "936K"), (1, 1 / 4), 3),
    (("117K", "435K", "936K"), (1, 1 / 4), 10),
    (("117K", "435K", "936K"), (4, 1, 1 / 4), 3),
)
# arXiv 2405.15319, section 5.1, the partial stackings in three groups.
GROUPS = {
    **dict.fromkeys(("123456x4", "12-3456x5-56", "12-345x7-6", "123-456x7"), "best"),
    **dict.fromkeys(("1234-56x10", "12-34x10-56", "1-234x7-56"), "middle"),
    "123x7-456": "worst, below scratch",
}
# What becomes of the optimizer's state at the growths of optimizer_state, beside reset and map.
PARTLY = {"copies_depth": "keep_old", "copies_width": "keep_old", "zero_depth": "map_aged", "zero_width": "map_aged"}
# Of stacking_order: the runs that interleave layers, and those that stack the same base.
INTERLEAVED = {"interleave": "123456x4", "by_3_interleave": "by_3", "late_interleave": "late"}
# Of capacity: each less the other.
FACTS_APART = (
    *((run, "scratch") for run in ("stack", "zero", "width_copies", "width_zero", "untrained", "base_only")),
    *(("stack", "base_only"), ("stack", "zero"), ("width_copies", "width_zero")),
)
FACTORS = {f"by_{factor}": f"by {factor}, from {12 // factor}" for factor in (2, 3, 4, 6, 12)}


def states() -> str:
    """What became of the optimizer's state at growth: the runs, and how far each treatment is from the others."""
    lines = {}
    for growth, partly in PARTLY.items():
        for one, other in (("map", "reset"), (partly, "reset"), (partly, "map")):
            lines[f"{growth}: {one} less {other}"] = [(f"{growth}_{one}", f"{growth}_{other}")]
    lines["all four: map less reset"] = [(f"{growth}_map", f"{growth}_reset") for growth in PARTLY]
    fresh = [(f"{growth}_{partly}", f"{growth}_reset") for growth, partly in PARTLY.items()]
    lines["all four: keep_old or map_aged less reset"] = fresh
    return f"{league('optimizer_state')}\n\n{apart('optimizer_state', lines)}"


def stacking() -> str:
    """The orders in which layers were stacked, and whether what they keep of a base's connections tells their loss."""
    told = ranks("stacking_order", [*PARTIAL, "interleave"])
    found = league("stacking_order", papers=GROUPS, note=("connections kept", connections))
    lines = {f"{one} less {other}": [(one, other)] for one, other in INTERLEAVED.items()}
    lines["all three"] = [*INTERLEAVED.items()]
    lines |= {f"{run} less 123456x4": [(run, "123456x4")] for run in ("by_3", "late", "1-234x7-56", "123x7-456")}
    return f"{found}\n\n{told}\n\n{apart('stacking_order', lines)}"


def facts_known() -> str:
    """What the runs of capacity know of its facts, and how far apart they end, in bits."""
    capacity = runpy.run_path(str(ROOT / "experiments" / "capacity.py"))
    group, write = study("capacity"), partial(rounded, spec="+.0f")
    lines = []
    for one, other in FACTS_APART:
        found = differences(group, [(one, other)], lambda run: capacity["known"](last_loss(run)))
        lines.append([f"{one} less {other}", ", ".join(map(write, found)), written(t_interval(found), write)])
    shown = table(capacity["HEADER"], capacity["lines"](group))
    apart_shown = table(("bits at the end", "by seed", "mean"), lines)
    return f"{shown}\n\n{made(group)}\n\n{apart_shown}"


def ladder() -> str:
    """The gain of growth at every rung of the ladder, and at how many of them its interval is above zero."""
    lines, gains = [], []
    for number, one in enumerate(report("ladder").sections, 1):
        by_name = {row.run: row for row in one.rows}
        grown, scratch = by_name["grown"], by_name["scratch"]
        gains.append((grown.gain.speedup, over(by_name["untied"], "untied_scratch")))
        nats = t_interval(differences(one.group, [("grown", "scratch")], last_loss))
        cells = [str(number), style.count(scratch.parameters), style.flops(scratch.flops), percent(gains[-1][0])]
        cells += [written(nats, partial(rounded, spec="+.3f")), percent(over(grown, "average_size"))]
        lines.append([*cells, percent(gains[-1][1])])
    header = ("G_stack over scratch", "less scratch, nats a byte", "over average_size", "untied over untied_scratch")
    above = [sum(gain.low > 0 for gain in each) for each in zip(*gains, strict=True)]
    shown = table(("rung", "parameters", "FLOPs", *header), lines)
    said = "Rungs at which the interval is above zero: of G_stack over scratch {}, of untied growth {}, of {}."
    return f"{shown}\n\n{said.format(*above, len(lines))}"


def timing_design() -> str:
    """How well larger studies of growth timing would tell the law's exponents, by the sharpest valley that was seen."""
    group = study("growth_timing")
    each = [one for one in fitted("growth_timing").slices if one.best]
    error = min(float(np.nanstd(one.samples)) for one in each)
    lines = []
    for sizes, shares, seeds in DESIGNS:
        slices = np.array([(SIZES[size][0], SIZES[size][1] * share) for size in sizes for share in shares])
        a, b, _ = guideline_half_widths(*slices.T, error * math.sqrt(len(group.studies) / seeds))
        cost = slices[:, 1].sum() * len(SHARES) * seeds
        budgets = ", ".join(f"{share:g}" for share in shares)
        lines.append([", ".join(sizes), budgets, str(seeds), f"{a:.2f}", f"{b:.0f}", style.flops(cost)])
    header = ("parameters", "budgets", "seeds", "a, ±", "b, ±", "FLOPs")
    return f"{table(header, lines)}\n\nOne minimum is known to {error:.3f} in log10 d, by {len(group.studies)} seeds."


def measured() -> str:
    """The README's table: the headline numbers beside the paper's."""
    by_name = {row.run: row for row in report("operators").sections[0].rows}
    stack = by_name["direct_depth"]
    factor = max(fitted("growth_factor").slices, key=lambda one: one.flops).best
    gains = {run: row.gain.speedup for run, row in by_name.items() if row.gain and row.gain.speedup}
    largest = max(OPERATORS, key=lambda run: gains[run].value)
    wide = [gains[f"{operator}_width"] for operator in ("zero", "random", "learn")]
    lines = [
        ["stacking by 4, speed-up over scratch", percent(gains["direct_depth"]), PAPER["direct_depth"]],
        ["over scratch with a learning rate of its own", percent(over(stack, "scratch_tuned")), "not reported"],
        ["the best growth factor, at 636,000 parameters", written(factor, "{:.1f}".format), str(GROWTH_FACTOR)],
        ["the largest gain of eight ways to grow, in the mean", OPERATORS[largest], "stacking"],
        ["zero, random and learned growth in width, over scratch", ", ".join(map(percent, wide)), "-18, -14, -15 %"],
        ["copies in width, read evenly, over scratch", percent(gains["direct_width"]), "-1 %, read unevenly"],
    ]
    return table(("", "here", "the paper (1.1B)"), lines)


TABLES: dict[str, Callable[[], str]] = {
    "measured": measured,
    "novels": partial(league, "novels"),
    "operators": partial(league, "operators", labels=OPERATORS, papers=PAPER),
    "operators_small": partial(league, "operators_small", papers=PAPER_SMALL, **SEARCHED),
    "operators_small_tried": partial(tried, "operators_small", **SEARCHED),
    "operators_small_over": partial(elsewhere, "operators_small", "learning_rate", "scratch", SMALL),
    "operators_modern": partial(league, "operators_small_modern", papers=PAPER_SMALL, **SEARCHED),
    "operators_modern_tried": partial(tried, "operators_small_modern", **SEARCHED),
    "operators_small_lens": partial(lens, "operators_small", **SEARCHED),
    "operators_at_growth": partial(at_growth, "operators", labels=OPERATORS),
    "timing": partial(league, "growth_timing", 0, SHARES),
    "timing_narrow": partial(league, "growth_timing", 1, SHARES),
    "timing_at_growth": partial(at_growth, "growth_timing", 0, SHARES),
    "timing_minima": partial(minima, "growth_timing"),
    "timing_law": partial(law, "growth_timing", "d", TIMING),
    "timing_design": timing_design,
    "factor": partial(league, "growth_factor", labels=FACTORS),
    "factor_small": partial(league, "growth_factor", 1, FACTORS),
    "factor_law": partial(law, "growth_factor", "g", FACTOR),
    "factor_at_growth": partial(at_growth, "growth_factor", labels=FACTORS),
    "factor_minima": partial(minima, "growth_factor", f"{GROWTH_FACTOR}"),
    "continued": partial(league, "continue_from_checkpoint"),
    "noise": partial(league, "noise"),
    "optimizer_state": states,
    "stacking": stacking,
    "gradual": partial(league, "gradual"),
    "gradual_doubling": partial(league, "gradual_doubling"),
    "ladder": ladder,
    "ladder_1": partial(league, "ladder", labels=ARMS),
    "ladder_2": partial(league, "ladder", 1, labels=ARMS),
    "ladder_3": partial(league, "ladder", 2, labels=ARMS),
    "learning_rate": partial(league, "learning_rate", without=SAME_RATE),
    "capacity": facts_known,
    "experts": partial(league, "experts"),
    "experts_tried": partial(tried, "experts"),
    "experts_at_growth": partial(at_growth, "experts"),
    "moments": partial(league, "moments", without=("scratch_tuned",)),
    "ladder_1_tried": partial(tried, "ladder_search", labels=ARMS),
    "ladder_2_tried": partial(tried, "ladder_search", 1, labels=ARMS),
}

# Of docs/: the study, the figure of its report, and the axis where it has several.
FIGURES = {
    "novels.png": ("novels", "loss", "flops"),
    "operators_speedup.png": ("operators", "speedup", "speedup"),
    "operators_small_speedup.png": ("operators_small", "speedup", "speedup"),
    "operators_modern_speedup.png": ("operators_small_modern", "speedup", "speedup"),
    "ladder_1_speedup.png": ("ladder", "speedup", "speedup"),
    "ladder_2_speedup.png": ("ladder", "2_speedup", "speedup"),
    "operators_spike.png": ("operators", "spike", "since_growth"),
    "growth_timing.png": ("growth_timing", "timing_valley", "grown_at"),
    "growth_factor.png": ("growth_factor", "factor_valley", "factor"),
}


def differing(page: Path) -> Iterator[str]:
    """The names of the tables in a page that are not what the records give."""
    text = page.read_text(encoding="utf-8")
    yield from (found[2] for found in BLOCK.finditer(text) if found[0] != block(found))


def renew(page: Path) -> None:
    """Put the tables of a page in the place of the former ones."""
    text = page.read_text(encoding="utf-8")
    page.write_text(BLOCK.sub(block, text), encoding="utf-8")


def block(found: re.Match) -> str:
    """A table with the lines about it."""
    return f"{found[1]}{TABLES[found[2]]()}\n\n<!-- end of results -->"


def draw() -> None:
    """Draw the figures again."""
    for study_name in dict.fromkeys(name for name, _, _ in FIGURES.values()):
        figures = {figure.name: figure for figure in report(study_name).page()[1]}
        for file, (name, figure, key) in FIGURES.items():
            if name == study_name:
                axis = next(axis for axis in figures[figure].x if axis.key == key)
                (DOCS / file).write_bytes(png(figures[figure], axis))
                print(f"written: docs/{file}", flush=True)


def main() -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, and name what differs")
    if parser.parse_args().check:
        wrong = [f"{page.relative_to(ROOT)}: {name}" for page in PAGES for name in differing(page)]
        print("\n".join(f"results: {line} is not what the records give: make results" for line in wrong), end="")
        return 1 if wrong else 0
    for page in PAGES:
        renew(page)
    draw()
    return 0


if __name__ == "__main__":
    sys.exit(main())
