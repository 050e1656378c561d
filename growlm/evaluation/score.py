"""Log-likelihoods and perplexity: windows of text in batches of few shapes, each compiled once in a process.

Shape suffixes: B batch, T positions, K scored tokens of a row, D embed, V vocab, L layers.
"""

import collections
import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from growlm.data.tokenizers import Tokenizer
from growlm.errors import InputError, check_name, check_range, must_be
from growlm.evaluation.prefixes import Group, Row, arrays, grouped
from growlm.models import ModelConfig, Params, hidden_states, parameter_count
from growlm.models.loss import token_losses
from growlm.models.memory import Memory, new_memory, read_on
from growlm.models.sharding import BATCH, batch_parts, by_batch, shardings_of

DTYPES = ("float32", "bfloat16")
SHORTEST = 32  # positions of the narrowest batch
# FLOPs that a device does while a program is compiled, about (2 s on a CPU's two cores): to share must save as many.
COMPILING, COMPILING_ELSEWHERE = 4e11, 1e15
PADDING = 1 / 16  # of that: FLOPs for which rows are padded further, so that a program less is compiled
PIECE = 256  # the most tokens of a prefix that are read at a time: scores are [B, H, PIECE, room]
POSITIONS = 2**13  # of a batch on one device, unless a number of rows is given


class Forward(NamedTuple):
    """Static arguments of a forward pass."""

    config: ModelConfig
    dtype: str
    document_end: int | None


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
    """A model with its tokenizer: the argument of `evaluate`, `perplexity` and `generate`.

    Attributes:
      config: the model's config.
      params: parameters, sharded over the mesh as in training (`on_mesh`), or on one device where there is none.
      tokenizer: the tokenizer of the training text; its vocabulary is at most the model's.
      length: the most tokens in one forward pass, such as the length of training examples.
      prefix: the token before a text that has no context: EOS, or BOS for a model that was trained with one.
      add_bos: whether `prefix` stands before every text, as with the tokenizers of Llama and Gemma.
      dtype: the compute dtype, a name in DTYPES.
      block_scale: float[layers], as in `growlm.apply`; None for ones.
      document_end: the token that ends a document, for a model trained with attention within documents only.
      mesh: the mesh over which a batch is split.
    """

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer
    length: int
    prefix: int
    add_bos: bool = False
    dtype: str = "float32"
    block_scale: jax.Array | None = None
    document_end: int | None = None
    mesh: Mesh | None = None

    def __post_init__(self):
        check_name("dtype", self.dtype, DTYPES)
        check_range("length", self.length, low=1)
        self.config.check_length("length", self.length)
        if self.tokenizer.vocab > self.config.vocab:
            rule = f"of at most the model's {self.config.vocab} tokens"
            raise must_be(f"tokenizer {self.tokenizer.name}", rule, self.tokenizer.vocab)

    def on_mesh(self, mesh: Mesh) -> "LanguageModel":
        """A copy with parameters sharded over a mesh."""
        params = jax.device_put(self.params, shardings_of(self.params, self.config, mesh))
        return dataclasses.replace(self, params=params, mesh=mesh)

    def encode_all(self, texts: Sequence[str], add_bos: bool | None = None) -> list[list[int]]:
        """The tokens of texts, each after `prefix` if `add_bos`, which is the model's own by default."""
        before = [self.prefix] if (self.add_bos if add_bos is None else add_bos) else []
        return [before + tokens for tokens in self.tokenizer.encode_all(list(texts))]

    @property
    def parts(self) -> int:
        """The number of shards of a batch."""
        return batch_parts(self.mesh) if self.mesh else 1


class Window(NamedTuple):
    """Tokens of one forward pass; the last `scored` are predicted, each from all before it."""

    tokens: tuple[int, ...]
    scored: int


class Score(NamedTuple):
    """The log-likelihood of the scored tokens in nats, and whether each is the model's first choice."""

    log_likelihood: float
    greedy: bool


def windows(context: Sequence[int], continuation: Sequence[int], length: int) -> list[Window]:
    """Windows in which every token of the continuation is predicted once, from as much as a model of `length` can read.

    The conventions of lm-evaluation-harness: a continuation that fits is one window, with its context cut from the
    left. One that does not is read in rolling windows: its first `length` tokens after the last token of the context,
    then `length` new ones at a time, the last window filled up to `length` from the left.

    Args:
      context: at least one token, such as the model's prefix.
      continuation: the tokens to score; no window where it is empty.
      length: tokens of one forward pass; a window holds one more, which is only predicted.
    """
    if len(continuation) <= length:
        both = (*context, *continuation)[-(length + 1) :]
        return [Window(both, len(continuation))] if continuation else []
    found = [Window((context[-1], *continuation[:length]), length)]
    for start in range(length, len(continuation), length):
        end = min(start + length, len(continuation))
        found.append(Window(tuple(continuation[end - length - 1 : end]), end - start))
    return found


def score(
    model: LanguageModel, requests: Sequence[Sequence[Window]], rows: int | None = None, title: str = "scoring"
) -> list[Score]:
    """The score of every request, summed over its windows.

    Windows with equal inputs, or whose inputs are the beginning of another's, share a row: the choices of a question
    that are a token each cost one. Of rows that begin alike, such as a question with each of its longer choices, the
    beginning is read once, and its keys and values are kept, where a model is so large or rows are so many that this
    takes less time than to compile it. Batches are padded to powers of two, or further where that is cheaper than one
    more program, longest first, and hold `rows` rows, by default about POSITIONS positions a device.

    Raises:
      InputError: `rows` is not positive.
    """
    if rows is not None:
        check_range("batch", rows, low=1)
    flat = list(itertools.chain.from_iterable(requests))
    sums, greedy = np.zeros(len(flat)), np.ones(len(flat), bool)
    with tqdm(total=len(flat), desc=title, unit="window", disable=None) as bar:
        for found, loss, first in _scored(model, _batches(model, _shared(flat), rows)):
            np.subtract.at(sums, found, loss)
            np.logical_and.at(greedy, found, first)
            bar.update(len(np.unique(found)))
    ends = np.cumsum([len(request) for request in requests])
    parts = [slice(end - len(request), end) for end, request in zip(ends, requests, strict=True)]
    return [Score(float(sums[part].sum()), bool(greedy[part].all())) for part in parts]


def perplexity(model: LanguageModel, texts: Sequence[str], batch: int | None = None) -> dict[str, Any]:
    """The perplexity of texts, each on its own, in disjoint windows after the model's prefix.

    Args:
      model: the model.
      texts: documents, unchanged.
      batch: rows of a batch.

    Returns:
      log_likelihood (nats), tokens, bytes (of UTF-8) and words (parted by white space, counted as lm-evaluation-harness
      does: one more than there are gaps); perplexity by each of the three, exp(-log_likelihood / count); bits_per_byte.

    Raises:
      InputError: there is no text.
    """
    encoded = model.encode_all(texts, add_bos=False)
    counts = {
        "token": sum(map(len, encoded)),
        "byte": sum(len(text.encode()) for text in texts),
        "word": sum(len(re.split(r"\s+", text)) for text in texts),
    }
    if not counts["token"]:
        raise InputError("texts must hold at least one token for a perplexity, got none")
    found = [windows([model.prefix], tokens, model.length) for tokens in encoded]
    total = sum(each.log_likelihood for each in score(model, found, batch, "perplexity"))
    per = {f"{unit}_perplexity": _exp(-total / count) for unit, count in counts.items()}
    bits = {"bits_per_byte": -total / counts["byte"] / math.log(2)}
    return per | bits | {"log_likelihood": total} | {f"{unit}s": count for unit, count in counts.items()}


def _exp(x: float) -> float:
    """exp, infinite where it overflows: a word has many bytes, and a fresh model may find each unlikely."""
    return math.exp(x) if x < 709 else math.inf


def _shared(flat: Sequence[Window]) -> list[Row]:
    """The rows to compute. Sorted, inputs that begin another row's come right after it, and share it."""
    order = sorted(range(len(flat)), key=lambda number: flat[number].tokens[:-1], reverse=True)
    rows: list[Row] = []
    for number in order:
        window = flat[number]
        inputs = window.tokens[:-1]
        if not rows or rows[-1].tokens[: len(inputs)] != inputs:
            rows.append(Row(inputs, []))
        first = len(inputs) - window.scored
        targets = window.tokens[len(window.tokens) - window.scored :]
        rows[-1].scored.extend((first + i, token, number) for i, token in enumerate(targets))
    return rows


class _Batch(NamedTuple):
    """A program with its arrays, and the window of every scored token; -1 where there is none."""

    program: Any
    arrays: tuple[np.ndarray, ...]
    window: np.ndarray


class _Shape(NamedTuple):
    """Of a batch of `Group`s: rows of each, positions before and in a row, scored tokens of a row."""

    members: int
    before: int
    length: int
    count: int


def _shape(model: LanguageModel, group: Group) -> _Shape:
    members = power_of_two(len(group.rows))
    if members == 1:
        length = padded_length(group.after, model.length)
        return _Shape(1, 0, length, _padded_count(group.scored, length))
    piece = min(power_of_two(group.prefix), PIECE)
    length = power_of_two(max(group.after, 8))
    count = max(length, _padded_count(group.scored, length))
    return _Shape(members, piece * power_of_two(-(-group.prefix // piece)), length, count)


def _size(model: LanguageModel, shape: _Shape, most: int | None) -> int:
    """The number of groups in a batch."""
    fit = max(POSITIONS // (shape.before + shape.members * shape.length), 1) * model.parts
    return -(-most // shape.members) if most else fit


def _by_shape(model: LanguageModel, rows: Iterable[Row]) -> dict[_Shape, list[Group]]:
    """Groups of rows by the shape that they are padded to; each row by itself where its program would not pay."""
    found: dict[_Shape, list[Group]] = collections.defaultdict(list)
    for group in grouped(rows) if model.config.architecture.remembers else (Group(0, [row]) for row in rows):
        found[_shape(model, group)].append(group)
    cost = COMPILING if jax.default_backend() == "cpu" else COMPILING_ELSEWHERE
    least = cost / (2 * parameter_count(model.config))
    for shape in [one for one in found if one.members > 1 and sum(group.saved for group in found[one]) < least]:
        for row in itertools.chain.from_iterable(group.rows for group in found.pop(shape)):
            alone = Group(0, [row])
            found[_shape(model, alone)].append(alone)
    _join(model.config, found, PADDING * cost)
    return found


def _join(config: ModelConfig, found: dict[_Shape, list[Group]], most: float) -> None:
    """Pads rows of one shape to the next larger one that there is, where that takes less than `most` FLOPs."""
    for shape in sorted(found):
        larger = [one for one in found if one != shape and one.members == shape.members == 1]
        larger = [one for one in larger if one.length >= shape.length and one.count >= shape.count]
        if not larger:
            continue
        other = min(larger)
        positions, scored = other.length - shape.length, other.count - shape.count
        of_row = 2 * parameter_count(config) * positions + 2 * config.embed * config.vocab * scored
        if len(found[shape]) * of_row < most:
            found[other] += found.pop(shape)


def _batches(model: LanguageModel, rows: Iterable[Row], most: int | None) -> Iterator[_Batch]:
    """Batches of rows, or of groups of rows with one beginning, that are padded alike."""
    for shape, groups in sorted(_by_shape(model, rows).items(), reverse=True):
        size = _size(model, shape, most)
        size = -(-(size if most else min(size, power_of_two(len(groups)))) // model.parts) * model.parts
        positions = len(groups) * (shape.before + shape.members * shape.length)
        little = 2 * parameter_count(model.config) * positions < COMPILING
        for start in range(0, len(groups), size):
            *values, window_BMK = arrays(groups[start : start + size], size, *shape)
            if shape.members > 1:
                room = min(shape.before + shape.length, model.length)
                yield _Batch(partial(_begun_scores, room=room, little=little), tuple(values), window_BMK)
            else:
                _, _, tokens, _, position, target = values
                scored = tokens[:, 0], position[:, 0], target[:, 0]
                yield _Batch(partial(_token_scores, little=little), scored, window_BMK[:, 0])


def padded_length(tokens: int, most: int) -> int:
    """The positions that a row is padded to: a power of two, at most `most`."""
    return min(max(power_of_two(tokens), SHORTEST), most)


def _padded_count(tokens: int, length: int) -> int:
    """8, 64, 512, ... or all positions: few shapes, and few logits where few tokens are scored."""
    eights = next(8**power for power in itertools.count(1) if 8**power >= tokens)
    return min(eights, length) if tokens <= length else eights


def power_of_two(least: int) -> int:
    """The smallest power of two that is at least that."""
    return 1 << (least - 1).bit_length()


def _scored(model: LanguageModel, batches: Iterable[_Batch]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(window, loss, first choice) of the scored tokens by batch; the next batch is dispatched meanwhile."""
    waiting: collections.deque = collections.deque()
    for batch in itertools.chain(batches, [None]):
        if batch is not None:
            waiting.append((batch.window, run(model, batch.program, *batch.arrays)))
        while len(waiting) > (batch is not None):
            window, results = waiting.popleft()
            real = window >= 0
            loss, first = map(np.asarray, results)
            yield window[real], loss[real].astype(np.float64), first[real]


# On CPUs, by whether a program has little to do: LLVM's first level is a third less to compile, and as fast to run.
# Loops that XLA writes itself, not by way of MLIR, halve what is left; short rows then run up to a fifth slower.
OPTIONS = {
    False: {"xla_backend_optimization_level": 1},
    True: {"xla_backend_optimization_level": 1, "xla_cpu_use_fusion_emitters": False},
}


class _SoonCompiled:
    """jax.jit, which on CPUs asks XLA for less than its best, and for least where a program has little to do."""

    def __init__(self, function: Callable, static: Sequence[str]):
        self._function, self._static = function, static

    @cached_property  # JAX may look for its devices only when something is computed
    def _programs(self) -> dict[bool, Any]:
        jitted = partial(jax.jit, self._function, static_argnames=self._static)
        if jax.default_backend() != "cpu" or jax.config.read("jax_disable_most_optimizations"):
            return dict.fromkeys(OPTIONS, jitted())
        return {
            little: jitted(compiler_options={name: value for name, value in options.items() if _is_known(name, value)})
            for little, options in OPTIONS.items()
        }

    def program(self, little: bool) -> Any:
        """The jitted function, for batches that are little work in all or not."""
        return self._programs[little]

    def __call__(self, *arrays: Any, little: bool, **static: Any) -> Any:
        return self.program(little)(*arrays, **static)


@cache  # a compilation, if a small one
def _is_known(name: str, value: Any) -> bool:
    """Whether this version of XLA has an option: one that it has not would end every compilation."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


@partial(_SoonCompiled, static=("forward", "mesh"))
def _token_scores(
    forward: Forward,
    mesh: Mesh | None,
    weights: tuple[Params, jax.Array | None],
    tokens_BT: jax.Array,
    position_BK: jax.Array,
    target_BK: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The loss of the target at each position, and whether it is the first choice."""
    return _losses(forward, mesh, *states_at(forward, weights, tokens_BT, position_BK), target_BK)


def _losses(
    forward: Forward, mesh: Mesh | None, x_BKD: jax.Array, head_DV: jax.Array, target: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The loss of every target, and whether it is the first choice."""
    cap = forward.config.architecture.logit_cap(forward.config)
    loss_N, rank_N = token_losses(x_BKD.reshape(-1, forward.config.embed), head_DV, target.reshape(-1), cap)
    return on_all(mesh, loss_N.reshape(target.shape)), on_all(mesh, (rank_N == 0).reshape(target.shape))


@partial(_SoonCompiled, static=("forward", "mesh", "room"))
def _begun_scores(
    forward: Forward,
    mesh: Mesh | None,
    weights: tuple[Params, jax.Array | None],
    before_BP: jax.Array,
    length_B: jax.Array,
    after_BMT: jax.Array,
    length_BM: jax.Array,
    position_BMK: jax.Array,
    target_BMK: jax.Array,
    room: int,
) -> tuple[jax.Array, jax.Array]:
    """`_token_scores` of M rows after each of B beginnings, which are read once; `room` is for both together."""
    config, dtype, document_end = forward
    params, scale_L = weights
    options = {"dtype": jnp.dtype(dtype), "block_scale": scale_L, "document_end": document_end}
    size, members, _ = after_BMT.shape
    piece = min(before_BP.shape[1], PIECE)

    def read(memory: Memory, step: tuple[jax.Array, jax.Array]) -> tuple[Memory, None]:
        tokens_BP, start = step
        begin_B = jnp.minimum(length_B, start)
        new = tokens_BP, begin_B, jnp.minimum(length_B - begin_B, piece)
        return read_on(config, params, memory, *new, **options)[2], None

    steps_SBP = before_BP.reshape(size, -1, piece).swapaxes(0, 1)
    memory = new_memory(config, size, room, dtype=dtype)
    memory, _ = jax.lax.scan(read, memory, (steps_SBP, piece * jnp.arange(len(steps_SBP))))
    tokens_NS = jnp.repeat(memory.tokens_BS, members, axis=0)
    memory = Memory(tokens_NS, jax.tree.map(lambda kept_LB: jnp.repeat(kept_LB, members, axis=1), memory.kept))
    new = after_BMT.reshape(size * members, -1), jnp.repeat(length_B, members), length_BM.reshape(-1)
    x_NTD, head_DV, _ = read_on(config, params, memory, *new, **options)
    x_NKD = jnp.take_along_axis(x_NTD, position_BMK.reshape(size * members, -1, 1), axis=1)
    return _losses(forward, mesh, x_NKD, head_DV, target_BMK)


def states_at(
    forward: Forward, weights: tuple[Params, Any], tokens_BT: jax.Array, position_BK: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The hidden states at some positions, [B, K, D], and the head: logits of other positions are never made."""
    config, dtype, document_end = forward
    params, scale_L = weights
    options = {"dtype": jnp.dtype(dtype), "block_scale": scale_L, "document_end": document_end}
    x_ND, head_DV = hidden_states(config, params, tokens_BT, **options)
    x_BTD = by_batch(x_ND.reshape(*tokens_BT.shape, config.embed))
    return by_batch(jnp.take_along_axis(x_BTD, position_BK[:, :, None], axis=1)), head_DV


def on_all(mesh: Mesh | None, x: jax.Array) -> jax.Array:
    """Replicates an array, so that every process can read it."""
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec())) if mesh else x


def run(model: LanguageModel, program: Any, *arrays: np.ndarray) -> Any:
    """Runs program(forward, mesh, weights, *arrays) on a batch; every process passes the whole batch."""
    forward = Forward(model.config, model.dtype, model.document_end)
    weights = model.params, model.block_scale
    if model.mesh is None:
        return program(forward, None, weights, *arrays)
    with jax.set_mesh(model.mesh):
        placed = [jax.device_put(x, NamedSharding(model.mesh, PartitionSpec(BATCH))) for x in arrays]
        return program(forward, model.mesh, weights, *placed)
