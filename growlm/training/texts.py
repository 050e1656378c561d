"""The text of each stage of a run: corpora loaded, checked against each other and against the stages, and said."""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

from growlm.data import Corpus, Mixture, load_corpus, load_mixture, read_sources
from growlm.data.mixture import check_tokenizers
from growlm.errors import InputError
from growlm.training.settings import RunConfig
from growlm.training.stages import Stage, StageText

Load = Callable[[str, bool], Corpus]


class Text(NamedTuple):
    """What a stage is trained on, and what it is validated on."""

    trained: Mixture
    validated: Mixture

    @property
    def known(self) -> StageText:
        """What a stage needs to know of it."""
        trained, validated = self.trained.fingerprint, self.validated.fingerprint
        return StageText(
            trained,
            None if validated == trained else validated,
            self.trained.first.eos,
            {corpus.fingerprint: (name, len(corpus.train)) for name, corpus in self.trained.corpora.items()},
        )


def corpus_cache() -> Load:
    """`load_corpus` that reads each corpus once."""
    return functools.cache(load_corpus)


def load_texts(run: RunConfig, load: Load) -> list[Text]:
    """The text of each stage of a run, of which a system is written out.

    Raises InputError: as `load_mixture` does; the sources of a run have several tokenizers, or two of them one name.
    """
    texts = []
    for config in run.stages:
        stage = Stage(config, run, StageText(""), None)
        names = {"corpus": stage.corpus, "evaluation.corpus": stage.validated_on}
        texts.append(Text(*(load_mixture(read_sources(setting, where), load) for where, setting in names.items())))
    corpora: dict[str, Corpus] = {}
    for name, corpus in (item for text in texts for mixture in text for item in mixture.corpora.items()):
        if corpora.setdefault(name, corpus).fingerprint != corpus.fingerprint:
            raise InputError(f"source {name!r} must be one text in all stages and in evaluation, got two")
    check_tokenizers(corpora)
    return texts


def check_text(stage: Stage, text: Text) -> None:
    """Raises InputError where the model has not all tokens of the text, or a source is too small for the stage."""
    vocab, number = stage.config.model.vocab, stage.number
    for corpus in (corpus for mixture in text for corpus in mixture.corpora.values()):
        if vocab < corpus.vocab:
            raise InputError(f"model.vocab must be >= the {corpus.vocab} tokens of {corpus.name!r}, got {vocab}")
    stage.config.model.check_length("evaluation.length", stage.held_out[1])
    splits = ("train", text.trained, (1, stage.config.length)), ("validation", text.validated, stage.held_out)
    for split, mixture, (rows, length) in splits:
        for corpus in mixture.corpora.values():
            if (size := len(getattr(corpus, split))) < rows * (length + 1):
                needed = f"{rows} x (length + 1) = {rows * (length + 1)} {split} tokens"
                raise InputError(f"stages[{number}] needs {needed}: {corpus.name!r} has {size}")
    for name, corpus in text.trained.corpora.items():
        most, (_, scored) = (
            len(corpus.train) // (stage.config.length + 1),
            stage.windows.get(corpus.fingerprint, (0, 0)),
        )
        if scored > most:
            raise InputError(
                f"stages[{number}].choice must score at most the {most:,} windows of {name!r}, got {scored:,}: "
                "let keep be more, or choice.tokens less"
            )
    begin, end = (stage.given_at(step) for step in (stage.first_step, stage.last_step))
    for name, corpus in text.trained.corpora.items():
        if stage.steps and end[corpus.fingerprint] == begin.get(corpus.fingerprint):
            examples, share = stage.steps * stage.config.batch, text.trained.share(name)
            raise InputError(
                f"stages[{number}].corpus must give an example of {name!r} at least, got {share * examples:.2g} of "
                f"{examples:,} examples"
            )


def repeats(last: Stage) -> Iterator[str]:
    """The sources that a run sees more than once until the end of its last stage, as it is planned, in words."""
    for seen in last.seen_at(last.last_step).values():
        if seen.epochs > 1:
            yield f"source {seen.name} is seen {seen.epochs:.1f} times"
