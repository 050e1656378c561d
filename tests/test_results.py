"""The tables in the pages are what the records give."""

import dataclasses
import re
import runpy
from pathlib import Path

import pytest

from growlm.laws.evidence import OUR_MUON, OURS
from growlm.report.compare import rows
from growlm.report.records import read_groups
from growlm.report.report import report_page
from growlm.report.search import searches

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def results():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "experiments" / "study")
        return runpy.run_path(str(ROOT / "experiments" / "study" / "results.py"))


def test_every_table_of_a_page_is_what_the_records_give(results):
    assert {str(page): [*results["differing"](page)] for page in results["PAGES"]} == {
        str(page): [] for page in results["PAGES"]
    }
    pages = "".join(page.read_text(encoding="utf-8") for page in results["PAGES"])
    assert sorted(re.findall(r"<!-- results: (\w+) -->", pages)) == sorted(results["TABLES"])


def test_a_number_that_is_not_the_records_is_named_and_made_again(results, tmp_path):
    page = tmp_path / "page.md"
    table = results["TABLES"]["factor_minima"]()
    other = table.replace("4.18", "4.81")
    page.write_text(f"Text.\n\n<!-- results: factor_minima -->\n\n{other}\n\n<!-- end of results -->\nMore.\n")
    assert [*results["differing"](page)] == ["factor_minima"]
    results["renew"](page)
    text = page.read_text()
    assert not [*results["differing"](page)] and table in text and "4.18 [3.58, 4.66]" in table
    assert text.startswith("Text.\n") and text.endswith("\nMore.\n")


def test_a_table_says_what_a_hand_reads_off_the_records(results):
    group = read_groups(ROOT / "experiments" / "records" / "operators")[0]
    losses = [run.metrics[-1]["val_loss"] for run in group.each("direct_depth").values()]
    row = next(line for line in results["TABLES"]["operators"]().splitlines() if "G_stack" in line)
    assert ", ".join(f"{loss:.3f}" for loss in losses) in row and f"| {sum(losses) / 3:.3f} |" in row
    assert f"{group.first.commit[:7]}" in results["TABLES"]["operators"]()


def test_a_difference_between_treatments_is_what_a_hand_reads_off_the_records(results):
    group = read_groups(ROOT / "experiments" / "records" / "optimizer_state")[0]
    table = results["TABLES"]["optimizer_state"]()

    def less(step, one, other):
        """One step after growth, or at the end: the loss of one treatment less that of another, of every seed."""
        pairs = zip(group.each(one).values(), group.each(other).values(), strict=True)
        return [
            mine["val_loss"] - his["val_loss"]
            for pair in pairs
            for mine, his in [[next(m for m in run.metrics[::-1] if step in (None, m["step"])) for run in pair]]
        ]

    row = next(line for line in table.splitlines() if line.startswith("| copies_depth: map less reset |"))
    first, last = (less(step, "copies_depth_map", "copies_depth_reset") for step in (274, None))
    assert f"| {sum(first) / 3:+.3f} [" in row and ", ".join(f"{loss:+.3f}" for loss in last) in row
    assert f"| {sum(last) / 3:+.3f} [" in row and row.endswith("| -3 % [-17, 12] |")
    growths = ("copies_depth", "copies_width", "zero_depth", "zero_width")
    each = zip(*(less(None, f"{growth}_map", f"{growth}_reset") for growth in growths), strict=True)
    means = [sum(seed) / 4 for seed in each]
    row = next(line for line in table.splitlines() if line.startswith("| all four: map less reset |"))
    assert f"{means[0]:+.3f}, " in row and f"{means[2]:+.3f} |" in row and f"{sum(means) / 3:+.3f} [" in row


def test_a_study_that_was_started_by_several_commands_has_them_all(results):
    group = read_groups(ROOT / "experiments" / "records" / "noise")[0]
    (name, first), *others = group.studies.items()
    first = dataclasses.replace(first, command="growlm sweep --a\ngrowlm sweep --b", commit="abcdef0123, 0123456789+")
    said = results["made"](dataclasses.replace(group, studies={name: first, **dict(others)}))
    assert said.startswith("Made by `growlm sweep --a` and `growlm sweep --b`, and 2 seeds more; ")
    assert "; commit abcdef0, 0123456, " in said


@pytest.mark.parametrize(
    ("study", "number", "run", "said"),
    [
        ("operators_small", 0, "direct_depth", OURS.points[1]),
        ("operators_small_modern", 0, "direct_depth", OUR_MUON.points[0]),
        ("ladder", 0, "grown", OUR_MUON.points[1]),
        ("ladder", 1, "grown", OUR_MUON.points[2]),
        ("ladder", 2, "grown", OUR_MUON.points[3]),
    ],
)
def test_what_a_plan_says_was_measured_here_is_what_the_records_give(study, number, run, said):
    group = read_groups(ROOT / "experiments" / "records" / study)[number]
    (row,) = (row for row in rows(group) if row.run == run)
    assert (said.low, said.high) == (round(row.gain.speedup.low, 2), round(row.gain.speedup.high, 2))
    (stage,) = next(iter(group.each("scratch").values())).stages
    assert (said.flops, said.tokens) == pytest.approx((stage["flops"], stage["tokens"]), rel=0.02)


def test_the_rates_of_the_ladder_are_those_about_the_best_of_its_searches():
    tried = runpy.run_path(str(ROOT / "experiments" / "ladder.py"))["TRIED"]
    groups = read_groups(ROOT / "experiments" / "records" / "ladder_search")
    assert len(groups) == 2
    for rung, group in enumerate(groups):
        (search,) = searches(group)
        for arm, of_run in search["runs"].items():
            losses = {one["value"]: one["val_loss"] for one in of_run["tries"]}
            about = [rate for rate in losses if 0.4 < rate / of_run["chosen"] < 2.5]
            assert tried[arm][rung] == pytest.approx({rate: losses[rate] for rate in about}, abs=6e-5)


def test_every_picture_is_a_figure_of_its_study(results):
    for file, (study, figure, axis) in results["FIGURES"].items():
        assert (results["DOCS"] / file).exists()
        if study == "novels":  # the others take seconds each
            named = {one.name: one for one in report_page(ROOT / "experiments" / "records" / study)[1]}
            assert axis in [one.key for one in named[figure].x]
