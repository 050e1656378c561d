"""Hostile files, made at random of good ones, and a watch over whoever reads them.

A mutation gets the content of a good file and a `random.Random`, and gives other content. The same seed gives the same.
"""

import contextlib
import copy
import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from growlm.checked import KEY
from growlm.errors import InputError

SECONDS = 20  # a case takes milliseconds: longer is a hang, whatever else the machine does
BYTES = 2**23  # beside four times the size of the files, for the allocators' own; the most seen is half of 2**20

# --- What is put into a file ---

TEMPLATE = "{{ cycler.__init__.__globals__.os.popen('touch executed').read() }}"
CODE = {
    "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"},
    "trust_remote_code": True,
    "custom_pipelines": {"text-generation": {"impl": "evil.Evil"}},
    "chat_template": TEMPLATE,
    "tokenizer_class": "evil.Evil",
}
TEXTS = (
    "",
    "a\nb",
    "a\0b",
    "\ud800",
    "../../../etc/passwd",
    "/etc/passwd",
    "..",
    "$x_{$",
    "<script>x</script>",
    "a" * 5000,
    "1",
    "F32",
    "BF16",
    "linear",
    "llama",
    "gpt2",
    "growlm token shards 1",
    "adamw",
    "direct",
    "text",
    "user",
    "assistant",
    TEMPLATE,
)
NUMBERS = (0, 1, -1, 2, 3, 16, 255, 2**31, 2**63, 2**64, 10**30, -(2**70), 0.5, 1e308, -0.0, float("nan"), float("inf"))


def value_of(draw: random.Random, depth: int = 0) -> Any:
    """Any value of JSON."""
    kind = draw.randrange(8 if depth < 3 else 6)
    if kind < 6:
        return draw.choice(((None, True, False), TEXTS, NUMBERS)[kind // 2])
    if kind == 6:
        return [value_of(draw, depth + 1) for _ in range(draw.randrange(4))]
    code = copy.deepcopy(draw.choice(({}, CODE)))
    return code | {draw.choice(TEXTS): value_of(draw, depth + 1) for _ in range(draw.randrange(4))}


# --- Mutations ---


def flipped(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]


def cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def noise(draw: random.Random) -> bytes:
    """Bytes that a parser may choke on."""
    return draw.choice(
        (b"[" * 10**5, b'{"\\ud800": 1' + b"0" * 400 + b"}", b"\xff\xfe", b"null", b"\0" * 9, b"\n", draw.randbytes(64))
    )


def longer(content: bytes, draw: random.Random) -> bytes:
    return content + noise(draw)


def overwritten(content: bytes, draw: random.Random) -> bytes:
    place, new = draw.randrange(len(content)), noise(draw)
    return content[:place] + new + content[place + len(new) :]


def moved(content: bytes, draw: random.Random) -> bytes:
    """A piece of the file at another place, twice or in place of another."""
    begin, place = draw.randrange(len(content)), draw.randrange(len(content))
    piece = content[begin : begin + draw.randrange(1, 200)]
    return content[:place] + piece + content[place + draw.choice((0, len(piece))) :]


def another(content: bytes, draw: random.Random) -> bytes:
    return noise(draw)


def text(content: bytes, draw: random.Random) -> bytes:
    """One of the texts that somebody may mean something else by."""
    return draw.choice(TEXTS).encode("utf-8", "surrogatepass")


BINARY = (flipped, flipped, flipped, cut, longer, overwritten, moved, another, text)


def paths_of(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Where in a JSON value there is something."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from paths_of(item, (*path, key))


def altered(document: Any, draw: random.Random) -> Any:
    """A JSON value with one to three things in it set, deleted or added, and without its checksum."""
    document = copy.deepcopy(document)
    for _ in range(draw.randrange(1, 4)):
        if not (paths := list(paths_of(document))):
            return document
        *parents, last = draw.choice(paths)
        node = document
        for key in parents:
            node = node[key]
        action = draw.randrange(5)
        if action == 0:
            del node[last]
        elif action == 1 and isinstance(node, dict):
            node[draw.choice(TEXTS)] = copy.deepcopy(node[last])
        elif action == 2 and isinstance(node, dict):
            node.update(copy.deepcopy(CODE))
        else:
            node[last] = value_of(draw)
    return {key: item for key, item in document.items() if key != KEY} if isinstance(document, dict) else document


def changed(content: bytes, draw: random.Random) -> bytes:
    """JSON that is JSON still."""
    return json.dumps(altered(json.loads(content), draw)).encode()


def changed_line(content: bytes, draw: random.Random) -> bytes:
    """JSON lines of which one is another."""
    lines = content.split(b"\n")
    place = draw.randrange(len(lines))
    with contextlib.suppress(ValueError):
        lines[place] = changed(lines[place], draw)
    return b"\n".join(lines)


def changed_header(content: bytes, draw: random.Random) -> bytes:
    """A file of safetensors with something else in its header, whose length is right."""
    length = int.from_bytes(content[:8], "little")
    header = changed(content[8 : 8 + length], draw)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def mutations_of(name: str) -> tuple[Callable[[bytes, random.Random], bytes], ...]:
    """What is done to a file of that name: half of it leaves the form of the file whole."""
    whole = {".json": changed, ".jsonl": changed_line, ".safetensors": changed_header}.get(Path(name).suffix)
    return (*BINARY, *[whole] * len(BINARY)) if whole else BINARY


def put(path: Path, content: bytes) -> None:
    """Write a file over what it is, which takes a tenth of the time of a new one on a disk."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(content)
        file.truncate()


# --- The watch ---


RUNS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pickle.find_class", "socket.connect")
HERE = str(Path(__file__).parents[1])
ALLOWED = (sys.prefix, sys.base_prefix, HERE, "/proc/", "/sys/", "/dev/null", "<frozen", "<string>", "<__array_")


class Watch:
    """Sees the files that are opened by this process, and what is executed; there is one, as it cannot be taken away.

    executed: what was run, in words; opened: the paths.
    """

    def __init__(self):
        self.on, self.executed, self.opened = False, [], []
        sys.addaudithook(self._see)

    def _see(self, event: str, args: tuple) -> None:
        if not self.on:
            return
        if event in RUNS:
            self.executed.append(f"{event} {args!r:.200}")
        elif event == "exec" and args:
            name = getattr(args[0], "co_filename", "")
            if not name.startswith(ALLOWED):
                self.executed.append(f"exec of {name}")
        elif event == "open" and isinstance(args[0], str | bytes):
            self.opened.append(os.fsdecode(args[0]))


_watch = Watch()


@contextlib.contextmanager
def watched(folder: Path, largest: int) -> Iterator[None]:
    """What is done within must end, stay in the folder, execute nothing, and keep `largest` bytes of memory.

    What is refused must be an InputError of one line, which is passed over.
    """

    def late(*_: object) -> None:
        raise AssertionError(f"no end after {SECONDS} s")

    before, handler = _memory(), signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    _watch.executed, _watch.opened, _watch.on = [], [], True
    began = time.monotonic()
    try:
        yield
    except InputError as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 10_000, repr(error)
        str(error).encode()  # it can be printed
    finally:
        _watch.on = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert time.monotonic() - began < SECONDS
    assert not _watch.executed, _watch.executed
    home = os.path.realpath(folder)
    strangers = [path for path in _watch.opened if not os.path.realpath(path).startswith((home, *ALLOWED))]
    assert not strangers, strangers
    assert not (folder / "executed").exists() and not Path("executed").exists()
    assert (grown := _memory() - before) <= largest, f"{grown:,} bytes of memory for {largest:,}"


@contextlib.contextmanager
def unwatched() -> Iterator[None]:
    """What a library does with files of its own, within `watched`."""
    _watch.on = False
    try:
        yield
    finally:
        _watch.on = True


def _memory() -> int:
    """The most bytes of memory that this process has had since `forget_memory`."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_memory() -> None:
    """Count the most memory anew, where the system can: what was there before would hide what comes."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


# --- What is built to hurt ---

MEMORY = 2**28  # bytes beside what was there: a line of JSON may have 100 MiB


@contextlib.contextmanager
def refused(folder: Path, said: str):
    """What is done within is refused in a line, soon, and opens nothing outside of the folder."""
    forget_memory()
    with watched(folder, MEMORY), pytest.raises(InputError, match=said):
        yield


def record(stage=0, step=1, **more):
    return {"stage": stage, "step": step, "tokens": 8 * step, "flops": 1e6 * step, "val_loss": 2.0, **more}


def write_run(folder: Path, records=None, **files) -> Path:
    """A run's folder; files by their names without suffix, as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [record(step=step) for step in (1, 2)] if records is None else records
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, value in files.items():
        (folder / f"{name.replace('_', '-') if name[-1].isdigit() else name}.json").write_text(json.dumps(value))
    return folder


def write_sweep(folder: Path, names=("a",), **more) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    runs = {name: {"status": "done"} for name in names}
    (folder / "sweep.json").write_text(json.dumps({"runs": runs} | more))
    return folder
