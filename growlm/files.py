"""Files written whole or not at all: whoever reads one, or restarts after a kill, never meets half of it."""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from growlm.errors import InputError


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file beside its place and moves it there in one step."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """The value as indented JSON."""
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode())


def is_part(path: Path) -> bool:
    """Whether this is what a process leaves that was killed while it wrote a file."""
    return path.name.startswith(".") and path.name.endswith(".part")


@contextlib.contextmanager
def locked(folder: Path, wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Keeps a folder for this process; the kernel lets go of it when the process ends, however that happens.

    Where another process has it: calls `wait`, which takes a moment or raises, and tries again; without one, raises
    InputError.
    """
    with (folder / ".lock").open("a") as file:
        while not _taken(file):
            if wait is None:
                raise InputError(f"{folder} is in use by another growlm process: allowed is one at a time")
            wait()
        yield


def _taken(file: IO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
