"""Growth of head_dim and of the vocabulary, in NumPy and in folders: what stays, and what is said of what is new."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from oracle import KEY, TOKENS, apart, forward, noisy
from representatives import few
from test_growth_exact import MODELS
from trees import noisy as noisy_float32

import growlm
from growlm import write_model
from growlm.__main__ import main
from growlm.errors import InputError
from growlm.formats.folder import open_folder
from growlm.growth import claim, describe, plan_growth, undo
from growlm.growth.expand import grow_params
from growlm.models import GptNeoxConfig, Kind, Role


def plain(config):
    """Without what scales layers, and norms over heads."""
    off = {"qk_norm": False, "base_layers": None, "norm_scaling": False}
    return dataclasses.replace(config, **{name: value for name, value in off.items() if hasattr(config, name)})


def grows_heads(config):
    head = config.architecture.axis["head_dim"]
    normed = any(w.role is Role.GAIN and dim.reads is head for w in config.weights for dim in w.dims)
    return head.kind is Kind.HEAD and not normed


PLAIN = {name: plain(config) for name, config in MODELS.items() if grows_heads(plain(config))}


def with_heads(config, head_dim, **sizes):
    """Larger heads; where they are rotated whole, at the base that keeps the frequencies."""
    if hasattr(config, "kv_heads"):
        sizes["rope_theta"] = config.rope_theta ** (head_dim / config.head_dim)
    return dataclasses.replace(config, head_dim=head_dim, **sizes)


def grown(growth, source, target, params):
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, grow_params(growth, source, target, params, KEY))


@pytest.mark.parametrize("head_dim", few([6, 16], [6]))
@pytest.mark.parametrize(
    ("operator", "options"),
    [("direct", {"noise": 0.3, "cancel": True}), ("zero", {}), ("zero", {"fill": "zeros"}), ("random", {})],
    ids=str,
)
@pytest.mark.parametrize("name", PLAIN)
def test_larger_heads_keep_the_function_and_are_undone(name, operator, options, head_dim):
    source = PLAIN[name]
    target = with_heads(source, head_dim, **({"mlp": 12} if operator != "random" else {}))
    growth, params = plan_growth(operator, source, target, KEY, **options), noisy(source)
    after = grown(growth, source, target, params)
    assert claim(growth, source, target)[0]
    assert apart(source, params, target, after) < 1e-11
    assert np.any(after["blocks"]["attn"]["key"][..., -1] != 0) == (options.get("fill") != "zeros")
    back = undo(after, target, source, json.loads(json.dumps(describe(growth, source, target))))
    for have, want in zip(jax.tree.leaves(back), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(have, want, rtol=0, atol=1e-12)


def test_without_the_factor_of_the_scores_nothing_is_claimed_and_the_function_changes():
    source = PLAIN["own"]
    target = dataclasses.replace(source, head_dim=8)
    growth = dataclasses.replace(plan_growth("direct", source, target, KEY), per_weight={})
    params = noisy(source)
    assert claim(growth, source, target) == (False, "products on head_dim change")
    assert apart(source, params, target, grown(growth, source, target, params)) > 1e-6


HEADS_REFUSED = {
    "the base": (
        "llama",
        {"head_dim": 8},
        r"model\.rope_theta must be 100000000 with model\.head_dim 8, so that rotary",
    ),
    "a norm": (
        "normed",
        {"head_dim": 8, "rope_theta": 1e8},
        "head_dim must be the source's, 4, since query_norm is of",
    ),
    "too many": ("llama", {"head_dim": 40}, r"model\.head_dim must be smaller: model\.rope_theta would be above 3e38"),
    "no growth": ("llama", {"rope_theta": 5.0}, r"model\.rope_theta must be the source's, 10000\.0, which no growth"),
}


@pytest.mark.parametrize("name", HEADS_REFUSED)
def test_heads_that_cannot_grow_say_why(name):
    model, sizes, message = HEADS_REFUSED[name]
    source = MODELS["llama"] if model == "normed" else PLAIN[model]
    with pytest.raises(InputError, match=message):
        plan_growth("direct", source, dataclasses.replace(source, **sizes), KEY)


def test_learned_maps_keep_heads():
    source = PLAIN["llama"]
    with pytest.raises(InputError, match=r"model\.head_dim must be the source's, 4, for learn, got 8"):
        plan_growth("learn", source, with_heads(source, 8), KEY)


NEOX = GptNeoxConfig(layers=1, embed=12, heads=2, head_dim=6, mlp=20, vocab=17, rotary_dim=2, norm_eps=1e-3)
FOLDERS = {
    "llama": (dataclasses.replace(PLAIN["llama"], qkv_bias=False, embed=16), {"head_dim": 16, "rope_theta": 1e16}),
    "gpt_neox": (NEOX, {"head_dim": 24, "embed": 48}),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_with_larger_heads_is_verified_and_undone_to_the_byte(tmp_path, capsys, name):
    source, sizes = FOLDERS[name]
    write_model(tmp_path / "small", source, noisy_float32(source), dtype="bfloat16")
    targets = [f"--target.{key}={value}" for key, value in sizes.items()]
    assert main(["grow", f"--source={tmp_path}/small", f"--output={tmp_path}/large", *targets]) == 0
    assert "the function is kept, as claimed" in capsys.readouterr().out
    assert open_folder(tmp_path / "large").model == dataclasses.replace(source, **sizes)
    assert main(["grow", "--undo", f"--source={tmp_path}/large", f"--output={tmp_path}/back"]) == 0
    before, after = (open_folder(tmp_path / folder) for folder in ("small", "back"))
    assert before.model == after.model
    for tensor_name, tensor in before.tensors.items():
        assert tensor.read().tobytes() == after.tensors[tensor_name].read().tobytes(), tensor_name


@pytest.mark.parametrize("operator", ["direct", "zero", "random"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(
    ("vocab", "says"),
    [
        ("initial", "new tokens get logits of their own"),
        ("zeros", "new tokens have logit 0"),
        ("mean", "a new token's logit is the mean of the old ones'"),
    ],
)
def test_new_tokens_begin_as_asked_and_the_claim_says_what_their_logits_are(operator, tied, vocab, says):
    source = dataclasses.replace(PLAIN["llama"], tie_embeddings=tied)
    target = dataclasses.replace(source, vocab=source.vocab + 3, embed=14 if operator == "direct" else 7)
    growth, params = plan_growth(operator, source, target, KEY, vocab=vocab), noisy(source)
    after = grown(growth, source, target, params)
    holds, reason = claim(growth, source, target)
    assert holds and says in reason
    assert apart(source, params, target, after) < 1e-11
    logits = forward(target, after, TOKENS)
    old, new = logits[..., : source.vocab], logits[..., source.vocab :]
    expected = {"zeros": 0.0, "mean": old.mean(-1, keepdims=True)}
    if vocab in expected:
        np.testing.assert_allclose(new, np.broadcast_to(expected[vocab], new.shape), atol=1e-11)
    else:
        assert np.abs(np.diff(new)).max() > 1e-3
    seen = after["embedding"][source.vocab :]
    assert np.any(seen != 0) == (vocab != "zeros")


def test_lookups_of_every_layer_grow_with_the_vocabulary_and_provenance_knows_new_rows():
    source = PLAIN["own"]
    target = dataclasses.replace(source, vocab=source.vocab + 2)
    growth, params = plan_growth("direct", source, target, vocab="mean"), noisy(source)
    after = grow_params(growth, source, target, params, None)  # no key: nothing is drawn
    for tree, axis in ((after["blocks"]["attn"]["value_embedding"], 1), (after["embedding"], 0)):
        kept, new = np.split(tree, [source.vocab], axis=axis)
        np.testing.assert_allclose(new, np.broadcast_to(kept.mean(axis, keepdims=True), new.shape), atol=1e-14)
    report = describe(growth, source, target)
    assert report["axes"]["vocab"]["from"] == [*range(source.vocab), -1, -1]
    with pytest.raises(InputError, match="vocab must be one of initial, mean, zeros, got 'average'"):
        growlm.grow(params, source, target, vocab="average")


def test_a_folder_gets_new_tokens_piece_by_piece(tmp_path, capsys):
    source = dataclasses.replace(PLAIN["llama"], qkv_bias=False, embed=16)
    write_model(tmp_path / "small", source, noisy_float32(source))
    arguments = [f"--source={tmp_path}/small", f"--output={tmp_path}/large", "--target.vocab=21", "--option.vocab=mean"]
    assert main(["grow", *arguments]) == 0
    assert "the mean of the old ones'" in capsys.readouterr().out
    _, params = growlm.read_model(tmp_path / "large")
    head, embedding = params["head"].T, params["embedding"]
    for rows in (head, embedding):
        np.testing.assert_allclose(rows[17:], np.broadcast_to(rows[:17].mean(0), (4, 16)), atol=1e-6)
