"""Documents: text in pieces, so that one of any size takes no more memory than a small one."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from growlm.data.chat import messages_of, render
from growlm.data.filters import Filter
from growlm.errors import InputError

PIECE_BYTES = 2**20
ESCAPED = "surrogateescape"  # how markers of conversations become bytes, and again markers


@dataclass(frozen=True)
class Document:
    """A text, in pieces that are read as they are taken; `place` names it in messages."""

    place: str
    pieces: Iterator[str]


@dataclass(frozen=True)
class Reading:
    """How text is read: the field of records, and "strict" or "replace" for bytes that are not UTF-8.

    Records stay that all `filters` keep. With `chat` they are conversations, see `growlm.data.chat`.
    """

    field: str = "text"
    errors: str = "strict"
    filters: tuple[Filter, ...] = ()
    chat: bool = False


def cut(text: str, size: int) -> Iterator[str]:
    """The text in pieces of at most `size` bytes, cut as `Document.pieces` are."""
    return pieces_of(io.BytesIO(encoded(text)), "", ESCAPED, size)


def encoded(text: str) -> bytes:
    """The text in UTF-8, and markers of conversations as single bytes."""
    return text.encode("utf-8", ESCAPED)


def of_record(record: Any, place: str, reading: Reading) -> Document | None:
    """The document in a field of a record, or None for one that a filter leaves out.

    Raises InputError where a field is missing, or is not text.
    """
    if not all(each.keeps(record, place) for each in reading.filters):
        return None
    if reading.chat:
        said = [(role, _clean(content, place, reading.errors)) for role, content in messages_of(record, place)]
        return _whole(render(said), place)
    fields = record if isinstance(record, dict) else {}
    text = fields.get(reading.field)
    if isinstance(text, bytes):
        text = decode(text, place, 0, reading.errors)
    if not isinstance(text, str):
        names = ", ".join(map(str, fields)) or "none"
        raise InputError(f"{place} has no text in field {reading.field!r}: its fields are {names} (--field=NAME)")
    return _whole(_clean(text, place, reading.errors), place)


def _whole(text: str, place: str) -> Document:
    return Document(place, iter([text]) if len(text) <= PIECE_BYTES // 4 else cut(text, PIECE_BYTES))


def _clean(text: str, place: str, errors: str) -> str:
    text = text if text.isascii() else _without_surrogates(text, place, errors)
    return text.replace("\0", "\ufffd") if errors == "replace" else text


def _without_surrogates(text: str, place: str, errors: str) -> str:
    """The text without the half characters that JSON can escape and UTF-8 cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        if errors == "strict":
            raise _not_utf8(place, f"half a character, U+{ord(text[error.start]):04X}", error.start) from None
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def pieces_of(stream: BinaryIO, place: str, errors: str, size: int) -> Iterator[str]:
    """The text of a stream, cut where tokenizers cut too: after a line, or else before a space."""
    buffer, start = b"", 0
    while buffer := buffer + stream.read(size - len(buffer)):
        end = len(buffer) if len(buffer) < size else _border(buffer)
        yield decode(buffer[:end], place, start, errors)
        buffer, start = buffer[end:], start + end


def _border(data: bytes) -> int:
    """The position to cut text that goes on, never within a character."""
    if (end := data.rfind(b"\n") + 1) or (end := data.rfind(b" ")) > 0:
        return end
    lead = next((i for i in range(1, min(4, len(data))) if data[-i] >= 0xC0), None)  # a character of several bytes
    return len(data) - lead if lead and lead < len(data) else len(data)


def decode(data: bytes, place: str, start: int, errors: str) -> str:
    """The text of bytes that begin at position `start`. Raises InputError at the first byte that is not UTF-8."""
    try:
        text = data.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise _not_utf8(place, f"byte 0x{data[error.start]:02x}", start + error.start) from None
    return text.replace("\0", "\ufffd") if errors == "replace" else text


def _not_utf8(place: str, found: str, position: int) -> InputError:
    return InputError(f"{place} must be UTF-8 (or --errors=replace), got {found} at position {position}")
