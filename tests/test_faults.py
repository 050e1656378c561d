"""A clock that jumps, numbers that are none, memory that is not there, and more than one process on a folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


KINDS, TRIES = ("clock", "numbers", "memory", "folder"), 3  # peers: tests/test_processes.py


@pytest.mark.slow
def test_faults_at_random_moments_cost_nothing_but_time(tmp_path):
    script = ROOT / "experiments" / "reliability" / "faults.py"
    command = [sys.executable, str(script), f"--tries={TRIES}", "--seed=0", f"--kinds={','.join(KINDS)}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    options = {"env": environment, "capture_output": True, "text": True, "timeout": 1800}
    done = subprocess.run([*command, f"--workdir={tmp_path / 'faults'}"], **options)
    assert done.returncode == 0, done.stdout + done.stderr
    _, _, *rows, last = done.stdout.splitlines()
    cells = [row.strip("| ").split(" | ") for row in rows]
    assert [(kind, int(tries), int(wrong)) for kind, tries, *_, wrong in cells] == [(kind, TRIES, 0) for kind in KINDS]
    assert json.loads(last) == {"tries": TRIES * len(KINDS), "seed": 0}
