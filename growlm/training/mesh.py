"""The mesh of a run, and its batches on it: every process feeds the rows that its own devices work on."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from growlm.errors import check_range, must_be
from growlm.models.sharding import AXES, BATCH, batch_parts


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How the devices share the work. What a run computes does not depend on it but for rounding.

    Attributes:
      data: copies of the model, each with a part of the batch; 0: as many as there are devices left.
      fsdp: parts of every parameter and its optimizer state, which share the batch too.
      tensor: parts of every matrix product.
    """

    data: int = 0
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        check_range("mesh.data", self.data, low=0)
        check_range("mesh.fsdp", self.fsdp, low=1)
        check_range("mesh.tensor", self.tensor, low=1)


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh (data, fsdp, tensor) over these devices, or over all of all processes.

    Raises InputError where the sizes do not multiply to their number.
    """
    devices = jax.devices() if devices is None else devices
    rest = config.fsdp * config.tensor
    shape = (config.data or max(len(devices) // rest, 1), config.fsdp, config.tensor)
    if np.prod(shape) != len(devices):
        sizes = " x ".join(f"{name} {size}" for name, size in zip(AXES, shape, strict=True))
        raise must_be("mesh", f"over all {len(devices)} devices", f"{sizes} = {np.prod(shape)}")
    # Auto: with Explicit, which is the default, a lookup in an embedding is an error.
    return Mesh(_arranged(shape, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arranged(shape: tuple[int, int, int], devices: Sequence[Any]) -> np.ndarray:
    """The devices such that neighbours on the mesh are neighbours on the machine; only `data` goes over TPU slices."""
    if (slices := len({getattr(device, "slice_index", 0) for device in devices})) > 1:
        if shape[0] % slices:
            raise must_be("mesh.data", f"a multiple of the {slices} slices of TPUs", shape[0])
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


def on_mesh(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    """The shape and the dtype of a leaf, with a sharding."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def mesh_of(config: MeshConfig, batch_sizes: Mapping[str, int]) -> Mesh:
    """The mesh over all devices, on which batches of these sizes can be laid out. Raises InputError."""
    mesh = make_mesh(config)
    parts = f"mesh.data {mesh.shape['data']} x mesh.fsdp {mesh.shape['fsdp']} = {batch_parts(mesh)}"
    for name, examples in batch_sizes.items():
        if examples % batch_parts(mesh):
            raise must_be(name, f"a multiple of {parts}", examples)
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
        per_process = f"a process's devices, {mesh.devices.size} over {len(rows)} processes"
        raise must_be("mesh.tensor", f"a divisor or a multiple of {per_process}", mesh.shape["tensor"])
    return shares.index(tuple(sorted(rows[jax.process_index()]))), len(shares)


def place_batch(mesh: Mesh, rows_BS: np.ndarray) -> jax.Array:
    """The batch of which these are this process's rows."""
    _, shares = share_of_batch(mesh)
    shape = (rows_BS.shape[0] * shares, *rows_BS.shape[1:])
    return jax.make_array_from_process_local_data(by_rows(mesh), rows_BS, shape)
