"""What the folder of a run or of a sweep holds, or a folder of such, as plain values."""

import csv
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from growlm.errors import InputError
from growlm.training.continuation import result_settings
from growlm.training.run import RUN_METADATA_FILE

KEPT = "metrics.csv"  # of a folder that `growlm archive` wrote: the records of all its runs
TO_REPRODUCE = ("command", "hardware", "commit")  # what sweep.json and run.json say of how they were made


@dataclass(frozen=True)
class Run:
    """One run: its records in the order in which they were made, one per stage and step.

    `role` is "grown", "baseline", "control" or "run", and `purpose` says what a control is for.

    `growths` are the reports of growth-1.json, growth-2.json ... `stages` is what sweep.json says of each
    stage: its address, tokens and FLOPs, and whether it was reused from another run. `evaluations` are the results
    of `growlm evaluate`, in the order in which they were made. `begun` is what init_from.json says of the saved model
    that the run began from, of kept records the folder alone; it is empty where there was none.
    """

    name: str
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    growths: list[dict[str, Any]]
    role: str = "run"
    purpose: str = ""
    status: str = "done"
    error: str | None = None
    stages: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    begun: dict[str, Any] = field(default_factory=dict)

    @property
    def held_out(self) -> set[tuple]:
        """What its stages are validated on, where its config says it: corpus, batches, their examples and length."""
        found = set()
        for stage in self.config.get("stages", ()):
            said = stage.get("evaluation") or self.config.get("evaluation") or {}
            shape = (said.get(key) or stage.get(key) for key in ("batch", "length"))
            found.add((self.config.get("corpus"), said.get("batches"), *shape))
        return found


@dataclass(frozen=True)
class Study:
    """The runs of a folder, by name in the order of the sweep, and what the sweep says of itself.

    `config` is that of the sweep, or of the run where it is one.
    """

    title: str
    runs: dict[str, Run]
    config: dict[str, Any] = field(default_factory=dict)
    baseline: str | None = None
    command: str | None = None
    hardware: str | None = None
    commit: str | None = None
    flops_trained: float | None = None
    flops_saved_by_sharing: float | None = None


@dataclass(frozen=True)
class Group:
    """Studies that differ in nothing but their seeds, by what tells them apart: "seed 0", "seed 1" ..."""

    studies: dict[str, Study]

    @property
    def first(self) -> Study:
        """The study that stands for all where they do not differ."""
        return next(iter(self.studies.values()))

    def each(self, name: str) -> dict[str, Run]:
        """The run of that name in every study."""
        return {seed: study.runs[name] for seed, study in self.studies.items()}


def homes(folder: Path) -> list[Path]:
    """The folder itself if it is a sweep's or a run's, else those in it that are.

    Raises:
        InputError: no such folder, or no run in it.
    """

    def is_home(path: Path) -> bool:
        return any((path / name).is_file() for name in ("sweep.json", "metrics.jsonl"))

    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}")
    found = [folder] if is_home(folder) else sorted(filter(is_home, folder.iterdir()))
    if not found:
        raise InputError(f"{folder} holds no runs: allowed is the folder of a sweep or a run, or a folder of such")
    return found


def read_groups(folder: str | Path) -> list[Group]:
    """What lies in a folder: a sweep, a run, or several of them, those together that differ only in their seeds.

    Single runs that lie in one folder are taken as one study, to be looked at together.

    Raises:
        InputError: no such folder, no runs in it, a broken file, or no run with any metrics.
    """
    folder = Path(folder)
    studies = {home: _read(home) for home in homes(folder)}
    if not any(run.metrics for study in studies.values() for run in study.runs.values()):
        raise InputError(f"no run in {folder} has any metrics yet")
    alone = {home: study for home, study in studies.items() if not (home / "sweep.json").exists()}
    if len(alone) > 1:
        studies = {home: study for home, study in studies.items() if home not in alone}
        runs = {home.name: study.runs[home.name] for home, study in alone.items()}
        studies[folder] = Study(folder.resolve().name, runs, **_of_all(alone.values()))
    alike: dict[str, dict[Path, Study]] = {}
    for home, study in studies.items():
        config = _but_seed(_settings(study.config))
        key = json.dumps([study.title, list(study.runs), study.baseline, config], sort_keys=True)
        alike.setdefault(key, {})[home] = study
    return [_group(members) for members in alike.values()]


def _settings(config: Any) -> Any:
    try:
        return result_settings(config)
    except InputError:  # no config of this growlm: it is compared as it is
        return config


def _of_all(studies: Collection[Study]) -> dict[str, str | None]:
    """How single runs were made, each in turn; a command has a line of its own."""
    found = {key: dict.fromkeys(getattr(study, key) for study in studies) for key in TO_REPRODUCE}
    return {key: ("\n" if key == "command" else ", ").join(filter(None, said)) or None for key, said in found.items()}


def _group(members: dict[Path, Study]) -> Group:
    """The studies in order of their seeds; where these do not tell them apart, their folders' names do."""
    seeds = {home: seed_of(study) for home, study in members.items()}
    if None in seeds.values() or len(set(seeds.values())) < len(seeds):
        return Group({home.resolve().name: study for home, study in members.items()})
    return Group({f"seed {seeds[home]}": members[home] for home in sorted(members, key=seeds.get)})


def seed_of(study: Study) -> int | None:
    """The seed of all runs of a study, if they have one and the same."""
    seeds = {run.config.get("seed") for run in study.runs.values() if run.config}
    return seeds.pop() if len(seeds) == 1 else None


def _but_seed(config: Any) -> Any:
    """A config without its seeds, and without where it ran."""
    if isinstance(config, dict):
        return {key: _but_seed(value) for key, value in config.items() if key not in ("seed", "mesh")}
    return [_but_seed(value) for value in config] if isinstance(config, list) else config


def read(folder: str | Path) -> Study:
    """The study in a sweep folder, or that of a single run in a run folder.

    Runs of a sweep that have not started yet are there without records.

    Raises:
        InputError: no such folder, neither kind of folder, a broken file, or no run with any metrics.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}")
    study = _read(folder)
    if not any(run.metrics for run in study.runs.values()):
        raise InputError(f"no run in {folder} has any metrics yet")
    return study


def _read(folder: Path) -> Study:
    if (folder / "sweep.json").exists():
        return _sweep(folder)
    if not (folder / "metrics.jsonl").exists():
        raise InputError(f"{folder} holds neither sweep.json nor metrics.jsonl: not a run, nor a sweep")
    name = folder.resolve().name
    run, said = _run(folder, name), _object(folder / RUN_METADATA_FILE)
    return Study(name, {name: run}, run.config, **{key: said.get(key) for key in TO_REPRODUCE})


def _sweep(folder: Path) -> Study:
    """The study that sweep.json describes."""
    sweep, config = _json(folder / "sweep.json"), _object(folder / "config.json")
    standing = {name: _standing(name, sweep) for name in sweep.get("runs", {})}
    if (folder / KEPT).exists():
        kept, settings = _kept(folder / KEPT), config.get("runs", {})
        runs = {
            name: Run(name, own := settings.get(name, {}), kept.get(name, []), [], begun=_begun(own), **said)
            for name, said in standing.items()
        }
    else:
        runs = {name: _run(folder / name, name, **said) for name, said in standing.items()}
    said = (*TO_REPRODUCE, "flops_trained", "flops_saved_by_sharing", "baseline")
    title = sweep.get("title") or folder.resolve().name
    return Study(title, runs, config, **{key: sweep.get(key) for key in said})


def _standing(name: str, sweep: dict) -> dict[str, Any]:
    """What a sweep says of one of its runs: what it is for, and how far it got."""
    entry, controls = sweep["runs"][name], sweep.get("controls") or {}
    role = "run"
    if name == sweep.get("baseline"):
        role = "baseline"
    elif name in controls:
        role = "control"
    elif name in (sweep.get("grown") or ()):
        role = "grown"
    return {
        "role": role,
        "purpose": controls.get(name) or "",
        "status": entry.get("status") or "pending",
        "error": entry.get("error"),
        "stages": entry.get("stages") or [],
    }


def _run(folder: Path, name: str, **standing: Any) -> Run:
    """One run folder; a run that has not started has none, and is empty."""
    reports = sorted(folder.glob("growth-*.json"), key=lambda path: (len(path.name), path.name))
    results = sorted((folder / "evaluations").glob("results_*.json"))
    return Run(
        name,
        _object(folder / "config.json"),
        _metrics(folder / "metrics.jsonl"),
        [_json(path) for path in reports],
        evaluations=[_json(path) for path in results],
        begun=_object(folder / "init_from.json"),
        **standing,
    )


def _begun(config: dict[str, Any]) -> dict[str, Any]:
    """What a run's config says of the saved model that it began from: the folder, and not what that had cost."""
    folder = next((stage.get("init_from") for stage in config.get("stages", ())[:1]), None)
    return {"folder": folder} if folder else {}


def _object(path: Path) -> dict[str, Any]:
    """The object in a file that may be missing."""
    return _json(path) if path.exists() else {}


def _metrics(path: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl. A run may be writing the last line, so that one may be broken.

    A run that was killed goes on from its checkpoint and says some steps again: the later word counts.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    steps: dict[tuple, dict] = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            steps.setdefault((record["stage"], record["step"]), {}).update(record)
        except (ValueError, TypeError, KeyError) as error:
            if number < len(lines):
                raise InputError(f"{path}:{number} is not a record with stage and step: {line[:60]!r}") from error
    return [steps[key] for key in sorted(steps)]


def _kept(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The records of every run."""
    runs: dict[str, list[dict[str, Any]]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            try:
                record = {key: _number(text) for key, text in row.items() if key != "run" and text}
                runs.setdefault(row["run"], []).append({"stage": record["stage"], "step": record["step"]} | record)
            except (ValueError, TypeError, KeyError) as error:
                raise InputError(f"{path}:{number} is not a record with run, stage and step") from error
    return runs


def _number(text: str) -> int | float:
    return int(text) if text.lstrip("-").isdecimal() else float(text)


def _json(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold one JSON object, not {type(value).__name__}")
    return value
