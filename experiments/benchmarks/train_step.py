"""How fast growlm's train step is, against this machine's matrix products and against PyTorch.

On a GPU, one command:

    python experiments/benchmarks/train_step.py --shape=124M,1.1B --compare=torch

accelerator.py does this in parts with time limits, and the rest that one asks of a GPU, and has the results of an H200.
The aims there, at the 1.1B shape: an MFU of 60 %, and 1.1 times PyTorch's tokens/s. On a CPU --shape=demo, the default,
takes a minute or two.

Prints tokens/s, model FLOP/s (products and causal attention, forward and backward, nothing counted twice for
rematerialisation) and two shares. "of product": of one large square product in the same dtype, the better of JAX's and
PyTorch's where both run. "MFU": of the bfloat16 peak that the chip's maker names, if growlm/laws/compute.py has it.

With --compare=torch the same model takes the same step (forward, backward, clip, AdamW) in PyTorch under torch.compile,
with --compare=torch_eager in eager PyTorch: on the same device and batch, with as many threads, from the same
parameters. On one sequence the losses of growlm and of eager PyTorch in float32 must agree before anything is timed,
and then those of the first steps.

On CPUs the measurements take turns, round after round, so that a machine whose load changes meets all of them alike:
numbers are medians over rounds, and a ratio is one of neighbours in a round. That is not enough where other processes
use the cores: PyTorch's threads spin while they wait for each other, and with one of them held up a step takes ten
times as long, where XLA's takes twice. (Without spinning, OMP_WAIT_POLICY=PASSIVE, PyTorch is slower on an idle
machine, up to twice.) So the benchmark says how busy the cores were. Where they are not idle, `taskset -c 0 python ...`
compares one thread with one.

On a GPU that holds both they take turns too. On others PyTorch goes first through all its rounds and hands its memory
back; then comes growlm, whose allocator would keep it. 80 GB do not hold both at 1.1B and batch 8: by calculation,
PyTorch takes 58 GB (parameters and moments 16, gradients 5, kept activations 30, logits), and by its compiler growlm
46 GB with all layers written out, 42 GB in a loop with dots_and_attention, 73 GB in a loop that keeps everything. Eager
PyTorch keeps 44 GB of activations; where that is too much, --batch=4.

PyTorch's attention on a GPU is cuDNN's where it has it, as in growlm, whatever PyTorch would choose itself; the record
names what it took.

Result on two idle cores (AMD EPYC, jax 0.10.2, torch 2.13, commit 43858e8, medians of five rounds; products of float32
at 200 GFLOP/s):

    shape     dtype     against   tokens/s  of product  steps in the time of one of PyTorch
    demo      float32   compiled    23,000         32%  0.83 (0.74 to 0.85)
    demo      float32   eager       22,000         33%  1.08 (1.07 to 1.12)
    embed128  float32   compiled     8,300         44%  0.74 (0.73 to 0.76)
    embed128  float32   eager        8,700         45%  0.87 (0.83 to 0.88)
    demo      bfloat16  compiled    18,300         13%  0.77 (0.76 to 0.82)   JAX's products: 40% of PyTorch's rate

By processor time of one thread on each side (`taskset -c 0`, --cpu_time), at commit 94fc41a beside other work,
compiled: demo 1.07 (1.01 to 1.11), embed128 1.01 (0.99 to 1.03); before, with remat full, 0.97 and 0.86. Two idle cores
were not at hand for that commit; at that of the table compiled PyTorch was faster on them. The ratio to eager PyTorch
depends on the machine: one with twice the rate of products had 1.60 and 1.22 where this has 1.08 and 0.87, and commit
89d81f3 has 1.09 here too.

What XLA's profiler says of the demo's step, on one core (processor time, the smallest of several rounds in turns): at
commit 7685df1 67 ms with remat full, of which products are 48, most of them at 100 GFLOP/s, which is what the core
does: one product for queries, keys and values would gain nothing. Since then attention runs in blocks, and
dots_and_attention computes no product twice but scores: 55 ms, of which products are 35. The rest is elementwise, and
writing what is kept; a scan fills the memory for that with zeros first, twice over, which is 4 ms. At embed128 what is
kept, 128 MB, was mapped anew by the allocator at every step: 31,000 page faults, 58 of 378 ms. A run on CPUs now has
glibc keep it (`keep_freed_memory`).

On a GPU it needs a jax and a torch that both see it; products of float32 arrays run in TF32 on both sides.

tokens_BS is int32[batch, length + 1].
"""

import dataclasses
import json
import math
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from arguments import Parser, duration, exit_code, positive
from card import take_memory_as_needed
from cores import about_load, busy_cores, host_threads
from turns import CPU_TIME, clock, in_words, speed

from growlm.errors import InputError, unknown
from growlm.growth.plan import initial_provenance
from growlm.laws import exact_flops_per_token
from growlm.laws.compute import chip_of, peak_flops
from growlm.models import (
    REMAT_POLICIES,
    ModelConfig,
    Params,
    init,
    matmul_parameter_count,
    next_token_loss,
    parameter_count,
)
from growlm.report.style import UNKNOWN, count
from growlm.training.host_memory import keep_freed_memory
from growlm.training.mesh import MeshConfig, make_mesh
from growlm.training.metrics import commit, hardware
from growlm.training.optimizer import OptimizerConfig, make_optimizer
from growlm.training.step import StepSpec, lower_step

# Heads are embed / heads wide and keys have as many as queries, unless the command line says otherwise.
SHAPES = {
    "demo": {"layers": 8, "embed": 64, "heads": 2, "mlp": 176, "vocab": 256, "batch": 8, "length": 128},
    "embed128": {"layers": 8, "embed": 128, "heads": 4, "mlp": 352, "vocab": 256, "batch": 16, "length": 128},
    "124M": {"layers": 12, "embed": 768, "heads": 12, "mlp": 2048, "vocab": 32000, "batch": 32, "length": 1024},
    "1.1B": {"layers": 24, "embed": 2048, "heads": 32, "mlp": 5632, "vocab": 32000, "batch": 8, "length": 2048},
}
REMAT = {"demo": "dots_and_attention", "embed128": "dots_and_attention", "124M": "none", "1.1B": "none"}
UNROLL = {"124M": 12, "1.1B": 24}  # all layers: a GPU then copies nothing into stacks for the backward pass
LOOPED = "dots_and_attention"  # the fastest remat of a loop over layers on a GPU
TOGETHER = {"124M": 50e9, "1.1B": 110e9}  # bytes of a GPU on which both sides of a shape can be at a time
SIZES = ("layers", "embed", "heads", "kv_heads", "head_dim", "mlp", "vocab", "batch", "length")
SIDES = {"torch": "compiled PyTorch", "torch_eager": "eager PyTorch"}
OPTIMIZER = OptimizerConfig()
LEARNING_RATE = 1e-5  # so small that hundreds of steps on one batch leave the model an ordinary one
# Nats between the losses of one model in growlm and in PyTorch: in float32, and in the compute dtype of a GPU.
TOLERANCE, COARSE_TOLERANCE = 1e-4, 1e-2

HEADER = ("", "ms", "best ms", "tokens/s", "GFLOP/s", "of product", "MFU")

# Does its work that many times and waits for the last; a step gives the last loss.
Repeat = Callable[[int], float | None]
Side = Callable[[], dict[str, Repeat]]  # makes what one framework is timed with, by name
Times = dict[str, list[float]]  # by name: seconds for doing it once, in each round


@dataclasses.dataclass(frozen=True)
class Setting:
    """What to measure, and how long: `seconds` for each measurement of a round."""

    shape: str
    model: ModelConfig
    batch: int
    length: int
    dtype: str
    remat: str
    unroll: int
    compare: str | None
    rounds: int
    seconds: float
    product_rows: int
    cpu_time: bool = False
    microbatches: int = 1

    @property
    def tokens(self) -> int:
        """The tokens of a step."""
        return self.batch * self.length

    @property
    def flops(self) -> float:
        """The FLOPs of a step."""
        c = self.model
        return self.tokens * exact_flops_per_token(
            matmul_parameter_count(c), c.layers, c.heads, c.head_dim, self.length
        )


def _parser() -> Parser:
    parser = Parser(__doc__.partition("\n")[0])
    parser.add_argument("--shape", default="demo", metavar="NAME[,NAME]", help=f"of {', '.join(SHAPES)}")
    for name in SIZES:
        parser.add_argument(f"--{name}", type=positive, metavar="N", help=f"instead of the shape's {name}")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="the compute dtype: float32 on CPUs, bfloat16 elsewhere"
    )
    parser.add_argument("--remat", choices=REMAT_POLICIES, help="what growlm computes twice, instead of the shape's")
    parser.add_argument("--unroll", type=positive, metavar="N", help="layers in one turn of the loop over layers")
    parser.add_argument("--compare", choices=SIDES, help="time the step of compiled or eager PyTorch as well")
    parser.add_argument("--rounds", type=positive, default=5, metavar="N")
    parser.add_argument("--seconds", type=duration, default=1.0, help="what each measurement of a round takes, about")
    parser.add_argument("--cpu_time", action="store_true", help=CPU_TIME)
    parser.add_argument("--product_rows", type=positive, metavar="N", help="the size of the square product")
    return parser


def read_settings(arguments: Sequence[str]) -> list[Setting]:
    """The settings that the command line asks for, one for each shape."""
    values = vars(_parser().parse_args(arguments))
    on_cpu = jax.default_backend() == "cpu"
    values["dtype"] = values["dtype"] or ("float32" if on_cpu else "bfloat16")
    values["product_rows"] = values["product_rows"] or (2048 if on_cpu else 8192)
    return [_setting(shape, values) for shape in values["shape"].split(",")]


def _setting(shape: str, values: dict[str, Any]) -> Setting:
    """The shape, with the sizes that are given instead of its own."""
    if shape not in SHAPES:
        raise unknown("shape", shape, SHAPES)
    given = {name: values[name] for name in SIZES if values[name]}
    sizes = SHAPES[shape] | given
    sizes.setdefault("kv_heads", sizes["heads"])
    if "head_dim" not in sizes and sizes["embed"] % sizes["heads"]:
        raise InputError(f"embed {sizes['embed']} is not divisible by heads {sizes['heads']}: set --head_dim")
    sizes.setdefault("head_dim", sizes["embed"] // sizes["heads"])
    outside = {name: sizes.pop(name) for name in ("batch", "length")}
    rest = {name: value for name, value in values.items() if name not in SIZES}
    how = {"remat": rest["remat"] or REMAT[shape], "unroll": rest["unroll"] or UNROLL.get(shape, 1)}
    return Setting(model=ModelConfig(**sizes), **rest | outside | how | {"shape": shape})


def load_torch() -> ModuleType:
    """The module with PyTorch's side; PyTorch computes with as many threads as XLA."""
    if find_spec("torch") is None:
        raise InputError("--compare: torch is not installed")
    import torch
    import torch_reference

    torch.set_num_threads(host_threads())
    return torch_reference


def start(setting: Setting) -> tuple[Params, jax.Array]:
    """The parameters and the batch that every contender gets."""
    tokens_shape = (setting.batch, setting.length + 1)
    tokens_BS = jax.random.randint(jax.random.key(1), tokens_shape, 0, setting.model.vocab, jnp.int32)
    return init(setting.model, jax.random.key(0)), tokens_BS


def check_one_model(losses: dict[str, float], tolerance: float) -> None:
    """Raises RuntimeError where these are not the losses of one model."""
    if not np.ptp(list(losses.values())) < tolerance:  # of NaN it is NaN, wherever it stands
        raise RuntimeError(f"these are not one model: their losses are {losses}")


def exact_losses(
    setting: Setting, params: Params, tokens_BS: jax.Array, torch_side: ModuleType | None
) -> dict[str, float]:
    """The loss of each side on the batch's first sequence, in float32; they must agree."""
    tokens_BS = tokens_BS[:1]
    with jax.default_matmul_precision("highest"):
        found = {"growlm": float(jax.jit(partial(next_token_loss, setting.model))(params, tokens=tokens_BS))}
    if torch_side:
        found[setting.compare] = torch_side.loss_of(setting.model, params, tokens_BS)
    check_one_model(found, TOLERANCE)
    return found


def step_program(setting: Setting, optimizer: OptimizerConfig = OPTIMIZER) -> jax.stages.Compiled:
    """growlm's train step on one device, compiled."""
    c = setting
    how = {"remat": c.remat, "unroll": c.unroll, "microbatches": c.microbatches}
    spec = StepSpec(c.model, optimizer, dtype=c.dtype, **how)
    return lower_step(spec, c.batch, c.length, make_mesh(MeshConfig(data=1), jax.devices()[:1])).compile()


def repeated_step(
    setting: Setting,
    params: Params,
    tokens_BS: jax.Array,
    step: jax.stages.Compiled,
    optimizer: OptimizerConfig = OPTIMIZER,
) -> Repeat:
    """growlm's `step_program` on one batch, from these parameters on; they are donated."""
    c = setting
    arrays = (params, jax.jit(make_optimizer(optimizer, c.model).init)(params), None)
    learning_rate, provenance = jnp.float32(LEARNING_RATE), jax.device_put(initial_provenance(c.model))

    def repeat(times: int) -> float:
        nonlocal arrays
        for _ in range(times):
            arrays, metrics = step(arrays, tokens_BS, learning_rate, provenance, None)
        jax.block_until_ready((arrays, metrics))
        return float(metrics["loss"])

    return repeat


def repeated_product(rows: int, dtype: str) -> Repeat:
    """A square product in JAX."""
    a, b = jax.random.normal(jax.random.key(0), (2, rows, rows), dtype)
    product = jax.jit(jnp.matmul)

    def repeat(times: int) -> None:
        for _ in range(times):
            c = product(a, b)
        c.block_until_ready()

    return repeat


def sides(setting: Setting, params: Params, tokens_BS: jax.Array, torch_side: ModuleType | None) -> list[Side]:
    """PyTorch's step and product where it is compared with, then growlm's, which takes the parameters away."""
    c = setting

    def growlm() -> dict[str, Repeat]:
        return {
            "growlm": repeated_step(c, params, tokens_BS, step_program(c)),
            "product, jax": repeated_product(c.product_rows, c.dtype),
        }

    def torch() -> dict[str, Repeat]:
        loss = torch_side.loss_function(c.dtype, compiled=c.compare == "torch")
        decoder, kernel = torch_side.decoder_of(c.model, params), torch_attention(c, torch_side)
        return {
            c.compare: torch_side.repeated_step(loss, decoder, tokens_BS, OPTIMIZER, LEARNING_RATE, kernel),
            "product, torch": torch_side.repeated_product(c.product_rows, c.dtype),
        }

    return [torch, growlm] if torch_side else [growlm]


def torch_attention(setting: Setting, torch_side: ModuleType) -> Any:
    """The kernel of PyTorch's attention."""
    return torch_side.attention_kernel(setting.model, setting.batch, setting.length, setting.dtype)


def in_turns(setting: Setting) -> bool:
    """Whether both sides are there at a time: on CPUs, and on a GPU that holds both."""
    chip = chip_of(jax.devices()[0].device_kind)
    return jax.default_backend() == "cpu" or (
        chip is not None and chip.hbm_bytes >= TOGETHER.get(setting.shape, math.inf)
    )


def _seconds(repeat: Repeat, times: int, now: Callable[[], float]) -> float:
    began = now()
    repeat(times)
    return now() - began


def measure(found: dict[str, Repeat], rounds: int, seconds: float, cpu_time: bool = False) -> Times:
    """Times what is compiled already, in turns, each for about so many seconds a round."""
    now = clock(cpu_time)
    counts = {name: max(1, round(seconds / _seconds(repeat, 1, now))) for name, repeat in found.items()}
    turns = [{name: _seconds(found[name], n, now) / n for name, n in counts.items()} for _ in range(rounds)]
    return {name: [turn[name] for turn in turns] for name in found}


def measure_sides(
    setting: Setting, every_side: list[Side], torch_side: ModuleType | None
) -> tuple[Times, dict[str, float]]:
    """The times of all, and the loss of each first step: `in_turns`, or one side after the other."""
    groups = [every_side] if in_turns(setting) else [[side] for side in every_side]
    times, losses = {}, {}
    for group in groups:
        found = {name: repeat for side in group for name, repeat in side().items()}
        first = {name: repeat(1) for name, repeat in found.items()}  # this compiles
        losses |= {name: loss for name, loss in first.items() if loss is not None}
        times |= measure(found, setting.rounds, setting.seconds, setting.cpu_time)
        del found  # the next side gets its memory
        if torch_side:
            torch_side.release()
    check_one_model(losses, COARSE_TOLERANCE)
    return times, losses


def work(setting: Setting, name: str) -> tuple[float, int]:
    """The FLOPs and the tokens of doing it once; a product has no tokens."""
    return (2.0 * setting.product_rows**3, 0) if name.startswith("product") else (setting.flops, setting.tokens)


def product_rate(setting: Setting, times: Times) -> list[float]:
    """FLOP/s of the fastest product, in each round."""
    found = [[work(setting, name)[0] / s for s in seconds] for name, seconds in times.items() if "product" in name]
    return list(map(max, zip(*found, strict=True)))


def summary(setting: Setting, name: str, times: Times, chip: float | None) -> dict[str, float | None]:
    """Medians over rounds, the best time, and the shares of the round's fastest product and of the chip's peak."""
    (flops, tokens), seconds = work(setting, name), times[name]
    median, rates = statistics.median(seconds), product_rate(setting, times)
    return {
        "milliseconds": 1e3 * median,
        "best_milliseconds": 1e3 * min(seconds),
        "tokens_per_second": tokens / median,
        "flops_per_second": flops / median,
        "share_of_product": statistics.median(flops / (s * rate) for s, rate in zip(seconds, rates, strict=True)),
        "mfu": flops / median / chip if chip else None,
    }


def conditions(setting: Setting, torch_side: ModuleType | None = None) -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "benchmark": "train_step",
        **dataclasses.asdict(setting),
        "hardware": hardware(),
        "threads": host_threads(),
        "torch": version("torch") if torch_side else None,
        "torch_attention": torch_attention(setting, torch_side).name if torch_side else None,
        "in_turns": in_turns(setting),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "chip_flops_per_second": peak_flops(jax.devices()[0].device_kind),
        "commit": commit(),
    }


def measurements(setting: Setting, times: Times, chip: float | None) -> dict[str, Any]:
    """What came out: growlm first, and products last."""
    names = sorted(times, key=lambda name: ("product" in name, name))
    other = setting.compare or "product, jax"
    return {
        "results": {name: summary(setting, name, times, chip) for name in names},
        "ratios": {f"{setting.shape}, {other}": speed(times, "growlm", other)},
        "seconds_by_round": times,
    }


def describe(setting: Setting, given: dict[str, Any]) -> str:
    """What is measured, how and on what, in three lines."""
    c = setting.model
    heads = f"{c.heads} heads x {c.head_dim} ({c.kv_heads} of keys and values)"
    torch = f", torch {given['torch']} with {given['torch_attention']}" if given["torch"] else ""
    return (
        f"{setting.shape}: {c.layers} layers, embed {c.embed}, {heads}, mlp {c.mlp}, vocab {c.vocab}; "
        f"{count(parameter_count(c))} parameters\n"
        f"batch {setting.batch} x {setting.length} tokens, {setting.dtype}, remat {setting.remat}, "
        f"unroll {setting.unroll}; {setting.rounds} rounds, about {setting.seconds:g} s for each measurement\n"
        f"{given['hardware']}{torch}; host threads {given['threads']}"
    )


def _cells(name: str, result: dict[str, float | None]) -> list[str]:
    tokens, mfu = result["tokens_per_second"], result["mfu"]
    return [
        name,
        f"{result['milliseconds']:.2f}",
        f"{result['best_milliseconds']:.2f}",
        f"{tokens:,.0f}" if tokens else UNKNOWN,
        f"{result['flops_per_second'] / 1e9:,.1f}",
        f"{result['share_of_product']:.1%}",
        UNKNOWN if mfu is None else f"{mfu:.1%}",
    ]


def table(results: dict[str, dict[str, float | None]]) -> str:
    """The results as aligned text: names to the left, numbers to the right."""
    lines = [HEADER, *(_cells(name, result) for name, result in results.items())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))])
        for name, *cells in lines
    )


def benchmark(setting: Setting) -> None:
    """Measures and prints."""
    torch_side = load_torch() if setting.compare else None
    given, busy = conditions(setting, torch_side), [busy_cores()]
    print(describe(setting, given), flush=True)
    params, tokens_BS = start(setting)
    loss = exact_losses(setting, params, tokens_BS, torch_side)
    print("loss before training:", ", ".join(f"{name} {value:.6f}" for name, value in loss.items()), flush=True)
    times, first = measure_sides(setting, sides(setting, params, tokens_BS, torch_side), torch_side)
    result = measurements(setting, times, given["chip_flops_per_second"])
    busy.append(busy_cores())
    print(f"\n{table(result['results'])}\n")
    if setting.compare:
        (ratio,) = result["ratios"].values()
        print(f"growlm takes {in_words(ratio)} steps in the time of one of {SIDES[setting.compare]}")
    print(f"{about_load(busy)}\n")
    print(json.dumps({**given, "loss": loss, "first_step_loss": first, "busy_cores": busy, **result}), flush=True)


def benchmarks(arguments: Sequence[str]) -> None:
    """One shape after the other."""
    take_memory_as_needed()  # PyTorch goes first, and hands its own back
    for setting in read_settings(arguments):
        benchmark(setting)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns 0, or 2 for bad input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    keep_freed_memory()  # as a run does
    return exit_code("train_step", lambda: benchmarks(arguments))


if __name__ == "__main__":
    sys.exit(main())
