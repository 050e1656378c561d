"""Which operators keep the function of which architecture, as a table that claims make."""

import dataclasses
from typing import Any

import jax

from growlm.errors import InputError
from growlm.files import table
from growlm.growth.claims import claim
from growlm.growth.operators import OPERATORS
from growlm.growth.targets import plan_target
from growlm.models import ARCHITECTURES, Architecture, DecoderConfig, Kind

# The options with which operators keep a function, where that is not by default.
KEEPING: dict[str, dict[str, Any]] = {"direct": {"zero_residual": True}, "random": {"mask_tokens": 1}}

COLUMNS = ("architecture", "Hugging Face, in and out", "exact in depth", "exact in width")


def example(architecture: Architecture) -> DecoderConfig:
    """A small model of the architecture."""
    return architecture.config(**architecture.example)


def exact(architecture: Architecture, fields: tuple[str, ...]) -> list[str]:
    """The operators that claim to keep the function where these sizes are doubled."""
    source, found = example(architecture), []
    target = dataclasses.replace(source, **{name: 2 * getattr(source, name) for name in fields})
    for operator in OPERATORS:
        try:
            grown, growth = plan_target(operator, source, target, jax.random.key(0), **KEEPING.get(operator, {}))
        except InputError:
            continue
        found += [operator] * claim(growth, source, grown)[0]
    return found


def rows() -> list[tuple[str, ...]]:
    """A row for each architecture: its name, its families in transformers, its exact operators."""
    found = []
    for name, architecture in ARCHITECTURES.items():
        stack = architecture.stack.field
        # Heads keep their size, with which rotary frequencies would change; of experts as many times more are chosen.
        wide = [axis.field for axis in architecture.of_kind(Kind.STREAM, Kind.INNER, Kind.HEADS, Kind.EXPERTS)]
        chosen = [axis.chosen for axis in architecture.axes if axis.chosen]
        ways = (exact(architecture, fields) for fields in ((stack,), (*dict.fromkeys(wide), *chosen)))
        found.append((name, ", ".join(architecture.families) or "-", *(", ".join(way) or "-" for way in ways)))
    return found


def overview() -> str:
    """The table as text."""
    return table([COLUMNS, *rows()], rule=True)
