"""Every number that the page of the laws gives of a published table is what the table gives now."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from test_timing import published as cells  # noqa: F401
from test_timing import published_answers

from growlm.laws import KAPLAN_CURVE, optimal_vocabulary
from growlm.laws.multiplier import Family, exponents_above_floor, judge

ROOT = Path(__file__).parents[1]
PAGE = re.sub(r"\s+", " ", (ROOT / "docs" / "laws.md").read_text())


@pytest.fixture(scope="module")
def families():
    rows = [*csv.DictReader((ROOT / "experiments" / "published" / "fineweb_ladders.csv").open())]
    found = {}
    for row in rows:
        found.setdefault(row["arm"], []).append((float(row["compute_flops"]), float(row["val_loss"])))
    return {name: Family(name, *np.array(points).T) for name, points in found.items()}


def said(pattern, *values):
    """The page has the pattern with these values in it."""
    assert pattern.format(*values) in PAGE, pattern.format(*values)


def test_the_shares_of_the_cells(cells):  # noqa: F811
    untied, tied, plain = cells["untied_grow"], cells["loop_grow"], cells["deep_vanilla_grow"]
    gains = [[1e3 * one.gain for one in family.used] for family in (untied, plain)]
    said("by {:.1f} to {:.1f} mnat untied and {:.1f} to {:.1f} plain", *(f(g) for g in gains for f in (min, max)))
    better = sum(one.gain > 0.002 for one in tied.used)
    said("tied at {} of {} budgets", better, len(tied.valleys))
    flat = [one.flat for one in untied.used]
    said("{:.2f} to {:.2f} beside the best share", min(flat), max(flat))
    lost = max(1e3 * family.lost().max() for family in cells.values())
    means = [family.mean.value for family in (untied, tied, plain)]
    said("one share for all, {:.3f}, {:.3f} tied, {:.3f} plain, loses {:.1f} mnat at most", *means, lost)
    said("{:.4f}\\,D_s/N + {:.4f}$ untied, ${:.4f}$ and ${:.4f}$ tied", untied.a, untied.b, tied.a, tied.b)
    leaves = untied.error, tied.error, untied.spread, tied.spread
    said("leave {:.3f} and {:.3f} of spreads of {:.3f} and {:.3f}", *leaves)
    small = [one.slice.params for family in cells.values() for one in family.valleys if family is not tied]
    said("{:.0f}M to {:.0f}M parameters before growth", min(small) / 1e6, max(small) / 1e6)
    without = max(one.tokens_per_param for one in tied.valleys if one.slice.best is None)
    assert without < 4 and "tied growth below 4 tokens per parameter" in PAGE


def test_the_answers_of_others():
    answers = {one.name: one.share for one in published_answers()}
    said("{:.2f} down to {:.2f} at 1.1B", *answers["G_stack, 1.1B"][[0, -1]])
    ladders = [
        end for name in ("untied", "tied") for share in [answers[f"Q Labs, {name}"]] for end in (min(share), max(share))
    ]
    said("after {:.2f} to {:.2f} of the tokens, tied {:.2f} to {:.2f}", *ladders)


def test_the_multipliers_and_exponents(families):
    vanilla, untied = families["vanilla"], families["untied_grow"]
    found = judge(untied, vanilla)
    said("at every size, by {:.2f} to {:.2f}", *found.multipliers[[0, -1]])
    alone = judge(families["deep_vanilla_grow"], families["deep_vanilla"])
    said("it is {:.2f} to {:.2f} and rises", *alone.multipliers[[0, -1]])
    exponents = exponents_above_floor([vanilla, untied], vanilla)[1]
    said("The paper's {} and {} are reproduced", *(f"{one.value:.4f}"[1:] for one in exponents.values()))
    for flops, write in (
        (1e21, "At 1e21 FLOPs what is left says {:.2f} to {:.2f}"),
        (1e25, "at 1e25 {:.1f} to {:.0f}"),
    ):
        values = [found.multiplier(fit, flops).value for _, fit in found.supported()]
        said(write, min(values), max(values))
    assert found.changes() and not judge(families["loop_grow"], families["loop_2"]).changes()


def test_the_vocabularies_and_the_critical_batch():
    for params, embed in ((3e9, 3200), (7e9, 4096), (70e9, 8192)):
        sizes = vars(optimal_vocabulary(params, embed)).values()
        said("| {:.0f}B, {} | {:.0f}K | {:.0f}K | {:.0f}K |", params / 1e9, embed, *(size / 1e3 for size in sizes))
    assert (
        round(KAPLAN_CURVE.critical_batch(2.66) / 1e6, 1) == 2.0 and f"# {KAPLAN_CURVE.compute_exponent:.4f};" in PAGE
    )
