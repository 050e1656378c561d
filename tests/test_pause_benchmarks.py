"""The benchmarks of compiling and of growth's pause print what they measure; the figure shows two runs."""

import contextlib
import importlib
import io
import json
import statistics
from pathlib import Path

import numpy as np
import pytest
from trees import exact_products

from growlm.training.config import build_run, load_config
from growlm.training.stages import resolve

BENCHMARKS = Path(__file__).resolve().parents[1] / "experiments" / "benchmarks"
TINY = ["--embed=16", "--heads=2", "--mlp=24", "--vocab=16", "--batch=2", "--length=8"]


@pytest.fixture(scope="module")
def scripts():
    """Imports a file of experiments/benchmarks, as a script there would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module


def output(script, *arguments):
    """What it prints: the lines of text, and the record."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), exact_products():
        assert script.main(arguments) == 0
    *text, record = printed.getvalue().splitlines()
    return text, json.loads(record)


def refused(script, capsys, *arguments):
    assert script.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1
    return printed.err


# --- Compile time ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_compile_time_prints_a_row_and_a_ratio_for_each_depth(scripts):
    cases = ["--case=growth, direct", "--case=step of learn"]
    text, record = output(scripts("compile_time"), *TINY, "--layers=6", "--layers=2", "--rounds=3", *cases)
    assert [case["case"] for case in record["cases"]] == ["growth, direct", "step of learn"]
    for case in record["cases"]:
        (line,) = [line for line in text if line.startswith(case["case"])]
        few, many = case["layers"]["2"], case["layers"]["6"]
        assert set(few["times"]["processor"].values()) == {1.0}
        spread = many["times"]["processor"]
        assert 0 < spread["min"] <= spread["median"] <= spread["max"]
        assert f"{spread['median']:.2f} ({spread['min']:.2f} to {spread['max']:.2f})" in line
        assert 0 < few["tracing"] < few["processor"] and few["instructions"] > 50


def test_a_ratio_is_of_neighbours_in_a_round(scripts):
    script = scripts("compile_time")
    clock = {4: [1.0, 10.0, 2.0], 48: [2.0, 11.0, 1.0]}
    timings = {depth: [script.Timing(seconds, 1, 1, 1) for seconds in times] for depth, times in clock.items()}
    assert script.ratio(timings, 48, "clock") == {"min": 0.5, "median": 1.1, "max": 2.0}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--layers=4"], ("4 alone", "two depths")),
        (["--layers=3", "--layers=8"], ("--layers is 3", "even")),
        (["--embed=12", "--heads=4"], ("--embed is 12", "even multiples of --heads, 4")),
        (["--case=all"], ("'all'", "growth, direct")),
        (["--rounds=0"], ("--rounds", "'0'")),
    ],
)
def test_bad_arguments_of_compile_time_are_one_line_that_names_them(scripts, capsys, arguments, named):
    error = refused(scripts("compile_time"), capsys, *TINY, *arguments)
    assert all(name in error for name in named), error


# --- The pause -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_pause_is_that_of_a_run_less_its_growth_in_steps(scripts):
    text, record = output(scripts("growth_pause"), "--steps=2", "--batch=2", "--length=8", "--runs=1")
    (run,) = record["by_run"]
    assert run["steps"] == pytest.approx((run["pause"] - run["growth"]) / run["step"])
    assert run["pause"] > run["growth"] > 0 and run["step"] > 0 and record["median"] == run
    assert f"{run['steps']:.2f}" in next(line for line in text if line.startswith("median"))


def test_bad_arguments_of_the_pause_are_one_line_that_names_them(scripts, capsys):
    assert "'squash'" in refused(scripts("growth_pause"), capsys, "--growth=squash")
    assert "'0'" in refused(scripts("growth_pause"), capsys, "--steps=0")


# --- The figure ------------------------------------------------------------------------------------------------------


def records(losses, **more):
    """Of six steps, grown after three."""
    begin = [{"stage": 0, "step": 0, "loss": None, "val_loss": 6.0}]
    rest = [{"stage": int(step > 3), "step": step, "loss": loss} for step, loss in enumerate(losses, 1)]
    grown = {"stage": 1, "step": 3, "loss": None, "val_loss": 4.0}
    return [*begin, *rest[:3], grown, *rest[3:-1], rest[-1] | {"val_loss": 2.0} | more]


def test_the_figure_has_both_runs_their_difference_and_the_growth(scripts):
    script = scripts("one_and_eight")
    one = [5.0, 4.0, 3.0, 3.0, 2.5, 2.0]
    other = [loss * (1 + by) for loss, by in zip(one, [0, 1e-7, 1e-6, 1e-6, 1e-5, 1e-3], strict=True)]
    runs = {script.ONE: records(one), script.EIGHT: records(other, val_loss=2.2)}
    above, below = script.draw(runs).axes
    drawn = {line.get_label(): line.get_ydata() for line in above.lines}
    np.testing.assert_array_equal(drawn[f"training, {script.ONE}"], one)
    np.testing.assert_array_equal(drawn[f"training, {script.EIGHT}"], other)
    np.testing.assert_array_equal(drawn[f"validation, {script.EIGHT}"], [6.0, 4.0, 2.2])
    by = {line.get_label(): line.get_ydata() for line in below.lines}
    np.testing.assert_allclose(by["training"][1:], [1e-7, 1e-6, 1e-6, 1e-5, 1e-3], rtol=1e-6)
    assert by["validation"][-1] == pytest.approx(0.1)
    assert all(any(set(line.get_xdata()) == {3} for line in axes.lines) for axes in (above, below))
    found = script.summary(runs)
    assert found["training_most"] == pytest.approx(1e-3) and found["training_median"] == np.median(
        [abs(b - a) / a for a, b in zip(one, other, strict=True)]
    )
    assert found["validation_most"] == pytest.approx(0.1) and (found["first_loss"], found["last_loss"]) == (5.0, 2.0)
    assert statistics.median(by["training"]) > 0


def test_the_runs_of_the_figure_differ_in_their_mesh_alone():
    path = BENCHMARKS / "one_and_eight.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        one, eight = (load_config(f"{path}:{mesh}:8", []) for mesh in ("1x1x1", "2x2x2"))
    meshes = [config.pop("mesh") for config in (one, eight)]
    assert one == eight and [list(mesh.values()) for mesh in meshes] == [[1, 1, 1], [2, 2, 2]]
    assert [stage.steps for stage in resolve(build_run(one), "")] == [4, 4]


def test_bad_arguments_of_the_figure_are_one_line_that_names_them(scripts, capsys, tmp_path):
    script = scripts("one_and_eight")
    assert "there.jpg" in refused(script, capsys, str(tmp_path / "there.jpg"))
    assert "no/a.png" in refused(script, capsys, str(tmp_path / "no" / "a.png"))
    assert "--steps is 1" in refused(script, capsys, str(tmp_path / "a.png"), "--steps=1")
