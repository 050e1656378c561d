"""InputError, which means 'the input is wrong', the one form of its message, and the other ways to end early."""

import difflib
import importlib
import math
from collections.abc import Iterable
from types import ModuleType
from typing import TypeGuard

LONGEST = 2000  # characters of a message: what it quotes may be any file's


class InputError(ValueError):
    """Bad input. The message is one line, 'X must be Y, got Z'; the command exits with 2.

    It is one whatever it quotes: characters that break a line, or that no terminal can print, are written as escapes.
    """

    def __init__(self, message: str):
        text = message if len(message) <= LONGEST else f"{message[:LONGEST]} ..."
        super().__init__("".join(c if c.isprintable() or c == " " else ascii(c)[1:-1] for c in text))


class InUseError(InputError):
    """Another process has the folder, and alone may write it."""


class DivergedError(RuntimeError):
    """The loss or the gradient is no longer finite."""


class StoppedError(RuntimeError):
    """The process was asked to stop, and what it had was saved."""


class BrokenClaimError(RuntimeError):
    """The grown model is not what its growth claims; nothing was written."""


def must_be(name: str, rule: str, value: object) -> InputError:
    """InputError 'NAME must be RULE, got VALUE'."""
    return InputError(f"{name} must be {rule}, got {value!r}")


def unknown(kind: str, name: object, allowed: Iterable[str], where: str = "") -> InputError:
    """An InputError for a name that is not in a table, with the nearest valid name, if one is near."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(str(name), allowed, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    place = f" in {where}" if where else ""
    names = ", ".join(name or repr(name) for name in allowed) or "none"
    return InputError(f"{kind}{place} must be one of {names}, got {str(name)!r}{hint}")


def check_name(key: str, value: str, allowed: Iterable[str]) -> None:
    """Raises InputError unless the value is one of the allowed names."""
    if value not in allowed:
        raise unknown(key, value, allowed)


def check_range(key, value, low=None, high=None, low_allowed=True, high_allowed=True) -> None:
    """Raises InputError, one message for every number out of range. NaN and infinities are always."""
    if abs(value) == math.inf:
        raise must_be(key, "finite", value)
    above = low is None or value > low or (low_allowed and value == low)
    below = high is None or value < high or (high_allowed and value == high)
    if not (above and below):
        left = "" if low is None else f"{'>=' if low_allowed else '>'} {low}"
        right = "" if high is None else f"{'<=' if high_allowed else '<'} {high}"
        raise must_be(key, " and ".join(filter(None, (left, right))), value)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether it is a number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_count(name: str, value: object, low: int) -> None:
    """Raises InputError unless the value is an integer, and not below `low`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise must_be(name, f"an integer >= {low}", value)


def check_positive(name: str, value: object) -> None:
    """Raises InputError unless the value is a finite positive number."""
    if not is_number(value) or not 0 < value < math.inf:
        raise must_be(name, "a positive number", value)


def in_one_line(error: BaseException) -> str:
    """The message of a library's error on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def import_library(name: str, extra: str = "data") -> ModuleType:
    """A library of an extra. Raises InputError that names the extra where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(f"this needs the library {name}: pip install growlm[{extra}]") from None
