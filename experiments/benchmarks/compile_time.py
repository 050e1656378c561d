"""How long train steps and growths take to compile at 4, 12, 24 and 48 layers.

    python experiments/benchmarks/compile_time.py

Layers are one scan, so that a program has as many operations whatever their number, and should take as long to compile.
The cases are the train step of a stage by rematerialisation, in microbatches and under the masks of a growth; the
growth itself, from half the layers and half the width; and the step that learns the maps of a growth. What is timed is
tracing, lowering and XLA's compilation, with every cache off: by the clock, and in processor time, which is about the
same on an idle machine, as XLA compiles on one core, and tells more on a busy one.

Depths take turns, round after round, so that a machine whose load changes meets all alike: a ratio is that of
neighbours in a round, to the least depth, and what is printed of it is its median, least and most.

Aim: 48 layers in at most 1.2 times the time of 4. Results are in experiments/README.md.

Cost: about three minutes on two CPU cores; --case, --rounds and the sizes make it less.
"""

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from arguments import Parser, exit_code, positive
from cores import about_load, busy_cores
from jax.sharding import Mesh
from jax.stages import Lowered

from growlm.errors import InputError
from growlm.training.config import build_run
from growlm.training.growing import lower_growth, lower_learning
from growlm.training.loop import step_specs
from growlm.training.mesh import MeshConfig, make_mesh
from growlm.training.metrics import commit, hardware
from growlm.training.stages import Stage, resolve
from growlm.training.step import lower_step

SIZES = {"embed": 128, "heads": 4, "mlp": 352, "vocab": 256, "batch": 8, "length": 128}
DEPTHS = (4, 12, 24, 48)

RAMP = {"operator": "random", "options": {"mask_tokens": 10**9}}
STEP, GROWTH, LEARNING = "step", "growth", "learning"
# name: (what is compiled, settings of the run, settings of the grown stage).
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "step, remat full": (STEP, {"remat": "full"}, {}),
    "step, remat attention": (STEP, {"remat": "attention"}, {}),
    "step, remat dots": (STEP, {"remat": "dots"}, {}),
    "step, remat none": (STEP, {"remat": "none"}, {}),
    "step in 2 microbatches": (STEP, {}, {"microbatches": 2}),
    "step under masks": (STEP, {}, {"growth": RAMP}),
    "growth, direct": (GROWTH, {}, {}),
    "growth, zero": (GROWTH, {}, {"growth": {"operator": "zero"}}),
    "step of learn": (LEARNING, {}, {"growth": {"operator": "learn"}}),
}


@dataclasses.dataclass(frozen=True)
class Timing:
    """One compilation: seconds by the clock, of the processor, and of these for tracing and lowering.

    instructions: the size of what came of it, in optimised HLO.
    """

    clock: float
    processor: float
    tracing: float
    instructions: int


Timings = dict[int, list[Timing]]  # by depth: one a round


def stage_of(name: str, sizes: dict[str, int], layers: int) -> Stage:
    """The stage of a case: grown from half the layers and half the width."""
    _, of_run, of_stage = CASES[name]
    model = {"layers": layers, "kv_heads": sizes["heads"], "head_dim": sizes["embed"] // sizes["heads"]}
    model |= {size: sizes[size] for size in ("embed", "heads", "mlp", "vocab")}
    half = {size: model[size] // 2 for size in ("layers", "embed", "heads", "kv_heads", "mlp")}
    shape = {"batch": sizes["batch"], "length": sizes["length"], "tokens": 10 * sizes["batch"] * sizes["length"]}
    first, grown = {"model": model | half}, {"model": model, "growth": {"operator": "direct"}} | of_stage
    stages = [shape | first, shape | grown]
    return resolve(build_run({"stages": stages, "corpus": "none"} | of_run), "none")[1]


def lowering(name: str, stage: Stage, mesh: Mesh) -> Callable[[], Lowered]:
    """What traces and lowers the program of a case."""
    kind, _, _ = CASES[name]
    if kind == GROWTH:
        return lambda: lower_growth(stage, mesh)
    if kind == LEARNING:
        return lambda: lower_learning(stage, mesh)[1]
    program = step_specs(stage, stage.first_step)[stage.growth.masks is not None, None, False]
    return lambda: lower_step(program, stage.config.batch, stage.config.length, mesh)


def timed(lower: Callable[[], Lowered]) -> Timing:
    """One compilation, with nothing remembered of others."""
    jax.clear_caches()
    clock, began = time.perf_counter(), time.process_time()
    lowered = lower()
    traced = time.process_time()
    program = lowered.compile()
    took = time.perf_counter() - clock, time.process_time() - began, traced - began
    return Timing(*took, sum(" = " in line for line in program.as_text().splitlines()))


def measure(name: str, sizes: dict[str, int], depths: Sequence[int], rounds: int) -> Timings:
    """One case, its depths in turns."""
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    found = {layers: lowering(name, stage_of(name, sizes, layers), mesh) for layers in depths}
    turns = [{layers: timed(lower) for layers, lower in found.items()} for _ in range(rounds)]
    return {layers: [turn[layers] for turn in turns] for layers in depths}


def ratio(timings: Timings, layers: int, kind: str) -> dict[str, float]:
    """The time of a depth over that of the least, in each round: the least, the median and the most."""
    pairs = zip(timings[layers], timings[min(timings)], strict=True)
    rounds = [getattr(one, kind) / getattr(other, kind) for one, other in pairs]
    return {"min": min(rounds), "median": statistics.median(rounds), "max": max(rounds)}


def result(name: str, timings: Timings) -> dict[str, Any]:
    """The record of a case: of every depth medians over rounds, and how many times as much that is."""
    kinds = "clock", "processor", "tracing"
    by_depth = {
        layers: {kind: statistics.median(getattr(one, kind) for one in times) for kind in kinds}
        | {"times": {kind: ratio(timings, layers, kind) for kind in kinds}, "instructions": times[0].instructions}
        for layers, times in timings.items()
    }
    return {"case": name, "layers": by_depth}


def row(found: dict[str, Any]) -> str:
    """A line of the table: the seconds of the least depth, and how many times as many every other takes."""
    first, *others = found["layers"].values()
    spreads = [
        f"{r['median']:.2f} ({r['min']:.2f} to {r['max']:.2f})" for r in (o["times"]["processor"] for o in others)
    ]
    cells = [f"{found['case']:<23}", f"{first['processor']:>7.2f}", f"{first['tracing']:>7.2f}"]
    cells += [f"{spread:>20}" for spread in spreads]
    cells += [f"{others[-1]['times']['clock']['median']:>12.2f}"]
    return " ".join([*cells, f"{first['instructions']:,} to {others[-1]['instructions']:,}".rjust(16)])


def header(depths: Sequence[int]) -> str:
    """The names of the columns."""
    cells = [f"{'':<23}", f"{'seconds':>7}", f"{'tracing':>7}", *(f"{layers:>13} layers" for layers in depths[1:])]
    return " ".join([*cells, "by the clock", "HLO instructions"])


def _parser() -> Parser:
    parser = Parser(__doc__.partition("\n")[0])
    for name, size in SIZES.items():
        parser.add_argument(f"--{name}", type=positive, default=size, metavar="N")
    parser.add_argument("--layers", type=positive, action="append", metavar="N", help="a depth; to be repeated")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N")
    parser.add_argument("--case", choices=CASES, action="append", help="only this one; may be repeated")
    return parser


def _check(sizes: dict[str, int], depths: Sequence[int]) -> None:
    """Raises InputError unless there is half of everything, and something to compare."""
    if len(depths) < 2:
        raise InputError(f"--layers is {depths[0]} alone: allowed are two depths and more")
    for name, size in [*sizes.items(), *(("layers", layers) for layers in depths)]:
        if name in ("layers", "embed", "heads", "mlp", "batch") and size % 2:
            raise InputError(f"--{name} is {size}: allowed are even numbers, it grows from half of it")
    if sizes["embed"] % sizes["heads"] or sizes["embed"] // sizes["heads"] % 2:
        raise InputError(f"--embed is {sizes['embed']}: allowed are even multiples of --heads, {sizes['heads']}")


def benchmark(arguments: Sequence[str]) -> None:
    """Prints a row for each case as it is measured, and a last line of JSON."""
    args = _parser().parse_args(arguments)
    sizes = {name: getattr(args, name) for name in SIZES}
    depths = sorted(set(args.layers or DEPTHS))
    _check(sizes, depths)
    jax.config.update("jax_enable_compilation_cache", False)
    busy = [busy_cores()]
    print(f"processor seconds at {depths[0]} layers, and how many times as many more layers take\n", flush=True)
    print(header(depths), flush=True)
    results = []
    for name in args.case or CASES:
        results.append(result(name, measure(name, sizes, depths, args.rounds)))
        print(row(results[-1]), flush=True)
    busy.append(busy_cores())
    print(f"\n{about_load(busy, 'seconds by the clock are worth little then')}")
    deepest = {found["case"]: found["layers"][depths[-1]]["times"]["processor"] for found in results}
    ratios = {name: {"ratio": of["median"], "least": of["min"], "most": of["max"]} for name, of in deepest.items()}
    about = {"sizes": sizes, "rounds": args.rounds, "busy": busy, "commit": commit(), "hardware": hardware()}
    print(json.dumps({"benchmark": "compile_time", "cases": results, "ratios": ratios, **about}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns 0, or 2 for bad input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return exit_code("compile_time", lambda: benchmark(arguments))


if __name__ == "__main__":
    sys.exit(main())
