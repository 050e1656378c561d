"""`growlm evaluate`: a checkpoint, ours or a Hugging Face folder, opened, measured, and its scores written down."""

import argparse
import dataclasses
import datetime
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from growlm.buckets import here, is_bucket
from growlm.checked import check_files, check_regular
from growlm.commands.options import (
    CHECKPOINT,
    JSON,
    STEP,
    Keys,
    copied,
    installed_version,
    one,
    pairs,
    place,
    print_json,
)
from growlm.data import first_corpus, tokenizer_of
from growlm.data.tokenizers import SETTINGS, Tokenizer, failing, load_tokenizer
from growlm.errors import InputError, must_be, unknown
from growlm.evaluation import LanguageModel, check_tasks, evaluate, perplexity
from growlm.evaluation.benchmark import check_numbers
from growlm.evaluation.table import table
from growlm.files import read_object, write_sealed
from growlm.formats.folder import CONFIG, is_hugging_face, open_folder, read_params
from growlm.hub import local_folder, pinned, recorded
from growlm.models import parameter_count, plain
from growlm.training.host_memory import check_memory
from growlm.training.mesh import MeshConfig, make_mesh
from growlm.training.peers import join_job
from growlm.training.processes import is_first
from growlm.training.programs import cached_on_disk
from growlm.training.saved import IMPORTED, Saved, find_saved, of_the_newest, read_state

OPTIONS = {
    "--checkpoint": CHECKPOINT,
    "--tasks": one("A,B", "tasks of lm-evaluation-harness; paper: the paper's eight"),
    "--perplexity": one("FILE,...", "text files to measure perplexity on"),
    "--data_dir": one("DIR", "folder with TASK.jsonl for every task (default: the hub)", copied),
    "--limit": one("N", "documents of each task", int),
    "--shots": one("N", "examples before a question", int),
    "--batch": one("N", "rows of a batch", int),
    "--output": one("DIR", "folder of the results (default: CHECKPOINT/evaluations; of the hub's, evaluations)", place),
    "--tokenizer": one("SOURCE", "tokenizer to use instead of the checkpoint's"),
    "--step": STEP,
    "--length": one("N", "tokens that the model reads at once", int),
    "--dtype": one("NAME", "compute dtype: float32 (default) or bfloat16"),
    **JSON,
}
KEYS = {"--mesh": "sets a size of the mesh, such as --mesh.tensor=2"}
RESULTS = "evaluations"
COUNTS = ("log_likelihood", "tokens", "bytes", "words")


def run_evaluation(
    checkpoint: Path,
    *,
    tasks: Sequence[str] = (),
    texts: Sequence[Path] = (),
    data_dir: Path | None = None,
    limit: int | None = None,
    shots: int | None = None,
    batch: int | None = None,
    output: Path | None = None,
    **opened_as: Any,
) -> tuple[dict[str, Any], Path]:
    """Measure a checkpoint.

    Args:
      checkpoint: a folder of `growlm train`, of a sweep's run, of `growlm grow`, or a Hugging Face checkpoint, also as
        hf:ORG/NAME.
      tasks, data_dir, limit, shots, batch: as `growlm.evaluation.evaluate` has them.
      texts: files of which the perplexity is taken.
      output: the folder for the scores; the checkpoint's `evaluations` by default, of the hub's the one that is here.
      opened_as: as `open_checkpoint` has it.

    Returns:
      (results, path): lm-evaluation-harness's JSON, with `growlm` beside: which model, which step, which settings;
      and the file for it, which `write_results` writes.

    Raises:
      InputError: nothing to measure, no checkpoint, no tokenizer, a tokenizer of another model, bad tasks or data.
    """
    if not tasks and not texts:
        raise InputError("evaluate needs --tasks=NAME,... or --perplexity=FILE (see growlm evaluate --help)")
    options = {"limit": limit, "shots": shots, "batch": batch}
    check_numbers(**options)
    for name, value in {"limit": limit, "shots": shots, "data_dir": data_dir and str(data_dir)}.items():
        if value is not None and not tasks:
            raise must_be(f"--{name}", "unset without --tasks", value)
    contents = {str(path): read_text(path) for path in texts}
    checkpoint = local_folder(checkpoint)
    output = output or (Path(RESULTS) if pinned(checkpoint) else checkpoint / RESULTS)
    _check_writable(output)
    if tasks:
        check_tasks(tasks, data_dir, shots)
    model, origin = open_checkpoint(checkpoint, **opened_as)
    results = evaluate(model, tasks, data_dir=data_dir, **options) if tasks else {"results": {}}
    for name, text in contents.items():
        measured = perplexity(model, [text], batch)
        # Under the names that the harness would give them.
        results["results"][name] = {key if key in COUNTS else f"{key},none": value for key, value in measured.items()}
    date = datetime.datetime.now().astimezone()
    results["growlm"] = {
        "checkpoint": recorded(checkpoint),
        **origin,
        "model": plain(model.config),
        "parameters": parameter_count(model.config),
        "tokenizer": {"name": model.tokenizer.name, "fingerprint": model.tokenizer.fingerprint},
        **{name: getattr(model, name) for name in ("length", "prefix", "add_bos", "dtype")},
        "tasks": list(tasks),
        **options,
        "data_dir": recorded(data_dir) if data_dir else None,
        "versions": {name: installed_version(name) for name in ("growlm", "jax", "lm_eval")},
        "date": date.isoformat(),
    }
    return results, output / f"results_{date:%Y-%m-%dT%H-%M-%S.%f}.json"  # as the harness calls its own


def write_results(results: dict[str, Any], path: Path) -> None:
    """Write what `run_evaluation` has measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_sealed(path, results)


def read_text(path: Path) -> str:
    """The text of a file. Raises InputError where it cannot be read, or is not UTF-8."""
    check_regular(path, "a text")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} must be a text in UTF-8, and is none at byte {error.start}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def _check_writable(output: Path) -> None:
    """Raises InputError now rather than when all is measured."""
    if is_bucket(output):  # whoever may read it mostly may write it
        return
    above = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise InputError(f"output {output} cannot be written: say --output=DIR in a folder of yours")


@of_the_newest
def open_checkpoint(
    folder: Path,
    *,
    tokenizer: str | None = None,
    step: int | None = None,
    length: int | None = None,
    dtype: str = "float32",
    mesh: MeshConfig | None = None,
) -> tuple[LanguageModel, dict[str, Any]]:
    """Open the model in a folder, with what its masks do to it.

    Args:
      folder: as `run_evaluation` has it.
      tokenizer: as `load_tokenizer` takes it; the checkpoint's own by default.
      step: of a run; its last checkpoint by default.
      length: tokens that the model reads at once; the checkpoint's own by default.
      dtype: of the computation.
      mesh: over whose devices the model is laid out.

    Returns:
      (model, origin): where in training it is from: step and tokens of a run.

    Raises:
      InputError: as `run_evaluation` does.
    """
    devices = make_mesh(mesh or MeshConfig())
    folder = local_folder(folder)
    if is_hugging_face(folder):
        if step is not None:
            raise InputError(f"--step is of runs, and {folder} is a Hugging Face checkpoint")
        source = open_folder(folder)
        check_memory([source.model], devices, trained=False)
        reads = _as_imported(folder, source.settings, tokenizer, source.model.longest if length is None else length)
        model = LanguageModel(source.model, params={}, dtype=dtype, **reads)  # checks it before anything large is read
        return dataclasses.replace(model, params=read_params(source)).on_mesh(devices), {}
    saved = find_saved(folder, step)
    imported = saved.folder / IMPORTED
    check_files(imported)
    if saved.data is None and imported.is_dir():
        settings = read_object(imported / CONFIG)
        reads = _as_imported(imported, settings, tokenizer, saved.model.longest if length is None else length)
    else:
        reads = _as_trained(saved, tokenizer, length)
    model = LanguageModel(saved.model, params={}, dtype=dtype, **reads)
    state = read_state(saved, devices)
    params, block_scale = state.params, None
    if saved.masks is not None:
        masks, progress = saved.masks
        params, block_scale = masks.reparametrise(saved.model, params, state.provenance, progress)
    document_end = model.tokenizer.eos if saved.data and saved.data.document_mask else None
    model = dataclasses.replace(model, params=params, block_scale=block_scale, document_end=document_end)
    return model.on_mesh(devices), {"step": saved.step, "tokens": int(state.tokens)}


def _as_trained(saved: Saved, tokenizer: str | None, length: int | None) -> dict[str, Any]:
    """How `LanguageModel` reads text with a model of ours: it has learned that a document begins after EOS."""
    if tokenizer is None and saved.data is None:
        raise InputError(f"{saved.folder} names no corpus, and so no tokenizer: --tokenizer=SOURCE is needed")
    if tokenizer is None:
        corpus = first_corpus(saved.data.corpus)
        if corpus != "stdlib" and not here(corpus).exists():
            raise InputError(f"{saved.folder} was trained on {corpus}, which is not here: --tokenizer=SOURCE is needed")
        tokenizer = tokenizer_of(corpus)
    loaded = load_tokenizer(tokenizer)
    if length is None and saved.data is None:
        raise InputError(f"{saved.folder} does not say how long its examples were: --length=N is needed")
    length = saved.data.length if length is None else length
    return {"tokenizer": loaded, "length": length, "prefix": loaded.eos, "add_bos": False}


def _as_imported(
    folder: Path, settings: Mapping[str, Any], tokenizer: str | None, length: int | None
) -> dict[str, Any]:
    """How lm-evaluation-harness reads text with a Hugging Face model: after BOS where its tokenizer puts it."""
    source = local_folder(tokenizer, weights=False) if tokenizer else folder
    loaded = load_tokenizer(source)
    length = settings.get("max_position_embeddings") if length is None else length
    if length is None:
        raise InputError(f"{folder / CONFIG} has no max_position_embeddings: --length=N is needed")
    prefix = loaded.eos if loaded.bos is None else loaded.bos
    add_bos = loaded.bos is not None and adds_bos(source, loaded)
    return {"tokenizer": loaded, "length": length, "prefix": prefix, "add_bos": add_bos}


def adds_bos(folder: Path, tokenizer: Tokenizer) -> bool:
    """Whether texts begin with BOS: as the settings say, or else the tokenizer.json; SentencePiece models do."""
    settings = read_object(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    if settings.get("add_bos_token") is not None:
        return bool(settings["add_bos_token"])
    if not (folder / "tokenizer.json").is_file():
        return "tokenizer.model" in tokenizer.files
    import tokenizers

    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.no_padding()  # which may be to any length
    with failing(f"tokenizer {folder} must have tokens for any text"):
        return library.encode("a").ids[:1] == [tokenizer.bos]


def mesh_of(sizes: Mapping[str, Any]) -> MeshConfig:
    """The mesh of these sizes. Raises InputError for a name or a size that is none."""
    names = [field.name for field in dataclasses.fields(MeshConfig)]
    for name, size in sizes.items():
        if name not in names:
            raise unknown("size", name, names, where="--mesh")
        if not isinstance(size, int) or isinstance(size, bool):
            raise must_be(f"--mesh.{name}", "an integer", size)
    return MeshConfig(**sizes)


def run(args: argparse.Namespace, keys: Keys) -> int:
    """Run the command and return the exit code."""
    join_job()
    with cached_on_disk():
        results, path = run_evaluation(
            args.checkpoint,
            tasks=_names(args.tasks),
            texts=[here(name) for name in _names(args.perplexity)],
            data_dir=args.data_dir,
            limit=args.limit,
            shots=args.shots,
            batch=args.batch,
            output=args.output,
            tokenizer=args.tokenizer,
            step=args.step,
            length=args.length,
            dtype=args.dtype or "float32",
            mesh=mesh_of(pairs("--mesh", keys)),
        )
    if is_first():  # shown first: what was measured for hours outlives a disk that is full
        if args.json:
            print_json(results)
        else:
            print(table(results), flush=True)
        write_results(results, path)
        if not args.json:
            print(f"\nwritten: {path}")
    return 0


def _names(text: str | None) -> list[str]:
    return list(filter(None, (text or "").split(",")))
