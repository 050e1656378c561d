"""The held-out split: documents, or chunks of few of them, whose hash is below a bound.

A hash, not a random draw, so that an added document moves no other across the border. `growlm prepare` hashes the text
itself: neither order nor names matter, and two copies of a document are on one side. It takes the first piece (1 MiB),
so that a document of any size is read once. Text that is not prepared is hashed by name (`growlm.data.corpus`), as
stored runs count on it.
"""

import hashlib
import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from growlm.data.documents import PIECE_BYTES, Document, cut
from growlm.errors import InputError, check_count, check_name, must_be

MANY = 50  # fewer documents are split by chunks, of which a larger share is held out: such corpora are small
CHUNK_BYTES = 4096
CHUNKS_HELD_OUT = 0.05
DOCUMENTS_HELD_OUT = 0.005
# Of n / share documents none is held out with a probability of exp(-n). So many are surveyed before anything is
# written, and if there are no more, the one with the lowest hash is held out.
SURVEYED = 8


@dataclass(frozen=True)
class Rule:
    """Texts whose 64-bit hash is below `below` are held out: whole documents, or chunks of fewer than 50 of them."""

    unit: str
    below: int

    def __post_init__(self):
        check_name("unit", self.unit, ("document", "chunk"))
        check_count("below", self.below, 0)

    def split(self, text: str) -> str:
        """The split of a chunk, or of a document by its first piece."""
        return "validation" if rank(text) < self.below else "train"


def rank(text: str) -> int:
    """The first 64 bits of the SHA-256 of a text, or of the name of a file, which may be any bytes."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:8], "big")


def bound(share: float, lowest: int, highest: int) -> int:
    """The bound below which a share of the ranks lies, and at least one of them but not all."""
    return min(max(int(share * 2**64), lowest + 1), highest)


def find_rule(read: Callable[[], Iterable[Document]], validation: str | None, whole: bool = False) -> Rule:
    """The rule for a source.

    Args:
      read: opens the documents, from the first one at every call.
      validation: a share of the documents such as "0.005"; or a number of them such as "100", of different texts,
        for which all are read once. By default 0.5 % of the documents, or 5 % of the chunks of fewer than 50.
      whole: whether documents are never split by chunks, however few they are.

    Raises:
      InputError: `validation` is neither; there is no document; nothing would be left to train on.
    """
    share, count = _parse(validation)
    limit = math.ceil(SURVEYED / (share or DOCUMENTS_HELD_OUT)) if count is None else None
    unit, found = "document", _survey(_firsts(read()), count or 1, limit)
    if found.number < MANY and not whole:
        unit, found = "chunk", _survey(_chunks(read()), count or 1, None)
    if not found.number:
        raise InputError("the source holds no text")
    if found.lowest[0] == found.highest:
        raise InputError(f"the source is too small to hold anything out: it is one {unit} of text")
    if count is None:
        share = share or (DOCUMENTS_HELD_OUT if unit == "document" else CHUNKS_HELD_OUT)
        return Rule(unit, bound(share, found.lowest[0], found.highest) if found.all else int(share * 2**64))
    if len(found.lowest) < count or found.lowest[count - 1] == found.highest:
        raise InputError(f"--validation={count} leaves nothing to train on: there are {found.number} {unit}s")
    return Rule(unit, found.lowest[count - 1] + 1)


def runs(document: Document, rule: Rule) -> Iterator[tuple[str, Iterator[str]]]:
    """The split and the text, in pieces, of each run of a document. Neighbouring chunks of a split stay joined."""
    if rule.unit == "document":
        if first := next(document.pieces, ""):
            yield rule.split(first), itertools.chain([first], document.pieces)
        return
    chunks = (chunk for piece in document.pieces for chunk in cut(piece, CHUNK_BYTES))
    for split, run in itertools.groupby(chunks, rule.split):
        yield split, _joined(run)


def _joined(texts: Iterable[str]) -> Iterator[str]:
    """Joins neighbours up to the size of a piece: a tokenizer may mark where a text begins."""
    buffer, size = [], 0
    for text in texts:
        buffer.append(text)
        size += len(text)
        if size >= PIECE_BYTES:
            yield "".join(buffer)
            buffer, size = [], 0
    if buffer:
        yield "".join(buffer)


def _parse(validation: str | None) -> tuple[float | None, int | None]:
    """(share, None) or (None, count)."""
    if validation is None:
        return None, None
    if validation.isdecimal() and int(validation) > 0:
        return None, int(validation)
    try:
        share = float(validation)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise must_be("--validation", "a share such as 0.005 or a number of documents", validation)
    return share, None


@dataclass(frozen=True)
class _Survey:
    """Statistics of text hashes: count, the lowest distinct ranks, the highest, and whether all texts were seen."""

    number: int
    lowest: list[int]
    highest: int
    all: bool


def _survey(texts: Iterator[str], keep: int, limit: int | None) -> _Survey:
    number, highest = 0, 0
    lowest: list[int] = []  # a heap of their negatives: the highest of them is the first to go
    for each in map(rank, itertools.islice(texts, limit)):
        number, highest = number + 1, max(highest, each)
        if (len(lowest) < keep or each < -lowest[0]) and -each not in lowest:
            (heapq.heappush if len(lowest) < keep else heapq.heapreplace)(lowest, -each)
    return _Survey(number, sorted(-each for each in lowest), highest, next(texts, None) is None)


def _firsts(documents: Iterable[Document]) -> Iterator[str]:
    return filter(None, (next(document.pieces, "") for document in documents))


def _chunks(documents: Iterable[Document]) -> Iterator[str]:
    return (chunk for document in documents for piece in document.pieces for chunk in cut(piece, CHUNK_BYTES))
