"""How much memory the pages of a parquet file take by what they say of themselves, before the library makes room.

A file of a few hundred bytes may have a list of 2^31 nulls, or a page that unpacks to 2 GiB. The footer says what a
column has in a row group, and each page what it has itself; either may say less than is there, so both are looked at.
They are in Thrift's compact protocol (github.com/apache/thrift, doc/specs; numbers of fields: parquet.thrift).
"""

import mmap
import struct
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import Any

from growlm.errors import InputError

MOST_VALUES = 2**24  # of a page, and of lists in a row group beside its rows unless it has as many bytes: 30 each
MOST_BYTES = 2**27  # of a page, unless that is less than so many times its bytes in the file
MOST_TIMES = 100  # text is packed to a fifth or a tenth
DEPTH = 16  # of the structures in a footer there are 6

BOOLEANS, BYTE, INTEGERS, DOUBLE, BINARY, LISTS, STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, (9, 10), 12
Content = bytes | mmap.mmap
BAD = (IndexError, KeyError, TypeError, ValueError)


def check_pages(path: str, group: int, columns: Collection[str] | None) -> None:
    """Raises InputError where a page of a row group, or of these columns of it, would take far more than it should."""
    status = Path(path).stat()
    with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            row_group = _row_groups(path, status.st_size, status.st_mtime_ns)[group]
            in_lists = max(MOST_VALUES, min(len(content), sum(chunk[3][7] for chunk in row_group[1])))
            for chunk in row_group[1]:
                column = chunk[3]
                name = b".".join(column[3]).decode("utf-8", "replace")
                if columns is None or column[3][0].decode("utf-8", "replace") in columns:
                    place = f"column {name} of row group {group} of {path}"
                    _check_column(content, column, row_group[3] + in_lists, place)
        except BAD as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} must be a whole .parquet file, got a damaged footer or page") from None


def _check_column(content: mmap.mmap, column: dict[int, Any], most: int, place: str) -> None:
    first, dictionary = column[9], column.get(11, 0)
    at = dictionary if 0 < dictionary < first else first
    end, values = at + column[7], 0
    while at < end and values < column[5]:
        page, at = _structure(content, at)
        own = sum(page[kind][1] for kind in (5, 7, 8) if kind in page)
        values += 0 if 7 in page else own
        if own > MOST_VALUES or values > most:
            rule = f"at most {MOST_VALUES:,} values in a page and {most:,} in all"
            raise InputError(f"{place} must have {rule}, got {own:,} and {values:,}")
        if page[2] > max(MOST_BYTES, MOST_TIMES * page[3]):
            rule = f"at most {MOST_BYTES:,} bytes, or {MOST_TIMES} times its {page[3]:,} bytes in the file"
            raise InputError(f"a page of {place} must have {rule}, got {page[2]:,}")
        if page[3] < 0 or own < 0:
            raise ValueError("a page of less than nothing")
        at += page[3]


@lru_cache(maxsize=1)  # the footer has all row groups, and is asked for each of them
def _row_groups(path: str, size: int, modified: int) -> list[dict[int, Any]]:
    """What the footer of a file that has this size, and was modified then, says of its row groups."""
    with Path(path).open("rb") as file:
        file.seek(size - 8)
        (length,) = struct.unpack("<I", file.read(4))
        if not 0 < length <= size - 8:
            raise ValueError("no footer")
        file.seek(size - 8 - length)
        return _structure(file.read(length), 0)[0][4]


def _structure(content: Content, at: int, depth: int = DEPTH) -> tuple[dict[int, Any], int]:
    """The fields of a structure by number, and where it ends. Raises ValueError or IndexError where there is none."""
    fields, number = {}, 0
    if not depth:
        raise ValueError("structures in structures without end")
    while header := content[at]:
        at += 1
        number += header >> 4
        if not header >> 4:
            number, at = _integer(content, at)
        kind = header & 15
        if kind in BOOLEANS:  # the kind is the value
            fields[number] = kind == BOOLEANS[0]
        else:
            fields[number], at = _value(content, at, kind, depth)
    return fields, at + 1


def _value(content: Content, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in INTEGERS:
        return _integer(content, at)
    if kind == BINARY:
        size, at = _varint(content, at)
        if size > len(content) - at:
            raise ValueError("a text beyond the end")
        return content[at : at + size], at + size
    if kind == STRUCT:
        return _structure(content, at, depth - 1)
    if kind in LISTS:
        header, at = content[at], at + 1
        size = header >> 4
        if size == 15:
            size, at = _varint(content, at)
        return _list(content, at, size, header & 15, depth)
    if kind in (*BOOLEANS, BYTE):  # within a list a boolean is a byte
        return content[at], at + 1
    if kind == DOUBLE:
        return None, at + 8
    raise ValueError(f"a value of kind {kind}")


def _list(content: Content, at: int, size: int, kind: int, depth: int) -> tuple[list[Any], int]:
    found = []
    for _ in range(size):
        value, at = _value(content, at, kind, depth)
        found.append(value)
    return found, at


def _integer(content: Content, at: int) -> tuple[int, int]:
    value, at = _varint(content, at)
    return value >> 1 ^ -(value & 1), at


def _varint(content: Content, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte, at = content[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("an integer of more than 64 bits")
