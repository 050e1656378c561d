"""Safetensors files: tensors read some rows at a time, and written piece by piece, so that none is in memory whole.

A file is the length of its header (8 bytes), the header (JSON: dtype, shape and offsets of every tensor), then the
bytes of the tensors (github.com/huggingface/safetensors). The library reads slices; it writes what is in memory whole.
"""

import dataclasses
import json
import math
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from growlm.errors import InputError, must_be
from growlm.files import inside, named, read_object, write_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
MAX_HEADER = 2**24  # bytes, of about 100,000 tensors
SHARD_BYTES = 5 * 10**9
THREADS = min(4, os.cpu_count() or 1)

# The names that safetensors has for the types of weights.
DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}
NAME_OF_DTYPE = {dtype: name for name, dtype in DTYPES.items()}

# --- Reading ---


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a checked file, not read yet."""

    name: str
    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def chunks(self, nbytes: int) -> Iterator[slice]:
        """All rows in slices of so many bytes; of one row where a row has more."""
        size = self.shape[0]
        rows = max(1, nbytes * size // max(self.nbytes, 1))
        return (slice(begin, min(begin + rows, size)) for begin in range(0, size, rows))

    def read(self, rows: slice = slice(None)) -> np.ndarray:
        """These rows, without a step, in the stored dtype. Raises InputError where the file has changed."""
        first, last, _ = rows.indices(self.shape[0])
        try:
            # Opened for every read: the pages of a file that stays mapped count as this process's memory.
            with safe_open(self.file, framework="np") as file:
                stored = file.get_slice(self.name)
                if (DTYPES.get(stored.get_dtype()), tuple(stored.get_shape())) == (self.dtype, self.shape):
                    return stored[first : max(first, last)]
        except OSError as error:
            raise InputError(f"{self.file} cannot be read: {error}") from None
        except SafetensorError:
            pass
        raise InputError(f"{self.file} has changed since it was opened, and tensor {self.name!r} cannot be read")


def stored_tensors(folder: Path, computed: re.Pattern) -> dict[str, StoredTensor]:
    """Every tensor of a folder by name, read off the headers alone; without buffers, whose names `computed` matches.

    Raises InputError: no safetensors file, an index that is none or leads out of the folder, a damaged file, a tensor
    that the index places elsewhere or nowhere, dtypes that are not of weights.
    """
    index = folder / INDEX
    if not index.exists():
        return _tensors_in(_single_file(folder), computed)
    file_of = {name: file for name, file in _weight_map(index).items() if not computed.fullmatch(name)}
    tensors: dict[str, StoredTensor] = {}
    for file in [inside(folder, name) for name in dict.fromkeys(file_of.values())]:
        for name, tensor in _tensors_in(file, computed).items():
            if file_of.get(name) != file.name:
                place = f"in {file_of[name]!r}" if name in file_of else "nowhere"
                raise InputError(f"tensor {name!r} must be where {INDEX} has it, {place}, got {file}")
            tensors[name] = tensor
    if missing := [name for name in file_of if name not in tensors]:
        raise InputError(f"{folder / file_of[missing[0]]} has no tensor {missing[0]!r}, which {INDEX} has there")
    return tensors


def _single_file(folder: Path) -> Path:
    """The one file of a folder without an index."""
    if (folder / SINGLE).exists() or (folder / SINGLE).is_symlink():
        return inside(folder, SINGLE)
    if found := sorted(path.name for path in folder.glob("*.safetensors")):
        raise InputError(f"weights in {folder} must be {SINGLE}, or shards with {INDEX}, got {found[0]} without it")
    if pickled := sorted(path.name for kind in PICKLED for path in folder.glob(kind)):
        raise InputError(
            f"weights in {folder} must be safetensors (save_pretrained with safe_serialization=True writes them), got "
            f"pickled weights only ({pickled[0]}), and unpickling runs what is in the file"
        )
    raise InputError(f"{folder} has no weights, neither {SINGLE} nor shards with {INDEX}")


def _weight_map(index: Path) -> dict[str, str]:
    """The name of the file that the index places every tensor in."""
    file_of = read_object(inside(index.parent, index.name)).get("weight_map")
    if not isinstance(file_of, dict) or not file_of:
        raise InputError(f"{index} has no 'weight_map' from tensors to files")
    if bad := [file for file in file_of.values() if not isinstance(file, str) or not file.endswith(".safetensors")]:
        raise must_be(f"files that {index} names", "names that end in .safetensors", bad[0])
    return file_of


def _tensors_in(path: Path, computed: re.Pattern) -> dict[str, StoredTensor]:
    """The weights of one file, whose header the library checks: they fill the file without gap or overlap."""
    try:
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > min(MAX_HEADER, path.stat().st_size):
            raise InputError(f"{path} is damaged: its header must have at most {MAX_HEADER:,} bytes, got {header:,}")
        with safe_open(path, framework="np") as file:
            names = [name for name in file.keys() if not computed.fullmatch(name)]  # noqa: SIM118
            slices = {name: file.get_slice(name) for name in names}
            found = {name: (stored.get_dtype(), tuple(stored.get_shape())) for name, stored in slices.items()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from None
    if bad := [(name, dtype) for name, (dtype, _) in found.items() if dtype not in DTYPES]:
        raise InputError(f"{path}: tensor {bad[0][0]!r} must be weights in {', '.join(DTYPES)}, got {bad[0][1]}")
    return {name: StoredTensor(name, path, DTYPES[dtype], shape) for name, (dtype, shape) in found.items()}


# --- Writing ---


@dataclasses.dataclass(frozen=True)
class NewTensor:
    """A tensor that is to be written, before its values are there."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its size in a file."""
        return math.prod(self.shape) * self.dtype.itemsize


PieceFn = Callable[[], np.ndarray]  # makes some values of a tensor, in its dtype
Pieces = Callable[[NewTensor], Iterable[PieceFn]]  # whose bytes, one after another, are the tensor's
Progress = Callable[[int], Any]  # gets the number of bytes that were read or written since the last call


def write_tensors(
    folder: Path, tensors: Sequence[NewTensor], pieces: Pieces, progress: Progress, shard: int = SHARD_BYTES
) -> None:
    """Write tensors into a folder, as one file or as shards with their index.

    Args:
      folder: where; nothing of these names is there yet.
      tensors: in the order in which they are asked for.
      pieces: of a tensor. They are made in threads, a few ahead of the file.
      progress: called after every piece.
      shard: bytes of a file at most, unless one tensor alone has more.
    """
    shards = _shards(tensors, shard)
    names = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    names = [SINGLE] if len(shards) == 1 else names
    for name, members in zip(names, shards, strict=True):
        with named(folder / name), (folder / name).open("xb") as file:
            _write_file(file, members, pieces, progress)
    if len(shards) > 1:
        file_of = {tensor.name: name for name, members in zip(names, shards, strict=True) for tensor in members}
        total = sum(tensor.nbytes for tensor in tensors)
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": file_of})


def _shards(tensors: Sequence[NewTensor], limit: int) -> list[list[NewTensor]]:
    """The tensors in order, as many to a file as fit."""
    shards: list[list[NewTensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(other.nbytes for other in shards[-1]) + tensor.nbytes > limit:
            shards.append([])
        shards[-1].append(tensor)
    return shards


def _write_file(file: BinaryIO, tensors: Sequence[NewTensor], pieces: Pieces, progress: Progress) -> None:
    # Wide types first: then each tensor begins at a multiple of its own width, as readers that map the file need.
    tensors = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)
    file.write(_header(tensors))
    written = dict.fromkeys((tensor.name for tensor in tensors), 0)
    for tensor, values in _ahead((new, make) for new in tensors for make in pieces(new)):
        assert values.dtype == tensor.dtype
        file.write(np.ascontiguousarray(values).view(np.uint8).data if values.size else b"")
        written[tensor.name] += values.nbytes
        progress(values.nbytes)
    assert written == {tensor.name: tensor.nbytes for tensor in tensors}


def _ahead(pieces: Iterable[tuple[NewTensor, PieceFn]]) -> Iterator[tuple[NewTensor, np.ndarray]]:
    """The values in order, while threads make those of the next few pieces (NumPy releases the GIL)."""
    waiting: deque[tuple[NewTensor, Future]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for tensor, make in pieces:
            waiting.append((tensor, pool.submit(make)))
            if len(waiting) > THREADS:
                tensor, values = waiting.popleft()
                yield tensor, values.result()
        for tensor, values in waiting:
            yield tensor, values.result()


def _header(tensors: Sequence[NewTensor]) -> bytes:
    end, entries = 0, {}
    for tensor in tensors:
        begin, end = end, end + tensor.nbytes
        dtype = NAME_OF_DTYPE[tensor.dtype]
        entries[tensor.name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps({"__metadata__": {"format": "pt"}} | entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
