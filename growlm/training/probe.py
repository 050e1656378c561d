"""Probing growths: each is tried on one state and the same batches, and the loss after a while ranks them."""

import math
import time
from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from growlm.errors import DivergedError
from growlm.models import Params
from growlm.state import TrainState
from growlm.training.goodput import GROW, spending
from growlm.training.growing import grow_into
from growlm.training.loop import Steps, held_out_batches, step_specs, training_batches
from growlm.training.sparsity import emptied
from growlm.training.stages import Cost, Stage
from growlm.training.texts import Text


@spending(GROW)
def probe(
    stage: Stage,
    before: TrainState,
    *,
    text: Text,
    mesh: Mesh,
    say: Callable[[str], None],
    teacher: Params | None = None,
) -> dict[str, Any]:
    """Try the candidates of a stage's growth, one in memory at a time beside the state (LAG, arXiv 2406.02469).

    Each grows the state and is trained for some steps on the stage's first batches with its schedule. The lowest
    validation loss after them wins, of equal ones the first name; a loss that is not finite never does.

    Args:
      stage: with a probe.
      before: the state at the end of the stage before, which is kept.
      text, mesh: the data, and the devices that share the work.
      say: takes a line for people.
      teacher: as in `train_stage`.

    Returns:
      The decision as plain JSON: "chosen", "steps", "flops" of all candidates together, "seconds", and of every
      candidate its growth, "val_loss" at growth and after the steps (None where not finite), "losses" of its steps.

    Raises:
      DivergedError: no candidate has a finite loss after the steps.
    """
    began, candidates = time.perf_counter(), {}
    steps = stage.asked.probe.steps
    for name, candidate in stage.candidates.items():
        growth = candidate.config.growth.resolved
        candidates[name] = {"operator": growth.operator, "options": growth.options} | _try(
            candidate, before, steps, text=text, mesh=mesh, teacher=teacher
        )
        at_growth, after = (f"{loss:.4f}" if loss is not None else "-" for loss in candidates[name]["val_loss"])
        say(f"probe: {name}: validation loss {at_growth} at growth, {after} after {steps} steps")
    finite = {name: one["val_loss"][-1] for name, one in candidates.items() if one["val_loss"][-1] is not None}
    if not finite:
        raise DivergedError(f"no candidate of the probe has a finite validation loss after {steps} steps")
    spent = stage.scored(stage.parent.cost_at(stage.parent.last_step))
    return {
        "chosen": min(finite, key=lambda name: (finite[name], name)),
        "steps": steps,
        "flops": stage.first_cost.flops - spent.flops,
        "candidates": candidates,
        "seconds": time.perf_counter() - began,
    }


def _try(
    candidate: Stage, before: TrainState, steps: int, *, text: Text, mesh: Mesh, teacher: Params | None
) -> dict[str, Any]:
    """Grow a state, and train it on: its losses, and what they cost with the learning of maps."""
    state, _ = grow_into(candidate, before, training_batches(candidate, text, mesh, int(before.examples)), mesh)
    state = emptied(state, candidate.kept(mesh))  # as the stage begins
    compiled = Steps(candidate, state, step_specs(candidate, candidate.first_step), mesh, teacher)
    held_out = held_out_batches(candidate, text, mesh)
    source = training_batches(candidate, text, mesh, int(state.examples))
    validation, losses = [compiled.validate(state, held_out)["val_loss"]], []
    for _ in range(steps):
        state, metrics = compiled.train(state, next(source))
        losses.append(metrics["loss"])
    validation.append(compiled.validate(state, held_out)["val_loss"])
    config, learner = candidate.config, candidate.growth.learner
    tokens = (steps + (learner.steps if learner else 0)) * config.batch * config.length
    cost = Cost().plus(config.model, tokens, config.length, sparsity=config.sparsity)
    return {
        "val_loss": list(map(_finite, validation)),
        "losses": [_finite(float(loss)) for loss in losses],
        "flops": candidate.taught(cost, steps).flops,
    }


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None
