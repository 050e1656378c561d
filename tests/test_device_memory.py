"""Out of memory is one line: what a step needs, what a device has, and which microbatches or remat would fit."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import tiny

from growlm.commands import dispatch
from growlm.errors import InputError
from growlm.training import device_memory
from growlm.training.device_memory import exhaustion_said
from growlm.training.run import train
from growlm.training.stages import resolve

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A stage whose step is mostly what it keeps of a batch."""
    model = tiny.MODEL | {"layers": 4, "mlp": 512}
    stage = tiny.stage(2) | {"model": model, "batch": 16, "length": 64, "tokens": 2 * 16 * 64}
    return tiny.run_config(tiny.write_corpus(tmp_path_factory.mktemp("corpus")), stage)


def megabytes(text):
    return [float(number) for number in re.findall(r"([\d.]+) MB", text)]


@pytest.mark.slow
def test_a_step_that_does_not_fit_is_refused_with_what_would(wide, tmp_path, monkeypatch):
    monkeypatch.setattr(device_memory, "device_bytes", lambda mesh, held: 0)
    with pytest.raises(InputError) as nothing:
        train(wide, tmp_path / "nothing")
    assert "nothing that was tried fits, where remat=full and microbatches=16 needs" in str(nothing.value)
    least, needed = megabytes(str(nothing.value))[-1], megabytes(str(nothing.value))[1]
    assert 0 < least < needed / 2

    limit = int(least * 1.1e6)
    monkeypatch.setattr(device_memory, "device_bytes", lambda mesh, held: limit)
    with pytest.raises(InputError) as refused:
        train(wide, tmp_path / "some")
    said = str(refused.value)
    assert len(said.splitlines()) == 1
    assert said.startswith("stages[0] must fit into") and "what would fit, in a new workdir: " in said
    assert "remat=full and microbatches=16 (" in said and "remat=full (" not in said
    (folder,) = (path.parent for path in (tmp_path / "some").rglob("stage.json"))
    assert not (folder / "metrics.jsonl").exists(), "nothing was trained"

    stage = dataclasses.replace(wide.stages[0], microbatches=16)
    train(dataclasses.replace(wide, remat="full", stages=(stage,)), tmp_path / "fits")
    assert tiny.records(tmp_path / "fits")[-1]["step"] == 2


LIMITED = """
import pathlib, resource, sys
sys.path.insert(0, {tests!r})
import jax
jax.block_until_ready(jax.numpy.ones(3) + 1)
used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**32, used + 2**32))
from growlm.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux says how much there is")
def test_a_real_limit_of_memory_is_one_line_and_exit_code_2(tmp_path):
    model = tiny.MODEL | {"mlp": 200_000}
    stage = tiny.stage(2) | {"model": model, "batch": 64, "length": 64, "tokens": 2 * 64 * 64}
    config = tiny.write_config(tmp_path / "config.py", tiny.run(tiny.write_corpus(tmp_path), stage))
    code = LIMITED.format(tests=str(ROOT / "tests"))
    command = [sys.executable, "-c", code, "train", f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert (
        last.startswith("growlm: stages[0] must fit into ")
        and "what would fit, in a new workdir: microbatches=" in last
    )


def test_what_a_device_says_in_pages_is_one_line(wide):
    (stage,) = resolve(wide, "fingerprint")
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes.\nand much\nmore")
    with pytest.raises(InputError) as refused, exhaustion_said(stage):
        raise error
    said = str(refused.value)
    assert len(said.splitlines()) == 1 and "stages[0] (" in said and "Out of memory allocating 7 bytes" in said
    with pytest.raises(InputError, match=r"is out of memory: Unable to .* need less"), exhaustion_said(stage):
        raise MemoryError("Unable to allocate\n7 GiB")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), exhaustion_said(stage):
        raise jax.errors.JaxRuntimeError("INTERNAL: another fault")


@pytest.mark.parametrize("error", [jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: for 7 GB\nand more"), MemoryError()])
def test_a_command_that_is_out_of_memory_ends_in_a_line(monkeypatch, capsys, error):
    def fail(*of):
        raise error

    monkeypatch.setattr(dispatch, "_dispatch", fail)
    assert dispatch.outcome(["sample"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("growlm: sample is out of memory: ") and line.endswith("batch or length needs less")
