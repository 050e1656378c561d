"""G_learn, LiGO: the maps themselves are trained on the language-model loss (arXiv 2303.00980; 2405.15319, A.1.2)."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from growlm.errors import InputError
from growlm.growth.axis_map import AxisMap, Dense, Gather, identity
from growlm.growth.expand import grow_params
from growlm.growth.plan import Growth
from growlm.growth.width import old_heads, pad_index
from growlm.model import next_token_loss
from growlm.weights import ModelConfig, Params, declared, parameter_count

Matrices = dict[str, Any]
Learner = tuple[Matrices, Any]  # with their optimizer's state


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the maps are trained: the settings of the paper's authors (their code's issue 2), by AdamW and a cosine."""

    steps: int
    peak: float
    final: float
    warmup: int
    weight_decay: float
    source: ModelConfig
    target: ModelConfig


def learn(
    source: ModelConfig,
    target: ModelConfig,
    key: jax.Array | None = None,
    *,
    steps: int = 100,
    peak: float = 7e-5,
    final: float = 7e-6,
    warmup: int = 50,
    weight_decay: float = 0.1,
) -> Growth:
    """G_learn, LiGO (arXiv 2303.00980; 2405.15319, section A.1.2): P, R and Q are learned; the small weights stay.

    One matrix for the model width, shared by all that writes or reads it, one for the FFN, one each for the rows of
    query, key and value, and one of layers for every kind of weight. They start at [I; noise], noise of variance
    1 / new, and at the stack, so that `steps` 0 in depth is G_stack; then they are trained for `steps` steps: AdamW
    (0.9, 0.95), rate `peak` to `final` by a cosine after `warmup` steps, `weight_decay`, clipped at 1. Defaults are the
    recipe of the paper's authors (github.com/tongxuluo/prts, issue 2). What it costs is billed to the run.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise InputError(f"steps is {steps!r}: allowed are integers >= 0")
    for name, value in {"peak": peak, "final": final, "warmup": warmup, "weight_decay": weight_decay}.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < np.inf:
            raise InputError(f"{name} is {value!r}: allowed are numbers >= 0")
    if source.layers == 0:
        raise InputError("learn mixes layers, and the source's model.layers is 0: allowed is random")
    if key is None:
        raise InputError("learn draws fresh values: it needs a key, such as jax.random.key(0)")
    recipe = Recipe(steps, peak, final, warmup, weight_decay, source, target)
    return growth_of(recipe, initial_matrices(source, target, key))


def initial_matrices(source: ModelConfig, target: ModelConfig, key: jax.Array) -> Matrices:
    """[I; noise] for the model width, the FFN and the rows of query, key and value; the stack for every weight."""
    keys = iter(jax.random.split(key, 5))
    kv, heads = old_heads(source, target)
    stack = np.eye(source.layers, dtype=np.float32)[np.arange(target.layers) % source.layers]
    return {
        "embed": _padded_identity(next(keys), pad_index(source.embed, target.embed), source.embed),
        "mlp": _padded_identity(next(keys), pad_index(source.mlp, target.mlp), source.mlp),
        "query": _rows(next(keys), heads, source.heads, source.head_dim),
        "key": _rows(next(keys), kv, source.kv_heads, source.head_dim),
        "value": _rows(next(keys), kv, source.kv_heads, source.head_dim),
        "layers": {weight.path: jnp.asarray(stack) for weight in declared(source) if weight.stacked},
    }


def _padded_identity(key: jax.Array, index: np.ndarray, old: int) -> jax.Array:
    """float32[new, old]: rows of the identity where the index has an old coordinate, noise elsewhere."""
    noise = jax.random.normal(key, (len(index), old)) / np.sqrt(len(index))
    return jnp.where(index[:, None] >= 0, np.eye(old, dtype=np.float32)[np.maximum(index, 0)], noise)


def _rows(key: jax.Array, index: np.ndarray, old: int, head_dim: int) -> jax.Array:
    """float32[new heads, head_dim, old heads, head_dim]: the same for the rows of a projection, heads in place."""
    rows = np.where(index[:, None] >= 0, index[:, None] * head_dim + np.arange(head_dim), -1).reshape(-1)
    return _padded_identity(key, rows, old * head_dim).reshape(len(index), head_dim, old, head_dim)


def growth_of(recipe: Recipe, matrices: Matrices) -> Growth:
    """The growth that the matrices are. attn/out reads query heads through the matrix of the value heads they mix."""
    source, target = recipe.source, recipe.target
    kv, heads = old_heads(source, target)
    embed, mlp = pad_index(source.embed, target.embed), pad_index(source.mlp, target.mlp)

    def both(old: int, matrix: jax.Array, index: np.ndarray, read: jax.Array | None = None) -> AxisMap:
        reads = Dense(matrix if read is None else read, index)
        return AxisMap.make(old, Dense(matrix, index), reads)

    width = both(source.embed, matrices["embed"], embed)
    vocab = Gather.copies(pad_index(source.vocab, target.vocab))
    maps = {
        "stream": width,
        "embed": width,
        "final": width,
        "mlp": both(source.mlp, matrices["mlp"], mlp),
        "heads": both(source.heads, matrices["query"], heads, _through_values(matrices["value"], source, target)),
        "key_heads": both(source.kv_heads, matrices["key"], kv),
        "value_heads": both(source.kv_heads, matrices["value"], kv),
        "head_dim": identity(source.head_dim),
        "vocab": AxisMap.make(source.vocab, vocab, vocab, fresh_read=vocab.index < 0),
    }
    order = np.arange(target.layers) % source.layers
    maps["layers"] = AxisMap.make(source.layers, Gather.copies(order), Gather.copies(order))
    own = {("layers", path): both(source.layers, matrix, order) for path, matrix in matrices["layers"].items()}
    return Growth(maps, np.ones(target.layers), own, recipe=recipe)


def _through_values(value_KhKh: jax.Array, source: ModelConfig, target: ModelConfig) -> jax.Array:
    """float32[new heads, head_dim, old heads, head_dim]: B_value between groups, query heads in their place within."""
    new_group, old_group = target.heads // target.kv_heads, source.heads // source.kv_heads
    place = (np.arange(new_group)[:, None] % old_group == np.arange(old_group)).astype(np.float32)
    full = jnp.einsum("KeJf,gm->KgeJmf", value_KhKh, place)
    return full.reshape(target.heads, target.head_dim, source.heads, source.head_dim)


def matrices_of(growth: Growth) -> Matrices:
    """The matrices of a growth that `growth_of` made."""
    at = {"embed": "embed", "mlp": "mlp", "query": "heads", "key": "key_heads", "value": "value_heads"}
    layers = {path: axis.write.matrix for (_, path), axis in growth.own.items()}
    return {name: growth.maps[axis].write.matrix for name, axis in at.items()} | {"layers": layers}


def learning(recipe: Recipe) -> tuple[Callable, Callable]:
    """How matrices are trained, as two pure functions, to be compiled.

    begin(matrices) -> learner, the matrices with their optimizer's state; step(learner, params, tokens, key) ->
    (learner, loss).
    """
    rate = optax.warmup_cosine_decay_schedule(
        0.0, recipe.peak, recipe.warmup, max(recipe.steps, recipe.warmup + 1), recipe.final
    )
    adam = optax.adamw(rate, b1=0.9, b2=0.95, weight_decay=recipe.weight_decay)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), adam)

    def loss_of(matrices: Matrices, params: Params, tokens: jax.Array, key: jax.Array) -> jax.Array:
        grown = grow_params(growth_of(recipe, matrices), recipe.source, recipe.target, params, key)
        return next_token_loss(recipe.target, grown, tokens)

    def begin(matrices: Matrices) -> Learner:
        return matrices, optimizer.init(matrices)

    def step(learner: Learner, params: Params, tokens: jax.Array, key: jax.Array) -> tuple[Learner, jax.Array]:
        matrices, state = learner
        loss, gradient = jax.value_and_grad(loss_of)(matrices, params, tokens, key)
        updates, state = optimizer.update(gradient, state, matrices)
        return (optax.apply_updates(matrices, updates), state), loss

    return begin, step


def fit(
    growth: Growth,
    params: Params,
    batches: Iterable[Any],
    key: jax.Array,
    programs: tuple[Callable, Callable] | None = None,
) -> tuple[Matrices, dict]:
    """The matrices of a growth trained, and what that took.

    Args:
      growth: of `learn`.
      params: the source's parameters, constants here.
      batches: int[batch, length + 1] tokens, one for each of the recipe's steps.
      key: the growth's key.
      programs: the two of `learning`, compiled; by default they are compiled here.

    Returns:
      (matrices, {"steps", "tokens", "flops", "loss_before", "loss_after"}).
    """
    recipe, losses, tokens, batches = growth.recipe, [], 0, iter(batches)
    begin, step = programs or map(jax.jit, learning(recipe))
    learner = begin(matrices_of(growth))
    for _ in range(recipe.steps):
        if (batch := next(batches, None)) is None:
            raise InputError(f"learn takes {recipe.steps} batches and was given {len(losses)}")
        learner, loss = step(learner, params, batch, key)
        losses.append(loss)
        tokens += batch.shape[0] * (batch.shape[1] - 1)
    took = {"steps": recipe.steps, "tokens": tokens, "flops": 6.0 * parameter_count(recipe.target) * tokens}
    ends = {"loss_before": float(losses[0]), "loss_after": float(losses[-1])} if losses else {}
    return learner[0], took | ends
