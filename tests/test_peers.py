"""The watch of processes over each other, on sockets within one process."""

import queue
import socket
import threading

import pytest

from growlm.training.peers import Watch

TOKEN = b"0" * 32


@pytest.fixture
def watches():
    """Two processes that watch each other, and what each was told of the other's loss."""
    found = [(Watch(30, told.put), told) for told in (queue.Queue(), queue.Queue())]
    lines = socket.socketpair()
    for number, (watch, _) in enumerate(found):
        watch.add(lines[number], f"process {1 - number}")
    yield found
    for watch, _ in found:
        watch.close()


def test_a_process_that_ends_without_a_goodbye_is_lost(watches):
    (first, _), (_, told) = watches
    first._lines[0].shutdown(socket.SHUT_RDWR)
    assert told.get(timeout=10) == "process 0 ended"


def test_a_process_that_says_goodbye_is_not(watches):
    (first, _), (second, told) = watches
    first.close()
    second.close()
    with pytest.raises(queue.Empty):
        told.get(timeout=0.2)


def test_a_silent_process_is_lost():
    told = queue.Queue()
    silent, line = socket.socketpair()
    watch = Watch(0.2, told.put)
    watch.add(line, "process 1")
    assert told.get(timeout=10) == "process 1 was silent for 0.2 s"
    watch.close()
    silent.close()


def test_whoever_does_not_know_the_secret_is_turned_away_and_others_are_watched():
    told = queue.Queue()
    watch, server = Watch(30, told.put), socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=watch.serve, args=(server, TOKEN), daemon=True).start()
    with socket.create_connection(server.getsockname()) as stranger:
        stranger.sendall(b"1" * 32 + b"00000001")
        stranger.settimeout(10)
        assert stranger.recv(1) == b""
    with socket.create_connection(server.getsockname()) as peer:
        peer.sendall(TOKEN + b"00000003")
        peer.settimeout(10)
        assert peer.recv(1) == b"."
    assert told.get(timeout=10) == "process 3 ended"
    watch.close()
    server.close()
