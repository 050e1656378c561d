"""A Hugging Face checkpoint that was grown and trained on goes back as one, with all that it came with."""

import dataclasses
import json
import threading

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file
from trees import exact_products, noisy

from growlm import read_config, read_model, write_model
from growlm.__main__ import main
from growlm.models import ModelConfig
from growlm.training.run import train

exact = pytest.fixture(autouse=True, scope="module")(exact_products.__wrapped__)

SMALL = ModelConfig(**tiny.MODEL | {"layers": 2, "qkv_bias": True})


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A checkpoint in bfloat16 with files beside its weights, and a run that grew it and trained it on."""
    folder = tmp_path_factory.mktemp("home")
    write_model(folder / "theirs", SMALL, noisy(SMALL), dtype="bfloat16")
    (folder / "theirs" / "checksums.json").unlink()
    settings = tiny.read_json(folder / "theirs" / "config.json")
    (folder / "theirs" / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": 4096}))
    (folder / "theirs" / "generation_config.json").write_text('{"temperature": 0.6}')
    (folder / "theirs" / "LICENSE").write_text("Apache 2.0")
    model = dataclasses.asdict(SMALL)
    begin = tiny.stage(1, model=model, init_from=str(folder / "theirs"))
    large = tiny.grown(2, model=model | {"layers": 3}, growth={"operator": "llama_pro"})
    train(tiny.run_config(tiny.write_corpus(folder), begin, large), folder / "run", threading.Event())
    return folder


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_it_goes_back_with_its_files_and_in_its_dtype(home, tmp_path, dtype):
    asked = [] if dtype == "bfloat16" else [f"--dtype={dtype}"]
    out = tmp_path / "out"
    assert main(["convert", f"--source={home / 'run'}", f"--output={out}", "--to=huggingface", *asked]) == 0
    settings = tiny.read_json(out / "config.json")
    assert (settings["num_hidden_layers"], settings["max_position_embeddings"]) == (3, 4096)
    assert (out / "generation_config.json").read_text() == '{"temperature": 0.6}'
    assert (out / "LICENSE").read_text() == "Apache 2.0"
    assert {value.dtype.name for value in load_file(out / "model.safetensors").values()} == {dtype}
    model, params = read_model(out)
    trained = tiny.load_saved(home / "run")[2].params
    assert model == dataclasses.replace(SMALL, layers=3)
    found, want = np.asarray(params["embedding"]), np.asarray(trained["embedding"])
    np.testing.assert_allclose(found, want, rtol=0 if dtype == "float32" else 2**-8)
    assert not np.array_equal(found, np.asarray(read_model(home / "theirs")[1]["embedding"]))


@pytest.mark.slow
def test_what_learns_grows_a_checkpoint_so_as_the_error_of_grow_says(home, tmp_path, capsys):
    """`growlm grow` has no batches for it."""
    refused = ["grow", f"--source={home / 'theirs'}", f"--output={tmp_path / 'no'}", "--factor=2", "--operator=ligo"]
    assert main(refused) == 2
    assert "init_from" in capsys.readouterr().err and not (tmp_path / "no").exists()
    model = dataclasses.asdict(SMALL)
    begin = tiny.stage(0, model=model, init_from=str(home / "theirs"))
    learn = {"operator": "ligo", "options": {"steps": 2, "warmup": 1}}
    large = tiny.grown(1, model=model | {"layers": 4}, growth=learn)
    train(tiny.run_config(str(home / "corpus.txt"), begin, large), tmp_path / "run", threading.Event())
    out = tmp_path / "out"
    assert main(["convert", f"--source={tmp_path / 'run'}", f"--output={out}", "--to=huggingface"]) == 0
    assert read_config(out) == dataclasses.replace(SMALL, layers=4)
    assert {value.dtype.name for value in load_file(out / "model.safetensors").values()} == {"bfloat16"}
    assert (out / "LICENSE").read_text() == "Apache 2.0"


def test_a_run_that_goes_on_from_such_a_run_has_them_too(home, tmp_path):
    begin = tiny.stage(1, model=dataclasses.asdict(read_config(home / "run")), init_from=str(home / "run"))
    train(tiny.run_config(str(home / "corpus.txt"), begin), tmp_path / "on", threading.Event())
    kept = sorted(path.name for path in (tmp_path / "on" / "huggingface").iterdir())
    assert kept == ["LICENSE", "checksums.json", "config.json", "dtypes.json", "generation_config.json", "origin.json"]
    assert kept == sorted(path.name for path in (home / "run" / "huggingface").iterdir())
