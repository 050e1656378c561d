"""The gain over tokens, its fit, and what else a report draws of records: decisions, metrics of models, scales."""

import csv
import json

import numpy as np
import pytest
import studies
from studies import write_seeds, write_sweep

from growlm.__main__ import main
from growlm.laws.gain import fit_gain, gain_curve
from growlm.laws.speedup import Curve
from growlm.report.gains import gain_figures, gain_text, gains
from growlm.report.records import read_groups
from growlm.report.report import report_page

SCRATCH = 1e9


def loss(flops, factor=1.0):
    return 2 + (SCRATCH * factor / flops) ** 0.3


def run(factor, first=1e9, last=1e11, points=60, gain=0.0):
    """A curve that needs `factor` of the compute, less a logarithm of its tokens."""
    flops = np.geomspace(first, last, points)
    tokens = flops / 24_000
    return Curve(flops, loss(flops, factor) - gain * (tokens[-1] > 0) * np.log10(tokens / tokens[0]), tokens)


def test_the_speedup_of_a_constant_multiplier_is_constant_and_the_gap_falls():
    found = gain_curve(run(0.8), run(1.0, points=4000), after=2e9)
    assert found.flops[0] > 2e9 and len(found.tokens) < 60
    measured = np.isfinite(found.speedup)
    assert found.speedup[measured] == pytest.approx(0.25, abs=2e-3)
    assert not measured[-1]  # from scratch, that loss is never reached: nothing is extrapolated
    assert found.gap == pytest.approx(loss(found.flops) - loss(found.flops, 0.8), abs=1e-5)
    assert (np.diff(found.gap) < 0).all()


def test_a_planted_logarithm_is_recovered_with_intervals_over_seeds():
    scratch = run(1.0, points=4000)
    curves = [gain_curve(run(1.0, gain=slope), scratch) for slope in (0.02, 0.03, 0.04)]
    fit = fit_gain(curves)
    assert fit.b == pytest.approx([0.02, 0.03, 0.04], abs=1e-4)
    assert fit.slope.value == pytest.approx(0.03, abs=1e-4)
    half = 4.302653 * 0.01 / np.sqrt(3)  # Student's t of 2 degrees of freedom
    assert (fit.slope.low, fit.slope.high) == (
        pytest.approx(0.03 - half, abs=2e-4),
        pytest.approx(0.03 + half, abs=2e-4),
    )
    end = curves[0].tokens[-1]
    assert fit.gap(end).value == pytest.approx(0.03 * 2, abs=1e-3)
    assert fit.gap(10 * end).value == pytest.approx(0.03 * 3, abs=1e-3)
    assert fit.first >= 0.5 * end and fit.last == end


def test_one_seed_has_no_interval_and_a_short_curve_no_fit():
    scratch = run(1.0, points=400)
    assert fit_gain([gain_curve(run(0.8), scratch)]).slope.low is None
    assert fit_gain([gain_curve(run(0.8, points=5), scratch)]) is None and fit_gain([]) is None


def test_the_report_draws_the_gain_of_every_grown_run_and_says_what_is_extrapolated(tmp_path, capsys):
    write_seeds(tmp_path, [{"scratch": 1.0, "grown": part, "scratch_tuned": 0.9} for part in (0.70, 0.72)])
    (group,) = read_groups(tmp_path)
    found = gains(group)
    assert [(one.run, one.over) for one in found] == [("grown", "scratch"), ("grown", "scratch_tuned")]
    assert found[0].fit.gap(found[0].fit.last).value > found[1].fit.gap(found[1].fit.last).value > 0
    speedup, gap = gain_figures(group, found)
    assert [axis.key for axis in gap.x] == ["tokens", "flops"]
    fit = next(one for one in gap.series if one.style == "fit")
    assert fit.columns["tokens"][-1] == pytest.approx(10 * found[0].fit.last) and "low" in fit.columns
    seeds = [one for one in speedup.series if one.style == "thin"]
    assert len(seeds) == 2 and seeds[0].columns["speedup"] == pytest.approx(1 / 0.7 - 1, abs=0.02)
    assert main(["report", f"--runs={tmp_path}"]) == 0
    assert "at 10 x the tokens, EXTRAPOLATED" in capsys.readouterr().out
    assert (tmp_path / "gain_tokens.png").exists() and (tmp_path / "gain_speedup_flops.png").exists()
    kinds = {row["kind"] for row in csv.DictReader((tmp_path / "gain.csv").open())}
    assert kinds == {"measured", "fitted"}


def test_a_run_without_a_baseline_has_no_gain(tmp_path):
    (group,) = read_groups(write_sweep(tmp_path / "s", {"grown": 0.7}))
    assert gains(group) == [] and gain_text(group, []) == ""
    assert "Gain over tokens" not in report_page(tmp_path / "s")[0]


def add(folder, run, **values):
    """Put more into every tenth record of a run."""
    path = folder / run / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records[9::10]:
        record.update(values)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_each_benchmark_has_one_chart_the_average_first_and_what_models_say_is_drawn(tmp_path):
    folder = write_sweep(tmp_path / "s", {"scratch": 1.0, "grown": 0.7})
    scores = {"benchmark/piqa/acc_norm": 0.6, "benchmark/piqa/acc": 0.5, "benchmark/wikitext/word_perplexity": 30.0}
    add(folder, "grown", **scores, **{"benchmark/average/acc": 0.4}, experts_entropy=1.1, epochs=0.5)
    names = [figure.name for figure in report_page(folder)[1] if figure.name.startswith(("benchmark", "experts", "ep"))]
    own = ["benchmark_average_acc", "benchmark_piqa_acc", "benchmark_wikitext_word_perplexity"]
    assert names == [*own, "benchmark_piqa_acc_norm", "experts_entropy"]
    page = report_page(folder)[0]
    assert (
        page.index("benchmark_wikitext") < page.index("Other metrics of the benchmarks") < page.index("piqa_acc_norm")
    )


def test_decisions_are_on_the_page_in_words(tmp_path):
    folder = write_sweep(tmp_path / "s", {"scratch": 1.0, "grown": 0.7})
    end = {"step": 70, "tokens": 7e4, "rule": "plateau", "options": {}, "value": 0.002, "limit": 0.005}
    candidates = {"a": {"val_loss": [4.1, 4.0]}, "b": {"val_loss": [4.2, 3.9]}, "c": {"val_loss": [None, None]}}
    chosen = {"chosen": "b", "steps": 5, "candidates": candidates}
    (folder / "grown" / "decision-0.json").write_text(json.dumps({"end": end}))
    (folder / "grown" / "decision-1.json").write_text(json.dumps({"growth": chosen}))
    page = report_page(folder)[0]
    assert "ends at step 70" in page and "plateau: 0.002 is below 0.005" in page
    assert "grows by b" in page and "after 5 steps: b 3.9000, a 4.0000, c -" in page
    (folder / "grown" / "decision-0.json").write_text(json.dumps({"end": {"step": 70}}))
    assert "no rule was met" in report_page(folder)[0]
    assert "Decisions" not in report_page(write_sweep(tmp_path / "t", {"scratch": 1.0, "grown": 0.7}))[0]


def ladder(folder, rungs, monkeypatch):
    """Sweeps of the same runs at several budgets, each 4 times the one before, whose multiplier rises."""
    plain = dict(studies.STAGES)
    for rung in range(rungs):
        scaled = {name: [(n, tokens * 4**rung) for n, tokens in stages] for name, stages in plain.items()}
        monkeypatch.setattr(studies, "STAGES", scaled | {"scratch": [(8, 1.1e6 * 4**rung)]})
        title = f"Rung {rung}"
        write_sweep(folder / f"rung_{rung}", {"scratch": 1.0, "grown": 0.8 - 0.05 * rung}, seed=0, title=title)
    return folder


def test_sweeps_of_several_scales_have_the_multiplier_over_scale(tmp_path, monkeypatch, capsys):
    page, figures = report_page(ladder(tmp_path / "four", 4, monkeypatch))
    (figure,) = (one for one in figures if one.name == "multiplier_grown")
    measured = next(one for one in figure.series if one.name == "measured").columns["multiplier"]
    assert 1.1 < measured[0] < measured[-1] < 1.6
    assert "Gain over scales" in page and "established, of these runs:" in page
    assert main(["fit", f"--runs={tmp_path / 'four'}", "--law=multiplier"]) == 0
    assert "grown over scratch: 8 runs" in capsys.readouterr().out
    assert "Gain over scales" not in report_page(ladder(tmp_path / "three", 3, monkeypatch))[0]
