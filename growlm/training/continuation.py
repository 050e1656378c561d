"""Whose folder it is: whether a run or a sweep may go on in a folder, and what of its config may change then."""

import contextlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from growlm.errors import InputError, must_be
from growlm.files import is_part, make_folder, read_json, write_sealed
from growlm.training.config import build_run, plain
from growlm.training.schedules import WITH_HORIZON
from growlm.training.settings import RunConfig
from growlm.training.stages import Stage, resolve
from growlm.training.systems import written_out
from growlm.training.variants import build_sweep

NEW = "the folder must be a new or empty one, or that of this run, got"

# Settings of a run that say where it runs, and what is measured and kept of it; its validation stands with each stage.
WITHOUT_EFFECT = ("mesh", "unroll", "log_every_steps", "checkpoint", "evaluation")


def previous_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder, or {}: what is wrong with it is told when the folder is claimed."""
    with contextlib.suppress(InputError, TypeError, ValueError):
        return dict(read_json(folder / "config.json", "config"))
    return {}


def claim_folder(folder: Path, config: dict[str, Any]) -> None:
    """Make a folder that of a run or a sweep, or check that it is, and keep its config there.

    A run may go on with another mesh, other checkpoints and records, validated and benchmarked at other times and by
    other benchmarks, with more tokens in its last stage where the schedule of that does not end with the stage, and
    with further stages; a sweep with further runs and seeds, and a search with further values.

    The text that a stage is validated on, and the number and shape of batches, must stay: the losses of a run are one
    curve to a report, which reads off the config where stages differ in that. It binds stages that have not begun too,
    as all their settings do; further stages may have others.

    Raises:
      InputError: the folder holds something else.
    """
    path, config = folder / "config.json", json.loads(json.dumps(config))
    try:
        if path.exists():
            previous = read_json(path, f"{NEW} {folder}: its config")
            if previous != config:
                _check_continues(folder, _read_settings(folder, previous), result_settings(config))
                write_sealed(path, config)
        elif folder.exists() and (not folder.is_dir() or not all(map(is_part, folder.iterdir()))):
            raise InputError(f"{NEW} {folder}, which holds no run")
        else:
            make_folder(folder)
            write_sealed(path, config)
    except OSError as error:
        reason = f"{error.strerror} ({error.filename or folder})"
        raise InputError(f"{NEW} {folder}, which cannot be used: {reason}") from error


def claim_best(folder: Path, config: dict[str, Any], tries: Sequence[dict[str, Any]]) -> None:
    """Make a folder that of the best of some tries; one that has been that of another try before is made anew.

    Raises:
      InputError: the folder holds something else.
    """
    previous = previous_config(folder)
    goes_on, of_another = (any(_continues(folder, previous, each) for each in of) for of in ([config], tries))
    if of_another and not goes_on:
        part = folder.with_name(f".{folder.name}.part")  # moved first: whoever is killed here leaves no half of a run
        shutil.rmtree(part, ignore_errors=True)
        folder.rename(part)
        shutil.rmtree(part)
    claim_folder(folder, config)


def _continues(folder: Path, previous: dict[str, Any], config: dict[str, Any]) -> bool:
    try:
        _check_continues(folder, result_settings(previous), result_settings(config))
    except InputError:
        return False
    return True


def _read_settings(folder: Path, previous: Any) -> dict[str, Any]:
    try:
        return result_settings(previous)
    except InputError as error:
        raise InputError(f"{NEW} {folder}, whose config.json is no config of this growlm: {error}") from None


def check_store(store: Path) -> None:
    """Raises InputError for stages of growlm 0.1.0, which had other hashes: they would be trained anew."""
    for path in sorted(store.glob("*/stage.json")):
        model: dict[str, Any] = {"architecture": None}  # of a damaged file, which is nobody's
        with contextlib.suppress(InputError, KeyError, TypeError):
            model = read_json(path, "stage")["model"]
        if "architecture" not in model:
            raise InputError(f"the folder must be a new one, got {path.parent}, a stage of growlm 0.1.0")


def result_settings(config: Any) -> dict[str, Any]:
    """The settings that determine the results of a run or a sweep, and what it is validated on, with all defaults.

    So a folder of an older growlm, which had fewer settings, goes on. Raises InputError where it is no config.
    """
    if not isinstance(config, dict):
        raise must_be("config", "the keys of a run or a sweep", config)
    if "runs" in config:
        sweep = build_sweep(config)
        runs = {name: _of_run(run) for name, run in sweep.runs.items()}
        return {"runs": runs, "seeds": list(sweep.seeds), "searched": sweep.search is not None}
    return _of_run(build_run(config))


def _of_run(run: RunConfig) -> dict[str, Any]:
    run = written_out(run)
    settings = json.loads(json.dumps(plain(run)))
    for stage, own in zip(resolve(run, ""), settings["stages"], strict=True):
        with_horizon = stage.config.schedule.kind in WITH_HORIZON
        own["schedule"]["horizon_tokens"] = stage.horizon if with_horizon else 0
        own["evaluation"] = _validation(stage)
        if stage.config.objective.teacher_fingerprint:
            own["objective"] |= {"teacher": None, "teacher_model": None}  # it may lie elsewhere
        if choice := stage.config.choice:
            own["choice"]["tokens"] = choice.tokens or stage.config.tokens
            if choice.scorer_fingerprint:
                own["choice"] |= {"scorer": None, "scorer_model": None}
        if stage.asked:
            own["growth"] = plain(stage.asked.resolved)
    return {name: value for name, value in settings.items() if name not in WITHOUT_EFFECT}


def _validation(stage: Stage) -> dict[str, Any]:
    """What a stage's validation losses are of, whether its own config says that or the run's; and what it is judged by.

    corpus: None where it is that of training. every_tokens: 0 where no rule judges the stage.
    """
    batch, length = stage.held_out
    return {
        "corpus": None if stage.validated_on == stage.corpus else stage.validated_on,
        "batches": stage.evaluation.batches,
        "batch": batch,
        "length": length,
        "every_tokens": stage.evaluation.every_tokens if stage.config.grow_when else 0,
    }


def _check_continues(folder: Path, previous: dict[str, Any], config: dict[str, Any]) -> None:
    """Raises InputError unless what was trained with the previous `result_settings` is a beginning of these."""
    if "runs" not in previous or "runs" not in config:
        _check_run(folder, previous, config, path="")
        return
    for name, run in previous["runs"].items():
        if name not in config["runs"]:
            if run in config["runs"].values():  # under another name
                continue
            raise InputError(f"{NEW} {folder}, whose sweep has a run {name!r} that this one has not")
        _check_run(folder, run, config["runs"][name], path=f"runs.{name}.")
    seeds, now = previous["seeds"], config["seeds"]
    if bool(seeds) != bool(now) or (seeds and previous["searched"] and seeds[0] != now[0]):
        rule = f"{seeds} and further ones, the first first, to go on in {folder}" if seeds else f"unset, as in {folder}"
        raise must_be("seeds", rule, now)
    if lost := [seed for seed in seeds if seed not in now]:
        raise InputError(f"{NEW} {folder}, whose sweep has a seed {lost[0]} that this one has not")


def _check_run(folder: Path, previous: dict[str, Any], config: dict[str, Any], path: str) -> None:
    if "stages" in previous and "stages" in config:
        count = len(previous["stages"])
        config = config | {"stages": config["stages"][:count]}  # those beyond are further ones
        *before, last = previous["stages"]
        now = config["stages"][-1]
        if len(config["stages"]) == count and now["tokens"] > last["tokens"]:
            last = last | {"tokens": now["tokens"]}
            ends, horizon = (stage["schedule"]["horizon_tokens"] for stage in (last, now))
            if last != now and last | {"schedule": last["schedule"] | {"horizon_tokens": horizon}} == now:
                key, kind = f"{path}stages[{count - 1}].schedule.horizon_tokens", last["schedule"]["kind"]
                raise InputError(
                    f"{key} must be {ends}, where the {kind} schedule of {folder} ends, to train that for more tokens, "
                    f"got {horizon}; a schedule that needs no end, constant or power, needs a new folder"
                )
            previous = previous | {"stages": [*before, last]}
    if previous != config:
        raise InputError(f"{NEW} {folder}, which holds a different run: {_difference(previous, config, path)}")


def _difference(there: Any, here: Any, path: str = "") -> str:
    """Where two JSON values differ first, in words."""
    where = path.removesuffix(".") or "its config"
    if isinstance(there, dict) and isinstance(here, dict):
        if extra := sorted(there.keys() ^ here.keys()):
            return f"{where} has {extra[0]!r} only {'there' if extra[0] in there else 'here'}"
        pairs = [(f"{path}{key}.", there[key], here[key]) for key in there]
    elif isinstance(there, list) and isinstance(here, list):
        if len(there) != len(here):
            return f"{where} has {len(there)} entries there and {len(here)} here"
        pairs = [(f"{where}[{i}].", *pair) for i, pair in enumerate(zip(there, here, strict=True))]
    else:
        return f"{where} is {there!r} there and {here!r} here"
    return next(_difference(a, b, where) for where, a, b in pairs if a != b)
