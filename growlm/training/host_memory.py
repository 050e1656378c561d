"""Memory of the machine and of its devices: how much there is, and that what is freed is kept where CPUs compute."""

import ctypes
import os
import platform
from collections.abc import Iterable
from pathlib import Path

import jax
from jax.sharding import Mesh

from growlm.errors import InputError
from growlm.models import DecoderConfig, parameter_count

CGROUP = Path("/sys/fs/cgroup/memory.max")
# Bytes a parameter, in float32: itself, and its gradient in a train step.
LEAST, LEAST_TRAINED = 4, 8
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # options of mallopt, from glibc's malloc.h


def keep_freed_memory() -> None:
    """Makes glibc keep what is freed for what comes next, where CPUs compute. Must come before JAX finds its devices.

    XLA's CPU backend allocates the temporary memory of a program at every call. glibc gives a block of more than 32 MB
    back to the kernel when it is freed, and the kernel clears every page of the next one: up to a third of a step. With
    these options it stays in the heap, and the process never shrinks. The heap is the main thread's alone, other
    threads' hold no more than 64 MB; so programs of one device run in the thread that calls them.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if jax.default_backend() == "cpu" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def machine_memory() -> int:
    """Bytes of the machine, or of its container."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if CGROUP.exists() and (limit := CGROUP.read_text().strip()).isdecimal():
        memory = min(memory, int(limit))
    return memory


def device_memory(mesh: Mesh) -> int | None:
    """Bytes of each of this process's devices, of which CPUs share the machine's; None where it is not known."""
    device, *others = mesh.local_devices
    if device.platform == "cpu":
        return machine_memory() // (1 + len(others))
    return (device.memory_stats() or {}).get("bytes_limit")


def check_memory(models: Iterable[DecoderConfig], mesh: Mesh, trained: bool = True) -> None:
    """Check that the devices can hold what these models take at least, before any of it is there.

    trained: with gradients, which a model that only reads or writes text has not.

    Raises InputError where that alone is more than there is memory, where that is known.
    """
    has, parts = device_memory(mesh), mesh.shape["fsdp"] * mesh.shape["tensor"]
    largest = max(map(parameter_count, models))
    each, what = (LEAST_TRAINED, "the model and its gradients") if trained else (LEAST, "the model")
    if has and each * largest / parts > has:
        raise InputError(
            f"a device must hold {what}, {each * largest / parts / 1e9:,.0f} GB for {largest:,} parameters in {parts} "
            f"parts, got {has / 1e9:,.0f} GB of memory"
        )
