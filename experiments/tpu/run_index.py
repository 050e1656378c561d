"""One run of a sweep, chosen by number: what every task of a job array calls.

    python experiments/tpu/run_index.py --config=FILE.py[:variant] --workdir=DIR [--index=N] [--config.key=value ...]

The runs are numbered from 0 in the order of `growlm sweep --list`. Without --index the number is SLURM_ARRAY_TASK_ID
or JOB_COMPLETION_INDEX. The task becomes `growlm sweep --run=NAME`: signals and exit codes are growlm's own, 0 for a
run that is done, 1 for one that diverged, 2 for bad input, 75 for one that was stopped and is to be started again.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from growlm.errors import InputError
from growlm.training.config import load_config
from growlm.training.variants import build_sweep

INDEX_VARIABLES = ("SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX")


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
        raise InputError(f"the index must be --index=N or a number in {' or '.join(INDEX_VARIABLES)}, got none")
    return options, rest


def run_name(config: str, index: str, overrides: Sequence[str]) -> str:
    """The name of run number `index` of a sweep. `overrides` are texts key=value. Raises InputError."""
    names = build_sweep(load_config(config, list(overrides))).run_folders
    if not index.isdecimal() or int(index) >= len(names):
        last = f"{len(names) - 1} ({names[-1]})"
        raise InputError(f"index of a run of {config} must be 0 ({names[0]}) to {last}, got {index!r}")
    return names[int(index)]


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Becomes the run. Returns 2 for bad input."""
    try:
        options, rest = parse(arguments, environment)
        keys = [text.removeprefix("--config.") for text in rest if text.startswith("--config.")]
        name = run_name(options.config, options.index, keys)
    except InputError as error:
        print(f"run_index: {error}", file=sys.stderr)
        return 2
    command = ["sweep", f"--config={options.config}", f"--workdir={options.workdir}", f"--run={name}", *rest]
    print(f"run_index: {options.index} is {shlex.join(['growlm', *command])}", flush=True)
    os.execv(sys.executable, [sys.executable, "-m", "growlm", *command])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
