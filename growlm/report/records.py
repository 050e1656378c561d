"""The records in folders of runs and sweeps, as plain values."""

import csv
import json
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from growlm.checked import DamagedError, check_shape, is_record, lines_of, parse_json, parse_record
from growlm.errors import InputError, is_number, must_be
from growlm.files import check_within, inside, read_object
from growlm.laws.speedup import Curve, curve
from growlm.report.shapes import CONFIG, DECISION, EVALUATION, GROWTH, INIT_FROM, RECORD, SWEEP

MOST_NAMES = 1000  # of a run's metrics, and of its stages
ARCHIVED = "metrics.csv"  # the metrics of all runs of a sweep, as `growlm archive` wrote them until 0.2
# Of sweep.json and run.json, and what stands between those of several studies.
PROVENANCE = {"command": "\n", "hardware": "; ", "commit": ", ", "experiment": "\n\n"}
# Settings that tell no study from another: the seed, and what does not change a result.
WITHOUT_EFFECT = ("seed", "mesh", "remat", "unroll", "log_every_steps", "checkpoint")


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        config: its config.json.
        metrics: its records in order, one for each stage and step.
        growths: its growth reports, growth-1.json, growth-2.json ...
        decisions: what was decided while it trained, by number of the stage, as in decision-1.json ...
        role: "grown", "baseline", "control" or "run".
        purpose: what a control is for.
        status: "done", "failed" or "pending"; `error` says why it failed.
        stages: from sweep.json, for each stage its hash, tokens, FLOPs and whether it was reused from another run.
        evaluations: the results of `growlm evaluate`, in the order in which they were made.
        init_from: the checkpoint that it began from, as in init_from.json; empty where it began from none.
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
    init_from: dict[str, Any] = field(default_factory=dict)
    decisions: dict[int, dict[str, Any]] = field(default_factory=dict)

    @cached_property
    def curve(self) -> tuple[Curve | None, str]:
        """The curve of its validation losses, or None and why there is none."""
        if not self.metrics:
            return None, "no metrics yet"
        try:
            return curve(self.metrics), ""
        except InputError as error:
            return None, str(error)

    def column(self, key: str) -> np.ndarray:
        """What its records have under a name, in order: float64[records], NaN where that is no finite number."""
        if key not in self._columns:
            values = (record.get(key) for record in self.metrics)
            numbers = [value if is_number(value) and math.isfinite(value) else math.nan for value in values]
            self._columns[key] = np.array(numbers, np.float64)
        return self._columns[key]

    @cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        return {}

    @cached_property
    def recorded(self) -> list[str]:
        """All names in its metrics, in their order."""
        return list({key: None for record in self.metrics for key in record})

    @cached_property
    def held_out(self) -> set[tuple]:
        """What its stages are validated on, where its config says so: corpus, batches, batch and length."""
        found = set()
        for stage in self.config.get("stages") or ():
            evaluation = stage.get("evaluation") or self.config.get("evaluation") or {}
            shape = (evaluation.get(key) or stage.get(key) for key in ("batch", "length"))
            given = evaluation.get("corpus"), self.config.get("corpus"), stage.get("corpus")
            corpus = next((one for one in given if one is not None), None)
            found.add((json.dumps(corpus, sort_keys=True), evaluation.get("batches"), *shape))
        return found

    @property
    def planned_growths(self) -> list[dict[str, Any]]:
        """The operator and options of every growth, as its config has them; of a system as it was asked for."""
        if system := self.config.get("system"):
            options = self.config.get("system_options") or {}
            return [{"operator": system, "options": options}] * len(self.growths)
        return [
            {key: (stage.get("growth") or {}).get(key) for key in ("operator", "options")}
            for stage in self.config["stages"][1:]
        ]

    @cached_property
    def _by_stage(self) -> dict[int, list[dict[str, Any]]]:
        found: dict[int, list[dict[str, Any]]] = {}
        for record in self.metrics:
            found.setdefault(record["stage"], []).append(record)
        return found

    def of_stage(self, number: int) -> list[dict[str, Any]]:
        """The records of one stage."""
        return self._by_stage.get(number, [])

    @property
    def last_validated(self) -> dict[str, Any] | None:
        """Its last record with a validation loss."""
        return next((record for record in reversed(self.metrics) if record.get("val_loss") is not None), None)

    @property
    def parameters(self) -> int | None:
        """Parameters N of the last stage's model; of a mixture the active ones.

        An older growlm did not record them: there they are read off the stage's FLOPs, which are 6 N tokens, more where
        it has a teacher and less where it has sub-models.
        """
        records = self.of_stage(self.metrics[-1]["stage"]) if self.metrics else []
        if records and records[-1].get("parameters"):
            return records[-1]["parameters"]
        spent = [(r["flops"], r["tokens"]) for r in records if None not in (r.get("flops"), r.get("tokens"))]
        if not spent or spent[-1][1] == spent[0][1]:
            return None
        return round((spent[-1][0] - spent[0][0]) / (6 * (spent[-1][1] - spent[0][1])))


@dataclass(frozen=True)
class Study:
    """The runs of a folder by name, in the order of the sweep, and its provenance. `config` is the sweep's or run's.

    Attributes:
        search: what sweep.json says of a search: its key, seed and FLOPs, and for each searched run its tries and which
            was chosen. Empty without one.
        experiment: what its experiment file said when it was started last.
        trials: the runs that only try a value for another, by name; they are not among the runs.
    """

    title: str
    runs: dict[str, Run]
    config: dict[str, Any] = field(default_factory=dict)
    baseline: str | None = None
    command: str | None = None
    hardware: str | None = None
    commit: str | None = None
    experiment: str | None = None
    flops_trained: float | None = None
    flops_saved_by_sharing: float | None = None
    search: dict[str, Any] = field(default_factory=dict)
    trials: dict[str, Run] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Studies that differ only in their seeds, by name: "seed 0", "seed 1" ..."""

    studies: dict[str, Study]

    @property
    def first(self) -> Study:
        """The study of the first seed."""
        return next(iter(self.studies.values()))

    def each(self, name: str) -> dict[str, Run]:
        """The runs of that name, by seed."""
        return {seed: study.runs[name] for seed, study in self.studies.items()}

    @property
    def runs(self) -> list[Run]:
        """All runs of all seeds."""
        return [run for study in self.studies.values() for run in study.runs.values()]

    @property
    def recorded(self) -> list[str]:
        """All names in the metrics of all runs, in their order."""
        return list(dict.fromkeys(key for run in self.runs for key in run.recorded))

    @property
    def labelled(self) -> list[tuple[str, Run]]:
        """All runs in the order of the sweep, each with a label that is its own."""
        several = len(self.studies) > 1
        return [(f"{n}, {seed}" if several else n, run) for n in self.first.runs for seed, run in self.each(n).items()]


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f"{folder} must be a folder, got a file" if folder.exists() else f"no such folder: {folder}")


def study_folders(folder: Path) -> list[Path]:
    """The folder itself if it holds a sweep or a run, else the folders in it that do.

    Raises:
        InputError: no such folder, or no run in it.
    """

    def is_study(path: Path) -> bool:
        return any((path / name).is_file() for name in ("sweep.json", "metrics.jsonl"))

    _check_folder(folder)
    found = [folder] if is_study(folder) else sorted(filter(is_study, folder.iterdir()))
    if not found:
        raise InputError(f"{folder} must be a run or a sweep, or a folder that holds some, got one without runs")
    return found


def read_groups(folder: str | Path) -> list[Group]:
    """The studies in a folder; those that differ only in their seeds form one group.

    Single runs in one folder form one study.

    Raises:
        InputError: no such folder, no runs in it, a broken file, or no run with any metrics.
    """
    folder = Path(folder)
    studies = {path: _read(path) for path in study_folders(folder)}
    _check_metrics(folder, studies.values())
    single = {path: study for path, study in studies.items() if not (path / "sweep.json").exists()}
    if len(single) > 1:
        studies = {path: study for path, study in studies.items() if path not in single}
        runs = {path.name: study.runs[path.name] for path, study in single.items()}
        studies[folder] = Study(folder.resolve().name, runs, **_merged_provenance(single.values()))
    alike: dict[str, dict[Path, Study]] = {}
    for path, study in studies.items():
        config = _with_effect(study.config)
        key = json.dumps([study.title, list(study.runs), study.baseline, config], sort_keys=True)
        alike.setdefault(key, {})[path] = study
    return [_group(members) for members in alike.values()]


def read(folder: str | Path) -> Study:
    """The study in the folder of a sweep or of a run. Runs of a sweep that have not started have no metrics.

    Raises:
        InputError: no such folder, neither kind of folder, a broken file, or no run with any metrics.
    """
    folder = Path(folder)
    _check_folder(folder)
    study = _read(folder)
    _check_metrics(folder, [study])
    return study


def _check_metrics(folder: Path, studies: Collection[Study]) -> None:
    if not any(run.metrics for study in studies for run in study.runs.values()):
        raise InputError(f"no run in {folder} has any metrics yet")


def _merged_provenance(studies: Collection[Study]) -> dict[str, str | None]:
    """The provenance of several studies: distinct values, joined."""
    found = {key: dict.fromkeys(getattr(study, key) for study in studies) for key in PROVENANCE}
    return {key: PROVENANCE[key].join(filter(None, texts)) or None for key, texts in found.items()}


def _group(members: dict[Path, Study]) -> Group:
    """The studies in order of their seeds; by the names of their folders where seeds are not known or not distinct."""
    seeds = {path: _seed(study) for path, study in members.items()}
    if None in seeds.values() or len(set(seeds.values())) < len(seeds):
        return Group({path.resolve().name: study for path, study in members.items()})
    return Group({f"seed {seeds[path]}": members[path] for path in sorted(members, key=seeds.get)})


def _seed(study: Study) -> int | None:
    """The seed of a study, if all its runs have one and it is equal."""
    seeds = [run.config.get("seed") for run in study.runs.values() if run.config]
    if not all(isinstance(seed, int) for seed in seeds):  # an edited config may have anything there
        return None
    return seeds[0] if len(set(seeds)) == 1 else None


def _with_effect(config: Any) -> Any:
    """The settings of a config that change results, without those that are off: an older config lacks some of these."""
    if isinstance(config, dict):
        kept = {key: _with_effect(value) for key, value in config.items() if key not in WITHOUT_EFFECT}
        return {key: value for key, value in kept.items() if value}
    return [_with_effect(value) for value in config] if isinstance(config, list) else config


def _read(folder: Path) -> Study:
    if (folder / "sweep.json").exists():
        return _sweep(folder)
    if not (folder / "metrics.jsonl").exists():
        raise InputError(f"{folder} must hold sweep.json or metrics.jsonl, got neither")
    name = folder.resolve().name
    run, made = _run(folder, name), _optional_json(folder / "run.json", {})
    return Study(name, {name: run}, run.config, **{key: _text(made.get(key)) for key in PROVENANCE})


def _sweep(folder: Path) -> Study:
    """The study that sweep.json describes."""
    sweep, config = read_sweep(folder), _optional_json(folder / "config.json", CONFIG)
    entries = {name: _entry(name, sweep) for name in sweep.get("runs") or {}}
    if (folder / ARCHIVED).exists():
        metrics, configs = _archived_metrics(folder / ARCHIVED), config.get("runs", {})
        runs = {
            name: Run(name, own := configs.get(name, {}), metrics.get(name, []), [], init_from=_init_from(own), **entry)
            for name, entry in entries.items()
        }
    else:
        runs = {name: _run(folder / name, name, **entry) for name, entry in entries.items()}
    keys = (*PROVENANCE, "flops_trained", "flops_saved_by_sharing", "baseline")
    more = {key: sweep.get(key) for key in keys} | {"search": (search := sweep.get("search") or {})}
    tried = [each["run"] for of_run in search.get("runs", {}).values() for each in of_run["tries"]]
    more["trials"] = {name: runs.pop(name) for name in tried if name in runs}
    return Study(sweep.get("title") or folder.resolve().name, runs, config, **more)


def read_sweep(folder: Path) -> dict[str, Any]:
    """The sweep.json in a folder. Raises InputError where it is none, or has a run in another folder."""
    path, sweep = folder / "sweep.json", _object(folder / "sweep.json", SWEEP)
    runs, search = sweep.get("runs") or {}, sweep.get("search") or {"runs": {}}
    for name, of_run in search["runs"].items():
        if len({is_number(one["value"]) for one in of_run["tries"]}) != 1:
            raise InputError(f"{path}: the tries of run {name!r} must be numbers or texts, and some")
    for name in runs:
        if Path(name).name != name or name in ("", "..") or "\0" in name:
            raise must_be(f"{path}: the name of a run", "that of a folder in its own", name)
    return sweep


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _entry(name: str, sweep: dict) -> dict[str, Any]:
    """The entry of a run in sweep.json, as fields of Run."""
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


def _run(folder: Path, name: str, **entry: Any) -> Run:
    """The run in a folder; one that has not started has no folder, and is empty."""
    reports = sorted(folder.glob("growth-*.json"), key=lambda path: (len(path.name), path.name))
    numbers = {path: path.stem.partition("-")[2] for path in folder.glob("decision-*.json")}
    decided = {int(number): path for path, number in numbers.items() if number.isdecimal()}
    results = sorted((folder / "evaluations").glob("results_*.json"))
    return Run(
        name,
        _optional_json(folder / "config.json", CONFIG),
        _metrics(folder / "metrics.jsonl"),
        [_object(path, GROWTH) for path in reports],
        evaluations=[_object(path, EVALUATION) for path in results],
        init_from=_optional_json(folder / "init_from.json", INIT_FROM),
        decisions={number: _object(decided[number], DECISION) for number in sorted(decided)},
        **entry,
    )


def _init_from(config: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint that a run began from, as far as its config says: its folder, not its FLOPs."""
    folder = next((stage.get("init_from") for stage in (config.get("stages") or ())[:1]), None)
    return {"folder": folder} if folder else {}


def _metrics(path: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl, which a run may be writing: its last line may be broken.

    A run that was killed goes on from its checkpoint and records some steps again: the later record counts.
    """
    if path.exists():
        check_within(path.parent, path)
    steps: dict[tuple, dict] = {}
    for number, line, partial in lines_of(path, "records"):
        try:
            record = parse_record(line, f"{path}:{number}")
        except DamagedError:
            raise
        except InputError:
            if not partial:
                raise
        else:
            check_shape(record, RECORD, f"{path}:{number}")
            steps.setdefault((record["stage"], record["step"]), {}).update(record)
    names = {key for one in steps.values() for key in one}
    for what, found in (("stages", {stage for stage, _ in steps}), ("names", names)):
        if len(found) > MOST_NAMES:  # each is a row or a figure
            raise InputError(f"{path} must have at most {MOST_NAMES} {what}, got {len(found)}")
    return [steps[key] for key in sorted(steps)]


def _archived_metrics(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The records of every run of an archive of 0.2."""
    runs: dict[str, list[dict[str, Any]]] = {}
    number = 1
    with inside(path.parent, path.name).open(encoding="utf-8", newline="") as file:
        try:
            for number, row in enumerate(csv.DictReader(file), start=2):
                record = {key: parse_json(text) for key, text in row.items() if key != "run" and text}
                record = {"stage": record["stage"], "step": record["step"]} | record
                if not is_record(record):
                    got = json.dumps(record)[:60]
                    raise InputError(f"{path}:{number} must be a record with stage, step and numbers, got {got!r}")
                runs.setdefault(row["run"], []).append(record)
        except (ValueError, TypeError, KeyError, csv.Error) as error:
            raise InputError(f"{path}:{number} must be a record with run, stage and step") from error
    return runs


def _optional_json(path: Path, shape: Any) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no file."""
    return _object(path, shape) if path.exists() else {}


def _object(path: Path, shape: Any) -> dict[str, Any]:
    """The object in a JSON file of a folder, which is not elsewhere and has this shape."""
    check_shape(value := read_object(inside(path.parent, path.name)), shape, path)
    return value
