"""A disk that takes no more: one line that names the file, and the same command ends as it would have."""

import contextlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from growlm.commands.convert import convert_folder
from growlm.errors import InputError
from growlm.training.run import train


@contextlib.contextmanager
def largest_file(nbytes):
    """The nearest to a full disk that every machine can make: no file may be larger than this."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


ROOT = Path(__file__).parents[1]


def can_mount(place: Path) -> bool:
    """Whether this process may make a file system of its own."""
    place.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], capture_output=True).returncode:
        return False
    subprocess.run(["umount", place], check=True)
    return True


@pytest.mark.slow
def test_a_disk_that_fills_at_random_moments_costs_nothing_but_time(tmp_path):
    if not can_mount(tmp_path / "try"):
        pytest.skip("needs root, and a system on which root may mount")
    command = [sys.executable, ROOT / "experiments" / "reliability" / "full_disk.py", "--tries=5", "--seed=0"]
    ended = subprocess.run(
        [*command, f"--workdir={tmp_path / 'full'}"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    table, last = ended.stdout.splitlines()[2:-1], json.loads(ended.stdout.splitlines()[-1])
    rows = [[int(cell) for cell in row.split("|")[2:-1]] for row in table]
    assert last == {"tries": 5, "seed": 0} and sum(row[0] for row in rows) == 5
    assert sum(row[1] for row in rows) >= 3 and not any(row[3] for row in rows)


@pytest.mark.slow
def test_a_full_disk_is_one_line_that_names_the_file_and_the_same_command_goes_on(tmp_path):
    every = {"checkpoint": {"every_tokens": 2 * tiny.STEP}}
    config = tiny.run_config(tiny.write_corpus(tmp_path), tiny.stage(4), tiny.grown(4), **every)
    train(config, tmp_path / "whole")
    for nbytes, said in ((30_000, r"cannot write a checkpoint in \S+/checkpoints: File too large"), (1000, r"json")):
        with largest_file(nbytes), pytest.raises((InputError, OSError), match=said) as refused:
            train(config, tmp_path / "full")
        assert len(str(refused.value).splitlines()) == 1
    train(config, tmp_path / "full")
    assert tiny.timeless(tmp_path / "full") == tiny.timeless(tmp_path / "whole")
    with largest_file(20_000), pytest.raises(OSError, match=r"File too large: '\S+/model.safetensors'"):
        convert_folder(tmp_path / "whole", tmp_path / "out", "huggingface")
    assert not (tmp_path / "out").exists()
