"""Leases: who alone writes a folder of a bucket, which has no locks.

A lease is an object that names its holder. It is made where there is none, and counts on while its holder is alive.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from growlm.buckets import LEASE, file_system, is_bucket, reaching
from growlm.errors import InUseError

SECONDS = 60.0  # without a sign of life, after which a holder is taken for dead


@contextlib.contextmanager
def leased(folder: Path, lost: Callable[[], None]) -> Iterator[None]:
    """Hold the lease of a folder in a bucket; a local folder has none: its stages have locks.

    A lease is renewed until it is given back. That of a process which ended otherwise is taken over: at once on its own
    machine, elsewhere when it was not renewed for SECONDS.

    Args:
      folder: what this process alone may write to.
      lost: called, in a thread, where another took the lease over, as this process was taken for dead.

    Raises:
      InUseError: another process holds it.
    """
    if not is_bucket(folder):
        yield
        return
    lease = _Lease(folder / LEASE)
    lease.take()
    ended = threading.Event()
    renewing = threading.Thread(target=lease.renew, args=(ended, lost), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join(timeout=SECONDS)
        lease.give_back()


class _Lease:
    """An object that names its holder, and a count that goes up while that is alive."""

    def __init__(self, path: Path):
        self._path, self._fs = path, file_system(path)
        self._own = {"holder": uuid.uuid4().hex, "host": socket.gethostname(), "process": os.getpid()}

    def take(self) -> None:
        """Make the object. Raises InUseError where another process holds it and is alive."""
        with reaching(self._path):
            if (held := self._read()) is not None and not _has_ended(held):
                waited = time.monotonic()
                while (now := self._read()) == held:  # by the clock of this machine alone
                    if time.monotonic() - waited > SECONDS:
                        break
                    time.sleep(min(1.0, SECONDS / 10))
                else:
                    if now is not None:
                        where = f"process {now.get('process')} on {now.get('host')}"
                        raise InUseError(f"{self._path.parent} is in use by {where}: one at a time may write it")
            if held is not None:
                with contextlib.suppress(FileNotFoundError):
                    self._fs.rm_file(os.fspath(self._path))
            try:
                self._fs.pipe_file(os.fspath(self._path), self._content(0), mode="create")
            except FileExistsError:
                raise InUseError(f"{self._path.parent} was taken by another process just now") from None

    def renew(self, ended: threading.Event, lost: Callable[[], None]) -> None:
        """Count on until it is given back."""
        count = 0
        while not ended.wait(SECONDS / 6):
            count += 1
            # A bucket that is not reached for a while is met again, or by the training itself, which says so.
            with contextlib.suppress(Exception):
                if (held := self._read()) is None or held.get("holder") != self._own["holder"]:
                    lost()
                    return
                self._fs.pipe_file(os.fspath(self._path), self._content(count))

    def give_back(self) -> None:
        """Remove the object, if it is still this process's."""
        with contextlib.suppress(Exception):  # it runs out
            if (self._read() or {}).get("holder") == self._own["holder"]:
                self._fs.rm_file(os.fspath(self._path))

    def _content(self, count: int) -> bytes:
        return json.dumps(self._own | {"count": count}).encode()

    def _read(self) -> dict[str, Any] | None:
        try:
            return dict(json.loads(self._fs.cat_file(os.fspath(self._path))))
        except (FileNotFoundError, ValueError):
            return None


def _has_ended(held: dict[str, Any]) -> bool:
    """Whether the holder of a lease was a process of this machine, which is no more."""
    if held.get("host") != socket.gethostname() or not isinstance(held.get("process"), int):
        return False
    try:
        os.kill(held["process"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # of another user
        pass
    return False
