"""A mixture trained on a mesh of 8 fake devices and on one of them; prints what each says. Run by its test."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from growlm.growth.plan import initial_provenance
from growlm.models import MixtralConfig
from growlm.models.blocked import blocked_experts
from growlm.models.moe import on_every_device
from growlm.models.ragged import chosen_experts
from growlm.training.mesh import MeshConfig, make_mesh, place_batch
from growlm.training.optimizer import OptimizerConfig
from growlm.training.step import StepSpec, compile_steps, init_state

SIZES = {"layers": 2, "embed": 8, "heads": 4, "kv_heads": 2, "head_dim": 4, "mlp": 12, "vocab": 20}
MODEL = MixtralConfig(**SIZES, experts=4, experts_per_token=2, normalised=False, shared_mlp=6, shared_router=True)
STEPS = 2


def said(mesh):
    """The metrics of every step."""
    spec, tokens = StepSpec(MODEL, OptimizerConfig()), np.random.default_rng(0).integers(20, size=(8, 13))
    state = init_state(MODEL, spec.optimizer, 0, mesh)
    step, _ = compile_steps(spec, 8, 12, mesh)
    arrays, found, batch = state.arrays, [], place_batch(mesh, tokens.astype(np.int32))
    for _ in range(STEPS):
        arrays, metrics = step(arrays, batch, jnp.float32(1e-2), initial_provenance(MODEL), None)
        found.append({name: float(value) for name, value in metrics.items()})
    return found


def gradients(mesh, way, rows):
    """Of a sum over so many rows, by rows, weights and experts."""
    rng = np.random.default_rng(0)
    shapes = (rows, 4), (rows, 2), (3, 4, 6), (3, 4, 6), (3, 6, 4)
    x_ND, weight_NK, *experts = (rng.standard_normal(shape).astype(np.float32) / 2 for shape in shapes)
    expert_NK = np.stack([np.arange(rows) % 2, np.full(rows, 2)], axis=1)

    def loss(x_ND, weight_NK, experts):
        return jnp.sum(jnp.sin(on_every_device(way, x_ND, weight_NK, expert_NK, experts)))

    with jax.set_mesh(mesh):
        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(x_ND, weight_NK, tuple(experts))


def apart(mesh, alone, way, rows):
    """The largest difference between the gradients on two meshes, over the largest gradient of its kind."""
    pairs = zip(*(jax.tree.leaves(gradients(each, way, rows)) for each in (mesh, alone)), strict=True)
    return float(max(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(b).max() for a, b in pairs))


def main():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    alone = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    ways = {"blocks": blocked_experts, "ragged": chosen_experts}
    cases = {name: apart(mesh, alone, way, rows=9) for name, way in ways.items()}  # which 4 parts do not divide
    print(json.dumps({"many": said(mesh), "one": said(alone), "apart": cases}))


if __name__ == "__main__":
    main()
