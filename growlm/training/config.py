"""From an experiment file and the command line to validated settings; one line for whatever is wrong in them."""

import ast
import dataclasses
import importlib.util
import re
import sys
import traceback
import typing
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

from ml_collections import ConfigDict

from growlm.buckets import here
from growlm.errors import InputError, must_be, unknown
from growlm.models import ARCHITECTURES, DecoderConfig
from growlm.models import plain as plain_model
from growlm.training.overrides import pairs
from growlm.training.settings import RunConfig, StageConfig

# Section of a config -> former name -> name, from the metadata of its fields. Former names are read for one version.
FORMER = {
    section.name: {
        field.metadata["formerly"]: field.name for field in dataclasses.fields(kind) if "formerly" in field.metadata
    }
    for cls in (RunConfig, StageConfig)
    for section in dataclasses.fields(cls)
    for kind in (section.type, *typing.get_args(section.type))
    if dataclasses.is_dataclass(kind)
}


def load_config(spec: str, overrides: list[str]) -> dict[str, Any]:
    """The plain settings of `FILE.py[:variant]` or the package's `growlm:NAME[:variant]`, with overrides on top.

    The file defines get_config() or get_config(variant) and returns an ml_collections.ConfigDict. Former names are
    read, with a line on stderr.

    Raises InputError: a file that is not there, fails or has no get_config, an override that is no key=value.
    """
    (path, variant), former = _experiment(spec), []
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
        raise must_be(f"config {spec!r}", "a file whose get_config() returns a ConfigDict", config)
    settings = renamed(config, former)
    for key, value in pairs("--config", overrides).items():
        set_value(settings, key, value, former, where=f"--config.{key}")
    for line in dict.fromkeys(former):
        print(f"growlm: config {spec!r}: {line}; the old name will not be read in the next version", file=sys.stderr)
    return settings


def experiment_text(spec: str) -> str | None:
    """The docstring of an experiment file, named as in `load_config`: what is asked, expected and found."""
    return ast.get_docstring(ast.parse(_experiment(spec)[0].read_bytes()))


def _experiment(spec: str) -> tuple[Path, str]:
    """The file of an experiment, and the variant. Raises InputError where there is none."""
    if spec.startswith("growlm:"):  # growlm/experiments is a link to experiments/, and in a wheel a copy
        _, name, *variants = spec.split(":")
        folder = Path(__file__).parents[1] / "experiments"
        if name not in (names := [file.stem for file in folder.glob("*.py")]):
            raise unknown("experiment of the package", name, names)
        spec = ":".join([f"{folder / name}.py", *variants])
    scheme, separator, place = spec.rpartition("://")  # of a bucket
    name, _, variant = place.partition(":")
    path = here(scheme + separator + name)
    if path.suffix != ".py" or not path.is_file():
        raise must_be("config", "an experiment file such as experiments/quickstart.py", name)
    return path, variant


def _run_file(path: Path, variant: str) -> Any:
    """What get_config() of an experiment file returns."""
    module_spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise InputError(f"config {str(path)!r} defines no get_config()")
    return module.get_config(variant) if variant else module.get_config()


def renamed(value: Any, former: list[str], section: str = "") -> Any:
    """Plain settings under their present names; what had a former one is added to `former`, in words.

    Nothing is held twice in them: two stages of a file may share a dict, and an override is for one of them.
    """
    if isinstance(value, ConfigDict):
        value = value.to_dict()
    if isinstance(value, list | tuple):
        return [renamed(item, former, section) for item in value]
    if not isinstance(value, dict):
        return value
    names = {key: present_name(section, key, former) for key in value}
    if twice := [key for key, name in names.items() if key != name and name in value]:
        raise InputError(f"{section}.{names[twice[0]]} must be given once, got {twice[0]!r}, its former name, too")
    return {names[key]: renamed(item, former, key) for key, item in value.items()}


def present_name(section: str, key: str, former: list[str]) -> str:
    """The present name of a key; a former one is added to `former`, in words."""
    name = FORMER.get(section, {}).get(key, key)
    if name != key:
        former.append(f"{section}.{key} is {section}.{name} now")
    return name


def set_value(settings: dict[str, Any], path: str, value: Any, former: list[str], where: str) -> None:
    """Set `stages[1].schedule.peak_lr` or another path; -1 is the last. `where`: what an error calls the place.

    Names are checked later, in one place, when dataclasses are built. Raises InputError: no such index, no section.
    """
    keys = path.replace("[", ".").replace("]", "").split(".")
    node, section = settings, ""
    for depth, key in enumerate(keys):
        if isinstance(node, list):
            if not re.fullmatch(r"-?\d+", key) or not -len(node) <= int(key) < len(node):
                raise must_be(f"index in {where}", f"0 to {len(node) - 1}, or from the end, -1 to {-len(node)}", key)
            key = int(key)
        elif not isinstance(node, dict):
            raise InputError(f"{where}: {'.'.join(keys[:depth])} is the value {node!r}, it has no {key!r}")
        elif keys[:depth] == ["runs"] and key not in node:
            raise unknown("run", key, node, where=where)
        else:
            section = key = present_name(section, key, former)
        if depth == len(keys) - 1:
            node[key] = value
        else:
            node = node[key] if isinstance(node, list) else node.setdefault(key, {})


def build_run(settings: dict[str, Any]) -> RunConfig:
    """A validated run, under former names too. Raises InputError."""
    if "runs" in settings:
        raise InputError("this --config has 'runs', it is a sweep: use growlm sweep")
    return build(RunConfig, renamed(settings, []), "config")


def build_model(settings: dict[str, Any], where: str = "model") -> DecoderConfig:
    """A validated shape, of the architecture that it names; Llama's where it names none. Raises InputError."""
    if not isinstance(settings, dict):
        raise must_be(where, "the keys of a model's config", settings)
    name = settings.get("architecture", "llama")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise unknown("architecture", name, ARCHITECTURES, where=where)
    rest = {key: value for key, value in settings.items() if key != "architecture"}
    return build(ARCHITECTURES[name].config, rest, where)


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
    """A config as plain JSON for a stage's hash, which neither a new setting nor a new name changes.

    Fields at their default are left out, and those with a former name stand under that.
    """
    if not dataclasses.is_dataclass(config):
        return plain(config)
    kind = {"architecture": config.architecture.name} if isinstance(config, DecoderConfig) else {}
    values = [(field, getattr(config, field.name)) for field in dataclasses.fields(config)]
    return kind | {
        field.metadata.get("formerly", field.name): without_defaults(value)
        for field, value in values
        if value != _default(field)
    }


def _default(field: dataclasses.Field) -> Any:
    """The default of a field; dataclasses.MISSING where it has none."""
    made = field.default_factory is not dataclasses.MISSING
    return field.default_factory() if made else field.default


def build(cls: type, settings: Any, where: str) -> Any:
    """A dataclass from a mapping, recursively by its annotations."""
    if isinstance(settings, cls):
        return settings
    if cls is DecoderConfig:
        return build_model(settings, where)
    if not isinstance(settings, dict):
        raise must_be(where, f"the keys of {cls.__name__}", settings)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    if extra := [key for key in settings if key not in fields]:
        raise unknown("config key", extra[0], fields, where=where)
    required = [name for name, field in fields.items() if _default(field) is dataclasses.MISSING]
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


def _convert(hint: Any, value: Any, where: str) -> Any:
    """The value in its declared type; 1e6 is an integer where one is asked for."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is UnionType:
        kinds = [kind for kind in arguments if kind is not NoneType]
        fits = [kind for kind in kinds if isinstance(value, typing.get_origin(kind) or kind)]
        return None if value is None else _convert((fits or kinds)[0], value, where)
    if dataclasses.is_dataclass(hint) or hint is DecoderConfig:
        return build(hint, value, where)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is Any:
        return value
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool) == isinstance(value, bool):
        return value
    kind = f"a list such as [{value!r}]" if origin is tuple else getattr(origin or hint, "__name__", hint)
    raise must_be(where, kind, value)
