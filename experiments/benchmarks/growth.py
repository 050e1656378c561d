"""How long growing a model takes, against a plain copy of as many bytes as the grown model has, and what memory.

    python experiments/benchmarks/growth.py

Depth grows 6 layers to 24 at the paper's 1.1B shape in bfloat16, width the paper's 24 layers of 1024 to 2048. Growth
and copy take turns, round after round, so that a machine whose load changes meets both alike; the ratio is the median
over rounds of one to its neighbour. Memory is the compiler's own account: temporary bytes over source and target.

Cost: a minute or two, and 9 GB, on two CPU cores; --layers, --embed and the others make it smaller.

Aims: in depth at most 1.5 copies and temporaries of at most 5 %, in width at most 3 copies, and at most 4 where new
values are drawn ("zero, drawn"). There the random numbers are nearly all of the time: 5.3 ns an element on one core.
"""

import dataclasses
import json
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from arguments import Parser, exit_code, positive
from turns import CPU_TIME, clock, ratios_of, speed, take_turns

from growlm.errors import InputError
from growlm.growth import grow
from growlm.models import ModelConfig, Params, declared
from growlm.training.metrics import commit, hardware

HALF_WIDTH = {"embed": 2, "heads": 2, "kv_heads": 2, "mlp": 2}
# name: (operator and options, what the source has less of, as divisors of the target's sizes).
CASES: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "stack": ({"order": "stack"}, {"layers": 4}),
    "interleave": ({"order": "interleave"}, {"layers": 4}),
    "zero in depth": ({"operator": "zero"}, {"layers": 4}),
    "direct in width": ({}, HALF_WIDTH),
    "zeros in width": ({"operator": "zero", "fill": "zeros"}, HALF_WIDTH),
    "zero, drawn": ({"operator": "zero"}, HALF_WIDTH),
}
SIZES = {"layers": 24, "embed": 2048, "heads": 32, "kv_heads": 32, "head_dim": 64, "mlp": 5632, "vocab": 32000}


def abstract(config: ModelConfig, dtype: str) -> Params:
    """The shapes of a model's parameters."""
    tree: dict[str, Any] = {}
    for weight in declared(config):
        *folders, name = weight.path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = jax.ShapeDtypeStruct(weight.shape(config), jnp.dtype(dtype))
    return tree


def nbytes(tree: Params) -> int:
    """Bytes of all arrays."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def source_of(name: str, target: ModelConfig) -> ModelConfig:
    """The model that a case grows."""
    _, divisors = CASES[name]
    smaller = {size: getattr(target, size) // by for size, by in divisors.items()}
    for size, value in smaller.items():
        if not value:
            raise InputError(f"{size} is {getattr(target, size)}: allowed are {divisors[size]} and more for {name!r}")
    return dataclasses.replace(target, **smaller)


def measure(
    name: str, source: ModelConfig, target: ModelConfig, dtype: str, rounds: int, cpu_time: bool = False
) -> dict[str, Any]:
    """One case: the compiled growth and a compiled copy of the target, in turn."""
    options, _ = CASES[name]
    shapes, wide = abstract(source, dtype), abstract(target, dtype)
    function = partial(grow, source=source, target=target, key=jax.random.key(0), **options)
    growth = jax.jit(function).lower(shapes).compile()
    copy = jax.jit(partial(jax.tree.map, jnp.copy)).lower(wide).compile()
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.5, leaf.dtype), shapes)
    grown = growth(params)
    jax.block_until_ready(copy(grown))
    work = {"growth": lambda: _finished(growth(params)), "copy": lambda: _finished(copy(grown))}
    times = take_turns(work, rounds, clock(cpu_time))
    return {
        "case": name,
        **speed(times, "copy", "growth"),
        "seconds": statistics.median(times["growth"]),
        "gigabytes": nbytes(wide) / 1e9,
        "temporary": growth.memory_analysis().temp_size_in_bytes / (nbytes(shapes) + nbytes(wide)),
    }


def _finished(result: Params) -> None:
    """Waits for it, and gives its memory back at once."""
    jax.block_until_ready(result)


def row(result: dict[str, Any]) -> str:
    """A line of the table."""
    spread = f"({result['least']:.2f} to {result['most']:.2f})"
    return (
        f"{result['case']:<16} {result['seconds']:>8.2f} {result['gigabytes']:>7.2f} "
        f"{result['ratio']:>7.2f} {spread:<15} {result['temporary']:>9.1%}"
    )


def _parser() -> Parser:
    parser = Parser(__doc__.partition("\n")[0])
    for size, value in SIZES.items():
        parser.add_argument(f"--{size}", type=positive, default=value, metavar="N")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--rounds", type=positive, default=5, metavar="N")
    parser.add_argument("--case", choices=CASES, action="append", help="only this one; may be repeated")
    parser.add_argument("--cpu_time", action="store_true", help=CPU_TIME)
    return parser


def benchmark(arguments: Sequence[str]) -> None:
    """Prints a row for each case as it is measured, and a last line of JSON."""
    args = _parser().parse_args(arguments)
    target = ModelConfig(**{size: getattr(args, size) for size in SIZES})
    sources = {name: source_of(name, target) for name in args.case or CASES}
    print(f"{'case':<16} {'seconds':>8} {'GB':>7} {'copies':>7} {'(range)':<15} {'temporary':>9}", flush=True)
    results = []
    for name, source in sources.items():
        results.append(measure(name, source, target, args.dtype, args.rounds, args.cpu_time))
        print(row(results[-1]), flush=True)
    about = {"target": dataclasses.asdict(target), "commit": commit(), "hardware": hardware()}
    print(json.dumps({"cases": results, "ratios": ratios_of(results), **about}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns 0, or 2 for bad input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return exit_code("growth", lambda: benchmark(arguments))


if __name__ == "__main__":
    sys.exit(main())
