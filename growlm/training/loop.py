"""Training one stage: batches in, updates, metrics one step late, evaluations and checkpoints where they are due."""

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from growlm.data import batches, validation_batches
from growlm.errors import DivergedError, InputError, StoppedError
from growlm.laws.compute import peak_flops
from growlm.models import Params
from growlm.state import TrainState
from growlm.training.benchmarks import Benchmarks, in_words
from growlm.training.checkpoint import Checkpoints
from growlm.training.decisions import Criterion
from growlm.training.device_memory import check_step, describe_memory
from growlm.training.goodput import DATA, EVALUATE, SAVE, TRAIN, spending
from growlm.training.growing import prepared_growth
from growlm.training.mesh import place_batch, replicated, share_of_batch
from growlm.training.metrics import MetricsLog, Profile, ProfilingConfig, Stopwatch
from growlm.training.processes import StopRequest, all_stop
from growlm.training.progress import Display
from growlm.training.stages import Stage
from growlm.training.step import (
    StepSpec,
    compile_check,
    compile_check_ahead,
    compile_steps,
    compile_steps_ahead,
    must_compile,
)
from growlm.training.texts import Text


def train_stage(
    stage: Stage,
    state: TrainState,
    *,
    text: Text,
    mesh: Mesh,
    checkpoints: Checkpoints,
    metrics_path: Path,
    branch_steps: Collection[int],
    criterion: Criterion,
    time_before: tuple[float, Mapping[str, float]],
    grown_at: float | None,
    next_stage: Stage | None,
    publish: Callable[[], None],
    display: Display,
    stop: StopRequest,
    profiling: ProfilingConfig,
    teacher: Params | None = None,
) -> TrainState:
    """Train from the state's step to the step at which the run leaves the stage, or `criterion` ends it; save there.

    Args:
      stage, state: what is trained, and the state to begin with.
      text, mesh: the data, and the devices that share the work.
      checkpoints: those of the stage.
      metrics_path: where its records go.
      branch_steps: steps at which some run of the sweep leaves the stage: there is a checkpoint, and it is kept.
      criterion: whether the stage ends sooner, asked where it is validated.
      time_before: of the stages before, the training time, and all of it by cause.
      grown_at: the time.perf_counter() at which the growth of this stage began, if it was just now.
      next_stage: compiled in the background once this one trains.
      publish: called when there are new records.
      teacher: the parameters of the teacher of the stage's objective.

    Raises:
      InputError: a step needs more memory than a device has.
      DivergedError: the loss or the gradient is not finite.
      StoppedError: `stop` was set; the state is saved.
    """
    run, evaluation = stage.run, stage.evaluation
    specs, batch, length = step_specs(stage, int(state.step)), stage.config.batch, stage.config.length
    if any(must_compile(spec, batch, length, mesh) for spec in specs.values()):
        display.say(f"compiling the train step ({stage.size}, {batch} x {length} tokens, {mesh.devices.size} devices)")
    steps, benchmarks = Steps(stage, state, specs, mesh, teacher), Benchmarks(stage, mesh)
    source = training_batches(stage, text, mesh, int(state.examples))
    with spending(EVALUATE):
        all_held_out = held_out_batches(stage, text, mesh)
    # Before a checkpoint one batch says whether a state has a loss; where few tokens count, one may have none of them.
    tried = all_held_out[:1] if stage.config.objective.row.validates else [all_held_out[0].one]
    known = max(checkpoints.steps(), default=-1)
    if stage.steps:
        check_step(stage, specs.values(), mesh)
        display.say(describe_memory(specs.values(), batch, length, mesh))

    log = MetricsLog(metrics_path, known, time_before[1])
    with contextlib.closing(log), Profile(profiling) as profile, spending(TRAIN):
        watch = Stopwatch(time_before[0] if log.seconds is None else log.seconds)
        waiting, validating = Stopwatch(), Stopwatch()
        recorder = Recorder(stage, log=log, display=display, watch=watch, waiting=waiting, peak=_peak(mesh, profiling))
        started_at = int(state.step)
        recorder.begin(started_at)
        if state.step == stage.first_step:
            with validating.running(), spending(EVALUATE):
                validation = steps.validate(state, all_held_out)
            recorder.check(stage.first_step, validation_loss=validation["val_loss"])
            samples = _samples(benchmarks, state, display) if stage.parent else {}
            recorder.record(stage.first_step, {"loss": None}, validation | samples)
            display.step(stage.first_step, loss=None, tokens_per_second=0.0, val_loss=validation["val_loss"])

        watch.start()
        ending = state.step == stage.last_step
        while not ending:
            profile.before(int(state.step) + 1, state.params)
            with waiting.running(), spending(DATA):
                tokens_BS = next(source)
            with jax.profiler.StepTraceAnnotation("step", step_num=int(state.step) + 1):
                state, metrics = steps.train(state, tokens_BS)
            step, stop.unsaved = int(state.step), True
            if grown_at is not None and step == stage.first_step + 1:
                jax.block_until_ready(metrics)
                recorder.note(pause_seconds=time.perf_counter() - grown_at - validating.seconds)
            if step == started_at + 1:  # not before: it would compete with a first step that is awaited
                compile_check_ahead(steps.spec, mesh)
                if next_stage:
                    _compile_ahead(next_stage, mesh)
            recorder.push(step, metrics)

            stopping = all_stop(stop.is_set(), step)
            ending = step == stage.last_step
            leaving = ending or step in branch_steps
            benchmarking = leaving or stage.passes(step, evaluation.tasks_every_tokens)
            writing = leaving or stage.passes(step, evaluation.prompts_every_tokens)
            evaluating = benchmarking or writing or stage.passes(step, evaluation.every_tokens)
            saving = leaving or stopping or stage.passes(step, run.checkpoint.every_tokens)
            if not (evaluating or saving):
                continue
            jax.block_until_ready(state.params)
            watch.pause()
            # Settled and tried before it is saved: no checkpoint holds a state whose loss is not finite.
            with spending(EVALUATE):
                validation = steps.validate(state, all_held_out if evaluating else tried)
            if evaluating and criterion.ends(step, validation["val_loss"]):
                display.say(f"step {step:,}: ends by the rule {stage.config.grow_when.rule!r}")
                ending = benchmarking = writing = saving = True
            with spending(EVALUATE):
                scores = benchmarks.scores(state) if benchmarking else {}
                samples = _samples(benchmarks, state, display) if writing else {}
            recorder.settle(validation | scores | samples, evaluating)
            if saving and not steps.all_finite(state):  # a batch may not meet the weight that is not
                raise DivergedError(f"a weight or a moment is not finite after step {step}: stopped")
            if scores:
                display.say(f"step {step:,}: {in_words(scores)}")
            with spending(SAVE):
                publish()  # first: no checkpoint is without the records until there
            if saving:
                log.sync()
                checkpoints.save(state)
            if stopping:
                checkpoints.wait()
                raise StoppedError(f"stopped and saved at step {step}; the same command goes on from there")
            watch.start()
    return state


def _samples(benchmarks: Benchmarks, state: TrainState, display: Display) -> dict[str, list[dict[str, str]]]:
    """The texts that the model writes now, for the record; shown too."""
    samples = benchmarks.samples(state)
    for sample in samples:
        display.say(f"step {int(state.step):,} writes: {sample['prompt']}{sample['text']}")
    return {"samples": samples} if samples else {}


def _peak(mesh: Mesh, profiling: ProfilingConfig) -> float:
    """FLOP/s of all devices together; 0 where that is not known."""
    of_one = profiling.peak_flops or peak_flops(mesh.devices.flat[0].device_kind) or 0.0
    return of_one * mesh.devices.size


def _compile_ahead(stage: Stage, mesh: Mesh) -> None:
    """Begin to compile, in the background, the growths with which a stage may begin, and its steps."""
    for one in stage.possible:
        prepared_growth.ahead(one, mesh)
        for spec in step_specs(one, one.first_step).values():
            compile_steps_ahead(spec, one.config.batch, one.config.length, mesh)


Which = tuple[bool, int | None, bool]  # of the steps of a stage: under masks, depth of the sub-model, with a teacher


def step_specs(stage: Stage, step: int) -> dict[Which, StepSpec]:
    """The train steps to compile for the rest of a stage from a step on.

    Both masked and unmasked ones are needed where the mask schedule ends between this step and the stage's end, and
    those with a teacher and without where its weight becomes 0.
    """
    config, run = stage.config, stage.run

    def spec(masked: bool, depth: int | None, taught: bool) -> StepSpec:
        return StepSpec(
            config.model,
            config.optimizer,
            dtype=run.dtype,
            remat=run.remat,
            unroll=run.unroll,
            train=config.train,
            frozen_layers=stage.frozen_below(depth),
            masks=stage.growth.masks if masked else None,
            depth=depth,
            microbatches=config.microbatches,
            held_out=stage.held_out,
            document_end=stage.text.eos if run.document_mask else None,
            two_rates=stage.two_rates,
            objective=config.objective,
            teacher=stage.teacher_model if taught else None,
            sparsity=config.sparsity,
        )

    masked = {stage.progress_at(at) is not None for at in (step, stage.last_step)}
    taught = {stage.teacher_weight_at(at) > 0 for at in (step + 1, max(stage.last_step, step + 1))}
    return {which: spec(*which) for which in itertools.product(masked, stage.depths, taught)}


class Steps:
    """The compiled steps of a stage, one for each of its sub-models if it has any."""

    def __init__(
        self,
        stage: Stage,
        state: TrainState,
        specs: Mapping[Which, StepSpec],
        mesh: Mesh,
        teacher: Params | None = None,
    ):
        self._updates, self._evaluations = {}, {}
        for which, spec in specs.items():
            update, evaluate = compile_steps(spec, stage.config.batch, stage.config.length, mesh)
            self._updates[which], self._evaluations[which[0]] = update, evaluate
        self.spec, self._mesh = next(iter(specs.values())), mesh  # all have one state
        self._stage, self._teacher, self._kept = stage, teacher, stage.kept(mesh)
        self._provenance = jax.device_put(state.provenance, replicated(mesh))

    def train(self, state: TrainState, tokens_BS: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        """The state one step later, and its metrics."""
        stage, step = self._stage, int(state.step)
        progress, learning_rate = stage.progress_at(step), stage.learning_rate_at(step + 1)
        rates = (learning_rate, stage.new_learning_rate_at(step + 1)) if stage.two_rates else learning_rate
        weight = stage.teacher_weight_at(step + 1)
        more = {"teacher": (self._teacher, np.float32(weight))} if weight else {}
        more |= {} if self._kept is None else {"kept": self._kept}
        update = self._updates[progress is not None, stage.depth_at(step + 1), bool(weight)]
        arrays, metrics = update(state.arrays, tokens_BS, np.float32(rates), self._provenance, progress, **more)
        return state.advanced(arrays, stage.config.batch, stage.config.length), metrics

    def all_finite(self, state: TrainState) -> bool:
        """Whether there is no NaN and no infinity in the state."""
        return bool(compile_check(self.spec, self._mesh)(state.arrays))

    def validate(self, state: TrainState, held_out: Sequence["HeldOut"]) -> dict[str, float]:
        """Mean loss over the fixed validation batches, in nats a token; of the averaged copy too, if any.

        Of several sources the mean by their shares, and beside it that of each as NAME/SOURCE.
        """
        progress = self._stage.progress_at(int(state.step))
        evaluate = self._evaluations[progress is not None]
        trees = {"val_loss": state.params} | ({} if state.ema is None else {"val_loss_ema": state.ema})
        losses: dict[str, float] = {}
        for name, params in trees.items():
            of_each = [
                mean_loss(evaluate(params, batch, self._provenance, progress) for batch in source.batches)
                for source in held_out
            ]
            losses[name] = sum(source.share * loss for source, loss in zip(held_out, of_each, strict=True))
            if len(held_out) > 1:
                losses |= {f"{name}/{source.name}": loss for source, loss in zip(held_out, of_each, strict=True)}
        return losses


def mean_loss(batches: Iterable[tuple[jax.Array, jax.Array]]) -> float:
    """The validation loss from what `validation_loss` gives of each batch. Raises InputError if no token counts."""
    losses, weights = zip(*((float(loss), float(weight)) for loss, weight in batches), strict=True)
    if not any(weights):
        rule = "a token that the objective counts, such as one of an answer"
        raise InputError(f"the validation batches must have {rule}, got none")
    return float(np.mean(losses)) / float(np.mean(weights))


class Recorder:
    """Fetches the metrics of a step while the device works on the next one; checks, shows and records them.

    watch counts training time, waiting the part of it that went into waiting for data. peak: FLOP/s of all devices
    together, 0 where that is not known.
    """

    def __init__(
        self, stage: Stage, *, log: MetricsLog, display: Display, watch: Stopwatch, waiting: Stopwatch, peak: float
    ):
        self._stage, self._log, self._display = stage, log, display
        self._watch, self._waiting, self._peak = watch, waiting, peak
        self._late: tuple[int, dict[str, jax.Array]] | None = None
        self._notes: dict[str, float] = {}

    def begin(self, step: int) -> None:
        """Rates are counted from this step on."""
        self._last_finite = step
        self._marks = [self._now(step)]

    def _now(self, step: int) -> tuple[int, float, float]:
        return step, self._watch.seconds, self._waiting.seconds

    def push(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Take the metrics of a step that may not be computed yet, and settle the step before."""
        self.settle()
        self._late = (step, metrics)

    def note(self, **values: float) -> None:
        """Keep values for the next record."""
        self._notes |= values

    def settle(self, validation: Mapping[str, float] | None = None, evaluated: bool = False) -> None:
        """Wait for the step that was pushed last.

        `validation` is of the state after it, to be recorded if `evaluated`. Raises DivergedError unless the loss, the
        gradient and its loss are finite.
        """
        if self._late is None:
            return
        (step, metrics), self._late = self._late, None
        values = {name: float(value) for name, value in metrics.items()}
        self.check(step, loss=values["loss"], gradient_norm=values["grad_norm"])
        self._last_finite = step
        if validation:  # the next step would meet it
            self.check(step + 1, validation_loss=validation["val_loss"])
        measured = validation if evaluated and validation else {}
        rates = self._rates(step)
        if evaluated or step % self._stage.run.log_every_steps == 0:
            self.record(step, values | rates | self._notes, measured)
            self._marks.append(self._now(step))
            self._notes = {}
        self._display.step(
            step,
            loss=values["loss"],
            tokens_per_second=rates["tokens_per_second"],
            val_loss=measured.get("val_loss"),
        )

    def check(self, step: int, **values: float) -> None:
        """Raises DivergedError unless all values are finite."""
        if not all(map(math.isfinite, values.values())):
            named = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())
            raise DivergedError(f"{named} between steps {self._last_finite} and {step}: stopped")

    def record(self, step: int, values: Mapping[str, float | None], measured: Mapping[str, Any]) -> None:
        """Write one line of metrics.jsonl, with what every line has; `measured` is of the state after the step."""
        stage, cost = self._stage, self._stage.cost_at(step)
        of_new = {"learning_rate_new": stage.new_learning_rate_at(step)} if stage.two_rates else {}
        self._log.write(
            {
                "stage": stage.number,
                "step": step,
                "tokens": stage.tokens_at(step),
                "flops": cost.flops,
                "flops_exact": cost.flops_exact,
                "parameters": stage.parameters,
                "seconds": self._watch.seconds,
                "learning_rate": stage.learning_rate_at(step),
            }
            | of_new
            | _exposure(stage, step)
            | values,
            measured,
        )

    def _rates(self, step: int) -> dict[str, float]:
        """Since a former record: tokens a second, the share of time that went into waiting for data, and the MFU.

        The MFU is exact FLOPs over those that the devices could do; it is left out where that is not known.
        """
        # Never over few steps: a step may be done before the one before it is recorded, and would have taken no time.
        while len(self._marks) > 1 and step - self._marks[1][0] >= self._stage.run.log_every_steps:
            del self._marks[0]
        marked_step, marked_seconds, marked_waiting = self._marks[0]
        seconds = max(self._watch.seconds - marked_seconds, 1e-9)
        tokens = self._stage.tokens_at(step) - self._stage.tokens_at(marked_step)
        flops = self._stage.cost_at(step).flops_exact - self._stage.cost_at(marked_step).flops_exact
        rates = {
            "tokens_per_second": tokens / seconds,
            "data_wait": min((self._waiting.seconds - marked_waiting) / seconds, 1.0),
        }
        return rates | ({"mfu": flops / seconds / self._peak} if self._peak else {})


def _exposure(stage: Stage, step: int) -> dict[str, float]:
    """How often the source that was seen most was seen, and of how many tokens nothing was seen before."""
    seen = stage.seen_at(step).values()
    of_each = {f"epochs/{one.name}": one.epochs for one in seen} if len(seen) > 1 else {}
    unique = sum(one.tokens / max(one.epochs, 1.0) for one in seen)
    return {"epochs": max(one.epochs for one in seen), **of_each, "unique_tokens": round(unique)} if seen else {}


def training_batches(stage: Stage, text: Text, mesh: Mesh, start: int) -> Iterator[jax.Array]:
    """The batches of a stage from an example of the run on, on their devices."""
    source = batches(
        text.trained.portions(stage.given),
        seed=stage.run.seed,
        start=start - stage.text_start,
        batch=stage.config.batch,
        length=stage.config.length,
        shard=share_of_batch(mesh),
    )
    return (place_batch(mesh, rows_BS) for rows_BS in source)


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The fixed batches of validation of one source, on their devices, and its share of the loss."""

    name: str
    share: float
    batches: list[jax.Array]

    @property
    def one(self) -> "HeldOut":
        """A batch of it, to see whether a state has a loss."""
        return HeldOut(self.name, 1.0, self.batches[:1])


def held_out_batches(stage: Stage, text: Text, mesh: Mesh) -> list[HeldOut]:
    """The fixed batches of validation, by source."""
    (batch, length), count = stage.held_out, stage.evaluation.batches
    shard, found = share_of_batch(mesh), []
    for name, corpus in text.validated.corpora.items():
        rows = validation_batches(corpus.validation, count=count, batch=batch, length=length, shard=shard)
        found.append(HeldOut(name, text.validated.share(name), [place_batch(mesh, rows_BS) for rows_BS in rows]))
    return found
