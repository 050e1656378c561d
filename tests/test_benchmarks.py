"""The benchmark prints what it measures; the PyTorch model it compares with computes what growlm's does."""

import contextlib
import importlib
import io
import json
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest
from trees import exact_products, noisy, random_tokens

from growlm import ModelConfig
from growlm.laws.compute import GIB, Chip
from growlm.models import next_token_loss
from growlm.training.optimizer import OptimizerConfig, make_optimizer
from growlm.training.step import StepSpec, train_step

BENCHMARKS = Path(__file__).resolve().parents[1] / "experiments" / "benchmarks"
TINY = ["--layers=1", "--embed=16", "--heads=2", "--kv_heads=1", "--mlp=24", "--vocab=32", "--batch=2", "--length=8"]
SHORT = ["--rounds=3", "--seconds=0.01", "--product_rows=64"]
GROUPED = ModelConfig(layers=2, embed=24, heads=6, kv_heads=2, head_dim=8, mlp=40, vocab=31)

needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")


@pytest.fixture(scope="module")
def scripts():
    """Imports a file of experiments/benchmarks, as a script there would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        patch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the benchmark sets these: not beyond this file
        patch.setenv("XLA_CLIENT_MEM_FRACTION", "0.9")
        yield importlib.import_module


@pytest.fixture(scope="module")
def benchmark(scripts):
    return scripts("train_step")


@pytest.fixture
def torch_reference(scripts):
    return scripts("torch_reference")


def output(script, *arguments):
    """What it prints: the lines of text, and the record."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), exact_products():
        assert script.main(arguments) == 0
    *text, record = printed.getvalue().splitlines()
    return text, json.loads(record)


def run(benchmark, *arguments):
    return output(benchmark, *TINY, *SHORT, "--remat=full", *arguments)


@pytest.fixture(scope="module")
def alone(benchmark):
    return run(benchmark)


def test_benchmark_prints_a_table_and_a_record(alone):
    text, record = alone
    header = next(i for i, line in enumerate(text) if "tokens/s" in line)
    growlm, product = text[header + 1 : header + 3]
    assert growlm.startswith("growlm ") and product.startswith("product, jax ")
    assert len(growlm) == len(product) == len(text[header])
    assert f"{record['results']['growlm']['tokens_per_second']:,.0f}" in growlm
    assert record["torch"] is None and list(record["ratios"]) == ["demo, product, jax"]


def test_benchmark_counts_the_flops_that_the_model_needs_and_no_others(alone):
    _, record = alone
    result = record["results"]["growlm"]
    # queries and output, keys and values (one head of two), the three of the MLP, the head
    products = 2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24 + 16 * 32
    keys = (8 + 1) / 2  # that a position sees on average; scores and weighted sum, 2 heads of 8
    per_token = 6 * products + 3 * (2 * 2 * 2 * 8) * keys
    assert result["flops_per_second"] == pytest.approx(per_token * result["tokens_per_second"])
    assert result["milliseconds"] == pytest.approx(1e3 * np.median(record["seconds_by_round"]["growlm"]))
    assert 2 * 8 / result["tokens_per_second"] == pytest.approx(1e-3 * result["milliseconds"])
    assert record["results"]["product, jax"]["share_of_product"] == pytest.approx(1)


def test_mfu_is_the_share_of_the_chips_peak_where_that_is_known(benchmark, alone, monkeypatch):
    text, record = alone
    header = next(i for i, line in enumerate(text) if "tokens/s" in line)
    assert record["results"]["growlm"]["mfu"] is None and text[header + 1].endswith(" -")
    monkeypatch.setattr(benchmark, "peak_flops", {jax.devices()[0].device_kind: 1e10}.get)
    text, record = run(benchmark)
    for name in ("growlm", "product, jax"):
        result = record["results"][name]
        assert result["mfu"] == pytest.approx(result["flops_per_second"] / 1e10)
        assert f"{result['mfu']:.1%}" in "".join(text)


@pytest.mark.slow
def test_several_shapes_are_measured_one_after_the_other(benchmark, capsys):
    shared = ["--layers=1", "--embed=16", "--mlp=24", "--vocab=32", "--length=8"]
    with exact_products():
        assert benchmark.main(["--shape=embed128,demo", *shared, *SHORT]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    found = [(record["shape"], record["batch"], record["model"]["heads"]) for record in records]
    assert found == [("embed128", 16, 4), ("demo", 8, 2)] and all(record["length"] == 8 for record in records)


def test_defaults_are_those_of_the_shape_and_the_backend(benchmark, monkeypatch):
    demo, large = benchmark.read_settings(["--shape=demo,1.1B"])
    assert (demo.dtype, demo.remat, demo.product_rows) == ("float32", "dots_and_attention", 2048)
    assert (large.dtype, large.remat, large.batch, large.length) == ("float32", "none", 8, 2048)
    assert (demo.unroll, large.unroll) == (1, 24)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    (large,) = benchmark.read_settings(["--shape=1.1B", "--batch=4"])
    assert (large.dtype, large.batch, large.product_rows) == ("bfloat16", 4, 8192)
    (given,) = benchmark.read_settings(["--shape=124M", "--dtype=float32", "--remat=full", "--product_rows=64"])
    assert (given.dtype, given.remat, given.product_rows) == ("float32", "full", 64)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--shape=125M"], ("125M", "124M", "demo")),
        (["--shape=demo,"], ("''", "124M", "demo")),
        (["--layers=0"], ("--layers", "'0'")),
        (["--heads=3"], ("64", "3")),
        (["--kv_heads=3"], ("2", "3")),
        (["--dtype=float16"], ("float16", "bfloat16")),
        (["--remat=some"], ("some", "full")),
        (["--rounds=many"], ("--rounds", "many")),
        (["--seconds=nan"], ("nan",)),
        (["--seconds=0"], ("--seconds", "'0'")),
        (["--seconds=0m"], ("--seconds", "'0m'")),
        (["--compare=keras"], ("keras", "torch")),
        (["--steps=3"], ("--steps=3",)),
    ],
)
def test_bad_arguments_are_one_line_that_names_them(benchmark, capsys, arguments, named):
    assert benchmark.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1
    assert all(name in printed.err for name in named), printed.err


def test_comparison_without_torch_says_so(benchmark, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "find_spec", lambda name: None)
    assert benchmark.main([*TINY, *SHORT, "--compare=torch"]) == 2
    assert capsys.readouterr().err == "train_step: --compare: torch is not installed\n"


@needs_torch
@pytest.mark.slow
@pytest.mark.parametrize(("compare", "named"), [("torch", "compiled PyTorch"), ("torch_eager", "eager PyTorch")])
def test_comparison_shows_one_loss_and_the_ratio_of_neighbours(benchmark, compare, named):
    text, record = run(benchmark, f"--compare={compare}")
    assert record["loss"][compare] == pytest.approx(record["loss"]["growlm"], abs=1e-5)
    assert record["first_step_loss"][compare] == pytest.approx(record["first_step_loss"]["growlm"], abs=1e-5)
    seconds, ratio = record["seconds_by_round"], record["ratios"][f"demo, {compare}"]
    rounds = [t / g for t, g in zip(seconds[compare], seconds["growlm"], strict=True)]
    assert ratio == {"ratio": np.median(rounds), "least": min(rounds), "most": max(rounds)} and len(rounds) == 3
    said = f"{ratio['ratio']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f}) steps in the time of one of {named}"
    assert said in "".join(text)
    assert list(record["results"]) == ["growlm", compare, "product, jax", "product, torch"]


@needs_torch
def test_on_a_gpu_one_side_has_given_its_memory_back_before_the_next_begins(benchmark, monkeypatch):
    events = []

    def side(name):
        def make():
            events.append(f"makes {name}")
            return {name: lambda times: events.append(f"steps {name}") or 1.0}

        return make

    class TorchSide:
        release = staticmethod(lambda: events.append("releases"))

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    (setting,) = benchmark.read_settings(["--rounds=2", "--seconds=1e-9"])
    times, losses = benchmark.measure_sides(setting, [side("torch"), side("growlm")], TorchSide)
    assert events.index("releases") < events.index("makes growlm") and losses == {"torch": 1.0, "growlm": 1.0}
    assert {name: len(seconds) for name, seconds in times.items()} == {"torch": 2, "growlm": 2}


@pytest.mark.parametrize(
    ("shape", "gigabytes", "together"), [("1.1B", 141, True), ("1.1B", 80, False), ("124M", 80, True)]
)
def test_both_take_turns_on_a_gpu_that_holds_both(benchmark, monkeypatch, shape, gigabytes, together):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(benchmark, "chip_of", lambda kind: Chip("a card", 1e15, gigabytes * GIB, (kind,)))
    (setting,) = benchmark.read_settings([f"--shape={shape}"])
    assert benchmark.in_turns(setting) == together


@needs_torch
def test_the_kernel_of_torchs_attention_is_named_and_no_other_runs(torch_reference, monkeypatch):
    torch, asked = sys.modules["torch"], []
    monkeypatch.setattr(torch_reference, "sdpa_kernel", lambda kernel: asked.append(kernel) or contextlib.nullcontext())
    kernel = torch_reference.attention_kernel(GROUPED, 2, 12, "float32")
    assert kernel.name in ("FLASH_ATTENTION", "MATH")  # those of CPUs
    decoder = torch_reference.decoder_of(GROUPED, noisy(GROUPED))
    loss = torch_reference.loss_function("float32")
    torch_reference.repeated_step(loss, decoder, random_tokens(GROUPED, 2, 12), OptimizerConfig(), 1e-3, kernel)(1)
    assert asked == [kernel] and isinstance(kernel, torch.nn.attention.SDPBackend)


@needs_torch
def test_comparison_of_two_models_is_refused(benchmark, monkeypatch, torch_reference):
    monkeypatch.setattr(torch_reference, "loss_of", lambda *_: 2.0)
    with pytest.raises(RuntimeError, match="not one model"):
        benchmark.main([*TINY, *SHORT, "--compare=torch"])


@pytest.mark.slow
@needs_torch
def test_without_a_compiler_the_comparison_names_what_needs_none(benchmark, capsys, torch_reference):
    torch = sys.modules["torch"]
    missing = {"cpp.cxx": (None, "no-such-compiler"), "force_disable_caches": True}
    with torch._inductor.config.patch(missing):
        assert benchmark.main([*TINY, *SHORT, "--compare=torch"]) == 2
    *_, error = capsys.readouterr().err.splitlines()  # before it PyTorch may have warned
    assert "no-such-compiler" in error and "--compare=torch_eager" in error


@needs_torch
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_torch_reference_has_growlms_loss_and_gradients(torch_reference, compiled):
    torch = sys.modules["torch"]
    params, tokens = noisy(GROUPED), random_tokens(GROUPED, 3, 12)
    with exact_products():
        loss, gradients = jax.jit(jax.value_and_grad(partial(next_token_loss, GROUPED)))(params, tokens=tokens)

    decoder = torch_reference.decoder_of(GROUPED, params)
    loss_function = torch_reference.loss_function("float32", compiled)
    theirs = loss_function(decoder, torch.tensor(np.asarray(tokens), dtype=torch.int64))
    theirs.backward()
    assert theirs.item() == pytest.approx(float(loss), abs=1e-5)
    ours = torch_reference.torch_parameters(GROUPED, gradients)
    found = {name: parameter.grad for name, parameter in decoder.named_parameters()}
    assert found.keys() == ours.keys()
    for name, gradient in found.items():
        np.testing.assert_allclose(gradient, ours[name], rtol=1e-4, atol=1e-6, err_msg=name)


@needs_torch
def test_torch_reference_takes_growlms_steps(torch_reference):
    """Clip, moments, decay and learning rate: after three steps all parameters agree."""
    torch = sys.modules["torch"]
    config, rate = OptimizerConfig(clip=0.1, eps=1e-3), 1e-2  # an eps that is not lost beside the gradients' error
    params, tokens = noisy(GROUPED), random_tokens(GROUPED, 3, 12)
    decoder = torch_reference.decoder_of(GROUPED, params)
    optimizer, loss = torch_reference.make_optimizer(decoder, config, rate), torch_reference.loss_function("float32")
    batch = torch.tensor(np.asarray(tokens), dtype=torch.int64)
    arrays = (params, make_optimizer(config, GROUPED).init(params), None)
    with exact_products():
        step = jax.jit(partial(train_step, StepSpec(GROUPED, config)))
        for _ in range(3):
            arrays, _ = step(arrays, tokens, rate, {})
            torch_reference.train_step(loss, decoder, optimizer, config.clip, batch)
    expected = torch_reference.torch_parameters(GROUPED, arrays[0])
    for name, parameter in decoder.state_dict().items():
        np.testing.assert_allclose(parameter, expected[name], rtol=1e-4, atol=1e-6, err_msg=name)


FROZEN = ["--layers=4", "--embed=16", "--heads=2", "--mlp=24", "--vocab=32", "--batch=2", "--length=8"]


def test_frozen_step_prints_both_steps_and_the_time_left(scripts):
    text, record = output(scripts("frozen_step"), *FROZEN, "--rounds=3", "--seconds=0.01")
    header = next(i for i, line in enumerate(text) if "tokens/s" in line)
    everything, frozen = text[header + 1 : header + 3]
    # four products of attention, three of the MLP, two gains; embedding and head; the last gain
    layer = 4 * 16 * 16 + 3 * 16 * 24 + 2 * 16
    assert everything.startswith("everything trains ") and everything.endswith(f" {4 * layer + 2 * 512 + 16:,}")
    assert frozen.startswith("3 of 4 layers frozen ") and frozen.endswith(f" {layer + 512 + 16:,}")
    assert len(everything) == len(frozen) == len(text[header])
    left, (before, after) = record["time_left"], record["seconds_by_round"].values()
    assert left["rounds"] == [a / b for a, b in zip(after, before, strict=True)] and len(left["rounds"]) == 3
    assert f"time left: {left['median']:.2f}" in "".join(text) and left["median"] == np.median(left["rounds"])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--frozen=5"], ("5", "1 to 4")),
        (["--layers=0"], ("--layers", "'0'")),
        (["--heads=3"], ("16", "3")),
        (["--seconds=nan"], ("nan",)),
        (["--step=3"], ("--step=3",)),
    ],
)
def test_bad_arguments_of_the_frozen_step_are_one_line_that_names_them(scripts, capsys, arguments, named):
    assert scripts("frozen_step").main([*FROZEN, *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1
    assert all(name in printed.err for name in named), printed.err


SMALL = ["--layers=4", "--embed=8", "--heads=2", "--kv_heads=2", "--head_dim=4", "--mlp=8", "--vocab=16"]


def test_growth_prints_a_row_and_a_result_for_each_case(scripts):
    text, record = output(scripts("growth"), *SMALL, "--rounds=3", "--case=stack", "--case=direct in width")
    assert [line[:16].rstrip() for line in text[1:]] == ["stack", "direct in width"]
    assert [result["case"] for result in record["cases"]] == ["stack", "direct in width"]
    assert all(0 < result["least"] <= result["ratio"] <= result["most"] for result in record["cases"])
    weights = 4 * (4 * 8 * 8 + 3 * 8 * 8 + 2 * 8) + 2 * 16 * 8 + 8
    assert record["cases"][0]["gigabytes"] == pytest.approx(2 * weights / 1e9)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--layers=0"], ("--layers", "'0'")),
        (["--layers=2"], ("2", "4", "stack")),
        (["--kv_heads=3"], ("2", "3")),
        (["--case=squash"], ("squash", "interleave")),
        (["--dtype=int8"], ("int8", "bfloat16")),
    ],
)
def test_bad_arguments_of_growth_are_one_line_that_names_them(scripts, capsys, arguments, named):
    assert scripts("growth").main([*SMALL, *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1
    assert all(name in printed.err for name in named), printed.err


def test_memory_says_what_a_step_must_hold_and_what_it_does(scripts):
    sizes = [
        "--layers=1",
        "--embed=16",
        "--heads=2",
        "--kv_heads=2",
        "--mlp=24",
        "--vocab=32",
        "--batch=2",
        "--length=8",
    ]
    text, record = output(scripts("memory"), "--shape=demo", "--optimizer=adamw,adamw_bfloat16", *sizes)
    full, short = record["rows"]
    weights = 4 * 16 * 16 + 3 * 16 * 24 + 2 * 16 + 2 * 32 * 16 + 16
    assert full["gradients"] == short["gradients"] == 4 * weights and full["state"] - short["state"] == 2 * weights
    assert full["least"] == full["state"] + full["gradients"] + full["kept"] and full["kept"] == short["kept"]
    assert full["ratio"] == round(full["peak"] / full["least"], 3) and text[1].endswith(f" {full['ratio']}")


@pytest.mark.parametrize(
    ("arguments", "named"), [(["--optimizer=sgd"], ("'sgd'", "muon")), (["--steps=3"], ("--steps=3",))]
)
def test_bad_arguments_of_memory_are_one_line_that_names_them(scripts, capsys, arguments, named):
    assert scripts("memory").main(arguments) == 2
    printed = capsys.readouterr().err
    assert len(printed.splitlines()) == 1 and all(name in printed for name in named)


@pytest.mark.slow
def test_start_prints_the_time_of_every_process(scripts, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS.parents[1]))
    text, record = output(scripts("start"), "--rounds=1")
    names = ["JAX and Flax", "--help", "grow --list, first", "grow --list", "one step, cold", "one step, cached"]
    assert [line[:18].rstrip() for line in text] == names == list(record["least"])
    assert record["rounds"] == [record["least"]] and all(seconds > 0 for seconds in record["least"].values())


def test_streaming_prints_speed_and_memory_of_a_process_that_grows_a_folder(scripts, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS.parents[1]))
    sizes = ["--layers=4", "--embed=32", "--heads=4", "--kv_heads=2", "--head_dim=8", "--mlp=48", "--vocab=64"]
    arguments = ["--rounds=1", "--case=direct in width", f"--folder={tmp_path}"]
    text, record = output(scripts("streaming"), *sizes, *arguments)
    (row,) = record["rows"]
    weights = 2 * (2 * 64 * 32 + 32 + 4 * (2 * 32 + 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48))  # bytes in bfloat16
    assert weights < row["bytes"] < weights + 60_000  # with config.json, the reports and the card
    assert row["seconds"] > 0 and row["range"] == [row["of_copy"]] * 2
    assert 5e7 < row["memory"] < 2e9 and row["allowed"] == 3 * 2 * 64 * 32 + 500 * 10**6
    assert text[0].startswith("direct in width ") and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_experts_prints_one_result_by_all_ways_and_their_share_of_a_dense_models_speed(scripts):
    text, record = output(scripts("experts"), "--rows=32", "--embed=8", "--mlp=12", "--rounds=1")
    assert len(text) == 5 and [row["experts"] for row in record["cases"]] == [4, 8, 16, 32]
    for row in record["cases"]:
        dense = row["seconds"].pop("dense")
        assert row["apart"] < 1e-5 and row["seconds"].keys() == row["share"].keys()
        # One round: the median is of one ratio.
        assert all(abs(row["share"][way] / (dense / time) - 1) < 1e-9 for way, time in row["seconds"].items())
