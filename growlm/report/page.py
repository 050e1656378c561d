"""The report as one HTML file that needs no network: plotly.js, the charts and their data are inside."""

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from pathlib import Path

from growlm.report.figures import SHOWN_POINTS, Figure, as_csv, cells
from growlm.report.interactive import plotly
from growlm.report.style import DARK, LIGHT

_COLOURS = f"""
:root {{ color-scheme: light dark; {LIGHT.css()} }}
:root[data-theme="light"] {{ color-scheme: light; }}
:root[data-theme="dark"] {{ color-scheme: dark; {DARK.css()} }}
@media (prefers-color-scheme: dark) {{ :root[data-theme="auto"] {{ {DARK.css()} }} }}
"""


# A page that would be larger than this many bytes has no tables of points in it, which lie beside it; if that is not
# enough its curves have fewer points, half as many again and again. But tables of hundreds of runs leave the charts
# LEAST_BYTES.
MOST_BYTES = 5_900_000
LEAST_BYTES = 500_000
LEAST_POINTS = 8
_CHART = re.compile("<!--chart (.*?)-->")  # where one is to be; texts of a run have no "<" in a page


@dataclass(frozen=True)
class Part:
    """A section of the page: its title, which is in the list of contents, and its body as HTML."""

    title: str
    body: str


def page(title: str, head: str, parts: Sequence[Part], figures: Iterable[Figure]) -> str:
    """The whole page.

    Whatever the texts of a run contain, its policy forbids the page to load anything and to run other scripts.

    Args:
        title: its title.
        head: HTML above everything.
        parts: its sections.
        figures: what `chart` was asked for in them.
    """
    here = Path(__file__)
    style = _COLOURS + here.with_name("page.css").read_text(encoding="utf-8")
    scripts = [_plotly_js(), here.with_name("page.js").read_text(encoding="utf-8")]
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    # Bases and forms are not ruled by default-src.
    policy = "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data: blob:; style-src 'unsafe-inline'"
    policy += f"; script-src {allowed}"
    inline = "\n".join(f"<script>{script}</script>" for script in scripts)
    parts = [part for part in parts if part.body]
    contents = "".join(f'<a href="#part-{n}">{escape(part.title)}</a>' for n, part in enumerate(parts))
    body = "\n".join(f'<h2 id="part-{n}">{escape(part.title)}</h2>\n{part.body}' for n, part in enumerate(parts))
    body, fewer = _drawn(body, {escape(one.name): one for one in figures}, MOST_BYTES - len(inline))
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
{fewer}
{body}
{inline}
</body>
</html>
"""


def nested(parts: Iterable[Part]) -> str:
    """Parts within a part."""
    return "\n".join(f"<h3>{escape(part.title)}</h3>\n{part.body}" for part in parts if part.body)


def chart(figure: Figure) -> str:
    """The place of a figure, which `page` draws when it knows how much room there is."""
    return f"<!--chart {escape(figure.name)}-->"


def _drawn(body: str, figures: Mapping[str, Figure], most: int) -> tuple[str, str]:
    """The body with its charts, in at most this many bytes if that can be, and what there is to say of them."""

    def drawn(points: int, whole: bool) -> str:
        return _CHART.sub(lambda found: _chart(figures[found[1]], points, whole), body)

    shown, rest = [figures[name] for name in _CHART.findall(body)], len(_CHART.sub("", body))
    if rest + 2 * sum(map(cells, shown)) <= most and len(text := drawn(SHOWN_POINTS, whole=True)) <= most:
        return text, ""
    points, most = SHOWN_POINTS, max(most, rest + LEAST_BYTES)
    while len(text := drawn(points, whole=False)) > most and points > LEAST_POINTS:
        points //= 2
    said = f"Curves have at most {points} points here, to keep the page small; the CSV files beside it have all."
    return text, quiet(said) if points < SHOWN_POINTS else ""


def _chart(figure: Figure, points: int, whole: bool) -> str:
    """A figure with its data, which plotly draws, and its CSV, `whole` in the page or else beside it."""
    data = json.dumps(plotly(figure, points), separators=(",", ":")).replace("<", "\\u003c")
    rows = f' style="--rows: {figure.row_height * len(figure.y.names):g}"' if figure.y.names else ""
    name, said = f"{escape(figure.name)}.csv", " ".join(filter(None, (figure.note, figure.left_out)))
    if whole:
        table = base64.b64encode(as_csv(figure).encode()).decode()
        link = f'download="{name}" title="all points" href="data:text/csv;base64,{table}"'
    else:
        link = f'title="all points, in the file beside this page" href="{name}"'
    return (
        f'<figure class="chart" id="chart-{escape(figure.name)}"{rows}><figcaption>{escape(figure.title)} '
        f'<a class="csv" {link}>CSV</a></figcaption>'
        f'<script type="application/json">{data}</script><div class="plot"></div>{quiet(said)}'
        f"<details><summary>In numbers</summary>{_ends(figure)}</details></figure>\n"
    )


def _ends(figure: Figure) -> str:
    """The last point of every curve, all single points and all marks: what the keyboard and a screen reader reach."""
    header = ["curve", "at", figure.y.word, *(axis.word for axis in figure.x)]
    lines = []
    for one in figure.series:
        for mark in one.marks:
            lines.append([one.name, mark.text, *_written(figure, mark.x | {figure.y.key: mark.y})])
        points = list(zip(*(column.tolist() for column in one.columns.values()), strict=True))
        for point in points if one.style == "points" else points[-1:]:
            row = dict(zip(one.columns, point, strict=True))
            lines.append([one.name, "" if one.style == "points" else "its end", *_written(figure, row)])
    return table(header, lines, ["curve", "at", *(axis.word for axis in (figure.y, *figure.x) if axis.names)])


def _written(figure: Figure, row: Mapping[str, float]) -> list[str]:
    """The values of a point on the y axis and on every x axis, as text; nothing where one is not known."""
    values = ((axis, row.get(axis.key, math.nan)) for axis in (figure.y, *figure.x))
    return [axis.write(value) if math.isfinite(value) else "" for axis, value in values]


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
