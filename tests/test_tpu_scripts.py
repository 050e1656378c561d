"""What of experiments/tpu/ can be run without a TPU, SLURM or Kubernetes."""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from growlm.errors import InputError
from growlm.training.config import load_config
from growlm.training.variants import build_sweep

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "experiments" / "tpu"
SCRIPTS = sorted([*FOLDER.glob("*.sh"), *FOLDER.glob("*.sbatch")])
TINY = "experiments/quickstart.py:tiny"
RUNS = list(build_sweep(load_config(f"{ROOT}/{TINY}", [])).runs)

_spec = importlib.util.spec_from_file_location("run_index", FOLDER / "run_index.py")
run_index = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(run_index)


def bash(script, *arguments, **environment):
    """A script from the root of the checkout, with only these variables of its own."""
    environment = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)} | environment
    command = ["bash", FOLDER / script, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def one_line(result):
    """The one line that a script fails with."""
    assert result.returncode != 0
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    return line


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_scripts_are_bash(script):
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)


def test_every_number_is_another_run():
    assert [run_index.run_name(f"{ROOT}/{TINY}", str(number), []) for number in range(len(RUNS))] == RUNS


@pytest.mark.parametrize("index", [str(len(RUNS)), "-1", "x"])
def test_a_number_that_is_no_run_is_one_line(index):
    message = rf"index of a run of .* must be 0 \({RUNS[0]}\) to 2 \({RUNS[2]}\), got '{index}'"
    with pytest.raises(InputError, match=message):
        run_index.run_name(f"{ROOT}/{TINY}", index, [])


def test_the_array_task_says_which_numbers_there_are(tmp_path):
    result = bash("sweep_slurm.sbatch", CONFIG=TINY, WORKDIR=str(tmp_path / "sweep"), SLURM_ARRAY_TASK_ID="4")
    assert one_line(result).startswith("run_index: index of a run of ")
    assert result.returncode == 2
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("script", ["sweep_slurm.sbatch", "train_slurm.sbatch"])
@pytest.mark.parametrize("missing", ["CONFIG", "WORKDIR"])
def test_a_missing_variable_is_one_line(script, missing):
    given = {"CONFIG": TINY, "WORKDIR": "unused"}
    given.pop(missing)
    assert f"{missing}: set {missing} to" in one_line(bash(script, **given))


def test_the_task_becomes_growlm_sweep_with_the_runs_name_and_what_else_it_is_given(tmp_path, monkeypatch):
    became = []
    monkeypatch.setattr(run_index.os, "execv", lambda *command: became.append(command))
    arguments = [f"--config={ROOT}/{TINY}", f"--workdir={tmp_path}", "--config.seed=3"]
    run_index.main(arguments, {"JOB_COMPLETION_INDEX": "2"})
    options = [f"--config={ROOT}/{TINY}", f"--workdir={tmp_path}", "--run=scratch", "--config.seed=3"]
    assert became == [(sys.executable, [sys.executable, "-m", "growlm", "sweep", *options])]


def test_no_index_is_one_line(tmp_path, capsys):
    assert run_index.main([f"--config={ROOT}/{TINY}", f"--workdir={tmp_path}"], {}) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.fixture
def gcloud(tmp_path):
    """A stand-in that runs here what it should run on the workers. Returns the variables that tpu.sh needs."""
    home = tmp_path / "home"
    (home / "growlm" / ".venv" / "bin").mkdir(parents=True)
    stand_ins = {
        tmp_path / "gcloud": 'echo "$@" >>"$HOME/gcloud.log"; cd; bash -c "${@: -1:1}"',
        home / "growlm" / ".venv" / "bin" / "growlm": """trap 'echo saved; exit' TERM
            printf "[%s]" "$@"; echo
            for _ in {1..600}; do sleep 0.1; done""",
    }
    for path, text in stand_ins.items():
        path.write_text(f'#!/usr/bin/env bash\nset -- "${{@#--command=}}"\n{text}\n')
        path.chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(home), "TPU_NAME": "name", "ZONE": "zone"}


def eventually(says, path):
    """Waits until a file says that."""
    for _ in range(600):
        if path.read_text() == says:
            return
        time.sleep(0.1)
    raise AssertionError(f"{path.name} says {path.read_text()!r}")


def test_a_command_runs_in_the_background_of_every_worker_until_it_is_stopped(gcloud):
    log = Path(gcloud["HOME"]) / "growlm.log"
    assert bash("tpu.sh", "run", "train", "--config.title=it's a title", **gcloud).returncode == 0
    assert "ssh name --zone=zone --worker=all" in (log.parent / "gcloud.log").read_text()
    began = "[train][--config.title=it's a title]\n"
    eventually(began, log)
    assert bash("tpu.sh", "log", **gcloud).stdout == began
    assert bash("tpu.sh", "stop", **gcloud).returncode == 0
    eventually(f"{began}saved\n", log)


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


def documents(name):
    return list(pytest.importorskip("yaml").safe_load_all((FOLDER / name).read_text()))


def test_the_kubernetes_sweep_has_an_index_for_every_run():
    [job] = documents("sweep_kubernetes.yaml")
    assert (job["spec"]["completionMode"], job["spec"]["completions"]) == ("Indexed", len(RUNS))
    [container] = job["spec"]["template"]["spec"]["containers"]
    given, missing = run_index.parse(container["command"][2:], {"JOB_COMPLETION_INDEX": "0"})
    assert (given.config, given.index, missing) == ("experiments/quickstart.py", "0", [])
    [rule] = [rule for rule in job["spec"]["podFailurePolicy"]["rules"] if rule["action"] == "FailIndex"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert os.EX_TEMPFAIL not in rule["onExitCodes"]["values"]


def test_the_kubernetes_processes_find_the_first_of_them():
    service, job = documents("train_kubernetes.yaml")
    names, pod = job["metadata"]["name"], job["spec"]["template"]["spec"]
    assert service["spec"]["selector"] == {"job-name": names}
    assert pod["subdomain"] == service["metadata"]["name"]
    [container] = pod["containers"]
    env = {item["name"]: item.get("value") for item in container["env"]}
    port = container["ports"][0]["containerPort"]
    assert env["JAX_COORDINATOR_ADDRESS"] == f"{names}-0.{pod['subdomain']}:{port}"
    assert int(env["JAX_NUM_PROCESSES"]) == job["spec"]["completions"] == job["spec"]["parallelism"]
