"""A mixture's products, forward and backward, by each of growlm's ways, beside a dense SwiGLU of equal active size.

    python experiments/benchmarks/experts.py

Ways: `all` experts on every row, `ragged` products of the chosen ones, `blocks` of rows of the chosen ones, which is
what growlm.models.moe takes on CPUs. All give one result. They and the dense SwiGLU, which is as wide as the experts of
one row together, take turns, round after round; the share of a way is the median over rounds of the dense time to its
own: 1 is the dense model's FLOP/s. Routing, sorting and moving rows count.

Shares at 2,048 rows, width 256, experts of 512, in float32: medians of 3 rounds with --cpu_time on two cores of an
AMD EPYC that did other work meanwhile (commit 1b44340; the last row at 7f8b712, each way timed right after another).

| experts, of a row | all | ragged | blocks |
|---|---|---|---|
| 4, 2 | 0.27 | 0.23 | 1.02 |
| 8, 2 | 0.14 | 0.12 | 0.98 |
| 16, 2 | 0.07 | 0.06 | 0.84 |
| 32, 4 | 0.09 | 0.04 | 0.83 |

With --ways blocks, and the blocks of 1446ebca3c in turn with them, 8, 2: 0.91 at 2,048 rows (0.90 then) and 1.00 at
8,192 (0.97), with 25 MB of temporaries (36) and 84 (135). What counts is how many rows an expert has, since its weights
and their gradients are moved once a block.

By the clock, on idle cores, it was measured before that alone (98ded311b7): 0.51 for 8, 2, where blocks were timed
right after ragged products and paid for the memory of these; 0.85 alone with the dense SwiGLU in a process, 0.94 at
8,192 rows.

On an NVIDIA H200, bfloat16, at 16,384 rows, width 2,048, experts of 2,816, 8, 2 (46be9fb): ragged 0.61, in
batched products of padded blocks; all 0.28, blocks 0.19. XLA's ragged product alone gave 0.14: it computes every
expert on every row.

Cost: five minutes on two CPU cores; --rows, --embed and --mlp make it smaller. --cpu_time counts seconds of CPU, for a
machine that does other work.
"""

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from arguments import Parser, exit_code, positive
from turns import CPU_TIME, Times, clock, speed

from growlm.models import moe
from growlm.models.blocked import blocked_experts
from growlm.models.ragged import chosen_experts
from growlm.training.metrics import commit, hardware

CASES = ((4, 2), (8, 2), (16, 2), (32, 4))  # experts, and how many of them a row gets
WAYS = {"all": moe.all_experts, "ragged": chosen_experts, "blocks": blocked_experts}


def compiled(way: Callable, chosen: int, arrays: tuple[jax.Array, ...]) -> Callable:
    """The gradient of a loss by rows and experts, compiled."""

    def loss(x_ND, gate_EDF, up_EDF, down_EFD, logits_NE):
        _, weight_NK, expert_NK = moe.route(logits_NE, chosen, normalised=True)
        return jnp.mean(jnp.square(way(x_ND, weight_NK, expert_NK, (gate_EDF, up_EDF, down_EFD))))

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3))).lower(*arrays).compile()


def compiled_dense(arrays: tuple[jax.Array, ...]) -> Callable:
    """The same of a SwiGLU."""

    def loss(x_ND, gate_DF, up_DF, down_FD):
        return jnp.mean(jnp.square((jax.nn.silu(x_ND @ gate_DF) * (x_ND @ up_DF)) @ down_FD))

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3))).lower(*arrays).compile()


def drawn(shapes: Sequence[tuple[int, ...]], dtype: str) -> tuple[jax.Array, ...]:
    """Arrays whose products keep their size."""
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return tuple(jax.random.normal(k, s, jnp.dtype(dtype)) * s[-2] ** -0.5 for k, s in zip(keys, shapes, strict=True))


def measure(experts: int, chosen: int, args: Any) -> dict[str, Any]:
    """The median seconds and the share of each way, and the largest difference of their gradients over the largest."""
    rows, embed, mlp = args.rows, args.embed, args.mlp
    shapes = (rows, embed), (experts, embed, mlp), (experts, embed, mlp), (experts, mlp, embed), (rows, experts)
    arrays = drawn(shapes, args.dtype)
    steps = {name: (compiled(way, chosen, arrays), arrays) for name, way in WAYS.items() if name in args.ways}
    results = {name: [np.asarray(x, np.float32) for x in step(*arrays)] for name, (step, _) in steps.items()}
    pairs = [(a, b) for result in results.values() for a, b in zip(results[args.ways[0]], result, strict=True)]
    apart = max(np.max(np.abs(a - b)) / np.max(np.abs(a)) for a, b in pairs)
    arrays = drawn(((rows, embed), (embed, chosen * mlp), (embed, chosen * mlp), (chosen * mlp, embed)), args.dtype)
    steps["dense"] = compiled_dense(arrays), arrays
    now = clock(args.cpu_time)
    seconds: Times = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name, (step, arrays) in steps.items():
            jax.block_until_ready(step(*arrays))  # or it pays for the caches and the memory of the way before it
            began = now()
            jax.block_until_ready(step(*arrays))
            seconds[name].append(now() - began)
    ranges = {name: speed(seconds, name, "dense") for name in args.ways}
    shares = {name: found["ratio"] for name, found in ranges.items()}
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "experts": experts,
        "chosen": chosen,
        "seconds": medians,
        "share": shares,
        "range": ranges,
        "apart": float(apart),
    }


def benchmark(arguments: Sequence[str]) -> None:
    """Prints a row for each case as it is measured, and a last line of JSON."""
    parser = Parser(__doc__.partition("\n")[0])
    for name, value in {"rows": 2048, "embed": 256, "mlp": 512, "rounds": 5}.items():
        parser.add_argument(f"--{name}", type=positive, default=value, metavar="N")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[*WAYS])
    parser.add_argument("--cpu_time", action="store_true", help=CPU_TIME)
    args = parser.parse_args(arguments)
    print(f"{'experts':>7} {'chosen':>6} {'dense s':>8}" + "".join(f" {name:>8}" for name in args.ways), flush=True)
    rows = []
    for experts, chosen in CASES:
        rows.append(measure(experts, chosen, args))
        shares = "".join(f" {rows[-1]['share'][name]:>8.2f}" for name in args.ways)
        print(f"{experts:>7} {chosen:>6} {rows[-1]['seconds']['dense']:>8.3f}{shares}", flush=True)
    ratios = {f"{row['experts']}, {row['chosen']}, {name}": row["range"][name] for row in rows for name in args.ways}
    about = {"commit": commit(), "hardware": hardware()}
    print(json.dumps({"cases": rows, "ratios": ratios, **vars(args), **about}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns 0, or 2 for bad input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return exit_code("experts", lambda: benchmark(arguments))


if __name__ == "__main__":
    sys.exit(main())
