"""Losses as the scaling laws take them, by family, of runs or of a table; final ones, or all along a run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from growlm.errors import check_range
from growlm.report.outcomes import finished
from growlm.report.tables import FAMILY, read_table

SCRATCH = "from scratch"
# What is not known of one point is not known of the family.
OPTIONAL = ("params", "tokens", "batch")


@dataclass(frozen=True)
class Points:
    """Losses (nats per token) of one family; float64[points].

    Attributes:
        name: of the family.
        flops, loss: of every point.
        run: which run a point is of.
        params, tokens, batch: parameters, tokens seen and tokens a step; None where not known, or where they change.
    """

    name: str
    flops: np.ndarray
    loss: np.ndarray
    run: np.ndarray
    params: np.ndarray | None = None
    tokens: np.ndarray | None = None
    batch: np.ndarray | None = None


def read_points(
    source: Path,
    log: Callable[[str], None],
    column: Mapping[str, str],
    checkpoints: float | None = None,
    need: Sequence[str] = (),
) -> list[Points]:
    """The points of a folder of runs, or of a table.

    Args:
        source: the folder; or a table with the columns flops and loss, and family, params, tokens and batch if it has
            them.
        log: prints which runs are left out.
        column: what the table calls a column, where that is another name.
        checkpoints: takes every loss that was measured after this share of a run's tokens, and not the last alone. The
            rows of a table with one size and batch are then one run.
        need: columns beside flops and loss that a table must have.

    Raises:
        InputError: no runs, a table that lacks a column, or a share that is not from 0 to 1.
    """
    if checkpoints is not None:
        check_range("checkpoints", checkpoints, low=0, high=1, high_allowed=False)
    if source.is_dir():
        return _of_runs(source, log, checkpoints)
    if checkpoints is not None:
        need = (*need, "params", "tokens")
    need = tuple(dict.fromkeys(("flops", "loss", *need)))
    table = read_table(source, need, column, tuple(key for key in (FAMILY, *OPTIONAL) if key not in need))
    names = table.pop(FAMILY, np.full(len(table["loss"]), source.stem))
    families = []
    for name in dict.fromkeys(names):
        own = {key: values[names == name] for key, values in table.items()}
        if checkpoints is None:
            own["run"] = np.arange(len(own["loss"]))
        else:
            shape = np.column_stack([own["params"], own.get("batch", own["params"])])
            own["run"] = np.unique(shape, axis=0, return_inverse=True)[1].ravel()
            last = np.array([own["tokens"][own["run"] == run].max() for run in own["run"]])
            own = {key: values[own["tokens"] >= checkpoints * last] for key, values in own.items()}
        families.append(Points(str(name), **own))
    return families


def _of_runs(folder: Path, log: Callable[[str], None], checkpoints: float | None) -> list[Points]:
    """The runs from scratch, and but for checkpoints those that grew: these have no one size."""
    runs, families = finished(folder, log), []
    for name, grown in ((SCRATCH, False), ("grown", True))[: 1 if checkpoints is not None else 2]:
        group = [run for run in runs if (run.stages > 1) is grown]
        curves = [run.curve for run in group]
        if checkpoints is None:
            kept = [slice(-1, None)] * len(group)
        else:
            kept = [(one.tokens > 0) & (one.tokens >= checkpoints * one.tokens[-1]) for one in curves]
        rows = {
            key: [getattr(one, key)[part] for one, part in zip(curves, kept, strict=True)] for key in ("flops", "loss")
        }
        counts = [len(part) for part in rows["loss"]]
        if not grown:
            rows["tokens"] = [one.tokens[part] for one, part in zip(curves, kept, strict=True)]
            rows["params"] = [np.full(count, float(run.params)) for run, count in zip(group, counts, strict=True)]
            if all(run.batch for run in group):
                rows["batch"] = [np.full(count, float(run.batch)) for run, count in zip(group, counts, strict=True)]
        columns = {key: np.concatenate(parts) if parts else np.array([]) for key, parts in rows.items()}
        families.append(Points(name, **columns, run=np.repeat(np.arange(len(group)), counts)))
    return families
