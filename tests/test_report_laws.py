"""The valleys of growth timing and factor, and the law through their minima, as figures and on the page."""

import csv
import json

import numpy as np
import pytest
from test_fit import best_tokens, timing_sweep, write_run

from growlm.report import law_figures
from growlm.report.drawing import draw
from growlm.report.figures import as_csv
from growlm.report.records import read_groups
from growlm.report.report import report_page, write_report


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("timing")
    timing_sweep(folder)
    return folder


@pytest.fixture(scope="module")
def fit(planted):
    (found,) = law_figures.growth_fits(read_groups(planted))
    return found


def test_the_parabola_is_that_of_the_losses_and_the_mark_its_minimum(fit):
    figure = law_figures.parabola_figure(fit)
    curves = [one for one in figure.series if one.style == "fit"]
    points = [one for one in figure.series if one.style == "points"]
    assert len(curves) == len(points) == len(fit.slices) >= 4
    for curve, measured, one in zip(curves, points, fit.slices, strict=True):
        (mark,) = curve.marks
        x, y = curve.columns["grown_at"], curve.columns["val_loss"]
        assert mark.y <= y.min() + 1e-12 and mark.y == pytest.approx(y.min(), abs=1e-3)
        assert mark.x["grown_at"] == one.best.value and mark.span == (one.best.low, one.best.high)
        assert mark.x["grown_at"] == pytest.approx(best_tokens(one.params, one.flops), rel=0.05)
        heights = np.interp(np.log(measured.columns["grown_at"]), np.log(x), y)
        assert np.abs(heights - measured.columns["val_loss"]).max() < 0.01
    assert "2 seeds at every value" in figure.note


def test_a_parabola_is_at_the_mean_height_of_its_seeds(fit):
    one = fit.slices[0]
    fitted = np.polyval(one.parabola, np.log10(one.x))
    assert np.mean(fitted) == pytest.approx(np.mean(one.loss), abs=1e-9)


def test_the_law_goes_through_its_points(fit):
    figure = law_figures.law_figure(fit)
    points = {one.label: one for one in figure.series if one.style == "points"}
    laws = {one.label: one for one in figure.series if one.style == "fit"}
    assert len(points) == len(laws) == 3  # sizes
    for label, one in points.items():
        on_law = np.interp(one.columns["flops"], laws[label].columns["flops"], laws[label].columns["grown_at"])
        assert on_law == pytest.approx(one.columns["grown_at"], rel=0.1)
        assert (one.columns["low"] <= one.columns["grown_at"]).all()
        assert (one.columns["grown_at"] <= one.columns["high"]).all()
        assert laws[label].columns["flops"].max() == one.columns["flops"].max()  # nothing is extrapolated
    rows = list(csv.DictReader(as_csv(figure).splitlines()))
    assert {row["kind"] for row in rows} == {"measured", "fitted"} and float(rows[0]["low"]) > 0


def test_both_are_drawn_and_on_the_page(planted, fit):
    for figure in (law_figures.parabola_figure(fit), law_figures.law_figure(fit)):
        (axes,) = draw(figure, figure.x[0]).axes
        assert axes.get_xscale() == "log" and len(axes.lines) >= len(figure.series)
    page = write_report(planted).read_text()
    assert 'id="chart-timing_valley"' in page and 'id="chart-timing_law"' in page
    assert "log10 d = a log10 N" in page and "No law yet" not in page
    assert {"timing_valley.png", "timing_valley.csv", "timing_law.png"} <= {path.name for path in planted.iterdir()}


def test_too_few_points_say_in_one_line_what_is_missing(tmp_path):
    timing_sweep(tmp_path, sizes=(64,), seeds=(0,))
    (found,) = law_figures.growth_fits(read_groups(tmp_path))
    assert found.fit is None and "1 more size" in found.missing and "\n" not in found.missing
    page = report_page(tmp_path)[0]
    assert "No law yet: the timing law needs" in page and 'id="chart-timing_valley"' in page
    assert "1 seed at every value" in page


def test_runs_that_differ_in_the_operator_or_do_not_grow_tell_of_no_law(tmp_path):
    for name, order in (("a", "stack"), ("b", "interleave")):
        growth = {"operator": "direct", "options": {"order": order}}
        write_run(tmp_path / name, lambda *_: 3.0, grown_at=1e5 if name == "a" else 2e5, growth=growth)
    assert law_figures.growth_fits(read_groups(tmp_path)) == []
    assert "When and how to grow" not in report_page(tmp_path)[0]


def test_runs_that_differ_in_the_factor_tell_of_that(tmp_path):
    for layers in (1, 2, 4, 6):
        write_run(tmp_path / str(layers), lambda n, c, d, g: 3 + 0.1 * np.log(g / 4) ** 2, 64, 1e5, (layers, 12), 2e6)
    (found,) = law_figures.growth_fits(read_groups(tmp_path))
    assert found.law == "factor" and law_figures.parabola_figure(found).x[0].key == "factor"


def factor_sweep(folder, embed, grown_at, growth=None):
    options = {"growth": growth} if growth else {}
    for layers in (1, 2, 3, 4, 6):
        home = folder / str(layers)
        write_run(home, lambda n, c, d, g: 3 + 0.1 * np.log(g / 4) ** 2, embed, grown_at, (layers, 12), 2e6, **options)
    runs = {str(layers): {"status": "done", "stages": []} for layers in (1, 2, 3, 4, 6)}
    (folder / "sweep.json").write_text(json.dumps({"title": folder.name, "grown": [*runs], "runs": runs}))


def test_the_factor_is_fitted_over_sizes_that_grow_at_times_of_their_own(tmp_path):
    factor_sweep(tmp_path / "a-0", 64, 1e5)
    factor_sweep(tmp_path / "b-0", 32, 5e4)
    (found,) = law_figures.growth_fits(read_groups(tmp_path))
    assert found.fit is not None and len({one.params for one in found.slices}) == 2
    factor_sweep(tmp_path / "c-0", 64, 2e5)  # at one size another time is another question
    assert len(law_figures.growth_fits(read_groups(tmp_path))) == 2


def test_a_preset_is_what_it_stands_for_where_a_report_of_the_growth_says_it(tmp_path):
    factor_sweep(tmp_path / "a-0", 64, 1e5, {"operator": "direct", "options": {"order": "stack"}})
    factor_sweep(tmp_path / "b-0", 32, 5e4, {"operator": "g_stack", "options": {}})
    assert len(law_figures.growth_fits(read_groups(tmp_path))) == 2
    for run in (tmp_path / "b-0").glob("[0-9]"):
        (run / "growth-1.json").write_text(json.dumps({"operator": "direct", "options": {"order": "stack"}}))
    assert len(law_figures.growth_fits(read_groups(tmp_path))) == 1


def test_a_seed_of_which_a_run_is_missing_is_left_out(tmp_path):
    names = {f"after_{share}": 1e5 * share for share in (1, 2, 4, 8)}
    for seed in (0, 1):
        home = tmp_path / f"cpu-{seed}"
        for name, grown_at in names.items():
            write_run(home / name, lambda n, c, d, g: 3 + 0.1 * np.log(d / 3e5) ** 2, grown_at=grown_at, seed=seed)
        runs = {name: {"status": "done", "stages": []} for name in names}
        (home / "sweep.json").write_text(json.dumps({"title": "t", "grown": list(names), "runs": runs}))
    (found,) = law_figures.growth_fits(read_groups(tmp_path))
    assert {len(one.x) for one in found.slices} == {8}
    runs["after_4"]["status"] = "pending"
    (home / "sweep.json").write_text(json.dumps({"title": "t", "grown": list(names), "runs": runs}))
    (found,) = law_figures.growth_fits(read_groups(tmp_path))
    assert {len(one.x) for one in found.slices} == {4}
    assert "1 seed at every value" in law_figures.parabola_figure(found).note
