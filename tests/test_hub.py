"""hf:ORG/NAME: what is downloaded of a hub, what is recorded of it, what is pushed there; a hub on loopback."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import tiny
from hub_server import hub, serving
from safetensors.numpy import load_file
from trees import noisy

import growlm
from growlm import hub as ours
from growlm.__main__ import main
from growlm.data.tokenizers import load_tokenizer
from growlm.errors import InputError
from growlm.training.run import train

__all__ = ["hub"]  # a fixture

CONFIG = growlm.ModelConfig(layers=2, embed=16, heads=2, kv_heads=1, head_dim=8, mlp=24, vocab=256)
NAME = "some/model"
CARD = b"---\nlicense: other\nlicense_name: of-some\nlicense_link: LICENSE\nbase_model: their/base\n---\n# A model\n"
# Nobody may ask for these: pickles, code, other programs' folders, the same weights in another form.
BESIDE = {
    "pytorch_model.bin": b"a pickle",
    "modeling_some.py": b"raise SystemExit",
    "original/consolidated.safetensors": b"again",
    "consolidated.safetensors": b"again",
    "model.gguf": b"again",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hugging Face folder with a byte tokenizer, a card and a licence."""
    folder = tmp_path_factory.mktemp("their") / "model"
    growlm.write_model(folder, CONFIG, noisy(CONFIG))
    (folder / "checksums.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "bytes"}')
    (folder / "LICENSE").write_text("theirs\n")
    (folder / "README.md").write_bytes(CARD)
    return folder


@pytest.fixture
def commit(hub, folder):
    return hub.commit_folder(NAME, folder, **BESIDE)


def grow(source, output, *more):
    return main(["grow", f"--source={source}", f"--output={output}", "--factor=2", *more])


def metadata(card):
    return pytest.importorskip("huggingface_hub").metadata_load(card)


def test_what_is_grown_of_the_hub_is_of_one_commit_and_the_card_says_so(hub, commit, tmp_path, capsys):
    assert grow(f"hf:{NAME}", tmp_path / "grown") == 0
    assert not set(hub.asked) & set(BESIDE) and "model.safetensors" in hub.asked
    pinned = f"hf:{NAME}@{commit}"
    assert pinned in capsys.readouterr().out
    assert json.loads((tmp_path / "grown" / "growth.json").read_text())["grown_from"]["folder"] == pinned
    said = metadata(tmp_path / "grown" / "README.md")
    assert said["base_model"] == NAME and said["library_name"] == "transformers"
    assert (said["license"], said["license_name"], said["license_link"]) == ("other", "of-some", "LICENSE")
    card = (tmp_path / "grown" / "README.md").read_text()
    assert pinned in card and "0 1 0 1" in card and "verified: " in card and str(tmp_path) not in card
    assert growlm.read_config(tmp_path / "grown").layers == 4


def test_a_folder_has_the_base_that_its_own_card_names(folder, tmp_path):
    assert grow(folder, tmp_path / "grown") == 0
    said = metadata(tmp_path / "grown" / "README.md")
    assert said["base_model"] == "their/base" and said["license"] == "other"
    assert "`model`" in (tmp_path / "grown" / "README.md").read_text()


def test_a_card_that_is_none_is_read_over(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "source")
    (tmp_path / "source" / "README.md").write_text("---\n: [\n---\n")
    assert grow(tmp_path / "source", tmp_path / "grown") == 0
    assert "license" not in metadata(tmp_path / "grown" / "README.md")


def test_a_revision_is_taken_and_main_is_the_newest(hub, commit, folder):
    config = json.loads((folder / "config.json").read_text())
    changed = json.dumps(config | {"rms_norm_eps": 0.25}).encode()
    newer = hub.commit_folder(NAME, folder, **{"config.json": changed})
    assert growlm.read_config(f"hf:{NAME}").norm_eps == 0.25
    assert growlm.read_config(f"hf:{NAME}@{newer}").norm_eps == 0.25
    assert growlm.read_config(f"hf:{NAME}@{commit}").norm_eps == CONFIG.norm_eps


def test_a_tokenizer_is_read_without_weights(hub, commit):
    tokenizer = load_tokenizer(f"hf:{NAME}")
    assert tokenizer.name == f"hf:{NAME}@{commit}" and tokenizer.vocab == 256
    assert "model.safetensors" not in hub.asked


def test_a_cache_is_enough_offline(hub, commit, folder, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=f"cannot read hf:{NAME}: "):
        ours.local_folder(f"hf:{NAME}")
    cache = tmp_path / "hub_cache" / "models--some--model"
    shutil.copytree(folder, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    assert ours.local_folder(f"hf:{NAME}") == cache / "snapshots" / commit
    assert grow(f"hf:{NAME}", tmp_path / "grown") == 0
    assert not hub.asked


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("hf:", "must be hf:ORG/NAME or hf:ORG/NAME@REVISION, got 'hf:'"),
        ("hf:some/model@", "must be hf:ORG/NAME or hf:ORG/NAME@REVISION, got 'hf:some/model@'"),
        ("hf:some/other", "cannot read hf:some/other: "),
        ("hf:some/model@gone", "cannot read hf:some/model@gone: "),
        ("hf:a/b/c", "cannot read hf:a/b/c: "),
        ("hf:some/pickle", "hf:some/pickle must have its weights as safetensors, got none"),
    ],
)
def test_what_is_not_there_is_one_line(hub, commit, tmp_path, capsys, source, said):
    hub.commit("some/pickle", {"config.json": b"{}", "pytorch_model.bin": b"a pickle"})
    assert grow(source, tmp_path / "grown") == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("growlm"))
    assert said in line
    assert "pytorch_model.bin" not in hub.asked


def test_the_extra_is_named_where_the_library_is_missing(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert grow("hf:some/model", tmp_path / "grown") == 2
    assert "pip install growlm[data]" in capsys.readouterr().err
    assert grow(folder, tmp_path / "grown") == 0
    assert "no model card is written" in capsys.readouterr().err
    assert not (tmp_path / "grown" / "README.md").exists()


# --- Training, evaluation, conversion ---


@pytest.mark.slow
def test_a_run_begins_from_the_commit_and_goes_on_from_it_when_the_hub_has_moved_on(hub, commit, folder, tmp_path):
    corpus = tiny.write_corpus(tmp_path)
    settings = {"model": growlm.models.plain(CONFIG), "init_from": f"hf:{NAME}"}
    config = tiny.run_config(corpus, tiny.stage(2, **settings))
    train(config, tmp_path / "run")
    pinned = f"hf:{NAME}@{commit}"
    assert json.loads((tmp_path / "run" / "config.json").read_text())["stages"][0]["init_from"] == pinned
    assert json.loads((tmp_path / "run" / "init_from.json").read_text())["folder"] == pinned
    hub.commit(NAME, {"README.md": b"Something else lies here now."})
    longer = tiny.run_config(corpus, tiny.stage(4, **settings))
    train(longer, tmp_path / "run")
    assert main(["convert", f"--source={tmp_path}/run", f"--output={tmp_path}/out", "--to=huggingface"]) == 0
    said = metadata(tmp_path / "out" / "README.md")
    assert said["base_model"] == NAME and said["license"] == "other"
    assert pinned in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
def test_what_is_evaluated_and_written_with_is_of_the_hub(hub, commit, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("A text that is read." * 4)
    said = [f"--checkpoint=hf:{NAME}", "--length=32"]
    assert main(["evaluate", *said, "--perplexity=text.txt"]) == 0
    (path,) = (tmp_path / "evaluations").iterdir()
    results = json.loads(path.read_text())["growlm"]
    assert results["checkpoint"] == results["tokenizer"]["name"] == f"hf:{NAME}@{commit}"
    assert main(["sample", *said, "--prompt=A", "--max_tokens=2"]) == 0


@pytest.mark.slow
def test_an_import_and_its_export_keep_where_it_came_from(hub, commit, folder, tmp_path):
    assert main(["convert", f"--source=hf:{NAME}", f"--output={tmp_path}/ours", "--to=growlm"]) == 0
    assert json.loads((tmp_path / "ours" / "growth.json").read_text())["imported_from"] == f"hf:{NAME}@{commit}"
    assert grow(tmp_path / "ours", tmp_path / "larger", "--operator=zero") == 0
    assert main(["convert", f"--source={tmp_path}/larger", f"--output={tmp_path}/theirs", "--to=huggingface"]) == 0
    said, card = metadata(tmp_path / "theirs" / "README.md"), (tmp_path / "theirs" / "README.md").read_text()
    assert said["base_model"] == NAME and said["license_name"] == "of-some"
    assert "operator: zero" in card and "verified: " in card and f"hf:{NAME}@{commit}" in card
    assert (tmp_path / "theirs" / "LICENSE").read_text() == "theirs\n"


# --- Pushing ---


@pytest.mark.slow
def test_what_is_pushed_is_private_and_comes_back_as_it_was(hub, commit, folder, tmp_path, capsys):
    assert grow(f"hf:{NAME}", tmp_path / "grown", "--push=me/grown") == 0
    pushed = capsys.readouterr().out.splitlines()[-1]
    assert hub.private["me/grown"] is True and pushed.endswith(", private")
    files = hub.find("me/grown", "main")[1]
    written = {path.name: path.read_bytes() for path in (tmp_path / "grown").iterdir()}
    assert written.pop("checksums.json") and "checksums.json" not in files
    assert {name: files[name] for name in written} == written
    back = ours.local_folder(pushed.removeprefix("pushed: ").removesuffix(", private"))
    assert load_file(back / "model.safetensors").keys() == load_file(tmp_path / "grown" / "model.safetensors").keys()
    assert main(["convert", f"--source=hf:{NAME}", f"--output={tmp_path}/ours", "--to=growlm"]) == 0
    public = ["--push=me/public", "--public"]
    assert main(["convert", f"--source={tmp_path}/ours", f"--output={tmp_path}/x", "--to=huggingface", *public]) == 0
    assert hub.private["me/public"] is False


REFUSED = {
    "it holds a model": (["--push=some/model"], "--push must be a new or empty repository; some/model has files, got"),
    "it is public": (["--push=me/public"], "me/public is public: say so, with --public"),
    "it is private": (["--push=me/private", "--public"], "me/private is private: say so, without --public"),
    "no name": (["--push=me/a/b"], "cannot push to me/a/b: "),
    "of nothing": (["--public"], "--public is of --push=ORG/NAME"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_pushed_is_one_line_before_anything_is_done(hub, commit, folder, tmp_path, capsys, why):
    for name in ("public", "private"):
        hub.commit(f"me/{name}", {".gitattributes": b""})
        hub.private[f"me/{name}"] = name == "private"
    options, said = REFUSED[why]
    assert grow(folder, tmp_path / "grown", *options) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "grown").exists()


def test_only_what_transformers_loads_is_pushed_and_only_with_a_token(
    hub, commit, folder, tmp_path, capsys, monkeypatch
):
    assert main(["convert", f"--source={folder}", f"--output={tmp_path}/ours", "--to=growlm"]) == 0
    push = "--push=me/grown"
    assert main(["convert", f"--source={folder}", f"--output={tmp_path}/x", "--to=growlm", push]) == 2
    assert "--to must be 'huggingface' with --push" in capsys.readouterr().err
    assert grow(tmp_path / "ours", tmp_path / "grown", push) == 2
    assert "growlm convert --to=huggingface" in capsys.readouterr().err
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert grow(folder, tmp_path / "grown", push) == 2
    assert "needs a token with write access" in capsys.readouterr().err


@pytest.mark.slow
def test_the_environment_says_where_the_hub_is_and_that_there_is_none(folder, tmp_path):
    """As a user sets them: HF_ENDPOINT and HF_HOME, then HF_HUB_OFFLINE=1, in processes of their own."""
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}

    def describe(**more: str) -> str:
        command = [sys.executable, "-m", "growlm", "convert", f"--source=hf:{NAME}", "--describe"]
        return subprocess.run(command, env=environment | more, capture_output=True, text=True, check=True).stdout

    with serving() as (hub, address):
        hub.commit_folder(NAME, folder, **BESIDE)
        online = describe(HF_ENDPOINT=address)
    assert "layers 2" in online and describe(HF_ENDPOINT=address, HF_HUB_OFFLINE="1") == online


def test_what_a_revision_of_a_dataset_names_is_asked_of_the_hub(hub):
    commit = hub.commit("some/set", {"train.jsonl": b""})
    hub.commit("some/set", {"train.jsonl": b"{}"})
    assert ours.find_dataset("some/set", commit) == ("some/set", commit)
    assert ours.find_dataset("some/set", None) == ("some/set", next(iter(hub.commits["some/set"])))
    with pytest.raises(InputError, match="cannot read hf:some/other"):
        ours.find_dataset("some/other", None)
