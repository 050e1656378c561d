"""What the laws need of the runs of sweeps: sizes, when and by how much each grew, its seed and its losses."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growlm.errors import InputError
from growlm.laws.speedup import Curve, curve, loss_at
from growlm.models import DecoderConfig, parameter_count
from growlm.report.records import Run, homes, read
from growlm.training.config import build_model

# A run is read off at a budget only where its growth was paid with no more than this share of it.
GROWN_BY = 0.8


@dataclass(frozen=True)
class Outcome:
    """One run that is done.

    Attributes:
        name: its folder and name.
        seed: of the run.
        params: parameters of its last model, all of them.
        stages: how many it had.
        grown_at: tokens before its first growth; 0 without one.
        grown_flops: FLOPs before its last growth.
        factor: parameters in blocks of its last model over those of its first.
        growth: the operator and options of its growths, as text.
        curve: validation losses over the FLOPs of the whole run.
    """

    name: str
    seed: int
    params: int
    stages: int
    grown_at: float
    grown_flops: float
    factor: float
    growth: str
    curve: Curve

    @property
    def tokens(self) -> float:
        """Tokens over all stages."""
        return float(self.curve.tokens[-1])


def outcomes(folder: Path) -> tuple[list[Outcome], list[str]]:
    """The finished runs of a sweep's or run's folder, or of all those in a folder; and a line for each left out.

    Raises:
        InputError: no such folder, no run in it, none that is done, or a loss that is not finite.
    """
    runs, left_out = {}, []
    for home in homes(folder):
        for run in read(home).runs.values():
            name = run.name if home in (folder, home.with_name(run.name)) else f"{home.name}/{run.name}"
            if run.begun:
                left_out.append(f"{name} began from a saved model, and so grew after nobody knows how many tokens")
            elif run.status == "done" and run.metrics:
                runs[name] = run
            else:
                left_out.append(f"{name} is {run.status}")
    if not runs:
        raise InputError(f"no run in {folder} is done: {'; '.join(left_out)}")
    return [outcome(name, run) for name, run in runs.items()], left_out


def budget_records(runs: list[Outcome], slices: int) -> list[dict[str, Any]]:
    """The runs read off at budgets, as `fit_growth_timing` and `fit_growth_factor` take them.

    The budgets of a size end where its cheapest run ends, and each is the square root of 2 times the one before. A
    run whose growth is later than 80 % of a budget is not in that slice.
    """
    records = []
    for params in sorted({run.params for run in runs}):
        same = [run for run in runs if run.params == params]
        end = min(run.curve.flops[-1] for run in same)
        for number in reversed(range(slices)):
            budget = float(end / math.sqrt(2) ** number)
            records += [_record(run, budget) for run in same if run.grown_flops <= GROWN_BY * budget]
    return [record for record in records if record["loss"] is not None]


def _record(run: Outcome, budget: float) -> dict[str, Any]:
    own = {"params": run.params, "grown_at": run.grown_at, "factor": run.factor, "seed": run.seed}
    return own | {"flops": budget, "loss": loss_at(run.curve, budget)}


def outcome(name: str, run: Run) -> Outcome:
    """What the laws need of a run that is done. Raises InputError where it does not say it."""
    if "stages" not in run.config or "seed" not in run.config:
        raise InputError(f"run {name} has no stages and seed in its config.json")
    stages = run.config["stages"]
    models = [build_model(stage["model"]) for stage in stages]
    growths = [{key: stage["growth"][key] for key in ("operator", "options")} for stage in stages[1:]]
    before = [[r for r in run.metrics if r["stage"] < number] for number in (1, len(stages) - 1)]
    return Outcome(
        name=name,
        seed=run.config["seed"],
        params=parameter_count(models[-1]),
        stages=len(stages),
        grown_at=float(before[0][-1]["tokens"]) if growths else 0.0,
        grown_flops=float(before[1][-1]["flops"]) if growths else 0.0,
        factor=_block_params(models[-1]) / max(_block_params(models[0]), 1),
        growth=json.dumps(growths[0], sort_keys=True) if growths else "",
        curve=_curve(name, run),
    )


def _curve(name: str, run: Run) -> Curve:
    try:
        return curve(run.metrics)
    except InputError as error:
        raise InputError(f"run {name}: {error}") from error


def _block_params(model: DecoderConfig) -> int:
    return sum(math.prod(weight.shape(model)) for weight in model.weights if weight.stacked)
