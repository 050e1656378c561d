"""The report as one HTML file that needs nothing else: no network, no scripts, figures inside."""

import base64
import json
from html import escape
from typing import Any

from growlm.study import numbers
from growlm.study.figures import AXES, change
from growlm.study.records import Study

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1c2024; --quiet: #5b6570; --line: #e3e6ea; --box: #f6f7f9; --mark: #0072b2;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15181c; --ink: #e6e8ea; --quiet: #a3adb8; --line: #30353b; --box: #1d2126; --mark: #56b4e9;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 70rem; overflow-wrap: break-word;
  background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .6rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--line); }
p, ul { max-width: 50rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
.verdict { font-size: 1.15rem; margin: 0 0 .6rem; padding-left: .8rem; border-left: 4px solid var(--mark); }
.quiet { color: var(--quiet); font-size: .9rem; }
.figures { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }
.figures picture:first-child { grid-column: 1 / -1; max-width: 48rem; justify-self: center; }
ul { padding-left: 1.2rem; }
img { width: 100%; height: auto; display: block; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
.scroll table { width: 100%; }
.scroll th, .scroll td { padding: .4rem .55rem; white-space: nowrap; border-bottom: 1px solid var(--line); }
.scroll tr:last-child td { border-bottom: 0; }
.scroll th { background: var(--box); font-weight: 600; }
.scroll .text { text-align: left; }
.scroll .number { text-align: right; }
.scroll tr > :first-child { position: sticky; left: 0; background: var(--box); }
.facts td { padding: .1rem 1rem .1rem 0; vertical-align: top; overflow-wrap: anywhere; }
.facts td:first-child { color: var(--quiet); white-space: nowrap; }
pre {
  background: var(--box); border: 1px solid var(--line); border-radius: 6px; padding: .7rem;
  overflow-x: auto; font-size: .82rem; line-height: 1.4; margin: .4rem 0;
}
summary { cursor: pointer; }
@media (max-width: 44rem) { .figures { grid-template-columns: 1fr; } }
"""


def page(
    study: Study,
    verdict: str,
    header: list[str],
    lines: list[list[str]],
    notes: dict[str, str],
    figures: dict[str, tuple[bytes, bytes]],
) -> str:
    """The whole page.

    Args:
        study: the runs.
        verdict: the sentences at the top.
        header: the columns of the table of results.
        lines: its rows, as text.
        notes: what there is to say of a run beside its numbers.
        figures: for each axis, a PNG for a light and one for a dark screen.
    """
    drawn = "".join(_figure(axis, *pair) for axis, pair in figures.items())
    body = [
        f'<h1>{escape(study.title)}</h1>\n<p class="verdict">{escape(verdict)}</p>',
        _about(study),
        f'<h2>Loss</h2>\n<div class="figures">{drawn}</div>',
        f"<h2>Results</h2>\n{_table(header, lines, ('run', 'role'))}\n{_notes(notes)}\n{_how_compared(study)}",
        _stages(study),
        _growths(study),
        _reproduce(study),
    ]
    return _document(study.title, "\n".join(filter(None, body)))


def _document(title: str, body: str) -> str:
    """The frame of the page. The policy forbids it to load anything, whatever a run's texts may contain."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


def _about(study: Study) -> str:
    """Where and on what the study ran."""
    parts = [study.hardware, study.commit and f"commit {study.commit}"]
    if study.flops_trained is not None:
        parts.append(f"{numbers.flops(study.flops_trained)} FLOPs trained in all")
    return f'<p class="quiet">{escape(" · ".join(filter(None, parts)))}</p>' if any(parts) else ""


def _figure(axis: str, light: bytes, dark: bytes) -> str:
    """One figure, for both kinds of screen."""
    as_light, as_dark = (f"data:image/png;base64,{base64.b64encode(image).decode()}" for image in (light, dark))
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{as_dark}">'
        f'<img src="{as_light}" alt="loss against {escape(AXES[axis])}, one line per run"></picture>\n'
    )


def _table(header: list[str], lines: list[list[str]], text: tuple[str, ...]) -> str:
    """A table in a box of its own that scrolls sideways; the columns in `text` to the left, numbers to the right."""
    kinds = ["text" if name in text else "number" for name in header]
    head = _table_row("th", header, kinds)
    body = "\n".join(_table_row("td", line, kinds) for line in lines)
    return f'<div class="scroll"><table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _table_row(tag: str, cells: list[str], kinds: list[str]) -> str:
    """One row; every cell in the style of its column."""
    pairs = zip(cells, kinds, strict=True)
    return "<tr>" + "".join(f'<{tag} class="{kind}">{escape(cell)}</{tag}>' for cell, kind in pairs) + "</tr>"


def _notes(notes: dict[str, str]) -> str:
    """What the numbers do not say: what a control is for, what went wrong."""
    items = (f"<li><b>{escape(run)}</b>: {escape(note)}</li>" for run, note in notes.items() if note)
    return f'<ul class="quiet">{"".join(items)}</ul>'


def _how_compared(study: Study) -> str:
    """How the numbers of the table were made."""
    if study.baseline is None:
        return ""
    text = (
        f"Speed-up is FLOPs of {study.baseline} / FLOPs of the run - 1, compute saved 1 - FLOPs of the run / FLOPs "
        f"of {study.baseline}, both at equal validation loss: the worse of the two final ones. Every stage's FLOPs "
        "are counted, 6 x parameters x tokens; exact FLOPs have attention in them. So the run that ends worse is "
        "taken at its end, its learning rate decayed, and the other in the middle of its schedule: a run that is "
        "only shorter looks fast by this measure, which is what a short control is there to show. Each line is "
        "one run, with no error bar."
    )
    return f'<p class="quiet">{escape(text)}</p>'


def _stages(study: Study) -> str:
    """Which stages the runs are made of, and what sharing them saved."""
    shared: dict[str, list[tuple[str, dict]]] = {}
    for run in study.runs.values():
        for stage in run.stages:
            shared.setdefault(str(stage.get("address")), []).append((run.name, stage))
    if not shared:
        return ""
    table = _table(
        ["stage", "tokens", "FLOPs", "trained for", "reused by"],
        [_stage(address, uses) for address, uses in shared.items()],
        text=("stage", "trained for", "reused by"),
    )
    saved = f"Sharing the first stages of runs saved {numbers.flops(study.flops_saved_by_sharing)} FLOPs."
    return f'<h2>Stages</h2>\n<p class="quiet">{escape(saved)}</p>\n{table}'


def _stage(address: str, uses: list[tuple[str, dict]]) -> list[str]:
    """One stage, with the run that trained it and those that took it over."""
    most = max((stage for _, stage in uses), key=lambda stage: stage.get("tokens") or 0)
    trained, reused = ([name for name, stage in uses if bool(stage.get("reused")) is flag] for flag in (False, True))
    names = [", ".join(group) or numbers.UNKNOWN for group in (trained, reused)]
    return [address[:12], numbers.count(most.get("tokens")), numbers.flops(most.get("flops")), *names]


def _growths(study: Study) -> str:
    """The report of every growth."""
    parts = [
        _growth(f"{run.name}, growth {number}", report)
        for run in study.runs.values()
        for number, report in enumerate(run.growths, start=1)
    ]
    return "<h2>Growth</h2>\n" + "\n".join(parts) if parts else ""


def _growth(title: str, report: dict[str, Any]) -> str:
    """One growth: what of its report is short, and the whole of it folded away."""
    facts = {"shape": change(report)}
    for key, value in report.items():
        text = value if isinstance(value, str) else json.dumps(value)
        if key not in ("source", "target") and len(text) <= 120:
            facts[key] = f"{value:,}" if type(value) is int else f"{value:.3g}" if type(value) is float else text
    rows = "".join(
        f"<tr><td>{escape(key.replace('_', ' '))}</td><td>{escape(text)}</td></tr>" for key, text in facts.items()
    )
    whole = _folded("whole report", report)
    return f'<h3>{escape(title)}</h3>\n<table class="facts">{rows}</table>\n{whole}'


def _reproduce(study: Study) -> str:
    """The command, and the whole configuration of every run."""
    command = f"<pre><code>{escape(study.command)}</code></pre>\n" if study.command else ""
    configs = [_folded(f"config of {run.name}", run.config) for run in study.runs.values() if run.config]
    return f"<h2>To reproduce</h2>\n{command}{''.join(configs)}" if command or configs else ""


def _folded(title: str, value: dict[str, Any]) -> str:
    """A JSON value behind a title that opens it."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return f"<details><summary>{escape(title)}</summary><pre><code>{escape(text)}</code></pre></details>\n"
