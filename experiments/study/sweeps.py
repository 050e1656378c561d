"""Trains the next run that has no record, at the lowest priority on one core, and keeps its records; then the next.

    make study
    python experiments/study/sweeps.py --list

A sweep lies in runs/study and goes on where it was stopped. The records of a run go to experiments/records as it ends:
several machines may train a sweep, one after the other, which share no more than the repository.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from growlm.report.archive import archive

ROOT = Path(__file__).parents[2]
RECORDS, RUNS = ROOT / "experiments" / "records", ROOT / "runs" / "study"
SECONDS = 10.0  # between two looks at what has ended


class Row(NamedTuple):
    """A sweep at several seeds: the folder of its records, the file and variant, and more options of `growlm sweep`.

    prefix: the name of a seed's folder. together: the seeds are one sweep, as a search needs, which tries at the first.
    before: commands of Python that make its corpus.
    """

    name: str
    config: str
    variant: str
    seeds: tuple[int, ...] = (0, 1, 2)
    prefix: str = ""
    together: bool = False
    options: tuple[str, ...] = ()
    before: tuple[str, ...] = ()

    def sweeps(self) -> "Iterator[tuple[Path, list[str]]]":
        """(folder below records, options of `growlm sweep`) of every sweep."""
        options = [f"--config=experiments/{self.config}.py:{self.variant}", *self.options]
        if self.together:
            yield Path(self.name), [*options, f"--config.seeds={','.join(map(str, self.seeds))}"]
            return
        for seed in self.seeds:
            yield Path(self.name, f"{self.prefix or self.variant}-{seed}"), [*options, f"--config.seed={seed}"]


RATES = ("--config.search.peak_lr=[2e-3,4e-3,8e-3,1.6e-2,3.2e-2]",)
RATES_LONG = ("--config.search.peak_lr=[4e-3,8e-3,1.6e-2]",)
RATES_LADDER = ("--config.search.peak_lr=[2e-2,4e-2,8e-2,1.6e-1]",)
RATES_MODERN = ("--config.search.peak_lr=[5e-3,1e-2,2e-2,4e-2,8e-2]",)
RATES_MUON = ("--config.search.peak_lr=[5e-3,1e-2,2e-2,4e-2,8e-2,1.6e-1]",)
_PREPARE = "-m growlm prepare --source=runs/facts.jsonl --chat --tokenizer=bytes --workers=1"
FACTS = (
    "experiments/capacity.py --facts=runs/facts.jsonl",
    f"{_PREPARE} --validation=1 --output=runs/facts",
    f"{_PREPARE} --validation=0.5 --output=runs/facts_asked",
)
# In the order in which they are trained.
QUEUE = (
    Row("operators_small", "operators", "small", together=True, options=RATES),
    Row("gradual", "gradual", "small"),
    Row("noise", "noise", "small"),
    Row("stacking_order", "stacking_order", "small"),
    Row("overtrained", "overtrained", "small", together=True),
    Row("ladder_search", "ladder", "1_search", (0,), "rung_1"),
    Row("ladder", "ladder", "1", prefix="rung_1"),
    Row("learning_rate", "learning_rate", "small"),
    Row("optimizer_state", "optimizer_state", "small"),
    Row("systems", "systems", "small", together=True, options=RATES_LONG),
    Row("ladder_search", "ladder", "2_search", (0,), "rung_2", options=RATES_LADDER),
    Row("ladder", "ladder", "2", prefix="rung_2"),
    Row("ladder", "ladder", "3", prefix="rung_3"),
    Row("ladder", "ladder", "4", prefix="rung_4"),
    Row("operators_small_modern", "operators", "small_modern", together=True, options=RATES_MUON),
    Row("capacity", "capacity", "small", before=FACTS),
    Row("systems_looped", "systems", "small_looped", together=True, options=RATES_MODERN),
    Row("experts", "experts", "small", together=True, options=RATES),
    Row("moments", "moments", "small", together=True),
    Row("samba", "samba", "small"),
    Row("growth_factor", "growth_factor", "small"),
    Row("growth_timing", "growth_timing", "cpu_short"),
    Row("growth_timing", "growth_timing", "cpu_narrow_long"),
    Row("growth_timing", "growth_timing", "cpu_wide"),
    Row("transfer", "transfer", "cpu", (0,)),
)


def main() -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print how many runs have records, and train nothing")
    listing = parser.parse_args().list
    failed = 0
    for commands, folder, options in ((row.before, *sweep) for row in QUEUE for sweep in row.sweeps()):
        ended, runs = progress(RECORDS / folder)
        if listing:
            print(f"{f'{ended} of {runs} runs' if runs else 'to be trained':>14}  {folder}")
        elif not runs or ended < runs:
            print(f"study: {folder}", flush=True)
            for command in commands:
                subprocess.run([sys.executable, *command.split()], cwd=ROOT, check=True)
            if not train(RECORDS / folder, RUNS / folder, options):
                failed += 1
                print(f"study: {folder} failed; the same command goes on with it", file=sys.stderr)
    return 1 if failed else 0


def progress(folder: Path) -> tuple[int, int]:
    """How many runs of a sweep have ended, and how many there are; none where it was not begun."""
    summaries = [*folder.glob("sweep.json"), *folder.glob("seed-*/sweep.json")]
    runs = [run for summary in summaries for run in json.loads(summary.read_text())["runs"].values()]
    return sum(run["status"] == "done" or run.get("diverged", False) for run in runs), len(runs)


def train(records: Path, folder: Path, options: list[str]) -> bool:
    """Trains what a sweep's records lack, and keeps the records of every run as it ends. Returns whether all did."""
    if records.exists() and not folder.exists():  # trained on another machine
        shutil.copytree(records, folder)
    # A path within the repository, for the records keep the command.
    command = [sys.executable, "-m", "growlm", "sweep", f"--workdir={os.path.relpath(folder, ROOT)}", *options]
    # In a session of its own, as Linux has a niceness of each; so an interrupt is passed on.
    with subprocess.Popen(command, cwd=ROOT, preexec_fn=yield_to_all, start_new_session=True) as process:
        try:
            while process.poll() is None:
                time.sleep(SECONDS)
                keep(folder, records)
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
        finally:
            keep(folder, records)
    return process.returncode == 0


def keep(folder: Path, records: Path) -> None:
    """Puts the records of the runs that have ended in the place of the former ones, where they are more."""
    if progress(folder)[0] > progress(records)[0]:
        part = records.with_name(f".{records.name}.part")
        archive(folder, part, ended=True)
        ended, runs = progress(part)
        for tried in part.glob("**/*@*") if ended == runs else ():  # sweep.json has their losses
            shutil.rmtree(tried)
        shutil.rmtree(records, ignore_errors=True)
        part.rename(records)


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
