"""Files written whole or not at all: whoever reads one, or restarts after a kill, never meets half of it.

They lie on a local disk or in a bucket; what that cannot do is in `growlm.buckets`.
"""

import contextlib
import dataclasses
import errno
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from growlm.buckets import holds_something, is_bucket, whole
from growlm.checked import check_regular, check_text, parse_json, read_whole, sealed, unsealed
from growlm.errors import InputError, InUseError, must_be

LOCK = ".lock"
# What filelock makes for a moment to learn whether a file system has locks, where it has no files without a name: NFS.
_PROBE = ".filelock-probe-"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place and move it there in one step; in a bucket it is put there, which is one."""
    if is_bucket(path):
        path.write_bytes(content)
        return
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with named(path):
            part.unlink(missing_ok=True)  # a link of that name would be written through
            with part.open("xb") as file:
                file.write(content)
            sync(part)  # or after a power loss the name may be there, and nothing in it
            part.replace(path)
            sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have what is in a file, or the names in a folder, on the disk: until then a power loss may take it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems sync no folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def sync_all(folder: Path) -> None:
    """Have a folder with all that is in it on the disk."""
    for inner, _, names in os.walk(folder):
        for path in (*(Path(inner, name) for name in names), Path(inner)):
            sync(path)


def make_folder(folder: Path) -> None:
    """Make a folder with those above it that are not there, and have their names on the disk."""
    new = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in new:
        sync(path.parent)


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """An OSError of writing a file, such as that the disk is full, says which one."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def write_json(path: Path, value: Any) -> None:
    """Write the value as indented JSON."""
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode())


def as_json(value: Any) -> Any:
    """A value as plain JSON: objects by their fields but those that no repr shows, such as resamples; NaN as null.

    Raises TypeError for an object that is none of these.
    """
    if dataclasses.is_dataclass(value):
        return {field.name: as_json(getattr(value, field.name)) for field in dataclasses.fields(value) if field.repr}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [*map(as_json, value)]
    if hasattr(value, "tolist"):  # of NumPy
        return as_json(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not of JSON")


def write_sealed(path: Path, record: Mapping[str, Any]) -> None:
    """Write an object of JSON with its checksum, which `read_json` checks."""
    write_json(path, sealed(record))


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file, without its checksum; `what` says in the InputError what it should have been.

    Raises InputError; DamagedError where the checksum is not that of the rest.
    """
    try:
        value = parse_json(read_whole(path, what))
        check_text(value)
        return unsealed(value, path)
    except OSError as error:
        raise InputError(f"{what} must be a readable file, got {path}: {error.strerror or 'it is not there'}") from None
    except InputError:
        raise
    except ValueError as error:  # of the text's encoding or of the JSON in it
        reason = "" if isinstance(error, json.JSONDecodeError) else f", which has {error}"
        raise InputError(f"{what} must be JSON, got {path}{reason}") from None


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object. Raises InputError."""
    value = read_json(path, path.name)
    if not isinstance(value, dict):
        raise InputError(f"{path} must be a JSON object, got a {type(value).__name__}")
    return value


def read_record(path: Path, what: str, *needs: str) -> dict[str, Any]:
    """Read an object of JSON that has these keys, as `read_json` does."""
    record = read_json(path, what)
    if not isinstance(record, dict) or not record.keys() >= {*needs}:
        rule = f"an object with {', '.join(needs)}" if needs else "an object"
        raise InputError(f"{what} {path} must be {rule}, got {str(record)[:60]!r}")
    return record


def inside(folder: Path, name: str) -> Path:
    """The regular file of that name in a folder; a link is one in a snapshot of the hub's cache, to the cache's blobs.

    Raises InputError: any other name or link, or nothing there.
    """
    if not name or Path(name).name != name or "\\" in name or "\0" in name:
        raise must_be(f"a file that {folder} names", "in the folder itself", name)
    path = folder / name
    check_within(folder, path)
    return path


def check_within(folder: Path, path: Path) -> None:
    """Raises InputError unless a path in a folder is a regular file of it, not a link that leads out.

    In a snapshot of the hub's cache, and in folders of it, files are links to the cache's blobs.
    """
    root = folder.resolve()
    within = (each.parent for each in (root, *root.parents))
    homes = [root, *(each.with_name("blobs") for each in within if each.name == "snapshots")]
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        raise InputError(f"{path} is not there: the folder must be whole") from None
    if not any(target.is_relative_to(home) for home in homes):
        raise InputError(f"{path} must be in the folder itself, and leads out of its folder, to {target}")
    if not target.is_file():
        raise InputError(f"{path} must be a regular file")


def is_part(path: Path) -> bool:
    """Whether this is what a process leaves that was killed while it wrote a file, or locked a folder."""
    return (path.name.startswith(".") and path.name.endswith(".part")) or path.name.startswith(_PROBE)


@contextlib.contextmanager
def locked(folder: Path, timeout: float = 0.0) -> Iterator[None]:
    """Lock a folder for this process; the kernel releases the lock when the process ends, however that happens.

    Raises:
        InUseError: another process has it for longer than `timeout` seconds; -1 waits for ever.
        InputError: the lock is a link, which would be emptied where it leads to, or no file.
    """
    if (path := folder / LOCK).is_symlink():
        raise InputError(f"{path} must be a regular file, got a link")
    check_regular(path, LOCK)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=timeout, poll_interval=0.05)
    except Timeout:
        raise InUseError(f"{folder} is in use by another growlm process: one at a time may write it") from None
    try:
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a process has the folder locked now."""
    if not (folder / LOCK).exists():
        return False
    try:
        with locked(folder):
            return False
    except InUseError:
        return True


def check_output(output: Path) -> None:
    """Raises InputError unless a folder can be written there without touching anything that is there."""
    if is_bucket(output):
        if holds_something(output):
            raise InputError(f"output must be a new or empty folder, got {output}, which is not empty")
        return
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise InputError(f"output must be a new or empty folder, got {output}, which exists and is no folder")
    if output.is_dir() and any(output.iterdir()):
        raise InputError(f"output must be a new or empty folder, got {output}, which is not empty")
    above = next(path for path in output.absolute().parents if path.exists())
    if not above.is_dir():
        raise InputError(f"output must be a new or empty folder, got {output}: {above} is no folder")


def check_space(output: Path, nbytes: int) -> None:
    """Raises InputError where the disk of a folder that is to be written has less room than this.

    A folder of a bucket is written to the disk of temporary files first.
    """
    output = Path(tempfile.gettempdir(), output.name) if is_bucket(output) else output
    above = next(path for path in output.absolute().parents if path.exists())
    if nbytes > (free := shutil.disk_usage(above).free):
        raise InputError(f"output must be on a disk with {nbytes:,} bytes free, got {output}, where {free:,} are")


@contextlib.contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """A folder beside its place that is moved there once it is whole; what a killed process left is cleared first."""
    if is_bucket(output):
        with whole(output) as part:
            yield part
        return
    part = output.absolute().with_name(f".{output.name}.part")
    if part.is_symlink():
        raise InputError(f"output {output} is written at {part} first, which must be no link")
    make_folder(part)
    with locked(part):  # until it is in its place: another process must not take it for a leftover
        try:
            _clear(part)
            yield part
            sync_all(part)
            part.rename(output)
            sync(output.absolute().parent)
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


def table(rows: Sequence[Sequence[str]], align: str = "<", rule: bool = False) -> str:
    """Rows of cells as lines of aligned columns; `align` has "<" or ">" for each, the last one for all that follow.

    rule: the first row is a header, with a rule under it.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if rule:
        rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    columns = list(zip(align.ljust(len(widths), align[-1]), widths, strict=True))
    cells = ([f"{cell:{side}{width}}" for cell, (side, width) in zip(row, columns, strict=True)] for row in rows)
    return "\n".join("  ".join(row).rstrip() for row in cells)
