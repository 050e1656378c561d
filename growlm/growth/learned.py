"""G_learn, LiGO: the maps are trained on the language-modelling loss (arXiv 2303.00980; 2405.15319, A.1.2)."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from growlm.errors import InputError, check_count, check_range, must_be
from growlm.growth.depth import stack_order
from growlm.growth.expand import grow_params, number_of
from growlm.growth.maps import AxisMap, Dense, Gather, identity
from growlm.growth.plan import Effect, Growth, StaticGrowth
from growlm.growth.width import cycled, fresh, pad_index, places
from growlm.models.architecture import DecoderConfig, Params
from growlm.models.axes import Axis, Kind
from growlm.models.counts import parameter_count
from growlm.models.decoder import next_token_loss

Matrices = dict[str, Any]
Learner = tuple[Any, Any]  # the matrices and their optimizer's state


@dataclasses.dataclass(frozen=True)
class Learned(Effect):
    """How the maps are trained: AdamW and a cosine schedule, with the settings of the paper's authors.

    Until they are trained the maps of its growth have shapes alone: a plan draws nothing. `key` is what `initial` draws
    from.
    """

    name = "learned"
    learns = True
    steps: int
    peak_lr: float
    end_lr: float
    warmup: int
    weight_decay: float
    source: DecoderConfig
    target: DecoderConfig
    key: jax.Array = dataclasses.field(compare=False)

    def breaks(self, growth: Growth, target: DecoderConfig) -> str:
        """Learned read maps do not invert learned write maps."""
        return "learned maps do not undo each other"

    def hides(self, growth: Growth) -> str:
        """Learned maps are in no report."""
        return "its maps were learned"

    def with_matrices(self, growth: Growth, matrices: Matrices) -> Growth:
        """The growth with these matrices for its maps."""
        unlearned = {
            axis.name for axis in self.target.architecture.of_kind(Kind.STACK, Kind.VOCAB)
        } & growth.maps.keys()
        maps = _maps(self.source, self.target, matrices) | {name: growth.maps[name] for name in unlearned}
        return dataclasses.replace(growth, maps=maps, per_weight=growth.per_weight | _layer_maps(self, matrices))

    def initial(self) -> Matrices:
        """The matrices with which training begins."""
        return _initial_matrices(self.source, self.target, self.key)

    def matrices(self, growth: Growth) -> Matrices:
        """The matrices of a growth by axis, or their shapes, and those of the stack by weight."""
        found = {axis.name: _matrix(growth.maps[axis.name]) for axis in _learned_axes(self.target)}
        of_layers = {path: axis for (name, path), axis in growth.per_weight.items() if name == growth.stack}
        return found | {growth.stack: {path: _matrix(axis) for path, axis in of_layers.items()}}

    def report(self) -> dict[str, Any]:
        """The settings, without the shapes and the key, which are not its own."""
        return {name: value for name, value in vars(self).items() if name not in ("source", "target", "key")}

    def programs(self, growth: Growth) -> tuple[Callable, Callable]:
        """The training of the matrices, as two pure functions that the caller compiles.

        Returns:
          begin(key) -> learner, with matrices drawn from the key, and step(learner, params, tokens, key) -> (learner,
          loss).
        """
        import optax  # takes long to load, and a plan needs none

        schedule = optax.warmup_cosine_decay_schedule(
            0.0, self.peak_lr, self.warmup, max(self.steps, self.warmup + 1), self.end_lr
        )
        adam = optax.adamw(schedule, b1=0.9, b2=0.95, weight_decay=self.weight_decay)
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), adam)
        maps_alone = dataclasses.replace(growth, effects=())

        def loss_of(matrices: Matrices, params: Params, tokens: jax.Array, key: jax.Array) -> jax.Array:
            grown = grow_params(self.with_matrices(maps_alone, matrices), self.source, self.target, params, key)
            return next_token_loss(self.target, grown, tokens)

        def begin(key: jax.Array) -> Learner:
            matrices = _initial_matrices(self.source, self.target, key)
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
        key: jax.Array | None,
        programs: tuple[Callable, Callable] | None = None,
    ) -> tuple[Matrices, dict]:
        """Trains the matrices of a growth, and counts the cost.

        Args:
          growth: from `learn`.
          params: the source's parameters, held constant.
          batches: int[batch, length + 1] tokens, one for each step.
          key: the growth's key.
          programs: `programs`, compiled; by default they are compiled here.

        Returns:
          (matrices, {"steps", "tokens", "flops", "loss_before", "loss_after"}).
        """
        losses, tokens, batches = [], 0, iter(batches)
        begin, step = programs or _compiled_programs(growth.static)
        learner = begin(self.key)
        for _ in range(self.steps):
            if (batch := next(batches, None)) is None:
                raise must_be("the batches of learn", f"one for each of its {self.steps} steps", len(losses))
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
    peak_lr: float = 7e-5,
    end_lr: float = 7e-6,
    warmup: int = 50,
    weight_decay: float = 0.1,
) -> Growth:
    """G_learn, LiGO (arXiv 2303.00980; 2405.15319, section A.1.2): P, R and the layer mixing Q are learned matrices.

    There is one matrix for the model width, shared by all its writers and readers, one for the FFN, one each for the
    rows of query, key and value, and one Q for every weight of a layer. Width matrices start at [I; noise], noise of
    variance 1 / new, and Q at the stack, so `steps` 0 in depth is G_stack. The cost of learning is billed to the run.

    Args:
      source, target, key: as for every operator.
      steps: training steps of the matrices, by AdamW (0.9, 0.95) with gradients clipped at norm 1.
      peak_lr, end_lr, warmup: linear warmup over `warmup` steps, then a cosine. Defaults are those of the paper's
        authors (github.com/tongxuluo/prts, issue 2), as is that of weight_decay.
      weight_decay: of AdamW.
    """
    check_count("steps", steps, low=0)
    for name, value in {"peak_lr": peak_lr, "end_lr": end_lr, "warmup": warmup, "weight_decay": weight_decay}.items():
        check_range(name, value, low=0)
    for axis in target.architecture.of_kind(Kind.HEAD):
        if source.size(axis) != target.size(axis):
            rule = f"the source's, {source.size(axis)}, for learn"
            raise must_be(f"the target's model.{axis.field}", rule, target.size(axis))
    stack = target.architecture.stack
    if source.depth == 0:
        raise must_be(f"the source's model.{stack.field}", ">= 1 for learn, which mixes layers", 0)
    if key is None:
        raise InputError("learn draws fresh values: it needs a key, such as jax.random.key(0)")
    learned = Learned(
        steps=steps,
        peak_lr=peak_lr,
        end_lr=end_lr,
        warmup=warmup,
        weight_decay=weight_decay,
        source=source,
        target=target,
        key=key,
    )
    order = np.asarray(stack_order("stack", source, target))
    copies = AxisMap.make(source.depth, Gather.copies(order), Gather.copies(order))
    empty = Growth({stack.name: copies}, stack.name, np.ones(len(order)), effects=(learned,))
    return learned.with_matrices(empty, _shapes(source, target))


def _shapes(source: DecoderConfig, target: DecoderConfig) -> Matrices:
    """Those of the matrices that are drawn, without tracing how."""
    drawn, stack = jnp.result_type(float), target.architecture.stack
    widths = {axis.name: jax.ShapeDtypeStruct(_shape(axis, source, target), drawn) for axis in _learned_axes(target)}
    order = jax.ShapeDtypeStruct((target.depth, source.depth), np.float32)
    return widths | {stack.name: {weight.path: order for weight in source.weights if weight.stacked}}


def _shape(axis: Axis, source: DecoderConfig, target: DecoderConfig) -> tuple[int, ...]:
    """[new, old], of heads with the coordinates of one beside each."""
    rows = (target.size(_within(axis, target)),) if axis.kind is Kind.HEADS else ()
    return target.size(axis), *rows, source.size(axis), *rows


@lru_cache(maxsize=8)
def _compiled_programs(static: StaticGrowth) -> tuple[Callable, Callable]:
    learner = static.growth.learner
    assert learner is not None
    begin, step = learner.programs(static.growth)
    return jax.jit(begin), jax.jit(step)


def _matrix(axis: AxisMap) -> jax.Array:
    assert isinstance(axis.write, Dense)
    return axis.write.matrix


def _learned_axes(config: DecoderConfig) -> list[Axis]:
    """The axes that have a matrix; what norms hand on grows by the stream's."""
    return list(config.architecture.of_kind(Kind.STREAM, Kind.INNER, Kind.HEADS))


def _initial_matrices(source: DecoderConfig, target: DecoderConfig, key: jax.Array) -> Matrices:
    """[I; noise] for the stream, inner axes and rows of heads, and the stack for every weight of a layer."""

    def initial(axis: Axis) -> jax.Array:
        axis_key, index = jax.random.fold_in(key, number_of(axis.name)), places(axis, source, target)
        shape = _shape(axis, source, target)
        if axis.kind is Kind.HEADS:  # the padded identity over the rows of a projection
            head_dim = shape[1]
            index = np.where(index[:, None] >= 0, index[:, None] * head_dim + np.arange(head_dim), -1).reshape(-1)
        return _padded_identity(axis_key, index, math.prod(shape[len(shape) // 2 :])).reshape(shape)

    stack = target.architecture.stack
    order = np.eye(source.depth, dtype=np.float32)[np.asarray(stack_order("stack", source, target))]
    of_layers = {weight.path: jnp.asarray(order) for weight in source.weights if weight.stacked}
    return {axis.name: initial(axis) for axis in _learned_axes(target)} | {stack.name: of_layers}


def _within(axis: Axis, config: DecoderConfig) -> Axis:
    """The axis of the coordinates of one head, which follows the heads in every weight that writes them."""
    for weight in config.architecture.weights.values():
        for dim, following in zip(weight.dims, weight.dims[1:], strict=False):
            if dim.writes is axis:
                return following.axis
    raise AssertionError(axis)


def _padded_identity(key: jax.Array, index: np.ndarray, old: int) -> jax.Array:
    """float32[new, old]: rows of the identity for old coordinates, noise for new ones."""
    noise = jax.random.normal(key, (len(index), old)) / np.sqrt(len(index))
    return jnp.where(index[:, None] >= 0, np.eye(old, dtype=np.float32)[np.maximum(index, 0)], noise)


def _maps(source: DecoderConfig, target: DecoderConfig, matrices: Matrices) -> dict[str, AxisMap]:
    """The maps of all axes but layers. Query heads are read by the map of the values that they mix."""
    architecture = target.architecture

    def of(axis: Axis) -> AxisMap:
        old = source.size(axis)
        if axis.kind is Kind.VOCAB:
            return fresh(pad_index(old, target.size(axis)), old)
        if axis.kind in (Kind.FIXED, Kind.HEAD):
            return identity(old)
        if axis.kind is Kind.EXPERTS:
            return cycled(old, target.size(axis))
        by = architecture.stream if axis.kind in (Kind.READ, Kind.NORMED) else axis
        write = Dense(matrices[by.name], places(by, source, target))
        values = matrices[axis.values] if axis.values else None
        if values is None:
            return AxisMap.make(old, write, write)
        if isinstance(values, jax.ShapeDtypeStruct):
            within = values.shape[1]
            shape = target.size(axis), within, source.size(axis), within
            through: Any = jax.ShapeDtypeStruct(shape, values.dtype)
        else:
            through = _through_values(values, axis, source, target)
        return AxisMap.make(old, write, Dense(through, write.index))

    return {axis.name: of(axis) for axis in architecture.axes if axis.kind is not Kind.STACK}


def _layer_maps(learned: Learned, matrices: Matrices) -> dict[tuple[str, str], AxisMap]:
    """The map of the layer axis for every weight."""
    stack = learned.target.architecture.stack
    layers = learned.source.depth
    order = np.asarray(stack_order("stack", learned.source, learned.target))

    def of(matrix: jax.Array) -> AxisMap:
        return AxisMap.make(layers, Dense(matrix, order), Dense(matrix, order))

    return {(stack.name, path): of(matrix) for path, matrix in matrices[stack.name].items()}


def _through_values(value_KhKh: jax.Array, axis: Axis, source: DecoderConfig, target: DecoderConfig) -> jax.Array:
    """float32[new heads, head_dim, old heads, head_dim]: B_value between groups, the identity within them."""
    groups = target.architecture.axis[axis.of]
    new_group, old_group = (config.size(axis) // config.size(groups) for config in (target, source))
    place = (np.arange(new_group)[:, None] % old_group == np.arange(old_group)).astype(np.float32)
    full = jnp.einsum("KeJf,gm->KgeJmf", value_KhKh, place)
    within = full.shape[2]
    return full.reshape(target.size(axis), within, source.size(axis), within)
