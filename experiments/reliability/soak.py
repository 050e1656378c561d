"""Kill a sweep with two growths at random moments, start it again, and compare how it ends with one left alone.

    python experiments/reliability/soak.py --kills=100 --workdir=runs/soak

Every chain is one sweep in one folder, started again after each SIGKILL until it is done. A kill comes at a moment
drawn from the time that the sweep takes after its first stage is begun. The ending is equal where every record but for
the clock and every bit of the last checkpoints are. A kill takes about 5 seconds of one core. Prints Markdown: how
often it was killed at what, by what lay in the folder then, and the endings; exit code 1 unless all are equal. Ctrl-C
ends it, and what is done is reported.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from growlm.training.metrics import read_records
from growlm.training.saved import find_saved, read_state

WORDS = ("a", "model", "that", "grows", "while", "it", "trains", "layer", "by", "layer", "and", "goes", "on")
MODEL = {"embed": 16, "heads": 2, "kv_heads": 1, "head_dim": 8, "mlp": 24, "vocab": 256}
BATCH, LENGTH, STEPS = 4, 16, 24
RUNS = ("once", "twice")
CLOCK = ("seconds", "tokens_per_second", "data_wait", "pause_seconds")
KILLS_IN_A_CHAIN = 5  # on average, so that chains of one and of many are among them


def settings(corpus: Path) -> dict[str, Any]:
    """A sweep whose runs share their first stages; the second run grows twice."""

    def stage(layers: int, **more: Any) -> dict[str, Any]:
        schedule = {"kind": "cosine", "peak_lr": 1e-2, "warmup_tokens": 5 * BATCH * LENGTH}
        tokens = {"tokens": STEPS * BATCH * LENGTH, "batch": BATCH, "length": LENGTH}
        return {"model": MODEL | {"layers": layers}, "schedule": schedule} | tokens | more

    growth = {"operator": "direct", "optimizer_state": "map"}
    stages = [stage(1), stage(2, growth=growth), stage(4, growth=growth)]
    return {
        "corpus": str(corpus),
        "runs": {"once": {"stages": stages[:2]}, "twice": {"stages": stages}},
        "baseline": "once",
        "grown": ["twice"],
        "log_every_steps": 1,
        "evaluation": {"every_tokens": 10 * BATCH * LENGTH, "batches": 2},
        "checkpoint": {"every_tokens": 7 * BATCH * LENGTH, "max_to_keep": 2},
    }


@dataclasses.dataclass(frozen=True)
class Start:
    """One start of a sweep, and its processor time; `moment` is empty where it was done before it was killed."""

    seconds: float
    moment: str = ""
    steps_lost: int = 0


@dataclasses.dataclass(frozen=True)
class Chain:
    """The starts of one sweep until it was done, and whether it ended as one that was never killed."""

    starts: list[Start]
    equal: bool

    @property
    def kills(self) -> list[Start]:
        """The starts that were killed."""
        return [start for start in self.starts if start.moment]


class Soak:
    """A folder with the config, the sweep that is left alone, and the chains."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.draw = folder, random.Random(seed)
        folder.mkdir(parents=True)
        (folder / "corpus.txt").write_text(" ".join(random.Random(0).choices(WORDS, k=15_000)))
        config = f"def get_config():\n    return ConfigDict({settings(folder / 'corpus.txt')!r})\n"
        (folder / "sweep.py").write_text(f"from ml_collections import ConfigDict\n\n\n{config}")
        self.start("first", None)  # fills the cache of compiled programs
        begun = time.monotonic()
        self.whole, self.takes = self.start("whole", None).seconds, time.monotonic() - begun
        self.reference = ending(folder / "whole")

    def start(self, name: str, after: float | None) -> Start:
        """Start the sweep in a folder; kill it so many seconds after it has begun a stage, if it is not done then."""
        workdir = self.folder / name
        command = [sys.executable, "-m", "growlm", "sweep", f"--config={self.folder / 'sweep.py'}"]
        command += [f"--workdir={workdir}", f"--compilation_cache={self.folder / 'compiled'}"]
        clock, before = time.time(), _processor_seconds()
        with (self.folder / f"{name}.log").open("a") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"JAX_PLATFORMS": "cpu"})
            while after is not None and process.poll() is None:
                if any(path.stat().st_mtime >= clock for path in workdir.glob("stages/*/stage.json")):
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(after)
                    break
                time.sleep(0.01)
            if after is not None:
                process.kill()
            code = process.wait()
        seconds = _processor_seconds() - before
        if code == -signal.SIGKILL:
            return Start(seconds, *moment(workdir, clock))
        if code:
            raise RuntimeError(f"exit code {code}: {(self.folder / f'{name}.log').read_text()[-2000:]}")
        return Start(seconds)

    def chain(self, number: int, most: int) -> Chain:
        """Kill a sweep at random moments until it is done, or was killed so often: then it is left alone."""
        name, starts, longest = f"chain-{number}", [], 2 * self.takes / KILLS_IN_A_CHAIN
        while not starts or starts[-1].moment:
            starts.append(self.start(name, self.draw.uniform(0, longest) if len(starts) < most else None))
        equal = self.reference == ending(self.folder / name)
        if equal:
            shutil.rmtree(self.folder / name)  # one that is not is kept
        return Chain(starts, equal)


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def moment(workdir: Path, since: float) -> tuple[str, int]:
    """What the sweep was at when it was killed, by what lies in its folder, and the steps that no checkpoint has.

    since: the time.time() at which it was started: what an earlier start left is no sign.
    """
    stages = sorted(workdir.glob("stages/*/stage.json"), key=lambda path: path.stat().st_mtime)
    if not stages:
        return "before the first stage", 0
    stage = stages[-1].parent
    parent = json.loads(stages[-1].read_text())["parent"]
    begun = parent["last_step"] if parent else 0
    recorded = max([begun, *(record["step"] for record in read_records(stage / "metrics.jsonl"))])
    saved = [int(path.name) for path in stage.glob("checkpoints/*") if path.name.isdecimal()]
    fresh = [path.name for path in workdir.rglob("*") if path.stat().st_mtime >= since]
    if any("orbax-checkpoint-tmp" in name for name in fresh):
        at = "while a checkpoint is written"
    elif any(name.endswith(".part") for name in fresh):
        at = "while a record is written"
    elif parent and not (stage / "growth.json").exists():
        at = "in a growth, or while its parent is read"
    elif recorded == begun:
        at = "before the first step of a stage, while programs are compiled"
    elif not saved:
        at = f"in a step, before the first checkpoint{' after a growth' if parent else ''}"
    else:
        at = "in a step, after a checkpoint"
    return at, recorded - max([begun, *saved])


def ending(workdir: Path) -> dict[str, Any]:
    """What a sweep ended with: its records without the clock, and every array of the last checkpoints."""
    found: dict[str, Any] = {}
    for name in RUNS:
        records = read_records(workdir / name / "metrics.jsonl")
        found[name] = [{key: value for key, value in one.items() if key not in CLOCK} for one in records]
        state = read_state(find_saved(workdir / name))
        arrays = {**vars(state), "key": jax.random.key_data(state.key)}
        found[f"{name} arrays"] = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(arrays)]
    return found


def report(chains: list[Chain], whole: float) -> str:
    """The tables, in Markdown."""
    kills = [start for chain in chains for start in chain.kills]
    spent = sum(start.seconds for chain in chains for start in chain.starts)
    count = collections.Counter(kill.moment for kill in kills)
    lines = ["| killed | times | steps lost: median | most |", "|---|---|---|---|"]
    for name, times in count.most_common():
        lost = [kill.steps_lost for kill in kills if kill.moment == name]
        lines.append(f"| {name} | {times} | {statistics.median(lost):g} | {max(lost)} |")
    equal = sum(chain.equal for chain in chains)
    each = statistics.mean(kill.steps_lost for kill in kills) if kills else 0.0
    return "\n".join(
        [
            *lines,
            "",
            f"{len(kills)} kills of {len(chains)} sweeps: {equal} of {len(chains)} endings equal to the sweep that was "
            f"left alone, in every record and every bit of weights and optimizer; {each:.1f} steps lost a kill.",
            f"Goodput: {len(chains) * whole / spent:.0%} of the processor time, {len(chains)} x {whole:.0f} s of "
            f"{spent:.0f} s, in {len(kills) + len(chains)} starts.",
        ]
    )


def main() -> int:
    """Run the soak; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, required=True, help="how many processes are killed")
    parser.add_argument("--workdir", type=Path, required=True, help="a new folder")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    soak, chains, left = Soak(args.workdir.absolute(), args.seed), [], args.kills
    with contextlib.suppress(KeyboardInterrupt):  # then the chains that are done are reported
        while left > 0:
            chains.append(soak.chain(len(chains), min(left, soak.draw.randint(1, 2 * KILLS_IN_A_CHAIN - 1))))
            left -= len(chains[-1].kills)
            said = "equal" if chains[-1].equal else f"DIFFERENT, see {args.workdir / f'chain-{len(chains) - 1}'}"
            print(f"soak: {args.kills - left} of {args.kills} kills, {said}", file=sys.stderr, flush=True)
    print(report(chains, soak.whole))
    return 0 if all(chain.equal for chain in chains) else 1


if __name__ == "__main__":
    sys.exit(main())
