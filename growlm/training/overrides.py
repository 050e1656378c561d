"""Settings from a command line: --NAME.key=value, with a value as Python writes it."""

import ast
from collections.abc import Iterable
from typing import Any

from growlm.errors import InputError


def pairs(option: str, texts: Iterable[str]) -> dict[str, Any]:
    """What was given as OPTION.key=value by key, values as Python literals or, where they are none, as text."""
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InputError(f"a key of {option} must be {option}.key=value, got '{option}.{text}'")
        if key in found:
            raise InputError(f"{option}.{key} must be given once, got it twice")
        found[key] = literal(value)
    return found


def literal(text: str) -> Any:
    """The Python literal that a text spells, or true or false; where it spells none, the text."""
    try:
        return {"true": True, "false": False}[text] if text in ("true", "false") else ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
