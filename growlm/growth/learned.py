"""G_learn, LiGO: the maps themselves are trained on the language-model loss (arXiv 2303.00980; 2405.15319, A.1.2)."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from growlm.errors import InputError
from growlm.growth.effects import Effect
from growlm.growth.expand import grow_params, number_of
from growlm.growth.maps import AxisMap, Dense, Gather, identity
from growlm.growth.plan import Growth
from growlm.growth.width import cycled, pad_index, places
from growlm.models.axes import Axis, DecoderConfig, Kind, Params
from growlm.models.counts import parameter_count
from growlm.models.decoder import next_token_loss

Matrices = dict[str, Any]
Learner = tuple[Matrices, Any]  # with their optimizer's state


@dataclasses.dataclass(frozen=True)
class Learned(Effect):
    """How the maps are trained: the settings of the paper's authors (their code's issue 2), by AdamW and a cosine."""

    name = "learned"
    learns = True
    steps: int
    peak: float
    final: float
    warmup: int
    weight_decay: float
    source: DecoderConfig
    target: DecoderConfig

    def breaks(self) -> str:
        """A learned matrix has no inverse that anything reads by."""
        return "learned maps do not undo each other"

    def with_matrices(self, growth: Growth, matrices: Matrices) -> Growth:
        """The growth with these for its maps."""
        maps = _maps(self.source, self.target, matrices) | {growth.stack: growth.maps[growth.stack]}
        return dataclasses.replace(growth, maps=maps, own=growth.own | _own(self, matrices))

    def matrices(self, growth: Growth) -> Matrices:
        """The matrices of a growth, by axis; those of the stack by weight."""
        found = {axis.name: growth.maps[axis.name].write.matrix for axis in _learned_axes(self.target)}
        of_layers = {path: axis for (name, path), axis in growth.own.items() if name == growth.stack}
        return found | {growth.stack: {path: axis.write.matrix for path, axis in of_layers.items()}}

    def report(self) -> dict[str, Any]:
        """The settings; the shapes are in the report already."""
        return {name: value for name, value in vars(self).items() if name not in ("source", "target")}

    def programs(self, growth: Growth) -> tuple[Callable, Callable]:
        """How matrices are trained, as two pure functions, to be compiled.

        begin(matrices) -> learner, the matrices with their optimizer's state; step(learner, params, tokens, key) ->
        (learner, loss).
        """
        rate = optax.warmup_cosine_decay_schedule(
            0.0, self.peak, self.warmup, max(self.steps, self.warmup + 1), self.final
        )
        adam = optax.adamw(rate, b1=0.9, b2=0.95, weight_decay=self.weight_decay)
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), adam)
        maps_alone = dataclasses.replace(growth, effects=())

        def loss_of(matrices: Matrices, params: Params, tokens: jax.Array, key: jax.Array) -> jax.Array:
            grown = grow_params(self.with_matrices(maps_alone, matrices), self.source, self.target, params, key)
            return next_token_loss(self.target, grown, tokens)

        def begin(matrices: Matrices) -> Learner:
            return matrices, optimizer.init(matrices)

        def step(learner: Learner, params: Params, tokens: jax.Array, key: jax.Array) -> tuple[Learner, jax.Array]:
            matrices, state = learner
            loss, gradient = jax.value_and_grad(loss_of)(matrices, params, tokens, key)
            updates, state = optimizer.update(gradient, state, matrices)
            return (optax.apply_updates(matrices, updates), state), loss

        return begin, step

    def fit(
        self,
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
          batches: int[batch, length + 1] tokens, one for each of the steps.
          key: the growth's key.
          programs: the two of `programs`, compiled; by default they are compiled here.

        Returns:
          (matrices, {"steps", "tokens", "flops", "loss_before", "loss_after"}).
        """
        losses, tokens, batches = [], 0, iter(batches)
        begin, step = programs or map(jax.jit, self.programs(growth))
        learner = begin(self.matrices(growth))
        for _ in range(self.steps):
            if (batch := next(batches, None)) is None:
                raise InputError(f"learn takes {self.steps} batches and was given {len(losses)}")
            learner, loss = step(learner, params, batch, key)
            losses.append(loss)
            tokens += batch.shape[0] * (batch.shape[1] - 1)
        flops = 6.0 * parameter_count(self.target, active=True) * tokens
        took = {"steps": self.steps, "tokens": tokens, "flops": flops}
        ends = {"loss_before": float(losses[0]), "loss_after": float(losses[-1])} if losses else {}
        return learner[0], took | ends


def learn(
    source: DecoderConfig,
    target: DecoderConfig,
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
        raise InputError(f"steps must be integers >= 0, got {steps!r}")
    for name, value in {"peak": peak, "final": final, "warmup": warmup, "weight_decay": weight_decay}.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < np.inf:
            raise InputError(f"{name} must be numbers >= 0, got {value!r}")
    stack = target.architecture.stack
    if source.depth == 0:
        raise InputError(f"learn mixes layers, and the source's model.{stack.field} is 0: allowed is random")
    if key is None:
        raise InputError("learn draws fresh values: it needs a key, such as jax.random.key(0)")
    learned = Learned(steps, peak, final, warmup, weight_decay, source, target)
    order = np.arange(target.depth) % source.depth
    copies = AxisMap.make(source.depth, Gather.copies(order), Gather.copies(order))
    empty = Growth({stack.name: copies}, stack.name, np.ones(len(order)), effects=(learned,))
    return learned.with_matrices(empty, _initial_matrices(source, target, key))


def _learned_axes(config: DecoderConfig) -> list[Axis]:
    """The axes that have a matrix of their own; what a norm hands on goes by the stream's."""
    return list(config.architecture.of_kind(Kind.STREAM, Kind.INNER, Kind.HEADS))


def _initial_matrices(source: DecoderConfig, target: DecoderConfig, key: jax.Array) -> Matrices:
    """[I; noise] for the model width, the inner axes and the rows of heads; the stack for every weight."""

    def initial(axis: Axis) -> jax.Array:
        own, index = jax.random.fold_in(key, number_of(axis.name)), places(axis, source, target)
        if axis.kind is Kind.HEADS:
            return _rows(own, index, source.size(axis), target.size(_within(axis, target)))
        return _padded_identity(own, index, source.size(axis))

    stack = target.architecture.stack
    layers = source.depth
    order = np.eye(layers, dtype=np.float32)[np.arange(target.depth) % layers]
    of_layers = {weight.path: jnp.asarray(order) for weight in source.weights if weight.stacked}
    return {axis.name: initial(axis) for axis in _learned_axes(target)} | {stack.name: of_layers}


def _within(axis: Axis, config: DecoderConfig) -> Axis:
    """The axis of one head's coordinates, which follows the heads in every weight that writes them."""
    for weight in config.architecture.weights.values():
        for dim, following in zip(weight.dims, weight.dims[1:], strict=False):
            if dim.writes is axis:
                return following.axis
    raise AssertionError(axis)


def _padded_identity(key: jax.Array, index: np.ndarray, old: int) -> jax.Array:
    """float32[new, old]: rows of the identity where the index has an old coordinate, noise elsewhere."""
    noise = jax.random.normal(key, (len(index), old)) / np.sqrt(len(index))
    return jnp.where(index[:, None] >= 0, np.eye(old, dtype=np.float32)[np.maximum(index, 0)], noise)


def _rows(key: jax.Array, index: np.ndarray, old: int, head_dim: int) -> jax.Array:
    """float32[new heads, head_dim, old heads, head_dim]: the same for the rows of a projection, heads in place."""
    rows = np.where(index[:, None] >= 0, index[:, None] * head_dim + np.arange(head_dim), -1).reshape(-1)
    return _padded_identity(key, rows, old * head_dim).reshape(len(index), head_dim, old, head_dim)


def _maps(source: DecoderConfig, target: DecoderConfig, matrices: Matrices) -> dict[str, AxisMap]:
    """The maps that the matrices are, but for layers; what reads query heads goes by the values that they mix."""
    architecture = target.architecture

    def of(axis: Axis) -> AxisMap:
        old = source.size(axis)
        if axis.kind is Kind.VOCAB:
            vocab = Gather.copies(pad_index(old, target.size(axis)))
            return AxisMap.make(old, vocab, vocab, fresh_read=vocab.index < 0)
        if axis.kind is Kind.FIXED:
            return identity(old)
        if axis.kind is Kind.EXPERTS:
            return cycled(old, target.size(axis))
        by = architecture.axis[axis.of] if axis.kind is Kind.READ else axis
        write = Dense(matrices[by.name], places(by, source, target))
        values = matrices[axis.values] if axis.values else None
        read = write if values is None else Dense(_through_values(values, axis, source, target), write.index)
        return AxisMap.make(old, write, read)

    return {axis.name: of(axis) for axis in architecture.axes if axis.kind is not Kind.STACK}


def _own(learned: Learned, matrices: Matrices) -> dict[tuple[str, str], AxisMap]:
    """The map of the layers for every weight."""
    stack = learned.target.architecture.stack
    layers = learned.source.depth
    order = np.arange(learned.target.depth) % layers

    def of(matrix: jax.Array) -> AxisMap:
        return AxisMap.make(layers, Dense(matrix, order), Dense(matrix, order))

    return {(stack.name, path): of(matrix) for path, matrix in matrices[stack.name].items()}


def _through_values(value_KhKh: jax.Array, axis: Axis, source: DecoderConfig, target: DecoderConfig) -> jax.Array:
    """float32[new heads, head_dim, old heads, head_dim]: B_value between groups, query heads in their place within."""
    groups = target.architecture.axis[axis.of]
    new_group, old_group = (config.size(axis) // config.size(groups) for config in (target, source))
    place = (np.arange(new_group)[:, None] % old_group == np.arange(old_group)).astype(np.float32)
    full = jnp.einsum("KeJf,gm->KgeJmf", value_KhKh, place)
    within = full.shape[2]
    return full.reshape(target.size(axis), within, source.size(axis), within)
