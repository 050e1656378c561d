"""A sweep: runs that share what they have in common, trained one after the other into one folder."""

import dataclasses
import json
import os
import platform
import subprocess
import threading
import time
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from growlm.data import load_corpus
from growlm.errors import DivergedError, InputError, StoppedError, unknown
from growlm.files import locked, write_json
from growlm.training.config import plain
from growlm.training.mesh import mesh_of
from growlm.training.metrics import UNWATCHED, Instruments
from growlm.training.processes import after_first, records_folder
from growlm.training.programs import kept_on_disk
from growlm.training.progress import Board
from growlm.training.run import (
    COMPILED,
    Runner,
    RunPlan,
    check_store,
    claim_folder,
    held_config,
    leave_points,
    plan_run,
)
from growlm.training.settings import SweepConfig
from growlm.training.stages import Stage

STORE = "stages"
LINE = 200  # characters of an error


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
                trained[stage.address] = max(trained.get(stage.address, 0), stage.last_step)
        return shares

    def flops(self) -> tuple[float, float]:
        """(FLOPs that the sweep trains, FLOPs that sharing saves it)."""
        stages = [stage for plan in self.runs.values() for stage in plan.stages]
        furthest: dict[str, float] = {}
        for stage in stages:
            furthest[stage.address] = max(furthest.get(stage.address, 0.0), _flops(stage))
        trained = sum(furthest.values())
        return trained, sum(map(_flops, stages)) - trained


def _shared(stage: Stage, trained: dict[str, int]) -> int:
    return min(trained.get(stage.address, stage.first_step), stage.last_step) - stage.first_step


def _flops(stage: Stage) -> float:
    """What the stage costs, its growth included."""
    before = stage.parent.cost_at(stage.parent.last_step).flops if stage.parent else 0.0
    return stage.cost_at(stage.last_step).flops - before


def plan_sweep(config: SweepConfig, workdir: Path | None = None) -> SweepPlan:
    """Checks every run. `workdir`: where the sweep may have been begun. Raises InputError."""
    corpora = {name: load_corpus(name) for name in {run.corpus for run in config.runs.values()}}
    former = held_config(workdir).get("runs", {}) if workdir else {}
    runs = {name: plan_run(run, corpora[run.corpus], former.get(name)) for name, run in config.runs.items()}
    plan = SweepPlan(dataclasses.replace(config, runs={name: run.config for name, run in runs.items()}), runs)
    _check_records(plan)
    return plan


def _check_records(plan: SweepPlan) -> None:
    """Runs that share a stage share its records too: they must agree on what is measured."""
    measured: dict[str, tuple[str, Any]] = {}
    for name, run in plan.runs.items():
        for stage in run.stages:
            first, settings = measured.setdefault(stage.address, (name, stage.evaluation))
            if settings != stage.evaluation:
                raise InputError(
                    f"runs {first} and {name} share stage {stage.address}: allowed is one evaluation for both, "
                    f"not {settings} and {stage.evaluation}"
                )


def describe(plan: SweepPlan, chosen: Sequence[str]) -> str:
    """The stages of the chosen runs with their addresses, and what sharing saves the whole sweep."""
    lines = []
    for name, shares in plan.shares().items():
        for stage, shared in shares if name in chosen else ():
            note = f"  {shared:,} steps shared" if shared else ""
            size = f"{stage.config.model.layers} layers x {stage.config.model.embed}"
            lines.append(
                f"{name:>16} {stage.number + 1}/{len(shares)}  {stage.address}  {size:>16}  "
                f"{stage.config.steps:>7,} steps  {_flops(stage):.2e} FLOPs{note}"
            )
    trained, saved = plan.flops()
    lines.append(f"{len(plan.runs)} runs, {trained:.2e} FLOPs to train; sharing stages saves {saved:.2e} FLOPs")
    return "\n".join(lines)


def run_sweep(
    plan: SweepPlan,
    workdir: Path,
    stop: threading.Event,
    command: str,
    chosen: Sequence[str],
    instruments: Instruments = UNWATCHED,
    cache: Path | None = None,
) -> dict[str, str]:
    """Trains the chosen runs of a sweep into workdir/NAME, the stages into workdir/stages.

    Returns the errors of runs that failed, by name; the others go on. Started again, it goes on where it was. Where
    another process trains a stage of theirs, they wait until it is done. Raises InputError where the folder holds
    something else, StoppedError when asked to stop.
    """
    for config in (plan.runs[name].config for name in chosen):
        mesh_of(config.mesh, config.batch_sizes)  # all are possible here, or nothing is begun
    errors: dict[str, str] = {}
    with records_folder(workdir) as records:
        check_store(records / STORE)
        claim_folder(records, plain(plan.config))
        after_first()
        ends = leave_points(list(plan.runs.values()))
        runner = Runner(workdir / STORE, records / STORE, ends, stop, instruments, patient=True)
        _write_summary(plan, records, command)
        for name in chosen:
            claim_folder(records / name, plain(plan.runs[name].config))
        with Board({name: run.stages for name, run in plan.runs.items()}, records, records / STORE) as board:
            for name in chosen:
                board.begin(name)
                error = _train(plan.runs[name], runner, records / name, cache or workdir / COMPILED)
                if error is not None:
                    errors[name] = error
                outcome = {"status": "failed" if error is not None else "done", "error": error}
                _write_summary(plan, records, command, {name: outcome})
                board.end(name, error)
    return errors


def _train(plan: RunPlan, runner: Runner, folder: Path, cache: Path) -> str | None:
    """Trains one run; returns what went wrong in one line, or nothing. Raises what concerns all: StoppedError.

    Where several processes train a run, only a divergence is met by all of them: anything else would leave the others
    waiting for this one, so it is raised.
    """
    try:
        with kept_on_disk(cache):
            runner.train(plan, folder, folder.name)
    except StoppedError:
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
    first = first if len(first) <= LINE else f"{first[: LINE - 3]}..."
    return first if isinstance(error, InputError) else f"{type(error).__name__}: {first}"


def _former_outcome(workdir: Path, name: str) -> dict[str, Any]:
    """How far an earlier call, or another worker, brought a run."""
    path = workdir / "sweep.json"
    former = json.loads(path.read_text())["runs"][name] if path.exists() else {"status": "pending", "error": None}
    return {key: former[key] for key in ("status", "error")}


def _write_summary(
    plan: SweepPlan, workdir: Path, command: str, outcomes: dict[str, dict[str, Any]] | None = None
) -> None:
    """sweep.json: what the sweep is, how far each run is, which stages were shared and what that saved."""
    with locked(workdir, wait=partial(time.sleep, 0.05)):  # another worker may write its own run's outcome
        write_json(workdir / "sweep.json", _summary(plan, workdir, command, outcomes or {}))


def _summary(plan: SweepPlan, workdir: Path, command: str, outcomes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    config, (trained, saved) = plan.config, plan.flops()
    outcomes = {name: _former_outcome(workdir, name) for name in plan.runs} | outcomes
    runs = {
        name: {"stages": [_entry(*share) for share in shares]} | outcomes[name]
        for name, shares in plan.shares().items()
    }
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


def _entry(stage: Stage, shared: int) -> dict[str, Any]:
    tokens = stage.tokens_at(stage.last_step) - stage.first_tokens
    return {
        "address": stage.address,
        "tokens": tokens,
        "flops": _flops(stage),
        "reused": shared > 0,
        "reused_steps": shared,
    }


def reproduction(command: str) -> dict[str, str | None]:
    """What a reader needs to run the same again: the command, the hardware and the commit."""
    return {"command": command, "hardware": hardware(), "commit": commit()}


def hardware() -> str:
    """The devices and the machine, in words."""
    devices = jax.devices()
    kind = devices[0].device_kind
    return f"{len(devices)} x {kind}, {os.cpu_count()} CPU cores ({platform.machine()}), jax {jax.__version__}"


def commit() -> str | None:
    """The commit of the checkout that this package runs from, with a + where it was changed; None outside of one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = subprocess.run(
            ["git", "-C", root, "describe", "--always", "--dirty=+", "--abbrev=10"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() or None
