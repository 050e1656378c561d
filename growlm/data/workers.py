"""Processes that turn parts of a source into token shards."""

import contextlib
import hashlib
import itertools
import multiprocessing
import os
import signal
import socket
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait as wait_for
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from growlm.data.documents import PIECE_BYTES, Document, Reading, encoded
from growlm.data.holdout import Rule, runs
from growlm.data.markers import with_markers
from growlm.data.shards import INDEX_DTYPE, INDEX_SUFFIX, TOKENS_SUFFIX, Shard
from growlm.data.sources import Part, text_bytes
from growlm.data.tokenizers import Tokenizer, load_tokenizer
from growlm.errors import InputError
from growlm.files import sync

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Job:
    """Settings of all parts: the folder, which holds the tokenizer, and how text is read and split."""

    output: str
    dtype: str
    rule: Rule
    reading: Reading


class _Text(NamedTuple):
    """A piece of a document; `ends` says whether EOS comes after it."""

    text: str
    split: str
    ends: bool
    place: str


Rows = list[dict[str, Any]]


def run_parts(job: Job, parts: Sequence[Part], done: Mapping[int, Rows], workers: int) -> Iterator[tuple[int, Rows]]:
    """Writes the shards of all parts that are not done, with a progress bar of bytes read.

    Args:
      job: settings of all parts.
      parts: all parts.
      done: the manifest's rows of finished parts, by the number of the part.
      workers: number of processes.

    Yields:
      The number of each part, as it is done, and the manifest's rows of its shards.

    Raises:
      InputError: a document is not text or cannot be encoded, or a worker was killed.
      OSError: a shard cannot be written.
    """
    left = [(number, part) for number, part in enumerate(parts) if number not in done]
    if not left:
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy whatever locks other threads hold
    stop, read = context.Event(), context.Value("q", 0)
    with (
        ProcessPoolExecutor(min(workers, len(left)), context, _start, (job, stop, read)) as pool,
        _bar(parts, done) as bar,
    ):
        futures = {pool.submit(_prepare_part, number, part): number for number, part in left}
        try:
            yield from _collect(futures, bar, read, len(parts))
        except BrokenProcessPool:
            raise InputError("a worker was killed, perhaps for its memory: the same command goes on") from None
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _collect(futures: dict[Future, int], bar: Any, read: Synchronized, parts: int) -> Iterator[tuple[int, Rows]]:
    """The results of parts in the order in which they end."""
    before, pending = bar.n, set(futures)
    while pending:
        finished, pending = wait(pending, POLL_SECONDS, FIRST_COMPLETED)
        for future in finished:
            yield futures[future], future.result()
        bar.set_description(f"{parts - len(pending)}/{parts} parts", refresh=False)
        bar.update(before + read.value - bar.n)


def _bar(parts: Sequence[Part], done: Mapping[int, Rows]) -> Any:
    from tqdm import tqdm

    before = sum(row["bytes"] for rows in done.values() for row in rows)
    title = f"{len(done)}/{len(parts)} parts"
    return tqdm(total=text_bytes(parts), initial=before, desc=title, unit="B", unit_scale=True, smoothing=0.05)


# --- within a worker


class _Worker(NamedTuple):
    """State of a worker process."""

    job: Job
    tokenizer: Tokenizer
    stop: Event
    read: Synchronized  # bytes, of all workers


_worker: list[_Worker] = []  # one, set at the start of the process


def _start(job: Job, stop: Event, read: Synchronized) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent sets `stop`
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker[:] = [_Worker(job, open_tokenizer(job), stop, read)]


def _end_with_parent() -> None:
    """Ends the process with its parent: a killed parent sets no `stop`, and workers would wait forever."""
    wait_for([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _prepare_part(number: int, part: Part) -> Rows:
    (worker,) = _worker

    def written(size: int) -> None:
        with worker.read.get_lock():
            worker.read.value += size
        if worker.stop.is_set():
            raise InputError("stopped: the same command goes on")

    return write_part(worker.job, worker.tokenizer, number, part, written)


# --- a part


def open_tokenizer(job: Job) -> Tokenizer:
    """The tokenizer of a job, with the markers of conversations where it has them; for a process of one thread."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = load_tokenizer(job.output)
    return with_markers(tokenizer) if job.reading.chat else tokenizer


def write_part(job: Job, tokenizer: Tokenizer, number: int, part: Part, written: Callable[[int], None]) -> Rows:
    """Writes the shards of a part, whole or not at all; returns their rows.

    Args:
      job: settings of all parts.
      tokenizer: that of `open_tokenizer`.
      number: the part's number, which names its shards.
      part: what is read.
      written: is told the bytes of text, about 1 MiB at a time; what it raises ends the work.
    """
    with contextlib.ExitStack() as stack:
        writers: dict[str, _Writer] = {}
        for texts in _batches(part.documents(job.reading), job.rule):
            for text, ids in zip(texts, _encode(tokenizer, texts), strict=True):
                if text.split not in writers:
                    writer = _Writer(Path(job.output), f"{text.split}-{number:05}", text.split, np.dtype(job.dtype))
                    writers[text.split] = stack.enter_context(writer)
                writers[text.split].add(ids, tokenizer.eos if text.ends else None, len(encoded(text.text)))
            written(sum(len(encoded(text.text)) for text in texts))
        return [asdict(writers[split].finish()) for split in sorted(writers)]


def _batches(documents: Iterable[Document], rule: Rule) -> Iterator[list[_Text]]:
    """The pieces of all documents, about 1 MiB of text at a time."""
    batch: list[_Text] = []
    size = 0
    for document in documents:
        for split, pieces in runs(document, rule):
            for piece, after in itertools.pairwise(itertools.chain(pieces, [None])):
                batch.append(_Text(piece, split, ends=after is None, place=document.place))
                size += len(piece)
                if size >= PIECE_BYTES:
                    yield batch
                    batch, size = [], 0
    if batch:
        yield batch


def _encode(tokenizer: Tokenizer, texts: list[_Text]) -> list[list[int]]:
    """The tokens of each text. Raises InputError that names a document that cannot be encoded."""
    try:
        return tokenizer.encode_all([text.text for text in texts])
    except InputError:
        for text in texts:
            try:
                tokenizer.encode(text.text)
            except InputError as error:
                raise InputError(f"{text.place}: {error}") from None
        raise


class _Writer:
    """A shard in a temporary file, which `finish` renames to its name and leaving the context removes."""

    def __init__(self, folder: Path, name: str, split: str, dtype: np.dtype):
        self._folder, self._name, self._split, self._dtype = folder, name, split, dtype
        writer = f"{socket.gethostname()}.{os.getpid()}"  # a part may be written twice, by machines of a cluster
        self._part = folder / f".{name}{TOKENS_SUFFIX}.{writer}.part"
        self._index_part = folder / f".{name}{INDEX_SUFFIX}.{writer}.part"
        self._digest, self._ends = hashlib.sha256(), array("Q")
        self._tokens = self._bytes = 0

    def __enter__(self) -> "_Writer":
        self._file = self._part.open("wb")
        return self

    def add(self, ids: list[int], eos: int | None, size: int) -> None:
        """Appends tokens of a document; with `eos`, its last ones."""
        data = np.array(ids if eos is None else [*ids, eos], self._dtype).tobytes()
        self._file.write(data)
        self._digest.update(data)
        self._tokens += len(data) // self._dtype.itemsize
        self._bytes += size
        if eos is not None:
            self._ends.append(self._tokens)

    def finish(self) -> Shard:
        """Renames the files to their names, after fsync: a part that is recorded as done must survive a crash."""
        _sync(self._file)
        index = np.array(self._ends, INDEX_DTYPE).tobytes()
        with self._index_part.open("wb") as file:
            file.write(index)
            _sync(file)
        self._part.replace(self._folder / f"{self._name}{TOKENS_SUFFIX}")
        self._index_part.replace(self._folder / f"{self._name}{INDEX_SUFFIX}")
        sync(self._folder)
        return Shard(
            name=self._name,
            split=self._split,
            documents=len(self._ends),
            tokens=self._tokens,
            bytes=self._bytes,
            sha256=self._digest.hexdigest(),
            index_sha256=hashlib.sha256(index).hexdigest(),
        )

    def __exit__(self, *_) -> None:
        with contextlib.suppress(OSError):  # a full disk was reported by `add`
            self._file.close()
        self._part.unlink(missing_ok=True)
        self._index_part.unlink(missing_ok=True)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
