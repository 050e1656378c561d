"""The parts of accelerator.py: each says what it measures as soon as it has it.

Shape suffixes: B batch, T positions, S keys, H heads, K kv_heads, h head_dim, N rows, D embed, V vocab.
"""

import argparse
import dataclasses
import gc
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import data
import experts
import generation as writing
import growth
import growth_pause
import jax
import jax.numpy as jnp
import numpy as np
import optax
import train_step
from accelerator import GRACE, Task
from turns import one_core, speed

from growlm.errors import InputError
from growlm.laws.compute import chip_of
from growlm.models import MixtralConfig, ModelConfig, init
from growlm.models.kernels import attention, kernel_name
from growlm.models.loss import cross_entropy, logits
from growlm.training.metrics import read_records
from growlm.training.muon import DTYPES, MuonConfig
from growlm.training.optimizer import OptimizerConfig
from growlm.training.programs import bytes_needed

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("jax", "jaxlib", "flax", "torch", "triton", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12")
TINY = {"layers": 2, "embed": 32, "heads": 2, "kv_heads": 2, "mlp": 48, "vocab": 64, "batch": 2, "length": 16}
MICROBATCHES = 8  # of a larger batch
RUNG = "4"  # the smaller rungs of the ladder are for CPUs
STOPPED = 75  # the exit code of a sweep that was asked to stop


def _on_card(task: Task) -> None:
    """Raises InputError where only a CPU is, and a CPU was not asked for."""
    if jax.default_backend() == "cpu" and not task.tiny:
        raise InputError("jax sees no accelerator: allowed on a CPU is --tiny")


def _setting(task: Task, shape: str, sizes: dict[str, int] | None = None, **more: str) -> train_step.Setting:
    """A shape of train_step.py, or in its place a tiny one."""
    _on_card(task)
    given = TINY if task.tiny else sizes or {}
    timing = {"rounds": 2, "seconds": 0.01, "product_rows": 64} if task.tiny else {"rounds": 5, "seconds": 0.3}
    options = {"shape": shape} | given | timing | more
    (setting,) = train_step.read_settings([f"--{name}={value}" for name, value in options.items()])
    return setting


def _kernels(program: jax.stages.Compiled) -> dict[str, int]:
    """How often each library's kernel stands in a compiled program, by the names that XLA gives them."""
    found = re.findall(r'custom_call_target="([^"]+)"|"kind":"(__[^"]+)"', program.as_text() or "")
    return dict(Counter(called or fused for called, fused in found))


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _in_words(counts: dict[str, int]) -> str:
    return " ".join(f"{name} x{count}" for name, count in sorted(counts.items())) or "none of a library"


def kernels(task: Task) -> None:
    """What is installed, what one product reaches, and which kernels a train step of two layers has."""
    setting = _setting(task, "1.1B", {"layers": 2})
    task.say("versions", **{name: found for name in PACKAGES if (found := _installed(name))})
    times = train_step.measure(
        {"product, jax": train_step.repeated_product(setting.product_rows, setting.dtype)}, setting.rounds, 0.2
    )
    found = _summary(setting, "product, jax", times)
    task.say("product", rows=setting.product_rows, dtype=setting.dtype, **found)
    task.say("attention", kernel=kernel_name())
    program = train_step.step_program(setting)
    task.say("train step, 2 layers", kernels=_in_words(_kernels(program)))


def _summary(setting: train_step.Setting, name: str, times: train_step.Times) -> dict[str, Any]:
    """Milliseconds, tokens/s, TFLOP/s and the MFU of a name, medians over rounds."""
    chip = chip_of(jax.devices()[0].device_kind)
    (flops, tokens), seconds = train_step.work(setting, name), statistics.median(times[name])
    rates = {"tokens_per_second": tokens / seconds} if tokens else {}
    mfu = {"mfu": flops / seconds / chip.peak_flops} if chip else {}
    return {"ms": 1e3 * seconds, **rates, "tflops": flops / seconds / 1e12, **mfu}


# --- Attention and the loss -------------------------------------------------------------------------------------------


def attention_kernels(task: Task) -> None:
    """growlm's attention against the library's plain XLA, forward and backward, in bfloat16."""
    _on_card(task)
    batch, length = (2, 32) if task.tiny else (8, 2048)
    documents = jnp.broadcast_to(jnp.arange(length) * 3 // length, (batch, length))
    cases = {
        "1.1B": ((32, 32, 64), None, None),
        "1.1B, window": ((32, 32, 64), length // 4, None),
        "1.1B, documents": ((32, 32, 64), None, documents),
        "heads of 128, grouped": ((16, 4, 128), None, None),
    }
    for case, (sizes, window, document_BT) in cases.items():
        heads, kv_heads, head_dim = (size // 4 for size in sizes) if task.tiny else sizes
        arrays = _drawn([(batch, length, of, head_dim) for of in (heads, kv_heads, kv_heads)])

        def ours(q_BTHh, k_BSKh, v_BSKh, document_BT, window=window):
            return attention(q_BTHh, k_BSKh, v_BSKh, window, document_BT)

        plain = partial(_plain_attention, window=window)
        given = *arrays, document_BT
        _compare(task, case, ours, plain, given, few=jax.tree.map(lambda x: x[:1], given))


def _drawn(shapes: Sequence[tuple[int, ...]]) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(key, shape, jnp.bfloat16) for key, shape in zip(keys, shapes, strict=True)]


def _plain_attention(q_BTHh, k_BSKh, v_BSKh, document_BT, window: int | None) -> jax.Array:
    mask = None if document_BT is None else (document_BT[:, :, None] == document_BT[:, None, :])[:, None]
    before = None if window is None else (window - 1, 0)
    options = {"mask": mask, "is_causal": True, "local_window_size": before, "implementation": "xla"}
    return jax.nn.dot_product_attention(q_BTHh, k_BSKh, v_BSKh, **options)


def chunked_loss(task: Task) -> None:
    """The loss over a vocabulary in chunks of rows, against all logits at once in plain XLA."""
    _on_card(task)
    rows, embed, vocab = (64, 16, 32) if task.tiny else (16384, 2048, 32000)
    x_ND, head_DV = _drawn([(rows, embed), (embed, vocab)])
    head_DV = head_DV * embed**-0.5
    target_N = jax.random.randint(jax.random.key(1), (rows,), 0, vocab)

    def ours(x_ND, head_DV, target_N):
        return cross_entropy(x_ND, head_DV, target_N[None])

    def plain(x_ND, head_DV, target_N):
        return optax.softmax_cross_entropy_with_integer_labels(logits(x_ND, head_DV), target_N).mean()

    few = x_ND[: rows // 16], head_DV, target_N[: rows // 16]
    _compare(task, f"{rows} rows, {vocab} tokens", ours, plain, (x_ND, head_DV, target_N), few)


def _compare(task: Task, case: str, ours: Callable, plain: Callable, given: tuple, few: tuple) -> None:
    """Times of both with gradients, in turns, temporary memory, and errors against float32 on what is `few`.

    Gradients are of half the square of what a function gives, by all of its arguments but the last. An error is the
    largest difference of one of these arrays over the largest value in it.
    """

    def with_gradients(function: Callable) -> Callable:
        def both(*given):
            y, back = jax.vjp(lambda *arrays: function(*arrays, given[-1]), *given[:-1])
            return y, back(y)

        return jax.jit(both)

    both = {"growlm": with_gradients(ours), "plain": with_gradients(plain)}
    in_float32 = *(x.astype(jnp.float32) for x in few[:-1]), few[-1]
    with jax.default_matmul_precision("highest"):
        lowered = [with_gradients(plain).lower(*in_float32)]
    lowered += [step.lower(*arrays) for arrays in (few, given) for step in both.values()]
    with ThreadPoolExecutor() as pool:
        exactly, *rest = pool.map(jax.stages.Lowered.compile, lowered)
    of_few, programs = (dict(zip(both, some, strict=True)) for some in (rest[:2], rest[2:]))
    exact = exactly(*in_float32)
    errors = {f"{name}_error": _error(program(*few), exact) for name, program in of_few.items()}

    def repeated(program: jax.stages.Compiled) -> train_step.Repeat:
        def repeat(times: int) -> None:
            for _ in range(times):
                last = program(*given)
            jax.block_until_ready(last)

        return repeat

    rounds, seconds = (2, 0.01) if task.tiny else (5, 0.3)
    found = {name: repeated(program) for name, program in programs.items()}
    for repeat in found.values():
        repeat(1)  # the first also loads
    times = train_step.measure(found, rounds, seconds)
    ratio = speed(times, "growlm", "plain")["ratio"]
    ms = {f"{name}_ms": 1e3 * statistics.median(of) for name, of in times.items()}
    gb = {f"{name}_gb": program.memory_analysis().temp_size_in_bytes / 1e9 for name, program in programs.items()}
    task.say(case, times_as_fast=ratio, **ms, **errors, **gb, kernels=_kernels(programs["growlm"]))


def _error(found: Any, exact: Any) -> float:
    def of(a: jax.Array, b: jax.Array) -> float:
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        return float(np.max(np.abs(a - b)) / np.max(np.abs(b)))

    return max(map(of, jax.tree.leaves(found), jax.tree.leaves(exact)))


# --- The train step ---------------------------------------------------------------------------------------------------


def _steps(task: Task, shape: str) -> None:
    """AdamW's step, Muon's in turns with it, the same on larger batches, and AdamW's with a loop over layers."""
    setting = _setting(task, shape)
    muon = OptimizerConfig(kind="muon", muon=MuonConfig(dtype=setting.dtype if setting.dtype in DTYPES else None))
    product = {"product, jax": train_step.repeated_product(setting.product_rows, setting.dtype)}
    optimizers = {"growlm": OptimizerConfig(), "growlm, muon": muon}
    _in_turns(task, setting, optimizers, product)
    # What Muon adds is the same whatever the batch: runs have hundreds of thousands of tokens in one.
    larger = dataclasses.replace(setting, batch=MICROBATCHES * setting.batch, microbatches=MICROBATCHES, rounds=2)
    _in_turns(task, larger, optimizers)
    looped = dataclasses.replace(setting, unroll=1, remat=train_step.LOOPED)
    _in_turns(task, looped, {"growlm": OptimizerConfig()})


def _in_turns(
    task: Task,
    setting: train_step.Setting,
    optimizers: dict[str, OptimizerConfig],
    beside: dict[str, train_step.Repeat] | None = None,
) -> None:
    """The steps of optimizers, each in turns with those before it, and with what is beside them."""
    found = dict(beside or {})
    for name, optimizer in optimizers.items():
        began = time.perf_counter()
        program = train_step.step_program(setting, optimizer)
        seconds, gigabytes = time.perf_counter() - began, bytes_needed(program) / 1e9
        params, tokens_BS = train_step.start(setting)
        found[name] = train_step.repeated_step(setting, params, tokens_BS, program, optimizer)
        del params
        found[name](1)
        times = train_step.measure(found, setting.rounds, setting.seconds)
        shares = {"of_product": train_step.summary(setting, name, times, None)["share_of_product"]} if beside else {}
        if name != "growlm":
            shares["of_adamw"] = speed(times, "growlm", name)["ratio"]
        task.say(
            f"{optimizer.kind}, {setting.batch} x {setting.length}",
            **_summary(setting, name, times),
            **shares,
            remat=setting.remat,
            unroll=setting.unroll,
            microbatches=setting.microbatches,
            gb=gigabytes,
            compile_s=seconds,
            kernels=_kernels(program),
        )
    found.clear()
    gc.collect()


def _against_torch(task: Task, shape: str) -> None:
    """growlm's step against compiled PyTorch's."""
    if find_spec("torch") is None:
        task.say("torch is not installed")
        return
    setting = _setting(task, shape, compare="torch")
    torch_side = train_step.load_torch()
    given = train_step.conditions(setting, torch_side)
    params, tokens_BS = train_step.start(setting)
    loss = train_step.exact_losses(setting, params, tokens_BS, torch_side)
    every_side = train_step.sides(setting, params, tokens_BS, torch_side)
    del params
    times, first = train_step.measure_sides(setting, every_side, torch_side)
    ratio = speed(times, "growlm", "torch")
    about = {name: given[name] for name in ("torch", "torch_attention", "in_turns")}
    task.say(
        f"compiled, remat {setting.remat}",
        growlm_steps_per_torch_step=ratio["ratio"],
        least=ratio["least"],
        most=ratio["most"],
        **about,
        **{f"torch_{name}": value for name, value in _summary(setting, "torch", times).items()},
        **{f"growlm_{name}": value for name, value in _summary(setting, "growlm", times).items()},
        loss=loss,
        first_step_loss=first,
    )


step_1b, step_124m = partial(_steps, shape="1.1B"), partial(_steps, shape="124M")
torch_1b, torch_124m = partial(_against_torch, shape="1.1B"), partial(_against_torch, shape="124M")


def mixture(task: Task) -> None:
    """A step of Mixtral's kind against a dense one with as many active neurons, and the ways of its products alone."""
    sizes = {"layers": 8, "heads": 16, "kv_heads": 16, "mlp": 2 * 2816}
    dense = _setting(task, "1.1B", sizes)
    sparse_model = MixtralConfig(**dataclasses.asdict(dense.model) | {"mlp": dense.model.mlp // 2})
    settings = {"dense": dense, "mixture": dataclasses.replace(dense, model=sparse_model)}
    found, programs = {}, {}
    for name, setting in settings.items():
        programs[name] = train_step.step_program(setting)
        found[name] = train_step.repeated_step(setting, *train_step.start(setting), programs[name])
        found[name](1)
    times = train_step.measure(found, dense.rounds, dense.seconds)
    for name, setting in settings.items():
        task.say(
            f"{name} step, 8 layers",
            **_summary(setting, name, times),
            gb=bytes_needed(programs[name]) / 1e9,
            kernels=_kernels(programs[name]),
        )
    task.say("both in turns", mixture_steps_per_dense_step=speed(times, "mixture", "dense")["ratio"])
    found.clear()
    gc.collect()
    rows, embed, mlp = (32, 8, 12) if task.tiny else (16384, 2048, 2816)
    about = {"rows": rows, "embed": embed, "mlp": mlp, "dtype": "bfloat16", "rounds": dense.rounds, "cpu_time": False}
    for way in ("ragged", "blocks", "all"):
        result = experts.measure(8, 2, argparse.Namespace(ways=[way], **about))
        task.say(f"products, {way}", share_of_dense=result["share"][way], ms=1e3 * result["seconds"][way])


# --- Growth, data, text -----------------------------------------------------------------------------------------------


def growths(task: Task) -> None:
    """Growing parameters against copying them."""
    _on_card(task)
    tiny = {"layers": 4, "embed": 8, "heads": 2, "kv_heads": 2, "head_dim": 4, "mlp": 8, "vocab": 16}
    target = ModelConfig(**(tiny if task.tiny else growth.SIZES))
    for name in growth.CASES:
        found = growth.measure(name, growth.source_of(name, target), target, "float32", rounds=3 if task.tiny else 20)
        found["copies"], found["ms"] = found.pop("ratio"), 1e3 * found.pop("seconds")
        task.say(
            found.pop("case"),
            **{key: found[key] for key in ("copies", "least", "most", "ms", "gigabytes", "temporary")},
        )


def pause(task: Task) -> None:
    """A run that grows from 6 layers to 12 at the 124M shape, on the text that comes with Python."""
    _on_card(task)
    if task.tiny:
        config = growth_pause.settings(2, 2, 8, "direct")
    else:
        large = {"layers": 12, "embed": 768, "heads": 12, "kv_heads": 12, "head_dim": 64, "mlp": 2048, "vocab": 256}
        models = large | {"layers": 6}, large
        config = growth_pause.settings(600, 32, 1024, "direct", models, dtype="bfloat16", remat="none")
    found = growth_pause.measure(config)
    task.say(
        "6 to 12 layers",
        pause_without_growth_in_steps=found["steps"],
        step_ms=1e3 * found["step"],
        growth_ms=1e3 * found["growth"],
        pause_ms=1e3 * found["pause"],
        data_wait=found["data_wait"],
    )


def data_rate(task: Task) -> None:
    """Batches from shards of random tokens, on one core."""
    size, count = (2**12, 2) if task.tiny else (data.SHARD, 100)
    batch, length = (4, 32) if task.tiny else (64, 2048)
    with tempfile.TemporaryDirectory() as folder, one_core():
        paths = data.write_shards(Path(folder), size)
        found = data.measure(paths, "<u2", batch, length, rounds=3, count=count)
    task.say(f"{found.pop('case')} of {batch} x {length}", **found)


def generation(task: Task) -> None:
    """Greedy text after random prompts, by what `growlm sample` runs; the second time, when it is compiled."""
    prompt, new = (4, 8) if task.tiny else (256, 256)
    for shape in ("124M", "1.1B"):
        setting = _setting(task, shape)
        params = init(setting.model, jax.random.key(0))
        for rows in (1, 64):
            prompt_BT = np.random.default_rng(0).integers(setting.model.vocab, size=(rows, prompt))
            write = writing.by_growlm(setting.model, params, prompt_BT, new, setting.dtype)
            write()
            began = time.perf_counter()
            written = write().size
            seconds = time.perf_counter() - began
            task.say(
                f"{shape}, {rows} texts",
                tokens_per_second=written / seconds,
                ms_per_token=1e3 * seconds / new,
                dtype=setting.dtype,
            )
        del params


def ladder(task: Task) -> None:
    """A rung of the ladder, trained until the time is up; it can be gone on with."""
    _on_card(task)
    folder, rung = task.output / "ladder", "tiny" if task.tiny else RUNG
    command = [sys.executable, "-m", "growlm", "sweep", f"--workdir={folder}"]
    sweep = subprocess.Popen([*command, f"--config={ROOT / 'experiments' / 'ladder.py'}:{rung}"], stdout=sys.stderr)
    try:
        code = sweep.wait(max(task.until - time.monotonic() - 2 * GRACE, 1))
    except subprocess.TimeoutExpired:
        sweep.send_signal(signal.SIGTERM)  # it saves, and says so by its exit code
        code = sweep.wait()
    stages = [read_records(path) for path in sorted(folder.glob("stages/*/metrics.jsonl"))]
    trained = [[one for one in records if one.get("loss") is not None] for records in stages]
    for records in filter(None, trained):
        last = {name: records[-1].get(name) for name in ("step", "tokens", "loss", "tokens_per_second", "mfu")}
        case = f"stage {records[-1]['stage']} of a run"
        task.say(case, **{name: value for name, value in last.items() if value is not None})
    if code not in (0, STOPPED):
        raise RuntimeError(f"growlm sweep ended with {code}, see {task.part}.log")
    task.say(f"rung {rung}", trained="whole" if code == 0 else "in part", stages=len(stages))
