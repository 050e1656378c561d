"""The search of a sweep: what every run came to over the values that were tried for it, and what that took."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from growlm.errors import is_number
from growlm.report import style
from growlm.report.charts import figure_of, styles
from growlm.report.figures import Axis, Figure, Mark, Series
from growlm.report.records import Group
from growlm.report.shown import shown

LOSS = Axis("val_loss", "last validation loss (nats per token)", "loss")
FORMAT = "{:.4g}".format


def search_notes(group: Group) -> list[str]:
    """What the searches took beside the runs, and which runs did best at the end of what was tried."""
    found = []
    for search in searches(group):
        key = search["key"]
        runs, tries = len(search["runs"]), max(len(of_run["tries"]) for of_run in search["runs"].values())
        found.append(
            f"{key} was searched at seed {search['seed']}: {tries} tries for each of {runs} runs, the best by the last "
            f"validation loss. The search took {style.flops(search['flops'])} FLOPs beside those of the runs."
        )
        if _elsewhere(group, search):
            found.append(
                f"Seed {search['seed']} is one of the seeds of the tables, and there every run is the lowest of its "
                "tries: by chance it lies lower there than the same value does elsewhere. Beside the tries is the mean "
                "of the other seeds."
            )
        alike: dict[str, list[str]] = {}
        for name, of_run in search["runs"].items():
            if of_run["at_end"]:
                values = [one["value"] for one in of_run["tries"]]
                way = "smaller" if of_run["chosen"] == min(values) else "larger"
                tried = f"what was tried, {_shown(min(values))} to {_shown(max(values))}"
                note = f"the best {key}, {_shown(of_run['chosen'])}, lies at the end of {tried}: try {way} ones."
                alike.setdefault(note, []).append(name)
        found += [f"{', '.join(names)}: {note}" for note, names in alike.items()]
    return found


def search_table(group: Group) -> tuple[list[str], list[list[str]]]:
    """Header and lines of a table of all tries: a line for every run, a column for every value; (none, none) without.

    The chosen one has a star. Where there are other seeds, on which nothing was tried, their mean has a column.
    """
    several = searches(group)
    if not several:
        return [], []
    values = _values(several)
    lines, others = [], {search["seed"]: _elsewhere(group, search) for search in several}
    for search in several:
        seed = f", seed {search['seed']}" if len(several) > 1 else ""
        for name, of_run in search["runs"].items():
            cells = {one["value"]: _cell(one, of_run["chosen"]) for one in of_run["tries"]}
            end = "yes" if of_run["at_end"] else style.UNKNOWN
            mean = [style.loss(others[search["seed"]].get(name))] if any(others.values()) else []
            lines.append([f"{name}{seed}", *(cells.get(value, style.UNKNOWN) for value in values), *mean, end])
    header = ["run", *(f"{several[0]['key']} {_shown(value)}" for value in values)]
    return [*header, *(["other seeds"] if any(others.values()) else []), "at the end"], lines


def _elsewhere(group: Group, search: dict[str, Any]) -> dict[str, float]:
    """Of each searched run the mean of its last validation losses at seeds on which nothing was tried."""
    found: dict[str, list[float]] = {}
    for study in group.studies.values():
        for name in search["runs"]:
            run = study.runs.get(name)
            if run is None or run.status != "done" or not (last := run.last_validated):
                continue
            seed = run.config.get("seed")
            if isinstance(seed, int) and seed != search["seed"]:
                found.setdefault(name, []).append(last["val_loss"])
    return {name: float(np.mean(losses)) for name, losses in found.items()}


def search_text(group: Group) -> str:
    """The table of the tries and the notes, for a terminal; empty without a search."""
    header, lines = search_table(group)
    return "\n".join([style.table(header, lines), "", *search_notes(group)]) if lines else ""


def search_figure(group: Group, name: str = "search") -> Figure | None:
    """The last validation loss of every run over the values tried for it, the chosen one marked; None without one."""
    several = searches(group)
    curves: dict[str, list[Series]] = {}
    for search in several:
        for run, one in _series(group, search, len(several) > 1):
            curves.setdefault(run, []).append(one)
    found = shown(group, curves)
    if not found.drawn:
        return None
    key, values = several[0]["key"], _values(several)
    label = key.replace("_", " ")
    if all(map(is_number, values)):
        x = Axis(key, label, "number", log=min(values) > 0, ticks=tuple(map(float, values)))
        seen = _reach(values, x.log)
    else:
        x, seen = Axis(key, label, "name", names=tuple(map(str, values))), (-0.5, len(values) - 0.5)
    losses = np.concatenate([one.columns[LOSS.key] for one in found.drawn])
    pad = 0.08 * (losses.max() - losses.min()) or 0.01
    note = "A diamond is the value that was chosen. A try that diverged has no point."
    view = {key: (*seen, losses.min() - pad, losses.max() + pad)}
    return figure_of(found, name, f"Search over {key}", (x,), LOSS, view, note)


def _reach(values: Sequence[float], log: bool) -> tuple[float, float]:
    """The range of the axis: all values, and some room."""
    low, high = min(values), max(values)
    if log:
        room = max(high / low, 2.0) ** 0.08
        return low / room, high * room
    room = 0.08 * ((high - low) or 1.0)
    return low - room, high + room


def _series(group: Group, search: dict[str, Any], several: bool) -> Iterator[tuple[str, Series]]:
    """Every searched run with a try that is done, and its curve in its colour of the other charts."""
    looks, values = styles(group), _values(searches(group))
    for name, of_run in search["runs"].items():
        if name not in group.first.runs:
            continue
        role = group.first.runs[name].role
        label = name if role == "run" else f"{name} ({role})"
        done = [(_place(one["value"], values), one) for one in of_run["tries"] if one["val_loss"] is not None]
        if not done:
            continue
        done.sort(key=lambda pair: pair[0])
        columns = {
            search["key"]: np.array([place for place, _ in done], np.float64),
            LOSS.key: np.array([one["val_loss"] for _, one in done], np.float64),
        }
        chosen = [(place, one) for place, one in done if one["value"] == of_run["chosen"]]
        marks = [Mark("chosen", {search["key"]: place}, one["val_loss"], "chosen") for place, one in chosen]
        own = f"{name}, seed {search['seed']}" if several else name
        yield name, Series(own, label, columns, "line", *looks[name], tuple(marks))


def searches(group: Group) -> list[dict[str, Any]]:
    """The searches of the studies, each once, as far as any of them knows it.

    All seeds of a sweep have the one of its first seed; while it trains the others know what was done when they began.
    """
    known = [study.search for study in group.studies.values() if study.search.get("runs")]
    return list({search["seed"]: search for search in sorted(known, key=_done)}.values())


def _done(search: dict[str, Any]) -> int:
    tries = (one for of_run in search["runs"].values() for one in of_run["tries"])
    return sum(one["val_loss"] is not None for one in tries)


def _values(several: Sequence[dict[str, Any]]) -> list[Any]:
    """All values that were tried: numbers in order, names as they come."""
    runs = (of_run for search in several for of_run in search["runs"].values())
    values = list(dict.fromkeys(one["value"] for of_run in runs for one in of_run["tries"]))
    return sorted(values) if all(map(is_number, values)) else values


def _place(value: Any, values: Sequence[Any]) -> float:
    """Where a value lies on the axis: names stand beside each other."""
    return float(value) if all(map(is_number, values)) else float(values.index(value))


def _shown(value: Any) -> str:
    return FORMAT(value) if is_number(value) else str(value)


def _cell(one: dict[str, Any], chosen: Any) -> str:
    """The loss of a try, or how it stands."""
    if one["val_loss"] is None:
        return one["status"]
    return style.loss(one["val_loss"]) + (" *" if one["value"] == chosen else "")
