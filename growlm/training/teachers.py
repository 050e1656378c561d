"""Teachers of stages: found and checked before a run begins, and read again wherever it goes on."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from growlm.data import Corpus
from growlm.errors import InputError, must_be
from growlm.models import Params
from growlm.training.config import build_model
from growlm.training.init_from import Source, check_tokens, find_source
from growlm.training.objectives import PARENT, ObjectiveConfig
from growlm.training.saved import read_stored
from growlm.training.settings import RunConfig
from growlm.training.stages import Stage
from growlm.training.step import abstract_state

SETTING = "objective.teacher"
Teachers = Mapping[str, Source]  # by where they lie


def find_teachers(run: RunConfig, previous: Any) -> tuple[RunConfig, Teachers]:
    """The run with the fingerprints and shapes of its teachers that are checkpoints, and those that are there.

    Args:
      run: as it was written.
      previous: the config.json of the run's folder, if there is one: a stage that is trained needs no teacher.

    Raises:
      InputError: as `find_source` does.
    """
    stages, found = [], {}
    for number, stage in enumerate(run.stages):
        objective = stage.objective
        if objective.place:
            known = objective if objective.teacher_fingerprint else _known(previous, number)
            if not (known and known.teacher_model) or Path(objective.place).exists():
                source = found[objective.place] = find_source(Path(objective.place), SETTING)
                known = dataclasses.replace(
                    objective,
                    teacher_fingerprint=objective.teacher_fingerprint or source.fingerprint,
                    teacher_model=source.model,
                )
            objective = dataclasses.replace(
                objective, teacher_fingerprint=known.teacher_fingerprint, teacher_model=known.teacher_model
            )
        stages.append(dataclasses.replace(stage, objective=objective))
    return dataclasses.replace(run, stages=tuple(stages)), found


def _known(previous: Any, number: int) -> ObjectiveConfig | None:
    """What an earlier config.json has of a stage's teacher, if it has all."""
    try:
        settings = previous["stages"][number]["objective"]
        return ObjectiveConfig(**settings | {"teacher_model": build_model(settings["teacher_model"])})
    except (KeyError, IndexError, TypeError, InputError):
        return None


def check_teacher(stage: Stage, teachers: Teachers, corpus: Corpus) -> None:
    """Raises InputError unless the teacher of a stage, if it has one, has the stage's tokens and positions for them."""
    if (model := stage.teacher_model) is None:
        return
    objective, where = stage.config.objective, f"stages[{stage.number}].{SETTING}"
    if model.vocab != stage.config.model.vocab:
        raise must_be(f"the vocabulary of {where}", f"the stage's, {stage.config.model.vocab}", model.vocab)
    model.check_length(f"{where}: stage.length", stage.config.length)
    if objective.place in teachers:
        check_tokens(teachers[objective.place], corpus, SETTING)


def read_teacher(stage: Stage, teachers: Teachers, mesh: Mesh, store: Path, step: int) -> Params | None:
    """The parameters of the teacher for the rest of a stage from a step on; None where it has none then.

    The model before growth is read from the last checkpoint of the stage before, which is kept because a run leaves
    that stage there. Raises InputError where a checkpoint is gone, or another is there.
    """
    if stage.teacher_model is None or not stage.teacher_weight_at(step + 1):
        return None
    objective, parent = stage.config.objective, stage.parent
    if objective.teacher == PARENT and parent is not None:
        like = abstract_state(parent.config.model, parent.config.optimizer, mesh)
        return read_stored(store / parent.stage_hash / "checkpoints", parent.last_step, like).params
    if (source := teachers.get(objective.teacher or "")) is None:
        raise InputError(f"{SETTING} {objective.teacher!r} is gone, and the stage is not trained yet")
    if source.fingerprint != objective.teacher_fingerprint:
        raise must_be(
            f"the fingerprint of {SETTING} {source.folder}", str(objective.teacher_fingerprint), source.fingerprint
        )
    return source.read(mesh)
