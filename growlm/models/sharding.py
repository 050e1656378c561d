"""Shardings on a mesh (data, fsdp, tensor), derived from the declaration of weights.

Weights are stored sharded: by `tensor` along the axes inside a block, by `fsdp` along the model width. A layer
all-gathers its weights over fsdp when it runs, and its gradients are reduce-scattered to the stored sharding. The batch
is sharded over data and fsdp. Without a mesh, as in a notebook, these functions do nothing.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from growlm.models.architecture import DecoderConfig
from growlm.models.axes import Dim, Weight

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")  # the first dimension of activations
GATHERED = "gathered weight"  # the checkpoint name of all-gathered weights


def current_mesh() -> AbstractMesh | None:
    """The mesh of `jax.set_mesh`, or None."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh


def batch_parts(mesh: Mesh | AbstractMesh) -> int:
    """The number of parts of a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def _spec(dims: tuple[Dim, ...], config: DecoderConfig, mesh: Mesh | AbstractMesh, axes: tuple[str, ...]):
    """Shards every dimension over its mesh axis if that is in `axes` and divides the size, each mesh axis once."""
    spec: list[str | None] = []
    for dim in dims:
        axis = dim.axis.mesh
        fits = axis in axes and axis not in spec and config.size(dim.axis) % mesh.shape[axis] == 0
        spec.append(axis if fits else None)
    return PartitionSpec(*spec)


def fsdp_spec(weight: Weight, config: DecoderConfig, mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """The stored sharding of a weight, over fsdp and tensor."""
    return _spec(weight.all_dims, config, mesh, AXES)


def shardings_of(tree: Any, config: DecoderConfig, mesh: Mesh) -> Any:
    """Shardings for a training state: a leaf at a parameter's path and of its shape (parameter, moment, EMA) gets that
    parameter's sharding; all other leaves are small, and replicated."""

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        _, weight, rest = config.architecture.match_weight(path)
        if weight is None or rest or leaf.shape != weight.shape(config):
            return NamedSharding(mesh, PartitionSpec())
        return NamedSharding(mesh, fsdp_spec(weight, config, mesh))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def all_gather(weight: Weight, config: DecoderConfig, value: jax.Array) -> jax.Array:
    """All-gathers one layer's weight over fsdp; the backward pass reduce-scatters its gradient."""
    if (mesh := current_mesh()) is None or mesh.shape["fsdp"] == 1:
        return value
    stored, used = (_spec(weight.dims, config, mesh, axes) for axes in (AXES, ("tensor",)))
    return checkpoint_name(_resharded(stored, used, value), GATHERED)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _resharded(stored: PartitionSpec, used: PartitionSpec, value: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(value, used)


def _resharded_forward(stored: PartitionSpec, used: PartitionSpec, value: jax.Array) -> tuple[jax.Array, None]:
    return _resharded(stored, used, value), None


def _resharded_backward(stored: PartitionSpec, used: PartitionSpec, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.with_sharding_constraint(gradient, stored),)


_resharded.defvjp(_resharded_forward, _resharded_backward)


def by_batch(x: jax.Array) -> jax.Array:
    """Shards the first dimension of an activation, batch or rows, over data and fsdp if they divide it."""
    mesh = current_mesh()
    if mesh is None or x.shape[0] % batch_parts(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH))


def on_every_device(kernel: Callable, arrays: tuple[jax.Array, ...], document_BT: jax.Array | None = None) -> Any:
    """Runs a function of attention that the compiler cannot partition, on every device's part of the batch and heads.

    kernel: called as kernel(*arrays, document_BT=...). Arrays and results are [B, T, heads, ...].
    """

    def part(document_BT: jax.Array | None, *arrays: jax.Array) -> Any:
        return kernel(*arrays, document_BT=document_BT)

    mesh = current_mesh()
    if mesh is None:
        return part(document_BT, *arrays)
    batch = BATCH if arrays[0].shape[0] % batch_parts(mesh) == 0 else None
    heads = "tensor" if all(x.shape[2] % mesh.shape["tensor"] == 0 for x in arrays) else None
    spec = PartitionSpec(batch, None, heads)
    ins = PartitionSpec(batch), *(spec for _ in arrays)
    # check_vma is off: kernels do not declare along which axes their results vary.
    return jax.shard_map(part, in_specs=ins, out_specs=spec, check_vma=False)(document_BT, *arrays)
