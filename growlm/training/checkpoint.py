"""Checkpoints of the whole state by orbax, asynchronous, restored at exactly the stored shapes and dtypes.

The checksums of its files are part of a checkpoint, and are checked before it is restored. To a bucket that orbax does
not write, a checkpoint is uploaded whole: it is not there before its last object is.
"""

import contextlib
import dataclasses
import errno
import logging
import os
import sys
import time
import types
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, CustomSteps, LatestN
from orbax.checkpoint.utils import checkpoint_steps

from growlm.buckets import (
    absolute,
    clear_unfinished,
    fetched,
    is_bucket,
    remove,
    scratch,
    upload,
    uploads_states,
    whole_folders,
)
from growlm.checked import DamagedError, check_files, write_checksums
from growlm.errors import InputError, check_range, must_be
from growlm.files import make_folder, sync, sync_all
from growlm.models import path_of
from growlm.state import TrainState
from growlm.training.goodput import SAVE, spending
from growlm.training.processes import broadcast, broadcast_json, is_first

# Orbax measures its timeouts by the time of day in these: where that is set while a checkpoint is written, it fails.
for _name in ("future", "signaling_client"):
    if (_module := sys.modules.get(f"orbax.checkpoint._src.futures.{_name}")) is not None:
        vars(_module)["time"] = types.SimpleNamespace(**vars(time) | {"time": time.monotonic})

# What a system says of a disk that takes no more, in pages of an error.
FULL = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)))
ITEM = "default"  # the folder that orbax has in that of a step


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
    if uploads_states(folder):
        return sorted(int(name) for name in whole_folders(folder) if name.isdecimal())
    return sorted(checkpoint_steps(folder))


@contextlib.contextmanager
def _readable(folder: Path, step: int) -> Iterator[Path]:
    """A folder of checkpoints from which orbax can read that of a step."""
    if not uploads_states(folder):
        yield folder
        return
    with fetched(folder / str(step)) as local:
        yield local.parent


def check_whole(folder: Path, step: int) -> None:
    """Raises DamagedError where a file of a checkpoint is not as it was written."""
    with _readable(folder, step) as readable:
        check_files(readable / str(step) / ITEM)


def newest_whole(folder: Path, steps: Iterable[int], say: Callable[[str], None] = lambda text: None) -> int:
    """The last of these steps whose checkpoint is undamaged; -1 without one. Damage is said.

    Of several processes the first one reads the files.
    """
    newest = -1
    for step in sorted(steps, reverse=True) if is_first() else ():
        try:
            check_whole(folder, step)
        except DamagedError as error:
            say(f"the checkpoint of step {step:,} is left out: {error}")
        else:
            newest = step
            break
    return broadcast(newest)


class _Handler(ocp.StandardCheckpointHandler):
    """Writes checksums when all else of a checkpoint is written, before it gets its name.

    A bucket has its own of every object, and what is written would have to be read again.
    """

    def finalize(self, directory: Any) -> None:
        super().finalize(directory)
        if is_first() and not is_bucket(directory):
            write_checksums(directory)


class _SyncedPath(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """A checkpoint that is on the disk before it gets its name, and has it there before an older one is removed."""

    async def finalize(self) -> None:
        final = Path(self.get_final())
        if final.name == ITEM:  # it comes to the disk with all of its step
            await super().finalize()
            return
        sync_all(Path(self.get()))
        await super().finalize()
        for path in filter(Path.is_file, final.iterdir()):  # what orbax has added says nothing, and is read
            sync(path)
        sync(final.parent)


# Orbax finds a handler by the class of its arguments.
@ocp.args.register_with_handler(_Handler, for_save=True)
@dataclasses.dataclass
class _Save(ocp.args.StandardSave):
    pass


@ocp.args.register_with_handler(_Handler, for_restore=True)
@dataclasses.dataclass
class _Restore(ocp.args.StandardRestore):
    pass


def quiet_writers() -> None:
    """What orbax and tensorstore print themselves of an error of writing, hundreds of lines, is not printed.

    The error itself is raised, see `Checkpoints.save`. For a process of its own: hooks of the interpreter are set.
    """
    logging.getLogger("absl").addFilter(lambda record: "_SignalingThread" not in record.getMessage())
    hook = sys.unraisablehook
    closed = "Event loop is closed"  # of the writes that were under way when another failed
    sys.unraisablehook = lambda said: None if closed in str(said.exc_value) else hook(said)


def _manager(folder: Path, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
    # The handler is named, or a manager that has not saved yet reads no metadata.
    return ocp.CheckpointManager(absolute(folder), options=options, item_handlers=_Handler())


def restore_checkpoint(folder: Path, step: int, like: TrainState, checked: bool = False) -> TrainState:
    """The state at a step, of a stage that may be training at this moment and is not disturbed.

    Args:
      folder: a stage's checkpoints.
      step: of one that is there.
      like: gives the structure, shapes and dtypes (arrays or jax.ShapeDtypeStruct).
      checked: whether its files were checked already.

    Raises InputError; DamagedError where a file is not as it was written.
    """
    if not checked and newest_whole(folder, [step]) < 0:
        check_whole(folder, step)
    whole = jax.tree.map(_abstract, _to_tree(like))
    expected, place = _held(whole), folder / str(step)
    options = ocp.CheckpointManagerOptions(create=False)  # read_only=True warns three times
    with _readable(folder, step) as readable, contextlib.closing(_manager(readable, options)) as manager:
        try:
            _check_stored(place, manager.item_metadata(step), expected)
            stored = manager.restore(step, args=_Restore(expected))
        except InputError:
            raise
        except (ValueError, OSError, KeyError, TypeError) as error:  # of what was written without checksums
            reason = " ".join(str(error).split())[:200]
            raise DamagedError(f"checkpoint {place} cannot be read: {reason}") from None
    return _from_tree(jax.tree.map(_or_empty, stored, whole, is_leaf=lambda leaf: leaf is None), like)


def _check_stored(place: Path, stored: Any, expected: dict[str, Any]) -> None:
    """Orbax casts dtypes without a word and may pad shapes: what is stored must be what is expected."""
    have = {path_of(p): (tuple(x.shape), x.dtype) for p, x in jax.tree_util.tree_leaves_with_path(stored)}
    want = {path_of(p): (x.shape, x.dtype) for p, x in jax.tree_util.tree_leaves_with_path(expected)}
    for path in sorted(want.keys() | have.keys(), key=lambda path: (not path.startswith("params/"), path)):
        if have.get(path) != want.get(path):
            raise must_be(f"{path} of checkpoint {place}", str(want.get(path)), have.get(path))
    for p, x in jax.tree_util.tree_leaves_with_path(stored):  # a chunk is unpacked whole, whatever is read of it
        chunk = getattr(x.storage, "chunk_shape", None) or ()
        if any(size > most for size, most in zip(chunk, x.shape, strict=False)):
            raise must_be(f"a chunk of {path_of(p)} of checkpoint {place}", f"at most {x.shape}", tuple(chunk))


class Checkpoints:
    """The checkpoints of one stage, by step. `keep_steps`, where runs leave the stage, are kept for ever."""

    _whole = -1  # a step whose files were checked already

    def __init__(self, folder: Path, max_to_keep: int, keep_steps: Iterable[int] = ()):
        self._folder = folder
        policy = AnyPreservationPolicy([LatestN(max_to_keep), CustomSteps(sorted(set(keep_steps)))])
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            cleanup_tmp_directories=True,
            temporary_path_class=None if is_bucket(folder) else _SyncedPath,
        )
        if not is_bucket(folder):
            make_folder(folder)
        self._manager = _manager(folder, options)

    def steps(self) -> list[int]:
        """The steps of the whole checkpoints."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState) -> None:
        """Start to write a checkpoint; nothing is written where the step is there already."""
        with self._named_errors():
            if (step := int(state.step)) not in self.steps():
                self._write(step, state)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state at a step, see `restore_checkpoint`."""
        return restore_checkpoint(self._folder, step, like, checked=step == self._whole)

    def newest(self, steps: Iterable[int], say: Callable[[str], None], whole: int = -1) -> int:
        """The last of these steps whose checkpoint is undamaged, or -1. Later ones are removed, to be written again.

        whole: a step whose files were found undamaged; where it is one of these, no earlier one is read.
        """
        steps = broadcast_json(sorted(steps))
        self._whole = whole if whole in steps else -1
        later = [step for step in steps if step > self._whole]
        self._whole = max(self._whole, newest_whole(self._folder, later, say))
        for damaged in [step for step in later if step > self._whole]:
            self._delete(damaged)
        return self._whole

    def wait(self) -> None:
        """Returns once everything saved is where it belongs."""
        with self._named_errors():
            self._finish()

    def close(self) -> None:
        """Wait, and free the writer's threads."""
        with self._named_errors():
            self._manager.close()

    def _write(self, step: int, state: TrainState) -> None:
        # force: a stage of a sweep may be trained again from an earlier step than its last
        self._manager.save(step, args=_Save(_held(_to_tree(state))), force=True)

    def _delete(self, step: int) -> None:
        self._manager.delete(step)

    def _finish(self) -> None:
        self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Turn an error of writing, which the threads of orbax have met, into one line that names the folder."""
        try:
            with spending(SAVE):
                yield
        except (ValueError, OSError) as error:
            reason = next((text for text in FULL if text in str(error)), None) or " ".join(str(error).split())[:200]
            more = "where that is mended the same command goes on from the last checkpoint"
            raise InputError(f"cannot write a checkpoint in {self._folder}: {reason}; {more}") from None


class UploadedCheckpoints(Checkpoints):
    """The checkpoints of one stage in a bucket that orbax does not write.

    Each is written on the disk of temporary files and uploaded, while training goes on; then older ones are removed.
    """

    def __init__(self, folder: Path, max_to_keep: int, keep_steps: Iterable[int] = ()):
        self._most, self._branch_steps = max_to_keep, set(keep_steps)
        self._stack, self._upload = contextlib.ExitStack(), Future()
        self._upload.set_result(None)
        with self._stack:
            clear_unfinished(folder)
            self._local = self._stack.enter_context(scratch()) / folder.name
            self._thread = self._stack.enter_context(ThreadPoolExecutor(1))
            super().__init__(self._local, max_to_keep=1)
            self._stack = self._stack.pop_all()
        self._folder = folder

    def steps(self) -> list[int]:
        """The steps of the whole checkpoints."""
        return stored_steps(self._folder)

    def close(self) -> None:
        """Wait, and remove what is on the local disk."""
        with self._stack:
            try:
                self.wait()
            finally:
                super().close()

    def _write(self, step: int, state: TrainState) -> None:
        self._finish()  # the one before is on the disk until it is uploaded
        super()._write(step, state)
        self._upload = self._thread.submit(self._bring, step)

    def _bring(self, step: int) -> None:
        """Upload a checkpoint once it is written, and remove those that it replaces."""
        super()._finish()
        upload(self._local / str(step), self._folder / str(step))
        until_here = [one for one in self.steps() if one <= step]
        for old in set(until_here[: -self._most]) - self._branch_steps:
            self._delete(old)

    def _delete(self, step: int) -> None:
        remove(self._folder / str(step))

    def _finish(self) -> None:
        self._upload.result()


def open_checkpoints(folder: Path, max_to_keep: int, keep_steps: Iterable[int] = ()) -> Checkpoints:
    """The checkpoints of a stage, to be written too, as `Checkpoints`."""
    kind = UploadedCheckpoints if uploads_states(folder) else Checkpoints
    return kind(folder, max_to_keep, keep_steps)


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
