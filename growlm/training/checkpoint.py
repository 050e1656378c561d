"""Checkpoints of the whole state by orbax, asynchronous, restored at exactly the stored shapes and dtypes."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, CustomSteps, LatestN
from orbax.checkpoint.utils import checkpoint_steps

from growlm.errors import check_range, must_be
from growlm.models import path_of
from growlm.state import TrainState


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """How often a stage is saved.

    Attributes:
      every_tokens: tokens of training between checkpoints; 0: only where a run leaves the stage.
      max_to_keep: checkpoints that stay, the last ones, beside those where runs leave the stage.
    """

    every_tokens: int = 0
    max_to_keep: int = 2

    def __post_init__(self):
        check_range("checkpoint.every_tokens", self.every_tokens, low=0)
        check_range("checkpoint.max_to_keep", self.max_to_keep, low=1)


def stored_steps(folder: Path) -> list[int]:
    """The steps of the whole checkpoints in a folder, which another process may be writing to; none without one."""
    return sorted(checkpoint_steps(folder))


class Checkpoints:
    """The checkpoints of one stage, by step. `keep_steps`, where runs leave the stage, are kept for ever."""

    def __init__(self, folder: Path, max_to_keep: int, keep_steps: Iterable[int] = ()):
        policy = AnyPreservationPolicy([LatestN(max_to_keep), CustomSteps(sorted(set(keep_steps)))])
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, cleanup_tmp_directories=True)
        handler = ocp.StandardCheckpointHandler()  # named, or a manager that has not saved yet reads no metadata
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options, item_handlers=handler)

    def steps(self) -> list[int]:
        """The steps of the whole checkpoints."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState) -> None:
        """Start to write a checkpoint; nothing is written where the step is there already."""
        step = int(state.step)
        if step not in self.steps():
            # force: a stage of a sweep may be trained again from an earlier step than its last
            self._manager.save(step, args=ocp.args.StandardSave(_held(_to_tree(state))), force=True)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state at a step. `like` gives the structure, shapes and dtypes (arrays or jax.ShapeDtypeStruct)."""
        whole = jax.tree.map(_abstract, _to_tree(like))
        expected = _held(whole)
        self._check_stored(step, expected)
        stored = self._manager.restore(step, args=ocp.args.StandardRestore(expected))
        return _from_tree(jax.tree.map(_or_empty, stored, whole, is_leaf=lambda leaf: leaf is None), like)

    def wait(self) -> None:
        """Returns once everything saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, and free the writer's threads."""
        self._manager.close()

    def _check_stored(self, step: int, expected: dict[str, Any]) -> None:
        """Orbax casts dtypes without a word and may pad shapes: what is stored must be what is expected."""
        stored = self._manager.item_metadata(step)
        have = {path_of(p): (tuple(x.shape), x.dtype) for p, x in jax.tree_util.tree_leaves_with_path(stored)}
        want = {path_of(p): (x.shape, x.dtype) for p, x in jax.tree_util.tree_leaves_with_path(expected)}
        for path in sorted(want.keys() | have.keys(), key=lambda path: (not path.startswith("params/"), path)):
            if have.get(path) != want.get(path):
                raise must_be(
                    f"{path} of checkpoint {self._manager.directory}/{step}", str(want.get(path)), have.get(path)
                )


def _to_tree(state: TrainState) -> dict[str, Any]:
    """Plain arrays under plain names; a key is stored as its data, and nothing of axes that the model does without."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    tree = {name: value for name, value in fields.items() if value is not None}
    held = {name: said for name, said in state.provenance.items() if said.size}  # orbax refuses empty arrays
    return tree | {"key": _key_data(state.key), "provenance": held}


def _held(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree without its empty arrays, those of the blocks of a model without layers, which orbax refuses."""
    return jax.tree.map(lambda leaf: leaf if leaf.size else None, tree)


def _or_empty(stored: Any, like: jax.ShapeDtypeStruct | None) -> Any:
    missing = stored is None and like is not None  # an optimizer's state may have None for what it does without
    return jnp.zeros(like.shape, like.dtype, device=like.sharding) if missing else stored


def _key_data(key: Any) -> Any:
    if isinstance(key, jax.Array):
        return jax.random.key_data(key)
    data = jax.eval_shape(jax.random.key_data, key)
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=key.sharding)


def _from_tree(tree: dict[str, Any], like: TrainState) -> TrainState:
    counters = {name: tree[name][()] for name in ("step", "tokens", "examples")}
    empty = {name: np.zeros(said.shape, said.dtype) for name, said in like.provenance.items() if not said.size}
    provenance = {name: (tree["provenance"] | empty)[name] for name in like.provenance}
    return TrainState(**tree | counters | {"key": jax.random.wrap_key_data(tree["key"]), "provenance": provenance})


def _abstract(leaf: Any) -> Any:
    """What to restore: arrays to where `like` has them, or else to the first device; counters as they are."""
    if isinstance(leaf, np.generic | np.ndarray):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
