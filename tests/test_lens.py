"""The loss after each layer: what the lens says of a run, and its measure of depth."""

import json
import runpy
from pathlib import Path

import pytest
import tiny

from growlm.__main__ import main

LENS = Path(__file__).parents[1] / "experiments" / "study" / "lens.py"


@pytest.fixture(scope="module")
def lens():
    return runpy.run_path(str(LENS))


def test_depth_is_the_mean_place_of_what_a_layer_takes_away(lens):
    assert lens["depth"]([5.0, 2.0, 2.0, 2.0]) == pytest.approx(1)
    assert lens["depth"]([5.0, 5.0, 5.0, 2.0]) == pytest.approx(3)
    assert lens["depth"]([5.0, 4.0, 3.0, 2.0]) == pytest.approx(2)
    assert lens["depth"]([5.0, 6.0, 2.0]) == pytest.approx((-1 + 2 * 4) / 3)  # a layer may do harm alone


@pytest.mark.slow
def test_the_last_loss_is_the_runs_and_those_before_are_of_its_first_layers(lens, tmp_path, monkeypatch, capsys):
    corpus = tiny.write_corpus(tmp_path)
    stages = [tiny.stage(2, 1), tiny.grown(2)]
    config = tiny.write_config(tmp_path / "sweep.py", tiny.sweep(corpus, {"run": stages}, baseline="run"))
    runs, output = tmp_path / "runs", tmp_path / "lens.json"
    assert main(["sweep", f"--config={config}", f"--workdir={runs}"]) == 0
    monkeypatch.setattr("sys.argv", ["lens.py", f"--runs={runs}", f"--output={output}"])
    lens["main"]()
    (found,) = json.loads(output.read_text()).values()
    losses = found["losses"]
    assert len(losses) == 3
    assert losses[-1] == pytest.approx(tiny.records(runs / "run")[-1]["val_loss"], rel=1e-5)
    assert len(set(losses)) == 3
    assert found["depth"] == lens["depth"](losses)
    assert f"run: depth {found['depth']:.1f}: {losses[0]:.3f}" in capsys.readouterr().out
