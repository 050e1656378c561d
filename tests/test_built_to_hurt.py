"""Files that were built to hurt their reader, where random ones would never: each is a result or one line, and no more.

Devices and pipes, links and names that lead out, small files that ask for much memory or time.
"""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hostile import MEMORY, record, refused, watched, write_run, write_sweep
from safetensors.numpy import save_file

import growlm
from growlm.checked import check_files
from growlm.data.corpus import load_corpus
from growlm.data.documents import Reading
from growlm.data.parquet import documents
from growlm.data.parquet_pages import _row_groups
from growlm.data.shards import FORMAT
from growlm.data.sources import list_parts
from growlm.data.textfiles import find_files
from growlm.errors import InputError
from growlm.files import locked, write_whole
from growlm.report.archive import archive
from growlm.report.records import read
from growlm.training.metrics import read_records
from growlm.training.progress import run_status
from growlm.training.saved import copy_imported


def zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def secret(path: Path) -> None:
    """A link to what lies beside the folder."""
    path.symlink_to(path.parents[1] / "secret")


def sparse(path: Path) -> None:
    """A terabyte of nothing, which takes no room."""
    with path.open("wb") as file:
        file.truncate(2**40)


NO_FILES = (zeros, pipe, secret)


# --- What is no file of the folder ---


@pytest.mark.parametrize("make", [*NO_FILES, sparse])
def test_records_are_a_file_of_their_folder(tmp_path, make):
    sweep = write_sweep(tmp_path / "sweep")
    (sweep / "secret").write_text(json.dumps(record()) + "\n")
    (sweep / "a").mkdir()
    make(sweep / "a" / "metrics.jsonl")
    with refused(sweep, "must be"):
        read(sweep)


@pytest.mark.parametrize("make", [zeros, pipe])
def test_records_of_a_stage_are_a_file(tmp_path, make):
    make(tmp_path / "metrics.jsonl")
    with refused(tmp_path, "must be a regular file"):
        read_records(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize("name", ["../victim", "..", "", "a/../../victim", "\0"])
def test_runs_of_a_sweep_are_in_its_folder(tmp_path, name):
    write_run(tmp_path / "victim")
    sweep = write_sweep(tmp_path / "sweep", [name])
    with refused(sweep, "the name of a run must be"):
        read(sweep)
    with refused(sweep, "the name of a run must be"):
        archive(sweep, tmp_path / "sweep" / "out" / "archive")
    assert not (tmp_path / "sweep" / "out").exists()


@pytest.mark.parametrize("make", NO_FILES)
def test_an_archive_has_nothing_of_elsewhere(tmp_path, make):
    sweep = write_sweep(tmp_path / "sweep")
    (tmp_path / "secret").write_text("{}")
    run = write_run(sweep / "a")
    if make is secret:
        (run / "config.json").symlink_to(tmp_path / "secret")
    else:
        make(run / "config.json")
    with refused(sweep, "leads out of its folder|must be a regular file"):
        archive(sweep, sweep / "archive")
    assert not (sweep / "archive").exists()


@pytest.mark.parametrize("make", NO_FILES)
@pytest.mark.parametrize("reader", [find_files, load_corpus])
def test_texts_of_a_folder_are_files_of_it(tmp_path, make, reader):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "good.txt").write_text("text " * 2000)
    (tmp_path / "secret").write_text("key " * 2000)
    make(corpus / "bad.txt")
    with refused(corpus, "leads out of its folder|must be a regular file"):
        reader(str(corpus))


def test_links_within_a_corpus_are_read(tmp_path):
    (tmp_path / "a.txt").write_text("text " * 2000)
    (tmp_path / "b.txt").symlink_to("a.txt")
    assert load_corpus(str(tmp_path)).documents == 2


@pytest.mark.parametrize("inner", ["", "data", "data/more"])
def test_links_of_the_hubs_cache_lead_to_its_blobs(tmp_path, inner):
    snapshot, blobs = tmp_path / "some" / "snapshots" / "abc", tmp_path / "some" / "blobs"
    (folder := snapshot / inner).mkdir(parents=True)
    blobs.mkdir()
    for name in ("a", "b"):
        (blobs / name).write_text("text " * 2000)
        (folder / f"{name}.txt").symlink_to(blobs / name)
    assert load_corpus(str(folder)).documents == 2
    (folder / "c.txt").symlink_to(tmp_path / "secret")
    (tmp_path / "secret").write_text("key " * 2000)
    with pytest.raises(InputError, match="leads out of its folder"):
        load_corpus(str(folder))


@pytest.mark.parametrize("suffix", ["", ".index", ".metadata"])
def test_tokens_of_datatrove_are_files(tmp_path, suffix):
    for each in ("", ".index", ".metadata"):
        (tmp_path / f"a.ds{each}").write_bytes(b"bytes|2\n" if each == ".metadata" else b"\0" * 16)
    (tmp_path / f"a.ds{suffix}").unlink()
    pipe(tmp_path / f"a.ds{suffix}")
    tokenizer = {"model": {"type": "WordLevel", "vocab": {"</s>": 0}, "unk_token": "</s>"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer | {"added_tokens": []}))
    with refused(tmp_path, "must be a regular file"):
        load_corpus(str(tmp_path))


@pytest.mark.parametrize("make", [zeros, pipe, sparse])
def test_checksums_are_a_file_that_is_read(tmp_path, make):
    make(tmp_path / "checksums.json")
    with refused(tmp_path, "must be a regular file|must have at most"):
        check_files(tmp_path)


def test_what_has_grown_by_a_terabyte_is_damaged_before_it_is_read(tmp_path):
    sparse(tmp_path / "a.bin")
    (tmp_path / "checksums.json").write_text('{"files": {"a.bin": "5 bytes, crc32 00000000"}}')
    with refused(tmp_path, "got 1099511627776 bytes"):
        check_files(tmp_path)


def test_what_is_carried_along_is_what_growlm_wrote(tmp_path):
    """Links in the folder of an import led to devices, and to folders with themselves in them."""
    imported = tmp_path / "run" / "huggingface"
    imported.mkdir(parents=True)
    (imported / "config.json").write_text("{}")
    zeros(imported / "more.json")
    (imported / "all").symlink_to(".")
    with watched(tmp_path, MEMORY):
        copy_imported(tmp_path / "run", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out" / "huggingface").iterdir()) == [
        "checksums.json",
        "config.json",
    ]
    zeros(imported / "tokenizer.json")
    with refused(tmp_path, "leads out of its folder"):
        copy_imported(tmp_path / "run", tmp_path / "other")


def test_a_part_is_not_written_through_a_link(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / f".report.html.{os.getpid()}.part").symlink_to("precious")
    write_whole(tmp_path / "report.html", b"new")
    assert (tmp_path / "precious").read_text() == "precious" and (tmp_path / "report.html").read_text() == "new"


def linked(path: Path) -> None:
    path.symlink_to("precious")


@pytest.mark.parametrize("make", [linked, pipe, Path.mkdir])
def test_a_lock_is_a_file_of_its_folder(tmp_path, make):
    """Taking a lock empties it: the older filelock emptied what it led to."""
    (tmp_path / "precious").write_text("precious")
    make(tmp_path / ".lock")
    with refused(tmp_path, ".lock must be a regular file"), locked(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_picture_of_runs_waits_for_no_pipe(tmp_path):
    pipe(tmp_path / "metrics.jsonl")
    assert run_status(tmp_path, (), tmp_path, outcome="done").loss is None


# --- What asks for much ---


@pytest.mark.parametrize(
    "settings",
    [
        {"model_type": "mixtral", "num_local_experts": 2**24, "num_experts_per_tok": 2, "num_key_value_heads": 2},
        {"model_type": "llama", "num_hidden_layers": 100_000},
    ],
    ids=["experts", "layers"],
)
def test_tensors_are_asked_for_as_far_as_there_are_any(tmp_path, settings):
    """Sixteen million experts were made as a tuple, and 1.2 million names before the first one was missed."""
    sizes = {"hidden_size": 2, "intermediate_size": 2, "num_attention_heads": 2, "head_dim": 2, "vocab_size": 4}
    (tmp_path / "config.json").write_text(json.dumps(sizes | {"num_hidden_layers": 1} | settings))
    names = ["embed_tokens", "norm", *(f"layers.{n}.input_layernorm" for n in range(5000))]
    tensors = {f"model.{name}.weight": np.zeros((4, 2) if name == "embed_tokens" else 2, np.float32) for name in names}
    tensors |= {f"model.layers.{n}.x": np.zeros(2, np.float32) for n in range(100_000 - len(tensors))}
    save_file(tensors, tmp_path / "model.safetensors")
    with refused(tmp_path, "is missing, for which config.json asks"):
        growlm.read_config(tmp_path)


# --- Packed text ---


def texts_of(folder: Path) -> list[str]:
    (part,) = list_parts([str(folder)], "train")
    return ["".join(document.pieces) for document in part.documents(Reading())]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.txt.zst"])
def test_what_is_packed_unpacks_to_a_text_of_its_size(tmp_path, monkeypatch, name):
    text = b'{"text": "a"}\n' * 20_000
    pack = gzip.compress if name.endswith(".gz") else pytest.importorskip("zstandard").compress
    (tmp_path / name).write_bytes(pack(text))
    assert texts_of(tmp_path)
    monkeypatch.setattr("growlm.data.textfiles.SMALL_TEXT", 1000)
    monkeypatch.setattr("growlm.data.textfiles.MOST_TIMES", 10)
    with refused(tmp_path, "must unpack to at most [0-9,]+ bytes"):
        texts_of(tmp_path)


def test_empty_lines_are_passed_over_until_there_is_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr("growlm.data.textfiles.MOST_EMPTY", 100)
    line = b'{"text": "a"}\n'
    (tmp_path / "a.jsonl").write_bytes((b"\n" * 100 + line) * 3)
    assert texts_of(tmp_path) == ["a"] * 3
    (tmp_path / "a.jsonl").write_bytes(line + b"\n" * 101 + line)
    with refused(tmp_path, "must be JSON lines, got 101 empty ones on end"):
        texts_of(tmp_path)


# --- Parquet ---


def write_parquet(path: Path, columns: dict, **how) -> Path:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table(columns), path, compression="zstd", **how)
    return path


def read_parquet(path: Path, **how) -> None:
    for document in documents(str(path), 0, 2**62, Reading(**how)):
        for _ in document.pieces:
            pass


def nulls(count: int):
    """A row of so many messages, none of which says anything."""
    import pyarrow as arrow

    parts = [arrow.nulls(count, arrow.string())] * 2
    messages = arrow.StructArray.from_arrays(parts, ["role", "content"])
    return arrow.ListArray.from_arrays(arrow.array([0, count], arrow.int32()), messages)


def test_a_list_of_parquet_has_no_more_values_than_there_is_memory_for(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"messages": nulls(2**24 + 2)})
    assert path.stat().st_size < 4096
    with refused(tmp_path, "column messages.list.element.role .* at most 16,777,216 values"):
        read_parquet(path, chat=True)


def test_lists_of_parquet_may_have_a_value_for_each_byte(tmp_path, monkeypatch):
    monkeypatch.setattr("growlm.data.parquet_pages.MOST_VALUES", 500)
    texts = np.random.default_rng(0).integers(2**60, size=(200, 2)).tolist()
    talk = [[{"role": "user", "content": f"{a}"}, {"role": "assistant", "content": f"{b}"}] * 2 for a, b in texts]
    small = {"use_dictionary": False, "data_page_size": 500, "write_batch_size": 50}
    path = write_parquet(tmp_path / "a.parquet", {"messages": talk}, **small)
    read_parquet(path, chat=True)


def test_a_page_of_parquet_unpacks_to_no_more_than_there_is_memory_for(tmp_path):
    import pyarrow as arrow

    texts = arrow.array(["a" * 2**20] * 200, arrow.string())
    how = {"use_dictionary": False, "data_page_size": 2**30, "write_batch_size": 200}
    path = write_parquet(tmp_path / "a.parquet", {"text": texts}, **how)
    assert path.stat().st_size < 2**16
    del texts
    with refused(tmp_path, "a page of column text of row group 0 .* got 209,7"):
        read_parquet(path)


def test_a_file_of_parquet_has_no_more_rows_than_its_bytes_could_hold(tmp_path, monkeypatch):
    write_parquet(tmp_path / "a.parquet", {"text": ["a"] * 20_000})
    assert len(texts_of(tmp_path)) == 20_000
    monkeypatch.setattr("growlm.data.parquet.MAX_ROWS", 0)
    with refused(tmp_path, "must have at most [0-9,]+ rows in its [0-9,]+ bytes, got 20,000"):
        texts_of(tmp_path)


def test_a_footer_is_read_once_however_many_row_groups_it_has(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"text": [f"text {number}" for number in range(50)]}, row_group_size=1)
    before = _row_groups.cache_info()
    read_parquet(path)
    after = _row_groups.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 49)


@pytest.mark.parametrize("kind", ["date", "zone"])
def test_values_of_parquet_that_python_has_not_are_one_line(tmp_path, kind):
    import pyarrow as arrow

    days = arrow.array([2**31 - 1], arrow.int32()).cast(arrow.date32())
    moment = arrow.array([1], arrow.int64()).cast(arrow.timestamp("us", "No/Where"))
    columns = {"prompt": ["a"], "response": ["b"], "when": days if kind == "date" else moment}
    with refused(tmp_path, "must be a whole .parquet file, got (OverflowError|UnknownTimeZoneError|ZoneInfo)"):
        read_parquet(write_parquet(tmp_path / "a.parquet", columns), chat=True)


def test_pages_of_parquet_are_found_in_all_of_its_forms(tmp_path):
    texts = [f"text {number}" for number in range(3000)]
    talk = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": text}] for text in texts]
    for number, how in enumerate(
        (
            {},
            {"use_dictionary": False},
            {"data_page_version": "2.0", "data_page_size": 500},
            {"row_group_size": 100, "write_statistics": False},
            {"write_page_index": True, "write_page_checksum": True},
        )
    ):
        path = write_parquet(tmp_path / f"{number}.parquet", {"text": texts, "messages": talk}, **how)
        read = [piece for one in documents(str(path), 0, 2**62, Reading()) for piece in one.pieces]
        assert read == texts
        read_parquet(path, chat=True)


# --- Prepared folders ---


def test_a_prepared_folder_has_text_in_both_splits(tmp_path):
    none = dict.fromkeys(("documents", "tokens", "bytes"), 0)
    tokenizer = {"name": "bytes", "vocab": 256, "eos": 0, "bos": None, "fingerprint": "x", "files": {}}
    manifest = {"format": FORMAT, "settings": {}, "rule": {"unit": "chunk", "below": 3}, "dtype": "<u2", "shards": []}
    manifest |= {"tokenizer": tokenizer, "splits": {"train": none, "validation": none}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with refused(tmp_path, "tokens of train must be an integer >= 1, got 0"):
        load_corpus(str(tmp_path))
