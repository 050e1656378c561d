"""The wheel, installed away from the checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from growlm import InputError
from growlm.training.config import load_config
from growlm.training.variants import build_sweep

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("growlm", "experiments", "pyproject.toml", "requirements.txt", "README.md", "LICENSE")


def test_an_experiment_of_the_package_is_found_by_its_name():
    (named, path) = (
        load_config(spec, []) for spec in ("growlm:quickstart:tiny", f"{ROOT}/experiments/quickstart.py:tiny")
    )
    assert build_sweep(named) == build_sweep(path)
    with pytest.raises(InputError, match=r"must be one of .*quickstart.*, got 'quikstart'; did you mean"):
        load_config("growlm:quikstart", [])


@pytest.mark.slow
def test_the_wheel_runs_its_experiments_from_anywhere(tmp_path):
    for name in SOURCES:  # built from a copy: setuptools leaves its folders beside what it builds
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / "source" / name, symlinks=True)
        else:
            shutil.copy(ROOT / name, tmp_path / "source" / name)
    elsewhere, site = tmp_path / "elsewhere", tmp_path / "site"
    elsewhere.mkdir()
    environment = os.environ | {"PYTHONPATH": str(site)}

    def run(*command):
        done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={tmp_path}", str(tmp_path / "source"))
    [wheel] = tmp_path.glob("*.whl")
    run(*pip, "install", "--no-deps", f"--target={site}", str(wheel))
    assert (site / "growlm" / "py.typed").exists()
    assert str(site) in run(sys.executable, "-c", "import growlm; print(growlm.__file__)")
    listed = run(sys.executable, "-m", "growlm", "sweep", "--config=growlm:quickstart:tiny", "--workdir=run", "--list")
    assert "average_size" in listed and not list(elsewhere.iterdir())
