"""`growlm evaluate`: a checkpoint, ours or a Hugging Face folder, opened, measured, and its scores written down."""

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from growlm.commands.options import STEP, Keys, one
from growlm.data import tokenizer_of
from growlm.data.tokenizers import SETTINGS, Tokenizer, load_tokenizer
from growlm.errors import InputError, unknown
from growlm.evaluation import LanguageModel, check_tasks, evaluate, perplexity
from growlm.files import write_json
from growlm.formats.folder import CONFIG, HuggingFaceFolder, is_hugging_face, open_folder, read_params
from growlm.models import Params, parameter_count, plain
from growlm.report.scores import table
from growlm.training.mesh import make_mesh
from growlm.training.processes import is_first, join_processes
from growlm.training.saved import ORIGIN, Saved, find_saved, read_state
from growlm.training.settings import MeshConfig

OPTIONS = {
    "--checkpoint": one("DIR", "a run's folder, one of growlm grow, or a Hugging Face checkpoint", Path, required=True),
    "--tasks": one("A,B", "tasks of lm-evaluation-harness; paper: the paper's eight"),
    "--perplexity": one("FILE,...", "text files to measure perplexity on"),
    "--data_dir": one("DIR", "folder with TASK.jsonl for every task (default: the hub)", Path),
    "--limit": one("N", "documents of each task", int),
    "--shots": one("N", "examples before a question", int),
    "--batch": one("N", "rows of a batch", int),
    "--output": one("DIR", "folder of the results (default: CHECKPOINT/evaluations)", Path),
    "--tokenizer": one("SOURCE", "tokenizer to use instead of the checkpoint's"),
    "--step": STEP,
    "--length": one("N", "tokens that the model reads at once", int),
    "--dtype": one("NAME", "compute dtype: float32 (default) or bfloat16"),
}
KEYS = {"--mesh": "sets a size of the mesh, such as --mesh.tensor=2"}
RESULTS = "evaluations"
COUNTS = ("tokens", "bytes", "words")


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for. None is the checkpoint's own, or the default of `growlm.evaluation.evaluate`.

    Attributes:
      checkpoint: a folder of `growlm train`, of a sweep's run, of `growlm grow`, or a Hugging Face checkpoint.
      tasks: names of tasks.
      texts: files of which the perplexity is taken.
      data_dir, limit, shots, batch: as `growlm.evaluation.evaluate` has them.
      output: the folder for the scores; the checkpoint's `evaluations` by default.
      tokenizer: as `load_tokenizer` takes it.
      step: of a run.
      length: tokens that the model reads at once.
      dtype: of the computation.
      mesh: texts size=number, as in a config's mesh.
    """

    checkpoint: Path
    tasks: tuple[str, ...] = ()
    texts: tuple[Path, ...] = ()
    data_dir: Path | None = None
    limit: int | None = None
    shots: int | None = None
    batch: int | None = None
    output: Path | None = None
    tokenizer: str | None = None
    step: int | None = None
    length: int | None = None
    dtype: str = "float32"
    mesh: tuple[str, ...] = ()


def run_evaluation(request: Request, write: bool = True) -> tuple[dict[str, Any], Path]:
    """Measures, and writes the scores unless told not to; returns them and their file.

    The file is lm-evaluation-harness's JSON, with `growlm` beside: which model, which step, which settings.

    Raises:
      InputError: nothing to measure, no checkpoint, no tokenizer, a tokenizer of another model, bad tasks or data.
    """
    if not request.tasks and not request.texts:
        raise InputError("evaluate needs --tasks=NAME,... or --perplexity=FILE (see growlm evaluate --help)")
    texts = {str(path): _read(path) for path in request.texts}
    output = request.output or request.checkpoint / RESULTS
    _check_writable(output)
    if request.tasks:
        check_tasks(request.tasks, request.data_dir, request.shots)
    model, origin = open_checkpoint(request)
    results: dict[str, Any] = {"results": {}}
    if request.tasks:
        options = request.data_dir, request.limit, request.shots, request.batch
        results = evaluate(model, request.tasks, *options)
    for name, text in texts.items():
        results["results"][name] = _as_scores(perplexity(model, [text], request.batch))
    date = datetime.datetime.now().astimezone()
    results["growlm"] = _about(request, model, origin) | {"date": date.isoformat()}
    path = output / f"results_{date:%Y-%m-%dT%H-%M-%S.%f}.json"  # as the harness calls its own
    if write:
        output.mkdir(parents=True, exist_ok=True)
        write_json(path, results)
    return results, path


def _as_scores(measured: dict[str, Any]) -> dict[str, Any]:
    """Perplexities under the names that the harness would give them."""
    return {key if key in ("log_likelihood", *COUNTS) else f"{key},none": value for key, value in measured.items()}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 at position {error.start}: allowed is a text file") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; allowed is a text file") from None


def _check_writable(output: Path) -> None:
    """Raises InputError now rather than when all is measured."""
    above = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise InputError(f"output {output} cannot be written: allowed is --output=DIR in a folder of yours")


def open_checkpoint(request: Request) -> tuple[LanguageModel, dict[str, Any]]:
    """The model that a folder holds, on the mesh that is asked for, and where in training it is from."""
    folder = request.checkpoint
    mesh = make_mesh(_mesh(request.mesh))
    if is_hugging_face(folder):
        model, origin = _of_hugging_face(open_folder(folder), request), {}
    else:
        model, origin = _of_run(find_saved(folder, request.step), request, mesh)
    return model.on_mesh(mesh), origin


class _Reading(NamedTuple):
    """How a model reads text: what `LanguageModel` has of it."""

    tokenizer: Tokenizer
    length: int
    prefix: int
    add_bos: bool


def _of_run(saved: Saved, request: Request, mesh: jax.sharding.Mesh) -> tuple[LanguageModel, dict[str, Any]]:
    """A model of ours, as its masks let it act."""
    origin = saved.folder / ORIGIN
    imported = saved.data is None and origin.is_dir()
    reading = _as_others(origin, _json(origin / CONFIG), request) if imported else _as_ours(saved, request)
    _check_fits(reading.tokenizer, saved.model.vocab)
    state = read_state(saved, mesh)
    params, scale = _acting(saved, state.params, state.provenance)
    document_end = reading.tokenizer.eos if saved.data and saved.data.document_mask else None
    acting = {"block_scale": scale, "document_end": document_end}
    model = LanguageModel(saved.model, params, *reading, dtype=request.dtype, **acting)
    return model, {"step": saved.step, "tokens": int(state.tokens)}


def _as_ours(saved: Saved, request: Request) -> _Reading:
    """A model of ours has learned that a document begins after EOS."""
    tokenizer = load_tokenizer(request.tokenizer or _tokenizer_of(saved))
    length = request.length or (saved.data.length if saved.data else None)
    if length is None:
        raise InputError(f"{saved.folder} does not say how long its examples were: --length=N is needed")
    return _Reading(tokenizer, length, tokenizer.eos, False)


def _tokenizer_of(saved: Saved) -> str:
    if saved.data is None:
        raise InputError(f"{saved.folder} names no corpus, and so no tokenizer: --tokenizer=SOURCE is needed")
    corpus = saved.data.corpus
    if corpus != "stdlib" and not Path(corpus).exists():
        raise InputError(f"{saved.folder} was trained on {corpus}, which is not here: --tokenizer=SOURCE is needed")
    return tokenizer_of(corpus)


def _acting(saved: Saved, params: Params, provenance: Any) -> tuple[Params, jax.Array | None]:
    if saved.masks is None:
        return params, None
    masks, progress = saved.masks
    return masks.reparametrise(saved.model, params, provenance, progress)


def _of_hugging_face(source: HuggingFaceFolder, request: Request) -> LanguageModel:
    if request.step is not None:
        raise InputError(f"--step is {request.step}: {source.folder} is a Hugging Face checkpoint and has one only")
    reading = _as_others(source.folder, source.settings, request)
    _check_fits(reading.tokenizer, source.model.vocab)
    return LanguageModel(source.model, read_params(source), *reading, dtype=request.dtype)


def _as_others(folder: Path, settings: dict[str, Any], request: Request) -> _Reading:
    """As lm-evaluation-harness reads a Hugging Face model: after BOS where its tokenizer puts it."""
    home = request.tokenizer or str(folder)
    tokenizer = load_tokenizer(home)
    length = request.length or settings.get("max_position_embeddings")
    if length is None:
        raise InputError(f"{folder / CONFIG} has no max_position_embeddings: --length=N is needed")
    add_bos = tokenizer.bos is not None and _adds_bos(Path(home), tokenizer)
    return _Reading(tokenizer, length, tokenizer.eos if tokenizer.bos is None else tokenizer.bos, add_bos)


def _adds_bos(folder: Path, tokenizer: Tokenizer) -> bool:
    """Whether texts begin with BOS: as the settings say, or else the tokenizer.json; SentencePiece models do."""
    settings = folder / SETTINGS
    said = _json(settings).get("add_bos_token") if settings.is_file() else None
    if said is not None:
        return bool(said)
    if not (folder / "tokenizer.json").is_file():
        return "tokenizer.model" in tokenizer.files
    import tokenizers

    ids = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode("a").ids
    return ids[:1] == [tokenizer.bos]


def _json(path: Path) -> Any:
    try:
        return json.loads(_read(path))
    except ValueError:
        raise InputError(f"{path} is not JSON: allowed is a file as its library wrote it") from None


def _check_fits(tokenizer: Tokenizer, vocab: int) -> None:
    """As `LanguageModel` does, before anything large is read."""
    if tokenizer.vocab > vocab:
        raise InputError(
            f"tokenizer {tokenizer.name} has {tokenizer.vocab} tokens and the model knows {vocab}: allowed is the "
            "tokenizer that it was trained with"
        )


def _mesh(texts: Iterable[str]) -> MeshConfig:
    sizes: dict[str, int] = {}
    names = [field.name for field in dataclasses.fields(MeshConfig)]
    for text in texts:
        name, _, value = text.partition("=")
        if name not in names:
            raise unknown("size", name, names, where="--mesh")
        if not value.isdecimal():
            raise InputError(f"--mesh.{name} must be integers, got {value!r}")
        sizes[name] = int(value)
    return MeshConfig(**sizes)


def _about(request: Request, model: LanguageModel, origin: dict[str, Any]) -> dict[str, Any]:
    """Which model was measured, and how."""
    asked = {name: getattr(request, name) for name in ("tasks", "limit", "shots", "batch")}
    return {
        "checkpoint": str(request.checkpoint.absolute()),
        **origin,
        "model": plain(model.config),
        "parameters": parameter_count(model.config),
        "tokenizer": {"name": model.tokenizer.name, "fingerprint": model.tokenizer.fingerprint},
        **{name: getattr(model, name) for name in ("length", "prefix", "add_bos", "dtype")},
        **asked,
        "data_dir": request.data_dir and str(request.data_dir.absolute()),
        "versions": {name: _version(name) for name in ("growlm", "jax", "lm_eval")},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def run(args: argparse.Namespace, keys: Keys) -> int:
    """Runs the command; returns the exit code."""
    join_processes()
    given = {name: value for name, value in vars(args).items() if name not in ("command", "tasks", "perplexity")}
    names = tuple(filter(None, (args.tasks or "").split(",")))
    texts = tuple(map(Path, filter(None, (args.perplexity or "").split(","))))
    given["dtype"] = args.dtype or "float32"
    results, path = run_evaluation(Request(**given, tasks=names, texts=texts, mesh=tuple(keys["--mesh"])), is_first())
    if is_first():
        print(f"{table(results)}\n\nwritten: {path}")
    return 0
