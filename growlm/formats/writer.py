"""Safetensors files, written piece by piece: no tensor has to be in memory whole.

A file is the length of its header (8 bytes), the header (JSON: dtype, shape and place of every tensor), then the bytes
of the tensors, one after another (github.com/huggingface/safetensors). The library writes what is in memory whole.
"""

import dataclasses
import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from growlm.files import write_json
from growlm.formats.safetensors_files import INDEX, NAME_OF_DTYPE, SINGLE

SHARD_BYTES = 5 * 10**9
THREADS = min(4, os.cpu_count() or 1)


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


Make = Callable[[], np.ndarray]
Pieces = Callable[[NewTensor], Iterable[Make]]
Step = Callable[[int], Any]


def write_tensors(folder: Path, tensors: Sequence[NewTensor], pieces: Pieces, step: Step, shard: int = SHARD_BYTES):
    """Writes all tensors into a folder, as one file or as shards with their index.

    Args:
      folder: where; nothing of these names is there yet.
      tensors: in the order in which they are asked for.
      pieces: what makes the values of a tensor: arrays of its dtype, whose bytes one after another are the tensor's.
        They are made in threads, a few ahead of the file.
      step: is told of so many bytes more, after every piece.
      shard: so many bytes a file has at most, unless one tensor alone has more.
    """
    shards = _shards(tensors, shard)
    names = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    names = [SINGLE] if len(shards) == 1 else names
    for name, members in zip(names, shards, strict=True):
        with (folder / name).open("xb") as file:
            _write_file(file, members, pieces, step)
    if len(shards) > 1:
        placed = {tensor.name: name for name, members in zip(names, shards, strict=True) for tensor in members}
        total = sum(tensor.nbytes for tensor in tensors)
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": placed})


def _shards(tensors: Sequence[NewTensor], most: int) -> list[list[NewTensor]]:
    """The tensors in order, as many to a file as fit."""
    shards: list[list[NewTensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(other.nbytes for other in shards[-1]) + tensor.nbytes > most:
            shards.append([])
        shards[-1].append(tensor)
    return shards


def _write_file(file: BinaryIO, tensors: Sequence[NewTensor], pieces: Pieces, step: Step) -> None:
    # Wide types first: then each tensor begins at a multiple of its own width, as readers that map the file need.
    tensors = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)
    file.write(_header(tensors))
    written = dict.fromkeys((tensor.name for tensor in tensors), 0)
    for of, piece in _ahead((tensor, make) for tensor in tensors for make in pieces(tensor)):
        assert piece.dtype == of.dtype
        file.write(np.ascontiguousarray(piece).view(np.uint8).data if piece.size else b"")
        written[of.name] += piece.nbytes
        step(piece.nbytes)
    assert written == {tensor.name: tensor.nbytes for tensor in tensors}


def _ahead(made: Iterable[tuple[NewTensor, Make]]) -> Iterator[tuple[NewTensor, np.ndarray]]:
    """The pieces in order, the next ones in threads meanwhile: NumPy lets go of the interpreter while it works."""
    waiting: deque[tuple[NewTensor, Future]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for tensor, make in made:
            waiting.append((tensor, pool.submit(make)))
            if len(waiting) > THREADS:
                tensor, piece = waiting.popleft()
                yield tensor, piece.result()
        for tensor, piece in waiting:
            yield tensor, piece.result()


def _header(tensors: Sequence[NewTensor]) -> bytes:
    end, entries = 0, {}
    for tensor in tensors:
        begin, end = end, end + tensor.nbytes
        dtype = NAME_OF_DTYPE[tensor.dtype]
        entries[tensor.name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps({"__metadata__": {"format": "pt"}} | entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
