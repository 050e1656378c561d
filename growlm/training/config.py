"""From an experiment file and the command line to validated settings; one line for whatever is wrong in them."""

import ast
import dataclasses
import importlib.util
import traceback
import typing
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

from ml_collections import ConfigDict

from growlm.errors import InputError, unknown
from growlm.models import ARCHITECTURES, DecoderConfig
from growlm.models import plain as plain_model
from growlm.training.settings import RunConfig, SweepConfig


def load_config(spec: str, overrides: list[str]) -> dict[str, Any]:
    """The plain settings of `FILE.py[:variant]` or the package's `growlm:NAME[:variant]`, with overrides on top.

    The file defines get_config() or get_config(variant) and returns an ml_collections.ConfigDict. Raises InputError:
    a file that is not there, fails or has no get_config, an override that is no key=value.
    """
    if spec.startswith("growlm:"):  # growlm/experiments is a link to experiments/, and in a wheel a copy
        _, name, *variants = spec.split(":")
        folder = Path(__file__).parents[1] / "experiments"
        if name not in (names := [file.stem for file in folder.glob("*.py")]):
            raise unknown("experiment of the package", name, names)
        spec = ":".join([f"{folder / name}.py", *variants])
    name, _, variant = spec.partition(":")
    path = Path(name)
    if path.suffix != ".py" or not path.is_file():
        raise InputError(
            f"config {name!r}: no such file; allowed is an experiment file such as experiments/quickstart.py"
        )
    try:
        config = _run_file(path, variant)
    except InputError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path.absolute())]
        at = f" in line {lines[-1]}" if lines else ""
        message = " ".join(str(error).split())
        raise InputError(f"config {spec!r} fails{at}: {type(error).__name__}: {message}") from error
    if not isinstance(config, ConfigDict | dict):
        raise InputError(f"config {spec!r}: get_config() returns {config!r}; allowed is a ConfigDict")
    settings = _unshared(config)
    keys = [override.partition("=")[0] for override in overrides]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise InputError(f"--config.{twice[0]} is given twice: allowed is once")
    for override in overrides:
        _override(settings, override)
    return settings


def _run_file(path: Path, variant: str) -> Any:
    """What get_config() of an experiment file returns."""
    module_spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise InputError(f"config {str(path)!r} defines no get_config()")
    return module.get_config(variant) if variant else module.get_config()


def _unshared(value: Any) -> Any:
    """A plain copy in which nothing is held twice: two stages may share a dict, and an override is for one of them."""
    if isinstance(value, ConfigDict):
        value = value.to_dict()
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list | tuple) else value


def _override(settings: dict[str, Any], text: str) -> None:
    """Applies `stages[1].schedule.peak=3e-4`. Names are checked later, all in one place, when dataclasses are built."""
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise InputError(f"override '--config.{text}': allowed is --config.key=value")
    keys = path.replace("[", ".").replace("]", "").split(".")
    node: Any = settings
    for depth, key in enumerate(keys):
        if isinstance(node, list):
            if not key.isdecimal() or int(key) >= len(node):
                raise InputError(f"--config.{path}: {key!r} is no index; allowed are 0 to {len(node) - 1}")
            key = int(key)
        elif not isinstance(node, dict):
            raise InputError(f"--config.{path}: {'.'.join(keys[:depth])} is the value {node!r}, it has no {key!r}")
        elif keys[:depth] == ["runs"] and key not in node:
            raise unknown("run", key, node, where=f"--config.{path}")
        if depth == len(keys) - 1:
            node[key] = literal(value)
        else:
            node = node[key] if isinstance(node, list) else node.setdefault(key, {})


def literal(text: str) -> Any:
    """The Python literal that a text spells; where it spells none, the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def build_run(settings: dict[str, Any]) -> RunConfig:
    """A validated run. Raises InputError."""
    if "runs" in settings:
        raise InputError("this --config has 'runs', it is a sweep: use growlm sweep")
    return _build(RunConfig, settings, "config")


def build_model(settings: dict[str, Any], where: str = "model") -> DecoderConfig:
    """A validated shape, of the architecture that it names; Llama's where it names none. Raises InputError."""
    if not isinstance(settings, dict):
        raise InputError(f"{where} must be the keys of a model's config, got {settings!r}")
    name = settings.get("architecture", "llama")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise unknown("architecture", name, ARCHITECTURES, where=where)
    rest = {key: value for key, value in settings.items() if key != "architecture"}
    return _build(ARCHITECTURES[name].config, rest, where)


def plain(config: Any) -> Any:
    """A run's or a sweep's config as plain JSON, from which it can be built again."""
    if isinstance(config, DecoderConfig):
        return plain_model(config)
    if dataclasses.is_dataclass(config):
        return {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, dict):
        return {key: plain(value) for key, value in config.items()}
    return [plain(value) for value in config] if isinstance(config, list | tuple) else config


def without_defaults(config: Any) -> Any:
    """The same without fields that are at their default: what a setting that is not used does not change."""
    if isinstance(config, DecoderConfig):
        return {"architecture": config.architecture.name} | _changed(config)
    return _changed(config) if dataclasses.is_dataclass(config) else plain(config)


def _changed(config: Any) -> dict[str, Any]:
    own = {field.name: (getattr(config, field.name), field) for field in dataclasses.fields(config)}
    return {name: without_defaults(value) for name, (value, field) in own.items() if value != _default(field)}


def _default(field: dataclasses.Field) -> Any:
    made = field.default_factory is not dataclasses.MISSING
    return field.default_factory() if made else field.default


def build_sweep(settings: dict[str, Any]) -> SweepConfig:
    """A validated sweep: what every run says for itself lies over what the config says for all. Raises InputError."""
    if "runs" not in settings:
        raise InputError("this config is one run: use growlm train, or give it 'runs'")
    own, of_runs = ({field.name for field in dataclasses.fields(cls)} for cls in (SweepConfig, RunConfig))
    if extra := [key for key in settings if key not in own | of_runs]:
        raise unknown("config key", extra[0], own | of_runs, where="config")
    if not isinstance(settings["runs"], dict):
        raise InputError(f"config.runs must be runs by name, got {settings['runs']!r}")
    for name, run in settings["runs"].items():
        if not isinstance(run, dict):
            raise InputError(f"config.runs.{name} must be the keys of RunConfig, got {run!r}")
    common = {key: value for key, value in settings.items() if key not in own}
    own_values = settings["runs"].values()
    if dead := [key for key in common if own_values and all(key in run for run in own_values)]:
        raise InputError(f"config.{dead[0]} is set for all runs, and each has its own: set config.runs.NAME.{dead[0]}")
    runs = {name: _build(RunConfig, common | run, f"runs.{name}") for name, run in settings["runs"].items()}
    return _build(SweepConfig, {key: settings[key] for key in settings if key in own} | {"runs": runs}, "config")


def _build(cls: type, settings: Any, where: str) -> Any:
    """A dataclass from a mapping, recursively by its annotations."""
    if isinstance(settings, cls):
        return settings
    if cls is DecoderConfig:
        return build_model(settings, where)
    if not isinstance(settings, dict):
        raise InputError(f"{where} must be the keys of {cls.__name__}, got {settings!r}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if extra := [key for key in settings if key not in fields]:
        raise unknown("config key", extra[0], fields, where=where)
    required = [name for name, field in fields.items() if _required(field)]
    if missing := [name for name in required if name not in settings]:
        raise InputError(f"{where} has no {missing[0]!r}: it needs {', '.join(required)}")
    hints = typing.get_type_hints(cls)
    values = {key: _convert(hints[key], _parts(fields[key], settings[key]), f"{where}.{key}") for key in settings}
    try:
        return cls(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _parts(field: dataclasses.Field, value: Any) -> Any:
    """The value; the parts of a text where the field says what is between them, as in names that are typed."""
    separator = field.metadata.get("separator")
    return [part for part in value.split(separator) if part] if separator and isinstance(value, str) else value


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, where: str) -> Any:
    """The value in its declared type; 1e6 is an integer where one is asked for."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is UnionType:
        return None if value is None else _convert(next(a for a in arguments if a is not NoneType), value, where)
    if dataclasses.is_dataclass(hint) or hint is DecoderConfig:
        return _build(hint, value, where)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return (
            value if arguments[1] is Any else {k: _convert(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
        )
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool) == isinstance(value, bool):
        return value
    raise InputError(f"{where} must be {getattr(origin or hint, '__name__', hint)}, got {value!r}")
