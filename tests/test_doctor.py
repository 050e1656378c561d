"""`growlm doctor`, and the table of architectures that it shares with the guide."""

from pathlib import Path

import pytest

from growlm.__main__ import main
from growlm.commands import doctor
from growlm.growth.overview import COLUMNS, example, rows
from growlm.models import ARCHITECTURES, flops_per_token
from growlm.training import speed

GUIDE = Path(__file__).resolve().parents[1] / "docs" / "architectures.md"


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """A block that takes no time, and no drivers."""
    monkeypatch.setattr(speed, "BLOCKS", {"cpu": speed.Block(64, 32, 1, 16, "float32")})
    monkeypatch.setattr(speed, "SECONDS", 0.0)
    monkeypatch.setattr(doctor, "DRIVERS", {})


def lacking(monkeypatch, *names):
    installed = doctor.installed_version
    monkeypatch.setattr(doctor, "installed_version", lambda name: None if name in names else installed(name))


def test_it_says_what_is_here_and_what_brings_what_is_not(tmp_path, monkeypatch, capsys):
    lacking(monkeypatch, "tokenizers")
    assert main(["doctor", f"--workdir={tmp_path}/runs"]) == 0
    said = capsys.readouterr().out
    assert "pip install 'growlm[data]' brings tokenizers" in said and "plain XLA" in said and "1 x cpu" in said
    assert "GiB of memory" in said and "FLOP/s forward and backward, the device's peak is not known" in said
    assert f"{tmp_path}/runs can be written" in said and not list(tmp_path.iterdir())
    assert all(f"\n{name} " in said for name in ARCHITECTURES)


def test_an_extra_lacks_what_the_extras_that_it_asks_for_lack(monkeypatch):
    """As cuda13 does of jax's, and test of our own."""
    monkeypatch.setattr(doctor.importlib.metadata, "requires", REQUIRES.get)
    monkeypatch.setattr(doctor, "installed_version", {"ours": "1", "theirs": "2", "old": "1"}.get)
    assert doctor._missing("ours", "gpu") == ["plugin"]
    assert doctor._missing("ours", "all") == ["old", "plugin"]
    assert doctor._missing("ours", "none") == []


REQUIRES = {
    "ours": [
        "always",
        "theirs[gpu]>=1; extra == 'gpu'",
        "old>=2; extra == 'all'",
        "ours[gpu]; extra == 'all'",
        "never; python_version < '3' and extra == 'all'",
    ],
    "theirs": ["plugin; extra == 'gpu'", "docs; extra == 'docs'"],
}


def test_growlm_of_a_path_has_no_extras(monkeypatch, capsys):
    lacking(monkeypatch, "growlm")
    assert main(["doctor"]) == 0
    assert "growlm runs from a path, and is not installed" in capsys.readouterr().out


def test_an_accelerator_that_is_not_used_is_said(tmp_path, monkeypatch, capsys):
    driver = tmp_path / "nvidiactl"
    driver.touch()
    monkeypatch.setattr(doctor, "DRIVERS", {str(driver): ("an NVIDIA GPU", "cuda13"), "/none": ("a TPU", "tpu")})
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "an NVIDIA GPU: pip install 'growlm[cuda13]'" in said and "a TPU:" not in said
    assert doctor._unused("gpu") == []


def test_no_device_is_one_line_and_exit_code_1(monkeypatch, capsys):
    def none():
        raise RuntimeError("Unable to initialize backend 'tpu':\n no TPU")

    monkeypatch.setattr("jax.devices", none)
    assert main(["doctor"]) == 1
    assert "none: Unable to initialize backend 'tpu': no TPU" in capsys.readouterr().out


def test_what_a_block_reaches_is_its_flops_over_the_time(monkeypatch):
    """With a clock on which a step takes half a second, and a peak that is known."""
    ticks = iter(range(100))
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(ticks) / 2)
    monkeypatch.setattr(speed, "peak_flops", lambda kind: 1e9)
    block = speed.Block(64, 32, 1, 16, "float32")
    reached, utilization = speed.block_flops(block, 1.0)
    steps, seconds = 2, 3 / 2
    assert reached == pytest.approx(flops_per_token(block.model, 16) * 16 * steps / seconds)
    assert utilization == pytest.approx(reached / 1e9)


def test_a_folder_that_cannot_be_written_is_said_and_exit_code_1(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_not_writable", lambda folder: f"{folder} cannot be written: Read-only file system")
    assert main(["doctor"]) == 1
    assert "cannot be written: Read-only file system" in capsys.readouterr().out


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_has_an_example(name):
    assert example(ARCHITECTURES[name]).architecture.name == name


def test_the_guide_has_the_table():
    """To bring it up to date: write these lines between the markers of docs/architectures.md."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (COLUMNS, ["---"] * len(COLUMNS), *rows())]
    text = GUIDE.read_text()
    begin, end = (text.index(f"<!-- {word} of the table -->") for word in ("begin", "end"))
    assert text[begin:end].splitlines()[1:] == lines, "\n".join(lines)
