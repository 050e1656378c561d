"""Files written whole or not at all: whoever reads one, or restarts after a kill, never meets half of it."""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
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


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file; `what` says in the InputError what it should have been."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{what} must be a readable file, got {path}: {error.strerror}") from None
    except ValueError:  # of the text's encoding or of the JSON in it
        raise InputError(f"{what} must be JSON, got {path}") from None


def is_part(path: Path) -> bool:
    """Whether this is what a process leaves that was killed while it wrote a file."""
    return path.name.startswith(".") and path.name.endswith(".part")


LOCK = ".lock"
_HELD: set[Path] = set()  # by this process


@contextlib.contextmanager
def locked(folder: Path, wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Keeps a folder for this process; the kernel lets go of it when the process ends, however that happens.

    Where another process has it: calls `wait`, which takes a moment or raises, and tries again; without one, raises
    InputError.
    """
    with (folder / LOCK).open("a") as file:
        while not _taken(file):
            if wait is None:
                raise InputError(f"{folder} is in use by another growlm process: allowed is one at a time")
            wait()
        held = folder.resolve()
        _HELD.add(held)
        try:
            yield
        finally:
            _HELD.discard(held)


def held_elsewhere(folder: Path) -> bool:
    """Whether another process keeps a folder now."""
    if folder.resolve() in _HELD or not (folder / LOCK).exists():
        return False
    with (folder / LOCK).open("a") as file:
        return not _taken(file)


def _taken(file: IO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def check_output(output: Path) -> None:
    """Raises InputError unless a folder can be written there without touching anything that is there."""
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise InputError(f"output {output} exists and is no folder: allowed is a new or empty folder")
    if output.is_dir() and any(output.iterdir()):
        raise InputError(f"output {output} is not empty: allowed is a new or empty folder")
    above = next(path for path in output.absolute().parents if path.exists())
    if not above.is_dir():
        raise InputError(f"output {output} cannot be written, {above} is no folder: allowed is a new or empty folder")


def check_space(output: Path, nbytes: int) -> None:
    """Raises InputError where the disk of a folder that is to be written has less room than this."""
    above = next(path for path in output.absolute().parents if path.exists())
    if nbytes > (free := shutil.disk_usage(above).free):
        raise InputError(f"output {output} needs {nbytes:,} bytes, and the disk has {free:,}: allowed is one with room")


@contextlib.contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """A folder beside its place that is moved there once it is whole; what a killed process left is cleared first."""
    part = output.absolute().with_name(f".{output.name}.part")
    if part.is_symlink():
        raise InputError(f"output {output} needs {part}, which is a link: allowed is no such link")
    part.mkdir(parents=True, exist_ok=True)
    with locked(part):  # until it is in its place: another process must not take it for a leftover
        try:
            _clear(part)
            yield part
            part.rename(output)
            (output / LOCK).unlink()
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise


def _clear(folder: Path) -> None:
    """Removes what is in a folder, but its lock."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def table(rows: Sequence[Sequence[str]], align: str = "<") -> str:
    """Rows of cells as lines of aligned columns; `align` has "<" or ">" for each, the last one for all that follow."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    columns = list(zip(align.ljust(len(widths), align[-1]), widths, strict=True))
    cells = ([f"{cell:{side}{width}}" for cell, (side, width) in zip(row, columns, strict=True)] for row in rows)
    return "\n".join("  ".join(row).rstrip() for row in cells)
