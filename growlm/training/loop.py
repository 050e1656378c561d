"""Training one stage: batches in, updates, metrics one step late, evaluations and checkpoints where they are due."""

import contextlib
import dataclasses
import itertools
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from growlm.data import Corpus, batches, validation_batches
from growlm.errors import DivergedError, StoppedError
from growlm.laws.compute import peak_flops
from growlm.state import TrainState
from growlm.training.benchmarks import Benchmarks, in_words
from growlm.training.checkpoint import Checkpoints
from growlm.training.mesh import place_batch, replicated, share_of_batch
from growlm.training.metrics import Instruments, MetricsLog, Profile, Progress, Stopwatch
from growlm.training.processes import all_stop, is_first
from growlm.training.programs import (
    compile_steps,
    compile_steps_ahead,
    describe_memory,
    prepare_growth_ahead,
)
from growlm.training.stages import Stage
from growlm.training.step import Program


@contextlib.contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, so that the loop can save before it leaves.

    Of several processes JAX tells them all of a SIGTERM to one, see `all_stop`.
    """
    requested = threading.Event()
    in_main = threading.current_thread() is threading.main_thread()  # only there may Python set handlers
    former = {
        number: signal.signal(number, lambda *_: requested.set())
        for number in (signal.SIGTERM, signal.SIGINT)
        if in_main and jax.process_count() == 1
    }
    try:
        yield requested
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


class Recorder:
    """Fetches the metrics of a step while the device works on the next one; checks, shows and records them."""

    def __init__(self, stage: Stage, log: MetricsLog, bar: Progress, watch: Stopwatch, waited: Stopwatch, peak: float):
        self._stage, self._log, self._bar, self._watch, self._waited, self._peak = stage, log, bar, watch, waited, peak
        self._late: tuple[int, dict[str, jax.Array]] | None = None
        self._notes: dict[str, float] = {}

    def begin(self, step: int) -> None:
        """From this step on."""
        self._finite = step
        self._mark = (step, self._watch.seconds, self._waited.seconds)

    def push(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of a step that may not be computed yet, and settles the step before."""
        self.settle()
        self._late = (step, metrics)

    def note(self, **values: float) -> None:
        """Values for the next record that there is."""
        self._notes |= values

    def settle(self, validation: Mapping[str, float] | None = None, evaluated: bool = False) -> None:
        """Waits for the step that was pushed last.

        `validation` is of the state after it, to be recorded if `evaluated`. Raises DivergedError unless the loss, the
        gradient and its loss are finite.
        """
        if self._late is None:
            return
        (step, metrics), self._late = self._late, None
        found = {name: float(value) for name, value in metrics.items()}
        loss = found["loss"]
        self.check(step, loss=loss, gradient_norm=found["grad_norm"])
        self._finite = step
        if validation:  # the next step would meet it
            self.check(step + 1, validation_loss=validation["val_loss"])
        rates = self._rates(step)
        self._bar.step(loss, rates["tokens_per_second"])
        if evaluated or step % self._stage.run.log_every_steps == 0:
            extra = (validation if evaluated else {}) | self._notes
            self.record(step, **found, **rates, **extra)
            self._notes = {}
            self._mark = (step, self._watch.seconds, self._waited.seconds)

    def check(self, step: int, **values: float) -> None:
        """Raises DivergedError unless all values are finite."""
        if not all(map(math.isfinite, values.values())):
            said = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())
            raise DivergedError(
                f"{said} between steps {self._finite} and {step}: stopped; the last good checkpoint is kept"
            )

    def record(self, step: int, **values: float | None) -> None:
        """One line of metrics.jsonl, with what every line has."""
        stage, cost = self._stage, self._stage.cost_at(step)
        self._log.write(
            {
                "stage": stage.number,
                "step": step,
                "tokens": stage.tokens_at(step),
                "flops": cost.flops,
                "flops_exact": cost.flops_exact,
                "seconds": self._watch.seconds,
                "learning_rate": stage.learning_rate_at(step),
            }
            | values
        )

    def _rates(self, step: int) -> dict[str, float]:
        """Since the last record: tokens a second, the share of time that went into waiting for data, and the MFU.

        The MFU is exact FLOPs over those that the devices could do; it is left out where nobody knows what they can.
        """
        marked_step, marked_seconds, marked_waited = self._mark
        seconds = max(self._watch.seconds - marked_seconds, 1e-9)
        tokens = self._stage.tokens_at(step) - self._stage.tokens_at(marked_step)
        flops = self._stage.cost_at(step).flops_exact - self._stage.cost_at(marked_step).flops_exact
        rates = {
            "tokens_per_second": tokens / seconds,
            "data_wait": min((self._waited.seconds - marked_waited) / seconds, 1.0),
        }
        return rates | ({"mfu": flops / seconds / self._peak} if self._peak else {})


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """What a stage is trained with, beside its settings: `ends` are all steps at which runs leave it."""

    corpus: Corpus
    mesh: Mesh
    checkpoints: Checkpoints
    metrics_path: Path
    title: str
    ends: frozenset[int]
    seconds_before: float
    stop: threading.Event
    instruments: Instruments
    grown_at: float | None  # the time.perf_counter() at which the growth of this stage began, if it was just now
    begun: Callable[[], None]  # called when the first step is taken
    publish: Callable[[], None]  # called when there is something new to look at


def programs_of(stage: Stage, step: int) -> dict[tuple[bool, int | None], Program]:
    """What a stage needs compiled from a step on: by whether it is under masks then, and by sub-model.

    They are of the model under masks while a ramp lasts, of the plain model after it: it may be over already, or not
    even at the end.
    """
    config, run = stage.config, stage.run
    settings = {"microbatches": config.microbatches, "held_out": stage.held_out}
    settings |= {"document_end": stage.eos if run.document_mask else None}
    shared = Program(config.model, config.optimizer, run.dtype, run.remat, config.train, **settings)

    def program(ramped: bool, depth: int | None) -> Program:
        ramp, frozen = stage.growth.masks if ramped else None, stage.frozen_below(depth)
        return dataclasses.replace(shared, depth=depth, frozen_layers=frozen, ramp=ramp)

    masked = {stage.progress_at(at) is not None for at in (step, stage.last_step)}
    return {(ramped, depth): program(ramped, depth) for ramped, depth in itertools.product(masked, stage.depths)}


def compile_stage_ahead(stage: Stage, mesh: Mesh) -> None:
    """Begins to compile, in the background, all that a stage after growth will need: the growth and its steps."""
    prepare_growth_ahead(stage, mesh)
    for program in programs_of(stage, stage.first_step).values():
        compile_steps_ahead(program, stage.config.batch, stage.config.length, mesh)


class Steps:
    """The compiled steps of a stage, one for each of its sub-models if it has any."""

    def __init__(self, stage: Stage, state: TrainState, mesh: Mesh):
        config, programs = stage.config, programs_of(stage, int(state.step))
        self._updates, self._evaluations = {}, {}
        for (ramped, depth), program in programs.items():
            compiled = compile_steps(program, config.batch, config.length, mesh)
            self._updates[ramped, depth], self._evaluations[ramped] = compiled
        self.memory = describe_memory(programs.values(), config.batch, config.length, mesh)
        self._stage = stage
        self._provenance = jax.device_put(state.provenance, replicated(mesh))

    def train(self, state: TrainState, tokens_BS: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        """The state one step later, and its metrics."""
        stage, step = self._stage, int(state.step)
        progress, rate = stage.progress_at(step), np.float32(stage.learning_rate_at(step + 1))
        update = self._updates[progress is not None, stage.depth_at(step + 1)]
        arrays, metrics = update(state.arrays, tokens_BS, rate, self._provenance, progress)
        return state.advanced(arrays, stage.config.batch, stage.config.length), metrics

    def validate(self, state: TrainState, held_out: Sequence[jax.Array]) -> dict[str, float]:
        """Mean loss over the fixed validation batches, in nats a token; of the averaged copy too, if any."""
        progress = self._stage.progress_at(int(state.step))
        evaluate = self._evaluations[progress is not None]
        trees = {"val_loss": state.params} | ({"val_loss_ema": state.ema} if state.ema else {})
        return {
            name: float(np.mean([float(evaluate(params, batch, self._provenance, progress)) for batch in held_out]))
            for name, params in trees.items()
        }


def training_batches(stage: Stage, corpus: Corpus, mesh: Mesh, start: int) -> Iterator[jax.Array]:
    """The batches of a stage from an example on, on their devices."""
    settings = {"batch": stage.config.batch, "length": stage.config.length, "shard": share_of_batch(mesh)}
    source = batches(corpus.train, seed=stage.run.seed, start=start, **settings)
    return (place_batch(mesh, rows_BS) for rows_BS in source)


def held_out_batches(stage: Stage, corpus: Corpus, mesh: Mesh) -> list[jax.Array]:
    """The fixed batches of validation, on their devices."""
    (batch, length), shard = stage.held_out, share_of_batch(mesh)
    settings = {"count": stage.evaluation.batches, "batch": batch, "length": length, "shard": shard}
    found = validation_batches(corpus.validation, **settings)
    return [place_batch(mesh, rows_BS) for rows_BS in found]


def train_stage(stage: Stage, state: TrainState, around: Surroundings) -> TrainState:
    """Trains from the state's step to the step at which the run leaves the stage, and saves there.

    Raises DivergedError, or StoppedError when asked to stop.
    """
    run, evaluation, checkpoints, mesh = stage.run, stage.evaluation, around.checkpoints, around.mesh
    steps, benchmarks = Steps(stage, state, mesh), Benchmarks(stage, mesh)
    source = training_batches(stage, around.corpus, mesh, int(state.examples))
    all_held_out = held_out_batches(stage, around.corpus, mesh)
    known = max(checkpoints.steps(), default=-1)
    if is_first() and stage.config.steps:
        print(f"{around.title}: {steps.memory}", file=sys.stderr)

    with (
        contextlib.closing(MetricsLog(around.metrics_path, known)) as log,
        Progress(around.title, stage.first_step, int(state.step), stage.last_step) as bar,
        Profile(around.instruments) as profile,
    ):
        watch = Stopwatch(around.seconds_before if log.seconds is None else log.seconds)
        waiting, validating = Stopwatch(), Stopwatch()
        recorder = Recorder(stage, log, bar, watch, waiting, _peak(mesh, around.instruments))
        begun = int(state.step)
        recorder.begin(begun)
        if state.step == stage.first_step:
            with validating.running():
                validation = steps.validate(state, all_held_out)
            recorder.check(stage.first_step, validation_loss=validation["val_loss"])
            recorder.record(stage.first_step, loss=None, **validation)

        watch.start()
        while state.step < stage.last_step:
            profile.before(int(state.step) + 1, state.params)
            with waiting.running():
                tokens_BS = next(source)
            with jax.profiler.StepTraceAnnotation("step", step_num=int(state.step) + 1):
                state, metrics = steps.train(state, tokens_BS)
            step = int(state.step)
            if around.grown_at and step == stage.first_step + 1:
                jax.block_until_ready(metrics)
                recorder.note(pause_seconds=time.perf_counter() - around.grown_at - validating.seconds)
            if step == begun + 1:
                around.begun()  # not before: what it compiles would compete with a first step that is waited for
            recorder.push(step, metrics)

            stopping = all_stop(around.stop.is_set(), step)
            ending = step in around.ends or step == stage.last_step
            benchmarking = ending or _passes(stage, step, evaluation.tasks_every_tokens)
            evaluating = benchmarking or _passes(stage, step, evaluation.every_tokens)
            saving = ending or stopping or _passes(stage, step, run.checkpoint.every_tokens)
            if not (evaluating or saving):
                continue
            jax.block_until_ready(state.params)
            watch.pause()
            # Settled and tried before it is saved: no checkpoint holds a state whose loss is not finite.
            held_out = all_held_out if evaluating else all_held_out[:1]
            scores = benchmarks.scores(state) if benchmarking else {}
            recorder.settle(steps.validate(state, held_out) | scores, evaluating)
            if scores:
                bar.say(f"{around.title}, step {step}: {in_words(scores)}")
            if saving:
                checkpoints.save(state)
            around.publish()
            if stopping:
                checkpoints.wait()
                raise StoppedError(f"stopped and saved at step {step}; the same command goes on from there")
            watch.start()
    return state


def _peak(mesh: Mesh, instruments: Instruments) -> float:
    """FLOP/s of all devices together; 0 where that is not known."""
    of_one = instruments.peak_flops or peak_flops(mesh.devices.flat[0].device_kind) or 0.0
    return of_one * mesh.devices.size


def _passes(stage: Stage, step: int, every_tokens: int) -> bool:
    """Whether this step passes a multiple of so many tokens; never where that is 0."""
    return every_tokens > 0 and stage.tokens_at(step) // every_tokens > stage.tokens_at(step - 1) // every_tokens
