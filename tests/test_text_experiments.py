"""The experiments on what a run reads: their stages, their shares, and that they run on a Python alone."""

import functools
import sysconfig
import threading
from pathlib import Path

import pytest
import tiny
from representatives import few

from growlm.__main__ import main
from growlm.report.report import overview
from growlm.training import texts
from growlm.training.config import build_run, load_config
from growlm.training.recipe import SAME_MODEL, SCALES
from growlm.training.run import plan_run, train
from growlm.training.sweep import plan_sweep
from growlm.training.variants import build_sweep

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
GO_ON = threading.Event()  # never set


@pytest.fixture(autouse=True, scope="module")
def corpus_once():
    """The text of Python's library is read once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "load_corpus", functools.cache(texts.load_corpus))
        yield


def planned(spec):
    return plan_sweep(build_sweep(load_config(f"{EXPERIMENTS}/{spec}", [])))


def given(run):
    """The examples that each source gives in a run, by its name."""
    last = run.stages[-1]
    names = {fingerprint: name for stage in run.stages for fingerprint, (name, _) in stage.text.sources.items()}
    return {names[fingerprint]: count for fingerprint, count in last.given_at(last.last_step).items()}


def test_an_ending_changes_its_corpus_and_nothing_else_of_the_run():
    size = SCALES["tiny"]
    whole = size.scratch(size.peak_lr)
    ended = size.ending(whole, 0.25, corpus={"paths": {"corpus": "stdlib", "metadata": True}})
    (plain,), (first, end) = (plan_run(build_run(run)).stages for run in (whole, ended))
    assert (first.corpus, [*end.corpus]) == ("stdlib", ["paths"])
    assert end.last_step == plain.last_step
    assert end.steps == size.part(0.25) // (size.batch * size.length)
    rates = [(first if step <= first.last_step else end).learning_rate_at(step) for step in range(1, end.last_step + 1)]
    assert rates == pytest.approx([plain.learning_rate_at(step) for step in range(1, end.last_step + 1)])


@pytest.mark.parametrize("optimizer", few([{}, {"kind": "muon", "ema": 0.9}], [{}]))
def test_a_stage_that_goes_on_with_the_model_ends_as_one_without_a_break(tmp_path, optimizer):
    corpus, schedule = tiny.write_corpus(tmp_path), {"kind": "cosine", "peak_lr": 1e-2, "horizon_tokens": 5 * tiny.STEP}
    options = {"layers": 2, "schedule": schedule, "optimizer": optimizer}
    further = tiny.stage(2, **options | {"schedule": schedule | {"at_growth": "continue"}, "growth": SAME_MODEL})
    for name, stages in {"whole": [tiny.stage(5, **options)], "parts": [tiny.stage(3, **options), further]}.items():
        train(tiny.run_config(corpus, *stages), tmp_path / name, GO_ON)
    whole, parts = (
        tiny.read_checkpoint(tiny.checkpoints(tmp_path / n)[at, 5]) for n, at in (("whole", 0), ("parts", 3))
    )
    tiny.assert_same_arrays(*({k: v for k, v in each.items() if "provenance" not in k} for each in (parts, whole)))


def test_metadata_is_in_front_of_all_but_the_cooldown_and_never_of_what_is_validated_on():
    plan = planned("metadata.py:cpu")
    told = [[("paths" in text.trained.corpora) for text in plan.runs[name].texts] for name in plan.runs]
    assert dict(zip(plan.runs, told, strict=True)) == {
        "cooldown": [True, True, False],
        "scratch": [False],
        "paths": [True, True],
        "plain": [False, False],
        "scratch_cooldown": [True, False],
        "scratch_tuned": [False],
    }
    validated = {text.validated.fingerprint for run in plan.runs.values() for text in run.texts}
    assert len(validated) == 1
    cooldown, paths = (plan.runs[name].texts[0].trained.first for name in ("scratch", "paths"))
    assert 1.0 < len(paths.train) / len(cooldown.train) < 1.05
    heads = [text.split(b"\n\n", 1)[0].decode() for text in bytes(paths.validation).split(b"\0")[:-1]]
    assert len(heads) > 10 and all(Path(sysconfig.get_path("stdlib"), head).is_file() for head in heads)


def test_upsampling_ends_with_half_prose_and_its_control_spreads_as_much():
    plan = planned("upsampling.py:cpu")
    prose = {name: given(run)["prose"] / sum(given(run).values()) for name, run in plan.runs.items()}
    assert prose["as_it_is"] == pytest.approx(0.1, abs=1e-3) == prose["scratch"]
    assert prose["spread"] == pytest.approx(prose["end_20"], abs=1e-3)
    assert prose["as_it_is"] < prose["end_10"] < prose["end_20"]
    assert plan.runs["end_20"].texts[-1].trained.share("prose") == 0.5
    # All of the same sources, validated on the usual mixture.
    assert {text.validated.share("prose") for run in plan.runs.values() for text in run.texts} == {0.1}


def test_replay_goes_on_from_one_checkpoint_with_the_next_examples_of_the_old_text():
    plan = planned("replay.py:cpu")
    replayed = {name: run for name, run in plan.runs.items() if not name.startswith("scratch")}
    assert len({run.stages[1].stage_hash for run in replayed.values()}) == 1
    shares = {name: run.texts[-1].trained.parts.get("old", 0) for name, run in replayed.items()}
    assert shares == {"replay_0": 0, "replay_5": 1, "replay_25": 1, "low": 1}
    for name, share in (("replay_0", 0.0), ("replay_5", 0.05), ("replay_25", 0.25)):
        last = replayed[name].stages[-1]
        old = replayed[name].texts[0].trained.first.fingerprint
        assert last.given[old] == last.examples_at(last.first_step)  # all before were old: it goes on after these
        own = last.given_at(last.last_step)[old] - last.given[old]
        assert own == pytest.approx(share * last.steps * last.config.batch, abs=1)
        assert last.learning_rate_at(last.first_step + 1) < 0.05 * last.config.schedule.peak_lr
    low = replayed["low"].stages[-1]
    assert low.learning_rate_at(low.last_step) == pytest.approx(
        0.1 * plan.runs["replay_5"].stages[-1].config.schedule.peak_lr
    )
    assert {tuple(text.validated.parts.values()) for run in plan.runs.values() for text in run.texts} == {(1, 1)}


def test_a_folder_takes_the_place_of_a_package(tmp_path):
    folder = tmp_path / "novels"
    folder.mkdir()
    (folder / "one.txt").write_text("It was the best of times. " * 4000)
    for name, (code, prose) in (("upsampling", ("code", "prose")), ("replay", ("old", "new"))):
        corpora = planned(f"{name}.py:tiny:{folder}").runs["scratch"].texts[0].trained.corpora
        assert {key: corpus.name for key, corpus in corpora.items()} == {code: "stdlib", prose: str(folder)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["metadata", "upsampling", "replay"])
def test_it_runs(name, tmp_path):
    seldom = [f"--config.{section}.every_tokens=0" for section in ("evaluation", "checkpoint")]
    assert main(["sweep", f"--config={EXPERIMENTS}/{name}.py:tiny", f"--workdir={tmp_path / 'sweep'}", *seldom]) == 0
    assert ("loss on" in overview(tmp_path / "sweep")) == (name != "metadata")
    ends = {
        path.parent.name: tiny.records(path.parent)[-1]["val_loss"] for path in tmp_path.glob("sweep/*/metrics.jsonl")
    }
    assert len(ends) == 6 and len({*ends.values()}) == 6 and all(2 < loss < 5 for loss in ends.values())
