"""Corpora: token shards of `growlm prepare`, or text as bytes, such as the Python standard library's.

Text that is not prepared needs no tokenizer: a token is a byte of UTF-8. Every file is a document and
ends with EOS. A hash of names, not a random draw, says what is held out for validation, so that adding a file
does not move the others across the border.
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

from growlm.data.shards import ShardedTokens, check_tokenizer, fingerprint, open_split, read_manifest
from growlm.data.tokenizers import BYTES
from growlm.errors import InputError

VOCAB = 256
EOS = b"\0"  # never inside a document: text with a NUL byte is refused

FILES_HELD_OUT = 0.02
# Under this many files, 2 % of them is less than one, so chunks of files are held out instead. A larger
# share: such corpora are small.
MANY_FILES = 50
CHUNK = 4096
CHUNKS_HELD_OUT = 0.05

PROSE = (".markdown", ".md", ".org", ".rst", ".tex", ".text", ".txt")
CODE = (".c", ".cc", ".cpp", ".go", ".h", ".hpp", ".java", ".js", ".py", ".pyi", ".rs", ".sh", ".sql", ".ts")
DATA = (".cfg", ".css", ".csv", ".html", ".ini", ".json", ".jsonl", ".toml", ".tsv", ".xml", ".yaml", ".yml")
SUFFIXES = PROSE + CODE + DATA
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
      vocab: number of different tokens a model must know.
      eos: the token after each document.
      fingerprint: SHA-256 (hex) of the split tokens: equal for two corpora if both their splits are.
      documents: number of files; of token shards, of documents.
    """

    name: str
    train: np.ndarray | ShardedTokens
    validation: np.ndarray | ShardedTokens
    vocab: int
    eos: int
    fingerprint: str
    documents: int


def load_corpus(source: str) -> Corpus:
    """Reads a corpus into memory and splits it into training and validation tokens, or opens one that is prepared.

    Args:
      source: one of
        - the path of a folder that `growlm prepare` wrote.
        - "stdlib": the text files of the running interpreter's standard library. About 30 MB, or 11 MB where
          a distribution leaves out the tests; it differs between Python versions.
        - the path of a text file, with any suffix.
        - the path of a folder, of which every file with a text suffix is read, in the order of their paths;
          hidden ones and installed packages aside. (A folder that is really called stdlib is ./stdlib.)

    Returns:
      The corpus. Of 50 files or more, about 2 % are held out whole, by the hash of their relative path. Of
      fewer, about 5 % of their 4096-byte chunks are, by the hash of path and chunk number.

    Raises:
      InputError: nothing is there, it holds no text, a file is not UTF-8 or has NUL bytes, or there is too
        little for a part to be held out; token shards are not finished, or have not the sizes or the tokenizer
        that their manifest names.
    """
    if source and (manifest := read_manifest(Path(source))):
        return _prepared(source, manifest)
    documents = _stdlib() if source == "stdlib" else _read(source)
    train, validation = _split(documents)
    if not train:  # all there is is one chunk
        size = len(validation) - len(EOS)
        raise InputError(f"{source} is too small to split: {size} bytes, at least {CHUNK + 1} are needed")
    return Corpus(
        name=source,
        train=np.frombuffer(train, np.uint8),
        validation=np.frombuffer(validation, np.uint8),
        vocab=VOCAB,
        eos=EOS[0],
        fingerprint=_fingerprint(train, validation),
        documents=len(documents),
    )


def tokenizer_of(source: str) -> str:
    """The tokenizer of a corpus, as `load_tokenizer` takes it: a prepared one holds it, and text is read as bytes."""
    return source if source and read_manifest(Path(source)) else BYTES


def _prepared(source: str, manifest: dict[str, Any]) -> Corpus:
    """The corpus of a folder of token shards."""
    folder = Path(source)
    check_tokenizer(folder, manifest)
    return Corpus(
        name=source,
        train=open_split(folder, manifest, "train"),
        validation=open_split(folder, manifest, "validation"),
        vocab=manifest["tokenizer"]["vocab"],
        eos=manifest["tokenizer"]["eos"],
        fingerprint=fingerprint(manifest),
        documents=sum(split["documents"] for split in manifest["splits"].values()),
    )


def _read(source: str) -> dict[str, bytes]:
    """The documents of a user's file or folder, name -> text; a file that is not text is an error."""
    path = Path(source)
    if source and path.is_file():
        documents = {path.name: _text(path)}
    elif source and path.is_dir():
        documents = {name: _text(path / name) for name in text_files(path)}
    else:
        raise InputError(f"no file or folder {source!r}; allowed: 'stdlib', a text file, a folder of them")
    documents = {name: text for name, text in documents.items() if text}
    if not documents:
        raise InputError(f"no text in {source}; allowed: a text file, a folder of {' '.join(SUFFIXES)} files")
    return documents


def _stdlib() -> dict[str, bytes]:
    """The documents of the standard library, less its few files that are badly encoded on purpose."""
    root = Path(sysconfig.get_path("stdlib"))
    documents = {}
    for name in text_files(root):
        with contextlib.suppress(InputError):
            documents[name] = _text(root / name)
    return {name: text for name, text in documents.items() if text and not name.startswith(BUILD_PREFIXES)}


def text_files(root: Path, suffixes: Sequence[str] = SUFFIXES, packed: Sequence[str] = ()) -> list[str]:
    """The files with one of the suffixes, a packed one after it or not: relative paths with forward slashes, sorted.

    Raises InputError where a folder cannot be read.
    """
    endings = tuple(suffix + after for suffix in suffixes for after in ("", *packed))
    paths = [path for path in _walk(root) if path.name.lower().endswith(endings) and path.suffix]
    return sorted(path.relative_to(root).as_posix() for path in paths)


def _walk(root: Path) -> Iterator[Path]:
    """All files but hidden ones and installed packages; those folders may be huge and are never entered."""

    def fail(error: OSError):  # os.walk would leave an unreadable folder out without a word
        raise InputError(f"cannot read {error.filename}: {error.strerror}")

    for folder, subfolders, files in os.walk(root, onerror=fail):
        subfolders[:] = [name for name in subfolders if name[0] != "." and name not in SKIPPED_FOLDERS]
        yield from (Path(folder, name) for name in files if name[0] != ".")


def _text(path: Path) -> bytes:
    """The bytes of a file, checked to be text."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    position = _text_length(data)
    if position < len(data):
        found = f"byte 0x{data[position]:02x} at position {position}"
        raise InputError(f"{path} is not text: {found}; allowed: UTF-8 without NUL bytes")
    return data


def _text_length(data: bytes) -> int:
    """How many bytes come before the first one that is NUL or not UTF-8; of a text, all of them."""
    head, _, _ = data.partition(EOS)
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start
    return len(head)


def _split(documents: dict[str, bytes]) -> tuple[bytes, bytes]:
    """Training and validation tokens. Neighbouring chunks of one side stay joined; EOS ends every run."""
    pieces = _pieces(documents)
    share = FILES_HELD_OUT if len(documents) >= MANY_FILES else CHUNKS_HELD_OUT
    held = _held_out([key for _, key, _ in pieces], share)
    sides = {False: [], True: []}
    for (_, side), run in itertools.groupby(pieces, lambda piece: (piece[0], piece[1] in held)):
        sides[side] += [*(text for _, _, text in run), EOS]
    return b"".join(sides[False]), b"".join(sides[True])


def _pieces(documents: dict[str, bytes]) -> list[tuple[str, str, bytes]]:
    """What stays on one side, files or chunks of few files, each as (document, key to hash, text)."""
    if len(documents) >= MANY_FILES:
        return [(name, name, text) for name, text in documents.items()]
    return [
        (name, f"{name}:{start // CHUNK}", text[start : start + CHUNK])
        for name, text in documents.items()
        for start in range(0, len(text), CHUNK)
    ]


def _held_out(keys: list[str], share: float) -> set[str]:
    """The keys whose hash, as a number in [0, 1), is below `share`; where none or all are, the lowest one."""
    ranks = {key: _rank(key) for key in keys}
    below = {key for key, rank in ranks.items() if rank < share}
    return below if 0 < len(below) < len(keys) else {min(ranks, key=ranks.get)}


def _rank(key: str) -> float:
    # surrogateescape: the name of a file need not be UTF-8 for its text to be.
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _fingerprint(train: bytes, validation: bytes) -> str:
    digest = hashlib.sha256(f"{len(train)}:".encode())  # the same bytes split elsewhere are another corpus
    digest.update(train)
    digest.update(validation)
    return digest.hexdigest()
