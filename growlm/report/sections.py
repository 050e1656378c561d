"""A group of studies with what a report says of it, each made once and only when it is asked for."""

from dataclasses import dataclass
from functools import cached_property

from growlm.report.by_source import source_figures
from growlm.report.charts import benchmark_figures, loss_figure, training_figures
from growlm.report.compare import Row, rows, speedup_figure
from growlm.report.figures import Figure
from growlm.report.gains import Gains, gain_figures, gains
from growlm.report.records import Group
from growlm.report.search import search_figure
from growlm.report.spikes import SpikeRow, spike_figures, spike_rows


@dataclass(frozen=True)
class Section:
    """A group with its rows and figures.

    Attributes:
        group: the studies.
        number: of the section; the files of all but the first, 0, are numbered.
        at: the validation loss at which runs are compared; by default of every pair the worse of its two final ones.
    """

    group: Group
    number: int = 0
    at: float | None = None

    @property
    def title(self) -> str:
        """The title of its studies."""
        return self.group.first.title

    @property
    def _prefix(self) -> str:
        return f"{self.number + 1}_" if self.number else ""

    @cached_property
    def rows(self) -> list[Row]:
        """Its runs, compared."""
        return rows(self.group, self.at)

    @cached_property
    def spikes(self) -> list[SpikeRow]:
        """Its growths."""
        return spike_rows(self.group)

    @cached_property
    def gains(self) -> list[Gains]:
        """What its grown runs gained along their tokens."""
        return gains(self.group)

    @cached_property
    def loss(self) -> Figure:
        """The losses."""
        return loss_figure(self.group, f"{self._prefix}loss")

    @cached_property
    def speedups(self) -> Figure | None:
        """The speed-ups."""
        return speedup_figure(self.group, self.rows, f"{self._prefix}speedup")

    @cached_property
    def search(self) -> Figure | None:
        """The tries of a search."""
        return search_figure(self.group, f"{self._prefix}search")

    @cached_property
    def sources(self) -> list[Figure]:
        """The losses by source of text."""
        return source_figures(self.group, self._prefix)

    @cached_property
    def gain_figures(self) -> list[Figure]:
        """The gains."""
        return gain_figures(self.group, self.gains, self._prefix)

    @cached_property
    def benchmarks(self) -> tuple[list[Figure], list[Figure]]:
        """One figure a task, and all other metrics."""
        return benchmark_figures(self.group, self._prefix)

    @cached_property
    def training(self) -> list[Figure]:
        """How training went."""
        return training_figures(self.group, self._prefix)

    @cached_property
    def spike_figures(self) -> list[Figure]:
        """The losses around growth."""
        return spike_figures(self.group, self.spikes, self._prefix)

    @property
    def figures(self) -> list[Figure]:
        """All figures."""
        some = [figure for figure in (self.speedups, self.search) if figure]
        scores = [one for part in self.benchmarks for one in part]
        return [self.loss, *some, *self.sources, *self.gain_figures, *scores, *self.training, *self.spike_figures]
