"""What of experiments/cluster/ can be run without a TPU, SLURM or Kubernetes."""

import importlib.util
import math
import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import tiny

from growlm.commands import sweep as sweep_command
from growlm.commands import train as train_command
from growlm.training.config import load_config
from growlm.training.variants import build_sweep

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "experiments" / "cluster"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
TINY = f"{ROOT}/experiments/quickstart.py:tiny"
RUNS = list(build_sweep(load_config(TINY, [])).runs)
COMMANDS = {"train": train_command, "sweep": sweep_command}


def bash(script, *arguments, **environment):
    """A script from the root of the checkout, with only these variables of its own."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)} | environment
    command = ["bash", FOLDER / script, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def one_line(result):
    """The one line that a script fails with."""
    assert result.returncode != 0
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    return line


def wait_until(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_scripts_are_bash(script):
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)


# --- SLURM


@pytest.fixture(scope="module")
def slurm():
    pytest.importorskip("submitit", reason="needs the extra cluster: pip install growlm[cluster]")
    spec = importlib.util.spec_from_file_location("slurm", FOLDER / "slurm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # in no table of modules: its class is pickled whole, as that of a script is
    return module


def process_of(*words):
    """The number of the one process whose command has these words."""
    lines = subprocess.run(
        ["ps", "-eww", "-o", "pid,args"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    [found] = [line.split()[0] for line in lines if all(word in line for word in words)]
    return int(found)


@pytest.mark.slow
def test_a_run_is_requeued_and_cancelled_and_ends_with_the_bits_of_one_that_was_not(slurm, tmp_path, monkeypatch):
    """At its time limit submitit starts it again, cancelled it does not, and the same command goes on."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    larger = {"batch": 8, "length": 64, "tokens": 100 * 8 * 64, "model": tiny.MODEL | {"embed": 64, "mlp": 256}}
    stages = tiny.stage(100, **larger), tiny.grown(100, **larger | {"model": larger["model"] | {"layers": 2}})
    often = {"every_tokens": 25 * 8 * 64, "max_to_keep": 1}  # and with every checkpoint records are written
    config = tiny.write_config(tmp_path / "run.py", tiny.run(tiny.write_corpus(tmp_path), *stages, checkpoint=often))
    logs, workdir = tmp_path / "logs", tmp_path / "run"
    given = slurm.commands("train", config, str(workdir), []), str(logs), "local", {"gpus_per_node": 0}
    [job] = slurm.submit(*given)

    def steps():
        records = workdir / "metrics.jsonl"
        return records.read_text().count("\n") if records.exists() else 0

    def until(condition):
        wait_until(lambda: condition() or job.done())
        assert not job.done(), job.stderr()

    try:
        until(lambda: steps() > 20)
        for words in (("-m growlm train", str(workdir)), ("submitit.core._submit", str(logs))):
            os.kill(process_of(*words), signal.SIGUSR2)  # SLURM sends it to every process
        until(lambda: "Requeued job" in f"{job.stdout()}{job.stderr()}")
        before = steps()
        until(lambda: steps() > before + 20)
        os.kill(process_of("-m growlm train", str(workdir)), signal.SIGTERM)
        assert "returned non-zero exit status 75" in str(job.exception())
    finally:
        job.cancel()
    said = job.stdout() + job.stderr()
    assert said.count("Requeued job") == 1 and said.count("slurm: growlm train") == 2
    assert said.count("stopped and saved at step") == 2
    [job] = slurm.submit(*given)
    job.result()
    through = tmp_path / "through"
    slurm.Job(["train", f"--config={config}", f"--workdir={through}"])()
    assert tiny.timeless(workdir) == tiny.timeless(through)
    last = max(tiny.checkpoints(through))
    one, other = (tiny.read_checkpoint(tiny.checkpoints(folder)[last]) for folder in (workdir, through))
    tiny.assert_same_arrays(one, other)


@pytest.mark.slow
def test_a_job_that_fails_says_so(slurm, tmp_path, capfd):
    with pytest.raises(subprocess.CalledProcessError) as error:
        slurm.Job(["train", "--config=missing.py", f"--workdir={tmp_path / 'run'}"])()
    assert error.value.returncode == 2
    assert "missing.py" in capfd.readouterr().err


@pytest.fixture
def scheduler(tmp_path, monkeypatch):
    """A stand-in for sbatch, which keeps what it is given; srun and scontrol are only looked for. Its scripts."""
    (tmp_path / "bin").mkdir()
    for name in ("sbatch", "srun", "scontrol"):
        path = tmp_path / "bin" / name
        path.write_text(f'#!/bin/bash\ncp "${{@: -1}}" {tmp_path}/{name}.sh\necho "Submitted batch job 7"\n')
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return lambda: (tmp_path / "sbatch.sh").read_text()


def test_a_sweep_is_an_array_with_a_task_for_every_run(slurm, scheduler, tmp_path, capsys):
    arguments = ["sweep", f"--config={TINY}", f"--workdir={tmp_path / 'runs'}", f"--logs={tmp_path / 'logs'}"]
    assert slurm.main([*arguments, "--config.seed=3", "--submit.slurm_partition=gpu", "--submit.timeout_min=600"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [shlex.split(line)[-1] for line in lines] == [f"--run={name}" for name in RUNS]
    assert all("--config.seed=3" in line and line.startswith("7_") for line in lines)
    for line in lines:
        check_command(shlex.split(line.partition(": ")[2]))
    script = scheduler()
    for option in (
        f"--array=0-{len(RUNS) - 1}",
        "--partition=gpu",
        "--time=600",
        "--signal=USR2@120",
        "--gpus-per-node=1",
    ):
        assert f"#SBATCH {option}" in script


def test_a_run_over_several_nodes_is_one_job(slurm, scheduler, tmp_path, capsys):
    config = f"{ROOT}/experiments/grow_once.py:tiny"
    nodes = ["--submit.nodes=2", "--submit.tasks_per_node=8", "--submit.gpus_per_node=8"]
    arguments = ["train", f"--config={config}", f"--workdir={tmp_path / 'run'}", f"--logs={tmp_path / 'logs'}"]
    assert slurm.main([*arguments, *nodes]) == 0
    assert capsys.readouterr().out == f"7: growlm train --config={config} --workdir={tmp_path / 'run'}\n"
    for option in ("--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8"):
        assert f"#SBATCH {option}" in scheduler()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["grow", f"--config={TINY}"], "the command must be one of sweep, train, got 'grow'"),
        (["sweep", "--config=missing.py"], "missing.py"),
        (["sweep", f"--config={TINY}", "--workdir=gs://bucket/runs"], "the workdir of several jobs must be"),
        (
            ["sweep", f"--config={TINY}", "--seed=3"],
            "--config.KEY=VALUE or --submit.NAME=VALUE, got '--seed=3'",
        ),
        (["sweep", f"--config={TINY}", "--submit.slurm_nodez=3"], "submitit must take --submit and find SLURM, got "),
    ],
)
def test_what_cannot_be_submitted_is_one_line(slurm, scheduler, tmp_path, capsys, arguments, says):
    assert slurm.main([f"--workdir={tmp_path / 'runs'}", f"--logs={tmp_path / 'logs'}", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("slurm: ") and said.count("\n") == 1 and says in said
    assert not (tmp_path / "sbatch.sh").exists()


def test_where_there_is_no_slurm_it_is_one_line(slurm, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm.main(["sweep", f"--config={TINY}", "--workdir=runs", f"--logs={tmp_path / 'logs'}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# --- TPU VMs


@pytest.fixture
def gcloud(tmp_path):
    """A stand-in that runs here what it should run on the machines. Returns the variables that tpu.sh needs."""
    home = tmp_path / "home"
    (home / "growlm" / ".venv" / "bin").mkdir(parents=True)
    stand_ins = {
        tmp_path / "gcloud": """echo "$@" >>"$HOME/gcloud.log"
            case $4 in ssh) cd; bash -c "${@: -1:1}" ;; esac""",
        home / "growlm" / ".venv" / "bin" / "growlm": """trap 'echo saved; exit 75' TERM
            printf "[%s]" "$@"; echo "$HF_TOKEN"
            for _ in {1..600}; do sleep 0.1; done""",
    }
    for path, text in stand_ins.items():
        path.write_text(f'#!/usr/bin/env bash\nset -- "${{@#--command=}}"\n{text}\n')
        path.chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(home), "TPU_NAME": "name", "ZONE": "zone"}


def asked(gcloud):
    """What gcloud was asked for."""
    return (Path(gcloud["HOME"]) / "gcloud.log").read_text()


def test_a_command_runs_in_the_background_of_every_machine_until_it_is_stopped(gcloud):
    log = Path(gcloud["HOME"]) / "growlm.log"
    given = {"HAND_ON": "HF_TOKEN", "HF_TOKEN": "a b"}
    assert bash("tpu.sh", "run", "train", "--config.title=it's a title", **gcloud | given).returncode == 0
    assert "ssh name --zone=zone --worker=all" in asked(gcloud)
    began = "[train][--config.title=it's a title]a b\n"
    wait_until(lambda: log.exists() and log.read_text() == began)
    assert bash("tpu.sh", "log", **gcloud).stdout == began
    assert bash("tpu.sh", "stop", **gcloud).returncode == 0
    wait_until(lambda: log.read_text() == f"{began}saved\ngrowlm: ended with 75\n")


@pytest.mark.parametrize(
    ("slices", "nodes", "names"),
    [("1", "--node-id=name", ["name"]), ("2", "--node-count=2 --node-prefix=name", ["name-0", "name-1"])],
)
def test_slices_are_queued_together_and_told_each(gcloud, slices, nodes, names):
    given = gcloud | {"SLICES": slices, "ACCELERATOR_TYPE": "v6e-16", "RUNTIME_VERSION": "v2-alpha-tpuv6e"}
    for command in ("create", "state", "log", "delete"):
        bash("tpu.sh", command, **given, CREATE_FLAGS="--spot")
    created, state, *logs, deleted = asked(gcloud).splitlines()
    queued = "compute tpus queued-resources"
    options = "--accelerator-type=v6e-16 --runtime-version=v2-alpha-tpuv6e --spot"
    assert created == f"{queued} create name --zone=zone {nodes} {options}"
    assert state.startswith(f"{queued} describe name --zone=zone --format=value(")
    assert deleted == f"{queued} delete name --zone=zone --force"
    assert sorted(line.split()[4] for line in logs) == names


def test_where_one_machine_fails_the_command_fails(gcloud):
    assert bash("tpu.sh", "log", **gcloud | {"SLICES": "2"}).returncode != 0  # there is no log yet


@pytest.mark.parametrize("arguments", [[], ["begin"], ["run"]])
def test_a_command_that_tpu_sh_does_not_have_is_one_line(gcloud, arguments):
    assert one_line(bash("tpu.sh", *arguments, **gcloud)).startswith("tpu: ")


@pytest.mark.parametrize("missing", ["TPU_NAME", "ZONE", "ACCELERATOR_TYPE", "RUNTIME_VERSION"])
def test_a_missing_setting_of_a_tpu_is_one_line(gcloud, missing):
    given = gcloud | {"ACCELERATOR_TYPE": "v4-8", "RUNTIME_VERSION": "tpu-ubuntu2204-base"}
    given.pop(missing)
    assert f"{missing}: set {missing}" in one_line(bash("tpu.sh", "create", **given))


def test_set_up_takes_only_pythons_that_growlm_runs_on():
    assert one_line(bash("setup.sh", PYTHON="3.10")) == "setup: PYTHON must be 3.11 to 3.14, got 3.10"


# --- SkyPilot and JobSet


def document(path):
    return pytest.importorskip("yaml").safe_load(path.read_text())


def check_command(words):
    """Whether growlm has the command and its options."""
    program, command, *options = words
    assert Path(program).name == "growlm"
    for option in options:
        assert option.partition("=")[0] in COMMANDS[command].OPTIONS or option.startswith("--config."), option


SKY = sorted(FOLDER.glob("sky_*.yaml"))
SKY_FIELDS = {"name", "resources", "workdir", "envs", "setup", "run"}
RESOURCES = {"infra", "accelerators", "accelerator_args", "use_spot", "disk_size", "job_recovery"}


@pytest.mark.parametrize("path", SKY, ids=lambda path: path.stem)
def test_skypilot_is_given_what_it_knows(path):
    """Fields as SkyPilot's reference has them; it read these files itself when they were written."""
    task = document(path)
    assert task.keys() >= SKY_FIELDS and task.keys() <= SKY_FIELDS | {"num_nodes", "volumes"}
    assert task["resources"].keys() <= RESOURCES and "accelerators" in task["resources"]
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [os.EX_TEMPFAIL]
    assert (ROOT / task["envs"]["CONFIG"]).is_file()


@pytest.mark.parametrize("path", SKY, ids=lambda path: path.stem)
def test_skypilot_starts_growlm_in_one_process_a_node(path, tmp_path):
    task = document(path)
    subprocess.run(["bash", "-n"], input=task["setup"], text=True, check=True)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    growlm = tmp_path / ".venv" / "bin" / "growlm"
    growlm.write_text(
        '#!/bin/bash\nprintf "%s\\n" "$JAX_COORDINATOR_ADDRESS/$JAX_NUM_PROCESSES/$JAX_PROCESS_ID" growlm "$@"\n'
    )
    growlm.chmod(0o755)
    for command, nodes in (("train", 1), ("sweep --run=NAME", 2)):
        environment = task["envs"] | {"COMMAND": command, "PATH": os.environ["PATH"]}
        environment |= {
            "SKYPILOT_NUM_NODES": str(nodes),
            "SKYPILOT_NODE_RANK": "1",
            "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        }
        done = subprocess.run(
            ["bash", "-ec", task["run"]], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        joins, *words = done.stdout.splitlines()
        assert joins == ("10.0.0.1:8476/2/1" if nodes == 2 and "num_nodes" in task else "//")
        assert words[1] == command.split()[0]
        check_command(words)


JOBSETS = sorted(FOLDER.glob("jobset_*.yaml"))


@pytest.mark.parametrize("path", JOBSETS, ids=lambda path: path.stem)
def test_jobsets_start_all_again_but_for_bad_input(path):
    jobset = document(path)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    [rule] = jobset["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    [replicated] = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert job["parallelism"] == job["completions"] and job["backoffLimit"] == 0
    [pod_rule] = job["podFailurePolicy"]["rules"]
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    assert (pod_rule["action"], pod_rule["onExitCodes"]["containerName"]) == ("FailJob", container["name"])
    assert pod_rule["onExitCodes"]["values"] == [2]  # 75 was told to stop, and 1 may have lost another process
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] >= 60
    check_command(container["command"])


def test_the_machines_of_a_slice_are_those_of_its_topology():
    [replicated] = document(FOLDER / "jobset_tpu.yaml")["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = math.prod(map(int, topology.split("x")))
    assert job["parallelism"] * pod["containers"][0]["resources"]["limits"]["google.com/tpu"] == chips


def test_the_processes_of_gpus_find_the_first_of_them():
    jobset = document(FOLDER / "jobset_gpu.yaml")
    [replicated] = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    [container] = job["template"]["spec"]["containers"]
    env = {item["name"]: item.get("value") for item in container["env"]}
    name, port = jobset["metadata"]["name"], container["ports"][0]["containerPort"]
    assert env["JAX_COORDINATOR_ADDRESS"] == f"{name}-{replicated['name']}-0-0.{name}:{port}"
    assert int(env["JAX_NUM_PROCESSES"]) == job["completions"]
