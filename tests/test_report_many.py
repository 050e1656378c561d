"""A report of many runs: everything is read and compared once, and what a chart or a table leaves out is said."""

import collections
import csv
import io
import re

import pytest
from studies import write_sweep

from growlm.__main__ import main
from growlm.report import compare, drawing, page, records
from growlm.report.charts import COLOURS, DASHES, styles
from growlm.report.figures import as_csv
from growlm.report.own import own_fits
from growlm.report.report import Report
from growlm.report.shown import MOST_CONTROLS, MOST_RUNS, drawn

GROWN, CONTROLS = 14, 15
FACTORS = {"scratch": 1.0}
FACTORS |= {f"grown_{number}": 0.7 + 0.01 * number for number in reversed(range(GROWN))}
FACTORS |= {f"untrained_{number}": 1.0 - 0.01 * number for number in range(CONTROLS)}
BEATING = f"untrained_{CONTROLS - 1}"  # every grown run


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A sweep of 30 runs; grown_0 is the best that grew, and the last control beats it."""
    return write_sweep(tmp_path_factory.mktemp("many") / "sweep", FACTORS | {BEATING: 0.5}, end_lr_ratio=0.0)


@pytest.fixture(scope="module")
def report(many):
    return Report(many)


def counted(monkeypatch, module, name):
    """How often a function of a module was called with each first argument, by its text."""
    calls, function = collections.Counter(), getattr(module, name)

    def counting(first, *more, **options):
        calls[repr(first)] += 1
        return function(first, *more, **options)

    monkeypatch.setattr(module, name, counting)
    return calls


def test_the_command_reads_every_file_and_makes_every_curve_once(many, monkeypatch, capsys):
    read, made = counted(monkeypatch, records, "lines_of"), counted(monkeypatch, records, "curve")
    monkeypatch.setattr(drawing, "write_figure", lambda *_: None)
    assert main(["report", f"--workdir={many}"]) == 0
    assert "At equal FLOPs" in capsys.readouterr().out
    assert set(read.values()) == set(made.values()) == {1} and len(read) == len(made) == len(FACTORS)


def test_pairs_are_not_compared_that_no_table_has(many, monkeypatch):
    gaps, gains = counted(monkeypatch, compare, "loss_gap"), counted(monkeypatch, compare, "speedup_over_seeds")
    report = Report(many)
    report.text(), report.page()
    assert gaps.total() == CONTROLS + (GROWN - 1) * MOST_CONTROLS  # the best run is compared with all
    assert gains.total() == len(FACTORS) - 1 + GROWN * MOST_CONTROLS


def test_a_chart_shows_the_best_of_every_role_and_says_what_it_leaves_out(report):
    (section,) = report.sections
    kept = drawn(section.group, FACTORS)
    assert len(kept) == MOST_RUNS and {"scratch", "grown_0", BEATING} <= kept and "grown_13" not in kept
    for figure in (section.loss, *section.training):
        assert {one.name for one in figure.series} == kept
        assert {row["curve"] for row in csv.DictReader(io.StringIO(as_csv(figure)))} == set(FACTORS)
    assert set(section.speedups.y.names) < set(FACTORS)
    assert section.speedups.left_out.startswith(f"{MOST_RUNS} of {len(FACTORS) - 1} runs are drawn, ")
    (said,) = drawing.draw(section.loss, section.loss.x[0]).legends
    assert said.get_title().get_text().startswith(f"{MOST_RUNS} of {len(FACTORS)} runs are drawn, ")
    assert report.page()[0].count(section.loss.left_out) == 1 + len(section.training)


def test_colours_go_to_what_is_drawn(report):
    group = report.sections[0].group
    kept, looks = drawn(group, FACTORS), styles(group)
    grown = [looks[name] for name in FACTORS if name in kept and name.startswith("grown")]
    assert grown == [(number % COLOURS, DASHES[number // COLOURS]) for number in range(len(grown))]


def test_the_verdict_is_over_all_controls_and_the_tables_have_the_hardest(report):
    (section,) = report.sections
    best, other = (next(row for row in section.rows if row.run == f"grown_{number}") for number in (0, 1))
    assert list(best.gaps) == list(other.gaps) == [f"untrained_{n}" for n in range(CONTROLS - MOST_CONTROLS, CONTROLS)]
    assert len(best.gaps | best.further) == CONTROLS and not other.further
    line = report.text().split("At equal FLOPs ")[1].splitlines()[0]
    assert line.startswith(f"the best of {GROWN} grown runs, grown_0, does not beat {BEATING} (loss +")
    assert line.endswith(f" and {CONTROLS - 1 - MOST_CONTROLS} more.")
    text = report.page()[0]
    assert f"Of {CONTROLS} controls these are the {MOST_CONTROLS} that do best against grown_0" in text


def test_a_plan_has_the_speed_up_over_a_control_that_no_table_has(tmp_path):
    folder = write_sweep(tmp_path / "s", FACTORS | {"scratch_tuned": 3.0})
    (row,) = (row for row in Report(folder).only().rows if row.run == "grown_0")
    assert "scratch_tuned" in row.further
    assert {points.baseline for points in own_fits(folder).gains} == {"(scratch)", "(scratch_tuned)"}


def test_tables_of_many_runs_leave_the_charts_their_points(report, monkeypatch):
    monkeypatch.setattr(page, "MOST_BYTES", 0)
    (points,) = re.findall(r"Curves have at most (\d+) points", report.page()[0])
    assert int(points) >= 125
    monkeypatch.setattr(page, "LEAST_BYTES", 0)
    assert "Curves have at most 7 points" in report.page()[0]


def test_files_of_runs_that_are_not_drawn_are_not_in_the_page(report):
    text = report.page()[0]
    assert text.count("<summary>config of ") == MOST_RUNS
    assert text.count(f"Those of {len(FACTORS) - MOST_RUNS} more runs lie in their folders.") == 2  # growths, configs
