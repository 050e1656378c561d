"""The soak: a sweep that is killed at random moments ends as one that was left alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_a_sweep_killed_five_times_ends_with_the_same_bits(tmp_path):
    command = [sys.executable, str(ROOT / "experiments" / "reliability" / "soak.py"), "--kills=5", "--seed=1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [*command, f"--workdir={tmp_path / 'soak'}"], env=environment, capture_output=True, text=True, timeout=3600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 kills of " in done.stdout and "DIFFERENT" not in done.stderr
