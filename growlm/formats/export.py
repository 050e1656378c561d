"""Models written as Hugging Face folders."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from growlm.buckets import location
from growlm.checked import write_checksums
from growlm.errors import InputError, unknown
from growlm.files import check_output, check_space, read_json, whole_folder, write_json
from growlm.formats.folder import CONFIG, open_folder
from growlm.formats.layout import family_of, places, settings_of, stored_shape, to_stored
from growlm.formats.safetensors import DTYPES, SHARD_BYTES, NewTensor, PieceFn, Pieces, write_tensors
from growlm.models import DecoderConfig, Params, check_params

PIECE_BYTES = 2**24  # of a tensor that are reordered and written at once
OTHER_BYTES = 2**20  # for what is written beside the weights
# What asks a reader to run code of the source's folder, which is neither copied nor of the model that is written.
CODE = ("auto_map", "trust_remote_code", "custom_pipelines")
LENGTH = 2048  # max_position_embeddings where nothing is known of it

WriteMore = Callable[[Path], None]  # writes further files into a folder that is not in its place yet


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
    beside: WriteMore = lambda part: None,
) -> None:
    """Write a model as a Hugging Face folder, whole or not at all.

    Args:
      folder: a new or empty folder.
      config, params: the model; params as `growlm.init` gives them, NumPy or JAX arrays.
      dtype: what is stored, "float32", "bfloat16" or "float16".
      dtypes: of single tensors, by the names that Hugging Face has for them, where they differ; all are named so.
      settings: a config.json of which all is kept but the shape; without it one is made.
      carried: files that are copied along, such as a tokenizer's.
      shard: bytes of a file at most.
      beside: writes what else there should be into the folder, before it is in its place.

    Raises:
      InputError: params that are not the model's, a model that no family has, a dtype of another kind, a folder that
        is not empty, a disk without room.
    """
    folder = location(folder)
    check_output(folder)
    check_params(config, params)
    settings = settings_of(config, settings or {"torch_dtype": dtype, "max_position_embeddings": LENGTH})
    family = family_of(settings).named_as(dtypes or {})
    by_name = {place.name: place for place in places(family, config)}
    dtype_of = {name: _dtype((dtypes or {}).get(name, dtype)) for name in by_name}
    tensors = [NewTensor(name, dtype_of[name], stored_shape(place, config)) for name, place in by_name.items()]

    def pieces(tensor: NewTensor) -> Iterator[PieceFn]:
        place = by_name[tensor.name]
        value = to_stored(place, [np.asarray(_leaf(params, weight.path)[place.unit]) for weight in place.weights])
        rows = max(1, PIECE_BYTES // max(value[:1].nbytes, 1))
        yield from (partial(value[row : row + rows].astype, tensor.dtype) for row in range(0, len(value), rows))

    write_folder(folder, config, settings, tensors=tensors, pieces=pieces, carried=carried, shard=shard, beside=beside)


def write_folder(
    folder: Path,
    config: DecoderConfig,
    settings: dict[str, Any],
    *,
    tensors: Sequence[NewTensor],
    pieces: Pieces,
    carried: Sequence[Path] = (),
    shard: int = SHARD_BYTES,
    beside: WriteMore = lambda part: None,
) -> None:
    """Write weights, config.json and further files; the folder is opened and checked before it is in its place.

    Args are those of `write_tensors` and `write_model`. Raises InputError: a disk without room, settings of another
    model.
    """
    total = sum(tensor.nbytes for tensor in tensors)
    check_space(folder, total + OTHER_BYTES + sum(path.stat().st_size for path in carried))
    with whole_folder(folder) as part, progress_bar("writing", total) as bar:
        write_tensors(part, tensors, pieces, bar.update, shard)
        write_json(part / CONFIG, _without_code(settings))
        for path in carried:
            _carry(path, part / path.name)
        beside(part)
        if (written := open_folder(part).model) != config:
            raise InputError(f"the model that {CONFIG} describes must be {config}, got {written}")
        write_checksums(part)


def _carry(path: Path, target: Path) -> None:
    """Copy a file; settings that name code are written without that."""
    settings = read_json(path, path.name) if path.name.endswith(CONFIG) else None
    if (kept := _without_code(settings)) != settings:
        write_json(target, kept)
    else:
        shutil.copyfile(path, target)


def _without_code(value: Any) -> Any:
    """JSON without what names code, at any depth."""
    if isinstance(value, dict):
        return {key: _without_code(item) for key, item in value.items() if key not in CODE}
    return [*map(_without_code, value)] if isinstance(value, list) else value


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
