"""Text generation: a batch of prompts is read in pieces, and then every new token once.

Shapes are few, so that programs are: rows and room are powers of two, prompts come in pieces of up to PIECE tokens, and
new tokens are drawn STEPS at a time.

Shape suffixes: B batch, T positions, D embed, V vocab, K new tokens.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from growlm.errors import check_range, must_be
from growlm.evaluation.score import POSITIONS, Forward, LanguageModel, on_all, padded_length, power_of_two, run
from growlm.models import Params
from growlm.models.loss import logits
from growlm.models.memory import Memory, new_memory, read_on

PIECE = 256  # the most tokens of a prompt that are read at a time: scores are [B, H, PIECE, room]
STEPS = 16  # new tokens between two looks at what was written
LARGEST = 2**31 - 1  # number that a device takes, as the seed of a run


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Settings of generation.

    Attributes:
      until: stop strings, which are cut off; EOS stops too.
      most: the most tokens to generate.
      temperature: of the softmax; 0 is greedy.
      seed: of the draws, which depend on it, on a text's number and on the place in the text alone.
      top_p: draw from the likeliest tokens alone, the fewest with this probability together (arXiv 1904.09751).
      top_k: draw from the `top_k` likeliest tokens alone, of which `top_p` is then taken; 0: from all.
    """

    until: tuple[str, ...] = ()
    most: int = 256
    temperature: float = 0.0
    seed: int = 0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self):
        check_range("most tokens to generate", self.most, low=1)
        check_range("temperature", self.temperature, low=0)
        check_range("seed", self.seed, low=0, high=LARGEST)
        check_range("top_k", self.top_k, low=0, high=LARGEST)
        if not 0 < self.top_p <= 1:
            raise must_be("top_p", "above 0 and at most 1", self.top_p)


def generate(
    model: LanguageModel, contexts: Sequence[str], sampling: Sampling, rows: int | None = None, title: str = "writing"
) -> list[str]:
    """The text that the model generates after each context, up to the first stop string.

    A context is cut from the left to leave room for new tokens, as in lm-evaluation-harness, but never below half of
    the model's length. Where a text becomes longer than the model's length, it goes on from its newest half.

    Args:
      model: the model.
      contexts: the texts to go on with; before an empty one stands the model's prefix.
      sampling: how.
      rows: of a batch; by default as many as make some thousand positions on every device.
      title: of the progress bar.
    """
    room = max(model.length - sampling.most, _half(model))
    prompts = [tokens[-room:] or [model.prefix] for tokens in model.encode_all(contexts)]
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    size = rows or min(max(POSITIONS // model.length, 1) * model.parts, power_of_two(len(prompts)))
    size = -(-size // model.parts) * model.parts
    texts = [""] * len(prompts)
    with tqdm(total=len(prompts), desc=title, unit="text", disable=None) as bar:
        for start in range(0, len(order), size):
            batch = {number: prompts[number] for number in order[start : start + size]}
            for number, text in _write(model, batch, size, sampling, bar.update).items():
                texts[number] = text
    return texts


def _half(model: LanguageModel) -> int:
    return -(-model.length // 2)


def _write(
    model: LanguageModel, prompts: dict[int, list[int]], size: int, sampling: Sampling, done: Callable[[int], Any]
) -> dict[int, str]:
    """The texts of one batch by number, STEPS tokens at a time until all have ended."""
    keys_B2 = np.zeros((size, 2), np.uint32)
    keys_B2[: len(prompts)] = _keys(sampling.seed, np.asarray([*prompts], np.uint32))
    texts, written = dict.fromkeys(prompts, ""), {number: [] for number in prompts}
    going, count, windows = set(prompts), 0, dict(prompts)  # windows: the part of each text that the model reads
    while going:
        windows = {n: row if len(row) <= model.length else row[-_half(model) :] for n, row in windows.items()}
        longest = max(map(len, windows.values()))
        steps = min(sampling.most - count, model.length - longest + 1)  # the last of them is only predicted
        reading = _Reading(model, list(windows.values()), size, padded_length(longest + steps - 1, model.length))
        for start in range(0, steps, STEPS):
            new_BK = reading.write(sampling, keys_B2, count)[:, : steps - start]
            count += new_BK.shape[1]
            for number, new in zip(prompts, new_BK.tolist(), strict=False):
                windows[number] = windows[number] + new
                if number not in going:
                    continue
                ended = model.tokenizer.eos in new
                written[number] += new[: new.index(model.tokenizer.eos) + 1] if ended else new
                texts[number], stopped = _cut(model.tokenizer.decode(written[number]), sampling.until)
                if ended or stopped or count == sampling.most:
                    going.discard(number)
                    done(1)
            if not going:
                break
    return texts


def _cut(text: str, until: Sequence[str]) -> tuple[str, bool]:
    """The text before the one of `until` that is the first to be complete, and whether there is one."""
    ends = [(text.index(end) + len(end), text.index(end)) for end in until if end and end in text]
    return text[: min(ends)[1]] if ends else text, bool(ends)


@jax.jit
def _keys(seed: Any, numbers: jax.Array) -> jax.Array:
    """A key for each text, uint32[texts, 2]."""
    return jax.random.key_data(jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(numbers))


class _Reading:
    """What a model keeps of the texts of a batch while it writes on."""

    def __init__(self, model: LanguageModel, texts: list[list[int]], size: int, room: int):
        """Reads the texts, in pieces; `room` is the most tokens that they may have."""
        self._model = model
        lengths = np.ones(size, np.int32)
        lengths[: len(texts)] = [len(text) for text in texts]
        piece = min(padded_length(int(max(lengths)), room), PIECE)
        tokens_BT = np.zeros((size, -(-max(lengths) // piece) * piece), np.int32)
        for row, text in zip(tokens_BT, texts, strict=False):
            row[: len(text)] = text
        self._state = None
        for start in range(0, tokens_BT.shape[1], piece):
            begin_B = np.minimum(lengths, start)
            arrays = tokens_BT[:, start : start + piece], begin_B, np.minimum(lengths - begin_B, piece)
            self._state = run(model, partial(_read, self._state, room=room), *arrays)
        self._begin_B = lengths

    def write(self, sampling: Sampling, keys_B2: np.ndarray, count: int) -> np.ndarray:
        """The next STEPS tokens of every row, of which `count` have been written."""

        def column(value: float, dtype: Any) -> np.ndarray:
            return np.full((len(keys_B2), 1), value, dtype)  # a row of it for every row: batches are split

        how = column(sampling.temperature, np.float32), column(sampling.top_p, np.float32), column(sampling.top_k, int)
        arrays = self._begin_B, column(count, np.uint32), keys_B2, *how
        self._state, new_BK = run(self._model, partial(_go_on, self._state), *arrays)
        self._begin_B = self._begin_B + STEPS
        return np.asarray(new_BK)


_State = tuple[Memory, jax.Array]  # what is kept, and the logits [B, V] of the next token of every row


def _read_on(
    forward: Forward, weights: Any, memory: Memory, tokens_BT: jax.Array, begin_B: jax.Array, count_B: jax.Array
) -> _State:
    """The memory with new tokens, and the logits after the last of them."""
    config, dtype, document_end = forward
    params, scale_L = weights
    options = {"dtype": jnp.dtype(dtype), "block_scale": scale_L, "document_end": document_end}
    x_BTD, head_DV, memory = read_on(config, params, memory, tokens_BT, begin_B, count_B, **options)
    last_B11 = jnp.maximum(count_B - 1, 0)[:, None, None]
    x_BD = jnp.take_along_axis(x_BTD, last_B11, axis=1)[:, 0]
    return memory, logits(x_BD, head_DV, config.architecture.logit_cap(config))


@partial(jax.jit, static_argnames=("forward", "mesh", "room"), donate_argnums=0)
def _read(
    state: _State | None,
    forward: Forward,
    mesh: Mesh | None,
    weights: tuple[Params, jax.Array | None],
    tokens_BT: jax.Array,
    begin_B: jax.Array,
    count_B: jax.Array,
    room: int,
) -> _State:
    """The state after a piece of the prompts, of which some rows may have none."""
    memory = new_memory(forward.config, len(tokens_BT), room, dtype=forward.dtype) if state is None else state[0]
    memory, logits_BV = _read_on(forward, weights, memory, tokens_BT, begin_B, count_B)
    return memory, logits_BV if state is None else jnp.where(count_B[:, None] > 0, logits_BV, state[1])


@partial(jax.jit, static_argnames=("forward", "mesh"), donate_argnums=0)
def _go_on(
    state: _State,
    forward: Forward,
    mesh: Mesh | None,
    weights: tuple[Params, jax.Array | None],
    begin_B: jax.Array,
    count_B1: jax.Array,
    key_B2: jax.Array,
    *how: jax.Array,
) -> tuple[_State, jax.Array]:
    """The state after STEPS more tokens, and these: int32[B, K]."""

    def step(state: _State, number: jax.Array) -> tuple[_State, jax.Array]:
        chosen_B = _chosen(state[1], count_B1[:, 0] + number, key_B2, *how)
        new = chosen_B[:, None], begin_B + number, jnp.ones_like(begin_B)
        return _read_on(forward, weights, state[0], *new), chosen_B

    state, chosen_KB = jax.lax.scan(step, state, jnp.arange(STEPS))
    return state, on_all(mesh, chosen_KB.T)


def _chosen(
    logits_BV: jax.Array,
    count_B: jax.Array,
    key_B2: jax.Array,
    temperature_B1: jax.Array,
    top_p_B1: jax.Array,
    top_k_B1: jax.Array,
) -> jax.Array:
    """The next token of every row: drawn at its temperature, or the likeliest at temperature 0."""
    largest_B1 = logits_BV.max(axis=1, keepdims=True)
    number_V = jnp.arange(logits_BV.shape[1])
    # In place of argmax, which is not vectorised on CPUs.
    greedy_B = jnp.where(logits_BV == largest_B1, number_V, number_V[-1]).min(axis=1)

    def drawn() -> jax.Array:
        keys_B = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(key_B2), count_B)
        warm_BV = logits_BV / jnp.where(temperature_B1 > 0, temperature_B1, 1)
        limited = jnp.any((top_p_B1 < 1) | (top_k_B1 > 0))  # sorting a vocabulary takes its time
        warm_BV = jax.lax.cond(limited, _likeliest, lambda x_BV, *_: x_BV, warm_BV, top_p_B1, top_k_B1)
        drawn_B = jax.vmap(jax.random.categorical)(keys_B, warm_BV)
        return jnp.where(temperature_B1[:, 0] > 0, drawn_B, greedy_B).astype(jnp.int32)

    return jax.lax.cond(jnp.any(temperature_B1 > 0), drawn, lambda: greedy_B.astype(jnp.int32))


def _likeliest(logits_BV: jax.Array, top_p_B1: jax.Array, top_k_B1: jax.Array) -> jax.Array:
    """The logits, -inf of tokens that are not drawn from."""
    sorted_BV = -jnp.sort(-logits_BV, axis=1)
    rank_V = jnp.arange(logits_BV.shape[1])
    sorted_BV = jnp.where((rank_V < top_k_B1) | (top_k_B1 == 0), sorted_BV, -jnp.inf)
    share_BV = jax.nn.softmax(sorted_BV, axis=1)
    drawn_from_BV = (jnp.cumsum(share_BV, axis=1) - share_BV < top_p_B1) & (sorted_BV > -jnp.inf)
    least_B1 = jnp.min(jnp.where(drawn_from_BV, sorted_BV, jnp.inf), axis=1, keepdims=True)
    return jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
