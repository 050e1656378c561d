"""After a power loss: a file has what was synced of it, and a restart ends as if nothing had happened.

What a disk may have left is made at every rename of a run: names as they are then, as a journal keeps their order; of a
file what it had at its last fsync, and half of it or nothing where there was none.
"""

import os
import random
import shutil
import stat
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from growlm.files import make_folder, whole_folder, write_json
from growlm.training.run import train
from growlm.training.saved import read_model

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc, to read what is synced")

RESTARTS = 8
_disks = []  # an audit hook cannot be taken away


class Disk:
    """A folder, what of its files is synced, and copies of what a loss of power would have left of it.

    Attributes:
      unsynced: what got its name before it was on the disk.
      unsynced_names: folders in which something was made or moved, and that were not synced since then.
      hasty: what was removed from one of these.
    """

    def __init__(self, folder: Path, copies: Path, monkeypatch):
        self.folder, self.copies, self.unsynced = folder, copies, []
        self.unsynced_names: set[Path] = set()
        self.hasty: list[Path] = []
        self.made: list[Path] = []
        self._synced, self._draw, self._lock, self._fsync = {}, random.Random(0), threading.RLock(), os.fsync
        monkeypatch.setattr(os, "fsync", self._note)
        _disks[:] = [self]

    def _note(self, descriptor: int) -> None:
        self._fsync(descriptor)
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode):
            self._synced[status.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()
        else:
            self.unsynced_names.discard(Path(f"/proc/self/fd/{descriptor}").readlink())

    def names(self, event: str, path: Path, to: Path) -> None:
        """Before something is made, moved or removed."""
        if event == "os.mkdir" and path.exists():
            return
        if event == "os.rename":
            self.renames(path, ".orbax-checkpoint-tmp/" in str(to))
            moved = {one for one in self.unsynced_names if one.is_relative_to(path)}
            self.unsynced_names = self.unsynced_names - moved | {to / one.relative_to(path) for one in moved}
        if event == "shutil.rmtree":
            self.hasty += [path] if path.parent in self.unsynced_names else []
        else:
            self.unsynced_names.add(to.parent)

    def renames(self, source: Path, unnamed: bool) -> None:
        """Before a rename, which may be within a folder that nobody reads yet."""
        with self._lock:
            files = [path for path in source.rglob("*") if path.is_file()] if source.is_dir() else [source]
            lost = [path for path in files if self._surviving(path) != path.read_bytes()]
            self.unsynced += [] if unnamed else lost
            self.made.append(self.copies / str(len(self.made)))
            for path in self.folder.rglob("*"):
                self._copy(path, self.made[-1] / path.relative_to(self.folder))

    def _copy(self, path: Path, to: Path) -> None:
        try:
            to.parent.mkdir(parents=True, exist_ok=True)
            to.mkdir(exist_ok=True) if path.is_dir() else to.write_bytes(self._surviving(path))
        except FileNotFoundError:  # removed by another thread, as it might have been a moment later
            return

    def _surviving(self, path: Path) -> bytes:
        content, synced = path.read_bytes(), self._synced.get(path.stat().st_ino)
        if synced is not None and content.startswith(synced):  # an inode may be that of a file that was removed
            return synced
        return content[: self._draw.choice((0, len(content) // 2))]


def _audit(event: str, args: tuple) -> None:
    if event in ("os.rename", "os.mkdir", "shutil.rmtree") and _disks:
        path, to = Path(os.fspath(args[0])), Path(os.fspath(args[1 if event == "os.rename" else 0]))
        if path.is_relative_to(_disks[0].folder):
            _disks[0].names(event, path, to)


@pytest.fixture(scope="module")
def hook():
    sys.addaudithook(_audit)
    yield
    _disks.clear()


@pytest.fixture
def disk(hook, tmp_path, monkeypatch):
    yield Disk(tmp_path / "run", tmp_path / "left", monkeypatch)
    _disks.clear()


def test_a_file_is_on_the_disk_before_it_gets_its_name(disk, monkeypatch):
    disk.folder.mkdir()
    write_json(disk.folder / "a.json", {"a": 1})
    write_json(disk.folder / "a.json", {"a": 2})
    assert disk.unsynced == [] and len(disk.made) == 2
    assert (disk.made[1] / "a.json").read_text() == '{\n  "a": 1\n}\n'
    monkeypatch.setattr("growlm.files.sync", lambda path: None)
    write_json(disk.folder / "b.json", {"b": 1})
    assert [path.suffix for path in disk.unsynced] == [".part"]


def test_names_are_on_the_disk_when_what_writes_them_is_done(disk, monkeypatch):
    make_folder(disk.folder / "a" / "b")
    write_json(disk.folder / "a" / "b.json", {"a": 1})
    with whole_folder(disk.folder / "c" / "d") as part:
        write_json(part / "a.json", {"a": 1})
    assert disk.unsynced_names == set()
    monkeypatch.setattr("growlm.files.sync", lambda path: None)
    make_folder(disk.folder / "e")
    write_json(disk.folder / "a" / "b.json", {"a": 1})
    assert disk.unsynced_names == {disk.folder, disk.folder / "a"}


@pytest.mark.slow
def test_what_a_loss_of_power_leaves_of_a_run_is_whole_or_not_there_and_the_run_ends_the_same(disk, tmp_path):
    every = {"checkpoint": {"every_tokens": 2 * tiny.STEP, "max_to_keep": 1}}
    config = tiny.run_config(tiny.write_corpus(tmp_path), tiny.stage(6), tiny.grown(6), **every)
    train(config, disk.folder)
    _disks.clear()
    assert {path.name for path in disk.unsynced} <= {"commit_success.txt", "_CHECKPOINT_METADATA"}  # they say nothing
    assert (disk.unsynced_names, disk.hasty) == (set(), [])
    assert len(disk.made) > RESTARTS
    whole, draw = tiny.timeless(disk.folder), random.Random(0)
    _, params = read_model(disk.folder)
    for left in sorted(draw.sample(disk.made, RESTARTS)):
        kept = [path for _, path in sorted(tiny.checkpoints(left).items())]
        for path in kept:
            tiny.read_checkpoint(path)  # by orbax: what has its name is whole
        train(config, left)
        assert tiny.timeless(left) == whole, left
        assert jax.tree.all(jax.tree.map(np.array_equal, read_model(left)[1], params)), left
        shutil.rmtree(left)
