"""Parquet files as sources: the row groups that begin in a range of bytes, and only the columns that are needed."""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from growlm.data.documents import PIECE_BYTES, Document, Reading, of_record
from growlm.errors import InputError, import_library, in_one_line

PARQUET = ".parquet"
ROWS = 64  # in memory at a time


def documents(path: str, start: int, stop: int, reading: Reading) -> Iterator[Document]:
    """One document a row of the row groups that begin in bytes [start, stop) of the file, as `_begins` has it.

    Raises:
      InputError: the file is broken, a column is missing, or that of the text is not text.
    """
    library = import_library("pyarrow.parquet")
    with _named_errors(path):
        file = library.ParquetFile(path, buffer_size=PIECE_BYTES, pre_buffer=False)  # pages are read as needed
    with contextlib.closing(file):
        _check_columns(path, file.schema_arrow, reading)
        text = None if reading.chat else reading.field
        columns = text and [text, *(each.field for each in reading.filters)]
        row = 0
        for group, begin in enumerate(_begins(file.metadata, Path(path).stat().st_size)):
            if start <= begin < stop:
                with _named_errors(path):
                    batches = file.iter_batches(ROWS, [group], columns, use_threads=False)
                for number, record in enumerate(_records(path, batches, text), row + 1):
                    if document := of_record(record, f"row {number} of {path}", reading):
                        yield document
            row += file.metadata.row_group(group).num_rows


def _records(path: str, batches: Iterator[Any], field: str | None) -> Iterator[dict[str, Any]]:
    """The rows of batches, with the bytes of a field of text, as what is not UTF-8 is told of elsewhere."""
    arrow = import_library("pyarrow")
    with _named_errors(path):
        for batch in batches:
            if field is None:
                yield from batch.to_pylist()
                continue
            texts = batch.column(field).cast(arrow.large_binary()).to_pylist()
            for record, text in zip(batch.drop_columns(field).to_pylist() or [{}] * len(texts), texts, strict=True):
                yield {**record, field: text}


def _begins(metadata: Any, size: int) -> list[int]:
    """About where each row group begins in a file of `size` bytes: by the share of the data that is before it.

    Not by the offset of its first page: where that part of the metadata is damaged, pyarrow ends the whole process.
    """
    sizes = [max(0, metadata.row_group(group).total_byte_size) for group in range(metadata.num_row_groups)]
    before = itertools.accumulate(sizes[:-1], initial=0)
    return [min(size - 1, size * each // max(1, sum(sizes))) for each in before] if sizes else []


def _check_columns(path: str, schema: Any, reading: Reading) -> None:
    """Raises InputError unless there is a column of text, and what filters ask for."""
    types = import_library("pyarrow").types
    for each in reading.filters:
        each.find(_names(schema), path)
    if reading.chat:
        return
    if reading.field not in schema.names:
        names = ", ".join(schema.names) or "none"
        raise InputError(f"{path} has no text in field {reading.field!r}: its columns are {names} (--field=NAME)")
    kind = schema.field(reading.field).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not any(test(kind) for test in (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)):
        raise InputError(f"{path} column {reading.field!r} must be text, got {kind} (--field=NAME)")


def _names(fields: Any) -> dict[str, Any]:
    """The names in a schema, and those in its columns that hold fields."""
    types = import_library("pyarrow").types
    return {field.name: _names(field.type) if types.is_struct(field.type) else None for field in fields}


@contextlib.contextmanager
def _named_errors(path: str) -> Iterator[None]:
    """Turns errors of the library into InputErrors that name the file."""
    arrow = import_library("pyarrow")
    try:
        yield
    except InputError:
        raise
    except (OSError, arrow.ArrowException, ValueError) as error:
        if isinstance(error, OSError) and error.errno:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        raise InputError(f"{path} must be a whole {PARQUET} file, got {in_one_line(error)}") from error
