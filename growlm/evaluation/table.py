"""The harness's scores, metric by metric and as a table for a terminal. Imports no JAX."""

from collections.abc import Iterator
from typing import Any

from growlm import files
from growlm.evaluation.resolution import DETAILS, STDERR


def table(results: dict[str, Any]) -> str:
    """The scores of an evaluation as a table for a terminal, and the paper's average where there is one."""
    rows = [("task", "documents", "metric", "value", "standard error")]
    for task, found in results["results"].items():
        shown = found.get("alias") or task, f"{documents:,}" if (documents := found.get("sample_len")) else ""
        for name, value, error in scores(found):
            rows.append((*shown, name, value, error))
            shown = "", ""
    lines = [files.table(rows, align="<><>>", rule=True)]
    if average := results.get("average"):
        shown = ", ".join(f"{name} {value:.4f}" for name, value in average.items())
        lines += ["", f"average of the paper's {len(results['averaged'])} accuracies: {shown}"]
    return "\n".join(lines)


def metrics(found: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(metric, filter, value) of a task; the harness names a metric NAME,FILTER, and the filter is mostly none."""
    for key, value in found.items():
        metric, _, filtered = key.partition(",")
        if filtered and not metric.endswith(STDERR):
            yield metric, filtered, value


def scores(found: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(metric, value, standard error) of a task, as text; what DETAILS names stands in the file alone."""
    for metric, filtered, value in metrics(found):
        if metric in DETAILS:
            continue
        error = found.get(f"{metric}{STDERR},{filtered}")
        name = metric if filtered == "none" else f"{metric} ({filtered})"
        yield name, _number(value), f"± {_number(error)}" if isinstance(error, float) else ""


def _number(value: Any) -> str:
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.4g}"
