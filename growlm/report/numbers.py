"""How numbers are written, the same in the terminal, on the page and in the figures. Unknown is a dash."""

from collections.abc import Callable, Sequence

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


def flops_short(value: float) -> str:
    """FLOPs at a round tick of an axis: 5e17."""
    return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")


def loss(value: float | None) -> str:
    """A loss in nats per token: 2.1510."""
    return UNKNOWN if value is None else f"{value:.4f}"


def percent(value: float | None) -> str:
    """A change with its sign: +54.6%."""
    return UNKNOWN if value is None else f"{value:+.1%}"


def interval(value: Interval, write: Callable[[float], str]) -> str:
    """An estimate with the ends of its interval, where it has one: +32.4% [+5.1%, +66.8%]."""
    if value.low is None:
        return write(value.value)
    return f"{write(value.value)} [{write(value.low)}, {write(value.high)}]"


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


def aligned(rows: Sequence[Sequence[str]], rule: bool = False) -> list[str]:
    """The rows as lines of a table: names to the left, numbers to the right; `rule` draws a line under the first."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    first, *rest = rows
    rows = [first, ["-" * width for width in widths], *rest] if rule else rows
    pairs = ([*zip(row, widths, strict=True)] for row in rows)
    return ["  ".join([row[0][0].ljust(row[0][1]), *(text.rjust(width) for text, width in row[1:])]) for row in pairs]
