"""Memory of a machine whose CPUs compute."""

import ctypes
import platform

import jax

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
