"""Stages resolved: where each begins and ends, and the address under which runs of a sweep share it."""

import dataclasses
import hashlib
import inspect
import json
from functools import cached_property
from typing import Any

import numpy as np

from growlm.growth import OPERATORS, Growth, growth_key, plan_growth
from growlm.laws.compute import training_flops
from growlm.models import DecoderConfig, flops_per_token, parameter_count, with_depth
from growlm.training.config import without_defaults
from growlm.training.schedules import WITH_HORIZON, learning_rate
from growlm.training.settings import EvaluationConfig, RunConfig, StageConfig
from growlm.training.step import run_keys
from growlm.training.submodels import draw_depths


@dataclasses.dataclass(frozen=True)
class Cost:
    """FLOPs since the run began: 6 N D as the paper counts, N being what a token meets; and exact with attention."""

    flops: float = 0.0
    flops_exact: float = 0.0

    def plus(self, model: DecoderConfig, tokens: int, length: int, frozen_layers: int = 0) -> "Cost":
        """The cost after so many more tokens of this model; frozen layers cost less by the exact count alone."""

        def exact(layers: int) -> float:
            return flops_per_token(with_depth(model, layers), length)

        # Of three parts, forward, backward to the activations and to the weights, a frozen layer has the first.
        per_token = exact(model.depth) - 2 / 3 * (exact(frozen_layers) - exact(0))
        return Cost(
            self.flops + training_flops(parameter_count(model, active=True), tokens),
            self.flops_exact + per_token * tokens,
        )


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of one run, with all that comes before it. Counters run on through the stages of a run."""

    config: StageConfig
    run: RunConfig
    fingerprint: str  # of the corpus
    parent: "Stage | None"
    eos: int | None = None  # the token that ends a document of it

    @cached_property
    def number(self) -> int:
        """0 for the first stage."""
        return self.parent.number + 1 if self.parent else 0

    @property
    def evaluation(self) -> EvaluationConfig:
        """What is measured while the stage is trained."""
        return self.config.evaluation or self.run.evaluation

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
        """The step counter where this run leaves the stage."""
        return self.first_step + self.config.steps

    @cached_property
    def first_tokens(self) -> int:
        """Tokens seen where the stage begins."""
        return self.parent.tokens_at(self.parent.last_step) if self.parent else 0

    @cached_property
    def growth(self) -> Growth | None:
        """What the stage begins with, planned with the key that it will use. Raises InputError."""
        if not self.parent:
            return None
        key = growth_key(run_keys(self.run.seed)[1], self.first_step)
        models = self.parent.config.model, self.config.model
        return plan_growth(self.config.growth.operator, *models, key, **self.config.growth.options)

    @cached_property
    def first_cost(self) -> Cost:
        """What was spent where the stage begins, on learning the maps of its growth too."""
        if not self.parent:
            return Cost()
        steps = self.growth.learner.steps if self.growth.learner else 0
        learned = steps * self.config.batch * self.config.length
        return self.parent.cost_at(self.parent.last_step).plus(self.config.model, learned, self.config.length)

    def progress_at(self, step: int) -> np.ndarray | None:
        """How far the masks of the stage's growth are open at a step; None where it has none, or none any more."""
        masks, tokens = self.growth and self.growth.masks, self.tokens_at(step) - self.first_tokens
        return masks.progress(tokens) if masks and tokens < masks.tokens else None

    def tokens_at(self, step: int) -> int:
        """Tokens seen at a step of this stage."""
        return self.first_tokens + (step - self.first_step) * self.config.batch * self.config.length

    def cost_at(self, step: int) -> Cost:
        """What was spent at a step of this stage, by its steps of each sub-model."""
        config, cost = self.config, self.first_cost
        for depth in self.depths:
            model = config.model if depth is None else with_depth(config.model, depth)
            tokens = self._steps_of(depth, step) * config.batch * config.length
            cost = cost.plus(model, tokens, config.length, self.frozen_below(depth))
        return cost

    @property
    def depths(self) -> tuple[int | None, ...]:
        """How many layers each sub-model has; None is the whole model, where there are no others."""
        block = self.config.submodel_layers
        return tuple(range(block, self.config.model.depth + 1, block)) if block else (None,)

    def frozen_below(self, depth: int | None) -> int:
        """How many layers of the sub-model of this depth are not trained."""
        return self.config.frozen_layers if depth is None else depth - self.config.submodel_layers

    def depth_at(self, step: int) -> int | None:
        """How many layers the sub-model of the update that leads to `step` has; None: it is the whole model."""
        return int(self._drawn[step - self.first_step - 1]) if self.config.submodel_layers else None

    def _steps_of(self, depth: int | None, step: int) -> int:
        """How many of the stage's updates that lead to `step` are of this sub-model."""
        taken = step - self.first_step
        return taken if depth is None else int(np.searchsorted(self._drawn_at[depth], taken))

    @cached_property
    def _drawn(self) -> np.ndarray:
        """The depth of every update of the stage."""
        layers, block = self.config.model.depth, self.config.submodel_layers
        return draw_depths(self.run.seed, self.last_step, layers, block)[self.first_step :]

    @cached_property
    def _drawn_at(self) -> dict[int, np.ndarray]:
        """The updates of every depth, in order, so that counting them takes no pass over all."""
        return {depth: np.flatnonzero(self._drawn == depth) for depth in self.depths}

    @cached_property
    def schedule_start(self) -> int:
        """The token at which the schedule began: here, or where the stage that it continues has it."""
        continues = self.parent and self.config.schedule.at_growth == "continue"
        return self.parent.schedule_start if continues else self.first_tokens

    @cached_property
    def horizon(self) -> int:
        """Where the schedule ends, counted from its start."""
        return self.config.schedule.horizon_tokens or self.tokens_at(self.last_step) - self.schedule_start

    def learning_rate_at(self, step: int) -> float:
        """The rate of the update that leads to `step`."""
        return learning_rate(self.config.schedule, self.tokens_at(step) - self.schedule_start, self.horizon)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that determines the stage's result but the point at which it stops."""
        # What is at its default does not count: addresses stay what they are when a setting is added.
        own = without_defaults(self.config)
        for name in ("tokens", "evaluation", "init_from"):  # what is there counts, not where it is
            own.pop(name, None)
        if self.config.growth and (source := source_of(self.config.growth.operator)):
            own["growth"] = own["growth"] | {"source": source}
        if self.config.schedule.kind in WITH_HORIZON:
            own["schedule"] = own.get("schedule", {}) | {"horizon_tokens": self.horizon}
        of_run = without_defaults(self.run)
        shared = {name: of_run[name] for name in ("seed", "dtype", "remat", "document_mask") if name in of_run}
        parent = {"address": self.parent.address, "last_step": self.parent.last_step} if self.parent else None
        return own | shared | {"corpus": self.fingerprint, "parent": parent}

    @cached_property
    def address(self) -> str:
        """The hash of `settings`: stages of equal address are one stage, trained once."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:12]


def source_of(operator: str) -> str | None:
    """A hash of the code of an operator that is not growlm's own: edited, it makes another stage."""
    function = OPERATORS[operator]
    if function.__module__.startswith("growlm."):
        return None
    try:
        source = inspect.getsource(function).encode()
    except OSError:  # typed into a notebook
        source = function.__code__.co_code
    return hashlib.sha256(source).hexdigest()[:12]


def resolve(run: RunConfig, fingerprint: str, eos: int | None = None) -> list[Stage]:
    """The stages of a run on a corpus, each knowing its parent. To train under a document mask takes its EOS."""
    stages: list[Stage] = []
    for config in run.stages:
        stages.append(Stage(config, run, fingerprint, stages[-1] if stages else None, eos))
    return stages
