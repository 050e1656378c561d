"""Compiled programs: made once, ahead of need where there is time, and cached on disk for the next process."""

import contextlib
import os
import zlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from jax._src import compilation_cache as jax_cache  # has no public place to check what it reads
from jax.experimental.compilation_cache import compilation_cache

from growlm.caches import user_cache
from growlm.training.goodput import COMPILE, spending

MAX_PROGRAMS = 64  # each holds memory maps, and a process may have 65,530
CACHE_BYTES = 2 * 10**9
CACHED_SECONDS = 0.1  # of compiling, from which on a program is cached: by JAX's one second few of a start's would be

_programs: OrderedDict[Hashable, Future] = OrderedDict()
_background = ThreadPoolExecutor(1, thread_name_prefix="compile")


class Compiled:
    """A decorator of what builds a program: each is built once for its arguments, and kept.

    key: of the arguments, where these cannot be hashed.
    """

    def __init__(self, build: Callable[..., Any], key: Callable[..., Hashable] = lambda *of: of):
        self._build, self._key = build, key

    def __call__(self, *of: Any) -> Any:
        """The program, built now unless it is there; where it is being built it is waited for."""
        with spending(COMPILE):
            if (key := (self, self._key(*of))) not in _programs:
                future: Future = Future()
                future.set_result(self._build(*of))
                _store(key, future)
            return _programs[key].result()

    def ahead(self, *of: Any) -> None:
        """Begin to build the program in the background, unless it is there."""
        if (key := (self, self._key(*of))) not in _programs:
            _store(key, _background.submit(self._build, *of))

    def is_ready(self, *of: Any) -> bool:
        """Whether the program is there: it need neither be built nor waited for."""
        key = self, self._key(*of)
        return key in _programs and _programs[key].done()


def compiling() -> bool:
    """Whether a program is being built in the background: an ordinary exit would wait for it."""
    return not all(future.done() for future in _programs.values())


def forget_programs() -> None:
    """Drop all programs."""
    _programs.clear()


def _store(key: Hashable, future: Future) -> None:
    _programs[key] = future
    while len(_programs) > MAX_PROGRAMS:
        _programs.popitem(last=False)


def bytes_needed(program: Any) -> int:
    """Bytes of a compiled program on each device: inputs, outputs that alias none of them, and temporaries."""
    memory = program.memory_analysis()
    parts = (memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes)
    return sum(parts) - memory.alias_size_in_bytes


@contextlib.contextmanager
def cached_on_disk(folder: Path | None = None) -> Iterator[None]:
    """Within it, compiled programs are cached in a folder; JAX_COMPILATION_CACHE_DIR names another one.

    JAX finds a program by its code, the compiler's version and flags, and the devices, a CPU's instructions among them.
    It locks the folder, and drops what was least recently used beyond CACHE_BYTES. Entries are checked, see
    `CheckedPrograms`, but not those of JAX_COMPILATION_CACHE_DIR, which other programs may share.

    folder: by default that of all runs of a user on a machine; nothing is cached where that cannot be written.
    """
    default = folder is None
    folder = (user_cache("compiled") if folder is None else folder).absolute()
    if jax.config.jax_compilation_cache_dir or (default and not _writable(folder)):
        yield
        return
    given = jax.config.jax_compilation_cache_max_size, jax.config.jax_persistent_cache_min_compile_time_secs
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_compilation_cache_max_size": CACHE_BYTES if given[0] < 0 else given[0],
        "jax_persistent_cache_min_compile_time_secs": min(CACHED_SECONDS, given[1]),
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for entry in folder.glob("*-cache"):
        used = entry.with_name(f"{entry.name.removesuffix('-cache')}-atime")
        if not used.exists():  # its writer was killed, and JAX would write no other: it is the first to be dropped
            used.write_bytes(bytes(8))
    make = jax_cache.get_file_cache
    jax_cache.get_file_cache = lambda path: _checked(make(path))
    _set_cache(settings)
    try:
        yield
    finally:
        jax_cache.get_file_cache = make
        _set_cache(before)


class CheckedPrograms:
    """JAX's cache with a CRC-32 after each entry: XLA runs whatever bytes it is given, and may die of them.

    A damaged entry, and one of before there were checksums, is removed, and its program compiled anew.
    """

    def __init__(self, cache: Any):
        self._cache, self._path = cache, cache._path

    def get(self, key: str) -> bytes | None:
        """The entry, or None."""
        value = self._cache.get(key)
        if value is None or zlib.crc32(value[:-4]).to_bytes(4) == value[-4:]:
            return value and value[:-4]
        Path(str(self._path), f"{key}-cache").unlink(missing_ok=True)  # or JAX would not write it again
        return None

    def put(self, key: str, value: bytes) -> None:
        """Keep an entry."""
        self._cache.put(key, value + zlib.crc32(value).to_bytes(4))


def _checked(made: tuple[Any, str] | None) -> tuple[Any, str] | None:
    return made and (CheckedPrograms(made[0]), made[1])


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _set_cache(settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # JAX looks at the settings once
