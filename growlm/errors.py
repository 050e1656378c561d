"""The one exception that means 'the input is wrong', and the one way to say which names are allowed."""

import difflib
import math
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input. The message is one line that names the value and what is allowed; the command exits with 2."""


def unknown(kind: str, name: object, allowed: Iterable[str], where: str = "") -> InputError:
    """An InputError for a name that is not in a table, with the nearest valid name first."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(str(name), allowed, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    place = f" in {where}" if where else ""
    names = ", ".join(name or repr(name) for name in allowed) or "none"
    return InputError(f"unknown {kind} {str(name)!r}{place}: {hint}allowed: {names}")


def check_name(key: str, value: str, allowed: Iterable[str]) -> None:
    """Raises InputError unless the value is one of the allowed names."""
    if value not in allowed:
        raise unknown(key, value, allowed)


def check_range(key, value, low=None, high=None, low_allowed=True, high_allowed=True) -> None:
    """Raises InputError, one message for every number out of range. NaN and infinities are always."""
    if abs(value) == math.inf:
        raise InputError(f"{key} is {value!r}: allowed are finite numbers")
    above = low is None or value > low or (low_allowed and value == low)
    below = high is None or value < high or (high_allowed and value == high)
    if not (above and below):
        left = "" if low is None else f"{'>=' if low_allowed else '>'} {low}"
        right = "" if high is None else f"{'<=' if high_allowed else '<'} {high}"
        raise InputError(f"{key} is {value!r}: allowed is {' and '.join(filter(None, (left, right)))}")


def check_positive(name: str, value: object) -> None:
    """Raises InputError unless the value is a finite positive number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InputError(f"{name} is {value!r}: allowed are positive numbers")
