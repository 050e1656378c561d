"""A sweep while it is trained: a table on a terminal, lines elsewhere; and a run that fails is one run."""

import io
import json
import re
import subprocess
import sys
import threading

import pytest
import tiny
from rich.console import Console

from growlm.__main__ import main
from growlm.errors import InputError, StoppedError
from growlm.files import is_locked, write_json
from growlm.training import sweep as sweep_module
from growlm.training.config import plain
from growlm.training.progress import Display, RunStatus, run_status, table
from growlm.training.run import train, train_run
from growlm.training.sweep import STORE, plan_sweep, run_sweep

GO_ON = threading.Event()  # never set


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.write_corpus(tmp_path_factory.mktemp("corpus"))


def three(corpus):
    """Runs that differ from the first step on, so that one that fails takes no other with it."""
    return {name: [tiny.stage(steps)] for name, steps in (("first", 2), ("second", 3), ("third", 4))}


@pytest.fixture
def plan(corpus):
    stages = {name: [tiny.stage(steps), tiny.grown(2)] for name, steps in (("a", 4), ("b", 8))}
    return plan_sweep(tiny.build_sweep(tiny.sweep(corpus, stages, baseline="a")))


def write_records(folder, *records):
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps({"stage": 0} | record) + "\n" for record in records)


def test_a_status_says_how_far_a_run_is(plan, tmp_path):
    store = tmp_path / STORE
    base, grown = plan.runs["a"].stages

    def of(outcome="pending", current=None):
        return run_status(tmp_path / "a", plan.runs["a"].stages, store, outcome, current)

    assert of() == RunStatus("a", "waiting")
    write_records(store / base.stage_hash, {"step": 0, "loss": None, "val_loss": 6.0})
    assert of(current=base) == RunStatus("a", "training")
    write_records(store / base.stage_hash, {"step": 2, "loss": 5.0, "tokens_per_second": 100.0})
    whole, done = grown.cost_at(grown.last_step).flops, base.cost_at(2).flops
    left = (whole - done) / (done / base.tokens_at(2) * 100)
    assert of(current=base) == RunStatus("a", "training", done / whole, 5.0, 6.0, 100.0, pytest.approx(left))
    write_records(store / base.stage_hash, {"step": 8, "loss": 4.0})  # for the other run: it leaves the base later
    assert of() == RunStatus(
        "a", "waiting", base.cost_at(4).flops / whole, 5.0, 6.0, 100.0, pytest.approx(left / 2, rel=1)
    )
    write_records(store / grown.stage_hash, {"step": 5, "loss": 3.0})
    with (store / grown.stage_hash / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # half a line
    assert of("failed") == RunStatus("a", "failed", grown.cost_at(5).flops / whole, 3.0)
    write_records(tmp_path / "a", {"step": 6, "loss": 2.6, "val_loss": 2.5})
    assert of("done") == RunStatus("a", "done", 1.0, 2.6, 2.5)


def test_the_table_has_a_row_for_every_run():
    statuses = [RunStatus("a", "training", 0.42, 3.0, 2.5, 12_345.6, 3723.0), RunStatus("b", "waiting")]
    console = Console(file=io.StringIO(), width=100)
    console.print(table(statuses))
    head, first, second = (line.split() for line in console.file.getvalue().splitlines())
    assert head == ["run", "state", "done", "loss", "val", "loss", "tokens/s", "left"]
    assert first[:3] == ["a", "training", "42%"] and first[-4:] == ["3.0000", "2.5000", "12,346", "1:02:03"]
    assert second[:3] == ["b", "waiting", "0%"] and second[-4:] == ["-"] * 4


HOLD = "import sys; from pathlib import Path; from growlm.files import locked\n"
HOLD += "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def test_a_stage_that_another_process_trains_is_told_from_ones_own(plan, tmp_path):
    store, stage = tmp_path / STORE, plan.runs["b"].stages[0]
    folder = store / stage.stage_hash
    write_records(folder, {"step": 1, "loss": 5.0})
    assert not is_locked(folder)
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        assert is_locked(folder)
        states = [run_status(tmp_path / "b", plan.runs["b"].stages, store, current=at).state for at in (None, stage)]
        assert states == ["trained by another process", "training"]
    finally:
        other.kill()  # the lock goes with the process
        other.wait()
    assert not is_locked(folder)


def run_all(corpus, folder):
    plan = plan_sweep(tiny.build_sweep(tiny.sweep(corpus, three(corpus), baseline="first")))
    return run_sweep(plan, folder, GO_ON, "", plan.select(None))


@pytest.fixture
def breaking(monkeypatch):
    """Makes the second run end with an error."""
    raised = []

    def broken(plan, *, folder, **settings):
        if folder.name == "second" and raised:
            raise raised[0]
        train_run(plan, folder=folder, **settings)

    monkeypatch.setattr(sweep_module, "train_run", broken)
    return raised


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            RuntimeError("RESOURCE_EXHAUSTED: out of memory\nand much more"),
            "RuntimeError: RESOURCE_EXHAUSTED: out of memory",
        ),
        (InputError("checkpoint 3 is damaged"), "checkpoint 3 is damaged"),
        (ValueError("x" * 500), f"ValueError: {'x' * 197}..."),
    ],
)
def test_a_run_that_fails_is_reported_and_the_others_go_on(corpus, tmp_path, capsys, breaking, error, line):
    breaking.append(error)
    assert run_all(corpus, tmp_path / "s") == {"second": line}
    runs = tiny.read_json(tmp_path / "s" / "sweep.json")["runs"]
    assert {name: entry["status"] for name, entry in runs.items()} == {
        "first": "done",
        "second": "failed",
        "third": "done",
    }
    assert runs["second"]["error"] == line
    said = capsys.readouterr().err
    assert f"growlm: second failed: {line} (2 of 3 runs)\n" in said
    assert "growlm: third is done, validation loss " in said and "(3 of 3 runs)" in said
    assert ("Traceback" in said) == (not isinstance(error, InputError))
    breaking.clear()
    assert run_all(corpus, tmp_path / "s") == {}  # and the same command goes on


@pytest.mark.parametrize("error", [StoppedError("stopped"), KeyboardInterrupt()])
def test_a_request_to_stop_stops_all(corpus, tmp_path, breaking, error):
    breaking.append(error)
    with pytest.raises(type(error)):
        run_all(corpus, tmp_path / "s")
    assert not (tmp_path / "s" / "third" / "metrics.jsonl").exists()


def test_a_folder_of_another_run_is_found_before_anything_is_trained(corpus, tmp_path):
    (tmp_path / "s" / "third").mkdir(parents=True)
    (tmp_path / "s" / "config.json").write_text(json.dumps({"not": "this"}))
    config = tiny.write_config(tmp_path / "c.py", tiny.sweep(corpus, three(corpus), baseline="first"))
    assert main(["sweep", f"--config={config}", f"--workdir={tmp_path / 's'}"]) == 2
    (tmp_path / "t" / "third").mkdir(parents=True)
    (tmp_path / "t" / "third" / "config.json").write_text(json.dumps({"not": "this"}))
    plan = plan_sweep(tiny.build_sweep(tiny.sweep(corpus, three(corpus), baseline="first")))
    write_json(tmp_path / "t" / "config.json", plain(plan.config))
    assert main(["sweep", f"--config={config}", f"--workdir={tmp_path / 't'}"]) == 2
    assert not (tmp_path / "t" / "first" / "metrics.jsonl").exists()


def test_the_exit_code_is_1_when_a_run_failed_or_all_did(corpus, tmp_path, capsys, monkeypatch, breaking):
    breaking.append(RuntimeError("no"))
    config = tiny.write_config(tmp_path / "c.py", tiny.sweep(corpus, three(corpus), baseline="first"))
    assert main(["sweep", f"--config={config}", f"--workdir={tmp_path / 's'}"]) == 1
    said = capsys.readouterr()
    assert "growlm: run 'second' failed: RuntimeError: no\n" in said.err and "failed: RuntimeError: no" in said.out
    monkeypatch.setattr(sweep_module, "train_run", lambda *_, **settings: 1 / 0)
    assert main(["sweep", f"--config={config}", f"--workdir={tmp_path / 't'}"]) == 1
    assert capsys.readouterr().err.count("failed: ZeroDivisionError: division by zero\n") == 3


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def test_a_terminal_shows_the_table_and_gives_stderr_back(plan, tmp_path, monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    for name, value in {"COLUMNS": "100", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    runs = {tmp_path / name: (tmp_path / STORE, run.stages) for name, run in plan.runs.items()}
    with Display(runs) as display:
        display.begin(tmp_path / "a", plan.runs["a"].stages, 0)
        display.say("a note")
        display.end(tmp_path / "a", None)
        display.end(tmp_path / "b", "no")
    assert sys.stderr is stream
    lines = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", stream.getvalue()).split("\n")
    head, first, second = [line.split() for line in lines if line.strip()][-3:]
    assert head[-5:] == ["loss", "val", "loss", "tokens/s", "left"]
    assert first[:3] == ["a", "done", "100%"] and second[:3] == ["b", "failed", "0%"]
    assert "growlm: a 1/2: a note" in stream.getvalue()


def test_without_a_terminal_a_line_says_so_when_a_validation_loss_is_measured(corpus, tmp_path, capsys):
    config = tiny.run_config(corpus, tiny.stage(4), evaluation={"every_tokens": 2 * tiny.STEP, "batches": 1})
    train(config, tmp_path / "run", GO_ON)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("growlm: ")]
    recorded = {record["step"]: record for record in tiny.records(tmp_path / "run")}
    for step in (2, 4):
        loss, val_loss = recorded[step]["loss"], recorded[step]["val_loss"]
        start = f"growlm: run 1/1: step {step} of 4: loss {loss:.4f}, validation loss {val_loss:.4f}, "
        assert sum(line.startswith(start) and line.endswith(" tokens/s") for line in lines) == 1
    assert lines[-1] == f"growlm: run is done, validation loss {recorded[4]['val_loss']:.4f} (1 of 1 runs)"


@pytest.mark.slow
def test_a_process_takes_the_next_free_run_and_comes_back(corpus, tmp_path, capsys, monkeypatch):
    runs = {"first": [tiny.stage(2)], "second": [tiny.stage(3)], "other": [tiny.stage(2, layers=2)]}
    plan = plan_sweep(tiny.build_sweep(tiny.sweep(corpus, runs, baseline="first")))
    (shared,) = {plan.runs[name].stages[0].stage_hash for name in ("first", "second")}
    folder = tmp_path / "s" / STORE / shared
    folder.mkdir(parents=True)
    (tmp_path / "s" / "config.json").write_text(json.dumps(plain(plan.config)))
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "held\n"

    def end_other_when_nothing_is_free(pending, *args, **options):
        waited.append(list(pending))
        other.kill()
        other.wait()

    waited = []
    monkeypatch.setattr(sweep_module, "_wait", end_other_when_nothing_is_free)
    assert run_sweep(plan, tmp_path / "s", GO_ON, "", plan.select(None)) == {}
    assert waited == [["first", "second"]]
    done = [line.split()[1] for line in capsys.readouterr().err.splitlines() if " is done, " in line]
    assert done[0] == "other" and sorted(done) == ["first", "other", "second"]


def test_a_sweep_says_which_starts_trained_its_runs_and_no_others(corpus, tmp_path, monkeypatch):
    config = tiny.sweep_config(corpus, {"a": [tiny.stage(2)], "b": [tiny.stage(3)]}, "a")

    def start(commit, *chosen):
        made = {"command": f"at {commit}", "hardware": "1 x cpu, jax", "commit": commit, "experiment": None}
        monkeypatch.setattr(sweep_module, "reproduction", lambda command, experiment: made)
        run_sweep(plan_sweep(config, tmp_path / "s"), tmp_path / "s", threading.Event(), "c", chosen)
        summary = tiny.read_json(tmp_path / "s" / "sweep.json")
        return [summary[key] for key in ("command", "hardware", "commit")]

    assert start("aaaa", "a") == start("bbbb", "a") == ["at aaaa", "1 x cpu, jax", "aaaa"]
    both = ["at aaaa\nat cccc", "1 x cpu, jax", "aaaa, cccc"]
    assert start("cccc", "a", "b") == start("dddd", "a", "b") == both
