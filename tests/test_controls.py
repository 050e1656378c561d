"""The controls of a sweep: what the recipe makes of a grown run, and stages that are not trained."""

import threading

import pytest
import tiny

from growlm.errors import InputError
from growlm.models import parameter_count
from growlm.training.config import build_model, plain
from growlm.training.continuation import claim_folder
from growlm.training.recipe import scale
from growlm.training.run import train
from growlm.training.stages import resolve
from growlm.training.sweep import plan_sweep, run_sweep
from growlm.training.variants import build_sweep

GO_ON = threading.Event()
CPU = scale("cpu")
GROWN = CPU.grown([CPU.base(0.2)], "g_stack")


def run_of(name, grown=GROWN, **options):
    return CPU.controls(grown, **options)[name][0]["stages"]


def parameters(stage):
    return parameter_count(build_model(stage["model"]))


def test_the_untrained_run_grows_a_base_of_no_tokens_on_the_whole_budget():
    base, last = run_of("untrained")
    assert (base["tokens"], last["tokens"]) == (0, CPU.tokens)
    want = GROWN["stages"][-1] | {"tokens": CPU.tokens}
    assert base["model"] == GROWN["stages"][0]["model"] and last == want


def test_two_growths_of_an_untrained_base_come_one_after_the_other():
    half = CPU.base(0.15, CPU.model(4)) | {"growth": {"operator": "g_stack"}}
    stages = run_of("untrained", CPU.grown([CPU.base(0.15), half], "g_stack"))
    assert [stage["tokens"] for stage in stages] == [0, 0, CPU.tokens]


def test_the_average_size_is_that_of_the_tokens_and_costs_as_much():
    # By hand: 2 layers on 20 % of the budget's tokens, and 8 on all but what these cost.
    small, large = (parameters(stage) for stage in GROWN["stages"])
    tokens = 0.2, 1 - 0.2 * small / large
    average = (small * tokens[0] + large * tokens[1]) / sum(tokens)
    (stage,) = run_of("average_size")
    assert stage["model"] == CPU.model(7)
    others = [abs(1 / parameter_count(build_model(CPU.model(layers))) - 1 / average) for layers in range(2, 9)]
    assert min(others) == abs(1 / parameters(stage) - 1 / average)
    assert parameters(stage) * stage["tokens"] == pytest.approx(large * CPU.tokens, rel=1e-5)


def test_the_average_size_of_growth_in_width_lies_between_the_widths():
    half = {name: CPU.widths[name] // 2 for name in ("embed", "heads", "kv_heads", "mlp")}
    grown = CPU.grown([CPU.base(0.5, CPU.model(**half))], "direct")
    (stage,) = run_of("average_size", grown)
    assert stage["model"]["layers"] == 8 and 32 < stage["model"]["embed"] < 64 and 88 < stage["model"]["mlp"] < 176


def test_there_is_no_size_between_architectures():
    tied = CPU.base(0.2, CPU.model(2) | {"tie_embeddings": True})
    with pytest.raises(InputError, match=r"average_size must lie between models that differ in sizes alone, .*tie_"):
        CPU.controls(CPU.grown([tied], "g_stack"))


def test_the_short_run_has_the_cost_of_the_claim_and_a_whole_schedule():
    (stage,) = run_of("short", claim=1.0)
    assert stage["tokens"] == CPU.tokens // 2 and stage["schedule"]["kind"] == "cosine"
    assert stage["schedule"]["peak_lr"] == CPU.tuned_lr
    with pytest.raises(InputError, match="claim must be > 0, got 0"):
        CPU.controls(GROWN, claim=0)


def test_decayed_is_the_same_experiment_with_every_schedule_down_to_zero():
    size = scale("cpu_decayed")
    runs = {name: resolve(build_sweep(each).runs["grown"], "f") for name, each in sweeps(CPU=CPU, size=size).items()}
    assert runs["CPU"][0].stage_hash == runs["size"][0].stage_hash  # a constant rate decays nowhere
    ends = {name: run[-1].learning_rate_at(run[-1].last_step) for name, run in runs.items()}
    assert ends == {"CPU": pytest.approx(0.1 * CPU.peak_lr), "size": pytest.approx(0)}
    with pytest.raises(InputError, match="variant must be one of cpu, gpu, small, tiny, got 'cpy'"):
        scale("cpy_decayed")


def sweeps(**sizes):
    return {name: size.sweep("", {"grown": size.grown([size.base(0.2)], "g_stack")}) for name, size in sizes.items()}


def test_a_search_is_of_every_run_and_seeds_have_a_folder_each():
    small = scale("tiny")
    grown = small.grown([small.base(0.2)], "g_stack")
    sweep = build_sweep(
        small.sweep("", {"grown": grown}, small.controls(grown), search={"peak_lr": (1e-3, 4e-3)}, seeds=(0, 2))
    )
    assert set(sweep.search.tries) == {"grown", "scratch", "untrained", "average_size", "short"}
    assert set(sweep.search.tries["short"].values()) == {1e-3, 4e-3} and "scratch_tuned" not in sweep.controls
    assert list(sweep.by_seed) == ["seed-0", "seed-2"]


def test_under_a_search_scratch_at_another_rate_is_scratch_and_a_sweep_that_had_it_goes_on(tmp_path):
    small = scale("tiny")
    grown = small.grown([small.base(0.2)], "g_stack")
    settings = small.sweep("", {"grown": grown}, small.controls(grown)).to_dict()
    assert "scratch_tuned" in build_sweep(settings).controls
    sweep = build_sweep(settings | {"search": {"peak_lr": (1e-3, 4e-3)}})
    assert set(sweep.search.tries) == {"grown", "scratch", "untrained", "average_size", "short"} > set(sweep.controls)
    assert len(sweep.runs) == 10
    decayed = settings | {"search": {"weight_decay": (0.0, 0.1)}}
    assert "scratch_tuned" in build_sweep(decayed).search.tries  # of another rate: a run of its own
    before = plain(sweep)
    for trial, value in sweep.search.tries["scratch"].items():
        tuned = trial.replace("scratch", "scratch_tuned")
        before["runs"][tuned] = before["runs"][trial]
        before["search"]["tries"].setdefault("scratch_tuned", {})[tuned] = value
    before["controls"] |= {"scratch_tuned": "a learning rate of its own"}
    claim_folder(tmp_path, before)
    claim_folder(tmp_path, plain(sweep))
    assert tiny.read_json(tmp_path / "config.json")["controls"].keys() == sweep.controls.keys()
    del before["runs"]["short@peak_lr=0.001"], before["runs"]["short@peak_lr=0.004"], before["search"]["tries"]["short"]
    del before["controls"]["short"]
    with pytest.raises(InputError, match=r"has a run 'short@peak_lr=0\.001' that this one has not"):
        claim_folder(tmp_path, before)


# --- Stages of no tokens ---------------------------------------------------------------------------------------------

COSINE = {"kind": "cosine", "peak_lr": 1e-2}
UNTRAINED = tiny.stage(0), tiny.grown(4, schedule=COSINE)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def untrained(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "run"
    train(tiny.run_config(corpus, *UNTRAINED), folder, GO_ON)
    return folder


def test_an_untrained_base_costs_nothing_and_is_measured_before_and_after_growth(untrained):
    first, second, *rest = tiny.records(untrained)
    assert (first["stage"], first["tokens"], first["flops"]) == (0, 0, 0.0)
    assert (second["stage"], second["tokens"], second["flops"]) == (1, 0, 0.0)
    assert first["val_loss"] == pytest.approx(5.5, abs=0.2) and second["val_loss"] == pytest.approx(5.5, abs=0.2)
    assert rest[-1]["tokens"] == 4 * tiny.STEP and rest[-1]["val_loss"] < second["val_loss"]
    assert tiny.read_json(untrained / "growth-1.json")["tokens"] == 0


def test_stopped_after_every_step_it_ends_with_the_same_bits(corpus, untrained, tmp_path):
    assert tiny.train_in_parts(tiny.run_config(corpus, *UNTRAINED), tmp_path / "run") == 4
    have, want = (tiny.checkpoints(folder)[0, 4] for folder in (tmp_path / "run", untrained))
    tiny.assert_same_arrays(tiny.read_checkpoint(have), tiny.read_checkpoint(want))
    last = [records[-1]["val_loss"] for records in map(tiny.records, (tmp_path / "run", untrained))]
    assert last[0] == last[1]


@pytest.mark.parametrize("order", [("untrained", "trained"), ("trained", "untrained")])
def test_a_base_is_one_stage_whether_it_is_trained_or_not(corpus, untrained, tmp_path, order):
    stages = {"untrained": UNTRAINED, "trained": (tiny.stage(3), tiny.grown(2))}
    runs = {name: stages[name] for name in order}
    plan = plan_sweep(build_sweep(tiny.sweep(corpus, runs, baseline="trained")))
    assert len({run.stages[0].stage_hash for run in plan.runs.values()}) == 1
    assert run_sweep(plan, tmp_path, GO_ON, "", list(runs)) == {}
    assert tiny.timeless(tmp_path / "untrained") == tiny.timeless(untrained)
    base = [record for record in tiny.records(tmp_path / "trained") if record["stage"] == 0]
    assert [record["step"] for record in base] == [0, 1, 2, 3]


def test_two_growths_may_follow_each_other_at_once(corpus, tmp_path):
    stages = tiny.stage(2), tiny.grown(0, 2, schedule=COSINE), tiny.grown(2, 4)
    train(tiny.run_config(corpus, *stages), tmp_path / "run", GO_ON)
    found = [(record["stage"], record["step"]) for record in tiny.records(tmp_path / "run")]
    assert found == [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 3), (2, 4)]


def test_no_tokens_at_the_end_are_refused(corpus):
    with pytest.raises(InputError, match=r"stages\[1\].tokens must be > 0 where no stage follows, got 0"):
        tiny.run_config(corpus, tiny.stage(2), tiny.grown(0))
