"""Records that a repository keeps: they say what the sweep says."""

import dataclasses
import json
import shutil
import warnings
from pathlib import Path

import pytest
import studies
import tiny

from growlm.__main__ import main
from growlm.errors import InputError
from growlm.report.archive import archive
from growlm.report.outcomes import outcomes
from growlm.report.records import read
from growlm.report.report import overview, write_report
from growlm.training.sweep import plan_sweep, run_sweep

RECORDS = Path(__file__).parents[1] / "experiments" / "records"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained sweep with a growth, and benchmarks in its records."""
    home = tmp_path_factory.mktemp("sweep")
    runs = {"grown": [tiny.stage(2), tiny.grown(3)], "scratch": [tiny.stage(4, 2)]}
    options = {"title": "A sweep", "grown": ["grown"], "evaluation": {"every_tokens": tiny.STEP, "batches": 2}}
    plan = plan_sweep(tiny.sweep_config(tiny.write_corpus(home), runs, "scratch", **options))
    run_sweep(plan, home / "work", tiny.threading.Event(), "growlm sweep ...", list(plan.runs))
    path = home / "work" / "grown" / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[-1]["benchmark/piqa/acc"] = 0.5
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return home / "work"


def test_kept_records_give_the_same_table_and_the_same_outcomes(folder, tmp_path):
    kept = archive(folder, tmp_path / "kept")
    assert sorted(path.name for path in kept.iterdir()) == ["config.json", "metrics.csv", "sweep.json"]
    assert overview(kept) == overview(folder)
    for mine, theirs in zip(outcomes(kept)[0], outcomes(folder)[0], strict=True):
        for field in dataclasses.fields(mine):
            if field.name != "curve":
                assert getattr(mine, field.name) == getattr(theirs, field.name), field.name
        assert mine.curve.flops == pytest.approx(theirs.curve.flops, rel=1e-8)
        assert mine.curve.loss == pytest.approx(theirs.curve.loss, rel=1e-8)
    assert read(kept).runs["grown"].metrics[-1]["benchmark/piqa/acc"] == 0.5
    assert "benchmark/piqa/acc" not in read(kept).runs["scratch"].metrics[-1]
    assert (write_report(kept).parent / "loss_flops.png").stat().st_size > 5000


def test_kept_seeds_are_taken_together_with_those_that_are_not(tmp_path):
    studies.write_seeds(tmp_path / "runs", [{"grown": 0.6, "scratch": 1.0}, {"grown": 0.7, "scratch": 1.0}])
    whole = overview(tmp_path / "runs")
    archive(tmp_path / "runs" / "cpu-0", tmp_path / "half")
    shutil.rmtree(tmp_path / "runs" / "cpu-0")
    (tmp_path / "half").rename(tmp_path / "runs" / "cpu-0")
    assert overview(tmp_path / "runs") == whole and "2 seeds" in whole


def test_kept_runs_that_began_from_a_saved_model_say_so_and_are_in_no_law(tmp_path):
    shutil.copytree(RECORDS / "continue_from_checkpoint", tmp_path / "kept")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # they grew after 0 tokens, which has no logarithm
        text = write_report(tmp_path / "kept").read_text()
    assert "begins from grow_once, whose FLOPs are not known" in overview(tmp_path / "kept")
    assert "When to grow" not in text
    with pytest.raises(InputError, match="began from a saved model"):
        outcomes(tmp_path / "kept")


def test_what_cannot_be_kept_is_refused(folder, tmp_path, capsys):
    with pytest.raises(InputError, match=r"holds no sweep\.json"):
        archive(folder / "grown", tmp_path / "out")
    open_sweep = studies.write_sweep(tmp_path / "open", {"grown": 0.5, "scratch": None})
    with pytest.raises(InputError, match=r"run scratch of .* is pending"):
        archive(open_sweep, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    assert main(["archive", f"--workdir={folder}", f"--output={tmp_path / 'out'}"]) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["grown,x,1", "grown,,", "grown"])
def test_a_damaged_line_is_named(folder, tmp_path, line):
    kept = archive(folder, tmp_path / "kept")
    with (kept / "metrics.csv").open("a") as file:
        file.write(line + "\n")
    number = len((kept / "metrics.csv").read_text().splitlines())
    with pytest.raises(InputError, match=rf"metrics.csv:{number} is not a record"):
        read(kept)
