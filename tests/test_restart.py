"""Runs that are really killed, at chosen moments and at any, end with the same bits as one that was left alone."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

# One stage of one layer and one of two, with a checkpoint every 4 steps, of which only the latest stays.
STEPS = 10
TOTAL = 2 * STEPS
ROOT = Path(__file__).resolve().parents[1]

# What runs instead of `python -m growlm`: the same command in a process that sends itself a signal at one moment.
#   batch   when the nth batch is asked for (a stage that goes on counts from 1), and once the checkpoints of the steps
#           `there` are on disk, and no others
#   rename  just before the nth file or folder gets a name that ends so: until then it is not there
#   remove  when the nth file of a folder is deleted, whose name ends so
#   grow    before growth, or after it
#   upload  just before the nth object below `where` is uploaded to s3://
#   unload  just before the nth time that objects below `where` are removed there
DRIVER = """
import itertools, json, os, pathlib, signal, sys, time
from growlm.__main__ import main
from growlm.training import growing, loop

moment = json.loads(sys.argv[1])
kind, where = moment["kind"], moment.get("where", "")
left = itertools.count(moment.get("n", 1), -1)
removing = []


def now():
    if next(left) == 1:
        while moment.get("there") not in (None, on_disk()):
            time.sleep(0.01)
        os.kill(os.getpid(), getattr(signal, moment["signal"]))


def on_disk():
    workdir = pathlib.Path(sys.argv[-1].removeprefix("--workdir="))
    return sorted(int(path.name) for path in workdir.glob("checkpoints/*/checkpoints/*") if path.name.isdecimal())


def audit(event, args):
    if kind == "rename" and event == "os.rename" and os.fspath(args[1]).endswith(where):
        now()
    if kind == "remove" and event == "shutil.rmtree":
        removing[:] = [os.fspath(args[0]).endswith(where)]
    if kind == "remove" and event == "os.remove" and (any(removing) or where + "/" in os.fspath(args[0])):
        now()


def counted(*args, **kwargs):
    for batch in batches(*args, **kwargs):
        now()
        yield batch


def watched(*args, **kwargs):
    if where == "before":
        now()
        time.sleep(5 if moment["signal"] == "SIGTERM" else 0)  # until the process has ended, as it does at once
    result = apply_growth(*args, **kwargs)
    if where == "after":
        now()
    return result


def reaching(name):
    method = getattr(s3fs.S3FileSystem, name)

    async def reached(self, path, *args, **kwargs):
        if where in str((path, *args)):
            now()
        return await method(self, path, *args, **kwargs)

    setattr(s3fs.S3FileSystem, name, reached)


sys.addaudithook(audit)
if kind in ("upload", "unload"):
    import s3fs
    for name in {"upload": ["_put_file"], "unload": ["_rm", "_rm_file"]}[kind]:
        reaching(name)
if kind == "batch":
    batches, loop.batches = loop.batches, counted
if kind == "grow":
    apply_growth, growing.apply_growth = growing.apply_growth, watched
sys.exit(main(sys.argv[2:]))
"""


class Bench:
    """A folder with configs, and processes that train them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.place = str(folder)  # of runs
        self.options: list[str] = []
        schedule = {"kind": "cosine", "peak_lr": 1e-2, "warmup_tokens": 3 * tiny.STEP}
        growth = {"operator": "direct", "optimizer_state": "map"}
        common = {"schedule": schedule, "optimizer": {"moment_dtype": "bfloat16"}}
        self.settings = tiny.run(
            tiny.write_corpus(folder),
            tiny.stage(STEPS, **common),
            tiny.grown(STEPS, growth=growth, **common),
            checkpoint={"every_tokens": 4 * tiny.STEP, "max_to_keep": 1},
            evaluation={"every_tokens": 3 * tiny.STEP, "batches": 2},
        )
        self.write("train", self.settings)
        # One cache of compiled programs for all processes: a start costs 2 seconds instead of 8.
        cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self.environment = os.environ | cache | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path}

    def write(self, command: str, settings: dict) -> None:
        """The config of `growlm train` or of `growlm sweep`."""
        tiny.write_config(self.folder / f"{command}.py", settings)

    def start(self, name: str, moment: dict | None = None, command: str = "train") -> subprocess.Popen:
        code = ["-c", DRIVER, json.dumps({"signal": "SIGKILL"} | moment)] if moment else ["-m", "growlm"]
        arguments = [command, f"--config={self.folder / command}.py", *self.options, f"--workdir={self.place}/{name}"]
        return subprocess.Popen(
            [sys.executable, *code, *arguments],
            env=self.environment,
            cwd=self.folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def finish(self, name: str, moment: dict | None = None, command: str = "train") -> tuple[int, str]:
        """Starts the command and waits. Returns the exit code and what was said."""
        with self.start(name, moment, command) as process:
            out, err = process.communicate(timeout=600)  # a machine may be busy
        return process.returncode, out + err


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("restart"))
    code, said = bench.finish("reference")
    assert code == 0, said
    assert len(tiny.records(bench.folder / "reference")) == TOTAL + 2  # and one at the start of each stage
    return bench


def assert_as_reference(bench: Bench, name: str) -> None:
    """The same records but for the clock, the same reports and the same arrays."""
    folder, reference = bench.folder / name, bench.folder / "reference"
    assert tiny.timeless(folder) == tiny.timeless(reference)
    have, want = (tiny.read_json(home / "growth-1.json") for home in (folder, reference))
    assert have | {"seconds": 0} == want | {"seconds": 0}
    have, want = tiny.checkpoints(folder), tiny.checkpoints(reference)
    assert have.keys() == want.keys() == {(0, STEPS), (STEPS, TOTAL)}
    for stage, path in want.items():
        tiny.assert_same_arrays(tiny.read_checkpoint(have[stage]), tiny.read_checkpoint(path))


END_1, END_2 = (0, STEPS), (STEPS, TOTAL)

# Moments in the order of training, and the checkpoints (first step of the stage, step) that are there then. Every
# start goes on from the kill before it.
MOMENTS = {
    "while the first file is written": ({"kind": "rename", "where": "/config.json"}, set()),
    "in stage 1, before a checkpoint": ({"kind": "batch", "n": 3}, set()),
    "while the first checkpoint is written": ({"kind": "rename", "where": "/checkpoints/4"}, set()),
    "in stage 1, after a checkpoint": ({"kind": "batch", "n": 7, "there": [4]}, {(0, 4)}),
    "while another checkpoint is written": ({"kind": "rename", "where": "/checkpoints/8"}, {(0, 4)}),
    "while what that left is removed": ({"kind": "remove", "where": "/8.orbax-checkpoint-tmp", "n": 2}, {(0, 4)}),
    "while an old checkpoint is removed": ({"kind": "remove", "where": "/checkpoints/4", "n": 9}, {(0, 4), (0, 8)}),
    "after the last step of stage 1": ({"kind": "rename", "where": f"/checkpoints/{STEPS}"}, {(0, 4), (0, 8)}),
    "between stage 1 and growth": ({"kind": "grow", "where": "before"}, {END_1}),
    "right after growth": ({"kind": "grow", "where": "after"}, {END_1}),
    "before the first step of stage 2": ({"kind": "batch", "n": 1}, {END_1}),
    "in stage 2": ({"kind": "batch", "n": 7, "there": [STEPS, 16]}, {END_1, (STEPS, 16)}),
    "when all is trained": ({"kind": "rename", "where": "many/metrics.jsonl", "n": 3}, {END_1, END_2}),
}


FEW = ("while the first checkpoint is written", "in stage 1, after a checkpoint", "right after growth", "in stage 2")


@pytest.mark.parametrize("name", ["few", pytest.param("many", marks=pytest.mark.slow)])
def test_a_run_killed_at_every_moment_ends_with_the_same_bits(bench, name):
    for moment in FEW if name == "few" else MOMENTS:
        where, there = MOMENTS[moment]
        code, said = bench.finish(name, where)
        assert code == -signal.SIGKILL, f"not killed {moment}: {code} {said}"
        assert tiny.checkpoints(bench.folder / name).keys() == there, moment
    code, said = bench.finish(name)
    assert code == 0, said
    assert_as_reference(bench, name)


@pytest.mark.slow
def test_a_run_killed_from_outside_at_any_time_ends_with_the_same_bits(bench):
    delays = [random.uniform(0, 0.3) for _ in range(3)]
    codes = []
    for delay in delays:
        with bench.start("any") as process:
            begun = time.time()
            while process.poll() is None and not any(
                path.stat().st_mtime >= begun for path in (bench.folder / "any").glob("checkpoints/*/stage.json")
            ):
                time.sleep(0.005)
            time.sleep(delay)
            process.kill()
            process.communicate()
        codes.append(process.returncode)
    assert codes[0] == -signal.SIGKILL, delays  # a later one may have been done before its time
    code, said = bench.finish("any")
    assert code == 0, said
    assert_as_reference(bench, "any")


@pytest.mark.slow
def test_sigterm_saves_where_it_is_and_exits_75(bench):
    stops = (
        ({"kind": "batch", "n": 6}, 6, "stopped and saved at step 6; the same command goes on"),
        ({"kind": "grow", "where": "before"}, STEPS, "stopped; all that was trained is saved"),
    )
    for where, step, says in stops:
        code, said = bench.finish("asked", where | {"signal": "SIGTERM"})
        assert code == 75, said
        assert f"growlm: {says}" in said.splitlines()[-1]
        assert (0, step) in tiny.checkpoints(bench.folder / "asked")
        assert tiny.records(bench.folder / "asked")[-1]["step"] == step
    code, said = bench.finish("asked")
    assert code == 0, said
    assert_as_reference(bench, "asked")


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_its_runs_have_the_bits_of_a_run_alone(bench):
    first, second = bench.settings["stages"]
    common = {key: value for key, value in bench.settings.items() if key != "stages"}
    runs = {"base": {"stages": [first]}, "grown": {"stages": [first, second]}}
    bench.write("sweep", common | {"runs": runs, "baseline": "base", "grown": ("grown",)})
    # Before anything is trained, and in the second stage of the second run.
    for where in ({"kind": "rename", "where": "/grown/config.json"}, {"kind": "batch", "n": STEPS + 7}):
        code, said = bench.finish("shared", where, command="sweep")
        assert code == -signal.SIGKILL, said
    sweep = tiny.read_json(bench.folder / "shared" / "sweep.json")
    assert {name: entry["status"] for name, entry in sweep["runs"].items()} == {"base": "done", "grown": "pending"}

    code, said = bench.finish("shared", command="sweep")
    assert code == 0 and "report.html" in said, said
    sweep = tiny.read_json(bench.folder / "shared" / "sweep.json")
    assert {entry["status"] for entry in sweep["runs"].values()} == {"done"}
    assert tiny.timeless(bench.folder / "shared" / "grown") == tiny.timeless(bench.folder / "reference")
    have, want = tiny.checkpoints(bench.folder / "shared"), tiny.checkpoints(bench.folder / "reference")
    tiny.assert_same_arrays(tiny.read_checkpoint(have[END_2]), tiny.read_checkpoint(want[END_2]))


DECIDING = {
    "before the end of stage 1 is kept": {"kind": "rename", "where": "/decision.json"},
    "before the checkpoint of that step": {"kind": "rename", "where": "/checkpoints/6"},
    "before the choice of the probe is kept": {"kind": "rename", "where": "/decision.json"},
    "in the middle of the probe": {"kind": "batch", "n": 2},
    "in stage 2": {"kind": "batch", "n": 7},
}


@pytest.mark.slow
def test_a_run_killed_around_its_decisions_makes_the_same_and_ends_with_the_same_bits(tmp_path):
    bench = Bench(tmp_path)
    base, grown = bench.settings["stages"]
    when = {"rule": "loss", "options": {"below": 100.0}, "min_tokens": 6 * tiny.STEP}
    candidates = {name: {"operator": "direct", "options": {"order": name}} for name in ("stack", "interleave")}
    probe = {"operator": "probe", "options": {"candidates": candidates, "steps": 2}}
    stages = [base | {"grow_when": when}, grown | {"growth": probe}]
    bench.write("train", bench.settings | {"stages": stages})
    code, said = bench.finish("reference")
    assert code == 0, said
    for moment, where in DECIDING.items():
        code, said = bench.finish("killed", where)
        assert code == -signal.SIGKILL, f"not killed {moment}: {code} {said}"
    code, said = bench.finish("killed")
    assert code == 0, said
    have, want = (tmp_path / name for name in ("killed", "reference"))
    assert tiny.timeless(have) == tiny.timeless(want)
    for number, kind in enumerate(("end", "growth")):
        ours, theirs = (tiny.read_json(home / f"decision-{number}.json")[kind] for home in (have, want))
        assert ours | {"seconds": 0} == theirs | {"seconds": 0}
    for end in ((0, 6), (6, 6 + STEPS)):
        paths = (tiny.checkpoints(home)[end] for home in (have, want))
        tiny.assert_same_arrays(*map(tiny.read_checkpoint, paths))
