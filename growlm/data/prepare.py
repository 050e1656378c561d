"""`growlm prepare`: the text of a source becomes token shards.

One worker turns one part of the source into the shards of one number, and then writes down what they are in
parts/NUMBER.json. All depends on the part alone, so that whoever goes on after a kill writes the same bytes.

    plan.json            settings and the rule of what is held out: written first
    tokenizer files      then
    parts/NUMBER.json    as each part is done, after its shards
    manifest.json        when all are; plan.json and parts/ go
"""

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growlm.data.documents import Document, Reading
from growlm.data.holdout import Rule, find_rule
from growlm.data.shards import (
    FORMAT,
    MANIFEST,
    PLAN,
    SPLITS,
    check_shards,
    check_tokenizer,
    dtype_of,
    hash_file,
    open_split,
    read_manifest,
    read_own,
)
from growlm.data.sources import Part, list_parts, listing
from growlm.data.tokenizers import SETTINGS, Tokenizer, load_tokenizer
from growlm.data.vocabulary import sample, train_tokenizer
from growlm.data.workers import Job, run_parts
from growlm.errors import InputError, unknown
from growlm.files import is_part, locked, write_json

PARTS = "parts"


@dataclass(frozen=True)
class Request:
    """What to prepare.

    Attributes:
      sources: as `growlm.data.sources.list_parts` takes them.
      output: a new or empty folder, or one of an equal request that was stopped.
      tokenizer: as `load_tokenizer` takes it, or None where one is trained.
      train_tokenizer: "bpe" or "sentencepiece", to make one of `vocab` tokens from the training text.
      eos: the token that ends documents, if it is not the tokenizer's.
      validation: a share of the documents or a number of them; see `growlm.data.holdout.find_rule`.
      split, data_dir: of datasets by name.
      reading: the field of records, and what becomes of text that is not UTF-8.
      workers: processes; as many as there are cores unless it is given.
    """

    sources: tuple[str, ...]
    output: Path
    tokenizer: str | None = None
    train_tokenizer: str | None = None
    vocab: int | None = None
    eos: str | None = None
    validation: str | None = None
    split: str = "train"
    data_dir: str | None = None
    reading: Reading = dataclasses.field(default_factory=Reading)
    workers: int | None = None


def prepare(request: Request) -> dict[str, Any]:
    """Writes token shards, or goes on with them; a folder that is done is left as it is.

    Returns:
      The manifest.

    Raises:
      InputError: text or a record is not what it should be, with its place; a folder with something else in it;
        a full disk; any other mistake in the request.
    """
    _check(request)
    parts = list_parts(request.sources, request.split, request.data_dir)
    tokenizer = load_tokenizer(request.tokenizer, request.eos) if request.tokenizer else None
    settings = _settings(request, parts, tokenizer)
    if request.output.is_dir() and (manifest := _finished(request.output, settings)):
        return manifest
    rule = _planned(request.output, settings) or _find_rule(parts, request)
    try:
        return _write(request, parts, tokenizer, {"format": FORMAT, "settings": settings, "rule": _plain(rule)}, rule)
    except OSError as error:
        raise InputError(f"cannot write {error.filename or request.output}: {_reason(error)}") from error
    except KeyboardInterrupt:
        print("growlm: what is done is kept, and the same command goes on", file=sys.stderr)
        raise


def verify(folder: Path) -> dict[str, Any]:
    """Reads every byte of a prepared folder.

    Returns:
      The manifest.

    Raises:
      InputError: it is no prepared folder, or a file is not what the manifest says; the file is named.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(f"{folder} is no folder of growlm prepare: it has no {MANIFEST}")
    check_tokenizer(folder, manifest)
    for split in SPLITS:
        open_split(folder, manifest, split)
    check_shards(folder, manifest)
    return manifest


def describe(folder: Path, manifest: dict[str, Any]) -> str:
    """What a prepared folder holds, in a few lines."""
    tokenizer = manifest["tokenizer"]
    lines = [f"{folder}: {len(manifest['shards'])} shards of {manifest['dtype']}"]
    lines.append(f"  tokenizer   {tokenizer['name']}, {tokenizer['vocab']:,} tokens, EOS is {tokenizer['eos']}")
    for split, held in manifest["splits"].items():
        ratio = f"{held['bytes'] / held['tokens']:.2f} bytes a token"
        lines.append(f"  {split:<10}  {held['tokens']:,} tokens in {held['documents']:,} documents, {ratio}")
    return "\n".join(lines)


# --- the request


def _check(request: Request) -> None:
    if not request.sources:
        raise InputError("prepare needs --source: a text file, a folder of them, tfds:NAME or hf:NAME")
    if (request.tokenizer is None) == (request.train_tokenizer is None):
        raise InputError("prepare needs one of --tokenizer=bytes|FILE|DIR and --train_tokenizer=bpe|sentencepiece")
    if (request.train_tokenizer is None) != (request.vocab is None):
        raise InputError("--vocab=N and --train_tokenizer go together: a tokenizer that is there has its own size")
    if request.train_tokenizer and request.eos:
        raise InputError(f"--eos={request.eos} is not allowed with --train_tokenizer: it makes its own")
    if request.reading.errors not in ("strict", "replace"):
        raise unknown("way to treat errors", request.reading.errors, ("strict", "replace"))
    if request.workers is not None and request.workers < 1:
        raise InputError(f"--workers={request.workers} is not allowed: at least 1 is")
    for source in request.sources:  # what is written would be read
        if source and Path(source).is_dir() and request.output.resolve().is_relative_to(Path(source).resolve()):
            raise InputError(f"output {request.output} lies within source {source}: allowed is a folder elsewhere")
    if request.output.exists() and not request.output.is_dir():
        raise InputError(f"output {request.output} exists and is no folder: allowed is a new or empty folder")


def _settings(request: Request, parts: Sequence[Part], tokenizer: Tokenizer | None) -> dict[str, Any]:
    """All that determines the shards, but for the text itself: that is known by the files' sizes and times."""
    trained = {"trained": request.train_tokenizer, "vocab": request.vocab}
    return {
        "sources": [_place(source) for source in request.sources],
        "split": request.split,
        **dataclasses.asdict(request.reading),
        "validation": request.validation,
        "tokenizer": {"fingerprint": tokenizer.fingerprint} if tokenizer else trained,
        "files": listing(parts),
    }


def _place(source: str) -> str:
    return Path(source).absolute().as_posix() if Path(source).exists() else source


def _find_rule(parts: Sequence[Part], request: Request) -> Rule:
    from tqdm import tqdm

    def read() -> Iterator[Document]:
        found = (document for part in parts for document in part.documents(request.reading))
        return iter(tqdm(found, desc="what to hold out", unit=" documents", delay=2))  # seconds: mostly it is quick

    return find_rule(read, request.validation)


# --- the folder


def _finished(output: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of an equal request that is done."""
    manifest = None if (output / PLAN).exists() else read_manifest(output)
    if manifest:
        _check_equal(output, manifest["settings"], settings)
        for split in SPLITS:
            open_split(output, manifest, split)
    return manifest


def _planned(output: Path, settings: dict[str, Any]) -> Rule | None:
    """The rule of an equal request that was begun; anything else in the folder is an error."""
    if not output.is_dir():
        return None
    if plan := read_own(output / PLAN):
        _check_equal(output, plan["settings"], settings)
        return Rule(**plan["rule"])
    strangers = [path.name for path in output.iterdir() if path.name != ".lock" and not is_part(path)]
    if strangers:
        raise InputError(f"output {output} holds {min(strangers)}: allowed is a new or empty folder")
    return None


def _check_equal(output: Path, held: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raises InputError that names the first setting in which two requests differ."""
    for key, value in asked.items():
        if held.get(key) != value:
            of_files = (
                "the source's files changed since" if key == "files" else f"{key} was {held.get(key)}, not {value}"
            )
            raise InputError(f"output {output} is of other settings: {of_files}; allowed is a new folder")


def _write(
    request: Request, parts: Sequence[Part], tokenizer: Tokenizer | None, plan: dict[str, Any], rule: Rule
) -> dict[str, Any]:
    output = request.output
    output.mkdir(parents=True, exist_ok=True)
    with locked(output):
        if manifest := _finished(output, plan["settings"]):  # by the one that had the lock
            return manifest
        _clear_parts(output)
        write_json(output / PLAN, plan)
        (output / PARTS).mkdir(exist_ok=True)
        tokenizer = _put_tokenizer(request, parts, tokenizer, rule)
        rows = [row for record in _run(request, parts, tokenizer, rule) for row in record["shards"]]
        manifest = plan | _manifest(request, tokenizer, rows)
        write_json(output / MANIFEST, manifest)
        (output / PLAN).unlink()
        shutil.rmtree(output / PARTS)
    return manifest


def _clear_parts(output: Path) -> None:
    """Removes what killed processes left half-written."""
    for path in [*output.iterdir(), *(output / PARTS).glob("*")]:
        if is_part(path):
            path.unlink(missing_ok=True)


def _put_tokenizer(request: Request, parts: Sequence[Part], tokenizer: Tokenizer | None, rule: Rule) -> Tokenizer:
    """The tokenizer as it lies in the folder, made first where it is to be trained."""
    output = request.output
    if not (output / SETTINGS).exists():
        if tokenizer:
            tokenizer.save(output)
        else:
            print(f"growlm: training a tokenizer of {request.vocab} tokens", file=sys.stderr, flush=True)
            train_tokenizer(request.train_tokenizer, request.vocab, sample(parts, request.reading, rule), output)
    return load_tokenizer(output)


def _run(request: Request, parts: Sequence[Part], tokenizer: Tokenizer, rule: Rule) -> Iterator[dict[str, Any]]:
    """The records of all parts in their order; those that are done are only read."""
    folder = request.output / PARTS
    done = {i: _record(folder, i) for i in range(len(parts)) if (folder / f"{i:05}.json").exists()}
    job = Job(str(request.output), dtype_of(tokenizer.vocab).str, rule, request.reading)
    with contextlib.closing(run_parts(job, parts, done, request.workers or _cores())) as results:
        for number, rows in results:
            write_json(folder / f"{number:05}.json", {"shards": rows})
            done[number] = {"shards": rows}
    return (done[i] for i in range(len(parts)))


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _record(folder: Path, number: int) -> dict[str, Any]:
    return json.loads((folder / f"{number:05}.json").read_text(encoding="utf-8"))


def _manifest(request: Request, tokenizer: Tokenizer, rows: list[dict[str, Any]]) -> dict[str, Any]:
    counts = {
        split: {key: sum(row[key] for row in rows if row["split"] == split) for key in ("documents", "tokens", "bytes")}
        for split in SPLITS
    }
    if empty := [split for split, held in counts.items() if not held["tokens"]]:
        raise InputError(f"no document is in the split {empty[0]!r}: allowed is another --validation, such as 1")
    held = {
        "name": request.tokenizer or f"{request.train_tokenizer}, trained on the source",
        "vocab": tokenizer.vocab,
        "eos": tokenizer.eos,
        "bos": tokenizer.bos,
        "fingerprint": tokenizer.fingerprint,
        "files": {name: hash_file(request.output / name) for name in (*tokenizer.files, SETTINGS)},
    }
    return {"tokenizer": held, "dtype": dtype_of(tokenizer.vocab).str, "splits": counts, "shards": rows}


def _plain(rule: Rule) -> dict[str, Any]:
    return dataclasses.asdict(rule)


def _reason(error: OSError) -> str:
    more = "; what is done is kept, and the same command goes on" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return f"{error.strerror or error}{more}"
