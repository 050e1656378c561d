"""A sweep from its plain settings, `vary` and `search` spelled out as the runs that they stand for."""

import copy
import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from growlm.errors import InputError, must_be, unknown
from growlm.training.config import build, renamed, set_value
from growlm.training.overrides import literal
from growlm.training.settings import RunConfig, SweepConfig

# Names that stand for a path: what is varied and searched most, of the last stage.
SHORT = {
    "peak_lr": "stages[-1].schedule.peak_lr",
    "weight_decay": "stages[-1].optimizer.weight_decay",
    "operator": "stages[-1].growth.operator",
    "optimizer_state": "stages[-1].growth.optimizer_state",
}


def build_sweep(settings: dict[str, Any]) -> SweepConfig:
    """A validated sweep, `vary` and `search` spelled out as runs. Raises InputError.

    What every run says for itself lies over what the config says for all.
    """
    if "runs" not in settings:
        raise InputError("this config is one run: use growlm train, or give it 'runs'")
    settings = renamed(settings, [])
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
    sweep = _spell_out({key: settings[key] for key in settings if key in own} | {"runs": whole})
    built = {name: build(RunConfig, run, f"runs.{name}") for name, run in sweep["runs"].items()}
    return build(SweepConfig, sweep | {"runs": built}, "config")


def _spell_out(sweep: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a sweep with a run for every value of `vary` and for every try of `search`.

    A run that is varied is replaced by its variants, in `grown` and `controls` too; as the baseline by the first of
    them. A run that is searched is replaced by its tries, and `search` says whose they are. What is spelled out
    already, as in a config.json, stays.

    Args:
      sweep: the keys of SweepConfig, and `vary`; in `runs` whole runs, each of which may have its own `vary` and
        `search`.

    Raises:
      InputError: no values or several times the same, values that give a run no name, a search that is not of the
        baseline and all grown runs alike.
    """
    sweep = dict(sweep)
    vary, search = _values(sweep.pop("vary", None), "vary"), sweep.get("search")
    spelled_out = isinstance(search, dict) and "tries" in search
    of_all = {} if spelled_out else _values(search, "search")
    runs: dict[str, dict[str, Any]] = {}
    variants: dict[str, list[str]] = {}  # of each run in the config
    searches: dict[str, dict[str, list[Any]]] = {}
    for name, given in sweep["runs"].items():
        run, axes = dict(given), {"vary": vary, "search": of_all}
        axes |= {axis: _values(run.pop(axis), f"runs.{name}.{axis}") for axis in axes if axis in run}
        _check_searched(name, run, **axes)
        made = _variants(name, run, axes["vary"])
        runs |= made
        variants[name] = list(made)
        searches |= dict.fromkeys(made, axes["search"]) if axes["search"] else {}

    def spread(name: Any) -> list[Any]:
        return variants[name] if isinstance(name, str) and name in variants else [name]

    if "baseline" in sweep:
        sweep["baseline"] = spread(sweep["baseline"])[0]
    if isinstance(grown := sweep.get("grown"), list | tuple):
        sweep["grown"] = [variant for name in grown for variant in spread(name)]
    if isinstance(controls := sweep.get("controls"), dict):
        sweep["controls"] = {variant: why for name, why in controls.items() for variant in spread(name)}
    if not spelled_out:
        sweep["search"] = None
    if searches:
        _check_alike(searches, [name for name in (sweep.get("baseline"), *(sweep.get("grown") or ())) if name in runs])
        tries, runs = _tries(runs, searches)
        for name in _as_the_baseline(sweep, runs, tries):
            runs = {trial: run for trial, run in runs.items() if trial not in tries[name]}
            del tries[name], sweep["controls"][name]
        sweep["search"] = {"key": _short(next(iter(next(iter(searches.values()))))), "tries": tries}
    return sweep | {"runs": runs}


def _values(axes: Any, where: str) -> dict[str, list[Any]]:
    """The values by path, of `{"peak_lr": [...]}` or of nested sections with lists in them. Raises InputError."""
    found: dict[str, list[Any]] = {}
    for key, values in _flat(axes or {}, where).items():
        path = SHORT.get(key, _canonical(key))
        if isinstance(values, str):  # [a,b] from a command line
            values = [literal(part.strip()) for part in values.strip("[]()").split(",") if part.strip()]
        if not isinstance(values, list | tuple) or not values:
            raise must_be(f"{where}.{key}", "a list of values", values)
        if odd := [value for value in values if not isinstance(value, bool | int | float | str)]:
            raise must_be(f"{where}.{key}", "a list of numbers or names", odd[0])
        if twice := [value for value in values if list(values).count(value) > 1]:
            raise must_be(f"{where}.{key}", "without a value twice", twice[0])
        if path in found:
            raise InputError(f"{where} must have {path} once, got it as {key} too")
        found[path] = list(values)
    return found


def _canonical(path: str) -> str:
    """The path with its indices in brackets: stages.-1.tokens is stages[-1].tokens."""
    return re.sub(r"\.(-?\d+)(?=[.\[]|$)", r"[\1]", path)


def _flat(axes: Any, where: str) -> dict[str, Any]:
    """What is no section, by its path. A ConfigDict takes no dots in a key: there a path is nested sections."""
    if not isinstance(axes, dict):
        raise must_be(where, "lists of values by key", axes)
    found: dict[str, Any] = {}
    for key, value in axes.items():
        inner = _flat(value, f"{where}.{key}") if isinstance(value, dict) else {"": value}
        found |= {f"{key}.{rest}".rstrip("."): each for rest, each in inner.items()}
    return found


def _short(path: str) -> str:
    return path.rpartition(".")[2]


def _variants(name: str, run: dict[str, Any], axes: Mapping[str, list[Any]]) -> dict[str, dict[str, Any]]:
    """The run once for every combination of values, as NAME@KEY=VALUE,KEY=VALUE; itself where nothing is varied."""
    made: dict[str, dict[str, Any]] = {}
    for values in itertools.product(*axes.values()):
        at = dict(zip(axes, values, strict=True))
        said = ",".join(f"{_short(path)}={_safe(value)}" for path, value in at.items())
        variant = copy.deepcopy(run)
        for path, value in at.items():
            where = f"{path} of run {name}"
            set_value(variant, path, value, [], where)
        full = f"{name}@{said}" if said else name
        if full in made:
            raise must_be(f"values of run {name}", "such that names of folders differ", full)
        made[full] = variant
    return made


def _safe(value: Any) -> str:
    """A value in the name of a folder."""
    return re.sub(r"[^\w.+-]", "_", str(value))


def _tries(
    runs: Mapping[str, dict[str, Any]], searches: Mapping[str, dict[str, list[Any]]]
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """(run -> name of a try -> its value; all runs, each that is searched replaced by its tries)."""
    tries: dict[str, dict[str, Any]] = {}
    spelled: dict[str, dict[str, Any]] = {}
    for name, run in runs.items():
        if name not in searches:
            spelled[name] = run
            continue
        made = _variants(name, run, searches[name])
        tries[name] = dict(zip(made, next(iter(searches[name].values())), strict=True))
        spelled |= made
    return tries, spelled


def _as_the_baseline(sweep: Mapping[str, Any], runs: Mapping[str, Any], tries: Mapping[str, Any]) -> list[str]:
    """The controls whose tries are the baseline's: they had another value of what is searched, and nothing else."""
    tried = {name: [runs[trial] for trial in tries[name]] for name in tries}
    controls = sweep["controls"] if isinstance(sweep.get("controls"), dict) else {}
    return [name for name in controls if name in tried and tried[name] == tried.get(sweep.get("baseline"))]


def _check_searched(name: str, run: Mapping[str, Any], vary: Mapping[str, Any], search: Mapping[str, Any]) -> None:
    """Raises InputError where a run is searched over its seed, of which the best is luck, or over what it varies."""
    stages = run.get("stages")
    last = f"stages[{len(stages) - 1}]" if isinstance(stages, list | tuple) else "stages[-1]"
    varied = {path.replace("stages[-1]", last) for path in vary}
    for path in search:
        if path == "seed":
            raise must_be(f"search of run {name}", "over a setting, no seed: config.seeds trains several", path)
        if path.replace("stages[-1]", last) in varied:
            raise must_be(f"search of run {name}", "over a key that vary does not set", path)


def _check_alike(searches: Mapping[str, dict[str, list[Any]]], compared: Sequence[str]) -> None:
    """Raises InputError unless all that is compared, the baseline first, is searched, over one key and as often."""
    for name in compared:
        if name not in searches:
            rule = "of the baseline and of every grown run alike"
            raise InputError(f"search must be {rule}, got one of {', '.join(searches)} and none of {name}")
    first = next(iter((*compared, *searches)))
    for name, axes in searches.items():
        if len(axes) != 1:
            raise must_be(f"search of run {name}", "over one key", ", ".join(axes))
        (path, values), (of_first, tries) = ((*searches[each].items(),)[0] for each in (name, first))
        if path != of_first:
            raise must_be(f"search of run {name}", f"over {of_first}, as that of {first}", path)
        if len(values) != len(tries):
            raise must_be(f"search of run {name}", f"{len(tries)} tries, as many as that of {first}", len(values))
