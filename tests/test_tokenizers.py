"""Tokenizers: each kind, from wherever it lies, with the EOS that its files name."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from growlm.data.tokenizers import load_tokenizer
from growlm.errors import InputError

sentencepiece = pytest.importorskip("sentencepiece")
tokenizers = pytest.importorskip("tokenizers")

SHARED = Path(os.environ.get("GROWLM_TEST_DATA", Path(__file__).parents[2] / "shared" / "data")) / "tokenizers"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no test data in {SHARED}: set GROWLM_TEST_DATA")

LINES = [f"the {i} brown foxes jumped over {i * 7} lazy dogs, and then: <s>ö</s>" for i in range(300)]
TEXT = "Over 7 lazy dogs;\n  two  spaces, ünïcode 漢字 <|endoftext|> and </s> <s>\t\r\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A byte-level BPE and a SentencePiece model, trained here."""
    folder = tmp_path_factory.mktemp("tokenizers")
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(LINES, vocab_size=300, special_tokens=["<pad>", "<|endoftext|>", "<eos>"])
    bpe.save(str(folder / "bpe.json"))
    bpe.save_model(str(folder))
    options = {"vocab_size": 320, "byte_fallback": True, "minloglevel": 2, "normalization_rule_name": "identity"}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_prefix=str(folder / "piece"),
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        **options,
    )
    return folder


def put(folder, tokenizer, name, **beside):
    """A folder of its own with one tokenizer, and JSON files beside it."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(tokenizer.read_bytes())
    for file, content in beside.items():
        (folder / f"{file}.json").write_text(json.dumps(content))
    return folder


def test_bytes_are_utf8():
    tokenizer = load_tokenizer("bytes")
    assert tokenizer.encode("aö") == [97, 0xC3, 0xB6]
    assert (tokenizer.name, tokenizer.vocab, tokenizer.eos, tokenizer.bos) == ("bytes", 256, 0, None)
    assert tokenizer.encode_all(["a", ""]) == [[97], []]
    with pytest.raises(InputError, match="must have no NUL, got one at position 2"):
        tokenizer.encode_all(["fine", "ö\0"])


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_bytes_are_the_text(text):
    tokenizer = load_tokenizer("bytes")
    assert tokenizer.decode([*tokenizer.encode(text), tokenizer.eos]) == text


@pytest.mark.parametrize(("name", "eos"), [("bpe.json", "<|endoftext|>"), ("piece.model", "</s>")])
def test_no_text_becomes_a_special_token(folder, name, eos):
    tokenizer = load_tokenizer(folder / name)
    ids = tokenizer.encode(TEXT)
    assert tokenizer.settings["eos_token"] == eos
    assert tokenizer.eos not in ids and tokenizer.bos not in ids
    assert max(ids) < tokenizer.vocab
    assert tokenizer.decode([*ids, tokenizer.eos]) == TEXT
    assert tokenizer.encode_all([TEXT, "", "the"]) == [ids, [], tokenizer.encode("the")]


@pytest.mark.parametrize(
    ("file", "name"), [("bpe.json", "tokenizer.json"), ("piece.model", "tokenizer.model"), ("piece.model", "x.model")]
)
def test_a_tokenizer_is_the_same_by_file_by_folder_and_saved(folder, tmp_path, file, name):
    direct = load_tokenizer(folder / file)
    held = load_tokenizer(put(tmp_path / "a", folder / file, name))
    (tmp_path / "b").mkdir()
    held.save(tmp_path / "b")
    saved = load_tokenizer(tmp_path / "b")
    assert direct.fingerprint == held.fingerprint == saved.fingerprint
    assert direct.encode(TEXT) == held.encode(TEXT) == saved.encode(TEXT)
    assert (direct.vocab, direct.eos, direct.bos) == (saved.vocab, saved.eos, saved.bos)


def test_bytes_are_saved_too(tmp_path):
    load_tokenizer("bytes").save(tmp_path)
    assert load_tokenizer(tmp_path).fingerprint == load_tokenizer("bytes").fingerprint


def test_a_vocabulary_and_merges_are_a_tokenizer(folder, tmp_path):
    files = {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}
    for name, file in files.items():
        (tmp_path / name).write_bytes((folder / file).read_bytes())
    pair = load_tokenizer(tmp_path)
    assert pair.encode(TEXT) == load_tokenizer(folder / "bpe.json").encode(TEXT)
    assert pair.settings["eos_token"] == "<|endoftext|>"
    (tmp_path / "saved").mkdir()
    pair.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").fingerprint == pair.fingerprint


@pytest.mark.parametrize(
    ("beside", "eos"),
    [
        ({"tokenizer_config": {"eos_token": "<pad>"}, "generation_config": {"eos_token_id": 2}}, 0),
        ({"tokenizer_config": {"eos_token": {"content": "<eos>", "lstrip": False}}}, 2),
        ({"special_tokens_map": {"eos_token": "<eos>"}}, 2),
        ({"generation_config": {"eos_token_id": [2, 0]}}, 2),
        ({"tokenizer_config": {"eos_token": None}, "config": {"eos_token_id": 0}}, 0),
        ({"special_tokens_map": {"eos_token": None}, "config": {"hidden_size": 8}}, 1),
    ],
)
def test_eos_is_what_stands_beside(folder, tmp_path, beside, eos):
    source = put(tmp_path, folder / "bpe.json", "tokenizer.json", **beside)
    assert load_tokenizer(source).eos == load_tokenizer(source / "tokenizer.json").eos == eos
    assert load_tokenizer(source, eos="<pad>").eos == 0


@pytest.mark.parametrize(
    ("file", "beside", "bos"),
    [
        ("piece.model", {}, 1),
        ("bpe.json", {}, None),
        ("bpe.json", {"tokenizer_config": {"bos_token": "<|endoftext|>"}}, 1),
        ("bpe.json", {"config": {"bos_token_id": 2}}, 2),
        ("bpe.json", {"tokenizer_config": {"bos_token": None}, "config": {"bos_token_id": 2}}, 2),
        ("piece.model", {"tokenizer_config": {"bos_token": None}}, None),
    ],
)
def test_bos_is_what_stands_beside_or_within(folder, tmp_path, file, beside, bos):
    name = "tokenizer.json" if file.endswith("json") else "tokenizer.model"
    assert load_tokenizer(put(tmp_path, folder / file, name, **beside)).bos == bos


def test_another_eos_is_another_tokenizer(folder):
    first, other = load_tokenizer(folder / "bpe.json"), load_tokenizer(folder / "bpe.json", eos="<eos>")
    assert (first.eos, other.eos) == (1, 2)
    assert first.fingerprint != other.fingerprint


def test_a_tokenizer_does_not_cut_or_pad(folder, tmp_path):
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "bpe.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode_all([TEXT, "a"]) == load_tokenizer(folder / "bpe.json").encode_all(
        [TEXT, "a"]
    )


@pytest.mark.parametrize(
    ("files", "source", "says"),
    [
        ({}, "missing", ["missing", "'bytes'", "SentencePiece"]),
        ({}, "", ["must hold one tokenizer", "none"]),
        ({"a.model": b"\n\x0e", "b.model": b""}, "", ["a.model, b.model"]),
        ({"a.model": b"nonsense"}, "", ["must be a SentencePiece model"]),
        ({"tokenizer.json": b"{"}, "", ["must be a tokenizer.json"]),
        ({"tokenizer.json": b'{"model": 1}'}, "tokenizer.json", ["must be a tokenizer.json"]),
        ({"vocab.json": b"[]", "merges.txt": b"a b"}, "", ["must be a byte-level BPE"]),
    ],
)
def test_wrong_tokenizers(tmp_path, files, source, says):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        load_tokenizer(tmp_path / source)
    assert "\n" not in str(error.value)
    assert [part for part in says if part not in str(error.value)] == []


def test_wrong_eos(folder, tmp_path):
    bare = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, []))
    bare.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match=r"names no token that ends a document.*--eos=TOKEN"):
        load_tokenizer(tmp_path)
    assert load_tokenizer(tmp_path, eos="b").eos == 1
    with pytest.raises(InputError, match=r"--eos must be one of the 2 tokens of .*, got 'c'"):
        load_tokenizer(tmp_path, eos="c")
    with pytest.raises(InputError, match="EOS is byte 0"):
        load_tokenizer("bytes", eos="</s>")
    with pytest.raises(InputError, match="lacks the eos '<end>'"):
        load_tokenizer(put(tmp_path / "x", folder / "bpe.json", "tokenizer.json", config={"eos_token": "<end>"}))


def test_a_missing_library_names_the_extra(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    with pytest.raises(InputError, match=r"sentencepiece: pip install growlm\[data\]"):
        load_tokenizer(folder / "piece.model")


@needs_shared
@pytest.mark.parametrize(
    ("source", "vocab", "eos", "bos", "tokens"),
    [
        ("gpt2", 50257, 50256, None, [15496, 11, 995, 0, 1279, 91, 437, 1659, 5239, 91, 29]),
        ("gpt-neox-20b", 50277, 0, None, None),
        ("sentencepiece_mistral_v1", 32000, 2, 1, None),
        ("maxtext_default", 32768, 2, 1, None),
        ("sentencepiece_small", 1000, 2, 1, None),
    ],
)
def test_published_tokenizers(source, vocab, eos, bos, tokens):
    tokenizer = load_tokenizer(SHARED / source)
    assert (tokenizer.vocab, tokenizer.eos, tokenizer.bos) == (vocab, eos, bos)
    ids = tokenizer.encode("Hello, world! <|endoftext|>")
    assert tokens is None or ids == tokens
    assert tokenizer.decode(tokenizer.encode("Hello, world!")) == "Hello, world!"
    assert eos not in ids
