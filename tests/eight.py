"""Scripts of the tests that need 8 devices: a process of its own, with as many of XLA's CPU devices."""

import json
import os
import subprocess
import sys
from typing import Any

EIGHT = "--xla_force_host_platform_device_count=8"


def on_eight_devices(script: str, *arguments: object, timeout: float | None = None) -> Any:
    """What a script prints as its last line, which is JSON."""
    command = [sys.executable, str(script), *map(str, arguments)]
    flags = f"{os.environ.get('XLA_FLAGS', '')} {EIGHT}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
