"""Real processes on loopback: they train, grow, save, are stopped and killed, and go on as others."""

import http.server
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
from growlm.training import processes, tpu_hosts
from growlm.training.checkpoint import check_whole
from growlm.training.config import build_run
from growlm.training.run import train

BOUND = 150  # seconds in which a job must end once one of its processes is gone; JAX's own timeouts are 20
STEPS = 60
ONE_PROCESS = str(Path(__file__).with_name("one_process.py"))


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Sixty steps, growth, sixty more; a checkpoint every four."""
    shape = {"batch": 8, "tokens": STEPS * 8 * tiny.LENGTH}
    checkpoint = {"every_tokens": 4 * 8 * tiny.LENGTH, "max_to_keep": 2}
    corpus = tiny.write_corpus(tmp_path_factory.mktemp("corpus"))
    return tiny.run(corpus, tiny.stage(1, **shape), tiny.grown(1, **shape), checkpoint=checkpoint, mesh={"tensor": 2})


class Job:
    """So many processes with four devices in all, on one run."""

    def __init__(self, folder: Path, settings: dict, count: int, start: tuple[str, ...] = (ONE_PROCESS,)):
        config = tiny.write_config(folder / "config.py", settings)
        command = [sys.executable, *start, "train", f"--config={config}", f"--workdir={folder / 'run'}"]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.outputs, self.processes = [], []
        for number in range(count):
            names = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": count, "JAX_PROCESS_ID": number}
            flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={4 // count}"
            names |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "GROWLM_PEER_TIMEOUT": 10}
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
    found = [tiny.read_json(folder / "decision-1.json") for folder in (tmp_path / "run", tmp_path / "one")]
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
    assert job.processes[0].wait(BOUND) == 1
    assert time.monotonic() - began < BOUND
    assert "another process of the job is gone" in job.said(0) and "Traceback" not in job.said(0)
    left = job.processes[0].pid
    job.wait()

    job = Job(tmp_path, settings, 4)
    assert job.wait() == [0] * 4, job.said(0)
    assert [f"share {number // 2} 2" in job.said(number) for number in range(4)] == [True] * 4  # tensor spans two

    assert_as_on_one(tiny.records(run), settings, tmp_path / "one")
    # Beside that there may be the part of a file, if the process that was left ended while it wrote one.
    assert sorted(path.name for path in run.iterdir() if not path.name.endswith(f".{left}.part")) == [
        "checkpoints",
        "config.json",
        "growth-1.json",
        "metrics.jsonl",
        "run.json",
    ]
    assert tiny.read_json(run / "run.json")["hardware"].startswith("4 x cpu")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "by"), [(0, signal.SIGKILL), (0, signal.SIGSTOP), (1, signal.SIGSTOP)], ids=["killed", "stopped", "peer"]
)
def test_a_process_that_loses_another_ends_in_a_line_before_jax_ends_it(settings, tmp_path, number, by):
    job = Job(tmp_path, settings, 2)
    job.reach(tmp_path / "run", 8)
    job.processes[number].send_signal(by)
    assert job.processes[1 - number].wait(BOUND) == 1
    said = job.said(1 - number)
    assert "growlm: another process of the job is gone: " in said and "goes on from the last checkpoint" in said
    assert not any(word in said for word in ("Traceback", "@ ", "SIGABRT"))
    for (_, step), folder in tiny.checkpoints(tmp_path / "run").items():
        check_whole(folder.parent, step)
    job.processes[number].kill()


EARLY = """
import os, signal, sys
from growlm.__main__ import main
from growlm.training import config

if sys.argv[1] == os.environ["JAX_PROCESS_ID"]:
    config.load_config = lambda *of: os.kill(os.getpid(), signal.SIGKILL)
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_process_that_is_gone_before_it_trains_is_missed_in_a_line_too(settings, tmp_path, number):
    job = Job(tmp_path, settings, 2, ("-c", EARLY, str(number)))
    assert job.processes[1 - number].wait(BOUND) == 1
    lines = job.said(1 - number).splitlines()
    assert lines[-2] == f"growlm: another process of the job is gone: process {number} ended"
    assert not any("Check failure" in line for line in lines)


LATE = """
import os, sys, time
from growlm.__main__ import main
from growlm.training.progress import Display

end, seconds, by = Display.end, float(sys.argv.pop(1)), int(sys.argv.pop(1))

def late(*of):
    if os.environ["JAX_PROCESS_ID"] == "0":
        time.sleep(seconds)
        os.kill(os.getpid(), by)
    end(*of)

Display.end = late
sys.exit(main())
"""


def late_job(folder, settings, seconds, by):
    """A job whose first process takes so many seconds at its end, where it gets a signal, or none."""
    stage = settings["stages"][0] | {"tokens": 8 * 8 * tiny.LENGTH}
    return Job(folder, settings | {"stages": [stage]}, 2, ("-c", LATE, str(seconds), str(int(by))))


@pytest.mark.slow
def test_a_process_that_has_done_its_part_misses_one_that_is_gone_in_a_line_too(settings, tmp_path):
    job = late_job(tmp_path, settings, 3, signal.SIGKILL)
    assert job.processes[1].wait(BOUND) == 1
    lines = job.said(1).splitlines()
    assert lines[-2] == "growlm: another process of the job is gone: process 0 ended"
    assert not any("Check failure" in line for line in lines)


@pytest.mark.slow
def test_a_process_that_has_done_its_part_waits_longer_than_for_a_silent_one(settings, tmp_path):
    job = late_job(tmp_path, settings, 25, 0)  # JAX's own timeouts are 20
    assert job.wait() == [0, 0], job.said(1)


BESIDE = """
import importlib, os, signal, sys, time
from growlm.__main__ import main

def within(*of, **how):
    if os.environ["JAX_PROCESS_ID"] == "0":
        time.sleep(3)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(300)

module, name, *sys.argv[1:] = sys.argv[1].split()
setattr(importlib.import_module(module), name, within)
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "beside",
    [
        "growlm.commands.sample check_range sample --checkpoint=no --prompt=a",
        "growlm.commands.evaluate run_evaluation evaluate --checkpoint=no --perplexity=no",
        "growlm.training.config load_config probe --checkpoint=no --config=no.py",
    ],
)
def test_the_other_commands_of_a_job_watch_each_other_too(settings, tmp_path, beside):
    job = Job(tmp_path, settings, 2, ("-c", BESIDE, beside))
    assert job.processes[1].wait(BOUND) == 1
    assert "growlm: another process of the job is gone: process 0 ended" in job.said(1)
    assert "Check failure" not in job.said(1)


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
        assert joined[0]["heartbeat_timeout_seconds"] == joined[0]["shutdown_timeout_seconds"] == 10
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


def test_who_waits_too_long_for_the_others_to_join_ends_in_a_line_before_jax_ends_it(monkeypatch):
    ended, over, given = [], threading.Event(), {}
    monkeypatch.setattr(processes, "JOIN_SECONDS", 0.1)
    monkeypatch.setattr(processes, "exit_process", lambda *of: (ended.append(of), over.set()))
    monkeypatch.setattr(
        processes.jax.distributed, "initialize", lambda **options: given.update(options) or over.wait(60)
    )
    monkeypatch.setenv(processes.TASK_COUNTS[0], "4")
    processes.join_processes()
    ((code, line),) = ended
    assert code == 1 and "is gone: not all had joined after 0.1 s\n" in line
    assert given["initialization_timeout"] > processes.JOIN_SECONDS


@pytest.mark.parametrize("name", processes.TASK_COUNTS)
def test_a_task_of_several_asks_jax_for_the_others(monkeypatch, name):
    joined = []
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    monkeypatch.setattr(processes.jax.distributed, "initialize", lambda **options: joined.append(options))
    monkeypatch.setenv(name, "4")
    processes.join_processes()
    assert [options["heartbeat_timeout_seconds"] for options in joined] == [2 * processes.PEER_TIMEOUT_SECONDS]


def joined_on_tpu(monkeypatch, environment, device="accel0", libtpu=True):
    """Whether a process asks JAX for the others, on a machine with these variables and these chips."""
    joined = []
    monkeypatch.setattr(processes.jax.distributed, "initialize", lambda **options: joined.append(options))
    glob = lambda self, names: [self / device] if device and names[:4] == device[:4] else []  # noqa: E731
    monkeypatch.setattr(tpu_hosts.Path, "glob", glob)
    monkeypatch.setattr(tpu_hosts, "find_spec", lambda name: name if libtpu else None)
    monkeypatch.setattr(tpu_hosts.time, "sleep", lambda seconds: None)
    for name in ("JAX_COORDINATOR_ADDRESS", "TPU_SKIP_MDS_QUERY", *processes.TASK_COUNTS, *tpu_hosts.WORKERS):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    processes.join_processes()
    return bool(joined)


NOBODY = {"GCE_METADATA_IP": "127.0.0.1:9"}  # no machine of Google's
FOUR = "t1v-0,t1v-1,t1v-2,t1v-3"


@pytest.mark.parametrize(
    ("device", "libtpu", "environment", "joins"),
    [
        pytest.param(None, True, {"TPU_WORKER_HOSTNAMES": FOUR}, False, id="no chips"),
        pytest.param("accel0", False, {"TPU_WORKER_HOSTNAMES": FOUR}, False, id="no library"),
        pytest.param("accel0", True, {"TPU_WORKER_HOSTNAMES": FOUR}, True, id="GKE"),
        pytest.param("vfio/0", True, {"TPU_WORKER_HOSTNAMES": "here"}, False, id="GKE, one machine"),
        pytest.param("accel0", True, {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, True, id="slices"),
        pytest.param(
            "vfio/0", True, {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_SKIP_MDS_QUERY": "1"}, False, id="Colab"
        ),
        pytest.param("accel0", True, {"TPU_PROCESS_ADDRESSES": "local", "TPU_WORKER_ID": "0"}, False, id="Kaggle"),
        pytest.param("accel0", True, {"TPU_SKIP_MDS_QUERY": "1"} | NOBODY, False, id="a container"),
        pytest.param("vfio/0", True, NOBODY, False, id="a machine with VFIO"),
        pytest.param("accel0", True, {"GCE_METADATA_IP": "no.such.name.invalid"}, False, id="no such name"),
    ],
)
def test_a_machine_with_a_tpu_asks_for_others_where_there_are_some(monkeypatch, device, libtpu, environment, joins):
    assert joined_on_tpu(monkeypatch, environment, device, libtpu) == joins


@pytest.fixture
def metadata(monkeypatch):
    """A metadata server of Google's, whose attributes a test sets; a number is the status of its answer."""
    attributes = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            folder, name = self.path.rsplit("/", 1)
            known = folder == "/computeMetadata/v1/instance/attributes" and self.headers["Metadata-Flavor"] == "Google"
            value = attributes.get(name, 404) if known else 403
            self.send_response(value if isinstance(value, int) else 200)
            self.end_headers()
            if isinstance(value, str):
                self.wfile.write(value.encode())

        def log_message(self, format, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
        yield attributes
        server.shutdown()


@pytest.mark.parametrize(
    ("endpoints", "settings", "joins"),
    [
        (404, 404, False),  # a virtual machine that is part of no TPU
        ("10.0.0.2", "TYPE: 'V5LITE_POD'\nCHIPS: '8'\n", False),
        ("10.0.0.2,10.0.0.3", "", True),
        ("unknown:0:10.0.0.2,unknown:1:10.0.0.3", "", True),
        ("10.0.0.2", "ZONE: 'us-a'\nMEGASCALE_NUM_SLICES: '2'\n", True),
    ],
)
def test_google_says_which_machines_a_tpu_has(monkeypatch, metadata, endpoints, settings, joins):
    metadata |= {"worker-network-endpoints": endpoints, "tpu-env": settings}
    assert joined_on_tpu(monkeypatch, {}) == joins


def test_jax_counts_the_same_machines(monkeypatch, metadata):
    """What is read here JAX reads too, by a module of its own that is not public."""
    cluster = pytest.importorskip("jax._src.clusters.cloud_tpu_cluster").GceTpuCluster
    metadata |= {"worker-network-endpoints": "a:0:10.0.0.2,a:1:10.0.0.3", "tpu-env": "MEGASCALE_NUM_SLICES: '2'\n"}
    for name in (*tpu_hosts.WORKERS, tpu_hosts.NO_METADATA, tpu_hosts.SLICES):
        monkeypatch.delenv(name, raising=False)
    assert tpu_hosts.host_count() == 4 == cluster.get_process_count()


def test_a_metadata_server_that_fails_is_one_line(monkeypatch, metadata):
    metadata["worker-network-endpoints"] = 503
    with pytest.raises(InputError, match="must say which machines the TPU has, got HTTP Error 503"):
        joined_on_tpu(monkeypatch, {})


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ValueError("coordinator_address should be defined."), "JAX must find the processes of this job, got coord"),
        (RuntimeError("must be called before any JAX calls that"), "must join before JAX is used: run the command by"),
    ],
)
def test_processes_that_cannot_be_joined_are_one_line(monkeypatch, error, says):
    def fail(**options):
        raise error

    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    monkeypatch.setenv(processes.TASK_COUNTS[0], "4")
    monkeypatch.setattr(processes.jax.distributed, "initialize", fail)
    with pytest.raises(InputError, match=says):
        processes.join_processes()


def test_a_second_command_of_a_process_does_not_join_again(monkeypatch):
    monkeypatch.setattr(processes.jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(processes.jax.distributed, "initialize", lambda **_: pytest.fail("joined"))
    monkeypatch.setenv(processes.TASK_COUNTS[0], "4")
    processes.join_processes()
