"""Controls and searches in the report: what growing does not beat, at which FLOPs, and what was tried for every run."""

import csv
import json

import numpy as np
import pytest
from studies import search, write_seeds, write_sweep

from growlm.laws.intervals import loss_gap, t_interval
from growlm.laws.speedup import Curve, loss_at
from growlm.report import drawing
from growlm.report.charts import loss_figure
from growlm.report.compare import rows, speedup_figure
from growlm.report.interactive import plotly
from growlm.report.own import own_fits
from growlm.report.records import read_groups
from growlm.report.report import overview, report_page, summarise, write_report
from growlm.report.search import search_figure, search_table, search_text
from growlm.report.verdict import CONTROLS, verdict
from growlm.training.recipe import scale

ALL = {"scratch": 1.0, "grown": 0.70, "untrained": 1.02, "average_size": 0.66, "short": 1.0, "scratch_tuned": 0.72}
SEEDS = [
    ALL,
    ALL | {"grown": 0.74, "average_size": 0.69, "scratch_tuned": 0.70},
    ALL | {"grown": 0.68, "average_size": 0.65, "scratch_tuned": 0.75},
]


def group_of(folder):
    (group,) = read_groups(folder)
    return group


def lines(folder):
    return verdict(rows(group_of(folder))).splitlines()


def test_what_a_checkpoint_cost_is_said_beside_the_claim_and_is_in_no_plan(tmp_path):
    folder = write_sweep(tmp_path, {"scratch": 1.0, "grown": 0.7})
    assert own_fits(folder).gains and "not counted" not in lines(folder)[1]
    (folder / "grown" / "init_from.json").write_text(json.dumps({"folder": "runs/small", "flops": 2e10}))
    assert lines(folder)[1].endswith("It begins from small, whose 2.00e10 FLOPs are not counted.")
    assert not own_fits(folder).gains


# --- Controls --------------------------------------------------------------------------------------------------------


def test_what_growing_does_not_beat_comes_first_then_the_speed_up(tmp_path):
    controls, gain, missing = lines(write_seeds(tmp_path / "s", SEEDS))
    assert controls.startswith("At equal FLOPs grown does not beat average_size (loss +0.0")
    places = [controls.index(f"{name} (loss ") for name in ("average_size", "scratch_tuned", "untrained", "short")]
    assert places == sorted(places) and "; it is not clearly different from scratch_tuned" in controls
    assert gain.startswith("It reached validation loss 2.375 with ") and "speed-up +4" in gain
    assert missing == "Controls not run: schedules decayed to zero on both sides."


def test_the_gap_is_that_of_the_losses_where_the_cheaper_run_ends(tmp_path):
    folder = write_seeds(tmp_path / "s", SEEDS)
    (row,) = [row for row in rows(group_of(folder)) if row.run == "grown"]

    def loss(factor, flops):  # what studies plants
        return 2 + (1e9 * factor / flops) ** 0.3

    end = 6 * 4000 * 0.75e6  # of the short run; the grown one is in the middle of its schedule
    want = t_interval(np.array([loss(seed["grown"], end) - loss(1.0, end) for seed in SEEDS]))
    have = row.gaps["short"]
    assert (have.value, have.low, have.high) == pytest.approx((want.value, want.low, want.high), abs=1e-3)
    end = 6 * (1000 * 1e5 + 4000 * 1e6)  # of the grown run
    want = np.mean([loss(seed["grown"], end) - loss(seed["average_size"], end) for seed in SEEDS])
    assert want > 0
    assert row.gaps["average_size"].value == pytest.approx(want, abs=1e-3)


def test_gaps_are_paired_and_not_extrapolated():
    mine = [Curve(np.array([1.0, 10.0, 100.0]), np.array([3.0, low + 0.5, low])) for low in (2.0, 3.0)]
    other = [Curve(np.array([1.0, 10.0]), np.array([4.0, low + 0.6])) for low in (2.0, 3.0)]
    gap = loss_gap(mine, other)
    assert (gap.value, gap.low, gap.high) == pytest.approx((-0.1, -0.1, -0.1))  # seeds differ by 1, their gap by 0
    assert loss_at(mine[0], 0.5) is None
    assert loss_gap(mine, [Curve(np.array([0.1, 0.5]), np.array([4.0, 3.0]))] * 2) is None
    assert loss_gap([], []) is None


def test_controls_that_were_not_run_are_named_on_one_line(tmp_path):
    runs = {"scratch": 1.0, "grown": 0.7}
    assert lines(write_sweep(tmp_path / "a", runs))[-1] == (
        "Controls not run: untrained, average_size, short, searched rates, schedules decayed to zero on both sides."
    )
    found = search({"grown": {1e-3: 2.3, 2e-3: 2.4}, "scratch": {1e-3: 2.5, 2e-3: 2.4}})
    some = write_sweep(tmp_path / "b", runs | {"short": 1.0}, end_lr_ratio=0.0, search=found)
    assert lines(some)[-1] == "Controls not run: untrained, average_size."
    varied = {f"short@dtype={dtype}": 1.0 for dtype in ("float32", "bfloat16")}
    assert "short" not in lines(write_sweep(tmp_path / "e", runs | varied))[-1]
    of_decay = write_sweep(tmp_path / "f", runs, search=found | {"key": "weight_decay"})
    assert "searched rates" in lines(of_decay)[-1]
    found["runs"].pop("scratch")  # searched for the grown run alone
    assert "searched rates" in lines(write_sweep(tmp_path / "c", runs, search=found))[-1]
    assert not lines(write_sweep(tmp_path / "d", ALL, end_lr_ratio=0.0))[-1].startswith("Controls not run")


def test_the_recipe_makes_the_controls_that_the_report_looks_for():
    size = scale("tiny")
    assert tuple(size.controls(size.grown([size.base(0.2)], "g_stack"))) == CONTROLS


def test_a_control_that_failed_is_beaten_by_nobody(tmp_path):
    folder = write_sweep(tmp_path, {"scratch": 1.0, "grown": 0.7, "short": 0.9, "untrained": 1.1})
    sweep = json.loads((folder / "sweep.json").read_text())
    sweep["runs"]["short"] |= {"status": "failed", "error": "nan"}
    (folder / "sweep.json").write_text(json.dumps(sweep))
    text = verdict(summarise(folder))
    assert "; it beats untrained" in text and "grown cannot be compared with short; " in text


def test_the_page_shows_every_control_with_loss_and_speed_up(tmp_path):
    folder = write_seeds(tmp_path / "s", SEEDS)
    page = report_page(folder)[0]
    (row,) = [row for row in rows(group_of(folder)) if row.run == "grown"]
    for head in ("loss less that of", "speed-up over", "Below 0 the grown run is better"):
        assert head in page
    for name, gap in row.gaps.items():
        assert f"{gap.value:+.4f} [{gap.low:+.4f},\u00a0{gap.high:+.4f}]" in page
        assert f"why {name}" in page
    assert "<br>It reached validation loss" in page and "<br>Controls not run: " in page


def test_comparisons_of_a_run_stand_around_its_name_and_apart(tmp_path):
    group = group_of(write_seeds(tmp_path / "s", SEEDS))
    figure = speedup_figure(group, rows(group))
    places = {run: [] for run in figure.y.names}
    for mark in (mark for one in figure.series for mark in one.marks):
        places[mark.text.split(" over ")[0]].append(mark.y)
    for number, run in enumerate(figure.y.names):
        assert np.mean(places[run]) == pytest.approx(number) and max(places[run]) - min(places[run]) < 0.7
        assert len(places[run]) == (5 if run == "grown" else 1)
    assert figure.row_height == pytest.approx(5 / 3)


# --- Searches --------------------------------------------------------------------------------------------------------

RATES = [5e-4, 1e-3, 2e-3, 4e-3]
TRIES = {
    "grown": dict(zip(RATES, [2.9, 2.45, 2.38, 2.35], strict=True)),
    "scratch": dict(zip(RATES, [2.62, 2.55, 2.6, None], strict=True)),
    "average_size": {3e-3: 2.6, 1e-3: 2.5},
}


def trial(name, value):
    return f"{name}@peak_lr={value}"


@pytest.fixture
def searched(tmp_path):
    """Three seeds of a search at the first, whose tries are in its sweep.json beside the runs."""
    folder = write_seeds(tmp_path / "s", SEEDS, search=search(TRIES))
    path = folder / "cpu-0" / "sweep.json"
    sweep = json.loads(path.read_text())
    for name, losses in TRIES.items():
        sweep["runs"] |= {trial(name, value): {"status": "done", "error": None, "stages": []} for value in losses}
    path.write_text(json.dumps(sweep))
    write_tries(folder / "cpu-0")
    return folder


def write_tries(folder):
    for name, losses in TRIES.items():
        for value in losses:
            (folder / trial(name, value)).mkdir()
            record = {"stage": 0, "step": 1, "tokens": 1e6, "flops": 1e10, "loss": 9.0, "val_loss": 9.0}
            (folder / trial(name, value) / "metrics.jsonl").write_text(json.dumps(record) + "\n")


def last_loss(folder):
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [record["val_loss"] for record in records if "val_loss" in record][-1]


def test_tries_are_no_rows_and_no_curves_of_the_other_charts(searched):
    group = group_of(searched)
    assert [row.run for row in rows(group)] == list(ALL)
    figures = report_page(searched)[1]
    curves = {one.name for figure in figures if figure.name != "search" for one in figure.series}
    assert curves and not any("@" in name for name in curves)


def test_the_curve_of_a_search_has_all_finite_tries_and_marks_the_chosen_one(searched):
    figure = search_figure(group_of(searched))
    curves = {one.name: one for one in figure.series}
    assert list(curves) == list(TRIES)
    assert curves["scratch"].columns["peak_lr"].tolist() == RATES[:3]
    assert curves["scratch"].columns["val_loss"].tolist() == [2.62, 2.55, 2.6]
    chosen = {name: [(mark.x["peak_lr"], mark.y) for mark in one.marks] for name, one in curves.items()}
    assert chosen == {"grown": [(4e-3, 2.35)], "scratch": [(1e-3, 2.55)], "average_size": [(1e-3, 2.5)]}
    axis = figure.x[0]
    assert axis.log and list(axis.labels.values()) == ["0.0005", "0.001", "0.002", "0.003", "0.004"]
    ends = figure.views["peak_lr"]
    assert ends[0] < 5e-4 and ends[1] > 4e-3 and ends[2] < 2.35 and ends[3] > 2.9
    # The look is that of the loss chart.
    looks = {one.label: (one.colour, one.dash) for one in loss_figure(group_of(searched)).series}
    assert all(looks[one.label] == (one.colour, one.dash) for one in figure.series)


def test_the_search_is_told_apart_with_its_flops_and_its_ends(searched):
    header, found = search_table(group_of(searched))
    rates = (f"peak_lr {rate:g}" for rate in (5e-4, 1e-3, 2e-3, 3e-3, 4e-3))
    assert header == ["run", *rates, "other seeds", "at the end"]
    table = {line[0]: line[1:] for line in found}
    # The first seed is the best of its tries; beside it stands what the value gives where nothing was tried.
    other = {name: np.mean([last_loss(searched / f"cpu-{seed}" / name) for seed in (1, 2)]) for name in TRIES}
    assert table["scratch"] == ["2.6200", "2.5500 *", "2.6000", "-", "failed", f"{other['scratch']:.4f}", "-"]
    assert table["grown"][-3:] == ["2.3500 *", f"{other['grown']:.4f}", "yes"]
    assert "Seed 0 is one of the seeds of the tables, and there every run is the lowest" in overview(searched)
    text = overview(searched)
    assert "The search took 2.50e10 FLOPs beside those of the runs." in text
    ends = "lies at the end of what was tried,"
    assert f"\ngrown: the best peak_lr, 0.004, {ends} 0.0005 to 0.004: try larger ones." in text
    assert f"\naverage_size: the best peak_lr, 0.001, {ends} 0.001 to 0.003: try smaller ones." in text
    assert text.count(ends) == 2
    page = report_page(searched)[0]
    assert "2.50e10 of them in the search alone" in page and 'id="chart-search"' in page


def test_the_picture_and_the_csv_of_a_search(searched):
    write_report(searched)
    found = list(csv.DictReader((searched / "search.csv").read_text().splitlines()))
    assert len(found) == 4 + 3 + 2 + 3
    assert [line["peak_lr"] for line in found if line["kind"] == "chosen"] == ["0.004", "0.001", "0.001"]
    figure = search_figure(group_of(searched))
    axes = drawing.draw(figure, figure.x[0]).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.0005", "0.001", "0.002", "0.003", "0.004"]
    assert axes.get_xscale() == "log" and (searched / "search.png").exists()
    shown = plotly(figure)["layout"]["xaxis"]
    assert (shown["type"], shown["tickvals"], shown["ticktext"][0]) == ("log", [5e-4, 1e-3, 2e-3, 3e-3, 4e-3], "0.0005")


def test_names_are_searched_beside_each_other_and_zero_has_no_logarithm(tmp_path):
    runs = {"scratch": 1.0, "grown": 0.7}
    names = search({"grown": {"zero": 2.5, "direct": 2.4}, "scratch": {"zero": 2.6, "direct": 2.7}}, key="operator")
    folder = write_sweep(tmp_path / "a", runs, search=names)
    write_report(folder)
    figure = search_figure(group_of(folder))
    assert figure.x[0].names == ("zero", "direct") and not figure.x[0].log
    chosen = [line.split(",")[2] for line in (folder / "search.csv").read_text().splitlines() if ",chosen," in line]
    assert chosen == ["direct", "zero"]
    zero = search({"grown": {0.0: 2.5, 0.1: 2.4}, "scratch": {0.0: 2.6, 0.1: 2.7}}, key="weight_decay")
    folder = write_sweep(tmp_path / "b", runs, search=zero)
    assert not search_figure(group_of(folder)).x[0].log and write_report(folder)


def test_runs_that_end_alike_are_named_together(tmp_path):
    found = search({"grown": {1e-3: 2.5, 2e-3: 2.4}, "scratch": {1e-3: 2.7, 2e-3: 2.6}})
    folder = write_sweep(tmp_path, {"scratch": 1.0, "grown": 0.7}, search=found)
    said = "grown, scratch: the best peak_lr, 0.002, lies at the end of what was tried, 0.001 to 0.002"
    assert said in search_text(group_of(folder)) and "other seeds" not in search_text(group_of(folder))


def test_a_search_under_way_has_no_curve_and_no_choice(tmp_path):
    tries = [{"value": v, "run": trial("grown", v), "val_loss": None, "status": "pending"} for v in (1e-3, 2e-3)]
    of_run = {"tries": tries, "chosen": None, "at_end": False}
    under_way = {"key": "peak_lr", "seed": 0, "flops": 1e9, "runs": {"grown": of_run, "scratch": of_run}}
    folder = write_sweep(tmp_path, {"scratch": 1.0, "grown": 0.7}, search=under_way)
    assert search_figure(group_of(folder)) is None and "pending" in search_text(group_of(folder))
    write_report(folder)


def test_of_a_search_under_way_what_the_first_seed_knows_is_told_and_drawn(tmp_path):
    folder = write_seeds(tmp_path / "s", SEEDS, search=search(TRIES))
    now = search({"grown": {1e-3: 2.5, 2e-3: 2.4}, "scratch": {1e-3: None, 2e-3: None}})
    begun = search({"grown": {1e-3: 2.5, 2e-3: None}, "scratch": {1e-3: None, 2e-3: None}})
    for name, known in zip(("cpu-0", "cpu-1", "cpu-2"), (now, begun, begun), strict=True):
        path = folder / name / "sweep.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"search": known}))
    assert [line[1:3] for line in search_table(group_of(folder))[1]] == [["2.5000", "2.4000 *"], ["failed", "failed"]]
    assert [one.name for one in search_figure(group_of(folder)).series] == ["grown"]  # scratch has no point yet
    write_report(folder)


def test_without_a_search_nothing_is_said_of_one(tmp_path):
    folder = write_sweep(tmp_path, {"scratch": 1.0, "grown": 0.7})
    assert search_text(group_of(folder)) == "" and search_figure(group_of(folder)) is None
    assert ">Search</a>" not in report_page(folder)[0]
