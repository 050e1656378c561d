"""Stages under a static mask: what is kept, that all else is exactly zero whatever trains it, growth to dense, cost.

Run as a script, on 8 devices: a hash of the masks, and the losses of a sparse run that grows to dense, on meshes.
"""

import dataclasses
import hashlib
import json
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import tiny
from eight import on_eight_devices
from representatives import few

import growlm
from growlm.errors import InputError
from growlm.growth.overview import example
from growlm.models import ARCHITECTURES, ModelConfig, Role, next_token_loss, parameter_count, path_of
from growlm.models.sharding import AXES
from growlm.training.mesh import MeshConfig, make_mesh
from growlm.training.optimizer import OPTIMIZERS, OptimizerConfig, make_optimizer
from growlm.training.run import train
from growlm.training.sparsity import by_path, draw, draw_kept, sparse_weights
from growlm.training.stages import resolve
from growlm.training.step import StepSpec, run_keys, train_step

MODEL = ModelConfig(**tiny.MODEL | {"layers": 2})
MATRICES = {f"blocks/attn/{name}" for name in ("query", "key", "value", "out")} | {
    f"blocks/mlp/{name}" for name in ("gate", "up", "down")
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.write_corpus(tmp_path_factory.mktemp("corpus"))


# --- Masks -----------------------------------------------------------------------------------------------------------


def test_every_row_of_every_matrix_of_the_blocks_keeps_as_many():
    masks = by_path(draw(MODEL, 0.75, jax.random.key(0)))
    assert masks.keys() == MATRICES
    rows = {"blocks/attn/query": (2, 16, -1), "blocks/mlp/down": (2, 24, 16), "blocks/mlp/up": (2, 16, 24)}
    for path, shape in rows.items():
        kept = np.asarray(masks[path]).reshape(shape)
        assert (kept.sum(axis=1) == kept.shape[1] // 4).all()  # of what each output sums over
        assert not (kept[0] == kept[1]).all()
    out = np.asarray(masks["blocks/attn/out"])  # reads two axes
    assert (out.sum(axis=(1, 2)) == 4).all() and out.shape == (2, 2, 8, 16)
    share = np.mean([draw(MODEL, 0.75, jax.random.key(seed))["blocks"]["mlp"]["up"] for seed in range(40)], axis=0)
    assert abs(share - 0.25).max() < 0.3  # no place is favoured


def test_a_mask_depends_on_seed_and_path_alone_and_a_denser_one_has_it():
    masks, others = (by_path(draw(MODEL, 0.75, jax.random.key(seed))) for seed in (0, 1))
    again = by_path(draw(dataclasses.replace(MODEL, vocab=300), 0.75, jax.random.key(0)))
    denser = by_path(draw(MODEL, 0.5, jax.random.key(0)))
    for path, mask in masks.items():
        np.testing.assert_array_equal(mask, again[path])
        assert (mask != others[path]).any() and (denser[path] | ~mask).all()
        assert denser[path].sum() == 2 * mask.sum()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_roles_say_what_is_sparse_in_any_architecture(name):
    sparse = {weight.path for weight in sparse_weights(example(ARCHITECTURES[name]))}
    assert sparse
    for path in sparse:
        weight = ARCHITECTURES[name].weights[path]
        assert weight.role is Role.MATRIX and weight.stacked


# --- Updates ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_updates_are_those_of_optax_on_what_is_kept():
    config = OptimizerConfig(clip=0.5)
    kept = draw(MODEL, 0.75, jax.random.key(0))
    masks, rng = by_path(kept), np.random.default_rng(0)
    only = partial(jax.tree_util.tree_map_with_path, lambda path, leaf: leaf * masks.get(path_of(path), 1))
    params = only(growlm.init(MODEL, jax.random.key(1)))
    theirs, chain = params, optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2, 0.9, 0.95, weight_decay=0.1))
    state, arrays = chain.init(params), (params, make_optimizer(config, MODEL).init(params), None)
    step = jax.jit(partial(train_step, StepSpec(MODEL, config, sparsity=0.75)))
    gradient = jax.jit(jax.grad(lambda params, tokens: next_token_loss(MODEL, only(params), tokens)))
    for _ in range(4):
        tokens = rng.integers(0, 256, (4, 17))
        arrays, _ = step(arrays, tokens, np.float32(1e-2), {}, kept=kept)
        updates, state = chain.update(gradient(theirs, tokens), state, theirs)
        theirs = optax.apply_updates(theirs, updates)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-6), arrays[0], theirs)


def run_of(corpus: str, steps: int = 3, second=(), **options):
    return tiny.run_config(
        corpus,
        tiny.stage(steps, 2, sparsity=0.75, **options),
        tiny.grown(3, 2, **{"growth": {"operator": "direct", "optimizer_state": "map"}} | options | dict(second)),
        checkpoint={"every_tokens": 1, "max_to_keep": 9},
    )


@pytest.mark.parametrize("kind", few(OPTIMIZERS, ["adamw"]))
def test_what_is_not_kept_is_zero_under_every_optimizer(kind, corpus, tmp_path):
    """Weights, moments and the averaged copy; after growth to dense, which changes no loss, they train."""
    config = run_of(corpus, optimizer={"kind": kind, "ema": 0.9, "weight_decay": 0.5})
    train(config, tmp_path / "run")
    masks = by_path(draw(MODEL, 0.75, run_keys(0)[0]))
    for (_, step), path in tiny.checkpoints(tmp_path / "run" / "checkpoints").items():
        held = {name: value for name, value in tiny.read_checkpoint(path).items() if "provenance" not in name}
        for weight, mask in masks.items():
            end = "".join(f"['{part}']" for part in weight.split("/"))
            found = [value for name, value in held.items() if name.endswith(end) and value.shape == mask.shape]
            assert len(found) >= 3  # the weight, a moment at least, the averaged copy
            for value in found:
                assert (value[np.asarray(mask)] != 0).mean() > 0.9  # a square may be too small for a float
                assert bool(value[~np.asarray(mask)].any()) == (step > 3)
    losses = [record["val_loss"] for record in tiny.records(tmp_path / "run") if "val_loss" in record]
    assert losses[1] == losses[2]  # at the end of the sparse stage and where the dense one begins


@pytest.mark.slow
def test_a_run_that_gets_denser_and_stops_after_every_step_ends_with_the_same_bits(corpus, tmp_path):
    config = run_of(corpus, second={"sparsity": 0.5})
    train(config, tmp_path / "whole")
    assert tiny.train_in_parts(config, tmp_path / "parts") > 4
    whole, parts = (tiny.checkpoints(tmp_path / name / "checkpoints") for name in ("whole", "parts"))
    for place in ((0, 3), (3, 6)):
        tiny.assert_same_arrays(tiny.read_checkpoint(parts[place]), tiny.read_checkpoint(whole[place]))
    losses = [record["val_loss"] for record in tiny.records(tmp_path / "whole") if "val_loss" in record]
    assert losses[1] == losses[2]


# --- Cost, hashes, bad input -----------------------------------------------------------------------------------------


def test_what_is_kept_is_billed(corpus):
    dense = resolve(tiny.run_config(corpus, tiny.stage(3, 2)), "f")[0]
    stages = resolve(run_of(corpus), "f")
    tokens, sparse = 3 * tiny.STEP, sum(np.prod(w.shape(MODEL)) for w in MODEL.weights if w.path in MATRICES)
    for count in ("flops", "flops_exact"):
        saved = getattr(dense.cost_at(3), count) - getattr(stages[0].cost_at(3), count)
        assert saved == pytest.approx(6 * 0.75 * sparse * tokens)
        spent = getattr(stages[1].cost_at(6), count) - getattr(stages[0].cost_at(3), count)
        assert spent == pytest.approx(getattr(dense.cost_at(3), count))
    assert dense.cost_at(3).flops == 6 * parameter_count(MODEL) * tokens


def test_a_dense_stage_keeps_its_hash(corpus):
    hashes = [resolve(tiny.run_config(corpus, tiny.stage(3, **o)), "f")[0].stage_hash for o in ({}, {"sparsity": 0.0})]
    assert len({*hashes, resolve(tiny.run_config(corpus, tiny.stage(3, sparsity=0.5)), "f")[0].stage_hash}) == 2


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"sparsity": 1.0}, {}, "stage.sparsity must be .*, got 1.0"),
        ({"sparsity": 0.98}, {}, "stage.sparsity must leave a weight in each row of blocks/attn/.*, of 16, got 0.98"),
        ({}, {"sparsity": 0.5}, r"stages\[1\].sparsity must be <= 0, of what is masked, got 0.5"),
        ({"sparsity": 0.5}, {"sparsity": 0.7}, r"stages\[1\].sparsity must be <= 0.5, of what is masked, got 0.7"),
        ({"sparsity": 0.5}, {"sparsity": 0.5, "model": tiny.MODEL | {"layers": 4}}, r"must be <= 0, .* got 0.5"),
    ],
)
def test_a_wrong_sparsity_is_one_line(first, second, message, corpus):
    with pytest.raises(InputError, match=message):
        tiny.run_config(corpus, tiny.stage(3, 2, **first), tiny.grown(3, 2, **second))


# --- Devices ---------------------------------------------------------------------------------------------------------


def wide(corpus: str, **options):
    model = tiny.MODEL | {"embed": 32, "heads": 8, "kv_heads": 8, "head_dim": 4, "mlp": 48, "layers": 2}
    shape = {"batch": 16, "tokens": 3 * 16 * tiny.LENGTH, "model": model}
    return tiny.run_config(corpus, tiny.stage(3, **shape, sparsity=0.5), tiny.grown(3, **shape), **options)


def digest(mesh: dict) -> str:
    model = wide("stdlib").stages[0].model
    kept = draw_kept(model, 0.5, jax.random.key(3), make_mesh(MeshConfig(**mesh)))
    return hashlib.sha256(b"".join(np.asarray(mask).tobytes() for mask in jax.tree.leaves(kept))).hexdigest()


def test_masks_are_the_same_on_every_mesh():
    assert {*on_eight_devices(__file__)} == {digest({})}


@pytest.mark.slow
def test_a_mesh_trains_as_one_device_does(corpus, tmp_path):
    train(wide(corpus), tmp_path / "one")
    for of_mesh in on_eight_devices(__file__, tmp_path, corpus):
        np.testing.assert_allclose(of_mesh, tiny.losses(tmp_path / "one"), rtol=2e-5)


def main():
    meshes = {spec: dict(zip(AXES, map(int, spec.split("x")), strict=True)) for spec in ("8x1x1", "2x2x2")}
    if not sys.argv[1:]:
        print(json.dumps([digest(mesh) for mesh in meshes.values()]))
        return
    for spec, mesh in meshes.items():
        train(wide(sys.argv[2], mesh=mesh), Path(sys.argv[1]) / spec)
    print(json.dumps([tiny.losses(Path(sys.argv[1]) / spec) for spec in meshes]))


if __name__ == "__main__":
    main()
