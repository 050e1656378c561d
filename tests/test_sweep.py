"""Sweeps: runs that begin alike share their beginning, and end as if each had been trained alone."""

import contextlib
import random
import threading

import pytest
import tiny

from growlm.__main__ import main
from growlm.errors import InputError, StoppedError
from growlm.files import locked
from growlm.models import ModelConfig, parameter_count
from growlm.training import loop
from growlm.training.run import train
from growlm.training.step import compile_steps
from growlm.training.sweep import describe, plan_sweep, run_sweep
from growlm.training.variants import build_sweep

STEP = tiny.STEP
SMALL, LARGE = (ModelConfig(**tiny.MODEL | {"layers": layers}) for layers in (1, 2))
GO_ON = threading.Event()  # never set
CONSTANT = {"kind": "constant", "peak_lr": 1e-2}
COSINE = {"kind": "cosine", "peak_lr": 1e-2}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.write_corpus(tmp_path_factory.mktemp("corpus"))


TIMINGS = tuple(range(2, 22, 2))


def timings(corpus, order):
    """Runs that grow the same base at ten points."""
    runs = {f"at{steps}": [tiny.stage(steps), tiny.grown(2)] for steps in order}
    return tiny.sweep(corpus, runs, baseline="at20")


@pytest.fixture
def trained_steps(monkeypatch):
    """How many steps were really trained, by layers."""
    count = {1: 0, 2: 0}

    def compile_and_count(program, *args):
        step, evaluate = compile_steps(program, *args)

        def counted(*args):
            count[program.model.layers] += 1
            return step(*args)

        return counted, evaluate

    monkeypatch.setattr(loop, "compile_steps", compile_and_count)
    return count


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory):
    """One of the timings, trained by itself."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    train(tiny.run_config(corpus, tiny.stage(8), tiny.grown(2)), folder, GO_ON)
    return folder


def assert_as_alone(folder, alone):
    """Of a stage that runs leave at several points, the validation loss is measured at all of them."""
    for have, want in zip(tiny.timeless(folder / "at8"), tiny.timeless(alone), strict=True):
        assert have | want == have
        assert have.keys() - want.keys() <= {"val_loss"}
    have, want = tiny.checkpoints(folder)[8, 10], tiny.checkpoints(alone)[8, 10]
    assert have.parents[1].name == want.parents[1].name  # the address
    tiny.assert_same_arrays(tiny.read_checkpoint(have), tiny.read_checkpoint(want))


@pytest.mark.slow
def test_ten_timings_cost_one_base_and_say_so(corpus, alone, tmp_path, capsys, trained_steps):
    config = tiny.write_config(tmp_path / "timings.py", timings(corpus, sorted(TIMINGS, reverse=True)))
    arguments = ["sweep", f"--config={config}", f"--workdir={tmp_path / 'sweep'}"]
    assert main([*arguments, "--list"]) == 0
    listing = capsys.readouterr().out
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith(listing)
    assert trained_steps == {1: 20, 2: 10 * 2}

    base = 6 * parameter_count(SMALL) * STEP
    saved, trained = base * (sum(TIMINGS) - 20), base * 20 + 6 * parameter_count(LARGE) * STEP * 20
    assert f"10 runs, {trained:.2e} FLOPs to train; sharing stages saves {saved:.2e} FLOPs" in listing
    sweep = tiny.read_json(tmp_path / "sweep" / "sweep.json")
    assert (sweep["flops_saved_by_sharing"], sweep["flops_trained"]) == (saved, trained)
    bases = {entry["stages"][0]["address"] for entry in sweep["runs"].values()}
    ends = {entry["stages"][1]["address"] for entry in sweep["runs"].values()}
    assert (len(bases), len(ends)) == (1, 10)
    assert all(name in listing for name in bases | ends)
    reused = {name: [stage["reused_steps"] for stage in entry["stages"]] for name, entry in sweep["runs"].items()}
    reach = {name: int(name.removeprefix("at")) for name in reused}  # a ConfigDict sorts its keys
    earlier = {name: list(reach.values())[:number] for number, name in enumerate(reach)}
    assert reused == {name: [min(max(earlier[name], default=0), reach[name]), 0] for name in reach}
    assert all(entry["stages"][0]["reused"] == bool(reused[name][0]) for name, entry in sweep["runs"].items())
    assert listing.count(" steps shared\n") == sum(first > 0 for first, _ in reused.values()) == 9
    for steps in TIMINGS:
        last = tiny.records(tmp_path / "sweep" / f"at{steps}")[-1]
        assert (last["step"], last["tokens"]) == (steps + 2, (steps + 2) * STEP)
        assert last["flops"] == base * steps + 6 * parameter_count(LARGE) * STEP * 2
    assert_as_alone(tmp_path / "sweep", alone)

    # Once more: nothing is left to train.
    before = tiny.snapshot(tmp_path / "sweep" / "stages")
    assert main(arguments) == 0
    assert trained_steps == {1: 20, 2: 20}
    assert {path for path, content in tiny.snapshot(tmp_path / "sweep" / "stages").items()} == set(before)


def test_the_order_of_the_runs_makes_no_difference(corpus, alone, tmp_path, trained_steps):
    order = random.Random(1).sample((4, 8, 14, 20), 4)
    assert order != sorted(order, reverse=True)
    sweep = plan_sweep(tiny.build_sweep(timings(corpus, order)))
    assert run_sweep(sweep, tmp_path / "sweep", GO_ON, "", sweep.select(None)) == {}
    assert trained_steps == {1: 20, 2: 4 * 2}
    assert_as_alone(tmp_path / "sweep", alone)


def test_one_run_of_a_sweep_alone_and_then_the_rest(corpus, alone, tmp_path, trained_steps):
    sweep = plan_sweep(tiny.build_sweep(timings(corpus, (20, 8))))
    run_sweep(sweep, tmp_path / "sweep", GO_ON, "", sweep.select("at8"), experiment="What is expected: nothing.")
    assert tiny.read_json(tmp_path / "sweep" / "sweep.json")["experiment"] == "What is expected: nothing."
    assert trained_steps == {1: 8, 2: 2}
    assert_as_alone(tmp_path / "sweep", alone)
    status = tiny.read_json(tmp_path / "sweep" / "sweep.json")["runs"]
    assert {name: entry["status"] for name, entry in status.items()} == {"at20": "pending", "at8": "done"}
    run_sweep(sweep, tmp_path / "sweep", GO_ON, "", sweep.select(None))
    assert trained_steps == {1: 20, 2: 4}
    assert_as_alone(tmp_path / "sweep", alone)


def test_a_run_that_is_added_where_its_stage_is_trained_already_has_what_is_measured_where_it_leaves(corpus, tmp_path):
    """At step 5 there is no line yet, at step 6 one without a validation loss, at step 4 one without a sample."""
    options = {"log_every_steps": 2, "checkpoint": {"max_to_keep": 1}}
    options["evaluation"] = {"batches": 2, "every_tokens": 4 * STEP, "prompts": ("a ",), "prompt_tokens": 3}
    runs = {"long": [tiny.stage(9)]}
    added = {f"at{step}": [tiny.stage(step)] for step in (4, 6)} | {"grown": [tiny.stage(5), tiny.grown(2)]}
    for folder, steps in (("work", (runs, runs | added)), ("whole", (runs | added,))):
        for of_step in steps:
            sweep = plan_sweep(tiny.sweep_config(corpus, of_step, "long", **options))
            assert run_sweep(sweep, tmp_path / folder, GO_ON, "", list(sweep.runs)) == {}
    for name in added:
        assert tiny.timeless(tmp_path / "work" / name) == tiny.timeless(tmp_path / "whole" / name)
        records = tiny.records(tmp_path / "work" / name)
        for clock in (lambda one: one["seconds"], lambda one: sum(one["time"].values())):
            assert (times := [*map(clock, records)]) == sorted(times)
    left = [tiny.records(tmp_path / "work" / name)[-1] for name in ("at4", "at6")]
    assert [one["step"] for one in left] == [4, 6] and all({"val_loss", "samples", "loss"} <= {*one} for one in left)
    of_base = [one["step"] for one in tiny.records(tmp_path / "work" / "grown") if one["stage"] == 0]
    assert of_base == [0, 2, 4, 5]


def test_a_stage_with_a_horizon_is_shared_only_where_it_ends_alike(corpus):
    def runs(schedule):
        return {f"at{n}": [tiny.stage(n, schedule=schedule), tiny.grown(2)] for n in (4, 8)} | {
            "double": [tiny.stage(8, schedule=schedule), tiny.grown(3)]
        }

    horizon = plan_sweep(tiny.build_sweep(tiny.sweep(corpus, runs(COSINE), baseline="at8")))
    base, top = (6 * parameter_count(model) * STEP for model in (SMALL, LARGE))
    # Two bases of their own; `double` takes the longer, and its growth of three steps passes the end of `at8`.
    assert horizon.flops() == (base * 12 + top * 5, base * 8 + top * 2)
    assert "shared" in describe(horizon, horizon.select(None)).splitlines()[4]


def test_runs_that_share_a_stage_must_agree_on_what_is_measured(tmp_path):
    corpus = tiny.write_corpus(tmp_path)
    runs = {"a": [tiny.stage(4)], "b": [tiny.stage(6)]}
    settings = tiny.sweep(corpus, runs, baseline="a")
    del settings["evaluation"]
    settings["runs"]["a"]["evaluation"] = {"batches": 1}
    with pytest.raises(InputError, match=r"evaluation of runs a and b must be one, for they share stage \w+"):
        plan_sweep(build_sweep(settings))


def test_a_stage_is_trained_by_one_process_at_a_time(tmp_path):
    with locked(tmp_path), pytest.raises(InputError, match="in use by another growlm process"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


@pytest.mark.slow
def test_a_run_waits_for_a_stage_that_another_process_trains(corpus, tmp_path, capsys):
    sweep, done = plan_sweep(tiny.build_sweep(timings(corpus, (8, 20)))), threading.Event()
    shared = tmp_path / "sweep" / "stages" / sweep.runs["at8"].stages[0].stage_hash
    run_sweep(sweep, tmp_path / "sweep", GO_ON, "", ["at8"])
    with locked(shared):
        threading.Timer(0.3, done.set).start()
        with pytest.raises(StoppedError, match="stopped while another process"):
            run_sweep(sweep, tmp_path / "sweep", done, "", ["at20"])
    assert capsys.readouterr().err.count("waiting for another process that trains at20\n") == 1
    other = contextlib.ExitStack()
    other.enter_context(locked(shared))
    threading.Timer(0.3, other.close).start()
    assert run_sweep(sweep, tmp_path / "sweep", GO_ON, "", ["at20"]) == {}
    assert tiny.records(tmp_path / "sweep" / "at20")[-1]["step"] == 22
