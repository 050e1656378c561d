"""Mixtures of sources: what each gives, in which order, and which are refused."""

import itertools
import math

import numpy as np
import pytest
from prepared import prepared

from growlm.data import batches, load_corpus, load_mixture, read_sources
from growlm.data.batches import Portion, counts
from growlm.data.mixture import given_by
from growlm.errors import InputError

LENGTH = 8
# Three sources of 40, 25 and 7 windows. A token says whose it is, and of which window: 100 s + w.
WINDOWS = (40, 25, 7)
SOURCES = [np.repeat(100 * s + np.arange(n), LENGTH + 1) for s, n in enumerate(WINDOWS)]
PARTS = (12, 7, 1)


def stream(parts=PARTS, given=(0, 0, 0), sources=SOURCES, **options):
    """An endless stream of batches; examples of source s are 100 s + w."""
    portions = [Portion(*one) for one in zip(sources, parts, given, strict=True)]
    return batches(portions, **({"seed": 3, "batch": 5, "length": LENGTH, "start": 0} | options))


def names(count, **options):
    found = itertools.islice(stream(**options), -(-count // options.get("batch", 5)))
    return np.concatenate([rows[:, 0] for rows in found])[:count].tolist()


def alone(source, count, start=0):
    rows = itertools.islice(batches(SOURCES[source], seed=3, batch=1, length=LENGTH, start=start), count)
    return [int(row[0, 0]) for row in rows]


@pytest.mark.parametrize("parts", [(12, 7, 1), (9, 1), (1, 1, 1, 1, 1), (1, 997, 2), (10**15, 3 * 10**15 + 1)])
def test_every_prefix_has_its_shares_and_one_source_gives_each_example(parts):
    before, total = [0] * len(parts), sum(parts)
    for examples in range(1, 3000):
        found = counts(parts, examples)
        assert sorted(b - a for a, b in zip(before, found, strict=True)) == [0] * (len(parts) - 1) + [1]
        assert all(abs(n - examples * part / total) <= len(parts) / 2 for n, part in zip(found, parts, strict=True))
        before = found
    assert counts(parts, 7 * total) == [7 * part for part in parts]


def test_a_mixture_gives_the_examples_of_each_source_in_the_order_that_it_has_alone():
    found = names(600)
    for source, part in enumerate(PARTS):
        own = [name for name in found if name // 100 == source]
        assert len(own) == 600 * part // 20
        assert own == alone(source, len(own))
    for prefix in range(0, 600, 37):
        assert [sum(name // 100 == source for name in found[:prefix]) for source in range(3)] == counts(PARTS, prefix)


@pytest.mark.parametrize("batch", [1, 4, 7, 20])
@pytest.mark.parametrize("start", [0, 3, 277])
def test_a_restart_of_a_mixture_is_exact_at_any_example_and_any_batch_size(start, batch):
    assert names(140, batch=batch, start=start) == names(start + 140)[start:]


@pytest.mark.parametrize("processes", [2, 3])
def test_the_shards_of_a_mixed_batch_are_the_batch(processes):
    whole = stream(batch=6, start=11)
    parts = [stream(batch=6, start=11, shard=(process, processes)) for process in range(processes)]
    for _ in range(30):
        assert np.array_equal(next(whole), np.concatenate([next(part) for part in parts]))


def test_a_source_goes_on_after_what_it_has_given():
    found = names(400, given=(5, 0, 9))
    for source, given in enumerate((5, 0, 9)):
        own = [name for name in found if name // 100 == source]
        assert own == alone(source, len(own), start=given)


def test_a_lone_portion_is_the_corpus():
    assert names(300, parts=(4,), given=(0,), sources=SOURCES[:1], start=7) == alone(0, 300, start=7)


# --- what a config names


@pytest.fixture
def texts(tmp_path):
    """Three text files; the first and the last are equal."""
    for name, word in (("a", "first"), ("b", "second"), ("c", "first")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text.txt").write_text(f"{word} text\n" * 2000)
    return tmp_path


def mixture(setting):
    return load_mixture(read_sources(setting), load_corpus)


def test_a_source_alone_is_that_corpus_under_any_name_and_weight(texts):
    path = str(texts / "a")
    for setting in (path, {path: 0.3}, {"x": {"corpus": path}}, {"x": {"corpus": path, "weight": 5}}):
        assert mixture(setting).fingerprint == load_corpus(path).fingerprint
    assert given_by(mixture(path).fingerprint, 17) == {load_corpus(path).fingerprint: 17}


def test_neither_names_nor_order_nor_the_scale_of_weights_matter(texts):
    a, b = str(texts / "a"), str(texts / "b")
    same = [
        {a: 0.9, b: 0.1},
        {b: 0.1, a: 0.9},
        {a: 9, b: 1},
        {"z": {"corpus": a, "weight": 0.45}, "y": {"corpus": b, "weight": 0.05}},
    ]
    found = [mixture(setting) for setting in same]
    assert all(one.fingerprint == found[0].fingerprint for one in found)
    assert found[0].fingerprint == {load_corpus(a).fingerprint: 9, load_corpus(b).fingerprint: 1}
    orders = [[(portion.part, portion.tokens.tobytes()) for portion in one.portions({})] for one in found]
    assert all(order == orders[0] for order in orders)
    assert mixture({a: 0.8, b: 0.2}).fingerprint != found[0].fingerprint
    assert found[3].share("z") == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"a": 0, "b": 1}, "corpus.a must be a positive number, got 0"),
        ({"a": -0.1, "b": 1}, "corpus.a must be a positive number, got -0.1"),
        ({"a": math.inf, "b": 1}, "corpus.a must be a positive number, got inf"),
        ({"a": math.nan, "b": 1}, "corpus.a must be a positive number, got nan"),
        ({"a": "half", "b": 1}, "corpus.a must be a positive number, got 'half'"),
        ({"a": True}, "corpus.a must be a positive number, got True"),
        ({"x": {"corpus": "a", "weight": 0}}, "corpus.x.weight must be a positive number, got 0"),
        ({"x": {"weight": 1}}, "corpus.x.corpus must be a source of text, got None"),
        ({"x": {"corpus": "a", "metadata": 1}}, "corpus.x.metadata must be True or False, got 1"),
        ({"x": {"corpus": "a", "wieght": 1}}, "'wieght'; did you mean 'weight'?"),
        (
            {"x": {"corpus": "a"}, "y": {"corpus": "a", "weight": 2}},
            "corpus must be sources that differ, got 'x and y'",
        ),
        ({}, "corpus must be a source, or sources by name with their weights, got {}"),
        ({"": 1}, "corpus must be a source, or sources by name"),
        (["a"], "corpus must be a source, or sources by name with their weights, got ['a']"),
    ],
)
def test_a_setting_that_is_no_mixture_is_one_line(setting, says):
    with pytest.raises(InputError) as error:
        read_sources(setting)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_sources_that_do_not_go_together_are_one_line(texts):
    a, b, c = (str(texts / name) for name in "abc")
    with pytest.raises(InputError, match=r"sources must be texts that differ, got .*the same as .*/[ac].* and .*/[ac]"):
        mixture({a: 1, b: 1, c: 1})
    with pytest.raises(
        InputError, match=r"'stdlib', a prepared folder, a text file or a folder of them, got .*nowhere"
    ):
        mixture({a: 1, "nowhere": 1})


def test_sources_have_one_tokenizer(texts):
    a, b = str(texts / "a"), str(texts / "b")
    of_bytes, bpe = (
        prepared(b, texts / name, **options)
        for name, options in (
            ("bytes", {"tokenizer": "bytes"}),
            ("bpe", {"train_tokenizer": "bpe", "vocab": 260, "tokenizer": None}),
        )
    )
    assert len(mixture({a: 1, str(of_bytes): 1}).corpora) == 2
    with pytest.raises(InputError, match=r"sources must have one tokenizer, got that of .* \(2\d\d tokens\)"):
        mixture({a: 1, str(bpe): 1})
    with pytest.raises(InputError, match=r"metadata must be unset for .*/bytes, which is prepared"):
        mixture({"x": {"corpus": str(of_bytes), "metadata": True}})


# --- metadata


@pytest.mark.parametrize("files", [3, 200])
def test_metadata_stands_before_each_text_and_holds_out_the_same(tmp_path, files):
    for number in range(files):
        (tmp_path / f"f{number % 5}").mkdir(exist_ok=True)
        lines = "".join(f"line {i} of {number}\n" for i in range(4000 if files < 50 else 3))
        (tmp_path / f"f{number % 5}" / f"{number}.txt").write_text(lines)
    plain, told = load_corpus(str(tmp_path)), load_corpus(str(tmp_path), metadata=True)
    for split in ("train", "validation"):
        before, after = (bytes(getattr(corpus, split)).split(b"\0")[:-1] for corpus in (plain, told))
        heads, texts = zip(*(text.split(b"\n\n", 1) for text in after), strict=True)
        assert list(texts) == before
        numbers = [text.split(b"\n")[-2].split()[-1].decode() for text in texts]
        assert [head.decode() for head in heads] == [f"f{int(number) % 5}/{number}.txt" for number in numbers]
    assert plain.fingerprint != told.fingerprint and plain.tokenizer == told.tokenizer
