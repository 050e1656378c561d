"""The memory that a train step needs, whether the devices have it, and what would need less.

A step's need is known once it is compiled. Where it cannot be met, a line says so, and what would fit.
"""

import contextlib
import dataclasses
import json
import os
import resource
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from growlm.errors import InputError
from growlm.models.sharding import batch_parts
from growlm.training.host_memory import device_memory
from growlm.training.programs import bytes_needed
from growlm.training.stages import Stage
from growlm.training.step import StepSpec, compile_steps, lower_step

EXHAUSTED = "RESOURCE_EXHAUSTED"  # XLA's status where memory is not to be had
THRIFTIEST = "full"  # remat: nothing is kept within a layer


def describe_memory(specs: Iterable[StepSpec], batch: int, length: int, mesh: Mesh) -> str:
    """The memory of the compiled train step that needs the most, in words."""
    _, program = _largest(specs, batch, length, mesh)
    return f"a step needs {_parts(program)}"


def check_step(stage: Stage, specs: Iterable[StepSpec], mesh: Mesh) -> None:
    """Raises InputError where the compiled steps of a stage need more memory than a device has, with what would fit."""
    batch, length = stage.config.batch, stage.config.length
    spec, program = _largest(specs, batch, length, mesh)
    limit = device_bytes(mesh, held=program.memory_analysis().argument_size_in_bytes)
    if limit is not None and bytes_needed(program) > limit:
        got = f"a step that needs {_parts(program)}"
        raise InputError(
            f"stages[{stage.number}] must fit into {_size(limit)} a device, got {got}; "
            f"{would_fit(spec, program, batch, length, mesh, limit)}"
        )


@contextlib.contextmanager
def exhaustion_said(stage: Stage) -> Iterator[None]:
    """Turn what is said where a device or the machine has no more memory, into one line with what needs less."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not (reason := exhausted(error)):
            raise
        size = f"{stage.size}, {stage.config.batch} x {stage.config.length} tokens"
        less = "a smaller batch, more microbatches, remat=full and more devices in mesh.fsdp need less"
        raise InputError(f"stages[{stage.number}] ({size}) is out of memory: {reason}; {less}") from None


def exhausted(error: BaseException) -> str:
    """What an error says of memory that is not to be had, of which XLA says pages, on one line; "" of any other."""
    text = str(error)
    if isinstance(error, MemoryError):
        return " ".join(text.split())[:120] or "the machine has no more"
    if not isinstance(error, jax.errors.JaxRuntimeError) or EXHAUSTED not in text:
        return ""
    return " ".join(text.partition(EXHAUSTED)[2].split())[:120].strip(": ")


def would_fit(spec: StepSpec, program: Any, batch: int, length: int, mesh: Mesh, limit: int) -> str:
    """Which microbatches and remat need at most `limit` bytes a device, as far as a few that are compiled say."""
    fits, least = [], None
    if jax.process_count() > 1:  # each would have to compile what the others do
        return "more microbatches, remat=full and more devices in mesh.fsdp need less"
    for change in _changes(spec, program, batch, mesh, limit):
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # it does not even compile
            needed = bytes_needed(lower_step(dataclasses.replace(spec, **change), batch, length, mesh).compile())
            named = " and ".join(f"{name}={value}" for name, value in change.items())
            least = min(filter(None, (least, (needed, named))))
            fits += [f"{named} ({_size(needed)})"] if needed <= limit else []
    if fits:
        return f"what would fit, in a new workdir: {', or '.join(fits)}"
    best = f", where {least[1]} needs {_size(least[0])}" if least else ""
    return f"nothing that was tried fits{best}: a smaller batch or model, or more devices in mesh.fsdp"


def _changes(spec: StepSpec, program: Any, batch: int, mesh: Mesh, limit: int) -> list[dict[str, Any]]:
    """What is tried: as many microbatches as should do where what is temporary shrinks with them, remat, and both."""
    memory = program.memory_analysis()
    room = max(limit - bytes_needed(program) + memory.temp_size_in_bytes, 1)
    counts = range(spec.microbatches + 1, batch + 1)
    parts = [count for count in counts if batch % count == 0 and batch // count % batch_parts(mesh) == 0]
    enough = (count for count in parts if memory.temp_size_in_bytes * spec.microbatches / count <= 0.9 * room)
    few = {"microbatches": next(enough, parts[-1])} if parts else {}
    most = {"microbatches": parts[-1]} if parts else {}
    thrifty = {} if spec.remat == THRIFTIEST else {"remat": THRIFTIEST}
    tried = {json.dumps(change): change for change in (few, thrifty, thrifty | most) if change}
    return [*tried.values()]


def device_bytes(mesh: Mesh, held: int) -> int | None:
    """Bytes that a step can have on each of this process's devices, its arguments included; None where unknown.

    CPU devices share the machine's memory and, where there is a limit of address space (ulimit -v), what of
    that is left beside the arguments, `held` bytes on each device.
    """
    has, left = device_memory(mesh), _address_space()
    if has is None or left is None or mesh.local_devices[0].platform != "cpu":
        return has
    return min(has, left // len(mesh.local_devices) + held)


def _address_space() -> int | None:
    """What is left of it; None without a limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        used = 0
    return max(limit - used, 0)


def _largest(specs: Iterable[StepSpec], batch: int, length: int, mesh: Mesh) -> tuple[StepSpec, Any]:
    """The step that needs the most, and its program."""
    programs = ((spec, compile_steps(spec, batch, length, mesh)[0]) for spec in specs)
    return max(programs, key=lambda one: bytes_needed(one[1]))


def _parts(program: Any) -> str:
    memory = program.memory_analysis()
    needed, given, temporary = (
        _size(count) for count in (bytes_needed(program), memory.argument_size_in_bytes, memory.temp_size_in_bytes)
    )
    return f"{needed} on each device: {given} state and batch, {temporary} temporary"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
