"""A run that goes on in its folder: longer, with further stages, measured and kept in another way, or not at all."""

import dataclasses
import json
import threading
from pathlib import Path

import pytest
import tiny

from growlm.data import load_corpus
from growlm.errors import InputError
from growlm.training import run as run_module
from growlm.training.config import plain
from growlm.training.continuation import claim_folder
from growlm.training.run import train
from growlm.training.sweep import plan_sweep, run_sweep

STEP = tiny.STEP
GO_ON = threading.Event()  # never set
COSINE = {"kind": "cosine"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.write_corpus(tmp_path_factory.mktemp("corpus"))


def goes_on(folder, before, after):
    """Claims a folder for the one config, then for the other."""
    claim_folder(folder, plain(before))
    claim_folder(folder, plain(after))
    return True


def test_a_run_that_goes_on_longer_and_measured_otherwise_ends_with_the_bits_of_one_that_was_so_long(corpus, tmp_path):
    train(tiny.run_config(corpus, tiny.stage(3)), tmp_path / "run", GO_ON)
    longer = tiny.stage(6), tiny.grown(2)
    config = tiny.run_config(
        corpus,
        *longer,
        log_every_steps=2,
        evaluation={"every_tokens": 2 * STEP, "batches": 2},
        checkpoint={"every_tokens": STEP, "max_to_keep": 9},
    )
    train(config, tmp_path / "run", GO_ON)
    train(tiny.run_config(corpus, *longer), tmp_path / "whole", GO_ON)
    have, want = (tiny.checkpoints(tmp_path / name) for name in ("run", "whole"))
    assert {(0, 3), (0, 4), (0, 6), (6, 8)} <= have.keys()
    for end in ((0, 6), (6, 8)):
        tiny.assert_same_arrays(tiny.read_checkpoint(have[end]), tiny.read_checkpoint(want[end]))
    recorded = [(r["stage"], r["step"]) for r in tiny.records(tmp_path / "run")]
    assert recorded == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (0, 6), (1, 6), (1, 8)]


@pytest.mark.parametrize(
    "options",
    [
        {"mesh": {"fsdp": 2}},
        {"log_every_steps": 7},
        {"checkpoint": {"every_tokens": 100, "max_to_keep": 9}},
        {"evaluation": {"batches": 2, "every_tokens": 100}},
        {"evaluation": {"batches": 2, "tasks": ("piqa",), "tasks_every_tokens": 100, "data_dir": "d", "limit": 3}},
        {"evaluation": {"batches": 2, "prompts": ("A",), "prompts_every_tokens": 100, "prompt_tokens": 5}},
        {"evaluation": {"batches": 2, "batch": tiny.BATCH, "length": tiny.LENGTH, "corpus": "c"}},  # as it was
    ],
)
def test_what_does_not_change_the_result_does_not_bar_the_way(tmp_path, options):
    assert goes_on(
        tmp_path / "run", tiny.run_config("c", tiny.stage(4)), tiny.run_config("c", tiny.stage(4), **options)
    )


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"batches": 3}, "batches is 2 there and 3 here"),
        ({"batch": 8}, "batch is 4 there and 8 here"),
        ({"length": 8}, "length is 16 there and 8 here"),
        ({"corpus": "d"}, "corpus is None there and 'd' here"),
    ],
)
def test_another_validation_is_another_curve(tmp_path, given, says):
    evaluation, stages = {"batches": 2} | given, (tiny.stage(4), tiny.grown(3))
    before = tiny.run_config("c", *stages)
    others = [
        (0, tiny.run_config("c", *stages, evaluation=evaluation)),
        (0, tiny.run_config("c", tiny.stage(4, evaluation=evaluation), stages[1])),
        (1, tiny.run_config("c", stages[0], tiny.grown(3, evaluation=evaluation))),
    ]
    for number, after in others:
        line = rf"^the folder must be .*, got .*, which holds a different run: stages\[{number}\]\.evaluation\.{says}$"
        with pytest.raises(InputError, match=line):
            goes_on(tmp_path / "run", before, after)
    assert goes_on(tmp_path / "run", before, before)  # nothing was written over
    with pytest.raises(InputError, match=rf"runs\.a\.stages\[0\]\.evaluation\.{says}"):
        goes_on(
            tmp_path / "sweep",
            tiny.sweep_config("c", {"a": [tiny.stage(4)]}, baseline="a"),
            tiny.sweep_config("c", {"a": [tiny.stage(4)]}, baseline="a", evaluation=evaluation),
        )
    # A stage that is new may have another, and keeps it.
    further = tiny.run_config("c", *stages, tiny.grown(2, layers=4, evaluation=evaluation))
    assert goes_on(tmp_path / "run", before, further)
    with pytest.raises(InputError, match=r"stages\[2\]\.evaluation"):
        goes_on(tmp_path / "run", further, tiny.run_config("c", *stages, tiny.grown(2, layers=4)))


def test_what_a_stage_is_validated_on_may_be_said_elsewhere(tmp_path):
    other = {"batches": 2, "corpus": "d"}
    of_run = tiny.run_config("c", tiny.stage(4), tiny.grown(3), evaluation=other)
    of_stages = tiny.run_config("c", tiny.stage(4, evaluation=other), tiny.grown(3, evaluation=other))
    assert goes_on(tmp_path / "run", of_run, of_stages)


@pytest.mark.parametrize("schedule", [{"kind": "constant"}, {"kind": "power", "warmup_tokens": 9}])
def test_more_tokens_and_further_stages_are_a_continuation(tmp_path, schedule):
    first = tiny.stage(4, schedule=schedule)
    config = tiny.run_config("c", first)
    assert goes_on(tmp_path / "a", config, tiny.run_config("c", tiny.stage(9, schedule=schedule)))
    assert goes_on(tmp_path / "b", config, tiny.run_config("c", first, tiny.grown(3)))
    with pytest.raises(InputError, match=r"stages\[0\].tokens is 256 there and 192 here"):
        goes_on(tmp_path / "c", config, tiny.run_config("c", tiny.stage(3, schedule=schedule)))
    grown = tiny.run_config("c", first, tiny.grown(3))
    with pytest.raises(InputError, match=r"stages\[0\].tokens is 256 there and 320 here"):
        goes_on(tmp_path / "d", grown, tiny.run_config("c", tiny.stage(5, schedule=schedule), tiny.grown(3)))
    with pytest.raises(InputError, match="stages has 2 entries there and 1 here"):
        goes_on(tmp_path / "e", grown, config)


@pytest.mark.parametrize("kind", ["cosine", "wsd"])
def test_a_schedule_that_ends_with_the_stage_says_what_to_set(tmp_path, kind):
    short, long = (tiny.stage(steps, schedule={"kind": kind}) for steps in (4, 9))
    says = rf"stages\[0\].schedule.horizon_tokens must be 256, where the {kind} schedule of .*run ends.*, got 576"
    with pytest.raises(InputError, match=says):
        goes_on(tmp_path / "run", tiny.run_config("c", short), tiny.run_config("c", long))
    ends = long | {"schedule": {"kind": kind, "horizon_tokens": 4 * STEP}}
    assert goes_on(tmp_path / "run", tiny.run_config("c", short), tiny.run_config("c", ends))


def test_a_sweep_takes_further_runs_and_other_words(tmp_path):
    runs = {"a": [tiny.stage(4)]}
    before = tiny.sweep_config("c", runs, baseline="a")
    after = tiny.sweep_config("c", runs | {"b": [tiny.stage(6)]}, baseline="b", title="Another")
    assert goes_on(tmp_path / "s", before, after)
    with pytest.raises(InputError, match="a run 'b' that this one has not"):
        goes_on(tmp_path / "t", after, before)
    other = dataclasses.replace(before, runs={"a": dataclasses.replace(before.runs["a"], seed=1)})
    with pytest.raises(InputError, match=r"runs\.a\.seed is 0 there and 1 here"):
        goes_on(tmp_path / "u", before, other)


def test_a_text_of_validation_that_is_edited_in_its_place_is_another(corpus, tmp_path):
    (tmp_path / "held_out").mkdir()
    path = Path(tiny.write_corpus(tmp_path / "held_out"))
    text, evaluation = path.read_text().upper(), {"batches": 1, "corpus": str(path)}
    path.write_text(text)
    runs = [tiny.run_config(corpus, tiny.stage(steps), evaluation=evaluation) for steps in (1, 2, 3)]
    train(runs[0], tmp_path / "run", GO_ON)
    recorded = tiny.records(tmp_path / "run")
    path.write_text(text.replace("MODEL", "LAYER"))
    train(runs[0], tmp_path / "run", GO_ON)  # it is done, and adds nothing to its curve
    says = rf"^the text on which stages\[0\] is validated must be that with which .* was begun, got '{path}'$"
    with pytest.raises(InputError, match=says):
        train(runs[1], tmp_path / "run", GO_ON)
    assert tiny.records(tmp_path / "run") == recorded
    path.write_text(text)
    train(runs[1], tmp_path / "run", GO_ON)
    [stage] = (tmp_path / "run" / "checkpoints").glob("*/stage.json")
    held = tiny.read_json(stage)
    assert held["validated"] == load_corpus(str(path)).fingerprint
    del held["validated"]  # as of an older growlm, which goes on
    stage.write_text(json.dumps(held))
    train(runs[2], tmp_path / "run", GO_ON)
    assert [record["step"] for record in tiny.records(tmp_path / "run")] == [0, 1, 2, 3]


def test_a_run_that_is_added_to_a_sweep_is_validated_on_the_text_of_the_others(corpus, tmp_path):
    (tmp_path / "held_out").mkdir()
    path = Path(tiny.write_corpus(tmp_path / "held_out"))
    text, evaluation = path.read_text().upper(), {"batches": 1, "corpus": str(path)}
    path.write_text(text)
    runs = {"a": [tiny.stage(1)], "b": [tiny.stage(2)]}

    def trained(*names):
        chosen = {name: runs[name] for name in names}
        sweep = plan_sweep(tiny.sweep_config(corpus, chosen, baseline="a", evaluation=evaluation))
        return run_sweep(sweep, tmp_path / "sweep", GO_ON, "", sweep.select(None))

    assert trained("a") == {}
    before = {file: file.read_bytes() for file in (tmp_path / "sweep").glob("*.json")}
    path.write_text(text.replace("MODEL", "LAYER"))
    assert trained("a") == {}  # it is done
    says = rf"^the text on which stages\[0\] is validated must be that with which .* was begun, got '{path}'$"
    with pytest.raises(InputError, match=says):
        trained("a", "b")
    assert before == {file: file.read_bytes() for file in (tmp_path / "sweep").glob("*.json")}
    path.write_text(text)
    assert trained("a", "b") == {}


def test_a_stage_that_was_begun_at_another_commit_says_so_and_keeps_it(corpus, tmp_path, monkeypatch, capsys):
    config = tiny.run_config(corpus, tiny.stage(2))
    for commit in ("aaaa", "bbbb", None, "aaaa"):
        monkeypatch.setattr(run_module, "commit", lambda commit=commit: commit)
        train(config, tmp_path / "run", GO_ON)
        said = "begun at commit aaaa, and this is bbbb" in capsys.readouterr().err
        assert said == (commit == "bbbb")
    [stage] = (tmp_path / "run" / "checkpoints").glob("*/stage.json")
    assert tiny.read_json(stage)["commit"] == "aaaa"
