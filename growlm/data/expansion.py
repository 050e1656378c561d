"""By how much a tokenizer's file lets a text grow, and how long it lets a library search: checked before one reads it.

The libraries do what a file says: ten replacements of a letter by ten make 10^10 letters of one, and what they cannot
allocate ends the process. A file says it in its steps (`normalizer`, `pre_tokenizer`, `decoder` of a tokenizer.json),
or in a table of SentencePiece's, which a tokenizer.json may hold too.
"""

import base64
import binascii
import math
from collections.abc import Iterator
from typing import Any

from growlm.checked import parse_json
from growlm.errors import InputError, is_number

MOST = 64  # times a text may grow in bytes: known ones take 12, and five steps that each may double it 32
LONGEST_NORMAL = 64  # bytes in place of a character; in Unicode's own tables the most are 33
LONGEST_TOKEN = 1024  # bytes in a unigram model, which looks for the longest from every place of a text
LONGEST_WORD = 256  # characters in a WordPiece model, which takes the third power of it; BERT's has 100
STEPS = ("normalizers", "pretokenizers", "decoders")  # of a sequence


def check_json(content: bytes, source: object) -> dict[str, Any]:
    """What a tokenizer.json holds. Raises InputError where it makes far more of a text than it was, or is no JSON."""
    try:
        whole = parse_json(content)
    except ValueError as error:
        raise InputError(f"{source} must be a tokenizer.json, got {error}") from None
    whole = whole if isinstance(whole, dict) else {}
    before = [step for name in ("normalizer", "pre_tokenizer") for step in _steps(whole.get(name), source)]
    for steps in (before, [*_steps(whole.get("decoder"), source)]):
        if (times := math.prod(map(_times, steps))) > MOST:
            raise InputError(f"{source} must make at most {MOST} bytes of one of a text, its steps make {times:.4g}")
    for step in before:
        with_table = step.get("precompiled_charsmap")
        if isinstance(with_table, str):
            _check_table(_decoded(with_table), source)
    model = whole.get("model")
    model = model if isinstance(model, dict) else {}
    if isinstance(vocabulary := model.get("vocab"), list):
        first = (row[0] for row in vocabulary if isinstance(row, list) and row)
        _check_tokens((token for token in first if isinstance(token, str)), source)
    word = model.get("max_input_chars_per_word", 0)
    if is_number(word) and word > LONGEST_WORD:
        raise InputError(f"max_input_chars_per_word of {source} must be at most {LONGEST_WORD}, got {word}")
    return whole


def searches(whole: dict[str, Any], *parts: str) -> bool:
    """Whether one of these parts of a tokenizer.json has a regular expression of its own; the library's are quick."""
    patterns = (step.get("pattern") for part in parts for step in _steps(whole.get(part), "a tokenizer"))
    return any(isinstance(pattern, dict) and "Regex" in pattern for pattern in patterns)


def normalises_tokens(whole: dict[str, Any]) -> bool:
    """Whether a tokenizer.json adds tokens that are normalised when it is read."""
    tokens = whole.get("added_tokens")
    return isinstance(tokens, list) and any(isinstance(one, dict) and one.get("normalized") for one in tokens)


def check_model(content: bytes, source: object) -> None:
    """Raises InputError for a SentencePiece model, which its library has read, that makes far more of a text."""
    for number, value in _fields(content):
        if number in (3, 5):  # how text is normalised, and how it is when it is decoded
            for inner, table in _fields(value):
                if inner == 2:
                    _check_table(table, source)
        if number == 1 and len(value) > LONGEST_TOKEN:  # a piece: there may be a quarter of a million
            _check_tokens((piece for inner, piece in _fields(value) if inner == 1), source)


def _steps(node: Any, source: object) -> Iterator[dict[str, Any]]:
    """The steps of a sequence, and of those in it. Raises InputError for a list in the place of an object, as one."""
    if node is None:
        return
    if not isinstance(node, dict):
        raise InputError(f"a step of {source} must be an object, got {str(node)[:60]!r}")
    if not (names := [name for name in STEPS if name in node]):
        yield node
    for name in names:
        if not isinstance(node[name], list):
            raise InputError(f"{name} of {source} must be a list, got {str(node[name])[:60]!r}")
        for inner in node[name]:
            yield from _steps(inner, source)


def _times(step: dict[str, Any]) -> float:
    """How many bytes a step makes of one at most, tables aside. Steps may have no type: keys say what they are."""
    content, pattern = step.get("content"), step.get("pattern")
    if isinstance(content, str) and pattern is not None:
        literal = pattern.get("String") if isinstance(pattern, dict) else pattern
        per = len(literal.encode("utf-8", "replace")) if isinstance(literal, str) else 0
        size = len(content.encode("utf-8", "replace"))
        return max(1.0, size / per) if per else 1.0 + size  # a regular expression may match what is empty, everywhere
    if isinstance(prefix := step.get("prepend"), str):
        return max(1.0, len(prefix.encode("utf-8", "replace")) / 4)
    return 2 if step.get("type") == "ByteLevel" or "trim_offsets" in step else 1  # other bytes than ASCII's become two


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text)
    except (binascii.Error, ValueError):
        return b""


def _check_table(table: bytes, source: object) -> None:
    """The texts of a table come after a trie, whose size comes first; each ends with NUL."""
    texts = table[4 + int.from_bytes(table[:4], "little") :]
    if (longest := max(map(len, texts.split(b"\0")))) > LONGEST_NORMAL:
        raise InputError(f"{source} must have at most {LONGEST_NORMAL} bytes in place of a character, got {longest}")


def _check_tokens(tokens: Iterator[str | bytes], source: object) -> None:
    longest = max((len(one.encode("utf-8", "replace") if isinstance(one, str) else one) for one in tokens), default=0)
    if longest > LONGEST_TOKEN:
        raise InputError(f"a token of {source} must have at most {LONGEST_TOKEN} bytes, got {longest}")


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """(number, content) of the fields of a protocol buffer that are texts, bytes or messages."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while at < len(message):
            byte = message[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128 or shift > 63:
                break
        return value

    while at < len(message):
        key = varint()
        if key & 7 == 2:
            size = varint()
            yield key >> 3, message[at : at + size]
            at += size
        elif key & 7 == 0:
            varint()
        else:
            at += {1: 8, 5: 4}.get(key & 7, len(message))
