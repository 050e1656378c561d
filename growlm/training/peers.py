"""The processes of a job watch each other: where one is gone or silent, the others end in a line.

JAX watches them too, but where its watch ends a process it does so by SIGABRT, after pages of its own. This one is
quicker: every process has a connection to the first, on which both say a word each second.
"""

import atexit
import contextlib
import itertools
import json
import secrets
import socket
import threading
from collections.abc import Callable, Iterator

import jax
from jax._src import distributed  # its key-value store has no public place

from growlm.training.processes import JOIN_SECONDS, exit_process, gone, join_processes, peer_timeout

SECONDS = 1.0  # between two words
END_SECONDS = 7 * 24 * 3600  # in which those that have done their part wait for the others, of which none is lost
HERE, GOODBYE = b".", b"!"
_TOKEN, _NUMBER = 32, 8  # bytes of what a process says first: the job's secret, and which one it is


_begun: list[tuple["Watch", socket.socket | None]] = []  # that of this process, once it has joined a job
_meetings = itertools.count()  # each has names of its own in JAX's store


def watch_peers() -> None:
    """Begin to watch the other processes of the job, until `say_goodbye`. A process of its own watches nobody.

    What this needs to know comes over JAX's key-value store: it must not wait for devices, in which one may be missing.
    A process that can reach the first one on no address is watched by JAX alone.
    """
    client = distributed.global_state.client
    if client is None or distributed.global_state.num_processes == 1 or _begun:
        return
    watch, server = Watch(peer_timeout(), lambda reason: exit_process(1, gone(reason))), None
    name, number = f"growlm/watch/{next(_meetings)}", distributed.global_state.process_id
    if number == 0:
        server, token = socket.create_server(("", 0)), secrets.token_hex(_TOKEN // 2)
        known = {"port": server.getsockname()[1], "hosts": _own_hosts(), "token": token}
        client.key_value_set(name, json.dumps(known))
        threading.Thread(target=watch.serve, args=(server, token.encode()), daemon=True).start()
    else:
        known = json.loads(client.blocking_key_value_get(name, 1000 * JOIN_SECONDS))
        if line := _connected(known["hosts"], known["port"], known["token"], number):
            watch.add(line, "process 0")
    _begun.append((watch, server))
    atexit.register(say_goodbye)


def join_job() -> None:
    """Join the other processes of the job and watch them; must come before anything else of JAX.

    Raises InputError, as `join_processes` does.
    """
    join_processes()
    watch_peers()


def leave_job() -> None:
    """Wait until all processes of the job have come to their end, and leave it: until then they are watched.

    The first one may have records or a report to write yet. Where JAX waits for it, that aborts if it is lost, and all
    of the job if it takes longer than a silent process is waited for.
    """
    if _begun:
        distributed.global_state.client.wait_at_barrier("growlm/end", timeout_in_ms=1000 * END_SECONDS)
    jax.distributed.shutdown()
    say_goodbye()


def say_goodbye() -> None:
    """Tell the others that this process ends for a reason of its own, which is no loss."""
    while _begun:
        watch, server = _begun.pop()
        watch.close()
        if server:
            server.close()


@contextlib.contextmanager
def peers_watched() -> Iterator[None]:
    """Within it, this process ends with exit code 1 where another one of its job is lost. Alone it watches nobody.

    Who watches already, as the commands do until they end, goes on with that.
    """
    watched = bool(_begun)
    watch_peers()
    try:
        yield
    finally:
        if not watched:
            say_goodbye()


class Watch:
    """Connections to other processes, on which each says that it is there.

    Attributes:
      patience: seconds without a word after which a process is taken for dead.
      lost: called in a thread, with what happened to which process.
    """

    def __init__(self, patience: float, lost: Callable[[str], None]):
        self.patience, self.lost = patience, lost
        self._lines: list[socket.socket] = []
        self._closed = threading.Event()
        threading.Thread(target=self._speak, daemon=True).start()

    def add(self, line: socket.socket, who: str) -> None:
        """Watch one process more."""
        line.settimeout(self.patience)
        self._lines.append(line)
        threading.Thread(target=self._listen, args=(line, who), daemon=True).start()

    def serve(self, server: socket.socket, token: bytes) -> None:
        """Take the connections of those who know the job's secret, until the server is closed."""
        while True:
            try:
                line, _ = server.accept()
                line.settimeout(self.patience)
                said = line.recv(_TOKEN + _NUMBER, socket.MSG_WAITALL)
            except OSError:
                if self._closed.is_set() or server.fileno() < 0:
                    return
                continue
            if secrets.compare_digest(said[:_TOKEN], token) and said[_TOKEN:].isdigit():
                self.add(line, f"process {int(said[_TOKEN:])}")
            else:
                line.close()

    def close(self) -> None:
        """Say goodbye: that this process ends is no loss."""
        self._closed.set()
        for line in self._lines:
            with contextlib.suppress(OSError):
                line.sendall(GOODBYE)
            line.close()

    def _speak(self) -> None:
        while not self._closed.wait(SECONDS):
            for line in list(self._lines):
                with contextlib.suppress(OSError):  # who listens at the other end hears of it in `_listen`
                    line.sendall(HERE)

    def _listen(self, line: socket.socket, who: str) -> None:
        while True:
            said, reason = b"", f"{who} ended"
            try:
                said = line.recv(64)
            except TimeoutError:
                reason = f"{who} was silent for {self.patience:g} s"
            except OSError:
                pass
            if self._closed.is_set() or GOODBYE in said:
                return
            if not said:
                self.lost(reason)
                return


def _own_hosts() -> list[str]:
    """What other processes may reach this machine by; the last is for those on it."""
    hosts = [socket.gethostname()]
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_line:
        any_line.connect(("192.0.2.1", 9))  # an address of nobody: nothing is sent, and the way to it is chosen
        hosts.append(any_line.getsockname()[0])
    return [*hosts, "127.0.0.1"]


def _connected(hosts: list[str], port: int, token: str, number: int) -> socket.socket | None:
    """A connection to the first process."""
    for host in hosts:
        with contextlib.suppress(OSError):
            line = socket.create_connection((host, port), timeout=5)
            line.sendall(f"{token}{number:0{_NUMBER}}".encode())
            if line.recv(len(HERE)) == HERE:  # it is the one, and has taken us
                return line
            line.close()
    return None
