"""Deprecated, until 0.3: `growlm.read_model` and its neighbours stand in `growlm` itself."""

import importlib
import warnings
from typing import Any

_MOVED = {
    "convert_folder": "growlm.commands.convert",
    "describe": "growlm.commands.convert",
    "read_config": "growlm.training.saved",
    "read_model": "growlm.training.saved",
    "write_model": "growlm.formats.export",
}


def __getattr__(name: str) -> Any:
    """What was here, from where it is now."""
    if name not in _MOVED:
        raise AttributeError(f"module 'growlm.interop' has no attribute {name!r}")
    warnings.warn(f"growlm.interop.{name} is now in {_MOVED[name]}", DeprecationWarning, stacklevel=2)
    return getattr(importlib.import_module(_MOVED[name]), name)
