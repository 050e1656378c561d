"""Run by test_init_from.py on 8 devices: weights of folders on a mesh, against the same read whole; and a run there."""

import json
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import tiny

from growlm import read_model
from growlm.training.init_from import find_source
from growlm.training.mesh import MeshConfig, make_mesh
from growlm.training.optimizer import OptimizerConfig
from growlm.training.run import train
from growlm.training.step import abstract_state, init_state

MESH = {"data": 2, "fsdp": 2, "tensor": 2}
mesh = make_mesh(MeshConfig(**MESH))
equal, rests, parts = [], [], []


def as_wanted(have, want):
    """Whether every array lies where it should."""
    leaves = zip(jax.tree.leaves(have), jax.tree.leaves(want), strict=True)
    return [a.sharding == b.sharding for a, b in leaves if hasattr(b, "sharding")]


*folders, settings, workdir = sys.argv[1:]
for folder in map(Path, folders):
    model, params = read_model(folder)
    expected = jax.tree.map(np.array, params)
    wanted = abstract_state(model, OptimizerConfig(), mesh)
    read = find_source(folder).read(mesh)
    rests += as_wanted(read, wanted.params)
    state = init_state(model, OptimizerConfig(), 0, mesh, read)
    rests += as_wanted(state, wanted)
    equal += jax.tree.leaves(jax.tree.map(np.array_equal, state.params, expected))
    parts.append(len({str(shard.index) for shard in state.params["blocks"]["mlp"]["up"].addressable_shards}))

# With frozen originals: what is new has its place on the mesh too.
train(tiny.build_run(json.loads(settings) | {"mesh": MESH}), Path(workdir), threading.Event())
losses = [record["loss"] or record["val_loss"] for record in tiny.records(Path(workdir))]
print(json.dumps({"equal": all(equal), "resting": all(rests), "parts": parts, "losses": losses}))
