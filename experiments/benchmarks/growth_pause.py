"""How long training stands still at a growth, in steps of the grown model.

    python experiments/benchmarks/growth_pause.py

Trains runs with one growth, in depth and width, as `growlm train` does, in a temporary folder, with nothing compiled
before. The pause is what a run records as pause_seconds: from the end of the stage before, when it is evaluated and its
checkpoint is on disk, to the end of the first step of the grown model, without the evaluation at its start: those are
what a run's settings ask for. In it the grown state is made, laid out on the devices and waited for, its report is
written, batches are loaded and a step is taken; what is compiled should be compiled by then, in the background.

What is counted in steps is the pause without the growth itself, whose seconds stand in growth-1.json; a step is the
median one of the grown stage.

Aim: at most 3 steps. Results are in experiments/README.md.

Cost: a minute and a half on two idle CPU cores; where compiling takes longer than the first stage, as on busy ones, the
pause has the rest of it, and the benchmark says so: --steps makes the stages longer.
"""

import contextlib
import json
import os
import statistics
import sys
import tempfile
import threading
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from arguments import Parser, exit_code, positive
from cores import about_load, busy_cores

from growlm.training.config import build_run
from growlm.training.metrics import commit, hardware, read_records
from growlm.training.programs import forget_programs
from growlm.training.run import train
from growlm.training.settings import RunConfig

SMALL = {"layers": 3, "embed": 64, "heads": 4, "kv_heads": 4, "head_dim": 16, "mlp": 176, "vocab": 256}
LARGE = SMALL | {"layers": 6, "embed": 96, "heads": 6, "kv_heads": 6, "mlp": 264}
BOUND = 3.0
GROWTHS = {
    "direct": {"operator": "direct"},
    "zero": {"operator": "zero", "optimizer_state": "map_aged"},
    "random": {"operator": "random", "options": {"mask_tokens": 10**9}},
    "learn": {"operator": "learn", "options": {"steps": 20}},
}


def settings(
    steps: int, batch: int, length: int, growth: str, models: tuple[dict, dict] = (SMALL, LARGE), **more: Any
) -> RunConfig:
    """A run of two stages; the second is as long as it takes to know its step. `more`: of the run."""
    small, large = models
    shape = {"batch": batch, "length": length, "schedule": {"kind": "constant", "peak_lr": 1e-3}}
    first = shape | {"model": small, "tokens": steps * batch * length}
    second = shape | {"model": large, "tokens": 40 * batch * length, "growth": GROWTHS[growth]}
    return build_run({"stages": [first, second], "log_every_steps": 1, "evaluation": {"batches": 4}, **more})


def measure(config: RunConfig) -> dict[str, float]:
    """One run: its pause, the growth in it, and a step of the grown model, in seconds; shares of waiting for data."""
    forget_programs()
    with tempfile.TemporaryDirectory() as folder, _silent():
        home = Path(folder) / "run"
        train(config, home, threading.Event())
        records = [record for record in read_records(home / "metrics.jsonl") if record["stage"] == 1]
        growth = json.loads((home / "growth-1.json").read_text())["seconds"]
    steps = [after["seconds"] - before["seconds"] for before, after in pairwise(records[1:])]
    step, pause = statistics.median(steps), records[1]["pause_seconds"]
    waited = statistics.median(record["data_wait"] for record in records[2:])
    return {"step": step, "growth": growth, "pause": pause, "steps": (pause - growth) / step, "data_wait": waited}


@contextlib.contextmanager
def _silent():
    """Without the progress bars of a run."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


def row(name: str, found: dict[str, float]) -> str:
    """A line of the table."""
    return (
        f"{name:<8}"
        + "".join(f"{1e3 * found[kind]:>12.1f}" for kind in ("step", "growth", "pause"))
        + (f"{found['steps']:>24.2f}")
    )


def _parser() -> Parser:
    parser = Parser(__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=positive, default=600, metavar="N", help="of the stage before the growth")
    parser.add_argument("--batch", type=positive, default=8, metavar="N")
    parser.add_argument("--length", type=positive, default=128, metavar="N")
    parser.add_argument("--runs", type=positive, default=3, metavar="N")
    parser.add_argument("--growth", choices=GROWTHS, default="direct")
    return parser


def benchmark(arguments: Sequence[str]) -> None:
    """Prints a row for each run as it is measured, the median, and a last line of JSON."""
    args = _parser().parse_args(arguments)
    config = settings(args.steps, args.batch, args.length, args.growth)
    busy, runs = [busy_cores()], []
    print(f"{'ms':<8}{'step':>12}{'growth':>12}{'pause':>12}{'(pause - growth) / step':>24}", flush=True)
    for number in range(args.runs):
        runs.append(measure(config))
        print(row(f"run {number + 1}", runs[-1]), flush=True)
    middle = {kind: statistics.median(run[kind] for run in runs) for kind in runs[0]}
    busy.append(busy_cores())
    print(
        f"{row('median', middle)}\n\naim: at most {BOUND:g} steps; {about_load(busy, 'the pause may hold a compile')}"
    )
    about = {**vars(args), "busy": busy, "commit": commit(), "hardware": hardware()}
    print(json.dumps({"benchmark": "growth_pause", "median": middle, "by_run": runs, "bound": BOUND, **about}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns 0, or 2 for bad input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return exit_code("growth_pause", lambda: benchmark(arguments))


if __name__ == "__main__":
    sys.exit(main())
