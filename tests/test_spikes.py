"""The jump of the loss at growth and the way back, from planted records: the numbers are exact."""

import csv
import json

import numpy as np
import pytest

from growlm.__main__ import main
from growlm.report.archive import archive
from growlm.report.drawing import draw
from growlm.report.records import read_groups
from growlm.report.report import overview, write_report
from growlm.report.spikes import (
    NO_RISE,
    NOT_RECOVERED,
    spike_cells,
    spike_figures,
    spike_rows,
    spike_table,
    spikes,
)

STEP = 100  # tokens
FALLING = [4.0, 3.0, 2.5, 2.2, 2.0, 2.0, 2.0]  # after 0, 100 ... 600 tokens


def stage(number, validation, start, training=None, cost=6000):
    """Records of a stage as a run writes them: validation before its first step, then both losses at every step."""
    records = []
    for step, loss in enumerate(validation):
        tokens = start + STEP * step
        record = {"stage": number, "step": start // STEP + step, "tokens": tokens, "flops": cost * tokens}
        record |= {"val_loss": loss, "learning_rate": 1e-3}
        if step:
            record["loss"] = (training or validation)[step] + (0 if training else 0.1)
        records.append(record)
    return records


def run_of(*validations, training=None):
    """A run of stages; the training losses of the last one may be given."""
    records, start = [], 0
    for number, validation in enumerate(validations):
        last = number == len(validations) - 1
        records += stage(number, validation, start, training if last else None)
        start += STEP * (len(validation) - 1)
    return records


def write(folder, runs, seed=0, status=None):
    """A sweep of runs, without a baseline."""
    for name, records in runs.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        (folder / name / "config.json").write_text(json.dumps({"seed": seed}))
    entries = {name: {"status": (status or {}).get(name, "done"), "stages": []} for name in runs}
    (folder / "sweep.json").write_text(json.dumps({"title": "Spikes", "grown": list(runs), "runs": entries}))
    return folder


def group_of(folder):
    (group,) = read_groups(folder)
    return group


def table_of(folder):
    return spike_table(group_of(folder), spike_rows(group_of(folder)))


def only(folder, *validations, init_from=None, **training):
    """The one spike of a run of two stages, its cells by column, and its group."""
    write(folder, {"grown": run_of(*validations, **training)})
    if init_from:
        (folder / "grown" / "init_from.json").write_text(json.dumps({"folder": init_from}))
    group = group_of(folder)
    (spike,), (row,) = spikes(group.first.runs["grown"]), spike_rows(group)
    return spike, spike_cells(row), group


def test_a_known_jump_and_the_way_back_are_read_exactly(tmp_path):
    # validation 2.0 -> 2.6, then 2.3, 2.1, 1.9: back half-way between 200 and 300 tokens
    spike, cells, _ = only(tmp_path, FALLING, [2.6, 2.3, 2.1, 1.9, 1.8, 1.7])
    assert (spike.before, spike.after, spike.highest) == (2.0, 2.6, 2.6)
    assert spike.jump == pytest.approx(0.6) and spike.tokens == 600 and spike.total == 1100
    assert spike.back.tokens == pytest.approx(250) and spike.back.flops == pytest.approx(250 * 6000)
    # training: level 2.1; means of 2.4, 2.2, 2.0 and of 2.2, 2.0, 1.9, at 200 and 300 tokens: 2.2 and 2.0333
    assert spike.level == pytest.approx(2.1)
    assert spike.training.tokens == pytest.approx(200 + 100 * 0.1 / (2.2 - 6.1 / 3)) and not spike.training.at_most
    assert cells == [
        "grown", "600", "2.0000", "2.6000", "+0.6000", "2.6000", "250", "22.73%", "260", "23.64%",
    ]  # fmt: skip


def test_a_loss_that_never_comes_back_is_not_recovered(tmp_path):
    spike, cells, _ = only(tmp_path, FALLING, [2.6, 2.5, 2.4, 2.3, 2.2, 2.1])
    assert spike.back is None and spike.training is None and spike.validated and spike.trained
    assert cells[6:] == [NOT_RECOVERED, "-", NOT_RECOVERED, "-"]


@pytest.mark.parametrize("rounding", [0.0, 3e-8, -3e-8])
def test_a_growth_that_keeps_the_function_has_no_jump_and_no_rise(tmp_path, rounding):
    spike, cells, _ = only(tmp_path, FALLING, [2.0 + rounding, 1.9, 1.8, 1.7])
    assert spike.jump == pytest.approx(rounding) and spike.back.tokens == 0
    assert cells[4] == "+0.0000" and cells[6:8] == [NO_RISE, "-"]
    # three training losses in a row are already lower: whether they had risen before that is not told
    assert spike.training.at_most and cells[8:] == ["≤ 200", "≤ 22.22%"]


def test_a_loss_that_rises_later_counts_from_its_highest(tmp_path):
    spike, cells, _ = only(tmp_path, FALLING, [2.0, 1.9, 2.4, 2.2, 1.8, 1.7])
    assert spike.jump == 0 and spike.highest == 2.4 and spike.back.tokens == pytest.approx(350)
    assert cells[4:7] == ["+0.0000", "2.4000", "350"]


def test_one_low_training_loss_is_not_the_way_back(tmp_path):
    training = [None, 3.0, 1.0, 3.0, 3.0, 1.5, 1.4, 1.3]
    spike, _, _ = only(tmp_path, FALLING, [2.6] * 8, training=training)
    # means of three: 7/3, 7/3, 2.5, 5.9/3, at 200, 300, 400 and 500 tokens; the level is 2.1
    assert spike.training.tokens == pytest.approx(400 + 100 * 0.4 / (2.5 - 5.9 / 3))
    assert spike.back is None


def test_what_is_not_measured_is_a_dash(tmp_path):
    records = [{k: v for k, v in r.items() if k != "val_loss"} for r in run_of(FALLING, [2.6, 2.3, 2.1, 1.9])]
    group = group_of(write(tmp_path / "a", {"grown": records}))
    assert spike_cells(spike_rows(group)[0])[2:8] == ["-"] * 6
    assert [figure.name for figure in spike_figures(group, spike_rows(group))] == ["spike_training"]
    # a run that begins by growing a saved model has no training loss before it; one that has only grown, none after it
    for name, stages in (("b", ([2.0], [2.4, 1.9])), ("c", (FALLING, [2.6]))):
        spike, cells, _ = only(tmp_path / name, *stages, init_from="a checkpoint" if name == "b" else None)
        assert cells[8:] == ["-", "-"] and spike.training is None and not spike.trained
    assert cells[6:8] == [NOT_RECOVERED, "-"]


def test_a_base_that_was_not_trained_has_no_loss_to_jump_from(tmp_path):
    group = group_of(write(tmp_path, {"untrained": run_of([5.5], [5.6, 1.9]), "grown": run_of(FALLING, [2.6, 1.9])}))
    assert [row.name for row in spike_rows(group)] == ["grown"]


def test_a_loss_that_is_not_finite_is_passed_over(tmp_path):
    records = run_of(FALLING, [2.6, 2.3, 2.1, 1.9])
    records[-1] |= {"val_loss": float("nan"), "loss": float("nan")}
    group = group_of(write(tmp_path, {"grown": records}))
    assert spikes(group.first.runs["grown"])[0].highest == 2.6
    write_report(tmp_path)


def test_every_growth_has_a_row_and_is_measured_from_where_it_was(tmp_path):
    records = run_of(FALLING, [2.6, 2.3, 1.9, 1.8], [1.8, 1.7, 1.6, 1.5], [1.9, 1.7, 1.4, 1.3])
    group = group_of(write(tmp_path, {"thrice": records, "scratch": run_of(FALLING)}))
    rows = spike_rows(group)
    assert [row.name for row in rows] == [f"thrice, growth {number}" for number in (1, 2, 3)]
    assert [row.seeds[0].tokens for row in rows] == [600, 900, 1200]
    assert [row.jump.value for row in rows] == pytest.approx([0.6, 0.0, 0.4])
    assert [row.seeds[0].back.tokens for row in rows] == pytest.approx([175, 0, 100 + 100 * 0.2 / 0.3])
    assert {row.seeds[0].total for row in rows} == {1500}
    (figure, _) = spike_figures(group, rows)
    assert [(one.name, one.colour, one.dash) for one in figure.series] == [
        ("thrice, growth 1", 0, 0), ("thrice, growth 2", 0, 2), ("thrice, growth 3", 0, 3),
    ]  # fmt: skip
    for one, number in zip(figure.series, (1, 2, 3), strict=True):
        at = list(one.columns["since_growth"]).index(0)
        assert one.columns["rise"][at] == 0 and one.columns["rise"][at + 1] == pytest.approx(
            rows[number - 1].jump.value
        )


AFTER = ([2.6, 2.3, 2.1, 1.9, 1.8], [2.4, 2.1, 1.9, 1.8, 1.7], [2.5, 2.2, 2.0, 1.9, 1.8])  # of three seeds
BACK = (250, 150, 200)


def write_seeds(folder, runs=AFTER):
    for seed, after in enumerate(runs):
        write(folder / f"cpu-{seed}", {"grown": run_of(FALLING, after)}, seed)
    return folder


def test_over_seeds_the_jump_has_student_s_interval_and_the_way_back_its_range(tmp_path):
    group = group_of(write_seeds(tmp_path))
    (row,) = spike_rows(group)
    half = 4.302653 * 0.1 / np.sqrt(3)
    assert row.jump.value == pytest.approx(0.5)
    assert (row.jump.low, row.jump.high) == pytest.approx((0.5 - half, 0.5 + half))
    assert [one.back.tokens for one in row.seeds] == pytest.approx(BACK)
    cells = spike_cells(row)
    assert cells[4] == f"+0.5000 [+{0.5 - half:.4f}, +{0.5 + half:.4f}]" and cells[6:8] == [
        "200 (150 to 250)",
        "20.00%",
    ]
    assert "Student's" in spike_table(group, spike_rows(group))


def test_one_seed_that_is_not_recovered_leaves_no_mean_of_the_lucky_ones(tmp_path):
    group = group_of(write_seeds(tmp_path, (*AFTER[:2], [2.6, 2.5, 2.4, 2.3, 2.2])))
    assert spike_cells(spike_rows(group)[0])[6:8] == [f"{NOT_RECOVERED} at 1 of 3 seeds", "-"]


def test_a_seed_that_is_not_done_is_left_out(tmp_path):
    write_seeds(tmp_path, AFTER[:2])
    write(tmp_path / "cpu-2", {"grown": run_of(FALLING, [9.0])}, 2, {"grown": "pending"})
    (row,) = spike_rows(group_of(tmp_path))
    assert len(row.seeds) == 2 and row.jump.value == pytest.approx(0.5)


def test_the_figure_has_thin_seeds_behind_their_mean_and_zero_where_the_loss_was(tmp_path):
    group = group_of(write_seeds(tmp_path))
    validation, training = spike_figures(group, spike_rows(group), "2_")
    assert (validation.name, training.name) == ("2_spike", "2_spike_training")
    for figure in (validation, training):
        assert [one.style for one in figure.series] == ["thin"] * 3 + ["line"]
        left, right, low, high = figure.views["since_growth"]
        assert left < 0 < right and low < 0 < high
    mean = validation.series[-1]
    assert mean.name == "grown, mean of 3 seeds"
    after = np.mean(AFTER, axis=0) - 2.0
    seen = mean.columns["since_growth"] >= 0
    assert mean.columns["since_growth"][seen].tolist() == [0, 0, 100, 200, 300, 400]
    assert mean.columns["rise"][seen] == pytest.approx([0, *after])
    (axes,) = draw(validation, validation.x[0]).axes
    assert axes.get_xscale() == "linear" and sum(len(line.get_xdata()) == 2 for line in axes.lines) == 2  # both zeros


def test_the_report_has_the_table_and_the_figures(tmp_path, capsys):
    write_seeds(tmp_path)
    assert main(["report", f"--runs={tmp_path}"]) == 0
    assert "200 (150 to 250)" in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    for text in (">Loss at growth<", "200 (150 to 250)", "1.20e6 (9.00e5 to 1.50e6)", 'id="chart-spike_training"'):
        assert text in page, text
    assert (tmp_path / "spike.png").stat().st_size > 5000
    rows = list(csv.DictReader((tmp_path / "spike.csv").read_text().splitlines()))
    assert {row["curve"] for row in rows} == {*(f"grown, seed {n}" for n in range(3)), "grown, mean of 3 seeds"}


def test_without_growth_nothing_is_said(tmp_path):
    group = group_of(write(tmp_path, {"scratch": run_of(FALLING)}))
    assert spike_table(group, []) == "" and spike_figures(group, []) == []
    assert "Loss at growth" not in write_report(tmp_path).read_text() and not (tmp_path / "spike.png").exists()
    assert "jump" not in overview(tmp_path)


def test_it_is_said_where_a_jump_is_that_of_the_text(tmp_path):
    write(tmp_path, {"grown": run_of(FALLING, [2.6, 2.3, 2.1, 1.9])})
    assert "that of the text" not in table_of(tmp_path)
    stages = [{"batch": 4, "length": 16}, {"batch": 4, "length": 32}]
    (tmp_path / "grown" / "config.json").write_text(json.dumps({"stages": stages}))
    assert "that of the text" in table_of(tmp_path)


def test_archived_records_give_the_same_table(tmp_path):
    records = run_of(FALLING * 3, [3.0 - 0.05 * n for n in range(41)])
    folder = write(tmp_path / "sweep", {"grown": records})
    assert table_of(archive(folder, tmp_path / "archive")) == table_of(folder)
