"""Places in plain settings: what a path means, under present and former names; and what a text says."""

import ast
import dataclasses
import re
import typing
from typing import Any

from growlm.errors import InputError, must_be, unknown
from growlm.training.settings import RunConfig, StageConfig

# Section of a config -> former name -> name, from the metadata of its fields. Former names are read for one version.
FORMER = {
    section.name: {
        field.metadata["formerly"]: field.name for field in dataclasses.fields(kind) if "formerly" in field.metadata
    }
    for cls in (RunConfig, StageConfig)
    for section in dataclasses.fields(cls)
    for kind in (section.type, *typing.get_args(section.type))
    if dataclasses.is_dataclass(kind)
}


def present_name(section: str, key: str, former: list[str]) -> str:
    """The present name of a key; a former one is added to `former`, in words."""
    name = FORMER.get(section, {}).get(key, key)
    if name != key:
        former.append(f"{section}.{key} is {section}.{name} now")
    return name


def canonical(path: str) -> str:
    """The path with its indices in brackets: stages.-1.tokens is stages[-1].tokens."""
    return re.sub(r"\.(-?\d+)(?=[.\[]|$)", r"[\1]", path)


def set_value(settings: dict[str, Any], path: str, value: Any, former: list[str], where: str) -> None:
    """Set `stages[1].schedule.peak_lr` or another path; -1 is the last. `where`: what an error calls the place.

    Names are checked later, in one place, when dataclasses are built. Raises InputError: no such index, no section.
    """
    keys = path.replace("[", ".").replace("]", "").split(".")
    node, section = settings, ""
    for depth, key in enumerate(keys):
        if isinstance(node, list):
            if not re.fullmatch(r"-?\d+", key) or not -len(node) <= int(key) < len(node):
                raise must_be(f"index in {where}", f"0 to {len(node) - 1}, or from the end, -1 to {-len(node)}", key)
            key = int(key)
        elif not isinstance(node, dict):
            raise InputError(f"{where}: {'.'.join(keys[:depth])} is the value {node!r}, it has no {key!r}")
        elif keys[:depth] == ["runs"] and key not in node:
            raise unknown("run", key, node, where=where)
        else:
            section = key = present_name(section, key, former)
        if depth == len(keys) - 1:
            node[key] = value
        else:
            node = node[key] if isinstance(node, list) else node.setdefault(key, {})


def literal(text: str) -> Any:
    """The Python literal that a text spells; where it spells none, the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
