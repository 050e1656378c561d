"""Kinds of tables of a study's records: `results.py` has the rows of all pages."""

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from growlm.laws.intervals import Interval, speedup_over_seeds, t_interval
from growlm.report import style
from growlm.report.compare import Row, paired
from growlm.report.fit import GrowthFit
from growlm.report.law_figures import growth_fits
from growlm.report.records import Group, Run
from growlm.report.report import Report
from growlm.report.search import search_table
from growlm.report.spikes import NO_RISE, NOT_RECOVERED, Spike

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "experiments" / "records"
NO_LABELS: Mapping[str, str] = {}


@cache
def report(name: str) -> Report:
    """The report of a study."""
    return Report(RECORDS / name)


def study(name: str, number: int = 0) -> Group:
    """The records of a study: the number of the group among those of its folder."""
    return report(name).groups[number]


def league(
    name: str,
    number: int = 0,
    labels: Mapping[str, str] = NO_LABELS,
    papers: Mapping[str, str] | None = None,
    without: Sequence[str] = (),
    note: tuple[str, Callable[[Run], str]] | None = None,
) -> str:
    """The runs of a study from the lowest loss on, with their speed-up over the baseline and over every control.

    Args:
        name, number: of the study, as in `study`.
        labels: what runs are called.
        papers: what a paper has, by run.
        without: runs that are left out, such as a scratch_tuned where the baseline was searched as well.
        note: the head of one more column, and what it says of a run.
    """
    group, compared = study(name, number), report(name).sections[number].rows
    found = sorted((row for row in compared if row.loss and row.run not in without), key=lambda row: row.loss.value)
    controls = dict.fromkeys(control for row in found for control, gain in row.over.items() if gain)
    controls = [control for control in controls if control not in without]
    seeds = [seed.removeprefix("seed ") for seed in group.studies]
    header = ["run", *([note[0]] if note else []), f"seeds {', '.join(seeds)}", "mean", f"over {group.first.baseline}"]
    if len(seeds) == 1:
        header[-3:-1] = ["validation loss"]
    header += [*(["the paper's"] if papers else []), *(f"over {control}" for control in controls)]
    lines = []
    for row in found:
        each = [last_loss(run) for run in group.each(row.run).values() if run.status == "done"]
        cells = [labels.get(row.run, row.run), *([note[1](group.first.runs[row.run])] if note else [])]
        cells += [", ".join(f"{loss:.3f}" for loss in each)]
        cells += [f"{row.loss.value:.3f}"] if len(seeds) > 1 else []
        cells += [percent(row.gain.speedup if row.gain else None)]
        cells += [papers.get(row.run, "")] if papers else []
        cells += [percent(over(row, control)) for control in controls]
        lines.append(cells)
    lines[0][0] = f"**{lines[0][0]}**"
    return f"{table(header, lines)}\n\n{made(group)}"


def connections(run: Run) -> str:
    """The share of a growth's neighbouring layers that were neighbours before it."""
    return f"{100 * run.growths[0]['connection_rate']:.0f} %" if run.growths else ""


def ranks(name: str, runs: Sequence[str]) -> str:
    """Spearman's correlation of the loss with the share of connections that a growth kept, seed by seed."""
    group, found = study(name), []
    for seed in group.studies:
        each = [group.each(run)[seed] for run in runs]
        kept = [run.growths[0]["connection_rate"] for run in each]
        found.append(float(spearmanr(kept, [last_loss(run) for run in each]).statistic))
    mean = written(t_interval(np.array(found)), partial(rounded, spec="+.2f"))
    return f"Rank correlation of loss and kept connections over {len(runs)} orders, by seed: " + (
        f"{', '.join(rounded(one, '+.2f') for one in found)}; mean {mean}."
    )


def apart(name: str, lines: Mapping[str, Sequence[tuple[str, str]]]) -> str:
    """The loss of runs less that of others, nats, after the first step that follows growth and at the end.

    Args:
        name: of the study.
        lines: pairs of runs, one less the other. Where a line has several, a seed's number is the mean over them, and
            there is no speed-up.
    """
    group = study(name)
    write = partial(rounded, spec="+.3f")
    seeds = ", ".join(seed.removeprefix("seed ") for seed in group.studies)
    header = ("", "after the first step", f"at the end, seeds {seeds}", "mean", "speed-up over it")
    found = []
    for label, pairs in lines.items():
        first, last = (differences(group, pairs, loss) for loss in (first_loss, last_loss))
        gain = speedup_over_seeds(*paired(group, *pairs[0])).speedup if len(pairs) == 1 else None
        cells = [written(t_interval(first), write), ", ".join(map(write, last)), written(t_interval(last), write)]
        found.append([label, *cells, percent(gain)])
    return table(header, found)


def differences(group: Group, pairs: Sequence[tuple[str, str]], loss: Callable[[Run], float]) -> np.ndarray:
    """The loss of a run less that of another, the mean over the pairs: float64[seeds]."""
    each = []
    for pair in pairs:
        one, other = (np.array([loss(run) for run in group.each(name).values()]) for name in pair)
        each.append(one - other)
    return np.mean(each, axis=0)


def elsewhere(name: str, other: str, baseline: str, labels: Mapping[str, str]) -> str:
    """The runs of a study over the baseline that another study has, by the seeds of both.

    Args:
        name, other: the studies, of one text, size and budget.
        baseline: of the other.
        labels: of the runs that are shown, in their order.
    """
    group, there = study(name), study(other)
    theirs = np.array([last_loss(run) for run in there.each(baseline).values()])
    curves = paired(there, baseline, baseline)[1]
    lines = []
    for run, label in labels.items():
        less = t_interval(np.array([last_loss(one) for one in group.each(run).values()]) - theirs)
        gain = speedup_over_seeds(paired(group, run, run)[0], curves).speedup
        lines.append([label, written(less, partial(rounded, spec="+.3f")), percent(gain)])
    return table(("run", f"less {baseline} of {other}, nats a byte", "speed-up over it"), lines)


def tried(name: str, number: int = 0, labels: Mapping[str, str] = NO_LABELS, without: Sequence[str] = ()) -> str:
    """The last loss of every run of a study at every value that its search tried; a star marks the best."""
    header, lines = search_table(study(name, number))
    shown = [[labels.get(run, run), *cells[:-1]] for run, *cells in lines if run not in without]
    return table(header[:-1], shown)


def lens(name: str, labels: Mapping[str, str] = NO_LABELS, without: Sequence[str] = ()) -> str:
    """What `lens.py` found in the runs of a study: the depth at each seed, and the mean loss after every layer."""
    seeds = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((RECORDS / "lens" / name).glob("*.json"))]
    lines = []
    for run in (run for run in seeds[0] if run not in without):
        each = [seed[run] for seed in seeds]
        losses = [f"{sum(after) / len(after):.2f}" for after in zip(*(one["losses"] for one in each), strict=True)]
        lines.append([labels.get(run, run), ", ".join(f"{one['depth']:.1f}" for one in each), " ".join(losses)])
    lines.sort(key=lambda line: line[1])
    return table(("run", "depth, by seed", "mean loss after 0, 1, ... layers"), lines)


def over(row: Row, control: str) -> Interval | None:
    """The speed-up of a row over a control."""
    gain = row.over.get(control)
    return gain.speedup if gain else None


def last_loss(run: Run) -> float:
    """The last validation loss of a run."""
    return run.last_validated["val_loss"]


def first_loss(run: Run) -> float:
    """The first validation loss after a step that follows the first growth."""
    (growth, *_), losses = run.growths, (one for one in run.metrics if one.get("val_loss") is not None)
    return next(one["val_loss"] for one in losses if one["step"] > growth["step"])


def at_growth(name: str, number: int = 0, labels: Mapping[str, str] = NO_LABELS) -> str:
    """How high the loss jumps at the growths of a study, and after how many tokens it is back. In order of `labels`."""
    header, lines = ("run", "before", "after", "jump", "highest", "back after tokens", "share of the run's"), []
    for row in sorted(report(name).sections[number].spikes, key=lambda row: [*labels].index(row.run) if labels else 0):
        losses = [f"{row.mean(key):.3f}" for key in ("before", "after", "highest")]
        jump = written(row.jump, partial(rounded, spec="+.3f"))
        lines.append([labels.get(row.run, row.name), *losses[:2], jump, losses[2], *back(row.seeds)])
    return table(header, lines)


def back(seeds: Sequence[Spike]) -> tuple[str, str]:
    """After how many tokens the loss was back, with the range over seeds, and which share of the run's that is."""
    if any(spike.back is None for spike in seeds):
        return NOT_RECOVERED, ""
    tokens = [spike.back.tokens for spike in seeds]
    if not any(tokens):
        return NO_RISE, ""
    mean, share = sum(tokens) / len(tokens), sum(spike.back.tokens / spike.total for spike in seeds) / len(seeds)
    span = f" ({style.count(min(tokens))} to {style.count(max(tokens))})" if len(tokens) > 1 else ""
    return f"{style.count(mean)}{span}", f"{share:.1%}".replace("%", " %")


@cache
def fitted(name: str) -> GrowthFit:
    """The law of growth that a study determines."""
    (found,) = growth_fits(report(name).groups)
    return found


def minima(name: str, paper: str = "") -> str:
    """Where the loss is lowest at every size and budget of a study, beside a paper's one answer."""
    found = fitted(name)
    write = style.count if found.law == "timing" else "{:.2f}".format
    header = ["parameters", "FLOPs", "best after tokens [95 %]" if found.law == "timing" else "best factor [95 %]"]
    lines = []
    for one in sorted(found.slices, key=lambda one: (-one.params, -one.flops)):
        best = written(one.best, write) if one.best else "beyond what was tried"
        lines.append([style.count(one.params), style.flops(one.flops), best, *([paper] if paper else [])])
    return table([*header, *(["the paper's"] if paper else [])], lines)


def law(name: str, letter: str, paper: Sequence[float]) -> str:
    """The coefficients of the law of growth that a study determines, beside the paper's."""
    found = fitted(name)
    fit = found.fit
    fits = (written(getattr(fit, key), "{:.3g}".format) for key in "abc")
    lines = [(key, here, f"{there:g}") for key, here, there in zip("abc", fits, paper, strict=True)]
    shown = table((f"log10 {letter} = a log10 N + b / log10 C + c", "fitted [95 %]", "the paper's"), lines)
    constant = "" if found.law == "timing" else f" As a constant: {written(fit.mean, '{:.2f}'.format)}."
    scatter = f"their minima scatter by {fit.scatter:.3f} in log10 {letter}."
    return f"{shown}\n\n{fit.used} of {len(fit.slices)} slices; {scatter}{constant}"


def made(group: Group) -> str:
    """The commands of the first seed, hardware, commits and FLOPs of a study; it has those of all starts."""
    first, studies = group.first, group.studies.values()
    each = [shlex.split(line) for line in (first.command or "").splitlines()]
    shown = (" ".join(f'"{word}"' if "'" in word else shlex.quote(word) for word in words) for words in each)
    commands = " and ".join(f"`{command}`" for command in shown)
    more = len(group.studies) - 1
    others = f", and {more} seed{'s' * (more > 1)} more" if more else ""
    commits = ", ".join(dict.fromkeys(part[:7] for one in studies for part in (one.commit or "unknown").split(", ")))
    flops = sum(one.flops_trained or 0 for one in studies)
    return f"Made by {commands}{others}; {first.hardware}; commit {commits}; {style.flops(flops)} FLOPs in all."


def percent(value: Interval | None) -> str:
    """A speed-up in whole percent, bold where its interval lies above zero; empty where there is none."""
    if value is None:
        return ""
    mean = f"{rounded(100 * value.value, '+.0f')} %"
    if value.low is None:
        return mean
    low, high = (rounded(100 * end, ".0f") for end in (value.low, value.high))
    return f"{f'**{mean}**' if value.low > 0 else mean} [{low}, {high}]"


def rounded(value: float, spec: str) -> str:
    """A number in that format, without a sign where it is zero."""
    text = format(value, spec)
    return text if float(text) else text.lstrip("+-")


def written(value: Interval | None, write: Callable[[float], str]) -> str:
    """An estimate with its interval, where it has one."""
    return "" if value is None else style.interval(value, write)


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    whole = (header, ["---"] * len(header), *lines)
    return "\n".join("|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|" for cells in whole)
