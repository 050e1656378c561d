"""Records small enough for a repository: what reports and fits read of a finished sweep, in three files.

sweep.json and config.json as the sweep has them, and metrics.csv: a line for every validation loss of every run, and
for the training losses around a growth, until they are back at their level before it.
"""

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

from growlm.errors import InputError
from growlm.files import check_output, whole_folder, write_whole
from growlm.report.records import KEPT, Study, read
from growlm.report.spikes import read_from

# Of a record; and what begins with "benchmark/".
COLUMNS = ("stage", "step", "tokens", "flops", "flops_exact", "seconds", "learning_rate", "loss", "val_loss")


def archive(folder: Path, output: Path) -> Path:
    """Writes the records of a sweep's folder into a new one, which `growlm report` and `growlm fit` read as well.

    Left out are other training losses between validations, growth reports and evaluations.

    Raises:
        InputError: no sweep's folder, a run that has not ended, an output that holds something.
    """
    if not (folder / "sweep.json").is_file():
        raise InputError(f"{folder} holds no sweep.json: allowed is the folder of a sweep")
    study = read(folder)
    if open_runs := [name for name, run in study.runs.items() if run.status not in ("done", "failed")]:
        raise InputError(f"run {open_runs[0]} of {folder} must be ended runs, got {study.runs[open_runs[0]].status}")
    check_output(output)
    with whole_folder(output) as part:
        shutil.copyfile(folder / "sweep.json", part / "sweep.json")
        write_whole(part / "config.json", (json.dumps(study.config, separators=(",", ":")) + "\n").encode())
        write_whole(part / KEPT, _table(study).encode())
    return output


def _table(study: Study) -> str:
    """The CSV: what of a run's records has a validation loss, or is of the loss around a growth."""
    rows = []
    for name, run in study.runs.items():
        told = {(record["stage"], record["step"]) for record in read_from(run)}
        kept = [r for r in run.metrics if "val_loss" in r or (r["stage"], r["step"]) in told]
        rows += [(name, record) for record in kept]
    measured = dict.fromkeys(key for _, record in rows for key in record if key.startswith("benchmark/"))
    columns, text = (*COLUMNS, *measured), io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("run", *columns))
    writer.writerows((name, *(_cell(record.get(column)) for column in columns)) for name, record in rows)
    return text.getvalue()


def _cell(value: Any) -> str:
    """Nine digits; float32 has seven."""
    if value is None:
        return ""
    return str(int(value)) if value == int(value) else f"{value:.9g}"
