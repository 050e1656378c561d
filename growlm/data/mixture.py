"""Mixtures: corpora with weights, and which of them gives the example at a position, a pure function of both."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from growlm.data.batches import Portion, counts
from growlm.data.corpus import Corpus
from growlm.errors import InputError, check_positive, must_be, unknown

# What a stage's hash knows of its text: the fingerprint of a lone corpus, or of each of several and its part of all.
Fingerprint = str | dict[str, int]


@dataclass(frozen=True)
class SourceConfig:
    """A source of a mixture, as a config names it.

    Attributes:
      name: of the source in metrics.
      corpus, metadata: as `load_corpus` has them.
      weight: its share of the examples, beside the other sources' weights.
    """

    name: str
    corpus: str
    weight: float = 1.0
    metadata: bool = False


OPTIONS = ("corpus", "weight", "metadata")


def read_sources(setting: Any, where: str = "corpus") -> tuple[SourceConfig, ...]:
    """The sources that a setting names, by name.

    Args:
      setting: one of
        - "stdlib", or another source of `load_corpus`: it alone.
        - {"runs/web": 0.9, "stdlib": 0.1}: sources, and their weights.
        - {"web": {"corpus": "runs/web", "weight": 0.9, "metadata": False}}: the same under names, with options of which
          the corpus alone must be there.
      where: what an error calls the setting.

    Raises:
      InputError: it is none of these, a weight is no positive number, a source stands there twice.
    """
    if isinstance(setting, str):
        return (SourceConfig(setting, setting),)
    if not isinstance(setting, Mapping) or not setting or not all(isinstance(name, str) and name for name in setting):
        raise must_be(where, "a source, or sources by name with their weights", setting)
    found = [_read_source(name, value, f"{where}.{name}") for name, value in sorted(setting.items())]
    named = [(one.corpus, one.metadata) for one in found]
    if twice := [one.name for one, own in zip(found, named, strict=True) if named.count(own) > 1]:
        raise must_be(where, "sources that differ", " and ".join(twice))
    return tuple(found)


def _read_source(name: str, value: Any, where: str) -> SourceConfig:
    if not isinstance(value, Mapping):
        check_positive(where, value)
        return SourceConfig(name, name, value)
    if extra := [key for key in value if key not in OPTIONS]:
        raise unknown("option", extra[0], OPTIONS, where=where)
    source = SourceConfig(name, **{"corpus": None} | dict(value))
    check_positive(f"{where}.weight", source.weight)
    if not isinstance(source.corpus, str):
        raise must_be(f"{where}.corpus", "a source of text", source.corpus)
    if not isinstance(source.metadata, bool):
        raise must_be(f"{where}.metadata", "True or False", source.metadata)
    return source


def first_corpus(setting: Any) -> str:
    """The corpus of one of the sources that a setting names, whose tokenizer is that of all."""
    return read_sources(setting)[0].corpus


@dataclass(frozen=True, eq=False)
class Mixture:
    """Corpora by name, and what part of the examples each gives: whole numbers without a common divisor.

    The order of both is that of the fingerprints, so that neither names nor their order matter to what is trained.
    chosen: the windows of each, by fingerprint, that alone are examples, at one length; empty: all are.
    """

    corpora: dict[str, Corpus]
    parts: dict[str, int]
    chosen: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def fingerprint(self) -> Fingerprint:
        """Equal for two mixtures that give the same examples; of a lone corpus, its own."""
        if len(self.corpora) == 1:
            return self.first.fingerprint
        return {corpus.fingerprint: self.parts[name] for name, corpus in self.corpora.items()}

    @property
    def first(self) -> Corpus:
        """One of the corpora, whose tokenizer and EOS are those of all."""
        return next(iter(self.corpora.values()))

    def share(self, name: str) -> float:
        """The share of the examples that a source gives."""
        return self.parts[name] / sum(self.parts.values())

    def portions(self, given: Mapping[str, int]) -> list[Portion]:
        """The training tokens for `batches`, each from the example on that `given` says, by fingerprint.

        Of windows that were chosen, none was given before.
        """
        given = {} if self.chosen else given
        return [
            Portion(
                corpus.train, self.parts[name], given.get(corpus.fingerprint, 0), self.chosen.get(corpus.fingerprint)
            )
            for name, corpus in self.corpora.items()
        ]


def load_mixture(sources: Sequence[SourceConfig], load: Callable[[str, bool], Corpus]) -> Mixture:
    """The corpora of sources.

    Args:
      sources: as `read_sources` gives them.
      load: `load_corpus`, or one that keeps what it has loaded.

    Raises:
      InputError: as `load_corpus` does; two sources are the same text, or have other tokenizers.
    """
    corpora = {source.name: load(source.corpus, source.metadata) for source in sources}
    names = sorted(corpora, key=lambda name: corpora[name].fingerprint)
    for before, name in itertools.pairwise(names):
        if corpora[before].fingerprint == corpora[name].fingerprint:
            raise must_be("sources", "texts that differ", f"the same as {before!r} and {name!r}")
    check_tokenizers(corpora)
    # What is written counts: of 0.1 the tenth, not the float next to it.
    exact = {source.name: Fraction(str(source.weight)) for source in sources}
    scale = Fraction(math.lcm(*(weight.denominator for weight in exact.values())))
    whole = {name: int(exact[name] * scale) for name in names}
    divisor = math.gcd(*whole.values())
    return Mixture({name: corpora[name] for name in names}, {name: part // divisor for name, part in whole.items()})


def check_tokenizers(corpora: Mapping[str, Corpus]) -> None:
    """Raises InputError unless all corpora have one tokenizer."""
    (first, of_first), *others = corpora.items()
    for name, corpus in others:
        if corpus.tokenizer != of_first.tokenizer:
            raise InputError(
                f"sources must have one tokenizer, got that of {first!r} ({of_first.vocab} tokens) and another of "
                f"{name!r} ({corpus.vocab} tokens): see growlm prepare --tokenizer"
            )


def parts_of(fingerprint: Fingerprint) -> dict[str, int]:
    """The part of each corpus, by its fingerprint, in the order of a `Mixture`."""
    return {fingerprint: 1} if isinstance(fingerprint, str) else dict(sorted(fingerprint.items()))


def given_by(fingerprint: Fingerprint, examples: int) -> dict[str, int]:
    """How many of the first examples of a mixture each corpus gives, by its fingerprint."""
    parts = parts_of(fingerprint)
    return dict(zip(parts, counts([*parts.values()], examples), strict=True))
