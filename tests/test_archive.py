"""Archives say what the sweep says, and those of earlier versions are read."""

import contextlib
import dataclasses
import json
import runpy
import shutil
import warnings
from pathlib import Path

import pytest
import studies
import tiny

from growlm.__main__ import main
from growlm.errors import InputError
from growlm.models import parameter_count
from growlm.report.archive import archive
from growlm.report.outcomes import outcomes
from growlm.report.records import read, read_groups
from growlm.report.report import overview, report_page, write_report
from growlm.training.config import build_model
from growlm.training.sweep import plan_sweep, run_sweep
from growlm.training.variants import build_sweep

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
    records = tiny.read_lines(path)
    records[-1]["benchmark/piqa/acc"] = 0.5
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return home / "work"


def test_an_archive_gives_the_same_table_page_and_outcomes(folder, tmp_path):
    copy = archive(folder, tmp_path / "archive")
    assert sorted(path.name for path in copy.iterdir()) == ["config.json", "grown", "scratch", "sweep.json"]
    assert sorted(path.name for path in (copy / "grown").iterdir()) == ["config.json", "growth-1.json", "metrics.jsonl"]
    assert overview(copy) == overview(folder)
    for mine, theirs in zip(outcomes(copy)[0], outcomes(folder)[0], strict=True):
        mine, theirs = (dataclasses.asdict(one) | {"curve": one.curve.loss.tolist()} for one in (mine, theirs))
        assert mine == theirs
    assert read(copy).runs["grown"].metrics[-1]["benchmark/piqa/acc"] == 0.5
    assert (write_report(copy).parent / "loss_flops.png").stat().st_size > 5000
    assert report_page(copy)[0] == report_page(folder)[0]


def test_outcomes_are_those_of_the_models(folder):
    """Parameters are on record, and the factor is read off the growth report or the shape."""
    for run in outcomes(folder)[0]:
        models = [stage["model"] for stage in read(folder).runs[run.name].config["stages"]]
        assert run.params == parameter_count(build_model(models[-1]))
        assert run.factor == models[-1]["layers"] / models[0]["layers"]  # they have the same blocks


def groups(folder):
    """The studies of a folder of records; none where it holds none."""
    with contextlib.suppress(InputError):
        return read_groups(folder)
    return []


@pytest.mark.slow
def test_parameters_read_off_the_flops_of_all_records_of_the_repository_are_those_of_their_models():
    """They were made before metrics said them."""
    runs = [run for folder in sorted(RECORDS.iterdir()) for group in groups(folder) for run in group.runs]
    assert len(runs) > 500
    for run in runs:
        model = build_model(run.config["stages"][-1]["model"])
        assert run.parameters == parameter_count(model, active=True), run.name


@pytest.mark.parametrize("name", ["operators", "growth_factor", "growth_timing", "novels"])
def test_archives_of_earlier_versions_are_read(name):
    """In these the metrics of all runs are one CSV."""
    (group, *_) = read_groups(RECORDS / name)
    assert all(run.metrics and run.status == "done" for run in group.runs)
    assert list(group.studies) == [f"seed {number}" for number in range(1 if name == "novels" else 3)]
    assert overview(RECORDS / name).startswith(group.first.title)
    assert all(run.params > 1e5 and run.factor >= 1 for run in outcomes(RECORDS / name)[0])


def test_archived_seeds_are_grouped_with_those_that_are_not(tmp_path):
    studies.write_seeds(tmp_path / "runs", [{"grown": 0.6, "scratch": 1.0}, {"grown": 0.7, "scratch": 1.0}])
    whole = overview(tmp_path / "runs")
    archive(tmp_path / "runs" / "cpu-0", tmp_path / "half")
    shutil.rmtree(tmp_path / "runs" / "cpu-0")
    (tmp_path / "half").rename(tmp_path / "runs" / "cpu-0")
    assert overview(tmp_path / "runs") == whole and "2 seeds" in whole


def test_archived_runs_that_began_from_a_saved_model_say_so_and_are_in_no_law(tmp_path):
    shutil.copytree(RECORDS / "continue_from_checkpoint", tmp_path / "copy")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # they grew after 0 tokens, which has no logarithm
        text = report_page(tmp_path / "copy")[0]
    assert "begins from grow_once, whose FLOPs are not known" in overview(tmp_path / "copy")
    assert "When to grow" not in text
    with pytest.raises(InputError, match="began from a saved model"):
        outcomes(tmp_path / "copy")


def test_what_cannot_be_archived_is_refused(folder, tmp_path, capsys):
    with pytest.raises(InputError, match=r"got one without sweep\.json"):
        archive(folder / "grown", tmp_path / "out")
    open_sweep = studies.write_sweep(tmp_path / "open", {"grown": 0.5, "scratch": None})
    with pytest.raises(InputError, match=r"run scratch of .* must have ended, got pending"):
        archive(open_sweep, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    assert main(["archive", f"--workdir={folder}", f"--output={tmp_path / 'out'}"]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_a_sweep_goes_on_from_the_archive_of_the_runs_that_have_ended(folder, tmp_path):
    begun = shutil.copytree(folder, tmp_path / "begun")
    sweep = tiny.read_json(begun / "sweep.json")
    sweep["runs"]["scratch"]["status"] = "pending"
    (begun / "sweep.json").write_text(json.dumps(sweep))
    copy = archive(begun, tmp_path / "copy", ended=True)
    assert sorted(path.name for path in copy.iterdir()) == ["config.json", "grown", "sweep.json"]
    before = (copy / "grown" / "metrics.jsonl").read_bytes()
    config = build_sweep(read(folder).config)
    plan = plan_sweep(config, copy)
    assert run_sweep(plan, copy, tiny.threading.Event(), "growlm sweep ...", list(plan.runs)) == {}
    assert {name: run.status for name, run in read(copy).runs.items()} == {"grown": "done", "scratch": "done"}
    assert (copy / "grown" / "metrics.jsonl").read_bytes() == before
    trained = {stage.name for stage in (copy / "stages").iterdir()}
    assert trained == {plan.runs["scratch"].stages[-1].stage_hash}, "grown was trained again"
    assert [record["val_loss"] for record in read(copy).runs["scratch"].metrics if "val_loss" in record] == [
        record["val_loss"] for record in read(folder).runs["scratch"].metrics if "val_loss" in record
    ]


def test_the_study_keeps_the_records_of_runs_as_they_end(folder, tmp_path):
    study = runpy.run_path(str(RECORDS.parent / "study" / "sweeps.py"))
    keep, progress = study["keep"], study["progress"]
    begun = shutil.copytree(folder, tmp_path / "begun")
    summary, records = begun / "sweep.json", tmp_path / "records" / "sweep-0"
    whole = summary.read_text()
    for statuses, kept in ({"grown": "pending", "scratch": "pending"}, (0, 0)), ({"scratch": "pending"}, (1, 2)):
        sweep = {key: value for key, value in json.loads(whole).items() if key != "crc32"}
        for name, status in statuses.items():
            sweep["runs"][name]["status"] = status
        summary.write_text(json.dumps(sweep))
        keep(begun, records)
        assert progress(records) == kept
    summary.write_text(whole)
    keep(begun, records)
    assert progress(records) == (2, 2) and overview(records) == overview(folder)
    assert [path.name for path in records.parent.iterdir()] == ["sweep-0"]


@pytest.mark.parametrize("line", ["by_2,x,1", "by_2,,", "by_2"])
def test_a_damaged_line_of_an_earlier_archive_is_named(tmp_path, line):
    copy = shutil.copytree(RECORDS / "growth_factor" / "cpu-0", tmp_path / "copy")
    with (copy / "metrics.csv").open("a") as file:
        file.write(line + "\n")
    number = len((copy / "metrics.csv").read_text().splitlines())
    with pytest.raises(InputError, match=rf"metrics.csv:{number} must be a record"):
        read(copy)
