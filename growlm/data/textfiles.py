"""Text files as sources: plain, JSON lines, and both packed, in parts of files and of lines."""

import contextlib
import dataclasses
import gzip
import io
import json
import math
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from growlm.data.corpus import SUFFIXES, text_files
from growlm.data.documents import PIECE, Document, Reading, decode, in_one_line, of_record, pieces_of
from growlm.data.tokenizers import import_library
from growlm.errors import InputError

# A part is large enough to be worth a file, and small enough for all cores to have work until the end.
PARTS, SMALLEST, LARGEST = 256, 2**22, 2**29

LINES = (".jsonl", ".ndjson")
PACKED = (".gz", ".zst")
END = sys.maxsize


@dataclass(frozen=True)
class File:
    """A file, or the lines of one that begin from byte `start` on and before byte `stop`."""

    path: str
    size: int
    modified_ns: int
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
    path = Path(source)
    if source and path.is_file():
        found = [path]
    elif source and path.is_dir():
        found = [path / name for name in text_files(path, (*SUFFIXES, *LINES), PACKED)]
    else:
        raise InputError(f"no file or folder {source!r}; allowed too: tfds:NAME, hf:NAME")
    if not found:
        raise InputError(f"no text in {source}; allowed: a text file, a folder of them, packed or not")
    try:
        stats = [(path, path.stat()) for path in found]
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error
    return [File(path.absolute().as_posix(), stat.st_size, stat.st_mtime_ns) for path, stat in stats]


def group_files(files: list[File]) -> list[FilesPart]:
    """Files of about a part's size together; larger files of lines in ranges of that size."""
    size = _part_size(sum(file.size for file in files))
    parts: list[FilesPart] = []
    held: list[File] = []
    for file in files:
        ranges = _ranges(file, size)
        if held and (len(ranges) > 1 or sum(each.size for each in held) + file.size > size):
            parts.append(FilesPart(tuple(held)))
            held = []
        if len(ranges) > 1:
            parts += [FilesPart((each,)) for each in ranges]
        else:
            held.append(file)
    return parts + ([FilesPart(tuple(held))] if held else [])


def _part_size(total: int) -> int:
    return min(max(math.ceil(total / PARTS), SMALLEST), LARGEST)


def _ranges(file: File, size: int) -> list[File]:
    if file.size <= size or Path(file.path).suffix.lower() not in LINES:
        return [file]
    starts = range(0, file.size, size)
    return [dataclasses.replace(file, start=start, stop=min(start + size, file.size)) for start in starts]


def is_packed(path: str) -> bool:
    """Whether its size is not that of its text."""
    return Path(path).suffix.lower() in PACKED


def _in_file(file: File, reading: Reading) -> Iterator[Document]:
    suffixes = [suffix.lower() for suffix in Path(file.path).suffixes if suffix.lower() not in PACKED]
    with _open(file.path) as stream:
        if suffixes and suffixes[-1] in LINES:
            yield from _lines(file, stream, reading)
        else:
            yield Document(file.path, _text_of(stream, file, reading))


def _text_of(stream: BinaryIO, file: File, reading: Reading) -> Iterator[str]:
    with _named_errors(file.path):  # of its own: these pieces are read by whoever takes them
        yield from pieces_of(stream, file.path, reading.errors, PIECE)


@contextlib.contextmanager
def _named_errors(path: str) -> Iterator[None]:
    """What can happen while a file is read, as an InputError that names it."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (EOFError, zlib.error, *_zstd_errors(path)) as error:
        raise InputError(f"{path} is no whole {Path(path).suffix} file: {in_one_line(error)}") from None


def _open(path: str) -> BinaryIO:
    suffix = Path(path).suffix.lower()
    if suffix == ".gz":
        return gzip.open(path, "rb")
    if suffix == ".zst":
        return _open_zstd(path)
    return Path(path).open("rb")


def _open_zstd(path: str) -> BinaryIO:
    if sys.version_info >= (3, 14):
        from compression import zstd

        return zstd.open(path, "rb")
    reader = import_library("zstandard").ZstdDecompressor()
    return io.BufferedReader(reader.stream_reader(Path(path).open("rb"), read_across_frames=True), PIECE)


def _zstd_errors(path: str) -> tuple[type[Exception], ...]:
    if not path.lower().endswith(".zst"):
        return ()
    if sys.version_info >= (3, 14):
        from compression import zstd

        return (zstd.ZstdError,)
    return (import_library("zstandard").ZstdError,)


def _lines(file: File, stream: BinaryIO, reading: Reading) -> Iterator[Document]:
    """The records of the lines that begin in the file's range."""
    position = file.start
    if position:  # the line that goes across the border is that of the range before
        stream.seek(position - 1)
        position += len(stream.readline()) - 1
    while position < file.stop and (line := stream.readline()):
        if line.strip():
            yield _on_line(file, position, line, reading)
        position += len(line)


def _on_line(file: File, position: int, line: bytes, reading: Reading) -> Document:
    """The document of a line; its number is counted only where it is wrong."""
    try:
        return of_record(_parse(line, reading), file.path, reading)
    except InputError as error:
        said = str(error).removeprefix(file.path)
        raise InputError(f"{file.path} line {_line_number(file.path, position)}{said}") from None


def _parse(line: bytes, reading: Reading) -> Any:
    text = decode(line, "", 0, reading.errors)
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f" is not JSON: {error}") from None


def _line_number(path: str, position: int) -> int:
    """The number of the line that begins at a byte."""
    with _open(path) as stream:
        number = 1
        while position > 0 and (block := stream.read(min(PIECE, position))):
            number += block.count(b"\n")
            position -= len(block)
    return number
