"""When to grow as a share of the tokens: the published cells, planted valleys, and published answers on one axis."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from test_fit import timing_sweep

from growlm.__main__ import main
from growlm.errors import InputError
from growlm.laws.published import TIMING, law_at
from growlm.laws.timing import Answer, fit_shares, guideline_share, published_answers, share_of_law
from growlm.report.drawing import draw
from growlm.report.law_figures import answers_figure

TABLE = Path(__file__).parents[1] / "experiments" / "published" / "timing_cells.csv"


@pytest.fixture(scope="module")
def published():
    rows = [{k: v if k == "family" else float(v) for k, v in row.items()} for row in csv.DictReader(TABLE.open())]
    names = dict.fromkeys(row["family"] for row in rows)
    return {name: fit_shares(name, [row | {"seed": 0} for row in rows if row["family"] == name]) for name in names}


# Computed before, by another program, from the same cells: the law, the spread of the best shares and what the law
# leaves of it, gains in mnat, the shares within which 2 mnat are lost, minima of budgets.
@pytest.mark.parametrize(
    ("family", "a", "b", "spread", "error", "gain", "flat", "used"),
    [
        ("untied_grow", 0.8827, 0.1034, 0.036, 0.016, (10, 39), (0.07, 0.11), (9, 9)),
        ("loop_grow", 0.9019, 0.2160, 0.058, 0.018, (-1, 21), (0.08, 0.14), (15, 18)),
    ],
)
def test_the_law_of_the_published_cells(published, family, a, b, spread, error, gain, flat, used):
    found = published[family]
    assert (round(found.a, 4), round(found.b, 3)) == (a, pytest.approx(b, abs=0.0015))
    assert (round(found.spread, 3), round(found.error, 3)) == (spread, error)
    assert (len(found.used), len(found.valleys)) == used
    for values, ends, digits in (
        ([1e3 * one.gain for one in found.used], gain, 0),
        ([o.flat for o in found.used], flat, 2),
    ):
        assert (round(min(values), digits), round(max(values), digits)) == ends
    assert found.ahead > 4 and found.mean.low < found.mean.value < found.mean.high


@pytest.mark.parametrize(("family", "said"), [("untied_grow", 0.9993), ("loop_grow", 0.9983)])
def test_one_share_fits_the_tokens_of_the_best_runs_nearly_as_well(published, family, said):
    found = published[family]
    small, cost = np.array([[one.tokens_per_param, one.cost] for one in found.used]).T
    best = np.array([one.slice.best.value for one in found.used])
    tokens, constant = (small / (share + (1 - share) * cost) for share in (best, found.mean.value))
    assert 1 - np.sum((tokens - constant) ** 2) / np.sum((tokens - tokens.mean()) ** 2) == pytest.approx(said, abs=5e-5)
    assert 1e3 * found.lost().max() < 3  # and it costs next to nothing


def test_plain_growth_is_best_in_the_middle(published):
    plain = published["deep_vanilla_grow"]
    assert 1 - plain.mean.value == pytest.approx(0.544, abs=5e-4) and plain.a is None
    assert all(one.flat == pytest.approx(0.18, abs=0.01) for one in plain.used)
    assert [one.cost for one in plain.valleys] == pytest.approx([1.3997, 1.3837, 1.4659], abs=1e-4)


def test_the_laws_shares_are_those_of_the_published_ladder():
    ladders = {one.name: one for one in published_answers()}
    untied = ladders["Q Labs, untied"]
    assert share_of_law(8, untied.cost, 0.8827, 0.1034) == pytest.approx(untied.share, abs=0.009)
    tied = ladders["Q Labs, tied"]
    assert share_of_law(7, tied.cost, 0.9019, 0.2160) == pytest.approx(tied.share, abs=0.03)


def test_the_share_of_the_guideline_pays_for_both_models():
    params, flops = 1.1e9, 6.6e20
    before = law_at(TIMING, params, flops)
    after = (flops - 6 * params / 4 * before) / (6 * params)
    assert guideline_share(params, flops) == pytest.approx(before / (before + after)) == pytest.approx(0.106, abs=1e-3)
    stack = published_answers()[1]
    assert stack.flops_share[-1] == pytest.approx(6 * params / 4 * law_at(TIMING, params, 7e20) / 7e20)
    assert guideline_share(1e7, 6 * 1e7 * 1e9) > 1  # where the law explodes


LAW = (0.88, 0.1)


def cells(noise=0.0, seeds=1, sizes=(1e8, 2e8, 4e8), tokens_per_param=(4, 8, 16), law=LAW, seed=3):
    """Cells whose best shares lie on a planted law, with a cost of 1.5."""
    rng = np.random.default_rng(seed)
    rows = []
    for size in sizes:
        for ratio in tokens_per_param:
            best = share_of_law(ratio, 1.5, *law)
            for share in np.linspace(0.4, 1, 9):
                row = {"params": size, "flops": 6 * size * ratio * size, "share": share}
                row["tokens"] = ratio * size / (share + (1 - share) * 1.5)
                rows += [
                    row | {"seed": n, "loss": 3 + (share - best) ** 2 / 4 + rng.normal(0, noise)} for n in range(seeds)
                ]
    return rows


def test_a_planted_law_is_recovered():
    found = fit_shares("planted", cells())
    assert (found.a, found.b) == pytest.approx(LAW) and found.error < 1e-9
    assert [one.cost for one in found.valleys] == pytest.approx([1.5] * 9)
    assert [one.small_tokens / one.slice.params for one in found.valleys] == pytest.approx([4, 8, 16] * 3)
    assert found.used[0].gain == pytest.approx((1 - found.used[0].slice.best.value) ** 2 / 4)
    assert [one.flat for one in found.used] == pytest.approx([math.sqrt(0.002 * 4)] * 9)


def test_noisy_cells_hold_the_planted_shares_and_noise_hides_the_law():
    found = fit_shares("noisy", cells(noise=0.002))
    held = [share_of_law(one.tokens_per_param, 1.5, *LAW) in one.slice.best for one in found.used]
    assert np.mean(held) >= 0.75
    constant = [fit_shares("flat", cells(noise=0.002, law=(0.88, 0.0), seed=seed)).ahead for seed in range(20)]
    assert np.mean(np.array(constant) > 4) <= 0.2  # a law with b = 0 is one share for all


def test_seeds_share_a_valley():
    one, two = fit_shares("one", cells()), fit_shares("two", cells(seeds=2))
    assert two.mean.value == pytest.approx(one.mean.value) and two.used[0].gain == pytest.approx(one.used[0].gain)


def test_the_command_reads_cells_and_says_what_they_establish(tmp_path, capsys):
    assert main(["fit", "--law=timing", f"--runs={TABLE}", f"--figures={tmp_path}"]) == 0
    _, untied, tied, plain = capsys.readouterr().out.split("share of the tokens before growth, 1 is never")
    assert "at 9 of 9 budgets, by 9.8 to 38.7 mnat" in untied.split("not established:")[0]
    known, open_ = tied.split("not established:")
    assert "D/N = 0.9019 D_small/N" in known and "a best share at 3 of 18 budgets, at 2.1 to 3.7 tokens" in open_
    assert "3 budgets have a minimum, 4 are needed" in plain and "arXiv 2511.04981" in plain
    names = {"untied_grow", "loop_grow", "deep_vanilla_grow"}
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "timing_answers.png",
        *(f"share_valley_{n}.png" for n in names),
    }
    rows = [*csv.DictReader((tmp_path / "timing_answers.csv").open())]
    assert {row["curve"] for row in rows} == names | {one.name for one in published_answers()}
    assert all(float(row["low"]) <= float(row["share"]) <= float(row["high"]) for row in rows if row["low"])


def test_runs_stand_beside_the_published_answers(tmp_path, capsys):
    timing_sweep(tmp_path / "runs", sizes=(64, 128), seeds=(0,))
    assert main(["fit", "--law=timing", f"--runs={tmp_path / 'runs'}", f"--figures={tmp_path / 'out'}"]) == 0
    text = capsys.readouterr().out
    assert "zero or one layer" in text and text.count("these runs") == 2
    rows = [*csv.DictReader((tmp_path / "out" / "timing_answers.csv").open())]
    assert all(0 <= float(row[key]) <= 1 for row in rows for key in ("low", "share", "high") if row[key])
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {
        "timing_valley.png",
        "timing_law.png",
        "timing_answers.png",
    }


def test_tiny_runs_and_published_budgets_are_on_one_axis_with_ticks():
    mine = Answer("mine", "these runs", *(np.array([one]) for one in (1e12, 0.3, 4.0, 0.2, 0.4)))
    figure = answers_figure([*published_answers(), mine])
    (axes,) = draw(figure, figure.x[0]).axes
    low, high = axes.get_xlim()
    ticks = [one for one in axes.get_xticks() if low <= one <= high]
    assert low < 1e12 and high > 1.2e21 and 3 <= len(ticks) <= 10


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"share": 1.2}, "share of cell 3 of x must be > 0 and <= 1, got 1.2"),
        ({"share": 0.0}, "share of cell 3 of x must be > 0 and <= 1, got 0"),
        ({"loss": -1.0}, "loss of record 3 must be > 0"),
    ],
)
def test_cells_that_cannot_be_used_are_named(change, said):
    rows = cells()
    rows[3] |= change
    with pytest.raises(InputError, match=said):
        fit_shares("x", rows)


def test_fewer_cells_than_a_valley_needs_are_one_line(tmp_path, capsys):
    rows = [row for row in cells(sizes=(1e8,), tokens_per_param=(8,)) if row["share"] > 0.8]
    with (tmp_path / "cells.csv").open("w") as file:
        table = csv.DictWriter(file, rows[0], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    assert main(["fit", "--law=timing", f"--runs={tmp_path / 'cells.csv'}"]) == 2
    error = capsys.readouterr().err
    assert "3 values tried: a parabola with an interval needs 1 more" in error and error.count("\n") == 1
    (tmp_path / "cells.csv").write_text("params,flops,share,loss\n1,1,1,1\n")
    assert main(["fit", "--law=timing", f"--runs={tmp_path / 'cells.csv'}"]) == 2
    assert "must have tokens in every row, got params, flops, share, loss" in capsys.readouterr().err
    assert main(["fit", "--law=factor", f"--runs={tmp_path / 'cells.csv'}"]) == 2
    assert "cells.csv must be a folder, got a file" in capsys.readouterr().err
