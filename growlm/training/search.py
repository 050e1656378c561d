"""The search of a sweep: what its tries came to, which is the best, and what sweep.json says of it."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from growlm.errors import is_number
from growlm.training.metrics import read_records
from growlm.training.settings import SearchConfig

UNDECIDED, LOST, BROKEN = -1, -2, -3  # tries are open; all came to nothing; one failed and may do better

Try = dict[str, Any]  # value, run, val_loss, status


def tries_of(search: SearchConfig, name: str, entries: Mapping[str, Mapping[str, Any]], folder: Path) -> list[Try]:
    """The tries of a run in their order, as sweep.json has them.

    A try that diverged has failed. One that failed otherwise will be trained again: it is pending.

    Args:
      search: of the sweep.
      name: of the run.
      entries: the runs of sweep.json at the first seed.
      folder: of that.
    """
    tries = []
    for trial, value in search.tries[name].items():
        entry = entries.get(trial, {"status": "pending"})
        status = "pending" if entry["status"] == "failed" and not entry.get("diverged") else entry["status"]
        loss = _last_loss(folder / trial) if status == "done" else None
        tries.append({"value": value, "run": trial, "val_loss": loss, "status": status})
    return tries


def _last_loss(folder: Path) -> float | None:
    """The last validation loss of a run; None where there is none, or none that is finite."""
    losses = [record["val_loss"] for record in read_records(folder / "metrics.jsonl") if "val_loss" in record]
    return losses[-1] if losses and losses[-1] is not None and math.isfinite(losses[-1]) else None


def best(tries: Sequence[Try], entries: Mapping[str, Mapping[str, Any]]) -> int:
    """The number of the try with the lowest loss; of equal ones that of the smaller value.

    UNDECIDED while a try is open, BROKEN where that has failed, LOST where no try has a finite loss.
    """
    if still := [each["run"] for each in tries if each["status"] == "pending"]:
        return BROKEN if any(entries[run]["status"] == "failed" for run in still if run in entries) else UNDECIDED
    numbers = [number for number, each in enumerate(tries) if each["val_loss"] is not None]
    ranks = _ranks(tries)
    return min(numbers, key=lambda number: (tries[number]["val_loss"], ranks[number]), default=LOST)


def _ranks(tries: Sequence[Try]) -> list[float]:
    """Where each try stands in its grid: its value, or of names its place."""
    values = [each["value"] for each in tries]
    return values if all(map(is_number, values)) else [*range(len(values))]


def block(
    search: SearchConfig, seed: int, flops: float, entries: Mapping[str, Mapping[str, Any]], folder: Path
) -> dict[str, Any]:
    """What sweep.json says of a search: key, seed, FLOPs of tries that no run is, and for each run its tries.

    `chosen` is null until all tries of the run have ended. `at_end`: the best of numbers is the smallest or the largest
    of them. Arguments as in `tries_of`.
    """
    runs = {}
    for name in search.tries:
        tries = tries_of(search, name, entries, folder)
        number = best(tries, entries)
        chosen = tries[number]["value"] if number >= 0 else None
        values = [each["value"] for each in tries]
        at_end = chosen is not None and all(map(is_number, values)) and chosen in (min(values), max(values))
        runs[name] = {"tries": tries, "chosen": chosen, "at_end": at_end}
    return {"key": search.key, "seed": seed, "flops": flops, "runs": runs}
