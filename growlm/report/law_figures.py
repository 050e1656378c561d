"""Figures of when, and by how much, to grow: losses with their parabolas, and the law through the minima."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from growlm.errors import InputError
from growlm.laws.intervals import distinct
from growlm.laws.isoflop import Slice
from growlm.laws.multiplier import Judgement
from growlm.laws.timing import Answer
from growlm.report import style
from growlm.report.charts import COLOURS, DASHES
from growlm.report.figures import Axis, Figure, Mark, Series
from growlm.report.fit import KEYS, GrowthFit, alike, fit_growth
from growlm.report.outcomes import Outcome, outcome
from growlm.report.records import Group

VARIED = {
    "timing": Axis("grown_at", "tokens before growth", "count", log=True),
    "factor": Axis("factor", "growth factor, in parameters of the blocks", "number", log=True),
    "share": Axis("share", "share of the tokens before growth", "number"),
}
LOSS = Axis("val_loss", "validation loss (nats per token)", "loss")
BUDGET = Axis("flops", "budget (FLOPs)", "flops", log=True)
_TITLES = {"timing": "When to grow", "factor": "By how much to grow", "share": "When to grow"}


def growth_fits(groups: Iterable[Group]) -> list[GrowthFit | str]:
    """The laws that the runs of these groups determine; instead of a law, a line that says why there is none.

    A group whose grown runs differ only in when they grew counts for the law of timing, one whose runs differ only in
    the growth factor for that law. Groups that grew alike otherwise are fitted together: a law needs several sizes.
    """
    found: list[tuple[str, list[Outcome]]] = []
    problems: list[str] = []
    for group in groups:
        try:
            runs = grown_once(group)
        except InputError as error:
            problems.append(str(error))
            continue
        if law := varied(runs):
            others = (others for known, others in found if known == law)
            same = next((each for each in others if all(alike(law, runs[0], other) for other in each)), None)
            if same is None:
                found.append((law, same := []))
            same.extend(runs)
    fits: list[GrowthFit | str] = []
    for law, runs in found:
        try:
            fits.append(fit_growth(law, runs))
        except InputError as error:
            fits.append(f"{_TITLES[law]}: {error}")
    return [*fits, *problems]


def grown_once(group: Group) -> list[Outcome]:
    """The runs of a group with one growth that are no controls, at the seeds at which all of them are done.

    A seed that is missing at one value would pull a parabola there. Runs that began from a saved model are left out:
    the tokens before their growth are not known.
    """
    names = [name for name, run in group.first.runs.items() if run.role in ("grown", "run") and not run.init_from]
    whole = [s for s in group.studies.values() if all(s.runs[n].status == "done" and s.runs[n].metrics for n in names)]
    runs = [outcome(name, study.runs[name]) for study in whole for name in names]
    return [run for run in runs if run.stages == 2 and math.isfinite(run.factor)]


def varied(runs: Sequence[Outcome]) -> str | None:
    """Which law the runs count for: what of their growth differs, if only one thing does."""
    if len({run.growth for run in runs}) != 1:
        return None
    times, factors = (distinct(np.array([getattr(run, key) for run in runs])) for key in KEYS.values())
    if times > 1 and factors == 1:
        return "timing"
    return "factor" if factors > 1 and times == 1 else None


def parabola_figure(found: GrowthFit) -> Figure | None:
    """Losses over what was varied, at every size and budget, with parabolas and their minima."""
    x = VARIED[found.law]
    slices = [one for one in found.slices if len(one.x)]
    series = tuple(part for number, one in enumerate(slices) for part in _parabola(one, number, x))
    if not series:
        return None
    every = np.concatenate([one.x for one in slices])
    losses = np.concatenate([one.loss for one in slices])
    along = (every.min() / 1.25, every.max() * 1.25) if x.log else _padded(every)
    note = (
        f"{_seeds(slices)} A point is the loss of a run at that budget; a diamond is the minimum of a parabola with "
        "its 95 % interval. A parabola without a diamond has no minimum that can be used."
    )
    return Figure(
        f"{found.law}_valley",
        f"{_TITLES[found.law]}: loss",
        (x,),
        LOSS,
        series,
        {x.key: (*along, *_padded(losses))},
        note,
    )


def law_figure(found: GrowthFit) -> Figure | None:
    """The minima over budgets with their intervals, a colour for every size, and the law if there is one."""
    y = VARIED[found.law]
    best = [one for one in found.slices if one.best is not None]
    if not best:
        return None
    series: list[Series] = []
    for number, params in enumerate(dict.fromkeys(one.params for one in best)):
        own = [one for one in best if one.params == params]
        label, flops = f"{style.count(params)} parameters", np.array([one.flops for one in own])
        value, low, high = (np.array([getattr(one.best, end) for one in own]) for end in ("value", "low", "high"))
        columns = {BUDGET.key: flops, y.key: value, "low": low, "high": high}
        series.append(Series(f"{label}, minima", label, columns, "points", number))
        if found.fit:
            along = np.geomspace(flops.min(), flops.max(), 50)
            law = {BUDGET.key: along, y.key: found.fit.predict(params, along)}
            series.append(Series(f"{label}, law", label, law, "fit", number))
    flops = np.array([one.flops for one in best])
    ends = np.array([[one.best.low, one.best.high] for one in best])
    seen = (flops.min() / 1.25, flops.max() * 1.25, ends.min() / 1.25, ends.max() * 1.25)
    note = "Points: the minima with 95 % intervals. " + ("Lines: the law." if found.fit else "")
    title = f"{_TITLES[found.law]}: the minima and the law" if found.fit else f"{_TITLES[found.law]}: the minima"
    return Figure(f"{found.law}_law", title, (BUDGET,), y, tuple(series), {BUDGET.key: seen}, note.strip())


def answers_figure(answers: Sequence[Answer]) -> Figure:
    """Published answers to when to grow, and those of cells and runs, over budgets on the axis of the tokens."""
    y, every = VARIED["share"], np.concatenate([one.flops for one in answers])
    ends = np.array([every.min() / 1.5, every.max() * 1.5])
    series, sources = [], list(dict.fromkeys(one.source for one in answers))
    for number, one in enumerate(answers):
        flops, share = (one.flops, one.share) if len(one.flops) else (ends, np.repeat(one.share, 2))
        columns = {BUDGET.key: flops, y.key: share}
        columns |= {"low": one.low, "high": one.high} if one.low is not None else {}
        kind = "points" if one.low is not None else "fit"
        own = sum(other.source == one.source for other in answers[:number])
        series.append(Series(one.name, one.name, columns, kind, sources.index(one.source) % COLOURS, own % 4))
    note = "Lines: published answers, each over the budgets that it is of. Points: fitted here, with 95 % intervals."
    return Figure("timing_answers", "When to grow", (BUDGET,), y, tuple(series), {BUDGET.key: (*ends, 0, 1.02)}, note)


BEYOND = 10  # times the largest budget, to where the figure of a multiplier goes


def multiplier_figure(found: Judgement) -> Figure | None:
    """The measured multipliers over the baseline's budgets, and what each model says of them, with its interval."""
    if not len(found.flops):
        return None
    y = Axis("multiplier", f"compute multiplier over {found.baseline.name}", "number")
    series = [Series("measured", "measured", {BUDGET.key: found.flops, y.key: found.multipliers}, "points")]
    last = float(found.baseline.flops[-1])
    along = np.geomspace(found.flops[0], BEYOND * last, 60)
    for number, (model, fit) in enumerate(found.fits.items()):
        said = [found.multiplier(fit, flops) for flops in along]
        ends = ("value", "low", "high")
        rows = np.array([[math.nan] * 3 if one is None else [getattr(one, end) for end in ends] for one in said])
        columns = {BUDGET.key: along, y.key: rows[:, 0], "low": rows[:, 1], "high": rows[:, 2]}
        series.append(Series(model, model, columns, "fit", number, DASHES[number % len(DASHES)]))
    seen = [one.columns[y.key] for one in series]
    low, high = _padded(np.array([np.nanmin(seen[0]), *(np.nanmax(one) for one in seen), 1.0]))
    name = "".join(c if c.isalnum() else "_" for c in found.family.name)
    note = f"Bands: 95 % intervals of a model of that form. Nothing was measured beyond {style.flops(last)} FLOPs."
    title = f"{found.family.name} over {found.baseline.name}"
    views = {BUDGET.key: (along[0] / 1.25, along[-1], low, high)}
    return Figure(f"multiplier_{name}", title, (BUDGET,), y, tuple(series), views, note)


def _parabola(one: Slice, number: int, x: Axis) -> list[Series]:
    label = f"{style.count(one.params)}, {style.flops(one.flops)} FLOPs"
    look = number, DASHES[number // COLOURS % len(DASHES)]
    points = Series(f"{label}, runs", label, {x.key: one.x, LOSS.key: one.loss}, "points", *look)
    if one.parabola is None:
        return [points]
    along = np.geomspace(one.x.min(), one.x.max(), 60)
    curve = {x.key: along, LOSS.key: one.height(along)}
    marks = ()
    if one.best:
        text = f"minimum {style.interval(one.best, x.write)}"
        lowest = float(one.height(one.best.value))
        marks = (Mark("minimum", {x.key: one.best.value}, lowest, text, (one.best.low, one.best.high)),)
    return [points, Series(f"{label}, parabola", label, curve, "fit", *look, marks)]


def _seeds(slices: Sequence[Slice]) -> str:
    """The number of seeds at every value."""
    counts = sorted({round(len(one.x) / len(np.unique(one.x))) for one in slices})
    return f"{' or '.join(map(str, counts))} seed{'' if counts == [1] else 's'} at every value."


def _padded(values: np.ndarray) -> tuple[float, float]:
    pad = 0.08 * float(np.ptp(values)) or 0.01
    return float(values.min() - pad), float(values.max() + pad)
