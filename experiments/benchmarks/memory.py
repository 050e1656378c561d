"""What memory the compiled train step needs at its peak, over the least that it must hold.

    python experiments/benchmarks/memory.py

The least: parameters, optimizer state and batch, the gradients, and what the forward pass keeps for the backward one
under the remat policy. The peak is the compiler's own account, of its arguments, of results that do not lie where
arguments lay, and of temporaries. Nothing is run, so a shape may be larger than the machine; the account is of the
backend that is here.

Cost: a minute or two on two CPU cores.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from arguments import Parser, exit_code
from train_step import REMAT, SHAPES, Setting, read_settings

from growlm.errors import unknown
from growlm.models import REMAT_POLICIES, next_token_loss
from growlm.training.mesh import MeshConfig, make_mesh
from growlm.training.metrics import commit, hardware
from growlm.training.optimizer import OptimizerConfig
from growlm.training.programs import bytes_needed
from growlm.training.step import StepSpec, abstract_state, lower_step

OPTIMIZERS = {
    "adamw": OptimizerConfig(),
    "adamw_bfloat16": OptimizerConfig(moment_dtype="bfloat16"),
    "muon": OptimizerConfig(kind="muon"),
}
COLUMNS = ("shape", "remat", "optimizer", "state", "gradients", "kept", "least", "peak", "ratio")


def nbytes(tree: Any) -> int:
    """Bytes of all arrays."""
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def kept_bytes(setting: Setting, params: Any, tokens_BS: Any) -> int:
    """Bytes that the forward pass keeps for the backward one, without parameters and tokens as they are."""

    def kept(params: Any, tokens_BS: jax.Array) -> list[jax.Array]:
        loss = partial(next_token_loss, setting.model, tokens=tokens_BS, dtype=setting.dtype, remat=setting.remat)
        _, backward = jax.vjp(loss, params)
        given = {id(leaf) for leaf in jax.tree.leaves((params, tokens_BS))}
        return [leaf for leaf in jax.tree.leaves(backward) if id(leaf) not in given]

    return nbytes(jax.eval_shape(kept, params, tokens_BS))


def measure(setting: Setting, optimizer: str) -> dict[str, Any]:
    """One row: bytes, and the ratio of the two."""
    c, config = setting, OPTIMIZERS[optimizer]
    spec = StepSpec(c.model, config, dtype=c.dtype, remat=c.remat)
    program = lower_step(spec, c.batch, c.length, make_mesh(MeshConfig(data=1), jax.devices()[:1])).compile()
    params, *rest = abstract_state(c.model, config).arrays
    tokens_BS = jax.ShapeDtypeStruct((c.batch, c.length + 1), "int32")
    found = {
        "state": nbytes((params, rest, tokens_BS)),
        "gradients": nbytes(params),
        "kept": kept_bytes(c, params, tokens_BS),
    }
    least, peak = sum(found.values()), bytes_needed(program)
    names = {"shape": c.shape, "remat": c.remat, "optimizer": optimizer}
    return names | found | {"least": least, "peak": peak, "ratio": round(peak / least, 3)}


def line(cells: Sequence[Any]) -> str:
    """A line of the table; bytes are in MB."""
    texts = [f"{cell / 1e6:,.1f}" if isinstance(cell, int) else str(cell) for cell in cells]
    return "".join([f"{texts[0]:<10}{texts[1]:<11}{texts[2]:<16}", *(f"{text:>11}" for text in texts[3:])])


def benchmark(arguments: Sequence[str]) -> None:
    """Prints a row as it is compiled, and a last line of JSON."""
    parser = Parser(__doc__.partition("\n")[0])
    parser.add_argument("--shape", default="demo,1.1B", metavar="NAME[,NAME]", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--remat", choices=REMAT_POLICIES, action="append", help="by default the shape's; repeatable")
    parser.add_argument("--optimizer", default=",".join(OPTIMIZERS), metavar="NAME[,NAME]")
    args, more = parser.parse_known_args(arguments)  # sizes, and the dtype: as in train_step.py
    if strangers := [name for name in args.optimizer.split(",") if name not in OPTIMIZERS]:
        raise unknown("optimizer", strangers[0], OPTIMIZERS)
    settings = read_settings([f"--shape={args.shape}", *more])
    every = [dataclasses.replace(c, remat=remat) for c in settings for remat in args.remat or [REMAT[c.shape]]]
    print(line(COLUMNS), flush=True)
    results = []
    for setting in every:
        for optimizer in args.optimizer.split(","):
            results.append(measure(setting, optimizer))
            print(line([*results[-1].values()]), flush=True)
    print(json.dumps({"rows": results, "commit": commit(), "hardware": hardware()}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns 0, or 2 for bad input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return exit_code("memory", lambda: benchmark(arguments))


if __name__ == "__main__":
    sys.exit(main())
