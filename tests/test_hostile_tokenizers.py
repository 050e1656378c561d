"""Tokenizers that were built to hurt their reader: what makes much of a text, or searches it for long."""

import json
from pathlib import Path

import pytest
from hostile import MEMORY, refused, watched

from growlm.commands.evaluate import adds_bos
from growlm.data.documents import Reading
from growlm.data.expansion import check_model
from growlm.data.holdout import Rule
from growlm.data.markers import with_markers
from growlm.data.shards import dtype_of
from growlm.data.sources import list_parts
from growlm.data.tokenizers import load_tokenizer
from growlm.data.workers import Job, write_part
from growlm.errors import InputError


def replacing(letter: str, by: str, kind: str = "String") -> dict:
    return {"type": "Replace", "pattern": {kind: letter}, "content": by}


def splitting(pattern: str) -> dict:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


PAIRS = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
WORDS = {"type": "WordPiece", "unk_token": "?", "continuing_subword_prefix": "", "max_input_chars_per_word": 100}
LONG = [["</s>", 0.0], ["a" * 30_000, -1.0]]

# Of a tokenizer.json what is another, and what is said of it: as it is loaded, as a text is encoded, or decoded.
TOKENIZERS = {
    "growing": ({"normalizer": {"normalizers": [replacing("a", "a" * 1000)] * 4}}, "at most 64 bytes of one"),
    "without types": ({"normalizer": {"pattern": {"String": "a"}, "content": "b" * 99}}, "at most 64 bytes of one"),
    "no objects": ({"normalizer": [{"String": "a"}, "b" * 99]}, "a step of .* must be an object"),
    "nothing": ({"normalizer": replacing("", "b" * 99, "Regex")}, "at most 64 bytes of one"),
    "a beginning": ({"normalizer": {"type": "Prepend", "prepend": "a" * 999}}, "at most 64 bytes of one"),
    "pairs": ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [PAIRS] * 30}}, "at most 64 bytes of one"),
    "back": ({"decoder": {"decoders": [replacing("a", "a" * 1000)] * 4}}, "at most 64 bytes of one"),
    "a table": ({"normalizer": {"precompiled_charsmap": "AAAAAGFh" + "YWFh" * 99}}, "at most 64 bytes in place of"),
    "a long token": ({"model": {"type": "Unigram", "unk_id": 0, "vocab": LONG}}, "at most 1024 bytes, got 30000"),
    "long words": ({"model": WORDS | {"vocab": {"?": 0}, "max_input_chars_per_word": 10**9}}, "must be at most 256"),
    "a number": ({"more": int("9" * 200)}, "an integer of 200 digits"),
    "no tokens": ({"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []}, "names no token"),
    "a search": ({"pre_tokenizer": splitting("(a+)+$")}, "must have tokens for any text, got PanicException"),
    "no unknown": ({"model": WORDS | {"vocab": {"</s>": 0}}}, "must have tokens for any text, got Exception"),
    "no size": ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "must have tokens for any text"),
    "short text": ({"decoder": {"type": "Strip", "content": "a", "start": 9, "stop": 9}}, "must have a text for any"),
}


def write_tokenizer(folder: Path, **other) -> Path:
    tokens = {"</s>": 0, "a": 1, "b": 2}
    end = {"id": 0, "content": "</s>", "special": True, "normalized": False, "single_word": False}
    whole = {"added_tokens": [end | {"lstrip": False, "rstrip": False}], "model": {"vocab": tokens, "merges": []}}
    whole["model"]["type"] = "BPE"
    (folder / "tokenizer.json").write_text(json.dumps(whole | other))
    return folder


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_neither_grows_a_text_nor_ends_the_process(tmp_path, name):
    other, said = TOKENIZERS[name]
    write_tokenizer(tmp_path, **other)
    with refused(tmp_path, said):
        tokenizer = load_tokenizer(tmp_path)
        tokenizer.encode("a" * 40 + "b")
        tokenizer.decode([1])


SEARCHED = ("a" * 20 + "b") * 100  # takes seconds, as each place takes less than what the library bounds
ADDED = {"id": 3, "content": SEARCHED, "special": False, "single_word": False, "lstrip": False, "rstrip": False}
SEARCHES = {
    "reading": {"normalizer": replacing("(a+)+[cd]", "a", "Regex"), "added_tokens": [ADDED | {"normalized": True}]},
    "a text": {"pre_tokenizer": splitting("(a+)+[cd]")},
    "tokens": {"decoder": {"type": "Sequence", "decoders": [{"type": "Fuse"}, replacing("(a+)+[cd]", "a", "Regex")]}},
}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_that_takes_long_is_given_up(tmp_path, monkeypatch, name):
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "b"}')
    write_tokenizer(tmp_path, **SEARCHES[name])
    monkeypatch.setattr("growlm.data.tokenizers.SECONDS", 0.2)
    with pytest.raises(InputError, match=r"within .* s, its regular expressions take longer"):
        tokenizer = load_tokenizer(tmp_path)
        tokenizer.encode(SEARCHED)
        tokenizer.decode([1 if letter == "a" else 2 for letter in SEARCHED])


def test_the_document_that_takes_long_to_search_is_named(tmp_path, monkeypatch):
    write_tokenizer(tmp_path, pre_tokenizer=splitting("(a+)+[cd]"))
    tokenizer = load_tokenizer(tmp_path)
    monkeypatch.setattr("growlm.data.tokenizers.SECONDS", 0.2)
    monkeypatch.setattr("growlm.data.tokenizers.BYTES_A_SECOND", 1e9)
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in ("ab", SEARCHED, "b")))
    (part,) = list_parts([str(tmp_path / "a.jsonl")], "train")
    job = Job(str(tmp_path), "<u2", Rule("document", 0), Reading())
    with pytest.raises(InputError, match=r"a\.jsonl: tokenizer .* must be done with 2,100 characters within"):
        write_part(job, tokenizer, 0, part, lambda size: None)


@pytest.mark.parametrize("spaces", ["String", "Regex"])
def test_what_known_tokenizers_do_is_let_be(tmp_path, spaces):
    """Llama 2's steps and Gemma's, and those of byte-level BPE."""
    steps = [{"type": "Prepend", "prepend": "▁"}, replacing(" ", "▁", spaces), {"type": "NFKC"}]
    write_tokenizer(tmp_path, normalizer={"type": "Sequence", "normalizers": steps}, pre_tokenizer=PAIRS)
    assert load_tokenizer(tmp_path).encode("a") == [1]


def test_a_table_of_sentencepiece_does_not_grow_a_text(tmp_path):
    """Field 3 of a model, and field 2 of that: a trie of no units, and a text of a megabyte."""
    from sentencepiece import SentencePieceTrainer

    lines = [f"hello world of {number}" for number in range(300)]
    prefix = tmp_path / "model"
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(prefix), vocab_size=60, hard_vocab_limit=False, minloglevel=2
    )
    model = prefix.with_suffix(".model").read_bytes()
    check_model(model, "it")
    table = b"\0\0\0\0" + b"a" * 100
    rules = b"\x12" + bytes([len(table)]) + table
    with pytest.raises(InputError, match="at most 64 bytes in place of a character, got 100"):
        check_model(model + b"\x1a" + bytes([len(rules)]) + rules, "it")
    piece = b"\x0a\xd1\x0f" + b"a" * 2001
    with pytest.raises(InputError, match="at most 1024 bytes, got 2001"):
        check_model(model + b"\x0a\xd4\x0f" + piece, "it")


def test_markers_of_conversations_need_room_after_the_last_token(tmp_path):
    write_tokenizer(tmp_path, model={"type": "WordLevel", "vocab": {"</s>": 0, "a": 2**32 - 1}, "unk_token": "</s>"})
    tokenizer = load_tokenizer(tmp_path)
    assert dtype_of(tokenizer.vocab) == "<u4"
    with pytest.raises(InputError, match="the size of the vocabulary must be <= 4294967296"):
        dtype_of(with_markers(tokenizer).vocab)


def test_whether_a_tokenizer_puts_bos_is_asked_without_its_padding(tmp_path):
    padding = {"strategy": {"Fixed": 10**10}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}
    write_tokenizer(tmp_path, padding=padding | {"pad_to_multiple_of": None})
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "a"}')
    with watched(tmp_path, MEMORY):
        assert adds_bos(tmp_path, load_tokenizer(tmp_path))
