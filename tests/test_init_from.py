"""init_from: a run begins with the weights of a saved model and all else is new; no folder is taken for another."""

import contextlib
import dataclasses
import json
import os
import shutil
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from eight import on_eight_devices
from prepared import prepared, write_sources
from trees import exact_products, leaf_at, noisy

import growlm
from growlm import read_config, read_model, write_model
from growlm.__main__ import main
from growlm.data import batches, load_corpus, validation_batches
from growlm.errors import InputError, StoppedError
from growlm.models import ModelConfig, RopeScaling, next_token_loss, parameter_count
from growlm.report.report import summarise, table
from growlm.report.timing import fit_timing
from growlm.training import run as run_module
from growlm.training.config import build_run, load_config
from growlm.training.init_from import find_source
from growlm.training.run import train
from growlm.training.saved import find_saved
from growlm.training.stages import resolve
from growlm.training.sweep import plan_sweep, run_sweep
from growlm.training.variants import build_sweep

exact = pytest.fixture(autouse=True, scope="module")(exact_products.__wrapped__)

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
STEP = tiny.STEP
GO_ON = threading.Event()  # never set
SMALL = ModelConfig(**tiny.MODEL | {"layers": 2, "norm_eps": 1e-3})
LARGE = dataclasses.replace(SMALL, layers=3)
COSINE = {"kind": "cosine", "peak_lr": 1e-2, "warmup_tokens": 2 * STEP}
PRO = {"operator": "llama_pro"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a text, and of SMALL a Hugging Face checkpoint, `theirs`, and a run with a growth, `ours`."""
    folder = tmp_path_factory.mktemp("home")
    tiny.write_corpus(folder)
    write_model(folder / "theirs", SMALL, noisy(SMALL), dtype="bfloat16", shard=9000)
    train(config_of(folder, *OURS), folder / "ours", GO_ON)
    return folder


def text(home) -> str:
    return str(home / "corpus.txt")


def first(folder, steps, **options):
    """A first stage that begins with what a folder holds."""
    return tiny.stage(steps, model=dataclasses.asdict(read_config(folder)), init_from=str(folder)) | options


def grown(steps, model=LARGE, growth=PRO, **options):
    return tiny.grown(steps, model=dataclasses.asdict(model), growth=growth) | options


def config_of(home, *stages, **options):
    return tiny.run_config(text(home), *stages, **options)


def end_of(folder, *stage):
    return tiny.read_checkpoint(tiny.checkpoints(folder)[stage])


def key_of(path):
    """The key that a checkpoint has for a parameter."""
    return "['params']" + "".join(f"['{name}']" for name in path.split("/"))


def assert_same_end(have, want, *stage):
    tiny.assert_same_arrays(end_of(have, *stage), end_of(want, *stage))
    assert tiny.timeless(have) == tiny.timeless(want)


OURS = tiny.stage(2, model=dataclasses.asdict(SMALL) | {"layers": 1}), grown(2, SMALL, {"operator": "direct"})


@pytest.fixture
def began(monkeypatch):
    """The states with which stages begin to be trained, in order."""
    states = []

    def train_and_tell(stage, state, **settings):
        states.append(tiny.copy_of(dataclasses.replace(state, key=jax.random.key_data(state.key))))
        return train_stage(stage, state, **settings)

    train_stage = run_module.train_stage
    monkeypatch.setattr(run_module, "train_stage", train_and_tell)
    return states


# --- What a run begins with ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["theirs", "ours"])
def test_the_weights_are_the_sources_bit_for_bit_and_all_else_is_new(home, tmp_path, began, name):
    model, params = read_model(home / name)
    stage = first(home / name, 2, schedule=COSINE, optimizer={"ema": 0.5})
    train(config_of(home, stage, seed=3), tmp_path / "run", GO_ON)

    (state,) = began
    for tree in (state.params, state.ema):
        assert jax.tree.structure(tree) == jax.tree.structure(params)
        for have, want in zip(jax.tree.leaves(tree), jax.tree.leaves(params), strict=True):
            assert have.dtype == np.float32 and np.array_equal(have, want)
    assert (state.step, state.tokens, state.examples) == (0, 0, 0)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))
    assert np.array_equal(state.key, jax.random.key_data(jax.random.split(jax.random.key(3))[1]))
    assert all(not np.any(kind) for _, kind in state.provenance.values())

    # Its loss, on the first batch and on what is held out; the rate warms up anew, and costs begin at nothing.
    corpus, shape = load_corpus(text(home)), {"batch": tiny.BATCH, "length": tiny.LENGTH}
    begin, *steps = tiny.records(tmp_path / "run")
    held_out = [
        next_token_loss(model, params, rows) for rows in validation_batches(corpus.validation, count=2, **shape)
    ]
    batch = next(iter(batches(corpus.train, seed=3, start=0, **shape)))
    assert begin["val_loss"] == pytest.approx(np.mean(held_out), rel=1e-6)
    assert steps[0]["loss"] == pytest.approx(float(next_token_loss(model, params, batch)), rel=1e-6)
    assert [record["learning_rate"] for record in steps] == [5e-3, 1e-2]
    assert (begin["tokens"], begin["flops"]) == (0, 0)
    assert steps[-1]["flops"] == 6 * parameter_count(model) * 2 * STEP


@pytest.mark.parametrize("name", ["theirs", "ours"])
def test_growth_at_once_costs_nothing_and_keeps_the_function(home, tmp_path, began, name):
    small, params = read_model(home / name)
    large = dataclasses.replace(small, layers=small.layers + 1)
    config = config_of(home, first(home / name, 0), grown(2, large))
    train(config, tmp_path / "run", GO_ON)

    before, after = began
    source, begin, *steps = tiny.records(tmp_path / "run")
    assert [(record["stage"], record["step"]) for record in (source, begin, *steps)] == [(0, 0), (1, 0), (1, 1), (1, 2)]
    assert begin["val_loss"] == pytest.approx(source["val_loss"], abs=1e-6)
    tokens = np.arange(2 * tiny.LENGTH, dtype=np.int32).reshape(2, -1)
    logits = growlm.apply(small, params, tokens), growlm.apply(large, after.params, tokens)
    np.testing.assert_allclose(*logits, atol=1e-5)
    assert after.params["blocks"]["mlp"]["up"].shape[0] == large.layers
    assert (steps[-1]["tokens"], steps[-1]["flops"]) == (2 * STEP, 6 * parameter_count(large) * 2 * STEP)
    assert set(tiny.checkpoints(tmp_path / "run")) == {(0, 2)}
    report = tiny.read_json(tmp_path / "run" / "growth-1.json")
    assert (report["step"], report["preserves_function"]) == (0, True)
    cost = {"theirs": "FLOPs are not known", "ours": "FLOPs are not counted"}
    (row,) = summarise(tmp_path / "run")
    assert row.note.startswith(f"begins from {name}, whose ") and row.note.endswith(cost[name])
    assert row.note in table([row])

    # The originals are frozen, as the preset has it: only what was added has moved.
    end, order = end_of(tmp_path / "run", 0, 2), report["order"]
    new = [layer > 0 and order[layer] == order[layer - 1] for layer in range(large.layers)]
    assert sum(new) == 1
    for path in ("blocks/mlp/up", "blocks/attn_norm/scale"):
        moved = end[key_of(path)] != leaf_at(after.params, path)
        assert [layer.any() for layer in moved] == new
    for path in ("embedding", "head", "final_norm/scale"):
        assert np.array_equal(end[key_of(path)], leaf_at(before.params, path))


def test_a_growth_that_does_not_keep_the_function_is_that_of_growlm_grow(home, tmp_path, began):
    _, params = read_model(home / "theirs")
    target = dataclasses.replace(SMALL, layers=4, mlp=36)
    train(config_of(home, first(home / "theirs", 0), grown(1, target, {"operator": "direct"})), tmp_path / "run", GO_ON)
    want = growlm.grow(params, SMALL, target, "direct")
    jax.tree.map(np.testing.assert_array_equal, began[1].params, tiny.copy_of(want))
    source, begin, _ = tiny.records(tmp_path / "run")
    assert abs(begin["val_loss"] - source["val_loss"]) > 1e-4


# --- What a run says of it -------------------------------------------------------------------------------------------


def test_what_was_spent_before_is_not_billed_and_not_forgotten(home, tmp_path, capsys):
    train(config_of(home, first(home / "ours", 1)), tmp_path / "next", GO_ON)
    spent = {name: tiny.records(home / "ours")[-1][name] for name in ("tokens", "flops")}
    said = tiny.read_json(tmp_path / "next" / "init_from.json")
    assert said.pop("fingerprint") == find_source(home / "ours").fingerprint
    assert said == {"folder": str(home / "ours"), "kind": "growlm", "step": 4} | spent
    assert f"next 1/1: begins from {home / 'ours'} (growlm, step 4); its 256 tokens and" in capsys.readouterr().err

    # Through a chain of runs, and of growths, the sum is kept; where nobody knows it, nobody says it.
    train(config_of(home, first(tmp_path / "next", 2)), tmp_path / "last", GO_ON)
    model, _, state = tiny.load_saved(tmp_path / "last")
    assert (model.layers, state.tokens) == (2, 2 * STEP)
    last = find_saved(tmp_path / "last")
    own = sum(tiny.records(tmp_path / name)[-1]["flops"] for name in ("next", "last"))
    assert (last.tokens, last.flops) == (spent["tokens"] + 3 * STEP, pytest.approx(spent["flops"] + own))
    arguments = ["--operator=zero", "--factor=2", f"--output={tmp_path / 'big'}", "--no_verify"]
    assert main(["grow", f"--source={tmp_path / 'last'}", *arguments]) == 0
    big = find_source(tmp_path / "big")
    assert (big.tokens, big.flops, big.model.layers) == (last.tokens, last.flops, 4)

    train(config_of(home, first(home / "theirs", 1)), tmp_path / "of theirs", GO_ON)
    said = tiny.read_json(tmp_path / "of theirs" / "init_from.json")
    assert said["kind"] == "Hugging Face, llama" and said["tokens"] is said["flops"] is None
    assert "(Hugging Face, llama); its cost is not known" in capsys.readouterr().err
    unknown = find_saved(tmp_path / "of theirs")
    assert unknown.tokens is unknown.flops is None


def test_a_folder_of_grow_and_a_sweeps_run_are_sources_too(home, tmp_path):
    runs = {"short": [first(home / "theirs", 2)], "grown": [first(home / "theirs", 0), grown(1)]}
    sweep = plan_sweep(tiny.sweep_config(text(home), runs, "short"), tmp_path / "sweep")
    assert run_sweep(sweep, tmp_path / "sweep", GO_ON, "", sweep.select(None)) == {}
    shared = {run.stages[0].stage_hash for run in sweep.runs.values()}
    assert len(shared) == 1  # what trains nothing is the beginning of what trains
    assert main(["convert", f"--source={home / 'theirs'}", "--to=growlm", f"--output={tmp_path / 'ours'}"]) == 0
    for folder, layers in ((tmp_path / "sweep" / "grown", 3), (tmp_path / "ours", 2)):
        source = find_source(folder)
        config, params = read_model(folder)
        assert source.model == config and config.layers == layers
        run = config_of(home, tiny.stage(1))
        read = source.read(run_module.mesh_of(run.mesh, run.batch_sizes))
        jax.tree.map(np.testing.assert_array_equal, read, params)
    assert find_source(tmp_path / "ours").tokens is None


# --- Going on --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(home, tmp_path_factory):
    """The run that others must end like: 2 steps of what `theirs` holds, and 2 of it grown."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(config_of(home, *stages_of(home / "theirs", 2)), folder, GO_ON)
    return folder


def stages_of(folder, steps):
    return first(folder, steps, schedule=COSINE), grown(2, schedule=COSINE)


def test_stopped_after_every_step_it_ends_with_the_same_bits_and_needs_the_source_no_more(home, whole, tmp_path):
    shutil.copytree(home / "theirs", tmp_path / "copy")
    config = config_of(home, *stages_of(tmp_path / "copy", 2))
    stop = threading.Event()
    stop.set()
    with pytest.raises(StoppedError):
        train(config, tmp_path / "run", stop)
    shutil.rmtree(tmp_path / "copy")
    assert tiny.train_in_parts(config, tmp_path / "run") == 3
    for stage in ((0, 2), (2, 4)):
        assert_same_end(tmp_path / "run", whole, *stage)
    assert find_saved(tmp_path / "run").step == 4


@pytest.mark.parametrize("steps", [0, 2])
def test_killed_before_its_first_checkpoint_it_begins_again(home, whole, tmp_path, monkeypatch, steps):
    config = config_of(home, *stages_of(home / "theirs", steps))

    class Killed(BaseException):
        pass

    def die(*args, **settings):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(run_module, "train_stage", die)
        train(config, tmp_path / "run", GO_ON)
    train(config, tmp_path / "run", GO_ON)
    if steps:
        assert_same_end(tmp_path / "run", whole, 2, 4)
    else:
        assert [(r["stage"], r["step"]) for r in tiny.records(tmp_path / "run")] == [(0, 0), (1, 0), (1, 1), (1, 2)]
        with monkeypatch.context() as patch:  # all is there: nothing is read, grown or trained
            patch.setattr(run_module, "train_stage", die)
            train(config, tmp_path / "run", GO_ON)


def test_without_a_checkpoint_of_its_own_it_needs_the_source(home, tmp_path, monkeypatch):
    shutil.copytree(home / "theirs", tmp_path / "copy")
    config = config_of(home, first(tmp_path / "copy", 2))
    with monkeypatch.context() as patch, contextlib.suppress(ZeroDivisionError):
        patch.setattr(run_module, "train_stage", lambda *args, **settings: 1 / 0)
        train(config, tmp_path / "run", GO_ON)
    shutil.rmtree(tmp_path / "copy")
    with pytest.raises(InputError, match=r"init_from '.*copy' is gone, and the stage is not trained yet"):
        train(config, tmp_path / "run", GO_ON)


# --- Which checkpoint it is ------------------------------------------------------------------------------------------


def change(folder, weight, position):
    """One value of a Hugging Face folder's weight, in another folder."""
    config, params = read_model(folder)
    value = np.array(params["blocks"]["mlp"][weight])
    value.reshape(-1)[position] += 1
    mlp = params["blocks"]["mlp"] | {weight: value}
    return config, params | {"blocks": params["blocks"] | {"mlp": mlp}}


def test_a_fingerprint_is_of_the_content_wherever_it_lies(home, tmp_path):
    for name in ("theirs", "ours"):
        shutil.copytree(home / name, tmp_path / name)
        os.utime(tmp_path / name)
        assert find_source(tmp_path / name).fingerprint == find_source(home / name).fingerprint
    marks = {find_source(home / name).fingerprint for name in ("theirs", "ours")}
    for number, (weight, position) in enumerate((("up", 0), ("down", -1), ("gate", 400))):
        write_model(tmp_path / f"{number}", *change(home / "theirs", weight, position), dtype="bfloat16")
        marks.add(find_source(tmp_path / f"{number}").fingerprint)
    write_model(tmp_path / "eps", dataclasses.replace(SMALL, norm_eps=1e-4), read_model(home / "theirs")[1])
    train(config_of(home, *OURS), tmp_path / "again", GO_ON)
    marks |= {find_source(tmp_path / name).fingerprint for name in ("eps", "again")}
    assert len(marks) == 7


def test_another_checkpoint_in_the_same_place_is_not_taken_for_the_same(home, tmp_path):
    shutil.copytree(home / "theirs", tmp_path / "copy")
    config = config_of(home, first(tmp_path / "copy", 1))
    train(config, tmp_path / "run", GO_ON)
    before, planned = find_source(tmp_path / "copy").fingerprint, run_module.plan_run(config).config
    shutil.rmtree(tmp_path / "copy")
    write_model(tmp_path / "copy", *change(home / "theirs", "up", 0))
    after = find_source(tmp_path / "copy").fingerprint

    line = rf"run, which holds a different run: stages\[0\].init_fingerprint is '{before}' there and '{after}' here"
    with pytest.raises(InputError, match=line):
        train(config, tmp_path / "run", GO_ON)
    addresses = {resolve(run, "corpus")[0].stage_hash for run in (planned, run_module.plan_run(config).config)}
    assert len(addresses) == 2

    # Told that it is the old one, a run goes on with what it has, and does not begin with what is there.
    train(planned, tmp_path / "run", GO_ON)
    line = f"must be {before}, with which this run began, got {after}"
    with pytest.raises(InputError, match=line):
        train(planned, tmp_path / "new", GO_ON)


def test_addresses_of_other_runs_are_what_they_were(home):
    stage = resolve(tiny.run_config("c", tiny.stage(2)), "f")[0]
    assert not {"init_from", "init_fingerprint"} & stage.settings.keys()
    moved = [run_module.plan_run(config_of(home, first(home / "theirs", 1))).config for _ in range(2)]
    elsewhere = dataclasses.replace(moved[1].stages[0], init_from="elsewhere")
    moved[1] = dataclasses.replace(moved[1], stages=(elsewhere,))
    assert len({resolve(run, "f")[0].stage_hash for run in moved}) == 1


# --- What is refused, in one line ------------------------------------------------------------------------------------

BAD = {
    "no folder": (
        {"init_from": "nowhere"},
        "init_from must be a Hugging Face checkpoint or .* got 'nowhere', no folder",
    ),
    "a file": ({"init_from": __file__}, "init_from must be a Hugging Face checkpoint .*, no folder"),
    "a folder of another kind": ({"init_from": str(EXPERIMENTS)}, "init_from: source must be .* which holds no model"),
    "nothing": ({"init_from": ""}, "init_from: source must be .* got ., which holds no model"),
    "another size": (
        {"model": dataclasses.asdict(SMALL) | {"heads": 4, "mlp": 5}},
        r"stages\[0\].model.heads must be that of init_from .*theirs, 2, got 4",
    ),
    "another variant": (
        {"model": dataclasses.asdict(SMALL) | {"norm_eps": 1e-5}},
        "norm_eps must be that of init_from .*, 0.001, got 1e-05",
    ),
    "less than a batch": ({"tokens": 7}, "stage.tokens must be at least one batch, .*, got 7"),
    "no tokens and no stage after it": ({"tokens": 0}, r"stages\[0\].tokens must be > 0 where no stage follows, got 0"),
    "no tokens of fresh weights": (
        {"tokens": 0, "init_from": None},
        r"stages\[0\].tokens must be > 0 where no stage follows, got 0",
    ),
    "a fingerprint of nothing": (
        {"init_from": None, "init_fingerprint": "a"},
        "init_fingerprint must be unset without stage.init_from",
    ),
    "growth": ({"growth": PRO}, r"stages\[0\] takes no growth: it is what the next one grows"),
    "new slices without growth": (
        {"optimizer": {"learning_rates": {"old": 0.1}}},
        "in a stage without growth, got 'old'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_one_line_and_nothing_is_written(home, tmp_path, monkeypatch, capsys, case):
    monkeypatch.chdir(tmp_path)
    options, line = BAD[case]
    run = tiny.write_config(tmp_path / "run.py", tiny.run(text(home), first(home / "theirs", 1) | options))
    assert main(["train", f"--config={run}", "--workdir=run"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    with pytest.raises(InputError, match=line):
        raise InputError(said)
    assert not Path("run").exists()


def test_a_later_stage_takes_none(home):
    with pytest.raises(InputError, match=r"stages\[1\].init_from must be unset after the first stage"):
        config_of(home, tiny.stage(1), grown(1, init_from=str(home / "theirs")))


def test_a_sweep_and_a_model_under_masks_are_no_sources(home, tmp_path):
    tiny.write_config(tmp_path / "sweep.py", tiny.sweep(text(home), {"one": [tiny.stage(1)]}, "one"))
    run_sweep(plan_sweep(build_sweep(load_config(f"{tmp_path}/sweep.py", []))), tmp_path / "sweep", GO_ON, "", [])
    with pytest.raises(InputError, match="is a sweep, and must be one of its runs"):
        find_source(tmp_path / "sweep")
    ramp = ["--operator=random", "--option.mask_tokens=256", "--target.mlp=36", "--no_verify"]
    assert main(["grow", f"--source={home / 'ours'}", f"--output={tmp_path / 'masked'}", *ramp]) == 0
    with pytest.raises(InputError, match="masks of the growth must be open, got 0 % at step 4 of"):
        find_source(tmp_path / "masked")


def test_a_corpus_of_other_tokens_is_refused_where_that_can_be_told(home, tmp_path):
    pytest.importorskip("tokenizers", reason="needs the extra data: pip install growlm[data]")
    own = prepared(
        write_sources(tmp_path / "text"),
        tmp_path / "own",
        tokenizer=None,
        train_tokenizer="bpe",
        vocab=300,
        validation="0.2",
    )
    model = dataclasses.replace(SMALL, vocab=300)
    write_model(tmp_path / "model", model, noisy(model), carried=[own / "tokenizer.json"])
    config = config_of(home, first(tmp_path / "model", 1))
    with pytest.raises(
        InputError, match=r"tokens of corpus .* must be those of init_from .*model, .* got those of 'bytes'"
    ):
        train(config, tmp_path / "run", GO_ON)
    assert not (tmp_path / "run").exists()
    run_module.plan_run(dataclasses.replace(config, corpus=str(own)))  # its own, in another folder

    # A folder that says bytes, and a run on prepared tokens, which knows its corpus's.
    shutil.copytree(home / "theirs", tmp_path / "told")
    (tmp_path / "told" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "bytes"}))
    config = config_of(home, first(tmp_path / "told", 1))
    run_module.plan_run(config)
    train(tiny.run_config(str(own), tiny.stage(1, model=dataclasses.asdict(model))), tmp_path / "trained", GO_ON)
    with pytest.raises(InputError, match=r"must be those of init_from .*trained, .*own.* got those of 'bytes'"):
        run_module.plan_run(config_of(home, first(tmp_path / "trained", 1)))
    with pytest.raises(InputError, match=r"model.vocab must be >= the 300 tokens of .*, got 256"):
        run_module.plan_run(dataclasses.replace(config, corpus=str(own)))


# --- Configs, meshes and the experiment ------------------------------------------------------------------------------


def test_a_config_says_whatever_a_model_has(home, tmp_path):
    """Through a file, ml_collections, the command line's borders and config.json, and back."""
    scaling = RopeScaling("llama3", 8.0, 1.0, 4.0, 32)
    model = dataclasses.replace(SMALL, rope_scaling=scaling, qkv_bias=True, tie_embeddings=True, rope_theta=5e5)
    write_model(tmp_path / "one", model, noisy(model))
    other = dataclasses.replace(SMALL, qk_norm=True, sliding_window=8)
    write_model(tmp_path / "two", other, noisy(other))
    for name in ("one", "two"):
        settings = tiny.run(text(home), first(tmp_path / name, 1))
        file = tiny.write_config(tmp_path / f"{name}.py", settings)
        run = build_run(load_config(file, []))
        assert run.stages[0].model == read_config(tmp_path / name)
        plan = run_module.plan_run(run)
        held = json.loads(json.dumps(dataclasses.asdict(plan.config)))
        assert build_run(held) == plan.config


@pytest.mark.slow
def test_weights_come_to_rest_where_a_mesh_has_them_and_train_as_on_one_device(home, tmp_path):
    settings = tiny.run(text(home), first(home / "theirs", 0), grown(2))
    script = Path(__file__).parent / "sharded_init.py"
    said = on_eight_devices(script, home / "theirs", home / "ours", json.dumps(settings), tmp_path / "eight")
    train(build_run(settings), tmp_path / "one", GO_ON)
    losses = [record["loss"] or record["val_loss"] for record in tiny.records(tmp_path / "one")]
    assert said == {"equal": True, "resting": True, "parts": [4, 4], "losses": pytest.approx(losses, rel=1e-5)}


@pytest.mark.slow
def test_the_experiment_runs_on_both_kinds_of_checkpoint(home, tmp_path, capsys):
    config = f"{EXPERIMENTS / 'continue_from_checkpoint.py'}:tiny"
    for folder in (home / "theirs", home / "ours"):
        plan = plan_sweep(build_sweep(load_config(f"{config}:{folder}", [f"corpus={text(home)}"])))
        costs = {name: run.stages[-1].cost_at(run.stages[-1].last_step).flops for name, run in plan.runs.items()}
        assert costs == pytest.approx(dict.fromkeys(costs, costs["small"]), rel=0.1)
        assert set(plan.runs) == {plan.config.baseline, *plan.config.grown, *plan.config.controls}
    arguments = [f"--config={config}:{home / 'theirs'}", f"--workdir={tmp_path / 'sweep'}"]
    assert main(["sweep", *arguments, f"--config.corpus={text(home)}"]) == 0
    assert "speed-up" in capsys.readouterr().out
    ends = {name: tiny.records(tmp_path / "sweep" / name) for name in plan.runs}
    begun = {name: [r["val_loss"] for r in records if r["step"] == 0] for name, records in ends.items()}
    assert np.ptp([loss for losses in begun.values() for loss in losses]) < 1e-5  # all begin as the checkpoint
    assert len({records[-1]["val_loss"] for records in ends.values()}) == 6  # and every policy ends elsewhere
    assert (tmp_path / "sweep" / "report.html").exists()
    with pytest.raises(InputError, match="rewarm began from a saved model: the tokens before its growth are not known"):
        fit_timing(tmp_path / "sweep", print)
    for name in ("", ":", ":theirs"):
        with pytest.raises(InputError):
            load_config(f"{EXPERIMENTS / 'continue_from_checkpoint.py'}{name}", [])
