"""Goodput: the share of a run's time that went into training which was kept, and what the rest went into."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from growlm.errors import is_number
from growlm.files import table
from growlm.report import style
from growlm.report.records import Group, Run

PRODUCTIVE = "train"
# What else a run's records count seconds under, and what a table calls it.
CAUSES = {
    "start": "start",
    "compile": "compiling",
    "data": "data",
    "evaluate": "evaluating",
    "save": "saving",
    "grow": "growing",
    "lost": "lost",
}
HEADER = ("run", "goodput", "of", *CAUSES.values())
NOTE = (
    "Goodput is training over all time of a run's processes until its last record, in every start. start: imports, the "
    "corpus, reading a checkpoint; data: waiting for batches; lost: trained, evaluated, saved or grown after the "
    "checkpoint from which the run went on. What a killed process spent after its last record is not known, and the "
    "time between two processes is no process's."
)


@dataclass(frozen=True)
class Goodput:
    """The seconds of a run, by cause, over all of its stages and starts."""

    seconds: dict[str, float]

    @property
    def all_seconds(self) -> float:
        """All of them."""
        return sum(self.seconds.values())

    @property
    def share(self) -> float:
        """Of them that were productive, from 0 to 1."""
        return self.seconds.get(PRODUCTIVE, 0.0) / self.all_seconds


def goodput(run: Run) -> Goodput | None:
    """That of a run; None where its records, of an older growlm, do not say."""
    said = next((record["time"] for record in reversed(run.metrics) if "time" in record), None)
    seconds = {cause: said[cause] for cause in said if is_number(said[cause])} if isinstance(said, dict) else {}
    return Goodput(seconds) if sum(seconds.values()) > 0 else None


def goodputs(group: Group) -> Iterator[tuple[str, Goodput]]:
    """The runs of a group whose records say it, with their labels."""
    for label, run in group.labelled:
        if found := goodput(run):
            yield label, found


def goodput_lines(group: Group) -> list[list[str]]:
    """A line for each run, of the cells that HEADER names."""
    lines = []
    for label, found in goodputs(group):
        cells = [f"{found.seconds.get(cause, 0.0) / found.all_seconds:.1%}" for cause in CAUSES]
        lines.append([label, f"{found.share:.1%}", style.duration(found.all_seconds), *cells])
    return lines


def goodput_text(group: Group) -> str:
    """The lines as text; empty without any."""
    lines = goodput_lines(group)
    return table([HEADER, *lines], "<>", rule=True) if lines else ""


def goodput_values(group: Group) -> dict[str, dict[str, Any]]:
    """The goodput of every run that has one, and its seconds by cause."""
    return {label: {"goodput": found.share, "seconds": found.seconds} for label, found in goodputs(group)}
