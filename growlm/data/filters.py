"""Filters on fields of records: FIELD=VALUE and FIELD!=VALUE, with a dotted path to a field within a field."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from growlm.errors import InputError, must_be


@dataclass(frozen=True)
class Filter:
    """Keeps the records whose field is a value, or is another one.

    Attributes:
      field: the names on the way to the field, "meta.source".
      value: text; a number, true, false and null as JSON writes them.
      equal: whether the field must be the value.
    """

    field: str
    value: str
    equal: bool = True

    @classmethod
    def of(cls, text: str) -> "Filter":
        """The filter FIELD=VALUE or FIELD!=VALUE. Raises InputError."""
        field, sign, value = text.partition("=")
        equal = not field.endswith("!")
        field = field.removesuffix("!")
        if not sign or not all(field.split(".")):
            raise must_be("--filter", "FIELD=VALUE or FIELD!=VALUE, such as meta.source!=web", text)
        return cls(field, value, equal)

    def __str__(self) -> str:
        return f"{self.field}{'' if self.equal else '!'}={self.value}"

    def keeps(self, record: Any, place: str) -> bool:
        """Whether a record stays. Raises InputError where it has no such field, or that holds fields or a list."""
        return (_text(self.find(record, place), self, place) == self.value) == self.equal

    def find(self, record: Any, place: str) -> Any:
        """What is in the field. Raises InputError where there is none."""
        value = record
        for name in self.field.split("."):
            if not isinstance(value, Mapping) or name not in value:
                names = ", ".join(map(str, value)) if isinstance(value, Mapping) and value else "none"
                raise InputError(f"{place} has no field {name!r} of --filter={self}: there are {names}")
            value = value[name]
        return value


def _text(value: Any, of: Filter, place: str) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    value = value.item() if hasattr(value, "item") else value  # a number of NumPy's
    if isinstance(value, str):
        return value
    if value is not None and not isinstance(value, bool | int | float):
        raise InputError(
            f"{place} field {of.field!r} must be text or a number for --filter, got {type(value).__name__}"
        )
    return json.dumps(value)
