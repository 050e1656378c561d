"""`growlm doctor`: what this machine has, how fast it is, what is missing and what brings it, what growlm can grow."""

import argparse
import importlib.metadata
import os
import platform
import shutil
import sys
from pathlib import Path

from packaging.requirements import Requirement

from growlm.buckets import is_bucket, reaching
from growlm.commands.options import Keys, installed_version, one, place
from growlm.errors import InputError

OPTIONS = {"--workdir": one("DIR", "folder that runs shall be written to (default: here)", place)}

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "safetensors")
# What extras are for; which packages each asks for is read off growlm's own metadata.
USES = {
    "data": "tokenizers, parquet, compressed text, names on the Hugging Face hub",
    "eval": "benchmarks",
    "cuda12": "NVIDIA GPUs, drivers from 525 on",
    "cuda13": "NVIDIA GPUs, drivers from 580 on",
    "tpu": "TPUs, and compiling for them",
    "gcs": "gs:// buckets",
    "s3": "s3:// buckets",
    "tracking": "curves in TensorBoard, Weights & Biases and trackio",
    "huggingface": "the former name of data",
    "cluster": "SLURM",
    "docs": "the guide",
    "test": "the tests",
}
# A file of a driver, what it is of, and the extra with which JAX uses that.
DRIVERS = {
    "/dev/nvidiactl": ("an NVIDIA GPU", "cuda13"),
    "/dev/accel0": ("a TPU", "tpu"),
    "/dev/vfio/0": ("a TPU", "tpu"),
}
PROBE = ".growlm-doctor"  # a file that is written and removed
EXACT = "exact: with which operators a growth keeps the function (direct with zero_residual in depth, random masked)"
NAMED = 4  # packages of an extra that are named


def run(args: argparse.Namespace, keys: Keys) -> int:
    """Runs the command; returns the exit code: 1 where no device is found, or a run could not be written."""
    from growlm.files import table
    from growlm.growth.overview import overview

    own = installed_version("growlm") or "of a path, not installed"
    rows = [("growlm", own), ("Python", f"{platform.python_version()} ({sys.executable})")]
    rows += [(name, installed_version(name) or f"missing: pip install {name}") for name in LIBRARIES]
    devices, working = _devices()
    folder = args.workdir or Path()
    problem = _not_writable(folder)
    rows += [("host", _host()), *devices]
    rows.append(("runs", problem or _room(folder)))
    print(table(rows))
    print()
    extras = _extras()
    print(table(extras) if extras else "extras are not known: growlm runs from a path, and is not installed")
    if working:
        print(f"\n{overview()}\n\n{EXACT}")
    return 1 if problem or not working else 0


def _devices() -> tuple[list[tuple[str, str]], bool]:
    """Rows about the devices: their memory, what of them is not used, the attention kernel, and how fast one is.

    And whether JAX found any.
    """
    import jax

    from growlm.models.kernels import kernel_name
    from growlm.training.speed import block_flops

    try:
        device = jax.devices()[0]
    except RuntimeError as error:  # a driver, or what JAX_PLATFORMS names, is not there
        return [("devices", f"none: {' '.join(str(error).split())}"), *_unused(None)], False
    rows = [("devices", f"{jax.device_count()} x {device.device_kind} ({device.platform})")]
    rows += _unused(device.platform)
    if limit := (device.memory_stats() or {}).get("bytes_limit"):
        rows.append(("memory", f"{limit / 2**30:.1f} GiB a device"))
    rows.append(("attention", kernel_name()))
    reached, utilization = block_flops()
    known = "the device's peak is not known" if utilization is None else f"{utilization:.1%} of the device's peak (MFU)"
    return [*rows, ("one block", f"{reached:.3g} FLOP/s forward and backward, {known}")], True


def _unused(used: str | None) -> list[tuple[str, str]]:
    """A row for an accelerator that is here and that JAX does not use."""
    if used not in (None, "cpu"):
        return []
    found = dict.fromkeys(says for driver, says in DRIVERS.items() if Path(driver).exists())
    return [("not used", f"{what}: pip install 'growlm[{extra}]', and no JAX_PLATFORMS=cpu") for what, extra in found]


def _host() -> str:
    """The cores that this process may use, and the memory of the machine or of its container."""
    from growlm.training.host_memory import machine_memory

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} CPU cores ({platform.machine()}), {machine_memory() / 2**30:.1f} GiB of memory"


def _extras() -> list[tuple[str, str, str]]:
    """A row for each extra of growlm: its name, what it is for, and whether it is installed or what brings it."""
    if installed_version("growlm") is None:
        return []
    rows = []
    for extra in importlib.metadata.metadata("growlm").get_all("Provides-Extra") or ():
        missing = [*dict.fromkeys(_missing("growlm", extra))]
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        said = f"pip install 'growlm[{extra}]' brings {', '.join(missing[:NAMED])}{more}" if missing else "installed"
        rows.append((extra, USES.get(extra, ""), said))
    return rows


def _missing(package: str, extra: str) -> list[str]:
    """The packages that an extra of an installed package asks for, also by extras of theirs, and that are not here."""
    missing = []
    for text in importlib.metadata.requires(package) or ():
        asked = Requirement(text)
        if not asked.marker or asked.marker.evaluate({"extra": ""}) or not asked.marker.evaluate({"extra": extra}):
            continue
        version = installed_version(asked.name)
        if version is None or not asked.specifier.contains(version, prereleases=True):
            missing.append(asked.name)
        else:
            missing += [name for inner in sorted(asked.extras) for name in _missing(asked.name, inner)]
    return missing


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.resolve()
    return next(one for one in (folder, *folder.parents) if one.is_dir())


def _room(folder: Path) -> str:
    """That a folder can be written, and how much there is room for where there is a limit."""
    if is_bucket(folder):
        return f"{folder} can be written"
    return f"{folder.resolve()} can be written, {shutil.disk_usage(_existing(folder)).free / 1e9:.1f} GB are free"


def _not_writable(folder: Path) -> str:
    """Why nothing can be written into a folder, or the folder that it would be made in; empty if something can."""
    if is_bucket(folder):
        try:
            with reaching(folder):
                (folder / PROBE).write_bytes(b"")
                (folder / PROBE).unlink()
        except InputError as error:
            return str(error)
        return ""
    probe = _existing(folder) / PROBE
    try:
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        return f"{folder.resolve()} cannot be written: {error.strerror}"
    return ""
