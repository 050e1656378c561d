"""Folders of tokens that datatrove's DocumentTokenizer and its merger write, as corpora.

A folder holds
  NAME.ds           tokens, little-endian uint16 or uint32; EOS after each document
  NAME.ds.index     little-endian uint64: where each document ends
  NAME.ds.metadata  a first line TOKENIZER|BYTES: the tokenizer's name or path, and the bytes of a token
Nothing in it is held out. Validation is the last documents of every file, in which datatrove shuffles them.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from growlm.checked import check_regular
from growlm.data.shards import INDEX_DTYPE, ShardedTokens, hash_blocks
from growlm.data.tokenizers import JSON, Tokenizer, load_tokenizer
from growlm.errors import InputError, must_be

SUFFIX, INDEX, METADATA = ".ds", ".index", ".metadata"
HELD_OUT = 0.005
LONGEST_NAME = 2**12  # bytes of the first line of metadata


@dataclass(frozen=True)
class Tokenized:
    """The two splits of a folder; `documents` counts both, `fingerprint` is SHA-256 (hex) of blocks of all files."""

    train: ShardedTokens
    validation: ShardedTokens
    tokenizer: Tokenizer
    documents: int
    fingerprint: str


def is_tokenized(folder: Path) -> bool:
    """Whether a path is a folder that holds tokens of datatrove."""
    return folder.is_dir() and bool(_files(folder))


def tokenizer_source(folder: Path) -> str:
    """The argument of `load_tokenizer` for a folder: itself, where it holds a tokenizer.json, or what it names."""
    if (folder / JSON).is_file():
        return str(folder)
    name, _ = _metadata(_files(folder)[0])
    if not Path(name).exists():
        raise InputError(f"{folder} must hold the {JSON} of its tokenizer, {name}, which is no path here")
    return name


def open_tokenized(folder: Path) -> Tokenized:
    """Opens a folder; no tokens are read but some blocks of each file, for the fingerprint.

    Raises:
      InputError: a file has no index or another size than that says, documents do not end with the tokenizer's EOS, or
        there are too few to hold one out.
    """
    tokenizer, files = load_tokenizer(tokenizer_source(folder)), _files(folder)
    tokens = [_open(path, np.dtype(f"<u{_metadata(path)[1]}")) for path in files]
    ends = [_open(_beside(path, INDEX), INDEX_DTYPE) for path in files]
    documents = sum(map(len, ends))
    if documents < 2:
        raise must_be(str(folder), "two documents or more", documents)
    counts = [int(len(each) * HELD_OUT) for each in ends]
    if not sum(counts):  # a small folder
        counts[max(number for number, each in enumerate(ends) if len(each))] = 1
    kept = [each[: len(each) - count] for each, count in zip(ends, counts, strict=True)]
    borders = [int(each[-1]) if len(each) else 0 for each in kept]
    for path, all_tokens, all_ends, border in zip(files, tokens, ends, borders, strict=True):
        _check(path, all_tokens, all_ends, border, tokenizer.eos)
    return Tokenized(
        train=ShardedTokens([each[:border] for each, border in zip(tokens, borders, strict=True)]),
        validation=ShardedTokens([each[border:] for each, border in zip(tokens, borders, strict=True)]),
        tokenizer=tokenizer,
        documents=documents,
        fingerprint=_fingerprint(files, tokenizer),
    )


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"))


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _metadata(path: Path) -> tuple[str, int]:
    """The tokenizer's name, and the bytes of a token."""
    place = _beside(path, METADATA)
    check_regular(place, METADATA)
    try:
        with place.open("rb") as file:
            name, _, size = file.readline(LONGEST_NAME).decode().rstrip("\n").rpartition("|")
    except OSError as error:
        raise InputError(f"cannot read {place}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise InputError(f"the first line of {place} must be UTF-8") from None
    if not name or size not in ("2", "4"):
        raise must_be(f"the first line of {place}", "TOKENIZER|2 or TOKENIZER|4", f"{name}|{size}")
    return name, int(size)


def _open(path: Path, dtype: np.dtype) -> np.ndarray:
    """A file as an array that is read when it is used."""
    check_regular(path, "a file of tokens")
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if size % dtype.itemsize:
        raise must_be(f"the size of {path}", f"a multiple of {dtype.itemsize}", size)
    return np.asarray(np.memmap(path, dtype, mode="r")) if size else np.zeros(0, dtype)


def _check(path: Path, tokens: np.ndarray, ends: np.ndarray, border: int, eos: int) -> None:
    """Raises InputError where the first document, the last that is trained on or the last of all does not end."""
    expected = int(ends[-1]) if len(ends) else 0
    if len(tokens) != expected:
        raise must_be(str(path), f"of {expected} tokens, as its {INDEX} says", len(tokens))
    for end in {int(ends[0]), border or expected, expected} if len(ends) else ():
        if not 0 < end <= expected:
            raise must_be(f"the end of a document in {_beside(path, INDEX)}", f"1 to {expected}", end)
        if tokens[end - 1] != eos:
            name = f"the last token of documents of {path}"
            raise must_be(name, f"its tokenizer's EOS {eos}", int(tokens[end - 1]))


def _fingerprint(files: list[Path], tokenizer: Tokenizer) -> str:
    content = [tokenizer.fingerprint, HELD_OUT]
    for path in files:
        for each in (path, _beside(path, INDEX)):
            with each.open("rb") as stream:
                content.append(hash_blocks(stream))
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
