"""`growlm plan`: the plan, its words, and the experiment that it writes."""

import argparse
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import image
from studies import write_seeds
from test_fit import best_tokens, timing_sweep

from growlm.__main__ import main
from growlm.commands import options
from growlm.commands.plan import describe
from growlm.errors import InputError
from growlm.laws import REANALYSIS, growth_timing, optimal_vocabulary, plan, step_law_rate
from growlm.laws.compute import CHIPS, exact_flops_per_token
from growlm.laws.evidence import PUBLISHED, TUNED
from growlm.laws.published import FACTOR, TIMING, law_at
from growlm.laws.shapes import shape_for
from growlm.models import ModelConfig, matmul_parameter_count, parameter_count
from growlm.report.contours import QUANTITIES, contours, plan_figure
from growlm.report.own import own_fits
from growlm.report.tables import read_table
from growlm.training.config import build_run, load_config
from growlm.training.systems import written_out
from growlm.training.variants import build_sweep

ROOT = Path(__file__).resolve().parents[1]
LADDERS = ROOT / "experiments/published/fineweb_ladders.csv"
PAPERS = 7e9, 300e9
DEMOS = {"params": 4.35e5, "tokens": 2.8e6, "vocab": 256, "length": 128}


@given(st.floats(5, 11.7), st.sampled_from([2, 3, 4, 6]), st.sampled_from([256, 32_000, 128_000]))
@settings(deadline=None, max_examples=40)
def test_shapes_are_models_of_about_that_size_whose_layers_the_factor_divides(log_params, factor, vocab):
    params = 10**log_params
    try:
        shape = shape_for(params, factor, vocab)
    except InputError as error:
        assert params < 3 * 64 * 2 * vocab or vocab == 256, error  # the vocabulary alone is too large
        return
    model = ModelConfig(**shape.sizes())
    assert parameter_count(model) == shape.params == pytest.approx(params, rel=0.2)
    assert matmul_parameter_count(model) == shape.matmul_params
    base = dataclasses.replace(model, layers=model.layers // factor)
    assert model.layers % factor == 0 and base.layers >= 2
    assert parameter_count(base) == shape.shallower(factor).params


def test_the_shapes_of_llama_come_out():
    seven, thirteen = (shape_for(params, 4, 32_000) for params in (7e9, 13e9))
    assert (seven.layers, seven.embed, seven.heads, seven.mlp) == (32, 4096, 32, 11008)
    assert (thirteen.layers, thirteen.embed, thirteen.heads, thirteen.mlp) == (40, 5120, 40, 13824)


def test_the_grown_run_costs_what_scratch_costs():
    for found in (plan(*PAPERS), plan(1.1e9, 1e11), plan(**DEMOS)):
        assert found.before.flops + found.after.flops == pytest.approx(found.scratch.flops)
        assert found.before.flops == 6 * found.before.shape.params * found.before.tokens
        assert 0 < found.after.tokens < found.scratch.tokens


def test_the_plan_grows_when_the_paper_says_and_by_four():
    found = plan(*PAPERS)
    with pytest.warns():
        assert found.before.tokens == pytest.approx(growth_timing(7e9, 6 * 7e9 * 300e9))
    assert found.factor == 4 and (found.before.shape.layers, found.after.shape.layers) == (8, 32)
    assert any("above the range" in line for line in found.caveats)


def test_rates_are_step_laws_at_both_sizes_for_all_tokens():
    found = plan(1.2e9, 1e11)
    for phase in (found.before, found.after):
        assert phase.peak_lr == pytest.approx(step_law_rate(phase.shape.block_params, 1e11))
    assert found.after.peak_lr / found.before.peak_lr == pytest.approx(4**-0.713)
    assert found.after.batch * found.length == pytest.approx(0.58 * 1e11**0.571, rel=0.42)  # to a power of two


def test_inside_of_all_ranges_there_is_nothing_to_caution_of():
    (saving,) = plan(1e9, 1e11).caveats
    assert saving.startswith("saving by arXiv 2609.19107: EXTRAPOLATED, 5.38 times above")


def test_small_runs_get_a_share_of_compute_and_no_expected_loss():
    found = plan(**DEMOS)
    assert found.before.flops == pytest.approx(0.05 * found.scratch.flops)
    assert found.loss is None and found.null is None
    for said in ("explodes at small budgets", "which is a guess", "Step Law: N", "loss: D"):
        assert any(said in line for line in found.caveats), said
    assert found.after.peak_lr < 0.01


def test_the_expected_loss_and_the_null_hypothesis():
    found = plan(*PAPERS)
    low, high = found.loss
    assert low <= REANALYSIS.loss(found.after.shape.params, 300e9) <= high < low + 0.05
    assert 0 < found.null < 0.01


def gain_over(found, source):
    return next((one for one in found.gains if source in one.source), None)


def test_the_saving_is_what_was_measured_near_the_size_over_each_baseline():
    found = plan(1.1e9, 1e11)
    untuned = gain_over(found, "2405.15319")
    assert (untuned.low, untuned.high, untuned.inside) == (0.31, 0.55, True)
    assert "not tuned" in untuned.baseline and "decayed to zero" in gain_over(found, "2609.19107").baseline
    seven = gain_over(plan(*PAPERS), "2405.15319")
    assert (seven.low, seven.high) == (0.41, 0.55)
    assert seven.saved == pytest.approx((1 - 1 / 1.41, 1 - 1 / 1.55))
    assert any("nothing was measured near" in line for line in plan(70e9, 2e12).caveats)
    assert plan(1e12, 1e14).gains == () and "not known" in describe(plan(1e12, 1e14))


def test_growth_alone_is_the_published_table_between_its_budgets_and_a_range_beyond():
    column = {"family": "arm", "flops": "compute_flops", "loss": "val_loss"}
    table = read_table(LADDERS, tuple(column), column)
    for family in (TUNED.grown, TUNED.scratch):
        own = table["family"] == family.name
        assert family.flops == pytest.approx(table["flops"][own]) and family.loss == pytest.approx(table["loss"][own])
    assert TUNED.judgement.multipliers[[0, -1]] == pytest.approx([1.083, 1.182], abs=5e-4)  # growth_2026
    inside = TUNED.at(1e9, 2.987236e19)
    assert inside.low == inside.high == pytest.approx(0.140, abs=5e-4) and inside.inside
    far = TUNED.at(1e9, 1e22)
    assert 0.25 < far.low < far.high < 0.4 and not far.inside
    assert "89.7 times above" in far.how and "exponent says least" in far.how and "floor most" in far.how
    assert TUNED.at(1e9, 1e24) is None and TUNED.at(1e9, 1e15) is None


def test_the_vocabulary_stands_beside_that_of_its_law():
    found = plan(1.1e9, 1e11)
    shape = found.after.shape
    assert found.vocabulary == optimal_vocabulary(shape.block_params, shape.embed, 6 * 1.1e9 * 1e11)
    assert "32K are planned (--vocab), within the" in describe(found)
    assert "fewer than the" in describe(plan(*PAPERS)) and "more than the" in describe(plan(1e8, 1e10))


def test_ones_own_fits_take_the_place_of_the_published_ones(tmp_path):
    timing_sweep(tmp_path / "timing")
    own = own_fits(tmp_path)
    known = sorted({one.params for one in own.timing.slices})
    params, flops = known[0], own.timing.slices[3].flops
    found = plan(params, flops / (6 * params), own=own, vocab=256, length=16)
    assert found.before.tokens == found.timing.value == pytest.approx(best_tokens(params, flops), rel=0.05)
    assert found.timing.low < found.timing.value < found.timing.high
    assert not any("your law is EXTRAPOLATED" in line for line in found.caveats)
    words = " ".join(describe(found).split())
    assert "by YOUR law, 12 of 12 slices" in words and "factor: not yours, no runs in" in words
    assert found.factor == 4 and found.measured is PUBLISHED
    far = plan(1e9, 2e10, own=own)
    assert any("C = 1.2e+20 is" in line and "above your runs'" in line for line in far.caveats)
    near, away = (one.timing.high / one.timing.low for one in (found, far))
    assert math.log(away) > 5 * math.log(near)  # the runs are planted without noise


def test_ones_own_speedups_are_over_scratch_and_over_tuned_scratch(tmp_path):
    factors = [{"scratch": 1.0, "grown": 0.5, "grown_b": 0.8, "scratch_tuned": 0.7} for _ in range(2)]
    write_seeds(tmp_path, factors)
    own = own_fits(tmp_path)
    scratch, tuned = own.gains
    assert (scratch.baseline, tuned.baseline) == ("(scratch)", "(scratch_tuned)")
    (point,) = scratch.points
    assert point.low == pytest.approx(1.0, rel=1e-2) and "grown of 'A <study> of & growth'" in point.note
    assert "best of 2, 2 seeds" in point.note
    assert tuned.points[0].low == pytest.approx(0.7 / 0.5 - 1, rel=1e-2)
    assert own.timing is None and own.factor is None and set(own.missing) == {"timing", "factor"}
    gain = scratch.at(4000, point.flops)
    assert gain.inside and gain.low == point.low
    assert plan(1e9, 1e11, own=own).measured is PUBLISHED  # too far from these runs


def test_the_contours_are_those_of_the_law_and_hold_the_plan():
    figure = plan_figure(plan(1.1e9, 1e11))
    for one in figure.series:
        if one.name.startswith("d = "):
            at = np.isfinite(one.columns["params"])
            tokens = law_at(TIMING, one.columns["params"][at], one.columns["flops"][at])
            assert tokens == pytest.approx(options.positive(one.name.removeprefix("d = ")), rel=5e-3)
            assert (6 * one.columns["params"][at] * tokens < 1.01 * one.columns["flops"][at]).all()
    (mark,) = next(one for one in figure.series if one.name == "the plan").marks
    assert (mark.x["flops"], mark.y) == (pytest.approx(6.6e20), 1.1e9) and "11.4B" in mark.text


def test_the_contours_of_the_factor_are_those_of_equation_50():
    figure = contours("factors", QUANTITIES["factor"], FACTOR, (1.1e9, 3e9), (1e20, 1e22), "equation 50")
    lines = [one for one in figure.series if one.name.startswith("g = ")]
    assert len(lines) > 2 and not any("whole run" in one.name for one in figure.series)
    for one in lines:
        at = np.isfinite(one.columns["params"])
        factors = law_at(FACTOR, one.columns["params"][at], one.columns["flops"][at])
        assert factors == pytest.approx(float(one.name.removeprefix("g = ")), rel=5e-3)


def test_the_command_takes_records_and_draws_a_figure(tmp_path, capsys):
    picture, records = tmp_path / "when.png", ROOT / "experiments/records"
    given = ["plan", "--params=4.35e5", "--tokens=2.8e6", "--vocab=256", "--length=128"]
    assert main([*given, f"--records={records}", f"--figure={picture}"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    for said in (
        "385K [316K, 500K] tokens by YOUR law, 5 of 8 slices",
        "YOURS is 3.769",
        "over scratch (scratch_tuned)",
    ):
        assert said in words, said
    assert image.imread(picture).std() > 0.05
    assert main([*given, f"--figure={picture}"]) == 2 and main([*given, f"--records={tmp_path}"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "--figure must be a new .png file" in errors[0] and "must be a run or a sweep" in errors[1]


def test_hours_follow_from_exact_flops_chips_and_mfu():
    found = plan(*PAPERS, chip="v5e", count=256, mfu=0.5)
    shape, hardware = found.after.shape, found.hardware
    per_token = exact_flops_per_token(matmul_parameter_count(ModelConfig(**shape.sizes())), 32, 32, 128, 2048)
    seconds = per_token * found.after.tokens / (0.5 * 197e12 * 256)
    assert hardware.hours_after == pytest.approx(seconds / 3600)
    assert hardware.device_hours == pytest.approx(256 * (hardware.hours_before + hardware.hours_after))
    assert hardware.cost_class == "cluster" and hardware.fsdp == 16
    state = 16 * found.after.shape.params
    assert state / 16 <= 8 * 2**30 < state / 8
    assert plan(*PAPERS, chip="v5e", count=256).hardware.device_hours == pytest.approx(hardware.device_hours / 0.8)


@given(st.floats(8, 11.3), st.integers(1, 600), st.sampled_from(sorted(CHIPS)))
@settings(deadline=None, max_examples=30)
def test_what_is_planned_can_be_laid_out_on_the_devices(log_params, count, chip):
    found = plan(10**log_params, 20 * 10**log_params, chip=chip, count=count)
    hardware, batch = found.hardware, found.after.batch
    assert count % hardware.fsdp == 0
    assert batch % hardware.microbatches == 0
    shared = batch // hardware.microbatches % count == 0
    assert shared or any("cannot be shared out" in line for line in found.caveats)
    fits = 16 * found.after.shape.params / hardware.fsdp <= CHIPS[chip].hbm_bytes / 2
    assert fits or any("memory" in line for line in found.caveats)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"params": -1.0}, "--params"),
        ({"tokens": math.nan}, "--tokens"),
        ({"chip": "v5"}, "did you mean 'v5e'|did you mean 'v5p'"),
        ({"count": 0}, "--count"),
        ({"mfu": 1.5}, "--mfu"),
        ({"factor": 1}, "--factor"),
        ({"params": 5e5}, "smaller --vocab"),
        ({"tokens": 1e5}, "more --tokens"),
    ],
)
def test_bad_input_is_one_line(change, said):
    with pytest.raises(InputError, match=said) as error:
        plan(**({"params": 1e9, "tokens": 1e11} | change))
    assert "\n" not in str(error.value)


def test_the_words_say_what_the_plan_says():
    text = describe(plan(*PAPERS, chip="v5e", count=256))
    words = " ".join(text.split())
    for said in ("20.5B", "1.26e22", "6.04e-4", "29% to 35%", "+41% to +55%", "MFU of 0.40", "43,583 device-hours"):
        assert said in words, said
    assert max(map(len, text.splitlines())) <= 110


def test_the_command_writes_an_experiment_that_is_the_plan(tmp_path, capsys):
    path = tmp_path / "mine.py"
    assert main(["plan", "--params=4.35e5", "--tokens=2.8e6", "--vocab=256", "--length=128", f"--write={path}"]) == 0
    assert f"written: {path}" in capsys.readouterr().out
    sweep = build_sweep(load_config(str(path), []))
    found = plan(**DEMOS)
    base, grown = sweep.runs["grown"].stages
    assert base.model == ModelConfig(**found.before.shape.sizes())
    assert base.tokens == pytest.approx(found.before.tokens, abs=2)
    assert grown.model == ModelConfig(**found.after.shape.sizes())
    assert grown.tokens == pytest.approx(found.after.tokens, abs=2)
    assert grown.growth.operator == "g_stack" and sweep.runs.keys() == {"grown", "scratch"}
    assert sweep.runs["scratch"].stages[0].tokens == round(found.scratch.tokens)
    assert grown.schedule.peak_lr == pytest.approx(found.after.peak_lr, rel=1e-2)
    assert base.schedule.kind == "constant" and base.schedule.warmup_tokens < base.tokens
    assert main(["sweep", f"--config={path}", f"--workdir={tmp_path / 'w'}", "--list"]) == 0
    assert "2 runs" in capsys.readouterr().out


@pytest.mark.slow
def test_the_experiment_of_a_large_plan_trains_when_scaled_down(tmp_path, capsys):
    path = tmp_path / "mine.py"
    options = ["--params=7e9", "--tokens=300e9", "--chip=v5e", "--count=256", "--corpus=some/text"]
    assert main(["plan", *options, f"--write={path}"]) == 0
    planned = build_sweep(load_config(str(path), [])).runs["grown"]
    assert planned.mesh.fsdp == 16 and planned.dtype == "bfloat16" and planned.corpus == "some/text"
    tiny = load_config(f"{path}:tiny", [])
    assert build_sweep(tiny).runs["grown"].stages[1].model.layers == 32
    steps = [(f"--config.runs.grown.stages[{number}].tokens={2 * 256}") for number in (0, 1)]
    config = f"--config={path}:tiny"
    assert main(["sweep", config, f"--workdir={tmp_path / 'w'}", "--run=grown", *steps]) == 0
    assert "grown" in capsys.readouterr().out
    with pytest.raises(InputError, match="is a sweep"):
        build_run(tiny)


def test_the_command_writes_the_experiment_of_a_system_by_its_name(tmp_path, capsys):
    path = tmp_path / "mine.py"
    options = ["--params=4.35e5", "--tokens=2.8e6", "--vocab=256", "--length=128", f"--write={path}"]
    assert main(["plan", *options, "--system=stackbert"]) == 0
    assert "stackbert      2 layers x" in capsys.readouterr().out
    grown = build_sweep(load_config(str(path), [])).runs["grown"]
    found = plan(**DEMOS)
    assert (grown.system, len(grown.stages)) == ("stackbert", 1)
    assert grown.stages[0].tokens == round(found.scratch.tokens)
    for variant in ("train", "train_tiny"):  # one run, for growlm train
        run = build_run(load_config(f"{path}:{variant}", []))
        assert [stage.model.layers for stage in written_out(run).stages] == [2, 4, 8]
    path.unlink()
    for system, message in (("stackbird", "did you mean 'stackbert'"), ("midas", "got 1.33333, 2.66667")):
        assert main(["plan", *options, f"--system={system}"]) == 2
        assert message in capsys.readouterr().err and not path.exists()
    assert main(["plan", "--params=1e9", "--tokens=1e9", "--system=midas"]) == 2
    assert "--system must be given with --write" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--write={}/mine.txt", "must be a new .py file"),
        ("--write={}/none/mine.py", "in a folder that exists"),
        ("--write={}/taken.py", "got '{}/taken.py'"),
        ("--chip=abacus", "got 'abacus'"),
        ("--count=two", "--count"),
        ("--tokens=-1", "--tokens: must be a positive number"),
    ],
)
def test_the_command_answers_bad_input_with_a_line_and_2(tmp_path, capsys, option, said):
    (tmp_path / "taken.py").write_text("x = 1\n")
    given = ["--params=1e9", *([] if "tokens" in option else ["--tokens=1e11"]), option.format(tmp_path)]
    assert main(["plan", *given]) == 2
    error = capsys.readouterr().err
    assert said.format(tmp_path) in error and error.count("\n") == 1
    assert (tmp_path / "taken.py").read_text() == "x = 1\n" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("text", "number"), [("7B", 7e9), ("1.1B", 1.1e9), ("435K", 4.35e5), ("2.8M", 2.8e6), ("1e3", 1e3)]
)
def test_sizes_may_be_written_as_people_say_them(text, number):
    assert options.positive(text) == pytest.approx(number, rel=1e-12)


@pytest.mark.parametrize("text", ["B", "-1B", "0M", "1BB", "nan", "", "1G"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="must be a positive number"):
        options.positive(text)
