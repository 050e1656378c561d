"""A mixture trained on a mesh of 8 fake devices and on one of them; prints what each says. Run by its test."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from growlm.growth.plan import initial_provenance
from growlm.models import MixtralConfig
from growlm.training.mesh import MeshConfig, make_mesh, place_batch
from growlm.training.optimizer import OptimizerConfig
from growlm.training.programs import compile_steps
from growlm.training.step import StepSpec, init_state

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


def main():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    alone = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    print(json.dumps({"many": said(mesh), "one": said(alone)}))


if __name__ == "__main__":
    main()
