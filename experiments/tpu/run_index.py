"""One run of a sweep, chosen by number: what every task of a job array calls.

    python experiments/tpu/run_index.py --config=FILE.py[:variant] --workdir=DIR [--index=N] [--config.key=value ...]

The runs are numbered from 0 in the order of `growlm sweep --list`. Without --index the number is SLURM_ARRAY_TASK_ID
or JOB_COMPLETION_INDEX. What it calls is `growlm sweep --run=NAME`, and what it adds are three things an array needs:

- It passes SIGTERM on, so that the run saves before the time limit.
- It ends with 75, not 0, when the run was stopped before its end. To a scheduler 0 means: never start this one again.
- It waits while another task trains a stage that both runs share, and then goes on from there.

Other exit codes are those of growlm: 1 for a run that diverged, 2 for bad input.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from growlm.errors import InputError
from growlm.training.config import build_sweep, load_config

INDEX_VARIABLES = ("SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX")
NOT_DONE = 75  # EX_TEMPFAIL: start it again
IN_USE = "is in use by another growlm process"
WAIT_SECONDS = 60


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[argparse.Namespace, list[str]]:
    """The options and what is left, which is growlm's. Raises InputError where the index is missing or no number."""
    parser = argparse.ArgumentParser(prog="run_index", allow_abbrev=False)
    parser.add_argument("--config", required=True, metavar="FILE.py[:variant]")
    parser.add_argument("--workdir", required=True, type=Path, help="a folder that every task sees")
    parser.add_argument("--index", help=f"the run's number; else that in {' or '.join(INDEX_VARIABLES)}")
    options, rest = parser.parse_known_args(arguments)
    given = [options.index, *(environment.get(name) for name in INDEX_VARIABLES)]
    options.index = next((index for index in given if index), None)
    if options.index is None:
        raise InputError(f"no index: allowed is --index=N, or a number in {' or '.join(INDEX_VARIABLES)}")
    return options, rest


def run_name(config: str, index: str, overrides: Sequence[str]) -> str:
    """The name of run number `index` of a sweep. `overrides` are texts key=value. Raises InputError."""
    names = list(build_sweep(load_config(config, list(overrides))).runs)
    if not index.isdecimal() or int(index) >= len(names):
        last = f"{len(names) - 1} ({names[-1]})"
        raise InputError(f"index {index!r}: {config} has {len(names)} runs, allowed are 0 ({names[0]}) to {last}")
    return names[int(index)]


def call(command: Sequence[str]) -> tuple[int, str]:
    """Runs a command with SIGTERM passed on to it. Returns its exit code and the last line that it wrote to stderr."""
    last = ""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        former = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        for last in process.stderr:
            sys.stderr.write(last)
    signal.signal(signal.SIGTERM, former)
    killed = process.returncode < 0  # by a signal: 128 + its number, as in a shell
    return 128 - process.returncode if killed else process.returncode, last


def is_done(workdir: Path, name: str) -> bool:
    """Whether the run reached its end, by what the sweep wrote down."""
    return json.loads((workdir / "sweep.json").read_text())["runs"][name]["status"] == "done"


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Trains the run. Returns the exit code; see the top of the file."""
    try:
        options, rest = parse(arguments, environment)
        keys = [text.removeprefix("--config.") for text in rest if text.startswith("--config.")]
        name = run_name(options.config, options.index, keys)
    except InputError as error:
        print(f"run_index: {error}", file=sys.stderr)
        return 2
    command = ["sweep", f"--config={options.config}", f"--workdir={options.workdir}", f"--run={name}", *rest]
    print(f"run_index: {options.index} is {shlex.join(['growlm', *command])}", flush=True)
    code, last = call([sys.executable, "-m", "growlm", *command])
    while code == 2 and IN_USE in last:
        time.sleep(WAIT_SECONDS)
        code, last = call([sys.executable, "-m", "growlm", *command])
    if code == 0 and not is_done(options.workdir, name):
        print(f"run_index: {name} was stopped before its end: start it again", file=sys.stderr)
        return NOT_DONE
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
