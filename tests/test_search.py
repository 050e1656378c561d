"""Seeds, lists of values and an honest search as axes of a sweep."""

import contextlib
import json
import shutil

import pytest
import tiny

from growlm.__main__ import main
from growlm.errors import InputError, StoppedError
from growlm.files import locked
from growlm.report.archive import archive as sweep_archive
from growlm.report.outcomes import outcomes
from growlm.report.records import read_groups
from growlm.report.report import overview
from growlm.training import sweep as sweep_module
from growlm.training.config import load_config, plain
from growlm.training.processes import StopRequest
from growlm.training.search import BROKEN, LOST, UNDECIDED, best
from growlm.training.sweep import plan_sweep, run_sweep
from growlm.training.variants import SHORT, build_sweep

NOTHING, GOOD, RUIN = 1e-9, 1e-2, 1e30  # learning rates: nothing is learned, all is, and the loss is not finite
LEARN = {"peak_lr": [NOTHING, GOOD]}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.write_corpus(tmp_path_factory.mktemp("corpus"))


def settings(corpus="stdlib", own=None, **options):
    """A grown run, its baseline and a control."""
    runs = {"grown": [tiny.stage(4), tiny.grown(4)], "scratch": [tiny.stage(6, 2)], "short": [tiny.stage(4, 2)]}
    sweep = tiny.sweep(corpus, runs, "scratch", grown=["grown"], controls={"short": "shorter"}, **options)
    for name, more in (own or {}).items():
        sweep["runs"][name] |= more
    return sweep


def two(corpus, values=LEARN, **options):
    """The cheapest search: of two runs of one stage."""
    runs = {"grown": [tiny.stage(4)], "scratch": [tiny.stage(5)]}
    return tiny.sweep(corpus, runs, "scratch", grown=["grown"], search=values, **options)


def trained(config, folder, name=None, stop=None):
    plan = plan_sweep(build_sweep(config), folder)
    return run_sweep(plan, folder, stop or StopRequest(), "a command", plan.select(name))


def written(folder):
    return tiny.read_json(folder / "sweep.json")


# What the settings stand for.


def test_a_list_of_values_is_a_run_for_each():
    sweep = build_sweep(settings(vary={"peak_lr": [1e-3, 2e-3]}))
    assert list(sweep.runs) == [f"{run}@peak_lr={v}" for run in ("grown", "scratch", "short") for v in (0.001, 0.002)]
    assert sweep.baseline == "scratch@peak_lr=0.001"
    assert sweep.grown == ("grown@peak_lr=0.001", "grown@peak_lr=0.002")
    assert sweep.controls == {"short@peak_lr=0.001": "shorter", "short@peak_lr=0.002": "shorter"}
    rates = [[stage.schedule.peak_lr for stage in sweep.runs[name].stages] for name in sweep.grown]
    assert rates == [[1e-2, 1e-3], [1e-2, 2e-3]]  # of the last stage alone
    assert build_sweep(json.loads(json.dumps(plain(sweep)))) == sweep


def test_several_lists_are_their_product_and_a_run_may_have_its_own():
    own = {"grown": {"vary": {"stages": {"0": {"tokens": [128, 192]}}, "operator": "[direct,zero]"}}}
    sweep = build_sweep(settings(own=own | {"short": {"vary": {}}}, vary={"dtype": ["float32", "bfloat16"]}))
    grown = [f"grown@tokens={n},operator={operator}" for n in (128, 192) for operator in ("direct", "zero")]
    assert list(sweep.runs) == [*grown, "scratch@dtype=float32", "scratch@dtype=bfloat16", "short"]
    found = [(run.stages[0].tokens, run.stages[1].growth.operator) for run in map(sweep.runs.get, grown)]
    assert found == [(128, "direct"), (128, "zero"), (192, "direct"), (192, "zero")]


def test_values_come_from_the_command_line_too(corpus, tmp_path):
    path = tiny.write_config(tmp_path / "c.py", settings(corpus))
    texts = ["seeds=0,1,2", "search.stages[-1].schedule.peak_lr=[1e-3,2e-3]", "runs.short.search={}"]
    sweep = build_sweep(load_config(path, texts))
    assert sweep.seeds == (0, 1, 2)
    assert sweep.search.key == "peak_lr"
    assert sweep.search.tries["grown"] == {"grown@peak_lr=0.001": 1e-3, "grown@peak_lr=0.002": 2e-3}
    assert list(sweep.search.tries) == ["grown", "scratch"] and "short" in sweep.runs
    assert [part.runs["short"].seed for part in sweep.by_seed.values()] == [0, 1, 2]
    stages = build_sweep(load_config(path, ["runs.grown.stages[-1].schedule.peak_lr=0.5"])).runs["grown"].stages
    assert [stage.schedule.peak_lr for stage in stages] == [1e-2, 0.5]


BAD = {
    "search.peak_lr must be a list of values, got []": {"search": {"peak_lr": []}},
    "search.peak_lr must be without a value twice, got 1": {"search": {"peak_lr": [1, 1.0]}},
    "search must be lists of values by key, got 3": {"search": 3},
    "vary.stages must be a list of numbers or names, got [1]": {"vary": {"stages": [[1]]}},
    "of every grown run alike, got one of grown and none of scratch": {"own": {"grown": {"search": LEARN}}},
    "got one of scratch, short and none of grown": {"search": LEARN, "own": {"grown": {"search": {}}}},
    "search of run grown must be 2 tries, as many as that of scratch, got 3": {
        "search": LEARN,
        "own": {"grown": {"search": {"peak_lr": [1, 2, 3]}}},
    },
    "over stages[-1].schedule.peak_lr, as that of scratch, got 'stages[-1].optimizer.weight_decay'": {
        "search": LEARN,
        "own": {"grown": {"search": {"weight_decay": [0.1, 0.2]}}},
    },
    "search of run grown must be over a setting, no seed: config.seeds trains several, got 'seed'": {
        "search": {"seed": [1, 2]}
    },
    "search of run grown must be over a key that vary does not set, got 'stages[1].schedule.peak_lr'": {
        "vary": LEARN,
        "own": {"grown": {"search": {"stages[1].schedule.peak_lr": [1, 2]}}},
    },
    "over one key, got": {"search": LEARN | {"weight_decay": [0.1, 0.2]}},
    "config key in runs.grown@sede=1 must be one of": {"search": {"sede": [1, 2]}},
    "index in stages[4].tokens of run grown must be 0 to 1, or from the end, -1 to -2, got '4'": {
        "vary": {"stages[4].tokens": [64]}
    },
    "config.seed must be unset where config.seeds are given, got 0": {"seeds": [0, 1], "seed": 0},
    "seed of a run must be unset where the sweep has seeds, got 2": {"seeds": [0, 1], "own": {"grown": {"seed": 2}}},
    "seeds must be without one twice, got (1, 1)": {"seeds": [1, 1]},
    "seeds must be >= 0": {"seeds": [-1]},
    "config.seeds must be a list such as [3], got 3": {"seeds": 3},
}


@pytest.mark.parametrize("line", BAD)
def test_a_bad_axis_is_one_line(line):
    with pytest.raises(InputError) as raised:
        build_sweep(settings(**BAD[line]))
    assert line in str(raised.value)


def test_every_short_name_stands_for_a_setting_of_the_last_stage():
    values = {"peak_lr": 0.5, "weight_decay": 0.25, "operator": "zero", "optimizer_state": "map"}
    assert values.keys() == SHORT.keys()
    sweep = build_sweep(settings(own={"grown": {"vary": {key: [value] for key, value in values.items()}}}))
    last = sweep.runs[sweep.grown[0]].stages[-1]
    found = last.schedule.peak_lr, last.optimizer.weight_decay, last.growth.operator, last.growth.optimizer_state
    assert found == tuple(values.values())


# Which try is the best.


def tries(*losses, values=None, status="done"):
    values = values or range(len(losses))
    rows = zip(values, losses, strict=True)
    return [{"value": v, "run": f"r@k={v}", "val_loss": loss, "status": status} for v, loss in rows]


def test_the_best_is_the_lowest_loss_and_of_equal_ones_the_smaller_value():
    assert best(tries(3.0, 2.0, 2.5), {}) == 1
    assert best(tries(2.0, 3.0, 2.0, values=[4, 2, 1]), {}) == 2
    assert best(tries(2.0, 2.0, values=["b", "a"]), {}) == 0  # names have no size: the first
    assert best(tries(None, 9.0), {}) == 1
    assert best(tries(None, None), {}) == LOST
    open_one = [*tries(1.0), *tries(None, values=[7], status="pending")]
    assert best(open_one, {}) == UNDECIDED
    assert best(open_one, {"r@k=7": {"status": "failed"}}) == BROKEN


# A search from its first try to the report.


@pytest.mark.slow
def test_two_seeds_of_a_search_end_to_end(corpus, tmp_path, capsys):
    """The good rate is known: with the other nothing is learned, and with the third the loss is not finite."""
    values = {"peak_lr": [NOTHING, GOOD, RUIN]}
    config = tiny.write_config(tmp_path / "c.py", settings(corpus, search=values, own={"short": {"search": {}}}))
    folder = tmp_path / "s"
    arguments = ["sweep", f"--config={config}", f"--workdir={folder}", "--config.seeds=3,4"]
    assert main([*arguments, "--list"]) == 0
    listing = capsys.readouterr().out
    assert "seed-3/scratch@peak_lr=1e-09" in listing and "the best of 3 tries of peak_lr" in listing
    assert "6 tries of peak_lr take " in listing and listing.splitlines()[-1].startswith("12 runs at 2 seeds, ")
    assert main(arguments) == 0
    said = capsys.readouterr()
    first, second = (written(folder / name) for name in ("seed-3", "seed-4"))
    assert first["search"] == second["search"]
    search = first["search"]
    assert (search["key"], search["seed"], list(search["runs"])) == ("peak_lr", 3, ["grown", "scratch"])
    for name, of_run in search["runs"].items():
        assert (of_run["chosen"], of_run["at_end"]) == (GOOD, False)
        assert [each["status"] for each in of_run["tries"]] == ["done", "done", "failed"]
        assert [each["run"] for each in of_run["tries"]] == [f"{name}@peak_lr={v}" for v in values["peak_lr"]]
        losses = [each["val_loss"] for each in of_run["tries"]]
        assert losses[1] < losses[0] and losses[2] is None
    # At the first seed the run is the try, and nothing was trained for it; at the other it has the value.
    assert tiny.records(folder / "seed-3" / "grown") == tiny.records(folder / "seed-3" / f"grown@peak_lr={GOOD}")
    assert all(stage["reused"] for stage in first["runs"]["grown"]["stages"])
    for seed in (3, 4):
        run = tiny.read_json(folder / f"seed-{seed}" / "grown" / "config.json")
        assert (run["seed"], run["stages"][-1]["schedule"]["peak_lr"]) == (seed, GOOD)
    assert list(second["runs"]) == ["grown", "scratch", "short"]
    assert {entry["status"] for entry in second["runs"].values()} == {"done"}
    # The FLOPs of the search are those of the other tries, of which the grown ones share the first stage.
    tried = sum(
        first["runs"][f"{name}@peak_lr={v}"]["stages"][-1]["flops"] for name in search["runs"] for v in (NOTHING, RUIN)
    )
    assert search["flops"] == tried
    # One group of two seeds, tries apart.
    (group,) = read_groups(folder)
    assert list(group.studies) == ["seed 3", "seed 4"] and list(group.first.runs) == ["grown", "scratch", "short"]
    assert len(group.first.trials) == 6
    assert (folder / "report.html").exists()
    assert "FLOPs beside" in said.out


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """The cheapest search, never interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "s"
    assert trained(two(corpus), folder) == {}
    return folder


@pytest.mark.slow
def test_a_search_that_is_stopped_at_every_step_chooses_the_same(corpus, whole, tmp_path):
    stop, folder, stops = StopRequest(), tmp_path / "s", 0
    stop.set()
    while True:
        try:
            assert trained(two(corpus), folder, stop=stop) == {}
            break
        except StoppedError:
            stops += 1
            assert stops < 30
            search = written(folder)["search"]["runs"]
            ended = [all(each["status"] == "done" for each in search[name]["tries"]) for name in search]
            assert [search[name]["chosen"] is not None for name in search] == ended
    assert stops >= 4  # in every try at least once
    assert written(folder)["search"] == written(whole)["search"]
    for name in ("grown", "scratch"):
        assert tiny.timeless(folder / name) == tiny.timeless(whole / name)


def test_one_run_of_a_search_has_its_tries_trained_first(corpus, tmp_path):
    folder = tmp_path / "s"
    config = two(corpus, seeds=[0, 1])
    plan = plan_sweep(build_sweep(config))
    assert plan.select("seed-1/grown") == [
        f"seed-0/grown@peak_lr={NOTHING}",
        f"seed-0/grown@peak_lr={GOOD}",
        "seed-1/grown",
    ]
    assert list(plan.runs) == plan.config.run_folders
    assert plan.select("scratch")[-2:] == ["seed-0/scratch", "seed-1/scratch"]
    with pytest.raises(InputError, match=r"run must be one of grown, .*got 'grwn'; did you mean 'grown'"):
        plan.select("grwn")
    assert trained(config, folder, "seed-1/grown") == {}
    status = {name: entry["status"] for name, entry in written(folder / "seed-0")["runs"].items()}
    assert (status["grown"], status[f"grown@peak_lr={GOOD}"], status["scratch"]) == ("pending", "done", "pending")
    assert written(folder / "seed-1")["search"]["runs"]["grown"]["chosen"] == GOOD
    assert tiny.records(folder / "seed-1" / "grown")[-1]["step"] == 4


@pytest.mark.slow
def test_a_try_that_another_process_trains_is_waited_for(corpus, tmp_path, monkeypatch):
    config, folder = two(corpus), tmp_path / "s"
    plan = plan_sweep(build_sweep(config), folder)
    theirs, waited = f"grown@peak_lr={GOOD}", []
    stage = folder / "stages" / plan.runs[theirs].stages[0].stage_hash
    stage.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(plain(plan.config)))
    other = contextlib.ExitStack()
    other.enter_context(locked(stage))

    def end_other(pending, *args, **options):
        waited.append(list(pending))
        other.close()

    monkeypatch.setattr(sweep_module, "_wait", end_other)
    assert run_sweep(plan, folder, StopRequest(), "", plan.select(None)) == {}
    (left,) = waited
    assert {theirs, "grown"} <= {*left} and f"grown@peak_lr={NOTHING}" not in left
    assert written(folder)["search"]["runs"]["grown"]["chosen"] == GOOD


def test_a_search_of_which_every_try_diverges_fails_and_one_that_broke_goes_on(corpus, tmp_path, monkeypatch):
    config, folder = two(corpus), tmp_path / "s"
    config["runs"]["grown"]["search"] = {"peak_lr": [RUIN, 2 * RUIN]}
    real, broken = sweep_module.train_run, f"scratch@peak_lr={NOTHING}"

    begun = []

    def train_run(plan, *, folder, **settings):
        begun.append(folder.name)
        if folder.name == broken and begun.count(broken) == 1:
            raise InputError("checkpoint 3 is damaged")
        real(plan, folder=folder, **settings)

    monkeypatch.setattr(sweep_module, "train_run", train_run)
    assert trained(config, folder) == {
        "grown": "none of its 2 tries has a finite validation loss",
        broken: "checkpoint 3 is damaged",
        "scratch": "its search needs every try, and one failed: the same command trains that again",
    }
    search, runs = written(folder)["search"]["runs"], written(folder)["runs"]
    assert [each["status"] for each in search["grown"]["tries"]] == ["failed", "failed"]
    assert [each["status"] for each in search["scratch"]["tries"]] == ["pending", "done"]
    assert {runs[name]["status"] for name in ("grown", "scratch")} == {"failed"}
    path = tiny.write_config(tmp_path / "c.py", config)
    ruined = f"--run=grown@peak_lr={RUIN}"
    assert main(["sweep", f"--config={path}", f"--workdir={folder}", ruined]) == 0  # it is a try, and there is no run
    assert list(trained(config, folder)) == ["grown"]
    assert written(folder)["search"]["runs"]["scratch"]["chosen"] == GOOD
    again = {f"grown@peak_lr={value}": begun.count(f"grown@peak_lr={value}") for value in (RUIN, 2 * RUIN)}
    assert set(again.values()) == {1}  # a try that diverged is not made again


# Going on in the same folder.


def test_further_values_and_seeds_go_on_and_fewer_are_refused(corpus, whole, tmp_path):
    folder = tmp_path / "s"
    shutil.copytree(whole, folder)
    before = tiny.snapshot(folder / "stages")
    with pytest.raises(InputError, match=f"has a run 'grown@peak_lr={NOTHING}' that this one has not"):
        trained(two(corpus, {"peak_lr": [GOOD, 0.05]}), folder)
    with pytest.raises(InputError, match=r"seeds must be unset, as in .*, got \[0, 1\]"):
        trained(two(corpus, seeds=[0, 1]), folder)
    assert tiny.snapshot(folder / "stages") == before
    # A better value than the best of before: the runs are that, and their folders made anew.
    config = two(corpus, {"peak_lr": [GOOD, NOTHING, 0.05]})
    run_sweep(plan_sweep(build_sweep(config), folder), folder, StopRequest(), "", [])
    found = written(folder)
    assert {found["runs"][name]["status"] for name in ("grown", "scratch")} == {"pending"}
    assert {of_run["chosen"] for of_run in found["search"]["runs"].values()} == {None}
    assert trained(config, folder) == {}
    found = written(folder)
    for name, of_run in found["search"]["runs"].items():
        assert (of_run["chosen"], of_run["at_end"]) == (0.05, True)
        assert tiny.records(folder / name) == tiny.records(folder / f"{name}@peak_lr=0.05")
        assert tiny.read_json(folder / name / "config.json")["stages"][0]["schedule"]["peak_lr"] == 0.05
    assert {entry["status"] for entry in found["runs"].values()} == {"done"}
    assert before.keys() <= tiny.snapshot(folder / "stages").keys()


def test_seeds_may_be_added_but_not_taken_away(corpus, tmp_path):
    folder = tmp_path / "s"
    runs = {"a": [tiny.stage(2)]}
    for seeds in ([4], [4, 2]):
        assert trained(tiny.sweep(corpus, runs, "a", seeds=seeds), folder) == {}
    assert [group.studies.keys() for group in read_groups(folder)] == [{"seed 2", "seed 4"}]
    with pytest.raises(InputError, match="whose sweep has a seed 2 that this one has not"):
        trained(tiny.sweep(corpus, runs, "a", seeds=[4]), folder)
    with pytest.raises(InputError, match=r"seeds must be \[4, 2\] and further ones.*got \[\]"):
        trained(tiny.sweep(corpus, runs, "a"), folder)
    assert trained(tiny.sweep(corpus, runs, "a", seeds=[2, 4]), folder) == {}  # nothing was searched at the first


def test_an_archive_of_seeds_says_what_the_folder_says(corpus, tmp_path):
    folder, copy = tmp_path / "s", tmp_path / "copy"
    assert trained(two(corpus, seeds=[0, 1], evaluation={"batches": 1, "every_tokens": tiny.STEP}), folder) == {}
    assert main(["archive", f"--workdir={folder}", f"--output={copy}"]) == 0
    assert not list(copy.rglob("checkpoints")) and (copy / "config.json").exists()
    assert (copy / "seed-0" / f"grown@peak_lr={NOTHING}" / "metrics.jsonl").exists()
    assert overview(copy) == overview(folder)
    assert "grown, scratch: the best peak_lr, 0.01, lies at the end of what was tried, 1e-09 to 0.01" in overview(copy)
    names = [[run.name for run in outcomes(where)[0]] for where in (folder, copy)]
    assert names == [[f"seed-{seed}/{name}" for seed in (0, 1) for name in ("grown", "scratch")]] * 2
    shutil.rmtree(copy / "seed-1" / "scratch")
    (copy / "seed-1" / "sweep.json").write_text(json.dumps(written(copy / "seed-1") | {"runs": {"grown": {}}}))
    with pytest.raises(InputError, match=r"run grown of .*seed-1 must have ended, got pending"):
        sweep_archive(copy, tmp_path / "again")
