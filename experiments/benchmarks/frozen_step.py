"""How much of a train step is left where the lower layers are frozen.

    python experiments/benchmarks/frozen_step.py --layers=16 --remat=none

Times the step of a stage (forward, backward, clip, AdamW) on one batch, once where everything trains, and once where
the embedding and the lowest layers, three quarters of them unless --frozen says otherwise, are constants. Frozen layers
have a forward pass and nothing else of consequence: no backward pass and no kept activations. As products go, a
layer's backward pass costs twice its forward pass, three times with remat full; so with 3/4 of the layers frozen 1/2 of
the step is left, or 7/16, beside the head and the optimizer, which passes over all weights.

The two take turns, round after round, so that a machine whose load changes meets both alike: numbers are medians over
rounds, and the ratio is one of neighbours in a round.

Aim: at most 0.6. Results are in experiments/README.md.

Cost: half a minute on two CPU cores, more where they are busy.

tokens_BS is int32[batch, length + 1].
"""

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from arguments import Parser, duration, exit_code, positive

from growlm.errors import InputError
from growlm.models import REMAT_POLICIES, ModelConfig, parameter_count
from growlm.training.mesh import MeshConfig, make_mesh
from growlm.training.optimizer import OptimizerConfig
from growlm.training.step import StepSpec, compile_steps, init_state

SIZES = {"layers": 8, "embed": 128, "heads": 4, "mlp": 352, "vocab": 256, "batch": 16, "length": 128}
LEARNING_RATE = 1e-5  # so small that hundreds of steps on one batch leave the model an ordinary one
OPTIMIZER = OptimizerConfig()

HEADER = ("", "ms", "best ms", "tokens/s", "parameters trained")

Repeat = Callable[[int], None]  # takes that many steps, and waits for the last
Times = dict[str, list[float]]  # by name: seconds a step, in each round


@dataclasses.dataclass(frozen=True)
class Setting:
    """What to measure, and how long: `seconds` for each measurement of a round."""

    model: ModelConfig
    batch: int
    length: int
    frozen: int
    dtype: str
    remat: str
    rounds: int
    seconds: float


def _parser() -> Parser:
    parser = Parser(__doc__.partition("\n")[0])
    for name, size in SIZES.items():
        parser.add_argument(f"--{name}", type=positive, default=size, metavar="N")
    parser.add_argument("--frozen", type=positive, metavar="N", help="instead of three quarters of the layers")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="the compute dtype")
    parser.add_argument("--remat", choices=REMAT_POLICIES, default="full", help="on CPUs, full is the fastest")
    parser.add_argument("--rounds", type=positive, default=7, metavar="N")
    parser.add_argument("--seconds", type=duration, default=1.0, help="what each measurement of a round takes, about")
    return parser


def read_setting(arguments: Sequence[str]) -> Setting:
    """The setting that the command line asks for."""
    values = vars(_parser().parse_args(arguments))
    sizes = {name: values.pop(name) for name in SIZES if name not in ("batch", "length")}
    if sizes["embed"] % sizes["heads"]:
        raise InputError(f"embed {sizes['embed']} is not divisible by heads {sizes['heads']}")
    model = ModelConfig(kv_heads=sizes["heads"], head_dim=sizes["embed"] // sizes["heads"], **sizes)
    values["frozen"] = values["frozen"] or 3 * model.layers // 4
    if not 1 <= values["frozen"] <= model.layers:
        raise InputError(f"frozen is {values['frozen']}: allowed are integers from 1 to {model.layers}, the layers")
    return Setting(model=model, **values)


def repeated_step(setting: Setting, frozen: int) -> Repeat:
    """The compiled step of a stage on one batch, from the initial parameters on."""
    tokens_shape = (setting.batch, setting.length + 1)
    tokens_BS = jax.random.randint(jax.random.key(1), tokens_shape, 0, setting.model.vocab, jnp.int32)
    program = StepSpec(setting.model, OPTIMIZER, dtype=setting.dtype, remat=setting.remat, frozen_layers=frozen)
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    step, _ = compile_steps(program, setting.batch, setting.length, mesh)
    state = init_state(setting.model, OPTIMIZER, seed=0)
    arrays, provenance = state.arrays, jax.device_put(state.provenance)

    def repeat(times: int) -> None:
        nonlocal arrays
        for _ in range(times):
            arrays, metrics = step(arrays, tokens_BS, np.float32(LEARNING_RATE), provenance, None)
        jax.block_until_ready((arrays, metrics))

    return repeat


def _seconds(repeat: Repeat, times: int) -> float:
    began = time.perf_counter()
    repeat(times)
    return (time.perf_counter() - began) / times


def measure(found: dict[str, Repeat], rounds: int, seconds: float) -> Times:
    """Times the steps in turns, each for about so many seconds a round."""
    counts = {}
    for name, repeat in found.items():
        repeat(1)  # compiles
        counts[name] = max(1, round(seconds / _seconds(repeat, 1)))
    turns = [{name: _seconds(repeat, counts[name]) for name, repeat in found.items()} for _ in range(rounds)]
    return {name: [turn[name] for turn in turns] for name in found}


def parameters_trained(model: ModelConfig, frozen: int) -> int:
    """The number of parameters that the step changes."""
    below = dataclasses.replace(model, layers=frozen)
    outside = parameter_count(dataclasses.replace(model, layers=0))
    lost = parameter_count(below) - outside + model.vocab * model.embed if frozen else 0
    return parameter_count(model) - lost


def table(setting: Setting, frozen: dict[str, int], times: Times) -> str:
    """The results as aligned text: names to the left, numbers to the right."""
    lines = [HEADER]
    for name, seconds in times.items():
        median, best = statistics.median(seconds), min(seconds)
        speed = f"{setting.batch * setting.length / median:,.0f}"
        trained = f"{parameters_trained(setting.model, frozen[name]):,}"
        lines.append((name, f"{1e3 * median:.2f}", f"{1e3 * best:.2f}", speed, trained))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))])
        for name, *cells in lines
    )


def time_left(times: Times) -> dict[str, Any]:
    """The share of the step's time that is left: in each round, and the least, the median and the most."""
    everything, frozen = times.values()
    rounds = [after / before for before, after in zip(everything, frozen, strict=True)]
    return {"rounds": rounds, "min": min(rounds), "median": statistics.median(rounds), "max": max(rounds)}


def benchmark(setting: Setting) -> None:
    """Measures and prints."""
    c = setting.model
    frozen = {"everything trains": 0, f"{setting.frozen} of {c.layers} layers frozen": setting.frozen}
    print(
        f"{c.layers} layers, embed {c.embed}, {c.heads} heads x {c.head_dim}, mlp {c.mlp}, vocab {c.vocab}; "
        f"batch {setting.batch} x {setting.length} tokens, {setting.dtype}, remat {setting.remat}, "
        f"{jax.default_backend()}\n",
        flush=True,
    )
    times = measure({name: repeated_step(setting, k) for name, k in frozen.items()}, setting.rounds, setting.seconds)
    left = time_left(times)
    print(f"{table(setting, frozen, times)}\n")
    print(f"time left: {left['median']:.2f} ({left['min']:.2f} to {left['max']:.2f} over {setting.rounds} rounds)\n")
    record = {"benchmark": "frozen_step", **dataclasses.asdict(setting), "jax": jax.__version__}
    print(json.dumps({**record, "time_left": left, "seconds_by_round": times}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns 0, or 2 for bad input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return exit_code("frozen_step", lambda: benchmark(read_setting(arguments)))


if __name__ == "__main__":
    sys.exit(main())
