"""What a published system says it keeps of the function, against the logits before and after."""

import dataclasses

import jax
import numpy as np
import pytest
from oracle import forward
from representatives import few
from trees import exact_products, noisy, optimised

import growlm
from growlm import ModelConfig
from growlm.growth import PARTIAL, PRESETS, plan_growth
from growlm.growth.masks import CLOSED
from growlm.growth.plan import provenance_of
from growlm.growth.presets import keeps_function, table
from growlm.models import MixtralConfig

exact = pytest.fixture(autouse=True, scope="module")(exact_products.__wrapped__)

KEY = jax.random.key(3)

GROWS = ("depth", "width", "mixture")
KEEPS = {  # in depth, in width; None: does not grow there
    "g_stack": (False, None),
    **{f"partial_{pattern}": (False, None) for pattern in PARTIAL},
    "interpose": (False, None),
    "stackbert": (False, None),
    "gradual_stacking": (False, None),
    "mslt": (False, None),
    "bert2bert_fpi": (False, False),
    "bert2bert_aki": (False, False),
    "bert2bert_two_stage": (False, False),
    "ligo": (False, False),
    "msg": (True, True),
    "lemon": (True, True),
    "hypercloning": (None, True),
    "hypercloning_diagonal": (None, True),
    "hypercloning_noisy": (None, True),
    "staged_training": (True, True),
    "sparkling": (None, True),
    "mup_upscaling": (None, False),
    "llama_pro": (True, None),
    "solar": (False, None),
    "midas": (False, None),
    "lidas": (False, None),
    "zero_layer": (False, None),
    "one_layer": (False, None),
    "szp": (None, False),
    "orthogonal_experts": (None, None, False),
    "sparse_upcycling": (None, None, True),
    "drop_upcycling": (None, None, False),
    "expert_upcycling": (None, None, False),
    "tokenformer": (None, True),
    "tokenformer_published": (None, False),
    **dict.fromkeys(("untied_grow", "loop_grow", "deep_vanilla_grow"), (False, None)),
    "inheritune": (False, None),
    "spdf": (None, None),
}
KEEPS = {name: row if len(row) == len(GROWS) else (*row, None) for name, row in KEEPS.items()}


def change_of_logits(preset, source, target):
    """The largest difference between the logits before and after, in float64; masked where there are masks."""
    tokens = np.random.default_rng(0).integers(source.vocab, size=(2, 7))
    options = preset.options | ({"steps": 0} if preset.operator == "learn" else {})
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), noisy(source))
        with optimised("noise" in options):
            after, blocks = growlm.grow(params, source, target, preset.operator, KEY, **options), None
        growth = plan_growth(preset.operator, source, target, KEY, **options)
        if growth.masks:
            after, blocks = growth.masks.reparametrise(target, after, provenance_of(growth), CLOSED)
    after = jax.tree.map(np.asarray, after)
    logits = forward(target, after, tokens, None if blocks is None else np.asarray(blocks))
    return np.abs(logits - forward(source, params, tokens)).max()


def test_every_preset_says_what_it_keeps():
    assert {name: tuple(keeps_function(PRESETS[name], grows) for grows in GROWS) for name in PRESETS} == KEEPS


CLAIMS = [
    (name, grows, keeps)
    for name, row in KEEPS.items()
    for grows, keeps in zip(GROWS, row, strict=True)
    if keeps is not None
]
SOME = [claim for claim in CLAIMS if claim[0] != "hypercloning_noisy"]


@pytest.mark.parametrize(
    ("name", "grows", "keeps"), few(CLAIMS, [one for one in CLAIMS if one[0] != "hypercloning_noisy"])
)
def test_a_preset_keeps_the_function_where_it_says_so_and_only_there(name, grows, keeps):
    preset = PRESETS[name]
    llama = ModelConfig(preset.layers, embed=12, heads=12, kv_heads=6, head_dim=2, mlp=18, vocab=11)
    target = preset.example or llama
    if grows == "mixture":
        target = MixtralConfig(**vars(llama) | {"layers": 2}, experts=8, experts_per_token=4)
    source = preset.stages(target)[-3 if name in ("mslt", "bert2bert_two_stage") else -2].model
    widths = (llama if grows == "mixture" else target).architecture.widths
    still = {"layers": target.layers} if grows == "width" else {n: getattr(target, n) for n in widths}
    change = change_of_logits(preset, dataclasses.replace(source, **still), target)
    assert change < 1e-10 if keeps else change > (1e-6 if grows == "mixture" else 1e-3)  # noise of 0.01 is little


@pytest.mark.parametrize("name", few([name for name, row in KEEPS.items() if row[1]], ["lemon"]))
@pytest.mark.parametrize("tied", few([False, True], [False]), ids=["untied", "tied"])
def test_growth_of_width_by_a_factor_that_is_not_whole_is_kept_too(name, tied):
    source = ModelConfig(2, embed=12, heads=4, kv_heads=2, head_dim=2, mlp=10, vocab=11, tie_embeddings=tied)
    target = dataclasses.replace(source, embed=19, heads=6, kv_heads=3, mlp=13)
    assert change_of_logits(PRESETS[name], source, target) < 1e-10


def test_fpi_keeps_the_function_in_width_under_the_exact_norm():
    preset = PRESETS["bert2bert_fpi"]
    exact = dataclasses.replace(preset, options=preset.options | {"norm": "isometry"})
    source = ModelConfig(2, embed=12, heads=4, kv_heads=2, head_dim=2, mlp=10, vocab=11)
    target = dataclasses.replace(source, embed=19, heads=8, kv_heads=4, mlp=13)
    assert change_of_logits(exact, source, target) < 1e-10 < 1e-3 < change_of_logits(preset, source, target)


def test_table_has_every_preset_with_what_it_keeps():
    lines = table().splitlines()
    assert max(map(len, lines)) <= 155
    first = {line.split()[0]: line.split() for line in lines if line.strip()}
    for name, row in KEEPS.items():
        answers = [{True: "yes", False: "no", None: "-"}[keeps] for keeps in row]
        assert any(first[name][at : at + len(GROWS)] == answers for at in range(len(first[name]))), name
    assert "mask_tokens=10485760000" in table() and "3-6-9-12-12" in table()
