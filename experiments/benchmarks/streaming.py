"""How fast a Hugging Face checkpoint grows on disk, against a plain copy of the grown one's bytes, and in what memory.

    python experiments/benchmarks/streaming.py

A synthetic checkpoint in bfloat16 with TinyLlama's widths, or half of them, grows to 10 layers of them, 1.1 GB: in
depth from 5, in width from half. Upcycling makes a mixture of 4 experts of each MLP of a third of the layers. Growth
runs in a process of its own, whose largest resident memory is what the kernel says, in turn with a plain copy of the
folder that it wrote on the same disk, round after round, the first for warming up: a kernel that has to find pages
first takes several times as long for either. The time is that of reading, growing and writing, without the start of
Python and without verifying. Both end when the bytes are on the disk, and begin when nothing else is on its way there.

Cost: a minute or two and 3.5 GB of disk on two idle CPU cores; --layers, --embed and the others make it smaller.

Aims: half the speed of the copy or more, and at most three times the largest tensor plus 500 MB of memory.
"""

import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from arguments import Parser, exit_code, positive

from growlm.commands.grow_checkpoint import plan_grow, run_grow
from growlm.formats.export import write_folder
from growlm.formats.layout import family_for, places, settings_of, stored_shape
from growlm.formats.safetensors import NewTensor
from growlm.models import MixtralConfig, ModelConfig
from growlm.training.metrics import commit, hardware

SIZES = {"layers": 10, "embed": 2048, "heads": 32, "kv_heads": 4, "head_dim": 64, "mlp": 5632, "vocab": 32000}
HALF_WIDTH = ("embed", "heads", "kv_heads", "mlp")


def _half(*names: str) -> Callable[[ModelConfig], tuple[ModelConfig, ModelConfig]]:
    """From half of these sizes."""
    return lambda model: (
        dataclasses.replace(model, **{size: getattr(model, size) // 2 for size in names}),
        model,
    )


def _upcycled(model: ModelConfig) -> tuple[ModelConfig, ModelConfig]:
    """From a third of the layers, so that mixtures have about as many bytes."""
    dense = dataclasses.replace(model, layers=max(model.layers // 3, 1))
    return dense, MixtralConfig(**dataclasses.asdict(dense), experts=4, experts_per_token=2)


# name: (operator, the large shape -> (the source's, the target's)).
CASES = {
    "stack": ("direct", _half("layers")),
    "direct in width": ("direct", _half(*HALF_WIDTH)),
    "zero in depth": ("zero", _half("layers")),
    "zero in width": ("zero", _half(*HALF_WIDTH)),
    "upcycling": ("direct", _upcycled),
}
MEMORY_FACTOR, MEMORY_BASE, SPEED = 3, 500 * 10**6, 0.5


def write_synthetic(folder: Path, model: ModelConfig) -> None:
    """A checkpoint of random numbers, the same for every tensor."""
    bfloat16 = np.dtype(jnp.bfloat16)
    tensors = [NewTensor(one.name, bfloat16, stored_shape(one, model)) for one in places(family_for(model), model)]
    noise = (0.02 * np.random.default_rng(0).standard_normal(2**22)).astype(np.float32).astype(bfloat16)

    def pieces(tensor: NewTensor):
        for begin in range(0, tensor.nbytes // 2, len(noise)):
            yield noise[: tensor.nbytes // 2 - begin].copy

    settings = settings_of(model, {"max_position_embeddings": 2048, "torch_dtype": "bfloat16"})
    write_folder(folder, model, settings, tensors=tensors, pieces=pieces, shard=2 * 10**9)


def in_own_process(home: Path, operator: str, target: ModelConfig, rounds: int) -> dict:
    """Seconds of growing and of copying in every round, bytes written, and the largest resident memory in bytes."""
    architecture = target.architecture
    chosen = [axis.chosen for axis in architecture.axes if axis.chosen]
    names = [name for name in (*architecture.sizes, *chosen) if name != "vocab"]
    sizes = [f"architecture={architecture.name}", *(f"{name}={getattr(target, name)}" for name in names)]
    command = [sys.executable, __file__, "--child", str(home), operator, str(rounds), *sizes]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return json.loads(done.stdout)


def _child(home: str, operator: str, rounds: str, *sizes: str) -> None:
    source, grown, copy = (Path(home, name) for name in ("source", "grown", "copy"))
    seconds: dict[str, list[float]] = {"grow": [], "copy": []}
    pairs = {name: int(size) if size.isdecimal() else size for name, size in (text.split("=") for text in sizes)}
    for _ in range(int(rounds)):
        plan = plan_grow(source, output=grown, operator=operator, sizes=pairs)
        seconds["grow"].append(until_written(lambda plan=plan: run_grow(plan, verified=False, log=lambda text: None)))
        seconds["copy"].append(until_written(lambda: shutil.copytree(grown, copy)))
        written = sum(path.stat().st_size for path in grown.iterdir())
        shutil.rmtree(grown)
        shutil.rmtree(copy)
    # What the parent sees, ru_maxrss, counts the memory of the parent too, of which a child begins as a copy.
    (peak,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    print(json.dumps(seconds | {"bytes": written, "memory": int(peak.split()[1]) * 1024}))


def until_written(work: Callable[[], object]) -> float:
    """Seconds that the work takes, until what it writes is on the disk."""
    os.sync()
    began = time.perf_counter()
    work()
    os.sync()
    return time.perf_counter() - began


def measure(home: Path, name: str, large: ModelConfig, rounds: int) -> dict:
    """One case, in turn with copies, after a round for warming up."""
    operator, shapes = CASES[name]
    source, target = shapes(large)
    write_synthetic(home / "source", source)
    found = in_own_process(home, operator, target, rounds + 1)
    shutil.rmtree(home / "source")
    speeds = [copied / grew for grew, copied in zip(found["grow"][1:], found["copy"][1:], strict=True)]
    largest = 2 * max(int(np.prod(stored_shape(one, target))) for one in places(family_for(target), target))
    return {
        "case": name,
        "bytes": found["bytes"],
        "seconds": statistics.median(found["grow"][1:]),
        "of_copy": statistics.median(speeds),
        "range": [min(speeds), max(speeds)],
        "memory": found["memory"],
        "allowed": MEMORY_FACTOR * largest + MEMORY_BASE,
    }


def _show(row: dict) -> str:
    low, high = row["range"]
    verdict = "met" if row["of_copy"] >= SPEED and row["memory"] <= row["allowed"] else "MISSED"
    speed = f"{row['of_copy']:.2f} of a copy's speed ({low:.2f} to {high:.2f})"
    memory = f"{row['memory'] / 1e6:,.0f} MB of {row['allowed'] / 1e6:,.0f} MB"
    return f"{row['case']:<16} {row['bytes'] / 1e9:.2f} GB in {row['seconds']:.1f} s, {speed}, {memory}: {verdict}"


def _parser() -> Parser:
    parser = Parser(__doc__.partition("\n")[0])
    for name, size in SIZES.items():
        parser.add_argument(f"--{name}", type=positive, default=size, metavar="N", help=f"{size} by default")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="of growth and copy; 3 by default")
    parser.add_argument("--case", choices=CASES, help="only this one")
    parser.add_argument("--folder", type=Path, help="on the disk that is meant; a new temporary folder by default")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a line for every case, and at the end one record. Returns 0, or 2 for bad input."""

    def work() -> None:
        args = _parser().parse_args(arguments)
        target = ModelConfig(**{name: getattr(args, name) for name in SIZES})
        rows = []
        with tempfile.TemporaryDirectory(dir=args.folder) as home:
            for name in [args.case] if args.case else CASES:
                rows.append(measure(Path(home), name, target, args.rounds))
                print(_show(rows[-1]), flush=True)
        print(json.dumps({"benchmark": "streaming", "rows": rows, "commit": commit(), "hardware": hardware()}))

    return exit_code("streaming", work)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _child(*sys.argv[2:])
    else:
        sys.exit(main())
