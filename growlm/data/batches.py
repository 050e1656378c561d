"""Batches of windows of tokens, addressed by example number.

The example at position i is a pure function of (tokens, seed, length, i), and with several portions of their weights
too. To restart, a run therefore needs no iterator state, only the integer `examples_seen`. It counts examples, not
batches, so that the batch size may change in mid-run: grain's own iterator state counts batches, and would then skip or
repeat examples.

Legend: B batch, C count of batches.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from growlm.data.shards import ShardedTokens
from growlm.errors import check_range, must_be


class Portion(NamedTuple):
    """Tokens of one source of a mixture: its part of the examples, and how many of its own were given before.

    chosen: the numbers of the windows that its examples are; None: all are.
    """

    tokens: np.ndarray | ShardedTokens
    part: int
    given: int = 0
    chosen: np.ndarray | None = None


def batches(
    tokens: np.ndarray | ShardedTokens | Sequence[Portion],
    *,
    seed: int,
    batch: int,
    length: int,
    start: int,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[np.ndarray]:
    """Endless training batches from example number `start` on, made ahead in a background thread.

    The tokens are cut into windows of length + 1, back to back. Every epoch passes over all windows once, in
    a new order; a batch may span two epochs. Another length means other windows in another order: a run that
    changes its length goes on at the same position there, and may meet text again that it has seen in this
    epoch.

    Args:
      tokens: uint8[tokens], or any one-dimensional array of integers, or token shards; or the portions of a mixture,
        whose examples come in the order that each has alone.
      seed: at least 0; picks the order.
      batch: examples per batch, over all processes.
      length: tokens per example that are predicted; a window is one longer.
      start: examples already consumed. The batches from `start` on are the tail of the batches from 0 on.
      shard: (process, processes). Process p gets rows p * batch / processes and following of every batch.

    Returns:
      An iterator over int32[batch / processes, length + 1]; inputs are [:, :-1], targets are [:, 1:].

    Raises:
      InputError: the tokens hold not one window, or a number is out of range.
    """
    import grain  # and with it JAX, which the processes of `growlm prepare` need not wait for

    check_range("seed", seed, low=0)
    check_range("start", start, low=0)
    process, processes = _check_shard(batch, shard)
    portions = [Portion(tokens, 1)] if isinstance(tokens, np.ndarray | ShardedTokens) else tokens
    streams = [
        grain.MapDataset.source(_Windows(one.tokens, length, at_least=1, chosen=one.chosen))
        .shuffle(seed=_spread(seed))
        .repeat()[one.given :]
        for one in portions
    ]
    # Not grain's own mixture: that rounds the weights, and does not say how many examples a source has given.
    mixed = _Interleaved(streams, [one.part for one in portions])
    examples = (streams[0] if len(streams) == 1 else grain.MapDataset.source(mixed))[start:]
    # In parts of B / processes rows, part j is the share of process j mod processes in batch j div processes.
    # drop_remainder: nothing is dropped, but grain counts the parts in integers, where its floats overflow.
    parts = examples.batch(batch // processes, drop_remainder=True, batch_fn=_stack)
    # The tokens are in memory, or in files that the system reads ahead: one thread makes the next batches while the
    # device works on this one, and more threads would only compete for the interpreter.
    ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    return iter(parts[process::processes].to_iter_dataset(ahead))


def validation_batches(
    tokens: np.ndarray | ShardedTokens, *, batch: int, length: int, count: int, shard: tuple[int, int] = (0, 1)
) -> np.ndarray:
    """The same batches at every call, their windows spread evenly over the tokens.

    Args:
      tokens: uint8[tokens], or any one-dimensional array of integers, or token shards.
      batch: examples per batch, over all processes.
      length: tokens per example that are predicted; a window is one longer.
      count: how many batches; fewer come if the tokens hold fewer, as no window comes twice.
      shard: (process, processes), as in `batches`.

    Returns:
      int32[count or fewer, batch / processes, length + 1].

    Raises:
      InputError: the tokens hold not one batch, or a number is out of range.
    """
    check_range("count", count, low=1)
    process, processes = _check_shard(batch, shard)
    windows = _Windows(tokens, length, at_least=batch)
    count = min(count, len(windows) // batch)
    chosen = np.arange(count * batch) * len(windows) // (count * batch)
    chosen_CB = chosen.reshape(count, processes, batch // processes)[:, process]
    return np.stack([_stack([windows[i] for i in chosen_B]) for chosen_B in chosen_CB])


def next_windows(tokens: np.ndarray | ShardedTokens, *, seed: int, length: int, start: int, count: int) -> np.ndarray:
    """The windows that `batches` gives from example `start` of a lone source on, int64[count], none of them twice.

    After the last one of the epoch come its first ones. Raises InputError where the tokens hold fewer.
    """
    import grain

    windows = len(_Windows(tokens, length, at_least=count))
    order = grain.MapDataset.range(windows).shuffle(seed=_spread(seed)).repeat()
    epoch = start // windows * windows
    return np.array([order[epoch + (start + i) % windows] for i in range(count)], np.int64)


def read_windows(tokens: np.ndarray | ShardedTokens, length: int, windows: Sequence[int] | np.ndarray) -> np.ndarray:
    """The tokens of windows of length + 1 by their numbers, int32[windows, length + 1]."""
    source = _Windows(tokens, length, at_least=1)
    return _stack([source[int(window)] for window in windows])


def counts(parts: Sequence[int], examples: int) -> list[int]:
    """How many of the first examples of a mixture are of each source, int[sources].

    It is a multiple of `parts` after every sum of them, and nowhere S / 2 examples off, of S sources: each takes its
    rounded share of what the sources before it leave. As these leave 0 or 1 more for every example, one count rises.
    """
    left, total, found = examples, sum(parts), []
    for part in parts:
        found.append((2 * left * part + total) // (2 * total))
        left, total = left - found[-1], total - part
    return found


class _Interleaved:
    """The examples of several endless streams, each at the positions that are its part of all."""

    def __init__(self, streams: Sequence[Sequence[np.ndarray]], parts: Sequence[int]):
        self._streams, self._parts = streams, parts

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, i: int) -> np.ndarray:
        before, after = counts(self._parts, int(i)), counts(self._parts, int(i) + 1)
        source = next(number for number, count in enumerate(before) if after[number] > count)
        return self._streams[source][before[source]]


class _Windows:
    """The windows of length + 1 tokens, back to back, or those chosen; the few tokens left over are not used."""

    def __init__(
        self, tokens: np.ndarray | ShardedTokens, length: int, at_least: int, chosen: np.ndarray | None = None
    ):
        check_range("length", length, low=1)
        self._tokens, self._width, self._chosen = tokens, length + 1, chosen
        if len(self) < at_least:
            needed = f"{at_least} x {self._width} = {at_least * self._width}" if at_least > 1 else str(self._width)
            raise must_be("the split", f"of {needed} tokens at least", len(tokens))

    def __len__(self) -> int:
        return len(self._tokens) // self._width if self._chosen is None else len(self._chosen)

    def __getitem__(self, i: int) -> np.ndarray:
        i = i if self._chosen is None else int(self._chosen[i])
        return self._tokens[i * self._width : (i + 1) * self._width]


def _stack(rows: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(rows).astype(np.int32)


def _spread(seed: int) -> int:
    """A 32-bit seed far from that of seed + 1: grain shuffles epoch e by seed + e, so runs would share it."""
    return int(np.random.SeedSequence(seed).generate_state(1)[0])


def _check_shard(batch: int, shard: tuple[int, int]) -> tuple[int, int]:
    """The shard. Raises InputError unless it is one of equal parts of the batch."""
    process, processes = shard
    check_range("batch", batch, low=1)
    check_range("processes", processes, low=1)
    if batch % processes:
        raise must_be("batch", f"a multiple of {processes} processes", batch)
    check_range("process", process, low=0, high=processes - 1)
    return process, processes
