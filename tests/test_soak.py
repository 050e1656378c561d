"""The soak: a sweep that is killed at random moments ends as one that was left alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_sweeps_killed_twenty_times_end_with_the_same_bits(tmp_path):
    command = [sys.executable, str(ROOT / "experiments" / "reliability" / "soak.py"), "--kills=20", "--seed=1"]
    command += ["--meshes=2", "--no-bucket", f"--workdir={tmp_path / 'soak'}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 kills of " in done.stdout and "DIFFERENT" not in done.stderr
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3600)
    assert (again.returncode, again.stdout) == (0, done.stdout), again.stderr  # it goes on where it was: at the end
