"""Models that stages only read, teachers and scorers: found and checked before a run begins, read where it goes on."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from growlm.data import Corpus
from growlm.errors import InputError, must_be
from growlm.models import DecoderConfig, Params
from growlm.training.config import build_model
from growlm.training.init_from import Source, check_tokens, find_source
from growlm.training.objectives import PARENT
from growlm.training.saved import read_stored
from growlm.training.settings import RunConfig, StageConfig
from growlm.training.stages import Stage
from growlm.training.step import abstract_state

# What of a stage names a saved model, and the field that does; beside it are the model's fingerprint and its shape.
NAMED = {"objective": "teacher", "choice": "scorer"}
Teachers = Mapping[str, Source]  # all of these, by where they lie


class _Named(NamedTuple):
    """A saved model that a stage names, and what is known of it."""

    place: str | None
    fingerprint: str | None
    model: DecoderConfig | None

    @classmethod
    def of(cls, stage: StageConfig, section: str) -> "_Named":
        return cls(*(getattr(getattr(stage, section), name, None) for name in _fields(section)))


def _fields(section: str) -> tuple[str, str, str]:
    return NAMED[section], f"{NAMED[section]}_fingerprint", f"{NAMED[section]}_model"


def _setting(section: str) -> str:
    return f"{section}.{NAMED[section]}"


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
        for section in NAMED:
            place, fingerprint, _ = named = _Named.of(stage, section)
            if place in (None, PARENT):
                continue
            known = named if fingerprint else _known(previous, number, section)
            if not (known and known.model) or Path(place).exists():
                source = found[place] = find_source(Path(place), _setting(section))
                known = _Named(place, fingerprint or source.fingerprint, source.model)
            filled = dict(zip(_fields(section)[1:], known[1:], strict=True))
            stage = dataclasses.replace(stage, **{section: dataclasses.replace(getattr(stage, section), **filled)})
        stages.append(stage)
    return dataclasses.replace(run, stages=tuple(stages)), found


def _known(previous: Any, number: int, section: str) -> _Named | None:
    """What an earlier config.json has of a model that a stage names, if it has all."""
    try:
        place, fingerprint, model = (previous["stages"][number][section][name] for name in _fields(section))
        return _Named(place, fingerprint, build_model(model))
    except (KeyError, IndexError, TypeError, InputError):
        return None


def check_teachers(stage: Stage, teachers: Teachers, corpus: Corpus) -> None:
    """Raises InputError unless the models that a stage names have its tokens, and positions for them."""
    for section, model in {"objective": stage.teacher_model, "choice": stage.scorer_model}.items():
        if model is None:
            continue
        setting, place = _setting(section), _Named.of(stage.config, section).place
        where = f"stages[{stage.number}].{setting}"
        if model.vocab != stage.config.model.vocab:
            raise must_be(f"the vocabulary of {where}", f"the stage's, {stage.config.model.vocab}", model.vocab)
        model.check_length(f"{where}: stage.length", stage.config.length)
        if place and place in teachers:
            check_tokens(teachers[place], corpus, setting)


def read_teacher(stage: Stage, teachers: Teachers, mesh: Mesh, store: Path, step: int) -> Params | None:
    """The parameters of the teacher for the rest of a stage from a step on; None where it has none then."""
    if stage.teacher_model is None or not stage.teacher_weight_at(step + 1):
        return None
    return read_named(stage, "objective", teachers, mesh, store)


def read_named(stage: Stage, section: str, teachers: Teachers, mesh: Mesh, store: Path) -> Params:
    """The parameters of the model that a section of a stage names.

    The model before growth is read from the last checkpoint of the stage before, which is kept because a run leaves
    that stage there. Raises InputError where a checkpoint is gone, or another is there.
    """
    (place, fingerprint, _), setting, parent = _Named.of(stage.config, section), _setting(section), stage.parent
    if place == PARENT and parent is not None:
        like = abstract_state(parent.config.model, parent.config.optimizer, mesh)
        return read_stored(store / parent.stage_hash / "checkpoints", parent.last_step, like).params
    if (source := teachers.get(place or "")) is None:
        raise InputError(f"{setting} {place!r} is gone, and the stage is not trained yet")
    if source.fingerprint != fingerprint:
        raise must_be(f"the fingerprint of {setting} {source.folder}", str(fingerprint), source.fingerprint)
    return source.read(mesh)
