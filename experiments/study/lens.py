"""How deep is a grown model? The loss with the first layers alone: final norm and head read the stream after each.

    python experiments/study/lens.py --runs=runs/operators/cpu-0 --output=lens.json

The logit lens (nostalgebraist, 2020) on the runs of a sweep at their ends, on the batches of their validation. The
share of a layer is how much of the loss, from no layer to all of them, it takes away; depth is the mean place of a
layer, weighed by its share: 1 where the first one does everything, and 4.5 where each of 8 does as much.

Seconds a run on one core; checkpoints of the runs are needed, so a run that was archived cannot be asked.

What is expected: stacking repeats layers, and copies that still act as the first ones did leave the stream unread until
the last block; so a stacked model should be deeper by this measure than the same model from scratch, as its last layers
are the only ones that were made to be read by the head (arXiv 2512.08819 has grown models use their depth more). Layers
that began as identities should do less than others in their place.

Result: the runs of operators.py at :small, three seeds. The reverse: depth 1.5 to 1.9 of models grown in depth, 2.2 to
2.6 from scratch, 2.0 to 3.1 grown in width. Of zero in depth, whose layers 2 to 4 began as identities, these do
little and the second old layer, the fifth, does most of the rest.
"""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np

from growlm import files
from growlm.data import load_corpus, validation_batches
from growlm.errors import InputError
from growlm.models import DecoderConfig, Params, next_token_loss, with_depth
from growlm.training.saved import find_saved, read_state
from growlm.training.step import cut


def losses_by_depth(config: DecoderConfig, params: Params, rows_CBS: np.ndarray) -> list[float]:
    """Validation losses with the first 0, 1, ... and all layers, in nats a token; rows of C batches, S tokens each."""
    found = []
    for depth in range(config.depth + 1):
        loss = jax.jit(partial(next_token_loss, with_depth(config, depth)))
        part = cut(config.architecture, params, slice(depth))
        found.append(float(np.mean([loss(part, rows_BS) for rows_BS in rows_CBS])))
    return found


def of_run(folder: Path) -> list[float]:
    """`losses_by_depth` of a run's last checkpoint, on its own validation batches."""
    saved = find_saved(folder)
    stage = saved.stage
    if stage is None or not isinstance(stage.validated_on, str):
        raise InputError(f"a run must be validated on one corpus, got {folder}")
    batch, length = stage.held_out
    validation = load_corpus(stage.validated_on).validation
    rows_CBS = validation_batches(validation, count=stage.evaluation.batches, batch=batch, length=length)
    return losses_by_depth(saved.model, read_state(saved).params, rows_CBS)


def depth(losses: Sequence[float]) -> float:
    """The mean place of a layer, 1 for the first, weighed by what it takes away of the loss; it may lie beyond."""
    taken = -np.diff(losses)
    return float(taken @ np.arange(1, len(losses)) / taken.sum())


def main() -> None:
    """Asks the runs of a sweep, keeps what they say and prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, metavar="DIR", help="a sweep of one seed, with checkpoints")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="where it goes, as JSON")
    given = parser.parse_args()
    sweep = json.loads((given.runs / "sweep.json").read_text(encoding="utf-8"))
    found = {}
    for name, run in sweep["runs"].items():
        if "@" not in name and run["status"] == "done":  # the tries of a search aside
            losses = of_run(given.runs / name)
            found[name] = {"depth": depth(losses), "losses": losses}
            print(f"lens: {name}: depth {depth(losses):.1f}: {' '.join(f'{loss:.3f}' for loss in losses)}", flush=True)
    files.write_json(given.output, found)


if __name__ == "__main__":
    main()
