"""`growlm doctor`, and the table of architectures that it shares with the guide."""

import importlib.util
from pathlib import Path

import pytest

from growlm.__main__ import main
from growlm.commands import doctor
from growlm.growth.overview import COLUMNS, example, rows
from growlm.models import ARCHITECTURES

GUIDE = Path(__file__).resolve().parents[1] / "docs" / "architectures.md"


def test_it_says_what_is_here_and_what_brings_what_is_not(tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tokenizers" else find(name))
    assert main(["doctor", f"--workdir={tmp_path}/runs"]) == 0
    said = capsys.readouterr().out
    assert "missing: pip install growlm[data]" in said and "plain XLA" in said and "1 x cpu" in said
    assert f"{tmp_path}/runs can be written" in said and not list(tmp_path.iterdir())
    assert all(f"\n{name} " in said for name in ARCHITECTURES)


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
