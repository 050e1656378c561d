"""Text generation without a cache of keys and values: every token recomputes the whole prefix.

Shape suffixes: B batch, T positions, V vocab.
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

from growlm.errors import check_range
from growlm.evaluation.score import POSITIONS, Forward, LanguageModel, on_all, padded_length, run, states_at
from growlm.models import Params
from growlm.models.loss import logits


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Settings of generation.

    Attributes:
      until: stop strings, which are cut off; EOS stops too.
      most: the most tokens to generate.
      temperature: of the softmax; 0 is greedy.
      seed: of the draws.
    """

    until: tuple[str, ...] = ()
    most: int = 256
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self):
        check_range("most tokens to generate", self.most, low=1)
        check_range("temperature", self.temperature, low=0)


def generate(
    model: LanguageModel, contexts: Sequence[str], sampling: Sampling, rows: int | None = None, title: str = "writing"
) -> list[str]:
    """The text that the model generates after each context, up to the first stop string.

    A context is cut from the left to leave room for new tokens, as in lm-evaluation-harness, but never below half of
    the model's length; where that leaves too little room, the oldest tokens drop out as new ones come.
    """
    room = max(model.length - sampling.most, -(-model.length // 2))
    prompts = [tokens[-room:] or [model.prefix] for tokens in model.encode_all(contexts)]
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    size = rows or max(POSITIONS // model.length, 1) * model.parts
    size = -(-size // model.parts) * model.parts
    texts = [""] * len(prompts)
    with tqdm(total=len(prompts), desc=title, unit="text", disable=None) as bar:
        for start in range(0, len(order), size):
            numbers = order[start : start + size]
            written = _write(model, [prompts[number] for number in numbers], size, sampling, start, bar.update)
            for number, text in zip(numbers, written, strict=True):
                texts[number] = text
    return texts


def _write(
    model: LanguageModel,
    prompts: list[list[int]],
    size: int,
    sampling: Sampling,
    draw: int,
    done: Callable[[int], Any],
) -> list[str]:
    """The texts of one batch, token by token until all have ended."""
    tokens, texts = [list(prompt) for prompt in prompts], [""] * len(prompts)
    going = set(range(len(prompts)))
    for count in range(sampling.most):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(sampling.seed), draw), count)
        chosen = _next_tokens(model, [row[-model.length :] for row in tokens], size, sampling.temperature, key)
        for i in sorted(going):
            tokens[i].append(int(chosen[i]))
            ended = chosen[i] == model.tokenizer.eos
            texts[i], stopped = _cut(model.tokenizer.decode(tokens[i][len(prompts[i]) :]), sampling.until)
            if ended or stopped or count + 1 == sampling.most:
                going.discard(i)
                done(1)
        if not going:
            break
    return texts


def _cut(text: str, until: Sequence[str]) -> tuple[str, bool]:
    """The text before the first of `until`, and whether there was one."""
    ends = [text.index(end) for end in until if end and end in text]
    return text[: min(ends)] if ends else text, bool(ends)


def _next_tokens(
    model: LanguageModel, tokens: list[list[int]], size: int, temperature: float, key: jax.Array
) -> np.ndarray:
    length = padded_length(max(map(len, tokens)), model.length)
    tokens_BT, last_B1 = np.zeros((size, length), np.int32), np.zeros((size, 1), np.int32)
    for i, row in enumerate(tokens):
        tokens_BT[i, : len(row)], last_B1[i] = row, len(row) - 1
    data = np.tile(np.asarray(jax.random.key_data(key)), (size, 1))  # a row of it for every row: batches are split
    heat = np.full((size, 1), temperature, np.float32)
    return np.asarray(run(model, _chosen, tokens_BT, last_B1, data, heat))


@partial(jax.jit, static_argnames=("forward", "mesh"))
def _chosen(
    forward: Forward,
    mesh: Mesh | None,
    weights: tuple[Params, jax.Array | None],
    tokens_BT: jax.Array,
    last_B1: jax.Array,
    key_B2: jax.Array,
    temperature_B1: jax.Array,
) -> jax.Array:
    """The next token of every row: drawn at its temperature, or the likeliest at temperature 0."""
    x_B1D, head_DV = states_at(forward, weights, tokens_BT, last_B1)
    logits_BV = logits(x_B1D[:, 0], head_DV, forward.config.architecture.logit_cap(forward.config))
    keys_B = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(key_B2), jnp.arange(len(key_B2)))
    heat_B1 = jnp.where(temperature_B1 > 0, temperature_B1, 1)
    drawn_B = jax.vmap(jax.random.categorical)(keys_B, logits_BV / heat_B1)
    return on_all(mesh, jnp.where(temperature_B1[:, 0] > 0, drawn_B, logits_BV.argmax(axis=1)))
