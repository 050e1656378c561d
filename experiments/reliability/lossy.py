"""A file system (FUSE) that forgets: what programs see of it, and what a loss of power would leave of that.

What is modelled is the worst that a journalling file system may do:

- The data of a file are on the disk after fsync or fdatasync of it. Of what was written since then nothing may have
  come there, or all, or the new size without the data (zeros), or some of the pages of 4 KiB and any size that the file
  had meanwhile: a write is torn at a page. Data of one file do not wait for those of another, nor for any name.
- Names (of files made, moved or removed, and of folders) come to the disk in the order in which they were changed, in
  one of two ways, of which each loss draws one. "in order", as ext4 and XFS keep them: there is one journal, any fsync
  has all of it on the disk until there, and of the rest a beginning is. A file that was moved to its name without fsync
  is then there and empty. "by folder", all that POSIX promises: fsync of a folder has its own names on the disk, and
  nothing else has; of the rest each folder has a beginning of its own. A rename between folders is in both or in none.
- Not modelled: a disk that lies about fsync, writes torn within a page, times and permissions.

    python lossy.py PLACE LEFT SEED BEGIN MOMENTS

mounts it at PLACE with the content of the folder BEGIN ("-": empty), all on the disk. Before changes of the numbers in
MOMENTS (JSON) and at the end it writes what would be left into LEFT/0, LEFT/1, ..., and what is known of each into
LEFT/0.json. An extended attribute that is set on PLACE is noted there: so a program says what it has promised. SIGTERM
ends it. Needs mfusepy (`pip install mfusepy`) and libfuse 2.
"""

import errno
import json
import os
import random
import stat
import sys
import time
from pathlib import Path
from typing import Any

PAGE = 4096
WAYS = ("in order", "by folder")


class File:
    """The bytes that programs see, and those on the disk."""

    def __init__(self, content: bytes = b""):
        self.data = bytearray(content)
        self.mode, self.time = stat.S_IFREG | 0o644, time.time_ns()
        self.sync()

    def sync(self) -> None:
        """Have all on the disk."""
        self.synced, self.pages, self.sizes = bytes(self.data), set(), [len(self.data)]

    def write(self, data: bytes, offset: int) -> None:
        """Write at an offset, beyond the end too."""
        self.data.extend(bytes(max(0, offset - len(self.data))))
        self.data[offset : offset + len(data)] = data
        self.pages.update(range(offset // PAGE, -(-(offset + len(data)) // PAGE)))
        self._changed()

    def truncate(self, size: int) -> None:
        """Cut, or extend by zeros."""
        self.data = self.data[:size].ljust(size, b"\0")
        self._changed()

    def _changed(self) -> None:
        self.sizes.append(len(self.data))
        self.time = time.time_ns()

    def left(self, draw: random.Random) -> bytes:
        """What may be on the disk."""
        match draw.choice(("synced", "all", "size", "pages", "pages")):
            case "synced":
                return self.synced
            case "all":
                return bytes(self.data)
            case "size":
                pages, size = set(), len(self.data)
            case _:
                pages, size = {page for page in self.pages if draw.random() < 0.5}, draw.choice(self.sizes)
        left = bytearray(self.synced[: min(self.sizes)].ljust(size, b"\0")[:size])  # what was cut off never comes back
        for page in pages:
            here = slice(page * PAGE, min((page + 1) * PAGE, size))
            left[here] = self.data[here].ljust(max(0, here.stop - here.start), b"\0")
        return bytes(left)


class Folder:
    """The names that programs see. `synced`: how many of all changes there were when they were last synced."""

    def __init__(self):
        self.names: dict[str, File | Folder] = {}
        self.mode, self.time, self.synced = stat.S_IFDIR | 0o755, time.time_ns(), 0


Change = list[tuple[Folder, str, File | Folder | None]]  # names that come to mean something else, all at once


class Disk:
    """The operations of the file system, as libfuse calls them.

    Args:
      begin: a folder with its first content; None: it is empty.
      left: gets what losses of power leave.
      moments: numbers of changes before which there is one.
      seed: of what is drawn.
    """

    use_ns = flag_nullpath_ok = flag_nopath = True  # files that are open are known by their handles alone

    def __init__(self, begin: Path | None, left: Path, moments: set[int], seed: int):
        self._left, self._moments, self._seed = left, moments, seed
        self._said, self._done, self._losses = {}, 0, 0
        self._open: dict[int, File | Folder] = {}
        self._changes: list[Change] = []
        self._synced = 0  # how many of them there were at the last fsync of anything
        self._root = _read(begin) if begin else Folder()
        self._first = {folder: dict(folder.names) for folder in _folders(self._root)}

    # --- what is left

    def _count(self, operation: str, path: str | None = None) -> None:
        """Before every operation that changes something."""
        if self._done in self._moments:
            self.lose(f"{operation} {path or ''}".strip())
        self._done += 1

    def lose(self, before: str) -> None:
        """Write what a loss of power would leave now."""
        number, self._losses = self._losses, self._losses + 1
        draw = random.Random(f"{self._seed} {number}")
        way = draw.choice(WAYS)
        names = {folder: dict(of) for folder, of in self._first.items()}
        for number_of_change in sorted(self._in_order(draw) if way == "in order" else self._by_folder(draw)):
            for folder, name, node in self._changes[number_of_change]:
                _put(names.setdefault(folder, {}), name, node)
        _write(self._root, names, draw, self._left / str(number))
        known = {"before": before, "change": self._done, "names": way, "said": self._said}
        (self._left / f"{number}.json").write_text(json.dumps(known))

    def _in_order(self, draw: random.Random) -> set[int]:
        """The changes of names that are on the disk, where there is one journal."""
        return set(range(draw.randint(self._synced, len(self._changes))))

    def _by_folder(self, draw: random.Random) -> set[int]:
        """The changes of names that are on the disk, where each folder is on its own."""
        of_each: dict[Folder, list[int]] = {}
        for number, change in enumerate(self._changes):
            for folder in {folder for folder, _, _ in change}:
                of_each.setdefault(folder, []).append(number)
        kept = set()
        for folder, numbers in of_each.items():
            synced = sum(number < folder.synced for number in numbers)
            kept.update(numbers[: draw.randint(synced, len(numbers))])
        before = set()
        while before != kept:  # with a rename between folders comes what was before it in either
            before = set(kept)
            for number in before:
                for folder in {folder for folder, _, _ in self._changes[number]}:
                    kept.update(other for other in of_each[folder] if other <= number)
        return kept

    # --- names

    def _find(self, path: str) -> File | Folder:
        node = self._root
        for name in filter(None, path.split("/")):
            if not isinstance(node, Folder):
                raise OSError(errno.ENOTDIR, path)
            if name not in node.names:
                raise OSError(errno.ENOENT, path)
            node = node.names[name]
        return node

    def _change(self, *change: tuple[str, File | Folder | None]) -> None:
        """Have paths mean something else, all at once."""
        places = [(self._find(str(Path(path).parent)), Path(path).name, node) for path, node in change]
        for folder, name, node in places:
            _put(folder.names, name, node)
            folder.time = time.time_ns()
        self._changes.append(places)

    def create(self, path: str, mode: int) -> int:
        """Make an empty file, and open it."""
        self._count("create", path)
        file = File()
        file.mode = stat.S_IFREG | (mode & 0o7777)
        self._change((path, file))
        return self._handle(file)

    def mkdir(self, path: str, mode: int) -> None:
        """Make a folder."""
        self._count("mkdir", path)
        self._change((path, Folder()))

    def unlink(self, path: str) -> None:
        """Take a name away; who has the file open still has it."""
        self._count("unlink", path)
        self._change((path, None))

    def rmdir(self, path: str) -> None:
        """Remove an empty folder."""
        if self._find(path).names:
            raise OSError(errno.ENOTEMPTY, path)
        self._count("rmdir", path)
        self._change((path, None))

    def rename(self, old: str, new: str) -> None:
        """Move a file or a folder, in the place of what has the new name."""
        node = self._find(old)
        try:
            replaced = self._find(new)
        except FileNotFoundError:
            replaced = None
        if isinstance(replaced, Folder) and replaced.names:
            raise OSError(errno.ENOTEMPTY, new)
        self._count("rename", new)
        self._change((old, None), (new, node))

    def readdir(self, path: str | None, handle: int) -> list[str]:
        """The names in a folder."""
        return [".", "..", *self._open[handle].names]

    # --- content

    def _handle(self, node: File | Folder) -> int:
        handle = max(self._open, default=0) + 1
        self._open[handle] = node
        return handle

    def open(self, path: str, flags: int) -> int:
        """Open a file; the kernel does what the flags say but for O_TRUNC."""
        node = self._find(path)
        if flags & os.O_TRUNC and node.data:
            self._count("truncate", path)
            node.truncate(0)
        return self._handle(node)

    def opendir(self, path: str) -> int:
        """Open a folder."""
        return self._handle(self._find(path))

    def release(self, path: str | None, handle: int) -> None:
        """Close a file or a folder."""
        del self._open[handle]

    releasedir = release

    def read(self, path: str | None, size: int, offset: int, handle: int) -> bytes:
        """Bytes of a file."""
        return bytes(self._open[handle].data[offset : offset + size])

    def write(self, path: str | None, data: bytes, offset: int, handle: int) -> int:
        """Write bytes; returns how many."""
        self._count("write")
        self._open[handle].write(data, offset)
        return len(data)

    def truncate(self, path: str | None, length: int, handle: int | None = None) -> None:
        """Cut a file, or extend it by zeros."""
        self._count("truncate", path)
        (self._open[handle] if handle else self._find(path)).truncate(length)

    def fsync(self, path: str | None, datasync: int, handle: int) -> None:
        """Have a file on the disk."""
        self._count("fsync")
        self._open[handle].sync()
        self._synced = len(self._changes)

    def fsyncdir(self, path: str | None, datasync: int, handle: int) -> None:
        """Have the names in a folder on the disk."""
        self._count("fsync of a folder")
        self._open[handle].synced = self._synced = len(self._changes)

    # --- the rest

    def getattr(self, path: str | None, handle: int | None = None) -> dict[str, Any]:
        """What stat says."""
        node = self._open[handle] if handle else self._find(path)
        size = len(node.data) if isinstance(node, File) else 0
        times = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), node.time)
        return {"st_mode": node.mode, "st_size": size, "st_nlink": 1, "st_blocks": -(-size // 512)} | times

    def chmod(self, path: str, mode: int) -> None:
        """Set permissions, which a loss forgets."""
        self._find(path).mode = stat.S_IFMT(self._find(path).mode) | (mode & 0o7777)

    def chown(self, path: str, uid: int, gid: int) -> None:
        """Nothing: all is of whoever mounts it."""
        self._find(path)

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> None:
        """Set the time of change."""
        self._find(path).time = times[1] if times else time.time_ns()

    def statfs(self, path: str) -> dict[str, int]:
        """Room: 4 GiB, always."""
        return {"f_bsize": PAGE, "f_frsize": PAGE, "f_blocks": 2**20, "f_bfree": 2**20, "f_bavail": 2**20}

    def setxattr(self, path: str, name: str, value: bytes, options: int, position: int = 0) -> None:
        """Note what a program has promised."""
        self._said = self._said | {name.removeprefix("user."): json.loads(value)}


def _put(names: dict[str, Any], name: str, node: File | Folder | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node


def _folders(folder: Folder) -> list[Folder]:
    return [folder, *(one for node in folder.names.values() if isinstance(node, Folder) for one in _folders(node))]


def _read(place: Path) -> Folder:
    folder = Folder()
    for path in place.iterdir():
        folder.names[path.name] = _read(path) if path.is_dir() else File(path.read_bytes())
    return folder


def _write(folder: Folder, names: dict[Folder, dict[str, Any]], draw: random.Random, place: Path) -> None:
    """Write a folder as it is on the disk."""
    place.mkdir(parents=True)
    for name, node in sorted(names.get(folder, {}).items()):
        if isinstance(node, Folder):
            _write(node, names, draw, place / name)
        else:
            (place / name).write_bytes(node.left(draw))


def main() -> None:
    """Mount it, until SIGTERM comes."""
    os.environ["FUSE_LIBRARY_NAME"] = "fuse"  # libfuse 3 does not say which file is meant that was removed while open
    from mfusepy import FUSE

    place, left, seed, begin, moments = sys.argv[1:]
    disk = Disk(None if begin == "-" else Path(begin), Path(left), set(json.loads(moments)), int(seed))
    kept = dict.fromkeys(("entry_timeout", "attr_timeout"), 3600)  # seconds: nothing changes but by the kernel
    try:
        FUSE(disk, place, foreground=True, nothreads=True, hard_remove=True, **kept)
    except RuntimeError:  # libfuse has said why
        sys.exit(1)
    disk.lose("the end")


if __name__ == "__main__":
    main()
