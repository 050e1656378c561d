"""The validation losses of runs by source of text, where they are of several."""

from growlm.errors import is_number
from growlm.report import style
from growlm.report.charts import whole_figure
from growlm.report.figures import Axis, Figure
from growlm.report.records import Group

LOSS, EPOCHS = "val_loss/", "epochs/"


def names(group: Group, kind: str = LOSS) -> list[str]:
    """The sources that were validated on, or trained on, in the order of the records."""
    return [key.removeprefix(kind) for key in group.recorded if key.startswith(kind)]


def source_figures(group: Group, prefix: str = "") -> list[Figure]:
    """A figure of the validation loss on each source."""
    figures = []
    for name in names(group):
        file = f"{prefix}val_loss_" + "".join(c if c.isalnum() else "_" for c in name)
        y = Axis(LOSS + name, f"validation loss on {name} (nats per token)", "loss")
        figures += whole_figure(group, file, f"Validation loss on {name}", y, ("flops", "tokens"))
    return figures


def source_table(group: Group) -> tuple[list[str], list[list[str]]]:
    """(header, rows): the last validation loss of every run on each source, and how often each was seen."""
    found, trained, rows = names(group), names(group, EPOCHS), []
    for label, run in group.labelled:
        kept = ((key, value) for record in run.metrics for key, value in record.items() if is_number(value))
        last = {key: value for key, value in kept if key.startswith((LOSS, EPOCHS))}
        epochs = [f"{last[EPOCHS + name]:.2f}" if EPOCHS + name in last else style.UNKNOWN for name in trained]
        rows.append([label, *(style.loss(last.get(LOSS + name)) for name in found), *epochs])
    return ["run", *(f"loss on {name}" for name in found), *(f"epochs of {name}" for name in trained)], rows


def source_text(group: Group) -> str:
    """The table for a terminal; empty where validation is of one source."""
    return style.table(*source_table(group)) if names(group) else ""
