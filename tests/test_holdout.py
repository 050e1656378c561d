"""What is held out of a source: whole texts, by what they are, and never on both sides."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import documents, prepared

from growlm.data.documents import Document, cut
from growlm.data.holdout import find_rule, rank, runs
from growlm.errors import InputError


@given(st.text(st.characters(codec="utf-8")), st.integers(4, 30))
def test_pieces_are_the_text(text, size):
    pieces = list(cut(text, size))
    assert "".join(pieces) == text
    assert all(0 < len(piece.encode()) <= size for piece in pieces)


def split_of(texts, validation=None):
    """What is held out of documents that are these texts."""

    def read():
        return [Document("", iter(cut(text, 1 << 20))) for text in texts]

    rule = find_rule(read, validation)
    found = {"train": [], "validation": []}
    for document in read():
        for split, pieces in runs(document, rule):
            found[split].append("".join(pieces))
    return found, rule


def test_an_added_file_moves_no_other():
    texts = [f"text {i}" for i in range(5000)]
    before, after = (set(split_of(some, "0.05")[0]["validation"]) for some in (texts[2000:], texts))
    assert before == after & set(texts[2000:])
    assert 150 < len(after) < 350


def test_neither_order_nor_copies_split_a_text():
    texts = [f"text {i % 300}" for i in range(900)]
    found, _ = split_of(texts, "0.1")
    backwards, _ = split_of(texts[::-1], "0.1")
    assert not set(found["train"]) & set(found["validation"])
    assert set(backwards["validation"]) == set(found["validation"])
    assert all(number == 3 for number in Counter(found["validation"]).values())


@pytest.mark.parametrize("number", [1, 5, 299])
def test_a_number_of_different_documents_is_held_out(number):
    texts = [f"text {i % 300}" for i in range(500)]
    found, _ = split_of(texts, str(number))
    assert len(set(found["validation"])) == number
    assert max(map(rank, found["validation"])) < min(map(rank, found["train"]))


def test_something_is_held_out_of_any_corpus():
    for begin in range(0, 2000, 60):
        found, rule = split_of([f"text {i}" for i in range(begin, begin + 60)])
        assert rule.unit == "document" and len(found["validation"]) >= 1 and len(found["train"]) >= 50


def test_few_documents_are_split_by_chunks(tmp_path):
    lines = [f"{i:09}" for i in range(60_000)]
    (tmp_path / "input.txt").write_text("\n".join(lines))
    folder = prepared(tmp_path / "input.txt", tmp_path / "out")
    train, validation = documents(folder, "train"), documents(folder, "validation")
    found = [set("\n".join(side).split()) for side in (train, validation)]
    assert not found[0] & found[1] and found[0] | found[1] == set(lines)
    assert 0.01 < len(found[1]) / len(lines) < 0.12
    assert sum(map(len, train + validation)) == 10 * len(lines) - 1
    assert len(train) <= len(validation) + 1  # neighbours stay joined


@pytest.mark.parametrize(
    ("texts", "validation", "says"),
    [
        ([], None, "holds no text"),
        (["", ""], None, "holds no text"),
        (["short"], None, "too small to hold anything out: it is one chunk"),
        (["same"] * 60, None, "too small.*one document"),
        ([f"{i}" for i in range(60)], "60", r"--validation=60 leaves nothing to train on: there are 60 documents"),
        ([f"{i}" for i in range(60)], "10000", "--validation=10000 leaves nothing"),
        (["a"], "0", "--validation must be a share such as 0.005 or a number of documents, got '0'"),
        (["a"], "1.0", "--validation must be a share .* got '1.0'"),
        (["a"], "-1", "--validation must be a share .* got '-1'"),
        (["a"], "some", "--validation must be a share .* got 'some'"),
    ],
)
def test_wrong_validation(texts, validation, says):
    with pytest.raises(InputError, match=says):
        split_of(texts, validation)


@settings(max_examples=20)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60))
def test_no_text_is_on_both_sides(numbers):
    texts = [f"{n} " * 900 for n in numbers]
    try:
        found, _ = split_of(texts, "0.5")
    except InputError as error:
        assert "too small" in str(error)
        return
    assert found["train"] and found["validation"]
