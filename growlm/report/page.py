"""The report as one HTML file that needs no network: plotly.js, the charts and their data are inside."""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from pathlib import Path

from growlm.report.figures import Figure, as_csv
from growlm.report.interactive import plotly
from growlm.report.style import DARK, LIGHT

_COLOURS = f"""
:root {{ color-scheme: light dark; {LIGHT.css()} }}
:root[data-theme="light"] {{ color-scheme: light; }}
:root[data-theme="dark"] {{ color-scheme: dark; {DARK.css()} }}
@media (prefers-color-scheme: dark) {{ :root[data-theme="auto"] {{ {DARK.css()} }} }}
"""


# A page that is larger than this many bytes has no tables of points in it: they lie beside it, and charts are whole.
MOST_BYTES = 5_900_000
_CSV = re.compile(r'download="([^"]*)" title="all points" href="data:text/csv;base64,[^"]*"')


@dataclass(frozen=True)
class Part:
    """A section of the page: its title, which is in the list of contents, and its body as HTML."""

    title: str
    body: str


def page(title: str, head: str, parts: Sequence[Part]) -> str:
    """The whole page.

    Whatever the texts of a run contain, its policy forbids the page to load anything and to run other scripts.

    Args:
        title: its title.
        head: HTML above everything.
        parts: its sections.
    """
    here = Path(__file__)
    style = _COLOURS + here.with_name("page.css").read_text(encoding="utf-8")
    scripts = [_plotly_js(), here.with_name("page.js").read_text(encoding="utf-8")]
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    policy = f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {allowed}"
    inline = "\n".join(f"<script>{script}</script>" for script in scripts)
    parts = [part for part in parts if part.body]
    contents = "".join(f'<a href="#part-{n}">{escape(part.title)}</a>' for n, part in enumerate(parts))
    body = "\n".join(f'<h2 id="part-{n}">{escape(part.title)}</h2>\n{part.body}' for n, part in enumerate(parts))
    if len(body) + len(inline) > MOST_BYTES:
        body = _CSV.sub(r'title="all points, in the file beside this page" href="\1"', body)
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
<button type="button" id="theme" title="light, dark, or as the device has it">theme</button></header>
{head}
<nav>{contents}</nav>
<noscript><p class="quiet">The charts need JavaScript; the PNG and CSV files beside this page do not.</p></noscript>
{body}
{inline}
</body>
</html>
"""


def nested(parts: Iterable[Part]) -> str:
    """Parts within a part."""
    return "\n".join(f"<h3>{escape(part.title)}</h3>\n{part.body}" for part in parts if part.body)


def chart(figure: Figure) -> str:
    """A figure with its data, which plotly draws, and its CSV."""
    data = json.dumps(plotly(figure), separators=(",", ":")).replace("<", "\\u003c")
    table = base64.b64encode(as_csv(figure).encode()).decode()
    rows = f' style="--rows: {figure.row_height * len(figure.y.names):g}"' if figure.y.names else ""
    return (
        f'<figure class="chart" id="chart-{escape(figure.name)}"{rows}><figcaption>{escape(figure.title)} '
        f'<a class="csv" download="{escape(figure.name)}.csv" title="all points" href="data:text/csv;base64,{table}">'
        f'CSV</a></figcaption><script type="application/json">{data}</script><div class="plot"></div>'
        f"{quiet(figure.note)}</figure>\n"
    )


def charts(figures: Iterable[Figure]) -> str:
    """Figures side by side where there is room."""
    drawn = "".join(map(chart, figures))
    return f'<div class="small">{drawn}</div>' if drawn else ""


def table(header: Sequence[str], lines: Iterable[Sequence[str]], text: Sequence[str]) -> str:
    """A table; the columns in `text` are flush left, the others flush right. A wide one scrolls sideways."""
    kinds = ["text" if name in text else "number" for name in header]
    body = "\n".join(_table_row("td", line, kinds) for line in lines)
    return f'<div class="scroll"><table>\n{_table_row("th", header, kinds)}\n{body}\n</table></div>'


def quiet(text: str) -> str:
    """A paragraph of small print."""
    return f'<p class="quiet">{escape(text)}</p>' if text else ""


def listed(notes: Iterable[tuple[str, str]]) -> str:
    """A list of names with notes; those without a note are left out."""
    items = "".join(f"<li><b>{escape(name)}</b>: {escape(note)}</li>" for name, note in notes if note)
    return f'<ul class="quiet">{items}</ul>' if items else ""


def folded(title: str, value: object) -> str:
    """A JSON value that is folded behind its title."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return f"<details><summary>{escape(title)}</summary><pre><code>{escape(text)}</code></pre></details>\n"


def verbatim(text: str) -> str:
    """Preformatted text, such as a command."""
    return f"<pre><code>{escape(text)}</code></pre>\n" if text else ""


def _table_row(tag: str, cells: Sequence[str], kinds: Sequence[str]) -> str:
    """One row. The first cell, a name, may be broken at its underscores; intervals are not broken."""
    texts = [escape(cells[0]).replace("_", "_<wbr>"), *map(escape, cells[1:])]
    texts = [t if kind == "text" else t.replace(", ", ",\u00a0") for t, kind in zip(texts, kinds, strict=True)]
    row = (f'<{tag} class="{kind}">{text}</{tag}>' for text, kind in zip(texts, kinds, strict=True))
    return f"<tr>{''.join(row)}</tr>"


def _plotly_js() -> str:
    """The plotly.js of the installed package, which is found without the second that it takes to import."""
    spec = find_spec("plotly")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("plotly must be installed for the charts of a report")
    return (Path(spec.submodule_search_locations[0]) / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
