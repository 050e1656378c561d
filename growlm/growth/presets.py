"""What a preset's name stands for, what it claims to keep, and the table of all presets as text."""

import dataclasses
import itertools
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from growlm.errors import unknown
from growlm.growth.claims import claim
from growlm.growth.operators import OPERATORS, SHRINKS, current_options, plan_growth
from growlm.growth.preset import Preset, scaled_widths
from growlm.growth.published import PRESETS
from growlm.models import Kind, MixtralConfig, ModelConfig


@dataclasses.dataclass(frozen=True)
class Resolved:
    """The growth that a name stands for, with the caller's options."""

    operator: str
    options: dict[str, Any]
    optimizer_state: str
    train: str


def resolve(name: str, options: Mapping[str, Any] | None = None) -> Resolved:
    """The growth that an operator's or preset's name stands for; these options override the preset's.

    Raises InputError for an unknown name, and for an option given by its old and its new name.
    """
    if name in OPERATORS or name in SHRINKS:
        return Resolved(name, current_options(name, options or {}), "reset", "all")
    if name not in PRESETS:
        raise unknown("growth operator or preset", name, [*OPERATORS, *SHRINKS, *PRESETS])
    preset = PRESETS[name]
    options = preset.options | current_options(preset.operator, options or {})
    return Resolved(preset.operator, options, preset.optimizer_state, preset.train)


def keeps_function(preset: Preset, grows: str) -> bool | None:
    """Whether a preset claims to keep the function when only "depth", "width" or "mixture" grows; None where none does.

    Claims are made for every growth of its schedule, on small shapes.
    """
    model = MixtralConfig if grows == "mixture" else ModelConfig
    target = preset.example or model(preset.layers, embed=12, heads=6, kv_heads=6, head_dim=2, mlp=18, vocab=5)
    if grows == "mixture" and not target.architecture.of_kind(Kind.EXPERTS):
        return None
    stages = [stage.model for stage in preset.stages(target)]
    if preset.before is not None:
        wider = any(getattr(stages[0], name) != getattr(target, name) for name in scaled_widths(target))
        if wider is not (grows == "width"):
            return None
    depth = tuple(axis.field for axis in target.architecture.of_kind(Kind.STACK))
    kept = {"depth": scaled_widths(target), "width": depth, "mixture": (*scaled_widths(target), *depth)}[grows]
    still = {name: getattr(target, name) for name in kept}
    moving = [field.name for field in dataclasses.fields(target) if field.name not in kept]
    claims = []
    for pair in itertools.pairwise(stages):
        if any(getattr(pair[0], name) != getattr(pair[1], name) for name in moving):
            source, grown = (dataclasses.replace(model, **still) for model in pair)
            claims.append(claim(plan_growth(preset.operator, source, grown, _ANY_KEY, **preset.options), source, grown))
    return all(holds for holds, _ in claims) if claims else None


_ANY_KEY = np.zeros(2, np.uint32)  # claims hold for every key; of a JAX key the data would have to be computed


# Heading and width of every column of the table.
_GROWS = {"depth": 5, "width": 5, "mixture": 7}
_COLUMNS = {"preset": 23, "paper": 22, "growth": 28, "stages": 11} | _GROWS | {"what is whose": 40}


def table() -> str:
    """The table of presets as text: growth, stages, function preservation in depth and in width, what is whose."""
    head = dict(zip(_COLUMNS, _COLUMNS, strict=True))
    rule = {name: "-" * width for name, width in _COLUMNS.items()}
    note = "depth, width, mixture: whether the growth claims to keep the function (masks at 0); -: no such growth"
    lines = itertools.chain.from_iterable(_lines(row.values()) for row in (head, rule, *map(_row, PRESETS.values())))
    return "\n".join([*lines, "", note])


def _row(preset: Preset) -> dict[str, str]:
    more = [f"optimizer {preset.optimizer_state}"] * (preset.optimizer_state != "reset")
    said = {"Paper": preset.published, "Ours": preset.ours, "Unpublished": preset.unknown}
    depths = [f"{size:g}" for size in preset.depths(preset.layers)]
    if preset.example is not None:
        depths = [str(len(stage.model.executed)) for stage in preset.stages(preset.example)]
    answers = {True: "yes", False: "no", None: "-"}
    return {
        "preset": preset.name,
        "paper": preset.paper,
        "growth": "; ".join([growth_in_words(preset), *more]),
        "stages": "-".join(depths),
        **{grows: answers[keeps_function(preset, grows)] for grows in _GROWS},
        "what is whose": " ".join(f"{whose}: {text}" for whose, text in said.items() if text),
    }


def growth_in_words(preset: Preset) -> str:
    """The operator and options of a system, and what it trains if not all."""
    options = " ".join(f"{name}={_shown(value)}" for name, value in preset.options.items())
    return "; ".join([f"{preset.operator} {options}".strip(), *[f"trains {preset.train}"] * (preset.train != "all")])


def _shown(value: Any) -> str:
    return "[...]" if isinstance(value, list) else f"{value:.4g}" if isinstance(value, float) else f"{value}"


def _lines(cells: Iterable[str]) -> list[str]:
    """One row, with every cell wrapped to the width of its column."""
    wrapped = [textwrap.wrap(cell, width) for cell, width in zip(cells, _COLUMNS.values(), strict=True)]
    return [
        "  ".join(part.ljust(width) for part, width in zip(parts, _COLUMNS.values(), strict=True)).rstrip()
        for parts in itertools.zip_longest(*wrapped, fillvalue="")
    ]
