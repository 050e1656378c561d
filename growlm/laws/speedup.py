"""The speed-up of one run over another: the cost of each to reach an equal loss."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from growlm.errors import InputError, check_name, must_be

AXES = ("flops", "tokens", "seconds")


@dataclass(frozen=True)
class Curve:
    """A loss measured along a run, in order of cost. Every array is float64[points].

    Costs are cumulative over all stages of the run. `tokens` and `seconds` are None where not recorded.
    """

    flops: np.ndarray
    loss: np.ndarray
    tokens: np.ndarray | None = None
    seconds: np.ndarray | None = None


@dataclass(frozen=True)
class Speedup:
    """The speed-up at one loss. All but `loss`, `reached` and `reason` are None where not measured.

    Attributes:
        speedup: FLOPs(scratch) / FLOPs(grown) - 1, the paper's measure (its equation 48); negative where
            growing lost.
        saved: 1 - FLOPs(grown) / FLOPs(scratch), the part of the compute that was not needed.
        loss: the loss at which the two were compared.
        flops_grown: cost of the grown run to reach it, the small model's training included.
        flops_scratch: cost of the run from scratch.
        reached: whether both runs cross the loss inside what was measured of them.
        reason: one line that says what was compared, or why it could not be.
    """

    speedup: float | None
    saved: float | None
    loss: float
    flops_grown: float | None
    flops_scratch: float | None
    reached: bool
    reason: str


def curve(records: Iterable[Mapping], key: str = "val_loss") -> Curve:
    """The curve of one loss, from the records of a run's metrics.

    Args:
        records: mappings with `flops`, and `tokens` and `seconds` where known. Those without `key` are
            passed over.
        key: which loss; "val_loss" is measured on some records only.

    Raises:
        InputError: no record has the key, a record that has it lacks `flops`, or a loss is not finite.
    """
    rows = [record for record in records if record.get(key) is not None]
    if not rows:
        raise InputError(f"no record has {key!r}: nothing to draw a curve from")
    if any(row.get("flops") is None for row in rows):
        raise InputError(f"a record with {key!r} has no 'flops'")
    rows.sort(key=lambda row: row["flops"])
    loss = _column(rows, key)
    if not np.isfinite(loss).all():
        where = rows[int(np.argmin(np.isfinite(loss)))]
        raise InputError(f"{key} is not finite at flops={where['flops']:.3g}: the run diverged there")
    return Curve(_column(rows, "flops"), loss, _column(rows, "tokens"), _column(rows, "seconds"))


def smooth(loss: np.ndarray, window: int) -> np.ndarray:
    """The centred running median over `window` points; window 1 changes nothing.

    A median, since a spike is not progress and a mean would carry it on; centred, since a lag would count as
    cost. It leaves a curve that only falls as it is. Only whole windows are taken, so the result is
    `window - 1` points shorter, half of them at each end: a shortened window at the end is either noisy or
    late, and the end decides comparisons.

    Raises:
        InputError: the window is not odd and positive, or is longer than the curve.
    """
    if window < 1 or window % 2 == 0:
        raise must_be("window", "odd and positive", window)
    if window > len(loss):
        raise InputError(f"window {window} is longer than the curve, which has {len(loss)} points")
    return np.median(np.lib.stride_tricks.sliding_window_view(loss, window), axis=-1)


def cost_to_reach(curve: Curve, loss: float, axis: str = "flops") -> float | None:
    """The cost at which the run first reached `loss`, or None if it never did; never extrapolated.

    Between two points the curve is taken to be straight in (log cost, loss); from a point that cost nothing,
    in (cost, loss). Where the first point is already that low its own cost is the answer, which is then an
    upper bound.

    Args:
        curve: the run.
        loss: the loss to reach.
        axis: which cost: "flops", "tokens" or "seconds".

    Raises:
        InputError: an unknown axis, or one that the curve does not have.
    """
    check_name("axis", axis, AXES)
    cost = getattr(curve, axis)
    if cost is None:
        raise InputError(f"the curve has no {axis!r}: its records do not all say it")
    below = np.flatnonzero(curve.loss <= loss)
    if below.size == 0:
        return None
    after = int(below[0])
    if after == 0:
        return float(cost[0])
    return _between(cost[after - 1 : after + 1], curve.loss[after - 1 : after + 1], loss)


def loss_at(curve: Curve, flops: float) -> float | None:
    """The loss at a cost of `flops`, or None where it was not measured; never extrapolated.

    Between two points the curve is taken to be straight in (log FLOPs, loss), as in `cost_to_reach`.

    Args:
        curve: the run.
        flops: the cost, positive.
    """
    measured = curve.flops > 0
    paid, loss = curve.flops[measured], curve.loss[measured]
    if not paid.size or not paid[0] <= flops <= paid[-1]:
        return None
    return float(np.interp(np.log(flops), np.log(paid), loss))


def speedup(grown: Curve, scratch: Curve, loss: float | None = None, window: int = 1) -> Speedup:
    """FLOPs(scratch) / FLOPs(grown) - 1 to reach one loss.

    Without `loss`, they are compared at the worse of the two final losses, which both of them reach, each where
    it first has it. So the run that ends worse is taken at its end, its schedule complete, or before where its
    loss was as low once and rose again; and the better one somewhere in the middle of its own: what learning-rate
    decay does to the end of a curve counts against the better run. A run that is merely short and decayed
    therefore looks fast beside a longer one.

    Args:
        grown: the grown run, from the first step of its smallest model.
        scratch: the run it is measured against.
        loss: the loss to compare at.
        window: points in the running median taken of both curves first (`smooth`).
    """
    grown, scratch = _smoothed(grown, window), _smoothed(scratch, window)
    level = float(max(grown.loss[-1], scratch.loss[-1]) if loss is None else loss)
    for name, run in (("the grown run", grown), ("the scratch run", scratch)):
        problem = _unmeasured(run, level)
        if problem:
            return Speedup(None, None, level, None, None, False, f"{name} {problem}")
    paid, baseline = cost_to_reach(grown, level), cost_to_reach(scratch, level)
    reason = f"loss {level:.4g} took {paid:.3g} FLOPs grown and {baseline:.3g} from scratch"
    return Speedup(baseline / paid - 1, 1 - paid / baseline, level, paid, baseline, True, reason)


def _column(rows: list[Mapping], key: str) -> np.ndarray | None:
    """One field of every record, or None unless all of them have it."""
    values = [row.get(key) for row in rows]
    return None if None in values else np.asarray(values, np.float64)


def _between(cost: np.ndarray, loss: np.ndarray, level: float) -> float:
    """The cost at `level` on the straight line between two points, of which only the second is that low."""
    part = (loss[0] - level) / (loss[0] - loss[1])
    if cost[0] <= 0:
        return float(cost[0] + part * (cost[1] - cost[0]))
    return float(cost[0] * (cost[1] / cost[0]) ** part)


def _smoothed(curve: Curve, window: int) -> Curve:
    """The curve under a running median, every array cut to the points that have a whole window."""
    loss = smooth(curve.loss, window)
    kept = slice(window // 2, window // 2 + len(loss))
    costs = {axis: getattr(curve, axis) for axis in AXES}
    return replace(curve, loss=loss, **{axis: None if c is None else c[kept] for axis, c in costs.items()})


def _unmeasured(curve: Curve, level: float) -> str:
    """Why the cost of a loss is not known from the curve, or nothing."""
    if curve.loss.min() > level:
        return f"never reaches loss {level:.4g}: its lowest is {curve.loss.min():.4g}"
    if curve.loss[0] < level:
        return f"is below loss {level:.4g} from its first measurement on, so what that took is not known"
    if curve.loss[0] == level and curve.flops[0] <= 0:
        return f"has loss {level:.4g} before any training"
    return ""
