"""Families beside Llama's at the command line: what is written and refused, and the check."""

import dataclasses
import json

import hugging_face as hf
import jax
import numpy as np
import pytest
import tiny
from representatives import few
from trees import exact_products, noisy

import growlm
from growlm import read_model, write_model
from growlm.__main__ import main
from growlm.commands.convert import convert_folder
from growlm.errors import InputError
from growlm.formats import growing
from growlm.formats.layout import family_for
from growlm.models import (
    Gemma2Config,
    Gemma3Config,
    GemmaConfig,
    Gpt2Config,
    GptNeoxConfig,
    MixtralConfig,
    ModelConfig,
    Olmo2Config,
    OlmoConfig,
    OlmoeConfig,
)
from growlm.models.llama import SIZES

exact = pytest.fixture(autouse=True, scope="module")(exact_products.__wrapped__)

TOLERANCE = 1e-4  # float32, logits of about 7
NEOX = GptNeoxConfig(layers=2, embed=24, heads=4, head_dim=6, mlp=40, vocab=64, rotary_dim=4, norm_eps=1e-3)
GPT2 = Gpt2Config(layers=2, embed=24, heads=4, head_dim=6, mlp=40, vocab=64, positions=64, norm_eps=1e-3)
LLAMA = ModelConfig(layers=2, embed=24, heads=4, kv_heads=2, head_dim=6, mlp=40, vocab=64)
MIXTRAL = MixtralConfig(**dataclasses.asdict(LLAMA), experts=3, experts_per_token=2)
SHAPE = {name: value for name, value in dataclasses.asdict(LLAMA).items() if name in SIZES}
SCALED = {"rope_theta": 100.0, "rope_scaling": growlm.models.RopeScaling("linear", 4.0)}
WINDOWS = {"sliding_window": 6, "global_every": 2}
NEW = {
    "qwen3_moe": dataclasses.replace(MIXTRAL, qk_norm=True, normalised=False, sliding_window=6),
    "qwen2_moe": dataclasses.replace(MIXTRAL, qkv_bias=True, shared_mlp=20, shared_router=True),
    "olmoe": OlmoeConfig(**SHAPE, **SCALED, experts=3, experts_per_token=2),
    "olmo": OlmoConfig(**SHAPE, **SCALED),
    "olmo2": Olmo2Config(**SHAPE, **SCALED, tie_embeddings=True),
    "olmo3": Olmo2Config(**SHAPE, **SCALED, **WINDOWS),
    "gemma": GemmaConfig(**SHAPE, **SCALED),
    "gemma2": Gemma2Config(**SHAPE, **SCALED, **WINDOWS, query_scalar=9, score_cap=2.0, logit_cap=3.0),
    "gemma3_text": Gemma3Config(**SHAPE, **SCALED, **WINDOWS, query_scalar=9, local_rope_theta=50.0),
}
EXPERTS = ["--target.architecture=mixtral", "--target.experts=8", "--target.experts_per_token=2"]


def grow(source, output, *arguments):
    """The folder that the command writes; the source must be as it was."""
    before = tiny.snapshot(source)
    assert main(["grow", f"--source={source}", f"--output={output}", *arguments]) == 0
    assert tiny.snapshot(source) == before
    return output


def sizes(**values):
    return [f"--target.{name}={value}" for name, value in values.items()]


def read(folder, name):
    return tiny.read_json(folder / name)


def assert_same_logits(folder, source):
    """By transformers, of both folders; the model of the first."""
    after, tokens = hf.load(folder), hf.random_tokens(64)
    np.testing.assert_allclose(hf.logits_of(after, tokens), hf.logits_of(hf.load(source), tokens), atol=TOLERANCE)
    return after


def refused(capsys, code, *arguments):
    """The one line that is said."""
    capsys.readouterr()
    assert main(list(arguments)) == code
    *before, line = capsys.readouterr().err.splitlines()
    assert line.startswith("growlm: ") and "Traceback" not in str(before), before
    assert code == 1 or not before, before
    return line


# --- what is written anew ---


@pytest.mark.parametrize(
    "config",
    few(
        [
            NEOX,
            dataclasses.replace(NEOX, tie_embeddings=True, rotary_dim=2, rope_theta=50.0),
            dataclasses.replace(NEOX, embed=88, heads=2, head_dim=44, rotary_dim=30),
            GPT2,
            dataclasses.replace(GPT2, tie_embeddings=False, mlp=96),
            MIXTRAL,
            dataclasses.replace(MIXTRAL, sliding_window=6, tie_embeddings=True, experts=2, experts_per_token=1),
            dataclasses.replace(MIXTRAL, head_dim=8, rope_scaling=growlm.models.RopeScaling("linear", 2.0)),
            *NEW.values(),
        ],
        (NEOX, GPT2, MIXTRAL),
    ),
    ids=["gpt_neox", "tied", "an inexact share", "gpt2", "untied", "mixtral", "tied window", "scaled", *NEW],
)
def test_a_model_of_ours_is_one_that_transformers_loads(config, tmp_path):
    params = noisy(config)
    write_model(tmp_path / "out", config, params, shard=20_000)
    model, tokens = hf.load(tmp_path / "out"), hf.random_tokens(64)
    assert model.config.model_type == family_for(config).model_type
    np.testing.assert_allclose(hf.logits_of(model, tokens), growlm.apply(config, params, tokens), atol=TOLERANCE)
    again, values = read_model(tmp_path / "out")
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, values, jax.tree.map(np.asarray, params))


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """A folder of every architecture, by our own writer."""
    home = tmp_path_factory.mktemp("ours")
    for name, config in {"gpt_neox": NEOX, "gpt2": GPT2, "llama": LLAMA, "mixtral": MIXTRAL, **NEW}.items():
        write_model(home / name, config, noisy(config))
        (home / name / "checksums.json").unlink()
    return home


REFUSED = {
    "in series": (
        "gpt_neox",
        {"use_parallel_residual": False},
        ("use_parallel_residual of gpt_neox must be True", "got False"),
    ),
    "relu": ("gpt_neox", {"hidden_act": "relu"}, ("hidden_act of gpt_neox must be 'gelu'", "got 'relu'")),
    "no biases": ("gpt_neox", {"attention_bias": False}, ("attention_bias of gpt_neox must be True, got False",)),
    "an odd share": ("gpt_neox", {"rotary_pct": 0.5}, ("rotary_dim must be even", "got 3")),
    "yarn": ("gpt_neox", {"rope_parameters": {"rope_type": "yarn"}}, ("'yarn'", "default")),
    "no share": ("gpt_neox", {"rotary_pct": "half"}, ("rotary_pct", "'half'")),
    "a share of two": ("gpt_neox", {"rotary_pct": 2.0}, ("head_dim, 6", "got 12")),
    "other heads": ("gpt_neox", {"num_attention_heads": 5}, ("query_key_value", "[72, 24]", "[60, 24]")),
    "jitter": ("mixtral", {"router_jitter_noise": 0.1}, ("router_jitter_noise of mixtral must be 0.0, got 0.1",)),
    "too many": ("mixtral", {"num_experts_per_tok": 4}, ("experts_per_token must be <= model.experts, 3, got 4",)),
    "more experts": ("mixtral", {"num_local_experts": 4}, ("experts.3.w1", "missing")),
    "fewer experts": ("mixtral", {"num_local_experts": 2}, ("[3, 24]", "[2, 24]")),
    "a text": ("mixtral", {"num_local_experts": "3"}, ("num_local_experts", "'3'")),
    "dense layers": ("qwen3_moe", {"mlp_only_layers": [0]}, ("mlp_only_layers of qwen3_moe must be empty, got [0]",)),
    "every other": ("qwen3_moe", {"decoder_sparse_step": 2}, ("decoder_sparse_step of qwen3_moe must be 1, got 2",)),
    "half a window": ("qwen2_moe", {"use_sliding_window": True}, ("use_sliding_window of qwen2_moe must be False",)),
    "a clamp": ("olmoe", {"clip_qkv": 8.0}, ("clip_qkv of olmoe must be None, got 8.0",)),
    "a flag": ("olmoe", {"norm_topk_prob": 1}, ("normalised must be True or False, got 1",)),
    "clipped": ("olmo", {"clip_qkv": 8.0}, ("clip_qkv of olmo must be None, got 8.0",)),
    "a scaled window": (
        "olmo3",
        {"rope_parameters": {"full_attention": {"rope_theta": 9.0}, "sliding_attention": {"rope_theta": 8.0}}},
        ("rope_parameters of olmo3 on sliding_attention", "'rope_theta': 9.0", "'rope_theta': 8.0"),
    ),
    "two full": (
        "gemma2",
        {"layer_types": ["full_attention", "sliding_attention"]},
        ("layer_types of gemma2", "every n-th", "['full_attention', 'sliding_attention']"),
    ),
    "gelu": ("gemma3_text", {"hidden_activation": "gelu"}, ("hidden_activation of gemma3_text", "got 'gelu'")),
    "both ways": (
        "gemma3_text",
        {"use_bidirectional_attention": True},
        ("use_bidirectional_attention of gemma3_text must be False, got True",),
    ),
    "capped": ("gemma3_text", {"attn_logit_softcapping": 50.0}, ("attn_logit_softcapping of gemma3_text", "50.0")),
    "a wide head": ("gemma", {"num_key_value_heads": 3}, ("model.heads must be a multiple of model.kv_heads, 3",)),
    "relu too": ("mixtral", {"hidden_act": "relu"}, ("hidden_act of mixtral must be 'silu'", "got 'relu'")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_variant_that_is_not_built_is_one_line(name, ours, tmp_path, capsys):
    family, changes, said = REFUSED[name]
    folder = tmp_path / family
    folder.mkdir()
    for file in (ours / family).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "config.json").write_text(json.dumps(read(folder, "config.json") | changes))
    line = refused(capsys, 2, "convert", f"--source={folder}", f"--output={tmp_path}/out", "--to=growlm")
    assert all(word in line for word in said), line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("config", [NEOX, NEW["olmoe"]], ids=["gpt_neox", "olmoe"])
def test_heads_that_do_not_fill_the_width_are_of_no_such_family_of_transformers(config, tmp_path):
    config = dataclasses.replace(config, embed=26)
    with pytest.raises(InputError, match=r"embed must be heads x head_dim = 4 x 6 .*, got 26"):
        write_model(tmp_path / "out", config, noisy(config))
    assert not (tmp_path / "out").exists()


# --- grown as they are ---

WIDER = {
    "gpt2": {"layers": 4, "embed": 48, "heads": 8, "mlp": 80},
    "gpt_neox": {"layers": 4, "embed": 48, "heads": 8, "mlp": 80},
    "mixtral": {"layers": 4, "embed": 36, "heads": 6, "kv_heads": 3, "mlp": 60, "experts": 6, "experts_per_token": 4},
    "qwen2_moe": {"layers": 4, "embed": 36, "shared_mlp": 30, "experts": 6, "experts_per_token": 4},
    "olmoe": {"layers": 4, "embed": 48, "heads": 8, "kv_heads": 4, "mlp": 60, "experts": 6, "experts_per_token": 4},
}
TWICE = {"layers": 4, "embed": 48, "heads": 8, "kv_heads": 4, "mlp": 80}
WIDER |= dict.fromkeys(("olmo3", "gemma2"), TWICE)


@pytest.mark.parametrize("family", few(WIDER, ("gpt_neox", "qwen2_moe")))
def test_depth_and_width_by_copies_keep_the_function_where_new_layers_are_silent(family, ours, tmp_path):
    folder = grow(ours / family, tmp_path / "grown", "--option.zero_residual=True", *sizes(**WIDER[family]))
    assert read(folder, "verify.json")["function"]["claimed"]
    after = assert_same_logits(folder, ours / family)
    assert (after.config.model_type, after.config.num_hidden_layers) == (family, 4)


@pytest.mark.parametrize("family", few(WIDER, ("mixtral", "gemma2")))
def test_the_stack_repeats_layers_to_the_bit(family, ours, tmp_path):
    folder = grow(ours / family, tmp_path / "grown", "--operator=g_stack", "--factor=2")
    assert not read(folder, "verify.json")["function"]["claimed"]
    before, after = (read_model(each)[1]["blocks"] for each in (ours / family, folder))
    jax.tree.map(lambda old, new: np.testing.assert_array_equal(new, np.concatenate([old, old])), before, after)
    assert len(hf.load(folder).config.to_dict().get("layer_types") or [0] * 4) == 4


def test_a_width_that_copies_reach_unevenly_is_grown_and_no_function_is_claimed(ours, tmp_path, capsys):
    """A LayerNorm takes the mean away, which moves where some coordinates have more copies than others."""
    folder = grow(ours / "gpt_neox", tmp_path / "grown", *sizes(embed=36, heads=6))
    out = capsys.readouterr().out
    assert "not kept: the stream's mean or variance changes" in out
    verdict = read(folder, "verify.json")
    assert verdict["ok"] and not verdict["function"]["claimed"] and not verdict["function"]["holds"]
    hf.load(folder)
    # Heads that do not fill the width are of our own folders alone.
    line = refused(capsys, 2, "grow", f"--source={ours}/gpt_neox", f"--output={tmp_path}/odd", *sizes(embed=37))
    assert "got 37" in line and not (tmp_path / "odd").exists()
    convert_folder(ours / "gpt_neox", tmp_path / "own", "growlm")
    capsys.readouterr()
    folder = grow(tmp_path / "own", tmp_path / "odd", "--no_verify", *sizes(embed=37))
    assert "not kept: the stream's mean or variance changes" in capsys.readouterr().out
    assert tiny.load_saved(folder)[0].embed == 37 and not read(folder, "growth.json")["preserves_function"]


# --- what is refused ---

BAD = {
    "no lift": ("llama", ["--target.architecture=gpt_neox", "--target.rotary_dim=2"], ("llama", "gpt_neox", "experts")),
    "no lift back": ("mixtral", ["--target.architecture=llama", "--factor=2"], ("mixtral", "got llama", "lift")),
    "no architecture": ("llama", ["--target.architecture=mixtrl"], ("'mixtrl'", "did you mean 'mixtral'")),
    "a number": ("llama", ["--target.architecture=3"], ("architecture", "3", "mixtral")),
    "too many chosen": (
        "llama",
        ["--target.architecture=mixtral", "--target.experts=2", "--target.experts_per_token=3"],
        ("experts_per_token must be <= model.experts, 2, got 3",),
    ),
    "more chosen": (
        "mixtral",
        ["--target.experts_per_token=4"],
        ("experts_per_token must be <= model.experts, 3, got 4",),
    ),
    "fewer experts": ("mixtral", ["--target.experts=2"], ("experts must be >= the source's, 3, got 2",)),
    "experts of a llama": ("llama", ["--target.experts=4"], ("'experts'", "--target")),
    "an odd rotation": ("gpt_neox", ["--target.rotary_dim=3"], ("rotary_dim must be even", "got 3")),
    "another rotation": (
        "gpt_neox",
        ["--target.rotary_dim=6"],
        ("rotary_dim must be the source's, 4, ",),
    ),
    "another head": (
        "gpt_neox",
        ["--target.head_dim=8"],
        ("model.embed must be heads x head_dim = 4 x 8",),
    ),
    "kv heads": ("gpt_neox", ["--target.kv_heads=2"], ("'kv_heads'", "--target")),
    "half a lift": ("llama", [*EXPERTS, "--target.layers=1"], ("layers must be >= the source's, 2, got 1",)),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_grow_is_one_line_and_nothing_is_written(name, ours, tmp_path, capsys):
    family, arguments, said = BAD[name]
    line = refused(capsys, 2, "grow", f"--source={ours}/{family}", f"--output={tmp_path}/out", *arguments)
    assert all(word in line for word in said), line
    assert list(tmp_path.iterdir()) == []


# --- what the check finds ---

# Tensors of 4,096 values and more, of which a maximum of XLA's CPU backend passes over NaN.
BROAD = {
    "llama": ModelConfig(layers=3, embed=64, heads=4, kv_heads=2, head_dim=16, mlp=64, vocab=64),
    "gpt_neox": GptNeoxConfig(layers=3, embed=64, heads=4, head_dim=16, mlp=64, vocab=64, rotary_dim=4),
}
BROAD["mixtral"] = MixtralConfig(**dataclasses.asdict(BROAD["llama"]), experts=2, experts_per_token=1)


@pytest.mark.parametrize("share", ["all", "one"])
@pytest.mark.parametrize("arguments", [["--target.mlp=96"], ["--factor=2"]], ids=["claimed", "not claimed"])
def test_a_value_that_is_not_a_number_is_found_whatever_is_claimed(share, arguments, tmp_path, capsys):
    config = BROAD["llama"]
    params = jax.tree.map(lambda leaf: np.array(leaf, copy=True), noisy(config))
    if share == "all":
        params = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), params)
    else:
        params["blocks"]["mlp"]["up"][1, 40, 50] = np.nan
    write_model(tmp_path / "source", config, params)
    line = refused(capsys, 1, "grow", f"--source={tmp_path}/source", f"--output={tmp_path}/out", *arguments)
    assert "not finite" in line and "nothing is written" in line
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("llama", "bfloat16"), ("llama", "float16"), ("gpt_neox", "bfloat16"), ("gpt_neox", "float16"),
     ("mixtral", "bfloat16"), ("mixtral", "float16")],
)  # fmt: skip
def test_in_16_bits_two_layers_that_are_swapped_break_the_claim_and_an_honest_growth_does_not(
    family, dtype, tmp_path, monkeypatch, capsys
):
    config = BROAD[family]
    write_model(tmp_path / "source", config, noisy(config), dtype=dtype)
    call = ["grow", f"--source={tmp_path}/source", "--target.embed=128", "--target.mlp=96"]
    call += ["--target.heads=8"] if family == "gpt_neox" else []
    assert main([*call, f"--output={tmp_path}/honest"]) == 0
    verdict = read(tmp_path / "honest", "verify.json")
    assert verdict["dtype"] == dtype and verdict["function"]["claimed"] and verdict["function"]["holds"]
    right = growing.grow_part

    def swapped(growth, target, key, weight, unit, *rest):
        layer = (({1: 2, 2: 1}.get(unit[0], unit[0])), *unit[1:]) if unit else unit
        return right(growth, target, key, weight, layer, *rest)

    monkeypatch.setattr(growing, "grow_part", swapped)
    line = refused(capsys, 1, *call, f"--output={tmp_path}/swapped")
    assert "NOT KEPT, which is claimed" in line and not (tmp_path / "swapped").exists()
