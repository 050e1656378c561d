"""What is decided while a run trains: when a stage ends; the same whenever the run is cut off, and never twice."""

import pathlib
import threading

import numpy as np
import pytest
import tiny

from growlm.errors import InputError
from growlm.models import ModelConfig, parameter_count
from growlm.report.archive import archive
from growlm.training import decisions
from growlm.training.checkpoint import Checkpoints
from growlm.training.config import build_run, plain
from growlm.training.continuation import claim_folder
from growlm.training.criteria import RULES, Curve, GrowWhen, Measured
from growlm.training.decisions import Criterion, read_decisions
from growlm.training.run import plan_run, train
from growlm.training.saved import find_saved
from growlm.training.stages import resolve
from growlm.training.sweep import describe, plan_sweep, run_sweep
from growlm.training.variants import build_sweep

STEP = tiny.STEP
GO_ON = threading.Event()  # never set
EVERY_2 = {"every_tokens": 2 * STEP, "batches": 2}
SMALL, LARGE = (parameter_count(ModelConfig(**tiny.MODEL | {"layers": layers})) for layers in (1, 2))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.write_corpus(tmp_path_factory.mktemp("corpus"))


# --- Rules -----------------------------------------------------------------------------------------------------------


def first_met(rule, curve, **options):
    """The number of the evaluation at which a rule is met first; None if never."""
    when = GrowWhen(rule, options)
    for count in range(1, len(curve.loss) + 1):
        measured = when.measure(Curve(curve.flops[:count], curve.loss[:count]))
        if measured and measured.value < measured.limit:
            return count - 1
    return None


def test_loss_and_plateau_end_where_a_hand_says():
    curve = Curve(np.arange(1.0, 8.0), np.array([5.0, 4.0, 3.5, 3.25, 3.125, 3.0625, 3.03125]))
    assert first_met("loss", curve, below=3.25) == 4  # not at 3.25 itself
    assert first_met("loss", curve, below=3.0) is None
    assert first_met("plateau", curve, improvement=0.3, evaluations=1) == 3  # 3.5 -> 3.25
    assert first_met("plateau", curve, improvement=0.3, evaluations=2) == 5  # 3.25 -> 3.0625
    assert first_met("plateau", curve, improvement=0.01) is None


def test_the_slope_is_that_of_log_loss_over_log_compute_past_the_steepest():
    """Slopes by segment: shallow in warm-up, steep, then falling off below 0.0575 in the last."""
    log_flops = np.arange(12) * 0.5
    slopes = np.array([-0.01, -0.01, -0.4, -0.3, -0.2, -0.1, -0.08, -0.06, -0.05, -0.05, -0.05])
    curve = Curve(np.exp(log_flops), 5 * np.exp(np.concatenate([[0], np.cumsum(slopes * 0.5)])))
    assert first_met("slope", curve, threshold=-0.0575, window=2) == 9
    # Three points, equally apart: the mean of two segments, -0.055 at evaluation 9.
    assert first_met("slope", curve, threshold=-0.0575, window=3) == 9
    assert first_met("slope", curve, threshold=-0.052, window=3) == 10
    assert first_met("slope", curve, threshold=-0.04, window=2) is None


def test_the_slope_of_a_law_is_compared_at_equal_loss():
    """4 C^-0.1 has the loss of 8 C'^-0.2 at C' = 32 C^0.5, and falls slower where 0.1 / C < 0.2 / C': C > 256."""
    flops = np.array([1.0, 2, 4, 8, 16, 32, 64, 128, 250, 260, 512])
    curve = Curve(flops, 4 * flops**-0.1)
    assert first_met("slope", curve, law={"a": 8, "b": -0.2}, window=3) == 9
    # With a floor of 3, at loss L the excess counts: nothing is expected below it, so the stage goes on.
    assert first_met("slope", curve, law={"a": 8, "b": -0.2, "floor": 3.99}, window=3) is None
    # So little is left above the floor that a flat law has no number for the compute to it: nothing is expected of it.
    near = Curve(np.array([1.0, 2, 4]), np.array([1.5, 1.01, 1.001]))
    assert first_met("slope", near, law={"a": 10, "b": -0.005, "floor": 1}, window=2) is None


BAD_RULES = {
    "an unknown rule": ({"rule": "slop"}, r"grow_when\.rule must be one of .*did you mean 'slope'"),
    "an unknown option": (
        {"rule": "loss", "options": {"under": 3}},
        "option of loss must be one of below, got",
    ),
    "no option": ({"rule": "loss"}, "grow_when.options must have 'below' for loss"),
    "before tokens below 0": ({"rule": "loss", "options": {"below": 3}, "min_tokens": -1}, "min_tokens must be >= 0"),
    "no number": ({"rule": "loss", "options": {"below": "3"}}, "grow_when.below must be a positive number, got '3'"),
    "nothing expected": ({"rule": "slope"}, "slope must be given one of threshold and law, got 'none'"),
    "a rising threshold": ({"rule": "slope", "options": {"threshold": 0.05}}, "threshold must be a number below 0"),
    "two": ({"rule": "slope", "options": {"threshold": -1.0, "law": {}}}, "one of .*, got 'threshold and law'"),
    "no law": ({"rule": "slope", "options": {"law": {"a": 1.0}}}, "law must be a mapping of a, b and perhaps floor"),
    "a window of one": (
        {"rule": "slope", "options": {"threshold": -1.0, "window": 1}},
        "window must be an integer >= 2, got 1",
    ),
    "no evaluations": (
        {"rule": "plateau", "options": {"improvement": 1.0, "evaluations": 0}},
        "evaluations must be an integer >= 1, got 0",
    ),
}


@pytest.mark.parametrize("case", BAD_RULES)
def test_a_bad_rule_is_one_line_before_anything_is_written(case, corpus, tmp_path):
    grow_when, says = BAD_RULES[case]
    with pytest.raises(InputError, match=says):
        config = tiny.run_config(corpus, tiny.stage(4, grow_when=grow_when), tiny.grown(2), evaluation=EVERY_2)
        train(config, tmp_path / "run", GO_ON)
    assert not (tmp_path / "run").exists()


LOSS = {"rule": "loss", "options": {"below": 3.0}}
BAD_RUNS = {
    "in the last stage": ([tiny.stage(4, grow_when=LOSS)], {}, r"stages\[0\].grow_when must be unset where no stage"),
    "without evaluations": (
        [tiny.stage(4, grow_when=LOSS), tiny.grown(2)],
        {"evaluation": {"batches": 2}},
        r"evaluation.every_tokens must be > 0 for stages\[0\].grow_when to be judged, got 0",
    ),
    "tokens and a budget": ([tiny.stage(4)], {"budget_flops": 1e9}, r"stages\[0\].tokens must be 0 where budget_flops"),
    "neither": ([tiny.stage(4), tiny.grown(0)], {}, r"stages\[1\].tokens must be > 0 where no stage follows"),
    "sub-models": (
        [tiny.stage(4), tiny.grown(0, submodel_layers=1)],
        {"budget_flops": 1e9},
        r"stages\[1\].submodel_layers must be 0 where budget_flops",
    ),
    "less than nothing": ([tiny.stage(4)], {"budget_flops": -1.0}, "budget_flops must be >= 0"),
}


@pytest.mark.parametrize("case", BAD_RUNS)
def test_a_run_that_cannot_decide_is_one_line(case):
    stages, options, says = BAD_RUNS[case]
    with pytest.raises(InputError, match=says):
        tiny.run_config("c", *stages, **{"evaluation": EVERY_2} | options)


# --- Judging ---------------------------------------------------------------------------------------------------------


def judged(stage, losses):
    """The decision on a stage by validation losses of its steps from the first on."""
    criterion = Criterion(stage, pathlib.Path("no folder"), known=-1)
    decided = [criterion.judge(stage.first_step + number, loss) for number, loss in enumerate(losses)]
    return next(filter(None, decided), None)


def test_a_criterion_counts_its_own_evaluations_alone():
    """Not the stage's first, not where another run leaves it, not before min_tokens, not under masks."""

    def stage(number=0, **more):
        when = LOSS | more
        masked = {"growth": {"operator": "random", "options": {"mask_tokens": 3 * STEP}}, "grow_when": when}
        stages = tiny.stage(8, grow_when=when), tiny.grown(8, **masked), tiny.grown(2, 3)
        return resolve(tiny.run_config("c", *stages, evaluation=EVERY_2), "f")[number]

    falling = [2.0, 2.0, 3.5, 2.0, float("nan"), 2.0, 2.5, 2.0, 2.0]
    decision = judged(stage(), falling)
    assert (decision["step"], decision["tokens"], decision["losses"]) == (6, 6 * STEP, [3.5, 2.5])
    assert decision["flops"] == [6 * SMALL * STEP * steps for steps in (2, 6)]
    assert (decision["rule"], decision["value"], decision["limit"]) == ("loss", 2.5, 3.0)
    assert judged(stage(min_tokens=7 * STEP), falling)["step"] == 8
    assert judged(stage(number=1), [2.0] * 9)["step"] == 8 + 4
    assert judged(stage(), [3.0] * 9) is None


def test_a_rule_of_ones_own_is_a_row_and_part_of_the_hash(monkeypatch):
    def at_once(curve, *, after=1):
        return Measured(0.0, 1.0) if len(curve.loss) >= after else None

    def stage(**options):
        when = {"rule": "at_once", "options": options}
        config = tiny.run_config("c", tiny.stage(8, grow_when=when), tiny.grown(2), evaluation=EVERY_2)
        return resolve(config, "f")[0]

    monkeypatch.setitem(RULES, "at_once", at_once)
    assert judged(stage(after=2), [9.0] * 9)["step"] == 4
    assert len(stage().settings["grow_when"]["source"]) == 12
    assert stage().stage_hash != stage(after=2).stage_hash


def test_what_a_decision_depends_on_is_in_the_hash_and_the_tokens_are_not(tmp_path):
    def run(steps=8, every=2, when=LOSS, kind="constant"):
        base = tiny.stage(steps, grow_when=when, schedule={"kind": kind})
        evaluation = EVERY_2 | {"every_tokens": every * STEP}
        return tiny.run_config("c", base, tiny.grown(2, schedule={"kind": "cosine"}), evaluation=evaluation)

    def hashes(config, **decided):
        return [stage.stage_hash for stage in resolve(config, "f", decisions=decided)]

    base = hashes(run())[0]
    assert hashes(run(steps=16))[0] == base
    others = [hashes(run(every=4))[0], hashes(run(when=None))[0], hashes(run(when=LOSS | {"min_tokens": 5}))[0]]
    assert len({base, *others}) == 4
    assert hashes(run(when=None))[0] == hashes(run(every=4, when=None))[0]  # where nothing is judged it is free
    # What was decided moves the growth and the end of its schedule, and not that of the stage's own schedule.
    cosine = run(kind="cosine")
    before = hashes(cosine)
    stages = resolve(cosine, "f", decisions={before[0]: {"end": {"step": 6}}})
    assert stages[0].stage_hash == before[0] and stages[1].stage_hash != before[1]
    assert (stages[0].last_step, stages[1].first_step, stages[1].last_step) == (6, 6, 8)
    assert (stages[0].horizon, stages[1].horizon) == (8 * STEP, 2 * STEP)
    assert resolve(run(steps=4), "f", decisions={base: {"end": {"step": 6}}})[0].last_step == 4
    claim_folder(tmp_path / "run", plain(run()))
    with pytest.raises(InputError, match=r"evaluation\.every_tokens is 128 there and 256 here"):
        claim_folder(tmp_path / "run", plain(run(every=4)))


@pytest.mark.parametrize("decided", [None, 6])
def test_a_budget_is_matched_to_one_batch(decided):
    base, top = 6 * SMALL * STEP, 6 * LARGE * STEP
    budget = 8 * base + 5.5 * top
    config = tiny.run_config("c", tiny.stage(8, grow_when=LOSS), tiny.grown(0), budget_flops=budget, evaluation=EVERY_2)
    first = resolve(config, "f")[0].stage_hash
    last = resolve(config, "f", decisions={first: {"end": {"step": decided}}} if decided else None)[-1]
    assert last.steps == (5 if decided is None else int((budget - 6 * base) // top)) >= 5
    assert 0 <= budget - last.cost_at(last.last_step).flops < top


# --- Runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain_losses(corpus, tmp_path_factory):
    """Validation losses of the base, by step."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    train(tiny.run_config(corpus, tiny.stage(10), evaluation=EVERY_2), folder, GO_ON)
    return {record["step"]: record["val_loss"] for record in tiny.records(folder) if "val_loss" in record}


@pytest.fixture(scope="module")
def settings(corpus, plain_losses):
    """A base that ends at step 6 of 10, and a budget of 10 steps of it and 3 of the grown model."""
    at_4, at_6 = plain_losses[2] - plain_losses[4], plain_losses[4] - plain_losses[6]
    assert at_4 > at_6
    when = {"rule": "plateau", "options": {"improvement": (at_4 + at_6) / 2, "evaluations": 1}}
    budget = 6 * STEP * (10 * SMALL + 3 * LARGE)
    grown = tiny.grown(0, schedule={"kind": "cosine", "peak_lr": 1e-2})
    return tiny.run(corpus, tiny.stage(10, grow_when=when), grown, evaluation=EVERY_2, budget_flops=budget)


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    """Trained without a stop."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(build_run(settings), folder, GO_ON)
    return folder


GROWN_STEPS = 3 + int(4 * SMALL / LARGE)  # what four steps of the base pay for


def assert_as_whole(folder, whole):
    """The same records but for the clock, the same decisions and the same arrays."""
    assert tiny.timeless(folder) == tiny.timeless(whole)
    for name in ("decision-0.json", "growth-1.json"):
        have, want = (tiny.read_json(home / name) for home in (folder, whole))
        assert have | {"seconds": 0} == want | {"seconds": 0}
    have, want = tiny.checkpoints(folder), tiny.checkpoints(whole)
    ends = {(0, 6), (6, 6 + GROWN_STEPS)}
    assert ends <= have.keys() and ends <= want.keys()
    for end in ends:
        tiny.assert_same_arrays(tiny.read_checkpoint(have[end]), tiny.read_checkpoint(want[end]))


def test_a_stage_ends_where_its_rule_is_met_and_the_last_one_takes_what_is_left(corpus, whole, tmp_path):
    assert tiny.read_json(whole / "decision-0.json")["end"]["step"] == 6
    saved = find_saved(whole)
    assert saved.step == 6 + GROWN_STEPS and saved.model.layers == 2
    # As if somebody had known.
    known = tiny.stage(6), tiny.grown(GROWN_STEPS, schedule={"kind": "cosine", "peak_lr": 1e-2})
    train(tiny.run_config(corpus, *known, evaluation=EVERY_2), tmp_path / "known", GO_ON)
    assert tiny.timeless(tmp_path / "known") == tiny.timeless(whole)
    have, want = (tiny.checkpoints(home)[6, 6 + GROWN_STEPS] for home in (tmp_path / "known", whole))
    tiny.assert_same_arrays(tiny.read_checkpoint(have), tiny.read_checkpoint(want))


def test_a_run_that_is_stopped_after_every_step_decides_the_same(settings, whole, tmp_path):
    assert tiny.train_in_parts(build_run(settings), tmp_path / "run") == 6 + GROWN_STEPS
    assert_as_whole(tmp_path / "run", whole)


def test_a_run_that_dies_around_a_decision_decides_the_same(settings, whole, tmp_path, monkeypatch):
    """Before it is kept, and then before the checkpoint of its step is."""
    config, save, write = build_run(settings), Checkpoints.save, decisions.write_decision

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(decisions, "write_decision", die)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", GO_ON)
    assert not read_decisions(tmp_path / "run" / "checkpoints")
    monkeypatch.setattr(decisions, "write_decision", write)
    monkeypatch.setattr(Checkpoints, "save", die)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", GO_ON)
    assert read_decisions(tmp_path / "run" / "checkpoints") and not tiny.checkpoints(tmp_path / "run")
    monkeypatch.setattr(Checkpoints, "save", save)
    train(config, tmp_path / "run", GO_ON)
    assert_as_whole(tmp_path / "run", whole)


def test_a_sweep_that_goes_on_from_an_archive_decides_nothing_again(corpus, settings, tmp_path, monkeypatch):
    """The run that has ended stays as it is, and one that shares the stage leaves it where that one did."""
    base = settings["stages"][0]
    runs = {"grown": [base, tiny.grown(2)], "later": [base, tiny.grown(1)]}
    plan = plan_sweep(tiny.sweep_config(corpus, runs, "grown", evaluation=EVERY_2))
    assert run_sweep(plan, tmp_path / "work", GO_ON, "", ["grown"]) == {}
    copy = archive(tmp_path / "work", tmp_path / "copy", ended=True)
    assert not (copy / "stages").exists() and not (copy / "later").exists()
    before = (copy / "grown" / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(decisions, "write_decision", lambda *_: 1 / 0)
    plan = plan_sweep(plan.config, copy)
    assert [run.stages[0].last_step for run in plan.runs.values()] == [6, 6]
    assert run_sweep(plan, copy, GO_ON, "", list(plan.runs)) == {}
    assert (copy / "grown" / "metrics.jsonl").read_bytes() == before
    trained = {path.name for path in (copy / "stages").iterdir()}
    assert trained == {stage.stage_hash for stage in plan.runs["later"].stages}, "grown was trained again"
    assert tiny.timeless(copy / "later")[:-2] == tiny.timeless(copy / "grown")[:-3]
    assert tiny.read_json(copy / "later" / "decision-0.json") == tiny.read_json(copy / "grown" / "decision-0.json")


def test_a_finished_run_decides_nothing_again(settings, whole, monkeypatch):
    monkeypatch.setattr(Criterion, "judge", lambda *_: 1 / 0)
    before = tiny.snapshot(whole)
    train(build_run(settings), whole, GO_ON)
    assert tiny.snapshot(whole).keys() == before.keys()
    assert tiny.snapshot(whole)["metrics.jsonl"] == before["metrics.jsonl"]


def test_runs_that_share_a_stage_share_its_decision(settings, whole, tmp_path):
    """One that takes fewer tokens than the rule asks for leaves it there."""
    base, top = settings["stages"]
    early = base | {"tokens": 4 * STEP}
    common = {key: settings[key] for key in ("corpus", "log_every_steps", "evaluation")}
    runs = {
        "a": {"stages": [base, top], "budget_flops": settings["budget_flops"]},
        "b": {"stages": [early, tiny.grown(2)]},
        "c": {"stages": [base, tiny.grown(2)]},
    }
    config = build_sweep(common | {"runs": runs, "baseline": "a"})
    plan = plan_sweep(config)
    first = describe(plan, ["a"]).splitlines()[0]
    assert " 10 steps " in first and first.endswith("or sooner, by plateau")
    assert run_sweep(plan, tmp_path / "s", GO_ON, "", plan.select(None)) == {}
    decided = plan_sweep(config, tmp_path / "s")
    assert "sooner" not in describe(decided, ["a"])
    runs = decided.runs
    ends = {name: [stage.last_step for stage in run.stages] for name, run in runs.items()}
    assert ends == {"a": [6, 6 + GROWN_STEPS], "b": [4, 6], "c": [6, 8]}
    assert {name: tiny.records(tmp_path / "s" / name)[-1]["step"] for name in ends} == {
        name: last for name, (_, last) in ends.items()
    }
    for have, want in zip(tiny.timeless(tmp_path / "s" / "a"), tiny.timeless(whole), strict=True):
        assert have | want == have
    summary = tiny.read_json(tmp_path / "s" / "sweep.json")
    assert [stage["tokens"] for stage in summary["runs"]["c"]["stages"]] == [6 * STEP, 2 * STEP]
    assert summary["flops_trained"] == 6 * STEP * (6 * SMALL + (GROWN_STEPS + 2 + 2) * LARGE)
    assert {run["status"] for run in summary["runs"].values()} == {"done"}
    # All is trained; the same sweep once more changes nothing.
    again = plan_sweep(config, tmp_path / "s")
    before = tiny.snapshot(tmp_path / "s" / "stages")
    assert run_sweep(again, tmp_path / "s", GO_ON, "", again.select(None)) == {}
    assert tiny.snapshot(tmp_path / "s" / "stages").keys() == before.keys()


def test_a_searched_run_is_known_to_be_done_where_its_stages_were_decided(settings, tmp_path):
    base, _ = settings["stages"]
    stages = {"grown": [base, tiny.grown(2)], "scratch": [tiny.stage(3, 2)]}
    more = {"grown": ["grown"], "search": {"peak_lr": [1e-9, 1e-2]}, "evaluation": EVERY_2}
    config = build_sweep(tiny.sweep(settings["corpus"], stages, "scratch", **more))
    for _ in range(2):  # the second time nothing is left
        plan = plan_sweep(config, tmp_path / "s")
        assert run_sweep(plan, tmp_path / "s", GO_ON, "", plan.select(None)) == {}
        summary = tiny.read_json(tmp_path / "s" / "sweep.json")
        assert {run["status"] for run in summary["runs"].values()} == {"done"}
        assert [stage["tokens"] for stage in summary["runs"]["grown"]["stages"]] == [6 * STEP, 2 * STEP]
        assert tiny.records(tmp_path / "s" / "grown")[-1]["step"] == 8


def test_a_budget_that_leaves_nothing_is_one_line(corpus):
    config = tiny.run_config(corpus, tiny.stage(4), tiny.grown(0), budget_flops=6.0 * SMALL * STEP * 4)
    with pytest.raises(InputError, match=r"budget_flops must leave the last stage a batch beside the .* got"):
        plan_run(config)
