"""The published systems as rows for the guide: their stages, growths and rates, and what of each is whose."""

import dataclasses
from collections.abc import Sequence

from growlm.growth.preset import Preset, StageShape
from growlm.growth.presets import growth_in_words
from growlm.growth.published import PRESETS
from growlm.models import DecoderConfig, MixtralConfig, ModelConfig

COLUMNS = ("system", "published as", "stages", "tokens, %", "growth", "optimizer", "schedule")
WHOSE = ("system", "the paper's", "ours", "not published")


def example(preset: Preset) -> DecoderConfig:
    """A target that the system divides: of its own architecture, a mixture where that grows, else a Llama."""
    if preset.example is not None:
        return preset.example
    if len(preset.experts(1)) > 1:
        return MixtralConfig(
            2, embed=12, heads=6, kv_heads=6, head_dim=2, mlp=18, vocab=5, experts=8, experts_per_token=2
        )
    return ModelConfig(preset.layers, embed=12, heads=6, kv_heads=6, head_dim=2, mlp=18, vocab=5)


def rows() -> list[tuple[str, ...]]:
    """Under `COLUMNS`, a row for each system."""
    return [
        (
            f"`{preset.name}`",
            preset.paper,
            _sizes(preset.stages(example(preset))),
            "-".join(f"{100 * stage.share:.3g}" for stage in preset.stages(example(preset))),
            growth_in_words(preset),
            preset.optimizer_state,
            _schedule(preset),
        )
        for preset in PRESETS.values()
    ]


def whose() -> list[tuple[str, ...]]:
    """Under `WHOSE`, a row for each system."""
    return [(f"`{each.name}`", each.published, each.ours, each.unknown) for each in PRESETS.values()]


def _sizes(stages: Sequence[StageShape]) -> str:
    """What differs between stages, each with its values: sizes of their models, and how sparse they are."""
    plain = [dataclasses.asdict(stage.model) | {"sparsity": f"{stage.sparsity:g}"} for stage in stages]
    found = {name: [sizes[name] for sizes in plain] for name in plain[0]}
    grown = {name: sizes for name, sizes in found.items() if sizes.count(sizes[0]) < len(sizes)}
    return ", ".join(f"{name} {'-'.join(map(str, sizes))}" for name, sizes in grown.items())


def _schedule(preset: Preset) -> str:
    own = [f"{name} {value:g}" if isinstance(value, float) else str(value) for name, value in preset.schedule.items()]
    rewarm = f"re-warm of {preset.rewarm_steps} steps" + (" of new slices" if preset.rewarm == "new" else "")
    return ", ".join([preset.rates, *own, *[rewarm] * bool(preset.rewarm_steps)])
