"""Models written as Hugging Face folders."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from growlm.errors import InputError, unknown
from growlm.files import check_output, check_space, whole_folder, write_json
from growlm.formats.families import family_of, settings_of
from growlm.formats.folder import CONFIG, open_folder
from growlm.formats.layout import places, stored_shape, to_stored
from growlm.formats.safetensors_files import DTYPES
from growlm.formats.writer import SHARD_BYTES, Make, NewTensor, write_tensors
from growlm.models import DecoderConfig, Params, check_params

PIECE = 2**24  # bytes of a tensor that are turned and written at once
BESIDE = 2**20  # for what is written beside the weights
LENGTH = 2048  # max_position_embeddings where nothing is known of it

Beside = Callable[[Path], None]


def write_model(
    folder: Path | str,
    config: DecoderConfig,
    params: Params,
    *,
    dtype: str = "float32",
    dtypes: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
    carried: Sequence[Path] = (),
    shard: int = SHARD_BYTES,
    beside: Beside = lambda part: None,
) -> None:
    """Writes a model as a Hugging Face folder, whole or not at all.

    Args:
      folder: a new or empty folder.
      config, params: the model; params as `growlm.init` gives them, NumPy or JAX arrays.
      dtype: what is stored, "float32", "bfloat16" or "float16".
      dtypes: of single tensors, by the names that Hugging Face has for them, where they differ.
      settings: a config.json of which all is kept but the shape; without it one is made.
      carried: files that are copied along, such as a tokenizer's.
      shard: bytes of a file at most.
      beside: writes what else there should be into the folder, before it is in its place.

    Raises:
      InputError: params that are not the model's, a model that no family has, a dtype of another kind, a folder that
        is not empty, a disk without room.
    """
    folder = Path(folder)
    check_output(folder)
    check_params(config, params)
    said = settings_of(config, settings or {"torch_dtype": dtype, "max_position_embeddings": LENGTH})
    held = {place.name: place for place in places(family_of(said), config)}
    kinds = {name: _dtype((dtypes or {}).get(name, dtype)) for name in held}
    new = [NewTensor(name, kinds[name], stored_shape(place, config)) for name, place in held.items()]

    def pieces(tensor: NewTensor) -> Iterator[Make]:
        place = held[tensor.name]
        value = to_stored(place, [np.asarray(_leaf(params, weight.path)[place.unit]) for weight in place.weights])
        rows = max(1, PIECE // max(value[:1].nbytes, 1))
        yield from (partial(value[row : row + rows].astype, tensor.dtype) for row in range(0, len(value), rows))

    write_folder(folder, config, said, new, pieces, carried, shard, beside)


def write_folder(folder, config, settings, tensors, pieces, carried, shard, beside=lambda part: None) -> None:
    """Weights as `write_tensors` takes them, with config.json and what is carried along; checked, and only then there.

    beside(part) writes what else there should be. Raises InputError: a disk without room, settings of another model.
    """
    total = sum(tensor.nbytes for tensor in tensors)
    check_space(folder, total + BESIDE + sum(path.stat().st_size for path in carried))
    with whole_folder(folder) as part, progress_bar("writing", total) as bar:
        write_tensors(part, tensors, pieces, bar.update, shard)
        write_json(part / CONFIG, settings)
        for path in carried:
            shutil.copyfile(path, part / path.name)
        beside(part)
        if (found := open_folder(part).model) != config:
            raise InputError(f"the settings are those of another model, {found}: allowed are those of {config}")


def progress_bar(what: str, nbytes: int) -> tqdm:
    """A bar of bytes on stderr."""
    return tqdm(desc=what, total=nbytes, unit="B", unit_scale=True, dynamic_ncols=True)


def _dtype(name: str) -> np.dtype:
    known = {dtype.name: dtype for dtype in DTYPES.values()}
    if name not in known:
        raise unknown("dtype", name, known)
    return known[name]


def _leaf(params: Params, path: str) -> Any:
    for name in path.split("/"):
        params = params[name]
    return params
