"""Growths that are tried before one of them is taken: the better by construction, paid for, never tried twice."""

import dataclasses
import threading

import pytest
import tiny

from growlm.__main__ import main
from growlm.errors import DivergedError, InputError
from growlm.growth import OPERATORS
from growlm.growth.effects import Effect
from growlm.growth.operators import direct
from growlm.models import ModelConfig, parameter_count
from growlm.training import probe as probe_module
from growlm.training import run as run_module
from growlm.training.config import build_run, plain
from growlm.training.continuation import result_settings
from growlm.training.decisions import read_decisions
from growlm.training.run import plan_run, train
from growlm.training.saved import find_saved
from growlm.training.stages import resolve

STEP = tiny.STEP
GO_ON = threading.Event()  # never set
SMALL, LARGE = (parameter_count(ModelConfig(**tiny.MODEL | {"layers": layers})) for layers in (1, 2))
COSINE = {"kind": "cosine", "peak_lr": 1e-2}
EXACT = {"operator": "direct", "options": {"zero_residual": True}}
MASKED = {"operator": "random", "options": {"mask_tokens": 3 * STEP}}
TRIED = {"a_ruin": {"operator": "ruin"}, "masked": MASKED, "stack": EXACT}


@dataclasses.dataclass(frozen=True, eq=False)
class Ruin(Effect):
    name = "ruin"
    by: float

    def breaks(self, growth, target):
        return "it is meant to"

    def changes(self, growth, weight):
        return True

    def change(self, growth, target, weight, value, grown, draw):
        return grown * self.by


def ruin(source, target, key=None, *, by=-3.0):
    return dataclasses.replace(direct(source, target, key), effects=(Ruin(by),))


@pytest.fixture(scope="module", autouse=True)
def ruins():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(OPERATORS, "ruin", ruin)
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.write_corpus(tmp_path_factory.mktemp("corpus"))


def probing(candidates=TRIED, steps=2, **more):
    return {"operator": "probe", "options": {"candidates": candidates, "steps": steps}} | more


def settings(corpus, growth, **options):
    last = tiny.grown(5, growth=growth, schedule=COSINE)
    return tiny.run(corpus, tiny.stage(3), last, evaluation={"every_tokens": STEP, "batches": 2}, **options)


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """Trained without a stop."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(build_run(settings(corpus, probing())), folder, GO_ON)
    return folder


def decision_of(folder):
    return tiny.read_json(folder / "decision-1.json")["growth"]


def assert_as(folder, whole):
    """The same records but for the clock, the same decision and the same arrays."""
    assert tiny.timeless(folder) == tiny.timeless(whole)
    assert decision_of(folder) | {"seconds": 0} == decision_of(whole) | {"seconds": 0}
    have, want = (tiny.checkpoints(home)[3, 8] for home in (folder, whole))
    tiny.assert_same_arrays(tiny.read_checkpoint(have), tiny.read_checkpoint(want))


# --- Runs ------------------------------------------------------------------------------------------------------------


def test_the_better_growth_is_taken_from_its_start_and_the_probe_is_paid_for(corpus, whole, tmp_path):
    decision = decision_of(whole)
    assert decision["chosen"] == "stack" and decision["steps"] == 2
    tried = decision["candidates"]
    assert tried["a_ruin"]["val_loss"][1] > max(one["val_loss"][1] for name, one in tried.items() if name != "a_ruin")
    # It trains as a stage does that begins so: with the same losses, and to the same bits.
    train(build_run(settings(corpus, EXACT)), tmp_path / "plain", GO_ON)
    have, want = (tiny.timeless(home) for home in (whole, tmp_path / "plain"))
    own = [record for record in want if record["stage"] == 1]
    assert tried["stack"]["val_loss"] == [own[0]["val_loss"], own[2]["val_loss"]]
    assert tried["stack"]["losses"] == [own[1]["loss"], own[2]["loss"]]
    cost = 6 * LARGE * STEP * 2 * 3
    assert decision["flops"] == cost == sum(one["flops"] for one in tried.values())
    for ours, plain_one in zip(have, want, strict=True):
        assert ours["flops"] == plain_one["flops"] + (cost if ours["stage"] else 0)
        same = ours | {name: plain_one[name] for name in ("flops", "flops_exact")}
        assert same == plain_one
    ends = (tiny.checkpoints(home)[3, 8] for home in (whole, tmp_path / "plain"))
    tiny.assert_same_arrays(*map(tiny.read_checkpoint, ends))
    report = tiny.read_json(whole / "growth-1.json")
    assert (report["operator"], report["options"]) == ("direct", EXACT["options"])
    assert report["probe"] == decision and report["seconds"] > decision["seconds"]
    assert find_saved(whole).masks is None and find_saved(whole).step == 8


@pytest.mark.slow
def test_a_run_that_is_stopped_after_every_step_chooses_the_same(corpus, whole, tmp_path):
    assert tiny.train_in_parts(build_run(settings(corpus, probing())), tmp_path / "run") == 8
    assert_as(tmp_path / "run", whole)


def test_a_run_that_dies_in_its_probe_probes_again_and_chooses_the_same(corpus, whole, tmp_path, monkeypatch):
    """In the second candidate, and then before the decision is kept, and then right after."""
    config, taken = build_run(settings(corpus, probing())), []
    grow_into, write, train_stage = probe_module.grow_into, run_module.write_decision, run_module.train_stage

    def die(*_, **__):
        raise KeyboardInterrupt

    def second(*args):
        taken.append(1)
        return die() if len(taken) == 2 else grow_into(*args)

    def of_last(stage, *args, **more):
        return die() if stage.parent else train_stage(stage, *args, **more)

    for name, dying in {"grow_into": second, "write_decision": die, "train_stage": of_last}.items():
        with monkeypatch.context() as patch:
            patch.setattr(probe_module if name == "grow_into" else run_module, name, dying)
            with pytest.raises(KeyboardInterrupt):
                train(config, tmp_path / "run", GO_ON)
        assert bool(read_decisions(tmp_path / "run" / "checkpoints")) == (name == "train_stage")
    monkeypatch.setattr(probe_module, "_try", die)
    train(config, tmp_path / "run", GO_ON)
    assert_as(tmp_path / "run", whole)
    assert run_module.write_decision is write


def test_what_is_tried_of_a_sparse_stage_is_as_sparse(corpus, tmp_path):
    """Noise is on weights that are not kept, too: with it the loss at growth is another."""
    noisy = probing({"noisy": {"operator": "direct", "options": {"noise": 0.5}}})
    run = settings(corpus, noisy)
    run["stages"][1] |= {"model": tiny.MODEL}
    run["stages"] = [stage | {"sparsity": 0.5} for stage in run["stages"]]
    train(build_run(run), tmp_path / "run", GO_ON)
    tried = decision_of(tmp_path / "run")["candidates"]["noisy"]
    own = [record for record in tiny.records(tmp_path / "run") if record["stage"] == 1]
    assert tried["val_loss"] == [own[0]["val_loss"], own[2]["val_loss"]]
    assert tried["losses"] == [own[1]["loss"], own[2]["loss"]]


def test_a_loss_that_is_not_finite_is_never_the_best(corpus, tmp_path):
    broken = {"operator": "ruin", "options": {"by": float("nan")}}
    config = build_run(settings(corpus, probing({"a": broken, "b": {"operator": "ruin"}}, steps=1)))
    train(config, tmp_path / "run", GO_ON)
    decision = decision_of(tmp_path / "run")
    assert decision["chosen"] == "b"
    assert (decision["candidates"]["a"]["val_loss"], decision["candidates"]["a"]["losses"]) == ([None, None], [None])
    config = build_run(settings(corpus, probing({"a": broken}, steps=1)))
    with pytest.raises(DivergedError, match="no candidate of the probe has a finite validation loss after 1 steps"):
        train(config, tmp_path / "lost", GO_ON)


# --- Cost, hashes and settings ---------------------------------------------------------------------------------------


def test_a_budget_pays_for_the_probe_and_for_what_it_learns():
    candidates = {"learn": {"operator": "learn", "options": {"steps": 4}}, "stack": EXACT}
    stages = tiny.stage(3), tiny.grown(0, growth=probing(candidates), schedule=COSINE)
    budget = 6.0 * STEP * (3 * SMALL + (4 + 2 * 2) * LARGE + 5.5 * LARGE)
    run = tiny.run_config("c", *stages, budget_flops=budget)
    before = resolve(run, "f")[1]
    assert before.first_cost.flops == 6 * STEP * (3 * SMALL + (4 + 2 * 2) * LARGE)
    assert before.steps == 5
    for chosen in candidates:
        stage = resolve(run, "f", decisions={before.stage_hash: {"growth": {"chosen": chosen}}})[1]
        assert stage.config.growth.operator == candidates[chosen]["operator"]
        assert (stage.stage_hash, stage.first_cost, stage.steps) == (before.stage_hash, before.first_cost, 5)


def test_the_candidates_are_in_the_hash_as_what_they_stand_for():
    def stage(growth):
        return resolve(build_run(settings("c", growth)), "f")[1]

    presets = stage(probing(["g_stack", "llama_pro"]))
    spelled = {
        "g_stack": {"operator": "direct", "options": {"order": "stack"}},
        "llama_pro": {"operator": "zero", "options": {"order": "expand"}, "train": "new"},
    }
    assert presets.stage_hash == stage(probing(spelled)).stage_hash
    assert presets.stage_hash != stage(probing(spelled, steps=3)).stage_hash
    assert presets.stage_hash != stage(probing(spelled, optimizer_state="map")).stage_hash
    assert stage(probing(spelled, optimizer_state="map")).config.growth.optimizer_state == "map"
    assert [one.config.train for one in presets.possible] == ["all", "new"]
    one, other = (plain(build_run(settings("c", probing(of)))) for of in (["g_stack", "llama_pro"], spelled))
    assert one != other and result_settings(one) == result_settings(other)
    # The growth itself is that of a stage without a probe: it is compiled once.
    assert presets.growth_hash == stage({"operator": "g_stack"}).stage_hash != presets.stage_hash


BAD = {
    "no candidates": (probing({}), r"probe\.candidates must be growths by name .* got \{\}"),
    "none at all": ({"operator": "probe"}, r"probe\.candidates must be growths by name .* got None"),
    "no growth": (probing({"a": "g_stack"}), r"probe\.candidates must be growths by name"),
    "no steps": (probing(["g_stack"], steps=0), r"probe\.steps must be an integer >= 1, got 0"),
    "half a step": (probing(["g_stack"], steps=0.5), r"probe\.steps must be an integer >= 1, got 0\.5"),
    "an unknown option": (
        {"operator": "probe", "options": {"step": 1}},
        "option of probe must be one of candidates, steps, got 'step'; did you mean 'steps'",
    ),
    "an unknown key": (probing({"a": {"op": "direct"}}), "config key in candidate a must be one of .* got 'op'"),
    "an unknown operator": (probing({"a": {"operator": "gstak"}}), "candidate a: growth operator or preset must be"),
    "a probe in a probe": (probing({"a": probing()}), r"candidate a\.operator must be no probe"),
    "an unknown state": (probing({"a": {"optimizer_state": "m"}}), r"candidate a: growth\.optimizer_state must be"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_probe_is_one_line(case):
    growth, says = BAD[case]
    with pytest.raises(InputError, match=says) as error:
        build_run(settings("c", growth))
    assert "\n" not in str(error.value)


def test_candidates_must_fit_and_a_probe_its_stage(corpus):
    misfit = {"a": EXACT, "b": {"operator": "direct", "options": {"order": [0, 7]}}}
    unheld = {"a": EXACT, "b": EXACT | {"optimizer_state": "map"}}
    cases = {
        "candidate b: ": (probing(misfit), "adamw"),
        r"candidate b: stages\[1\]\.growth\.optimizer_state must be": (probing(unheld), "muon"),
        r"probe\.steps must be at most the \d of": (probing(steps=6), "adamw"),
    }
    for says, (growth, kind) in cases.items():
        run = settings(corpus, growth)
        run["stages"][-1]["optimizer"] = {"kind": kind}
        for budget in ({}, {"budget_flops": 6.0 * STEP * (3 * SMALL + (3 * 6 + 4) * LARGE)}):
            if budget:
                run["stages"][-1]["tokens"] = 0
            with pytest.raises(InputError, match=says):
                plan_run(build_run(run | budget))


# --- The command -----------------------------------------------------------------------------------------------------


def test_the_command_tries_growths_on_a_run_and_leaves_it_as_it_is(corpus, whole, tmp_path, capsys):
    """Forked where the run grew, it measures what the run's own probe measured."""
    config = tiny.write_config(tmp_path / "probe.py", settings(corpus, probing(), seed=7))  # the run's seed counts
    before = tiny.snapshot(whole)
    arguments = ["probe", f"--config={config}", f"--checkpoint={whole}", f"--workdir={tmp_path / 'probed'}"]
    assert main(arguments) == 0
    assert tiny.snapshot(whole) == before
    found, own = tiny.read_json(tmp_path / "probed" / "probe.json"), decision_of(whole)
    assert (found["step"], found["checkpoint"]) == (3, str(whole))
    assert {name: found[name] for name in ("chosen", "steps", "flops", "candidates")} == {
        name: own[name] for name in ("chosen", "steps", "flops", "candidates")
    }
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    ranked = sorted(own["candidates"], key=lambda name: own["candidates"][name]["val_loss"][1])
    assert [row[0] for row in rows[2:5]] == ranked
    losses = own["candidates"]["stack"]["val_loss"]
    assert rows[2] == ["stack", "direct", *(f"{loss:.4f}" for loss in losses), f"{own['flops'] / 3:.2e}"]
    assert ["best:", "stack"] in rows
    assert main(arguments) == 2
    assert "probe.json must not be there yet" in capsys.readouterr().err


def test_the_command_has_the_teacher_of_the_stage(corpus, whole, tmp_path):
    """The model before growth is the forked one; from its folder it is the same, and it teaches."""
    taught, base = ({"kind": "distill", "teacher": name} for name in ("parent", str(tmp_path / "base")))
    own = settings(corpus, probing({"stack": EXACT}))
    own["stages"][1]["objective"] = taught
    train(build_run(own), tmp_path / "run", GO_ON)
    train(build_run(own | {"stages": own["stages"][:1]}), tmp_path / "base", GO_ON)
    for name, objective in {"parent": taught, "folder": base}.items():
        own["stages"][1]["objective"] = objective
        config = tiny.write_config(tmp_path / f"{name}.py", own)
        arguments = [f"--config={config}", f"--checkpoint={tmp_path}/run", f"--workdir={tmp_path}/{name}"]
        assert main(["probe", *arguments]) == 0
        found = tiny.read_json(tmp_path / name / "probe.json")["candidates"]
        assert found == decision_of(tmp_path / "run")["candidates"]
    assert found["stack"]["losses"] != decision_of(whole)["candidates"]["stack"]["losses"]


def test_a_command_that_cannot_probe_is_one_line(corpus, whole, tmp_path, capsys):
    good = tiny.write_config(tmp_path / "good.py", settings(corpus, probing()))
    plain_one = tiny.write_config(tmp_path / "plain.py", settings(corpus, EXACT))
    run = f"--checkpoint={whole}"
    cases = {
        "probe needs --checkpoint=RUN or --workdir=DIR": [f"--config={good}"],
        "stages[1].growth.operator must be 'probe' for growlm probe, got 'direct'": [f"--config={plain_one}", run],
        "source must be a folder of growlm train": [f"--config={good}", f"--checkpoint={tmp_path / 'no'}"],
        "probe.steps must be at most the 5 of stages[1], got 9": [
            f"--config={good}",
            run,
            "--config.stages[1].growth.options.steps=9",
        ],
    }
    for says, arguments in cases.items():
        assert main(["probe", *arguments]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
