"""A sweep: runs that share what they have in common, trained one after the other into one folder."""

import dataclasses
import sys
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from growlm.buckets import location
from growlm.errors import DivergedError, InputError, InUseError, StoppedError, unknown
from growlm.files import locked, read_json, write_sealed
from growlm.secrets import without_secrets
from growlm.training.checkpoint import stored_steps
from growlm.training.config import plain
from growlm.training.continuation import check_store, claim_best, claim_folder, previous_config
from growlm.training.decisions import END, SUMMARY, Decisions, read_decisions
from growlm.training.goodput import time_counted
from growlm.training.host_memory import check_memory
from growlm.training.mesh import mesh_of
from growlm.training.metrics import NO_PROFILING, ProfilingConfig, of_all_starts, reproduction
from growlm.training.peers import peers_watched
from growlm.training.processes import StopRequest, barrier, broadcast, is_first, open_workdir
from growlm.training.programs import cached_on_disk
from growlm.training.progress import Display
from growlm.training.records import check_validated
from growlm.training.run import RunPlan, plan_run, train_run
from growlm.training.search import BROKEN, LOST, UNDECIDED, best, block, tries_of
from growlm.training.settings import SweepConfig, run_folder
from growlm.training.stages import Stage
from growlm.training.texts import corpus_cache, repeats
from growlm.training.trackers import check_trackers, tracked

STORE = "stages"
MAX_LINE = 200  # characters of an error


@dataclasses.dataclass(frozen=True)
class SweepPlan:
    """A sweep checked against its corpora, before anything is written.

    Attributes:
      config: the sweep.
      runs: by their folders in that of the sweep: NAME, or seed-N/NAME where the sweep has seeds. A searched run comes
        after its tries, and is the first of them until the best is known.
      tries: of each searched run, by its folder, what it may become at its seed, by the names of the tries.
    """

    config: SweepConfig
    runs: dict[str, RunPlan]
    tries: dict[str, dict[str, RunPlan]]

    @property
    def seeds(self) -> list[str]:
        """The folder of each seed; "" without seeds."""
        return list(self.config.by_seed)

    def of_seed(self, folder: str) -> "SweepPlan":
        """The sweep of one seed, runs by name."""

        def own(by_folder: dict[str, Any]) -> dict[str, Any]:
            return {_name(path): value for path, value in by_folder.items() if _seed(path) == folder}

        runs, tries = own(self.runs), own(self.tries)
        known = {name: run for of_run in tries.values() for name, run in of_run.items()} | runs
        config = self.config.by_seed[folder]
        config = dataclasses.replace(config, runs={name: known[name].config for name in config.runs})
        return SweepPlan(config, runs, tries)

    def select(self, name: str | None) -> list[str]:
        """The folders of the run of that name, at all seeds, or all; those of its tries come first. Raises InputError.

        A run of one seed is seed-N/NAME.
        """
        if name is None:
            return list(self.runs)
        found = {path for path in self.runs if name in (path, _name(path))}
        if not found:
            raise unknown("run", name, map(_name, self.runs))
        found |= {path for path in self.runs if self.config.owners.get(_name(path)) in map(_name, found)}
        return [path for path in self.runs if path in found]

    def without_tries(self) -> "SweepPlan":
        """The runs that are compared."""
        runs = {path: run for path, run in self.runs.items() if _name(path) not in self.config.owners}
        return dataclasses.replace(self, runs=runs)

    def decided(self, decisions: Decisions) -> "SweepPlan":
        """The plan as it follows from what was decided while stages were trained."""

        def of(runs: dict[str, RunPlan]) -> dict[str, RunPlan]:
            return {path: run.decided(decisions) for path, run in runs.items()}

        tries = {path: of(of_run) for path, of_run in self.tries.items()}
        return dataclasses.replace(self, runs=of(self.runs), tries=tries)

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


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _seed(path: str) -> str:
    return path.rpartition("/")[0]


def _shared(stage: Stage, trained: dict[str, int]) -> int:
    return min(trained.get(stage.stage_hash, stage.first_step), stage.last_step) - stage.first_step


def _flops(stage: Stage) -> float:
    """What the stage costs, its growth included."""
    before = stage.parent.cost_at(stage.parent.last_step).flops if stage.parent else 0.0
    return stage.cost_at(stage.last_step).flops - before


def plan_sweep(config: SweepConfig, workdir: Path | None = None) -> SweepPlan:
    """Check every run. `workdir`: where the sweep may have been begun. Raises InputError."""
    load = corpus_cache()
    planned: dict[str, RunPlan] = {}
    for folder, sweep in config.by_seed.items():
        previous = previous_config(workdir / folder).get("runs", {}) if workdir else {}
        decisions = read_decisions(workdir / folder / STORE) if workdir else {}
        for name, run in sweep.runs.items():
            planned[run_folder(folder, name)] = plan_run(run, previous.get(name), decisions, load)
    tries = {
        run_folder(folder, name): {trial: planned[run_folder(folder, trial)] for trial in of_run}
        for folder in config.by_seed
        for name, of_run in (config.search.tries if config.search else {}).items()
    }
    runs = {path: planned[path] if path in planned else next(iter(tries[path].values())) for path in config.run_folders}
    plan = SweepPlan(config, runs, tries)
    if not config.seeds:
        plan = dataclasses.replace(plan, config=plan.of_seed("").config)
    _check_records(plan)
    return _settled(plan, workdir) if workdir else plan


def _best_tries(plan: SweepPlan, workdir: Path) -> dict[str, int]:
    """The number of the best try of every searched run by name, by the records in the folder; as in `best`."""
    if plan.config.search is None:
        return {}
    first, folder = plan.of_seed(plan.seeds[0]), workdir / plan.seeds[0]
    entries = _entries(first, folder, {})
    return {name: best(tries_of(plan.config.search, name, entries, folder), entries) for name in first.tries}


def _decided(plan: SweepPlan, workdir: Path) -> SweepPlan:
    stores = [read_decisions(workdir / folder / STORE) for folder in plan.seeds]
    return plan.decided({stage_hash: decided for store in stores for stage_hash, decided in store.items()})


def _settled(plan: SweepPlan, workdir: Path) -> SweepPlan:
    """The plan with the best of its tries as every searched run, and with what was decided, as far as that is known."""
    plan = _decided(plan, workdir)
    numbers = _best_tries(plan, workdir)
    known = {path: tries for path, tries in plan.tries.items() if numbers[_name(path)] >= 0}
    chosen = {path: list(tries.values())[numbers[_name(path)]] for path, tries in known.items()}
    return dataclasses.replace(plan, runs=plan.runs | chosen)


def _check_records(plan: SweepPlan) -> None:
    """Runs that share a stage share its records too: they must agree on what is measured."""
    measured: dict[str, tuple[str, Any]] = {}
    validated: dict[str, tuple[str, Any]] = {}
    for name, run in plan.runs.items():
        for stage in run.stages:
            first, settings = measured.setdefault(stage.stage_hash, (name, stage.evaluation))
            if settings != stage.evaluation:
                raise InputError(
                    f"evaluation of runs {first} and {name} must be one, for they share stage {stage.stage_hash}, got "
                    f"{settings} and {stage.evaluation}"
                )
            first, text = validated.setdefault(stage.stage_hash, (name, stage.text.validated))
            if text != stage.text.validated:
                raise InputError(
                    f"runs {first} and {name} must be validated on one text, for they share stage {stage.stage_hash}: "
                    "set evaluation.corpus"
                )


def describe(plan: SweepPlan, chosen: Sequence[str]) -> str:
    """The stages of the chosen runs with their hashes, and what sharing saves the whole sweep."""
    lines, width, search = [], max(16, *map(len, plan.runs)), plan.config.search
    for name, shares in plan.shares().items():
        for stage, shared in shares if name in chosen else ():
            note = f"  {shared:,} steps shared" if shared else ""
            if (when := stage.config.grow_when) and END not in stage.decided:
                note += f"  or sooner, by {when.rule}"
            if stage is shares[-1][0]:
                note += "".join(f"  {line}" for line in repeats(stage))
            if search and name in plan.tries and stage is shares[-1][0]:
                note += f"  the best of {len(plan.tries[name])} tries of {search.key}"
            lines.append(
                f"{name:>{width}} {stage.number + 1}/{len(shares)}  {stage.stage_hash}  {stage.size:>16}  "
                f"{stage.steps:>7,} steps  {_flops(stage):.2e} FLOPs{note}"
            )
    trained, saved = plan.flops()
    seeds = f" at {len(plan.config.seeds)} seeds" if plan.config.seeds else ""
    if search:
        lines.append(f"{len(plan.config.owners)} tries of {search.key} take {_search_flops(plan):.2e} FLOPs beside")
    lines.append(f"{len(plan.runs)} runs{seeds}, {trained:.2e} FLOPs to train; sharing stages saves {saved:.2e} FLOPs")
    return "\n".join(lines)


def _search_flops(plan: SweepPlan) -> float:
    """FLOPs of tries that no run is, as far as it is known which become runs."""
    return plan.flops()[0] - plan.without_tries().flops()[0]


def run_sweep(
    plan: SweepPlan,
    workdir: Path,
    stop: StopRequest,
    command: str,
    chosen: Sequence[str],
    profiling: ProfilingConfig = NO_PROFILING,
    cache: Path | None = None,
    experiment: str | None = None,
    trackers: Sequence[str] = (),
    seconds_before: float = 0.0,
) -> dict[str, str]:
    """Train the chosen runs of a sweep into workdir/NAME, their stages into workdir/stages; of seeds in workdir/seed-N.

    Several processes may train one sweep: a run of which another trains a stage, or a try, is put off until no other
    run is left. Started again, the sweep goes on where it was; a run that is done and has no checkpoint, as in an
    archive, stays done. Returns the errors of runs that failed, by folder; the others go on. A try that diverged is
    none: it is a try that is not the best. experiment: the text of the file that the sweep is of. seconds_before: as in
    `train`.

    Raises:
      InputError: the folder holds something else, or the text of validation has changed in its place.
      StoppedError: `stop` was set.
    """
    candidates = [run for tries in plan.tries.values() for run in tries.values()]
    for run in (*(plan.runs[path] for path in chosen), *candidates):
        mesh = mesh_of(run.config.mesh, run.config.batch_sizes)  # all are possible here, or nothing is begun
        check_memory([stage.config.model for stage in run.stages], mesh)
    errors: dict[str, str] = {}
    metadata = reproduction(command, experiment)
    check_trackers(trackers)
    workdir = location(workdir)
    with time_counted(seconds_before), peers_watched(), open_workdir(workdir) as shared:
        records = shared.records
        for folder in plan.seeds:
            check_store(records / folder / STORE)
        begun = Begun(metadata, _seeds_to_train(plan, chosen, records))
        for path, run in plan.runs.items() if begun.seeds else ():  # what is trained now is compared with all of them
            check_validated(run.stages, (records / path).parent / STORE)
        if plan.config.seeds:
            claim_folder(records, plain(plan.config))
        for folder in plan.seeds:
            claim_folder(records / folder, plain(plan.of_seed(folder).config))
        barrier()
        _write_summaries(plan, records, begun)
        for path in chosen:
            if path not in plan.tries:
                claim_folder(records / path, plain(plan.runs[path].config))
        folders = {records / path: ((records / path).parent / STORE, run.stages) for path, run in plan.runs.items()}
        pending, refused = list(chosen), 0  # how many in a row another process had locked
        with (
            cached_on_disk(cache),
            Display(folders, outcomes=lambda: _statuses(records, plan.seeds)) as display,
            tracked(trackers, workdir, records, plan.config.title) as track,
        ):

            def train(path: str) -> None:
                run, folder = plan.runs[path], records / path
                if path in plan.tries:
                    run = _claim_best(plan, path, records)
                before = _read_runs(folder.parent)[_name(path)]
                if _name(path) in plan.config.owners and broadcast(before.get("diverged", False)):
                    raise DivergedError(before["error"] or "diverged")  # it is the try that it was
                saved = stored_steps((workdir / path).parent / STORE / run.stages[-1].stage_hash / "checkpoints")
                if broadcast(before["status"] == "done" and not saved and (folder / "metrics.jsonl").exists()):
                    return  # its folder is of an archive
                train_run(
                    run,
                    mesh=mesh_of(run.config.mesh, run.config.batch_sizes),
                    folder=folder,
                    store=(workdir / path).parent / STORE,
                    records=folder.parent / STORE,
                    runs=[*plan.runs.values(), *candidates],
                    display=display,
                    stop=stop,
                    profiling=profiling,
                    followers=[track, lambda folder: shared.push()],
                )

            while pending:
                path = pending.pop(0)
                try:
                    outcome = _outcome(partial(train, path))
                except InUseError:
                    pending.append(path)
                    refused += 1
                    if refused >= len(pending):
                        _wait(pending, stop, speak=refused == len(pending))
                    continue
                refused, error = 0, outcome["error"]
                if error is not None and not (outcome.get("diverged") and _name(path) in plan.config.owners):
                    errors[path] = error
                _write_summary(plan, _seed(path), records, begun, {_name(path): outcome})
                display.end(records / path, error)
        _write_summaries(plan, records, begun)  # what one seed says of the search, all say
    return errors


def _claim_best(plan: SweepPlan, path: str, records: Path) -> RunPlan:
    """The best try of a searched run, which has the run's folder now.

    Raises:
      InUseError: another process trains a try.
      DivergedError: no try has a finite loss.
      InputError: a try failed.
    """
    number = broadcast(_best_tries(_decided(plan, records), records)[_name(path)])
    if number == UNDECIDED:
        raise InUseError(f"tries of {path} are not all trained yet")
    if number == LOST:
        raise DivergedError(f"none of its {len(plan.tries[path])} tries has a finite validation loss")
    if number == BROKEN:
        raise InputError("its search needs every try, and one failed: the same command trains that again")
    tries = list(plan.tries[path].values())
    with locked(records / _seed(path), timeout=-1):  # another process may come to the same
        claim_best(records / path, plain(tries[number].config), [plain(run.config) for run in tries])
    return tries[number]


def _wait(pending: Sequence[str], stop: StopRequest, speak: bool) -> None:
    """Wait a second for the processes that train what is left."""
    if speak and is_first():
        print(f"growlm: waiting for another process that trains {', '.join(pending)}", file=sys.stderr, flush=True)
    if stop.wait(1.0):
        raise StoppedError("stopped while another process trained what is needed: the same command goes on")


def _outcome(train: Callable[[], None]) -> dict[str, Any]:
    """Train one run; returns its status, and what went wrong in one line. Raises what concerns all runs.

    Where several processes train a run, only a divergence is met by all of them: anything else would leave the others
    waiting for this one, so it is raised.
    """
    try:
        train()
    except (StoppedError, InUseError):
        raise
    except DivergedError as error:
        return {"status": "failed", "error": str(error), "diverged": True}
    except Exception as error:
        if jax.process_count() > 1:
            raise
        if not isinstance(error, InputError):
            traceback.print_exc()
        return {"status": "failed", "error": _one_line(error)}
    return {"status": "done", "error": None}


def _one_line(error: Exception) -> str:
    """The first line of an error, XLA's have pages, and its kind where the line was not written for readers."""
    first = next(iter(str(error).strip().splitlines()), "")
    first = first if len(first) <= MAX_LINE else f"{first[: MAX_LINE - 3]}..."
    return without_secrets(first if isinstance(error, InputError) else f"{type(error).__name__}: {first}")


class Begun(NamedTuple):
    """This start: its command, hardware and commit, and the folders of the seeds of which it trains runs."""

    metadata: Mapping[str, Any]
    seeds: Collection[str]


def _seeds_to_train(plan: SweepPlan, chosen: Sequence[str], records: Path) -> set[str]:
    plan = _settled(plan, records)
    entries = {seed: _entries(plan.of_seed(seed), records / seed, {}) for seed in plan.seeds}
    return {_seed(path) for path in chosen if entries[_seed(path)][_name(path)]["status"] != "done"}


def _write_summaries(plan: SweepPlan, workdir: Path, begun: Begun) -> None:
    for folder in plan.seeds:
        _write_summary(plan, folder, workdir, begun, {})


def _write_summary(
    plan: SweepPlan, seed: str, workdir: Path, begun: Begun, outcomes: dict[str, dict[str, Any]]
) -> None:
    """Write sweep.json of a seed: what the sweep is, how far each run is, which stages were shared, what that saved."""
    with locked(workdir / seed, timeout=-1):  # another process may write its own run's outcome
        plan = _settled(plan, workdir)
        write_sealed(workdir / seed / SUMMARY, _summary(plan, seed, workdir, begun, outcomes))


def _summary(
    plan: SweepPlan, seed: str, workdir: Path, begun: Begun, outcomes: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    sweep = plan.of_seed(seed)
    config, (trained, saved), runs = sweep.config, sweep.flops(), _entries(sweep, workdir / seed, outcomes)
    search = {}
    if config.search:
        first = plan.of_seed(plan.seeds[0])
        entries = runs if seed == plan.seeds[0] else _entries(first, workdir / plan.seeds[0], {})
        number = next(iter(first.config.runs.values())).seed
        found = block(config.search, number, _search_flops(first), entries, workdir / plan.seeds[0])
        search = {"search": found}
        for name, of_run in found["runs"].items():
            if of_run["chosen"] is None and runs[name]["status"] == "done":  # there are further tries now
                runs[name] |= {"status": "pending"}
    return {
        "title": config.title or (workdir.resolve().name if seed else ""),  # seeds of one sweep have one title
        **of_all_starts(workdir / seed / SUMMARY, begun.metadata, trains=seed in begun.seeds),
        "baseline": config.baseline,
        "grown": config.grown,
        "controls": config.controls,
        **search,
        "runs": runs,
        "flops_trained": trained,
        "flops_saved_by_sharing": saved,
    }


def _entries(sweep: SweepPlan, folder: Path, outcomes: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The runs of one seed as sweep.json has them."""
    previous = _read_runs(folder) if (folder / SUMMARY).exists() else {}
    entries = {}
    for name, shares in sweep.shares().items():
        stages = [_entry(*share) for share in shares]
        entries[name] = {"stages": stages} | (outcomes.get(name) or _previous_outcome(previous.get(name), stages))
    return entries


def _read_runs(folder: Path) -> dict[str, dict[str, Any]]:
    """The runs of a sweep.json. Raises InputError where it is no such file."""
    summary = read_json(folder / SUMMARY, SUMMARY)
    try:
        for entry in summary["runs"].values():
            if not isinstance(entry["status"], str) or not isinstance(entry.get("error"), str | None):
                raise TypeError
            _ = [(stage["address"], stage["tokens"]) for stage in entry["stages"]]
    except (AttributeError, KeyError, TypeError):
        raise InputError(f"{folder / SUMMARY} must be what growlm sweep wrote; without it the sweep goes on") from None
    return summary["runs"]


def _previous_outcome(entry: dict[str, Any] | None, stages: list[dict[str, Any]]) -> dict[str, Any]:
    """How far an earlier call, or another process, brought a run; it is pending where it is longer now."""

    def tokens(of: list[dict[str, Any]]) -> list[tuple]:
        return [(stage["address"], stage["tokens"]) for stage in of]

    if entry is None or tokens(entry["stages"]) != tokens(stages):
        return {"status": "pending", "error": None}
    return {key: entry[key] for key in ("status", "error", "diverged") if key in entry}


def _statuses(workdir: Path, seeds: Sequence[str]) -> dict[Path, str]:
    runs = {seed: _read_runs(workdir / seed) for seed in seeds}
    return {workdir / seed / name: entry["status"] for seed in seeds for name, entry in runs[seed].items()}


def _entry(stage: Stage, shared: int) -> dict[str, Any]:
    tokens = stage.tokens_at(stage.last_step) - stage.first_tokens
    return {
        "address": stage.stage_hash,
        "tokens": tokens,
        "flops": _flops(stage),
        "reused": shared > 0,
        "reused_steps": shared,
    }
