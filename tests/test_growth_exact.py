"""Any architecture, any shapes, any operator: the function is kept where that is claimed, and only there."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from oracle import KEY, SMALL, TOKENS, apart, difference, difference_in_numpy, forward, grown, grown_in_numpy, noisy
from own_architecture import OwnConfig
from registered import choices
from trees import exact_products

import growlm
from growlm.growth import ORDERS, claim, gradient_claim, plan_growth, verify
from growlm.growth.expand import grow_params
from growlm.growth.masks import CLOSED, MASKED
from growlm.growth.plan import provenance_of
from growlm.models import (
    Gemma2Config,
    Gemma3Config,
    GemmaConfig,
    Gpt2Config,
    GptNeoxConfig,
    Kind,
    LoopedConfig,
    MixtralConfig,
    ModernConfig,
    Olmo2Config,
    OlmoConfig,
    OlmoeConfig,
    Role,
    SambaConfig,
    TokenformerConfig,
    Weight,
    apply,
)
from growlm.models.parametrization import Parametrised


@pytest.fixture
def cheap_values():
    """Random numbers are most of what there is to compute, and for exactness any numbers will do.

    Of few bits: products are exact, so that whatever a compiler computes twice, in whatever way, comes out the same.
    """

    def initial(weight, key, config, whole=False):
        xp = jnp if isinstance(key, jax.core.Tracer) else np
        shape = weight.shape(config) if whole else weight.block_shape(config)
        start = xp.asarray(jax.random.key_data(key))[-1].astype(np.uint32)
        bits = start + xp.arange(np.prod(shape), dtype=np.uint32) * np.uint32(2654435769)
        values = (bits >> np.uint32(24)).astype(np.float64).reshape(shape) / 128 - 1
        return float(np.float32(weight.std(config))) * values if weight.init == "normal" else 1 + values / 8

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Weight, "initial", initial)
        patch.setattr(Weight, "noise", lambda weight, key, config: initial(weight, key, config, whole=True))
        yield


exact = pytest.fixture(autouse=True, scope="module")(exact_products.__wrapped__)

sizes = st.integers
SCALES = st.sampled_from([0.25, 0.5, 1.0])
# Windows that hide something of TOKENS, on every layer but every n-th; the caps are felt.
WINDOWS = st.sampled_from([{"sliding_window": 3, "global_every": every} for every in (2, 2, 3)])
WINDOWED = {
    "olmo2": Olmo2Config,
    "gemma2": partial(Gemma2Config, query_scalar=3, score_cap=0.5, logit_cap=3.0),
    "gemma3_text": partial(Gemma3Config, query_scalar=3, rope_theta=100.0, local_rope_theta=10.0),
}
TWICE = ("llama", "mixtral", "looped", "samba")
OTHERS = ("modern", "gpt2", "gpt_neox", "own", "olmo", "olmoe", "gemma", "tokenformer")
NOISE = st.sampled_from([{}, {}, {"noise": 0.5, "cancel": True}, {"noise": 1.0, "cancel": True}, {"noise": 0.2}])

BASES = st.sampled_from([None, None, {"embed": 4}, {"embed": 5, "mlp": 3, "head_dim": 4}])
TOKENS_BEGIN = st.sampled_from([{}, {}, {"vocab": "zeros"}, {"vocab": "mean"}])


SLOTS = ("qkv_slots", "out_slots", "mlp_slots")
SCALES_OF_SLOTS = ("qkv_scale", "out_scale", "mlp_scale")


@st.composite
def sources(draw):
    """Of any architecture. eps is so large that a norm which hands on another one is seen."""
    shape = {"layers": draw(sizes(1, 3)), "embed": draw(sizes(3, 8)), "mlp": draw(sizes(2, 8)), "vocab": SMALL.vocab}
    name = draw(st.sampled_from([*TWICE, *TWICE, *OTHERS, *WINDOWED]))
    if name == "own":
        return OwnConfig(**shape, heads=draw(sizes(1, 4)), head_dim=2, positions=11, norm_eps=1e-3)
    if name == "looped":
        parts = {"prelude": draw(sizes(0, 1)), "coda": draw(sizes(0, 1)), "cores": draw(sizes(1, 2))}
        layers = parts["prelude"] + parts["coda"] + parts["cores"] * draw(sizes(1, 2))
        parts |= {"passes": draw(sizes(1, 2)) if parts["cores"] == 1 else 1}
        parts |= {"injection": draw(st.sampled_from([None, 0.7])), "residual_multiplier": draw(SCALES)}
        shape |= parts | {"layers": layers, "output_multiplier": draw(SCALES), "norm_eps": 1e-3}
        return LoopedConfig(**shape, heads=draw(sizes(1, 3)), head_dim=2)
    if name == "modern":
        shape |= {"kv_heads": (kv_heads := draw(sizes(1, 3))), "heads": kv_heads * draw(sizes(1, 2)), "head_dim": 2}
        factors = {"logit_cap": draw(st.sampled_from([None, 3.0])), "residual_multiplier": draw(SCALES)}
        factors |= {"base_layers": draw(st.sampled_from([None, 2])), "base_widths": draw(BASES)}
        return ModernConfig(**shape, **factors, zero_init=draw(st.booleans()), norm_eps=1e-3)
    shape |= {"norm_eps": 1e-3, "tie_embeddings": draw(st.booleans())}
    if name == "gpt2":
        return Gpt2Config(**shape, heads=draw(sizes(1, 4)), head_dim=2, positions=11)
    if name == "gpt_neox":
        return GptNeoxConfig(**shape, heads=draw(sizes(1, 4)), head_dim=4, rotary_dim=draw(st.sampled_from([2, 4])))
    if name == "tokenformer":
        shape |= {slots: draw(sizes(2, 6)) for slots in SLOTS} | {"mlp_scale": draw(st.sampled_from([None, 3.0]))}
        del shape["mlp"]
        return TokenformerConfig(**shape, heads=draw(sizes(1, 3)), head_dim=2, rotary_dim=2)
    kv_heads = draw(sizes(1, 3))
    shape |= {"heads": kv_heads * draw(sizes(1, 2)), "kv_heads": kv_heads, "head_dim": 2}
    if name == "samba":
        shape |= {"periods": shape.pop("layers"), "channels": draw(sizes(1, 5)), "dt_rank": draw(sizes(1, 3))}
        return SambaConfig(**shape, state=2, taps=draw(sizes(1, 3)), sliding_window=draw(sizes(2, 9)))
    if name == "olmo":
        return OlmoConfig(**shape)
    if name == "gemma":
        return GemmaConfig(**shape)
    if name in WINDOWED:
        return WINDOWED[name](**shape, **draw(WINDOWS))
    variants = {"qkv_bias": draw(st.booleans()), "qk_norm": draw(st.booleans())}
    variants |= {"base_layers": draw(st.sampled_from([None, 2])), "norm_scaling": draw(st.booleans())}
    variants |= {"base_widths": draw(BASES)}
    if name == "llama":
        return growlm.ModelConfig(**shape, **variants)
    experts = draw(sizes(1, 3))
    shape |= {
        "experts": experts,
        "experts_per_token": draw(sizes(1, min(experts, 2))),
        "normalised": draw(st.booleans()),
    }
    if name == "olmoe":
        return OlmoeConfig(**shape)
    return MixtralConfig(**shape, **variants, shared_mlp=draw(st.sampled_from([0, 0, 3])))


def choose_experts(draw, source, operator):
    """(experts, of a token) of the target: as many copies of each or not, and as many times the chosen ones or not."""
    experts, chosen = getattr(source, "experts", 1), getattr(source, "experts_per_token", 1)
    more = draw(st.sampled_from([experts, experts, 2 * experts, 3 * experts, experts + 1]))
    if operator == "random" and more > experts:
        return more, more  # else no token may choose a fresh one, and nothing be seen
    after = draw(st.sampled_from([chosen, chosen * (more // experts), chosen * (more // experts), chosen + 1]))
    return more, min(after, more)


# (cores, passes) -> those of larger models.
LOOPED_TO = {(1, 1): [(2, 1), (1, 2)], (1, 2): [(2, 1), (1, 3)], (2, 1): [(4, 1), (3, 1)]}


@st.composite
def cases(draw):
    """(source, target, operator, options): depth, width, experts, another architecture, by any factor."""
    source = draw(sources())
    operator, options = draw(choices())
    wider = {
        source.architecture.stack.field: source.depth + draw(st.sampled_from([0, 0, 0, 1, 2])),
        "embed": source.embed + draw(st.sampled_from([0, 1, 5, source.embed])),
        "vocab": source.vocab + draw(st.sampled_from([0, 0, 3])),
    }
    inner = {name: getattr(source, name) for name in ("mlp", *SLOTS) if hasattr(source, name)}
    wider |= {name: size + draw(st.sampled_from([0, 3, size])) for name, size in inner.items()}
    if isinstance(source, SambaConfig):
        wider["channels"] = source.channels + draw(st.sampled_from([0, 1, source.channels]))
        wider["dt_rank"] = source.dt_rank + draw(st.sampled_from([0, 0, 1, source.dt_rank]))
    if hasattr(source, "kv_heads"):
        kv_heads = source.kv_heads + draw(st.sampled_from([0, 0, 1, 2, 3, source.kv_heads]))
        group = draw(st.sampled_from([1, 2, 3, *[source.heads // source.kv_heads] * 3]))
        wider |= {"kv_heads": kv_heads, "heads": kv_heads * group}
    else:
        wider["heads"] = source.heads + draw(st.sampled_from([0, 1, source.heads]))
    if isinstance(source, Parametrised):
        wider |= {"base_layers": draw(st.sampled_from([source.base_layers, 3]))}
        wider |= {"base_widths": draw(st.sampled_from([source.base_widths, source.base_widths, {"embed": 7}, None]))}
    if isinstance(source, LoopedConfig):
        cores, passes = draw(st.sampled_from([(source.cores, source.passes), *LOOPED_TO[source.cores, source.passes]]))
        wider |= {"cores": cores, "passes": passes, "layers": source.prelude + source.coda + cores * source.core}
        wider |= {"output_multiplier": draw(SCALES)}
    if hasattr(source, "residual_multiplier"):
        wider |= {"residual_multiplier": draw(SCALES)}
    if isinstance(source, TokenformerConfig) and draw(st.sampled_from([True, True, False])):
        wider |= {scale: getattr(source.grown(**wider), scale) for scale in SCALES_OF_SLOTS}
    head, times = source.architecture.axis["head_dim"], draw(st.sampled_from([1, 1, 1, 2, 3]))
    normed = any(weight.role is Role.GAIN and dim.reads is head for weight in source.weights for dim in weight.dims)
    if times > 1 and head.kind is Kind.HEAD and not normed:
        wider["head_dim"] = times * source.head_dim
        if head.rotated and not hasattr(source, "rotary_dim"):  # all of a head
            wider["rope_theta"] = source.rope_theta**times
    if getattr(source, "tie_embeddings", False):
        wider["tie_embeddings"] = draw(st.booleans())
    fields, config = dataclasses.asdict(source) | wider, type(source)
    if config in (MixtralConfig, OlmoeConfig) or (config is growlm.ModelConfig and draw(sizes(0, 2)) == 0):
        fields["experts"], fields["experts_per_token"] = choose_experts(draw, source, operator)
        config = MixtralConfig if config is growlm.ModelConfig else config
    if config is MixtralConfig:
        more = draw(st.sampled_from([0, 0, 4]))
        shared = getattr(source, "shared_mlp", source.mlp if more else 0)  # a lift may put the dense MLP there
        fields |= {"shared_mlp": shared + more, "normalised": getattr(source, "normalised", draw(st.booleans()))}
        fields["shared_router"] = getattr(source, "shared_mlp", 0) == 0 < more and draw(st.booleans())
    return source, config(**fields), operator, options | draw(NOISE) | draw(TOKENS_BEGIN)


def fits(source, target, operator, options):
    """False where query heads find no place or options exclude each other, which are errors of their own."""
    if target.heads < source.heads:
        return False
    try:
        plan_growth(operator, source, target, KEY, **options)
    except growlm.InputError as error:
        assert "query heads" in str(error) or "exclude each other" in str(error)
        return False
    return True


def check(difference, claims):
    assert difference < 1e-11 if claims else difference > 1e-9, (difference, claims)


def routes_by_chance(source, target):
    """Where experts grow unclaimed it is these few tokens' routes that say whether anything changes."""
    return getattr(source, "experts", 1) != getattr(target, "experts", 1)


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(case=cases())
def test_the_function_is_kept_where_that_is_claimed_and_only_there(cheap_values, case):
    """In NumPy throughout: the growth, its masks and the models."""
    assume(fits(*case))
    logits, claims, _ = difference_in_numpy(*case[:3], **case[3])
    if claims or not routes_by_chance(*case[:2]):
        check(logits, claims)


@settings(deadline=None, max_examples=settings.default.max_examples // 50, suppress_health_check=list(HealthCheck))
@given(case=cases())
def test_what_is_compiled_is_what_numpy_computes(cheap_values, case):
    """The same through `growlm.grow`, and leaf by leaf what the same code makes of NumPy's arrays."""
    assume(fits(*case))
    source, target, operator, options = case
    logits, claims = difference(source, target, operator, **options)
    if claims or not routes_by_chance(source, target):
        check(logits, claims)
    compiled, eager = grown(source, target, operator, **options)[1], grown_in_numpy(*case[:3], **options)[1]
    chex.assert_trees_all_close(compiled, eager, atol=1e-6)


SHAPE = {"layers": 2, "embed": 7, "mlp": 6, "vocab": SMALL.vocab, "norm_eps": 1e-3}
GROUPED = SHAPE | {"heads": 4, "kv_heads": 2, "head_dim": 4}
BY_PERIODS = {"periods" if name == "layers" else name: size for name, size in GROUPED.items()}
LOOPS = SHAPE | {"heads": 3, "head_dim": 4, "prelude": 1, "coda": 1}
LOOPS |= {"residual_multiplier": 0.5, "output_multiplier": 2.0}
del LOOPS["layers"]
MODELS = {
    "llama": growlm.ModelConfig(**GROUPED, qkv_bias=True, qk_norm=True, base_layers=3, norm_scaling=True),
    "llama, muP": growlm.ModelConfig(**GROUPED, base_layers=3, base_widths={"embed": 3, "head_dim": 2}),
    "modern, muP": ModernConfig(**GROUPED, zero_init=False, base_layers=3, base_widths={"embed": 3, "head_dim": 2}),
    "mixtral": MixtralConfig(**GROUPED, experts=4, experts_per_token=2, tie_embeddings=True),
    "qwen2_moe": MixtralConfig(
        **GROUPED, experts=4, experts_per_token=2, normalised=False, shared_mlp=5, shared_router=True
    ),
    "olmoe": OlmoeConfig(**GROUPED, experts=4, experts_per_token=2),
    "gpt2": Gpt2Config(**SHAPE, heads=3, head_dim=4, positions=16),
    "gpt_neox": GptNeoxConfig(**SHAPE, heads=3, head_dim=4, rotary_dim=2),
    "own": OwnConfig(**SHAPE, heads=3, head_dim=4, positions=16),
    "tokenformer": TokenformerConfig(2, 7, 3, 4, 5, 6, 9, SMALL.vocab, 2, mlp_scale=2.5, norm_eps=1e-3),
    "looped": LoopedConfig(**LOOPS, layers=4, cores=2, injection=0.7),
    "looped, tied": LoopedConfig(**LOOPS, layers=3, passes=2, injection=0.7),
    "modern": ModernConfig(**GROUPED, residual_multiplier=0.5, logit_cap=3.0, zero_init=False),
    "samba": SambaConfig(**BY_PERIODS, channels=5, dt_rank=2, sliding_window=3),
    "olmo": OlmoConfig(**GROUPED),
    "olmo2": Olmo2Config(**GROUPED, sliding_window=3, global_every=2),
    "gemma": GemmaConfig(**GROUPED),
    "gemma2": WINDOWED["gemma2"](**GROUPED, sliding_window=3, global_every=2),
    "gemma3_text": WINDOWED["gemma3_text"](**GROUPED, sliding_window=3, global_every=2, tie_embeddings=False),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_models_in_numpy_are_those_of_growlm(name):
    config = MODELS[name]
    scale = np.linspace(0.5, 1, config.depth)
    with jax.enable_x64(True):
        params, tokens = noisy(config), jnp.asarray(TOKENS, jnp.int32)
        logits = apply(config, params, tokens, dtype=jnp.float64, block_scale=jnp.asarray(scale))
    expected = forward(config, params, TOKENS, scale)
    # Rotary tables are float32 in growlm.
    np.testing.assert_allclose(logits, expected, atol=2e-6 * np.abs(expected).max())


# (experts, of a token) before and after -> whether growth is exact with weights that sum to 1, and with others.
COPIED_EXPERTS = {(2, 1, 4, 2): (True, True), (2, 2, 6, 6): (True, True), (1, 1, 3, 3): (True, True)}
COPIED_EXPERTS |= dict.fromkeys(((1, 1, 3, 2), (2, 1, 3, 1), (2, 1, 4, 1)), (True, False))
COPIED_EXPERTS |= dict.fromkeys(((2, 2, 4, 2), (2, 1, 3, 2), (2, 2, 3, 3), (3, 2, 6, 3)), (False, False))


@pytest.mark.parametrize("normalised", [True, False])
def test_experts_are_claimed_where_their_copies_are_chosen_together(cheap_values, normalised):
    for (old, chosen, new, after), exact in COPIED_EXPERTS.items():
        claimed = exact[not normalised]
        source = MixtralConfig(**GROUPED, experts=old, experts_per_token=chosen, normalised=normalised)
        target = dataclasses.replace(source, experts=new, experts_per_token=after)
        for operator in ("direct", "zero"):
            logits, claims, growth = difference_in_numpy(source, target, operator)
            assert claims is claimed
            check(logits, claims)
            together = claimed and old > 1 and after * old == chosen * new
            assert gradient_claim(growth, source, target)[0] is together


@pytest.mark.parametrize("after", [1, 2])
def test_gradients_of_experts_are_claimed_where_their_copies_are_chosen_together(after):
    source = MixtralConfig(**GROUPED, experts=2, experts_per_token=1)
    target = dataclasses.replace(source, experts=4, experts_per_token=after)
    params, growth = noisy(source, np.float32), plan_growth("direct", source, target)
    report = verify(source, params, target, growlm.grow(params, source, target), TOKENS, growth, steps=1)
    items = report["items"]
    assert report["ok"] and items["function"]["claimed"] and items["function"]["holds"]
    assert items["gradients"]["claimed"] is items["gradients"]["holds"] is (after == 2)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(
    ("operator", "options"),
    [
        ("direct", {}),
        ("direct", {"split_imbalance": 0.6, "noise": 0.3, "cancel": True}),
        ("direct", {"block_diagonal": True}),
        ("zero", {}),
        ("random", {"mask_tokens": 10}),
        ("random", {"mask_tokens": 10, "whole_blocks": True, "order": "interleave"}),
    ],
    ids=str,
)
def test_in_float32_by_the_model_itself(operator, options, tied):
    source = dataclasses.replace(SMALL, tie_embeddings=tied, qkv_bias=True, qk_norm=True)
    deeper = 2 if operator == "direct" else 5
    target = dataclasses.replace(source, layers=deeper, embed=19, heads=9, kv_heads=3, mlp=23)
    params, tokens = noisy(source, np.float32), jnp.asarray(TOKENS, jnp.int32)
    after, blocks = growlm.grow(params, source, target, operator, key=KEY, **options), None
    growth = plan_growth(operator, source, target, KEY, **options)
    if growth.masks:
        after, blocks = growth.masks.reparametrise(target, after, provenance_of(growth), CLOSED)
    logits = apply(source, params, tokens)
    assert jnp.abs(apply(target, after, tokens, block_scale=blocks) - logits).max() < 1e-5 * jnp.abs(logits).max()


@pytest.mark.parametrize(("norm", "exact"), [("isometry", True), ("gain", False), ("none", False)])
def test_the_papers_norm_is_exact_up_to_eps_and_the_published_codes_is_not(norm, exact):
    """arXiv 2405.15319, A.1.3, and prts_lit/scaling/zero.py; eps x d / D makes the paper's form exact too."""
    source, target = SMALL, dataclasses.replace(SMALL, embed=30)
    logits, claims = difference(source, target, "zero", norm=norm)
    assert claims is exact and bool(logits < 1e-11) is exact
    if norm == "gain":
        assert 1e-9 < logits < 1e-2
        scaled = dataclasses.replace(target, norm_eps=source.norm_eps * 12 / 30)
        logits, claims = difference(source, scaled, "zero", norm=norm)
        assert claims and logits < 1e-11
    if norm == "none":
        assert logits > 0.1


def test_the_papers_factor_breaks_whole_copies_and_the_published_code_keeps_them():
    """With x' = [x, x] the gain needs no factor."""
    target = dataclasses.replace(SMALL, embed=24)
    assert difference(SMALL, target, "direct", norm="gain")[0] > 0.1
    logits, claims = difference(SMALL, target, "direct", norm="none")
    assert claims and logits < 1e-11


def test_orders_that_repeat_layers_are_not_claimed_and_silent_ones_are():
    for order in ("stack", "interleave"):
        target = dataclasses.replace(SMALL, layers=4)
        assert not claim(plan_growth("direct", SMALL, target, order=order), SMALL, target)[0]
        assert claim(plan_growth("zero", SMALL, target, order=order), SMALL, target)[0]
    assert {"stack", "interleave"} <= ORDERS.keys()


def test_layers_that_move_are_compensated_for_what_depends_on_their_place(cheap_values):
    """Norms scaled by a layer's index and branches by the number of layers: without it the logits move by a half."""
    source = dataclasses.replace(SMALL, base_layers=2, norm_scaling=True)
    target = dataclasses.replace(source, layers=5)
    for order in ("interleave", "stack"):
        logits, claims, growth = difference_in_numpy(source, target, "zero", order=order)
        assert claims and logits < 1e-12
        assert "blocks/attn/query" in claim(growth, source, target)[1]
    np.testing.assert_allclose(growth.factors["blocks/mlp/up"][2:4], [3**0.5, 4**0.5 / 2**0.5])
    assert set(growth.factors) == {
        f"blocks/{path}"
        for path in ("attn/query", "attn/key", "attn/value", "attn/out", "mlp/gate", "mlp/up", "mlp/down")
    }
    params = noisy(source)
    bare = dataclasses.replace(growth, factors={})
    assert apart(source, params, target, grow_params(bare, source, target, params, KEY)) > 0.01


def test_gradients_of_compensated_weights_follow_the_dual_map():
    source = dataclasses.replace(SMALL, base_layers=2)
    target = dataclasses.replace(source, base_layers=8, mlp=20)
    with jax.enable_x64(True):
        params = noisy(source)
        growth = plan_growth("direct", source, target)
        report = verify(source, params, target, growlm.grow(params, source, target), TOKENS, growth, steps=1)
    gradients = report["items"]["gradients"]
    assert gradients["claimed"] and gradients["holds"], gradients


def test_noise_that_cancels_is_not_claimed_where_only_a_part_of_it_is_added(cheap_values):
    target = dataclasses.replace(SMALL, mlp=20)
    for noise_on, claimed in (("all", True), ("new", False)):
        logits, claims, _ = difference_in_numpy(SMALL, target, "direct", noise=0.5, cancel=True, noise_on=noise_on)
        assert claims is claimed
        check(logits, claims)


def test_a_composition_of_growths_keeps_the_function():
    """Width by copies, then depth by zeros, then width by zeros, against the source."""
    middle = dataclasses.replace(SMALL, embed=19, mlp=17)
    deep = dataclasses.replace(middle, layers=5)
    wide = dataclasses.replace(deep, embed=31, heads=8, kv_heads=4)
    with jax.enable_x64(True):
        params = noisy(SMALL)
        after = growlm.grow(params, SMALL, middle, "direct", split_imbalance=0.5, key=KEY)
        after = growlm.grow(after, middle, deep, "zero", order="interleave", key=KEY)
        after = growlm.grow(after, deep, wide, "zero", key=KEY)
        tokens = jnp.asarray(TOKENS, jnp.int32)
        before, now = (apply(c, p, tokens, dtype=jnp.float64) for c, p in ((SMALL, params), (wide, after)))
    np.testing.assert_allclose(now, before, atol=1e-11)


def test_a_full_mask_is_no_mask_and_half_a_mask_is_neither():
    source, target = SMALL, dataclasses.replace(SMALL, layers=3, embed=19, heads=8, mlp=17)
    options = {"mask_tokens": 10}
    growth = plan_growth("random", source, target, KEY, **options)
    provenance, tokens = provenance_of(growth), jnp.asarray(TOKENS, jnp.int32)
    with jax.enable_x64(True):
        params = noisy(source)
        after = growlm.grow(params, source, target, "random", key=KEY, **options)

        def logits(progress):
            effective, _ = growth.masks.reparametrise(target, after, provenance, progress)
            return apply(target, effective, tokens, dtype=jnp.float64)

        plain = apply(target, after, tokens, dtype=jnp.float64)
        np.testing.assert_allclose(logits(np.ones(4)), plain, atol=1e-12)
        old = apply(source, params, tokens, dtype=jnp.float64)
        for part in range(4):
            half = np.where(np.arange(4) == part, 0.5, 0.0)
            assert np.abs(logits(half) - old).max() > 1e-4, MASKED[part]
            assert np.abs(logits(half) - plain).max() > 1e-4


def test_what_reads_a_masked_stream_without_a_norm_undoes_its_scale(cheap_values):
    source = MODELS["olmo2"]
    target = dataclasses.replace(source, layers=3, embed=12, mlp=9)
    logits, claims, _ = difference_in_numpy(source, target, "random", mask_tokens=10)
    assert claims and logits < 1e-11
    logits, claims, _ = difference_in_numpy(source, dataclasses.replace(target, heads=6, kv_heads=3), "zero")
    assert not claims and logits > 1e-9  # a norm over all heads
