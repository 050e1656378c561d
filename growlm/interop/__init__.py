"""Checkpoints of others: Hugging Face folders of the Llama family in, and out again."""

import importlib
from pathlib import Path
from typing import Any

from growlm.interop.folder import is_hugging_face, open_folder, read_params
from growlm.models import DecoderConfig, Params

__all__ = ["convert_folder", "describe", "read_config", "read_model", "write_model"]

_HOME = {
    "convert_folder": "growlm.interop.convert",
    "describe": "growlm.interop.convert",
    "write_model": "growlm.interop.export",
}


def __getattr__(name: str) -> Any:
    """What needs all of training is loaded when it is first used."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'growlm.interop' has no attribute {name!r}")


def read_config(folder: Path | str) -> DecoderConfig:
    """The shape of a saved model, as for a stage with `init_from`; no weight is read. Else as `read_model`."""
    folder = Path(folder)
    if is_hugging_face(folder):
        return open_folder(folder).model
    from growlm.training.saved import find_saved

    return find_saved(folder).model


def read_model(folder: Path | str) -> tuple[DecoderConfig, Params]:
    """The shape and the parameters of a saved model.

    Args:
      folder: a Hugging Face checkpoint in safetensors, of a model_type in `growlm.interop.families.families()`, or a
        folder of `growlm train` or `growlm grow` (of which the last checkpoint is read).

    Returns:
      (config, params): params as `growlm.init` gives them, float32, NumPy arrays or JAX arrays; they hold the stored
      values exactly.

    Raises:
      InputError: a folder of another kind, another family, weights that are damaged, missing or not what config.json
        says, a run whose masks are not open yet.
    """
    folder = Path(folder)
    if is_hugging_face(folder):
        source = open_folder(folder)
        return source.model, read_params(source)
    from growlm.training.saved import check_open, find_saved, read_state

    saved = find_saved(folder)
    check_open(saved)
    return saved.model, read_state(saved).params
