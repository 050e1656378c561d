"""The table of presets as text."""

import itertools
import textwrap
from collections.abc import Iterable
from typing import Any

from growlm.growth.presets import PRESETS, Preset, keeps_function

# Heading and width of every column of the table.
_GROWS = {"depth": 5, "width": 5, "mixture": 7}
_COLUMNS = {"preset": 23, "paper": 22, "growth": 28, "stages": 11} | _GROWS | {"what is exact": 40}


def table() -> str:
    """The table of presets as text: growth, stages, function preservation in depth and in width, what is exact."""
    head = dict(zip(_COLUMNS, _COLUMNS, strict=True))
    rule = {name: "-" * width for name, width in _COLUMNS.items()}
    note = "depth, width, mixture: whether the growth claims to keep the function (masks at 0); -: no such growth"
    lines = itertools.chain.from_iterable(_lines(row.values()) for row in (head, rule, *map(_row, PRESETS.values())))
    return "\n".join([*lines, "", note])


def _row(preset: Preset) -> dict[str, str]:
    options = " ".join(f"{name}={_shown(value)}" for name, value in preset.options.items())
    more = [f"optimizer {preset.optimizer_state}"] * (preset.optimizer_state != "reset")
    more += [f"trains {preset.train}"] * (preset.train != "all")
    depths = [f"{size:g}" for size in preset.depths(preset.layers)]
    if preset.example is not None:
        depths = [str(len(stage.model.executed)) for stage in preset.stages(preset.example)]
    answers = {True: "yes", False: "no", None: "-"}
    return {
        "preset": preset.name,
        "paper": preset.paper,
        "growth": "; ".join([f"{preset.operator} {options}".strip(), *more]),
        "stages": "-".join(depths),
        **{grows: answers[keeps_function(preset, grows)] for grows in _GROWS},
        "what is exact": preset.exact,
    }


def _shown(value: Any) -> str:
    return "[...]" if isinstance(value, list) else f"{value:.4g}" if isinstance(value, float) else f"{value}"


def _lines(cells: Iterable[str]) -> list[str]:
    """One row, with every cell wrapped to the width of its column."""
    wrapped = [textwrap.wrap(cell, width) for cell, width in zip(cells, _COLUMNS.values(), strict=True)]
    return [
        "  ".join(part.ljust(width) for part, width in zip(parts, _COLUMNS.values(), strict=True)).rstrip()
        for parts in itertools.zip_longest(*wrapped, fillvalue="")
    ]
