"""What is decided while a run trains: kept with its stage, and read at every start, so that nothing is decided twice.

A run's own folder has copies, which are all that an archive of a sweep has.

The stages after a decision follow from it: `growlm.training.stages.resolve` takes decisions as they are read here.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from growlm.checked import EACH, check_shape
from growlm.files import read_record, write_sealed
from growlm.training.criteria import Curve
from growlm.training.metrics import read_records
from growlm.training.processes import broadcast
from growlm.training.stages import Stage

DECISION_FILE = "decision.json"
SUMMARY = "sweep.json"  # has the stages of every run of a sweep by their hashes
# The kinds: the step at which a rule ended the stage, the candidate that a probe chose.
END, GROWTH = "end", "growth"
SHAPE = {END: {"step!": int}, GROWTH: {"chosen!": str}}  # what later stages follow from
RUNS = {"runs!": {EACH: {"status!": str, "stages!": [{"address!": str}]}}}

Decisions = dict[str, Mapping[str, Any]]  # by the hash of a stage, by kind


def read_decisions(store: Path) -> Decisions:
    """All decisions in a folder of stages; of stages that are not there, as in an archive, by its runs' copies.

    Raises InputError where one is none.
    """
    kept = {path.parent.name: path for path in sorted(store.glob(f"*/{DECISION_FILE}"))}
    decisions = {}
    for stage_hash, path in (_copies(store.parent) | kept).items():
        decisions[stage_hash] = read_record(path, "decision")
        check_shape(decisions[stage_hash], SHAPE, path)
    return decisions


def _copies(folder: Path) -> dict[str, Path]:
    """The copies of decisions that the runs of a sweep have which have ended, by the hash of the stage."""
    copies, path = {*folder.glob("*/decision-*.json")}, folder / SUMMARY
    if not copies or not path.exists():
        return {}
    check_shape(summary := read_record(path, SUMMARY), RUNS, path)
    found = {}
    for name, run in summary["runs"].items():
        for number, stage in enumerate(run["stages"] if run["status"] != "pending" else ()):
            if (copy := folder / name / copy_of(DECISION_FILE, number)) in copies:
                found[stage["address"]] = copy
    return found


def copy_of(file: str, number: int) -> str:
    """The name of a run's copy of a file of its stage of this number, such as decision-0.json."""
    return f"{Path(file).stem}-{number}.json"


def keep_decisions(folder: Path, decided: Mapping[str, Any]) -> None:
    """Keep what was decided of a stage in its folder, where that is begun anew."""
    if decided and not (folder / DECISION_FILE).exists():
        write_sealed(folder / DECISION_FILE, decided)


def write_decision(folder: Path, kind: str, decision: Mapping[str, Any]) -> None:
    """Keep a decision of one kind in the folder of its stage."""
    path = folder / DECISION_FILE
    write_sealed(path, (read_record(path, "decision") if path.exists() else {}) | {kind: decision})


class Criterion:
    """Judges by its rule whether a stage ends, from its validation losses alone, which are on record.

    Validation counts where `every_tokens` asks for it, not where another run leaves the stage, and once all masks are
    open: a run that goes on judges as one that was never stopped.

    folder: of the stage, where its records lie and the decision is kept. known: the step of the state that goes on.
    """

    def __init__(self, stage: Stage, folder: Path, known: int):
        self._stage, self._folder = stage, folder
        self._rule = None if END in stage.decided else stage.config.grow_when
        self._flops: list[float] = []
        self._losses: list[float] = []
        for record in read_records(folder / "metrics.jsonl") if self._rule else ():
            if record["step"] <= known and "val_loss" in record:
                self.judge(record["step"], record["val_loss"])

    def ends(self, step: int, validation_loss: float) -> bool:
        """Whether the stage ends at this step; the decision is kept. Of several processes the first one judges."""
        decision = self.judge(step, validation_loss)
        if not self._rule or not broadcast(decision is not None):  # the others have no records of before
            return False
        write_decision(self._folder, END, decision or {"step": step})
        return True

    def judge(self, step: int, validation_loss: float) -> dict[str, Any] | None:
        """The decision to end the stage at this step; None where it goes on. Steps come in their order."""
        stage = self._stage
        due = step > stage.first_step and stage.passes(step, stage.evaluation.every_tokens)
        if not self._rule or not due or not math.isfinite(validation_loss) or stage.progress_at(step) is not None:
            return None
        self._flops.append(stage.cost_at(step).flops)
        self._losses.append(validation_loss)
        tokens = stage.tokens_at(step) - stage.first_tokens
        if tokens < self._rule.min_tokens:
            return None
        measured = self._rule.measure(Curve(np.array(self._flops), np.array(self._losses)))
        if measured is None or not measured.value < measured.limit:
            return None
        said = {"step": step, "tokens": tokens, "rule": self._rule.rule, "options": dict(self._rule.options)}
        curve = {"flops": list(self._flops), "losses": list(self._losses)}
        return said | {"value": measured.value, "limit": measured.limit} | curve
