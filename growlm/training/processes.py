"""The processes of a job. All run the same code; the first alone writes records, and one is the trivial case."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from growlm.errors import InputError

# A peer that is silent for so long is dead, and the job with it.
PEER_TIMEOUT_SECONDS = 60

# How launchers say how many tasks a job step has.
TASK_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


def join_processes() -> None:
    """Joins the other processes of the job; must come before anything else of JAX. A process on its own has none.

    JAX_COORDINATOR_ADDRESS=HOST:PORT with JAX_NUM_PROCESSES and JAX_PROCESS_ID name them; under SLURM, Open MPI and on
    TPU VMs JAX finds out. Raises InputError where the variables do not fit together.
    """
    timeouts = {"heartbeat_timeout_seconds": PEER_TIMEOUT_SECONDS, "shutdown_timeout_seconds": PEER_TIMEOUT_SECONDS}
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        count, number = _whole("JAX_NUM_PROCESSES", 1), _whole("JAX_PROCESS_ID", 0)
        if number >= count:
            raise InputError(f"JAX_PROCESS_ID is {number} and JAX_NUM_PROCESSES {count}: allowed are 0 to {count - 1}")
        jax.distributed.initialize(
            num_processes=count, process_id=number, cluster_detection_method="deactivate", **timeouts
        )
    elif _on_tpu_vm() or any(int(os.environ.get(name, 1)) > 1 for name in TASK_COUNTS):
        jax.distributed.initialize(**timeouts)


def _whole(name: str, least: int) -> int:
    text = os.environ.get(name, "")
    if not text.isdecimal() or int(text) < least:
        raise InputError(f"JAX_COORDINATOR_ADDRESS is set and {name} must be integers >= {least}, got {text!r}")
    return int(text)


def _on_tpu_vm() -> bool:
    chips = [*Path("/dev").glob("accel*"), *Path("/dev").glob("vfio/[0-9]*")]
    return bool(chips) and find_spec("libtpu") is not None


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


def agreed(number: int) -> int:
    """The first process's number: what was seen in a folder may differ while another process writes."""
    return int(multihost_utils.broadcast_one_to_all(np.int64(number))) if jax.process_count() > 1 else number


def after_first() -> None:
    """Waits until the first process is here too: what it has made or refused until here, it has."""
    agreed(0)


def all_stop(asked: bool, step: int) -> bool:
    """Whether to stop after this step. Of several processes all do, at one step, when any was sent SIGTERM."""
    return asked if jax.process_count() == 1 else multihost_utils.reached_preemption_sync_point(step)


def lost_peer(error: RuntimeError) -> bool:
    """Whether this is how a collective ends when a process that takes part in it is gone."""
    return isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1


def leave(code: int) -> None:
    """Ends a process of several at once: one that failed must not wait for the others, who wait for it."""
    if jax.process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
