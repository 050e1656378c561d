"""One run with growth on 1 device and on 8, in one figure: the loss does not depend on the mesh.

    python experiments/benchmarks/one_and_eight.py docs/one_and_eight.png

Trains the run of `get_config` twice, each in a process of its own as `growlm train` does it: on one device, and on 8
that XLA's CPU backend makes of one (data 2 x fsdp 2 x tensor 2). It grows in depth and width in the middle. What is
drawn is the training loss of every step, and the validation loss where it is measured; below it, by how much of it the
two runs differ.

Results are in experiments/README.md. Cost: about two minutes on two idle CPU cores.
"""

import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from arguments import Parser, exit_code, positive
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from ml_collections import ConfigDict

from growlm.errors import InputError
from growlm.files import write_whole
from growlm.report.charts import LOSSES
from growlm.report.style import LIGHT
from growlm.training.metrics import commit, hardware, read_records

STEPS = 200
BATCH, LENGTH = 16, 64
SMALL = {"layers": 2, "embed": 32, "heads": 4, "kv_heads": 4, "head_dim": 8, "mlp": 88, "vocab": 256}
LARGE = SMALL | {"layers": 4, "embed": 64, "heads": 8, "kv_heads": 8, "mlp": 176}
# By name: the devices, and the variant of the config, which is the mesh.
ONE, EIGHT = "1 device", "8 devices (2 x 2 x 2)"
MESHES = {ONE: (1, "1x1x1"), EIGHT: (8, "2x2x2")}
# By name: colour and width of its line. The thin one lies on the wide one.
STYLES = {ONE: ("#a9d2ee", 4.5), EIGHT: ("#0b3c5d", 1.0)}

ROUNDING, TOLERANCE = float(np.finfo(np.float32).eps), 1e-5
EQUAL = 1e-8  # where a difference of nothing is drawn

Records = list[dict[str, Any]]


def get_config(variant: str = "1x1x1") -> ConfigDict:
    """The run, on a mesh of data x fsdp x tensor; a second colon is followed by its number of steps."""
    mesh, _, steps = variant.partition(":")
    shape = {
        "batch": BATCH,
        "length": LENGTH,
        "schedule": {"kind": "constant", "peak_lr": 3e-3, "warmup_tokens": 10_000},
    }
    tokens = int(steps or STEPS) // 2 * BATCH * LENGTH
    growth = {"operator": "direct", "options": {"order": "stack"}, "optimizer_state": "map"}
    first = shape | {"model": SMALL, "tokens": tokens}
    return ConfigDict(
        {
            "stages": (first, shape | {"model": LARGE, "tokens": tokens, "growth": growth}),
            "mesh": dict(zip(("data", "fsdp", "tensor"), map(int, mesh.split("x")), strict=True)),
            "log_every_steps": 1,
            "evaluation": {"every_tokens": 10 * BATCH * LENGTH, "batches": 4},
        }
    )


def trained(name: str, steps: int, folder: Path) -> Records:
    """The records of the run on a mesh, trained in a process that has so many devices. Raises RuntimeError."""
    devices, mesh = MESHES[name]
    config = f"--config={Path(__file__).resolve()}:{mesh}:{steps}"
    command = [sys.executable, "-m", "growlm", "train", config, f"--workdir={folder / mesh}"]
    several = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    paths = os.pathsep.join([str(Path(__file__).resolve().parent), *sys.path])
    done = subprocess.run(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=os.environ | several | {"PYTHONPATH": paths},
    )
    if done.returncode:
        raise RuntimeError(f"training on {name} ended with {done.returncode}: {done.stderr.strip().splitlines()[-1]}")
    return read_records(folder / mesh / "metrics.jsonl")


def points(records: Records, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and losses, where there are any."""
    found = [(record["step"], record[key]) for record in records if record.get(key) is not None]
    steps, losses = zip(*found, strict=True)
    return np.array(steps), np.array(losses)


def differences(one: Records, other: Records, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and by how much of it a loss differs there."""
    (steps, losses), (_, others) = points(one, key), points(other, key)
    return steps, np.abs(others - losses) / losses


def draw(runs: dict[str, Records]) -> Figure:
    """The losses, and below them their relative difference on a log scale."""
    figure = Figure(figsize=(6.4, 5.6), dpi=110, layout="constrained", facecolor=LIGHT.paper)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for name, records in runs.items():
        colour, width = STYLES[name]
        above.plot(*points(records, "loss"), color=colour, linewidth=width, label=f"training, {name}")
        marks = {"linestyle": "", "marker": "o", "markeredgecolor": LIGHT.runs[1], "zorder": 4}
        wide = name == ONE
        look = (
            {"markersize": 7, "markerfacecolor": "#f6d3bd"}
            if wide
            else {"markersize": 3, "markerfacecolor": LIGHT.runs[1]}
        )
        above.plot(*points(records, "val_loss"), **marks, **look, label=f"validation, {name}")
    _draw_differences(below, runs)
    grown = next(record["step"] for record in runs[ONE] if record["stage"] == 1)
    for axes in (above, below):
        _dress(axes)
        axes.axvline(grown, color=LIGHT.ink, linestyle=":", linewidth=1.2)
    change = "growth: layers 2 \N{RIGHTWARDS ARROW} 4, embed 32 \N{RIGHTWARDS ARROW} 64"
    above.annotate(
        change,
        (grown, 1),
        (4, -12),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        fontsize=8.5,
        color=LIGHT.ink,
    )
    above.set_ylabel(LOSSES["loss"].removeprefix("training "), color=LIGHT.ink)
    below.set_xlabel(f"step (of {BATCH} x {LENGTH} tokens)", color=LIGHT.ink)
    above.legend(frameon=False, fontsize=8.5, labelcolor=LIGHT.ink)
    return figure


def _draw_differences(axes: Axes, runs: dict[str, Records]) -> None:
    """A point for each loss; those that are equal, bit for bit, lie at the bottom."""
    one, other = runs.values()
    for key, (colour, size) in {"loss": (STYLES[EIGHT][0], 2.2), "val_loss": (LIGHT.runs[1], 4.5)}.items():
        steps, by = differences(one, other, key)
        name = LOSSES[key].partition(" loss")[0]
        axes.plot(steps, np.maximum(by, EQUAL), "o", color=colour, markersize=size, label=name)
    bounds = {ROUNDING: ("rounding of float32, 1.2e-7", 15), TOLERANCE: ("what the tests allow, 1e-5", 3)}
    for bound, (said, above) in bounds.items():
        axes.axhline(bound, color=LIGHT.ink, linewidth=0.8, linestyle="--")
        at = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        axes.annotate(said, (1, bound), (-2, above), **at, ha="right", fontsize=8.5, color=LIGHT.ink)
    axes.set_yscale("log")
    axes.set_ylim(EQUAL / 2, 6 * TOLERANCE)
    axes.set_yticks([EQUAL, 1e-7, 1e-6, 1e-5], ["equal", "1e-7", "1e-6", "1e-5"])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("relative difference", color=LIGHT.ink)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=LIGHT.ink, loc="center left")


def _dress(axes: Axes) -> None:
    axes.set_facecolor(LIGHT.paper)
    axes.tick_params(which="both", colors=LIGHT.ink, length=3)
    axes.grid(color=LIGHT.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LIGHT.ink)


def summary(runs: dict[str, Records]) -> dict[str, float]:
    """How large the relative differences are, and how far the loss has fallen meanwhile."""
    one, other = runs.values()
    _, training = differences(one, other, "loss")
    _, validation = differences(one, other, "val_loss")
    first, last = points(one, "loss")[1][[0, -1]]
    return {
        "training_median": float(np.median(training)),
        "training_most": float(training.max()),
        "validation_most": float(validation.max()),
        "first_loss": float(first),
        "last_loss": float(last),
    }


def _parser() -> Parser:
    parser = Parser(__doc__.partition("\n")[0])
    parser.add_argument("figure", type=Path, metavar="FILE.png")
    parser.add_argument("--steps", type=positive, default=STEPS, metavar="N", help="half of them before the growth")
    return parser


def benchmark(arguments: Sequence[str]) -> None:
    """Trains, writes the figure, and prints a line of JSON."""
    args = _parser().parse_args(arguments)
    if args.figure.suffix != ".png" or not args.figure.absolute().parent.is_dir():
        raise InputError(f"{args.figure}: allowed is a file FILE.png in a folder that is there")
    if args.steps < 2:
        raise InputError(f"--steps is {args.steps}: allowed are 2 and more")
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: trained(name, args.steps, Path(folder)) for name in MESHES}
    file = io.BytesIO()
    FigureCanvasAgg(draw(runs)).print_png(file)
    write_whole(args.figure, file.getvalue())
    print(json.dumps({"benchmark": "one_and_eight", **summary(runs), "commit": commit(), "hardware": hardware()}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns 0, or 2 for bad input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return exit_code("one_and_eight", lambda: benchmark(arguments))


if __name__ == "__main__":
    sys.exit(main())
