"""The report as one HTML file that needs nothing else: no network; charts, their data and their script inside."""

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from growlm.report.figures import Figure, as_csv, plain
from growlm.report.themes import DARK, LIGHT

SCRIPTS = ("ticks.js", "plot.js", "chart.js", "page.js")
STYLE = "page.css"
# The device's colours, or those that a reader asks for.
_COLOURS = f"""
:root {{ color-scheme: light dark; {LIGHT.css()} }}
:root[data-theme="light"] {{ color-scheme: light; }}
:root[data-theme="dark"] {{ color-scheme: dark; {DARK.css()} }}
@media (prefers-color-scheme: dark) {{ :root[data-theme="auto"] {{ {DARK.css()} }} }}
"""


@dataclass(frozen=True)
class Part:
    """A piece of the page: a title for the list of contents, and what is below it, as HTML."""

    title: str
    body: str


def page(title: str, head: str, parts: Sequence[Part]) -> str:
    """The whole page.

    The policy forbids it to load anything, whatever a run's texts may contain, and to run any script but its own.

    Args:
        title: of the page.
        head: what stands above everything, as HTML.
        parts: the rest.
    """
    script = "".join(_own(name) for name in SCRIPTS)
    style = _COLOURS + _own(STYLE)
    known = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{known}'"
    parts = [part for part in parts if part.body]
    contents = "".join(f'<a href="#part-{n}">{escape(part.title)}</a>' for n, part in enumerate(parts))
    body = "\n".join(f'<h2 id="part-{n}">{escape(part.title)}</h2>\n{part.body}' for n, part in enumerate(parts))
    return f"""<!doctype html>
<html lang="en" data-theme="auto">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{escape(title)}</h1>
<button type="button" id="theme" title="light, dark, or as the device">theme</button></header>
{head}
<nav>{contents}</nav>
<noscript><p class="quiet">The charts need JavaScript; the PNG and CSV files beside this page do not.</p></noscript>
{body}
<script>{script}</script>
</body>
</html>
"""


def nested(parts: Iterable[Part]) -> str:
    """Parts within a part."""
    return "\n".join(f"<h3>{escape(part.title)}</h3>\n{part.body}" for part in parts if part.body)


def chart(figure: Figure) -> str:
    """One figure with its data, which the page's script draws, and its CSV."""
    data = json.dumps(plain(figure), separators=(",", ":")).replace("<", "\\u003c")
    table = base64.b64encode(as_csv(figure).encode()).decode()
    note = f'<p class="quiet">{escape(figure.note)}</p>' if figure.note else ""
    return (
        f'<figure class="chart" id="chart-{escape(figure.name)}"><figcaption>{escape(figure.title)}</figcaption>'
        f'<script type="application/json">{data}</script><div class="tools"></div><div class="plot"></div>'
        f'<div class="legend"></div><a class="csv" download="{escape(figure.name)}.csv" title="all points" '
        f'href="data:text/csv;base64,{table}">CSV</a>{note}</figure>\n'
    )


def charts(figures: Iterable[Figure]) -> str:
    """Several figures side by side where there is room."""
    drawn = "".join(map(chart, figures))
    return f'<div class="small">{drawn}</div>' if drawn else ""


def table(header: Sequence[str], lines: Iterable[Sequence[str]], text: Sequence[str]) -> str:
    """A table in a box of its own that scrolls sideways; the columns in `text` to the left, numbers to the right."""
    kinds = ["text" if name in text else "number" for name in header]
    body = "\n".join(_table_row("td", line, kinds) for line in lines)
    return f'<div class="scroll"><table>\n{_table_row("th", header, kinds)}\n{body}\n</table></div>'


def quiet(text: str) -> str:
    """A paragraph of small print."""
    return f'<p class="quiet">{escape(text)}</p>' if text else ""


def listed(notes: Iterable[tuple[str, str]]) -> str:
    """Names with something to say of each; those without are left out."""
    items = "".join(f"<li><b>{escape(name)}</b>: {escape(note)}</li>" for name, note in notes if note)
    return f'<ul class="quiet">{items}</ul>' if items else ""


def folded(title: str, value: object) -> str:
    """A JSON value behind a title that opens it."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return f"<details><summary>{escape(title)}</summary><pre><code>{escape(text)}</code></pre></details>\n"


def verbatim(text: str) -> str:
    """Text as it is, such as a command."""
    return f"<pre><code>{escape(text)}</code></pre>\n" if text else ""


def _table_row(tag: str, cells: Sequence[str], kinds: Sequence[str]) -> str:
    """One row; every cell in the style of its column. The first, a name, may be broken at its underscores."""
    texts = [escape(cells[0]).replace("_", "_<wbr>"), *map(escape, cells[1:])]
    pairs = zip(texts, kinds, strict=True)
    return "<tr>" + "".join(f'<{tag} class="{kind}">{text}</{tag}>' for text, kind in pairs) + "</tr>"


def _own(name: str) -> str:
    return files("growlm.report").joinpath(name).read_text(encoding="utf-8")
