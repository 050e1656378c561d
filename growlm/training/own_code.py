"""Code that is not growlm's own, as a stage's hash knows it: what is edited makes another stage.

Functions are known by their source, and not by that of what they call; growlm's and the libraries' by their names.
"""

import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any

from growlm.growth import function_of
from growlm.models import Architecture
from growlm.training.optimizer import OPTIMIZERS
from growlm.training.schedules import SCHEDULES
from growlm.training.settings import StageConfig

LIBRARIES = ("growlm", "jax", "flax", "optax", "numpy")
ASIDE = ("families", "example")  # of an architecture: they change no training


def own_code(config: StageConfig) -> dict[str, str]:
    """Hashes of a stage's objective, optimizer, schedule and architecture, without those that are growlm's."""
    found = {
        "objective": code_of(config.objective.row.weights),
        "optimizer": code_of(OPTIMIZERS[config.optimizer.kind]),
        "schedule": code_of(SCHEDULES[config.schedule.kind]),
        "model": _declaration(config.model.architecture),
    }
    return {name: code for name, code in found.items() if code is not None}


def source_of(operator: str) -> str | None:
    """A hash of the code of an operator that is not growlm's own; None for growlm's."""
    return code_of(function_of(operator))


def code_of(function: Callable | None) -> str | None:
    """A hash of the code of a function that is not growlm's own, with what a partial binds; None for growlm's."""
    if function is None or _is_known(function):
        return None
    return _hashed(_text(function))


def _declaration(architecture: Architecture) -> str | None:
    """A hash of the declaration of an architecture, with the code of its modules; None for growlm's."""
    if _is_known(architecture.config):
        return None
    return _hashed(_text({name: one for name, one in _given(architecture).items() if name not in ASIDE}))


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _is_known(function: Any) -> bool:
    """Whether a function or a class is growlm's or a library's; a partial is of whoever made it."""
    partial = isinstance(function, functools.partial)
    return not partial and (getattr(function, "__module__", None) or "").partition(".")[0] in LIBRARIES


def _text(value: Any) -> str:
    """What a value is, the same in every process; of a declaration what is not at its default."""
    if isinstance(value, functools.partial):
        return f"partial {_text(value.func)} {_text(value.args)} {_text(value.keywords)}"
    if inspect.isclass(value):
        return _name(value) if _is_known(value) else _class_text(value)
    if callable(value):
        return _name(value) if _is_known(value) else _source(value)
    if dataclasses.is_dataclass(value):
        return _text(_given(value))
    if isinstance(value, Mapping):
        return " ".join(f"{key} {_text(item)}" for key, item in value.items())
    return " ".join(map(_text, value)) if isinstance(value, tuple | list) else repr(value)


def _given(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not at their default: one that growlm gets later changes nothing."""
    given = {}
    for field in dataclasses.fields(value):
        made = field.default_factory is not dataclasses.MISSING
        if (one := getattr(value, field.name)) != (field.default_factory() if made else field.default):
            given[field.name] = one
    return given


def _name(value: Any) -> str:
    return f"{value.__module__}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def _class_text(cls: type) -> str:
    """What is written in a class and in those that it inherits from: functions, and fields with a plain default."""
    held = {name: one for each in reversed(cls.__mro__[:-1]) if not _is_known(each) for name, one in vars(each).items()}
    written = [_source(one) for one in held.values() if inspect.isfunction(one) and _has_source(one)]
    plain = {name: one for name, one in held.items() if name[:1] != "_" and isinstance(one, bool | int | float | str)}
    return " ".join([*written, _text(plain)])


def _has_source(function: Callable) -> bool:
    """Whether it stands in a file: those that dataclasses make do not."""
    try:
        inspect.getsource(function)
    except (OSError, TypeError):
        return False
    return True


def _source(function: Any) -> str:
    written = function if inspect.isfunction(function) else type(function).__call__
    if _has_source(written):
        return inspect.getsource(written)
    code = getattr(written, "__code__", None)  # of what was typed into a prompt
    return _name(function) if code is None else _code_text(code)


def _code_text(code: CodeType) -> str:
    constants = [_code_text(one) if isinstance(one, CodeType) else repr(one) for one in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"
