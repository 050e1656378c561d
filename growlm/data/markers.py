"""The markers of conversations as tokens: what `growlm.data.chat` has as characters, for every tokenizer.

With bytes a marker is a byte that is in no UTF-8; else a special token that the tokenizer has, or a token after its
last, for which the model needs room.
"""

import dataclasses
import itertools
from collections.abc import Sequence

from growlm.data.chat import AT_MARKERS, BYTES, MARKERS
from growlm.data.tokenizers import Ids, Tokenizer

# Special tokens for system, user, assistant and the end of an answer; the first of these that a tokenizer has.
KNOWN = (
    ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),  # Phi-3
    (*(f"<|reserved_special_token_{number}|>" for number in range(3)), "<|eot_id|>"),  # Llama 3
)


@dataclasses.dataclass(frozen=True)
class Markers:
    """The tokens that mark who speaks, and where an answer ends."""

    system: int
    user: int
    assistant: int
    end: int

    @property
    def ids(self) -> tuple[int, int, int, int]:
        """All four."""
        return self.system, self.user, self.assistant, self.end


def markers_of(tokenizer: Tokenizer) -> Markers:
    """The markers of a tokenizer: a function of it alone."""
    if not tokenizer.files:
        return Markers(*BYTES)
    for names in KNOWN:
        found = [tokenizer.number(name) for name in names]
        if None not in found:
            return Markers(*found)
    return Markers(*range(tokenizer.vocab, tokenizer.vocab + 4))


def with_markers(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer of texts with markers in them, which it makes of tokens too. Its vocabulary has them."""
    ids = markers_of(tokenizer).ids
    number = dict(zip(MARKERS, ids, strict=True))
    marker = dict(zip(ids, MARKERS, strict=True))

    def encode_all(texts: Sequence[str]) -> list[Ids]:
        parts = [[part for part in AT_MARKERS.split(text) if part] for text in texts]
        plain = iter(tokenizer.encode_all([part for each in parts for part in each if part not in number]))
        return [[id for part in each for id in ([number[part]] if part in number else next(plain))] for each in parts]

    def decode(tokens: Sequence[int]) -> str:
        runs = itertools.groupby(tokens, lambda token: token in marker)
        return "".join(
            "".join(marker[id] for id in run) if marks else tokenizer.decode(list(run)) for marks, run in runs
        )

    vocab = max(tokenizer.vocab, max(ids) + 1)
    return dataclasses.replace(tokenizer, vocab=vocab, encode_all=encode_all, decode=decode)
