"""Families of final losses over compute, judged: what the gain of one over another does, as text and figures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from growlm.errors import InputError, unknown
from growlm.laws.intervals import Interval
from growlm.laws.multiplier import (
    BEHIND,
    MODELS,
    Family,
    FamilyFit,
    Judgement,
    exponents_above_floor,
    fit_families,
    judge,
)
from growlm.report import style
from growlm.report.figures import Figure
from growlm.report.law_figures import multiplier_figure
from growlm.report.outcomes import check_alike, finished
from growlm.report.records import Group, read_groups
from growlm.report.tables import FAMILY, read_table

BEYOND = (10, 1e3, 1e5)  # times the baseline's largest budget, where the models are asked by default


def fit_multiplier(
    source: Path,
    log: Callable[[str], None],
    column: Mapping[str, str] | None = None,
    families: Sequence[str] = (),
    at: Sequence[float] = (),
    figures: Path | None = None,
) -> list[Judgement]:
    """Judges the gain of every family over the first one, prints it, and returns what was judged.

    Args:
        source: a folder of runs, whose families are those from scratch and those grown; or a table with the columns
            family, flops and loss.
        log: prints a part of the text.
        column: what the table calls a column, where that is another name.
        families: their names, the baseline first; all by default, in order.
        at: FLOPs of the baseline at which the models are asked; by default beyond its largest budget.
        figures: a folder for a figure of every pair.

    Raises:
        InputError: no such families, fewer than two, too few budgets, or a table that lacks a column.
    """
    from growlm.report.drawing import write_figure

    baseline, *others = every = _families(source, log, column or {}, families)
    at = at or [float(times * baseline.flops[-1]) for times in BEYOND]
    found = [judge(other, baseline) for other in others]
    if len(found) > 1:
        log(_overview(found, every))
    for one in found:
        log(f"\n{judgement_text(one, at)}")
        if figures and (figure := multiplier_figure(one)):
            figures.mkdir(parents=True, exist_ok=True)
            write_figure(figures, figure)
    log(f"\n{_above_floor(every, baseline)}")
    return found


def judgement_text(found: Judgement, at: Sequence[float]) -> str:
    """The measured multipliers, the four models, and what is established and what is not."""
    pair = (found.baseline.name, found.family.name)
    every = np.concatenate([found.baseline.flops, found.family.flops])
    over = f"{len(every)} runs, {style.flops(every.min())} to {style.flops(every.max())} FLOPs"
    header = [f"FLOPs of {pair[0]}", *map(style.flops, found.flops)]
    measured = style.table(header, [["measured multiplier", *map("{:.3f}".format, found.multipliers)]])
    fits = found.fits.values()
    rows = [["AICc, all runs", *(f"{fit.aicc:.1f}" for fit in fits)]]
    if found.trimmed:
        rows.append(["without the smallest", *(f"{fit.aicc:.1f}" for fit in found.trimmed.values())])
    rows.append(["residual, mnat", *(f"{1e3 * fit.residual:.2f}" for fit in fits)])
    rows += [[f"g of {name}", *(_shown(fit.exponent(name), 4) for fit in fits)] for name in pair]
    rows += [[f"E of {name}", *(_shown(fit.floor(name), 3) for fit in fits)] for name in pair]
    for flops in [*found.flops[[0, -1][: len(found.flops)]], *at]:
        said = [found.multiplier(fit, flops) for fit in fits]
        rows.append(
            [f"multiplier, {style.flops(flops)}", *("never" if one is None else _shown(one, 2) for one in said)]
        )
    models = style.table(["L = E + A C^-g [95 %]", *found.fits], rows)
    return "\n".join([f"{pair[1]} over {pair[0]}: {over}", "", measured, "", models, "", *_verdict(found, at)])


def _verdict(found: Judgement, at: Sequence[float]) -> list[str]:
    """What is established of the two families, and what is not, a line each."""
    supported = found.supported()
    models = [model for model in MODELS if any(fit.model == model for _, fit in supported)]
    known, open_ = [], []
    if len(found.flops):
        ends = f"{found.multipliers[0]:.2f} at {style.flops(found.flops[0])} FLOPs to {found.multipliers[-1]:.2f} at "
        gain = f"{found.family.name} needs less compute than {found.baseline.name} for the same loss: {ends}"
        (known if found.gains() else open_).append(f"{gain}{style.flops(found.flops[-1])}")
    else:
        open_.append(f"any gain: {found.family.name} has no loss of {found.baseline.name} within its own budgets")
    if found.changes():
        way = "rises" if len(found.flops) < 2 or found.multipliers[-1] > found.multipliers[0] else "falls"
        behind = min(_behind(fits, "constant") for fits in (found.fits, found.trimmed) if fits)
        known.append(f"the gain {way} with compute: a constant one is {behind:.1f} behind in AICc")
        ways = "of what was tried it alone is left" if len(models) == 1 else f"left are {' and '.join(models)}"
        open_.append(f"how it does: {ways}, less than {BEHIND:g} behind with or without the smallest budget")
    else:
        open_.append("that the gain changes with compute: a constant one is as good")
    largest = max(found.baseline.flops[-1], found.family.flops[-1])
    for flops in (flops for flops in at if flops > largest):
        open_.append(
            f"the gain at {style.flops(flops)} FLOPs, {flops / largest:.3g} x the largest: {_range(found, flops)}"
        )
    if all(len(one.curve().flops) == len(one.flops) for one in (found.baseline, found.family)):
        open_.append("what another seed gives: there is one run a budget")
    blocks = (("established, of these runs:", known), ("not established:", open_))
    return [line for title, lines in blocks if lines for line in (title, *(f"  - {line}" for line in lines))]


def _range(found: Judgement, flops: float) -> str:
    """From the least to the most that a supported model says, each with its name."""
    said = [(found.multiplier(fit, flops), name) for name, fit in found.supported()]
    if never := [name for one, name in said if one is None]:
        return f"the baseline's loss is never reached ({never[0]})"
    values = sorted((one.value, name) for one, name in said if one)
    return " to ".join(f"{value:.2f} ({name})" for value, name in (values[0], values[-1]))


def _behind(fits: Mapping[str, FamilyFit], model: str) -> float:
    return fits[model].aicc - min(fit.aicc for fit in fits.values())


def _overview(found: Sequence[Judgement], families: Sequence[Family]) -> str:
    """The AICc of every pair and of all families together."""
    rows = [(f"{one.family.name} over {one.baseline.name}", one.fits) for one in found]
    rows.append(("all families", {model: fit_families(families, model) for model in MODELS}))
    cells = []
    for name, fits in rows:
        least = min(fit.aicc for fit in fits.values())
        best = [f"{fit.aicc:.1f}{'*' if fit.aicc == least else ' '}" for fit in fits.values()]
        cells.append([name, str(next(iter(fits.values())).points), *best])
    return style.table(["AICc (* the lowest)", "runs", *MODELS], cells)


def _above_floor(families: Sequence[Family], baseline: Family) -> str:
    """The exponents above the baseline's floor, or why there are none."""
    try:
        floor, exponents = exponents_above_floor(families, baseline)
    except InputError as error:
        return f"no exponents above a shared floor: {error}"
    title = f"g, above the floor {floor:.4f} of {baseline.name} [95 %]"
    table = style.table([title, "as arXiv 2609.19107"], [(name, _shown(one, 4)) for name, one in exponents.items()])
    return f"{table}\nThe floor is taken to be everybody's, so that a lower one shows as a steeper exponent."


def named_families(groups: Sequence[Group]) -> list[tuple[Family, list[Family], list[str]]]:
    """Of sweeps that have the same baseline at four budgets or more: it, its grown runs by name, and the problems.

    A family is the runs of one name, of all sweeps and seeds, at the end of their training; without those that began
    from a checkpoint, whose cost they do not count.
    """
    ends: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for group in groups:
        for run in group.runs:
            if run.role in ("baseline", "grown") and run.status == "done" and run.metrics and not run.init_from:
                last = run.last_validated
                if last and last.get("flops"):
                    own = ends.setdefault(str(group.first.baseline), {}).setdefault(run.name, [])
                    own.append((last["flops"], last["val_loss"]))
    found = []
    for name, runs in ends.items():
        families, problems = {}, []
        for one, points in runs.items():
            try:
                families[one] = Family(one, *np.array(points, float).T)
            except InputError as error:
                problems.append(str(error))
        if (baseline := families.pop(name, None)) and families:
            found.append((baseline, [*families.values()], problems))
    return found


def multiplier_figures(groups: Sequence[Group], prefix: str = "") -> list[tuple[Figure, str]]:
    """A figure of the multiplier over compute for every grown family of sweeps of several scales, with what it says."""
    found = []
    for baseline, families, _ in named_families(groups):
        for family in families:
            one = judge(family, baseline)
            if figure := multiplier_figure(one):
                at = [float(times * baseline.flops[-1]) for times in BEYOND[:1]]
                found.append((replace(figure, name=f"{prefix}{figure.name}"), judgement_text(one, at)))
    return found


def _families(
    source: Path, log: Callable[[str], None], columns: Mapping[str, str], names: Sequence[str]
) -> list[Family]:
    """The families of a table or of runs, the baseline first."""
    if source.is_dir():
        named = [one for baseline, grown, _ in named_families(read_groups(source)) for one in (baseline, *grown)]
        rows = [(one.name, *pair) for one in named for pair in zip(one.flops, one.loss, strict=True)]
        rows = rows or _runs(source, log)
    else:
        table = read_table(source, (FAMILY, "flops", "loss"), columns)
        rows = [*zip(table[FAMILY], table["flops"], table["loss"], strict=True)]
    have = list(dict.fromkeys(str(name) for name, *_ in rows))
    for name in names:
        if name not in have:
            raise unknown("family", name, have, str(source))
    chosen = list(dict.fromkeys(names or have))
    if len(chosen) < 2:
        raise InputError(f"the multiplier must have two families, got {', '.join(chosen)}")
    return [Family(name, *np.array([row[1:] for row in rows if row[0] == name], float).T) for name in chosen]


def _runs(folder: Path, log: Callable[[str], None]) -> list[tuple[str, float, float]]:
    """The final losses of finished runs, those from scratch first."""
    runs = finished(folder, log)
    check_alike("growth", [run.growth for run in runs if run.growth])
    ends = [("grown" if run.growth else "from scratch", run.curve.flops[-1], run.curve.loss[-1]) for run in runs]
    return sorted(ends, key=lambda row: row[0] == "grown")


def _shown(interval: Interval, digits: int) -> str:
    return style.interval(interval, f"{{:.{digits}f}}".format)
