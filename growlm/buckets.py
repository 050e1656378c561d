"""Places: a path on a local disk, or one in a bucket, gs:// or s3://, and what stands in for what a bucket cannot do.

Objects are put and got whole. They are neither mapped, appended to, renamed nor locked, so:
  location     makes a path of what a user writes; nothing else does
  here         what lies in a bucket as files on a local disk, kept there until it changes in the bucket
  mirrored     a folder of records as a local one, whose changes are brought to the bucket at every `push`
  whole        a folder that is uploaded when it is whole; `UNFINISHED` stands in it until it is
  fetched      such a folder as one on a local disk while it is read; `remove` takes it away
The place of a lock is taken by a lease, see `growlm.leases`. A path in a bucket is an etils.epath.Path; a kind of
bucket is a row of SCHEMES.
"""

import contextlib
import importlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, NamedTuple, Protocol

from growlm.caches import user_cache
from growlm.errors import InputError, must_be


class Scheme(NamedTuple):
    """A kind of bucket.

    Attributes:
      extra, module: what brings the library that reads and writes it: an extra of growlm, and what that installs.
      states: whether orbax writes checkpoints to it. Else they are written on a local disk and uploaded whole.
    """

    extra: str
    module: str
    states: bool


SCHEMES = {"gs": Scheme("gcs", "gcsfs", states=True), "s3": Scheme("s3", "s3fs", states=False)}
UNFINISHED = ".unfinished"  # an object beside what a killed process has uploaded in part
PLACE = "place.txt"  # in the cache, beside a copy: what it is of
LEASE = ".lease"  # an object of growlm.leases, which is no record
# What a copy of a folder is made without. A model's: folders within, and weights in formats that are not read here. A
# tokenizer's, which lies beside a model or token shards: all weights, and shards.
_NOT_READ = "bin|ckpt|gguf|h5|msgpack|onnx|pkl|pt|pth"
OTHER_WEIGHTS = re.compile(rf"/|\.(?:{_NOT_READ})$")
WEIGHTS = re.compile(rf"/|\.(?:{_NOT_READ}|safetensors|idx)$")
_PASSING = re.compile(r"^\..*\.part$|^\.lock$")  # what is being written, and locks
# Of a folder of runs what is large: checkpoints, which orbax reads and writes where they are.
STATES = re.compile(r"(?:^|/)(?:checkpoints|stages)/[^/]+/checkpoints/")


def location(place: str | os.PathLike) -> Path:
    """The path of a file or folder, on a local disk or in a bucket.

    Raises InputError for another scheme, no bucket's name, or an extra that is not installed.
    """
    text = os.fspath(place)
    if isinstance(place, PurePath):  # pathlib makes one slash of two
        text = re.sub(rf"^({'|'.join(SCHEMES)}):/(?!/)", r"\1://", text)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Path(place)
    if scheme not in SCHEMES or not rest.strip("/"):
        raise must_be("a path", f"on a local disk, or {' or '.join(f'{name}://BUCKET/PATH' for name in SCHEMES)}", text)
    from etils import epath

    _library(scheme, text)
    return epath.Path(text)


def is_bucket(path: PurePath) -> bool:
    """Whether a path is in a bucket."""
    return "://" in os.fspath(path)


def absolute(path: Path) -> Path:
    """The path as it is called from any folder. (epath's own `absolute` takes a bucket for a local folder.)"""
    return path if is_bucket(path) else path.absolute()


def local_only(path: Path, what: str) -> Path:
    """The path. Raises InputError where it is in a bucket, for what only a local disk can do."""
    if is_bucket(path):
        raise must_be(what, "on a local disk", os.fspath(path))
    return path


def is_folder(path: Path) -> bool:
    """Whether there is a folder. Raises InputError where a bucket cannot be reached."""
    with reaching(path):
        return path.is_dir()


def uploads_states(folder: Path) -> bool:
    """Whether checkpoints are uploaded whole to a folder, to which orbax does not write itself."""
    return is_bucket(folder) and not SCHEMES[str(folder).partition("://")[0]].states


def check_states(folder: Path, processes: int) -> None:
    """Raises InputError where a job of this many processes cannot write the checkpoints of a folder of runs."""
    if processes > 1 and uploads_states(folder):  # each has a part of every checkpoint on its own disk
        kinds = " or ".join(f"{name}://" for name, scheme in SCHEMES.items() if scheme.states)
        where = f"on a disk that they share or at {kinds}"
        raise must_be(f"the folder of a run of {processes} processes", where, str(folder))


def here(place: str | os.PathLike, without: re.Pattern | None = None) -> Path:
    """The path of a file or folder on a local disk: what lies in a bucket is copied to the user's cache.

    Files that did not change in the bucket since are not copied again. Nothing is there where the bucket has nothing.

    Args:
      place: as `location` takes it.
      without: relative paths that are left out.

    Raises:
      InputError: as `location`; a bucket that cannot be reached, a folder that was not uploaded whole.
    """
    path = location(place)
    if not is_bucket(path):
        return path
    with _kept(path) as (folder, state):
        copy = _Copy(path, folder, without, state)
        copy.pull()
    return folder


def origin(path: Path) -> str:
    """The place in a bucket that `here` copied to this path; of any other path, what it is called from any folder."""
    kept = path.parent / PLACE
    is_copy = path.parent.parent == user_cache("buckets") and kept.is_file()
    return kept.read_text(encoding="utf-8") if is_copy else str(absolute(path))


def with_origins(text: str) -> str:
    """A text with the places in buckets where it names the copies that `here` made of them."""
    for holder in {*re.findall(re.escape(str(user_cache("buckets"))) + "/[0-9a-f]{16}", text)}:
        with contextlib.suppress(OSError):
            place = Path(holder, PLACE).read_text(encoding="utf-8")
            text = text.replace(f"{holder}/{PurePath(place).name}", place)
    return text


def sizes(folder: Path) -> list[tuple[str, int]]:
    """The relative paths of the files in a folder, sorted, and their bytes."""
    if is_bucket(folder):
        return sorted((name, size) for name, (size, _) in _listing(folder).items())
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted((path.relative_to(folder).as_posix(), path.stat().st_size) for path in files)


def holds_something(folder: Path) -> bool:
    """Whether a folder of a bucket has objects, other than what a killed process uploaded in part."""
    found = _listing(folder)
    return bool(found) and UNFINISHED not in found


class Mirror(Protocol):
    """A folder of records and the local folder in which they are read and written."""

    @property
    def folder(self) -> Path:
        """The local folder."""
        ...

    def push(self) -> None:
        """Brings what changed in the local folder to where it belongs."""


class _Itself:
    """A local folder, which needs no other."""

    def __init__(self, folder: Path):
        self.folder = folder

    def push(self) -> None:
        """Nothing: what is written is there."""


@contextlib.contextmanager
def mirrored(place: Path, without: re.Pattern | None = STATES) -> Iterator[Mirror]:
    """A folder as one on a local disk for as long as it is used: itself, or a copy of a bucket's.

    Args:
      place: the folder.
      without: relative paths that stay in the bucket alone.

    Raises:
      InputError: the bucket cannot be reached.
    """
    if not is_bucket(place):
        yield _Itself(place)
        return
    with scratch() as folder:
        copy = _Copy(place, folder / place.name, without)
        copy.pull()
        try:
            yield copy
        finally:
            copy.push()


@contextlib.contextmanager
def whole(output: Path) -> Iterator[Path]:
    """A local folder that is uploaded as a folder of a bucket, unless what is done within fails."""
    with scratch() as folder:
        part = folder / output.name
        part.mkdir()
        yield part
        upload(part, output)


@contextlib.contextmanager
def fetched(place: Path) -> Iterator[Path]:
    """A folder of a bucket, copied to the disk of temporary files while it is read. Raises InputError unless whole."""
    with scratch() as folder:
        copy = _Copy(place, folder / place.name)
        copy.pull()
        if not copy.folder.exists():
            raise InputError(f"{place} is not there")
        yield copy.folder


def whole_folders(folder: Path) -> set[str]:
    """The names of the folders in a folder of a bucket that were uploaded whole, and that nothing removes."""
    return {name for name, whole in _folders(folder).items() if whole}


def clear_unfinished(folder: Path) -> None:
    """Removes of a folder of a bucket what killed processes had uploaded, or had left to remove, of folders in it."""
    for name, is_whole in _folders(folder).items():
        if not is_whole:
            remove(folder / name)


def remove(folder: Path) -> None:
    """Removes a folder of a bucket, which is not taken for whole from the first moment on."""
    fs, marker = file_system(folder), f"{folder}/{UNFINISHED}"
    with reaching(folder):
        fs.pipe_file(marker, b"")
        if others := [f"{folder}/{name}" for name in _listing(folder) if name != UNFINISHED]:
            fs.rm(others)
        fs.rm_file(marker)


def _folders(folder: Path) -> dict[str, bool]:
    """The folders in a folder of a bucket by name, and whether each is whole."""
    found = _listing(folder)
    names = {path.partition("/")[0] for path in found if "/" in path}
    return {name: f"{name}/{UNFINISHED}" not in found for name in names}


def upload(folder: Path, output: Path) -> None:
    """Uploads a local folder, which is taken for whole when it is."""
    _Copy(output, folder).push_whole()


@contextlib.contextmanager
def resumable(output: Path) -> Iterator[Path]:
    """A folder that is written in several goes: itself, or a local one that is uploaded once it is whole.

    The local one is kept, so that on this machine the next go begins where the last one ended, and `here` finds it.
    """
    if not is_bucket(output):
        yield output
        return
    with _kept(output) as (folder, state):
        copy = _Copy(output, folder, state=state)
        if there := holds_something(output):
            copy.pull()
        elif not _listing(output):
            copy.forget()
        yield folder
        if not there:
            copy.push_whole()


class _Copy:
    """A file or folder of a bucket and its local copy.

    state: a file that remembers, from process to process, which files are the same on both sides.
    """

    def __init__(self, place: Path, folder: Path, without: re.Pattern | None = None, state: Path | None = None):
        self.folder = folder
        self._place, self._without, self._state, self._fs = place, without, state, file_system(place)
        # Relative path -> what the bucket said of it, and the local file's bytes and time, when both were the same.
        self._same: dict[str, tuple[str, int, int]] = {}
        if state is not None and state.exists():
            with contextlib.suppress(ValueError):
                self._same = {name: tuple(seen) for name, seen in json.loads(state.read_text(encoding="utf-8")).items()}

    def pull(self) -> None:
        """Makes the local copy what is in the bucket: what differs is fetched, what is not there removed."""
        there = self._listing()
        if UNFINISHED in there:
            raise InputError(f"{self._place} is not whole: what wrote it was stopped, and the same command goes on")
        changed = [name for name, (_, tag) in there.items() if self._same.get(name) != (tag, *_stamp(self._at(name)))]
        for name in self._files().keys() - there.keys():
            self._at(name).unlink()
        for name in changed:
            self._at(name).parent.mkdir(parents=True, exist_ok=True)
        if changed:
            with reaching(self._place):
                self._fs.get([self._url(name) for name in changed], [str(self._at(name)) for name in changed])
        self._remember({name: (tag, *_stamp(self._at(name))) for name, (_, tag) in there.items()})

    def forget(self) -> None:
        """Removes a local copy of what was in the bucket once, and is there no more."""
        if self._same:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._remember({})

    def push(self) -> None:
        """Makes the bucket what the local copy is."""
        files = self._files()
        changed = [name for name, stamp in files.items() if self._same.get(name, ("", 0, 0))[1:] != stamp]
        gone = [name for name in self._same if name not in files and not self._left_out(name)]
        with reaching(self._place):
            if changed:
                self._fs.put([str(self._at(name)) for name in changed], [self._url(name) for name in changed])
            if gone:
                self._fs.rm([self._url(name) for name in gone])
        self._remember({name: (self._same[name][0] if name not in changed else "", *files[name]) for name in files})

    def push_whole(self) -> None:
        """Uploads a folder, which is taken for whole when it is. Raises InputError where one is there already."""
        if holds_something(self._place):
            raise InputError(f"output must be a new or empty folder, got {self._place}, which is not empty")
        marker = self._url(UNFINISHED)
        with reaching(self._place):
            self._fs.pipe_file(marker, b"")
            if left := [name for name in self._listing() if name != UNFINISHED]:
                self._fs.rm([self._url(name) for name in left])
        self._same = {}
        self.push()
        with reaching(self._place):
            self._fs.rm_file(marker)
        there = self._listing()
        self._remember({name: (there[name][1], *stamp) for name, stamp in self._files().items()})

    def _listing(self) -> dict[str, tuple[int, str]]:
        found = _listing(self._place)
        return {name: seen for name, seen in found.items() if name != LEASE and not self._left_out(name)}

    def _left_out(self, name: str) -> bool:
        return self._without is not None and self._without.search(name) is not None

    def _files(self) -> dict[str, tuple[int, int]]:
        """The local files that are copied, with bytes and time; neither locks nor what is being written."""
        if self.folder.is_file():
            return {"": _stamp(self.folder)}
        paths = {path.relative_to(self.folder): path for path in self.folder.rglob("*") if path.is_file()}
        paths = {name: path for name, path in paths.items() if not any(map(_PASSING.search, name.parts))}
        return {name.as_posix(): _stamp(path) for name, path in paths.items() if not self._left_out(name.as_posix())}

    def _at(self, name: str) -> Path:
        return self.folder / name if name else self.folder

    def _url(self, name: str) -> str:
        return f"{self._place}/{name}" if name else str(self._place)

    def _remember(self, same: dict[str, tuple[str, int, int]]) -> None:
        self._same = {name: seen for name, seen in self._same.items() if self._left_out(name)} | same
        if self._state is not None:
            self._state.write_text(json.dumps(same), encoding="utf-8")


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder on the disk of temporary files. What killed processes have left of theirs is removed first."""
    import tempfile  # here and below: --help is quick

    from filelock import FileLock, Timeout

    for left in Path(tempfile.gettempdir()).glob("growlm-*/.lock"):
        with contextlib.suppress(OSError, Timeout), FileLock(left, timeout=0):
            shutil.rmtree(left.parent, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=".growlm-"))
    with FileLock(made / ".lock"):
        folder = made.rename(made.with_name(made.name.lstrip(".")))  # not before it is locked
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _stamp(path: Path) -> tuple[int, int]:
    """Bytes and time of a file; nothing like them where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


@contextlib.contextmanager
def _kept(path: Path) -> Iterator[tuple[Path, Path]]:
    """Where a bucket's file or folder is kept on a local disk, and what is remembered of it; one process at a time."""
    import hashlib

    from filelock import FileLock

    holder = user_cache("buckets") / hashlib.sha256(str(path).encode()).hexdigest()[:16]
    holder.mkdir(parents=True, exist_ok=True)
    (holder / PLACE).write_text(str(path), encoding="utf-8")
    with FileLock(holder / ".lock"):
        yield holder / path.name, holder / "state.json"


def _listing(place: Path) -> dict[str, tuple[int, str]]:
    """Of a file or folder in a bucket: relative path ("" of a file) -> bytes, and what changes when the object does.

    Raises InputError where the bucket cannot be reached, or an object's name leads out of the folder.
    """
    fs = file_system(place)
    with reaching(place):
        fs.invalidate_cache()
        try:
            found = fs.find(str(place), detail=True)
        except FileNotFoundError:  # not even the bucket
            found = {}
    root, listing = fs._strip_protocol(str(place)), {}
    for key, info in found.items():
        name = key[len(root) :].lstrip("/") if key.startswith(root) else key
        if info.get("type") == "directory" or key.endswith("/"):
            continue
        if ".." in PurePath(name).parts:
            raise InputError(f"{place} must hold files of that folder, got {name}")
        tag = next((str(info[kind]) for kind in ("generation", "ETag", "etag", "created") if info.get(kind)), "")
        listing[name] = info["size"], f"{info['size']} {tag}"
    return listing


def file_system(path: Path) -> Any:
    """fsspec's file system of a bucket, which keeps no listings: orbax and other processes write too."""
    import fsspec

    text = str(path)
    scheme = text.partition("://")[0]
    _library(scheme, text)
    return fsspec.filesystem(scheme, use_listings_cache=False)


def _library(scheme: str, text: str) -> None:
    extra, module, _ = SCHEMES[scheme]
    try:
        importlib.import_module(module)
    except ImportError:
        raise InputError(f"{text} needs the library {module}: pip install growlm[{extra}]") from None
    # Its tracebacks are printed only where somebody has asked for logs: `reaching` says in a line what went wrong.
    log = logging.getLogger(module)
    if not log.handlers:
        log.addHandler(logging.NullHandler())


@contextlib.contextmanager
def reaching(place: Path) -> Iterator[None]:
    """Says in one line what the library of a bucket raises, each its own."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{place} cannot be reached: {lines[0][:200]}") from error
