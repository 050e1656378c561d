"""How long a mixture's products should take on a TPU v5e, beside a dense SwiGLU of equal active size.

    pip install 'growlm[tpu]'
    python experiments/benchmarks/experts_tpu.py --rows=8192

Nobody has measured it: libtpu compiles for the chip, which is not there. Forward and backward, in bfloat16; the share
is the dense time over the mixture's, by two accounts of one program.

`compiler` is its own `optimal_seconds`, without whole seconds as in tpu_compile.py. It counts a gather several times
over, and XLA's ragged product along the rows as if every expert had all rows: the program skips the others
(`iteration_skipper_mode` in its text, `predicated_skipper` in its schedule).

`operations` is the sum over the program's operations of the cycles that the compiler expects, those that are skipped
left out. It expects none of kernels, gathers and sorts: these take the time of their bytes or of their FLOPs, whichever
is longer. A kernel's FLOPs are those of its tiles, of which every expert but the first adds one. Loops are not counted:
the only ones say which tiles are whose.

Shares of 8 experts, 2 of a row, width 2048, experts of 2816 (half of 1.1B's MLP):

| rows | compiler | operations |
|---|---|---|
| 2,048 | 0.50 (0.28) | 0.52 (0.33) |
| 8,192 | 0.59 (0.26) | 0.69 (0.48) |
| 16,384, as on a chip of tpu_compile.py's 1.1B | 0.62 (0.26) | 0.73 (0.57) |

In brackets what it was while JAX differentiated XLA's ragged products (commit 1446ebca3c): 19.2 and 9.2 ms at 8,192. Of
the 13.4 ms now, the products' FLOPs are 8.7, tiles that two experts share 0.9, and 3.8 what a dense SwiGLU has fused
into its products or lacks: activations, sums, rows that move. Few rows an expert share more tiles, and move as many
bytes of experts: hence the row of 2,048.

Cost: three compilations, two minutes on an idle core.
"""

import json
import math
import re
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from arguments import Parser, exit_code, positive
from experts import compiled, compiled_dense
from tpu_compile import chips_of

from growlm.laws.compute import chip_of
from growlm.models import ragged
from growlm.training.mesh import MeshConfig, make_mesh, replicated
from growlm.training.metrics import commit, hardware

CLOCK, BANDWIDTH = 1.5e9, 819e9  # of a v5e: cycles and bytes a second
BYTES = {"pred": 1, "bf16": 2, "s32": 4, "u32": 4, "f32": 4}
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%([\w.-]+) = (.*?) ([a-z-]+)\((.*?)\)")
WITHOUT_CYCLES = ("custom-call", "fusion", "sort", "gather", "scatter")


def _bytes(shape: str) -> int:
    arrays = re.findall(rf"\b({'|'.join(BYTES)})\[([\d,]*)\]", shape)
    return sum(BYTES[kind] * math.prod(int(size) for size in sizes.split(",") if size) for kind, sizes in arrays)


def _run(line: str) -> float:
    """The share of an operation's iterations that is not skipped: each group has its own chunks, and shares one."""
    masked = re.search(r'"mask_dim_to_iteration_index":\["(\d+)","(\d+)"\].*ITERATION_SKIPPER_MODE_GROUP_STARTS', line)
    if not masked:
        return 1.0
    bounds = [int(bound) for bound in re.findall(r"\d+", re.findall(r'"iteration_bounds":\[(.*?)\]', line)[0])]
    groups, chunks = (bounds[int(dimension)] for dimension in masked.groups())
    return (chunks + groups - 1) / (groups * chunks)


def expected(text: str, experts: int, assignments: int, flops: float, peak: float) -> float:
    """The seconds of a compiled program's operations; `flops` are those of one product."""
    tiles = {"ragged-dot-none": 128, "tgmm": ragged.SUMMED_ROWS, "gmm": ragged.tile_rows(assignments, experts)}
    sizes: dict[str, int] = {}
    seconds = 0.0
    for line in text[text.index("\nENTRY") :].splitlines():
        if not (found := INSTRUCTION.match(line)):
            continue
        name, shape, operation, operands = found.groups()
        sizes[name] = _bytes(shape)
        if cycles := re.search(r'"estimated_cycles":"(\d+)"', line):
            seconds += int(cycles[1]) * _run(line) / CLOCK
        elif operation in WITHOUT_CYCLES:
            moved = sizes[name] + sum(sizes.get(operand, 0) for operand in re.findall(r"%([\w.-]+)", operands))
            tile = next((rows for kernel, rows in tiles.items() if kernel in name), None)
            tiled = 0.0 if tile is None else flops * (1 + (experts - 1) * tile / assignments)
            seconds += max(moved / BANDWIDTH, tiled / peak)
        elif operation in ("while", "conditional") and sizes[name] > 2**20:
            raise ValueError(f"what a loop does is not counted, got {name} with {sizes[name]} bytes")
    return seconds


def measure(rows: int, args: Any) -> dict[str, Any]:
    """Milliseconds of the dense SwiGLU and of the mixture, and its share of the dense speed, by both accounts."""
    (chip, *_) = chips_of("v5e:2x2")
    mesh, peak = make_mesh(MeshConfig(1), [chip]), chip_of(chip.device_kind).peak_flops
    experts, chosen, embed, mlp = args.experts, args.chosen, args.embed, args.mlp

    def arrays(*shapes: tuple[int, ...]) -> tuple[jax.ShapeDtypeStruct, ...]:
        return tuple(jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=replicated(mesh)) for shape in shapes)

    wide = embed, chosen * mlp
    matrices = (experts, embed, mlp), (experts, embed, mlp), (experts, mlp, embed)
    with jax.set_mesh(mesh):
        programs = {
            "dense": compiled_dense(arrays((rows, embed), wide, wide, wide[::-1])),
            "mixture": compiled(ragged.chosen_experts, chosen, arrays((rows, embed), *matrices, (rows, experts))),
        }
    found = {"rows": rows}
    for account in ("compiler", "operations"):
        ms = {}
        for name, program in programs.items():
            seconds = program.cost_analysis()["optimal_seconds"] % 1.0
            if account == "operations":
                flops = 2.0 * rows * chosen * embed * mlp
                seconds = expected(program.as_text(), experts, rows * chosen, flops, peak)
            ms[name] = seconds * 1e3
        found[account] = ms | {"share": ms["dense"] / ms["mixture"]}
    return found


def benchmark(arguments: Sequence[str]) -> None:
    """Prints a row for each number of rows, and a last line of JSON."""
    jax.config.update("jax_platforms", "cpu")
    parser = Parser(__doc__.partition("\n")[0])
    for name, value in {"experts": 8, "chosen": 2, "embed": 2048, "mlp": 2816}.items():
        parser.add_argument(f"--{name}", type=positive, default=value, metavar="N")
    parser.add_argument("--rows", type=positive, nargs="+", default=[2048, 8192, 16384], metavar="N")
    args = parser.parse_args(arguments)
    print(f"{'rows':>7} {'account':>10} {'dense ms':>9} {'mixture':>9} {'share':>6}", flush=True)
    cases = []
    for rows in args.rows:
        cases.append(measure(rows, args))
        for account in ("compiler", "operations"):
            of = cases[-1][account]
            print(f"{rows:>7} {account:>10} {of['dense']:>9.2f} {of['mixture']:>9.2f} {of['share']:>6.2f}", flush=True)
    print(json.dumps({"cases": cases, **vars(args), "commit": commit(), "hardware": hardware()}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns 0, or 2 for bad input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return exit_code("experts_tpu", lambda: benchmark(arguments))


if __name__ == "__main__":
    sys.exit(main())
