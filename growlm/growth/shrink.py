"""Models made smaller: a growth undone, a smaller shape, and a measurement of what is lost."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from growlm.errors import InputError, must_be
from growlm.growth.expand import grow_params
from growlm.growth.inverse import Shrunk, inverse, read_growth
from growlm.growth.maps import overlay
from growlm.growth.plan import Growth, factors_of
from growlm.growth.state import grow
from growlm.growth.verify import check_tokens, difference, finite_or_none
from growlm.models import DecoderConfig, Kind, Params, Weight, apply, check_params, map_weights, plain

ROUNDING = {"float64": 2.0**-51, "float32": 2.0**-22, "float16": 2.0**-9, "bfloat16": 2.0**-6}


def shrink(params: Params, source: DecoderConfig, target: DecoderConfig, **options: Any) -> Params:
    """A smaller model, by the left inverse of the growth that would lead from the target back to the source.

    `grow` with the operator "shrink": `shrink(grow(params, small, large), large, small)` is `params`.

    Args:
      params: the source's parameters.
      source, target: the large shape and the small one.
      **options: order, undoes and select, as of `growlm.growth.operators.shrink`.

    Raises:
      InputError: as `grow`; a size of the target that is above the source's.
    """
    return grow(params, source, target, "shrink", **options)


def undo(params: Params, source: DecoderConfig, target: DecoderConfig, report: Mapping[str, Any]) -> Params:
    """The weights from before a growth, by the maps in its report.

    Where a copy's scale is 1 or a power of two, an untrained model is given back to the byte, and else within one
    rounding of the stored dtype. Of a model that was trained since, each weight is the mean over its copies.

    Args:
      params: of the grown model.
      source, target: the grown shape, and the one before.
      report: of the growth, from `grow_state`, `describe` or a growth.json.

    Raises:
      InputError: a report of other shapes or of an older version, a growth that cannot be undone (noise, learned maps,
        lifts, layers that were left out).
    """
    growth = plan_undo(report, source, target)
    check_params(source, params)
    return _applied(growth, source, target, params)


def plan_undo(report: Mapping[str, Any], source: DecoderConfig, target: DecoderConfig) -> Growth:
    """The growth from a grown shape back to the one before. Args and errors are those of `undo`."""
    for name, config in (("source", target), ("target", source)):
        if (said := report.get(name)) != _as_json(plain(config)):
            raise must_be(f"the {name} of the growth's report", f"{plain(config)}", said)
    forward = read_growth(report, source)
    return inverse(dataclasses.replace(forward, factors=factors_of(forward, target, source)))


def _as_json(value: Any) -> Any:
    """A config's plain form as it is read from a file."""
    if isinstance(value, dict):
        return {name: _as_json(item) for name, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, list | tuple) else value


def _applied(growth: Growth, source: DecoderConfig, target: DecoderConfig, params: Params) -> Params:
    after = grow_params(growth, source, target, params, None)
    check_params(target, after)
    return after


def forward_of(growth: Growth) -> Growth | None:
    """The growth of which a shrink is the left inverse; None if the growth is no shrink."""
    return next((effect.forward for effect in growth.effects if isinstance(effect, Shrunk)), None)


def lost(
    source: DecoderConfig, params: Params, target: DecoderConfig, shrunk: Params, tokens: Any, growth: Growth
) -> dict[str, Any]:
    """Measures what a shrink lost.

    Args:
      source, params: the large model.
      target, shrunk: the small one.
      tokens: int[batch, length + 1], in the target's vocabulary.
      growth: the shrink, from `plan_growth` or `plan_undo`.

    Returns:
      Plain JSON: "loss_before" and "loss_after" on the tokens, in nats a token; "logits", the largest difference of
      logits on the target's vocabulary, relative to the largest; "weights", the largest difference of the large
      model's weights from the small model's, grown back, relative to the largest of their leaf, without fresh slices;
      "worst", the leaf that it is in; "exact", whether "weights" is rounding; "tokens", their shape. A number that is
      not finite is None.

    Raises:
      InputError: trees or tokens that do not fit their model, a growth that is no shrink.
    """
    check_params(source, params)
    check_params(target, shrunk)
    tokens, vocab = np.asarray(tokens), _vocab(target)
    check_tokens(tokens, vocab)
    if (forward := forward_of(growth)) is None:
        raise InputError("growth must be a shrink, from plan_growth with operator shrink or from plan_undo")
    stored = jnp.result_type(*jax.tree.leaves(params)).name
    dtype = "float64" if stored == "float64" else "float32"
    inputs, answers = jnp.asarray(tokens[:, :-1]), tokens[:, 1:]
    with jax.default_matmul_precision("highest"):
        before, after = (
            np.asarray(apply(config, jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree), inputs, dtype=dtype))
            for config, tree in ((source, params), (target, shrunk))
        )
    losses = [_loss(logits, answers) for logits in (before, after)]
    logits = difference(after, before[..., :vocab])
    errors = regrown_errors(forward, target, source, params, shrunk)
    return lost_report(losses, logits, errors, tokens.shape, stored)


def lost_report(
    losses: Sequence[float], logits: float, errors: Mapping[str, float], shape: tuple[int, ...], dtype: str
) -> dict[str, Any]:
    """The report of `lost`: losses before and after, and by leaf or tensor how far it is from what grows back."""
    worst = max(errors, key=lambda path: np.inf if np.isnan(errors[path]) else errors[path])
    return {
        "loss_before": finite_or_none(losses[0]),
        "loss_after": finite_or_none(losses[1]),
        "logits": finite_or_none(logits),
        "weights": finite_or_none(errors[worst]),
        "worst": worst,
        "exact": bool(errors[worst] <= ROUNDING[dtype]),
        "tokens": [shape[0], shape[1] - 1],
        "dtype": dtype,
    }


def regrown_errors(
    forward: Growth, small: DecoderConfig, large: DecoderConfig, params: Params, shrunk: Params
) -> dict[str, float]:
    """By leaf, how far the large model is from the small one grown again, relative; without fresh slices."""
    maps_alone = {name: axis.without_fresh() for name, axis in forward.maps.items()}
    back = dataclasses.replace(forward, maps=maps_alone)
    in_float = jax.tree.map(lambda leaf: np.asarray(leaf, np.promote_types(leaf.dtype, np.float32)), (params, shrunk))
    again = grow_params(back, small, large, in_float[1], None)
    errors = {}

    def compare(weight: Weight, leaf: Any, grown: Any) -> Any:
        errors[weight.path] = relative_error(forward, weight, np.asarray(leaf), np.asarray(grown))
        return leaf

    map_weights(compare, large, in_float[0], again)
    return errors


def relative_error(forward: Growth, weight: Weight, have: np.ndarray, want: np.ndarray, unit: tuple = ()) -> float:
    """The largest difference, relative to the largest value of `have`, without fresh slices; NaN if any value is.

    unit: the number along each axis that the weight is held once for, where the arrays are of one unit.
    """
    apart, fresh = np.abs(have - want), forward.fresh(weight)
    of_unit = [chosen[[number]] for number, chosen in zip(unit, fresh, strict=False)] + fresh[len(unit) :]
    shape = (1,) * len(unit) + apart.shape
    apart = overlay(apart.reshape(shape), np.zeros(shape, apart.dtype), of_unit)
    return float(apart.max(initial=0) / max(np.abs(have).max(initial=0), 1e-30))


def _vocab(config: DecoderConfig) -> int:
    """The number of tokens."""
    return config.size(config.architecture.of_kind(Kind.VOCAB)[0])


def _loss(logits: np.ndarray, answers: np.ndarray) -> float:
    """The mean cross-entropy in nats."""
    top = logits.max(-1, keepdims=True)
    total = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
    return float((total - np.take_along_axis(logits, answers[..., None], -1)[..., 0]).mean())


def describe_lost(report: Mapping[str, Any]) -> str:
    """The report of `lost` in three lines."""
    before, after = (_shown(report[name], ".4f") for name in ("loss_before", "loss_after"))
    kept = "nothing is lost but rounding" if report["exact"] else f"worst: {report['worst']}"
    shape = "{} x {}".format(*report["tokens"])
    return "\n".join(
        [
            f"loss on {shape} tokens: {before} before, {after} after",
            f"largest difference of logits, relative to the largest: {_shown(report['logits'], '.2g')}",
            f"largest change of a weight when it is grown back: {_shown(report['weights'], '.2g')} ({kept})",
        ]
    )


def _shown(value: float | None, form: str) -> str:
    return "not finite" if value is None else format(value, form)
