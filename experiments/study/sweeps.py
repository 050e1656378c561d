"""Trains the next sweep that has no record, at the lowest priority on one core, and keeps its records; then the next.

    make study
    python experiments/study/sweeps.py --list

A sweep lies in runs/study and goes on where it was stopped. Its records go to experiments/records, whole or not at all.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
RECORDS, RUNS = ROOT / "experiments" / "records", ROOT / "runs" / "study"


class Row(NamedTuple):
    """A sweep at several seeds: where its records go, the file and variant, and the name of a seed's folder."""

    name: str
    config: str
    variant: str
    seeds: tuple[int, ...] = (0, 1, 2)
    prefix: str = ""

    def sweeps(self) -> "Iterator[tuple[Path, list[str]]]":
        """(folder below records, options of `growlm sweep`) of every seed."""
        for seed in self.seeds:
            config = f"--config=experiments/{self.config}.py:{self.variant}"
            yield Path(self.name, f"{self.prefix or self.variant}-{seed}"), [config, f"--config.seed={seed}"]


# In the order in which they are trained.
QUEUE = (
    Row("ladder_search", "ladder", "1_search", (0,), "rung_1"),
    Row("ladder_search", "ladder", "2_search", (0,), "rung_2"),
    Row("gradual", "gradual", "cpu"),
    Row("operators_uneven", "operators", "cpu"),
    Row("noise", "noise", "cpu"),
    Row("stacking_order", "stacking_order", "cpu"),
    Row("learning_rate", "learning_rate", "cpu"),
    Row("systems", "systems", "cpu"),
    Row("samba", "samba", "cpu"),
    Row("growth_timing", "growth_timing", "cpu_wide"),
    Row("transfer", "transfer", "cpu", (0,)),
)


def main() -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print which sweeps have records, and train nothing")
    listing = parser.parse_args().list
    failed = 0
    for folder, options in (sweep for row in QUEUE for sweep in row.sweeps()):
        done = (RECORDS / folder).exists()
        if listing:
            print(f"{'has a record' if done else 'to be trained':14} {folder}")
        elif not done and not train(folder, options):
            failed += 1
            print(f"study: {folder} failed; the same command goes on with it", file=sys.stderr)
    return 1 if failed else 0


def train(folder: Path, options: list[str]) -> bool:
    """Trains a sweep to its end and keeps its records. Returns whether it did."""
    growlm, workdir = [sys.executable, "-m", "growlm"], RUNS / folder
    print(f"study: {folder}", flush=True)
    done = run([*growlm, "sweep", f"--workdir={workdir.relative_to(ROOT)}", *options]) == 0
    return done and run([*growlm, "archive", f"--workdir={workdir}", f"--output={RECORDS / folder}"]) == 0


def run(command: list[str]) -> int:
    """The exit code of a command, run from the root of the checkout by one core, after everything else."""
    # In a session of its own, as Linux has a niceness of each; so an interrupt is passed on.
    with subprocess.Popen(command, cwd=ROOT, preexec_fn=yield_to_all, start_new_session=True) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.wait()
            raise


def yield_to_all() -> None:
    """The lowest priority, and where the system lets one choose, the last core."""
    os.nice(19)
    group = Path("/proc/self/autogroup")  # Linux shares the time among sessions first
    if group.exists():
        group.write_text("19")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


if __name__ == "__main__":
    sys.exit(main())
