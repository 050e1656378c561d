"""What is on record of the stages of a run: where each was begun, what it took, and the run's own view of them."""

import contextlib
import sys
from collections.abc import Callable, Sequence
from operator import itemgetter
from pathlib import Path

from growlm.errors import InUseError, must_be
from growlm.files import locked, read_record, write_sealed
from growlm.training.checkpoint import stored_steps
from growlm.training.chosen import CHOICE_FILE
from growlm.training.decisions import DECISION_FILE, copy_of
from growlm.training.metrics import read_records, write_records
from growlm.training.processes import is_first
from growlm.training.saved import GROWTH_FILE, INIT_FROM_FILE, copy_imported
from growlm.training.stages import Stage

Follower = Callable[[Path], None]  # is called with the folder of a run that has new records


def check_validated(stages: Sequence[Stage], records: Path) -> None:
    """Raises InputError where a stage was begun with another text of validation, which no stage hash knows."""
    for stage in stages:
        path = records / stage.stage_hash / "stage.json"
        begun = read_record(path, "stage") if path.exists() else {}
        if begun.get("validated", stage.text.validated) != stage.text.validated:  # older growlm did not say
            rule = f"that with which {path.parent} was begun"
            raise must_be(f"the text on which stages[{stage.number}] is validated", rule, stage.validated_on)


def commit_of(stage: Stage, records: Path) -> str | None:
    """The commit at which a stage was begun; None where that is not known."""
    path = records / stage.stage_hash / "stage.json"
    return read_record(path, "stage").get("commit") if path.exists() else None


def say_other_commits(name: str, stages: Sequence[Stage], records: Path, here: str | None) -> None:
    """What is trained is not trained anew when growlm's own code has changed, which no stage hash knows: say so."""
    others = sorted({commit_of(stage, records) for stage in stages} - {None, here})
    if is_first() and here and others:
        print(f"growlm: {name}: begun at commit {', '.join(others)}, and this is {here}: it goes on", file=sys.stderr)


def time_before(stage: Stage, records: Path) -> tuple[float, dict[str, float]]:
    """The time of the stages before, to the point where this run left them: training with the growth, and by cause."""
    if not stage.parent:
        return 0.0, {}
    trained = read_records(records / stage.parent.stage_hash / "metrics.jsonl")
    last = max((one for one in trained if one["step"] <= stage.parent.last_step), key=itemgetter("step"), default={})
    report = records / stage.stage_hash / GROWTH_FILE  # not there in the records that nobody reads
    growing = read_record(report, "growth report", "seconds")["seconds"] if report.exists() else 0.0
    return last.get("seconds", 0.0) + growing, last.get("time", {})


def restore_records(stages: Sequence[Stage], store: Path, records: Path, folder: Path) -> None:
    """Give stages back what their files of records have lost and the run's own view still has; what is lost is said.

    A stage that another process trains is left alone.
    """
    published = read_records(folder / "metrics.jsonl", damaged=[])
    for stage in stages:
        path = records / stage.stage_hash / "metrics.jsonl"
        if not is_first() or not path.parent.is_dir():
            continue
        with contextlib.suppress(InUseError), locked(path.parent, timeout=1.0):
            known = [step for step in stored_steps(store / stage.stage_hash / "checkpoints") if step <= stage.last_step]
            damage: list[str] = []
            have = {record["step"]: record for record in read_records(path, damage)}
            own = {record["step"]: record for record in published if record["stage"] == stage.number}
            back = {step: own[step] for step in own.keys() - have.keys() if step <= max(known, default=-1)}
            if not known or not (damage or back or not have):
                continue
            steps = {step: (back | have)[step] for step in sorted(back | have)}
            write_records(path, [*steps.values()])
            reason = damage[0] if damage else f"{path} must have records until step {max(known)}, got {len(have)}"
            got = f"{len(back)} came back from {folder / 'metrics.jsonl'}" if back else "none are left elsewhere"
            print(f"growlm: records are lost: {reason}; {got}", file=sys.stderr, flush=True)


def publish(stages: Sequence[Stage], records: Path, folder: Path, followers: Sequence[Follower] = ()) -> None:
    """Write the run's own view of its stages: records up to where it left them, and reports; tell who follows."""
    merged = []
    for stage in stages:
        stage_folder = records / stage.stage_hash
        merged += [r for r in read_records(stage_folder / "metrics.jsonl") if r["step"] <= stage.last_step]
        copies = {file: copy_of(file, stage.number) for file in (GROWTH_FILE, DECISION_FILE, CHOICE_FILE)}
        copies[INIT_FROM_FILE] = INIT_FROM_FILE
        for name, copy in copies.items():
            if (stage_folder / name).exists():
                write_sealed(folder / copy, read_record(stage_folder / name, "report"))
        copy_imported(stage_folder, folder)
    write_records(folder / "metrics.jsonl", merged)
    for follow in followers:
        follow(folder)
