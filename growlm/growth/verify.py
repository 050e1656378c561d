"""Verification of a grown model: claims against measurements of weights, logits, gradients and a few steps."""

import functools
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from growlm.errors import InputError, check_count, check_positive, must_be
from growlm.growth.claims import claim, gradient_claim
from growlm.growth.expand import expand_params, grow_params
from growlm.growth.maps import dual, overlay
from growlm.growth.masks import CLOSED, Masks
from growlm.growth.plan import Growth, provenance_of
from growlm.models import DecoderConfig, Params, apply, check_params, map_weights, next_token_loss, path_of

if TYPE_CHECKING:
    import optax  # takes long to load, and a plan needs none

# Tolerances of computations that are equal in exact arithmetic, relative to the largest value, by dtype.
ARITHMETIC = {"float64": {"function": 1e-10, "gradients": 1e-9}, "float32": {"function": 5e-5, "gradients": 2e-4}}

# Tolerances of weights, relative to the largest of their leaf: two units in the last place in 16 bits; in wider types,
# what products in another order leave.
WEIGHTS = {"float64": 1e-13, "float32": 1e-6, "float16": 2e-3, "bfloat16": 2**-6}

# Growth rounds a weight by at most half a unit, and its source was rounded too. So the tolerance for rounding is this
# factor times the effect of one unit in every weight of the source.
NUDGES = 1.0

# Gradients of leaves below this share of the whole gradient are mostly rounding, so they are measured against it.
SMALL_LEAF = 1e-3


def verify(
    source: DecoderConfig,
    params: Params,
    target: DecoderConfig,
    grown: Params,
    tokens: Any,
    growth: Growth | None = None,
    *,
    steps: int = 5,
    learning_rate: float = 1e-4,
) -> dict[str, Any]:
    """Measures on one batch whether a grown model is what its growth claims.

    16-bit weights are measured in float32, with a tolerance for their rounding: the change of the source's logits and
    gradients when every weight moves by one unit in its last place. Wider types have a tolerance for arithmetic.

    Args:
      source, params: the small model.
      target, grown: the large one.
      tokens: int[batch, length + 1], in the source's vocabulary; all logits of the batch are in memory.
      growth: from `plan_growth`; without it there are no claims. Masks are measured at 0, as training begins.
      steps, learning_rate: of AdamW on these tokens.

    Returns:
      Plain JSON: "ok", whether every claim holds; "dtype"; the shape of "tokens"; "loss_before", "loss_after", in nats
      a token; "losses" [steps + 1]; and "items", each {"claimed": bool, or None without a growth; "measured": float, or
      None if not finite; "tolerance"; "holds"; "note"}:
        finite: the number of leaves with values that are not finite;
        weights: the largest difference of carried and copied slices from the growth of the source, relative to the
          largest value of the leaf (for growths without learned maps and noise);
        function: the largest logit difference on the source's vocabulary, relative to the largest logit;
        gradients: the largest relative error (2-norm) of a leaf's gradient against the source's under the dual map (for
          growths without learned maps);
        training: the change of the loss within these steps.

    Raises:
      InputError: trees or tokens that do not fit their model, steps or learning_rate out of range.
    """
    _check(source, params, target, grown, tokens, steps, learning_rate)
    stored = jnp.result_type(*jax.tree.leaves(grown)).name
    dtype = "float64" if stored == "float64" else "float32"
    tokens = jnp.asarray(tokens, jnp.int32)
    start, lifted = (growth.start(source), growth.lift) if growth else (source, None)
    begun = params if lifted is None else lifted.params(params)
    masks = None if growth is None else growth.masks
    provenance = None if growth is None or masks is None else provenance_of(growth)
    exact, exact_grown = (_in(dtype, tree) for tree in (params, grown))
    with jax.default_matmul_precision("highest"):  # accelerators multiply float32 in fewer bits by default
        loss_and_gradient = partial(_loss_and_gradient, target, masks, dtype, provenance=provenance, tokens=tokens)
        after, grown_gradient = loss_and_gradient(params=exact_grown)
        before, gradient = _loss_and_gradient(start, None, dtype, _in(dtype, begun), None, tokens)
        items = {"finite": _finite(grown)}
        if growth is not None and growth.learner is None:
            drawn = any(effect.draws() for effect in growth.effects)
            items |= {} if drawn else {"weights": _weights(growth, source, params, target, grown, WEIGHTS[stored])}
        old = apply(source, exact, tokens[:, :-1], dtype=dtype)
        new = _logits(target, masks, dtype, exact_grown, provenance, tokens)
        tolerance = dict(ARITHMETIC[dtype])
        if stored not in ARITHMETIC:
            nudged = _in(dtype, _nudged(begun))
            moved = difference(apply(start, nudged, tokens[:, :-1], dtype=dtype), old)
            _, moved_gradient = _loss_and_gradient(start, None, dtype, nudged, None, tokens)
            worst, _ = _worst(_relative(moved_gradient, gradient))
            rounding = {"function": moved, "gradients": worst}
            tolerance = {name: allowance(tolerance[name], effect) for name, effect in rounding.items()}
        items["function"] = _function(growth, source, target, old, new, tolerance["function"])
        if growth is not None and growth.learner is None:
            items["gradients"] = _gradients(growth, source, gradient, target, grown_gradient, tolerance["gradients"])
        losses = _train(loss_and_gradient, exact_grown, after, grown_gradient, steps, learning_rate)
        items["training"] = _training(losses)
    loss = {"loss_before": finite_or_none(before), "loss_after": losses[0], "losses": losses}
    ok = all(item["holds"] for item in items.values() if item["claimed"])
    return {"ok": ok, "dtype": stored, "tokens": [tokens.shape[0], tokens.shape[1] - 1]} | loss | {"items": items}


def check_tokens(tokens: Any, vocab: int) -> None:
    """Raises InputError for what is not a batch of tokens below vocab, inputs and answers in one."""
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer) or tokens.shape[0] < 1 or tokens.shape[1] < 2:
        shape = f"{tokens.dtype}{list(tokens.shape)}"
        raise InputError(f"tokens must be integers [batch >= 1, length + 1 >= 2], got {shape}")
    if tokens.min() < 0 or tokens.max() >= vocab:
        raise must_be("tokens", f"from 0 to {vocab - 1}", int(tokens.max() if tokens.min() >= 0 else tokens.min()))


def _check(source, params, target, grown, tokens, steps, learning_rate) -> None:
    """Raises InputError for what cannot be measured."""
    check_params(source, params)
    check_params(target, grown)
    check_tokens(tokens, source.vocab)
    check_count("steps", steps, low=1)
    check_positive("learning_rate", learning_rate)


def _acting(config: DecoderConfig, masks: Masks | None, params: Params, provenance: Any) -> tuple[Params, Any]:
    """The parameters as they act when training begins, with masks at 0, and the residual scale of each layer."""
    if masks is None:
        return params, None
    return masks.reparametrise(config, params, provenance, CLOSED)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _loss_and_gradient(config, masks, dtype, params, provenance, tokens) -> tuple[jax.Array, Params]:
    """Loss in nats a token and gradient, as training begins; compiled once for equal shapes."""

    def loss_of(params):
        acting, block_scale = _acting(config, masks, params, provenance)
        return next_token_loss(config, acting, tokens, dtype=dtype, block_scale=block_scale)

    return jax.value_and_grad(loss_of)(params)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _logits(config, masks, dtype, params, provenance, tokens) -> jax.Array:
    acting, block_scale = _acting(config, masks, params, provenance)
    return apply(config, acting, tokens[:, :-1], dtype=dtype, block_scale=block_scale)


def _in(dtype: str, params: Params) -> Params:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)


@jax.jit
def _nudged(params: Params) -> Params:
    """Moves every weight that is not 0 by one unit in the last place, up or down at random."""
    leaves, structure = jax.tree.flatten(params)

    def nudge(number: int, leaf: jax.Array) -> jax.Array:
        integer = jnp.dtype(f"int{8 * leaf.dtype.itemsize}")
        coins = jax.random.bernoulli(jax.random.fold_in(jax.random.key(0), number), shape=leaf.shape)
        # As integers, neighbouring floats of either sign are neighbours.
        bits = jax.lax.bitcast_convert_type(leaf, integer) + jnp.where(coins, 1, -1).astype(integer)
        return jnp.where(leaf == 0, leaf, jax.lax.bitcast_convert_type(bits, leaf.dtype))

    return jax.tree.unflatten(structure, [nudge(number, leaf) for number, leaf in enumerate(leaves)])


def allowance(arithmetic: float, moved: float) -> float:
    """The tolerance for rounding, given the effect of a nudge of the source, which is ignored if it is not finite."""
    return max(arithmetic, NUDGES * moved) if math.isfinite(moved) else arithmetic


def difference(new: Any, old: Any) -> float:
    """The largest difference of logits, relative to the largest of `old`; NaN if any is not finite."""
    # In NumPy: on XLA's CPU backend, the maximum of 4,096 elements and more ignores NaN.
    new, old = np.asarray(new), np.asarray(old)
    return float(np.max(np.abs(new - old)) / max(np.max(np.abs(old)), 1e-30))


def finite_or_none(value: Any) -> float | None:
    """None for NaN and infinities, which JSON lacks."""
    return float(value) if math.isfinite(value) else None


def _item(claimed: bool | None, measured: float, tolerance: float, note: str) -> dict[str, Any]:
    holds = bool(measured <= tolerance)  # NaN does not hold
    return {
        "claimed": claimed,
        "measured": finite_or_none(measured),
        "tolerance": tolerance,
        "holds": holds,
        "note": note,
    }


@jax.jit
def _all_finite(tree: Params) -> Params:
    return jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), tree)


def _finite(grown: Params) -> dict[str, Any]:
    bad = [path_of(path) for path, whole in jax.tree_util.tree_leaves_with_path(_all_finite(grown)) if not whole]
    return _item(True, len(bad), 0, f"not finite: {', '.join(bad)}" if bad else "all values are finite")


def _weights(growth, source, params, target, grown, tolerance) -> dict[str, Any]:
    """Grows the source again, and compares the slices that are not fresh."""

    def wrong(weight, leaf, expected):
        apart = overlay(jnp.abs(leaf - expected), jnp.zeros_like(leaf), growth.fresh(weight))
        # On XLA's CPU backend a maximum may ignore NaN, so it is looked for separately.
        largest = jnp.max(apart, initial=0) / jnp.maximum(jnp.max(jnp.abs(expected), initial=0), 1e-30)
        return jnp.where(jnp.isfinite(apart).all(), largest, jnp.nan)

    @jax.jit
    def differences(params, grown):
        expected = grow_params(growth, source, target, params, jax.random.key(0))  # any key: fresh slices are ignored
        return map_weights(wrong, target, grown, expected)

    worst, path = _worst(differences(params, grown))
    return _item(True, worst, tolerance, f"worst: {path}")


def _worst(errors: Params) -> tuple[float, str]:
    """The largest leaf of a tree of scalars, and its path; NaN is the largest."""
    found = [(float(error), path_of(path)) for path, error in jax.tree_util.tree_leaves_with_path(errors)]
    return max(found, key=lambda entry: math.inf if math.isnan(entry[0]) else entry[0])


def _function(growth, source, target, old, new, tolerance) -> dict[str, Any]:
    """Compares the logits of the two models on the source's vocabulary."""
    claimed, why = claim(growth, source, target) if growth else (None, "no growth was given")
    return _item(claimed, difference(new[..., : source.vocab], old), tolerance, why)


def _gradients(growth, source, gradient, target, own, tolerance) -> dict[str, Any]:
    """Compares the grown model's gradient with the source's under the dual map, leaf by leaf."""
    mapped = jax.jit(lambda tree: expand_params(growth, source, tree, rule=dual))(gradient)
    worst, path = _worst(_relative(own, mapped))
    claimed, why = gradient_claim(growth, source, target)
    return _item(claimed, worst, tolerance, f"worst: {path}; {why}")


@jax.jit
def _relative(have: Params, want: Params) -> Params:
    """The relative error of every leaf in 2-norm; small leaves relative to the whole tree."""
    import optax

    least, norm = SMALL_LEAF * optax.tree.norm(want), jnp.linalg.norm
    return jax.tree.map(
        lambda a, b: norm((a - b).ravel()) / jnp.maximum(jnp.maximum(norm(b.ravel()), least), 1e-30), have, want
    )


def _train(loss_and_gradient: Callable, params: Params, loss, gradient, steps: int, rate: float) -> list[float | None]:
    """The loss before every step of AdamW and after the last, given the first loss and gradient."""
    state, losses = _adam().init(params), [loss]
    for _ in range(steps):
        params, state = _update(params, state, gradient, rate)
        loss, gradient = loss_and_gradient(params=params)
        losses.append(loss)
    return [finite_or_none(loss) for loss in losses]


@functools.cache
def _adam() -> "optax.GradientTransformation":
    import optax

    return optax.chain(optax.scale_by_adam(b1=0.9, b2=0.95), optax.add_decayed_weights(1e-4))


@jax.jit
def _update(params: Params, state: Any, gradient: Params, rate: jax.Array) -> tuple[Params, Any]:
    updates, state = _adam().update(gradient, state, params)
    return jax.tree.map(lambda leaf, update: (leaf - rate * update).astype(leaf.dtype), params, updates), state


def _training(losses: list[float | None]) -> dict[str, Any]:
    """Checks that the loss falls on one batch, repeated."""
    known = [loss for loss in losses if loss is not None]
    finite = len(known) == len(losses)
    change = min(known[1:]) - known[0] if finite else math.nan
    note = "the loss falls" if change < 0 else "the loss does not fall" if finite else "the loss is not finite"
    return _item(True, change, 0, note) | {"holds": change < 0}


def describe_verdict(report: dict[str, Any]) -> str:
    """The report of `verify` as a table."""
    rows = [("check", "claimed", "measured", "tolerance", "verdict", "")]
    for name, item in report["items"].items():
        numbers = ("not finite" if item["measured"] is None else f"{item['measured']:.2g}", f"{item['tolerance']:.2g}")
        rows.append((name, _claimed(item["claimed"]), *numbers, _verdict(item), item["note"]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    losses = " ".join("nan" if loss is None else f"{loss:.4f}" for loss in report["losses"])
    before = "nan" if report["loss_before"] is None else f"{report['loss_before']:.4f}"
    shape = "{} x {}".format(*report["tokens"])
    return "\n".join(
        [*lines, f"loss on {shape} tokens, {report['dtype']}: {before} before; grown, step by step: {losses}"]
    )


def _claimed(claimed: bool | None) -> str:
    return "-" if claimed is None else "yes" if claimed else "no"


def _verdict(item: dict[str, Any]) -> str:
    if item["claimed"]:
        return "holds" if item["holds"] else "BROKEN"
    kept = "holds" if item["holds"] else "does not hold"
    return f"{kept}, not claimed" if item["claimed"] is False else kept
