"""Growth compiled and run on 8 fake devices; prints what came of it as JSON. Run by test_growth_sharded."""

import dataclasses
import json
import re
from functools import partial

import jax
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from trees import noisy

from growlm import ModelConfig, grow
from growlm.growth import plan_growth
from growlm.growth.state import map_optimizer_state
from growlm.models import path_of

SOURCE = ModelConfig(layers=3, embed=64, heads=16, kv_heads=16, head_dim=8, mlp=128, vocab=256)
COLLECTIVE = re.compile(r"\b(all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)\b")
TRANSFER = re.compile(r"\b(infeed|outfeed|send|recv|xla_ffi_python|callback)\b")


def sharded(mesh, tree):
    """Every leaf over all devices, along its first dimension that 8 divides; never along the layers."""

    def sharding(path, leaf):
        stacked = "blocks/" in path_of(path)
        spec = [None] * leaf.ndim
        spec[min(axis for axis in range(int(stacked), leaf.ndim) if leaf.shape[axis] % 8 == 0)] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def bytes_on_a_device(tree, shardings):
    shapes = jax.tree.map(lambda leaf, sharding: np.prod(sharding.shard_shape(leaf.shape)) * 4, tree, shardings)
    return int(sum(jax.tree.leaves(shapes)))


def compiled_for(function, mesh, tree):
    """The function on sharded input, its output sharded alike: what was compiled, and what it costs."""
    target = jax.eval_shape(function, tree)
    ins, outs = sharded(mesh, tree), sharded(mesh, target)
    placed = jax.device_put(tree, ins)
    compiled = jax.jit(function, in_shardings=(ins,), out_shardings=outs).lower(placed).compile()
    memory = compiled.memory_analysis()
    used = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    expected = bytes_on_a_device(tree, ins) + bytes_on_a_device(target, outs)
    one, many = jax.jit(function)(tree), compiled(placed)
    same = all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True))
    text = compiled.as_text()
    kept = all(leaf.sharding == sharding for leaf, sharding in zip(*map(jax.tree.leaves, (many, outs)), strict=True))
    return {
        "collectives": sorted(set(COLLECTIVE.findall(text))),
        "transfers": sorted(set(TRANSFER.findall(text))),
        "memory": used / expected,
        "same": same,
        "shardings": kept,
    }


def main():
    jax.config.update("jax_disable_most_optimizations", False)  # memory and collectives are those that users get
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    params, key = noisy(SOURCE), jax.random.key(0)
    deep = dataclasses.replace(SOURCE, layers=12)
    wide = dataclasses.replace(deep, embed=128, heads=32, kv_heads=32, mlp=256)
    results = {}
    for name, target, options in (
        ("stack", deep, {}),
        ("interleave", deep, {"order": "interleave"}),
        ("zero", deep, {"operator": "zero"}),
        ("ragged", dataclasses.replace(SOURCE, layers=8), {}),
        ("depth and width", wide, {}),
    ):
        results[name] = compiled_for(partial(grow, source=SOURCE, target=target, key=key, **options), mesh, params)
    adam = optax.scale_by_adam().init(params)
    moments = {"mu": adam.mu, "nu": adam.nu}
    plan = plan_growth("direct", SOURCE, deep)
    results["moments"] = compiled_for(lambda state: map_optimizer_state(plan, SOURCE, state, "map"), mesh, moments)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
