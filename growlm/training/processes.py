"""The processes of a job, and how they are asked to stop.

All processes run the same code; the first alone writes records. A process of its own is the trivial case.
"""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from growlm.buckets import check_states, mirrored
from growlm.errors import InputError, InUseError, must_be
from growlm.leases import leased
from growlm.signals import STOPPED, restore_signals
from growlm.training.tpu_hosts import has_tpu, host_count

# Seconds after which a silent peer is taken for dead, and the job with it.
PEER_TIMEOUT = "GROWLM_PEER_TIMEOUT"
PEER_TIMEOUT_SECONDS = 60

JOIN_SECONDS = 300  # in which all processes of a job must have joined

# How launchers say how many tasks a job step has.
TASK_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


def join_processes() -> None:
    """Join the other processes of the job; must come before anything else of JAX. A process on its own has none.

    JAX_COORDINATOR_ADDRESS=HOST:PORT with JAX_NUM_PROCESSES and JAX_PROCESS_ID name them; under SLURM, Open MPI and on
    TPUs of several machines JAX finds out. A process that has joined stays joined. GROWLM_PEER_TIMEOUT: seconds after
    which a silent process is taken for dead (default: 60).

    Raises InputError where the variables do not fit together, JAX finds nobody, or was used before, as in a notebook.
    """
    seconds = 2 * peer_timeout()  # of JAX's own watch, which comes after ours
    timeouts = {"heartbeat_timeout_seconds": seconds, "shutdown_timeout_seconds": seconds}
    if jax.distributed.is_initialized():
        return
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        count, number = _whole("JAX_NUM_PROCESSES", low=1), _whole("JAX_PROCESS_ID", low=0)
        if number >= count:
            raise must_be("JAX_PROCESS_ID", f"0 to JAX_NUM_PROCESSES - 1 = {count - 1}", number)
        _initialize(num_processes=count, process_id=number, cluster_detection_method="deactivate", **timeouts)
    elif any(int(os.environ.get(name, 1)) > 1 for name in TASK_COUNTS) or (has_tpu() and host_count() > 1):
        _initialize(**timeouts)


def _initialize(**options: Any) -> None:
    # JAX ends a process by SIGABRT, after pages of its own, where another one does not come.
    late = threading.Timer(JOIN_SECONDS, exit_process, (1, gone(f"not all had joined after {JOIN_SECONDS:g} s")))
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(initialization_timeout=2 * JOIN_SECONDS, **options)
    except ValueError as error:  # what it should have found out is missing
        raise InputError(f"JAX must find the processes of this job, got {error}") from error
    except RuntimeError as error:
        if "before any JAX calls" not in str(error):
            raise
        raise InputError("the processes of a job must join before JAX is used: run the command by itself") from error
    finally:
        late.cancel()


def peer_timeout() -> int:
    """Seconds after which a silent process is taken for dead. Raises InputError."""
    return _whole(PEER_TIMEOUT, low=1) if PEER_TIMEOUT in os.environ else PEER_TIMEOUT_SECONDS


def _whole(name: str, low: int) -> int:
    text = os.environ.get(name, "")
    if not text.isdecimal() or int(text) < low:
        raise must_be(name, f"an integer >= {low}", text)
    return int(text)


def is_first() -> bool:
    """Whether this is the process that writes what is written once, and speaks."""
    return jax.process_index() == 0


@contextlib.contextmanager
def records_folder(folder: Path) -> Iterator[Path]:
    """Where this process writes its records: the folder; but for the first process one that nobody reads."""
    if is_first():
        yield folder
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch) / folder.name


@dataclasses.dataclass(frozen=True)
class Workdir:
    """A folder of runs, as a process of a job uses it.

    Attributes:
      place: the folder, where all processes write checkpoints.
      known: where what was on record in it at the beginning is read.
      records: where this process writes all else.
      push: brings the first process's records to a bucket.
    """

    place: Path
    known: Path
    records: Path
    push: Callable[[], None]


@contextlib.contextmanager
def open_workdir(place: Path) -> Iterator[Workdir]:
    """A folder of runs: in a bucket, with its records on the local disk, and held by this job alone.

    Raises:
      InUseError: another job has the bucket's folder.
      InputError: the bucket cannot be reached, or takes no checkpoints of several processes.
    """
    check_states(place, jax.process_count())
    with (
        first_enters(leased(place, lambda: exit_process(1, f"growlm: {place} was taken over by another process"))),
        mirrored(place) as mirror,
        records_folder(mirror.folder) as records,
    ):
        yield Workdir(place, mirror.folder, records, mirror.push if is_first() else lambda: None)


@contextlib.contextmanager
def first_enters(context: contextlib.AbstractContextManager) -> Iterator[None]:
    """Within a context that the first process enters for all. Where it cannot, they all raise InUseError."""
    with contextlib.ExitStack() as stack:
        error: InputError | None = None
        try:
            if is_first():
                stack.enter_context(context)
        except InputError as refused:
            error = refused
        if broadcast(error is not None):
            raise error or InUseError("the first process is refused its folder")
        yield


def broadcast(number: int) -> int:
    """Broadcasts the first process's number: what each saw in a folder may differ while another process writes."""
    return int(multihost_utils.broadcast_one_to_all(np.int64(number))) if jax.process_count() > 1 else number


def broadcast_json(value: Any) -> Any:
    """Broadcasts the first process's plain JSON value."""
    if jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = broadcast(len(text))
    padded = text if is_first() else np.zeros(size, np.uint8)
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(padded)))


def barrier() -> None:
    """Returns once the first process has reached this point."""
    broadcast(0)


def all_stop(asked: bool, step: int) -> bool:
    """Whether to stop after this step. Of several processes all do, at one step, when any was sent SIGTERM."""
    return asked if jax.process_count() == 1 else multihost_utils.reached_preemption_sync_point(step)


def lost_peer(error: Exception) -> bool:
    """Whether this is how a collective ends when a process that takes part in it is gone."""
    return isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1


def gone(reason: str) -> str:
    """What the other processes of a job say where one is lost."""
    return (
        f"growlm: another process of the job is gone: {reason}\n"
        "growlm: start the same command for all of them: a run goes on from the last checkpoint"
    )


def exit_process(code: int, line: str = "") -> None:
    """Ends this process at once, without waiting for its threads or its peers; `line` is said on stderr first."""
    sys.stdout.flush()
    sys.stderr.flush()
    if sys.__stderr__.isatty():
        line = f"\x1b[?25h{line}"  # the cursor, which a live table hides
    os.write(2, f"{line}\n".encode() if line else b"")
    os._exit(code)


class StopRequest(threading.Event):
    """Set when the process is asked to stop. `unsaved`: steps have been taken that are in no checkpoint yet."""

    unsaved = False


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """SIGTERM and Ctrl-C as an event, acknowledged at once even while XLA compiles.

    With unsaved steps the event is set, and the training loop saves after the step under way. Without any, the process
    ends there and then with exit code 75: what is on disk is whole. A second Ctrl-C ends it at once with 130.
    Of several processes JAX tells all of a SIGTERM to one, see `all_stop`.
    """
    request = StopRequest()
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        restore_signals(signal.SIGINT)  # the other is JAX's by now
        yield request  # only the main thread may set handlers
        return
    # A handler in Python would wait for XLA to return; the number of the signal is in the socket at once.
    received, sent = socket.socketpair()
    sent.setblocking(False)
    handlers = {number: signal.signal(number, lambda *_: request.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    wakeup = signal.set_wakeup_fd(sent.fileno(), warn_on_full_buffer=False)
    listener = threading.Thread(target=_listen, args=(received, request), daemon=True)
    listener.start()
    try:
        yield request
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        sent.close()
        listener.join()
        received.close()


def _listen(received: socket.socket, request: StopRequest) -> None:
    """Acts on each signal whose number is received, until the other end is closed."""
    asked = 0
    while data := received.recv(1):
        if data[0] not in (signal.SIGTERM, signal.SIGINT):
            continue
        asked += 1
        if not request.unsaved:
            exit_process(os.EX_TEMPFAIL, STOPPED)
        if asked == 1:
            request.set()
            how = "stopping: saving after the step under way; Ctrl-C again ends at once"
            print(f"growlm: {how}", file=sys.stderr, flush=True)
        elif data[0] == signal.SIGINT:
            exit_process(130, "growlm: ended; the same command goes on from the last checkpoint")
