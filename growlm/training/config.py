"""From an experiment file and the command line to validated settings; one line for whatever is wrong in them."""

import dataclasses
import importlib.util
import sys
import traceback
import typing
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

from ml_collections import ConfigDict

from growlm.errors import InputError, must_be, unknown
from growlm.models import ARCHITECTURES, DecoderConfig
from growlm.models import plain as plain_model
from growlm.training.optimizer import OptimizerConfig
from growlm.training.overrides import literal, present_name, set_value
from growlm.training.settings import RunConfig, SweepConfig
from growlm.training.variants import spell_out


def load_config(spec: str, overrides: list[str]) -> dict[str, Any]:
    """The plain settings of `FILE.py[:variant]` or the package's `growlm:NAME[:variant]`, with overrides on top.

    The file defines get_config() or get_config(variant) and returns an ml_collections.ConfigDict. Former names are
    read, with a line on stderr.

    Raises InputError: a file that is not there, fails or has no get_config, an override that is no key=value.
    """
    if spec.startswith("growlm:"):  # growlm/experiments is a link to experiments/, and in a wheel a copy
        _, name, *variants = spec.split(":")
        folder = Path(__file__).parents[1] / "experiments"
        if name not in (names := [file.stem for file in folder.glob("*.py")]):
            raise unknown("experiment of the package", name, names)
        spec = ":".join([f"{folder / name}.py", *variants])
    name, _, variant = spec.partition(":")
    path, former = Path(name), []
    if path.suffix != ".py" or not path.is_file():
        raise must_be("config", "an experiment file such as experiments/quickstart.py", name)
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
    settings = _renamed(config, former)
    keys = [override.partition("=")[0] for override in overrides]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise InputError(f"--config.{twice[0]} must be given once, got {keys.count(twice[0])} values")
    for override in overrides:
        _override(settings, override, former)
    for line in dict.fromkeys(former):
        print(f"growlm: config {spec!r}: {line}; the old name will not be read in the next version", file=sys.stderr)
    return settings


def _run_file(path: Path, variant: str) -> Any:
    """What get_config() of an experiment file returns."""
    module_spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise InputError(f"config {str(path)!r} defines no get_config()")
    return module.get_config(variant) if variant else module.get_config()


def _renamed(value: Any, former: list[str], section: str = "") -> Any:
    """Plain settings under their present names; what had a former one is added to `former`, in words.

    Nothing is held twice in them: two stages of a file may share a dict, and an override is for one of them.
    """
    if isinstance(value, ConfigDict):
        value = value.to_dict()
    if isinstance(value, list | tuple):
        return [_renamed(item, former, section) for item in value]
    if not isinstance(value, dict):
        return value
    names = {key: present_name(section, key, former) for key in value}
    if twice := [key for key, name in names.items() if key != name and name in value]:
        raise InputError(f"{section}.{names[twice[0]]} must be given once, got {twice[0]!r}, its former name, too")
    return {names[key]: _renamed(item, former, key) for key, item in value.items()}


def _override(settings: dict[str, Any], text: str, former: list[str]) -> None:
    """Applies `stages[1].schedule.peak_lr=3e-4`."""
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise must_be("override", "--config.key=value", f"--config.{text}")
    set_value(settings, path, literal(value), former, where=f"--config.{path}")


def build_run(settings: dict[str, Any]) -> RunConfig:
    """A validated run, under former names too. Raises InputError."""
    if "runs" in settings:
        raise InputError("this --config has 'runs', it is a sweep: use growlm sweep")
    return _build(RunConfig, _renamed(settings, []), "config")


def build_sweep(settings: dict[str, Any]) -> SweepConfig:
    """A validated sweep, `vary` and `search` spelled out as runs. Raises InputError.

    What every run says for itself lies over what the config says for all.
    """
    if "runs" not in settings:
        raise InputError("this config is one run: use growlm train, or give it 'runs'")
    settings = _renamed(settings, [])
    own, of_runs = ({field.name for field in dataclasses.fields(cls)} for cls in (SweepConfig, RunConfig))
    own.add("vary")
    if extra := [key for key in settings if key not in own | of_runs]:
        raise unknown("config key", extra[0], own | of_runs, where="config")
    runs = settings["runs"]
    if not isinstance(runs, dict):
        raise must_be("config.runs", "runs by name", runs)
    for name, run in runs.items():
        if not isinstance(run, dict):
            raise must_be(f"config.runs.{name}", "the keys of RunConfig", run)
    common = {key: value for key, value in settings.items() if key not in own}
    if dead := [key for key in common if runs and all(key in run for run in runs.values())]:
        raise InputError(f"config.{dead[0]} is set for all runs, and each has its own: set config.runs.NAME.{dead[0]}")
    if settings.get("seeds") and "seed" in common:
        raise must_be("config.seed", "unset where config.seeds are given", common["seed"])
    whole = {name: common | run for name, run in runs.items()}
    sweep = spell_out({key: settings[key] for key in settings if key in own} | {"runs": whole})
    built = {name: _build(RunConfig, run, f"runs.{name}") for name, run in sweep["runs"].items()}
    return _build(SweepConfig, sweep | {"runs": built}, "config")


def build_model(settings: dict[str, Any], where: str = "model") -> DecoderConfig:
    """A validated shape, of the architecture that it names; Llama's where it names none. Raises InputError."""
    if not isinstance(settings, dict):
        raise must_be(where, "the keys of a model's config", settings)
    name = settings.get("architecture", "llama")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise unknown("architecture", name, ARCHITECTURES, where=where)
    rest = {key: value for key, value in settings.items() if key != "architecture"}
    return _build(ARCHITECTURES[name].config, rest, where)


def build_optimizer(settings: dict[str, Any]) -> OptimizerConfig:
    """Validated settings of an optimizer. Raises InputError."""
    return _build(OptimizerConfig, settings, "optimizer")


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


def _build(cls: type, settings: Any, where: str) -> Any:
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
        return _build(hint, value, where)
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
