"""A sweep while it is trained: a table on a terminal, lines elsewhere; and a run that fails is one run."""

import dataclasses
import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import threading

import pytest
import tiny

from growlm.__main__ import main
from growlm.errors import InputError, StoppedError
from growlm.files import held_elsewhere, locked, write_json
from growlm.training.progress import Board, Screen, Standing, standing, table
from growlm.training.run import Runner
from growlm.training.sweep import STORE, plan_sweep, run_sweep

GO_ON = threading.Event()  # never set


def terminal(text, width=80):
    """What a terminal shows after all this, line by line."""
    lines, row, column = [""], 0, 0
    parts = iter(text)
    for char in parts:
        if char == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif char == "\r":
            column = 0
        elif char == "\x1b":
            next(parts)
            if next(parts) == "A":
                row = max(0, row - 1)
            else:  # J: all from here on
                lines = [*lines[:row], lines[row][:column]]
        else:
            assert column < width, "a line is wrapped, and the count of lines is wrong"
            lines[row] = lines[row][:column].ljust(column) + char + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


@pytest.fixture
def tty():
    """A terminal of 60 columns and 8 lines: a stream to write to, and what was written."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 8, 60, 0, 0))
    settings = termios.tcgetattr(theirs)
    settings[1] &= ~termios.OPOST  # newlines as they are written
    termios.tcsetattr(theirs, termios.TCSANOW, settings)
    stream = os.fdopen(theirs, "w")

    def shown():
        stream.flush()
        written = b""
        while select.select([ours], [], [], 0.2)[0]:
            written += os.read(ours, 1 << 16)
        return terminal(written.decode(), 60)

    yield stream, shown
    stream.close()
    os.close(ours)


def test_the_block_stays_below_what_is_written_and_a_bar_is_one_line(tty):
    stream, shown = tty
    block = ["run  state", "a    training"]
    screen = Screen(stream, lambda: block)
    screen.refresh()
    screen.write("a note\n")
    for percent in range(0, 101, 10):
        screen.write(f"\rbar {percent}%")
    block = ["run  state", "a    done"]
    screen.refresh()
    screen.write("\n")
    screen.write("half a ")
    screen.write("line\nand the next\n")
    screen.close()
    lines = ["a note", "bar 100%", "half a line", "and the next", "run  state", "a    done", ""]
    assert shown() == lines


def test_a_block_too_large_for_the_terminal_is_cut(tty):
    stream, shown = tty
    screen = Screen(stream, lambda: [f"{number} {'x' * 80}" for number in range(20)])
    screen.refresh()
    screen.write("above\n")
    screen.refresh()
    lines = shown()
    assert lines[0] == "above" and lines[-1] == "..." and len(lines) == 1 + 7
    assert all(len(line) <= 59 for line in lines)


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


def test_a_standing_says_how_far_a_run_is(plan, tmp_path):
    store = tmp_path / STORE
    base, grown = plan.runs["a"].stages

    def of(name="a", status="pending", current=False):
        return standing(name, plan.runs[name].stages, tmp_path, store, status, current)

    def record(stage, step, **values):
        (store / stage.address).mkdir(parents=True, exist_ok=True)
        with (store / stage.address / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    assert of() == Standing("a", "waiting", 0.0, None)
    record(base, 2, loss=5.0)
    whole = grown.cost_at(grown.last_step).flops
    assert of(current=True) == Standing("a", "training", base.cost_at(2).flops / whole, 5.0)
    record(base, 8, loss=4.0)  # for the other run: it leaves the base later
    assert of() == Standing("a", "waiting", base.cost_at(4).flops / whole, None)
    record(grown, 5, loss=3.0)
    with (store / grown.address / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # half a line
    assert of(status="failed") == Standing("a", "failed", grown.cost_at(5).flops / whole, 3.0)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "metrics.jsonl").write_text('{"step": 6, "val_loss": 2.5}\n')
    assert of(status="done") == Standing("a", "done", 1.0, 2.5)
    assert table([of(status="done")])[1].split() == ["a", "done", "100%", "2.5000"]


HOLD = "import sys; from pathlib import Path; from growlm.files import locked\n"
HOLD += "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def test_a_stage_that_another_process_trains_is_told_from_ones_own(plan, tmp_path):
    store = tmp_path / STORE
    folder = store / plan.runs["b"].stages[0].address
    folder.mkdir(parents=True)
    with locked(folder):
        assert not held_elsewhere(folder)
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        assert held_elsewhere(folder)
        found = standing("b", plan.runs["b"].stages, tmp_path, store, "pending", current=True)
        assert found.state == "trained by another process"
    finally:
        other.communicate("")
    assert not held_elsewhere(folder)


def run_all(corpus, folder):
    plan = plan_sweep(tiny.build_sweep(tiny.sweep(corpus, three(corpus), baseline="first")))
    return run_sweep(plan, folder, GO_ON, "", plan.select(None))


@pytest.fixture
def breaking(monkeypatch):
    """Makes the second run end with an error."""
    train, raised = Runner.train, []

    def broken(self, plan, folder, name):
        if name == "second" and raised:
            raise raised[0]
        train(self, plan, folder, name)

    monkeypatch.setattr(Runner, "train", broken)
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
    runs = json.loads((tmp_path / "s" / "sweep.json").read_text())["runs"]
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
    write_json(tmp_path / "t" / "config.json", dataclasses.asdict(plan.config))
    assert main(["sweep", f"--config={config}", f"--workdir={tmp_path / 't'}"]) == 2
    assert not (tmp_path / "t" / "first" / "metrics.jsonl").exists()


def test_the_exit_code_is_1_when_a_run_failed_or_all_did(corpus, tmp_path, capsys, monkeypatch, breaking):
    breaking.append(RuntimeError("no"))
    config = tiny.write_config(tmp_path / "c.py", tiny.sweep(corpus, three(corpus), baseline="first"))
    assert main(["sweep", f"--config={config}", f"--workdir={tmp_path / 's'}"]) == 1
    said = capsys.readouterr()
    assert "growlm: run 'second' failed: RuntimeError: no\n" in said.err and "failed: RuntimeError: no" in said.out
    monkeypatch.setattr(Runner, "train", lambda *_: 1 / 0)
    assert main(["sweep", f"--config={config}", f"--workdir={tmp_path / 't'}"]) == 1
    assert capsys.readouterr().err.count("failed: ZeroDivisionError: division by zero\n") == 3


def test_a_terminal_shows_the_table_and_gives_stderr_back(plan, tmp_path, tty, monkeypatch):
    stream, shown = tty
    write_json(tmp_path / "sweep.json", {"runs": {name: {"status": "pending"} for name in plan.runs}})
    monkeypatch.setattr(sys, "stderr", stream)
    with Board({name: run.stages for name, run in plan.runs.items()}, tmp_path, tmp_path / STORE) as board:
        board.begin("a")
        print("a note", file=sys.stderr)
        write_json(tmp_path / "sweep.json", {"runs": {"a": {"status": "done"}, "b": {"status": "failed"}}})
        board.end("a", None)
    assert sys.stderr is stream
    assert [line.split() for line in shown()] == [
        ["a", "note"],
        ["run", "state", "done", "loss"],
        ["a", "done", "100%", "-"],
        ["b", "failed", "0%", "-"],
        [],
    ]
