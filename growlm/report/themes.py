"""Colours, for the page and for the PNGs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Theme:
    """Colours for one kind of screen.

    Runs have Okabe and Ito's, which colour-blind readers tell apart, lightened on dark paper.

    Attributes:
        paper, ink: the ground and the text on it.
        quiet: text that is less important.
        grid: lines behind the curves, and borders.
        box: ground of tables' heads and of code.
        mark: links, and what is selected; chosen: the ground of what is.
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
        """The colours as properties of a style sheet."""
        named = {key: value for key, value in vars(self).items() if key != "runs"}
        named |= {f"run{number}": colour for number, colour in enumerate(self.runs)}
        return " ".join(f"--{key}: {value};" for key, value in named.items())


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
