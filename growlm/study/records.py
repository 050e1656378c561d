"""What the folder of a run or of a sweep holds, as plain values."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from growlm.errors import InputError


@dataclass(frozen=True)
class Run:
    """One run: its records in the order in which they were made, one per stage and step.

    `role` is "grown", "baseline", "control" or "run", and `purpose` says what a control is for.

    `growths` are the reports of growth-1.json, growth-2.json ... `stages` is what sweep.json says of each
    stage: its address, tokens and FLOPs, and whether it was reused from another run.
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


@dataclass(frozen=True)
class Study:
    """The runs of a folder, by name in the order of the sweep, and what the sweep says of itself."""

    title: str
    runs: dict[str, Run]
    baseline: str | None = None
    command: str | None = None
    hardware: str | None = None
    commit: str | None = None
    flops_trained: float | None = None
    flops_saved_by_sharing: float | None = None


def read(folder: str | Path) -> Study:
    """The study in a sweep folder, or that of a single run in a run folder.

    Runs of a sweep that have not started yet are there without records.

    Raises:
        InputError: no such folder, neither kind of folder, a broken file, or no run with any metrics.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}")
    if (folder / "sweep.json").exists():
        study = _sweep(folder)
    elif (folder / "metrics.jsonl").exists():
        name = folder.resolve().name
        study = Study(name, {name: _run(folder, name)})
    else:
        raise InputError(f"{folder} holds neither sweep.json nor metrics.jsonl: not a run, nor a sweep")
    if not any(run.metrics for run in study.runs.values()):
        raise InputError(f"no run in {folder} has any metrics yet")
    return study


def _sweep(folder: Path) -> Study:
    """The study that sweep.json describes."""
    sweep = _json(folder / "sweep.json")
    runs = {name: _run(folder / name, name, **_standing(name, sweep)) for name in sweep.get("runs", {})}
    said = ("command", "hardware", "commit", "flops_trained", "flops_saved_by_sharing", "baseline")
    return Study(sweep.get("title") or folder.resolve().name, runs, **{key: sweep.get(key) for key in said})


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
    config = _json(folder / "config.json") if (folder / "config.json").exists() else {}
    reports = sorted(folder.glob("growth-*.json"), key=lambda path: (len(path.name), path.name))
    return Run(name, config, _metrics(folder / "metrics.jsonl"), [_json(path) for path in reports], **standing)


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


def _json(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold one JSON object, not {type(value).__name__}")
    return value
