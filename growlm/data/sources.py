"""Sources of text: files, and datasets by name, in parts that can be read independently.

The parts depend on the source alone, so that any number of processes, stopped and started at any time, write the same
shards.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growlm.data.documents import Document, Reading, of_record
from growlm.data.readers import ReaderPart, read_pipeline, settings_of
from growlm.data.textfiles import MOST_PARTS, FilesPart, find_files, group_files, has_records, is_packed
from growlm.errors import InputError, import_library, in_one_line, must_be
from growlm.hub import SCHEME, find_dataset, moves

TFDS_PART = 1000  # records in a part at least
TFDS_BATCH = 100  # records read at a time
MOST_STREAMS = 1024  # parts of a Hugging Face dataset, whose size is not known


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
        for start in range(self.start, self.stop, TFDS_BATCH):
            numbers = range(start, min(start + TFDS_BATCH, self.stop))
            with _named_errors(f"tfds:{self.name}", self.split):
                records = source.__getitems__(numbers)
            for number, record in zip(numbers, records, strict=True):
                if document := of_record(record, f"tfds:{self.name} {self.split} record {number}", reading):
                    yield document


@dataclass(frozen=True)
class HuggingFacePart:
    """One of `count` equal shares of the files behind a split of a Hugging Face dataset, NAME or NAME@REVISION."""

    name: str
    config: str | None
    split: str
    count: int
    index: int

    def documents(self, reading: Reading) -> Iterator[Document]:
        """One document a record, streamed."""
        stream = _huggingface(self.name, self.config, self.split)
        share = stream.shard(num_shards=self.count, index=self.index, contiguous=True)
        with _named_errors(f"hf:{self.name}", self.split):
            for number, record in enumerate(share):
                place = f"hf:{self.name} {self.split} record {number} of part {self.index}"
                if document := of_record(record, place, reading):
                    yield document


Part = FilesPart | TfdsPart | HuggingFacePart | ReaderPart
Source = str | Sequence[Any]


def list_parts(sources: Sequence[Source], split: str, data_dir: str | None = None) -> list[Part]:
    """The parts of all sources, in order; nothing large is read.

    Args:
      sources: each one of
        - a file: .jsonl or .ndjson, a record a line; any other, one document. Either may be packed: .gz, .zst.
          Or .parquet, a record a row.
        - a folder: all its files with a text suffix, packed or not, in the order of their paths.
        - tfds:NAME, such as tfds:c4/en:3.0.1; prepared or downloaded in array_record form, without TensorFlow.
        - hf:NAME, hf:NAME:CONFIG, either with @REVISION: a Hugging Face dataset or a folder of one, streamed.
        - steps of datatrove, of which the first reads files: see `growlm.data.readers`.
      split: the split of named datasets.
      data_dir: the folder of TFDS datasets.

    Raises:
      InputError: a source is missing, is the folder of a run, holds no text, or its library is not installed.
    """
    texts = [source for source in sources if isinstance(source, str)]
    named = [source for source in texts if source.startswith(("tfds:", SCHEME))]
    groups = group_files([file for source in texts if source not in named for file in find_files(source)])
    parts: list[Part] = [FilesPart(group) for group in groups]
    parts += [part for source in named for part in _named(source, split, data_dir)]
    return parts + [part for steps in sources if not isinstance(steps, str) for part in read_pipeline(steps)]


def pin(source: Source, before: Sequence[Source] = ()) -> Source:
    """The source, with the commit of a dataset of the hub: that which was taken before, or what it is at now.

    Raises InputError where the hub has no such dataset.
    """
    if not isinstance(source, str) or not source.startswith(SCHEME):
        return source
    for known in before:
        if isinstance(known, str) and (source == known or moves(source, known)):
            return known
    name, _, revision = _parts_of(source)
    if not name or Path(name).exists():
        return source
    import_library("datasets")
    _, commit = find_dataset(name, revision)
    return f"{source.partition('@')[0]}@{commit}"


def listing(parts: Sequence[Part]) -> str:
    """SHA-256 (hex) of the parts: for files, of their names, sizes and some of their blocks."""
    rows = json.dumps(list(parts), sort_keys=True, default=_plain)
    return hashlib.sha256(rows.encode("utf-8", "surrogateescape")).hexdigest()


def _plain(value: Any) -> dict[str, Any]:
    """What JSON has of a part, a file or a step of datatrove."""
    return vars(value) if dataclasses.is_dataclass(value) else settings_of(value)


def plain_files(parts: Sequence[Part]) -> list[str]:
    """The files that are one document each, and have no fields."""
    files = [file.path for part in parts if isinstance(part, FilesPart) for file in part.files]
    return [path for path in files if not has_records(path)]


def text_bytes(parts: Sequence[Part]) -> int | None:
    """The size of all files, which is about that of the text; None if one is packed, or for named datasets."""
    files = [file for part in parts if isinstance(part, FilesPart) for file in part.files]
    known = all(isinstance(part, FilesPart) for part in parts) and not any(is_packed(file.path) for file in files)
    return sum(min(file.stop, file.size) - file.start for file in files) if known else None


def _named(source: str, split: str, data_dir: str | None) -> list[Part]:
    """The parts of a dataset of one of the two libraries."""
    library, name = source.split(":", 1)
    if not name:
        raise must_be("--source", f"{library}:NAME", source)
    if library == "tfds":
        number = len(_tfds(name, data_dir, split))
        step = max(TFDS_PART, math.ceil(number / MOST_PARTS))
        return [TfdsPart(name, data_dir, split, i, min(i + step, number)) for i in range(0, number, step)]
    name, config, revision = _parts_of(source)
    name = f"{name}@{revision}" if revision else name
    count = min(_huggingface(name, config, split).num_shards, MOST_STREAMS)
    return [HuggingFacePart(name, config, split, count, i) for i in range(count)]


def _parts_of(source: str) -> tuple[str, str | None, str | None]:
    """(name or folder, config, revision) of hf:NAME:CONFIG@REVISION."""
    name, config, revision = source.removeprefix(SCHEME), None, None
    if not Path(name).exists() and "@" in name:
        name, _, revision = name.partition("@")
        if not revision:
            raise must_be("--source", f"{SCHEME}NAME or {SCHEME}NAME@REVISION", source)
    if not Path(name).exists() and ":" in name:
        name, config = name.rsplit(":", 1)
    return name, config, revision


@functools.lru_cache(maxsize=1)
def _tfds(name: str, data_dir: str | None, split: str) -> Any:
    """A data source in array_record form, which needs no TensorFlow."""
    tfds = import_library("tensorflow_datasets")
    with _named_errors(f"tfds:{name}", split):
        return tfds.data_source(name, split=split, data_dir=data_dir)


@functools.lru_cache(maxsize=1)
def _huggingface(name: str, config: str | None, split: str) -> Any:
    datasets = import_library("datasets")
    place, revision = name, None
    if "@" in name and not Path(name).exists():
        place, revision = find_dataset(*name.split("@", 1))
    with _named_errors(f"hf:{name}", split):
        return datasets.load_dataset(place, config, split=split, revision=revision, streaming=True)


@contextlib.contextmanager
def _named_errors(name: str, split: str) -> Iterator[None]:
    """Turns errors of a library, which have no common class, into InputErrors that name the dataset."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"cannot read {name}, split {split!r}: {in_one_line(error)}") from error
