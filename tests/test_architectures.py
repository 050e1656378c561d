"""What an architecture declares is all that growlm knows of it: one that it has never seen does everything."""

import ast
import dataclasses
import itertools
from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from eight import on_eight_devices
from oracle import KEY, difference_in_numpy
from own_architecture import OWN, OwnConfig
from registered import UNLEARNED
from representatives import few
from trees import exact_products, leaf_at, noisy, random_tokens

import growlm
from growlm import InputError
from growlm.growth import OPERATORS, grow_state, plan_growth, verify
from growlm.growth.expand import expand_params, grow_params
from growlm.growth.maps import dual, dual_squared
from growlm.growth.plan import initial_provenance
from growlm.models import (
    ARCHITECTURES,
    Gemma2Config,
    Gemma3Config,
    GemmaConfig,
    Gpt2Config,
    GptNeoxConfig,
    LoopedConfig,
    MixtralConfig,
    ModelConfig,
    ModernConfig,
    Olmo2Config,
    OlmoConfig,
    OlmoeConfig,
    Role,
    RopeScaling,
    SambaConfig,
    TokenformerConfig,
    Weight,
    WeightSpec,
    flops_per_token,
    hidden_states,
    init,
    matmul_parameter_count,
    next_token_loss,
    path_of,
)
from growlm.training.optimizer import GROUPS, OptimizerConfig, make_optimizer
from growlm.training.step import StepSpec, init_state, train_step

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "growlm"
SHAPE = {"layers": 2, "embed": 8, "heads": 2, "head_dim": 4, "mlp": 12, "vocab": 20}
MODEL = OwnConfig(**SHAPE, positions=16)
WINDOWS = {"sliding_window": 8, "global_every": 2}
MODELS = {
    "llama": ModelConfig(**SHAPE, kv_heads=1),
    "gpt2": Gpt2Config(**SHAPE, positions=16, tie_embeddings=False),
    "gpt_neox": GptNeoxConfig(**SHAPE, rotary_dim=2),
    "mixtral": MixtralConfig(**SHAPE, kv_heads=1, experts=2, experts_per_token=1, shared_mlp=6),
    "olmoe": OlmoeConfig(**SHAPE, kv_heads=1, experts=2, experts_per_token=1),
    "looped": LoopedConfig(**SHAPE, prelude=1, injection=0.7),
    "modern": ModernConfig(**SHAPE, kv_heads=1, zero_init=False),
    "samba": SambaConfig(
        2, embed=8, channels=12, dt_rank=2, heads=2, kv_heads=1, head_dim=4, mlp=12, vocab=20, state=3
    ),
    "tokenformer": TokenformerConfig(2, 8, 2, 4, 6, 6, 12, 20, rotary_dim=2),
    "own": MODEL,
    "olmo": OlmoConfig(**SHAPE, kv_heads=1),
    "olmo2": Olmo2Config(**SHAPE, kv_heads=1, **WINDOWS),
    "gemma": GemmaConfig(**SHAPE, kv_heads=1, tie_embeddings=False),
    "gemma2": Gemma2Config(**SHAPE, kv_heads=1, **WINDOWS, tie_embeddings=False),
    "gemma3_text": Gemma3Config(**SHAPE, kv_heads=1, **WINDOWS, logit_cap=30.0, tie_embeddings=False),
}
DEEP = dataclasses.replace(MODEL, layers=4)
WIDE = dataclasses.replace(MODEL, embed=16, heads=4, mlp=24)
TARGETS = {"depth": DEEP, "width": WIDE, "both": dataclasses.replace(WIDE, layers=4, embed=19, vocab=22)}
OPTIONS = {name: {} for name in OPERATORS} | {  # with which growlm's own keep the function
    "direct": {"zero_residual": True},
    "random": {"mask_tokens": 100},
    "learn": {"steps": 2, "warmup": 1},
}
EXACT = ("direct", "zero", "random")
TOKENS = random_tokens(MODEL, 3, 13)

exact = pytest.fixture(autouse=True, scope="module")(exact_products.__wrapped__)


def initial_in_numpy(weight, key, config, whole=False):
    """Of the key that a weight is given, with nothing compiled."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    return 0.3 * rng.standard_normal(weight.shape(config)) + (weight.init == "ones")


def test_every_architecture_is_tried_here():
    assert MODELS.keys() == {*ARCHITECTURES, "own"}
    assert all(config.architecture.name == name for name, config in MODELS.items())


def test_an_architecture_is_one_short_file_and_no_line_of_growlm_knows_it():
    lines = [line for line in (HERE / "own_architecture.py").read_text().splitlines() if line.strip()]
    assert len(lines) <= 60
    own = ("own_architecture", "OwnConfig", "ValueAttention", "value_embedding")
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text()
        assert not [name for name in own if name in text], file
    assert OWN.name not in ARCHITECTURES


@pytest.mark.slow
def test_it_trains_on_eight_devices_as_on_one():
    found = on_eight_devices(HERE / "architectures_on_eight.py", "own")["own"]
    parts = {path: found["parts"][f"blocks/{path}"] for path in ("attn/out", "mlp/up", "attn/value_embedding")}
    assert parts == {"attn/out": 4, "mlp/up": 2, "attn/value_embedding": 2}
    np.testing.assert_allclose(found["many"], found["one"], rtol=1e-5)
    assert found["many"][-1] < found["many"][0] - 0.2
    assert np.all(np.diff(found["many"]) < 0)


@pytest.mark.parametrize("operator", few(OPTIONS, ("zero", "learn")))
def test_every_operator_grows_it_in_depth_and_width_and_its_verdict_is_good(operator):
    target, options = TARGETS["both"], dict(OPTIONS[operator])
    if operator == "direct":
        target = dataclasses.replace(target, embed=16)  # under LayerNorm whole copies are exact
    params, batches = noisy(MODEL), [TOKENS] * 2
    grown = growlm.grow(params, MODEL, target, operator, key=KEY, batches=batches, **options)
    growth = plan_growth(operator, MODEL, target, KEY, **options)
    report = verify(MODEL, params, target, grown, TOKENS, growth, steps=2, learning_rate=1e-3)
    assert report["ok"], report
    function = report["items"]["function"]
    assert function["claimed"] is function["holds"]
    assert function["claimed"] is (operator in EXACT) or operator not in (*EXACT, "learn")
    assert report["items"]["training"]["holds"]


@pytest.mark.parametrize("way", ["depth", "width"])
def test_depth_alone_and_width_alone_keep_its_function_and_learned_maps_have_its_shapes(way, monkeypatch):
    monkeypatch.setattr(Weight, "initial", initial_in_numpy)
    monkeypatch.setattr(Weight, "noise", initial_in_numpy)
    for operator in UNLEARNED:
        logits, claims, _ = difference_in_numpy(MODEL, TARGETS[way], operator, **OPTIONS[operator])
        assert claims is bool(logits < 1e-12) and (claims or operator not in EXACT), operator
    monkeypatch.undo()
    target = TARGETS[way]
    learned = growlm.grow(noisy(MODEL), MODEL, target, "learn", key=KEY, batches=[TOKENS], steps=1, warmup=1)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(learned))


def trained(config, optimizer, state, steps):
    step = jax.jit(partial(train_step, StepSpec(config, optimizer)))
    for _ in range(steps):
        arrays, _ = step(state.arrays, TOKENS, jnp.float32(1e-2), state.provenance)
        state = state.advanced(arrays, *TOKENS.shape)
    return state


@pytest.fixture(scope="module")
def optimizer():
    return OptimizerConfig(clip=1e9)


@pytest.fixture(scope="module")
def state(optimizer):
    """After three steps."""
    return trained(MODEL, optimizer, init_state(MODEL, optimizer, 0), 3)


def of_adam(state):
    """Its part of the optimizer's state."""
    return next(part for part in state.opt_state if hasattr(part, "ages"))


@pytest.mark.parametrize("how", few(["map", "map_aged"], ["map_aged"]))
def test_its_moments_are_mapped_by_the_dual_map(how, optimizer, state):
    target = dataclasses.replace(WIDE, vocab=22, layers=4)
    after, report = grow_state(state, MODEL, target, make_optimizer(optimizer, target), "zero", optimizer_state=how)
    growth = plan_growth("zero", MODEL, target, jax.random.key(1))
    before, now = of_adam(state), of_adam(after)
    chex.assert_trees_all_close(now.mu, expand_params(growth, MODEL, before.mu, dual), rtol=1e-6)
    chex.assert_trees_all_close(now.nu, expand_params(growth, MODEL, before.nu, dual_squared), rtol=1e-6)
    new = 0 if how == "map_aged" else 3
    layers, rows, columns = (age.tolist() for age in now.ages["blocks"]["mlp"]["up"])
    # Layers on top are silent: what they hold is copied, but for what writes the stream.
    assert (layers, rows, columns) == ([3] * 4, [3] * 8 + [new] * 8, [3] * 12 + [new] * 12)
    assert now.ages["blocks"]["mlp"]["down"][0].tolist() == [3, 3, new, new]
    assert now.ages["embedding"][0].tolist() == [3] * 20 + [new] * 2
    assert report["preserves_function"]
    assert int(after.step) == 3


def test_moments_of_copies_are_those_that_the_grown_model_would_have(optimizer):
    """One step from nothing, and grown; and grown, and one step: the same moments, as the gradients are."""
    begun = init_state(MODEL, optimizer, 0)
    begun = dataclasses.replace(begun, params=noisy(MODEL))
    of_target = make_optimizer(optimizer, WIDE)
    grown, report = grow_state(trained(MODEL, optimizer, begun, 1), MODEL, WIDE, of_target, optimizer_state="map")
    assert report["moments_exact"]
    first, _ = grow_state(begun, MODEL, WIDE, of_target)
    first = trained(WIDE, optimizer, first, 1)
    for name in ("mu", "nu"):
        a, b = (getattr(of_adam(one), name) for one in (grown, first))
        scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(b))
        chex.assert_trees_all_close(a, b, rtol=1e-3, atol=1e-6 * scale)


def test_its_flops_are_those_by_hand():
    # Query, key, value and out of 8 x 8, two of 8 x 12 in each of two layers, a head of 8 x 20; no lookup counts.
    products = 2 * (4 * 8 * 8 + 2 * 8 * 12) + 8 * 20
    assert flops_per_token(MODEL, 16) == 6 * products
    # Query, key, value and out of 16 x 16, two of 16 x 24.
    assert flops_per_token(WIDE, 16) == 6 * (2 * (4 * 16 * 16 + 2 * 16 * 24) + 16 * 20)


def test_flops_of_attention_are_those_of_every_layers_window():
    config = dataclasses.replace(MODELS["olmo2"], layers=3, sliding_window=4)
    keys = (4 * 5 / 2 + 12 * 4) / 16, (16 * 17 / 2) / 16  # a query's, on average, on layers with and without a window
    scores_and_sums = 2 * 2 * config.heads * config.head_dim * (2 * keys[0] + keys[1])
    assert flops_per_token(config, 16) == 6 * matmul_parameter_count(config) + 3 * scores_and_sums


def test_its_documents_do_not_see_each_other():
    params, tokens = noisy(MODEL), np.array([[3, 4, 0, 5, 6, 7]], np.int32)
    other = np.array([[8, 9, 0, 5, 6, 7]], np.int32)
    for end, same in ((0, True), (None, False)):
        hidden = [np.asarray(hidden_states(MODEL, params, part, document_end=end)[0]) for part in (tokens, other)]
        assert np.allclose(hidden[0][3:], hidden[1][3:], atol=1e-6) is same


def test_its_frozen_layers_are_constants():
    params = noisy(MODEL)
    whole = jax.jit(jax.grad(partial(next_token_loss, MODEL)))(params, TOKENS)
    frozen = jax.jit(jax.grad(partial(next_token_loss, MODEL, frozen_layers=1)))(params, TOKENS)
    for weight in MODEL.weights:
        have, want = leaf_at(frozen, weight.path), leaf_at(whole, weight.path)
        if weight.stacked:
            assert not have[0].any() and np.abs(have[1] - want[1]).max() < 1e-5, weight.path
        elif weight.role is Role.LOOKUP:
            assert not have.any() and want.any(), weight.path
        else:
            assert np.abs(have - want).max() < 1e-5


@pytest.mark.parametrize("name", few(MODELS, ("llama", "samba", "own")))
def test_no_position_sees_a_later_one(name):
    """By gradients, of the hidden state at every position with respect to what every token looks up."""
    config, length = MODELS[name], 6
    params, tokens = noisy(config), jnp.arange(2, 2 + length, dtype=jnp.int32)[None]
    lookups = {w.path: leaf_at(params, w.path) for w in config.weights if w.role is Role.LOOKUP}

    def put(tree, values):
        place = lambda path, leaf: values.get(path_of(path), leaf)  # noqa: E731
        return jax.tree_util.tree_map_with_path(place, tree)

    @jax.jit
    @jax.jacrev
    def seen(values):
        hidden, _ = hidden_states(config, put(params, values), tokens)
        return (hidden * jnp.arange(1.0, 1 + config.embed)).sum(axis=1)

    for path, jacobian in seen(lookups).items():
        weight = config.architecture.weights[path]
        rows = slice(2, 2 + length) if weight.reads(growlm.models.Kind.VOCAB) else slice(length)
        axis = 1 + int(weight.stacked)
        others = tuple(n for n in range(1, jacobian.ndim) if n != axis)
        of_rows = np.abs(np.asarray(jacobian)).max(axis=others)[:, rows]  # [position, token]
        assert not np.triu(of_rows, 1).any(), path
        assert np.all(of_rows[np.tril_indices(length)] > 0), path


@pytest.mark.parametrize("name", MODELS)
def test_every_field_grows_or_is_shared_or_is_free_and_only_one_of_them(name):
    architecture, config = MODELS[name].architecture, type(MODELS[name])
    said = [*architecture.sizes, *architecture.kept, *architecture.free]
    assert sorted(said) == sorted(field.name for field in dataclasses.fields(config))


def other(value):
    """Another value of the kind of this one."""
    if isinstance(value, bool):
        return not value
    return 2 * value


CHANGED = {"rope_scaling": RopeScaling("linear", 2.0), "sliding_window": 4, "prelude": 0, "coda": 1}
KEPT = [(name, field) for name, config in MODELS.items() for field in config.architecture.kept]
SIZES = [(name, field) for name, config in MODELS.items() for field in config.architecture.sizes]


@pytest.mark.parametrize(("name", "field"), KEPT)
def test_a_growth_that_changes_a_shared_field_is_refused_by_its_name(name, field):
    source = MODELS[name]
    value = CHANGED[field] if field in CHANGED else other(getattr(source, field))
    target = dataclasses.replace(source, **{field: value})
    with pytest.raises(InputError, match=rf"model\.{field} must be the source's, .*, which no growth changes, got"):
        plan_growth("zero", source, target, KEY)


@pytest.mark.parametrize(("name", "field"), SIZES)
def test_a_smaller_size_is_refused_by_its_name(name, field):
    target = MODELS[name]
    heads = {"heads": {"heads": 4}, "kv_heads": {"kv_heads": 2}, "head_dim": {"head_dim": 16}}
    more = heads.get(field, {field: getattr(target, field) + 1})
    source = dataclasses.replace(target, **more)
    with pytest.raises(InputError, match=rf"model\.{field} must be >= the source's"):
        plan_growth("zero", source, target, KEY)


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_has_a_role_and_every_leaf_is_a_weights(name):
    config = MODELS[name]
    architecture, optimizer = config.architecture, make_optimizer(OptimizerConfig(), config)
    for weight in config.weights:
        assert isinstance(weight.role, Role)
        assert any(holds(weight) for holds in GROUPS.values()), weight.path
    params = jax.eval_shape(partial(init, config), jax.random.key(0))
    leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(optimizer.init, params))
    found = {}
    for path, leaf in leaves:
        field, weight, rest = architecture.match_weight(path)
        if leaf.ndim == 0:
            continue
        assert weight is not None and field in ("mu", "nu", "ages"), path_of(path)
        assert leaf.shape == (weight.shape(config) if not rest else (weight.shape(config)[int(rest)],))
        found.setdefault(field, set()).add(weight.path)
    assert found == {field: {weight.path for weight in config.weights} for field in ("mu", "nu", "ages")}


@pytest.mark.parametrize("name", few(MODELS, [next(iter(MODELS))]))
def test_another_weight_changes_neither_initial_values_nor_what_growth_draws_for_the_others(name, monkeypatch):
    plain = MODELS[name]
    more_config = type("MoreConfig", (type(plain),), {})
    extra = WeightSpec("an_extra", "vocab> >stream", Role.LOOKUP)
    old = plain.architecture
    # In front of all, so that keys in the order of weights would move.
    step = tuple(
        dataclasses.replace(
            branch, weights=(WeightSpec("another", f"{branch.reads}> >{branch.reads}"), *branch.weights)
        )
        for branch in old.period[0]
    )
    dataclasses.replace(old, config=more_config, lookups=(extra, *old.lookups), period=(step, *old.period[1:]))
    more = more_config(**dataclasses.asdict(plain))
    assert more.architecture is not old and "an_extra" in more.architecture.weights
    key, grown = jax.random.key(5), []
    if name == "own":  # as `init` draws them; of the others what their keys are is enough
        first, second = (jax.tree.map(np.asarray, init(config, key)) for config in (plain, more))
    monkeypatch.setattr(Weight, "initial", initial_in_numpy)
    monkeypatch.setattr(Weight, "noise", initial_in_numpy)
    if name != "own":
        with jax.disable_jit():
            first, second = (init(config, key) for config in (plain, more))
    for source, params in ((plain, first), (more, second)):
        wider = {source.architecture.stack.field: 3, "embed": 11, "mlp": 13, "mlp_slots": 13, "vocab": 23}
        target = dataclasses.replace(source, **{name: size for name, size in wider.items() if hasattr(source, name)})
        growth = plan_growth("random", source, target, key, noise=0.3)
        grown.append(grow_params(growth, source, target, params, key))
    for weight in plain.weights:
        for a, b in ((first, second), grown):
            np.testing.assert_array_equal(leaf_at(a, weight.path), leaf_at(b, weight.path), err_msg=weight.path)
    drawn = [leaf_at(second, w.path).ravel()[:32] for w in more.weights if w.init == "normal"]
    assert all(abs(np.corrcoef(a, b)[0, 1]) < 0.7 for a, b in itertools.combinations(drawn, 2))


# Parts that every decoder has, which growlm's own code may name; and words that are something else besides: the option
# `final` of learn, reports of `layers`, the `key` of a state, the `value` in a table, the `state` of training, Muon's
# `scale`.
PARTS = {"embedding", "head", "final_norm", "blocks"}
WORDS = {"vocab", "final", "layers", "key", "value", "state", "scale"}


def names_of_architectures():
    """Names of axes, fields, branches and weights, and of the parts of their paths."""
    names = set()
    for config in MODELS.values():
        architecture = config.architecture
        names |= {name for axis in architecture.axes for name in (axis.name, axis.field)}
        names |= {axis.chosen for axis in architecture.axes if axis.chosen}
        names |= {part for path in architecture.weights for part in path.split("/")}
    return names


def named_in(text, names):
    """The names that string literals are, or have as parts of a path."""
    literals = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    words = {word for text in literals if isinstance(text, str) and " " not in text for word in text.split("/")}
    return words & names


def test_names_of_axes_and_weights_stand_in_the_files_of_architectures_alone():
    names = names_of_architectures() - PARTS - WORDS
    assert {"key_heads", "value_heads", "kv_heads", "mlp", "attn", "moe", "experts", "heads", "stream"} <= names
    assert named_in("x['mlp'], 'blocks/attn/query', f'{y}/gate', 'the mlp'", names) == {"mlp", "attn", "query", "gate"}
    files = [
        file for part in ("growth", "training", "formats", "evaluation") for file in (PACKAGE / part).rglob("*.py")
    ]
    # The recipe writes the shapes of experiments, which are Llama's.
    found = {file.name: named_in(file.read_text(), names) for file in files if file.name != "recipe.py"}
    assert len(files) > 40 and {name: hits for name, hits in found.items() if hits} == {}


def test_provenance_has_every_axis_of_it():
    provenance = initial_provenance(MODEL)
    assert provenance.keys() == OWN.axis.keys()
    assert {name: said.shape[1] for name, said in provenance.items()} == {
        axis.name: MODEL.size(axis) for axis in OWN.axes
    }
