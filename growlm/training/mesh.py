"""The mesh of a run, and its batches on it: every process feeds the rows that its own devices work on."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from growlm.errors import InputError
from growlm.models.sharding import AXES, BATCH, batch_parts
from growlm.training.settings import MeshConfig, RunConfig


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh (data, fsdp, tensor) over these devices, or over all of all processes.

    Raises InputError where the sizes do not multiply to their number.
    """
    devices = jax.devices() if devices is None else devices
    rest = config.fsdp * config.tensor
    shape = (config.data or max(len(devices) // rest, 1), config.fsdp, config.tensor)
    if np.prod(shape) != len(devices):
        sizes = " x ".join(f"{name} {size}" for name, size in zip(AXES, shape, strict=True))
        raise InputError(f"mesh is {sizes} = {np.prod(shape)} devices: there are {len(devices)}")
    # Auto: with Explicit, which is the default, a lookup in an embedding is an error.
    return Mesh(_arranged(shape, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arranged(shape: tuple[int, int, int], devices: Sequence[Any]) -> np.ndarray:
    """The devices such that neighbours on the mesh are neighbours on the machine; only `data` goes over TPU slices."""
    if (slices := len({getattr(device, "slice_index", 0) for device in devices})) > 1:
        if shape[0] % slices:
            raise InputError(f"mesh.data must be multiples of the {slices} slices of TPUs, got {shape[0]}")
        within = (shape[0] // slices, *shape[1:])
        return create_hybrid_device_mesh(within, (slices, 1, 1), devices, allow_split_physical_axes=True)
    try:
        return create_device_mesh(shape, devices)
    except NotImplementedError:  # an axis of the mesh is a part of an axis of the torus, which has fewer links
        return create_device_mesh(shape, devices, allow_split_physical_axes=True)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device has whole."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def mesh_of(run: RunConfig) -> Mesh:
    """The run's mesh, on which every batch of its stages can be laid out. Raises InputError."""
    mesh = make_mesh(run.mesh)
    parts = f"mesh.data {mesh.shape['data']} x mesh.fsdp {mesh.shape['fsdp']} = {batch_parts(mesh)}"
    for number, stage in enumerate(run.stages):
        held_out = (stage.evaluation or run.evaluation).batch
        if held_out % batch_parts(mesh):
            raise InputError(f"evaluation.batch must be multiples of {parts}, got {held_out}")
        if (stage.batch // stage.microbatches) % batch_parts(mesh):
            raise InputError(
                f"stages[{number}].batch is {stage.batch} in {stage.microbatches} microbatches: allowed are multiples "
                f"of {parts} for each"
            )
    share_of_batch(mesh)
    return mesh


def share_of_batch(mesh: Mesh) -> tuple[int, int]:
    """(share, shares): which part of every batch this process feeds. Processes with the same rows feed the same.

    The loss is a mean over the batch, so it does not matter at which rows of the mesh its examples lie.
    """
    rows: dict[int, set[int]] = {}
    for row, devices in enumerate(mesh.devices.reshape(batch_parts(mesh), -1)):
        for device in devices:
            rows.setdefault(device.process_index, set()).add(row)
    shares = sorted({tuple(sorted(of_process)) for of_process in rows.values()})
    if len({len(share) for share in shares}) > 1 or sum(map(len, shares)) != batch_parts(mesh):
        raise InputError(
            f"mesh.tensor must be divisors or multiples of a process's devices, , got {mesh.shape['tensor']}"
            f"{mesh.devices.size} over {len(rows)} processes"
        )
    return shares.index(tuple(sorted(rows[jax.process_index()]))), len(shares)


def place_batch(mesh: Mesh, rows_BS: np.ndarray) -> jax.Array:
    """The batch of which these are this process's rows."""
    _, shares = share_of_batch(mesh)
    shape = (rows_BS.shape[0] * shares, *rows_BS.shape[1:])
    return jax.make_array_from_process_local_data(by_rows(mesh), rows_BS, shape)
