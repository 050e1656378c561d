import dataclasses
import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import exact_products, nest

from growlm import InputError, ModelConfig, apply, init
from growlm.models import (
    LLAMA,
    Dim,
    RopeScaling,
    check_params,
    declared,
    map_weights,
    matmul_parameter_count,
    parameter_count,
    path_of,
)

# Every size is another number, so that no axis can stand in for another.
CONFIG = ModelConfig(layers=3, embed=16, heads=4, kv_heads=2, head_dim=6, mlp=20, vocab=40, qkv_bias=True, qk_norm=True)
SHAPES = {
    "embedding": (40, 16),
    "blocks/attn_norm/scale": (3, 16),
    "blocks/attn/query": (3, 16, 4, 6),
    "blocks/attn/key": (3, 16, 2, 6),
    "blocks/attn/value": (3, 16, 2, 6),
    "blocks/attn/query_bias": (3, 4, 6),
    "blocks/attn/key_bias": (3, 2, 6),
    "blocks/attn/value_bias": (3, 2, 6),
    "blocks/attn/query_norm": (3, 6),
    "blocks/attn/key_norm": (3, 6),
    "blocks/attn/out": (3, 4, 6, 16),
    "blocks/mlp_norm/scale": (3, 16),
    "blocks/mlp/gate": (3, 16, 20),
    "blocks/mlp/up": (3, 16, 20),
    "blocks/mlp/down": (3, 20, 16),
    "final_norm/scale": (16,),
    "head": (16, 40),
}
BIASES = ("blocks/attn/query_bias", "blocks/attn/key_bias", "blocks/attn/value_bias")
QK_NORMS = ("blocks/attn/query_norm", "blocks/attn/key_norm")
# The scale of the paper's code, sqrt(2 / (5 fan_in)), with the fan-in by hand.
STDS = {
    "embedding": 0.25 / math.sqrt(16),
    "blocks/attn/query": math.sqrt(0.4 / 16),
    "blocks/attn/key": math.sqrt(0.4 / 16),
    "blocks/attn/value": math.sqrt(0.4 / 16),
    "blocks/attn/out": math.sqrt(0.4 / (4 * 6)) / math.sqrt(2 * 3),
    "blocks/mlp/gate": math.sqrt(0.4 / 16),
    "blocks/mlp/up": math.sqrt(0.4 / 16),
    "blocks/mlp/down": math.sqrt(0.4 / 20) / math.sqrt(2 * 3),
    "head": 0.25 / math.sqrt(16),
}


def tree_of(shapes):
    return nest({path: np.zeros(shape, np.float32) for path, shape in shapes.items()})


@pytest.mark.parametrize(
    ("options", "absent"),
    [
        ({}, ()),
        ({"qkv_bias": False}, BIASES),
        ({"qk_norm": False}, QK_NORMS),
        ({"tie_embeddings": True}, ("head",)),
        ({"qkv_bias": False, "qk_norm": False, "tie_embeddings": True}, (*BIASES, *QK_NORMS, "head")),
    ],
)
def test_declared_shapes_are_those_by_hand(options, absent):
    config = dataclasses.replace(CONFIG, **options)
    expected = {path: shape for path, shape in SHAPES.items() if path not in absent}
    assert {weight.path: weight.shape(config) for weight in declared(config)} == expected
    assert parameter_count(config) == sum(map(math.prod, expected.values()))


def test_init_gives_the_declared_shapes():
    params = jax.eval_shape(partial(init, CONFIG), jax.random.key(0))
    assert {path_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)} == SHAPES


def test_model_without_layers_has_every_block_weight_and_no_parameter_in_it():
    config = dataclasses.replace(CONFIG, layers=0)
    shapes = {}
    map_weights(lambda w, leaf: shapes.update({w.path: leaf.shape}), config, init(config, jax.random.key(0)))
    assert shapes == {path: (0, *shape[1:]) if path.startswith("blocks/") else shape for path, shape in SHAPES.items()}
    assert parameter_count(config) == 2 * 40 * 16 + 16 and matmul_parameter_count(config) == 40 * 16


def test_block_shape_has_no_layer_axis():
    assert LLAMA.weights["blocks/attn/out"].block_shape(CONFIG) == (4, 6, 16)
    assert LLAMA.weights["head"].block_shape(CONFIG) == LLAMA.weights["head"].shape(CONFIG) == (16, 40)


def test_what_a_weight_reads_and_writes():
    axes = {
        path: ([d.reads.name for d in w.dims if d.reads], [d.writes.name for d in w.dims if d.writes])
        for path, w in LLAMA.weights.items()
    }
    assert axes == {
        "embedding": (["vocab"], ["stream"]),
        "blocks/attn_norm/scale": (["stream"], ["embed"]),
        "blocks/attn/query": (["embed"], ["heads", "head_dim"]),
        "blocks/attn/key": (["embed"], ["key_heads", "head_dim"]),
        "blocks/attn/value": (["embed"], ["value_heads", "head_dim"]),
        "blocks/attn/query_bias": ([], ["heads", "head_dim"]),
        "blocks/attn/key_bias": ([], ["key_heads", "head_dim"]),
        "blocks/attn/value_bias": ([], ["value_heads", "head_dim"]),
        "blocks/attn/query_norm": (["head_dim"], ["head_dim"]),
        "blocks/attn/key_norm": (["head_dim"], ["head_dim"]),
        "blocks/attn/out": (["heads", "head_dim"], ["stream"]),
        "blocks/mlp_norm/scale": (["stream"], ["embed"]),
        "blocks/mlp/gate": (["embed"], ["mlp"]),
        "blocks/mlp/up": (["embed"], ["mlp"]),
        "blocks/mlp/down": (["mlp"], ["stream"]),
        "final_norm/scale": (["stream"], ["final"]),
        "head": (["final"], ["vocab"]),
    }
    assert {path for path, weight in LLAMA.weights.items() if weight.residual} == {"blocks/attn/out", "blocks/mlp/down"}
    assert {path for path, weight in LLAMA.weights.items() if not weight.elementwise} == STDS.keys()


def test_dim_parses_what_it_reads_and_what_it_writes():
    axes = LLAMA.axis
    embed, mlp, stream, final = (axes[name] for name in ("embed", "mlp", "stream", "final"))
    assert Dim.parse("embed>", axes) == Dim(embed, None) and Dim.parse("embed>", axes).axis is embed
    assert Dim.parse(">mlp", axes) == Dim(None, mlp) and Dim.parse(">mlp", axes).axis is mlp
    assert Dim.parse("stream>final", axes) == Dim(stream, final)
    assert Dim.parse("layers:", axes) == Dim(None, axes["layers"], many=True)


def test_sizes_of_the_axes():
    axes = ("layers", "stream", "embed", "final", "heads", "key_heads", "value_heads", "head_dim", "mlp", "vocab")
    assert [CONFIG.size(LLAMA.axis[axis]) for axis in axes] == [3, 16, 16, 16, 4, 2, 2, 6, 20, 40]


# arXiv 2405.15319: the shapes of its code with their counts in millions, in total and without embedding and head.
SHAPE_410M = {"embed": 1024, "heads": 16, "kv_heads": 16, "head_dim": 64, "mlp": 2816}
SHAPE_1B = {"embed": 2048, "heads": 32, "kv_heads": 32, "head_dim": 64, "mlp": 5632}
SHAPE_3B = {"embed": 2560, "heads": 20, "kv_heads": 4, "head_dim": 128, "mlp": 7040}
SHAPE_7B = {"embed": 4096, "heads": 32, "kv_heads": 8, "head_dim": 128, "mlp": 11008}
SHAPE_NOISE = {"embed": 2048, "heads": 16, "kv_heads": 4, "head_dim": 128, "mlp": 5632}


@pytest.mark.parametrize(
    ("shape", "layers", "total", "body"),
    [
        (SHAPE_410M, 24, 373.9, 308.3),
        (SHAPE_410M, 6, 142.6, 77.1),
        (SHAPE_1B, 24, 1364.3, 1233.2),
        (SHAPE_1B, 12, 747.7, None),
        (SHAPE_1B, 6, 439.4, 308.3),
        (SHAPE_1B, 3, 285.2, None),
        (SHAPE_1B, 1, 182.5, None),
        (SHAPE_3B, 32, 2397.5, 2233.6),
        (SHAPE_3B, 8, 722.3, None),
        (SHAPE_3B, 4, 443.0, None),
        (SHAPE_3B, 2, 303.4, None),
        (SHAPE_3B, 1, 233.6, None),
        (SHAPE_7B, 32, 5933.1, 5671.0),
        (SHAPE_7B, 8, 1679.9, 1417.7),
        (SHAPE_NOISE, 24, 1213.3, None),
        (SHAPE_NOISE, 8, 491.8, None),
    ],
)
def test_parameter_counts_are_the_published_ones(shape, layers, total, body):
    config = ModelConfig(layers=layers, vocab=32000, **shape)
    count = parameter_count(config)
    assert round(count / 1e6, 1) == total
    if body is not None:
        assert round((count - 2 * 32000 * config.embed) / 1e6, 1) == body


def test_parameter_count_to_the_last_one():
    # 2 x 32000 x 2048 + 24 x (4 x 2048^2 + 3 x 2048 x 5632 + 2 x 2048) + 2048
    assert parameter_count(ModelConfig(layers=24, vocab=32000, **SHAPE_1B)) == 1_364_297_728


def test_matmul_parameter_count_by_hand():
    # query and out 16 x 24, key and value 16 x 12, three of 16 x 20, a head of 16 x 40; no gain, no bias
    products = 3 * (2 * 384 + 2 * 192 + 3 * 320) + 640
    assert matmul_parameter_count(CONFIG) == products
    assert matmul_parameter_count(dataclasses.replace(CONFIG, qkv_bias=False, qk_norm=False)) == products
    assert matmul_parameter_count(dataclasses.replace(CONFIG, tie_embeddings=True)) == products


def test_matmul_parameter_count_is_what_the_model_multiplies():
    """Every product with a weight takes rows x (size of the weight) multiplications: counted in the program."""
    rows, weights = 5, 0

    def visit(jaxpr, times):
        nonlocal weights
        for equation in jaxpr.eqns:
            inner = times * equation.params.get("length", 1) if equation.primitive.name == "scan" else times
            if equation.primitive.name == "dot_general":
                left, right = (v.aval.shape for v in equation.invars)
                if left == (rows, right[0]):
                    weights += inner * math.prod(right)
            for part in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
                if hasattr(part := getattr(part, "jaxpr", part), "eqns"):
                    visit(part, inner)

    shapes = jax.eval_shape(partial(init, CONFIG), jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((1, rows), jnp.int32)
    visit(jax.make_jaxpr(partial(apply, CONFIG))(shapes, tokens).jaxpr, 1)
    assert weights == matmul_parameter_count(CONFIG)


def test_declared_std_is_the_one_by_hand():
    stds = {weight.path: weight.std(CONFIG) for weight in declared(CONFIG) if not weight.elementwise}
    assert stds == pytest.approx(STDS)


def test_only_residual_writers_start_smaller_in_a_deeper_model():
    deep = dataclasses.replace(CONFIG, layers=12)
    for path in STDS:
        ratio = LLAMA.weights[path].std(deep) / LLAMA.weights[path].std(CONFIG)
        assert ratio == pytest.approx(0.5 if path in ("blocks/attn/out", "blocks/mlp/down") else 1.0), path


def test_initial_values_have_the_declared_scale_in_every_layer():
    # wide enough that the sample tells: at least 2048 values a layer, so 5% is more than three standard errors
    config = dataclasses.replace(CONFIG, embed=64, heads=8, kv_heads=4, head_dim=8, mlp=96, vocab=64)
    with exact_products():
        params = init(config, jax.random.key(1))
    expected = {
        "embedding": 0.25 / 8,
        "blocks/attn/query": math.sqrt(0.4) / 8,
        "blocks/attn/key": math.sqrt(0.4) / 8,
        "blocks/attn/value": math.sqrt(0.4) / 8,
        "blocks/attn/out": math.sqrt(0.4 / 64 / 6),
        "blocks/mlp/gate": math.sqrt(0.4) / 8,
        "blocks/mlp/up": math.sqrt(0.4) / 8,
        "blocks/mlp/down": math.sqrt(0.4 / 96 / 6),
        "head": 0.25 / 8,
    }
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        path, leaf = path_of(path), np.asarray(leaf)
        if path not in expected:
            np.testing.assert_array_equal(leaf, 0.0 if path.endswith("_bias") else 1.0)
            continue
        for layer in leaf if path.startswith("blocks/") else leaf[None]:
            assert np.std(layer) == pytest.approx(expected[path], rel=0.05), path
            assert abs(np.mean(layer)) < 4 * expected[path] / math.sqrt(layer.size), path


def test_map_weights_visits_every_leaf_once_and_keeps_the_structure():
    seen, ones = [], jax.tree.map(np.ones_like, tree_of(SHAPES))
    twos = jax.tree.map(lambda leaf: 2 * leaf, ones)

    def add(weight, leaf, other):
        seen.append(weight.path)
        assert leaf.shape == weight.shape(CONFIG)
        return leaf + other

    total = map_weights(add, CONFIG, ones, twos)
    assert sorted(seen) == sorted(SHAPES)
    chex.assert_trees_all_equal(total, jax.tree.map(lambda leaf: 3 * leaf, ones))


def test_check_params_takes_the_declared_tree_in_any_order():
    check_params(CONFIG, tree_of(SHAPES))
    check_params(CONFIG, tree_of(dict(reversed(SHAPES.items()))))


@pytest.mark.parametrize("path", SHAPES)
def test_missing_leaf_is_refused(path):
    tree = tree_of({other: shape for other, shape in SHAPES.items() if other != path})
    with pytest.raises(InputError, match=f"parameter '{path}' must be in the tree of this model, got none"):
        map_weights(lambda weight, leaf: leaf, CONFIG, tree)


@pytest.mark.parametrize("path", SHAPES)
def test_leaf_of_another_shape_is_refused(path):
    shape = (*SHAPES[path][:-1], SHAPES[path][-1] + 1)
    with pytest.raises(InputError) as error:
        check_params(CONFIG, tree_of(SHAPES | {path: shape}))
    assert f"the shape of parameter '{path}' must be {SHAPES[path]} for this model, got {shape}" in str(error.value)


@pytest.mark.parametrize("extra", ["blocks/mlp/gate_bias", "lm_head", "blocks/attn/scale"])
def test_leaf_that_is_not_declared_is_refused(extra):
    with pytest.raises(InputError, match=f"a parameter of this model must be one of embedding, .* got '{extra}'"):
        check_params(CONFIG, tree_of(SHAPES | {extra: (3, 6)}))


@pytest.mark.parametrize(
    ("option", "value", "extra"),
    [("tie_embeddings", True, "head"), ("qkv_bias", False, BIASES[1]), ("qk_norm", False, QK_NORMS[1])],
)
def test_leaf_of_another_variant_is_refused(option, value, extra):
    with pytest.raises(InputError, match=f"a parameter of this model must be one of .* got '{extra}'"):
        check_params(dataclasses.replace(CONFIG, **{option: value}), tree_of(SHAPES))


SIZES = ("layers", "embed", "heads", "kv_heads", "head_dim", "mlp", "vocab")


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name in SIZES for value in (0, -2, True, 2.0, "4", None) if (name, value) != ("layers", 0)],
)
def test_size_that_is_no_positive_integer_is_refused(name, value):
    with pytest.raises(InputError) as error:
        dataclasses.replace(CONFIG, **{name: value})
    allowed = "an integer >= 0" if name == "layers" else "a positive integer"
    assert str(error.value) == f"model.{name} must be {allowed}, got {value!r}"


@pytest.mark.parametrize("name", ["norm_eps", "rope_theta"])
@pytest.mark.parametrize("value", [0, 0.0, -1e-5, math.nan, math.inf])
def test_constant_that_is_not_positive_is_refused(name, value):
    with pytest.raises(InputError) as error:
        dataclasses.replace(CONFIG, **{name: value})
    assert str(error.value) == f"model.{name} must be a positive number, got {value!r}"


ROPES = {
    "kind": ({"kind": "yarn"}, ("'yarn'", "linear, llama3")),
    "factor": ({"factor": 0.0}, ("factor must be a positive number", "got 0.0")),
    "text": ({"original_length": "8192"}, ("original_length", "'8192'")),
    "order": ({"low_freq_factor": 4.0}, ("low_freq_factor must be below high_freq_factor, 4", "got 4")),
}


@pytest.mark.parametrize("name", ROPES)
def test_rope_scaling_out_of_range_is_refused(name):
    changes, said = ROPES[name]
    with pytest.raises(InputError) as error:
        RopeScaling(**{"kind": "llama3", "factor": 8.0} | changes)
    assert all(word in str(error.value) for word in said), error.value


@pytest.mark.parametrize(
    ("name", "value"), [("rope_scaling", {"kind": "linear"}), *(("sliding_window", x) for x in (0, -1, True, 4.0))]
)
def test_scaling_or_window_that_is_none_is_refused(name, value):
    with pytest.raises(InputError, match=rf"^model\.{name} must be None or a .*, got .*"):
        dataclasses.replace(CONFIG, **{name: value})


def test_heads_that_do_not_share_evenly_are_refused():
    with pytest.raises(InputError, match=r"^model\.heads must be a multiple of model\.kv_heads, 3, got 4$"):
        dataclasses.replace(CONFIG, kv_heads=3)
    with pytest.raises(InputError, match=r"^model\.heads must be a multiple of model\.kv_heads, 8, got 4$"):
        dataclasses.replace(CONFIG, kv_heads=8)


def test_odd_head_dim_is_refused():
    with pytest.raises(InputError, match=r"^model\.head_dim must be even, as RoPE rotates pairs, got 7$"):
        dataclasses.replace(CONFIG, head_dim=7)


def test_bad_config_is_a_value_error():
    assert issubclass(InputError, ValueError)


def test_config_is_frozen_and_hashable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CONFIG.layers = 4
    assert hash(CONFIG) == hash(dataclasses.replace(CONFIG))
    assert dataclasses.replace(CONFIG, layers=4) != CONFIG
