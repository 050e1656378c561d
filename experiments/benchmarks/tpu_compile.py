"""What the TPU compiler makes of train steps and growths, asked on a machine without a TPU.

    pip install 'growlm[tpu]'
    python experiments/benchmarks/tpu_compile.py --setup=1.1B,3B,7B,70B

libtpu compiles for topologies that are not there. For the train step and the growth of each set-up the benchmark
prints what every chip has to hold (state, temporaries, and their share of the chip's memory), and what it receives
from other chips in one step, by kind of collective, loops counted as often as they run. The compiler has planned that
after a tenth of its time; the rest, machine code, is not waited for.

It also says how long a step should take, which nobody has measured. `compute` is the compiler's own `optimal_seconds`
of forward and backward pass. That number counts the body of a loop once, and whole seconds off for operations that it
has no estimate for, so it is asked of what one chip computes, without layers and with one, with no loop in them, and
whole seconds are dropped: compute = without + layers x (with one - without). Where there is no loop the compiler finds
that what remat computes again is there already; so a layer is what it adds to a pass that is rematerialised as a whole,
which keeps the two apart. The attention kernel, which has no estimate, and the update of the weights are not in it.
`send` is what a chip receives over the bandwidth of all its links. If the compiler hides all of it behind computing, a
step takes `compute`, if nothing, the sum; the two columns of MFU are these two cases.

--mesh, --batch, --microbatches and --remat ask for something else than a set-up has. --mesh, --microbatches and --remat
given more than once are a search: the step and the estimate of every combination are asked, a table says them all, the
best of what fits first, and of the best the growth is asked too.
--config=FILE.py:VARIANT --topology=CHIP:SHAPE asks about the last stage of an experiment's run instead, in a sweep the
first of the grown ones. --step_only leaves out growth and estimate.
Cost: for the step and for the growth, half a minute of processor time, however many layers there are; for the estimate
three programs of one chip, a minute or two, which all meshes of a search with equal parts by tensor share.
"""

import dataclasses
import functools
import importlib.util
import itertools
import json
import math
import multiprocessing
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from arguments import Parser, exit_code, positive
from collectives import Sent, sent
from jax.sharding import Mesh
from jax.stages import Lowered

from growlm.errors import InputError, unknown
from growlm.files import table
from growlm.laws import exact_flops_per_token
from growlm.laws.compute import GIB, Chip, chip_of
from growlm.models import (
    REMAT_POLICIES,
    MixtralConfig,
    ModelConfig,
    loss,
    matmul_parameter_count,
    next_token_loss,
    parameter_count,
)
from growlm.models.sharding import batch_parts
from growlm.training.config import build_run, load_config
from growlm.training.growing import lower_growth
from growlm.training.mesh import MeshConfig, make_mesh, replicated
from growlm.training.metrics import commit, hardware
from growlm.training.settings import GrowthConfig, RunConfig, StageConfig
from growlm.training.stages import Stage, resolve
from growlm.training.step import StepSpec, abstract_state, lower_step
from growlm.training.variants import build_sweep

# Bytes a second that a chip receives over all its links: docs.cloud.google.com/tpu/docs, pages v4, v5e, v5p and v6e.
LINKS = {"v4": 300e9, "v5e": 200e9, "v5p": 600e9, "v6e": 448e9}
TRIED = ("mesh", "remat", "microbatches")  # what a search is over
# The text that says what is sent is the program's before this pass: later ones spell collectives out.
PASS = "tpu-all-reduce-scatter-fusion"
REPORT = ".after_optimizations-memory-usage-report.txt"


@dataclasses.dataclass(frozen=True)
class Setup:
    """A model, what it grows from by stacking its layers, and where and how it is trained."""

    model: ModelConfig
    base_layers: int
    topology: str
    mesh: MeshConfig
    batch: int
    microbatches: int
    remat: str
    length: int = 2048

    @property
    def stages(self) -> list[Stage]:
        """The base, and the model grown from it."""
        shape = {"tokens": self.batch * self.length, "batch": self.batch, "length": self.length}
        shape["microbatches"] = self.microbatches
        base = StageConfig(dataclasses.replace(self.model, layers=self.base_layers), **shape)
        grown = StageConfig(self.model, growth=GrowthConfig(optimizer_state="map"), **shape)
        return resolve(RunConfig((base, grown), dtype="bfloat16", remat=self.remat, mesh=self.mesh), "none")

    @property
    def program(self) -> StepSpec:
        """What the train step of the grown model is compiled for."""
        optimizer = self.stages[1].config.optimizer
        return StepSpec(self.model, optimizer, dtype="bfloat16", remat=self.remat, microbatches=self.microbatches)


def _model(layers: int, embed: int, heads: int, kv_heads: int, mlp: int, head_dim: int = 128, vocab: int = 32000):
    return ModelConfig(layers, embed, heads, kv_heads, head_dim, mlp, vocab)


def _longer_heads(model: ModelConfig) -> ModelConfig:
    """As many parameters, in half as many heads of twice the size, which fill the chip's products."""
    return dataclasses.replace(model, heads=model.heads // 2, kv_heads=model.kv_heads // 2, head_dim=2 * model.head_dim)


LLAMA_8B = _model(32, 4096, 32, 8, 14336, vocab=128256)
LLAMA_70B = _model(80, 8192, 64, 8, 28672, vocab=128256)
LLAMA2_70B = _model(80, 8192, 64, 8, 28672)
MIXTRAL = MixtralConfig(32, 4096, 32, 8, 128, 14336, 32000)

# The paper's shapes (and Llama 2's of 70B), its context and its 1,024 sequences a batch.
SETUPS = {
    "tiny": Setup(_model(4, 256, 4, 2, 512, 64, 1024), 2, "v5e:2x2", MeshConfig(1, 2, 2), 8, 2, "full", 512),
    "1.1B": Setup(_model(24, 2048, 32, 32, 5632, 64), 6, "v5e:4x4", MeshConfig(1, 16), 1024, 8, "attention"),
    "3B": Setup(_model(32, 2560, 20, 4, 7040), 8, "v5e:4x8", MeshConfig(1, 32), 1024, 16, "dots"),
    "7B": Setup(_model(32, 4096, 32, 8, 11008), 8, "v5p:4x4x4", MeshConfig(4, 16), 1024, 4, "none"),
    "70B": Setup(_model(80, 8192, 64, 8, 28672), 20, "v5p:4x8x8", MeshConfig(8, 32), 1024, 4, "dots"),
} | {
    # Llama 3.1 8B and 70B, Llama 2 70B and Mixtral 8x7B, where MaxText has published an MFU, with its sequences a chip.
    "8B_v6e": Setup(LLAMA_8B, 8, "v6e:16x16", MeshConfig(1, 256), 1024, 2, "attention", 8192),
    "8B_v6e_256": Setup(_longer_heads(LLAMA_8B), 8, "v6e:16x16", MeshConfig(1, 256), 1024, 2, "attention", 8192),
    "70B_v6e": Setup(LLAMA_70B, 20, "v6e:16x16", MeshConfig(1, 256), 1280, 5, "full", 8192),
    "70B_v5p": Setup(LLAMA2_70B, 20, "v5p:8x8x8", MeshConfig(8, 64), 2048, 4, "attention", 4096),
    "70B_v5p_256": Setup(_longer_heads(LLAMA2_70B), 20, "v5p:8x8x8", MeshConfig(8, 64), 2048, 4, "attention", 4096),
    "8x7B_v6e": Setup(MIXTRAL, 8, "v6e:16x16", MeshConfig(1, 256), 3072, 3, "attention", 4096),
}


def setup_of(spec: str, topology: str | None) -> Setup:
    """The set-up of an experiment. Raises InputError."""
    if topology is None:
        raise InputError("--config needs --topology: the chips on which it is to be trained, such as v5p:4x4x4")
    settings = load_config(spec, [])
    sweep = build_sweep(settings) if "runs" in settings else None
    run = sweep.runs[sweep.grown[0]] if sweep else build_run(settings)
    first, last = run.stages[0], run.stages[-1]
    return Setup(
        last.model, first.model.depth, topology, run.mesh, last.batch, last.microbatches, run.remat, last.length
    )


def read_setups(arguments: Sequence[str]) -> tuple[dict[str, list[Setup]], bool]:
    """The set-ups that are asked for, by name, each with all that is to be tried, and whether only their steps are.

    Raises InputError.
    """
    parser = Parser(__doc__.partition("\n")[0])
    parser.add_argument("--setup", default="1.1B", metavar="NAME[,NAME]", help=f"of {', '.join(SETUPS)}")
    parser.add_argument("--config", metavar="FILE.py[:variant]", help="an experiment, instead of a set-up")
    parser.add_argument("--step_only", action="store_true", help="neither the growth nor the estimate")
    parser.add_argument("--topology", metavar="CHIP:SHAPE", help="instead of the set-up's, such as v5e:4x8")
    for name in ("batch", "length"):
        parser.add_argument(f"--{name}", type=positive, metavar="N", help="instead of the set-up's")
    several = {"action": "append", "help": "instead of the set-up's; more than once: try each"}
    parser.add_argument("--mesh", metavar="DATA,FSDP,TENSOR", **several)
    parser.add_argument("--remat", choices=REMAT_POLICIES, **several)
    parser.add_argument("--microbatches", type=positive, metavar="N", **several)
    given = vars(parser.parse_args(arguments))
    names, config, step_only = given.pop("setup").split(","), given.pop("config"), given.pop("step_only")
    setups = {config: setup_of(config, given["topology"])} if config else {}
    for name in () if config else names:
        if name not in SETUPS:
            raise unknown("set-up", name, SETUPS)
        setups[name] = SETUPS[name]
    tried = {name: value for name in TRIED if (value := given.pop(name)) is not None}
    changes = {name: value for name, value in given.items() if value is not None}
    tried |= {"mesh": [_mesh(sizes) for sizes in tried["mesh"]]} if "mesh" in tried else {}
    combinations = [dict(zip(tried, values, strict=True)) for values in itertools.product(*tried.values())]
    return {
        name: [dataclasses.replace(setup, **changes, **combination) for combination in combinations]
        for name, setup in setups.items()
    }, step_only


def _mesh(text: str) -> MeshConfig:
    sizes = text.split(",")
    if len(sizes) != 3 or not all(size.isdecimal() for size in sizes):
        raise InputError(f"--mesh is {text!r}: allowed are three sizes such as 1,16,1")
    return MeshConfig(*map(int, sizes))


def chips_of(topology: str) -> list[Any]:
    """The chips of a topology, which are not here. Raises InputError."""
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("libtpu, which compiles for TPUs, is not installed: pip install 'growlm[tpu]'")
    if not re.fullmatch(r"\w+:[1-9]\d*(x[1-9]\d*){1,2}", topology):  # libtpu divides by a size of 0
        raise InputError(f"topology {topology!r}: allowed are a chip and two or three sizes, such as v5e:4x8")
    # Without these it asks the cloud which TPU this is, and a second process fails at a lock.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(topology, platform="tpu").devices
    except Exception as error:  # of a type of its own in every release of jaxlib
        raise InputError(f"topology {topology!r}: {str(error).splitlines()[0]}") from error


def step_of(setup: Setup) -> tuple[Lowered, Any]:
    """The train step, and what it holds before and after: the state, which it updates in place."""
    _, mesh = place(setup)
    state = abstract_state(setup.model, setup.program.optimizer, mesh)
    return lower_step(setup.program, setup.batch, setup.length, mesh), state.arrays


def growth_of(setup: Setup) -> tuple[Lowered, Any]:
    """The growth, and what it holds: the states of both models."""
    _, mesh = place(setup)
    optimizer = setup.program.optimizer
    states = [abstract_state(stage.config.model, optimizer, mesh).arrays for stage in setup.stages]
    return lower_growth(setup.stages[1], mesh), states


def planned(part: Callable[[Setup], tuple[Lowered, Any]], setup: Setup, chip: Chip) -> dict[str, Any]:
    """Seconds to plan, bytes on every chip and what it receives; `error` where it does not fit.

    The compiler says what it has planned, and then makes code for most of its time, which nobody needs: it works in a
    process of its own that is ended there.
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        child = multiprocessing.get_context("spawn").Process(target=_plan, args=(part, setup, folder), daemon=True)
        child.start()
        while child.is_alive() and not _is_written(folder):
            time.sleep(0.2)
        child.kill()
        child.join()
        seconds, error = time.perf_counter() - began, Path(folder, "error")
        if error.exists():
            said = error.read_text().splitlines()
            return {"error": next((line for line in said if "Used" in line), " ".join(said)[:200])}
        if not _is_written(folder):
            raise RuntimeError(f"the compiler ended with {child.exitcode}, and has planned nothing")
        state = int(Path(folder, "state").read_text())
        (text,) = Path(folder).glob(f"*.after_{PASS}.*.txt")
        received = sent(text.read_text())
        needed = total_bytes(next(Path(folder).glob(f"*{REPORT}")).read_text())
    if needed > chip.hbm_bytes:  # the compiler would say so after its plan
        return {"error": f"Used {needed / GIB:.1f} of {chip.hbm_bytes / GIB:.0f} GiB"}
    return {
        "plan_seconds": seconds,
        "state_bytes": state,
        "temporary_bytes": max(needed - state, 0),
        "needed_bytes": needed,
        "share_of_memory": needed / chip.hbm_bytes,
        "sent": {kind: found._asdict() for kind, found in received.items()},
    }


def _plan(part: Callable[[Setup], tuple[Lowered, Any]], setup: Setup, folder: str) -> None:
    """In a process of its own: `state`, its bytes on every chip, `error`, or the plan as the compiler writes it."""
    jax.config.update("jax_platforms", "cpu")
    lowered, held = part(setup)
    shards = [leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves(held)]
    sizes = [math.prod(shape) * leaf.dtype.itemsize for shape, leaf in zip(shards, jax.tree.leaves(held), strict=True)]
    Path(folder, "state").write_text(str(sum(sizes)))
    try:
        lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_pass_re": PASS})
    except jax.errors.JaxRuntimeError as error:
        Path(folder, "error").write_text(str(error))


def _is_written(folder: str) -> bool:
    """Whether the plan of memory is there, which comes after what is sent."""
    return any("Total bytes" in path.read_text() for path in Path(folder).glob(f"*{REPORT}"))


def total_bytes(report: str) -> int:
    """Of a chip's memory that the plan uses, by its report: arguments, results and temporaries, without the code."""
    return int(re.search(r"Memory Space: default.*?\nTotal bytes: (\d+)", report, re.DOTALL)[1])


def _own_part(setup: Setup, layers: int) -> ModelConfig:
    """The model of which a chip computes the whole: parts by tensor, and fsdp's are gathered."""
    c, tensor = setup.model, setup.mesh.tensor
    parts = {name: -(-getattr(c, name) // tensor) for name in ("heads", "kv_heads", "mlp", "vocab")}
    return dataclasses.replace(c, layers=layers, **parts)


def costs(setup: Setup, layers: int, chip: Any, rows: int, remat: str | None = None) -> dict[str, float]:
    """The compiler's, of forward and backward pass on so many sequences, on one chip with so many layers.

    remat: what of all of it is computed again, a name in REMAT_POLICIES; None: nothing.
    """
    mesh, model = make_mesh(MeshConfig(1), [chip]), _own_part(setup, layers)
    params = abstract_state(model, setup.program.optimizer, mesh).params
    tokens = jax.ShapeDtypeStruct((rows, setup.length + 1), jnp.int32, sharding=replicated(mesh))
    of = partial(next_token_loss, model, dtype=jnp.bfloat16)
    if remat is not None:
        everything = jax.checkpoint_policies.everything_saveable
        of = jax.checkpoint(of, policy=everything if remat == "none" else REMAT_POLICIES[remat])
    chunk, loss.CHUNK = loss.CHUNK, rows * setup.length * model.vocab  # one: no loop
    try:
        with jax.set_mesh(mesh):
            program = jax.jit(jax.value_and_grad(of)).lower(params, tokens).compile()
    finally:
        loss.CHUNK = chunk
    return program.cost_analysis()


@functools.cache
def _seconds(setup: Setup, layers: int, remat: str | None) -> float:
    return costs(setup, layers, chips_of(setup.topology)[0], rows=1, remat=remat)["optimal_seconds"] % 1.0


def estimate(setup: Setup, chip: Chip, chips: int, received: dict[str, Sent]) -> dict[str, float]:
    """How long a step should take by the compiler's account, and the MFU that would be."""
    # Of all that a search is over only parts by tensor, and remat, make another program of one chip: it is asked once.
    part = dataclasses.replace(setup, mesh=MeshConfig(1, 1, setup.mesh.tensor), batch=1, microbatches=1, remat="none")
    without = _seconds(part, 0, None)
    none, one = (_seconds(part, layers, setup.remat) for layers in (0, 1))
    sequences = setup.batch / (setup.mesh.data * setup.mesh.fsdp)
    compute = sequences * (without + setup.model.layers * (one - none))
    send = sum(found["received_bytes"] for found in received.values()) / LINKS[chip.name]
    c = setup.model
    per_token = exact_flops_per_token(matmul_parameter_count(c), c.layers, c.heads, c.head_dim, setup.length)
    least = setup.batch * setup.length * per_token / chips / chip.peak_flops
    return {
        "compute_seconds": compute,
        "send_seconds": send,
        "mfu_all_hidden": least / max(compute, send),
        "mfu_none_hidden": least / (compute + send),
    }


def ask(setup: Setup, step_only: bool = False) -> dict[str, Any]:
    """What is asked of the compiler about a set-up's step. Raises InputError."""
    chip, mesh = place(setup)
    step = planned(step_of, setup, chip)
    found = {"chip": chip.name, "chips": mesh.size, "step": step}
    if step_only or "error" in step:
        return found
    return found | {"estimate": estimate(setup, chip, mesh.size, step["sent"])}


def ask_growth(setup: Setup) -> dict[str, Any]:
    """What is asked of the compiler about the growth into a set-up's model."""
    return {"growth": planned(growth_of, setup, place(setup)[0])}


def place(setup: Setup) -> tuple[Chip, Mesh]:
    """The chip of a set-up, and the mesh of all of them. Raises InputError where mesh or batch do not fit."""
    chips = chips_of(setup.topology)
    mesh = make_mesh(setup.mesh, chips)
    if setup.batch % (batch_parts(mesh) * setup.microbatches):
        raise InputError(
            f"batch is {setup.batch} in {setup.microbatches} microbatches: allowed are multiples of {batch_parts(mesh)}"
        )
    return chip_of(chips[0].device_kind), mesh


def ask_all(name: str, setups: Sequence[Setup], step_only: bool) -> None:
    """Ask and print about one set-up, or about all that a search is over. Raises InputError."""
    found = []
    for setup in setups:
        place(setup)  # what is wrong is said before minutes of compiling
    for setup in setups:
        answer = ask(setup, step_only)
        if len(setups) == 1 and not step_only and "error" not in answer["step"]:
            answer |= ask_growth(setup)
        _say(name, setup, answer)
        found.append((setup, answer))
    if len(setups) > 1:
        ranked = sorted(found, key=lambda one: -_worst_mfu(one[1]))  # as they were asked where there is no estimate
        print(table([SEARCHED, *(_row(setup, answer) for setup, answer in ranked)], rule=True), flush=True)
        best, answer = ranked[0]
        if _worst_mfu(answer):
            _say(f"{name}, the best", best, answer | ask_growth(best))


SEARCHED = ("data, fsdp, tensor", "remat", "microbatches", "memory", "receives", "computes", "sends", "MFU")


def _worst_mfu(found: dict[str, Any]) -> float:
    """If nothing that is sent hides behind computing; 0 of what does not fit."""
    return found.get("estimate", {}).get("mfu_none_hidden", 0.0)


def _row(setup: Setup, found: dict[str, Any]) -> tuple[str, ...]:
    asked = ", ".join(map(str, dataclasses.astuple(setup.mesh))), setup.remat, str(setup.microbatches)
    if "error" in found["step"]:
        return (*asked, "does not fit", *["-"] * 4)
    received = sum(one["received_bytes"] for one in found["step"]["sent"].values())
    asked = *asked, f"{found['step']['share_of_memory']:.0%}", f"{received / 1e9:,.3g} GB"
    if (of := found.get("estimate")) is None:
        return (*asked, *["-"] * 3)
    return (
        *asked,
        f"{of['compute_seconds']:.3g} s",
        f"{of['send_seconds']:.3g} s",
        f"{of['mfu_all_hidden']:.0%}, {of['mfu_none_hidden']:.0%}",
    )


def describe(name: str, setup: Setup, found: dict[str, Any]) -> str:
    """A set-up and what the compiler says of it, in a few lines."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in dataclasses.asdict(setup.mesh).items())
    lines = [
        f"{name}: {parameter_count(setup.model) / 1e9:.2f}B parameters, {setup.base_layers} -> {setup.model.layers} "
        f"layers, on {setup.topology} ({found['chips']} chips: {mesh})",
        f"  batch {setup.batch} x {setup.length} in {setup.microbatches} microbatches, remat {setup.remat}",
        *(_program_line(part, found[part]) for part in ("step", "growth") if part in found),
    ]
    if of := found.get("estimate"):
        lines.append(
            f"  should take {of['compute_seconds']:.3g} s to compute and {of['send_seconds']:.3g} s to send: "
            f"MFU {of['mfu_all_hidden']:.0%} if all sending is hidden, {of['mfu_none_hidden']:.0%} if none"
        )
    return "\n".join(lines)


def _program_line(part: str, of: dict[str, Any]) -> str:
    if "error" in of:
        return f"  {part:<7} does not fit: {of['error']}"
    received = ", ".join(f"{kind} {s['times']} x, {s['received_bytes'] / 1e9:.3g} GB" for kind, s in of["sent"].items())
    return (
        f"  {part:<7} {of['state_bytes'] / GIB:.2f} GiB state, {of['temporary_bytes'] / GIB:.2f} temporary, "
        f"{of['share_of_memory']:.0%} of the chip's; receives {received or 'nothing'}; "
        f"planned in {of['plan_seconds']:.0f} s"
    )


def _say(name: str, setup: Setup, found: dict[str, Any]) -> None:
    print(describe(name, setup, found), flush=True)
    given = {"benchmark": "tpu_compile", "setup": name, **dataclasses.asdict(setup)}
    print(json.dumps({**given, **found, "hardware": hardware(), "commit": commit()}), flush=True)


def benchmark(arguments: Sequence[str]) -> None:
    """Asks and prints, one set-up after the other."""
    jax.config.update("jax_platforms", "cpu")
    setups, step_only = read_setups(arguments)
    for name, tried in setups.items():
        ask_all(name, tried, step_only)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns 0, or 2 for bad input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    return exit_code("tpu_compile", lambda: benchmark(arguments))


if __name__ == "__main__":
    sys.exit(main())
