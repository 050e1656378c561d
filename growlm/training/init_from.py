"""Saved models that stages name, Hugging Face checkpoints and growlm's own: what they begin from, teachers, scorers.

They are found and checked before a run begins, and read where it goes on.
"""

import dataclasses
import hashlib
import json
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from tqdm import tqdm

from growlm.buckets import is_folder, sizes
from growlm.data import Corpus, first_corpus, load_tokenizer, tokenizer_of
from growlm.errors import InputError, must_be
from growlm.formats.folder import HuggingFaceFolder, is_hugging_face, open_folder, read_params
from growlm.formats.safetensors import StoredTensor
from growlm.hub import local_folder, moves, pinned, recorded
from growlm.models import DecoderConfig, Params, Weight, hashed, plain
from growlm.models.sharding import fsdp_spec
from growlm.training.config import build_model
from growlm.training.objectives import PARENT
from growlm.training.processes import is_first
from growlm.training.saved import (
    FOLDERS,
    IMPORTED,
    Saved,
    check_open,
    copy_imported,
    find_saved,
    read_state,
    read_stored,
    save_imported,
)
from growlm.training.settings import StageConfig
from growlm.training.stages import Stage
from growlm.training.step import abstract_state

# A fingerprint has so many bytes of the beginning, the middle and the end of every tensor: 9 MB of 70B parameters.
SAMPLE_BYTES = 4096

# Text that no two vocabularies cut alike.
PROBE = "It's 1,024 layers; if (x > 0.5) { return a + b; }\n\n  def grown(self):  # naïve, größer, 模型\n\tTransformers"


@dataclasses.dataclass(frozen=True)
class Source:
    """A saved model that a run may begin from, found and not read yet.

    Attributes:
      folder: where it lies.
      kind: what the folder is, for people.
      model: its shape.
      fingerprint: a hash of its content, wherever it lies.
      read: reads its parameters, in float32, onto a mesh.
      keep: saves into a folder what a Hugging Face checkpoint came with, so that it can be exported again.
      tokenizer: where the one that it was trained with would be, as `load_tokenizer` takes it.
      step: of a run.
      tokens, flops: all that was spent on it; None where nobody knows.
    """

    folder: Path
    kind: str
    model: DecoderConfig
    fingerprint: str
    read: Callable[[Mesh], Params]
    keep: Callable[[Path], None]
    tokenizer: str | None = None
    step: int | None = None
    tokens: int | None = None
    flops: float | None = None

    @property
    def record(self) -> dict[str, Any]:
        """What a run's folder records of it, as plain JSON. What was spent on it is not billed to the run."""
        names = ("kind", "fingerprint", "step", "tokens", "flops")
        return {"folder": recorded(self.folder)} | {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        checkpoint = self.kind if self.step is None else f"{self.kind}, step {self.step:,}"
        cost = "its cost is not known"
        if self.tokens is not None and self.flops is not None:
            cost = f"its {self.tokens:,} tokens and {self.flops:.2e} FLOPs are not counted"
        return f"{pinned(self.folder) or self.folder} ({checkpoint}); {cost}"


def find_source(place: Path | str, setting: str = "init_from") -> Source:
    """What a folder, or hf:ORG/NAME, holds, checked.

    Raises InputError: nothing, neither kind of folder, masks that are not open.
    """
    folder = local_folder(place)
    if not is_folder(folder):
        raise InputError(f"{setting} must be a Hugging Face checkpoint or {FOLDERS}, got {str(folder)!r}, no folder")
    try:
        found = _of_hugging_face(open_folder(folder)) if is_hugging_face(folder) else _of_saved(find_saved(folder))
        return dataclasses.replace(found, folder=folder)  # one of a bucket is read from its copy
    except InputError as error:
        raise InputError(f"{setting}: {error}") from None


def _of_hugging_face(source: HuggingFaceFolder) -> Source:
    digest = hashlib.sha256(json.dumps(hashed(source.model), sort_keys=True).encode())
    for name, tensor in source.tensors.items():
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        for sample in _samples(tensor):
            digest.update(sample)
    return Source(
        folder=source.folder,
        kind=f"Hugging Face, {source.family.model_type}",
        model=source.model,
        fingerprint=digest.hexdigest()[:16],
        read=partial(_read_hugging_face, source),
        keep=partial(save_imported, source=source),
        tokenizer=str(source.folder),
    )


def _samples(tensor: StoredTensor) -> Iterator[bytes]:
    """The beginning, the middle and the end of a tensor's bytes; all of a small one."""
    row = tensor.nbytes // tensor.shape[0]
    last = max(tensor.nbytes - SAMPLE_BYTES, 0)
    for begin in sorted({0, last // 2, last}):
        end = min(begin + SAMPLE_BYTES, tensor.nbytes)
        rows = slice(begin // row, -(-end // row))
        yield tensor.read(rows).tobytes()[begin - rows.start * row : end - rows.start * row]


def _read_hugging_face(source: HuggingFaceFolder, mesh: Mesh) -> Params:
    """One weight after the other goes to its devices: the host never has all."""

    def place(weight: Weight, value: np.ndarray) -> jax.Array:
        sharding = NamedSharding(mesh, fsdp_spec(weight, source.model, mesh))
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    with tqdm(desc="reading", total=source.nbytes, disable=not is_first(), unit="B", unit_scale=True) as bar:
        return read_params(source, bar.update, place)


def _of_saved(saved: Saved) -> Source:
    check_open(saved)
    digest = hashlib.sha256(json.dumps(hashed(saved.model), sort_keys=True).encode())
    # Orbax gives its files of data random names: what was written another time has others.
    folder = saved.checkpoints / str(saved.step)
    digest.update(json.dumps([list(file) for file in sizes(folder)]).encode())
    imported = saved.folder / IMPORTED
    return Source(
        folder=saved.folder,
        kind="growlm",
        model=saved.model,
        fingerprint=digest.hexdigest()[:16],
        read=lambda mesh: read_state(saved, mesh).params,
        keep=partial(copy_imported, saved.folder),
        tokenizer=str(imported) if imported.is_dir() else saved.data and tokenizer_of(first_corpus(saved.data.corpus)),
        step=saved.step,
        tokens=saved.tokens,
        flops=saved.flops,
    )


def check_tokens(source: Source, corpus: Corpus, setting: str) -> None:
    """Raises InputError unless the corpus has the tokens of the saved model, if that can be told."""
    if not source.tokenizer:
        return
    try:
        theirs, ours = load_tokenizer(source.tokenizer), load_tokenizer(tokenizer_of(corpus.name))
    except InputError:  # there is none, or its library is not installed
        return
    # The same vocabulary may come in files of two kinds.
    if theirs.fingerprint != ours.fingerprint and theirs.encode(PROBE) != ours.encode(PROBE):
        raise InputError(
            f"tokens of corpus {corpus.name!r} must be those of {setting} {source.folder}, {theirs.name!r}, got those "
            f"of {ours.name!r}; see growlm prepare --tokenizer={theirs.name}"
        )


class _Named(NamedTuple):
    """A saved model that a stage names, and what is known of it."""

    place: str | None
    fingerprint: str | None
    model: DecoderConfig | None


class _Fields(NamedTuple):
    """Where a stage names a saved model: in a section, "" for its own fields, and what three fields are called."""

    section: str
    place: str
    fingerprint: str
    model: str

    def owner(self, stage: Any, get: Callable[[Any, str], Any] = getattr) -> Any:
        """What of a stage, or with `operator.getitem` of one in JSON, has the fields."""
        return get(stage, self.section) if self.section else stage


NAMED = {
    "init_from": _Fields("", "init_from", "init_fingerprint", "model"),
    "objective.teacher": _Fields("objective", "teacher", "teacher_fingerprint", "teacher_model"),
    "choice.scorer": _Fields("choice", "scorer", "scorer_fingerprint", "scorer_model"),
}
Sources = Mapping[str, Source]  # all of these, by where they lie


def _named(stage: StageConfig, setting: str) -> _Named:
    fields = NAMED[setting]
    owner = fields.owner(stage)
    return _Named(*(getattr(owner, field, None) for field in (fields.place, fields.fingerprint, fields.model)))


def find_sources(stages: Sequence[StageConfig], previous: Any) -> tuple[list[dict[str, Any]], Sources]:
    """What every stage is to say of the saved models that it names, by field, and those that are there.

    Args:
      stages: of a run, as they were written.
      previous: the config.json of the run's folder, if there is one: a stage that is trained, or has a checkpoint of
        its own, goes on where what it began from is gone.

    Raises:
      InputError: as `find_source` does.
    """
    said, found = [], {}
    for number, stage in enumerate(stages):
        own: dict[str, Any] = {}
        for setting, fields in NAMED.items():
            named = _named(stage, setting)
            if named.place in (None, PARENT):
                continue
            before = _known(previous, number, setting)
            place = before.place if before and moves(named.place, before.place) else named.place
            known = named if named.fingerprint else before
            if not (known and known.fingerprint and known.model) or _is_there(place):
                source = find_source(place, setting)
                place = pinned(source.folder) or place
                known, found[place] = _Named(place, source.fingerprint, source.model), source
            filled = {
                fields.place: place,
                fields.fingerprint: named.fingerprint or known.fingerprint,
                fields.model: named.model or known.model,
            }
            owner = fields.owner(stage)
            own |= {fields.section: dataclasses.replace(owner, **filled)} if fields.section else filled
        said.append(own)
    return said, found


def _is_there(place: str) -> bool:
    try:
        return local_folder(place).exists()
    except InputError:  # gone from the hub, or out of reach
        return False


def _known(previous: Any, number: int, setting: str) -> _Named | None:
    """What an earlier config.json has of a model that a stage names, if it has all."""
    try:
        fields = NAMED[setting]
        owner = fields.owner(previous["stages"][number], operator.getitem)
        return _Named(owner[fields.place], owner[fields.fingerprint], build_model(owner[fields.model]))
    except (KeyError, IndexError, TypeError, InputError):
        return None


def check_sources(stage: Stage, sources: Sources, corpus: Corpus) -> None:
    """Raises InputError unless models that a stage names have its tokens, positions for them and the shape it says."""
    config = stage.config
    models = {"init_from": config.model, "objective.teacher": stage.teacher_model, "choice.scorer": stage.scorer_model}
    for setting, model in models.items():
        if model is None:
            continue
        where = f"stages[{stage.number}].{setting}"
        if model.vocab != config.model.vocab:
            raise must_be(f"the vocabulary of {where}", f"the stage's, {config.model.vocab}", model.vocab)
        model.check_length(f"{where}: stage.length", config.length)
        if source := sources.get(_named(config, setting).place or ""):
            asked, found = plain(model), plain(source.model)
            if name := next((name for name in asked if asked[name] != found.get(name)), None):
                said = where.removesuffix(NAMED[setting].place) + NAMED[setting].model
                rule = f"that of {setting} {source.folder}, {found.get(name)!r}"
                raise must_be(f"{said}.{name}", rule, asked[name])
            check_tokens(source, corpus, setting)


def read_teacher(stage: Stage, sources: Sources, mesh: Mesh, store: Path, step: int) -> Params | None:
    """The parameters of the teacher for the rest of a stage from a step on; None where it has none then."""
    if stage.teacher_model is None or not stage.teacher_weight_at(step + 1):
        return None
    return read_named(stage, "objective.teacher", sources, mesh, store)


def read_named(stage: Stage, setting: str, sources: Sources, mesh: Mesh, store: Path) -> Params:
    """The parameters of the model that a setting of a stage names.

    The model before growth is read from the last checkpoint of the stage before, which is kept because a run leaves
    that stage there. Raises InputError where a checkpoint is gone, or another is there.
    """
    (place, fingerprint, _), parent = _named(stage.config, setting), stage.parent
    if place == PARENT and parent is not None:
        like = abstract_state(parent.config.model, parent.config.optimizer, mesh)
        return read_stored(store / parent.stage_hash / "checkpoints", parent.last_step, like).params
    if (source := sources.get(place or "")) is None:
        raise InputError(f"{setting} {place!r} is gone, and the stage is not trained yet")
    if source.fingerprint != fingerprint:
        rule = f"{fingerprint}, with which this run began"
        raise InputError(f"the fingerprint of {setting} {source.folder} must be {rule}, got {source.fingerprint}")
    return source.read(mesh)
