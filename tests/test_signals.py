"""Ctrl-C and SIGTERM from the first moment on: a line and an exit code, and never a traceback."""

import os
import signal
import subprocess
import sys

import pytest
import tiny

# The command in a process that sends itself a signal when it begins to import a module.
DRIVER = """
import os, sys
number, name = int(sys.argv.pop(1)), sys.argv.pop(1)
sys.addaudithook(lambda event, args: event == "import" and args[0] == name and os.kill(os.getpid(), number))
from growlm.__main__ import main
sys.exit(main())
"""
LATER = ("growlm.training.config", "jax._src.pjit", "orbax")
MOMENTS = ["growlm.commands.dispatch", *(pytest.param(name, marks=pytest.mark.slow) for name in LATER)]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_while_a_command_is_loaded_ends_it_in_a_line(tmp_path, moment, number, code):
    config = tiny.write_config(tmp_path / "run.py", tiny.run(tiny.write_corpus(tmp_path), tiny.stage(2)))
    command = [sys.executable, "-c", DRIVER, str(int(number)), moment, "train", f"--config={config}"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*command, f"--workdir={tmp_path / 'work'}"], env=environment, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
    assert done.stderr.startswith("growlm: ") and not (tmp_path / "work").exists()
