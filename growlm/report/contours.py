"""Contours over size and compute of when to grow, and by how much: figures 9 and 22 of arXiv 2405.15319.

For any laws of that form, such as those that are fitted to one's own runs.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from growlm.laws.isoflop import GuidelineFit
from growlm.laws.planner import Plan
from growlm.laws.published import TIMING, TIMING_FLOPS, TIMING_PARAMS
from growlm.report import style
from growlm.report.charts import COLOURS
from growlm.report.figures import Axis, Figure, Mark, Series

BUDGET = Axis("flops", "budget C (FLOPs)", "flops", log=True)
SIZE = Axis("params", "parameters N of the grown model", "count", log=True)
ROOM = 10  # times beyond what is shown of fitted points or of the plan
POINTS = 200


class Quantity(NamedTuple):
    """What a law is about: the title of its figure, its words, its symbol, how it is written, whether it is tokens."""

    title: str
    what: str
    symbol: str
    write: Callable[[float], str]
    tokens: bool = False


QUANTITIES = {
    "timing": Quantity("Tokens before growth over size and compute", "tokens d before growth", "d", style.count, True),
    "factor": Quantity("Growth factor over size and compute", "growth factor g", "g", "{:.3g}".format),
}


def plan_figure(plan: Plan) -> Figure:
    """The law of a plan, the range that it was fitted on, and the plan."""
    fit = plan.own.timing if plan.own else None
    place = Mark(
        "chosen", {BUDGET.key: plan.flops}, plan.params, f"the plan: {style.interval(plan.timing, style.count)}"
    )
    if fit:
        return fit_contours("timing", fit, place)
    source = "equation 2 of arXiv 2405.15319"
    return contours("contours", QUANTITIES["timing"], TIMING, TIMING_PARAMS, TIMING_FLOPS, source, place)


def fit_contours(law: str, fit: GuidelineFit, place: Mark | None = None) -> Figure:
    """A law that was fitted to runs, by its name in `QUANTITIES`, and the range of their slices."""
    used = [one for one in fit.slices if one.best is not None]
    found = fit.a.value, fit.b.value, fit.c.value
    sizes, budgets = [one.params for one in used], [one.flops for one in used]
    ranges = (min(sizes), max(sizes)), (min(budgets), max(budgets))
    return contours(f"{law}_contours", QUANTITIES[law], found, *ranges, "the law of these runs", place)


def contours(
    name: str,
    quantity: Quantity,
    law: Sequence[float],
    params: tuple[float, float],
    flops: tuple[float, float],
    source: str,
    place: Mark | None = None,
) -> Figure:
    """Lines of an equal quantity y, log10 y = a log10 N + b / log10 C + c.

    Args:
        name: of the figure.
        quantity: y.
        law: a, b, c.
        params, flops: the least and the most that it was fitted on, drawn as a box.
        source: of the law, in words.
        place: what is planned.
    """
    places = ([place.x[BUDGET.key]], [place.y]) if place else ([], [])
    left, right = min([*flops, *places[0]]) / ROOM, max([*flops, *places[0]]) * ROOM
    low, high = min([*params, *places[1]]) / ROOM, max([*params, *places[1]]) * ROOM
    log_C, log_N = (np.linspace(math.log10(a), math.log10(b), POINTS) for a, b in ((left, right), (low, high)))
    log_y = law[0] * log_N[:, None] + law[1] / log_C + law[2]  # [sizes, budgets]
    whole = log_C - math.log10(6) - log_N[:, None]  # log10 of the tokens of the whole run
    possible = log_y < whole if quantity.tokens else np.ones_like(log_y, bool)
    series = [
        _line(label, log_C, log_N, np.where(possible, log_y, math.nan) - level, number)
        for number, level in enumerate(_levels(log_y[possible]))
        for label in [f"{quantity.symbol} = {quantity.write(10**level)}"]
    ]
    if quantity.tokens:
        series.append(_line(f"{quantity.symbol} is the whole run", log_C, log_N, log_y - whole, None, dash=3))
    corners = np.array([(flops[i], params[j]) for i, j in ((0, 0), (1, 0), (1, 1), (0, 1), (0, 0))])
    box = {BUDGET.key: corners[:, 0], SIZE.key: corners[:, 1]}
    series.append(Series("fitted here", "fitted here", box, "fit", None, 1))
    if place:
        alone = {BUDGET.key: np.array(places[0]), SIZE.key: np.array(places[1])}
        series.append(Series("the plan", "the plan", alone, "points", 1, marks=(place,)))
    note = f"Lines of equal {quantity.what}, by {source}. Outside of the dashed box it is extrapolated"
    note += "; above the dotted line it asks for more than the run has." if quantity.tokens else "."
    views = {BUDGET.key: (left, right, low, high)}
    kept = tuple(one for one in series if np.isfinite(one.columns[SIZE.key]).any())
    return Figure(name, quantity.title, (BUDGET,), SIZE, kept, views, note)


def _levels(log_y: np.ndarray) -> list[float]:
    """Round values that are crossed, in log10: as many to a power of ten as there are colours for."""
    if not log_y.size:
        return []
    powers = range(math.floor(log_y.min()), math.ceil(log_y.max()))
    for steps in ((1, 2, 5), (1, 3), (1,)):
        every = [power + math.log10(step) for power in powers for step in steps]
        found = [level for level in every if log_y.min() < level < log_y.max()]
        if len(found) <= COLOURS:
            return found
    return found[:: -(-len(found) // COLOURS)]


def _line(
    name: str, log_C: np.ndarray, log_N: np.ndarray, above: np.ndarray, colour: int | None, dash: int = 0
) -> Series:
    """Where a height over [sizes, budgets] crosses zero, a size for each budget, on a straight line between two."""
    sizes = np.full(len(log_C), math.nan)
    for column, heights in enumerate(above.T):
        ends = np.flatnonzero(heights[:-1] * heights[1:] <= 0)
        if ends.size:
            first = ends[0]
            part = heights[first] / (heights[first] - heights[first + 1] or 1)
            sizes[column] = 10 ** (log_N[first] + part * (log_N[first + 1] - log_N[first]))
    return Series(name, name, {BUDGET.key: 10**log_C, SIZE.key: sizes}, "fit", colour, dash)
