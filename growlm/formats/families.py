"""Families of Hugging Face models, as the architectures declare them: between config.json and a config of growlm."""

from typing import Any

from growlm.errors import InputError
from growlm.models import ARCHITECTURES, DecoderConfig
from growlm.models.stored import Family, Settings


def families() -> dict[str, Family]:
    """All families by model_type, those of architectures that were added to ARCHITECTURES too."""
    return {name: family for one in ARCHITECTURES.values() for name, family in one.families.items()}


# What of a config.json goes along where a model changes its family.
_CARRIED = ("bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings", "torch_dtype", "dtype")


def family_of(settings: Settings) -> Family:
    """The family of a config.json. Raises InputError where its model_type is of none."""
    name, known = settings.get("model_type"), families()
    if not isinstance(name, str) or name not in known:
        raise InputError(f"model_type {name!r} is not supported: allowed are {', '.join(known)}")
    return known[name]


def model_of(settings: Settings) -> DecoderConfig:
    """The shape that a config.json describes. Raises InputError: another family, or a variant that is not built."""
    return family_of(settings).read(settings)


def settings_of(model: DecoderConfig, settings: Settings) -> dict[str, Any]:
    """The config.json of a model: that of a smaller one with what growth changes; anew where none is given.

    Raises InputError where no family has what the model has.
    """
    if "model_type" in settings:
        family = family_of(settings)
        if family.model_type in model.architecture.families:
            return family.write(model, settings)
        settings = {key: settings[key] for key in _CARRIED if key in settings}
    return family_for(model).write(model, settings)


def family_for(model: DecoderConfig) -> Family:
    """The first family of the architecture that has what the model has. Raises InputError."""
    families = model.architecture.families
    if (family := next((one for one in families.values() if one.holds(model)), None)) is None:
        said = ", ".join(families) or "none"
        raise InputError(f"no family of {model.architecture.name} has all that this model has: there are {said}")
    return family
