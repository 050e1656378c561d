"""Corpora: token shards of `growlm prepare`, or text as bytes, such as the Python standard library's.

Text that is not prepared needs no tokenizer: a token is a byte of UTF-8. Every file is a document and
ends with EOS. The held-out files, or chunks of few files, are those with the lowest hashes of their names
(`growlm.data.holdout`).
"""

import contextlib
import hashlib
import itertools
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from growlm.buckets import here
from growlm.checked import check_regular
from growlm.data.holdout import CHUNK_BYTES, CHUNKS_HELD_OUT, MANY, bound, rank
from growlm.data.shards import SPLITS, ShardedTokens, check_tokenizer, fingerprint, open_split, read_manifest
from growlm.data.tokenized import is_tokenized, open_tokenized, tokenizer_source
from growlm.data.tokenizers import BYTE_TOKENIZER, load_tokenizer
from growlm.errors import InputError, must_be
from growlm.files import check_within

VOCAB = 256
EOS = b"\0"  # never inside a document: text with a NUL byte is refused

FILES_HELD_OUT = 0.02  # of MANY or more; of fewer, CHUNKS_HELD_OUT of their chunks

PROSE = (".markdown", ".md", ".org", ".rst", ".tex", ".text", ".txt")
CODE = (".c", ".cc", ".cpp", ".go", ".h", ".hpp", ".java", ".js", ".py", ".pyi", ".rs", ".sh", ".sql", ".ts")
DATA = (".cfg", ".css", ".csv", ".html", ".ini", ".json", ".jsonl", ".toml", ".tsv", ".xml", ".yaml", ".yml")
SUFFIXES = PROSE + CODE + DATA
RUN_FILES = ("checkpoints", "metrics.jsonl", "sweep.json")  # beside config.json
SKIPPED_FOLDERS = ("site-packages", "dist-packages", "__pycache__")
# Written when the interpreter was built, with that machine's paths in them. Without these files, two builds
# of one Python version are one corpus.
BUILD_PREFIXES = ("_sysconfigdata", "config-")


@dataclass(frozen=True, eq=False)
class Corpus:
    """Text as tokens, split once.

    Attributes:
      name: the source it was loaded from.
      train: uint8[train tokens], read-only; the documents one after another, EOS after each. Of token shards:
        uint16 or uint32, in memory only where it is read.
      validation: likewise; shares no file, or no chunk of a file, with `train`; of token shards, no text.
      vocab: the vocabulary size that a model needs.
      eos: the token after each document.
      fingerprint: SHA-256 (hex) of the split tokens: equal for two corpora if both their splits are.
      tokenizer: the fingerprint of the tokenizer.
      documents: number of files; of token shards, of documents.
      markers: the tokens for system, user, assistant and the end of an answer, of conversations
        (`growlm.data.markers`); None of other text.
    """

    name: str
    train: np.ndarray | ShardedTokens
    validation: np.ndarray | ShardedTokens
    vocab: int
    eos: int
    fingerprint: str
    tokenizer: str
    documents: int
    markers: tuple[int, ...] | None = None


def load_corpus(source: str, metadata: bool = False) -> Corpus:
    """Reads a corpus into memory and splits it into training and validation tokens, or opens one that is prepared.

    Args:
      source: one of
        - the path of a folder that `growlm prepare` wrote, or datatrove's DocumentTokenizer.
        - "stdlib": the text files of the running interpreter's standard library. About 30 MB, or 11 MB where
          a distribution leaves out the tests; it differs between Python versions.
        - the path of a text file, with any suffix.
        - the path of a folder, of which every file with a text suffix is read, in the order of their paths;
          hidden ones and installed packages aside. (A folder that is really called stdlib is ./stdlib.)
      metadata: of text, before every file its path within the source, and an empty line. What is held out is the same.

    Returns:
      The corpus. Of 50 files or more, about 2 % are held out whole, by the hash of their relative path. Of
      fewer, about 5 % of their 4096-byte chunks are, by the hash of path and chunk number. One at least is.

    Raises:
      InputError: nothing is there, it is the folder of a run, it holds no text, a file is not UTF-8 or has NUL
        bytes, or there is too little for a part to be held out; token shards are not finished, or have not the
        sizes or the tokenizer that their manifest names, or were asked for metadata.
    """
    folder = here(source)
    manifest = read_manifest(folder) if source else None
    tokenized = source and is_tokenized(folder)
    if metadata and (manifest or tokenized):
        raise InputError(f"metadata must be unset for {source}, which is prepared: its texts have theirs or have none")
    if manifest:
        return _prepared(source, manifest)
    if tokenized:
        return _tokenized(source)
    documents = _stdlib() if source == "stdlib" else _read(source)
    train, validation = _split(source, documents, metadata)
    return Corpus(
        name=source,
        train=np.frombuffer(train, np.uint8),
        validation=np.frombuffer(validation, np.uint8),
        vocab=VOCAB,
        eos=EOS[0],
        fingerprint=_fingerprint(train, validation),
        tokenizer=load_tokenizer(BYTE_TOKENIZER).fingerprint,
        documents=len(documents),
    )


def tokenizer_of(source: str) -> str:
    """The argument of `load_tokenizer` for a corpus: a prepared folder itself, or "bytes" for text."""
    folder = here(source)
    if source and is_tokenized(folder):
        return tokenizer_source(folder)
    return source if source and read_manifest(folder) else BYTE_TOKENIZER


def _prepared(source: str, manifest: dict[str, Any]) -> Corpus:
    """The corpus of a folder of token shards."""
    folder = here(source)
    check_tokenizer(folder, manifest)
    return Corpus(
        name=source,
        train=open_split(folder, manifest, "train"),
        validation=open_split(folder, manifest, "validation"),
        vocab=manifest["tokenizer"]["vocab"],
        eos=manifest["tokenizer"]["eos"],
        fingerprint=fingerprint(manifest),
        tokenizer=manifest["tokenizer"]["fingerprint"],
        documents=sum(manifest["splits"][split]["documents"] for split in SPLITS),
        markers=tuple(manifest["chat"].values()) if "chat" in manifest else None,
    )


def _tokenized(source: str) -> Corpus:
    """The corpus of a folder of datatrove."""
    opened = open_tokenized(here(source))
    return Corpus(
        name=source,
        train=opened.train,
        validation=opened.validation,
        vocab=opened.tokenizer.vocab,
        eos=opened.tokenizer.eos,
        fingerprint=opened.fingerprint,
        tokenizer=opened.tokenizer.fingerprint,
        documents=opened.documents,
    )


def _read(source: str) -> dict[str, bytes]:
    """The documents of a user's file or folder, name -> text; a file that is not text is an error."""
    path = here(source)
    if source and path.is_file():
        documents = {path.name: _text(path)}
    elif source and path.is_dir():
        documents = {name: _text(path / name) for name in own_text_files(path)}
    else:
        raise must_be("corpus", "'stdlib', a prepared folder, a text file or a folder of them", source)
    documents = {name: text for name, text in documents.items() if text}
    if not documents:
        raise InputError(f"{source} must hold text, such as {' '.join(SUFFIXES)} files, got none")
    return documents


def _stdlib() -> dict[str, bytes]:
    """The documents of the standard library, less its few files that are badly encoded on purpose."""
    root = Path(sysconfig.get_path("stdlib"))
    documents = {}
    for name in text_files(root):
        with contextlib.suppress(InputError):
            documents[name] = _text(root / name)
    return {name: text for name, text in documents.items() if text and not name.startswith(BUILD_PREFIXES)}


def own_text_files(root: Path, suffixes: Sequence[str] = SUFFIXES, packed: Sequence[str] = ()) -> list[str]:
    """As `text_files`, of a folder that may come from anywhere: none may be a device, or lead out of it.

    Raises InputError where one does.
    """
    names = text_files(root, suffixes, packed)
    for path in filter(Path.exists, (root / name for name in names)):
        check_within(root, path)
    return names


def text_files(root: Path, suffixes: Sequence[str] = SUFFIXES, packed: Sequence[str] = ()) -> list[str]:
    """Files with one of the suffixes, alone or before a `packed` one, as sorted relative paths with forward slashes.

    Raises:
      InputError: a folder cannot be read, or `root` is the folder of a run or a sweep.
    """
    if (root / "config.json").exists() and any((root / name).exists() for name in RUN_FILES):
        raise InputError(f"{root} must be text, got the folder of a run: name the corpus that it was trained on")
    endings = tuple(suffix + after for suffix in suffixes for after in ("", *packed))
    paths = [path for path in _walk(root) if path.name.lower().endswith(endings) and path.suffix]
    return sorted(path.relative_to(root).as_posix() for path in paths)


def _walk(root: Path) -> Iterator[Path]:
    """All files but hidden ones and installed packages, whose folders may be huge and are never entered."""

    def fail(error: OSError):  # os.walk would leave an unreadable folder out without a word
        raise InputError(f"cannot read {error.filename}: {error.strerror}")

    for folder, subfolders, files in os.walk(root, onerror=fail):
        subfolders[:] = [name for name in subfolders if name[0] != "." and name not in SKIPPED_FOLDERS]
        yield from (Path(folder, name) for name in files if name[0] != ".")


def _text(path: Path) -> bytes:
    """The bytes of a file, checked to be text."""
    try:
        check_regular(path, "a text")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    position = _text_length(data)
    if position < len(data):
        raise InputError(f"{path} must be UTF-8 without NUL bytes, got 0x{data[position]:02x} at position {position}")
    return data


def _text_length(data: bytes) -> int:
    """The number of bytes before the first one that is NUL or not UTF-8."""
    head, _, _ = data.partition(EOS)
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start
    return len(head)


def _split(source: str, documents: dict[str, bytes], metadata: bool) -> tuple[bytes, bytes]:
    """Training and validation tokens. Neighbouring chunks of a split stay joined; EOS ends every run of them.

    With metadata the name of the document, and an empty line, begins every run.
    """
    units = list(_units(documents))
    ranks = [rank(name) for _, name, _ in units]
    if len(units) == 1:
        raise InputError(f"{source} must be at least {CHUNK_BYTES + 1} bytes to be split, got {len(units[0][2])}")
    share = FILES_HELD_OUT if len(documents) >= MANY else CHUNKS_HELD_OUT
    below = bound(share, min(ranks), max(ranks))
    splits = {False: [], True: []}
    rows = zip(units, ranks, strict=True)
    for (name, held_out), run in itertools.groupby(rows, lambda row: (row[0][0], row[1] < below)):
        head = [f"{name}\n\n".encode(errors="replace")] if metadata else []
        splits[held_out] += [*head, *(text for (_, _, text), _ in run), EOS]
    return b"".join(splits[False]), b"".join(splits[True])


def _units(documents: dict[str, bytes]) -> Iterator[tuple[str, str, bytes]]:
    """(document, hashed name, text) of each file, or of each chunk of few files: they are not split further."""
    for name, text in documents.items():
        if len(documents) >= MANY:
            yield name, name, text
        else:
            for start in range(0, len(text), CHUNK_BYTES):
                yield name, f"{name}:{start // CHUNK_BYTES}", text[start : start + CHUNK_BYTES]


def _fingerprint(train: bytes, validation: bytes) -> str:
    digest = hashlib.sha256(f"{len(train)}:".encode())  # the same bytes split elsewhere are another corpus
    digest.update(train)
    digest.update(validation)
    return digest.hexdigest()
