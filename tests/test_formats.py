"""Hugging Face folders read: what transformers computes, growlm computes too; and a fingerprint of their content."""

import dataclasses
import json

import hugging_face as hf
import jax
import numpy as np
import pytest
import tiny
from trees import leaf_at, noisy

import growlm
from growlm import read_model, write_model
from growlm.commands.convert import describe
from growlm.models import ModelConfig, check_params, nest
from growlm.training.init_from import find_source

TOLERANCE = 1e-4  # float32, logits of about 7


@pytest.fixture(scope="module", params=hf.CASES)
def family(request, tmp_path_factory):
    model = hf.make_model(request.param)
    return request.param, model, hf.save(model, tmp_path_factory.mktemp(request.param))


def test_logits_are_those_of_transformers(family):
    """40 tokens: five times the window, past the length to which the rope was scaled, and one at a time."""
    _, model, folder = family
    config, params = read_model(folder)
    check_params(config, params)
    tokens = hf.random_tokens(config.vocab)
    found, expected = np.asarray(growlm.apply(config, params, tokens)), hf.logits_of(model, tokens)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_every_variant_matters(family):
    """Without what a family has beside Llama, the logits are others: the test above would see it."""
    _, model, folder = family
    config, params = read_model(folder)
    tokens = hf.random_tokens(config.vocab)
    expected = hf.logits_of(model, tokens)
    plain = {"rope_scaling": None, "sliding_window": None, "qkv_bias": False, "qk_norm": False, "rope_theta": 123.0}
    plain |= {"rotary_dim": 2, "experts_per_token": 3, "query_scalar": 1, "score_cap": None, "logit_cap": None}
    plain |= {"local_rope_theta": 123.0} | ({"global_every": 3} if getattr(config, "global_every", 1) > 1 else {})
    plain |= {"shared_router": False, "normalised": not getattr(config, "normalised", False)}
    for name, value in plain.items():
        if getattr(config, name, value) == value:
            continue
        more = {"global_every": 1} if name == "sliding_window" and hasattr(config, "global_every") else {}
        other = dataclasses.replace(config, **more | {name: value})
        found = np.asarray(growlm.apply(other, _only(params, other), tokens))
        assert np.abs(found - expected).max() > 100 * TOLERANCE, name


def _only(params, config):
    return nest({weight.path: leaf_at(params, weight.path) for weight in config.weights})


def test_describe_says_what_it_is(family):
    name, model, folder = family
    text = describe(folder)
    assert f"Hugging Face, {hf.FAMILIES[name][0]}\n" in text
    assert f"{sum(p.numel() for p in model.parameters()):,}" in text
    assert ("tied head" in text) == model.config.tie_word_embeddings


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_values_are_read_exactly_from_one_file_or_many(dtype, tmp_path):
    model = hf.make_model("qwen3", dtype)
    one = read_model(hf.save(model, tmp_path / "one"))
    many = read_model(hf.save(model, tmp_path / "many", shard="20KB"))
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 2
    assert one[0] == many[0]
    jax.tree.map(np.testing.assert_array_equal, one[1], many[1])
    assert {leaf.dtype for leaf in jax.tree.leaves(one[1])} == {np.dtype(np.float32)}
    down = np.stack([layer.mlp.down_proj.weight.detach().float().numpy().T for layer in model.model.layers])
    np.testing.assert_array_equal(one[1]["blocks"]["mlp"]["down"], down)


def test_older_keys_of_the_rope_are_read(tmp_path):
    """Before transformers 5: rope_theta and rope_scaling, with `type` or `rope_type`."""
    folder = hf.save(hf.make_model("llama3"), tmp_path)
    config, _ = read_model(folder)
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    rope = settings.pop("rope_parameters")
    theta = rope.pop("rope_theta")
    for kind in ("type", "rope_type"):
        rope = {key: value for key, value in rope.items() if "type" not in key} | {kind: "llama3"}
        path.write_text(json.dumps(settings | {"rope_theta": theta, "rope_scaling": rope}))
        assert read_model(folder)[0] == config
    path.write_text(json.dumps(settings | {"rope_theta": theta, "rope_scaling": None}))
    assert read_model(folder)[0] == dataclasses.replace(config, rope_scaling=None)


def test_the_former_room_still_finds_what_was_in_it():
    with pytest.warns(DeprecationWarning, match=r"growlm.interop.read_model is now in"):
        assert growlm.interop.read_model is growlm.read_model


def test_a_large_tensor_is_known_by_its_beginning_its_middle_and_its_end(tmp_path):
    model = ModelConfig(**tiny.MODEL | {"layers": 1, "vocab": 4096})
    params = jax.tree.map(np.array, noisy(model))
    write_model(tmp_path / "a", model, params)
    marks = {find_source(tmp_path / "a").fingerprint}
    for row in (0, 2048, 4095):
        params["embedding"][row] += 1
        write_model(tmp_path / f"{row}", model, params)
        marks.add(find_source(tmp_path / f"{row}").fingerprint)
    assert len(marks) == 4


def test_the_fingerprint_of_a_folder_is_what_it_was(tmp_path):
    """It is in the hash of stages that began from it. Pinned: of tensors larger and smaller than its samples."""
    config = ModelConfig(layers=2, embed=64, heads=4, kv_heads=2, head_dim=16, mlp=100, vocab=130)
    shapes = {weight.path: weight.shape(config) for weight in config.weights}
    values = {path: (np.arange(np.prod(shape)) % 251 / 64).astype(np.float32) for path, shape in shapes.items()}
    params = nest({path: value.reshape(shapes[path]) for path, value in values.items()})
    write_model(tmp_path / "model", config, params, dtype="bfloat16")
    assert find_source(tmp_path / "model").fingerprint == "db38deddaddf9f29"
