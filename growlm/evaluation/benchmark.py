"""Scores on the tasks of lm-evaluation-harness in one call, and the paper's average of them."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from growlm.errors import InputError, check_range
from growlm.evaluation.resolution import with_resolution
from growlm.evaluation.score import LanguageModel

BOOTSTRAP = 1000  # draws for the standard error of a perplexity; those of accuracies are exact
SEED = 1234  # of the examples before a question, as the harness has it


def evaluate(
    model: LanguageModel,
    tasks: Sequence[str],
    data_dir: Path | None = None,
    limit: int | None = None,
    shots: int | None = None,
    batch: int | None = None,
) -> dict[str, Any]:
    """The model's scores on tasks of lm-evaluation-harness.

    Programs are compiled once for every shape in a process: evaluating again, with other parameters, is fast.

    Args:
      model: the model.
      tasks: names of tasks, groups and tags that the harness knows; "paper" stands for the eight of the paper,
        "paper_7b" for the eleven of its table 6.
      data_dir: a folder with the tasks' data, as in `growlm.evaluation.tasks.manager`. By default the harness fetches
        the tasks' datasets from the Hugging Face hub.
      limit: evaluate only the first `limit` documents of every task.
      shots: examples before every question; by default the task's own number, which is none for the paper's.
      batch: rows of a batch; by default as many as make some thousand positions on every device.

    Returns:
      The harness's results: `results` by task and metric, with those of `growlm.evaluation.resolution` beside the
      accuracies of tasks (not of groups); `groups`, `configs`, `versions`, `n-shot`, `n-samples`, `higher_is_better`,
      which is of the harness's own metrics; and, where there are all tasks of it, `average`: the paper's plain mean of
      the accuracies of the tasks in `averaged`, as "acc" and as "acc_norm" (acc where a task has no other).

    Raises:
      InputError: an unknown task, data that is missing or does not fit, a number out of range, or the extra `eval` is
        not installed.
    """
    check_numbers(limit, shots, batch)
    evaluator = _harness()
    from growlm.evaluation.harness import Adapter, answers
    from growlm.evaluation.tasks import manager, named

    names = named(tasks)
    with _quiet(), manager(names, data_dir, shots) as tasks_manager:
        loaded = _load(tasks_manager, names, shots, data_dir)
        options = {"limit": limit, "bootstrap_iters": BOOTSTRAP, "log_samples": False}
        results = evaluator.evaluate(Adapter(model, batch), loaded, **options)
        for name, task in loaded["tasks"].items():
            results["results"][name] = with_resolution(results["results"][name], answers(task))
    found = results["results"]
    average = {"average": paper_average(found), "averaged": averaged(found)} if averaged(found) else {}
    return _plain(results | average)


def check_numbers(limit: int | None, shots: int | None, batch: int | None) -> None:
    """Raises InputError where `evaluate` would refuse these numbers, or `perplexity` the batch."""
    for name, value, low in (("limit", limit, 1), ("shots", shots, 0), ("batch", batch, 1)):
        if value is not None:
            check_range(name, value, low=low)


def check_tasks(tasks: Sequence[str], data_dir: Path | None = None, shots: int | None = None) -> None:
    """Raises InputError where `evaluate` would refuse these arguments: before a large model is read."""
    _harness()
    from growlm.evaluation.tasks import manager, named

    with manager(named(tasks), data_dir, shots):
        pass


def averaged(results: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    """The tasks of the paper's average: the ten of its table 6 where all are there, or else the seven; or none."""
    from growlm.evaluation.tasks import GROUPS

    there = [names[:-1] for names in GROUPS.values() if all(name in results for name in names[:-1])]
    return max(there, key=len, default=())


def paper_average(results: dict[str, dict[str, Any]]) -> dict[str, float] | None:
    """The plain mean of the paper's accuracies, acc and acc_norm; None where not all of them are there."""
    if not (names := averaged(results)):
        return None
    rows = [results[name] for name in names]
    return {
        "acc": float(np.mean([row["acc,none"] for row in rows])),
        "acc_norm": float(np.mean([row.get("acc_norm,none", row["acc,none"]) for row in rows])),
    }


def _harness() -> ModuleType:
    try:
        with _quiet():
            import datasets
            from lm_eval import evaluator
    except ImportError as error:
        raise InputError(f"evaluate needs lm-evaluation-harness ({error}): pip install growlm[eval]") from None
    datasets.disable_progress_bars()
    return evaluator


def _load(tasks_manager: Any, names: list[str], shots: int | None, data_dir: Path | None) -> dict[str, Any]:
    """The tasks with their data."""
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in names:
        try:
            found = tasks_manager.load([name])
        except OSError as error:
            reason = " ".join(str(error).split())
            raise InputError(f"task {name} has no data: {reason}; put {name}.jsonl into --data_dir=DIR") from None
        except Exception as error:  # the harness, its templates and its data library all raise their own
            if data_dir is None:
                raise
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise InputError(f"data_dir must hold the records of {name}, {data_dir} does not ({reason})") from error
        for part in loaded:
            loaded[part] |= found[part]
    for task in loaded["tasks"].values():
        if shots is not None or task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=shots or 0)
        task.set_fewshot_seed(seed=SEED)
    return loaded


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the harness, and keeps it from forking processes, which is unsafe beside JAX's threads."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels = [logger.level for logger in loggers]
    before = {name: os.environ.get(name) for name in _SETTINGS}
    os.environ.update(_SETTINGS)
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


_SETTINGS = {"DISABLE_MULTIPROC": "1", "TOKENIZERS_PARALLELISM": "false"}


def _plain(value: Any) -> Any:
    """The value as JSON types: functions in a task's config by name, NumPy's numbers as numbers."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, str | int | float | bool | None) else str(value)
