"""A run: from its config to its last checkpoint, stage after stage."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from growlm.buckets import location
from growlm.checked import DamagedError
from growlm.errors import DivergedError, InputError, must_be
from growlm.files import locked, make_folder, write_sealed
from growlm.growth.state import check_optimizer_state
from growlm.state import TrainState
from growlm.training.benchmarks import check_benchmarks
from growlm.training.checkpoint import newest_whole, open_checkpoints, stored_steps
from growlm.training.chosen import chosen_text
from growlm.training.config import plain
from growlm.training.continuation import check_store, claim_folder, previous_config
from growlm.training.decisions import (
    END,
    GROWTH,
    Criterion,
    Decisions,
    keep_decisions,
    read_decisions,
    write_decision,
)
from growlm.training.device_memory import exhaustion_said
from growlm.training.goodput import GROW, spending, time_counted
from growlm.training.growing import grow_into
from growlm.training.host_memory import check_memory
from growlm.training.init_from import Sources, check_sources, find_sources, read_named, read_teacher
from growlm.training.loop import train_stage, training_batches
from growlm.training.mesh import mesh_of
from growlm.training.metrics import NO_PROFILING, ProfilingConfig, commit
from growlm.training.optimizer import make_optimizer
from growlm.training.peers import peers_watched
from growlm.training.probe import probe
from growlm.training.processes import (
    StopRequest,
    barrier,
    broadcast,
    broadcast_json,
    first_enters,
    is_first,
    open_workdir,
)
from growlm.training.programs import cached_on_disk
from growlm.training.progress import Display
from growlm.training.records import (
    Follower,
    check_validated,
    commit_of,
    publish,
    restore_records,
    say_other_commits,
    time_before,
)
from growlm.training.saved import GROWTH_FILE, IMPORTED, INIT_FROM_FILE
from growlm.training.settings import RunConfig
from growlm.training.sparsity import emptied
from growlm.training.stages import Stage, resolve
from growlm.training.step import abstract_state, init_state
from growlm.training.systems import written_out
from growlm.training.texts import Load, Text, check_text, corpus_cache, load_texts, repeats
from growlm.training.trackers import check_trackers, tracked

STORE = "checkpoints"  # of a run alone: a folder per stage, by its hash
RUN_METADATA_FILE = "run.json"


def train(
    config: RunConfig,
    workdir: Path,
    stop: StopRequest | None = None,
    profiling: ProfilingConfig = NO_PROFILING,
    cache: Path | None = None,
    metadata: Mapping[str, Any] | None = None,
    trackers: Sequence[str] = (),
    seconds_before: float = 0.0,
) -> None:
    """Train one run in its folder: config.json, metrics.jsonl, growth-N.json and checkpoints/.

    A process of its own calls `growlm.training.own_process.own_process()` before it, and before anything else of JAX.

    Args:
      config: what is trained. `train_run` says how a run resumes, and `claim_folder` what of a config may change then.
      workdir: a new or empty folder, or that of this run.
      stop: where it is set, the run saves and ends; None: it is not asked to.
      profiling: how training is measured.
      cache: the folder of compiled programs; None: the user's.
      metadata: written as run.json when the run begins: the command, the hardware and the commit.
      trackers: where its curve goes, names of `growlm.training.trackers.TRACKERS`.
      seconds_before: what it took to come here, which is counted as a part of the start.

    Raises:
      InputError: a setting is wrong, or the folder holds something else.
      DivergedError: the loss or the gradient is not finite.
      StoppedError: `stop` was set; what was trained is saved.
    """
    check_trackers(trackers)
    workdir = location(workdir)
    with time_counted(seconds_before), peers_watched(), open_workdir(workdir) as shared:
        plan = plan_run(config, previous_config(shared.known), read_decisions(shared.known / STORE))
        mesh, records = mesh_of(config.mesh, config.batch_sizes), shared.records
        check_memory([stage.config.model for stage in plan.stages], mesh)
        check_store(records / STORE)
        claim_folder(records, plain(plan.config))
        if metadata and not (records / RUN_METADATA_FILE).exists():
            write_sealed(records / RUN_METADATA_FILE, metadata)
        barrier()
        with (
            cached_on_disk(cache),
            Display({records: (records / STORE, plan.stages)}) as display,
            tracked(trackers, workdir, records) as track,
        ):
            train_run(
                plan,
                mesh=mesh,
                folder=records,
                store=workdir / STORE,
                records=records / STORE,
                runs=[plan],
                display=display,
                stop=stop or StopRequest(),
                profiling=profiling,
                followers=[track, lambda folder: shared.push()],
            )
            display.end(records, None)


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """A run checked before anything is written: the texts of its stages, these, and the saved models that it reads."""

    config: RunConfig
    texts: list[Text]
    stages: list[Stage]
    sources: Sources = dataclasses.field(default_factory=dict)

    def decided(self, decisions: Decisions) -> "RunPlan":
        """The plan as it follows from what was decided while its stages were trained."""
        run, texts = self.stages[0].run, [stage.text for stage in self.stages]
        return dataclasses.replace(self, stages=resolve(run, texts, decisions))


def plan_run(
    config: RunConfig, previous: Any = None, decisions: Decisions | None = None, load: Load | None = None
) -> RunPlan:
    """Check all of a run that can be checked before it begins, where stages take all of their tokens.

    Args:
      config: of the run.
      previous: as in `find_sources`.
      decisions: what was decided in the run's folder already.
      load: `corpus_cache`, where runs share it.

    Raises:
      InputError.
    """
    said, sources = find_sources(config.stages, previous)
    stages = tuple(dataclasses.replace(stage, **own) for stage, own in zip(config.stages, said, strict=True))
    config = dataclasses.replace(config, stages=stages)
    run = written_out(config)
    texts = load_texts(run, load or corpus_cache())
    plan = RunPlan(config, texts, resolve(run, [text.known for text in texts], decisions), sources)
    for stage, text in zip(plan.stages, texts, strict=True):
        if stage.config.grow_when and END not in stage.decided:
            stage.config.grow_when.check()
        _check_budget(stage)
        check_stage(stage, text, sources)
    evaluations = [stage.evaluation for stage in plan.stages]
    for number, evaluation in enumerate(evaluations):
        if evaluation not in evaluations[:number]:
            check_benchmarks(evaluation)
    return plan


def check_stage(stage: Stage, text: Text, sources: Sources) -> None:
    """Raises InputError where a stage does not fit its text, a model that it names or a growth that may begin it.

    sources: as in `find_sources`.
    """
    check_text(stage, text)
    for one in [*stage.candidates.values()] or [stage]:
        _ = one.growth  # planned: it may not fit, and random copies may fit or not
        _check_optimizer_state(one)
    if stage.probe and stage.probe.probe.steps > stage.steps:
        raise must_be("probe.steps", f"at most the {stage.steps} of stages[{stage.number}]", stage.probe.probe.steps)
    for before in stage.parent.possible if stage.parent else ():
        _check_unmasked(before)
    check_sources(stage, sources, text.trained.first)
    if needs := stage.config.objective.row.needs:
        for corpus in (*text.trained.corpora.values(), *text.validated.corpora.values()):
            needs(stage.config.objective, corpus)


def _check_budget(stage: Stage) -> None:
    """A run's budget must leave its last stage something."""
    if not stage.steps and not stage.config.tokens and stage.number == len(stage.run.stages) - 1:
        spent = stage.first_cost.flops
        raise InputError(
            f"budget_flops must leave the last stage a batch beside the {spent:.3e} FLOPs before it, "
            f"got {stage.run.budget_flops:.3e}"
        )


def _check_unmasked(before: Stage) -> None:
    """Growth takes the weights, which are the model only once the masks of the growth before are open."""
    if before.progress_at(before.last_step) is not None:
        trained, masks = before.tokens_at(before.last_step) - before.first_tokens, before.growth.masks
        raise InputError(
            f"stages[{before.number}].tokens must be >= {masks.tokens:,}, after which the masks of its growth are "
            f"open, where another stage comes after it, got {trained:,}"
        )


def _check_optimizer_state(stage: Stage) -> None:
    """Its optimizer can hold what the growth makes of the state before, tried on shapes alone."""
    if stage.parent:
        configs = stage.parent.config, stage.config
        optimizers = (make_optimizer(config.optimizer, config.model) for config in configs)
        how = stage.config.growth.resolved.optimizer_state
        try:
            check_optimizer_state(stage.growth, *(config.model for config in configs), *optimizers, how)
        except InputError as error:
            raise InputError(f"{stage.candidate}stages[{stage.number}].growth.{error}") from None


def train_run(
    plan: RunPlan,
    *,
    mesh: Mesh,
    folder: Path,
    store: Path,
    records: Path,
    runs: Sequence[RunPlan],
    display: Display,
    stop: StopRequest,
    profiling: ProfilingConfig,
    followers: Sequence[Follower] = (),
) -> None:
    """Train what is missing of a run, stage after stage, and write the run's own folder.

    How a run resumes:

    1. It goes on in the last of its stages that has a checkpoint of its own: of a step after the stage's first, and not
       after the step at which this run leaves it; and undamaged. Where all are damaged nothing is begun anew.
    2. There the newest of these is restored, every array, counter and key as it was stored, on whatever mesh. Records
       of steps after it are dropped; those steps are trained again, and come out the same.
    3. A stage without a checkpoint begins with the state at the end of the stage before, grown.
    4. The first stage without one begins with fresh weights, or with those of init_from.
    5. A stage with a checkpoint of its last step is not trained, and where that is the last stage nothing is.
    6. One process at a time trains a stage: it is locked, and whoever comes second gets an InUseError.
    7. What was decided of a stage is read where it is locked, and the stages after it follow from that. What is to be
       decided depends on records until there alone, and is kept before a checkpoint of that step.

    Args:
      plan, mesh: the run, and the devices that share its work.
      folder: its own folder, for its view of its stages: metrics.jsonl and growth-N.json.
      store: where all processes write checkpoints, a folder per stage.
      records: the store for all else, which only the first process has in the same place.
      runs: all that share the store, which leave stages at steps of their own.
      display, stop, profiling: as in `train_stage`.
      followers: called with the run's own folder when that has new records.

    Raises:
      InputError: the text of validation has changed in its place.
      DivergedError, StoppedError, InUseError. The run's folder then has the records until there.
    """
    state, here, plan = None, commit(), plan.decided(_decisions(records))
    say_other_commits(folder.absolute().name, plan.stages, records, here)
    try:
        first, whole = _resume_point(plan, store)  # rules 1 and 5
        if first < len(plan.stages):  # its curve goes on
            check_validated(plan.stages, records)
        restore_records(plan.stages, store, records, folder)
        for number in range(first, len(plan.stages)):
            stage_hash = plan.stages[number].stage_hash
            stage_folder, checkpoints_folder = records / stage_hash, store / stage_hash / "checkpoints"
            make_folder(stage_folder)
            # Rules 6 and 7; a display looks for a moment.
            with first_enters(locked(stage_folder, timeout=1.0)), exhaustion_said(plan.stages[number]):
                decisions = _decisions(records)
                plan = plan.decided(decisions)
                stage, text = plan.stages[number], plan.texts[number]
                of_all = (one for run in runs for one in run.decided(decisions).stages)
                branch_steps = {one.last_step for one in of_all if one.stage_hash == stage_hash}
                began = {"address": stage_hash, "commit": commit_of(stage, records) or here}
                began["validated"] = stage.text.validated
                write_sealed(stage_folder / "stage.json", stage.settings | began)
                keep_decisions(stage_folder, stage.decided)
                display.begin(folder, plan.stages, number)
                for line in repeats(plan.stages[-1]) if number == first else ():
                    display.say(line)
                most = stage.run.checkpoint.max_to_keep
                with contextlib.closing(open_checkpoints(checkpoints_folder, most, branch_steps)) as checkpoints:
                    own = [step for step in checkpoints.steps() if stage.first_step < step <= stage.last_step]
                    found = whole if number == first else -1
                    newest, grown_at = checkpoints.newest(own, display.say, found), None
                    teacher = read_teacher(stage, plan.sources, mesh, store, max(newest, stage.first_step))
                    if max(newest, stage.first_step) < stage.last_step:
                        where = {"mesh": mesh, "store": store, "folder": stage_folder}
                        text = chosen_text(stage, text, plan.sources, say=display.say, **where)
                    if newest >= 0:  # rule 2
                        display.say(f"goes on from step {newest:,}")
                        like = abstract_state(stage.config.model, stage.config.optimizer, mesh)
                        state = checkpoints.restore(newest, like)
                    elif stage.parent is None:  # rule 4
                        state = _first_state(stage, plan.sources, mesh, store, stage_folder, display)
                    else:  # rule 3
                        grown_at = time.perf_counter()
                        if stage.probe and GROWTH not in stage.decided:
                            tried = probe(stage, state, text=text, mesh=mesh, say=display.say, teacher=teacher)
                            write_decision(stage_folder, GROWTH, tried)
                            plan = plan.decided(_decisions(records))
                            stage = plan.stages[number]
                            display.begin(folder, plan.stages, number)
                        state = _grow(stage, state, text, mesh, stage_folder, display)
                    if newest < 0:
                        state = emptied(state, stage.kept(mesh))
                    if state.step < stage.last_step or not stage.steps:  # rule 5; without steps it is validated alone
                        state = train_stage(
                            stage,
                            state,
                            text=text,
                            mesh=mesh,
                            checkpoints=checkpoints,
                            metrics_path=stage_folder / "metrics.jsonl",
                            branch_steps=branch_steps,
                            criterion=Criterion(stage, stage_folder, newest),
                            time_before=time_before(stage, records),
                            grown_at=grown_at,
                            next_stage=next(iter(plan.stages[number + 1 :]), None),
                            publish=partial(publish, plan.stages, records, folder, followers),
                            display=display,
                            stop=stop,
                            profiling=profiling,
                            teacher=teacher,
                        )
                plan = plan.decided(_decisions(records))
            stop.unsaved = False  # the checkpoints are closed: all are on disk
    except DivergedError as error:
        raise DivergedError(f"{error}; {_kept(plan, store)}") from None
    finally:
        stop.unsaved = False
        publish(plan.decided(_decisions(records)).stages, records, folder, followers)


def _decisions(records: Path) -> Decisions:
    """What was decided of all stages in a store, as the first process reads it."""
    return broadcast_json(read_decisions(records) if is_first() else None)


def _resume_point(plan: RunPlan, store: Path) -> tuple[int, int]:
    """Where a run goes on, by rules 1 and 5: the number of the stage, and the step of its checkpoint, -1 without one.

    Where all is trained it is the number after the last.
    """
    damage: list[str] = []
    for stage, newest in _whole_checkpoints(plan, store, damage.append):
        return stage.number + (stage is plan.stages[-1] and newest == stage.last_step), newest
    if broadcast(len(damage)):
        reason = damage[0] if damage else "all checkpoints are damaged"
        raise DamagedError(f"{reason}; no older one is whole: without {store} the run begins anew")
    return 0, -1


def _whole_checkpoints(
    plan: RunPlan, store: Path, say: Callable[[str], None] = lambda text: None
) -> Iterator[tuple[Stage, int]]:
    """The stages that have an undamaged checkpoint of their own, the last one first, and the step of the newest."""
    for stage in reversed(plan.stages):
        folder = store / stage.stage_hash / "checkpoints"
        own = broadcast_json([step for step in stored_steps(folder) if stage.first_step < step <= stage.last_step])
        if (newest := newest_whole(folder, own, say)) >= 0:
            yield stage, newest


def _kept(plan: RunPlan, store: Path) -> str:
    """What there is to go back to."""
    newest = next((step for _, step in _whole_checkpoints(plan, store)), None)
    return "no checkpoint is there" if newest is None else f"the last good checkpoint is kept, of step {newest:,}"


def _first_state(stage: Stage, sources: Sources, mesh: Mesh, store: Path, folder: Path, display: Display) -> TrainState:
    """The state at step 0: with fresh weights, or with those of `init_from`."""
    params, place = None, stage.config.init_from
    display.say("begins with fresh weights" if place is None else f"begins from {sources.get(place, place)}")
    if place is not None:
        params, source = read_named(stage, "init_from", sources, mesh, store), sources[place]
        write_sealed(folder / INIT_FROM_FILE, source.record)
        if not (folder / IMPORTED).exists():
            source.keep(folder)
    return init_state(stage.config.model, stage.config.optimizer, stage.run.seed, mesh, params)


@spending(GROW)
def _grow(stage: Stage, before: TrainState, text: Text, mesh: Mesh, folder: Path, display: Display) -> TrainState:
    """Grow the parent's last state into this stage's first, free that, and write the report."""
    display.say(f"growing {stage.parent.size} to {stage.size} ({stage.config.growth.operator})")
    state, report = grow_into(stage, before, training_batches(stage, text, mesh, int(before.examples)), mesh)
    shared = {id(leaf) for leaf in jax.tree.leaves(state.arrays)}  # what growth did not change
    for leaf in jax.tree.leaves(before.arrays):
        if id(leaf) not in shared:
            leaf.delete()
    if tried := stage.decided.get(GROWTH):
        report |= {"probe": tried, "seconds": report["seconds"] + tried["seconds"]}
    write_sealed(folder / GROWTH_FILE, report | {"step": stage.first_step, "tokens": stage.first_tokens})
    return state
