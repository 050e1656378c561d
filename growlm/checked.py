"""What is written is checked when it is read: objects of JSON carry a CRC-32, and so do the files of a folder.

An object has it under the key "crc32", of itself without that key. A folder has it in checksums.json, a file a row, but
for folders within that have their own. What has none, of an older growlm or of others, is read as it is.
"""

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from growlm.errors import InputError, is_number

KEY = "crc32"
CHECKSUMS = "checksums.json"
MAX_JSON = 100 * 2**20  # bytes
MAX_DEPTH = 100  # of brackets in brackets: what walks them has a depth of its own, some of it 300
# Values of a JSON text: each takes up to 128 bytes, so they take 128 MiB and eight times the text; "[]," repeated would
# take 32 times it. Lines of many numbers have fewer, and so have tokenizers with half a million pairs to merge.
MAX_VALUES = 2**20
BYTES_PER_VALUE = 16  # of those beyond
MAX_DIGITS = 100  # of an integer: a larger one is no size and no count, and floats end at 308
PIECE_BYTES = 2**22


class DamagedError(InputError):
    """A file is not what growlm wrote."""


# --- JSON ---


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError, a few words, for what is none or cannot be meant."""
    if len(text) > MAX_JSON:
        raise ValueError(f"more than {MAX_JSON:,} bytes")
    try:
        text = text if isinstance(text, str) else text.decode(json.detect_encoding(text), "surrogatepass")
        brackets, most = text.count("[") + text.count("{"), MAX_VALUES + len(text) // BYTES_PER_VALUE
        if brackets + text.count(",") > MAX_VALUES and _values(text) > most:
            raise ValueError(f"more than {most:,} values")
        value = json.loads(text, parse_int=_integer)
    except RecursionError:
        raise ValueError("brackets in brackets without end") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"no UTF-8 at byte {error.start}") from None
    level, depth = [value] if brackets > MAX_DEPTH else [], 0
    while level and depth <= MAX_DEPTH:
        inner = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level, depth = [one for items in inner for one in items], depth + 1
    if level:
        raise ValueError(f"more than {MAX_DEPTH} brackets in brackets")
    return value


def _values(text: str) -> int:
    """At least as many values as a JSON text has: brackets that open, and commas, but those within quotes."""
    import numpy as np  # here: a text that is kept is printed without it

    content = text.encode("utf-8", "surrogatepass").replace(b"\\\\", b"").replace(b'\\"', b"")
    marks, quoted = 0, False
    for start in range(0, len(content), PIECE_BYTES):
        piece = np.frombuffer(content[start : start + PIECE_BYTES], np.uint8)
        within = np.bitwise_xor.accumulate(piece == ord('"')) ^ quoted
        marks, quoted = marks + int(np.sum(np.isin(piece, list(b"[{,")) & ~within)), within[-1]
    return marks


def check_text(value: Any) -> None:
    """Raises ValueError for a JSON value with text that UTF-8 cannot hold."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair") from None


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with its checksum as the last key."""
    record = {key: value for key, value in record.items() if key != KEY}
    # What json reads of its own text it writes as that text again.
    return record | {KEY: _checksum(json.loads(json.dumps(record)))}


def unsealed(value: Any, place: object) -> Any:
    """A value as it was read, without its checksum, which is checked if it has one. Raises DamagedError."""
    if not isinstance(value, dict) or KEY not in value:
        return value
    record = {key: item for key, item in value.items() if key != KEY}
    if (expected := value[KEY]) != (got := _checksum(record)):
        own = "where you changed it yourself, remove that key"
        raise DamagedError(f"{place} is damaged: its {KEY} must be {expected}, got {got}; {own}")
    return record


def check_regular(path: Path, what: object) -> None:
    """Raises InputError for a pipe or a device, which may have no end."""
    if path.exists() and not path.is_file():
        raise InputError(f"{what} must be a regular file, got {path}")


def read_whole(path: Path, what: object) -> bytes:
    """The content of a file that is no larger than JSON may be; `what` says in the InputError what it should be."""
    check_regular(path, what)
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) > MAX_JSON:
            raise InputError(f"{what} must have at most {MAX_JSON:,} bytes, got {path}")
        file.seek(0)
        return file.read()


def lines_of(path: Path, what: object) -> Iterator[tuple[int, bytes, bool]]:
    """(number from 1, line, whether it is the last and has no end) of a file of JSON lines; none without a file.

    One that is longer than JSON may be comes in parts, which are no JSON.
    """
    check_regular(path, what)
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(iter(partial(file.readline, MAX_JSON + 1), b""), 1):
            yield number, line, len(line) <= MAX_JSON and not line.endswith(b"\n")


def _checksum(record: Mapping[str, Any]) -> str:
    """Of a record that json has read."""
    return f"{zlib.crc32(json.dumps(record).encode()):08x}"


# Of a record of training: what must be there, and what is a number where it is there.
COUNTS = ("stage", "step")
COSTS = ("tokens", "flops", "flops_exact", "seconds")
NUMBERS = (*COSTS, "loss", "val_loss", "learning_rate", "tokens_per_second")
BOUNDED = (*COUNTS, *COSTS)
MOST = 1e100  # of these, whose products and differences are numbers too


def parse_record(line: str | bytes, place: object) -> dict[str, Any]:
    """The record in a line of metrics.jsonl, without its checksum. Raises InputError, DamagedError."""
    try:
        record = unsealed(parse_json(line), place)
    except DamagedError:
        raise
    except ValueError:
        record = None
    if not is_record(record):
        text = line[:60] if isinstance(line, str) else line[:60].decode(errors="replace")
        raise InputError(f"{place} must be a record with stage, step and numbers, got {text!r}")
    return record


def is_record(value: Any) -> bool:
    """Whether a JSON value is a record of training."""
    whole = isinstance(value, dict) and all(type(value.get(key)) is int for key in COUNTS)
    whole = whole and all(map(is_number, [value[key] for key in NUMBERS if value.get(key) is not None]))
    return whole and not [key for key in BOUNDED if not abs(value.get(key) or 0) <= MOST]


# --- Folders ---


def write_checksums(folder: Any) -> None:
    """Write the size and the CRC-32 of every file of a folder into its checksums.json."""
    rows = {name: _measure(path) for name, path in sorted(_files(folder))}
    (folder / CHECKSUMS).write_text(json.dumps(sealed({"files": rows}), indent=2) + "\n")


def check_files(folder: Any, *names: str) -> None:
    """Check the files of a folder that has a checksums.json, all of them or those named.

    Raises DamagedError, which names the file, what it must have and what it has.
    """
    if not (folder / CHECKSUMS).exists():
        return
    for name, row in _rows(folder).items():
        if not names or name in names:
            _check_file(folder, name, row)


def accepted(folder: Path) -> tuple[list[str], dict[str, Any]]:
    """The JSON files of a folder that were changed since it was written, and a checksums.json with these as they are.

    Raises InputError for a folder without checksums.json, DamagedError where another file is not as it was written.
    """
    if not (folder / CHECKSUMS).is_file():
        raise InputError(f"source must be a folder with {CHECKSUMS}, got {folder}")
    rows, changed = _rows(folder), []
    for name, row in rows.items():
        try:
            _check_file(folder, name, row)
        except DamagedError:
            if not name.endswith(".json") or not (folder / name).is_file():
                raise
            changed.append(name)
    return changed, {"files": rows | {name: _measure(folder / name) for name in changed}}


def _rows(folder: Any) -> dict[str, str]:
    """What checksums.json says of every file. Raises DamagedError."""
    path = folder / CHECKSUMS
    try:
        rows = dict(unsealed(parse_json(read_whole(path, CHECKSUMS)), path)["files"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise DamagedError(f"{path} is damaged: it must have the sizes and checksums of files") from None
    for name in rows:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DamagedError(f"{path} is damaged: it must name files in its folder, got {name!r}")
    return rows


def _check_file(folder: Any, name: str, row: str) -> None:
    path = folder / name
    if not path.is_file():
        raise DamagedError(f"{path} is missing: it must have {row}")
    size = f"{path.stat().st_size} bytes"  # a file that has grown by a terabyte need not be read
    if (got := _measure(path) if str(row).startswith(f"{size},") else size) != row:
        own = f"; where you changed it yourself: growlm convert --source={folder} --accept"
        raise DamagedError(f"{path} is damaged: it must have {row}, got {got}{own if name.endswith('.json') else ''}")


def _files(folder: Any, within: str = "") -> Iterator[tuple[str, Any]]:
    """The files of a folder by their path in it, without hidden ones."""
    for path in folder.iterdir():
        name = f"{within}{path.name}"
        if path.is_dir():
            if not (path / CHECKSUMS).exists():
                yield from _files(path, f"{name}/")
        elif path.name != CHECKSUMS and not path.name.startswith("."):
            yield name, path


def _measure(path: Path) -> str:
    """The size and the checksum of a file, in words."""
    size = crc = 0
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            size, crc = size + len(piece), zlib.crc32(piece, crc)
    return f"{size} bytes, {KEY} {crc:08x}"


# --- Shapes ---

NUMBER = int | float
EACH = "*"  # every key of an object
WORDS = {dict: "an object", list: "a list", str: "a text", int: "an integer", bool: "true or false", NUMBER: "a number"}


def check_shape(value: Any, shape: Any, place: object) -> None:
    """Raises InputError unless a JSON value has a shape.

    Args:
        value: the value.
        shape: a type; a list of the shape of every item; or an object of shapes by key, of which those that end in "!"
            must be there, and the others may be null; under EACH that of every key.
        place: what the value is called.
    """
    kind = type(shape) if isinstance(shape, dict | list) else shape
    if not isinstance(value, kind) or (isinstance(value, bool) and bool not in (kind, *get_args(kind))):
        raise InputError(f"{place} must be {WORDS.get(kind, 'a text or a number')}, got {str(value)[:60]!r}")
    if isinstance(shape, list):
        for number, item in enumerate(value):
            check_shape(item, shape[0], f"{place}[{number}]")
    elif isinstance(shape, dict):
        for key, inner in shape.items():
            for name in value if key == EACH else [key.removesuffix("!")]:
                if key.endswith("!") and name not in value:
                    raise InputError(f"{place} must have {name!r}, got {str(value)[:60]!r}")
                if value.get(name) is not None or key.endswith("!") or key == EACH:
                    check_shape(value.get(name), inner, f"{place}: {name}")
