"""Run by test_init_from.py on 8 devices: the weights of a folder, on a mesh, against the same read whole."""

import json
import sys
from pathlib import Path

import jax
import numpy as np

from growlm.interop import read_model
from growlm.training.init_from import find_source
from growlm.training.mesh import make_mesh
from growlm.training.settings import MeshConfig, OptimizerConfig
from growlm.training.step import abstract_state, init_state

folder = Path(sys.argv[1])
mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
model, params = read_model(folder)
expected = jax.tree.leaves(jax.tree.map(np.asarray, params))
wanted = abstract_state(model, OptimizerConfig(), mesh)
read = find_source(folder).read(mesh)
rests = [a.sharding == b.sharding for a, b in zip(jax.tree.leaves(read), jax.tree.leaves(wanted.params), strict=True)]
state = init_state(model, OptimizerConfig(), 0, mesh, read)
rests += [
    a.sharding == b.sharding
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True)
    if hasattr(b, "sharding")
]
equal = [np.array_equal(a, b) for a, b in zip(jax.tree.leaves(state.params), expected, strict=True)]
parts = len(state.params["blocks"]["mlp"]["up"].addressable_shards)
print(json.dumps({"equal": all(equal), "resting": all(rests), "parts": parts}))
