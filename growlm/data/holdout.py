"""What is held out for validation: texts whose hash is below a bound.

The hash is of the text itself, so that neither the order nor the names of files move a document across the border,
an added file moves no other, and two copies of a document are on one side. It is of the document's first piece (1 MiB),
so that a document of any size is read once.
"""

import hashlib
import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from growlm.data.corpus import CHUNK, CHUNKS_HELD_OUT, MANY_FILES
from growlm.data.documents import PIECE, Document, cut
from growlm.errors import InputError

SHARE = 0.005
# Among 8 / share documents none is held out with a probability of exp(-8). So many are looked at before anything is
# written, and if there are no more, the one with the lowest hash is held out.
LOOKED_AT = 8


@dataclass(frozen=True)
class Rule:
    """Texts whose 64-bit hash is below `below` are held out: whole documents, or chunks of fewer than 50 of them."""

    unit: str
    below: int

    def split(self, text: str) -> str:
        """The split that a document which begins so, or a chunk, belongs to."""
        return "validation" if rank(text) < self.below else "train"


def rank(text: str) -> int:
    """The first 64 bits of the SHA-256 of a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def find_rule(read: Callable[[], Iterable[Document]], validation: str | None) -> Rule:
    """The rule for a source.

    Args:
      read: gives the documents from the first one on, each time it is called.
      validation: a share such as "0.005", of which about as many are held out; or a number of documents such as
        "100", exactly so many different ones, for which all are read once. By default 0.5 % of the documents, or
        5 % of the chunks where there are fewer than 50 documents.

    Raises:
      InputError: another text than that; no document; as many as there are, or more.
    """
    share, count = _parse(validation)
    look_at = math.ceil(LOOKED_AT / (share or SHARE)) if count is None else None
    unit, found = "document", _survey(_firsts(read()), count or 1, look_at)
    if found.number < MANY_FILES:
        unit, found = "chunk", _survey(_chunks(read()), count or 1, None)
    if not found.number:
        raise InputError("the source holds no text: allowed are documents that are not empty")
    if found.lowest[0] == found.highest:
        raise InputError(f"the source is too small to hold anything out: it is one {unit} of text")
    if count is None:
        share = share or (SHARE if unit == "document" else CHUNKS_HELD_OUT)
        least = found.lowest[0] + 1 if found.all else 0
        return Rule(unit, min(max(int(share * 2**64), least), found.highest if found.all else 2**64))
    if len(found.lowest) < count or found.lowest[count - 1] == found.highest:
        raise InputError(f"--validation={count} leaves nothing to train on: of {found.number} {unit}s, allowed is less")
    return Rule(unit, found.lowest[count - 1] + 1)


def runs(document: Document, rule: Rule) -> Iterator[tuple[str, Iterator[str]]]:
    """What of a document goes where, in order: the split, and the text in pieces. Neighbouring chunks stay joined."""
    if rule.unit == "document":
        if first := next(document.pieces, ""):
            yield rule.split(first), itertools.chain([first], document.pieces)
        return
    chunks = (chunk for piece in document.pieces for chunk in cut(piece, CHUNK))
    for split, run in itertools.groupby(chunks, rule.split):
        yield split, _joined(run)


def _joined(texts: Iterable[str]) -> Iterator[str]:
    """Neighbours together up to the size of a piece, as a tokenizer may mark where a text begins."""
    held, size = [], 0
    for text in texts:
        held.append(text)
        size += len(text)
        if size >= PIECE:
            yield "".join(held)
            held, size = [], 0
    if held:
        yield "".join(held)


def _parse(validation: str | None) -> tuple[float | None, int | None]:
    """The share, or else the count."""
    if validation is None:
        return None, None
    if validation.isdecimal() and int(validation) > 0:
        return None, int(validation)
    try:
        share = float(validation)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise InputError(f"--validation={validation} is not allowed: a share such as 0.005, or a number of documents")
    return share, None


@dataclass(frozen=True)
class _Survey:
    """Of the texts looked at: how many, the lowest different ranks, the highest; and whether that is all texts."""

    number: int
    lowest: list[int]
    highest: int
    all: bool


def _survey(texts: Iterator[str], keep: int, limit: int | None) -> _Survey:
    number, highest = 0, 0
    lowest: list[int] = []  # a heap of their negatives: the highest of them is the first to go
    for found in map(rank, itertools.islice(texts, limit)):
        number, highest = number + 1, max(highest, found)
        if (len(lowest) < keep or found < -lowest[0]) and -found not in lowest:
            (heapq.heappush if len(lowest) < keep else heapq.heapreplace)(lowest, -found)
    return _Survey(number, sorted(-each for each in lowest), highest, next(texts, None) is None)


def _firsts(documents: Iterable[Document]) -> Iterator[str]:
    return filter(None, (next(document.pieces, "") for document in documents))


def _chunks(documents: Iterable[Document]) -> Iterator[str]:
    return (chunk for document in documents for piece in document.pieces for chunk in cut(piece, CHUNK))
