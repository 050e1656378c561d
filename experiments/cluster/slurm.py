"""growlm on SLURM by submitit: the runs of a sweep as a job array, or one run over several nodes.

    pip install 'growlm[cluster]'
    python experiments/cluster/slurm.py sweep --config=FILE.py --workdir=/shared/runs/NAME --submit.slurm_partition=gpu
    python experiments/cluster/slurm.py train --config=FILE.py --workdir=/shared/runs/NAME \\
        --submit.nodes=2 --submit.tasks_per_node=8 --submit.gpus_per_node=8

It is run on the machine from which jobs are submitted, with the Python that the jobs shall have. --config.KEY=VALUE are
growlm's; --submit.NAME=VALUE submitit's: timeout_min, nodes, gpus_per_node, cpus_per_task, mem_gb, slurm_partition,
slurm_array_parallelism, ... The workdir is a folder that all nodes see, for one run also a bucket; logs are in --logs.

At its time limit a job saves and puts itself into the queue again, however often; SLURM puts there what it preempts and
what a lost node ran. `scancel` has it save and end. What was cancelled or failed goes on when the same command is given
again. Of a run over several nodes JAX takes one GPU for each task: as many tasks as GPUs on a node.
"""

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import submitit

from growlm.buckets import local_only, location
from growlm.errors import InputError, check_name
from growlm.training.config import load_config
from growlm.training.overrides import literal
from growlm.training.variants import build_sweep

# submitit's defaults, but for what loses work: a job of five minutes, and three time limits in all.
DEFAULTS = {"timeout_min": 24 * 60, "gpus_per_node": 1, "cpus_per_task": 8, "slurm_signal_delay_s": 120}
MOST_TIMEOUTS = 1000


class Job:
    """A growlm command as a job: a process of its own, which can save while submitit's handles signals."""

    def __init__(self, command: Sequence[str]):
        self.command = list(command)
        self._process: subprocess.Popen | None = None

    def __call__(self) -> None:
        """Runs the command to its end. Raises CalledProcessError where it failed."""
        print(f"slurm: {shlex.join(['growlm', *self.command])}", flush=True)
        command = [sys.executable, "-m", "growlm", *self.command]
        # SLURM sends submitit's signal to every process of a job: it stays blocked in this one, which obeys SIGTERM.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [_signal()])
        try:
            self._process = subprocess.Popen(command)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _wait_for(self._process)
        code = self._process.wait()
        if (
            code
        ):  # 75 too: SIGTERM is of scancel, which must not come back, or of preemption, after which SLURM starts it
            raise subprocess.CalledProcessError(code, self.command)

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Saves, and returns what is put into the queue: submitit calls it when the job is told to go."""
        if self._process:
            self._process.terminate()
            _wait_for(self._process)
        return submitit.helpers.DelayedSubmission(type(self)(self.command))


def _wait_for(process: subprocess.Popen) -> None:
    """Returns when a process has ended. Popen.wait has a lock, for which the handler of a signal would wait forever."""
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def _signal() -> signal.Signals:
    return signal.Signals[f"SIG{submitit.JobEnvironment.USR_SIG}"]


def commands(verb: str, config: str, workdir: str, overrides: Sequence[str]) -> list[list[str]]:
    """The growlm commands of all jobs, one a run for a sweep. Raises InputError, before anything is submitted."""
    check_name("the command", verb, ("sweep", "train"))
    loaded = load_config(config, [text.removeprefix("--config.") for text in overrides])
    common = [f"--config={config}", f"--workdir={workdir}", *overrides]
    if verb == "train":
        return [["train", *common]]
    local_only(location(workdir), "the workdir of several jobs")  # they share stages by locks
    return [["sweep", *common, f"--run={name}"] for name in build_sweep(loaded).run_folders]


def submit(jobs: Sequence[Sequence[str]], logs: str, cluster: str, parameters: dict[str, Any]) -> list[submitit.Job]:
    """Submits growlm commands, several as one array.

    Args:
      jobs: the commands.
      logs: the folder of their output, which all nodes see.
      cluster: "slurm", or "local" for processes on this machine.
      parameters: those of `submitit.AutoExecutor.update_parameters`.

    Raises:
      InputError: submitit does not take a parameter, or there is no SLURM here.
    """
    try:
        executor = submitit.AutoExecutor(folder=logs, cluster=cluster, slurm_max_num_timeout=MOST_TIMEOUTS)
        executor.update_parameters(**DEFAULTS | parameters)
    except (NameError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"submitit must take --submit and find SLURM, got {str(error).splitlines()[0]}") from error
    with executor.batch():
        return [executor.submit(Job(job)) for job in jobs]


def main(arguments: Sequence[str]) -> int:
    """Submits the jobs. Returns 2 for bad input."""
    parser = argparse.ArgumentParser(prog="slurm.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("command", help="sweep or train")
    parser.add_argument("--config", required=True, metavar="FILE.py[:variant]")
    parser.add_argument("--workdir", required=True, metavar="DIR")
    parser.add_argument("--logs", default="slurm_logs", metavar="DIR", help="output of the jobs (default: slurm_logs)")
    parser.add_argument("--cluster", default="slurm", choices=("slurm", "local"), help="local: here, to try it")
    options, rest = parser.parse_known_args(arguments)
    try:
        given = [text for text in rest if text.startswith("--submit.") and "=" in text]
        overrides = [text for text in rest if text.startswith("--config.")]
        if strangers := [text for text in rest if text not in given and text not in overrides]:
            raise InputError(f"an option must be --config.KEY=VALUE or --submit.NAME=VALUE, got {strangers[0]!r}")
        pairs = [text.removeprefix("--submit.").split("=", 1) for text in given]
        jobs = commands(options.command, options.config, options.workdir, overrides)
        submitted = submit(jobs, options.logs, options.cluster, {name: literal(text) for name, text in pairs})
    except InputError as error:
        print(f"slurm: {error}", file=sys.stderr)
        return 2
    for job, command in zip(submitted, jobs, strict=True):
        print(f"{job.job_id}: {shlex.join(['growlm', *command])}")
    if options.cluster == "local":
        for job in submitted:
            job.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
