"""A run: its stages one after the other, each from its own checkpoint, its parent's last, or from nothing."""

import contextlib
import dataclasses
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from growlm.data import Corpus, load_corpus
from growlm.errors import InputError, StoppedError
from growlm.files import is_part, locked, write_json
from growlm.growth import grow_state
from growlm.state import TrainState
from growlm.training.benchmarks import check_benchmarks
from growlm.training.checkpoint import Checkpoints
from growlm.training.config import build_run, build_sweep, plain
from growlm.training.init_from import Source, begin, check_source, read_source
from growlm.training.loop import Surroundings, compile_stage_ahead, train_stage, training_batches
from growlm.training.mesh import mesh_of
from growlm.training.metrics import UNWATCHED, Instruments, read_records, write_records
from growlm.training.optimizer import make_optimizer
from growlm.training.processes import after_first, agreed, is_first, records_folder
from growlm.training.programs import kept_on_disk, prepared_growth
from growlm.training.saved import BEGUN, ORIGIN, carry_origin
from growlm.training.settings import GrowthConfig, RunConfig
from growlm.training.stages import Stage, resolve
from growlm.training.step import abstract_state, init_state

COMPILED = "compiled"
BEGUN_BY = "run.json"
GROWN = "growth.json"


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """A run checked against its corpus, before anything is written: what it would train, and from what."""

    config: RunConfig
    corpus: Corpus
    stages: list[Stage]
    source: Source | None = None


def plan_run(config: RunConfig, corpus: Corpus, former: Any = None) -> RunPlan:
    """Everything that can be wrong with a run is found here. `former`: as `begin` has it. Raises InputError."""
    config, source = begin(config, former)
    stages = resolve(config, corpus.fingerprint, corpus.eos)
    for stage in stages:
        if stage.config.model.vocab < corpus.vocab:
            raise InputError(f"model.vocab is {stage.config.model.vocab}: {corpus.name!r} has {corpus.vocab} tokens")
        splits = ("train", corpus.train, (1, stage.config.length)), ("validation", corpus.validation, stage.held_out)
        for split, tokens, (rows, length) in splits:
            if len(tokens) < rows * (length + 1):
                needed = f"{rows} x (length + 1) = {rows * (length + 1)} {split} tokens"
                raise InputError(f"stages[{stage.number}] needs {needed}: {corpus.name!r} has {len(tokens)}")
        _ = stage.growth  # planned: it may not fit, and random copies may fit or not
        _check_unmasked(stage)
    for evaluation in {stage.evaluation for stage in stages}:
        check_benchmarks(evaluation)
    if source:
        check_source(config.stages[0], source, corpus)
    return RunPlan(config, corpus, stages, source)


def _check_unmasked(stage: Stage) -> None:
    """Growth takes the weights, which are the model only once the masks of the growth before are open."""
    before = stage.parent
    if before and before.progress_at(before.last_step) is not None:
        trained, ramp = before.tokens_at(before.last_step) - before.first_tokens, before.growth.masks
        raise InputError(
            f"stages[{before.number}] ends after {trained:,} tokens, before its masks are open: allowed are at least "
            f"its ramp_tokens, {ramp.tokens:,}, where another stage comes after it"
        )


def held_config(folder: Path) -> dict[str, Any]:
    """What the config.json of a folder says; what is wrong with it is told when the folder is claimed."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    return {}


def claim_folder(folder: Path, config: dict[str, Any]) -> None:
    """Makes the folder this run's own, or checks that it is. Raises InputError where it holds something else."""
    path, config = folder / "config.json", json.loads(json.dumps(config))
    try:
        if path.exists():
            held = json.loads(path.read_text(encoding="utf-8"))
            there, here = effective(held), effective(config)
            if there != here:
                difference = _first_difference(there, here)
                raise InputError(f"{folder} holds a different run: {difference}; allowed is a new folder")
            if held != config:
                write_json(path, config)
        elif folder.exists() and (not folder.is_dir() or not all(map(is_part, folder.iterdir()))):
            raise InputError(f"{folder} exists and holds no run: allowed is a new or empty folder")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(path, config)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise InputError(f"{path} is not JSON, {folder} holds no run: allowed is a new or empty folder") from None
    except OSError as error:
        raise InputError(f"{folder} cannot be used: {error.strerror}; allowed is a new or empty folder") from error


def check_store(store: Path) -> None:
    """Raises InputError for stages of growlm 0.1.0, which had other addresses: they would be trained anew."""
    for path in sorted(store.glob("*/stage.json")):
        model: dict[str, Any] = {"architecture": None}  # of a damaged file, which is nobody's
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            model = json.loads(path.read_text(encoding="utf-8"))["model"]
        if "architecture" not in model:
            raise InputError(
                f"{path.parent} is a stage of growlm 0.1.0, under another address: allowed is a new folder"
            )


def effective(config: Any) -> Any:
    """A config without where it ran, with defaults for what it does not say, and presets as what they stand for.

    So a folder of an older growlm, which had fewer settings, goes on.
    """
    try:
        built = build_sweep(config) if "runs" in config else build_run(config)
    except (InputError, TypeError):  # no config of this growlm: it is compared as it is
        return config
    said = json.loads(json.dumps(plain(built)))
    for run in said["runs"].values() if "runs" in said else [said]:
        del run["mesh"]
        for stage in run["stages"][1:]:
            stage["growth"] = plain(GrowthConfig(**stage["growth"]).resolved)
    return said


def _first_difference(held: Any, wanted: Any, path: str = "") -> str:
    """Where two JSON values differ first, in words."""
    where = path or "its config"
    if isinstance(held, dict) and isinstance(wanted, dict):
        if extra := sorted(held.keys() ^ wanted.keys()):
            return f"{where} has {extra[0]!r} only {'there' if extra[0] in held else 'here'}"
        pairs = [(f"{path}.{key}" if path else key, held[key], wanted[key]) for key in held]
    elif isinstance(held, list) and isinstance(wanted, list):
        if len(held) != len(wanted):
            return f"{where} has {len(held)} entries there and {len(wanted)} here"
        pairs = [(f"{path}[{i}]", *pair) for i, pair in enumerate(zip(held, wanted, strict=True))]
    else:
        return f"{where} is {held!r} there and {wanted!r} here"
    return next(_first_difference(a, b, where) for where, a, b in pairs if a != b)


@dataclasses.dataclass(frozen=True)
class Runner:
    """Trains the stages of runs into one store, a folder per address. `ends` says where runs leave each address.

    Checkpoints are written into the store by all processes; `records` is the store for everything else. A stage that
    another process trains is waited for where the runner is patient, and an error where not.
    """

    store: Path
    records: Path
    ends: Mapping[str, frozenset[int]]
    stop: threading.Event
    instruments: Instruments = UNWATCHED
    patient: bool = False

    def train(self, plan: RunPlan, folder: Path, name: str) -> None:
        """Trains what is missing of a run, and writes the run's own folder.

        Raises DivergedError or StoppedError; the folder then has what was recorded until there.
        """
        publish = partial(self._write_folder, plan, folder)
        try:
            self._reach(
                plan.stages[-1], Journey(plan, mesh_of(plan.config.mesh, plan.config.batch_sizes), name, publish)
            )
        finally:
            publish()

    def _reach(self, stage: Stage, journey: "Journey") -> TrainState:
        """The state at the end of a stage, trained from the best point there is.

        In this order: 1. the stage's own last checkpoint up to there, 2. its parent's end, grown, 3. from nothing.
        """
        folder, ends = self.records / stage.address, self.ends[stage.address]
        folder.mkdir(parents=True, exist_ok=True)
        home, keep = self.store / stage.address / "checkpoints", stage.run.checkpoint.max_to_keep
        with locked(folder, self._waiting(stage)), contextlib.closing(Checkpoints(home, keep, ends)) as checkpoints:
            write_json(folder / "stage.json", stage.settings | {"address": stage.address})
            state, grown_at = self._first_state(stage, checkpoints, journey)
            if state.step == stage.last_step and stage.config.steps:
                return state
            around = Surroundings(
                corpus=journey.plan.corpus,
                mesh=journey.mesh,
                checkpoints=checkpoints,
                metrics_path=folder / "metrics.jsonl",
                title=f"{journey.name} {stage.number + 1}/{len(journey.plan.stages)}",
                ends=ends,
                seconds_before=self._seconds_before(stage),
                stop=self.stop,
                instruments=self.instruments,
                grown_at=grown_at,
                begun=partial(journey.prepare, stage.number + 1),
                publish=journey.publish,
            )
            return train_stage(stage, state, around)

    def _waiting(self, stage: Stage) -> Callable[[], None] | None:
        """What to do as long as another process trains a stage."""
        notes = iter([f"growlm: waiting for another process that trains stage {stage.address}"])

        def wait() -> None:
            if note := next(notes, None):
                print(note, file=sys.stderr, flush=True)
            if self.stop.wait(1.0):
                raise StoppedError("stopped while another process trained what is needed: the same command goes on")

        return wait if self.patient else None

    def _first_state(
        self, stage: Stage, checkpoints: Checkpoints, journey: "Journey"
    ) -> tuple[TrainState, float | None]:
        """Where training begins now; and when its growth began, where there was one now."""
        settings = stage.config.model, stage.config.optimizer
        mine = [step for step in checkpoints.steps() if stage.first_step < step <= stage.last_step]
        if (last := agreed(max(mine, default=-1))) >= 0:
            return checkpoints.restore(last, abstract_state(*settings, journey.mesh)), None
        if not stage.parent:
            return self._begin(stage, journey), None
        before = self._reach(stage.parent, journey)
        began = time.perf_counter()
        return self._grow(stage, before, journey), began

    def _begin(self, stage: Stage, journey: "Journey") -> TrainState:
        """The state at step 0: with the weights that the run is to begin with, or with fresh ones."""
        params, source = None, journey.plan.source
        if stage.config.init_from is not None:
            params = read_source(stage.config, source, journey.mesh)
            if is_first():
                print(f"{journey.name} begins from {source}", file=sys.stderr)
            home = self.records / stage.address
            write_json(home / BEGUN, source.record)
            if not (home / ORIGIN).exists():
                source.keep(home)
        return init_state(stage.config.model, stage.config.optimizer, stage.run.seed, journey.mesh, params)

    def _grow(self, stage: Stage, before: TrainState, journey: "Journey") -> TrainState:
        """Grows the parent's last state into this stage's first, frees that, and writes the report."""
        config, growth = stage.config, stage.config.growth.resolved
        prepared = prepared_growth(stage, journey.mesh)
        began = time.perf_counter()  # not before: compiling counts as little as that of steps does
        # What learn learns on: the batches that the stage will begin with.
        ahead = training_batches(stage, journey.plan.corpus, journey.mesh, int(before.examples))
        state, report = grow_state(
            before,
            stage.parent.config.model,
            config.model,
            make_optimizer(config.optimizer, config.model),
            growth.operator,
            growth.optimizer_state,
            batches=ahead,
            prepared=prepared,
            **growth.options,
        )
        jax.block_until_ready(state.arrays)
        _free(before, state)
        at = {"step": stage.first_step, "tokens": stage.first_tokens, "seconds": time.perf_counter() - began}
        write_json(self.records / stage.address / GROWN, report | at)
        return state

    def _seconds_before(self, stage: Stage) -> float:
        """Training time of the stages before, to the point where this run left them, and what the growth took."""
        if not stage.parent:
            return 0.0
        records = read_records(self.records / stage.parent.address / "metrics.jsonl")
        trained = max((r["seconds"] for r in records if r["step"] <= stage.parent.last_step), default=0.0)
        report = self.records / stage.address / GROWN  # not there in the records that nobody reads
        return trained + (json.loads(report.read_text())["seconds"] if report.exists() else 0.0)

    def _write_folder(self, plan: RunPlan, folder: Path) -> None:
        """The run's own view of its stages: their records up to where it left them, and their growth reports."""
        records = []
        for stage in plan.stages:
            home = self.records / stage.address
            records += [r for r in read_records(home / "metrics.jsonl") if r["step"] <= stage.last_step]
            for name, as_name in ((GROWN, f"growth-{stage.number}.json"), (BEGUN, BEGUN)):
                if (home / name).exists():
                    write_json(folder / as_name, json.loads((home / name).read_text()))
            carry_origin(home, folder)
        write_records(folder / "metrics.jsonl", records)


@dataclasses.dataclass(frozen=True)
class Journey:
    """A run on its way."""

    plan: RunPlan
    mesh: Mesh
    name: str
    publish: Callable[[], None]

    def prepare(self, number: int) -> None:
        """Begins to compile what the stage of that number will need, if there is one, while another is trained."""
        for stage in self.plan.stages[number : number + 1]:
            compile_stage_ahead(stage, self.mesh)


def _free(before: TrainState, after: TrainState) -> None:
    """Frees the small state. What growth did not change may be the same arrays in both."""
    kept = {id(leaf) for leaf in jax.tree.leaves(after.arrays)}
    for leaf in jax.tree.leaves(before.arrays):
        if id(leaf) not in kept:
            leaf.delete()


def leave_points(plans: list[RunPlan]) -> dict[str, frozenset[int]]:
    """The steps at which the runs leave each address."""
    ends: dict[str, set[int]] = {}
    for stage in (stage for plan in plans for stage in plan.stages):
        ends.setdefault(stage.address, set()).add(stage.last_step)
    return {address: frozenset(steps) for address, steps in ends.items()}


def train(
    config: RunConfig,
    workdir: Path,
    stop: threading.Event,
    instruments: Instruments = UNWATCHED,
    cache: Path | None = None,
    begun_by: Mapping[str, Any] | None = None,
) -> None:
    """Trains one run in its folder: config.json, metrics.jsonl, growth-N.json, checkpoints/ and compiled/.

    Started again with the same config it goes on where it was, on whatever mesh. `cache`: where compiled programs are
    kept instead of in the folder. `begun_by`: written as run.json when the run is begun, and kept when it goes on: the
    command, the hardware and the commit. Raises InputError, DivergedError, StoppedError.
    """
    plan = plan_run(config, load_corpus(config.corpus), held_config(workdir))
    mesh_of(config.mesh, config.batch_sizes)
    with records_folder(workdir) as records:
        check_store(records / "checkpoints")
        claim_folder(records, plain(plan.config))
        if begun_by and not (records / BEGUN_BY).exists():
            write_json(records / BEGUN_BY, begun_by)
        after_first()
        ends = leave_points([plan])
        runner = Runner(workdir / "checkpoints", records / "checkpoints", ends, stop, instruments)
        with kept_on_disk(cache or workdir / COMPILED):
            runner.train(plan, records, workdir.name)
