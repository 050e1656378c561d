"""How numbers, tables and colours look in the terminal, on the page and in the figures. Unknown is a dash."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from growlm import files
from growlm.laws.intervals import Interval

UNKNOWN = "-"


def count(value: float | None) -> str:
    """Tokens or parameters in three digits: 950, 1.36B, 300B, and -120K of a difference."""
    if value is None:
        return UNKNOWN
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= 0.9995 * scale:
            return f"{value / scale:.3g}{letter}"
    return f"{value:.3g}"


def flops(value: float | None) -> str:
    """FLOPs in three digits with an exponent: 8.00e20."""
    return UNKNOWN if value is None else f"{value:.2e}".replace("e+0", "e").replace("e+", "e")


def loss(value: float | None) -> str:
    """A loss in nats per token: 2.1510."""
    return UNKNOWN if value is None else f"{value:.4f}"


def nats(value: float) -> str:
    """A difference of losses with its sign: -0.0213."""
    return f"{value if abs(value) >= 5e-5 else 0.0:+.4f}"


def percent(value: float | None) -> str:
    """A change with its sign: +54.6%."""
    return UNKNOWN if value is None else f"{value:+.1%}"


def interval(value: Interval | None, write: Callable[[float], str]) -> str:
    """An estimate with the ends of its interval, where it has one: +32.4% [+5.1%, +66.8%]."""
    if value is None:
        return UNKNOWN
    if value.low is None:
        return write(value.value)
    return f"{write(value.value)} [{write(value.low)}, {write(value.high)}]"


def figures(value: Interval) -> str:
    """A coefficient and its interval in four figures: 0.1112 [0.1053, 0.1172]."""
    return interval(value, "{:.4g}".format)


def duration(seconds: float | None) -> str:
    """Time in its two largest units: 42s, 3m 05s, 7h, 4d 06h."""
    if seconds is None:
        return UNKNOWN
    seconds = round(seconds)
    for size, unit, part, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= size:
            rest = seconds % size // part
            return f"{seconds // size}{unit} {rest:02d}{small}" if rest else f"{seconds // size}{unit}"
    return f"{seconds}s"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], left: Collection[str] = ()) -> str:
    """A table for a terminal, with a rule under its header.

    Args:
        header: the names of the columns.
        rows: the cells, as text.
        left: columns that are flush left, as the first one is; the others are flush right.
    """
    align = "".join("<" if name in (header[0], *left) else ">" for name in header)
    return files.table([tuple(header), *map(tuple, rows)], align=align, rule=True)


@dataclass(frozen=True)
class Theme:
    """Colours on light or dark paper.

    Runs have Okabe and Ito's, which colour-blind readers tell apart, lightened on dark paper.

    Attributes:
        paper, ink: background and text.
        quiet: small print.
        grid: lines behind the curves, and borders.
        box: background of code and of the heads of tables.
        mark: links; chosen: background of a selected button.
        baseline: the curve of the baseline.
        runs: the other curves, in turn.
    """

    paper: str
    ink: str
    quiet: str
    grid: str
    box: str
    mark: str
    chosen: str
    baseline: str
    runs: tuple[str, ...]

    def css(self) -> str:
        """The colours of text and boxes as properties of a style sheet."""
        return " ".join(f"--{key}: {value};" for key, value in vars(self).items() if key != "runs")

    def colour(self, number: int | None) -> str:
        """The colour of a run, by its number; the baseline's is None."""
        return self.baseline if number is None else self.runs[number % len(self.runs)]


LIGHT = Theme(
    paper="#ffffff",
    ink="#1c2024",
    quiet="#5b6570",
    grid="#e3e6ea",
    box="#f6f7f9",
    mark="#0072b2",
    chosen="#dfe9f2",
    baseline="#000000",
    runs=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
)
DARK = Theme(
    paper="#15181c",
    ink="#e6e8ea",
    quiet="#a3adb8",
    grid="#30353b",
    box="#1d2126",
    mark="#56b4e9",
    chosen="#203446",
    baseline="#ffffff",
    runs=("#3b8fe0", "#e5602a", "#22c08c", "#d98ab8", "#f7cb5c", "#a5daf8"),
)
