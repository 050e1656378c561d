"""The figures of a report: where growth is marked, what they show of a run that has only begun, and which there are."""

import io
import json

import numpy as np
import pytest
from matplotlib.image import imread
from studies import write_run
from test_report import AXES, Page, curves_of, data_of, page_of, sweep

from growlm.report import drawing
from growlm.report.charts import loss_figure
from growlm.report.records import read_groups
from growlm.report.report import summarise, write_report
from growlm.report.style import DARK, LIGHT

__all__ = ["sweep"]  # a fixture


def draw(folder, axis):
    return drawing.draw(loss_figure(read_groups(folder)[0]), AXES[axis])


def growth_ticks(figure):
    """The cost at each tick that marks a growth."""
    return [c.get_segments()[0][0][0] for c in figure.axes[0].collections if c.get_gid() == "growth"]


@pytest.mark.parametrize(("axis", "cost"), [("flops", 6e8), ("tokens", 1e5), ("seconds", 1e3)])
def test_growth_is_marked_where_the_stage_goes_up(sweep, axis, cost):
    figure = draw(sweep, axis)
    size = 3600 if axis == "seconds" else 1
    assert growth_ticks(figure) == [pytest.approx(cost / size)]
    low, high = figure.axes[0].get_xlim()
    assert low < cost / size < high
    assert "layers 2 → 8" in [text.get_text() for text in figure.axes[0].texts]


def test_the_window_lies_over_the_ends_and_every_run_is_named(sweep):
    rows = summarise(sweep)
    for axis in AXES:
        figure = draw(sweep, axis)
        axes = figure.axes[0]
        low, high = axes.get_ylim()
        finals = [row.val_loss for row in rows]
        assert low < min(finals) and high < 9  # the curves start at 10
        assert (max(finals) - min(finals)) / (high - low) > 0.05
        assert axes.get_xscale() == ("log" if axis == "flops" else "linear")
        assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == [
            "scratch (baseline)",
            "grown (grown)",
        ]
        named = [text.get_text() for text in axes.texts]
        assert all(f"{row.run} {row.val_loss:.3f}" in named for row in rows)


def test_names_at_the_ends_do_not_overlap():
    places = drawing._spread(np.array([1.0, 1.001, 1.002, 1.9]), 0.9, 2.0)
    assert np.diff(places).min() >= 0.06 * 1.1 - 1e-9 and places[0] >= 0.9


@pytest.mark.filterwarnings("error")
def test_a_run_that_has_only_begun_is_no_trouble(sweep):
    path = sweep / "control" / "metrics.jsonl"
    first = json.loads(path.read_text().splitlines()[0])
    path.write_text(json.dumps(first | {"flops": 0.0, "tokens": 0, "seconds": 0.0, "val_loss": 10.0}) + "\n")
    write_report(sweep)
    assert "control 10.000" in [text.get_text() for text in draw(sweep, "tokens").axes[0].texts]
    assert "control 10.000" not in [text.get_text() for text in draw(sweep, "flops").axes[0].texts]


def test_training_loss_is_drawn_while_there_is_no_validation(tmp_path):
    write_run(tmp_path / "r", [(8, 1e6)])
    path = tmp_path / "r" / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({k: r[k] for k in r if k != "val_loss"}) + "\n" for r in records))
    assert draw(tmp_path / "r", "tokens").axes[0].get_ylabel().startswith("training loss")
    assert summarise(tmp_path / "r")[0].val_loss is None


def test_the_dark_figure_is_dark(sweep):
    figure = loss_figure(read_groups(sweep)[0])
    light, dark = (imread(io.BytesIO(drawing.png(figure, AXES["flops"], theme))) for theme in (LIGHT, DARK))
    assert light.shape == dark.shape
    assert light[..., :3].mean() > 0.8 and dark[..., :3].mean() < 0.25


def test_learning_rate_gradient_norm_and_throughput_are_charts_with_their_growths(sweep):
    for path in sweep.glob("*/metrics.jsonl"):
        records = [json.loads(line) | {"grad_norm": 0.5} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    figures = data_of(Page(write_report(sweep).read_text()))
    for name, value in (("learning_rate", 1e-3), ("gradient_norm", 0.5), ("throughput", 100)):
        assert {y for curve in curves_of(figures[name]).values() for y in curve["y"]} == {value}
        assert len(curves_of(figures[name])) == 4 and len(figures[name]["layout"]["shapes"]) == 1
        assert (sweep / f"{name}.png").stat().st_size > 5000 and (sweep / f"{name}.csv").exists()
    assert figures["gradient_norm"]["layout"]["yaxis"]["type"] == "log"


def test_what_is_not_recorded_has_no_chart(sweep):
    assert "gradient_norm" not in data_of(page_of(sweep))


def test_the_growth_of_a_run_without_a_report_is_read_off_its_config(sweep):
    (sweep / "grown" / "growth-1.json").unlink()
    stages = [{"model": {"layers": layers, "embed": 64}} for layers in (2, 8)]
    (sweep / "grown" / "config.json").write_text(json.dumps({"stages": stages}))
    assert "layers 2 → 8" in [text.get_text() for text in draw(sweep, "flops").axes[0].texts]
