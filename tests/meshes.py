"""Runs of one config on meshes of 8 fake devices; prints their records as JSON. Run by test_mesh."""

import json
import sys
import threading
from pathlib import Path

import jax
import tiny

from growlm.models import ModelConfig
from growlm.models.sharding import AXES
from growlm.training.mesh import MeshConfig, make_mesh
from growlm.training.optimizer import OptimizerConfig
from growlm.training.run import train
from growlm.training.step import init_state

WIDE = {"embed": 32, "heads": 8, "kv_heads": 8, "head_dim": 4, "mlp": 48}  # 8 divides everything
NEXT = {"embed": 64, "heads": 16, "kv_heads": 16, "mlp": 96}
BATCH = 16


def config(corpus: str, mesh: dict, microbatches: int = 1):
    """Ten steps, growth in depth and width, ten more."""
    shape = {"batch": BATCH, "tokens": 10 * BATCH * tiny.LENGTH, "microbatches": microbatches}
    model = tiny.MODEL | WIDE
    first = tiny.stage(10, **shape) | {"model": model}
    second = tiny.grown(10, **shape) | {"model": model | NEXT | {"layers": 2}}
    return tiny.run_config(corpus, first, second, mesh=mesh)


def lies(mesh: dict) -> dict[str, list[int]]:
    """The part of some arrays of a state that one device holds."""
    model = ModelConfig(**tiny.MODEL | WIDE)
    state = init_state(model, OptimizerConfig(), 0, make_mesh(MeshConfig(**mesh)))
    found = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state.arrays)}
    return {
        path: leaf.sharding.shard_shape(leaf.shape)
        for path, leaf in found.items()
        if path.endswith(("['gate']", "['head']"))
    }


def main():
    folder, corpus = Path(sys.argv[1]), sys.argv[2]
    results = {"lies": lies({"data": 2, "fsdp": 2, "tensor": 2}), "losses": {}}
    for spec in sys.argv[3:]:
        sizes, _, microbatches = spec.partition(":")
        mesh = dict(zip(AXES, map(int, sizes.split("x")), strict=True))
        train(config(corpus, mesh, int(microbatches or 1)), folder / spec, threading.Event())
        results["losses"][spec] = [r["loss"] for r in tiny.records(folder / spec) if r["loss"] is not None]
    print(json.dumps(results))


if __name__ == "__main__":
    main()
