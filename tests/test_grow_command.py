"""growlm grow: a run's checkpoint in, a whole grown state out, checked; and nothing at all where anything is wrong."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from representatives import few
from trees import exact_products

import growlm.commands.grow_checkpoint as grow_command
from growlm.__main__ import main
from growlm.data import batches, load_corpus
from growlm.errors import InputError
from growlm.files import locked
from growlm.growth import OPERATORS, PRESETS, grow_state
from growlm.growth.state import apply_growth
from growlm.training import saved
from growlm.training.config import build_run, plain
from growlm.training.init_from import find_source
from growlm.training.optimizer import make_optimizer
from growlm.training.stages import resolve

exact = pytest.fixture(autouse=True, scope="module")(exact_products.__wrapped__)

ROOT = Path(__file__).resolve().parents[1]
WIDE = {"embed": 24, "mlp": 36}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the run `work`, 4 steps of 1 layer and 2 of 2, and the sweep `study`, one of whose runs it is."""
    folder = tmp_path_factory.mktemp("home")
    corpus = tiny.write_corpus(folder)
    stages = tiny.stage(4), tiny.grown(2)
    keep = {"checkpoint": {"every_tokens": 2 * tiny.STEP, "max_to_keep": 9}}
    tiny.write_config(folder / "run.py", tiny.run(corpus, *stages, **keep))
    tiny.write_config(folder / "sweep.py", tiny.sweep(corpus, {"short": [stages[0]], "grown": list(stages)}, "short"))
    assert main(["train", f"--config={folder}/run.py", f"--workdir={folder}/work"]) == 0
    assert main(["sweep", f"--config={folder}/sweep.py", f"--workdir={folder}/study"]) == 0
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def grow(source, *arguments, output="big"):
    """The folder that the command writes; the source must be as it was."""
    before = tiny.snapshot(source)
    assert main(["grow", f"--source={source}", f"--output={output}", *arguments]) == 0
    assert tiny.snapshot(source) == before
    assert not [path for path in Path().iterdir() if path.name.startswith(".")]
    return Path(output)


def expected(source, operator, step=None, optimizer_state="reset", fed=(), key=None, options=None, **sizes):
    """What `grow_state` makes of the source."""
    model, optimizer, state = tiny.load_saved(source, step)
    state = state if key is None else dataclasses.replace(state, key=key)
    target = dataclasses.replace(model, **sizes)
    arguments = (make_optimizer(optimizer, target), operator, optimizer_state, fed)
    return grow_state(state, model, target, *arguments, **options or {})[0]


def assert_same(have, want):
    """Every leaf bit for bit, dtypes too; keys by their data."""
    assert jax.tree.structure(have) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(have), jax.tree.leaves(want), strict=True):
        if hasattr(a, "dtype") and jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def read(folder, name):
    return tiny.read_json(folder / name)


# --- From a run to a folder ------------------------------------------------------------------------------------------


def test_depth_is_the_stack_by_default_and_the_folder_restores_bit_for_bit(here, home, capsys):
    folder = grow(home / "work", "--factor=2")
    out, err = capsys.readouterr()
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["model.json", "optimizer.json", "growth.json", "verify.json", "checkpoint", "checksums.json"]
    )
    model, optimizer, state = tiny.load_saved(folder)
    assert model.layers == 4 and plain(optimizer) == read(folder, "optimizer.json")
    want = expected(home / "work", "direct", layers=4)
    assert_same(state, want)
    assert (state.step, state.tokens, state.examples) == (6, 6 * tiny.STEP, 6 * tiny.BATCH)
    # The same by orbax alone, without growlm's reader.
    arrays = tiny.read_checkpoint(folder.absolute() / "checkpoint" / "6")
    assert np.array_equal(arrays["['params']['blocks']['mlp']['up']"], want.params["blocks"]["mlp"]["up"])
    growth = read(folder, "growth.json")
    flops = tiny.records(home / "work")[-1]["flops"]
    spent = {"tokens": 6 * tiny.STEP, "flops": flops}
    assert growth["grown_from"] == {"folder": str(home / "work"), "step": 6} | spent
    assert (growth["operator"], growth["options"], growth["order"]) == ("direct", {}, [0, 1, 0, 1])
    assert not growth["preserves_function"] and read(folder, "verify.json")["ok"]
    for text in (
        "layers           2       4",
        "source     " + str(home / "work"),
        "function   not kept",
        "written: big",
    ):
        assert text in out
    assert "holds" in out and "verifying on 4 x 16 validation tokens" in err


def test_width_keeps_the_function_and_maps_the_moments(here, home):
    sizes = [f"--target.{name}={size}" for name, size in WIDE.items()]
    folder = grow(home / "work", *sizes, "--optimizer_state=map", "--step=4")
    assert_same(tiny.load_saved(folder)[2], expected(home / "work", "direct", 4, "map", **WIDE))
    items = read(folder, "verify.json")["items"]
    assert all(items[name]["claimed"] and items[name]["holds"] for name in ("function", "gradients", "weights"))
    assert read(folder, "growth.json")["optimizer_state"] == "map"


def test_what_the_command_writes_is_what_a_stage_of_training_begins_with(here, home):
    """Fresh values too: step 4 is where the run itself grew, with the same key."""
    grown = tiny.load_saved(grow(home / "work", "--step=4", "--target.layers=2"))[2]
    assert grown.step == 4
    assert_same(grown, expected(home / "study" / "short", "direct", layers=2))


@pytest.mark.slow
def test_zero_of_a_sweeps_run_and_growing_what_was_grown(here, home):
    first = grow(home / "study" / "grown", "--operator=zero", "--factor=2", "--target.embed=24", output="first")
    assert_same(tiny.load_saved(first)[2], expected(home / "study" / "grown", "zero", layers=4, embed=24))
    second = grow(first, "--operator=hypercloning", "--target.mlp=48", "--no_verify", output="second")
    assert_same(tiny.load_saved(second)[2], expected(first, "direct", mlp=48))
    assert not (second / "verify.json").exists()
    growth = read(second, "growth.json")
    assert growth["asked"] == "hypercloning" and growth["data"] == read(first, "growth.json")["data"]
    assert_same(tiny.load_saved(second, 6)[2].params, tiny.load_saved(second)[2].params)
    with pytest.raises(InputError, match="one of its checkpoints, 6, got 4"):
        tiny.load_saved(second, 4)


@pytest.mark.slow
def test_learned_maps_are_fed_with_the_runs_own_batches(here, home):
    arguments = ("--operator=learn", "--option.steps=2", "--option.warmup=1", "--option.peak=0.01", "--factor=2")
    folder = grow(home / "work", *arguments, "--no_verify")
    data = read(folder, "growth.json")["data"]
    corpus = load_corpus(data["corpus"])
    assert data["fingerprint"] == corpus.fingerprint
    fed = batches(corpus.train, seed=0, batch=tiny.BATCH, length=tiny.LENGTH, start=6 * tiny.BATCH)
    options = {"steps": 2, "warmup": 1, "peak": 0.01}
    assert_same(tiny.load_saved(folder)[2], expected(home / "work", "learn", fed=fed, options=options, layers=4))
    assert read(folder, "growth.json")["learning"]["tokens"] == 2 * tiny.STEP
    # Billed as in a run that grows so, and by what is grown from there.
    settings = read(home / "work", "config.json")
    settings["stages"].append(tiny.grown(1, 4, growth={"operator": "learn", "options": options}))
    stage = resolve(build_run(settings), data["fingerprint"])[-1]
    again = grow(folder, "--target.mlp=36", "--no_verify", output="again")
    for found in (saved.find_saved(folder), saved.find_saved(again)):
        assert (found.tokens, found.flops) == (stage.first_tokens, pytest.approx(stage.first_cost.flops, rel=1e-12))
    assert find_source(folder).record["flops"] > tiny.records(home / "work")[-1]["flops"]


def test_a_seed_gives_other_fresh_values(here, home):
    arguments = ("--operator=random", "--target.mlp=36", "--no_verify")
    own, again, other = (
        tiny.load_saved(grow(home / "work", *arguments, *more, output=f"big{number}"))[2]
        for number, more in enumerate(((), (), ("--seed=5",)))
    )
    assert_same(own, again)
    ups = [state.params["blocks"]["mlp"]["up"] for state in (own, other)]
    assert np.array_equal(ups[0][..., :24], ups[1][..., :24]) and not np.array_equal(ups[0], ups[1])
    assert not np.array_equal(jax.random.key_data(own.key), jax.random.key_data(other.key))


def test_where_the_corpus_is_gone_random_tokens_do(here, home, monkeypatch, capsys):
    def gone(name, *_):
        raise InputError(f"no file {name}")

    monkeypatch.setattr(grow_command, "load_corpus", gone)
    folder = grow(home / "work", "--target.mlp=36")
    assert "4 x 64 random tokens" in capsys.readouterr().err and read(folder, "verify.json")["tokens"] == [4, 64]
    assert main(["grow", f"--source={home}/work", "--output=no", "--operator=learn", "--factor=2"]) == 2


def test_a_run_that_trains_at_this_moment_is_read_and_not_touched(here, home):
    (store,) = (path.parent for path in (home / "work").glob("checkpoints/*/checkpoints/6"))
    half = store / "7.orbax-checkpoint-tmp-1"
    half.mkdir()
    try:
        with locked(store.parent):
            grow(home / "work", "--target.mlp=36", "--no_verify")
        assert half.is_dir()
    finally:
        half.rmdir()


# --- What writes nothing ---------------------------------------------------------------------------------------------


def test_list_and_help_need_no_other_argument(here, capsys):
    assert main(["grow", "--list"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{name} " in f"\n{out}" for name in (*OPERATORS, *PRESETS))
    assert "order" in out and tiny.snapshot(here) == {}
    code = "import sys; from growlm.__main__ import main\ntry: main(['grow', '--help'])\nexcept SystemExit: pass\n"
    code += "print('loaded:', sorted({'jax', 'flax', 'orbax'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60)
    assert "--target.key=value" in done.stdout and done.stdout.endswith("loaded: []\n") and not done.stderr


def test_dry_run_says_what_would_be_done(here, home, capsys):
    arguments = [
        "grow",
        f"--source={home}/work",
        "--operator=lemon",
        "--target.layers=3",
        "--target.mlp=36",
        "--dry_run",
    ]
    before = tiny.snapshot(home)
    for output in ([], ["--output=big"]):
        assert main([*arguments, *output]) == 0
        out, err = capsys.readouterr()
        assert not err and tiny.snapshot(here) == {}
        for text in (
            "step 6",
            "lemon direct order=interleave zero_residual=True split_imbalance=0.5",
            "function   kept",
            "12,112",
        ):
            assert text in out
    assert tiny.snapshot(home) == before
    # The bytes are those of the arrays.
    state = expected(home / "work", "direct", layers=3, mlp=36)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, state.opt_state)))
    assert f"{size:,} bytes" in out


def environment():
    return os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/tests", "JAX_PLATFORMS": "cpu"}


SOURCE, OUTPUT, FACTOR = "--source={home}/work", "--output=big", "--factor=2"
BAD = {
    "no source": ([OUTPUT, FACTOR], ("--source=DIR",)),
    "no output": ([SOURCE, FACTOR], ("--output=DIR",)),
    "nothing grows": ([SOURCE, OUTPUT], ("nothing grows", "--factor=4")),
    "the same size": ([SOURCE, OUTPUT, "--target.layers=2"], ("nothing grows",)),
    "a factor of one": ([SOURCE, OUTPUT, "--factor=1"], ("--factor must be >= 2", "got 1")),
    "no number": ([SOURCE, OUTPUT, "--factor=two"], ("--factor", "'two'")),
    "both": ([SOURCE, OUTPUT, FACTOR, "--target.layers=4"], ("--factor=2 and --target.layers=4",)),
    "twice": ([SOURCE, OUTPUT, FACTOR, "--factor=3"], ("--factor is given twice",)),
    "a size twice": ([SOURCE, OUTPUT, "--target.mlp=36", "--target.mlp=48"], ("--target.mlp must be given once",)),
    "no such size": ([SOURCE, OUTPUT, "--target.layrs=4"], ("'layrs'", "did you mean 'layers'", "--target")),
    "no value": ([SOURCE, OUTPUT, "--target.layers"], ("--target.layers", "--target.key=value")),
    "no integer": ([SOURCE, OUTPUT, "--target.layers=many"], ("model.layers must be an integer >= 0, got 'many'",)),
    "smaller": ([SOURCE, OUTPUT, "--target.layers=1"], ("layers must be >= the source's, 2, got 1",)),
    "another family": ([SOURCE, OUTPUT, "--target.qk_norm=True"], ("qk_norm", "which no growth changes")),
    "no operator": ([SOURCE, OUTPUT, FACTOR, "--operator=drect"], ("'drect'", "did you mean 'direct'", "lemon")),
    "no option": ([SOURCE, OUTPUT, FACTOR, "--option.ordr=stack"], ("'ordr'", "did you mean 'order'")),
    "no order": ([SOURCE, OUTPUT, FACTOR, "--option.order=stck"], ("'stck'", "did you mean 'stack'")),
    "an empty option": ([SOURCE, OUTPUT, FACTOR, "--option.=3"], ("'--option.=3'", "--option.key=value")),
    "half a token": (
        [SOURCE, OUTPUT, FACTOR, "--operator=random", "--option.mask_tokens=0.5"],
        ("mask_tokens must be 0 or at least 1, got 0.5",),
    ),
    "no record": ([SOURCE, OUTPUT, FACTOR, "--option.order={{1}}"], ("--option", "set")),
    "no state": ([SOURCE, OUTPUT, FACTOR, "--optimizer_state=kept"], ("'kept'", "keep_old, map, map_aged, reset")),
    "no step": ([SOURCE, OUTPUT, FACTOR, "--step=5"], ("step of", "2, 4, 6", "got 5")),
    "no seed": ([SOURCE, OUTPUT, FACTOR, "--seed=-1"], ("--seed must be >= 0", "got -1")),
    "an argument": ([SOURCE, OUTPUT, FACTOR, "--workdir=big"], ("'--workdir=big'", "--source")),
    "a config": ([SOURCE, OUTPUT, FACTOR, "--config.seed=3"], ("'--config.seed=3'", "--option.key=value")),
    "no folder": (["--source=nowhere", OUTPUT, FACTOR], ("got nowhere, which is no folder", "growlm train")),
    "no model": (["--source=.", OUTPUT, FACTOR], ("got ., which holds no model", "growlm train")),
    "a sweep": (["--source={home}/study", OUTPUT, FACTOR], ("is a sweep", "{home}/study/grown")),
    "no new folder": ([SOURCE, "--output={home}/work", FACTOR], ("is not empty", "a new or empty folder")),
    "a file": ([SOURCE, "--output={home}/run.py", FACTOR], ("is no folder", "a new or empty folder")),
    "below a file": ([SOURCE, "--output={home}/run.py/big", FACTOR], ("run.py is no folder",)),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_argument_is_one_line_and_nothing_is_written(here, home, capsys, case):
    arguments, parts = BAD[case]
    before = tiny.snapshot(home)
    assert main(["grow", *(text.format(home=home) for text in arguments)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("growlm: ") and len(err.splitlines()) == 1, err
    assert all(part.format(home=home) in err for part in parts), err
    assert tiny.snapshot(here) == {} and tiny.snapshot(home) == before


def copy_of(folder, to, **files):
    """A grown folder, with some of its files replaced."""
    for name, content in tiny.snapshot(folder).items():
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        if content is not None:
            (to / name).write_bytes(content)
    for name, text in files.items():
        (to / f"{name}.json").write_text(text)
        (to / "checksums.json").unlink(missing_ok=True)
    return to


def test_a_folder_that_is_damaged_is_one_line(here, home, capsys):
    good = grow(home / "work", "--target.mlp=36", "--no_verify", output="good")
    model, growth = read(good, "model.json"), read(good, "growth.json")
    growth["masks"] = {"tokens": 0, "in_turn": False, "whole_blocks": False, "norm": "isometry"}
    damage = {
        "model": [("{", "must be JSON"), ("{}", "no 'layers'"), (json.dumps(model | {"mlp": 40}), "40")],
        "optimizer": [('{"betta": 1}', "betta")],
        "growth": [
            ("{}", "growth.json has no 'key'"),
            (json.dumps(growth), "masks.tokens must be an"),
        ],
    }
    capsys.readouterr()
    for number, (name, text, part) in enumerate((name, *case) for name, cases in damage.items() for case in cases):
        bad = copy_of(good, here / f"bad{number}", **{name: text})
        assert main(["grow", f"--source={bad}", "--output=big", "--factor=2", "--no_verify"]) == 2
        err = capsys.readouterr().err.splitlines()
        assert part in err[-1] and err[-1].startswith("growlm: "), err
        assert not Path("big").exists()


def test_a_run_whose_stages_are_none_of_its_config_and_one_without_checkpoints(here, home, capsys):
    for name, change, says in (
        ("other", {"dtype": "bfloat16"}, "leads to none of the stages"),
        ("fresh", {}, "has no checkpoint yet"),
    ):
        (here / name).mkdir()
        config = read(home / "work", "config.json") | change
        (here / name / "config.json").write_text(json.dumps(config))
        for path in (home / "work").glob("checkpoints/*/stage.json"):
            folder = here / name / "checkpoints" / path.parent.name
            folder.mkdir(parents=True)
            (folder / "stage.json").write_bytes(path.read_bytes())
        assert main(["grow", f"--source={name}", "--output=big", "--factor=2"]) == 2
        assert says in capsys.readouterr().err and not Path("big").exists()


# --- What is not written, or not half ---------------------------------------------------------------------------------


def spoilt_growth(*arguments, **options):
    """apply_growth, and one weight of what it gives is another one."""
    state, report = apply_growth(*arguments, **options)
    params = state.params | {"head": state.params["head"].at[0, 0].add(1)}
    return dataclasses.replace(state, params=params), report


def test_a_claim_that_is_not_met_ends_with_1_and_no_folder(here, home, monkeypatch, capsys):
    monkeypatch.setattr(grow_command, "apply_growth", spoilt_growth)
    arguments = ["grow", f"--source={home}/work", "--output=big", "--target.mlp=36"]
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    line = err.splitlines()[-1]
    assert line.startswith("growlm: the grown model is not what its growth claims: weights") and "function" in line
    assert "worst: head" in line and "nothing is written" in line and not out
    assert tiny.snapshot(here) == {}
    assert main([*arguments, "--no_verify"]) == 0 and Path("big").is_dir()


@pytest.mark.parametrize("where", few(["save", "rename"], ["save"]))
def test_a_process_killed_while_it_writes_leaves_no_folder_and_is_cleared_up_after(here, home, where):
    """Killed with the checkpoint begun, and with everything written but not in its place."""
    code = f"""
import os, signal, sys, pathlib
from growlm.__main__ import main
from growlm.training.checkpoint import Checkpoints
def die(*args): os.kill(os.getpid(), signal.SIGKILL)
if {where!r} == "save":
    save = Checkpoints.save
    Checkpoints.save = lambda self, state: (save(self, state), die())
else:
    pathlib.Path.rename = die
main(sys.argv[1:])
"""
    arguments = ["grow", f"--source={home}/work", "--output=big", "--target.mlp=36", "--no_verify"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=environment(), capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [path.name for path in here.iterdir()] == [".big.part"] and (here / ".big.part" / "model.json").exists()
    (here / ".big.part" / "checkpoint" / "5").mkdir()
    (here / ".big.part" / "verify.json").write_text("{}")
    assert main(arguments) == 0
    assert [path.name for path in here.iterdir()] == ["big"] and not (here / "big" / "verify.json").exists()
    assert [path.name for path in (here / "big" / "checkpoint").iterdir()] == ["6"]
    assert_same(tiny.load_saved(Path("big"))[2], expected(home / "work", "direct", mlp=36))


def test_an_error_while_writing_leaves_nothing(here, home, monkeypatch, capsys):
    def full(path, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saved, "write_json", full)
    assert main(["grow", f"--source={home}/work", "--output=a/big", "--target.mlp=36", "--no_verify"]) == 2
    assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]
    assert tiny.snapshot(here) == {"a": None}


def test_too_little_room_is_found_before_anything_is_read_or_written(here, home, monkeypatch, capsys):
    arguments = ["grow", f"--source={home}/work", "--output=big", "--target.mlp=36", "--no_verify"]
    state = expected(home / "work", "direct", mlp=36)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, state.opt_state)))
    usage = shutil.disk_usage(here)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=size - 1))
    monkeypatch.setattr(grow_command, "read_state", lambda saved: pytest.fail("the state was read"))
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err == f"growlm: output must be on a disk with {size:,} bytes free, got big, where {size - 1:,} are\n"
    assert tiny.snapshot(here) == {}


def test_one_process_at_a_time_writes_a_folder(here, home, capsys):
    (here / ".big.part").mkdir()
    with locked(here / ".big.part"):
        (here / ".big.part" / "mine").write_text("half")
        assert main(["grow", f"--source={home}/work", "--output=big", "--target.mlp=36", "--no_verify"]) == 2
    assert "in use by another growlm process" in capsys.readouterr().err
    assert (here / ".big.part" / "mine").exists() and not (here / "big").exists()


def test_an_empty_folder_will_do(here, home):
    with contextlib.suppress(FileExistsError):
        Path("big").mkdir()
    assert (grow(home / "work", "--target.mlp=36", "--no_verify") / "model.json").exists()
