"""Archives of sweeps: their records without checkpoints and shards, small enough for a repository."""

import shutil
from pathlib import Path

from growlm.errors import InputError
from growlm.files import check_output, whole_folder
from growlm.report.records import read

OF_SWEEP = ("sweep.json", "config.json", "metrics.csv")
OF_RUN = ("config.json", "metrics.jsonl", "growth-*.json", "init_from.json", "run.json", "evaluations/results_*.json")


def archive(folder: Path, output: Path) -> Path:
    """Copies the records of a sweep into a new folder, which `growlm report` and `growlm fit` read like the sweep.

    Raises:
        InputError: no sweep's folder, a run that has not ended, an output that is not empty.
    """
    if not (folder / "sweep.json").is_file():
        raise InputError(f"{folder} must be the folder of a sweep, got one without sweep.json")
    study = read(folder)
    if pending := [name for name, run in study.runs.items() if run.status not in ("done", "failed")]:
        raise InputError(f"run {pending[0]} of {folder} must have ended, got {study.runs[pending[0]].status}")
    check_output(output)
    files = [path for path in (folder / name for name in OF_SWEEP) if path.exists()]
    files += [path for name in study.runs for pattern in OF_RUN for path in (folder / name).glob(pattern)]
    with whole_folder(output) as part:
        for path in files:
            target = part / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return output
