"""When, and by how much, to grow: fitted to runs or to a table of cells, beside what others say."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from growlm.errors import InputError
from growlm.laws.multiplier import BEHIND
from growlm.laws.timing import LEAST_VALLEYS, NEAR_BEST, Answer, SharesFit, fit_shares, published_answers
from growlm.report import style
from growlm.report.figures import Figure
from growlm.report.fit import SLICES, GrowthFit, fit_growth, grown_once, law_text, slices_text
from growlm.report.law_figures import answers_figure, law_figure, parabola_figure
from growlm.report.outcomes import Outcome, finished
from growlm.report.tables import FAMILY, SEED, read_table

Log = Callable[[str], None]


def fit_timing(
    source: Path,
    log: Log,
    column: Mapping[str, str] | None = None,
    slices: int = SLICES,
    figures: Path | None = None,
    **how: int,
) -> dict[str, Any]:
    """Fits when to grow and prints it beside the published answers; returns the fits and all the answers.

    Args:
        source: a folder of runs that grew once; or a table with the columns params, flops, tokens, share and loss, and
            family and seed if it has them (`fit_shares`).
        log: prints a part of the text; it is called before an error is raised with all that is known.
        column: what the table calls a column, where that is another name.
        slices: budgets per size at which the losses of runs are taken.
        figures: a folder for the figures.
        how: `resamples` of the intervals.

    Raises:
        InputError: no runs, runs that cannot be compared, a table that lacks a column, too few points (says how many
            more).
    """
    if not source.is_dir():
        families = _families(source, column or {}, how)
        for one in families:
            log(f"{shares_text(one)}\n")
        own, fits = [_answer(one) for one in families], families
        drawn = [replace(parabola_figure(_growth(one)), name=f"share_valley_{one.family}") for one in families]
        missing = ""
    else:
        runs = grown_once(finished(source, log), log)
        found = fit_growth("timing", runs, slices, **how)
        log(f"{slices_text(found)}\n{law_text(found)}\n" if found.fit else f"{slices_text(found)}\n")
        own, fits, missing = _of_runs(found, runs), [found], found.missing
        drawn = [parabola_figure(found), law_figure(found)]
    answers = [*published_answers(), *own]
    log(answers_text(answers))
    _write(figures, [*drawn, answers_figure(answers)])
    if missing:
        raise InputError(missing)
    return {"fits": fits, "answers": answers}


def fit_factor(source: Path, log: Log, slices: int = SLICES, figures: Path | None = None, **how: int) -> GrowthFit:
    """Fits by how much to grow to the runs of a folder, as `fit_timing` does; returns the fit."""
    found = fit_growth("factor", grown_once(finished(source, log), log), slices, **how)
    log(slices_text(found))
    _write(figures, [parabola_figure(found), law_figure(found)])
    if found.fit is None:
        raise InputError(found.missing)
    log(law_text(found))
    return found


def shares_text(found: SharesFit) -> str:
    """A table of the valleys of a family, what its cells establish, and what they do not."""
    rows = []
    for one in found.valleys:
        gain = style.UNKNOWN if one.gain is None else f"{1e3 * one.gain:.1f}"
        flat = style.UNKNOWN if one.flat is None else f"+-{one.flat:.2f}"
        best = style.interval(one.slice.best, "{:.3f}".format)
        size, budget = style.count(one.slice.params), style.flops(one.slice.flops)
        rows.append((size, budget, f"{one.tokens_per_param:.1f}", str(len(one.slice.x)), best, gain, flat))
    header = ("parameters", "FLOPs", "tokens each", "cells", "best share [95 %]", "gain, mnat", "within 2 mnat")
    table = style.table(header, rows)
    return "\n".join(
        [f"{found.family}: share of the tokens before growth, 1 is never", "", table, "", *_verdict(found)]
    )


def _verdict(found: SharesFit) -> list[str]:
    """What is established of a family's cells, and what is not, a line each."""
    known, open_ = [], []
    gains = [one.gain for one in found.used if one.gain is not None]
    if gains:
        better = sum(gain > NEAR_BEST for gain in gains)
        budgets = (
            f"at {better} of {len(found.valleys)} budgets, by {1e3 * min(gains):.1f} to {1e3 * max(gains):.1f} mnat"
        )
        known.append(f"the best share beats never growing by more than 2 mnat {budgets} where there is a minimum")
    flat = [one.flat for one in found.used]
    known.append(f"the valleys are flat: {min(flat):.2f} to {max(flat):.2f} beside the best loses less than 2 mnat")
    lost, mean = 1e3 * found.lost(), style.interval(found.mean, "{:.3f}".format)
    known.append(
        f"one share for all, {mean}, loses {lost.mean():.1f} mnat to each budget's own, {lost.max():.1f} at most"
    )
    if without := [one for one in found.valleys if one.slice.best is None]:
        often = [one.tokens_per_param for one in without]
        where = f"at {min(often):.1f} to {max(often):.1f} tokens per parameter"
        open_.append(
            f"a best share at {len(without)} of {len(found.valleys)} budgets, {where}: no minimum between those tried"
        )
    if found.a is None:
        open_.append(f"how the share changes: {len(found.used)} budgets have a minimum, {LEAST_VALLEYS} are needed")
    else:
        law = f"D/N = {found.a:.4f} D_small/N {'+-'[found.b < 0]} {abs(found.b):.4f}"
        leaves = f"{law} leaves {found.error:.3f} of a spread of {found.spread:.3f}, {found.ahead:.1f} ahead in AICc"
        changes = found.ahead > BEHIND
        (known if changes else open_).append(
            f"{'' if changes else 'that '}it changes with tokens per parameter: {leaves}"
        )
    if all(len(one.slice.x) == len(np.unique(one.slice.x)) for one in found.valleys):
        open_.append("what another seed gives: there is one run a cell")
    sizes, budgets = ([getattr(one.slice, name) for one in found.valleys] for name in ("params", "flops"))
    ends = f"{style.count(max(sizes))} parameters and {style.flops(max(budgets))} FLOPs"
    open_.append(f"anything beyond {ends}")
    blocks = (("established, of these cells:", known), ("not established:", open_))
    return [line for title, lines in blocks for line in (title, *(f"  - {line}" for line in lines))]


def answers_text(answers: Sequence[Answer]) -> str:
    """The answers to when to grow, on the axis of the tokens and on that of the FLOPs."""
    rows = []
    for one in answers:
        over = " to ".join(dict.fromkeys(style.flops(end) for end in one.flops[[0, -1]])) if len(one.flops) else "any"
        rows.append((one.name, one.source, over, _ends(one.share), _ends(one.flops_share)))
    header = ("when to grow", "source", "FLOPs", "share of the tokens", "share of the FLOPs")
    note = (
        "They answer for different growths: a token costs 4 times as much after G_stack's, 1.3 to 1.5 times after "
        "Q Labs'.\nShares are from the smallest budget to the largest."
    )
    return f"{style.table(header, rows, left=('source',))}\n{note}"


def _ends(values: np.ndarray | None) -> str:
    if values is None:
        return style.UNKNOWN
    return " to ".join(dict.fromkeys(f"{value:.2f}" for value in values[[0, -1]]))


def _families(path: Path, columns: Mapping[str, str], how: Mapping[str, int]) -> list[SharesFit]:
    table = read_table(path, ("params", "flops", "tokens", "share", "loss"), columns, (FAMILY, SEED))
    count = len(table["loss"])
    names, seeds = table.pop(FAMILY, np.full(count, path.stem)), table.pop(SEED, np.zeros(count))
    rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    rows = [row | {"seed": seed} for row, seed in zip(rows, seeds, strict=True)]
    return [
        fit_shares(str(family), [row for row, name in zip(rows, names, strict=True) if name == family], **how)
        for family in dict.fromkeys(names)
    ]


def _growth(found: SharesFit) -> GrowthFit:
    """The valleys as the figures of slices take them."""
    return GrowthFit("share", tuple(one.slice for one in found.valleys), None)


def _answer(found: SharesFit) -> Answer:
    """The best shares of a family over budgets, as an answer."""
    used = sorted(found.used, key=lambda one: one.slice.flops)
    flops, cost = (np.array(column) for column in zip(*((one.slice.flops, one.cost) for one in used), strict=True))
    best, low, high = np.array([[getattr(one.slice.best, end) for end in ("value", "low", "high")] for one in used]).T
    return Answer(found.family, "these cells", flops, best, cost, low, high)


def _of_runs(found: GrowthFit, runs: Sequence[Outcome]) -> list[Answer]:
    """The best tokens before growth of runs, as shares of what the budget then pays for."""
    answers = []
    for params in dict.fromkeys(one.params for one in found.slices if one.best):
        used = [one for one in found.slices if one.best and one.params == params]
        flops = np.array([one.flops for one in used])
        best = np.array([[getattr(one.best, end) for end in ("value", "low", "high")] for one in used]).T
        before = np.mean([run.grown_flops / run.grown_at for run in runs if run.params == params])
        shares = np.clip(best / (best + (flops - before * best) / (6 * params)), 0, 1)
        cost = np.full(len(flops), 6 * params / before)
        answers.append(Answer(f"{style.count(params)} parameters", "these runs", flops, shares[0], cost, *shares[1:]))
    return answers


def _write(folder: Path | None, figures: Sequence[Figure | None]) -> None:
    from growlm.report.drawing import write_figure

    for figure in figures:
        if folder and figure:
            folder.mkdir(parents=True, exist_ok=True)
            write_figure(folder, figure)
