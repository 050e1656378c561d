"""The command line: bad input is one clear line and exit code 2, and nothing is written; so is a run that diverges."""

import dataclasses
import html
import importlib.metadata
import json
import math
import os
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import tiny
from representatives import few

from growlm.__main__ import main
from growlm.training import loop, programs
from growlm.training.metrics import commit, hardware
from growlm.training.overrides import literal

ROOT = Path(__file__).resolve().parents[1]
STEP = tiny.STEP


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def bench(tmp_path, monkeypatch, corpus):
    """A folder with the config of a run and of a sweep, which is the current one."""
    first, second = tiny.stage(4), tiny.grown(4, growth={"operator": "direct", "options": {"order": "stack"}})
    tiny.write_config(tmp_path / "run.py", tiny.run(corpus, first, second))
    runs = {"scratch": [tiny.stage(6)], "grown": [first, second]}
    tiny.write_config(tmp_path / "sweep.py", tiny.sweep(corpus, runs, baseline="scratch", seed=0))
    monkeypatch.chdir(tmp_path)
    return tmp_path


TRAIN = ("train", "--config=run.py", "--workdir=work")
SWEEP = ("sweep", "--config=sweep.py", "--workdir=work")


def refused(capsys, bench, *arguments):
    """The one line that is said when the input is bad; the folder must be as it was."""
    before = tiny.snapshot(bench)
    assert main(list(arguments)) == 2
    err = capsys.readouterr().err
    assert err.startswith("growlm: ") and err.endswith("\n"), err
    assert len(err.splitlines()) == 1, err
    assert tiny.snapshot(bench) == before
    return err


def test_config_py_files_are_not_in_the_way(bench):
    """What importing a config leaves, such as __pycache__, would hide a real change below."""
    assert sorted(tiny.snapshot(bench)) == ["run.py", "sweep.py"]


# What is set, and what the message must name: the value, and what is allowed.
BAD_SETTINGS = {
    "stages[0].tokens=63": ("stages[0]", "63", "4 x 16 = 64"),
    "stages[0].tokens=6.5": ("stages[0].tokens", "6.5", "int"),
    "stages[0].model.layers=3": ("model.layers must be >= the source's, 3", "got 2"),
    "stages[1].model.embed=8": ("model.embed must be >= the source's, 16", "got 8"),
    "stages[0].model.heads=3": ("heads must be a multiple of model.kv_heads, 2", "got 3"),
    "stages[0].model.kv_heads=0": ("kv_heads", "0", "positive"),
    "stages[0].model.head_dim=7": ("head_dim", "7", "even"),
    "stages[0].model.rope_theta=1e999": ("rope_theta", "inf", "positive"),
    "stages[0].model.vocab=100": ("vocab", "100", "256"),
    "stages[0].model.layers=True": ("layers", "True", "int"),
    "stages[0].model=3": ("model", "3", "keys of a model"),
    "stages[1].growth.operator=drect": ("'drect'", "'direct'"),
    "stages[1].growth.operator=zzz": ("'zzz'", "growth operator or preset"),
    "stages[1].growth.options.order=stck": ("'stck'", "did you mean 'stack'", "interleave"),
    "stages[1].growth.options.order=[0,1]": ("0 to 0", "got 1"),
    "stages[1].growth.options.order=[0]": ("list of 2 layers", "got 1"),
    "stages[1].growth.options.order=[0,'a']": ("'a'", "0 to 0"),
    "stages[1].growth.options.order=5": ("5", "stack", "interleave"),
    "stages[1].growth.options.ordr=stack": ("'ordr'", "did you mean 'order'"),
    "stages[1].growth.optimizer_state=kept": ("'kept'", "keep_old, map, map_aged, reset"),
    "stages[1].growth=None": ("stages[1]", "growth"),
    "stages[0].growth={'operator':'direct'}": ("stages[0]", "no growth"),
    "stages[0].schedule.peak_lr=nan": ("schedule.peak_lr", "'nan'", "float"),
    "stages[0].schedule.peak_lr=1e999": ("schedule.peak_lr", "inf", "finite"),
    "stages[0].schedule.peak_lr=-0.5": ("schedule.peak_lr", "-0.5", "> 0"),
    "stages[0].schedule.end_lr_ratio=2": ("schedule.end_lr_ratio", "2.0", ">= 0 and <= 1"),
    "stages[0].schedule.warmup_tokens=-1": ("warmup_tokens", "-1", ">= 0"),
    "stages[0].schedule.kind=cosin": ("'cosin'", "did you mean 'cosine'", "wsd"),
    "stages[0].schedule.kind=power": ("warmup_tokens must be > 0", "got 0"),
    "stages[0].schedule.at_growth=go": ("'go'", "continue, restart"),
    "stages[0].schedule.pek=1": ("'pek'", "stages[0].schedule", "did you mean 'peak_lr'", "horizon_tokens"),
    "stages[0].optimizer.beta1=1.0": ("beta1", "1.0", "< 1"),
    "stages[0].optimizer.clip=inf": ("optimizer.clip", "'inf'"),
    "stages[0].batch=0": ("batch", "0", ">= 1"),
    "stages[0].batch=3000": ("stages[0]", "3000 x 16"),
    "stages[2].tokens=64": ("'2'", "0 to 1"),
    "stages[x].tokens=64": ("'x'", "0 to 1"),
    "stages[0]=3": ("stages[0]", "3", "StageConfig"),
    "stages[1].growth.options.order[0]=7": ("order",),
    "stages=3": ("stages", "3"),
    "stages=[]": ("stages", "at least one"),
    "sede=1": ("'sede'", "did you mean 'seed'", "log_every_steps"),
    "seed=abc": ("seed", "'abc'", "int"),
    "seed=-1": ("seed", "-1", ">= 0"),
    "seed=": ("seed", "''", "int"),
    "seed": ("--config.seed", "--config.key=value"),
    "corpus.name=x": ("corpus", "'name'"),
    "=3": ("--config.=3", "--config.key=value"),
    "dtype=float16": ("'float16'", "did you mean 'bfloat16'", "float32"),
    "remat=all": ("'all'", "attention, dots, dots_and_attention, full, none"),
    "log_every_steps=0": ("log_every_steps", "0", ">= 1"),
    "evaluation.batches=0": ("evaluation.batches", "0", ">= 1"),
    "evaluation.length=-1": ("evaluation.length", "-1", ">= 0"),
    "evaluation.every=9": ("'every'", "every_tokens"),
    "checkpoint.max_to_keep=0": ("max_to_keep", "0", ">= 1"),
    "corpus=nowhere.txt": ("'nowhere.txt'", "'stdlib'"),
    "corpus=5": ("corpus", "5", "str"),
}


@pytest.mark.parametrize("setting", BAD_SETTINGS)
def test_a_bad_setting(capsys, bench, setting):
    extra = ["--config.stages[0].model.kv_heads=2"] if "heads=3" in setting else []
    line = refused(capsys, bench, *TRAIN, *extra, f"--config.{setting}")
    assert all(part in line for part in BAD_SETTINGS[setting]), line


def test_a_number_in_a_config_file_that_is_none(capsys, bench, corpus):
    tiny.write_config(bench / "nan.py", tiny.run(corpus, tiny.stage(4, schedule={"peak_lr": "NUMBER"})))
    text = (bench / "nan.py").read_text()
    for number in ("nan", "inf", "-inf"):
        (bench / "nan.py").write_text(text.replace("'NUMBER'", f"float('{number}')"))
        line = refused(capsys, bench, "train", "--config=nan.py", "--workdir=work")
        assert "schedule.peak_lr must be " in line and line.strip().endswith(f"got {number}")


def test_a_corpus_that_is_no_text(capsys, bench):
    (bench / "empty.txt").write_text("")
    (bench / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (bench / "short.txt").write_text("Too little.")
    (bench / "folder").mkdir()
    expected = {
        "empty.txt": ("empty.txt must hold text", ".txt"),
        "image.png": ("image.png must be UTF-8", "0x89"),
        "short.txt": ("short.txt must be at least 4097 bytes", "got 11"),
        "folder": ("folder must hold text", ".txt"),
        "": ("''", "'stdlib'"),
    }
    for source, parts in expected.items():
        line = refused(capsys, bench, *TRAIN, f"--config.corpus={source}")
        assert all(part in line for part in parts), line


def test_a_corpus_with_less_than_a_batch_is_found_before_anything_is_written(capsys, bench, corpus):
    needed = {"batch=600": "600 x (length + 1) = 10200 validation tokens", "length=70_000": "70001 train tokens"}
    for setting, what in needed.items():
        more = [f"--config.stages[{number}].{text}" for number in (0, 1) for text in (setting, "tokens=1e6")]
        line = refused(capsys, bench, *TRAIN, *more)
        assert "stages[0] needs" in line and what in line and repr(corpus) in line


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("x = 1\n", ("no get_config",)),
        ("def get_config():\n    pass\n", ("None", "ConfigDict")),
        ("def get_config():\n    raise ValueError('two\\nlines')\n", ("line 2", "ValueError: two lines")),
        ("def get_config(:\n", ("SyntaxError", "line 1")),
        ("import no_such_module\n", ("line 1", "no_such_module")),
        ("def get_config():\n    return {}\n", ("config has no 'stages'",)),
        ("def get_config():\n    return {'stages': [{}]}\n", ("stages[0] has no 'model'", "tokens")),
    ],
)
def test_a_config_file_that_gives_no_config(capsys, bench, text, parts):
    (bench / "broken.py").write_text(text)
    line = refused(capsys, bench, "train", "--config=broken.py", "--workdir=work")
    assert all(part in line for part in ("config", *parts)), line


def test_a_config_file_that_is_not_there_or_has_no_such_variant(capsys, bench):
    for spec in ("nowhere.py", "nowhere", ".", ""):
        line = refused(capsys, bench, "train", f"--config={spec}", "--workdir=work")
        assert "config must be an experiment file such as" in line and line.strip().endswith(f"got {spec!r}")
    line = refused(capsys, bench, "train", "--config=run.py:large", "--workdir=work")
    assert "run.py:large" in line and "get_config() takes 0 positional arguments" in line


def test_a_run_for_sweep_and_a_sweep_for_train(capsys, bench):
    assert "growlm sweep" in refused(capsys, bench, "train", "--config=sweep.py", "--workdir=work")
    assert "growlm train" in refused(capsys, bench, "sweep", "--config=run.py", "--workdir=work")


BAD_SWEEPS = {
    "runs=3": ("runs", "3"),
    "runs={}": ("runs", "at least one"),
    "runs.grown=3": ("runs.grown", "3"),
    "runs.grwn.seed=3": ("'grwn'", "did you mean 'grown'", "scratch"),
    "runs.grown.sede=3": ("'sede'", "runs.grown", "did you mean 'seed'"),
    "runs.grown.stages[0].schedule.peak_lr=-1": ("runs.grown", "peak_lr", "-1.0"),
    "baselin=grown": ("'baselin'", "did you mean 'baseline'"),
    "baseline=grwn": ("'grwn'", "did you mean 'grown'"),
    "grown=['x']": ("'x'", "scratch"),
    "grown=scratch": ("grown", "'scratch'"),
    "controls={'x':'why'}": ("'x'", "scratch"),
    "sede=1": ("'sede'", "did you mean 'seed'"),
}


@pytest.mark.parametrize("setting", BAD_SWEEPS)
def test_a_bad_setting_of_a_sweep(capsys, bench, setting):
    line = refused(capsys, bench, *SWEEP, f"--config.{setting}")
    assert all(part in line for part in BAD_SWEEPS[setting]), line


def test_names_of_runs_that_would_be_other_folders(capsys, bench, corpus):
    for name in ("stages", "..", "", "a/b"):
        runs = repr(tiny.sweep(corpus, {name: [tiny.stage(4)]}, baseline=name))
        (bench / "names.py").write_text(f"def get_config():\n    return {runs}\n")
        line = refused(capsys, bench, "sweep", "--config=names.py", "--workdir=work")
        assert "run name must be the name of a folder" in line and line.strip().endswith(repr(name))


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((), ("command",)),
        (("trian",), ("'trian'", "train", "sweep", "report")),
        (("train", "--config=run.py"), ("--workdir",)),
        (("train", "--workdir=work"), ("--config",)),
        ((*TRAIN, "more"), ("'more'", "--workdir")),
        ((*TRAIN, "--config.seed", "3"), ("'3'",)),
        ((*TRAIN, "--sede=3"), ("'--sede=3'",)),
        ((*TRAIN, "--list"), ("'--list'", "must be one of --compilation_cache, --config, ")),
        ((*TRAIN, "--workdir=other"), ("--workdir",)),
        ((*TRAIN, "--config=sweep.py"), ("--config",)),
        ((*SWEEP, "--run=grwn"), ("'grwn'", "did you mean 'grown'", "scratch")),
        ((*SWEEP, "--list", "--run=grwn"), ("'grwn'", "did you mean 'grown'", "scratch")),
        (("report", "--workdir=nowhere"), ("nowhere",)),
        (("report", "--workdir=.", "--config.seed=3"), ("--config.seed=3",)),
    ],
)
def test_a_bad_command(capsys, bench, arguments, parts):
    line = refused(capsys, bench, *arguments)
    assert all(part in line for part in parts), line


def test_a_workdir_that_holds_something_else(capsys, bench):
    def claimed(name, *files):
        (bench / name).mkdir()
        for file, text in files:
            (bench / name / file).write_text(text)
        return refused(capsys, bench, "train", "--config=run.py", f"--workdir={name}")

    assert "notes, which holds no run" in claimed("notes", ("a.txt", "mine"))
    assert "must be JSON, got half" in claimed("half", ("config.json", "{"))
    assert "'architectures'" in claimed("model", ("config.json", '{"architectures": []}'))
    for workdir in ("run.py", "run.py/below"):
        assert workdir in refused(capsys, bench, "train", "--config=run.py", f"--workdir={workdir}")


def test_a_workdir_that_holds_a_different_run(capsys, bench):
    assert main([*TRAIN, "--config.stages[0].tokens=64", "--config.stages[1].tokens=64"]) == 0
    capsys.readouterr()
    small = [f"--config.stages[{number}].tokens=64" for number in (0, 1)]
    line = refused(capsys, bench, *TRAIN)
    assert "got work, which holds a different run: stages[0].tokens is 64 there and 256 here" in line
    assert "seed is 0 there and 1 here" in refused(capsys, bench, *TRAIN, *small, "--config.seed=1")
    assert "options.order is 'stack' there and 'interleave' here" in refused(
        capsys, bench, *TRAIN, *small, "--config.stages[1].growth.options.order=interleave"
    )
    line = refused(capsys, bench, *SWEEP)
    assert "work, which holds a different run" in line and len(line) < 200
    # The same run again, in other words or by a growlm that had fewer settings, is no different one.
    assert main([*TRAIN, *small, "--config.seed=0", "--config.stages[0].batch=4.0"]) == 0
    held = tiny.read_json(bench / "work" / "config.json")
    del held["document_mask"], held["evaluation"]["batch"], held["stages"][0]["model"]["rope_scaling"]
    (bench / "work" / "config.json").write_text(json.dumps(held))
    assert main([*TRAIN, *small]) == 0
    assert "document_mask" in tiny.read_json(bench / "work" / "config.json")


def test_an_override_is_for_one_stage_though_the_file_shares_a_dict(capsys, bench):
    text = (bench / "run.py").read_text()
    constant = "{'kind': 'constant', 'peak_lr': 0.01}"
    assert text.count(constant) == 2
    (bench / "run.py").write_text("SCHEDULE = " + constant + "\n" + text.replace(constant, "SCHEDULE"))
    small = [f"--config.stages[{number}].tokens=64" for number in (0, 1)]
    assert main([*TRAIN, *small, "--config.stages[1].schedule.peak_lr=0.5"]) == 0
    first, second = tiny.read_json(bench / "work" / "config.json")["stages"]
    assert (first["schedule"]["peak_lr"], second["schedule"]["peak_lr"]) == (0.01, 0.5)


def test_true_and_false_are_flags_as_json_spells_them():
    texts = ("true", "false", "True", "(1, 2)", "none", "truth", "1e-3")
    assert [literal(text) for text in texts] == [True, False, True, (1, 2), "none", "truth", 1e-3]


def test_list_writes_nothing(capsys, bench):
    before = tiny.snapshot(bench)
    assert main([*SWEEP, "--list"]) == 0
    out, err = capsys.readouterr()
    assert tiny.snapshot(bench) == before and not err
    assert "scratch 1/1" in out and "grown 1/2" in out and "grown 2/2" in out and "FLOPs" in out
    assert main([*SWEEP, "--list", "--run=grown"]) == 0
    out = capsys.readouterr().out
    assert tiny.snapshot(bench) == before
    assert "scratch 1/1" not in out and "grown 2/2" in out


def test_help_and_a_fit_work_and_load_no_jax():
    code = """
import contextlib
import io
import sys
from growlm.__main__ import main
with contextlib.redirect_stderr(io.StringIO()) as said:
    assert main(["fit", "--runs=.", "--law=factor", "--column.family=run"]) == 2
assert "--column must be left out with --law=factor" in said.getvalue()
for arguments in (["--help"], ["train", "--help"], ["sweep", "--help"], ["report", "--help"]):
    try:
        main(arguments)
    except SystemExit as leave:
        assert leave.code == 0
print("loaded:", sorted({"jax", "flax", "orbax", "matplotlib", "tensorflow"} & set(sys.modules)))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("usage: growlm") == 4 and "--config.stages[0].schedule.peak_lr=3e-4" in done.stdout
    assert done.stdout.splitlines()[-1] == "loaded: []"
    command = [sys.executable, "-m", "growlm", "trian"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "") and "'trian'" in done.stderr


def test_train_says_how_a_run_was_begun_and_its_report_how_to_do_it_again(bench, corpus, monkeypatch):
    tiny.write_config(bench / "run.py", tiny.run(corpus, tiny.stage(1)))
    text = f'"""A run.\n\nWhat is expected: nothing.\n"""\n{(bench / "run.py").read_text()}'
    (bench / "run.py").write_text(text)
    small = [*TRAIN, "--config.stages[0].schedule.peak_lr=1e-3"]
    monkeypatch.setattr(sys, "argv", ["growlm", *small])
    assert main(small) == 0
    path = bench / "work" / "run.json"
    text, begun = path.read_text(), tiny.read_json(path)
    assert list(begun) == ["command", "hardware", "commit", "experiment"] and begun["hardware"] == hardware()
    assert begun["command"] == f"growlm {shlex.join(small)}" and begun["commit"] == commit()
    monkeypatch.setattr(sys, "argv", ["growlm", *small, "--peak_flops=1e12"])
    assert main(sys.argv[1:]) == 0
    assert path.read_text() == text  # what goes on was begun by what began it
    assert main(["report", "--workdir=work"]) == 0
    page = html.unescape((bench / "work" / "report.html").read_text())
    assert begun["command"] in page and begun["hardware"] in page and "What is expected: nothing." in page


@pytest.fixture
def empty_cache(bench, monkeypatch):
    """No program is there or kept anywhere yet, and every one is worth keeping."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(bench / "cache"))
    names = {"jax_compilation_cache_dir": None, "jax_persistent_cache_min_compile_time_secs": 0}
    before = {name: getattr(jax.config, name) for name in names}
    programs.forget_programs()
    for name, value in names.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.parametrize("command", few(["train", "sweep"], ["sweep"]))
def test_peak_flops_and_compilation_cache_reach_the_run(bench, corpus, empty_cache, command):
    tiny.write_config(bench / "run.py", tiny.run(corpus, tiny.stage(3)))
    tiny.write_config(bench / "sweep.py", tiny.sweep(corpus, {"run": [tiny.stage(3)]}, baseline="run"))
    folder = "." if command == "train" else "run"
    plain, watched = (
        [command, f"--config={'run' if command == 'train' else command}.py", f"--workdir={name}"]
        for name in ("plain", "watched")
    )
    assert main([*watched, "--peak_flops=2e9", "--compilation_cache=programs"]) == 0
    kept, default = bench / "programs", bench / "cache" / "growlm" / "compiled"
    assert any(kept.glob("jit_train_step-*-cache")) and not default.exists()
    first, *others = tiny.records(bench / "watched" / folder)
    assert "mfu" not in first and len(others) == 3
    for record in others:  # both are of the same time
        per_token = record["flops_exact"] / record["tokens"]
        assert record["mfu"] == pytest.approx(record["tokens_per_second"] * per_token / 2e9, rel=1e-9)
    programs.forget_programs()
    default.mkdir(parents=True)
    (default / "killed-cache").write_bytes(b"half")  # what a process leaves that is killed as it writes
    assert main(plain) == 0
    assert any(default.glob("jit_train_step-*-cache"))
    assert not any("mfu" in record for record in tiny.records(bench / "plain" / folder))  # of a CPU nobody knows it


# --- Runs that diverge -----------------------------------------------------------------------------------------------


def fails(capsys, *arguments):
    """What a command says last when training fails, the bar aside."""
    assert main(list(arguments)) == 1
    return capsys.readouterr().err.splitlines()[-1]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(capsys, bench, corpus):
    stages = tiny.stage(6), tiny.grown(6, schedule={"kind": "constant", "peak_lr": 1e18})
    options = {"checkpoint": {"every_tokens": 2 * STEP, "max_to_keep": 1}}
    tiny.write_config(bench / "run.py", tiny.run(corpus, *stages, **options))
    line = fails(capsys, *TRAIN)
    assert line.startswith("growlm: ") and "nan" in line
    assert "between steps 7 and 8: stopped; the last good checkpoint is kept" in line
    # Stage 2 begins at 6 and is spoilt by its first update: nothing of it is kept, and stage 1 is whole.
    kept = tiny.checkpoints(bench / "work")
    assert kept.keys() == {(0, 6)}
    arrays = tiny.read_checkpoint(kept[0, 6])
    assert all(math.isfinite(value.sum()) for value in arrays.values())
    recorded = tiny.timeless(bench / "work")
    assert [record["step"] for record in recorded] == [0, 1, 2, 3, 4, 5, 6, 6, 7]
    assert all(math.isfinite(value) for record in recorded for value in record.values() if value is not None)
    # Started again it fails in the same way, and does no harm.
    assert fails(capsys, *TRAIN) == line
    assert tiny.timeless(bench / "work") == recorded
    assert tiny.checkpoints(bench / "work").keys() == {(0, 6)}
    tiny.assert_same_arrays(tiny.read_checkpoint(kept[0, 6]), arrays)


def test_a_state_that_is_spoilt_by_the_last_update_is_no_good_end(capsys, bench, corpus):
    """The loss of step 1 is that of the untouched state: only the evaluation meets what the update made of it."""
    tiny.write_config(bench / "run.py", tiny.run(corpus, tiny.stage(1, schedule={"kind": "constant", "peak_lr": 1e18})))
    line = fails(capsys, *TRAIN)
    assert "validation loss nan between steps 1 and 2: stopped" in line
    assert tiny.checkpoints(bench / "work") == {}
    assert [record["step"] for record in tiny.records(bench / "work")] == [0]


def test_no_checkpoint_is_made_of_a_state_whose_loss_is_not_finite(capsys, bench, corpus):
    """At step 3 the update spoils the state and a checkpoint is due: it would take the place of the one of step 2."""
    schedule = {"kind": "constant", "peak_lr": 1e-2}
    stages = tiny.stage(2, schedule=schedule), tiny.grown(4, layers=1, schedule=schedule | {"peak_lr": 1e18})
    checkpoint = {"every_tokens": STEP, "max_to_keep": 1}
    tiny.write_config(bench / "run.py", tiny.run(corpus, *stages, checkpoint=checkpoint))
    assert "validation loss nan between steps 3 and 4" in fails(capsys, *TRAIN)
    assert tiny.checkpoints(bench / "work").keys() == {(0, 2)}


@pytest.mark.parametrize("field", ["params", "opt_state"])
def test_a_number_that_no_loss_meets_is_found_before_it_is_saved(capsys, bench, corpus, monkeypatch, field):
    """A weight of a token that the text has not: it would come back with every checkpoint, until a batch meets it."""
    train = loop.Steps.train

    def spoilt(steps, state, tokens):
        state, metrics = train(steps, state, tokens)
        leaves, tree = jax.tree.flatten(getattr(state, field))
        unseen = [leaf.at[0].set(jnp.inf) if leaf.shape == (256, 16) else leaf for leaf in leaves]
        return dataclasses.replace(state, **{field: jax.tree.unflatten(tree, unseen)}), metrics

    monkeypatch.setattr(loop.Steps, "train", spoilt)
    tiny.write_config(bench / "run.py", tiny.run(corpus, tiny.stage(2)))
    assert "a weight or a moment is not finite after step 2: stopped; no checkpoint" in fails(capsys, *TRAIN)
    assert tiny.checkpoints(bench / "work") == {}


def test_a_sweep_goes_on_past_a_run_that_fails_and_says_so(capsys, bench, corpus):
    bad, good = tiny.stage(2, schedule={"kind": "constant", "peak_lr": 1e18}), tiny.stage(2)
    runs = {"bad": [bad], "good": [good], "worse": [bad, tiny.grown(2)]}
    tiny.write_config(bench / "sweep.py", tiny.sweep(corpus, runs, baseline="good"))
    assert main([*SWEEP]) == 1
    out, err = capsys.readouterr()
    for name in ("bad", "worse"):
        (line,) = (line for line in err.splitlines() if line.startswith(f"growlm: run {name!r} failed: loss nan"))
        assert "between steps 1 and 2" in line
    assert "between steps 1 and 2" in out  # the table's note
    summary = tiny.read_json(bench / "work" / "sweep.json")["runs"]
    assert {name: entry["status"] for name, entry in summary.items()} == {
        "bad": "failed",
        "good": "done",
        "worse": "failed",
    }
    assert summary["good"]["error"] is None and "between steps 1 and 2" in summary["bad"]["error"]
    # One run of it again: what is known of the others stays.
    assert main([*SWEEP, "--run=good"]) == 0
    assert tiny.read_json(bench / "work" / "sweep.json")["runs"] == summary


def test_commands_run_from_a_path_where_nothing_is_installed(monkeypatch, capsys):
    def missing(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == "growlm of a path\n"
