"""Is a grown model right? What its growth claims beside what is measured: weights, logits, gradients, a few steps."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from growlm.errors import InputError
from growlm.growth.claims import claim, gradient_claim
from growlm.growth.effects import Effect
from growlm.growth.expand import expand_params, grow_params
from growlm.growth.maps import dual
from growlm.growth.masks import CLOSED
from growlm.growth.plan import Growth, provenance_of
from growlm.models import DecoderConfig, Params, apply, check_params, map_weights, next_token_loss, path_of

# How far two computations that are the same in exact arithmetic may be apart, relative to the largest value, by the
# dtype in which they are made.
ARITHMETIC = {"float64": {"function": 1e-10, "gradients": 1e-9}, "float32": {"function": 5e-5, "gradients": 2e-4}}

# How far a weight may be from what the growth makes of the source, relative to the leaf's largest: two units in the
# last place of 16-bit values, and in wider ones what products in another order leave.
WEIGHTS = {"float64": 1e-13, "float32": 1e-6, "float16": 2e-3, "bfloat16": 2**-6}

# Growth rounds a weight once for each of the two dimensions that it scales, by half a unit at most. What a whole unit
# in every weight of the source does to logits and gradients, times this, is what rounding may do.
NUDGES = 1.0

# A leaf whose gradient is smaller than this share of the whole is measured against the whole: what it has is rounding.
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
    """Whether a grown model is what it should be, measured on one batch.

    Weights of 16 bits are measured as what they are, in float32: what is left is how growth rounded them. The allowance
    for that comes from the source: what its logits and gradients do when every weight moves by one unit in its last
    place. Float32 and float64 are measured as they are, with an allowance for arithmetic.

    Args:
      source, params: the small model.
      target, grown: the large one. Neither tree is changed.
      tokens: int[batch, length + 1], below the source's vocabulary; a batch at most, its logits are held whole.
      growth: what made one of the other, as `plan_growth` gives it; without it nothing can be claimed or looked up.
        With a ramp, everything is measured as training begins, under masks at 0.
      steps, learning_rate: of plain AdamW on these tokens.

    Returns:
      Plain JSON: "ok", whether every claim made is met; "dtype"; "tokens", their shape; "loss_before", "loss_after", in
      nats a token; "losses" [steps + 1] of those steps; and "items", each {"claimed": bool or None where nobody says,
      "measured": float or None where it is not finite, "tolerance", "holds": whether the measure is within it, "note"}:
        finite: how many leaves have a value that is not;
        weights: largest difference of a slice that is not fresh from what the growth makes of the source, relative to
          the leaf's largest value (with a growth whose maps are known, and no noise);
        function: largest logit difference on the source's vocabulary, relative to the largest logit;
        gradients: relative error (2-norms) of the worst leaf's gradient against the source's under the dual map (with
          such a growth);
        training: the largest fall of the loss within those steps, negative where it falls.

    Raises:
      InputError: a tree that is not its model's, tokens that are none of the source's, steps or a rate out of range.
    """
    _check(source, params, target, grown, tokens, steps, learning_rate)
    stored = jnp.result_type(*jax.tree.leaves(grown)).name
    dtype = "float64" if stored == "float64" else "float32"
    tokens = jnp.asarray(tokens, jnp.int32)
    start, lifted = (growth.start(source), growth.lift) if growth else (source, None)
    begun = lifted.params(params) if lifted else params  # what the maps grow
    masks = growth.masks if growth else None
    provenance = provenance_of(growth) if masks else None
    exact, exact_grown = (_in(dtype, tree) for tree in (params, grown))
    with jax.default_matmul_precision("highest"):  # accelerators multiply float32 in fewer bits by default
        loss_and_gradient = partial(_loss_and_gradient, target, masks, dtype, provenance=provenance, tokens=tokens)
        after, own_gradient = loss_and_gradient(params=exact_grown)
        before, gradient = _loss_and_gradient(start, None, dtype, _in(dtype, begun), None, tokens)
        items = {"finite": _finite(grown)}
        if known := growth is not None and not growth.learner:
            drawn = any(effect.draws() for effect in growth.effects)
            items |= {} if drawn else {"weights": _weights(growth, source, params, target, grown, WEIGHTS[stored])}
        old = apply(source, exact, tokens[:, :-1], dtype=dtype)
        new = _logits(target, masks, dtype, exact_grown, provenance, tokens)
        allowed = dict(ARITHMETIC[dtype])
        if stored not in ARITHMETIC:
            nudged = _in(dtype, _nudged(begun))
            moved = difference(apply(start, nudged, tokens[:, :-1], dtype=dtype), old)
            _, moved_gradient = _loss_and_gradient(start, None, dtype, nudged, None, tokens)
            worst, _ = _worst(_relative(moved_gradient, gradient))
            allowed = {"function": allowance(allowed["function"], moved)}
            allowed |= {"gradients": allowance(ARITHMETIC[dtype]["gradients"], worst)}
        items["function"] = _function(growth, source, target, old, new, allowed["function"])
        if known:
            items["gradients"] = _gradients(growth, source, gradient, target, own_gradient, allowed["gradients"])
        losses = _train(loss_and_gradient, exact_grown, after, own_gradient, steps, learning_rate)
        items["training"] = _training(losses)
    loss = {"loss_before": _plain(before), "loss_after": losses[0], "losses": losses}
    ok = all(item["holds"] for item in items.values() if item["claimed"])
    return {"ok": ok, "dtype": stored, "tokens": [tokens.shape[0], tokens.shape[1] - 1]} | loss | {"items": items}


def _check(source, params, target, grown, tokens, steps, learning_rate) -> None:
    """Raises InputError for what cannot be measured."""
    check_params(source, params)
    check_params(target, grown)
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer) or tokens.shape[0] < 1 or tokens.shape[1] < 2:
        shape = f"{tokens.dtype}{list(tokens.shape)}"
        raise InputError(f"tokens must be integers [batch >= 1, length + 1 >= 2], got {shape}")
    if tokens.min() < 0 or tokens.max() >= source.vocab:
        bad = tokens.min() if tokens.min() < 0 else tokens.max()
        raise InputError(f"tokens hold {bad}: allowed are 0 to {source.vocab - 1}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(f"steps must be integers >= 1, got {steps!r}")
    if not 0 < learning_rate < math.inf:
        raise InputError(f"learning_rate must be numbers > 0, got {learning_rate!r}")


def _acting(config: DecoderConfig, ramp: Effect | None, params: Params, provenance: Any) -> tuple[Params, Any]:
    """What of the parameters acts as training begins, under a ramp's masks at 0; and the factor of each block."""
    if ramp is None:
        return params, None
    return ramp.reparametrise(config, params, provenance, CLOSED)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _loss_and_gradient(config, ramp, dtype, params, provenance, tokens) -> tuple[jax.Array, Params]:
    """As training begins, in nats a token; compiled once for a shape."""

    def loss_of(params):
        acting, block_scale = _acting(config, ramp, params, provenance)
        return next_token_loss(config, acting, tokens, dtype=dtype, block_scale=block_scale)

    return jax.value_and_grad(loss_of)(params)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _logits(config, ramp, dtype, params, provenance, tokens) -> jax.Array:
    acting, block_scale = _acting(config, ramp, params, provenance)
    return apply(config, acting, tokens[:, :-1], dtype=dtype, block_scale=block_scale)


def _in(dtype: str, params: Params) -> Params:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)


@jax.jit
def _nudged(params: Params) -> Params:
    """Every weight that is not 0 one unit in the last place larger or smaller in size, by a coin of its own."""
    leaves, structure = jax.tree.flatten(params)

    def nudge(number: int, leaf: jax.Array) -> jax.Array:
        integer = jnp.dtype(f"int{8 * leaf.dtype.itemsize}")
        coins = jax.random.bernoulli(jax.random.fold_in(jax.random.key(0), number), shape=leaf.shape)
        # Neighbours in size are neighbours as integers, whatever the sign.
        bits = jax.lax.bitcast_convert_type(leaf, integer) + jnp.where(coins, 1, -1).astype(integer)
        return jnp.where(leaf == 0, leaf, jax.lax.bitcast_convert_type(bits, leaf.dtype))

    return jax.tree.unflatten(structure, [nudge(number, leaf) for number, leaf in enumerate(leaves)])


def allowance(arithmetic: float, moved: float) -> float:
    """What rounding may do, given what a nudge of the source does; a nudge that is not finite allows nothing more."""
    return max(arithmetic, NUDGES * moved) if math.isfinite(moved) else arithmetic


def difference(new: Any, old: Any) -> float:
    """The largest difference of logits, relative to the largest of `old`; NaN where any is not finite.

    In NumPy: XLA's CPU backend passes over NaN in the maximum of 4,096 elements and more.
    """
    new, old = np.asarray(new), np.asarray(old)
    return float(np.max(np.abs(new - old)) / max(np.max(np.abs(old)), 1e-30))


def _plain(value: Any) -> float | None:
    """JSON has no NaN and no infinity."""
    return float(value) if math.isfinite(value) else None


def _item(claimed: bool | None, measured: float, tolerance: float, note: str) -> dict[str, Any]:
    """NaN is within no tolerance."""
    holds = bool(measured <= tolerance)
    return {"claimed": claimed, "measured": _plain(measured), "tolerance": tolerance, "holds": holds, "note": note}


@jax.jit
def _all_finite(tree: Params) -> Params:
    return jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), tree)


def _finite(grown: Params) -> dict[str, Any]:
    bad = [path_of(path) for path, whole in jax.tree_util.tree_leaves_with_path(_all_finite(grown)) if not whole]
    return _item(True, len(bad), 0, f"not finite: {', '.join(bad)}" if bad else "all values are finite")


def _weights(growth, source, params, target, grown, tolerance) -> dict[str, Any]:
    """The growth once more, and its slices that are not fresh against those that are there."""

    def wrong(weight, leaf, expected):
        fresh, apart = growth.fresh(weight), jnp.abs(leaf - expected)
        apart = apart if fresh is None else jnp.where(fresh, 0, apart)
        # A maximum of NaN may be anything on XLA's CPU backend: it is asked for by itself.
        largest = jnp.max(apart, initial=0) / jnp.maximum(jnp.max(jnp.abs(expected), initial=0), 1e-30)
        return jnp.where(jnp.isfinite(apart).all(), largest, jnp.nan)

    @jax.jit
    def differences(params, grown):
        expected = grow_params(growth, source, target, params, jax.random.key(0))  # fresh values are not looked at
        return map_weights(wrong, target, grown, expected)

    worst, path = _worst(differences(params, grown))
    return _item(True, worst, tolerance, f"worst: {path}")


def _worst(errors: Params) -> tuple[float, str]:
    """The largest leaf of a tree of scalars, and where it is; NaN is the largest of all."""
    found = [(float(error), path_of(path)) for path, error in jax.tree_util.tree_leaves_with_path(errors)]
    return max(found, key=lambda entry: math.inf if math.isnan(entry[0]) else entry[0])


def _function(growth, source, target, old, new, tolerance) -> dict[str, Any]:
    """Logits of the two models on the source's vocabulary."""
    claimed, why = claim(growth, source, target) if growth else (None, "no growth was given")
    return _item(claimed, difference(new[..., : source.vocab], old), tolerance, why)


def _gradients(growth, source, gradient, target, own, tolerance) -> dict[str, Any]:
    """The grown model's gradient against the source's under the dual map, leaf by leaf."""
    mapped = jax.jit(lambda tree: expand_params(growth, source, tree, rule=dual))(gradient)
    worst, path = _worst(_relative(own, mapped))
    claimed, why = gradient_claim(growth, source, target)
    return _item(claimed, worst, tolerance, f"worst: {path}; {why}")


@jax.jit
def _relative(have: Params, want: Params) -> Params:
    """The relative error of every leaf, by 2-norms; small leaves against the whole."""
    least, norm = SMALL_LEAF * optax.tree.norm(want), jnp.linalg.norm
    return jax.tree.map(
        lambda a, b: norm((a - b).ravel()) / jnp.maximum(jnp.maximum(norm(b.ravel()), least), 1e-30), have, want
    )


def _train(loss_and_gradient: Callable, params: Params, loss, gradient, steps: int, rate: float) -> list[float | None]:
    """The loss before every step of plain AdamW, and after the last; the first loss and gradient are known."""
    state, losses = _ADAM.init(params), [loss]
    for _ in range(steps):
        params, state = _update(params, state, gradient, rate)
        loss, gradient = loss_and_gradient(params=params)
        losses.append(loss)
    return [_plain(loss) for loss in losses]


_ADAM = optax.chain(optax.scale_by_adam(b1=0.9, b2=0.95), optax.add_decayed_weights(1e-4))


@jax.jit
def _update(params: Params, state: Any, gradient: Params, rate: jax.Array) -> tuple[Params, Any]:
    updates, state = _ADAM.update(gradient, state, params)
    return jax.tree.map(lambda leaf, update: (leaf - rate * update).astype(leaf.dtype), params, updates), state


def _training(losses: list[float | None]) -> dict[str, Any]:
    """A model that can learn does so on one batch that it sees again and again."""
    finite = None not in losses
    change = min(losses[1:]) - losses[0] if finite else math.nan
    note = "the loss falls" if change < 0 else "the loss does not fall" if finite else "the loss is not finite"
    return _item(True, change, 0, note) | {"holds": change < 0}


def describe_verdict(report: dict[str, Any]) -> str:
    """What `verify` found, as a small table for a terminal."""
    rows = [("check", "claimed", "measured", "allowed", "verdict", "")]
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
