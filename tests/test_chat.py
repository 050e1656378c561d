"""Conversations: their text and tokens, what of a window is an answer, records that are none, and prepared folders."""

import json
import random

import numpy as np
import pytest
import tokenizers

from growlm.__main__ import main
from growlm.data import load_corpus, load_tokenizer
from growlm.data.chat import ASSISTANT, END, SYSTEM, USER, messages_of, render
from growlm.data.markers import Markers, markers_of, with_markers
from growlm.errors import InputError
from growlm.training.objectives import ObjectiveConfig, answers

TALK = [
    ("system", "Be brief."),
    ("user", "One and one?"),
    ("assistant", "Two, é."),
    ("user", "And?"),
    ("assistant", "3"),
]


def records(count, seed=0):
    """Sums of two digits, in both forms."""
    draw = random.Random(seed)
    for number in range(count):
        a, b = draw.randrange(100), draw.randrange(100)
        question, answer = f"What is {a} + {b}?", f"It is {a + b}."
        pair = {"prompt": question, "response": answer}
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer, "weight": 1}]
        yield pair if number % 3 == 0 else {"messages": messages}


def write(path, found):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in found))
    return path


def library(path, special):
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(["One and one? Two. " * 9], vocab_size=270, special_tokens=["<|endoftext|>", *special])
    bpe.save(str(path))
    return load_tokenizer(path)


def test_the_text_of_a_conversation_has_markers_that_no_text_can_become():
    text = render(TALK)
    assert text == f"{SYSTEM}Be brief.{USER}One and one?{ASSISTANT}Two, é.{END}{USER}And?{ASSISTANT}3{END}"
    tokenizer = with_markers(load_tokenizer("bytes"))
    (tokens,) = tokenizer.encode_all([text])
    assert tokens == [*b"\xfcBe brief.\xfdOne and one?\xfeTwo, \xc3\xa9.\xff\xfdAnd?\xfe3\xff"]
    assert tokenizer.decode(tokens) == text and tokenizer.vocab == 256
    with pytest.raises(UnicodeDecodeError):
        bytes([0xFC]).decode()


def test_a_tokenizer_has_markers_or_gets_tokens_after_its_last(tmp_path):
    plain = library(tmp_path / "plain.json", [])
    assert markers_of(plain) == Markers(*range(plain.vocab, plain.vocab + 4))
    phi = library(tmp_path / "phi.json", ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"])
    assert markers_of(phi) == Markers(4, 2, 3, 1)
    for tokenizer in (plain, phi):
        marked, ids = with_markers(tokenizer), markers_of(tokenizer)
        tokens, none = marked.encode_all([render(TALK), "Two <|user|>"])
        assert marked.decode(tokens) == render(TALK) and marked.vocab == max(tokenizer.vocab, *(i + 1 for i in ids.ids))
        assert [token for token in tokens if token in ids.ids] == [
            *(ids.system, ids.user, ids.assistant, ids.end, ids.user, ids.assistant, ids.end)
        ]
        assert not {*none} & {*ids.ids}, "text never becomes a marker"


def test_answers_follow_from_the_tokens_of_any_window():
    """Against a reading of the whole text: of every window that has a marker, wherever it begins."""
    config = ObjectiveConfig("answers")
    tokens = [*with_markers(load_tokenizer("bytes")).encode(render(TALK)), 0] * 2
    inside, truth = False, []
    for token in tokens:
        truth.append(inside)
        inside = token == 0xFE or (inside and token != 0xFF)
    assert bytes(t for t, is_answer in zip(tokens, truth, strict=True) if is_answer) == b"Two, \xc3\xa9.\xff3\xff" * 2
    for width in (6, 20, 45):
        windows = np.lib.stride_tricks.sliding_window_view(np.int32(tokens), width)
        marked = np.isin(windows, config.markers).any(axis=1, keepdims=True)
        expected = np.lib.stride_tricks.sliding_window_view(np.asarray(truth), width)[:, 1:] & marked
        np.testing.assert_array_equal(np.asarray(answers(config, windows)), expected)
        assert expected[0].any() or width < 45


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"text": "a"}, "must have a list of messages, or a prompt and a response, its fields are text"),
        ([1], "its fields are none"),
        ({"messages": "a"}, "must have a list of messages"),
        ({"messages": []}, "must have an answer, a message of the role assistant"),
        ({"messages": [{"role": "user", "content": "a"}]}, "must have an answer"),
        ({"messages": [{"role": "bot", "content": "a"}]}, "the role of message 1 must be system or user or assistant"),
        ({"prompt": "a", "response": " "}, "the content of message 2 must be a text that is not empty, got ' '"),
        ({"prompt": None, "response": "a"}, "the content of message 1 must be a text that is not empty, got None"),
        ({"messages": ["a"]}, "the role of message 1 must be"),
    ],
)
def test_a_record_that_is_no_conversation(record, says):
    with pytest.raises(InputError) as error:
        messages_of(record, "chat.jsonl")
    assert str(error.value).startswith("chat.jsonl") and says in str(error.value) and "\n" not in str(error.value)


def prepared(folder, source, *options):
    assert main(["prepare", f"--source={source}", "--chat", f"--output={folder}", "--workers=1", *options]) == 0
    return load_corpus(str(folder)), json.loads((folder / "manifest.json").read_text())


def text_of(tokens):
    return bytes(tokens[0 : len(tokens)].tolist())


def test_prepare_writes_conversations_and_says_their_markers(tmp_path, capsys):
    source = write(tmp_path / "sums.jsonl", records(200))
    corpus, manifest = prepared(tmp_path / "bytes", source, "--tokenizer=bytes", "--validation=20")
    assert (
        manifest["chat"] == {"system": 252, "user": 253, "assistant": 254, "end": 255} and manifest["settings"]["chat"]
    )
    assert corpus.markers == (252, 253, 254, 255) and corpus.vocab == 256
    assert "chat        system is 252, user is 253, assistant is 254, end is 255" in capsys.readouterr().out
    documents = text_of(corpus.train).split(b"\0")[:-1]
    assert len(documents) == 180
    assert all(one.startswith(b"\xfdWhat is") and one.endswith(b".\xff") and b"?\xfeIt is" in one for one in documents)
    assert main(["prepare", "--verify", f"--output={tmp_path}/bytes"]) == 0
    # The same folder again is left; without --chat it is another one.
    again = ["prepare", f"--source={source}", f"--output={tmp_path}/bytes", "--tokenizer=bytes", "--validation=20"]
    assert main([*again, "--chat"]) == 0 and main(again) == 2
    assert "chat was True, not None" in capsys.readouterr().err


def test_few_and_long_conversations_are_whole(tmp_path):
    long = [("user", "word " * 70_000), ("assistant", "tale " * 70_000)]
    found = [{"messages": [{"role": role, "content": text} for role, text in long]}, *records(9)]
    corpus, _ = prepared(tmp_path / "few", write(tmp_path / "few.jsonl", found), "--tokenizer=bytes", "--validation=1")
    split = [text_of(corpus.train), text_of(corpus.validation)]
    assert [text.count(b"\0") for text in split] == [9, 1]
    assert render(long).encode("utf-8", "surrogateescape") + b"\0" in b"".join(split)


def test_a_trained_tokenizer_gets_markers_and_parquet_is_read(tmp_path):
    arrow = pytest.importorskip("pyarrow.parquet")
    found = [record for record in records(90) if "messages" in record]
    table = pytest.importorskip("pyarrow").Table.from_pylist(found)
    arrow.write_table(table, tmp_path / "sums.parquet")
    corpus, manifest = prepared(tmp_path / "bpe", tmp_path / "sums.parquet", "--train_tokenizer=bpe", "--vocab=280")
    assert [*manifest["chat"].values()] == [280, 281, 282, 283] and corpus.vocab == 284
    tokens = corpus.train[0 : len(corpus.train)].tolist()
    text = with_markers(load_tokenizer(tmp_path / "bpe")).decode(tokens[: tokens.index(283) + 1])
    assert text.startswith(USER + "What is") and text.endswith("." + END)


def test_the_line_of_a_wrong_record_is_named(tmp_path, capsys):
    source = write(tmp_path / "sums.jsonl", [*records(3), {"messages": [{"role": "user", "content": "Why?"}]}])
    assert main(["prepare", f"--source={source}", "--chat", f"--output={tmp_path}/out", "--tokenizer=bytes"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"line 4 of {source} must have an answer" in line
    (tmp_path / "a.txt").write_text("a")
    assert (
        main(["prepare", f"--source={tmp_path}/a.txt", "--chat", f"--output={tmp_path}/out", "--tokenizer=bytes"]) == 2
    )
    assert "--chat needs records" in capsys.readouterr().err
