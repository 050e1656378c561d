"""Parquet files as sources: the row groups that begin in a range of bytes, and only the columns that are needed."""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from growlm.checked import MAX_JSON
from growlm.data.documents import PIECE_BYTES, Document, Reading, of_record
from growlm.data.parquet_pages import check_pages
from growlm.errors import InputError, import_library, in_one_line

PARQUET = ".parquet"
MAX_ROW = MAX_JSON  # bytes, as a line of JSON may have
# Rows of a file: a few bytes hold any number of equal ones, and each takes its time.
MAX_ROWS, ROWS_PER_BYTE = 2**20, 8


def documents(path: str, start: int, stop: int, reading: Reading) -> Iterator[Document]:
    """One document a row of the row groups that begin in bytes [start, stop) of the file, as `_begins` has it.

    Raises:
      InputError: the file is broken, a column is missing, that of the text is not text, or a row is too large.
    """
    with contextlib.closing(_open(path)) as file:
        _check_columns(path, file.schema_arrow, reading)
        text = None if reading.chat else reading.field
        columns = text and [text, *(each.field for each in reading.filters)]
        size, row = Path(path).stat().st_size, 0
        rows = sum(file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups))
        if rows > (most := MAX_ROWS + ROWS_PER_BYTE * size):
            raise InputError(f"{path} must have at most {most:,} rows in its {size:,} bytes, got {rows:,}")
        for group, begin in enumerate(_begins(file.metadata, size)):
            if start <= begin < stop:
                with _named_errors(path):  # a row at a time: a text that a page holds once may be that of many rows
                    check_pages(path, group, columns and {name.partition(".")[0] for name in columns})
                    batches = file.iter_batches(1, [group], columns, use_threads=False)
                for number, record in enumerate(_records(path, batches, text, row + 1), row + 1):
                    if document := of_record(record, f"row {number} of {path}", reading):
                        yield document
            row += file.metadata.row_group(group).num_rows


def _open(path: str) -> Any:
    """The file, which is read by pages as they are needed, with lists of texts as numbers of the texts that there are.

    As written out, a list of one text a million times is a million texts.
    """
    library = import_library("pyarrow.parquet")
    with _named_errors(path):
        file = library.ParquetFile(path, buffer_size=PIECE_BYTES, pre_buffer=False)
        leaves = map(file.schema.column, range(len(file.schema)))
        in_lists = [leaf.path for leaf in leaves if leaf.max_repetition_level and leaf.physical_type == "BYTE_ARRAY"]
        if not in_lists:
            return file
        with contextlib.closing(file):
            return library.ParquetFile(path, buffer_size=PIECE_BYTES, pre_buffer=False, read_dictionary=in_lists)


def _records(path: str, rows: Iterator[Any], field: str | None, first: int) -> Iterator[dict[str, Any]]:
    """Batches of a row as records, with the bytes of a field of text, as what is not UTF-8 is told of elsewhere."""
    arrow = import_library("pyarrow")
    with _named_errors(path):
        for number, row in enumerate(rows, first):
            if field is None:
                _check_size(sum(map(_written_out, row.columns)), number, path)
                yield from row.to_pylist()
                continue
            cell = row.column(field)[0]
            text = (cell.value if isinstance(cell, arrow.DictionaryScalar) else cell).as_buffer()
            _check_size(0 if text is None else text.size, number, path)
            (others,) = row.drop_columns(field).to_pylist() if row.num_columns > 1 else [{}]
            yield {**others, field: None if text is None else text.to_pybytes()}


def _check_size(size: int, number: int, path: str) -> None:
    if size > MAX_ROW:
        raise InputError(f"row {number} of {path} must have at most {MAX_ROW:,} bytes, got {size:,}")


def _written_out(column: Any) -> int:
    """The bytes of a column with every text in full."""
    arrow, compute = import_library("pyarrow"), import_library("pyarrow.compute")
    if arrow.types.is_dictionary(column.type):
        lengths = compute.binary_length(column.dictionary).take(column.indices)
        return compute.sum(lengths).as_py() or 0
    if arrow.types.is_struct(column.type):
        return sum(map(_written_out, column.flatten()))
    return _written_out(column.flatten()) if arrow.types.is_nested(column.type) else column.nbytes


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
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of dates out of range, time zones that are none, ...: they have no common class
        if isinstance(error, OSError) and error.errno:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        raise InputError(f"{path} must be a whole {PARQUET} file, got {in_one_line(error)}") from error
