"""Architectures trained on a mesh of 8 fake devices and on one of them; prints losses and parts. Run by tests.

architectures_on_eight.py own|NAME...
"""

import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
from own_architecture import OwnConfig

from growlm.growth.overview import example
from growlm.growth.plan import initial_provenance
from growlm.models import ARCHITECTURES, path_of
from growlm.training.mesh import MeshConfig, make_mesh, place_batch
from growlm.training.optimizer import OptimizerConfig
from growlm.training.step import StepSpec, compile_steps, init_state

OWN = OwnConfig(layers=2, embed=8, heads=2, head_dim=4, mlp=12, vocab=20, positions=16)
STEPS = 5


def trained(model, mesh):
    """Losses before every step, and after the last; and into how many parts each weight is split."""
    spec, tokens = StepSpec(model, OptimizerConfig()), np.random.default_rng(0).integers(model.vocab, size=(8, 13))
    state = init_state(model, spec.optimizer, 0, mesh)
    step, evaluate = compile_steps(spec, 8, 12, mesh)
    arrays, losses, provenance = state.arrays, [], initial_provenance(model)
    batch = place_batch(mesh, tokens.astype(np.int32))
    for _ in range(STEPS):
        arrays, metrics = step(arrays, batch, jnp.float32(1e-2), provenance, None)
        losses.append(float(metrics["loss"]))
    leaves = jax.tree_util.tree_leaves_with_path(arrays[0])
    parts = {path_of(path): len({str(shard.index) for shard in leaf.addressable_shards}) for path, leaf in leaves}
    return [*losses, float(evaluate(arrays[0], batch, provenance, None)[0])], parts


def both(model):
    """On many devices and on one."""
    (many, parts), (one, _) = (
        trained(model, mesh)
        for mesh in (
            make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)),
            make_mesh(MeshConfig(data=1), jax.devices()[:1]),
        )
    )
    assert all(map(math.isfinite, many))
    return {"many": many, "one": one, "parts": parts}


def main(names):
    models = {name: OWN if name == "own" else example(ARCHITECTURES[name]) for name in names}
    print(json.dumps({name: both(model) for name, model in models.items()}))


if __name__ == "__main__":
    main(sys.argv[1:])
