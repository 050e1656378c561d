"""Documents: text in pieces, so that one of any size takes no more memory than a small one."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from growlm.errors import InputError

PIECE = 2**20


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


def cut(text: str, size: int) -> Iterator[str]:
    """The text in pieces of at most `size` bytes, cut as `Document.pieces` are."""
    return pieces_of(io.BytesIO(text.encode()), "", "strict", size)


def of_record(record: Any, place: str, reading: Reading) -> Document:
    """The document in a field of a record. Raises InputError where there is none, or it is not text."""
    fields = record if isinstance(record, dict) else {}
    text = fields.get(reading.field)
    if isinstance(text, bytes):
        text = decode(text, place, 0, reading.errors)
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


def pieces_of(stream: BinaryIO, place: str, errors: str, size: int) -> Iterator[str]:
    """The text of a stream, cut where tokenizers cut too: after a line, or else before a space."""
    held, start = b"", 0
    while held := held + stream.read(size - len(held)):
        end = len(held) if len(held) < size else _border(held)
        yield decode(held[:end], place, start, errors)
        held, start = held[end:], start + end


def _border(data: bytes) -> int:
    """Where to cut what goes on: never within a character."""
    if (end := data.rfind(b"\n") + 1) or (end := data.rfind(b" ")) > 0:
        return end
    lead = next((i for i in range(1, min(4, len(data))) if data[-i] >= 0xC0), None)  # a character of several bytes
    return len(data) - lead if lead and lead < len(data) else len(data)


def decode(data: bytes, place: str, start: int, errors: str) -> str:
    """The text of bytes that begin at position `start`. Raises InputError that names the first that is not UTF-8."""
    try:
        text = data.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        found = f"byte 0x{data[error.start]:02x} at position {start + error.start}"
        raise InputError(f"{place} is not text: {found}; allowed: UTF-8, or --errors=replace") from None
    return text.replace("\0", "\ufffd") if errors == "replace" else text


def in_one_line(error: Exception) -> str:
    """What a library says, for a message of one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
