"""Finished runs as the laws take them: sizes, when and by how much each grew, seed and losses."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from growlm.errors import InputError, is_number
from growlm.laws.shapes import Shape
from growlm.laws.speedup import Curve, loss_at
from growlm.report.records import Run, read, study_folders

GROWN_BY = 0.8  # the largest share of a budget at which a run may grow, to be in its slice


@dataclass(frozen=True)
class Outcome:
    """One finished run.

    Attributes:
        name: its folder and name.
        seed: its seed.
        params: parameters N of its last model.
        stages: the number of its stages.
        grown_at: tokens before its first growth; 0 without one.
        grown_flops: FLOPs before its last growth.
        factor: parameters in the blocks of its last model over those of its first; infinite where that had no layers.
        growth: operator and options of its first growth, as JSON.
        curve: validation losses over the FLOPs of the whole run.
        schedule: the kind of its last stage's; empty where its config does not say.
        batch: tokens of an update of its last stage; None where its config does not say.
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
    schedule: str = ""
    batch: float | None = None

    @property
    def tokens(self) -> float:
        """Tokens over all stages."""
        return float(self.curve.tokens[-1])


def outcomes(folder: Path) -> tuple[list[Outcome], list[str]]:
    """The finished runs of a sweep, a run, or a folder of these; and a line for each run that is left out.

    Raises:
        InputError: no such folder, no run in it, none that is done, or a loss that is not finite.
    """
    runs, left_out = {}, []
    for path in study_folders(folder):
        for run in read(path).runs.values():
            name = run.name if path in (folder, path.with_name(run.name)) else f"{path.name}/{run.name}"
            if run.init_from:
                left_out.append(f"{name} began from a saved model: the tokens before its growth are not known")
            elif run.status == "done" and run.metrics:
                runs[name] = run
            else:
                left_out.append(f"{name} is {run.status}")
    if not runs:
        raise InputError(f"no run in {folder} is done: {'; '.join(left_out)}")
    return [outcome(name, run) for name, run in runs.items()], left_out


def finished(folder: Path, log: Callable[[str], None]) -> list[Outcome]:
    """The finished runs of a folder; `log` gets a line on those that are left out. Raises as `outcomes` does."""
    runs, left_out = outcomes(folder)
    if left_out:
        log(f"left out: {', '.join(left_out)}\n")
    return runs


def budget_records(runs: list[Outcome], slices: int) -> list[dict[str, Any]]:
    """The losses of the runs at several budgets, for `fit_growth_timing` and `fit_growth_factor`.

    The largest budget of a size is the FLOPs of its cheapest run; each is the square root of 2 times the one before. A
    run that grew after 80 % of a budget is not in its slice.
    """
    records = []
    for params in sorted({run.params for run in runs}):
        same = [run for run in runs if run.params == params]
        end = min(run.curve.flops[-1] for run in same)
        for number in reversed(range(slices)):
            budget = float(end / math.sqrt(2) ** number)
            records += [_record(run, budget) for run in same if run.grown_flops <= GROWN_BY * budget]
    return [record for record in records if record["loss"] is not None]


def check_alike(what: str, values: Sequence[str]) -> None:
    """Raises InputError where runs that are to be compared differ."""
    if len(kinds := sorted(set(values))) > 1:
        raise InputError(f"the runs must not differ in {what}, got {' and '.join(kinds[:3])}")


def _record(run: Outcome, budget: float) -> dict[str, Any]:
    own = {"params": run.params, "grown_at": run.grown_at, "factor": run.factor, "seed": run.seed}
    return own | {"flops": budget, "loss": loss_at(run.curve, budget)}


def outcome(name: str, run: Run) -> Outcome:
    """A finished run. Raises InputError where its records lack something."""
    if not run.config.get("stages") or run.config.get("seed") is None:
        raise InputError(f"run {name} must have stages and a seed in its config.json")
    if run.parameters is None:
        raise InputError(f"run {name} must have FLOPs and tokens at two steps of its last stage in its metrics")
    growths = run.planned_growths
    before = [[r for r in run.metrics if r["stage"] < number] for number in (1, len(growths))]
    losses, problem = run.curve
    if losses is None:
        raise InputError(f"run {name}: {problem}")
    return Outcome(
        name=name,
        seed=run.config["seed"],
        params=run.parameters,
        stages=1 + len(growths),
        grown_at=float(before[0][-1]["tokens"]) if growths else 0.0,
        grown_flops=float(before[1][-1]["flops"]) if growths else 0.0,
        factor=_factor(name, run) if growths else 1.0,
        growth=json.dumps(_growth(run), sort_keys=True) if growths else "",
        curve=losses,
        schedule=(run.config["stages"][-1].get("schedule") or {}).get("kind") or "",
        batch=_batch(run.config["stages"][-1]),
    )


def _growth(run: Run) -> dict[str, Any]:
    """Operator and options of a run's first growth: what a preset stands for, where a report of the growth says it."""
    if run.growths and not run.config.get("system"):
        return {key: run.growths[0].get(key) for key in ("operator", "options")}
    return run.planned_growths[0]


def _batch(stage: dict[str, Any]) -> float | None:
    batch, length = stage.get("batch"), stage.get("length")
    return float(batch * length) if batch and length else None


def _factor(name: str, run: Run) -> float:
    before, after = (_block_params(name, run, stage, when) for stage, when in ((0, "before"), (-1, "after")))
    return after / before if before else math.inf


def _block_params(name: str, run: Run, stage: int, when: str) -> int:
    """Parameters in the blocks of a stage: of a growth report, or of the shape of a Llama in records without these."""
    key = f"block_parameters_{when}"
    if run.growths and key in run.growths[stage]:
        return run.growths[stage][key]
    model = run.config["stages"][stage].get("model") or {}
    if not all(is_number(model.get(field.name)) for field in fields(Shape)):
        raise InputError(f"run {name} must have {key} in its growth reports; train it with this version")
    return Shape(**{field.name: model[field.name] for field in fields(Shape)}).block_params
