"""A mixture's products, forward and backward: every expert on every row, or ragged products of the chosen ones alone.

    python experiments/benchmarks/experts.py

growlm.models.moe takes the way that this finds faster. The two take turns, round after round; the ratio is the median
over rounds of the ragged time to the dense one, above 1 where dense is faster. Both give one result.

Cost: two minutes on two CPU cores; --rows, --embed and --mlp make it smaller.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from arguments import Parser, exit_code, positive

from growlm.models import moe
from growlm.training.metrics import commit, hardware

CASES = ((4, 2), (8, 2), (16, 2), (32, 4))  # experts, and how many of them a row gets
WAYS = {"dense": moe.all_experts, "ragged": moe.chosen_experts}


def compiled(way: Callable, chosen: int, arrays: tuple[jax.Array, ...]) -> Callable:
    """The gradient of a loss by rows and experts, compiled."""

    def loss(x_ND, gate_EDF, up_EDF, down_EFD, logits_NE):
        _, weight_NK, expert_NK = moe.route(logits_NE, chosen, normalised=True)
        return jnp.mean(jnp.square(way(x_ND, weight_NK, expert_NK, (gate_EDF, up_EDF, down_EFD))))

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3))).lower(*arrays).compile()


def measure(experts: int, chosen: int, rows: int, embed: int, mlp: int, dtype: str, rounds: int) -> dict[str, Any]:
    """Seconds of each way by round, and the largest difference of their gradients over the largest gradient."""
    shapes = (rows, embed), (experts, embed, mlp), (experts, embed, mlp), (experts, mlp, embed), (rows, experts)
    keys = jax.random.split(jax.random.key(0), len(shapes))
    arrays = tuple(jax.random.normal(k, s, jnp.dtype(dtype)) * s[-2] ** -0.5 for k, s in zip(keys, shapes, strict=True))
    steps = {name: compiled(way, chosen, arrays) for name, way in WAYS.items()}
    results = {name: [np.asarray(x, np.float32) for x in step(*arrays)] for name, step in steps.items()}
    pairs = list(zip(results["dense"], results["ragged"], strict=True))
    apart = max(np.max(np.abs(a - b)) / np.max(np.abs(a)) for a, b in pairs)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            jax.block_until_ready(step(*arrays))
            seconds[name].append(time.perf_counter() - began)
    ratios = [ragged / dense for dense, ragged in zip(seconds["dense"], seconds["ragged"], strict=True)]
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    spread = {"ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios), "apart": float(apart)}
    return {"experts": experts, "chosen": chosen} | medians | spread


def benchmark(arguments: Sequence[str]) -> None:
    """Prints a row for each case as it is measured, and a last line of JSON."""
    parser = Parser(__doc__.partition("\n")[0])
    for name, value in {"rows": 1024, "embed": 256, "mlp": 512, "rounds": 5}.items():
        parser.add_argument(f"--{name}", type=positive, default=value, metavar="N")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    args = parser.parse_args(arguments)
    print(f"{'experts':>7} {'chosen':>6} {'dense':>8} {'ragged':>8} {'ratio':>6} (range)", flush=True)
    rows = []
    for experts, chosen in CASES:
        rows.append(measure(experts, chosen, args.rows, args.embed, args.mlp, args.dtype, args.rounds))
        one = rows[-1]
        print(
            f"{experts:>7} {chosen:>6} {one['dense']:>8.3f} {one['ragged']:>8.3f} {one['ratio']:>6.2f} "
            f"({one['least']:.2f} to {one['most']:.2f})",
            flush=True,
        )
    print(json.dumps({"cases": rows, **vars(args), "commit": commit(), "hardware": hardware()}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns 0, or 2 for bad input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return exit_code("experts", lambda: benchmark(arguments))


if __name__ == "__main__":
    sys.exit(main())
