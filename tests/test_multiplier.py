"""Families of losses over compute: the published table judged, planted laws recovered, and `growlm fit` on both."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from test_fit import write_run

from growlm.__main__ import main
from growlm.errors import InputError
from growlm.laws.multiplier import MODELS, Family, exponents_above_floor, fit_families, judge

TABLE = Path(__file__).parents[1] / "experiments" / "published" / "fineweb_ladders.csv"
NAMED = ["--column.family=arm", "--column.flops=compute_flops", "--column.loss=val_loss"]
C = np.geomspace(1e18, 1e20, 8)


@pytest.fixture(scope="module")
def published():
    rows = [*csv.DictReader(TABLE.open())]
    columns = {name: [row for row in rows if row["arm"] == name] for name in dict.fromkeys(row["arm"] for row in rows)}
    return {
        name: Family(name, [float(row["compute_flops"]) for row in own], [float(row["val_loss"]) for row in own])
        for name, own in columns.items()
    }


# Two independent computations of the AICc (constant, exponent, floor, both) agree to the digits given here.
@pytest.mark.parametrize(
    ("baseline", "family", "aicc"),
    [
        ("vanilla", "untied_grow", (-148.3, -166.0, -170.6, -175.9)),
        ("deep_vanilla", "deep_vanilla_grow", (-147.1, -153.1, -153.6, -147.4)),
        ("untied_2", "untied_grow", (-154.7, -160.8, -162.3, -159.9)),
        ("vanilla", "operator_1", (-159.8, -174.6, -173.5, -169.7)),
        ("loop_2", "loop_grow", (-149.2, -148.9, -149.1, -142.7)),
        ("vanilla", "deep_vanilla", (-176.7, -172.1, -172.1, -166.3)),
    ],
)
def test_the_models_of_the_published_pairs_have_their_aicc(published, baseline, family, aicc):
    fits = [fit_families([published[baseline], published[family]], model) for model in MODELS]
    assert [round(fit.aicc, 1) for fit in fits] == pytest.approx(aicc)


def test_all_published_families_together_and_without_the_smallest(published):
    assert [round(fit_families([*published.values()], model).aicc, 1) for model in MODELS] == pytest.approx(
        (-603.7, -640.1, -643.6, -622.9)
    )
    trimmed = judge(published["untied_grow"], published["vanilla"]).trimmed
    assert [round(fit.aicc, 1) for fit in trimmed.values()] == pytest.approx((-134.1, -158.0, -162.4, -160.8))


def test_the_published_exponents_and_multipliers(published):
    floor, exponents = exponents_above_floor([*published.values()], published["vanilla"])
    assert floor == pytest.approx(1.7064, abs=5e-5)
    assert exponents["vanilla"].value == pytest.approx(0.1113, abs=1e-4)
    assert exponents["untied_grow"].value == pytest.approx(0.1168, abs=5e-5)
    found = judge(published["untied_grow"], published["vanilla"])
    assert found.multipliers.round(3) == pytest.approx([1.304, 1.335, 1.365, 1.434, 1.485, 1.520, 1.553])
    assert found.flops[[0, -1]] == pytest.approx([1.055751e18, 1.006363e20])
    alone = judge(published["deep_vanilla_grow"], published["deep_vanilla"])
    assert alone.multipliers.round(3) == pytest.approx([1.083, 1.101, 1.113, 1.140, 1.162, 1.182])
    said = [[found.multiplier(fit, flops).value for fit in found.fits.values()] for flops in (1.2e21, 1e23)]
    assert np.round(said, 2) == pytest.approx(np.array([[1.42, 1.70, 1.80, 2.08], [1.42, 2.00, 2.52, 4.74]]))


def test_what_is_established_of_the_published_families(published):
    untied = judge(published["untied_grow"], published["vanilla"])
    assert untied.gains() and untied.changes()
    assert len({fit.model for _, fit in untied.supported()}) > 1  # how the gain grows is not
    tied = judge(published["loop_grow"], published["loop_2"])
    assert not tied.changes() and not tied.gains()
    depth = judge(published["deep_vanilla"], published["vanilla"])
    assert depth.gains() and not depth.changes()


def planted(model, rng=None, noise=5e-4):
    """A family that is grown and its baseline, which differ as the model says."""
    own = {"constant": (1.7, 0.11), "exponent": (1.7, 0.125), "floor": (1.6, 0.11), "both": (1.5, 0.095)}
    rng = rng or np.random.default_rng(3)
    pair = (("base", 1.3, 1.7, 0.11), ("grown", 1.25, *own[model]))
    return [Family(n, C, E + a * (C / 1e19) ** -g + rng.normal(0, noise, len(C))) for n, a, E, g in pair]


@pytest.mark.parametrize("model", MODELS)
def test_a_planted_model_is_the_best_of_the_four(model):
    base, grown = planted(model)
    fits = judge(grown, base).fits
    assert min(fits, key=lambda name: fits[name].aicc) == model


def test_the_interval_of_a_multiplier_holds_the_true_one_as_often_as_it_says():
    true = (1.3 / 1.25) ** (1 / 0.11)
    inside = [
        true
        in fit_families(planted("constant", np.random.default_rng(seed)), "exponent").multiplier("grown", "base", 1e19)
        for seed in range(60)
    ]
    assert np.mean(inside) >= 0.85
    wide, narrow = (
        fit_families(planted("constant"), "exponent", level).multiplier("grown", "base", 1e19) for level in (0.99, 0.5)
    )
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_a_loss_below_the_floor_of_the_other_is_never_reached():
    base, grown = planted("floor")
    assert fit_families([base, grown], "floor").multiplier("base", "grown", 1e30) is None


def test_seeds_at_one_budget_are_averaged_and_need_no_order(published):
    base, grown = planted("constant", noise=0)
    twice = Family(
        "twice", np.tile(grown.flops[::-1], 2), np.concatenate([grown.loss + 0.001, grown.loss - 0.001])[::-1]
    )
    assert twice.curve().loss == pytest.approx(grown.loss)
    assert judge(twice, base).multipliers == pytest.approx(judge(grown, base).multipliers)


@pytest.mark.parametrize(
    ("flops", "loss", "said"),
    [
        (C[:3], [4, 3, 2], "few needs 4 budgets, 5 % apart at least, and has 3: 1 more"),
        (C[:4], [2, 3, 4, 5], "the losses of few must fall with FLOPs"),
        (C[:4], [4, 3, 2, -1], "loss must be positive"),
    ],
)
def test_families_that_fix_no_curve_are_refused(flops, loss, said):
    with pytest.raises(InputError, match=said):
        Family("few", flops, loss)


def test_the_command_says_what_is_established_and_what_is_not(tmp_path, capsys):
    pair = "--families=vanilla,untied_grow"
    words = ["fit", "--law=multiplier", f"--runs={TABLE}", pair, "--at=1.2e21", f"--figures={tmp_path}"]
    assert main([*words, *NAMED]) == 0
    text = capsys.readouterr().out
    known, open_ = text.split("not established:")
    assert "1.30 at 1.06e18 FLOPs to 1.55 at 1.01e20" in known and "the gain rises with compute" in known
    assert "left are floor and both" in open_ and "1.20e21 FLOPs, 8.07 x the largest: 1.8" in open_
    assert "one run a budget" in open_ and "untied_grow" in open_
    assert (tmp_path / "multiplier_untied_grow.png").stat().st_size > 1e4
    rows = [*csv.DictReader((tmp_path / "multiplier_untied_grow.csv").open())]
    assert {row["curve"] for row in rows} == {"measured", *MODELS}
    assert all(float(row["low"]) < float(row["multiplier"]) < float(row["high"]) for row in rows if row["low"])


def test_all_families_of_a_table_are_over_the_first(capsys):
    assert main(["fit", "--law=multiplier", f"--runs={TABLE}", *NAMED]) == 0
    text = capsys.readouterr().out
    assert text.count("over vanilla: ") == 7 and "-643.6*" in text
    assert "that the gain changes with compute: a constant one is as good" in text  # of depth


def test_runs_that_grew_are_over_those_from_scratch(tmp_path, capsys):
    for embed in (64, 96, 128, 160, 192):
        write_run(tmp_path / f"s{embed}", lambda N, C, d, g: 1.7 + 1.3 * (C / 1e14) ** -0.11, embed)
        write_run(tmp_path / f"g{embed}", lambda N, C, d, g: 1.7 + 1.2 * (C / 1e14) ** -0.11, embed, 1e5)
    assert main(["fit", "--law=multiplier", f"--runs={tmp_path}"]) == 0
    text = capsys.readouterr().out
    assert "grown over from scratch: 10 runs" in text and "as good" in text.split("not established:")[1]


def test_json_of_families_and_of_rows_is_read(tmp_path, capsys):
    groups = {
        one.name: [{"C": c, "loss": y} for c, y in zip(one.flops, one.loss, strict=True)] for one in planted("floor")
    }
    (tmp_path / "groups.json").write_text(json.dumps(groups))
    rows = [row | {"family": name} for name, own in groups.items() for row in own]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    texts = []
    for name in ("groups", "rows"):
        assert main(["fit", "--law=multiplier", f"--runs={tmp_path / name}.json", "--column.flops=C"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and "grown over base" in texts[0]


@pytest.mark.parametrize(
    ("name", "content", "options", "said"),
    [
        (
            "a.csv",
            "arm,flops,loss\nx,1,2\n",
            [],
            "must have family in every row, got arm, flops, loss (--column.family=",
        ),
        ("a.csv", "family,flops,loss\nx,1\n", [], "must have loss in every row"),
        ("a.csv", "family,flops,loss\nx,1,two\n", [], "loss in row 1 of "),
        ("a.csv", "family,flops,loss\nx,1,2\nx,0,2\n", [], "a.csv must be a positive number, got '0'"),
        ("a.csv", "family,flops,loss\n", [], "must have rows, got none"),
        ("a.csv", "family,flops,loss\nx,1,2\n", [], "must have two families, got x"),
        ("a.csv", "family,flops,loss\nx,1,2\n", ["--families=x,y"], "must be one of x, got 'y'"),
        ("a.csv", "family,flops,loss\nx,1,2\n", ["--slices=2"], "--slices must be left out"),
        ("a.json", "{", [], "cannot read"),
        ("a.json", '{"x": 3}', [], "must be an array of rows, or an object of such arrays, got 'x'"),
        ("a.csv", "", ["--column.loss"], "must be --column.key=value"),
    ],
)
def test_bad_tables_are_one_line_and_2(tmp_path, capsys, name, content, options, said):
    (tmp_path / name).write_text(content)
    assert main(["fit", "--law=multiplier", f"--runs={tmp_path / name}", *options]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_options_of_this_law_are_refused_with_others(tmp_path, capsys):
    assert main(["fit", "--law=timing", f"--runs={tmp_path}", "--at=1e20"]) == 2
    assert "--at must be left out with --law=timing" in capsys.readouterr().err
