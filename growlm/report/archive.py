"""Archives of sweeps: their records without checkpoints and shards, small enough for a repository."""

import shutil
from pathlib import Path

from growlm.errors import InputError
from growlm.files import check_output, check_within, whole_folder
from growlm.report.records import read_sweep, study_folders

OF_SWEEP = ("sweep.json", "config.json", "metrics.csv")
OF_RUN = (
    "config.json",
    "metrics.jsonl",
    "growth-*.json",
    "decision-*.json",
    "choice-*.json",
    "init_from.json",
    "run.json",
    "evaluations/results_*.json",
)


def archive(folder: Path, output: Path, ended: bool = False) -> Path:
    """Copies the records of a sweep, or of a folder of sweeps, such as one at several seeds, into a new folder.

    `growlm report` and `growlm fit` read it like the sweep, and `growlm sweep` goes on from it.

    Args:
        folder: of the sweep.
        output: a new or an empty folder.
        ended: leave out the runs that have not ended, which stay pending, in place of refusing them.

    Raises:
        InputError: no sweep's folder, a run that has not ended, an output that is not empty.
    """
    sweeps = study_folders(folder)
    if other := [path for path in sweeps if not (path / "sweep.json").is_file()]:
        raise InputError(f"{other[0]} must be the folder of a sweep, got one without sweep.json")
    files = [folder / "config.json"] if folder not in sweeps else []
    for sweep in sweeps:
        runs = read_sweep(sweep).get("runs") or {}
        statuses = {name: run.get("status") or "pending" for name, run in runs.items()}
        whole = [name for name, status in statuses.items() if status in ("done", "failed")]
        if (left := [name for name in statuses if name not in whole]) and not ended:
            raise InputError(f"run {left[0]} of {sweep} must have ended, got {statuses[left[0]]}")
        files += [sweep / name for name in OF_SWEEP]
        files += [path for name in whole for pattern in OF_RUN for path in (sweep / name).glob(pattern)]
    check_output(output)
    with whole_folder(output) as part:
        for path in filter(Path.exists, files):
            check_within(folder, path)
            target = part / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return output
