import dataclasses
import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from representatives import few
from trees import block_by_block, exact_products, largest, leaf_at, noisy, random_tokens

import growlm
from growlm import InputError, ModelConfig
from growlm.models import (
    REMAT_POLICIES,
    declared,
    next_token_loss,
    parameter_count,
)
from growlm.models.attention import rotary_table, rotate
from growlm.models.decoder import documents
from growlm.models.layers import rms_norm

PLAIN = ModelConfig(layers=2, embed=16, heads=4, kv_heads=2, head_dim=6, mlp=24, vocab=40)
FULL = dataclasses.replace(PLAIN, layers=3, qkv_bias=True, qk_norm=True)
TIED = dataclasses.replace(FULL, tie_embeddings=True, norm_eps=1e-2, rope_theta=100.0)

STATIC = ("dtype", "remat", "frozen_layers")
apply = jax.jit(growlm.apply, static_argnums=0, static_argnames=STATIC[:2])
loss = jax.jit(next_token_loss, static_argnums=0, static_argnames=STATIC)
gradient = jax.jit(jax.value_and_grad(next_token_loss, argnums=1), static_argnums=0, static_argnames=STATIC)


@pytest.fixture(scope="module", autouse=True)
def short_compiles():
    with exact_products():
        yield


def mean_cross_entropy(logits, tokens):
    return float(optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]).mean())


def turns_by_hand(config, length):
    """The rotation of every pair as a complex number, [position, pair]."""
    half = config.head_dim // 2
    frequency = config.rope_theta ** (-2 * np.arange(half) / config.head_dim)
    return np.exp(1j * np.arange(length)[:, None] * frequency)


def reference(config, params, tokens, turns):
    """The decoder once more: NumPy, float64, one example, one head and one position at a time."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    half, group = config.head_dim // 2, config.heads // config.kv_heads

    def norm(x, gain):
        return x / np.sqrt(np.mean(x * x) + config.norm_eps) * gain

    def turn(x, position):
        pairs = (x[:half] + 1j * x[half:]) * turns[position]
        return np.concatenate([pairs.real, pairs.imag])

    def project(attn, layer, name, head, x):
        y = x @ attn[name][layer, :, head]
        if config.qkv_bias:
            y = y + attn[f"{name}_bias"][layer, head]
        if config.qk_norm and name != "value":
            y = norm(y, attn[f"{name}_norm"][layer])
        return y

    def attend(attn, layer, rows):
        added = np.zeros_like(rows)
        for head in range(config.heads):
            query = [turn(project(attn, layer, "query", head, x), t) for t, x in enumerate(rows)]
            key = [turn(project(attn, layer, "key", head // group, x), t) for t, x in enumerate(rows)]
            value = [project(attn, layer, "value", head // group, x) for x in rows]
            for t in range(len(rows)):
                weight = np.exp([query[t] @ key[s] / math.sqrt(config.head_dim) for s in range(t + 1)])
                mixed = sum(w * v for w, v in zip(weight / weight.sum(), value, strict=False))
                added[t] += mixed @ attn["out"][layer, head]
        return added

    logits = []
    for example in np.asarray(tokens):
        x, blocks = p["embedding"][example], p["blocks"]
        for layer in range(config.layers):
            x = x + attend(blocks["attn"], layer, np.array([norm(r, blocks["attn_norm"]["scale"][layer]) for r in x]))
            y = np.array([norm(r, blocks["mlp_norm"]["scale"][layer]) for r in x])
            gate, up = y @ blocks["mlp"]["gate"][layer], y @ blocks["mlp"]["up"][layer]
            x = x + (gate / (1 + np.exp(-gate)) * up) @ blocks["mlp"]["down"][layer]
        x = np.array([norm(r, p["final_norm"]["scale"]) for r in x])
        logits.append(x @ (p["embedding"].T if config.tie_embeddings else p["head"]))
    return np.array(logits)


@pytest.mark.parametrize("config", [PLAIN, FULL, TIED], ids=["plain", "full", "tied"])
def test_logits_are_those_of_the_reference(config):
    params, tokens = noisy(config), random_tokens(config, 2, 9)
    logits = apply(config, params, tokens)
    chex.assert_shape(logits, (2, 9, config.vocab))
    expected = reference(config, params, tokens, turns_by_hand(config, 9))
    assert expected.std() > 0.3
    np.testing.assert_allclose(logits, expected, atol=2e-5)


@pytest.mark.parametrize("tied", few([False, True], [False]), ids=["untied", "tied"])
@pytest.mark.parametrize(("vocab", "embed"), [(64, 32), (256, 32), (32000, 16)])
def test_initial_loss_is_that_of_guessing(vocab, embed, tied):
    config = ModelConfig(
        layers=2, embed=embed, heads=2, kv_heads=1, head_dim=8, mlp=32, vocab=vocab, tie_embeddings=tied
    )
    params = growlm.init(config, jax.random.key(0))
    assert loss(config, params, random_tokens(config, 8, 33)) == pytest.approx(math.log(vocab), rel=0.02)


def test_init_is_a_function_of_the_key_and_gives_stacked_float32():
    params = growlm.init(FULL, jax.random.key(3))
    chex.assert_trees_all_equal(params, growlm.init(FULL, jax.random.key(3)))
    assert type(params) is dict and type(params["blocks"]["attn"]) is dict
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert all(leaf.shape[0] == FULL.layers for leaf in jax.tree.leaves(params["blocks"]))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameter_count(FULL)
    other = growlm.init(FULL, jax.random.key(4))
    for weight in (w for w in declared(FULL) if not w.elementwise):
        mine, theirs = (leaf_at(tree, weight.path) for tree in (params, other))
        assert not np.any(mine == theirs), weight.path
        if weight.stacked:
            assert not np.any(mine[0] == mine[1]), weight.path


def test_weights_of_one_shape_start_differently():
    params = growlm.init(FULL, jax.random.key(3))
    assert not jnp.any(params["blocks"]["mlp"]["gate"] == params["blocks"]["mlp"]["up"])
    assert not jnp.any(params["blocks"]["attn"]["key"] == params["blocks"]["attn"]["value"])


def test_a_position_sees_itself_and_what_came_before_in_its_own_example():
    batch, length = 2, 6
    params = noisy(FULL)
    tokens = jnp.asarray(np.random.default_rng(1).permutation(FULL.vocab)[: batch * length].reshape(batch, length))
    direction = jnp.asarray(np.random.default_rng(2).standard_normal(FULL.vocab), jnp.float32)

    def outputs(embedding):
        return (growlm.apply(FULL, params | {"embedding": embedding}, tokens) @ direction).reshape(-1)

    jacobian = jax.jit(jax.jacrev(outputs))(params["embedding"])  # [position, vocab, embed]
    # every token is another one, so the rows of the embedding are the positions
    reached = jnp.abs(jacobian).max(-1)[:, tokens.reshape(-1)]
    seen = np.kron(np.eye(batch), np.tril(np.ones((length, length)))) > 0
    np.testing.assert_array_equal(reached[~seen], 0.0)
    assert jnp.all(reached[seen] > 1e-6)


def test_scan_is_the_loop_over_the_blocks():
    params, tokens = noisy(FULL), random_tokens(FULL, 2, 9)
    x = block_by_block(FULL, params, range(FULL.layers), tokens)
    x = rms_norm(x, FULL.norm_eps) * params["final_norm"]["scale"]
    expected = (x @ params["head"]).reshape(2, 9, -1)
    np.testing.assert_allclose(apply(FULL, params, tokens), expected, atol=1e-5)


@pytest.mark.parametrize("config", few([FULL, TIED], [FULL]), ids=["untied", "tied"])
def test_model_without_layers_is_embedding_norm_and_head(config):
    config = dataclasses.replace(config, layers=0)
    params, tokens = noisy(config), random_tokens(config, 2, 9)
    x = np.asarray(params["embedding"], np.float64)[tokens]
    x = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + config.norm_eps) * params["final_norm"]["scale"]
    expected = x @ (params["embedding"].T if config.tie_embeddings else params["head"])
    np.testing.assert_allclose(apply(config, params, tokens), expected, atol=1e-5)
    for remat in REMAT_POLICIES:
        value, gradients = gradient(config, params, tokens, remat=remat)
        assert value == pytest.approx(mean_cross_entropy(expected, tokens), rel=1e-5)
        assert all(np.abs(leaf_at(gradients, w.path)).max() > 1e-6 for w in declared(config) if not w.stacked)


def grown_by_hand(config, params, tokens, scales):
    """The logits where a layer moves the stream by its share of what the whole block would."""
    x = params["embedding"][tokens.reshape(-1)]
    positions = np.arange(tokens.size).reshape(tokens.shape)
    for layer, scale in enumerate(scales):
        x = x + scale * (block_by_block(config, params | {"embedding": x}, [layer], positions) - x)
    x = rms_norm(x, config.norm_eps) * params["final_norm"]["scale"]
    return (x @ params["head"]).reshape(*tokens.shape, -1)


def without_layer(config, params, layer):
    blocks = jax.tree.map(lambda leaf: jnp.delete(leaf, layer, axis=0), params["blocks"])
    return dataclasses.replace(config, layers=config.layers - 1), params | {"blocks": blocks}


def test_block_scale_is_the_share_of_the_block():
    params, tokens = noisy(FULL), random_tokens(FULL, 2, 9)
    plain = apply(FULL, params, tokens)
    ones = jnp.ones(FULL.layers)
    np.testing.assert_allclose(apply(FULL, params, tokens, block_scale=ones), plain, atol=1e-5)
    for layer in range(FULL.layers):
        expected = apply(*without_layer(FULL, params, layer), tokens)
        assert np.abs(expected - plain).max() > 0.1
        np.testing.assert_allclose(
            apply(FULL, params, tokens, block_scale=ones.at[layer].set(0.0)), expected, atol=1e-5
        )
    for scales in ([0.5, 0.5, 0.5], [0.5, 1.25, -0.25]):
        found = apply(FULL, params, tokens, block_scale=np.array(scales, np.float32))
        np.testing.assert_allclose(found, grown_by_hand(FULL, params, tokens, scales), atol=1e-5)


def test_block_scale_keeps_the_compute_dtype_and_is_differentiable():
    params, tokens = noisy(FULL), random_tokens(FULL, 2, 9)
    scale = jnp.asarray([0.5, 0.25, 0.75])
    exact, rounded = (loss(FULL, params, tokens, dtype=t, block_scale=scale) for t in (jnp.float32, jnp.bfloat16))
    assert rounded == pytest.approx(float(exact), rel=0.01)
    assert exact == pytest.approx(mean_cross_entropy(grown_by_hand(FULL, params, tokens, scale), tokens), rel=1e-5)
    slope = jax.jit(jax.grad(lambda s: next_token_loss(FULL, params, tokens, block_scale=s, frozen_layers=1)))(scale)
    step = 1e-2 * np.eye(3, dtype=np.float32)[2]
    rise = loss(FULL, params, tokens, block_scale=scale + step) - loss(FULL, params, tokens, block_scale=scale - step)
    assert slope[0] == 0 and slope[2] == pytest.approx(float(rise) / 2e-2, rel=0.02)


def trained_part(gradients, frozen):
    """What does not belong to the embedding and the frozen layers."""
    above = jax.tree.map(lambda leaf: leaf[frozen:], gradients["blocks"])
    return {name: leaf for name, leaf in gradients.items() if name != "embedding"} | {"blocks": above}


@pytest.mark.parametrize(
    ("config", "remat"), few([(FULL, "none"), (TIED, "full")], [(TIED, "full")]), ids=["untied", "tied, remat"]
)
def test_frozen_layers_and_the_embedding_are_constants(config, remat):
    params, tokens, scale = noisy(config), random_tokens(config, 2, 9), jnp.asarray([0.5, 1.5, 1.0])
    loss_of = partial(gradient, config, params, tokens, remat=remat, block_scale=scale)
    value, gradients = loss_of()
    for frozen in range(1, config.layers + 1):
        found_value, found = loss_of(frozen_layers=frozen)
        assert found_value == pytest.approx(float(value), rel=1e-6)
        constant = found["embedding"], jax.tree.map(lambda leaf, k=frozen: leaf[:k], found["blocks"])
        assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(constant))
        expected = trained_part(gradients, frozen)
        chex.assert_trees_all_close(trained_part(found, frozen), expected, rtol=1e-4, atol=1e-6)


def product_flops(jaxpr):
    """Of a traced program; XLA's own analysis counts the body of a loop once, however often it runs."""
    flops = 0
    for equation in jaxpr.eqns:
        name, options = equation.primitive.name, equation.params
        parts = jax.tree.leaves(list(options.values()), is_leaf=lambda x: hasattr(x, "eqns"))
        inner = [product_flops(part) for part in parts if hasattr(part, "eqns")]
        flops += (options["length"] if name == "scan" else 1) * sum(inner)
        if name == "dot_general":
            left, contracted = equation.invars[0].aval.shape, options["dimension_numbers"][0][0]
            flops += 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
    return flops


@pytest.mark.parametrize("remat", few(["none", "full"], ["none"]))
def test_frozen_layers_have_no_backward_pass(remat):
    tokens = random_tokens(PLAIN, 2, 17)

    def flops(layers, frozen=None):
        """Of the gradient with so many frozen layers; of the loss without."""
        config = dataclasses.replace(PLAIN, layers=layers)
        program = partial(next_token_loss, config, tokens=tokens, remat=remat, frozen_layers=frozen or 0)
        return product_flops(jax.make_jaxpr(program if frozen is None else jax.grad(program))(noisy(config)).jaxpr)

    forward = flops(2) - flops(1)  # of one layer
    for frozen, trained in ((3, 1), (6, 2), (4, 0)):
        assert flops(frozen + trained, frozen) == flops(trained, 0) + frozen * forward
    assert flops(8, 6) <= 0.6 * flops(8, 0)


def test_remat_changes_what_is_kept_and_nothing_else():
    params, tokens = noisy(FULL), random_tokens(FULL, 2, 9)

    def floats_kept(remat):
        loss_of = partial(next_token_loss, FULL, tokens=tokens, remat=remat)
        backward = jax.eval_shape(lambda p: jax.vjp(loss_of, p)[1], params)
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    expected = gradient(FULL, params, tokens)
    assert list(REMAT_POLICIES) == ["none", "dots", "attention", "dots_and_attention", "full"]
    for remat in list(REMAT_POLICIES)[1:]:
        chex.assert_trees_all_close(gradient(FULL, params, tokens, remat=remat), expected, rtol=1e-4, atol=1e-6)
    assert floats_kept("full") < floats_kept("dots") < floats_kept("none")
    kept = floats_kept("attention") - floats_kept("full")
    assert kept == FULL.layers * 2 * 8 * FULL.heads * (FULL.head_dim + 1)  # a sum beside each head's output
    assert floats_kept("dots_and_attention") == floats_kept("dots") + kept


@pytest.mark.parametrize("frozen", few([0, 1], [1]))
def test_within_documents_the_loss_is_that_of_the_documents_alone(frozen):
    """Two documents in a row give the losses of each alone; what ends the first one predicts the second's first."""
    params, tokens = noisy(FULL), np.asarray(random_tokens(FULL, 1, 12)) % (FULL.vocab - 1)
    end = FULL.vocab - 1
    tokens[0, 5] = end
    options = {"document_end": end, "frozen_layers": frozen}
    together, apart = next_token_loss(FULL, params, tokens, **options), next_token_loss(FULL, params, tokens)
    first, second = (next_token_loss(FULL, params, part) for part in (tokens[:, :7], tokens[:, 6:]))
    np.testing.assert_allclose(11 * together, 6 * first + 5 * second, rtol=1e-5)
    assert abs(together - apart) > 1e-3


def test_the_token_that_ends_a_document_belongs_to_it():
    np.testing.assert_array_equal(documents(jnp.array([[0, 3, 5, 0, 0, 2]]), 0), [[0, 1, 1, 1, 2, 3]])


def test_grouped_heads_are_repeated_key_and_value_heads():
    grouped = FULL
    every = dataclasses.replace(grouped, kv_heads=grouped.heads)
    params, tokens = noisy(grouped), random_tokens(grouped, 2, 9)
    attn = params["blocks"]["attn"]
    repeated = {name: jnp.repeat(attn[name], 2, axis=-2) for name in ("key", "value", "key_bias", "value_bias")}
    same = params | {"blocks": params["blocks"] | {"attn": attn | repeated}}
    np.testing.assert_allclose(apply(every, same, tokens), apply(grouped, params, tokens), atol=1e-5)


def test_attention_logits_depend_on_the_distance_only():
    length, head_dim = 16, 8
    query, key = np.random.default_rng(0).standard_normal((2, head_dim)).astype(np.float32)
    rotary = rotary_table(length, head_dim, 10000.0)
    queries, keys = (rotate(jnp.broadcast_to(x, (1, length, 1, head_dim)), rotary)[0, :, 0] for x in (query, key))
    score = np.asarray(queries @ keys.T)
    for offset in range(1 - length, length):
        diagonal = np.diagonal(score, offset)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-5)
    assert np.ptp(score[0]) > 0.1
    np.testing.assert_allclose(score[0, 0], query @ key, rtol=1e-5)


def test_rotation_turns_the_pairs_of_a_llama_checkpoint():
    # head_dim 4: the pairs are (0, 2) and (1, 3), of the frequencies 1 and theta^(-1/2)
    x = jnp.asarray([1.0, 1.0, 0.0, 0.0]).reshape(1, 1, 1, 4)
    turned = rotate(jnp.tile(x, (1, 4, 1, 1)), rotary_table(4, 4, 100.0))[0, 3, 0]
    expected = [math.cos(3), math.cos(0.3), math.sin(3), math.sin(0.3)]
    np.testing.assert_allclose(turned, expected, atol=1e-6)


def test_rms_norm_by_hand():
    x = jnp.asarray([[3.0, 4.0]])
    np.testing.assert_allclose(rms_norm(x, 0.0), [[3 / math.sqrt(12.5), 4 / math.sqrt(12.5)]], rtol=1e-6)
    np.testing.assert_allclose(rms_norm(x, 3.5), [[0.75, 1.0]], rtol=1e-6)
    assert rms_norm(x.astype(jnp.bfloat16), 0.0).dtype == jnp.bfloat16


@pytest.mark.parametrize("config", [FULL, TIED], ids=["untied", "tied"])
def test_every_weight_of_every_layer_takes_part(config):
    params, tokens = noisy(config), random_tokens(config, 2, 9)
    _, gradients = gradient(config, params, tokens)
    for weight in declared(config):
        leaf = leaf_at(gradients, weight.path)
        assert leaf.shape == weight.shape(config)
        for layer in leaf if weight.stacked else leaf[None]:
            assert np.abs(layer).max() > 1e-6, weight.path


def test_qk_norm_makes_the_scale_of_queries_and_keys_immaterial():
    tokens = random_tokens(PLAIN, 2, 9)

    def change(config):
        params = noisy(config)
        attn = params["blocks"]["attn"]
        larger = params | {"blocks": params["blocks"] | {"attn": attn | {"query": 30 * attn["query"]}}}
        return largest(apply(config, larger, tokens) - apply(config, params, tokens))

    assert change(dataclasses.replace(PLAIN, qk_norm=True, norm_eps=1e-9)) < 1e-4
    assert change(PLAIN) > 0.1


def test_bfloat16_is_close_and_the_logits_stay_float32():
    params, tokens = noisy(FULL), random_tokens(FULL, 2, 9)
    exact, rounded = (apply(FULL, params, tokens, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    assert exact.dtype == rounded.dtype == jnp.float32
    assert 1e-4 < largest(rounded - exact) < 0.15 * exact.std()
    exact, rounded = (loss(FULL, params, tokens, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    assert rounded.dtype == jnp.float32
    assert rounded == pytest.approx(float(exact), rel=0.01)


def test_float64_is_float64_all_the_way():
    with jax.enable_x64(True):
        params, tokens = noisy(FULL), random_tokens(FULL, 2, 9)
        exact, rounded = (loss(FULL, params, tokens, dtype=dtype) for dtype in (jnp.float64, jnp.float32))
        assert (exact.dtype, rounded.dtype) == (jnp.float64, jnp.float32)
        assert rounded == pytest.approx(float(exact), rel=1e-5)
        logits = apply(FULL, params, tokens, dtype=jnp.float64)
        assert logits.dtype == jnp.float64
        cos, sin = rotary_table(9, FULL.head_dim, FULL.rope_theta)  # float32 in any case
        expected = reference(FULL, params, tokens, np.asarray(cos[:, 0]) + 1j * np.asarray(sin[:, 0]))
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_loss_is_the_mean_cross_entropy_of_the_logits(dtype):
    params, tokens = noisy(PLAIN), random_tokens(PLAIN, 2, 9)
    logits = apply(PLAIN, params, tokens, dtype=dtype)
    value = loss(PLAIN, params, tokens, dtype=dtype)
    chex.assert_shape(value, ())
    assert value == pytest.approx(mean_cross_entropy(logits, tokens), rel=1e-5)
    assert abs(value - math.log(PLAIN.vocab)) > 0.05


def test_loss_survives_logits_that_overflow_exp():
    params, tokens = noisy(PLAIN), random_tokens(PLAIN, 2, 9)
    value = loss(PLAIN, params | {"head": 1e4 * params["head"]}, tokens)
    assert jnp.isfinite(value) and value > 1000


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tokens_may_be_any_integers(dtype):
    params, tokens = noisy(PLAIN), random_tokens(PLAIN, 2, 9)
    np.testing.assert_array_equal(apply(PLAIN, params, np.asarray(tokens, dtype)), apply(PLAIN, params, tokens))


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (np.zeros(4, np.int32), r"int32\[4\]"),
        (np.zeros((1, 2, 4), np.int32), r"int32\[1, 2, 4\]"),
        (np.zeros((2, 4), np.float32), r"float32\[2, 4\]"),
        (np.zeros((2, 4), bool), r"bool\[2, 4\]"),
        (np.zeros((2, 0), np.int32), r"int32\[2, 0\]"),
        (np.zeros((0, 4), np.int32), r"int32\[0, 4\]"),
        ([1, 2, 3], r"int32\[3\]"),
    ],
)
def test_bad_tokens_are_refused(tokens, text):
    params = noisy(PLAIN)
    with pytest.raises(InputError, match=f"tokens must be integers .batch >= 1, length >= 1., got {text}"):
        growlm.apply(PLAIN, params, tokens)
    with pytest.raises(InputError, match=f"tokens must be integers .batch >= 1, length >= 2., got {text}"):
        next_token_loss(PLAIN, params, tokens)


def test_one_token_has_logits_and_no_loss():
    params, tokens = noisy(PLAIN), np.zeros((2, 1), np.int32)
    chex.assert_shape(apply(PLAIN, params, tokens), (2, 1, PLAIN.vocab))
    with pytest.raises(InputError, match=r"integers .batch >= 1, length >= 2., got int32\[2, 1\]"):
        next_token_loss(PLAIN, params, tokens)


def test_parameters_of_another_model_are_refused():
    tokens = random_tokens(PLAIN, 2, 9)
    with pytest.raises(
        InputError, match=r"parameter 'blocks/attn_norm/scale' must be \(5, 16\) for this model, got \(2, 16\)"
    ):
        growlm.apply(dataclasses.replace(PLAIN, layers=5), noisy(PLAIN), tokens)
    with pytest.raises(InputError, match="'head' must be in the tree of this model, got none"):
        growlm.apply(PLAIN, {k: v for k, v in noisy(PLAIN).items() if k != "head"}, tokens)


def test_unknown_remat_policy_is_refused():
    params, tokens = noisy(PLAIN), random_tokens(PLAIN, 2, 9)
    for function in (growlm.apply, next_token_loss):
        with pytest.raises(InputError, match=r"remat policy must be one of .* got 'ful'; did you mean 'full'"):
            function(PLAIN, params, tokens, remat="ful")


@pytest.mark.parametrize("frozen", [-1, 3, True, 1.0, "1", None])
def test_number_of_frozen_layers_that_the_model_has_not_is_refused(frozen):
    with pytest.raises(InputError) as error:
        next_token_loss(PLAIN, noisy(PLAIN), random_tokens(PLAIN, 2, 9), frozen_layers=frozen)
    assert str(error.value) == f"frozen_layers must be an integer from 0 to 2, got {frozen!r}"


@pytest.mark.parametrize(
    ("scale", "text"),
    [
        (np.ones(3, np.float32), "float32[3]"),
        (np.ones((2, 1), np.float32), "float32[2, 1]"),
        (np.float32(1), "float32[]"),
        (np.ones(2, np.int32), "int32[2]"),
        (np.ones(2, bool), "bool[2]"),
    ],
)
def test_block_scale_that_is_not_a_float_for_every_layer_is_refused(scale, text):
    params, tokens = noisy(PLAIN), random_tokens(PLAIN, 2, 9)
    for function in (growlm.apply, next_token_loss):
        with pytest.raises(InputError) as error:
            function(PLAIN, params, tokens, block_scale=scale)
        assert str(error.value) == f"block_scale must be floats [2], one for each layer, got {text}"
