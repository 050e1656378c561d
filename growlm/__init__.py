"""growlm: language models that grow while they train.

config = growlm.ModelConfig(layers=2, embed=64, heads=2, kv_heads=2, head_dim=32, mlp=176, vocab=256)
params = growlm.init(config, jax.random.key(0))
logits = growlm.apply(config, params, tokens)
grown = growlm.grow(params, config, dataclasses.replace(config, layers=8), order="stack")
"""

import importlib

TYPE_CHECKING = False  # typing's is true to a type checker too, and takes as long to load as a command its signals
if TYPE_CHECKING:
    from typing import Any

    from growlm import evaluation, formats, growth, laws, models
    from growlm.errors import InputError
    from growlm.formats.export import write_model
    from growlm.growth import grow
    from growlm.models import ModelConfig, apply, init
    from growlm.training.run import train
    from growlm.training.saved import read_config, read_model

__all__ = [
    "InputError",
    "ModelConfig",
    "apply",
    "evaluation",
    "formats",
    "grow",
    "growth",
    "init",
    "laws",
    "models",
    "read_config",
    "read_model",
    "train",
    "write_model",
]

_MODULE_OF = {
    "InputError": "growlm.errors",
    "ModelConfig": "growlm.models",
    "apply": "growlm.models",
    "grow": "growlm.growth",
    "init": "growlm.models",
    "read_config": "growlm.training.saved",
    "read_model": "growlm.training.saved",
    "train": "growlm.training.run",
    "write_model": "growlm.formats.export",
}


def __getattr__(name: str) -> "Any":
    """Loads public names when they are first used, so that `growlm --help` does not wait for JAX."""
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    if name in __all__ or name == "interop":  # deprecated, until 0.3
        return importlib.import_module(f"growlm.{name}")
    raise AttributeError(f"module 'growlm' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return __all__
