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

from growlm.data import Corpus, load_tokenizer, tokenizer_of
from growlm.errors import InputError
from growlm.formats.folder import HuggingFaceFolder, is_hugging_face, open_folder, read_params
from growlm.formats.safetensors_files import StoredTensor
from growlm.models import DecoderConfig, Params, Weight, plain
from growlm.models.sharding import fsdp_spec
from growlm.training.processes import is_first
from growlm.training.saved import ORIGIN, Saved, carry_origin, check_open, find_saved, keep_origin, read_state
from growlm.training.settings import RunConfig, StageConfig

# Of every tensor a fingerprint has so many bytes of its beginning, its middle and its end: 70B take 9 MB of reading.
PIECE = 4096

# Text that no two vocabularies cut alike.
PROBE = "It's 1,024 layers; if (x > 0.5) { return a + b; }\n\n  def grown(self):  # naïve, größer, 模型\n\tTransformers"


@dataclasses.dataclass(frozen=True)
class Source:
    """A saved model that a run may begin from, found and not read yet.

    fingerprint: of its content, wherever it lies. read: its parameters, float32, each where it rests on a mesh. keep:
    puts into a folder what it came with if it is of Hugging Face, or began as such, so that it can be exported again.
    tokenizer: where the one that it was trained with would be, as `load_tokenizer` takes it. step: of a run. tokens,
    flops: what it has cost until there, None where nobody knows.
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
        """What a run's folder says of what it began from, as plain JSON: what was spent there is not billed here."""
        names = ("kind", "fingerprint", "step", "tokens", "flops")
        return {"folder": str(self.folder.absolute())} | {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        at = self.kind if self.step is None else f"{self.kind}, step {self.step:,}"
        known = self.tokens is not None and self.flops is not None
        cost = f"{self.tokens:,} tokens and {self.flops:.2e} FLOPs until there are" if known else "what it has cost is"
        return f"{self.folder} ({at}); {cost} not {'counted' if known else 'known'}"


def find_source(folder: Path) -> Source:
    """What a folder holds, checked. Raises InputError: nothing, neither kind of folder, masks that are not open."""
    if not folder.is_dir():
        raise InputError(
            f"init_from {str(folder)!r} is no folder: allowed is a Hugging Face checkpoint, or one of growlm train, of "
            "a sweep's run or of growlm grow"
        )
    try:
        return _of_hugging_face(open_folder(folder)) if is_hugging_face(folder) else _of_ours(find_saved(folder))
    except InputError as error:
        raise InputError(f"init_from: {error}") from None


def _of_hugging_face(source: HuggingFaceFolder) -> Source:
    digest = hashlib.sha256(json.dumps(plain(source.model), sort_keys=True).encode())
    for name, tensor in source.tensors.items():
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        for piece in _pieces(tensor):
            digest.update(piece)
    return Source(
        folder=source.folder,
        kind=f"Hugging Face, {source.family.model_type}",
        model=source.model,
        fingerprint=digest.hexdigest()[:16],
        read=partial(_read_hugging_face, source),
        keep=lambda folder: keep_origin(folder, *source.origin),
        tokenizer=str(source.folder),
    )


def _pieces(tensor: StoredTensor) -> Iterator[bytes]:
    """The beginning, the middle and the end of a tensor's bytes; all of a small one."""
    last = max(tensor.nbytes - PIECE, 0)
    with tensor.file.open("rb", buffering=0) as file:
        for start in sorted({0, last // 2, last}):
            file.seek(tensor.begin + start)
            yield file.read(min(PIECE, tensor.nbytes - start))


def _read_hugging_face(source: HuggingFaceFolder, mesh: Mesh) -> Params:
    """One weight after the other goes to its devices: the host never has all."""

    def place(weight: Weight, value: np.ndarray) -> jax.Array:
        sharding = NamedSharding(mesh, fsdp_spec(weight, source.model, mesh))
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    hidden = {"disable": not is_first(), "unit": "B", "unit_scale": True}
    with tqdm(desc="reading", total=source.nbytes, **hidden) as bar:
        return read_params(source, bar.update, place)


def _of_ours(saved: Saved) -> Source:
    check_open(saved)
    digest = hashlib.sha256(json.dumps(plain(saved.model), sort_keys=True).encode())
    # Orbax gives its files of data random names: what was written another time has others.
    home = saved.checkpoints / str(saved.step)
    files = sorted(path for path in home.rglob("*") if path.is_file())
    digest.update(json.dumps([[str(path.relative_to(home)), path.stat().st_size] for path in files]).encode())
    return Source(
        folder=saved.folder,
        kind="growlm",
        model=saved.model,
        fingerprint=digest.hexdigest()[:16],
        read=lambda mesh: read_state(saved, mesh).params,
        keep=partial(carry_origin, saved.folder),
        tokenizer=_tokenizer_home(saved),
        step=saved.step,
        tokens=saved.tokens,
        flops=saved.flops,
    )


def _tokenizer_home(saved: Saved) -> str | None:
    if (saved.folder / ORIGIN).is_dir():
        return str(saved.folder / ORIGIN)
    return saved.data and tokenizer_of(saved.data.corpus)


def begin(run: RunConfig, former: Any) -> tuple[RunConfig, Source | None]:
    """The run with the fingerprint of what it begins from, and that, if it is there.

    `former`: the settings with which the run's folder was begun, if it was: a run that has checkpoints of its own goes
    on where what it began from is gone. Raises InputError.
    """
    first = run.stages[0]
    if first.init_from is None:
        return run, None
    known = first.init_fingerprint or _former_fingerprint(former)
    source = None if known and not Path(first.init_from).exists() else find_source(Path(first.init_from))
    first = dataclasses.replace(
        first, init_fingerprint=first.init_fingerprint or (source.fingerprint if source else known)
    )
    return dataclasses.replace(run, stages=(first, *run.stages[1:])), source


def _former_fingerprint(former: Any) -> str | None:
    try:
        return former["stages"][0]["init_fingerprint"]
    except (KeyError, IndexError, TypeError):
        return None


def check_source(stage: StageConfig, source: Source, corpus: Corpus) -> None:
    """Raises InputError unless the stage has exactly this model, and the corpus its tokens, if that can be told."""
    ours, theirs = plain(stage.model), plain(source.model)
    for name in ours:
        asked, held = ours[name], theirs.get(name)
        if asked != held:
            raise InputError(
                f"stages[0].model.{name} is {asked!r} and that of init_from {source.folder} must be , got {held!r}"
                "the model that is there"
            )
    if not source.tokenizer:
        return
    try:
        theirs, ours = load_tokenizer(source.tokenizer), load_tokenizer(tokenizer_of(corpus.name))
    except InputError:  # there is none, or its library is not installed
        return
    # The same vocabulary may come in files of two kinds.
    if theirs.fingerprint != ours.fingerprint and theirs.encode(PROBE) != ours.encode(PROBE):
        raise InputError(
            f"corpus {corpus.name!r} has the tokens of {ours.name!r}, and init_from {source.folder} knows those of "
            f"{theirs.name!r}: allowed is one tokenizer for both, see growlm prepare --tokenizer={theirs.name}"
        )


def read_source(stage: StageConfig, source: Source | None, mesh: Mesh) -> Params:
    """The parameters with which a stage begins. Raises InputError where they are gone, or others are there."""
    if source is None:
        raise InputError(f"init_from {stage.init_from!r} is gone, and the run has no checkpoint of its own yet")
    if source.fingerprint != stage.init_fingerprint:
        raise InputError(
            f"init_from {source.folder} has the fingerprint {source.fingerprint}: allowed is {stage.init_fingerprint}, "
            "with which this run began"
        )
    return source.read(mesh)
