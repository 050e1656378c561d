"""`growlm convert` of a run gives transformers the tokenizer of its corpus, which encodes as ours does."""

import json
import os
import shutil
import threading

import pytest
import tiny
from prepared import prepared, write_sources
from trees import exact_products

from growlm.__main__ import main
from growlm.data import load_tokenizer
from growlm.training.run import train

os.environ.setdefault("HF_HUB_OFFLINE", "1")
tokenizers = pytest.importorskip("tokenizers", reason="needs the extra data: pip install growlm[data]")
sentencepiece = pytest.importorskip("sentencepiece", reason="needs the extra data: pip install growlm[data]")

exact = pytest.fixture(autouse=True, scope="module")(exact_products.__wrapped__)

VOCAB = 300
MODEL = tiny.MODEL | {"vocab": VOCAB}
PLAIN = ("word1 word2 document 3: hello", "", "a", "1,024 = 10", "naïve 模型 \U0001f600")
TEXTS = (*PLAIN, "  two  spaces\n\tand   more ", "\n\nx \n")


WRITTEN = ("checksums.json", "config.json", "model.safetensors")


def with_bos(text: str) -> str:
    """A tokenizer.json, made to begin every text with <s>, as Llama's is."""
    held = json.loads(text)
    number = held["model"]["vocab"]["<s>"]
    piece = {"Sequence": {"id": "A", "type_id": 0}}
    start = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    tokens = {"<s>": {"id": "<s>", "ids": [number], "tokens": ["<s>"]}}
    template = {
        "type": "TemplateProcessing",
        "single": [start, piece],
        "pair": [start, piece],
        "special_tokens": tokens,
    }
    return json.dumps(held | {"post_processor": template})


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a corpus of every kind of tokenizer, in `text-KIND`, and a run on each, in `run-KIND`."""
    folder = tmp_path_factory.mktemp("home")
    source = write_sources(folder / "source")
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train([str(source / "b.jsonl")], vocab_size=VOCAB, special_tokens=["<s>", "</s>", "<|endoftext|>"])
    for name in ("json", "pair"):
        (folder / name).mkdir()
    bpe.save_model(str(folder / "pair"))
    (folder / "json" / "tokenizer.json").write_text(with_bos(bpe.to_str()))
    options = {
        "json": {"tokenizer": str(folder / "json"), "eos": "<|endoftext|>"},
        "pair": {"tokenizer": str(folder / "pair"), "eos": "</s>"},
        "trained": {"tokenizer": None, "train_tokenizer": "bpe", "vocab": VOCAB},
        "sentencepiece": {"tokenizer": None, "train_tokenizer": "sentencepiece", "vocab": VOCAB},
        "bytes": {},
    }
    for kind, own in options.items():
        corpus = prepared(source, folder / f"text-{kind}", validation="0.2", **own)
        train(tiny.run_config(str(corpus), tiny.stage(1, model=MODEL)), folder / f"run-{kind}", threading.Event())
    return folder


def convert(run, output):
    assert main(["convert", f"--source={run}", f"--output={output}", "--to=huggingface"]) == 0
    return output


def ids_of(folder):
    settings = tiny.read_json(folder / "config.json")
    return settings["bos_token_id"], settings["eos_token_id"]


@pytest.mark.parametrize("kind", ["json", "pair", "trained", "sentencepiece"])
def test_transformers_loads_it_and_encodes_as_we_do(home, tmp_path, kind, capsys):
    """But of a SentencePiece model it makes its own, which cuts runs of spaces otherwise."""
    transformers = pytest.importorskip("transformers", reason="make test installs it where it can")
    folder = convert(home / f"run-{kind}", tmp_path / "out")
    assert "no tokenizer" not in capsys.readouterr().err
    ours, theirs = load_tokenizer(home / f"text-{kind}"), transformers.AutoTokenizer.from_pretrained(folder)
    assert len(theirs) == ours.vocab
    for text in PLAIN if kind == "sentencepiece" else TEXTS:
        assert theirs.encode(text) == ours.encode(text), text
        assert theirs.decode(ours.encode(text)) == text
    assert ids_of(folder) == (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos, ours.eos)
    assert (ours.bos is None) == (kind == "trained")
    said = tiny.read_json(folder / "tokenizer_config.json")
    assert said["add_bos_token"] is False  # what reads a tokenizer.model adds it else, as `growlm evaluate` does
    again = load_tokenizer(folder)
    assert (again.eos, again.bos) == (ours.eos, ours.bos)
    assert [again.encode(text) for text in TEXTS] == [ours.encode(text) for text in TEXTS]
    if kind != "json":  # there it says no more that texts begin with <s>
        assert again.fingerprint == ours.fingerprint and again.files == ours.files


def test_bytes_have_no_file_and_an_eos(home, tmp_path, capsys):
    folder = convert(home / "run-bytes", tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == {"README.md", *WRITTEN}
    assert ids_of(folder) == (None, 0) and "no tokenizer" not in capsys.readouterr().err


def moved(home):
    (home / "text-trained").rename(home / "elsewhere")


def replaced(home):
    shutil.rmtree(home / "text-trained")
    shutil.copytree(home / "text-pair", home / "text-trained")


def altered(home):
    (home / "text-trained" / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "said"),
    [(moved, "is not here any more"), (replaced, "has changed"), (altered, "must be the tokenizer that made")],
)
def test_without_its_corpus_it_goes_on_and_says_so(home, tmp_path, monkeypatch, capsys, damage, said):
    """And gets the tokenizer again where it trains on from there on such a corpus."""
    for name in ("text-trained", "text-pair", "run-trained"):
        shutil.copytree(home / name, tmp_path / name)
    config = tiny.read_json(tmp_path / "run-trained" / "config.json")
    corpus = str(tmp_path / "text-trained")
    (tmp_path / "run-trained" / "config.json").write_text(json.dumps(config | {"corpus": corpus}))
    damage(tmp_path)
    folder = convert(tmp_path / "run-trained", tmp_path / "out")
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("growlm: "))
    assert line.startswith("growlm: no tokenizer comes along: ") and said in line
    assert {path.name for path in folder.iterdir()} == {"README.md", *WRITTEN}
    assert ids_of(folder) == (None, None)
    if damage is moved:
        begin = tiny.stage(1, model=MODEL, init_from=str(folder))
        train(tiny.run_config(str(tmp_path / "elsewhere"), begin), tmp_path / "on", threading.Event())
        again = convert(tmp_path / "on", tmp_path / "again")
        assert (again / "tokenizer.json").read_bytes() == (home / "text-trained" / "tokenizer.json").read_bytes()
        assert ids_of(again) == (None, load_tokenizer(tmp_path / "elsewhere").eos)
