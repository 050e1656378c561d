"""The one exception that means 'the input is wrong', and the one way to say which names are allowed."""

import difflib
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
