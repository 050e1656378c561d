"""A sweep: runs that share what they have in common, trained one after the other into one folder."""

import dataclasses
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from growlm.data import load_corpus
from growlm.errors import DivergedError, InputError, StoppedError, unknown
from growlm.files import InUseError, locked, read_json, write_json
from growlm.training.config import plain
from growlm.training.continuation import check_store, claim_folder, previous_config
from growlm.training.mesh import mesh_of
from growlm.training.metrics import NO_PROFILING, ProfilingConfig, reproduction
from growlm.training.processes import StopRequest, barrier, is_first, records_folder
from growlm.training.programs import cached_on_disk
from growlm.training.progress import Display
from growlm.training.run import CACHE, RunPlan, branch_steps, plan_run, train_run
from growlm.training.settings import SweepConfig
from growlm.training.stages import Stage

STORE = "stages"
SUMMARY = "sweep.json"
MAX_LINE = 200  # characters of an error


@dataclasses.dataclass(frozen=True)
class SweepPlan:
    """A sweep checked against its corpora, before anything is written."""

    config: SweepConfig
    runs: dict[str, RunPlan]

    def select(self, name: str | None) -> list[str]:
        """The run of that name, or all. Raises InputError."""
        if name is not None and name not in self.runs:
            raise unknown("run", name, self.runs)
        return [name] if name else list(self.runs)

    def shares(self) -> dict[str, list[tuple[Stage, int]]]:
        """For each run its stages, and how many steps of each an earlier run of the sweep trains already."""
        trained: dict[str, int] = {}
        shares: dict[str, list[tuple[Stage, int]]] = {}
        for name, plan in self.runs.items():
            shares[name] = [(stage, _shared(stage, trained)) for stage in plan.stages]
            for stage in plan.stages:
                trained[stage.stage_hash] = max(trained.get(stage.stage_hash, 0), stage.last_step)
        return shares

    def flops(self) -> tuple[float, float]:
        """(FLOPs that the sweep trains, FLOPs that sharing saves it)."""
        stages = [stage for plan in self.runs.values() for stage in plan.stages]
        furthest: dict[str, float] = {}
        for stage in stages:
            furthest[stage.stage_hash] = max(furthest.get(stage.stage_hash, 0.0), _flops(stage))
        trained = sum(furthest.values())
        return trained, sum(map(_flops, stages)) - trained


def _shared(stage: Stage, trained: dict[str, int]) -> int:
    return min(trained.get(stage.stage_hash, stage.first_step), stage.last_step) - stage.first_step


def _flops(stage: Stage) -> float:
    """What the stage costs, its growth included."""
    before = stage.parent.cost_at(stage.parent.last_step).flops if stage.parent else 0.0
    return stage.cost_at(stage.last_step).flops - before


def plan_sweep(config: SweepConfig, workdir: Path | None = None) -> SweepPlan:
    """Check every run. `workdir`: where the sweep may have been begun. Raises InputError."""
    corpora = {name: load_corpus(name) for name in {run.corpus for run in config.runs.values()}}
    previous = previous_config(workdir).get("runs", {}) if workdir else {}
    runs = {name: plan_run(run, corpora[run.corpus], previous.get(name)) for name, run in config.runs.items()}
    plan = SweepPlan(dataclasses.replace(config, runs={name: run.config for name, run in runs.items()}), runs)
    _check_records(plan)
    return plan


def _check_records(plan: SweepPlan) -> None:
    """Runs that share a stage share its records too: they must agree on what is measured."""
    measured: dict[str, tuple[str, Any]] = {}
    for name, run in plan.runs.items():
        for stage in run.stages:
            first, settings = measured.setdefault(stage.stage_hash, (name, stage.evaluation))
            if settings != stage.evaluation:
                raise InputError(
                    f"evaluation of runs {first} and {name} must be one, for they share stage {stage.stage_hash}, got "
                    f"{settings} and {stage.evaluation}"
                )


def describe(plan: SweepPlan, chosen: Sequence[str]) -> str:
    """The stages of the chosen runs with their addresses, and what sharing saves the whole sweep."""
    lines = []
    for name, shares in plan.shares().items():
        for stage, shared in shares if name in chosen else ():
            note = f"  {shared:,} steps shared" if shared else ""
            lines.append(
                f"{name:>16} {stage.number + 1}/{len(shares)}  {stage.stage_hash}  {stage.size:>16}  "
                f"{stage.config.steps:>7,} steps  {_flops(stage):.2e} FLOPs{note}"
            )
    trained, saved = plan.flops()
    lines.append(f"{len(plan.runs)} runs, {trained:.2e} FLOPs to train; sharing stages saves {saved:.2e} FLOPs")
    return "\n".join(lines)


def run_sweep(
    plan: SweepPlan,
    workdir: Path,
    stop: StopRequest,
    command: str,
    chosen: Sequence[str],
    profiling: ProfilingConfig = NO_PROFILING,
    cache: Path | None = None,
) -> dict[str, str]:
    """Train the chosen runs of a sweep into workdir/NAME, their stages into workdir/stages.

    Several processes may train one sweep: a run of which another trains a stage is put off until no other run is left.
    Started again, the sweep goes on where it was. Returns the errors of runs that failed, by name; the others go on.

    Raises:
      InputError: the folder holds something else.
      StoppedError: `stop` was set.
    """
    for config in (plan.runs[name].config for name in chosen):
        mesh_of(config.mesh, config.batch_sizes)  # all are possible here, or nothing is begun
    errors: dict[str, str] = {}
    with records_folder(workdir) as records:
        check_store(records / STORE)
        claim_folder(records, plain(plan.config))
        barrier()
        _write_summary(plan, records, command)
        for name in chosen:
            claim_folder(records / name, plain(plan.runs[name].config))
        folders = {records / name: run.stages for name, run in plan.runs.items()}
        leaving = branch_steps(list(plan.runs.values()))
        pending, refused = list(chosen), 0  # how many in a row another process had locked
        with (
            cached_on_disk(cache or workdir / CACHE),
            Display(folders, records / STORE, outcomes=lambda: _statuses(records)) as display,
        ):
            while pending:
                name = pending.pop(0)
                try:
                    error = _outcome(
                        plan.runs[name],
                        folder=records / name,
                        store=workdir / STORE,
                        records=records / STORE,
                        branch_steps=leaving,
                        display=display,
                        stop=stop,
                        profiling=profiling,
                    )
                except InUseError:
                    pending.append(name)
                    refused += 1
                    if refused >= len(pending):
                        _wait(pending, stop, speak=refused == len(pending))
                    continue
                refused = 0
                if error is not None:
                    errors[name] = error
                outcome = {"status": "failed" if error is not None else "done", "error": error}
                _write_summary(plan, records, command, {name: outcome})
                display.end(name, error)
    return errors


def _wait(pending: Sequence[str], stop: StopRequest, speak: bool) -> None:
    """Wait a second for the processes that train what is left."""
    if speak and is_first():
        print(f"growlm: waiting for another process that trains {', '.join(pending)}", file=sys.stderr, flush=True)
    if stop.wait(1.0):
        raise StoppedError("stopped while another process trained what is needed: the same command goes on")


def _outcome(plan: RunPlan, **settings: Any) -> str | None:
    """Train one run; returns what went wrong in one line, or nothing. Raises what concerns all runs.

    Where several processes train a run, only a divergence is met by all of them: anything else would leave the others
    waiting for this one, so it is raised.
    """
    try:
        train_run(plan, **settings)
    except (StoppedError, InUseError):
        raise
    except DivergedError as error:
        return str(error)
    except Exception as error:
        if jax.process_count() > 1:
            raise
        if not isinstance(error, InputError):
            traceback.print_exc()
        return _one_line(error)
    return None


def _one_line(error: Exception) -> str:
    """The first line of an error, XLA's have pages, and its kind where the line was not written for readers."""
    first = next(iter(str(error).strip().splitlines()), "")
    first = first if len(first) <= MAX_LINE else f"{first[: MAX_LINE - 3]}..."
    return first if isinstance(error, InputError) else f"{type(error).__name__}: {first}"


def _write_summary(
    plan: SweepPlan, workdir: Path, command: str, outcomes: dict[str, dict[str, Any]] | None = None
) -> None:
    """Write sweep.json: what the sweep is, how far each run is, which stages were shared and what that saved."""
    with locked(workdir, timeout=-1):  # another process may write its own run's outcome
        write_json(workdir / SUMMARY, _summary(plan, workdir, command, outcomes or {}))


def _summary(plan: SweepPlan, workdir: Path, command: str, outcomes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    config, (trained, saved) = plan.config, plan.flops()
    previous = read_json(workdir / SUMMARY, "summary")["runs"] if (workdir / SUMMARY).exists() else {}
    runs = {}
    for name, shares in plan.shares().items():
        stages = [_entry(*share) for share in shares]
        outcome = outcomes.get(name) or _previous_outcome(previous.get(name), stages)
        runs[name] = {"stages": stages} | outcome
    return {
        "title": config.title,
        **reproduction(command),
        "baseline": config.baseline,
        "grown": config.grown,
        "controls": config.controls,
        "runs": runs,
        "flops_trained": trained,
        "flops_saved_by_sharing": saved,
    }


def _previous_outcome(entry: dict[str, Any] | None, stages: list[dict[str, Any]]) -> dict[str, Any]:
    """How far an earlier call, or another process, brought a run; it is pending where it is longer now."""

    def tokens(of: list[dict[str, Any]]) -> list[tuple]:
        return [(stage["address"], stage["tokens"]) for stage in of]

    if entry is None or tokens(entry["stages"]) != tokens(stages):
        return {"status": "pending", "error": None}
    return {key: entry[key] for key in ("status", "error")}


def _statuses(workdir: Path) -> dict[str, str]:
    return {name: entry["status"] for name, entry in read_json(workdir / SUMMARY, "summary")["runs"].items()}


def _entry(stage: Stage, shared: int) -> dict[str, Any]:
    tokens = stage.tokens_at(stage.last_step) - stage.first_tokens
    return {
        "address": stage.stage_hash,
        "tokens": tokens,
        "flops": _flops(stage),
        "reused": shared > 0,
        "reused_steps": shared,
    }
