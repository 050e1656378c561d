"""The own architecture trained on a mesh of 8 fake devices and on one of them; prints losses. Run by its test."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from own_architecture import OwnConfig

from growlm.growth.plan import initial_provenance
from growlm.training.mesh import MeshConfig, make_mesh, place_batch
from growlm.training.optimizer import OptimizerConfig
from growlm.training.programs import compile_steps
from growlm.training.step import StepSpec, init_state

MODEL = OwnConfig(layers=2, embed=8, heads=2, head_dim=4, mlp=12, vocab=20, positions=16)
KEPT = {"out": ("attn", "out"), "up": ("mlp", "up"), "values": ("attn", "value_embedding")}
STEPS = 5


def losses(mesh, model=MODEL, kept=KEPT):
    """Before every step, and after the last; and into how many parts some arrays are split."""
    program, tokens = StepSpec(model, OptimizerConfig()), np.random.default_rng(0).integers(20, size=(8, 13))
    state = init_state(model, program.optimizer, 0, mesh)
    step, evaluate = compile_steps(program, 8, 12, mesh)
    arrays, found, provenance = state.arrays, [], initial_provenance(model)
    batch = place_batch(mesh, tokens.astype(np.int32))
    for _ in range(STEPS):
        arrays, metrics = step(arrays, batch, jnp.float32(1e-2), provenance, None)
        found.append(float(metrics["loss"]))
    leaves = {name: arrays[0]["blocks"][branch][weight] for name, (branch, weight) in kept.items()}
    parts = {name: len({str(shard.index) for shard in leaf.addressable_shards}) for name, leaf in leaves.items()}
    return [*found, float(evaluate(arrays[0], batch, provenance, None))], parts


def main(*model):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    alone = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    (many, parts), (one, _) = losses(mesh, *model), losses(alone, *model)
    print(json.dumps({"many": many, "one": one, "parts": parts}))


if __name__ == "__main__":
    main()
