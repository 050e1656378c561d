"""Stages resolved: where each begins and ends, and the hash under which runs of a sweep share it."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jax.sharding import Mesh

from growlm.data.mixture import Fingerprint, given_by
from growlm.errors import InputError, check_name
from growlm.growth import Growth, growth_key, hashed_options, plan_growth
from growlm.laws.compute import training_flops
from growlm.models import DecoderConfig, Params, flops_per_token, parameter_count, with_depth
from growlm.models.counts import flops_of_layer
from growlm.training.config import without_defaults
from growlm.training.criteria import RULES
from growlm.training.objectives import PARENT
from growlm.training.own_code import code_of, own_code, source_of
from growlm.training.schedules import WITH_HORIZON, learning_rate, rewarm_factor
from growlm.training.settings import EvaluationConfig, GrowthConfig, RunConfig, StageConfig
from growlm.training.sparsity import density, draw_kept
from growlm.training.step import draw_depths, run_keys


@dataclasses.dataclass(frozen=True)
class Cost:
    """FLOPs since the run began: 6 N D as in the paper, N the active parameters; and the exact count with attention."""

    flops: float = 0.0
    flops_exact: float = 0.0

    def plus(
        self, model: DecoderConfig, tokens: int, length: int, frozen_layers: int = 0, sparsity: float = 0.0
    ) -> "Cost":
        """The cost after `tokens` more tokens of a model; frozen layers cost less by the exact count alone."""
        there = density(model, sparsity)
        # Of three parts, forward, backward to the activations and to the weights, a frozen layer has the first.
        frozen = 2 / 3 * frozen_layers * flops_of_layer(model, length, there) if frozen_layers else 0.0
        per_token = flops_per_token(model, length, there) - frozen
        return Cost(
            self.flops + training_flops(parameter_count(model, active=True, density=there), tokens),
            self.flops_exact + per_token * tokens,
        )

    def forward(self, model: DecoderConfig, tokens: int, length: int, sparsity: float = 0.0) -> "Cost":
        """The cost after the forward pass of a model alone: 2 N D, a third of training it, by both counts."""
        of_training = Cost().plus(model, tokens, length, sparsity=sparsity)
        return Cost(self.flops + of_training.flops / 3, self.flops_exact + of_training.flops_exact / 3)


@dataclasses.dataclass(frozen=True)
class StageText:
    """What a stage needs to know of its text.

    Attributes:
      trained: the fingerprint of what it is trained on.
      validated: of what it is validated on; None: the same.
      eos: the token that ends a document, if any.
      sources: of what it is trained on, by fingerprint: the name and the number of training tokens. Empty: not known.
    """

    trained: Fingerprint
    validated: Fingerprint | None = None
    eos: int | None = None
    sources: Mapping[str, tuple[str, int]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Seen:
    """How often a source was seen, in epochs, as which tokens of training, and its name."""

    name: str
    epochs: float = 0.0
    tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of one run on its text, and the stages before it. Counters run on through the stages of a run.

    Attributes:
      config, run: the settings of the stage and of its run.
      text: what it is trained and validated on.
      parent: the stage before.
      decided: what was decided of it while it was trained, by kind, see decisions.py; empty: nothing yet.
      probe: the growth that the config asks for, where it is a probe: `config` has the candidate that was chosen, or
        the first one until that is decided.
    """

    config: StageConfig
    run: RunConfig
    text: StageText
    parent: "Stage | None"
    decided: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    probe: GrowthConfig | None = None

    @property
    def asked(self) -> GrowthConfig | None:
        """The growth that the run's config asks for."""
        return self.probe or self.config.growth

    @cached_property
    def candidates(self) -> "dict[str, Stage]":
        """The stage as it begins with each of the growths that its probe tries, by name; empty without one."""
        probe = self.probe.probe if self.probe else None
        growths = probe.candidates if probe else {}
        configs = {name: dataclasses.replace(self.config, growth=growth) for name, growth in growths.items()}
        return {name: dataclasses.replace(self, config=config) for name, config in configs.items()}

    @property
    def candidate(self) -> str:
        """Which of a probe's candidates it begins with, for an error's line; empty without a probe."""
        names = [name for name, one in self.candidates.items() if one.config.growth == self.config.growth]
        return f"candidate {names[0]}: " if names else ""

    @property
    def possible(self) -> "list[Stage]":
        """The stage as it may begin: with each candidate until one is chosen, else as it is."""
        return [self] if "growth" in self.decided else [*self.candidates.values()] or [self]

    @cached_property
    def number(self) -> int:
        """0 for the first stage."""
        return self.parent.number + 1 if self.parent else 0

    @property
    def evaluation(self) -> EvaluationConfig:
        """What is measured while the stage is trained."""
        return self.config.evaluation or self.run.evaluation

    @property
    def corpus(self) -> Any:
        """What it is trained on, as `read_sources` takes it."""
        return self.run.corpus if self.config.corpus is None else self.config.corpus

    @property
    def validated_on(self) -> Any:
        """What it is validated on, as `read_sources` takes it."""
        given = (self.evaluation.corpus, self.run.corpus, self.config.corpus)
        return next(corpus for corpus in given if corpus is not None)

    @property
    def held_out(self) -> tuple[int, int]:
        """Examples in a validation batch, and tokens in each."""
        return self.evaluation.batch or self.config.batch, self.evaluation.length or self.config.length

    @cached_property
    def first_step(self) -> int:
        """The step counter where the stage begins."""
        return self.parent.last_step if self.parent else 0

    @cached_property
    def last_step(self) -> int:
        """The step counter where this run leaves the stage: where a rule ended it, or where its tokens do."""
        return min(self.budgeted_step, self.decided["end"]["step"]) if "end" in self.decided else self.budgeted_step

    @cached_property
    def budgeted_step(self) -> int:
        """The step counter where the stage's tokens end; in a last stage without any, what the run's budget leaves."""
        config = self.config
        if config.tokens or not self.run.budget_flops or self.number < len(self.run.stages) - 1:
            return self.first_step + config.tokens // (config.batch * config.length)
        of_batch = self.first_cost.plus(config.model, self.batch_tokens, config.length, sparsity=config.sparsity)
        of_batch = of_batch.flops - self.first_cost.flops
        left, taught = self.run.budget_flops - self.first_cost.flops, 0
        if self.teacher_model is not None:
            taught_batch = of_batch + self.taught(Cost(), 1).flops
            taught = config.objective.taught_steps(max(int(left // taught_batch), 0), self.batch_tokens)
            left -= taught * taught_batch
        return self.first_step + taught + max(int(left // of_batch), 0)

    @property
    def steps(self) -> int:
        """Whole batches that this run trains in the stage."""
        return self.last_step - self.first_step

    def examples_at(self, step: int) -> int:
        """Examples seen at a step of this stage: the position in the data."""
        first = self.parent.examples_at(self.parent.last_step) if self.parent else 0
        return first + (step - self.first_step) * self.config.batch

    @property
    def _same_text(self) -> bool:
        """Whether it goes on with the mixture of the stage before, of which both have all windows."""
        if self.parent is None or self.config.choice or self.parent.config.choice:
            return False
        return self.parent.text.trained == self.text.trained

    @cached_property
    def text_start(self) -> int:
        """The example at which its mixture began: with this stage, or with one before it that has the same."""
        return self.parent.text_start if self._same_text else self.examples_at(self.first_step)

    @cached_property
    def given(self) -> dict[str, int]:
        """Examples of each corpus, by fingerprint, before `text_start`: where it goes on, whatever the mixture."""
        if self._same_text:
            return self.parent.given
        return self.parent.given_at(self.parent.last_step) if self.parent else {}

    def given_at(self, step: int) -> dict[str, int]:
        """Examples of each corpus, by fingerprint, in all stages until a step of this one."""
        own = given_by(self.text.trained, self.examples_at(step) - self.text_start)
        return self.given | {corpus: self.given.get(corpus, 0) + count for corpus, count in own.items()}

    def seen_at(self, step: int) -> dict[str, Seen]:
        """How often each source whose size is known was seen in all stages until a step, by fingerprint."""
        before = dict(self.parent.seen_at(self.parent.last_step)) if self.parent else {}
        first, now = self.given_at(self.first_step), self.given_at(step)
        for corpus, (name, size) in self.text.sources.items():
            examples, length = now[corpus] - first[corpus], self.config.length
            seen = before.get(corpus, Seen(name))
            epochs = seen.epochs + examples / (size // (length + 1))
            before[corpus] = Seen(name, epochs, seen.tokens + examples * length)
        return before

    @cached_property
    def windows(self) -> dict[str, tuple[int, int]]:
        """How many windows of each corpus are chosen, and of how many, by fingerprint; empty without a choice."""
        if (choice := self.config.choice) is None:
            return {}
        chosen = given_by(self.text.trained, -(-(choice.tokens or self.config.tokens) // self.config.length))
        return {corpus: (max(count, 1), choice.scored(max(count, 1))) for corpus, count in chosen.items()}

    @cached_property
    def first_tokens(self) -> int:
        """Tokens seen where the stage begins."""
        return self.parent.tokens_at(self.parent.last_step) if self.parent else 0

    @cached_property
    def growth(self) -> Growth | None:
        """The growth that the stage begins with, planned with the key that it will use. Raises InputError."""
        if not self.parent:
            return None
        key = growth_key(run_keys(self.run.seed)[1], self.first_step)
        models = self.parent.config.model, self.config.model
        growth = self.config.growth.resolved
        try:
            return plan_growth(growth.operator, *models, key, **growth.options)
        except InputError as error:
            raise InputError(f"{self.candidate}{error}") from None

    @cached_property
    def first_cost(self) -> Cost:
        """The cost where the stage begins, with scoring windows, learning maps and trying all candidates of a probe.

        Maps of the chosen candidate are not billed again: the probe has learned them.
        """
        cost = self.scored(self.parent.cost_at(self.parent.last_step) if self.parent else Cost())
        if not self.parent:
            return cost
        probe = self.probe.probe if self.probe else None
        tried = [*self.candidates.values()] or [self]
        steps = sum(one.growth.learner.steps if one.growth.learner else 0 for one in tried)
        steps += probe.steps * len(tried) if probe else 0
        tokens, config = steps * self.batch_tokens, self.config
        cost = cost.plus(config.model, tokens, config.length, sparsity=config.sparsity)
        return self.taught(cost, probe.steps, len(tried)) if probe else cost

    def taught(self, cost: Cost, steps: int, times: int = 1) -> Cost:
        """The cost with the forward passes of the teacher in the stage's first steps, so many times."""
        if self.teacher_model is None:
            return cost
        objective = self.config.objective
        tokens = times * objective.taught_steps(steps, self.batch_tokens) * self.batch_tokens
        return cost.forward(self.teacher_model, tokens, self.config.length, self._sparsity_of(objective.teacher))

    def scored(self, cost: Cost) -> Cost:
        """The cost with the forward passes by which the stage's windows are scored."""
        if self.scorer_model is None:
            return cost
        tokens = sum(scored for _, scored in self.windows.values()) * self.config.length
        return cost.forward(self.scorer_model, tokens, self.config.length, self._sparsity_of(self.config.choice.scorer))

    def _sparsity_of(self, named: str | None) -> float:
        """That of a model which the stage only reads."""
        return self.parent.config.sparsity if named == PARENT and self.parent else 0.0

    def kept(self, mesh: Mesh) -> Params | None:
        """The masks of a sparse stage, see `sparsity`; None where it is dense."""
        sparsity = self.config.sparsity
        return draw_kept(self.config.model, sparsity, run_keys(self.run.seed)[0], mesh) if sparsity else None

    @property
    def teacher_model(self) -> DecoderConfig | None:
        """The shape of the teacher of the stage's objective, if it has one."""
        return self._read_model(self.config.objective.teacher, self.config.objective.teacher_model)

    @property
    def scorer_model(self) -> DecoderConfig | None:
        """The shape of the model by which its windows are chosen, if they are."""
        choice = self.config.choice
        return choice and self._read_model(choice.scorer, choice.scorer_model)

    def _read_model(self, named: str | None, model: DecoderConfig | None) -> DecoderConfig | None:
        return self.parent.config.model if named == PARENT and self.parent else model

    def teacher_weight_at(self, step: int) -> float:
        """The weight of the teacher in the loss of the update that leads to `step`; 0 where it does not run."""
        return self.config.objective.teacher_weight(self.tokens_at(step - 1) - self.first_tokens)

    @cached_property
    def parameters(self) -> int:
        """Parameters N of its model, of a mixture the active ones: not those of sub-models, nor of a teacher."""
        return parameter_count(self.config.model, active=True, density=density(self.config.model, self.config.sparsity))

    @property
    def batch_tokens(self) -> int:
        """Tokens of an update."""
        return self.config.batch * self.config.length

    def progress_at(self, step: int) -> np.ndarray | None:
        """How far the masks of the stage's growth are open at a step, float32[4]; None where there are none left."""
        masks, tokens = self.growth.masks if self.growth else None, self.tokens_at(step) - self.first_tokens
        return masks.progress(tokens) if masks and tokens < masks.tokens else None

    def passes(self, step: int, every_tokens: int) -> bool:
        """Whether a step passes a multiple of every_tokens; never where that is 0."""
        return every_tokens > 0 and self.tokens_at(step) // every_tokens > self.tokens_at(step - 1) // every_tokens

    def tokens_at(self, step: int) -> int:
        """Tokens seen at a step of this stage."""
        return self.first_tokens + (step - self.first_step) * self.config.batch * self.config.length

    def cost_at(self, step: int) -> Cost:
        """The cost at a step of this stage, by its steps of each sub-model."""
        config, cost, taken = self.config, self.first_cost, step - self.first_step
        for depth in self.depths:
            steps = taken if depth is None else int(np.count_nonzero(self._drawn[:taken] == depth))
            model = config.model if depth is None else with_depth(config.model, depth)
            frozen = self.frozen_below(depth)
            cost = cost.plus(model, steps * self.batch_tokens, config.length, frozen, config.sparsity)
        return self.taught(cost, taken)

    @property
    def depths(self) -> tuple[int | None, ...]:
        """The number of layers of each sub-model; None for the whole model, where there are no others."""
        block = self.config.submodel_layers
        return tuple(range(block, self.config.model.depth + 1, block)) if block else (None,)

    def frozen_below(self, depth: int | None) -> int:
        """The number of frozen layers of the sub-model of a depth."""
        return self.config.frozen_layers if depth is None else depth - self.config.submodel_layers

    def depth_at(self, step: int) -> int | None:
        """The number of layers of the sub-model of the update that leads to `step`; None for the whole model."""
        return int(self._drawn[step - self.first_step - 1]) if self.config.submodel_layers else None

    @cached_property
    def _drawn(self) -> np.ndarray:
        """The depth of every update of the stage."""
        layers, block = self.config.model.depth, self.config.submodel_layers
        return draw_depths(self.run.seed, self.last_step, layers, block)[self.first_step :]

    @cached_property
    def schedule_start(self) -> int:
        """The token at which the schedule began: the first of this stage, or that of the schedule it continues."""
        if self.parent and self.config.schedule.at_growth == "continue":
            return self.parent.schedule_start
        return self.first_tokens

    @cached_property
    def horizon(self) -> int:
        """Tokens from the start of the schedule to its end: a rule that ends the stage sooner does not move that."""
        return self.config.schedule.horizon_tokens or self.tokens_at(self.budgeted_step) - self.schedule_start

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of the update that leads to `step`: of all weights, or of the old slices alone."""
        tokens, config = self.tokens_at(step) - self.schedule_start, self.config
        scheduled = learning_rate(config.schedule, tokens, self.horizon, config.batch)
        return scheduled if self.two_rates else scheduled * self._rewarm_at(step)

    def new_learning_rate_at(self, step: int) -> float:
        """That of the slices that the stage's growth added."""
        return self.learning_rate_at(step) * (self._rewarm_at(step) if self.two_rates else 1.0)

    @property
    def two_rates(self) -> bool:
        """Whether new slices have a learning rate of their own."""
        return self.config.schedule.rewarm == "new"

    def _rewarm_at(self, step: int) -> float:
        """The factor of the re-warm, which the stage's first update begins."""
        return rewarm_factor(self.config.schedule, self.tokens_at(step - 1) - self.first_tokens)

    @property
    def judged_on(self) -> dict[str, Any] | None:
        """The validation by which something is decided of the stage; None where nothing is."""
        if not self.config.grow_when and not self.probe:
            return None
        (batch, length), every = self.held_out, self.evaluation.every_tokens if self.config.grow_when else 0
        other = {} if self.text.validated is None else {"corpus": self.text.validated}
        return {"every_tokens": every, "batches": self.evaluation.batches, "batch": batch, "length": length} | other

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All that determines the stage's result, but for the point at which it stops, as plain JSON.

        - the stage's config: a preset as what it stands for, nothing that is at its default, so that a new setting
          changes no hash; not tokens and evaluation, and of a corpus, init_from, a teacher and a scorer the fingerprint
          and not the place;
        - the source of an operator, a rule, an objective, an optimizer, a schedule or an architecture that is not
          growlm's, the end of a schedule that depends on its end, the tokens that chosen windows cover, and the
          validation by which something is decided;
        - the run's seed, dtype, remat and document_mask, and the fingerprint of the text;
        - the hash of the stage before, and the step at which this run left it.
        """
        config = self.config
        growth = self.asked.resolved if self.asked else None
        own = without_defaults(dataclasses.replace(config, growth=growth))
        for name in ("tokens", "evaluation", "corpus", "init_from"):
            own.pop(name, None)
        if config.objective.place:
            own["objective"] = {k: v for k, v in own["objective"].items() if k not in ("teacher", "teacher_model")}
        if choice := config.choice:
            place = ("scorer", "scorer_model") if choice.place else ()
            own["choice"] = {k: v for k, v in own["choice"].items() if k not in place}
            own["choice"]["tokens"] = choice.tokens or config.tokens
        operators = {one.config.growth.resolved.operator for one in [*self.candidates.values()] or [self] if growth}
        if source := ",".join(sorted(filter(None, map(source_of, operators)))):
            own["growth"] = own["growth"] | {"source": source}
        if options := own.get("growth", {}).get("options"):
            own["growth"] = own["growth"] | {"options": hashed_options(options)}
        if config.grow_when and (source := code_of(RULES[config.grow_when.rule])):
            own["grow_when"] = own["grow_when"] | {"source": source}
        if self.judged_on:
            own["judged_on"] = self.judged_on
        if code := own_code(config):
            own["code"] = code
        if config.schedule.kind in WITH_HORIZON:
            own["schedule"] = own.get("schedule", {}) | {"horizon_tokens": self.horizon}
        run = without_defaults(self.run)
        shared = {name: run[name] for name in ("seed", "dtype", "remat", "document_mask") if name in run}
        parent = {"address": self.parent.stage_hash, "last_step": self.parent.last_step} if self.parent else None
        return own | shared | {"corpus": self.text.trained, "parent": parent}

    @property
    def size(self) -> str:
        """Its model in words, such as "8 layers x 64"."""
        model = self.config.model
        return f"{model.depth} layers x {model.size(model.architecture.stream)}"

    @property
    def growth_hash(self) -> str:
        """A hash of the stage and of the growth that it begins with, whether that was asked for or chosen."""
        return dataclasses.replace(self, probe=None).stage_hash

    @cached_property
    def stage_hash(self) -> str:
        """12 hex digits of the SHA-256 of `settings`: stages of one hash are one stage, trained once."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:12]


def resolve(
    run: RunConfig,
    texts: Sequence[StageText] | str,
    decisions: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Stage]:
    """The stages of a run.

    Args:
      run: its settings.
      texts: of every stage; or the fingerprint of one corpus for all, of which no more need be known.
      decisions: what was decided while stages were trained, by their hashes (`growlm.training.decisions`).
    """
    if isinstance(texts, str):
        texts = [StageText(texts)] * len(run.stages)
    stages: list[Stage] = []
    for config, text in zip(run.stages, texts, strict=True):
        stages.append(begin_stage(config, run, text, stages[-1] if stages else None, decisions))
    return stages


def begin_stage(
    config: StageConfig,
    run: RunConfig,
    text: StageText,
    parent: Stage | None,
    decisions: Mapping[str, Mapping[str, Any]] | None = None,
) -> Stage:
    """The stage that comes after `parent`; else as `resolve`."""
    probe = config.growth if config.growth and config.growth.probe else None
    stage = Stage(config, run, text, parent, probe=probe)
    stage = dataclasses.replace(stage, decided=(decisions or {}).get(stage.stage_hash, {}))
    if not probe:
        return stage
    chosen = (stage.decided.get("growth") or {}).get("chosen", next(iter(stage.candidates)))
    check_name("the growth that was chosen", chosen, stage.candidates)
    return stage.candidates[chosen]
