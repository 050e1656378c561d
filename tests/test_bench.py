"""`make bench`: what got slower by more than its noise is reported, noise is not; every quick form gives ratios."""

import importlib
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from growlm.errors import InputError

BENCHMARKS = Path(__file__).resolve().parents[1] / "experiments" / "benchmarks"
MODEL = ("--layers=4", "--embed=16", "--heads=2", "--kv_heads=2", "--head_dim=8", "--mlp=24")
HARNESS = ("lm_eval", "torch", "transformers", "accelerate")

# Arguments instead of those of the quick form, the ratios that come of them, and what must be installed.
TINY = {
    "growth": ((*MODEL, "--vocab=32", "--rounds=2", "--case=stack", "--cpu_time"), {"stack"}, ()),
    "train_step": (
        (*MODEL, "--vocab=32", "--batch=2", "--length=8", "--rounds=2", "--seconds=0.01", "--product_rows=64"),
        {"demo, product, jax"},
        (),
    ),
    "data": (("--batch=4", "--length=16", "--rounds=2", "--count=2", "--cpu_time"), {"batches"}, ()),
    "prepare": (("--megabytes=2", "--workers=1", "--rounds=1", "--cpu_time"), {"text"}, ("tokenizers",)),
    "generation": (
        (*MODEL, "--vocab=64", "--prompt=8", "--new=20", "--batch=2", "--rounds=1"),
        {"batch 2"},
        ("torch", "transformers"),
    ),
    "evaluation": ((*MODEL, "--vocab=512", "--limit=1", "--batch=2", "--rounds=1"), {"paper"}, HARNESS),
    "experts": (
        ("--ways=blocks", "--rows=64", "--embed=16", "--mlp=16", "--rounds=1", "--cpu_time"),
        {f"{case}, blocks" for case in ("4, 2", "8, 2", "16, 2", "32, 4")},
        (),
    ),
    "compile_time": (
        ("--layers=2", "--layers=4", "--embed=16", "--heads=4", "--mlp=24", "--rounds=1", "--case=growth, direct"),
        {"growth, direct"},
        (),
    ),
}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a process on one core")


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("bench")


def ratio(value, least, most):
    return {"ratio": value, "least": least, "most": most}


STEADY = ratio(1.0, 0.9, 1.1)


@pytest.mark.parametrize(
    ("before", "now", "more_is_better", "change"),
    [
        (STEADY, ratio(0.8, 0.7, 0.95), True, -0.2),
        (STEADY, ratio(1.2, 1.15, 1.3), True, 0.2),
        (STEADY, ratio(1.25, 1.2, 1.3), False, -0.2),  # a growth of 1.25 copies takes longer than one of 1
        (STEADY, ratio(0.8, 0.75, 0.85), False, 0.25),
        (STEADY, ratio(0.92, 0.85, 0.95), True, None),  # within the record's range
        (STEADY, ratio(0.8, 0.7, 1.0), True, None),  # so wide that the record's median is within it
        (ratio(1.0, 0.999, 1.001), ratio(0.96, 0.959, 0.961), True, None),  # narrow ranges, by chance
        (ratio(1.0, 0.999, 1.001), ratio(0.94, 0.939, 0.941), True, -0.06),
    ],
)
def test_what_changed_by_more_than_its_noise_is_told_from_what_did_not(bench, before, now, more_is_better, change):
    found = bench.change(before, now, more_is_better)
    assert found == (None if change is None else pytest.approx(change))


@pytest.fixture
def made(bench, monkeypatch, tmp_path):
    """Runs it on ratios that are made up, and gives its exit code; the record is a file of the test's."""

    def run(ratios, *arguments):
        def measured(name):
            if isinstance(ratios[name], Exception):
                raise ratios[name]
            return {"ratios": ratios[name]}

        monkeypatch.setattr(bench, "measured", measured)
        monkeypatch.setattr(bench, "busy_cores", lambda: 0.0)
        only = [f"--only={name}" for name in ratios]
        return bench.main([*only, f"--record={tmp_path / 'record.json'}", *arguments])

    return run


def test_a_slowdown_is_reported_and_noise_is_not(made, capsys):
    first = {"generation": {"batch 1": STEADY, "batch 8": STEADY}, "growth": {"stack": STEADY}}
    assert made(first, "--write") == 0
    assert "growth, stack" in (said := capsys.readouterr().out) and "SLOWER" not in said
    assert made(first) == 0
    assert capsys.readouterr().out.count("as before") == 3
    slower = {"generation": {"batch 1": STEADY, "batch 8": ratio(0.5, 0.4, 0.6)}, "growth": {"stack": STEADY}}
    assert made(slower) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "SLOWER" in line]
    assert lines == [
        "generation, batch 8" + 18 * " " + "0.50 (0.40 to 0.60)      SLOWER by 50%, was 1.00 (0.90 to 1.10)"
    ]
    assert made({"growth": {"stack": ratio(0.5, 0.4, 0.6)}}) == 0
    assert "FASTER by 100%" in capsys.readouterr().out


def test_the_record_is_renewed_where_that_is_asked_for_and_keeps_the_rest(made, tmp_path, capsys):
    made({"generation": {"batch 1": STEADY}, "growth": {"stack": STEADY}}, "--write")
    slow = {"growth": {"stack": ratio(2.0, 1.9, 2.1)}}
    assert made(slow) == 1 and made(slow, "--write") == 1 and made(slow) == 0
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["growth"]["ratios"] == slow["growth"] and record["generation"]["ratios"] == {"batch 1": STEADY}
    assert {"arguments", "commit", "hardware", "versions", "date"} <= set(record["growth"])
    record["growth"] |= {"hardware": "another machine", "arguments": ["--layers=1"]}
    (tmp_path / "record.json").write_text(json.dumps(record))
    capsys.readouterr()
    assert made({"growth": {"stack": ratio(9.0, 8.9, 9.1)}}) == 0  # measured otherwise then
    said = capsys.readouterr().out
    assert "new" in said and "the record has hardware another machine, now " in said


def test_what_cannot_be_measured_is_said_and_what_fails_is_no_success(made, capsys):
    assert made({"generation": InputError("torch is not installed"), "growth": {"stack": STEADY}}, "--write") == 0
    assert "not measured: torch is not installed" in capsys.readouterr().out
    assert made({"generation": RuntimeError("these are not one model")}) == 1
    assert "not measured: these are not one model" in capsys.readouterr().out
    assert made({"generation": {}}, "--record=.") == 2


@pytest.mark.parametrize("name", ["growth", *(pytest.param(n, marks=pytest.mark.slow) for n in TINY if n != "growth")])
def test_a_benchmark_gives_its_ratios_on_one_core(bench, monkeypatch, tmp_path, capsys, name):
    arguments, cases, needed = TINY[name]
    if missing := [each for each in needed if find_spec(each) is None]:
        pytest.skip(f"{missing[0]} is not installed")
    monkeypatch.setitem(bench.BENCHMARKS, name, bench.BENCHMARKS[name]._replace(arguments=arguments))
    cores, file = os.sched_getaffinity(0), tmp_path / "record.json"
    assert bench.main([f"--only={name}", f"--record={file}", "--write"]) == 0, capsys.readouterr().out
    assert os.sched_getaffinity(0) == cores
    printed = json.loads(capsys.readouterr().out.splitlines()[0])
    assert printed["benchmark"] == name and printed["ratios"] == json.loads(file.read_text())[name]["ratios"]
    assert set(printed["ratios"]) == cases
    assert all(0 < each["least"] <= each["ratio"] <= each["most"] for each in printed["ratios"].values())


def test_every_benchmark_has_a_tiny_form_in_this_test_and_a_file(bench):
    assert set(bench.BENCHMARKS) == set(TINY)
    assert all((BENCHMARKS / f"{name}.py").is_file() for name in TINY)
