"""Token shards: memory-mapped files of tokens, and the manifest with their sizes and hashes.

A prepared folder holds
  manifest.json     the settings, the tokenizer, what each split counts, and every shard with its size and SHA-256
  SPLIT-NUMBER.bin  tokens, little-endian uint16 or uint32; the documents one after another, EOS after each
  SPLIT-NUMBER.idx  the index: little-endian uint64, where in the shard each document ends
  tokenizer files   so that the folder is all that is needed
The manifest is written last: a folder without one is not finished.
"""

import bisect
import hashlib
import io
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from growlm.checked import parse_json, read_whole, unsealed
from growlm.data.holdout import Rule
from growlm.errors import InputError, check_count, check_name, check_range, must_be
from growlm.files import read_record

FORMAT = "growlm token shards 1"
MANIFEST, PLAN = "manifest.json", "plan.json"
SPLITS = ("train", "validation")
DTYPES = ("<u2", "<u4")
TOKENS_SUFFIX, INDEX_SUFFIX = ".bin", ".idx"
INDEX_DTYPE = np.dtype("<u8")
HASHED_BYTES = 2**16
COUNTS = ("documents", "tokens", "bytes")  # of a shard, and of all of a split


@dataclass(frozen=True)
class Shard:
    """A row of the manifest: `name` of its files without suffix, `bytes` of its text in UTF-8."""

    name: str
    split: str
    documents: int
    tokens: int
    bytes: int
    sha256: str
    index_sha256: str


class ShardedTokens:
    """The tokens of a split as one sequence, read from its shards by slices.

    It takes the place of a one-dimensional array of integers: len(tokens), tokens[start:stop]. A slice within one
    shard is a view of the file.
    """

    def __init__(self, shards: Sequence[np.ndarray]):
        self._shards = list(shards)
        self._starts = [0, *np.cumsum([len(shard) for shard in shards]).tolist()]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, span: slice) -> np.ndarray:
        start, stop, step = span.indices(len(self))
        if step != 1:
            raise IndexError(f"step must be 1, got {step}")
        stop = max(start, stop)
        first = min(bisect.bisect_right(self._starts, start), len(self._shards)) - 1
        if stop <= self._starts[first + 1]:
            return self._shards[first][start - self._starts[first] : stop - self._starts[first]]
        reach = range(first, bisect.bisect_left(self._starts, stop))
        return np.concatenate(
            [self._shards[i][max(0, start - self._starts[i]) : stop - self._starts[i]] for i in reach]
        )


def dtype_of(vocab: int) -> np.dtype:
    """The narrowest type of a shard's tokens. Raises InputError where none holds them."""
    check_range("the size of the vocabulary", vocab, high=2**32)
    return np.dtype(DTYPES[vocab > 2**16])


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a prepared folder, or None for anything else. Raises InputError for an unfinished one."""
    if not folder.is_dir():
        return None
    manifest = read_format(folder / MANIFEST)
    if manifest is None and read_format(folder / PLAN) is not None:
        raise InputError(f"{folder} is not finished: the same growlm prepare goes on with it")
    return manifest


def read_format(path: Path) -> dict[str, Any] | None:
    """A manifest or plan; None where there is none, as a folder of text may have any manifest.json.

    Raises InputError where it is of another version, damaged or altered.
    """
    if not path.is_file():
        return None
    try:
        content = parse_json(read_whole(path, path.name))
    except ValueError:
        return None
    if not isinstance(content, dict) or not str(content.get("format", "")).startswith("growlm token shards"):
        return None
    if content["format"] != FORMAT:
        raise must_be(f"format of {path}", repr(FORMAT), content["format"])
    content = unsealed(content, path)
    try:
        (_check_manifest if path.name == MANIFEST else _check_plan)(content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        said = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise InputError(f"{path} must be what growlm prepare wrote, got another: {said}") from None
    return content


def _check_plan(plan: dict[str, Any]) -> None:
    if not isinstance(plan["settings"], dict):
        raise must_be("settings", "an object", plan["settings"])
    Rule(**plan["rule"])


def _check_manifest(manifest: dict[str, Any]) -> None:
    """Raises ValueError, TypeError, KeyError or AttributeError for a manifest that is none."""
    _check_plan(manifest)
    check_name("dtype", manifest["dtype"], DTYPES)
    tokenizer, shards = manifest["tokenizer"], _check_rows(manifest["shards"])
    check_count("vocab", tokenizer["vocab"], 1)
    check_range("eos", tokenizer["eos"], 0, tokenizer["vocab"] - 1)
    for name in ("name", "fingerprint"):
        if not isinstance(tokenizer[name], str):
            raise must_be(name, "a text", tokenizer[name])
    for name in tokenizer["files"]:
        _check_file_name(name)
    for split, field in itertools.product(SPLITS, COUNTS):
        counts = [getattr(shard, field) for shard in shards if shard.split == split]
        if (total := manifest["splits"][split][field]) != sum(counts):
            raise must_be(f"{field} of {split}", f"those of its shards, {sum(counts)}", total)
        if field == "tokens":
            check_count(f"tokens of {split}", total, 1)
    for name, token in manifest.get("chat", {}).items():
        check_count(f"marker {name}", token, 0)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The manifest's rows in the record of a part. Raises InputError."""
    rows = read_record(path, "record of a part", "shards")["shards"]
    try:
        _check_rows(rows)
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{path} must be what growlm prepare wrote, got another: {error}") from None
    return rows


def _check_rows(rows: Any) -> list[Shard]:
    """The shards of rows. Raises ValueError, TypeError or AttributeError for rows that are none."""
    shards = shards_of({"shards": rows})
    for shard in shards:
        _check_file_name(shard.name)
        check_name("split", shard.split, SPLITS)
        for field in COUNTS:
            check_count(field, getattr(shard, field), 0)
    return shards


def _check_file_name(name: Any) -> None:
    if PurePosixPath(name).name != name or "\0" in name:
        raise must_be("a name", "one of a file in the folder", name)


def open_split(folder: Path, manifest: dict[str, Any], split: str) -> ShardedTokens:
    """The tokens of a split, mapped into memory. Raises InputError where the size of a shard is wrong."""
    dtype = np.dtype(manifest["dtype"])
    shards = [shard for shard in shards_of(manifest) if shard.split == split]
    return ShardedTokens([_map(folder / f"{shard.name}{TOKENS_SUFFIX}", dtype, shard.tokens) for shard in shards])


def shards_of(manifest: dict[str, Any]) -> list[Shard]:
    """The shards of all splits."""
    return [Shard(**row) for row in manifest["shards"]]


def fingerprint(manifest: dict[str, Any]) -> str:
    """SHA-256 (hex) of the tokens of both splits, their order, and what they mean."""
    shards = [[shard.split, shard.tokens, shard.sha256] for shard in shards_of(manifest)]
    content = [manifest["dtype"], manifest["tokenizer"]["fingerprint"], shards]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def check_tokenizer(folder: Path, manifest: dict[str, Any]) -> None:
    """Raises InputError where the tokenizer beside the shards is not the one that made them."""
    for name, expected in manifest["tokenizer"]["files"].items():
        if not (folder / name).is_file() or hash_file(folder / name) != expected:
            raise InputError(f"{folder / name} must be the tokenizer that made these shards, got another")


def check_shards(folder: Path, manifest: dict[str, Any]) -> None:
    """Reads every byte. Raises InputError that names the first file that differs from the manifest."""
    from tqdm import tqdm

    dtype, eos = np.dtype(manifest["dtype"]), manifest["tokenizer"]["eos"]
    for shard in tqdm(shards_of(manifest), desc="verify", unit="shard"):
        for suffix, expected in ((TOKENS_SUFFIX, shard.sha256), (INDEX_SUFFIX, shard.index_sha256)):
            path = folder / f"{shard.name}{suffix}"
            if not path.is_file() or hash_file(path) != expected:
                raise InputError(f"{path} was altered: its SHA-256 is not that of the manifest")
        tokens = _map(folder / f"{shard.name}{TOKENS_SUFFIX}", dtype, shard.tokens)
        ends = _map(folder / f"{shard.name}{INDEX_SUFFIX}", INDEX_DTYPE, shard.documents)
        if len(ends) and (ends[-1] != len(tokens) or (np.diff(ends.astype(np.int64)) < 1).any()):
            raise InputError(f"{folder / shard.name}{INDEX_SUFFIX} does not say where the documents of its shard end")
        if (tokens[ends.astype(np.int64) - 1] != eos).any():
            raise InputError(f"{folder / shard.name}{TOKENS_SUFFIX} must end its documents with EOS, token {eos}")


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_blocks(stream: BinaryIO) -> str:
    """SHA-256 (hex) of the size of a file and of its first, middle and last 64 KiB: whether it is another one.

    Not its time, which a copy on another machine does not keep, and not the whole of what may be a terabyte.
    """
    size = stream.seek(0, io.SEEK_END)
    digest = hashlib.sha256(f"{size}:".encode())
    for start in sorted({0, max(0, (size - HASHED_BYTES) // 2), max(0, size - HASHED_BYTES)}):
        stream.seek(start)
        digest.update(stream.read(HASHED_BYTES))
    return digest.hexdigest()


def _map(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    """A file as an array that is read when it is used."""
    expected = count * dtype.itemsize
    try:
        size = path.stat().st_size
    except OSError:
        raise InputError(f"{path} is missing: the manifest says {expected} bytes") from None
    if size != expected:
        raise InputError(f"{path} has {size} bytes: the manifest says {expected}")
    # A plain array on the map: slices of np.memmap itself cost several times as much to make.
    return np.asarray(np.memmap(path, dtype, mode="r")) if count else np.zeros(0, dtype)
