"""Tables of measurements, CSV or JSON, as columns of numbers."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from growlm.checked import parse_json
from growlm.errors import InputError, must_be, unknown

FAMILY = "family"  # the one column of names
SEED = "seed"  # the one column of numbers that may be zero


def read_table(
    path: Path, columns: Sequence[str], named: Mapping[str, str], optional: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """The columns of a CSV file, of a JSON array of rows, or of a JSON object of such arrays, whose keys are families.

    Args:
        path: the file; its ending says which.
        columns: those that are needed.
        named: what the file calls a column, where that is another name.
        optional: those that are taken where the first row has them.

    Returns:
        float64[rows] by column; of `family` text.

    Raises:
        InputError: no such file, a file of another kind, without rows or without a column, or what is no
          positive number.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = _json_rows(parse_json(text), path) if path.suffix == ".json" else [*csv.DictReader(text.splitlines())]
    except (OSError, ValueError) as error:
        raise error if isinstance(error, InputError) else InputError(f"cannot read {path}: {error}") from error
    if not rows:
        raise InputError(f"{path} must have rows, got none")
    if strangers := named.keys() - {*columns, *optional}:
        raise unknown("column", min(strangers), (*columns, *optional))
    found = {}
    for column in (*columns, *(one for one in optional if one in named or one in rows[0])):
        name = named.get(column, column)
        if any(row.get(name) is None for row in rows):
            has = ", ".join(map(str, dict.fromkeys(key for row in rows for key in row if key is not None)))
            raise InputError(f"{path} must have {name} in every row, got {has} (--column.{column}=NAME names another)")
        values = [row[name] for row in rows]
        if column == FAMILY:
            found[column] = np.array([str(value) for value in values])
        else:
            found[column] = np.array(_numbers(path, name, values, low=-math.inf if column == SEED else 0))
    return found


def _json_rows(value: Any, path: Path) -> list[dict[str, Any]]:
    """The rows of either form of JSON."""
    groups = value.items() if isinstance(value, dict) else [(None, value)]
    rows = []
    for key, group in groups:
        if not isinstance(group, list) or not all(isinstance(row, dict) for row in group):
            raise must_be(str(path), "an array of rows, or an object of such arrays", key or type(value).__name__)
        rows += [row if key is None else {FAMILY: key} | row for row in group]
    return rows


def _numbers(path: Path, name: str, values: Sequence[Any], low: float) -> list[float]:
    numbers = []
    for row, value in enumerate(values, start=1):
        try:
            numbers.append(float(value))
        except (TypeError, ValueError):
            numbers.append(math.nan)
        if not low < numbers[-1] < math.inf:
            raise must_be(f"{name} in row {row} of {path}", f"a {'positive' if low == 0 else 'finite'} number", value)
    return numbers
