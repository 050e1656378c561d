"""Real processes on loopback: they train, grow, save, are stopped and killed, and go on as others."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tiny

from growlm import InputError
from growlm.training import processes
from growlm.training.config import build_run
from growlm.training.run import train

BOUND = 150  # seconds in which a job must end once one of its processes is gone; JAX's own timeouts are 60
STEPS = 60


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Sixty steps, growth, sixty more; a checkpoint every four."""
    shape = {"batch": 8, "tokens": STEPS * 8 * tiny.LENGTH}
    checkpoint = {"every_tokens": 4 * 8 * tiny.LENGTH, "max_to_keep": 2}
    corpus = tiny.write_corpus(tmp_path_factory.mktemp("corpus"))
    return tiny.run(corpus, tiny.stage(1, **shape), tiny.grown(1, **shape), checkpoint=checkpoint, mesh={"tensor": 2})


class Job:
    """So many processes with four devices in all, on one run."""

    def __init__(self, folder: Path, settings: dict, count: int):
        config = tiny.write_config(folder / "config.py", settings)
        script = Path(__file__).with_name("one_process.py")
        command = [sys.executable, script, "train", f"--config={config}", f"--workdir={folder / 'run'}"]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.outputs, self.processes = [], []
        for number in range(count):
            names = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": count, "JAX_PROCESS_ID": number}
            flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={4 // count}"
            names |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "GROWLM_PEER_TIMEOUT": 20}
            output = (folder / f"output-{time.monotonic_ns()}").open("w+")
            environment = os.environ | {name: str(value) for name, value in names.items()}
            options = {"env": environment, "stdout": output, "stderr": subprocess.STDOUT}
            self.processes.append(subprocess.Popen(command, **options))
            self.outputs.append(output)

    def said(self, number: int) -> str:
        self.outputs[number].seek(0)
        return self.outputs[number].read()

    def wait(self, seconds: float = 300) -> list[int]:
        """The exit codes."""
        end = time.monotonic() + seconds
        try:
            return [process.wait(max(end - time.monotonic(), 0.1)) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    def reach(self, folder: Path, step: int) -> None:
        """Waits until a checkpoint at or after that step is whole."""
        end = time.monotonic() + 300
        while max((at for _, at in tiny.checkpoints(folder)), default=0) < step:
            assert time.monotonic() < end and all(process.poll() is None for process in self.processes), self.said(0)
            time.sleep(0.05)


def assert_as_on_one(records, settings, folder):
    train(build_run(settings | {"mesh": {}}), folder, threading.Event())
    on_one = tiny.records(folder)
    assert [record["step"] for record in records] == [record["step"] for record in on_one]
    for name in ("loss", "val_loss"):
        have, want = ([r[name] for r in found if r.get(name) is not None] for found in (records, on_one))
        np.testing.assert_allclose(have, want, rtol=1e-5)


@pytest.mark.slow
def test_two_processes_train_and_grow_as_one(settings, tmp_path):
    stages = [stage | {"tokens": 8 * 8 * tiny.LENGTH} for stage in settings["stages"]]
    settings = settings | {"stages": stages}
    job = Job(tmp_path, settings, 2)
    assert job.wait() == [0, 0], job.said(0)
    assert "share 0 2" in job.said(0) and "share 1 2" in job.said(1)
    assert_as_on_one(tiny.records(tmp_path / "run"), settings, tmp_path / "one")


@pytest.mark.slow
def test_two_processes_decide_as_one(settings, tmp_path):
    """When to grow, which the records of the first say, and how."""
    batch = 8 * tiny.LENGTH
    candidates = {"options": {"candidates": ["g_stack", "lemon"], "steps": 2}}
    base, grown = (stage | {"tokens": 8 * batch} for stage in settings["stages"])
    base |= {"grow_when": {"rule": "loss", "options": {"below": 100.0}, "min_tokens": 4 * batch}}
    grown |= {"growth": {"operator": "probe"} | candidates}
    evaluation = {"batches": 2, "every_tokens": 2 * batch}
    settings = settings | {"stages": [base, grown], "evaluation": evaluation}
    job = Job(tmp_path, settings, 2)
    assert job.wait() == [0, 0], job.said(0)
    assert_as_on_one(tiny.records(tmp_path / "run"), settings, tmp_path / "one")
    steps = [(record["stage"], record["step"]) for record in tiny.records(tmp_path / "run")]
    assert (0, 4) in steps and (0, 5) not in steps and steps[-1] == (1, 12)
    found = [json.loads((folder / "decision-1.json").read_text()) for folder in (tmp_path / "run", tmp_path / "one")]
    assert found[0]["growth"]["chosen"] == found[1]["growth"]["chosen"]


@pytest.mark.slow
def test_processes_train_and_grow_are_stopped_killed_and_others_go_on(settings, tmp_path):
    run = tmp_path / "run"

    job = Job(tmp_path, settings, 2)
    job.reach(run, 8)
    job.processes[1].send_signal(signal.SIGTERM)  # one is asked, all stop, at one step
    assert job.wait() == [75, 75], job.said(0)
    assert "share 0 2" in job.said(0) and "share 1 2" in job.said(1)
    assert all("stopped and saved at step" in job.said(number) for number in (0, 1))
    stopped_at = max(step for _, step in tiny.checkpoints(run))
    assert stopped_at < STEPS

    job = Job(tmp_path, settings, 2)
    job.reach(run, stopped_at + 8)
    job.processes[1].kill()
    began = time.monotonic()
    assert job.processes[0].wait(BOUND) not in (0, None)
    assert time.monotonic() - began < BOUND
    assert "another process of the job is gone" in job.said(0) or "JAX distributed service" in job.said(0)
    job.wait()

    job = Job(tmp_path, settings, 4)
    assert job.wait() == [0] * 4, job.said(0)
    assert [f"share {number // 2} 2" in job.said(number) for number in range(4)] == [True] * 4  # tensor spans two

    assert_as_on_one(tiny.records(run), settings, tmp_path / "one")
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoints",
        "config.json",
        "growth-1.json",
        "metrics.jsonl",
        "run.json",
    ]
    assert json.loads((run / "run.json").read_text())["hardware"].startswith("4 x cpu")


@pytest.mark.parametrize(
    ("count", "number", "says"),
    [
        ("", "0", "JAX_NUM_PROCESSES must be an integer >= 1, got ''"),
        ("0", "0", "JAX_NUM_PROCESSES must be an integer >= 1, got '0'"),
        ("2", "one", "JAX_PROCESS_ID must be an integer >= 0, got 'one'"),
        ("2", "2", "JAX_PROCESS_ID must be 0 to JAX_NUM_PROCESSES - 1 = 1, got 2"),
    ],
)
def test_variables_that_do_not_fit_are_refused(monkeypatch, count, number, says):
    values = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1", "JAX_NUM_PROCESSES": count, "JAX_PROCESS_ID": number}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=says):
        processes.join_processes()


def test_a_process_of_its_own_joins_nobody(monkeypatch):
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    monkeypatch.setattr(processes.jax.distributed, "initialize", lambda **_: pytest.fail("joined"))
    for name in processes.TASK_COUNTS:
        monkeypatch.setenv(name, "1")
    processes.join_processes()
    assert processes.is_first() and processes.broadcast(7) == 7


@pytest.mark.parametrize(("seconds", "allowed"), [("5", True), ("0", False), ("soon", False)])
def test_the_peer_timeout_is_read_from_the_environment(monkeypatch, seconds, allowed):
    joined = []
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    monkeypatch.setattr(processes.jax.distributed, "initialize", lambda **options: joined.append(options))
    monkeypatch.setenv(processes.TASK_COUNTS[0], "4")
    monkeypatch.setenv("GROWLM_PEER_TIMEOUT", seconds)
    if allowed:
        processes.join_processes()
        assert [set(options.values()) for options in joined] == [{5}]
    else:
        with pytest.raises(InputError, match="GROWLM_PEER_TIMEOUT must be an integer >= 1"):
            processes.join_processes()


ASKED = """
import os, signal, sys, time
from growlm.training.processes import stop_requests

with stop_requests() as stop:
    stop.unsaved = sys.argv[1] == "unsaved"
    for _ in range(2):
        os.kill(os.getpid(), getattr(signal, sys.argv[2]))
        time.sleep(1)
        print("set" if stop.is_set() else "not set", flush=True)
"""


@pytest.mark.parametrize(
    ("what", "name", "code", "out", "says"),
    [
        ("saved", "SIGINT", 75, "", ["stopped; all that was trained is saved, the same command goes on"]),
        ("saved", "SIGTERM", 75, "", ["stopped; all that was trained is saved, the same command goes on"]),
        ("unsaved", "SIGINT", 130, "set\n", ["stopping: saving after the step under way", "ended; the same command"]),
        ("unsaved", "SIGTERM", 0, "set\nset\n", ["stopping: saving after the step under way"]),
    ],
)
def test_a_request_to_stop_is_acknowledged_and_obeyed_at_once(what, name, code, out, says):
    command = [sys.executable, "-c", ASKED, what, name]
    root = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": root}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (code, out), done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(says) and all(part in line for part, line in zip(says, lines, strict=True)), lines


@pytest.mark.parametrize("name", processes.TASK_COUNTS)
def test_a_task_of_several_asks_jax_for_the_others(monkeypatch, name):
    joined = []
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    monkeypatch.setattr(processes.jax.distributed, "initialize", lambda **options: joined.append(options))
    monkeypatch.setenv(name, "4")
    processes.join_processes()
    assert [set(options.values()) for options in joined] == [{processes.PEER_TIMEOUT_SECONDS}]


@pytest.mark.parametrize(("device", "libtpu", "joins"), [("accel0", True, 1), ("accel0", False, 0), (None, True, 0)])
def test_a_tpu_vm_is_seen_by_its_chips_and_its_library(monkeypatch, device, libtpu, joins):
    joined = []
    monkeypatch.setattr(processes.jax.distributed, "initialize", lambda **options: joined.append(options))
    monkeypatch.setattr(
        processes.Path, "glob", lambda self, names: [self / device] if device and "accel" in names else []
    )
    monkeypatch.setattr(processes, "find_spec", lambda name: name if libtpu else None)
    for name in ("JAX_COORDINATOR_ADDRESS", *processes.TASK_COUNTS):
        monkeypatch.delenv(name, raising=False)
    processes.join_processes()
    assert len(joined) == joins
