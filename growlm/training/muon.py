"""Muon (Keller Jordan, 2024) with the parts that small trainers of today give it; by default it is optax's.

In order: momentum, rows of one norm, an orthogonal matrix by an iteration, a second moment by neuron, a scale by shape.
A weight is one matrix for each layer and expert, from all that it reads (in) to all that it writes (out).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from growlm.errors import check_name, check_range, must_be
from growlm.models import DecoderConfig, Weight, path_of
from growlm.training.ages import Ages, bias, initial_ages

Tree = Any

RMS = 0.2  # root mean square of updates scaled by "rms", about Adam's, so that both take one learning rate
SMALLEST_NORM, SMALLEST_MOMENT = 1e-7, 1e-10  # of a row, of a neuron (arXiv 2609.19107)

# X <- a X + b (X X^T) X + c (X X^T)^2 X, from a matrix of Frobenius norm 1. Polar Express (arXiv 2505.16932) has a
# polynomial for each step, here those of arXiv 2609.19107, whose matrices begin with a norm of 1 / 1.02.
_SAFETY = 1.02
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
POLAR_EXPRESS = (
    (8.156554524902461 / _SAFETY, -22.48329292557795 / _SAFETY**3, 15.878769915207462 / _SAFETY**5),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
DTYPES = ("bfloat16",)
COEFFICIENTS: dict[str, tuple] = {"newton_schulz": NEWTON_SCHULZ, "polar_express": POLAR_EXPRESS}

# From (in, out) to whether there is a second moment for each output, or for each input.
VARIANCES: dict[str, Callable[[int, int], str]] = {
    "none": lambda fan_in, fan_out: "",
    "outputs": lambda fan_in, fan_out: "by_output",
    "longer": lambda fan_in, fan_out: "by_output" if fan_out >= fan_in else "by_input",
}

# From (in, out) to the factor on an orthogonal matrix.
SCALES: dict[str, Callable[[int, int], float]] = {
    "rms": lambda fan_in, fan_out: RMS * math.sqrt(max(fan_in, fan_out)),
    "spectral": lambda fan_in, fan_out: math.sqrt(max(1.0, fan_out / fan_in)),
}


@dataclasses.dataclass(frozen=True)
class MuonConfig:
    """The parts of Muon. Its second moments grow by slices: a copy has its original's, what is new starts anew.

    Attributes:
      momentum: decay per step of the first moment; updates look ahead by it (Nesterov).
      momentum_start, momentum_steps: the momentum rises linearly from momentum_start over so many updates; 0: it is
        constant. modded-nanogpt, nanochat and arXiv 2609.19107 take 300.
      coefficients: of the iteration, a name in `COEFFICIENTS`: "newton_schulz", or "polar_express" (arXiv 2505.16932).
      steps: of the iteration; at most 5 of Polar Express.
      dtype: of the iteration: "bfloat16", as its author and modded-nanogpt have it, or None for that of the gradients.
        Its products are of 16 bits on TPUs either way; on a GPU they take half the time of float32's.
      normalise_rows: before the iteration, what each output reads has norm 1 (arXiv 2609.19107).
      variance: what has a second moment, by the root of which the orthogonal matrix is divided before it is given back
        its norm: "none"; "outputs", as in NorMuon (arXiv 2510.05491); "longer", outputs or inputs, of which there are
        more (modded-nanogpt, nanochat, arXiv 2609.19107).
      variance_decay: per step, of that moment.
      scale: a name in `SCALES`. "rms": updates have the root mean square `RMS` (arXiv 2502.16982). "spectral": their
        singular values are sqrt(max(1, out / in)), which asks for a learning rate of its own (modded-nanogpt).
    """

    momentum: float = 0.95
    momentum_start: float = 0.85
    momentum_steps: int = 0
    coefficients: str = "newton_schulz"
    steps: int = 5
    dtype: str | None = None
    normalise_rows: bool = False
    variance: str = "none"
    variance_decay: float = 0.95
    scale: str = "rms"

    def __post_init__(self):
        for name in ("momentum", "momentum_start", "variance_decay"):
            check_range(f"optimizer.muon.{name}", getattr(self, name), low=0, high=1, high_allowed=False)
        check_range("optimizer.muon.momentum_steps", self.momentum_steps, low=0)
        check_range("optimizer.muon.steps", self.steps, low=1)
        for name, table in (("coefficients", COEFFICIENTS), ("variance", VARIANCES), ("scale", SCALES)):
            check_name(f"optimizer.muon.{name}", getattr(self, name), table)
        if self.dtype is not None:
            check_name("optimizer.muon.dtype", self.dtype, DTYPES)
        if self.coefficients == "polar_express" and self.steps > len(POLAR_EXPRESS):
            raise must_be("optimizer.muon.steps", f"<= {len(POLAR_EXPRESS)} of Polar Express", self.steps)


def muon(config: MuonConfig, model: DecoderConfig, mu_dtype: str | None = None) -> optax.GradientTransformation:
    """The updates of matrices, to be scaled by -learning_rate. mu_dtype: of the first moment, by default theirs."""
    weights = model.architecture.weights
    numbers = partial(_by_weight, weights, lambda weight, _: dimension_numbers(weight))
    coefficients = COEFFICIENTS[config.coefficients]
    if config.coefficients == "polar_express":
        coefficients = coefficients[: config.steps]
    iterated = partial(scale_by_muon, weight_dimension_numbers=numbers)
    # Without momentum: what it holds is of the update alone.
    orthogonal = iterated(coefficients, config.steps, beta=0.0, nesterov=False)

    def iterate(updates: Tree, params: Tree) -> Tree:
        begun = optax.tree.cast(updates, config.dtype)
        return optax.tree.cast_like(orthogonal.update(begun, orthogonal.init(begun))[0], updates)

    if config.momentum_steps or config.normalise_rows:
        rows = _with_unit_rows if config.normalise_rows else lambda weight, update: update
        parts = [scale_by_momentum(config, mu_dtype), _stateless(weights, rows), optax.stateless(iterate)]
    else:
        whole = iterated(coefficients, config.steps, beta=config.momentum, mu_dtype=mu_dtype)

        def in_parts(updates: Tree, state: Any, params: Tree = None) -> tuple[Tree, Any]:
            ahead, after = whole.update(updates, state._replace(ns_coeffs=jnp.zeros((0, 3))))  # no step: the momentum
            return iterate(ahead, params), after._replace(ns_coeffs=state.ns_coeffs)

        parts = [optax.GradientTransformation(whole.init, in_parts) if config.dtype else whole]
    if config.variance != "none":
        parts.append(scale_by_neurons(config, weights))
    return optax.chain(*parts, _stateless(weights, partial(_scaled, config.scale)))


def dimension_numbers(weight: Weight) -> MuonDimensionNumbers:
    """The matrix that a weight is: from all that it reads to all that it writes, one for each layer and expert."""
    dims = [(number, dim) for number, dim in enumerate(weight.all_dims) if not dim.many]
    reads = tuple(number for number, dim in dims if dim.reads)
    return MuonDimensionNumbers(reads, tuple(number for number, dim in dims if not dim.reads))


class MomentumState(NamedTuple):
    """The first moment, and the number of updates that it has seen."""

    count: jax.Array
    mu: Tree


def scale_by_momentum(config: MuonConfig, mu_dtype: str | None = None) -> optax.GradientTransformation:
    """A moving average of gradients that looks one step ahead, without bias correction: the iteration norms it."""

    def init(params: Tree) -> MomentumState:
        return MomentumState(jnp.zeros((), jnp.int32), optax.tree.zeros_like(params, mu_dtype))

    def update(gradients: Tree, state: MomentumState, params: Tree = None) -> tuple[Tree, MomentumState]:
        risen = jnp.minimum(state.count.astype(jnp.float32) / max(config.momentum_steps, 1), 1.0)
        beta = config.momentum
        if config.momentum_steps:
            beta = config.momentum_start + risen * (config.momentum - config.momentum_start)
        mu = optax.tree.update_moment(gradients, optax.tree.cast_like(state.mu, gradients), beta, 1)
        mu = optax.tree.cast(mu, mu_dtype)
        ahead = optax.tree.update_moment(gradients, optax.tree.cast_like(mu, gradients), beta, 1)
        return ahead, MomentumState(state.count + 1, mu)

    return optax.GradientTransformation(init, update)


class ScaleByNeuronsState(NamedTuple):
    """A second moment for each output of a weight or for each input, None for the other, and ages along what it has."""

    ages: Tree
    by_output: Tree
    by_input: Tree


def scale_by_neurons(config: MuonConfig, weights: dict[str, Weight]) -> optax.GradientTransformation:
    """Divides an orthogonal matrix by the root of a second moment by neuron, and gives it back its Frobenius norm.

    The moment is of entries times the root of the longer side, whose mean square is 1 whatever the shape, so that it
    stays what it is where the shape grows. Its bias correction counts the updates of each slice by itself.
    """

    def summed(weight: Weight, shape: Sequence[int]) -> tuple[str, Sequence[int]]:
        """The field that holds the moment, and the dimensions that it has not."""
        side = VARIANCES[config.variance](*_fans(weight, shape))
        numbers = dimension_numbers(weight)
        return side, numbers.reduction_axis if side == "by_output" else numbers.output_axis

    def zeros(side: str, weight: Weight, leaf: jax.Array) -> jax.Array | None:
        of, dims = summed(weight, leaf.shape)
        shape = [1 if number in dims else size for number, size in enumerate(leaf.shape)]
        return jnp.zeros(shape, leaf.dtype) if of == side else None

    def ages_of(weight: Weight, leaf: jax.Array) -> Ages:
        dims = summed(weight, leaf.shape)[1]
        return initial_ages(leaf.shape, lambda number: number not in dims)

    def init(params: Tree) -> ScaleByNeuronsState:
        sides = (_by_weight(weights, partial(zeros, side), params) for side in ("by_output", "by_input"))
        return ScaleByNeuronsState(_by_weight(weights, ages_of, params), *sides)

    def moment(weight: Weight, update: jax.Array, held: jax.Array | None) -> jax.Array | None:
        if held is None:
            return None
        square = max(_fans(weight, update.shape)) * update**2
        mean = jnp.mean(square, axis=summed(weight, update.shape)[1], keepdims=True)
        return config.variance_decay * held + (1 - config.variance_decay) * mean

    def divided(weight: Weight, update: jax.Array, ages: Ages, *held: jax.Array | None) -> jax.Array:
        (nu,) = (one for one in held if one is not None)
        root = jnp.sqrt(jnp.maximum(nu / bias(config.variance_decay, ages, nu), SMALLEST_MOMENT))
        numbers = dimension_numbers(weight)
        both = (*numbers.reduction_axis, *numbers.output_axis)
        before, after = (jnp.sqrt(jnp.sum(one**2, axis=both, keepdims=True)) for one in (update, update / root))
        return update / root * (before / jnp.maximum(after, SMALLEST_NORM))

    def update(updates: Tree, state: ScaleByNeuronsState, params: Tree = None) -> tuple[Tree, ScaleByNeuronsState]:
        ages = jax.tree.map(lambda age: age + 1, state.ages)
        held = [_by_weight(weights, moment, updates, one) for one in (state.by_output, state.by_input)]
        return _by_weight(weights, divided, updates, ages, *held), ScaleByNeuronsState(ages, *held)

    return optax.GradientTransformation(init, update)


def _with_unit_rows(weight: Weight, update: jax.Array) -> jax.Array:
    """What each output reads, divided by its norm."""
    reads = dimension_numbers(weight).reduction_axis
    norm = jnp.sqrt(jnp.sum(update**2, axis=reads, keepdims=True))
    return update / jnp.maximum(norm, SMALLEST_NORM)


def _scaled(scale: str, weight: Weight, update: jax.Array) -> jax.Array:
    return SCALES[scale](*_fans(weight, update.shape)) * update


def _fans(weight: Weight, shape: Sequence[int]) -> tuple[int, int]:
    """The number of inputs and of outputs."""
    fan_in, fan_out = (math.prod(shape[number] for number in axes) for axes in dimension_numbers(weight))
    return fan_in, fan_out


def _by_weight(weights: dict[str, Weight], function: Callable, tree: Tree, *rest: Tree) -> Tree:
    """Maps function(weight, leaf, ...) over a tree like the parameters, or a part of it, and over further ones."""
    return jax.tree_util.tree_map_with_path(lambda path, *of: function(weights[path_of(path)], *of), tree, *rest)


def _stateless(weights: dict[str, Weight], function: Callable) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, params: _by_weight(weights, function, updates))
