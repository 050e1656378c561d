"""Benchmarks and texts while a stage is trained, as metrics.jsonl has them."""

import contextlib
import io
from functools import cached_property
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from growlm.data import first_corpus, load_tokenizer, tokenizer_of
from growlm.evaluation import LanguageModel, Sampling, check_tasks, evaluate, generate
from growlm.evaluation.table import metrics
from growlm.state import TrainState
from growlm.training.settings import EvaluationConfig
from growlm.training.stages import Stage

PREFIX = "benchmark/"
TEMPERATURE = 0.7  # of the softmax from which the tokens of a sample are drawn


def check_benchmarks(evaluation: EvaluationConfig) -> None:
    """Raises InputError where a task or its data is not there: hours before it would be needed."""
    if evaluation.tasks:
        check_tasks(evaluation.tasks, _folder(evaluation))


class Benchmarks:
    """The tasks of a stage. What they compile and read is cached between evaluations."""

    def __init__(self, stage: Stage, mesh: Mesh):
        self._stage, self._mesh = stage, mesh

    def scores(self, state: TrainState) -> dict[str, float]:
        """Scores under masks, by "benchmark/TASK/METRIC"; none for a stage without tasks."""
        evaluation = self._stage.evaluation
        if not evaluation.tasks:
            return {}
        settings = evaluation.tasks, _folder(evaluation), evaluation.limit or None
        with contextlib.redirect_stderr(io.StringIO()):  # a bar for every task, in the middle of the stage's own
            return named_scores(evaluate(self._model(state), *settings))

    def samples(self, state: TrainState) -> list[dict[str, str]]:
        """What the model writes after each of the prompts: {"prompt": ..., "text": ...}, always from the same draws."""
        evaluation = self._stage.evaluation
        if not evaluation.prompts:
            return []
        sampling = Sampling(most=evaluation.prompt_tokens, temperature=TEMPERATURE)
        with contextlib.redirect_stderr(io.StringIO()):
            texts = generate(self._model(state), evaluation.prompts, sampling, rows=len(evaluation.prompts))
        return [{"prompt": one, "text": text} for one, text in zip(evaluation.prompts, texts, strict=True)]

    def _model(self, state: TrainState) -> LanguageModel:
        """The state as a language model; EOS stands before a text, as before every document in training."""
        stage, tokenizer = self._stage, self._tokenizer
        config, progress = stage.config.model, stage.progress_at(int(state.step))
        params, scale = state.params, None
        if progress is not None:
            params, scale = stage.growth.masks.reparametrise(config, params, state.provenance, progress)
        return LanguageModel(
            config,
            params,
            tokenizer,
            length=stage.config.length,
            prefix=tokenizer.eos,
            dtype=stage.run.dtype,
            block_scale=scale,
            document_end=stage.text.eos if stage.run.document_mask else None,
            mesh=self._mesh,
        )

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(tokenizer_of(first_corpus(self._stage.corpus)))


def named_scores(results: dict[str, Any]) -> dict[str, float]:
    """The harness's results under one name each; standard errors and what is no number are left out.

    The name of a filter is part of a metric's where it is not "none", as in exact_match,strict-match.
    """
    named = {
        f"{PREFIX}{task}/{metric}" + ("" if filtered == "none" else f",{filtered}"): float(value)
        for task, row in results["results"].items()
        for metric, filtered, value in metrics(row)
        if isinstance(value, int | float)
    }
    return named | {f"{PREFIX}average/{metric}": value for metric, value in results.get("average", {}).items()}


def in_words(scores: dict[str, float]) -> str:
    """One metric of each task, in words: the accuracy, or else the first."""
    first: dict[str, str] = {}
    for name in scores:
        task, metric = name.removeprefix(PREFIX).split("/", 1)
        if task not in first or metric == "acc":
            first[task] = metric
    return ", ".join(f"{task} {metric} {scores[f'{PREFIX}{task}/{metric}']:.4g}" for task, metric in first.items())


def _folder(evaluation: EvaluationConfig) -> Path | None:
    return Path(evaluation.data_dir) if evaluation.data_dir else None
