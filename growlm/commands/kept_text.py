"""Texts of a command that take long to make and follow from growlm's files: made once, and kept until one changes."""

import contextlib
import hashlib
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from growlm.caches import user_cache
from growlm.errors import InputError
from growlm.files import read_record, write_sealed


def of_source(name: str, make: Callable[[], str]) -> str:
    """A text that follows from growlm's files alone: made once for what is in them, and read from then on.

    It is made each time where the cache cannot be written, and again where what is kept is damaged.
    """
    path, of = user_cache("texts") / f"{name}.json", _source_hash()
    with contextlib.suppress(InputError):
        kept = read_record(path, "the cached text", "of", "text")
        if kept["of"] == of:
            return kept["text"]
    text = make()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(path, {"of": of, "text": text})
    return text


def _source_hash() -> str:
    """Of the package's modules, and of what reads them: the versions of Python, NumPy and JAX."""
    root = Path(__file__).parents[1]
    found = hashlib.sha256("\n".join([sys.version, version("numpy"), version("jax")]).encode())
    for path in sorted(root.rglob("*.py")):
        content = path.read_bytes()
        found.update(f"\n{path.relative_to(root)} {len(content)}\n".encode() + content)
    return found.hexdigest()
