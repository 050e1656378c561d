"""`growlm convert`: there and back without a bit changed, and one line for whatever cannot be."""

import json
import shutil
from pathlib import Path

import hugging_face as hf
import jax
import numpy as np
import pytest
import tiny
from representatives import few
from safetensors import safe_open
from safetensors.numpy import save_file
from trees import noisy

import growlm
from growlm import read_model, write_model
from growlm.__main__ import main
from growlm.checked import CHECKSUMS
from growlm.commands.convert import convert_folder
from growlm.formats.safetensors import INDEX, SINGLE, NewTensor, write_tensors

CARRIED = {"tokenizer.json": b'{"a": 1}', "tokenizer.model": b"\x00\x01\xff", "LICENSE": b"theirs\n"}


def stored(folder):
    """dtype, shape and bytes of every tensor, read by the library."""
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            found |= {name: (str(x.dtype), x.shape, x.tobytes()) for name, x in tensors.items()}
    return found


def there_and_back(source, tmp_path):
    assert main(["convert", f"--source={source}", f"--output={tmp_path}/ours", "--to=growlm"]) == 0
    assert main(["convert", f"--source={tmp_path}/ours", f"--output={tmp_path}/theirs", "--to=huggingface"]) == 0
    return tmp_path / "ours", tmp_path / "theirs"


@pytest.mark.parametrize("name", few(hf.FAMILIES, ["llama2", "mixtral"]))
def test_there_and_back_every_byte_of_every_tensor_is_the_same(name, tmp_path, capsys):
    dtype = ["float32", "bfloat16", "float16"][sorted(hf.FAMILIES).index(name) % 3]
    source = hf.save(hf.make_model(name, dtype), tmp_path / "source", shard="30KB" if "llama" in name else "5GB")
    for file, content in CARRIED.items():
        (source / file).write_bytes(content)
    ours, theirs = there_and_back(source, tmp_path)
    assert stored(theirs) == stored(source)
    assert {kind for kind, _, _ in stored(theirs).values()} == {dtype}
    assert tiny.read_json(theirs / "config.json") == tiny.read_json(source / "config.json")
    for file in (*CARRIED, "generation_config.json"):
        assert (theirs / file).read_bytes() == (source / file).read_bytes()
    tokens = hf.random_tokens(96)
    expected = hf.logits_of(hf.load(source), tokens)
    np.testing.assert_array_equal(hf.logits_of(hf.load(theirs), tokens), expected)
    config, _, state = tiny.load_saved(ours)
    np.testing.assert_allclose(growlm.apply(config, state.params, tokens), expected, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, read_model(ours)[1], read_model(source)[1])
    assert f"written: {theirs}" in capsys.readouterr().out


def test_dtypes_of_single_tensors_stay(tmp_path):
    """A file may hold several."""
    source = hf.save(hf.make_model("llama2", "bfloat16"), tmp_path / "source")
    with safe_open(source / SINGLE, framework="np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    narrow = {name: x.astype(np.float32) if "norm" in name else x for name, x in tensors.items()}
    save_file(narrow, source / SINGLE, {"format": "pt"})
    _, theirs = there_and_back(source, tmp_path)
    assert stored(theirs) == stored(source)
    assert len({dtype for dtype, _, _ in stored(theirs).values()}) == 2
    hf.load(theirs)


def test_a_tensor_lies_at_a_multiple_of_its_width_whatever_is_before_it(tmp_path):
    values = {"a": np.float16([1, 2, 3]), "b": np.float32([[4], [5]]), "c": np.float16([]), "d": np.float32([6])}
    new = [NewTensor(name, value.dtype, value.shape) for name, value in values.items()]
    told = []
    write_tensors(tmp_path, new, lambda tensor: [values[tensor.name].copy], told.append, shard=100)
    content = (tmp_path / SINGLE).read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0 and sum(told) == 6 + 8 + 0 + 4
    for name, entry in json.loads(content[8 : 8 + length]).items():
        assert name == "__metadata__" or entry["data_offsets"][0] % values[name].dtype.itemsize == 0
    expected = {name: (str(value.dtype), value.shape, value.tobytes()) for name, value in values.items()}
    assert stored(tmp_path) == expected


def test_a_model_of_ours_is_one_that_transformers_loads(tmp_path):
    """Every variant of ours that a family has; float32 by default, or as asked for."""
    base = {"layers": 2, "embed": 24, "heads": 4, "kv_heads": 2, "head_dim": 8, "mlp": 40, "vocab": 64}
    scaling = growlm.models.RopeScaling("llama3", 4.0, original_length=16)
    kinds = {
        "llama": {"rope_scaling": scaling, "norm_eps": 1e-3},
        "mistral": {"sliding_window": 6, "rope_theta": 50.0},
        "qwen2": {"qkv_bias": True, "sliding_window": 6, "tie_embeddings": True},
        "qwen3": {"qk_norm": True, "rope_scaling": growlm.models.RopeScaling("linear", 2.0)},
    }
    for kind, own in kinds.items():
        config = growlm.ModelConfig(**base | own)
        params = noisy(config)
        write_model(tmp_path / kind, config, params, shard=20_000)
        model, tokens = hf.load(tmp_path / kind), hf.random_tokens(64)
        assert model.config.model_type == kind
        np.testing.assert_allclose(hf.logits_of(model, tokens), growlm.apply(config, params, tokens), atol=1e-4)
        again, values = read_model(tmp_path / kind)
        assert again == config
        jax.tree.map(np.testing.assert_array_equal, values, jax.tree.map(np.asarray, params))
    write_model(tmp_path / "half", config, params, dtype="bfloat16")
    assert {dtype for dtype, _, _ in stored(tmp_path / "half").values()} == {"bfloat16"}
    assert hf.load(tmp_path / "half").config.model_type == "qwen3"


def test_heads_that_do_not_divide_the_width_are_written_as_mistral(tmp_path):
    """transformers refuses them in a Llama, and not in a Mistral, which is the same model otherwise."""
    config = growlm.ModelConfig(layers=1, embed=22, heads=4, kv_heads=2, head_dim=8, mlp=40, vocab=64)
    params = noisy(config)
    write_model(tmp_path / "odd", config, params)
    model, tokens = hf.load(tmp_path / "odd"), hf.random_tokens(64)
    assert (model.config.model_type, model.config.sliding_window) == ("mistral", None)
    np.testing.assert_allclose(hf.logits_of(model, tokens), growlm.apply(config, params, tokens), atol=1e-4)


def test_a_run_is_exported(tmp_path, capsys):
    corpus = tiny.write_corpus(tmp_path)
    (tmp_path / "run.py").write_text("")
    tiny.write_config(tmp_path / "run.py", tiny.run(corpus, tiny.stage(2)))
    assert main(["train", f"--config={tmp_path}/run.py", f"--workdir={tmp_path}/run"]) == 0
    assert main(["convert", f"--source={tmp_path}/run", "--describe"]) == 0
    assert "growlm, step 2" in capsys.readouterr().out
    convert_folder(tmp_path / "run", tmp_path / "out", "huggingface")
    config, _, state = tiny.load_saved(tmp_path / "run")
    tokens = hf.random_tokens(config.vocab, (2, 16))
    found = hf.logits_of(hf.load(tmp_path / "out"), tokens)
    np.testing.assert_allclose(found, growlm.apply(config, state.params, tokens), atol=1e-4)
    assert tiny.read_json(tmp_path / "out" / "config.json")["max_position_embeddings"] == tiny.LENGTH


# --- what is refused ---


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A checkpoint in one file and the same in several, by our own writer: no torch is needed."""
    config = growlm.ModelConfig(layers=2, embed=16, heads=2, kv_heads=1, head_dim=8, mlp=24, vocab=32)
    home = tmp_path_factory.mktemp("folders")
    params = noisy(config)
    write_model(home / "one", config, params)
    write_model(home / "many", config, params, shard=5000)
    for name in ("one", "many"):  # as others write them, who may damage what they like
        (home / name / CHECKSUMS).unlink()
    return home


@pytest.fixture
def case(folders, tmp_path):
    """Copies of both, that may be damaged."""
    for name in ("one", "many"):
        shutil.copytree(folders / name, tmp_path / name)
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(folders / "one" / SINGLE, tmp_path / "elsewhere" / SINGLE)
    return tmp_path


def refused(capsys, case, *arguments):
    """The one line that is said; exit code 2, and not a byte is changed anywhere."""
    before = tiny.snapshot(case)
    capsys.readouterr()
    assert main(["convert", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("growlm: ") and len(err.splitlines()) == 1, err
    assert tiny.snapshot(case) == before
    return err


def change_json(path, change):
    value = tiny.read_json(path)
    change(value)
    path.write_text(json.dumps(value))


def settings(**changes):
    """A damage: config.json says something else."""
    return lambda case: change_json(case / "one" / "config.json", lambda value: value.update(changes))


def index(change):
    return lambda case: change_json(case / "many" / INDEX, lambda value: change(value["weight_map"]))


def place(file):
    return index(lambda placed: placed.update({"model.norm.weight": file}))


def shards(case):
    return sorted(path.name for path in (case / "many").glob("*.safetensors"))


def swap(case):
    """The index has the last tensor in the first shard."""
    place(shards(case)[0])(case)


def link(case):
    (case / "one" / SINGLE).unlink()
    (case / "one" / SINGLE).symlink_to(case / "elsewhere" / SINGLE)


def linked_shard(case):
    shutil.copy(case / "elsewhere" / SINGLE, case / "elsewhere.safetensors")
    (case / "many" / "more.safetensors").symlink_to(case / "elsewhere.safetensors")
    place("more.safetensors")(case)


def resave(change):
    """A damage: other tensors in a whole file."""

    def damage(case):
        path = case / "one" / SINGLE
        with safe_open(path, framework="np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        change(tensors)
        save_file(tensors, path)

    return damage


def truncate(case):
    path = case / "one" / SINGLE
    path.write_bytes(path.read_bytes()[:-3])


def pickled(case):
    (case / "one" / SINGLE).rename(case / "one" / "pytorch_model.bin")


def lone_shard(case):
    (case / "many" / INDEX).unlink()


NORM = "model.norm.weight"
ONE, MANY = "one", "many"
REFUSED = {
    "gemma": (ONE, settings(model_type="gemma9"), ("'gemma9'", "gemma2, gemma3_text", "llama, mistral, mixtral")),
    "no family": (ONE, settings(model_type=3), ("model_type must be", "llama", "'3'")),
    "gelu": (ONE, settings(hidden_act="gelu"), ("hidden_act of llama must be 'silu', got 'gelu'",)),
    "bias": (ONE, settings(attention_bias=True), ("attention_bias of llama must be False, got True",)),
    "mlp bias": (ONE, settings(mlp_bias=True), ("mlp_bias of llama must be False, got True",)),
    "yarn": (ONE, settings(rope_scaling={"type": "yarn", "factor": 2.0}), ("'yarn'", "llama3")),
    "rope list": (ONE, settings(rope_scaling=[1]), ("[1]",)),
    "rope factor": (ONE, settings(rope_scaling={"type": "linear", "factor": "a"}), ("factor", "'a'")),
    "partial rope": (
        ONE,
        settings(partial_rotary_factor=0.5),
        ("partial_rotary_factor of llama",),
    ),
    "quantized": (ONE, settings(quantization_config={"bits": 4}), ("quantization_config",)),
    "half windows": (
        ONE,
        settings(model_type="qwen2", use_sliding_window=True, max_window_layers=1),
        ("a sliding window on 2 layers must be on all of them or none",),
    ),
    "window": (ONE, settings(model_type="mistral", sliding_window=0), ("sliding_window", "0")),
    "wider": (ONE, settings(hidden_size=32), ("shape", "32")),
    "other heads": (ONE, settings(num_attention_heads=4), ("k_proj", "[8, 16]", "[4, 16]")),
    "more layers": (ONE, settings(num_hidden_layers=3), ("'model.layers.2.", "missing")),
    "a billion layers": (ONE, settings(num_hidden_layers=10**9), ("num_hidden_layers", "1000000000")),
    "a billion windows": (
        ONE,
        settings(model_type="qwen2", use_sliding_window=True, num_hidden_layers=10**9),
        ("num_hidden_layers", "1000000000", "at most"),
    ),
    "many layers": (ONE, settings(num_hidden_layers=10**4), ("10000 layers", "missing")),
    "fewer layers": (ONE, settings(num_hidden_layers=1), ("'model.layers.1.", "none that")),
    "tied": (ONE, settings(tie_word_embeddings=True), ("'lm_head.weight'",)),
    "qwen3": (ONE, settings(model_type="qwen3"), ("q_norm", "missing")),
    "no size": (ONE, lambda c: change_json(c / ONE / "config.json", lambda v: v.pop("hidden_size")), ("hidden_size",)),
    "a text as size": (ONE, settings(hidden_size="16"), ("hidden_size", "'16'")),
    "no JSON": (ONE, lambda c: (c / ONE / "config.json").write_text("{"), ("config.json", "JSON")),
    "deep JSON": (ONE, lambda c: (c / ONE / INDEX).write_text("[" * 10**5), (INDEX, "JSON")),
    "a list": (ONE, lambda c: (c / ONE / INDEX).write_text("[]"), ("list", "object")),
    "no config": (ONE, lambda c: (c / ONE / "config.json").unlink(), ("no config.json",)),
    "truncated": (ONE, truncate, ("damaged",)),
    "empty": (ONE, lambda c: (c / ONE / SINGLE).write_bytes(b""), ("damaged", "header")),
    "huge header": (ONE, lambda c: (c / ONE / SINGLE).write_bytes(b"\xff" * 64), ("damaged", "header")),
    "missing tensor": (ONE, resave(lambda t: t.pop(NORM)), (NORM, "missing")),
    "extra tensor": (ONE, resave(lambda t: t.update(extra=t[NORM])), ("'extra'",)),
    "integers": (ONE, resave(lambda t: t.update({NORM: np.ones(16, np.int64)})), (NORM, "I64")),
    "float64": (ONE, resave(lambda t: t.update({NORM: np.ones(16)})), (NORM, "F64", "BF16")),
    "pickled": (ONE, pickled, ("pickled", "pytorch_model.bin", "safetensors")),
    "nothing": (ONE, lambda c: (c / ONE / SINGLE).unlink(), ("no weights",)),
    "link": (ONE, link, ("leads out",)),
    "shards without index": (MANY, lone_shard, ("shards with model.safetensors.index.json", "model-00001")),
    "no map": (MANY, lambda c: (c / MANY / INDEX).write_text("{}"), ("weight_map",)),
    "up": (MANY, place("../one/model.safetensors"), ("'../one/model.safetensors'", "folder itself")),
    "absolute": (MANY, place("/etc/x.safetensors"), ("'/etc/x.safetensors'",)),
    "no safetensors": (MANY, place("config.json"), ("'config.json'",)),
    "a number": (MANY, place(3), ("3",)),
    "linked shard": (MANY, linked_shard, ("leads out",)),
    "no such shard": (MANY, place("gone.safetensors"), ("gone.safetensors", "not there")),
    "in another shard": (MANY, swap, (NORM, "index")),
    "nowhere": (MANY, index(lambda placed: placed.pop(NORM)), (NORM, "nowhere")),
    "not in the shard": (MANY, index(lambda placed: placed.update(x=placed[NORM])), ("'x'",)),
    "shard gone": (MANY, lambda c: (c / MANY / shards(c)[1]).unlink(), ("00002", "not there")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_with_a_folder_is_one_line(name, case, capsys):
    folder, damage, said = REFUSED[name]
    damage(case)
    arguments = f"--source={case / folder}", f"--output={case}/out", "--to=growlm"
    err = refused(capsys, case, *arguments)
    assert all(word in err for word in said), err


BAD_CALLS = {
    "no such folder": (["--source={}/none", "--output={}/out", "--to=growlm"], ("no folder",)),
    "a format that is none": (["--source={}/one", "--output={}/out", "--to=torch"], ("'torch'", "growlm, huggingface")),
    "to what it is": (["--source={}/one", "--output={}/out", "--to=huggingface"], ("already", "--to=growlm")),
    "output is there": (["--source={}/one", "--output={}/many", "--to=growlm"], ("not empty",)),
    "output is a file": (["--source={}/one", "--output={}/one/config.json", "--to=growlm"], ("no folder",)),
    "no output": (["--source={}/one", "--to=growlm"], ("--output",)),
    "no format": (["--source={}/one", "--output={}/out"], ("--to",)),
    "dtype of an import": (["--source={}/one", "--output={}/out", "--to=growlm", "--dtype=float16"], ("--dtype",)),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_call_is_one_line(name, case, capsys):
    arguments, said = BAD_CALLS[name]
    err = refused(capsys, case, *(text.format(case) for text in arguments))
    assert all(word in err for word in said), err


def test_a_disk_that_is_too_small_is_found_before_anything_is_written(case, capsys, monkeypatch):
    usage = shutil.disk_usage(case)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    err = refused(capsys, case, f"--source={case}/one", f"--output={case}/out", "--to=growlm")
    assert "1,000" in err and "bytes" in err
    config, params = read_model(case / "one")
    with pytest.raises(growlm.InputError, match="1,000"):
        write_model(case / "out", config, params)
    assert not (case / "out").exists()


def test_a_snapshot_of_the_hubs_cache_is_read(folders, tmp_path):
    """Its files are links to the blobs beside it; links to anywhere else are refused."""
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate((folders / "many").iterdir()):
        shutil.copy(path, blobs / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    assert read_model(snapshot)[0] == read_model(folders / "many")[0]
    (snapshot / INDEX).unlink()
    (snapshot / INDEX).symlink_to(folders / "many" / INDEX)
    with pytest.raises(growlm.InputError, match="leads out"):
        read_model(snapshot)


def test_buffers_that_old_llamas_hold_and_tied_heads_that_are_stored_again_are_no_weights(case):
    buffer = {"model.layers.1.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    config, params = read_model(case / "one")
    resave(lambda tensors: tensors.update(buffer))(case)
    jax.tree.map(np.testing.assert_array_equal, read_model(case / "one")[1], params)
    settings(tie_word_embeddings=True)(case)
    resave(lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"]}))(case)
    tied, values = read_model(case / "one")
    assert tied.tie_embeddings and "head" not in values
    assert not config.tie_embeddings


def test_interrupted_while_it_writes_it_leaves_nothing(case, monkeypatch):
    config, params = read_model(case / "one")
    before = tiny.snapshot(case)
    monkeypatch.setattr("growlm.formats.export.write_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_model(case / "out", config, params)
    assert tiny.snapshot(case) == before


def interrupt(*args):
    raise KeyboardInterrupt
