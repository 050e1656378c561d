"""`growlm doctor`: what this machine has, what is missing and what brings it, and what growlm can grow."""

import argparse
import importlib.util
import platform
import shutil
import sys
from pathlib import Path

from growlm.commands.options import Keys, installed_version, one

OPTIONS = {"--workdir": one("DIR", "folder that runs shall be written to (default: here)", Path)}

# What an extra is for, and the module by which one sees that it is there.
EXTRAS = {
    "data": ("tokenizers", "byte-pair and SentencePiece tokenizers, compressed text"),
    "huggingface": ("datasets", "datasets from the Hugging Face hub"),
    "eval": ("lm_eval", "benchmarks"),
    "tpu": ("libtpu", "TPUs, and compiling for them"),
    "docs": ("mkdocs", "the guide"),
    "test": ("pytest", "the tests"),
}
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "safetensors")


def run(args: argparse.Namespace, keys: Keys) -> int:
    """Runs the command; returns the exit code: 1 where a run could not be written."""
    import jax

    from growlm.files import table
    from growlm.growth.overview import overview
    from growlm.models.kernels import kernel_name

    own = installed_version("growlm") or "of a path, not installed"
    rows = [("growlm", own), ("Python", f"{platform.python_version()} ({sys.executable})")]
    rows += [(name, installed_version(name) or f"missing: pip install {name}") for name in LIBRARIES]
    device = jax.devices()[0]
    rows.append(("devices", f"{jax.device_count()} x {device.device_kind} ({device.platform})"))
    if limit := (device.memory_stats() or {}).get("bytes_limit"):
        rows.append(("memory", f"{limit / 2**30:.1f} GiB a device"))
    rows.append(("attention", kernel_name()))
    folder = args.workdir or Path()
    problem = _not_writable(folder)
    free = shutil.disk_usage(_existing(folder)).free
    rows.append(("runs", problem or f"{folder.resolve()} can be written, {free / 1e9:.1f} GB are free"))
    print(table(rows))
    print()
    for extra, (module, use) in EXTRAS.items():
        here = importlib.util.find_spec(module) is not None
        print(f"{extra:12} {'installed' if here else f'missing: pip install growlm[{extra}]'} ({use})")
    print(f"\n{overview()}")
    print(
        "\nexact: with which operators a growth keeps the function (direct with zero_residual in depth, random masked)"
    )
    return 1 if problem else 0


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.resolve()
    return next(one for one in (folder, *folder.parents) if one.is_dir())


def _not_writable(folder: Path) -> str:
    """Why nothing can be written into a folder, or the folder that it would be made in; empty if something can."""
    probe = _existing(folder) / ".growlm-doctor"
    try:
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        return f"{folder.resolve()} cannot be written: {error.strerror}"
    return ""
