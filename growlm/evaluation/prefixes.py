"""Rows that begin alike, such as a question with each of its choices: which share a beginning that is read once.

Shape suffixes: B prefixes, M rows of each, P positions of a prefix, T positions after it, K scored tokens of a row.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

MOST_ROWS = 8  # of one prefix
SHORTEST = 32  # tokens of a prefix for which it pays to keep keys and values


class Row(NamedTuple):
    """Input tokens, and (predicting position, token, number of the window) of every scored token."""

    tokens: tuple[int, ...]
    scored: list[tuple[int, int, int]]


class Group(NamedTuple):
    """Rows whose first `prefix` tokens are equal, and come before every scored position; one row has no prefix."""

    prefix: int
    rows: list[Row]

    @property
    def after(self) -> int:
        """The most tokens after the prefix."""
        return max(len(row.tokens) for row in self.rows) - self.prefix

    @property
    def saved(self) -> int:
        """The positions that are not computed again."""
        return (len(self.rows) - 1) * self.prefix

    @property
    def scored(self) -> int:
        """The most scored tokens of a row."""
        return max(len(row.scored) for row in self.rows)


def grouped(rows: Iterable[Row]) -> list[Group]:
    """Sorted rows, neighbours with a common beginning together. A row joins those before it where more is saved."""
    groups: list[Group] = []
    for row in rows:
        own = min(place for place, _, _ in row.scored)
        if groups and len(members := groups[-1].rows) < MOST_ROWS:
            before = groups[-1].prefix if len(members) > 1 else min(place for place, _, _ in members[0].scored)
            common = _common(members[0].tokens, row.tokens, min(before, own))
            if common >= SHORTEST and len(members) * common >= (len(members) - 1) * before:
                groups[-1] = Group(common, [*members, row])
                continue
        groups.append(Group(0, [row]))
    return groups


def _common(one: Sequence[int], other: Sequence[int], most: int) -> int:
    """How many of the first tokens are equal, at most so many."""
    return next((i for i in range(most) if one[i] != other[i]), most)


def arrays(groups: Sequence[Group], size: int, members: int, before: int, after: int, count: int) -> tuple:
    """Prefixes [B, P] with their lengths [B], what comes after them [B, M, T] with its lengths, and of scored tokens,
    [B, M, K] each, positions after the prefix, the tokens, and the numbers of their windows, -1 where there is none.
    """
    before_BP, length_B = np.zeros((size, before), np.int32), np.zeros(size, np.int32)
    after_BMT, length_BM = np.zeros((size, members, after), np.int32), np.zeros((size, members), np.int32)
    position_BMK, target_BMK, window_BMK = (np.zeros((size, members, count), np.int32) for _ in range(3))
    window_BMK[:] = -1
    for i, (prefix, rows) in enumerate(groups):
        before_BP[i, :prefix], length_B[i] = rows[0].tokens[:prefix], prefix
        for j, row in enumerate(rows):
            rest = row.tokens[prefix:]
            after_BMT[i, j, : len(rest)], length_BM[i, j] = rest, len(rest)
            place_S, target_S, window_S = np.asarray(row.scored, np.int32).T
            position_BMK[i, j, : len(place_S)] = place_S - prefix
            target_BMK[i, j, : len(place_S)], window_BMK[i, j, : len(place_S)] = target_S, window_S
    return before_BP, length_B, after_BMT, length_BM, position_BMK, target_BMK, window_BMK
