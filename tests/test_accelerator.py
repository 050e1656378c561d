"""The benchmark of a card: parts are processes of their own, and what one does costs the others nothing."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "experiments" / "benchmarks"
SCRIPT = BENCHMARKS / "accelerator.py"

OWN = """\
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import accelerator


def works(task):
    task.say("a case", rate=1234.5, share=0.25, kernels={"gemm": 2})


def fails(task):
    raise RuntimeError("the card must be larger, got a small one\\nand more of that")


def hangs(task):
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (task.output / "helper").write_text(str(helper.pid))
    time.sleep(600)


def dies(task):
    os.kill(os.getpid(), signal.SIGKILL)


names = {"hangs": 3, "fails": 60, "dies": 60, "works": 60}
accelerator.PARTS = {name: accelerator.Part(f"own:{name}", seconds) for name, seconds in names.items()}
accelerator.COMMAND = [sys.executable, __file__]
accelerator.LEAST, accelerator.GRACE = 1, 1
if __name__ == "__main__":
    sys.exit(accelerator.main())
"""


def environment(*more):
    paths = [*map(str, more), str(BENCHMARKS), str(BENCHMARKS.parents[1]), os.environ.get("PYTHONPATH")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "JAX_PLATFORMS": "cpu"}


def results(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


@pytest.fixture
def own(tmp_path):
    """The command over parts that do as they say."""
    (tmp_path / "own.py").write_text(OWN)
    return [sys.executable, str(tmp_path / "own.py"), f"--output={tmp_path / 'out'}"], environment(tmp_path)


def gone(pid):
    """Whether a process has ended, soon: another may have to collect it."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_parts_that_hang_fail_or_die_cost_the_others_nothing(own, tmp_path):
    command, env = own
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and not done.stderr
    ended = {record["part"]: record["ended"] for record in results(tmp_path / "out") if "ended" in record}
    assert ended == {
        "hangs": "cut at its limit of 3 s",
        "fails": "failed: RuntimeError: the card must be larger, got a small one",
        "dies": "failed: exit code -9, see dies.log",
        "works": "done",
    }
    (said,) = [record for record in results(tmp_path / "out") if "case" in record]
    assert (said["part"], said["case"], said["rate"], said["kernels"]) == ("works", "a case", 1234.5, {"gemm": 2})
    assert said["hardware"].startswith("1 x cpu") and not said["tiny"]
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["hangs", "fails", "dies", "works", "results:"]
    assert lines[3].split() == ["works", "a", "case", "rate", "1,234,", "share", "0.25"]
    assert "small one\nand more" in (tmp_path / "out" / "fails.log").read_text()  # the trace is in the log
    assert gone((tmp_path / "out" / "helper").read_text())


def test_a_signal_to_end_ends_the_part_that_runs(own, tmp_path):
    command, env = own
    running = subprocess.Popen([*command, "--parts=hangs"], env=env)
    helper = tmp_path / "out" / "helper"
    while not (helper.exists() and helper.read_text()):
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    assert running.wait(30) == 128 + signal.SIGTERM
    assert gone(helper.read_text())


def test_what_the_budget_does_not_hold_is_not_begun(own, tmp_path):
    command, env = own
    done = subprocess.run([*command, "--budget=1.5s", "--parts=works,fails"], env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.count("not begun: of the budget of 2 s too little is left") == 2


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_CLIENT_MEM_FRACTION"):
        monkeypatch.setenv(name, "")  # the benchmark sets these: not beyond a test
    return importlib.import_module


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], ("--output",)),
        (["--output=out", "--parts=los"], ("'los'", "'loss'", "torch-1.1B")),
        (["--output=out", "--here=los"], ("'los'", "'loss'")),
        (["--output=out", "--budget=8h"], ("8h", "1.5m")),
        ([f"--output={__file__}"], ("test_accelerator.py", "must be a folder")),
    ],
)
def test_bad_arguments_are_one_line_that_names_them(scripts, capsys, arguments, named):
    assert scripts("accelerator").main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1
    assert all(name in printed.err for name in named), printed.err


class Said(list):
    """A task that keeps what is said."""

    tiny = True

    def say(self, case, **values):
        self.append((case, values))


def test_without_torch_its_part_says_so(scripts, monkeypatch):
    parts, task = scripts("accelerator_parts"), Said()
    monkeypatch.setattr(parts, "find_spec", lambda name: None)
    parts.torch_1b(task)
    assert task == [("torch is not installed", {})]


def test_on_a_cpu_only_tiny_shapes_are_tried(scripts):
    parts, task = scripts("accelerator_parts"), Said()
    task.tiny = False
    with pytest.raises(scripts("growlm.errors").InputError, match="allowed on a CPU is --tiny"):
        parts.step_1b(task)
    assert task == []


def test_kernels_are_counted_by_their_names(scripts):
    class Program:
        def as_text(self):
            return """
  %a = (bf16[8], u8[4]) custom-call(%x), custom_call_target="__cudnn$fmhaSoftmax", backend_config={"algorithm":{}}
  %b = bf16[8] custom-call(%x, %y), custom_call_target="__cublas$lt$matmul"
  %c = bf16[8] custom-call(%x, %y), custom_call_target="__cublas$lt$matmul"
  %d = bf16[8] fusion(%x), kind=kCustom, backend_config={"fusion_backend_config":{"kind":"__triton_gemm"}}
  %e = bf16[8] fusion(%x), kind=kLoop, backend_config={"kind":"loop"}
"""

    found = scripts("accelerator_parts")._kernels(Program())
    assert found == {"__cudnn$fmhaSoftmax": 1, "__cublas$lt$matmul": 2, "__triton_gemm": 1}


@pytest.mark.parametrize("part", [pytest.param("attention", marks=pytest.mark.slow), "loss"])
def test_values_are_those_of_plain_xla(scripts, part):
    parts, task = scripts("accelerator_parts"), Said()
    {"attention": parts.attention_kernels, "loss": parts.chunked_loss}[part](task)
    assert len(task) == (4 if part == "attention" else 1)
    for _, values in task:
        assert 0 < values["growlm_error"] < 0.02 and 0 < values["plain_error"] < 0.02  # bfloat16 has 8 bits
        assert values["times_as_fast"] > 0


@pytest.mark.slow
def test_all_parts_end_with_results_at_tiny_shapes(tmp_path):
    command = [sys.executable, str(SCRIPT), "--tiny", f"--output={tmp_path / 'out'}", "--budget=40m"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    found = results(tmp_path / "out")
    ended = {record["part"]: record["ended"] for record in found if "ended" in record}
    parts = found[0]["parts"]
    assert ended == dict.fromkeys(parts, "done"), done.stdout
    assert done.returncode == 0
    by_part = {part: [record for record in found if record.get("part") == part and "case" in record] for part in parts}
    assert all(by_part.values())
    numbers = [value for rows in by_part.values() for row in rows for value in row.values() if isinstance(value, float)]
    assert len(numbers) > 100 and all(value >= 0 for value in numbers)
    cases = [(row["case"], row["remat"], row["unroll"]) for row in by_part["step-1.1B"]]
    written_out = [(f"{kind}, {batch} x 16", "none", 24) for batch in (2, 16) for kind in ("adamw", "muon")]
    assert cases == [*written_out, ("adamw, 2 x 16", "dots_and_attention", 1)]
    assert by_part["step-124M"][1]["of_adamw"] > 0
    assert by_part["ladder"][-1]["trained"] == "whole"
