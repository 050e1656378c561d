"""`growlm prepare`: the text of a source becomes token shards.

A worker turns one part of the source into the shards of its number, and the part's record is written after them. The
shards depend on the part alone, so that after a kill the same command goes on and writes the same bytes.

    plan.json            settings and hold-out rule: written first
    tokenizer files      second
    parts/NUMBER.json    as each part is done, after its shards
    manifest.json        last; plan.json and parts/ are removed
"""

import contextlib
import dataclasses
import errno
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growlm.buckets import here, resumable
from growlm.data.documents import Document, Reading
from growlm.data.holdout import Rule, find_rule
from growlm.data.markers import markers_of, with_markers
from growlm.data.readers import settings_of
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
    read_format,
    read_manifest,
    read_rows,
)
from growlm.data.sources import Part, Source, list_parts, listing, pin, plain_files
from growlm.data.tokenizers import SETTINGS, Tokenizer, load_tokenizer
from growlm.data.vocabulary import sample, train_tokenizer
from growlm.data.workers import Job, Rows, run_parts
from growlm.errors import InputError, check_name, check_range, must_be
from growlm.files import is_part, locked, make_folder, sync, write_sealed

RECORDS = "parts"  # folder of the records of finished parts
GOES_ON = "finished parts are kept, and the same command goes on"


@dataclass(frozen=True)
class Request:
    """Arguments of `prepare`.

    Attributes:
      sources: as in `growlm.data.sources.list_parts`: text that names one, or steps of datatrove.
      output: a new or empty folder, or the one of an equal request that was stopped.
      tokenizer: as in `load_tokenizer`, or None to train one.
      train_tokenizer: "bpe" or "sentencepiece", to train one of `vocab` tokens on the training text.
      eos: the token that ends documents, if it is not the tokenizer's.
      validation: a share of the documents or a number of them; see `growlm.data.holdout.find_rule`.
      split, data_dir: the split and the folder of named datasets.
      reading: the field of records, the treatment of text that is not UTF-8, and filters.
      workers: number of processes, by default one a core.
    """

    sources: tuple[Source, ...]
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
    """Writes token shards, or goes on with them, and returns the manifest; a finished folder is not touched.

    Raises:
      InputError: a document is not text, with its place; the folder holds something else; the disk is full; or the
        request is wrong.
    """
    with resumable(request.output) as output:
        return _prepare(dataclasses.replace(request, output=output))


def _prepare(request: Request) -> dict[str, Any]:
    work = read_request(request)
    if manifest := finished(work):
        return manifest
    rule = find_rule_of(work)
    try:
        return _write(work, rule)
    except OSError as error:
        raise InputError(f"cannot write {error.filename or request.output}: {_reason(error)}") from error
    except KeyboardInterrupt:
        print(f"growlm: {GOES_ON}", file=sys.stderr)
        raise


def verify(folder: Path) -> dict[str, Any]:
    """Reads every byte of a prepared folder and returns its manifest.

    Raises:
      InputError: the folder is not a prepared one, or a file differs from the manifest; the file is named.
    """
    folder = here(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(f"{folder} must be a folder of growlm prepare, it has no {MANIFEST}")
    check_tokenizer(folder, manifest)
    for split in SPLITS:
        open_split(folder, manifest, split)
    check_shards(folder, manifest)
    return manifest


def describe(folder: Path, manifest: dict[str, Any]) -> str:
    """A summary of a prepared folder, in a few lines."""
    tokenizer = manifest["tokenizer"]
    lines = [f"{folder}: {len(manifest['shards'])} shards of {manifest['dtype']}"]
    lines.append(f"  tokenizer   {tokenizer['name']}, {tokenizer['vocab']:,} tokens, EOS is {tokenizer['eos']}")
    if markers := manifest.get("chat"):
        lines.append("  chat        " + ", ".join(f"{name} is {token}" for name, token in markers.items()))
    for split, counts in manifest["splits"].items():
        ratio = f"{counts['bytes'] / counts['tokens']:.2f} bytes a token"
        lines.append(f"  {split:<10}  {counts['tokens']:,} tokens in {counts['documents']:,} documents, {ratio}")
    return "\n".join(lines)


# --- the request


@dataclass(frozen=True)
class Work:
    """What a request comes to, in every process that takes part in it.

    Attributes:
      request: the request.
      parts: the parts of its sources.
      tokenizer: the one that it names; None where one is trained.
      settings: everything that determines the shards.
    """

    request: Request
    parts: Sequence[Part]
    tokenizer: Tokenizer | None
    settings: dict[str, Any]


def read_request(request: Request) -> Work:
    """Checks a request and lists its parts; nothing is written. Raises InputError.

    Datasets of the hub are read at one commit, that with which the folder was begun.
    """
    _check(request)
    begun = read_format(request.output / PLAN) or read_format(request.output / MANIFEST) or {}
    before = begun.get("settings", {}).get("sources", ())
    request = dataclasses.replace(request, sources=tuple(pin(source, before) for source in request.sources))
    parts = list_parts(request.sources, request.split, request.data_dir)
    if request.reading.filters and (plain := plain_files(parts)):
        raise InputError(f"--filter={request.reading.filters[0]} needs records with fields, {plain[0]} has none")
    if request.reading.chat and (plain := plain_files(parts)):
        raise InputError(f"--chat needs records, such as JSON lines, {plain[0]} has none")
    tokenizer = load_tokenizer(request.tokenizer, request.eos) if request.tokenizer else None
    request = dataclasses.replace(request, tokenizer=tokenizer and tokenizer.name)  # of the hub, with its commit
    return Work(request, parts, tokenizer, _settings(request, parts, tokenizer))


def _check(request: Request) -> None:
    if not request.sources:
        raise InputError("prepare needs --source: a text file, a folder of them, tfds:NAME or hf:NAME")
    if (request.tokenizer is None) == (request.train_tokenizer is None):
        raise InputError("prepare needs one of --tokenizer=bytes|FILE|DIR and --train_tokenizer=bpe|sentencepiece")
    if (request.train_tokenizer is None) != (request.vocab is None):
        raise InputError("--vocab=N and --train_tokenizer go together: a tokenizer that is there has its own size")
    if request.train_tokenizer and request.eos:
        raise InputError("--eos and --train_tokenizer exclude each other: a trained tokenizer has its own EOS")
    check_name("--errors", request.reading.errors, ("strict", "replace"))
    if request.workers is not None:
        check_range("--workers", request.workers, low=1)
    for source in filter(None, request.sources):  # what is written would be read
        if (
            isinstance(source, str)
            and Path(source).is_dir()
            and request.output.resolve().is_relative_to(Path(source).resolve())
        ):
            raise must_be("output", f"outside of source {source}", str(request.output))
    if request.output.exists() and not request.output.is_dir():
        raise must_be("output", "a new or empty folder", str(request.output))


def _settings(request: Request, parts: Sequence[Part], tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Everything that determines the shards; the text itself by the sizes of its files and some of their blocks."""
    trained = {"trained": request.train_tokenizer, "vocab": request.vocab}
    reading = {key: value for key, value in vars(request.reading).items() if key not in ("filters", "chat")}
    if request.reading.filters:  # otherwise the settings are those of folders from before there were filters
        reading["filters"] = [str(each) for each in request.reading.filters]
    if request.reading.chat:
        reading["chat"] = True
    return {
        "sources": [_place(source) for source in request.sources],
        "split": request.split,
        **reading,
        "validation": request.validation,
        "tokenizer": {"fingerprint": tokenizer.fingerprint} if tokenizer else trained,
        "files": listing(parts),
    }


def _place(source: Source) -> Any:
    if not isinstance(source, str):
        return [settings_of(step) for step in source]
    return Path(source).absolute().as_posix() if Path(source).exists() else source


# --- the folder


def finished(work: Work) -> dict[str, Any] | None:
    """The manifest of an equal request that is done, or None. Raises InputError where it is of another request."""
    output = work.request.output
    manifest = None if not output.is_dir() or (output / PLAN).exists() else read_manifest(output)
    if manifest:
        _check_equal(output, manifest["settings"], work.settings)
        for split in SPLITS:
            open_split(output, manifest, split)
    return manifest


def find_rule_of(work: Work) -> Rule:
    """The rule of an equal request that was begun, or a new one. Raises InputError for anything else in the folder."""
    if rule := planned_rule(work):
        return rule
    request, parts = work.request, work.parts
    others = [path.name for path in _listed(request.output) if path.name != ".lock" and not is_part(path)]
    if others:
        raise InputError(f"output {request.output} must be a new or empty folder, it holds {min(others)}")
    from tqdm import tqdm

    def read() -> Iterator[Document]:
        documents = (document for part in parts for document in part.documents(request.reading))
        return iter(tqdm(documents, desc="hold-out", unit=" documents", delay=2))  # seconds: mostly it is quick

    if request.reading.filters and next(read(), None) is None:
        chosen = " ".join(f"--filter={each}" for each in request.reading.filters)
        raise InputError(f"{chosen} must keep a record of the source, it keeps none")
    return find_rule(read, request.validation, whole=request.reading.chat)


def _listed(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def planned_rule(work: Work) -> Rule | None:
    """The rule of an equal request that was begun, or None. Raises InputError where it is of another request."""
    output = work.request.output
    if not output.is_dir() or (plan := read_format(output / PLAN)) is None:
        return None
    _check_equal(output, plan["settings"], work.settings)
    return Rule(**plan["rule"])


def _check_equal(output: Path, written: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raises InputError that names the first setting in which two requests differ."""
    for key in {**asked, **written}:
        before, value = written.get(key), asked.get(key)
        if before != value:
            change = "the source's files changed since" if key == "files" else f"{key} was {before}, not {value}"
            raise InputError(f"output {output} is of other settings: {change}; take a new folder")


def _write(work: Work, rule: Rule) -> dict[str, Any]:
    """Writes everything that the folder lacks; returns the manifest."""
    output = work.request.output
    make_folder(output)
    with locked(output):
        if manifest := finished(work):  # by the process that had the lock
            return manifest
        _clear_parts(output)
        write_plan(work, rule)
        job, rows = job_of(work, rule), recorded(output)
        workers = work.request.workers or _cores()
        with contextlib.closing(run_parts(job, work.parts, rows, workers)) as results:
            for number, written in results:
                write_record(output, number, written)
        return write_manifest(work, rule)


def _clear_parts(output: Path) -> None:
    """Removes half-written files of killed processes."""
    for path in [*output.iterdir(), *(output / RECORDS).glob("*")]:
        if is_part(path):
            path.unlink(missing_ok=True)


def write_plan(work: Work, rule: Rule) -> None:
    """Writes what all processes need: the plan, and the tokenizer, trained first if asked for."""
    output, request = work.request.output, work.request
    write_sealed(output / PLAN, _plan(work, rule))
    (output / RECORDS).mkdir(exist_ok=True)
    if (output / SETTINGS).exists():
        return
    if work.tokenizer:
        work.tokenizer.save(output)
    else:
        print(f"growlm: training a tokenizer of {request.vocab} tokens", file=sys.stderr, flush=True)
        train_tokenizer(request.train_tokenizer, request.vocab, sample(work.parts, request.reading, rule), output)


def _plan(work: Work, rule: Rule) -> dict[str, Any]:
    return {"format": FORMAT, "settings": work.settings, "rule": dataclasses.asdict(rule)}


def job_of(work: Work, rule: Rule) -> Job:
    """The settings of all parts, of a folder that holds its plan and its tokenizer."""
    output, reading = work.request.output, work.request.reading
    return Job(str(output), dtype_of(_vocabulary(load_tokenizer(output), reading)).str, rule, reading)


def recorded(output: Path) -> dict[int, Rows]:
    """The manifest's rows of the parts that are done, by their numbers."""
    paths = (output / RECORDS).glob("[0-9]*.json")
    return {int(path.stem): read_rows(path) for path in paths}


def write_record(output: Path, number: int, rows: Rows) -> None:
    """Says that the shards of a part are written."""
    write_sealed(output / RECORDS / f"{number:05}.json", {"shards": rows})


def write_manifest(work: Work, rule: Rule) -> dict[str, Any]:
    """Ends a folder of which all parts are done; returns the manifest. Raises InputError where one is not."""
    output, rows = work.request.output, recorded(work.request.output)
    if missing := [number for number in range(len(work.parts)) if number not in rows]:
        raise InputError(f"{output} must have all its {len(work.parts)} parts, got none of number {missing[0]}")
    _clear_parts(output)
    counted = _counted(work, [row for number in range(len(work.parts)) for row in rows[number]])
    manifest = _plan(work, rule) | counted
    write_sealed(output / MANIFEST, manifest)
    (output / PLAN).unlink()
    shutil.rmtree(output / RECORDS)
    sync(output)  # the plan, where it is back after a power loss, would say that the folder is not done
    return manifest


def _vocabulary(tokenizer: Tokenizer, reading: Reading) -> int:
    """The number of tokens, with the markers of conversations."""
    return with_markers(tokenizer).vocab if reading.chat else tokenizer.vocab


def _cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _counted(work: Work, rows: Rows) -> dict[str, Any]:
    """What the manifest says of the shards and the tokenizer in the folder."""
    request, tokenizer = work.request, load_tokenizer(work.request.output)
    counts = {
        split: {key: sum(row[key] for row in rows if row["split"] == split) for key in ("documents", "tokens", "bytes")}
        for split in SPLITS
    }
    if empty := [split for split, count in counts.items() if not count["tokens"]]:
        raise InputError(f"the split {empty[0]!r} has no document: take another --validation, such as 1")
    vocab = _vocabulary(tokenizer, request.reading)
    settings = {
        "name": request.tokenizer or f"{request.train_tokenizer}, trained on the source",
        "vocab": vocab,
        "eos": tokenizer.eos,
        "bos": tokenizer.bos,
        "fingerprint": tokenizer.fingerprint,
        "files": {name: hash_file(request.output / name) for name in (*tokenizer.files, SETTINGS)},
    }
    manifest = {"tokenizer": settings, "dtype": dtype_of(vocab).str, "splits": counts, "shards": rows}
    return manifest | ({"chat": dataclasses.asdict(markers_of(tokenizer))} if request.reading.chat else {})


def _reason(error: OSError) -> str:
    more = f"; {GOES_ON}" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return f"{error.strerror or error}{more}"
