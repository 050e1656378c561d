"""How many cores there are, and whether other processes are using them."""

import os
import time
from pathlib import Path

CORE_TIMES = Path("/proc/stat")
QUIET = 0.2  # cores that may be busy with other processes


def host_threads() -> int:
    """The threads of XLA's CPU backend: one for each core that the process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _core_ticks() -> tuple[int, int]:
    """Of all cores together: the time in which they worked, and all time."""
    user, nice, system, idle, waiting, *rest = map(int, CORE_TIMES.read_text().split()[1:9])
    worked = user + nice + system + sum(rest)
    return worked, worked + idle + waiting


def busy_cores() -> float | None:
    """How many cores were working in half a second of waiting; None where the system does not say."""
    if not CORE_TIMES.exists():
        return None
    worked, total = _core_ticks()
    time.sleep(0.5)
    worked_then, total_then = _core_ticks()
    return os.cpu_count() * (worked_then - worked) / (total_then - total)


def about_load(busy: list[float | None], warning: str = "on CPUs a ratio to PyTorch is worth nothing then") -> str:
    """A line on `busy_cores` before and after; it warns where several threads may have waited for a core."""
    if None in busy:
        return "how busy the cores were with other processes is not known here"
    unfair = max(busy) > QUIET and host_threads() > 1
    said = f"; WARNING: {warning}" if unfair else ""
    return f"cores busy with other processes: {busy[0]:.1f} before, {busy[1]:.1f} after{said}"
