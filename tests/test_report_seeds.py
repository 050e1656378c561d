"""Reports of several seeds: means with intervals, seeds that are missing, and where nothing is said."""

import csv
import json

import numpy as np
import pytest
from studies import write_run, write_seeds, write_sweep

from growlm.__main__ import main
from growlm.errors import InputError
from growlm.laws.intervals import t_interval
from growlm.report.charts import loss_figure
from growlm.report.compare import NOT_REACHED, cells, rows
from growlm.report.records import read_groups
from growlm.report.report import overview, report_page, summarise, write_report
from growlm.report.verdict import verdict

CLEAR = [{"scratch": 1.0, "grown": factor, "control": 0.9} for factor in (0.70, 0.72, 0.68)]


@pytest.fixture
def seeds(tmp_path):
    return write_seeds(tmp_path / "runs", CLEAR)


def by_name(folder, loss=None):
    (group,) = read_groups(folder)
    return {row.run: row for row in rows(group, loss)}


def edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_seeds_of_one_sweep_are_one_group_in_order(seeds):
    (group,) = read_groups(seeds)
    assert list(group.studies) == ["seed 0", "seed 1", "seed 2"]


def test_sweeps_that_differ_in_more_than_the_seed_are_not_taken_together(seeds):
    write_sweep(seeds / "other", CLEAR[0], title="Another")
    for home in sorted(seeds.iterdir()):
        (home / "config.json").write_text(json.dumps({"seed": 1, "mesh": {"data": 2}, "runs": {"a": {"tokens": 5}}}))
    assert [len(group.studies) for group in read_groups(seeds)] == [3, 1]
    edit(seeds / "cpu-1" / "config.json", lambda config: config["runs"]["a"].update(tokens=6))
    assert [len(group.studies) for group in read_groups(seeds)] == [2, 1, 1]
    with pytest.raises(InputError, match="must hold one sweep"):
        summarise(seeds)
    assert "Another" in overview(seeds)


def test_a_seed_of_an_older_growlm_that_had_fewer_settings_is_of_the_group(seeds):
    model = {"layers": 2, "embed": 16, "heads": 2, "kv_heads": 2, "head_dim": 8, "mlp": 32, "vocab": 256}
    stage = {"model": model, "tokens": 512, "batch": 4, "length": 16, "schedule": {"kind": "cosine", "peak_lr": 0.001}}
    run = {"corpus": "stdlib", "stages": [stage]}
    for number, home in enumerate(sorted(seeds.iterdir())):
        more = {"document_mask": number == 2} if number else {}
        config = {"runs": {"scratch": run | more | {"seed": number}}, "baseline": "scratch"}
        (home / "config.json").write_text(json.dumps(config))
    assert [list(group.studies) for group in read_groups(seeds)] == [["seed 0", "seed 1"], ["seed 2"]]


def test_single_runs_in_a_folder_are_one_study(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name, [(8, 1e6)])
    (group,) = read_groups(tmp_path)
    assert list(group.first.runs) == ["a", "b"]


def test_the_mean_is_geometric_and_has_student_s_interval(seeds):
    grown = by_name(seeds)["grown"]
    each = [by_name(seeds / f"cpu-{seed}")["grown"].speedup for seed in range(3)]
    want = t_interval(np.log1p(each))
    assert grown.speedup == pytest.approx(np.expm1(want.value))
    assert (grown.gain.speedup.low, grown.gain.speedup.high) == pytest.approx((np.expm1(want.low), np.expm1(want.high)))
    assert grown.seeds == 3 and grown.gain.speedup.low > 0.3
    assert grown.over_controls["control"] == pytest.approx(0.9 / 0.7 - 1, abs=0.02)


def test_beating_takes_an_interval_above_nothing(seeds, tmp_path):
    text = verdict(list(by_name(seeds).values()))
    assert "3 seeds" in text and "beats every control that was run: control (loss -0." in text
    assert "cannot tell" not in text
    mixed = [{"scratch": 1.0, "grown": factor, "control": 0.85} for factor in (0.6, 0.95, 1.1)]
    text = verdict(list(by_name(write_seeds(tmp_path / "mixed", mixed)).values()))
    assert "which 3 seeds cannot tell from no difference: the interval includes 0" in text
    assert text.startswith(
        "At equal FLOPs grown is not clearly different from control (loss +0.0018 [-0.0826, +0.0862])."
    )


def test_a_seed_that_is_not_done_is_left_out_and_named(seeds):
    edit(seeds / "cpu-2" / "sweep.json", lambda sweep: sweep["runs"]["grown"].update(status="pending"))
    row = by_name(seeds)["grown"]
    assert len(row.gain.seeds) == row.seeds == 2 and row.note == "seed 2: pending" and row.status == "pending"
    assert len(by_name(seeds)["control"].gain.seeds) == 3


def test_a_seed_that_failed_leaves_no_mean_of_the_lucky_ones(seeds):
    edit(seeds / "cpu-1" / "sweep.json", lambda sweep: sweep["runs"]["grown"].update(status="failed", error="nan"))
    row = by_name(seeds)["grown"]
    assert row.speedup is None and cells(row)[4:] == [NOT_REACHED, NOT_REACHED]
    assert "not reached at 1 of 3 seeds: seed 1 of grown failed" in row.note and "seed 1: failed: nan" in row.note


def test_a_loss_that_a_seed_does_not_reach_is_not_extrapolated(seeds):
    finals = [by_name(seeds / f"cpu-{seed}")["scratch"].val_loss for seed in range(3)]
    row = by_name(seeds, loss=finals[0] - 0.001)["grown"]
    assert row.speedup is None and NOT_REACHED in cells(row) and "never reaches" in row.note
    row = by_name(seeds, loss=finals[0] + 0.2)["grown"]
    assert row.speedup == pytest.approx(1 / 0.7 - 1, abs=0.02) and row.compared_at == pytest.approx(finals[0] + 0.2)


def test_the_figure_of_speed_ups_is_the_table_s(seeds):
    write_report(seeds)
    lines = list(csv.DictReader((seeds / "speedup.csv").read_text().splitlines()))
    found = {(line["run"], line["curve"]): line for line in lines}
    assert set(found) == {("grown", "over scratch"), ("grown", "over control"), ("control", "over scratch")}
    rows = by_name(seeds)
    for (run, over), gain in {
        ("grown", "over scratch"): rows["grown"].gain,
        ("grown", "over control"): rows["grown"].over["control"],
        ("control", "over scratch"): rows["control"].gain,
    }.items():
        line = found[run, over]
        want = gain.speedup.value, gain.speedup.low, gain.speedup.high
        assert tuple(float(line[key]) for key in ("speedup", "low", "high")) == want
        assert line["text"].startswith(f"{run} {over}: +") and line["text"].endswith("3 seeds")


def test_every_seed_is_a_thin_curve_and_their_mean_a_thick_one(seeds):
    (group,) = read_groups(seeds)
    series = loss_figure(group).series
    assert [one.style for one in series].count("thin") == 9 and [one.style for one in series].count("line") == 3
    mean = next(one for one in series if one.name == "grown, mean of 3 seeds")
    each = [one for one in series if one.label == mean.label and one.style == "thin"]
    assert mean.columns["val_loss"][-1] == pytest.approx(np.mean([one.columns["val_loss"][-1] for one in each]))
    assert [mark.text for mark in mean.marks] == ["layers 2 → 8"]


def test_the_command_takes_a_folder_of_seeds(seeds, capsys):
    assert main(["report", f"--runs={seeds}"]) == 0
    text = capsys.readouterr().out
    assert "(3 seeds)" in text and "% [+" in text
    page = (seeds / "report.html").read_text()
    assert "Student" in page and "seed 2" in page and (seeds / "loss_flops.png").exists()
    assert main(["report", f"--runs={seeds}", f"--workdir={seeds}"]) == 2
    assert main(["report"]) == 2
    assert main(["report", f"--runs={seeds / 'missing'}"]) == 2
    assert capsys.readouterr().err.count("\n") == 3


def test_several_sweeps_have_a_section_each_and_files_of_their_own(seeds):
    write_sweep(seeds / "other", CLEAR[0], title="Another")
    page = write_report(seeds).read_text()
    assert 'id="chart-loss"' in page and 'id="chart-2_loss"' in page and ">Another</a>" in page
    assert (seeds / "loss.csv").read_text() != (seeds / "2_loss.csv").read_text()


def test_benchmarks_measured_while_training_are_figures(seeds):
    for seed in range(3):
        path = seeds / f"cpu-{seed}" / "grown" / "metrics.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for number, record in enumerate(records[9::10]):
            record["benchmark/lambada_openai/acc"] = 0.1 + 0.01 * number
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    page = write_report(seeds).read_text()
    assert 'id="chart-benchmark_lambada_openai_acc"' in page
    lines = (seeds / "benchmark_lambada_openai_acc.csv").read_text().splitlines()
    assert len(lines) == 1 + 4 * 20 + 1 and lines[0].startswith("curve,kind,tokens,flops,benchmark/lambada_openai/acc")
    assert (seeds / "benchmark_lambada_openai_acc_tokens.png").exists()


def test_scores_of_evaluate_are_a_table(seeds):
    home = seeds / "cpu-0" / "grown" / "evaluations"
    home.mkdir()
    scores = {"alias": "piqa", "acc,none": 0.625, "acc_stderr,none": 0.01, "sample_len": 20}
    (home / "results_2026.json").write_text(json.dumps({"results": {"piqa": scores}, "growlm": {"tokens": 1.1e6}}))
    page = report_page(seeds)[0]
    assert "0.6250" in page and "± 0.0100" in page and "grown, seed 0" in page and "1.1M" in page
