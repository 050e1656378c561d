"""What was decided while a run trained, in words: when a stage ended, and which growth was taken."""

from collections.abc import Iterator
from typing import Any

from growlm.report import style
from growlm.report.records import Run


def decision_lines(run: Run) -> Iterator[list[str]]:
    """Of every decision: the stage, from 1, what was decided, after how many of its tokens, and why."""
    for number, decided in run.decisions.items():
        if end := decided.get("end"):
            rule = end.get("rule")
            why = "no rule was met: it took all its tokens"
            if rule and None not in (end.get("value"), end.get("limit")):
                why = f"{rule}: {end['value']:.4g} is below {end['limit']:.4g}"
            yield [str(number + 1), f"ends at step {end['step']:,}", style.count(end.get("tokens")), why]
        if growth := decided.get("growth"):
            yield [str(number + 1), f"grows by {growth['chosen']}", style.UNKNOWN, _ranking(growth)]


def _ranking(growth: dict[str, Any]) -> str:
    """The candidates by their validation losses after the steps of the probe, the lowest first."""
    ends = {name: (one["val_loss"] or [None])[-1] for name, one in growth["candidates"].items()}
    order = sorted(ends, key=lambda name: (ends[name] is None, ends[name] or 0.0, name))
    said = ", ".join(f"{name} {style.loss(ends[name])}" for name in order)
    return f"validation loss after {growth['steps']} steps: {said}"
