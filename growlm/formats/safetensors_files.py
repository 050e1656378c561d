"""Safetensors files, read tensor by tensor: where every tensor lies, what it is, and nothing that leads elsewhere."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from growlm.errors import InputError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")

# The library refuses longer headers too, but only after it has taken the file's word for their length.
MAX_HEADER = 100 * 2**20
MAX_JSON = 100 * 2**20

# The names that safetensors has for the types of weights.
DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}
NAME_OF_DTYPE = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file that was checked, not read yet. It is read, not mapped: what is mapped counts as memory."""

    name: str
    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int  # in the file
    file_size: int

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, rows: slice = slice(None)) -> np.ndarray:
        """These rows, in the stored dtype; no steps. Raises InputError where the file is no longer what it was."""
        first, last, _ = rows.indices(self.shape[0])
        shape = (max(last - first, 0), *self.shape[1:])
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        values = np.empty(shape, self.dtype)
        try:
            with self.file.open("rb", buffering=0) as file:
                file.seek(self.begin + first * row)
                whole = file.readinto(values.reshape(-1).view(np.uint8)) == values.nbytes
                whole = whole and os.fstat(file.fileno()).st_size == self.file_size
        except OSError as error:
            raise InputError(f"{self.file} cannot be read: {error.strerror}") from None
        if not whole:
            raise InputError(f"{self.file} is damaged: it has changed while it was read")
        return values


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a folder by name, read off the headers alone.

    Raises InputError: no safetensors file, an index that is none or leads out of the folder, a damaged file, a tensor
    that the index places elsewhere or nowhere, dtypes that are not of weights.
    """
    index = folder / INDEX
    if not index.exists():
        return _tensors_of(_single(folder))
    placed = _placed(index)
    files = [inside(folder, name) for name in dict.fromkeys(placed.values())]
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in _tensors_of(file).items():
            if placed.get(name) != file.name:
                said = f"in {placed[name]!r}" if name in placed else "nowhere"
                raise InputError(f"{file} holds tensor {name!r}, and the index has it {said}: allowed is where it is")
            tensors[name] = tensor
    if missing := [name for name in placed if name not in tensors]:
        raise InputError(f"{folder / placed[missing[0]]} has no tensor {missing[0]!r}, which the index has there")
    return tensors


def inside(folder: Path, name: str) -> Path:
    """The regular file of that name in a folder; a link is one in a snapshot of the hub's cache, to the cache's blobs.

    Raises InputError: any other name or link, or nothing there.
    """
    if not name or Path(name).name != name or "\\" in name or "\0" in name:
        raise InputError(f"{folder} names the file {name!r}: allowed are names of files in the folder itself")
    path = folder / name
    home = folder.resolve()
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError):
        raise InputError(f"{path} is not there: allowed is a whole folder") from None
    if real.parent not in homes:
        raise InputError(f"{path} leads out of its folder, to {real}: allowed are files in the folder itself")
    if not real.is_file():
        raise InputError(f"{path} is no regular file: allowed are files")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object. Raises InputError."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise InputError(f"{path} has {path.stat().st_size:,} bytes: allowed are {MAX_JSON:,}")
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise InputError(f"{path} is not JSON: allowed is a JSON object") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a {type(value).__name__}: allowed is a JSON object")
    return value


def _single(folder: Path) -> Path:
    """The one file of a folder without an index."""
    if (folder / SINGLE).exists() or (folder / SINGLE).is_symlink():
        return inside(folder, SINGLE)
    if found := sorted(path.name for path in folder.glob("*.safetensors")):
        raise InputError(f"{folder} has {found[0]} and no {INDEX}: allowed is {SINGLE}, or shards with their index")
    if pickled := sorted(path.name for kind in PICKLED for path in folder.glob(kind)):
        raise InputError(
            f"{folder} has pickled weights only ({pickled[0]}), and unpickling runs what is in the file: allowed is "
            "safetensors (save_pretrained writes it, safe_serialization=True)"
        )
    raise InputError(f"{folder} has no weights: allowed is {SINGLE}, or shards with {INDEX}")


def _placed(index: Path) -> dict[str, str]:
    """Which file the index places every tensor in."""
    placed = read_json(inside(index.parent, index.name)).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise InputError(f"{index} has no 'weight_map': allowed is one from tensors to files")
    if bad := [file for file in placed.values() if not isinstance(file, str) or not file.endswith(".safetensors")]:
        raise InputError(f"{index} names the file {bad[0]!r}: allowed are names that end in .safetensors")
    return placed


def _tensors_of(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file. The library checks it; where its tensors lie only the header says."""
    size, length = _header_length(path)
    _check(path)
    header = json.loads(_bytes(path, 8, length))
    header.pop("__metadata__", None)
    if bad := [(name, entry["dtype"]) for name, entry in header.items() if entry["dtype"] not in DTYPES]:
        name, dtype = bad[0]
        raise InputError(f"{path}: tensor {name!r} must be weights in {', '.join(DTYPES)}, got {dtype}")
    return {
        name: StoredTensor(
            name,
            path,
            DTYPES[entry["dtype"]],
            tuple(entry["shape"]),
            8 + length + entry["data_offsets"][0],
            size,
        )
        for name, entry in header.items()
    }


def _header_length(path: Path) -> tuple[int, int]:
    """The size of a file, and that of its header."""
    try:
        size, length = path.stat().st_size, int.from_bytes(_bytes(path, 0, 8), "little")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if size < 8 or length > min(size - 8, MAX_HEADER):
        raise InputError(f"{path} is damaged: {size:,} bytes, of which {length:,} would be its header")
    return size, length


def _bytes(path: Path, begin: int, count: int) -> bytes:
    with path.open("rb") as file:
        file.seek(begin)
        return file.read(count)


def _check(path: Path) -> None:
    """The library opens a file only where its header is one and its tensors fill it without gap or overlap."""
    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from None
