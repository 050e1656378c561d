"""Where arrays lie on a mesh (data, fsdp, tensor), derived from what the weights declare.

A weight rests in parts: by `tensor` along the axes inside a block, by `fsdp` along the model width. It is used whole
along fsdp: a layer gathers its weights when its turn comes, and its gradients are summed where their parts rest. The
batch is split over data and fsdp. Without a mesh, as in a notebook, nothing here does anything.
"""

from functools import partial
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from growlm.models.axes import DecoderConfig, Dim, Weight

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")  # the first dimension of activations
GATHERED = "gathered weight"  # the name by which a rematerialisation policy knows what should not be kept


def current_mesh() -> AbstractMesh | None:
    """The mesh that is being compiled for, as `jax.set_mesh` says; None where there is none."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh


def batch_parts(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts a batch is split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def _spec(dims: tuple[Dim, ...], config: DecoderConfig, mesh: Mesh | AbstractMesh, axes: tuple[str, ...]):
    """Every dimension over its mesh axis, if that is one of `axes`; sizes that it does not divide stay whole.

    Of two dimensions over one mesh axis the first has it: an array is split over a mesh axis once.
    """
    spec: list[str | None] = []
    for dim in dims:
        axis = dim.axis.mesh
        fits = axis in axes and axis not in spec and config.size(dim.axis) % mesh.shape[axis] == 0
        spec.append(axis if fits else None)
    return PartitionSpec(*spec)


def fsdp_spec(weight: Weight, config: DecoderConfig, mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """How a weight lies in the parameter tree."""
    return _spec(weight.all_dims, config, mesh, AXES)


def shardings_of(tree: Any, config: DecoderConfig, mesh: Mesh) -> Any:
    """The sharding of every leaf of a tree with trees like the parameters in it: moments lie as their weights do.

    Whatever belongs to no weight, or is not shaped like it, is small, and whole on every device.
    """

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        _, weight, rest = config.architecture.match_weight(path)
        shaped = weight is not None and not rest and leaf.shape == weight.shape(config)
        return NamedSharding(mesh, fsdp_spec(weight, config, mesh) if shaped else PartitionSpec())

    return jax.tree_util.tree_map_with_path(sharding, tree)


def all_gather(weight: Weight, config: DecoderConfig, value: jax.Array) -> jax.Array:
    """A weight (without the layer axis) whole along fsdp; its gradient is summed into the parts in which it rests."""
    if (mesh := current_mesh()) is None or mesh.shape["fsdp"] == 1:
        return value
    rests, used = (_spec(weight.dims, config, mesh, axes) for axes in (AXES, ("tensor",)))
    return checkpoint_name(_moved(rests, used, value), GATHERED)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _moved(rests: PartitionSpec, used: PartitionSpec, value: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(value, used)


def _moved_forward(rests: PartitionSpec, used: PartitionSpec, value: jax.Array) -> tuple[jax.Array, None]:
    return _moved(rests, used, value), None


def _moved_backward(rests: PartitionSpec, used: PartitionSpec, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.with_sharding_constraint(gradient, rests),)


_moved.defvjp(_moved_forward, _moved_backward)


def by_batch(x: jax.Array) -> jax.Array:
    """An activation whose first dimension is the batch, or rows of it, split over data and fsdp where that divides."""
    mesh = current_mesh()
    if mesh is None or x.shape[0] % batch_parts(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH))
