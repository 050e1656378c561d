"""Text files as sources: plain, JSON lines, both packed, and parquet, in parts of files, of lines and of row groups."""

import contextlib
import dataclasses
import gzip
import io
import math
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from growlm.buckets import here
from growlm.checked import MAX_JSON, parse_json
from growlm.data import parquet
from growlm.data.corpus import SUFFIXES, own_text_files
from growlm.data.documents import PIECE_BYTES, Document, Reading, decode, of_record, pieces_of
from growlm.data.shards import hash_blocks
from growlm.errors import InputError, import_library, in_one_line, must_be

# A part is large enough to be worth a file, and small enough for all cores to have work until the end.
MOST_PARTS, SMALLEST_PART, LARGEST_PART = 256, 2**22, 2**29  # the last two in bytes

# What a packed file may unpack to, in bytes: text packs to a hundredth at best, and zstd makes gigabytes of a few kB.
SMALL_TEXT, MOST_TIMES = 2**26, 1000
MOST_EMPTY = 2**20  # lines without a record, one after the other

LINES = (".jsonl", ".ndjson")
PACKED = (".gz", ".zst")
END = sys.maxsize


@dataclass(frozen=True)
class File:
    """A file, or those of its lines, or row groups, that begin in bytes [start, stop)."""

    path: str
    size: int
    digest: str  # of some of its blocks, see `hash_blocks`
    start: int = 0
    stop: int = END


@dataclass(frozen=True)
class FilesPart:
    """Whole files, one after the other, or a range of lines of one."""

    files: tuple[File, ...]

    def documents(self, reading: Reading) -> Iterator[Document]:
        """The documents of each file in turn."""
        for file in self.files:
            with _named_errors(file.path):
                yield from _in_file(file, reading)


def find_files(source: str) -> list[File]:
    """The file, or the files of a folder. Raises InputError where there are none."""
    path = here(source)
    if source and path.is_file():
        paths = [path]
    elif source and path.is_dir():
        paths = [path / name for name in own_text_files(path, (*SUFFIXES, *LINES, parquet.PARQUET), PACKED)]
    else:
        raise must_be("--source", "a file, a folder, tfds:NAME or hf:NAME", source)
    if not paths:
        raise InputError(f"{source} must hold text files, packed or not, got none")
    try:
        return [File(path.absolute().as_posix(), path.stat().st_size, _digest(path)) for path in paths]
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hash_blocks(stream)


Ranges = Callable[[File, int], list[File]]


def ranges_of(file: File, size: int) -> list[File]:
    """A file of records that is larger than `size` bytes in ranges of that size, any other file whole."""
    if file.size <= size or Path(file.path).suffix.lower() not in (*LINES, parquet.PARQUET):
        return [file]
    starts = range(0, file.size, size)
    return [dataclasses.replace(file, start=start, stop=min(start + size, file.size)) for start in starts]


def group_files(files: Sequence[File], ranges: Ranges = ranges_of) -> list[tuple[File, ...]]:
    """The files of each part: small ones together, and each of the `ranges` of larger ones, of about equal size."""
    size = min(max(math.ceil(sum(file.size for file in files) / MOST_PARTS), SMALLEST_PART), LARGEST_PART)
    parts: list[tuple[File, ...]] = []
    group: list[File] = []
    for file in files:
        pieces = ranges(file, size)
        if group and (len(pieces) > 1 or sum(each.size for each in group) + file.size > size):
            parts.append(tuple(group))
            group = []
        if len(pieces) > 1:
            parts += [(each,) for each in pieces]
        else:
            group.append(file)
    return parts + ([tuple(group)] if group else [])


def is_packed(path: str) -> bool:
    """Whether a file is compressed, so that its size is not that of its text."""
    return Path(path).suffix.lower() in (*PACKED, parquet.PARQUET)


def has_records(path: str) -> bool:
    """Whether a file holds records, which have fields."""
    return _format(path) in (*LINES, parquet.PARQUET)


def _format(path: str) -> str:
    """The suffix that says what is in a file, packed or not."""
    return next((s for each in reversed(Path(path).suffixes) if (s := each.lower()) not in PACKED), "")


def _in_file(file: File, reading: Reading) -> Iterator[Document]:
    if _format(file.path) == parquet.PARQUET:
        yield from parquet.documents(file.path, file.start, file.stop, reading)
        return
    with _open(file.path) as stream:
        if has_records(file.path):
            yield from _lines(file, stream, reading)
        else:
            yield Document(file.path, _pieces(stream, file, reading))


def _pieces(stream: BinaryIO, file: File, reading: Reading) -> Iterator[str]:
    with _named_errors(file.path):  # not that of `documents`: pieces are read outside of it
        yield from pieces_of(stream, file.path, reading.errors, PIECE_BYTES)


@contextlib.contextmanager
def _named_errors(path: str) -> Iterator[None]:
    """Turns errors of reading a file into InputErrors that name it."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (EOFError, zlib.error, *_zstd_errors(path)) as error:
        raise InputError(f"{path} must be a whole {Path(path).suffix} file, got {in_one_line(error)}") from None


class _Unpacked(io.RawIOBase):
    """What is read of a packed file, until it is far more than one of its size can have been made of."""

    def __init__(self, stream: BinaryIO, path: str):
        self._stream, self._path, self._read = stream, path, 0
        self._most = SMALL_TEXT + MOST_TIMES * Path(path).stat().st_size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._stream.readinto(buffer)
        self._read += count
        if self._read > self._most:
            raise InputError(f"{self._path} must unpack to at most {self._most:,} bytes, a text of its size, got more")
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()


def _open(path: str) -> BinaryIO:
    if Path(path).suffix.lower() not in PACKED:
        return Path(path).open("rb")
    return io.BufferedReader(_Unpacked(_unpacking(path), path), PIECE_BYTES)


def _unpacking(path: str) -> BinaryIO:
    if path.lower().endswith(".gz"):
        return gzip.open(path, "rb")
    if sys.version_info >= (3, 14):
        return _zstd().open(path, "rb")
    return _zstd().ZstdDecompressor().stream_reader(Path(path).open("rb"), read_across_frames=True)


def _zstd_errors(path: str) -> tuple[type[Exception], ...]:
    return (_zstd().ZstdError,) if path.lower().endswith(".zst") else ()


def _zstd() -> Any:
    return import_library("compression.zstd" if sys.version_info >= (3, 14) else "zstandard")


def _lines(file: File, stream: BinaryIO, reading: Reading) -> Iterator[Document]:
    """The records of the lines that begin in the file's range."""
    position = file.start
    if position:  # a line across the border belongs to the range before
        stream.seek(position - 1)
        position += len(stream.readline(MAX_JSON + 1)) - 1
    empty = 0
    while position < file.stop and (line := stream.readline(MAX_JSON + 1)):  # longer ones are refused
        empty = 0 if line.strip() else empty + 1
        if empty > MOST_EMPTY:
            raise InputError(f"{file.path} must be JSON lines, got {empty:,} empty ones on end")
        if not empty and (document := _on_line(file, position, line, reading)):
            yield document
        position += len(line)


def _on_line(file: File, position: int, line: bytes, reading: Reading) -> Document | None:
    """The document of a line, if it stays. The number of a wrong line is counted only for the message."""
    try:
        return of_record(_parse(file, line, reading), file.path, reading)
    except InputError as error:
        raise InputError(f"line {_line_number(file.path, position)} of {error}") from None


def _parse(file: File, line: bytes, reading: Reading) -> Any:
    text = decode(line, file.path, 0, reading.errors)
    try:
        return parse_json(text)
    except ValueError as error:
        raise InputError(f"{file.path} must be JSON, got {error}") from None


def _line_number(path: str, position: int) -> int:
    """The number of the line that begins at a byte."""
    with _open(path) as stream:
        number = 1
        while position > 0 and (block := stream.read(min(PIECE_BYTES, position))):
            number += block.count(b"\n")
            position -= len(block)
    return number
