"""`init_from`: runs that begin with the weights of a saved model, a Hugging Face checkpoint or one of growlm's."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from tqdm import tqdm

from growlm.data import Corpus, first_corpus, load_tokenizer, tokenizer_of
from growlm.errors import InputError
from growlm.formats.folder import HuggingFaceFolder, is_hugging_face, open_folder, read_params
from growlm.formats.safetensors import StoredTensor
from growlm.models import DecoderConfig, Params, Weight, hashed, plain
from growlm.models.sharding import fsdp_spec
from growlm.training.processes import is_first
from growlm.training.saved import (
    FOLDERS,
    IMPORTED,
    Saved,
    check_open,
    copy_imported,
    find_saved,
    read_state,
    save_imported,
)
from growlm.training.settings import RunConfig, StageConfig

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
        return {"folder": str(self.folder.absolute())} | {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        checkpoint = self.kind if self.step is None else f"{self.kind}, step {self.step:,}"
        cost = "its cost is not known"
        if self.tokens is not None and self.flops is not None:
            cost = f"its {self.tokens:,} tokens and {self.flops:.2e} FLOPs are not counted"
        return f"{self.folder} ({checkpoint}); {cost}"


def find_source(folder: Path, setting: str = "init_from") -> Source:
    """What a folder holds, checked. Raises InputError: nothing, neither kind of folder, masks that are not open."""
    if not folder.is_dir():
        raise InputError(f"{setting} must be a Hugging Face checkpoint or {FOLDERS}, got {str(folder)!r}, no folder")
    try:
        return _of_hugging_face(open_folder(folder)) if is_hugging_face(folder) else _of_saved(find_saved(folder))
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
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digest.update(json.dumps([[str(path.relative_to(folder)), path.stat().st_size] for path in files]).encode())
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


def begin(run: RunConfig, previous: Any) -> tuple[RunConfig, Source | None]:
    """The run with the fingerprint of what it begins from, and that, if it is there.

    Args:
      run: as it was written.
      previous: the config.json of the run's folder, if there is one: a run that has checkpoints of its own goes on
        where what it began from is gone.

    Raises:
      InputError: as `find_source` does.
    """
    first = run.stages[0]
    if first.init_from is None:
        return run, None
    known = first.init_fingerprint or _fingerprint_in(previous)
    source = None if known and not Path(first.init_from).exists() else find_source(Path(first.init_from))
    fingerprint = first.init_fingerprint or (source.fingerprint if source else known)
    first = dataclasses.replace(first, init_fingerprint=fingerprint)
    return dataclasses.replace(run, stages=(first, *run.stages[1:])), source


def _fingerprint_in(config: Any) -> str | None:
    try:
        return config["stages"][0]["init_fingerprint"]
    except (KeyError, IndexError, TypeError):
        return None


def check_source(stage: StageConfig, source: Source, corpus: Corpus) -> None:
    """Raises InputError unless the stage has exactly this model, and the corpus its tokens, if that can be told."""
    asked, found = plain(stage.model), plain(source.model)
    if different := [name for name in asked if asked[name] != found.get(name)]:
        name = different[0]
        raise InputError(
            f"stages[0].model.{name} must be that of init_from {source.folder}, {found.get(name)!r}, "
            f"got {asked[name]!r}"
        )
    check_tokens(source, corpus, "init_from")


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


def read_source(stage: StageConfig, source: Source | None, mesh: Mesh) -> Params:
    """The parameters with which a stage begins. Raises InputError where they are gone, or others are there."""
    if source is None:
        raise InputError(f"init_from {stage.init_from!r} is gone, and the run has no checkpoint of its own yet")
    if source.fingerprint != stage.init_fingerprint:
        raise InputError(
            f"the fingerprint of init_from {source.folder} must be {stage.init_fingerprint}, with which this run "
            f"began, got {source.fingerprint}"
        )
    return source.read(mesh)
