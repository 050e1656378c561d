"""Archives of sweeps: their records without checkpoints and shards, small enough for a repository."""

import shutil
from pathlib import Path

from growlm.errors import InputError
from growlm.files import check_output, whole_folder
from growlm.report.records import read, study_folders

OF_SWEEP = ("sweep.json", "config.json", "metrics.csv")
OF_RUN = (
    "config.json",
    "metrics.jsonl",
    "growth-*.json",
    "decision-*.json",
    "init_from.json",
    "run.json",
    "evaluations/results_*.json",
)


def archive(folder: Path, output: Path) -> Path:
    """Copies the records of a sweep, or of a folder of sweeps, such as one at several seeds, into a new folder.

    `growlm report` and `growlm fit` read it like the sweep.

    Raises:
        InputError: no sweep's folder, a run that has not ended, an output that is not empty.
    """
    sweeps = study_folders(folder)
    if other := [path for path in sweeps if not (path / "sweep.json").is_file()]:
        raise InputError(f"{other[0]} must be the folder of a sweep, got one without sweep.json")
    files = [folder / "config.json"] if folder not in sweeps else []
    for sweep in sweeps:
        study = read(sweep)
        runs = study.runs | study.trials
        if pending := [name for name, run in runs.items() if run.status not in ("done", "failed")]:
            raise InputError(f"run {pending[0]} of {sweep} must have ended, got {runs[pending[0]].status}")
        files += [sweep / name for name in OF_SWEEP]
        files += [path for name in runs for pattern in OF_RUN for path in (sweep / name).glob(pattern)]
    check_output(output)
    with whole_folder(output) as part:
        for path in filter(Path.exists, files):
            target = part / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return output
