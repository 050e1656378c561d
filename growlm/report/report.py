"""The report of a run, a sweep, or a sweep at several seeds: one page, and its figures as PNG and CSV."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

from growlm.errors import InputError
from growlm.evaluation.table import scores
from growlm.files import write_whole
from growlm.report import page, style
from growlm.report.by_source import names, source_table, source_text
from growlm.report.charts import change
from growlm.report.compare import HEADER, Row, cells, gained, table
from growlm.report.contours import QUANTITIES, fit_contours
from growlm.report.decisions import decision_lines
from growlm.report.figures import Figure
from growlm.report.fit import GrowthFit, law_text, slices_text
from growlm.report.gains import HEADER as GAINS
from growlm.report.gains import gain_lines, gain_note, gain_text
from growlm.report.goodput import HEADER as GOODPUT
from growlm.report.goodput import NOTE, goodput_lines, goodput_text, goodput_values
from growlm.report.law_figures import growth_fits, law_figure, parabola_figure
from growlm.report.multiplier import multiplier_figures
from growlm.report.page import Part
from growlm.report.records import Group, Run, Study, read_groups
from growlm.report.search import search_notes, search_table, search_text, searches
from growlm.report.sections import Section
from growlm.report.shown import drawn
from growlm.report.spikes import HEADER as AT_GROWTH
from growlm.report.spikes import back_flops, spike_cells, spike_notes, spike_table
from growlm.report.verdict import verdict

__all__ = ["Report", "overview", "summarise", "table", "verdict", "write_report"]

EXPECTED = ("What is expected", "What was expected")  # with which experiment files begin to say so


class Report:
    """What is said of everything in a folder: it is read once, and compared once.

    Args:
        folder: of a run, of a sweep, or of several; those that differ only in their seeds are compared as one.
        loss: the validation loss to compare at; by default, of every pair of runs, the worse of its two final ones.

    Raises:
        InputError: no such folder, no run in it, or no run with any metrics.
    """

    def __init__(self, folder: str | Path, loss: float | None = None) -> None:
        self.folder = Path(folder)
        self.groups = read_groups(folder)
        self.sections = [Section(group, number, loss) for number, group in enumerate(self.groups)]

    def only(self) -> Section:
        """The one sweep of the folder. Raises InputError where it holds several that differ."""
        if len(self.groups) > 1:
            titles = " and ".join(repr(group.first.title) for group in self.groups[:3])
            raise InputError(f"{self.folder} must hold one sweep, at one seed or several, got {titles}")
        return self.sections[0]

    def text(self) -> str:
        """The results, their verdict and the losses at growth, for a terminal."""
        parts = []
        for one in self.sections:
            group = one.group
            seeds = f" ({len(group.studies)} seeds)" if len(group.studies) > 1 else ""
            texts = [f"{one.title}{seeds}", table(one.rows), verdict(one.rows), source_text(group), search_text(group)]
            texts += [gain_text(group, one.gains), spike_table(group, one.spikes), goodput_text(group)]
            parts.append("\n\n".join(filter(None, texts)))
        return "\n\n\n".join(parts)

    def values(self) -> list[dict[str, Any]]:
        """What the text says as values, of every sweep."""
        found = []
        for one in self.sections:
            more = "val_loss", "speedup", "saved"
            said = [vars(row) | {name: getattr(row, name) for name in more} for row in one.rows]
            values = {"rows": said, "verdict": verdict(one.rows), "goodput": goodput_values(one.group)}
            found.append({"title": one.title, "seeds": len(one.group.studies)} | values)
        return found

    def page(self) -> tuple[str, list[Figure]]:
        """The page as HTML, one file that needs no network, and the figures on it."""
        groups, sections = self.groups, self.sections
        laws = [(fit, _law_figures(fit, number)) for number, fit in enumerate(growth_fits(groups))]
        figures = [figure for one in sections for figure in one.figures]
        multipliers = multiplier_figures(groups)
        figures += [figure for _, of_law in laws for figure in of_law] + [figure for figure, _ in multipliers]
        title = sections[0].title if len(sections) == 1 else self.folder.resolve().name
        parts = [part for one in sections for part in _parts(one)]
        if len(sections) > 1:
            parts = [Part(one.title, page.nested(_parts(one))) for one in sections]
        scales = "".join(page.chart(figure) + page.verbatim(text) for figure, text in multipliers)
        parts += [
            Part("When and how to grow", _laws(laws)),
            Part("Gain over scales", scales),
            Part("To reproduce", _reproduce(groups)),
        ]
        return page.page(title, _head(sections), parts, figures), figures

    def write(self) -> Path:
        """Writes report.html into the folder, and every figure as PNG (loss_flops.png ...) and as CSV.

        Returns:
            The path of the page.
        """
        from growlm.report.drawing import write_figure

        html, figures = self.page()
        for figure in figures:
            write_figure(self.folder, figure)
        target = self.folder / "report.html"
        write_whole(target, html.encode())
        return target


def summarise(folder: str | Path) -> list[Row]:
    """One row per run of a sweep folder, in the order of the sweep, or the one row of a run folder.

    Raises:
        InputError: the folder is missing, is of neither kind, has no metrics, or holds sweeps that differ.
    """
    return Report(folder).only().rows


def overview(folder: str | Path, loss: float | None = None) -> str:
    """The text of the report of a folder. Arguments and errors are those of `Report`."""
    return Report(folder, loss).text()


def compared(folder: str | Path, loss: float | None = None) -> list[dict[str, Any]]:
    """What `overview` says as values. Arguments and errors are those of `Report`."""
    return Report(folder, loss).values()


def write_report(folder: str | Path, loss: float | None = None) -> Path:
    """Writes the report of a folder into it. Arguments and errors are those of `Report`, the result of its `write`."""
    return Report(folder, loss).write()


def report_page(folder: str | Path, loss: float | None = None) -> tuple[str, list[Figure]]:
    """The page as HTML, and the figures on it. Arguments and errors are those of `Report`."""
    return Report(folder, loss).page()


def _head(sections: list[Section]) -> str:
    """The verdicts, hardware, commits and FLOPs."""
    found = []
    for one in sections:
        named = f"<b>{escape(one.title)}.</b><br>" if len(sections) > 1 else ""
        lines = map(escape, verdict(one.rows).splitlines())
        found.append(f'<p class="verdict">{named}{"<br>".join(lines)}</p>')
        found += map(page.quiet, expectations(one.group))
    studies = [study for one in sections for study in one.group.studies.values()]
    machines, commits = ({getattr(study, key): None for study in studies} for key in ("hardware", "commit"))
    facts = [*filter(None, machines), *(f"commit {commit}" for commit in commits if commit)]
    trained = [study.flops_trained for study in studies if study.flops_trained is not None]
    if trained:
        searched = sum(search["flops"] for one in sections for search in searches(one.group))
        apart = f", {style.flops(searched)} of them in the search alone" if searched else ""
        facts.append(f"{style.flops(sum(trained))} FLOPs trained in all{apart}")
    return "\n".join([*found, page.quiet(" · ".join(facts))])


def expectations(group: Group) -> list[str]:
    """What the experiment of a study says is expected: the paragraph of its file that begins so."""
    texts = "\n\n".join(study.experiment or "" for study in group.studies.values())
    paragraphs = (" ".join(text.split()) for text in texts.split("\n\n"))
    return [*dict.fromkeys(text for text in paragraphs if text.startswith(EXPECTED))]


def _parts(one: Section) -> Iterator[Part]:
    """The parts of a section."""
    yield Part("Loss", page.chart(one.loss))
    yield Part("Results", _results(one))
    yield Part("Loss by source", page.charts(one.sources) + _sources(one.group))
    yield Part("Search", _search(one))
    yield Part("Gain over tokens", _gains(one))
    own, others = one.benchmarks
    more = page.nested([Part("Other metrics of the benchmarks", page.charts(others))])
    yield Part("Benchmarks", page.charts(own) + more + _evaluations(one.group))
    yield Part("Text", _samples(one.group))
    yield Part("Growth", _growths(one.group))
    yield Part("Decisions", _decisions(one.group))
    yield Part("Loss at growth", _at_growth(one))
    yield Part("Training", page.charts(one.training))
    yield Part("Goodput", _goodput(one.group))
    yield Part("Stages", _stages(one.group.first))


def _results(one: Section) -> str:
    """The results: speed-ups as tables and a figure, and the costs of every run."""
    several = ["seeds"] if len(one.group.studies) > 1 else []
    reached, costs = [], []
    for row in one.rows:
        shown = dict(zip(HEADER, cells(row), strict=True))
        seeds = [str(row.seeds)] if several else []
        found = [row.run, row.role, style.interval(row.loss, style.loss), shown["speed-up"], shown["compute saved"]]
        reached.append([*found, style.loss(row.compared_at), *seeds])
        exact, time = style.flops(row.flops_exact), style.duration(row.seconds)
        costs.append([row.run, style.count(row.parameters), shown["tokens"], shown["FLOPs"], exact, time])
    header = ["run", "role", "validation loss", "speed-up", "compute saved", "at loss", *several]
    purposes = {name: run.purpose for name, run in one.group.first.runs.items()}
    notes = [(row.run, "; ".join(filter(None, (purposes[row.run], row.note)))) for row in one.rows]
    parts = [
        page.table(header, reached, ("run", "role")),
        page.listed(notes),
        _controls(one.rows),
        page.chart(one.speedups) if one.speedups else "",
        page.table(["run", "parameters", "tokens", "FLOPs", "exact FLOPs", "time"], costs, ("run",)),
        _how_compared(one.group),
    ]
    return "\n".join(parts)


def _sources(group: Group) -> str:
    """The last validation losses by source."""
    return page.table(*source_table(group), ("run",)) if names(group) else ""


def _controls(rows: list[Row]) -> str:
    """The grown runs against every control: the difference of the losses at equal FLOPs, and the speed-up."""
    grown = [row for row in rows if row.gaps]
    if not grown:
        return ""
    controls = list(grown[0].gaps)
    gaps, gains = [], []
    for row in grown:
        gaps.append([row.run, *(style.interval(gap, style.nats) for gap in row.gaps.values())])
        gains.append([row.run, *map(gained, row.over.values())])
    how = (
        "Validation loss of a grown run less that of a control, in nats, at equal FLOPs: where the cheaper of the two "
        "ends. Below 0 the grown run is better; an interval that holds 0 does not tell."
    )
    if whole := next((row for row in grown if row.further), None):
        every = len(whole.gaps) + len(whole.further)
        how += (
            f" Of {every} controls these are the {len(controls)} that do best against {whole.run}; the verdict on that "
            f"run is over all of them. In a table of all {len(grown)} x {every} pairs nothing would be found."
        )
    less, over = "loss less that of", "speed-up over"
    tables = page.table([less, *controls], gaps, (less,)), page.table([over, *controls], gains, (over,))
    return "\n".join([tables[0], page.quiet(how), tables[1]])


def _search(one: Section) -> str:
    """The tries of a search: the figure, the table, what it took, and which runs did best at the end of the values."""
    if not (lines := search_table(one.group))[1]:
        return ""
    notes = "".join(map(page.quiet, search_notes(one.group)))
    return f"{notes}\n{page.chart(one.search) if one.search else ''}\n{page.table(*lines, lines[0][:1])}"


def _how_compared(group: Group) -> str:
    """How the speed-ups were measured."""
    baseline = group.first.baseline
    if baseline is None:
        return ""
    seeds = len(group.studies)
    spread = "Each line is one run, with no error bar."
    if seeds > 1:
        spread = (
            f"There are {seeds} seeds. Runs of one seed are compared with each other; shown is the geometric mean of "
            "their ratios with Student's 95 % interval. Seeds not done yet are left out; where a seed failed or "
            "does not reach the loss there is no mean."
        )
    held_out = [run.held_out for run in group.runs]
    text = ""
    if len(set().union(*held_out)) > 1:
        text = (
            "The validation losses are not all of the same text: corpus, batches, batch or length of validation differ "
            "between runs or stages. "
        )
    elif all(held_out):
        text = "All validation losses are of the same held-out batches. "
    return page.quiet(
        f"Speed-up is FLOPs of {baseline} / FLOPs of the run - 1, compute saved 1 - FLOPs of the run / FLOPs "
        f"of {baseline}, both where they first have one validation loss: the worse of the two final ones, or the one "
        "asked for. "
        "Curves are compared as they were measured, unsmoothed, and no loss is extrapolated. Every stage's FLOPs are "
        "counted, 6 x parameters x tokens; exact FLOPs have attention. "
        "So the run that ends worse is taken at its end, its learning rate decayed, or where its loss was as low once "
        "before; and the other in the middle of its schedule: a run that is only shorter looks fast by this measure, "
        f"which is what a short control is there to show. {text}{spread}"
    )


def _gains(one: Section) -> str:
    """The gain over tokens: the figures, and the fits as a table."""
    if not one.gain_figures:
        return ""
    lines = gain_lines(one.gains)
    found = page.table(GAINS, lines, GAINS[:2]) + page.quiet(gain_note(one.group)) if lines else ""
    return f"{page.charts(one.gain_figures)}\n{found}"


def _decisions(group: Group) -> str:
    """What was decided while the runs trained, and the whole files, folded."""
    lines = [[label, *line] for label, run in group.labelled for line in decision_lines(run)]
    files = [
        page.folded(f"{label}, decision-{number}.json", decided)
        for label, run in _in_full(group)
        for number, decided in run.decisions.items()
    ]
    header = ["run", "stage", "decided", "after tokens", "why"]
    return page.table(header, lines, ("run", "decided", "why")) + "".join(files) + _elsewhere(group) if lines else ""


def _evaluations(group: Group) -> str:
    """A table of the scores that `growlm evaluate` measured."""
    lines = []
    for label, run in group.labelled:
        for result in run.evaluations:
            at = (result.get("growlm") or {}).get("tokens")
            for task, found in (result.get("results") or {}).items():
                for metric, value, error in scores(found):
                    lines.append([label, found.get("alias") or task, metric, value, error or "-", style.count(at)])
    header = ["run", "task", "metric", "value", "standard error", "tokens"]
    return page.table(header, lines, ("run", "task", "metric")) if lines else ""


def _samples(group: Group) -> str:
    """The texts that the models of the first seed wrote, in the order of training."""
    found = []
    for run in group.first.runs.values():
        for record in run.metrics:
            for sample in record.get("samples") or ():
                at = f"{run.name}, stage {record['stage'] + 1}, step {record['step']:,}"
                loss = f", validation loss {style.loss(record['val_loss'])}" if "val_loss" in record else ""
                found.append(f"{page.quiet(at + loss)}{page.verbatim(sample['prompt'] + sample['text'])}")
    return "\n".join(found)


def _growths(group: Group) -> str:
    """A table of the growths, with what they changed, claimed and did to the loss; and their reports, folded."""
    lines = []
    for label, run in group.labelled:
        for number, report in enumerate(run.growths, start=1):
            lines.append([f"{label}, growth {number}", *_growth(run, number, report)])
    if not lines:
        return ""
    header = ["run", "shape", "operator", "parameters", "tokens", "loss before", "after", "keeps function", "optimizer"]
    text = ("run", "shape", "operator", "keeps function", "optimizer")
    same = all(len(run.held_out) == 1 for run in group.runs if run.growths)
    small = "Losses are the last validation loss before a growth and the first after it, " + (
        "on the same held-out batches. They are equal where a growth keeps the function."
        if same
        else "each on the held-out batches of its own stage. They are not the same text where batch or length of "
        "validation change with the stage: evaluation.batch and evaluation.length keep them."
    )
    growths = [report for run in group.runs for report in run.growths]
    claims = dict.fromkeys((_keeps(report), str(report.get("reason") or "")) for report in growths)
    why = page.listed((f"keeps function: {keeps}", reason) for keeps, reason in claims)
    named = ((label, number, one) for label, run in _in_full(group) for number, one in enumerate(run.growths, start=1))
    reports = "".join(page.folded(f"{label}, growth {number}", one) for label, number, one in named)
    whole = f"<details><summary>whole reports</summary>{reports}{_elsewhere(group)}</details>"
    return f"{page.table([*header, 'pause'], lines, text)}\n{why}\n{page.quiet(small)}\n{whole}"


def _keeps(report: dict[str, Any]) -> str:
    """Whether a growth claims to keep the function."""
    return {True: "yes", False: "no"}.get(report.get("preserves_function"), style.UNKNOWN)


def _growth(run: Run, number: int, report: dict[str, Any]) -> list[str]:
    """The cells of one growth."""
    options = ", ".join(f"{key}={value}" for key, value in (report.get("options") or {}).items())
    operator = str(report.get("operator", style.UNKNOWN)) + (f" ({options})" if options else "")
    sizes = " → ".join(style.count(report.get(f"parameters_{when}")) for when in ("before", "after"))
    before, after = run.of_stage(number - 1), run.of_stage(number)
    losses = [
        next((r["val_loss"] for r in part if r.get("val_loss") is not None), None) for part in (before[::-1], after)
    ]
    pause = next((r["pause_seconds"] for r in after if "pause_seconds" in r), None)
    return [
        change(run, number - 1),
        operator,
        sizes,
        style.count(report.get("tokens")),
        *map(style.loss, losses),
        _keeps(report),
        str(report.get("optimizer_state", style.UNKNOWN)),
        style.UNKNOWN if pause is None else f"{pause:.2f}s",
    ]


def _at_growth(one: Section) -> str:
    """The jump of the loss at every growth and its recovery: the table and the figures."""
    if not one.spikes:
        return ""
    lines = [[*spike_cells(row), back_flops(row)] for row in one.spikes]
    found = page.table([*AT_GROWTH, "back after FLOPs"], lines, AT_GROWTH[:1])
    return f"{found}\n{page.quiet(' '.join(spike_notes(one.group)))}\n{page.charts(one.spike_figures)}"


def _goodput(group: Group) -> str:
    """Of every run the share of its time that was productive, and what the rest went into."""
    lines = goodput_lines(group)
    return page.table(GOODPUT, lines, GOODPUT[:1]) + page.quiet(NOTE) if lines else ""


def _stages(study: Study) -> str:
    """A table of the stages that the runs are made of, and the FLOPs that sharing them saved."""
    shared: dict[str, list[tuple[str, dict]]] = {}
    for run in study.runs.values():
        for stage in run.stages:
            stage_hash = stage.get("stage_hash") or stage.get("address")  # address: until 0.2
            shared.setdefault(str(stage_hash), []).append((run.name, stage))
    if not shared:
        return ""
    found = page.table(
        ["stage", "tokens", "FLOPs", "trained for", "reused by"],
        [_stage(stage_hash, uses) for stage_hash, uses in shared.items()],
        text=("stage", "trained for", "reused by"),
    )
    saved = f"Sharing the first stages of runs saved {style.flops(study.flops_saved_by_sharing)} FLOPs."
    return f"{page.quiet(saved)}\n{found}"


def _stage(stage_hash: str, uses: list[tuple[str, dict]]) -> list[str]:
    """The cells of one stage, with the runs that trained it and those that reused it."""
    most = max((stage for _, stage in uses), key=lambda stage: stage.get("tokens") or 0)
    trained, reused = ([name for name, stage in uses if bool(stage.get("reused")) is flag] for flag in (False, True))
    names = [", ".join(group) or style.UNKNOWN for group in (trained, reused)]
    return [stage_hash[:12], style.count(most.get("tokens")), style.flops(most.get("flops")), *names]


def _law_figures(fit: GrowthFit | str, number: int) -> list[Figure]:
    """The figures of a law; the files of all laws but the first are numbered."""
    if isinstance(fit, str):
        return []
    contours = fit_contours(fit.law, fit.fit) if fit.fit and fit.law in QUANTITIES else None
    found = [figure for figure in (parabola_figure(fit), law_figure(fit), contours) if figure]
    return [replace(figure, name=f"{number + 1}_{figure.name}") for figure in found] if number else found


def _laws(laws: Iterable[tuple[GrowthFit | str, list[Figure]]]) -> str:
    """The losses with their parabolas, and the law or what it lacks."""
    parts = []
    for fit, figures in laws:
        if isinstance(fit, str):
            parts.append(page.quiet(fit))
            continue
        parts.append(page.charts(figures))
        parts.append(page.verbatim(slices_text(fit)))
        parts.append(page.verbatim(law_text(fit).strip()) if fit.fit else page.quiet(f"No law yet: {fit.missing}."))
    return "\n".join(parts)


def _reproduce(groups: list[Group]) -> str:
    """The commands, and the config of every run."""
    commands = [study.command for group in groups for study in group.studies.values() if study.command]
    configs = []
    for group in groups:
        configs += [page.folded(f"config of {label}", run.config) for label, run in _in_full(group) if run.config]
        configs.append(_elsewhere(group))
    return page.verbatim("\n".join(commands)) + "".join(configs)


def _in_full(group: Group) -> list[tuple[str, Run]]:
    """The runs whose files stand in the page, with their labels: those that charts show."""
    kept = drawn(group, group.first.runs)
    return [(label, run) for label, run in group.labelled if run.name in kept]


def _elsewhere(group: Group) -> str:
    """What the page says of the files of all other runs; nothing where there are none."""
    others = len(group.labelled) - len(_in_full(group))
    return page.quiet(f"Those of {others} more runs lie in their folders.") if others else ""
