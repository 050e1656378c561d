"""GPT-2: names and buffers of released files, and sequences longer than there are positions; what Phi-3 is not."""

import dataclasses
import json
import shutil

import hugging_face as hf
import jax
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file
from trees import exact_products, noisy

import growlm
from growlm import read_model, write_model
from growlm.__main__ import main
from growlm.commands.convert import convert_folder
from growlm.data import load_tokenizer
from growlm.errors import InputError
from growlm.evaluation import LanguageModel
from growlm.formats.safetensors import SINGLE
from growlm.models import Gpt2Config, ModelConfig
from growlm.training.settings import StageConfig

exact = pytest.fixture(autouse=True, scope="module")(exact_products.__wrapped__)

GPT2 = Gpt2Config(layers=2, embed=24, heads=4, head_dim=6, mlp=40, vocab=64, positions=64, norm_eps=1e-3)


def renamed(folder, output, prefix, buffers):
    """The folder with another prefix of its names, and with buffers beside its weights."""
    output.mkdir()
    (output / "config.json").write_bytes((folder / "config.json").read_bytes())
    tensors = {name.replace("transformer.", prefix): value for name, value in load_file(folder / SINGLE).items()}
    save_file(tensors | {f"{prefix}h.{name}": value for name, value in buffers.items()}, output / SINGLE)
    return output


def test_a_file_of_the_bare_gpt2_keeps_its_names_wherever_it_goes(tmp_path):
    write_model(tmp_path / "ours", GPT2, noisy(GPT2))
    weights = load_file(renamed(tmp_path / "ours", tmp_path / "bare", "", {}) / SINGLE)
    assert "h.1.attn.c_attn.weight" in weights
    buffers = {"0.attn.bias": np.ones((1, 1, 4, 4), bool), "1.attn.masked_bias": np.float32([-1e4])}
    source = renamed(tmp_path / "ours", tmp_path / "source", "", buffers)
    (config, params), (same, values) = read_model(source), read_model(tmp_path / "ours")
    assert config == same == GPT2
    jax.tree.map(np.testing.assert_array_equal, params, values)
    convert_folder(source, tmp_path / "own", "growlm")
    for number, dtype in enumerate((None, "bfloat16")):
        convert_folder(tmp_path / "own", tmp_path / f"back{number}", "huggingface", dtype)
        back = load_file(tmp_path / f"back{number}" / SINGLE)
        assert back.keys() == weights.keys()
        assert dtype or all(np.array_equal(back[name], value) for name, value in weights.items())
    more = ["--option.zero_residual=True", "--target.layers=3", "--target.mlp=60"]
    assert main(["grow", f"--source={source}", f"--output={tmp_path}/grown", *more]) == 0
    assert "h.2.mlp.c_fc.weight" in load_file(tmp_path / "grown" / SINGLE)
    tokens = hf.random_tokens(64)
    logits = hf.logits_of(hf.load(tmp_path / "grown"), tokens)
    np.testing.assert_allclose(logits, growlm.apply(config, params, tokens), atol=1e-4)


def test_more_tokens_than_positions_are_one_line_wherever_lengths_are_known(tmp_path, capsys):
    short, params = dataclasses.replace(GPT2, positions=5), noisy(dataclasses.replace(GPT2, positions=5))
    tokens, says = hf.random_tokens(64, (1, 6)), "must be at most 5, the positions of the model, got 6"
    with pytest.raises(InputError, match=f"the length of tokens {says}"):
        growlm.apply(short, params, tokens)
    assert growlm.models.next_token_loss(short, params, tokens).shape == ()  # the sixth is only predicted
    with pytest.raises(InputError, match=rf"stage\.length {says}"):
        StageConfig(short, tokens=6, batch=1, length=6)
    with pytest.raises(InputError, match=f"^length {says}"):
        LanguageModel(dataclasses.replace(short, vocab=300), params, load_tokenizer("bytes"), length=6, prefix=0)
    write_model(tmp_path / "short", short, params)
    assert main(["grow", f"--source={tmp_path}/short", f"--output={tmp_path}/grown", "--target.mlp=60"]) == 0
    assert tiny.read_json(tmp_path / "grown" / "verify.json")["tokens"] == [2, 5]


def test_validation_text_of_more_tokens_than_positions_is_refused_before_training(tmp_path, capsys):
    model = dataclasses.asdict(GPT2) | {"architecture": "gpt2", "vocab": 300, "positions": tiny.LENGTH}
    settings = tiny.run(tiny.write_corpus(tmp_path), tiny.stage(2, model=model))
    settings |= {"evaluation": {"length": tiny.LENGTH + 1}}
    tiny.write_config(tmp_path / "run.py", settings)
    assert main(["train", f"--config={tmp_path}/run.py", f"--workdir={tmp_path}/work"]) == 2
    says = f"evaluation.length must be at most {tiny.LENGTH}, the positions of the model, got {tiny.LENGTH + 1}"
    assert says in capsys.readouterr().err


REFUSED = {
    "erf": ("gpt2", {"activation_function": "gelu"}, ("activation_function of gpt2 must be one of gelu_new", "'gelu'")),
    "scaled by layer": (
        "gpt2",
        {"scale_attn_by_inverse_layer_idx": True},
        ("scale_attn_by_inverse_layer_idx of gpt2 must be False, got True",),
    ),
    "an encoder": ("gpt2", {"add_cross_attention": True}, ("add_cross_attention of gpt2 must be False, got True",)),
    "no scale": ("gpt2", {"scale_attn_weights": False}, ("scale_attn_weights of gpt2 must be True, got False",)),
    "more positions": ("gpt2", {"n_positions": 65}, ("wpe.weight", "[65, 24]", "[64, 24]")),
    "a broken head": ("gpt2", {"n_head": 5}, ("n_embd must be a multiple of n_head, 5, got 24",)),
    "another width": ("gpt2", {"n_inner": None}, ("mlp.c_fc.weight", "[24, 96]", "[24, 40]")),
    "longrope": (
        "phi3",
        {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}},
        ("rope_type of phi3 must be default, got 'longrope'",),
    ),
    "stretched": (
        "phi3",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
        ("rope_type of phi3 must be default, got 'linear'",),
    ),
    "half a rotation": (
        "phi3",
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.75}},
        ("partial_rotary_factor of phi3 must be 1.0, got 0.75",),
    ),
    "fewer fused": ("phi3", {"num_key_value_heads": 1}, ("qkv_proj", "[36, 24]", "[48, 24]")),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("folders")
    llama = ModelConfig(layers=2, embed=24, heads=4, kv_heads=2, head_dim=6, mlp=40, vocab=64)
    write_model(home / "gpt2", GPT2, noisy(GPT2))
    write_model(home / "phi3", llama, noisy(llama), settings={"model_type": "phi3"})
    for name in ("gpt2", "phi3"):
        (home / name / "checksums.json").unlink()
    return home


@pytest.mark.parametrize("name", REFUSED)
def test_a_variant_that_is_not_built_is_one_line(name, folders, tmp_path):
    family, changes, said = REFUSED[name]
    shutil.copytree(folders / family, tmp_path / family)
    config = tmp_path / family / "config.json"
    config.write_text(json.dumps(tiny.read_json(config) | changes))
    with pytest.raises(InputError) as error:
        read_model(tmp_path / family)
    assert all(word in str(error.value) for word in said) and "\n" not in str(error.value)
