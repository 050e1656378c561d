"""Published systems by name: the stages of a run that says `system`, at the cost of its target from scratch."""

import dataclasses
from typing import Any

from growlm.errors import InputError
from growlm.growth import PRESETS
from growlm.growth.preset import Preset, StageShape
from growlm.models import parameter_count, with_depth
from growlm.training.schedules import WITH_HORIZON, ScheduleConfig
from growlm.training.settings import GrowthConfig, RunConfig, StageConfig
from growlm.training.sparsity import density
from growlm.training.stages import resolve


def written_out(run: RunConfig) -> RunConfig:
    """The run that a config stands for: the stages of its system in place of its target's, or itself where it has none.

    6 x parameters x tokens over all stages, learning of maps included, is that of the target on its tokens, or less by
    at most one batch of it. The tokens of the last stage are what the others leave, so the schedule of sub-models that
    are drawn by the run's seed is counted as it is drawn.

    Raises InputError: a target that the schedule does not divide, a budget too small for a stage.
    """
    if run.system is None:
        return run
    preset, target = PRESETS[run.system], run.stages[0]
    shapes = preset.stages(target.model)
    if len(shapes) == 1:
        raise InputError(f"system {preset.name!r} must have something to grow, got a target of which it grows nothing")
    batch = target.batch * target.length
    tokens = [*_tokens(shapes, target)[:-1], batch]  # the last stage's until it is known what the others leave

    def run_of(stages: tuple[StageConfig, ...]) -> RunConfig:
        return dataclasses.replace(run, system=None, system_options={}, stages=stages)

    *_, last = resolve(run_of(_stages(preset, shapes, run, tokens)), "")
    (scratch,) = resolve(run_of(run.stages), "")
    left = scratch.cost_at(scratch.last_step).flops - last.first_cost.flops
    tokens[-1] = int(left / scratch.cost_at(1).flops + 1e-6) * batch
    _check_budget(preset, target, tokens)
    return run_of(_stages(preset, shapes, run, tokens))


def _tokens(shapes: tuple[StageShape, ...], target: StageConfig) -> list[int]:
    """Whole batches by shares that cost what the target costs, where sub-models are drawn alike."""
    sizes = [_mean_parameters(shape) for shape in shapes]
    cost = sum(shape.share * size for shape, size in zip(shapes, sizes, strict=True)) / sizes[-1]
    batch = target.batch * target.length
    return [round(shape.share * (target.tokens // batch) / cost) * batch for shape in shapes]


def _mean_parameters(shape: StageShape) -> float:
    block, depth = shape.submodel_layers, shape.model.depth
    depths = range(block, depth + 1, block) if block else [depth]
    models = [with_depth(shape.model, layers) if block else shape.model for layers in depths]
    counts = [parameter_count(one, active=True, density=density(one, shape.sparsity)) for one in models]
    return sum(counts) / len(counts)


def _check_budget(preset: Preset, target: StageConfig, tokens: list[int]) -> None:
    small = [number for number, given in enumerate(tokens) if given < target.batch * target.length]
    if small:
        raise InputError(
            f"stages[0].tokens must be enough for a batch in each of the {len(tokens)} stages of system "
            f"{preset.name!r}, got {target.tokens}, which leaves none for stage {small[0] + 1}"
        )


def _stages(
    preset: Preset, shapes: tuple[StageShape, ...], run: RunConfig, tokens: list[int]
) -> tuple[StageConfig, ...]:
    target = run.stages[0]
    by_budget = preset.by_budget(target.tokens, target.tokens // (target.batch * target.length))
    growth = GrowthConfig(operator=preset.name, options=by_budget | run.system_options)
    return tuple(
        dataclasses.replace(
            target,
            model=shape.model,
            tokens=given,
            schedule=_schedule(preset, target, number, len(shapes), sum(tokens)),
            growth=growth if number else None,
            frozen_layers=shape.frozen_layers,
            submodel_layers=shape.submodel_layers,
            sparsity=shape.sparsity,
        )
        for number, (shape, given) in enumerate(zip(shapes, tokens, strict=True))
    )


def _schedule(preset: Preset, target: StageConfig, number: int, stages: int, tokens: int) -> ScheduleConfig:
    """The schedule of a stage, from its target's."""
    own: dict[str, Any] = dict(preset.schedule)
    kind = own.get("kind", target.schedule.kind)
    if preset.rates == "continue":
        if kind in WITH_HORIZON:
            own["horizon_tokens"] = target.schedule.horizon_tokens or tokens
        if number:
            rewarm = preset.rewarm_steps * target.batch * target.length
            own |= {"at_growth": "continue", "rewarm_tokens": rewarm, "rewarm": preset.rewarm}
    elif preset.rates == "constant" and number < stages - 1:
        own["kind"] = "constant"
    elif preset.rates == "rewind" and number:
        own["warmup_tokens"] = 0
    return dataclasses.replace(target.schedule, **own)
