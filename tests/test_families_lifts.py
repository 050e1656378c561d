"""Checkpoints at the command line that become larger families: lifts, alone, before growth, and of whole states."""

import hugging_face as hf
import jax
import numpy as np
import pytest
import tiny
from representatives import few
from test_families import EXPERTS, TOLERANCE, assert_same_logits, grow, read, sizes
from trees import exact_products, leaf_at

import growlm
from growlm import read_model
from growlm.__main__ import main
from growlm.commands.convert import convert_folder
from growlm.commands.grow_checkpoint import plan_grow
from growlm.formats import growing

exact = pytest.fixture(autouse=True, scope="module")(exact_products.__wrapped__)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A Llama and one whose head is tied, as transformers writes them."""
    home = tmp_path_factory.mktemp("theirs")
    hf.save(hf.make_model("llama2", vocab_size=64), home / "llama")
    hf.save(hf.make_model("smollm", vocab_size=64), home / "tied")
    return home


LIFTED = {
    "experts": ("llama", {}, "experts"),
    "depth too": ("llama", {"layers": 5}, "experts"),
    "width too": ("llama", {"embed": 48, "heads": 6, "kv_heads": 3, "mlp": 76}, "experts"),
    "all at once": ("llama", {"layers": 4, "embed": 64, "heads": 8, "kv_heads": 4, "mlp": 80}, "experts"),
    "tied into tied": ("tied", {}, "experts"),
    "tied into untied": ("tied", {"tie_embeddings": False, "mlp": 64}, "untie, experts"),
}


@pytest.mark.parametrize("name", few(LIFTED, ("all at once", "tied into untied")))
def test_a_llama_becomes_a_mixtral_that_computes_the_same(name, theirs, tmp_path, capsys):
    source, more, lift = LIFTED[name]
    (theirs / source / "tokenizer.json").write_bytes(b"{}")
    arguments = ["--operator=direct", "--option.zero_residual=True", *EXPERTS, *sizes(**more)]
    folder = grow(theirs / source, tmp_path / "grown", *arguments)
    assert "each MLP becomes a mixture of one expert" in capsys.readouterr().out
    after = assert_same_logits(folder, theirs / source)
    assert type(after).__name__ == "MixtralForCausalLM"
    settings = read(folder, "config.json")
    expected = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 8}
    expected |= {"num_experts_per_tok": 2, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 64}
    assert {key: settings[key] for key in expected} == expected
    assert read(folder, "growth.json")["lift"]["name"] == lift and (folder / "tokenizer.json").exists()
    assert read(folder, "verify.json")["function"]["holds"]
    # Copies, but for routers, of which no two rows are alike: else experts would stay copies for good.
    moe = read_model(folder)[1]["blocks"]["moe"]
    assert all(np.all(moe[part] == moe[part][:, :1]) for part in ("gate", "up", "down"))
    assert len(np.unique(moe["router"][0], axis=1).T) == 8 and np.abs(moe["router"]).min() > 0


def test_a_qwen2_becomes_the_shared_expert_of_a_qwen2_moe_that_computes_the_same(tmp_path):
    """Weighed by a half and twice as large; the mixture's experts add nothing yet, and all else of them is drawn."""
    source = hf.save(hf.make_model("qwen2", vocab_size=64), tmp_path / "source")
    arguments = ["--target.architecture=mixtral", "--option.zero_residual=True"]
    arguments += sizes(experts=4, experts_per_token=2, mlp=12, shared_mlp=70, shared_router=True, normalised=False)
    folder = grow(source, tmp_path / "grown", *arguments, *sizes(layers=4, embed=48, heads=6, kv_heads=3))
    after = assert_same_logits(folder, source)
    assert type(after).__name__ == "Qwen2MoeForCausalLM" and read(folder, "growth.json")["lift"]["name"] == "weighed"
    moe = read_model(folder)[1]["blocks"]["moe"]
    assert not moe["down"].any() and not moe["shared_router"].any()
    for part in ("gate", "up", "router"):
        assert moe[part].std() > 0.01 and np.unique(moe[part]).size > 1000 * (part != "router")


def test_units_are_dropped_in_folders_too(theirs, tmp_path, monkeypatch):
    """The same units of all three matrices of an expert, however a folder is cut into pieces."""
    monkeypatch.setattr(growing, "PIECE_BYTES", 2000)
    folder = grow(theirs / "llama", tmp_path / "grown", *EXPERTS, "--option.drop_units=0.5")
    assert not read(folder, "verify.json")["function"]["claimed"]
    before, after = (read_model(each)[1]["blocks"] for each in (theirs / "llama", folder))
    sets = {}
    for part, dim in (("gate", 3), ("up", 3), ("down", 2)):
        other = (after["moe"][part] != before["mlp"][part][:, None]).swapaxes(2, dim)
        assert np.array_equal(other.any(axis=3), other.all(axis=3))
        sets[part] = other.any(axis=3)
    assert np.array_equal(sets["gate"], sets["up"]) and np.array_equal(sets["gate"], sets["down"])
    assert np.all(sets["gate"].sum(axis=2) == sets["gate"].shape[2] / 2)


def test_a_tied_head_becomes_one_of_its_own(theirs, tmp_path):
    folder = grow(theirs / "tied", tmp_path / "grown", *sizes(tie_embeddings=False))
    after = assert_same_logits(folder, theirs / "tied")
    assert not after.config.tie_word_embeddings and read(folder, "growth.json")["lift"]["name"] == "untie"
    params = read_model(folder)[1]
    np.testing.assert_array_equal(params["head"], params["embedding"].T)


def test_a_lift_keeps_dtypes_and_pieces_are_of_no_consequence(theirs, tmp_path, monkeypatch):
    hf.save(hf.make_model("smollm", "bfloat16", vocab_size=64), tmp_path / "half", shard="20KB")
    arguments = [*EXPERTS, *sizes(tie_embeddings=False, mlp=64, layers=4), "--option.zero_residual=True"]
    folders = []
    for piece in (600, 10**6):
        monkeypatch.setattr(growing, "PIECE_BYTES", piece)
        folders.append(grow(tmp_path / "half", tmp_path / str(piece), *arguments))
    one, other = (read_model(folder)[1] for folder in folders)
    one["blocks"]["moe"].pop("router"), other["blocks"]["moe"].pop("router")  # drawn, piece by piece
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert read(folders[0], "config.json")["dtype"] == "bfloat16"
    plan = plan_grow(folders[0], factor=2)
    assert {tensor.dtype.name for tensor in plan.folder.tensors} == {"bfloat16"}


def test_four_experts_of_which_two_are_chosen_become_eight_of_which_four_are(tmp_path, capsys):
    source = hf.save(hf.make_model("mixtral", vocab_size=64), tmp_path / "source")
    folder = grow(source, tmp_path / "grown", *sizes(experts=8, experts_per_token=4))
    after = assert_same_logits(folder, source)
    assert (after.config.num_local_experts, after.config.num_experts_per_tok) == (8, 4)
    grow(source, tmp_path / "two", *sizes(experts=8))
    assert "experts_per_token is 2 before and 2 after: the copies of all chosen would be 4" in capsys.readouterr().out


# --- lifts of whole states ---

TIED = tiny.MODEL | {"tie_embeddings": True}
MIXED = {"architecture": "mixtral", "experts": 4, "experts_per_token": 2, "tie_embeddings": False}


@pytest.fixture(scope="module")
def run(request, tmp_path_factory):
    """A run of a tied Llama with averaged weights; and the settings with which it was trained."""
    folder = tmp_path_factory.mktemp("run")
    optimizer = {"kind": request.param, "ema": 0.5}
    settings = tiny.run(tiny.write_corpus(folder), tiny.stage(2, model=TIED, optimizer=optimizer))
    tiny.write_config(folder / "run.py", settings)
    assert main(["train", f"--config={folder}/run.py", f"--workdir={folder}/work"]) == 0
    return folder, settings


def by_path(opt_state):
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(opt_state)}  # fmt: skip


def moments_of(opt_state, field, weight):
    """Of a field's trees the leaf that is the weight's; None where no tree has it."""
    found = [leaf for path, leaf in by_path(opt_state).items() if path.endswith(f"{field}/{weight}")]
    return found[0] if found else None


@pytest.mark.parametrize("run", few(["adamw", "muon"], ["adamw"]), indirect=True)
def test_moments_go_with_the_weights_that_a_lift_moves(run, tmp_path):
    home, settings = run
    muon = settings["stages"][0]["optimizer"]["kind"] == "muon"
    arguments = ["--option.zero_residual=True", *sizes(**MIXED, layers=2), "--optimizer_state=map"]
    folder = grow(home / "work", tmp_path / "grown", *arguments, *["--no_verify"] * muon)
    model, _, after = tiny.load_saved(folder)
    _, _, before = tiny.load_saved(home / "work")
    assert read(folder, "growth.json")["lift"]["name"] == "untie, experts"
    assert muon or read(folder, "verify.json")["items"]["function"]["holds"]
    assert (after.step, after.tokens) == (before.step, before.tokens) and model.architecture.name == "mixtral"
    checked = 0
    for field, power in (("mu", 1), ("nu", 2)):
        for part in ("gate", "up", "down"):
            old = moments_of(before.opt_state, field, f"blocks/mlp/{part}")
            new = moments_of(after.opt_state, field, f"blocks/moe/{part}")
            assert (old is None) == (new is None) == (muon and field == "nu")
            if old is not None:
                # The router's share is spread over 4 copies; the second layer is silent and a copy of the first.
                want = np.broadcast_to(old[:, None] / 4**power, (1, 4, *old.shape[1:]))
                np.testing.assert_allclose(new[:1], want, rtol=1e-6)
                assert np.abs(new[:1]).max() > 0
                checked += 1
        norm = moments_of(before.opt_state, field, "blocks/mlp_norm/scale")
        np.testing.assert_allclose(moments_of(after.opt_state, field, "blocks/moe_norm/scale")[:1], norm, rtol=1e-6)
        router = moments_of(after.opt_state, field, "blocks/moe/router")
        assert router.shape == (2, 16, 4) and not router.any()
        lookup, head = (moments_of(after.opt_state, field, path) for path in ("embedding", "head"))
        np.testing.assert_array_equal(head, lookup.T)
        np.testing.assert_array_equal(lookup, moments_of(before.opt_state, field, "embedding"))
    assert checked == (3 if muon else 6)
    np.testing.assert_array_equal(after.ema["head"], np.asarray(after.ema["embedding"]).T)
    np.testing.assert_array_equal(leaf_at(after.ema, "blocks/moe/up")[0, 3], leaf_at(before.ema, "blocks/mlp/up")[0])
    ages = {path: leaf for path, leaf in by_path(after.opt_state).items() if "/ages/" in path}
    assert ages
    for path, leaf in ages.items():  # the router is new, and so is its age
        assert np.all(leaf == (0 if path.endswith(("router/0", "router/1")) else 2)), path


@pytest.mark.slow
@pytest.mark.parametrize("run", ["adamw"], indirect=True)
def test_in_a_run_training_goes_on_after_a_lift_and_a_grown_folder_is_begun_with(run, tmp_path):
    home, settings = run
    (first,) = settings["stages"]
    mixed = first | {"model": TIED | MIXED, "growth": {"operator": "direct", "optimizer_state": "map_aged"}}
    tiny.write_config(tmp_path / "run.py", settings | {"stages": [first, mixed]})
    assert main(["train", f"--config={tmp_path}/run.py", f"--workdir={tmp_path}/work"]) == 0
    lifted = tiny.records(tmp_path / "work")[-1]
    assert np.isfinite(lifted["loss"]) and lifted["tokens"] == 4 * tiny.STEP
    model, _, state = tiny.load_saved(tmp_path / "work")
    assert model.architecture.name == "mixtral" and all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params)
    )
    up = leaf_at(state.params, "blocks/moe/up")[0]
    assert len(np.unique(up.reshape(4, -1), axis=0)) == 4  # the copies part
    # The same by hand, in two commands; and what came of it is one of transformers.
    folder = grow(home / "work", tmp_path / "grown", *sizes(**MIXED), "--optimizer_state=map_aged", "--no_verify")
    fresh = [leaf for path, leaf in by_path(tiny.load_saved(folder)[2].opt_state).items() if "router/2" in path]
    assert [leaf.tolist() for leaf in fresh] == [[0, 0, 0, 0]]
    again = first | {"model": TIED | MIXED, "init_from": str(folder)}
    tiny.write_config(tmp_path / "again.py", settings | {"stages": [again]})
    assert main(["train", f"--config={tmp_path}/again.py", f"--workdir={tmp_path}/again"]) == 0
    convert_folder(tmp_path / "again", tmp_path / "out", "huggingface")
    model, _, state = tiny.load_saved(tmp_path / "again")
    tokens = hf.random_tokens(256, (2, 16))
    loaded = hf.load(tmp_path / "out")
    assert type(loaded).__name__ == "MixtralForCausalLM"
    np.testing.assert_allclose(hf.logits_of(loaded, tokens), growlm.apply(model, state.params, tokens), atol=TOLERANCE)


@pytest.mark.slow
def test_a_folder_that_was_converted_is_lifted_and_converted_back(theirs, tmp_path):
    convert_folder(theirs / "tied", tmp_path / "own", "growlm")
    arguments = [
        *EXPERTS,
        *sizes(tie_embeddings=False, layers=4),
        "--option.zero_residual=True",
        "--optimizer_state=map",
    ]
    arguments.append("--no_verify")  # transformers does
    folder = grow(tmp_path / "own", tmp_path / "grown", *arguments)
    convert_folder(folder, tmp_path / "back", "huggingface")
    after = assert_same_logits(tmp_path / "back", theirs / "tied")
    settings = read(tmp_path / "back", "config.json")
    assert type(after).__name__ == "MixtralForCausalLM" and settings["bos_token_id"] == 1
    assert settings["max_position_embeddings"] == 64
