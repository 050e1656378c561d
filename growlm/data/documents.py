"""Documents of a source, in parts that can be read apart from each other.

How a source is cut into parts depends on nothing but the source, so that any number of processes, stopped and
started at any time, write the same shards. A document is read in pieces of at most PIECE bytes: a file of any size
takes no more memory than a small one.
"""

import contextlib
import dataclasses
import functools
import gzip
import hashlib
import io
import json
import math
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from growlm.data.corpus import SUFFIXES, text_files
from growlm.data.tokenizers import import_library
from growlm.errors import InputError

PIECE = 2**20
# A part is large enough to be worth a file, and small enough for all cores to have work until the end.
PARTS, SMALLEST, LARGEST = 256, 2**22, 2**29
FEWEST = 1000  # records of TFDS in a part
STREAMS = 1024  # at most so many parts of a Hugging Face dataset, whose size is not known

LINES = (".jsonl", ".ndjson")
PACKED = (".gz", ".zst")
END = sys.maxsize


@dataclass(frozen=True)
class Document:
    """A text, in pieces that are read as they are taken; `place` is what messages call it."""

    place: str
    pieces: Iterator[str]


@dataclass(frozen=True)
class Reading:
    """How text is taken out of a source: the field of records, and "strict" or "replace" for what is not UTF-8."""

    field: str = "text"
    errors: str = "strict"


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


@dataclass(frozen=True)
class TfdsPart:
    """The records [start, stop) of a split of a TFDS dataset."""

    name: str
    data_dir: str | None
    split: str
    start: int
    stop: int

    def documents(self, reading: Reading) -> Iterator[Document]:
        """One document a record."""
        source = _tfds(self.name, self.data_dir, self.split)
        for number in range(self.start, self.stop):
            yield _of_record(source[number], f"tfds:{self.name} {self.split} record {number}", reading)


@dataclass(frozen=True)
class HuggingFacePart:
    """One of `count` equal shares of the files behind a split of a Hugging Face dataset."""

    name: str
    config: str | None
    split: str
    count: int
    index: int

    def documents(self, reading: Reading) -> Iterator[Document]:
        """One document a record, streamed."""
        stream = _huggingface(self.name, self.config, self.split)
        share = stream.shard(num_shards=self.count, index=self.index, contiguous=True)
        for number, record in enumerate(share):
            place = f"hf:{self.name} {self.split} record {number} of part {self.index}"
            yield _of_record(record, place, reading)


Part = FilesPart | TfdsPart | HuggingFacePart


def list_parts(sources: Sequence[str], split: str, data_dir: str | None = None) -> list[Part]:
    """The parts of all sources, in order; nothing large is read.

    Args:
      sources: each one of
        - a file: .jsonl (or .ndjson), a record a line; any other, one document. With .gz or .zst after it: of these.
        - a folder: all its files with a text suffix, packed or not, in the order of their paths.
        - tfds:NAME, such as tfds:c4/en:3.0.1; prepared or downloaded in array_record form, without TensorFlow.
        - hf:NAME or hf:NAME:CONFIG, a Hugging Face dataset or a folder of one, streamed (extra `huggingface`).
      split: of datasets by name.
      data_dir: where TFDS datasets lie.

    Raises:
      InputError: a source that is not there, that has no text, or whose library is not installed.
    """
    named = [source for source in sources if source.startswith(("tfds:", "hf:"))]
    files = _group([file for source in sources if source not in named for file in _files(source)])
    return files + [part for source in named for part in _named(source, split, data_dir)]


def listing(parts: Sequence[Part]) -> str:
    """SHA-256 (hex) of what the parts say of their source: for files, their names, sizes and times."""
    held = [dataclasses.asdict(part) for part in parts]
    return hashlib.sha256(json.dumps(held, sort_keys=True).encode("utf-8", "surrogateescape")).hexdigest()


def text_bytes(parts: Sequence[Part]) -> int | None:
    """The size of all text, where it can be told before it is read: of files, none of them packed."""
    files = [file for part in parts if isinstance(part, FilesPart) for file in part.files]
    told = all(isinstance(part, FilesPart) for part in parts) and not any(_packed(file.path) for file in files)
    return sum(min(file.stop, file.size) - file.start for file in files) if told else None


def cut(text: str, size: int) -> Iterator[str]:
    """The text in pieces of at most `size` bytes, cut as `Document.pieces` are."""
    return _pieces(io.BytesIO(text.encode()), "", "strict", size)


# --- files


def _files(source: str) -> list[File]:
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


def _group(files: list[File]) -> list[Part]:
    """Files of about a part's size together; larger files of lines in ranges of that size."""
    size = _part_size(sum(file.size for file in files))
    parts: list[Part] = []
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


def _packed(path: str) -> bool:
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
        yield from _pieces(stream, file.path, reading.errors, PIECE)


@contextlib.contextmanager
def _named_errors(path: str) -> Iterator[None]:
    """What can happen while a file is read, as an InputError that names it."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (EOFError, zlib.error, *_zstd_errors(path)) as error:
        raise InputError(f"{path} is no whole {Path(path).suffix} file: {_line(error)}") from None


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
        return _of_record(_parse(line, reading), file.path, reading)
    except InputError as error:
        said = str(error).removeprefix(file.path)
        raise InputError(f"{file.path} line {_line_number(file.path, position)}{said}") from None


def _parse(line: bytes, reading: Reading) -> Any:
    text = _decode(line, "", 0, reading.errors)
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


# --- text


def _of_record(record: Any, place: str, reading: Reading) -> Document:
    """The document in a field of a record."""
    fields = record if isinstance(record, dict) else {}
    text = fields.get(reading.field)
    if isinstance(text, bytes):
        text = _decode(text, place, 0, reading.errors)
    if not isinstance(text, str):
        found = ", ".join(map(str, fields)) or "none"
        raise InputError(f"{place} has no text in field {reading.field!r}: its fields are {found} (--field=NAME)")
    if not text.isascii():
        text = _without_surrogates(text, place, reading.errors)
    if reading.errors == "replace":
        text = text.replace("\0", "\ufffd")
    return Document(place, iter([text]) if len(text) <= PIECE // 4 else cut(text, PIECE))


def _without_surrogates(text: str, place: str, errors: str) -> str:
    """JSON can escape half a character, which UTF-8 cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        if errors == "strict":
            half = f"half a character, U+{ord(text[error.start]):04X}, at position {error.start}"
            raise InputError(f"{place} is not text: {half}; allowed: UTF-8, or --errors=replace") from None
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _pieces(stream: BinaryIO, place: str, errors: str, size: int) -> Iterator[str]:
    """The text of a stream, cut where tokenizers cut too: after a line, or else before a space."""
    held, start = b"", 0
    while held := held + stream.read(size - len(held)):
        end = len(held) if len(held) < size else _border(held)
        yield _decode(held[:end], place, start, errors)
        held, start = held[end:], start + end


def _border(data: bytes) -> int:
    """Where to cut what goes on: never within a character."""
    if (end := data.rfind(b"\n") + 1) or (end := data.rfind(b" ")) > 0:
        return end
    lead = next((i for i in range(1, min(4, len(data))) if data[-i] >= 0xC0), None)  # a character of several bytes
    return len(data) - lead if lead and lead < len(data) else len(data)


def _decode(data: bytes, place: str, start: int, errors: str) -> str:
    """The text of bytes that begin at position `start`."""
    try:
        text = data.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        found = f"byte 0x{data[error.start]:02x} at position {start + error.start}"
        raise InputError(f"{place} is not text: {found}; allowed: UTF-8, or --errors=replace") from None
    return text.replace("\0", "\ufffd") if errors == "replace" else text


# --- datasets by name


def _named(source: str, split: str, data_dir: str | None) -> list[Part]:
    """The parts of a dataset of one of the two libraries."""
    library, name = source.split(":", 1)
    if not name:
        raise InputError(f"{source} names no dataset: allowed is {library}:NAME")
    if library == "tfds":
        number = len(_tfds(name, data_dir, split))
        step = max(FEWEST, math.ceil(number / PARTS))
        return [TfdsPart(name, data_dir, split, i, min(i + step, number)) for i in range(0, number, step)]
    name, config = (name, None) if Path(name).exists() or ":" not in name else name.rsplit(":", 1)
    count = min(_huggingface(name, config, split).num_shards, STREAMS)
    return [HuggingFacePart(name, config, split, count, i) for i in range(count)]


@functools.lru_cache(maxsize=1)
def _tfds(name: str, data_dir: str | None, split: str) -> Any:
    """A data source in array_record form, which needs no TensorFlow."""
    import tensorflow_datasets as tfds

    try:
        source = tfds.data_source(name, split=split, data_dir=data_dir)
    except Exception as error:  # what the library raises has no common kind
        raise InputError(f"cannot open tfds:{name}, split {split!r}: {_line(error)}") from error
    return source


@functools.lru_cache(maxsize=1)
def _huggingface(name: str, config: str | None, split: str) -> Any:
    datasets = import_library("datasets", "huggingface")
    try:
        return datasets.load_dataset(name, config, split=split, streaming=True)
    except Exception as error:
        raise InputError(f"cannot open hf:{name}, split {split!r}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
