"""Token shards: read as one sequence, batches over them, and every way in which they can be wrong."""

import hashlib
import importlib
import itertools
import json
import os
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import TEXTS, prepared, request, tokens, write_sources

from growlm.__main__ import main
from growlm.data import batches, load_corpus, prepare, validation_batches, verify
from growlm.data.shards import ShardedTokens
from growlm.errors import InputError
from growlm.training.run import train


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A prepared folder of several shards, which no test changes."""
    folder = tmp_path_factory.mktemp("whole")
    source = write_sources(folder / "text")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("growlm.data.textfiles.SMALLEST_PART", 4000)
        return prepared(source, folder / "corpus", validation="0.1")


@pytest.fixture
def corpus(whole, tmp_path):
    """A copy to spoil."""
    shutil.copytree(whole, tmp_path / "corpus")
    return tmp_path / "corpus"


# --- one sequence


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.data())
def test_shards_are_read_as_one_sequence(sizes, data):
    text = np.arange(sum(sizes), dtype=np.uint16)
    shards = ShardedTokens(np.split(text, np.cumsum(sizes)[:-1]))
    start, stop = (data.draw(st.integers(0, len(text) + 2)) for _ in range(2))
    assert len(shards) == len(text)
    assert shards[start:stop].tolist() == text[start:stop].tolist()
    assert shards[start:].tolist() == text[start:].tolist() and shards[start:stop].dtype == np.uint16


def test_a_slice_within_a_shard_is_no_copy():
    shard = np.arange(100)
    assert np.shares_memory(ShardedTokens([shard, shard])[120:150], shard)
    with pytest.raises(IndexError):
        ShardedTokens([shard])[::2]


@settings(max_examples=15)  # each starts two threads
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 12), st.integers(0, 50))
def test_batches_do_not_see_where_a_shard_ends(sizes, length, start):
    text = np.arange(sum(sizes) + 13, dtype=np.uint16)
    shards = ShardedTokens(np.split(text, np.cumsum(sizes)))
    options = {"seed": 3, "batch": 4, "length": length, "start": start}
    for found, expected in itertools.islice(zip(batches(shards, **options), batches(text, **options), strict=True), 5):
        assert np.array_equal(found, expected)
    options = {"batch": 1, "length": length, "count": 4}
    assert np.array_equal(validation_batches(shards, **options), validation_batches(text, **options))


# --- a corpus


def test_a_prepared_folder_is_a_corpus(whole):
    corpus = load_corpus(str(whole))
    manifest = tiny.read_json(whole / "manifest.json")
    assert len({row["name"] for row in manifest["shards"] if row["split"] == "train"}) > 3
    assert (corpus.vocab, corpus.eos, corpus.documents) == (256, 0, len(TEXTS))
    for split, found in (("train", corpus.train), ("validation", corpus.validation)):
        assert np.array_equal(found[:], tokens(whole, split))
        assert len(found) == manifest["splits"][split]["tokens"]
    window = next(batches(corpus.train, seed=0, batch=2, length=32, start=0))
    assert window.shape == (2, 33) and window.dtype == np.int32
    with pytest.raises(ValueError, match="read-only"):
        corpus.train[0:5][0] = 1


def test_the_tokens_are_read_only_when_they_are_used(whole):
    base = load_corpus(str(whole)).train[0:5]
    while base.base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)


def test_the_fingerprint_is_of_the_tokens(whole, tmp_path):
    copy = shutil.copytree(whole, tmp_path / "elsewhere")
    text = write_sources(tmp_path / "text")
    other = prepared(text, tmp_path / "other", validation="0.2")
    (text / "d099.txt").write_text("another document")
    changed = prepared(text, tmp_path / "changed", validation="0.2")
    names = [load_corpus(str(folder)).fingerprint for folder in (whole, copy, other, changed)]
    assert names[0] == names[1]
    assert len(set(names)) == 3


def test_a_folder_of_text_may_have_a_manifest_of_its_own(tmp_path):
    (tmp_path / "manifest.json").write_text('{"format": "mine", "shards": 3}' + " " * 9000)
    (tmp_path / "plan.json").write_text("[]")
    assert load_corpus(str(tmp_path)).vocab == 256


# --- what can be wrong


def first(corpus, suffix=".bin", split="train"):
    return sorted(corpus.glob(f"{split}-*{suffix}"))[0]


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize(
    ("spoil", "says"), [(cut_short, "bytes: the manifest says"), (lambda p: p.unlink(), "missing")]
)
def test_sizes_are_checked_at_every_load(corpus, spoil, says, split):
    path = first(corpus, split=split)
    spoil(path)
    with pytest.raises(InputError, match=f"{path.name}.*{says}"):
        load_corpus(str(corpus))


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_verify_names_the_file_that_was_altered(corpus, capsys, suffix):
    assert main(["prepare", "--verify", f"--output={corpus}"]) == 0
    assert "verified" in capsys.readouterr().out
    path = first(corpus, suffix)
    flip(path)
    load_corpus(str(corpus))  # every byte is read when told only
    assert main(["prepare", "--verify", f"--output={corpus}"]) == 2
    assert f"{path} was altered" in capsys.readouterr().err


def rewrite(corpus, path, change):
    """Alters a shard and its hash in the manifest, as only a bug of prepare would."""
    data = np.fromfile(path, "<u8" if path.suffix == ".idx" else "<u2")
    change(data)
    data.tofile(path)
    manifest = tiny.read_json(corpus / "manifest.json")
    row = next(row for row in manifest["shards"] if row["name"] == path.stem)
    row["index_sha256" if path.suffix == ".idx" else "sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (corpus / "manifest.json").write_text(json.dumps(manifest))


def test_verify_reads_what_the_index_says(corpus):
    def shift(ends):
        ends[0] -= 1

    rewrite(corpus, first(corpus, ".idx"), shift)
    with pytest.raises(InputError, match="must end its documents with EOS, token 0"):
        verify(corpus)

    def swap(ends):
        ends[:2] = ends[1], ends[0]

    rewrite(corpus, first(corpus, ".idx"), swap)
    with pytest.raises(InputError, match="does not say where the documents"):
        verify(corpus)


def test_a_tokenizer_that_did_not_make_the_shards_is_refused(corpus):
    path = corpus / "tokenizer_config.json"
    path.write_text(path.read_text().replace("bytes", "other"))
    with pytest.raises(InputError, match=r"tokenizer_config\.json must be the tokenizer that made these shards"):
        load_corpus(str(corpus))
    with pytest.raises(InputError, match="must be the tokenizer"):
        verify(corpus)
    path.unlink()
    with pytest.raises(InputError, match="must be the tokenizer"):
        load_corpus(str(corpus))


def test_a_folder_that_is_not_finished_is_no_corpus(corpus):
    (corpus / "manifest.json").rename(corpus / "plan.json")
    with pytest.raises(InputError, match="is not finished: the same growlm prepare goes on"):
        load_corpus(str(corpus))


def test_another_format_is_refused(corpus):
    path = corpus / "manifest.json"
    path.write_text(path.read_text().replace("growlm token shards 1", "growlm token shards 2"))
    with pytest.raises(InputError, match=r"must be .growlm token shards 1., got .growlm token shards 2."):
        load_corpus(str(corpus))


def test_verify_needs_a_prepared_folder(tmp_path):
    with pytest.raises(InputError, match=r"must be a folder of growlm prepare, it has no manifest\.json"):
        verify(tmp_path)


def test_a_finished_folder_is_not_taken_for_whole_when_it_is_not(corpus, whole):
    first(corpus).unlink()
    (source,) = tiny.read_json(whole / "manifest.json")["settings"]["sources"]
    with pytest.raises(InputError, match="missing"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("growlm.data.textfiles.SMALLEST_PART", 4000)
        prepare(request(source, corpus, validation="0.1"))


# --- the benchmark


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a process on one core")
def test_the_benchmark_measures_both_on_one_core(whole, monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1] / "experiments" / "benchmarks")
    benchmark = importlib.import_module("data")
    cores = os.sched_getaffinity(0)
    assert benchmark.main([f"--corpus={whole}", "--batch=4", "--length=16", "--rounds=3", "--count=5"]) == 0
    assert os.sched_getaffinity(0) == cores
    *text, record = capsys.readouterr().out.splitlines()
    record = json.loads(record)
    assert record["least"] <= record["ratio"] <= record["most"]
    assert f"{record['million_tokens_per_second']:.1f} million tokens/s" in "\n".join(text)
    assert benchmark.main(["--corpus=missing"]) == 2
    paths, dtype = benchmark.shards_of(str(whole))
    maps = [np.memmap(path, dtype, mode="r") for path in paths]
    rows = next(benchmark.plain_copies(maps, 4, 16))
    assert rows.shape == (4, 17) and rows.dtype == np.int32
    assert all(bytes(row.astype("<u2")) in b"".join(map(bytes, maps)) for row in rows)


def test_a_run_trains_and_grows_on_prepared_text(tmp_path):
    source, trained = write_sources(tmp_path / "text"), {"train_tokenizer": "bpe", "vocab": 300}
    folder = prepared(source, tmp_path / "corpus", tokenizer=None, validation="0.2", **trained)
    model = tiny.MODEL | {"vocab": 300}
    grow = {"model": model | {"layers": 2}, "length": 2 * tiny.LENGTH, "batch": tiny.BATCH // 2}
    stages = tiny.stage(2, model=model), tiny.grown(2, **grow)
    train(tiny.run_config(str(folder), *stages), tmp_path / "run", threading.Event())
    found = tiny.records(tmp_path / "run")
    assert {record["step"] for record in found} == {0, 1, 2, 3, 4}
    assert all(4 < record["loss"] < 8 for record in found if record.get("loss") is not None)
    with pytest.raises(InputError, match=r"model.vocab must be >= the 300 tokens of .*, got 256"):
        train(tiny.run_config(str(folder), tiny.stage(4)), tmp_path / "small", threading.Event())
