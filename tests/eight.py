"""Scripts that need eight devices run one after the other in one process, which has as many of XLA's CPU devices."""

import contextlib
import functools
import io
import json
import os
import runpy
import subprocess
import sys
import traceback
from typing import Any


def on_eight_devices(script: object, *arguments: object) -> Any:
    """What a script prints as its last line, which is JSON."""
    process = _process()
    process.stdin.write(json.dumps([str(script), *map(str, arguments)]) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    assert answer, f"the process with eight devices has ended: {process.wait()}"
    printed, error = json.loads(answer)
    assert error is None, error
    return json.loads(printed.splitlines()[-1])


@functools.cache
def _process() -> subprocess.Popen:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command, pipe = [sys.executable, __file__], subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)  # its input ends with ours


def serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        sys.argv, printed, error = json.loads(line), io.StringIO(), None
        try:
            with contextlib.redirect_stdout(printed):
                runpy.run_path(sys.argv[0], run_name="__main__")
        except BaseException:
            error = traceback.format_exc()
        print(json.dumps([printed.getvalue(), error]), file=answers, flush=True)


if __name__ == "__main__":
    serve()
