"""Where text comes from: files of every kind, datasets, fields of records, and which records stay."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from prepared import TEXTS, documents, failed, prepared, read, request, shard_bytes, small_parts, write_sources

from growlm.data import prepare, verify
from growlm.data.documents import Reading
from growlm.data.filters import Filter
from growlm.data.prepare import Work, find_rule_of, planned_rule, read_request, write_plan
from growlm.data.sources import list_parts
from growlm.errors import InputError

PLACED = list(enumerate(TEXTS))
FIRST_THIRD = Reading(filters=(Filter.of("meta.third=0"),))


@pytest.fixture
def source(tmp_path):
    return write_sources(tmp_path / "text")


def test_sources_of_every_kind_hold_the_same_texts(source, monkeypatch):
    assert read(source) == TEXTS
    monkeypatch.setattr("growlm.data.textfiles.MOST_PARTS", 10**6)
    for size in (1, 100, 5000):  # wherever a range of lines begins
        small_parts(monkeypatch, size)
        assert read(source) == TEXTS


@pytest.mark.parametrize("size", [15, 16, 17, 32])
def test_a_line_is_read_once_where_a_range_begins_with_it(tmp_path, monkeypatch, size):
    (tmp_path / "a.jsonl").write_bytes(b"".join(b'{"text": "%03d"}\n' % i for i in range(100)))
    small_parts(monkeypatch, size)
    assert len(list_parts([str(tmp_path)], "train")) > 40
    assert read(tmp_path) == [f"{i:03}" for i in range(100)]


def test_zstandard_in_several_frames(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    lines = [json.dumps({"body": text}) + "\n" for text in TEXTS[:20]]
    frames = [zstandard.compress("".join(part).encode()) for part in (lines[:7], lines[7:])]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames))
    assert read(tmp_path, field="body") == TEXTS[:20]
    (tmp_path / "b.txt.zst").write_bytes(zstandard.compress(b"text"))
    assert read(tmp_path / "b.txt.zst") == ["text"]


def test_a_long_document_is_read_in_pieces_and_ends_once(tmp_path):
    texts = tmp_path / "text"
    texts.mkdir()
    text = "\n".join(f"line {i} of some words é" for i in range(90_000))
    (texts / "long.txt").write_text(text)
    (texts / "long.jsonl").write_text(json.dumps({"text": text + "!"}) + "\n")
    for i in range(60):
        (texts / f"{i:02}.txt").write_text(f"document {i}")
    for part in list_parts([str(texts)], "train"):
        for document in part.documents(Reading()):
            pieces = list(document.pieces)
            assert all(len(piece.encode()) <= 2**20 for piece in pieces)
            assert all(piece.endswith("\n") for piece in pieces[:-1])
            assert (Path(document.place).name.startswith("long")) == (len(pieces) == 3)
    folder = prepared(texts, tmp_path / "out")
    assert {text, text + "!"} < set(documents(folder, "train") + documents(folder, "validation"))
    assert verify(folder)["splits"]["train"]["documents"] < 62


def test_tfds_in_array_record_form(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")

    class GrowlmTexts(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict({"text": tfds.features.Text(), "meta": {"third": np.int64}}),
            )

        def _split_generators(self, manager):
            return {"train": self._generate_examples(TEXTS), "test": self._generate_examples(TEXTS[:70])}

        def _generate_examples(self, texts):
            yield from ((str(i), {"text": text, "meta": {"third": i % 3}}) for i, text in enumerate(texts))

    GrowlmTexts(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    options = {"data_dir": str(tmp_path), "workers": 2}
    folder = prepared("tfds:growlm_texts", tmp_path / "out", **options)
    assert sorted(documents(folder, "train") + documents(folder, "validation")) == sorted(TEXTS)
    test = prepared("tfds:growlm_texts", tmp_path / "test", split="test", **options)
    assert verify(test)["splits"]["train"]["documents"] == 69
    thirds = prepared("tfds:growlm_texts", tmp_path / "thirds", reading=FIRST_THIRD, **options)
    assert sorted(documents(thirds, "train") + documents(thirds, "validation")) == sorted(TEXTS[::3])
    assert "tensorflow" not in sys.modules
    with pytest.raises(InputError, match="cannot read tfds:growlm_texts, split 'none'"):
        prepare(request("tfds:growlm_texts", tmp_path / "x", split="none", **options))
    with pytest.raises(InputError, match=r"record \d+ has no text in field 'body': its fields are"):
        prepare(request("tfds:growlm_texts", tmp_path / "x", reading=Reading("body"), **options))


def test_a_hugging_face_folder_is_streamed(tmp_path, monkeypatch):
    pytest.importorskip("datasets", reason="the extra huggingface is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "set").mkdir()
    for i in range(4):
        lines = [
            json.dumps({"text": text, "meta": {"third": j % 3}}) + "\n" for j, text in PLACED[100 * i : 100 * i + 100]
        ]
        (tmp_path / "set" / f"train-{i}.jsonl").write_text("".join(lines))
    monkeypatch.setattr("growlm.data.sources.MOST_STREAMS", 3)
    assert len(list_parts([f"hf:{tmp_path / 'set'}"], "train")) == 3
    folder = prepared(f"hf:{tmp_path / 'set'}", tmp_path / "out", validation="7")
    held = documents(folder, "validation")
    assert documents(folder, "train") == [text for text in TEXTS if text not in held] and len(held) == 7
    thirds = prepared(f"hf:{tmp_path / 'set'}", tmp_path / "thirds", reading=FIRST_THIRD)
    assert sorted(documents(thirds, "train") + documents(thirds, "validation")) == sorted(TEXTS[::3])


def test_a_dataset_of_the_hub_is_pinned_and_a_folder_goes_on_with_its_commit(tmp_path, monkeypatch):
    pytest.importorskip("datasets", reason="the extra data is not installed")
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    cached = tmp_path / "cache" / "datasets--some--set"
    (cached / "refs").mkdir(parents=True)

    def is_now(commit: str, texts: list[str]) -> None:
        folder = cached / "snapshots" / commit
        (folder / "poems").mkdir(parents=True)
        for number in range(2):
            lines = (json.dumps({"text": text}) + "\n" for text in texts[number * 5 : number * 5 + 5])
            (folder / "poems" / f"train-{number}.jsonl").write_text("".join(lines))
        card = "---\nconfigs:\n- config_name: poems\n  data_files: poems/train-*.jsonl\n---\n"
        (folder / "README.md").write_text(card)
        (cached / "refs" / "main").write_text(commit)

    def asked(source: str, output: str = "none") -> Work:
        return read_request(request(source, tmp_path / output))

    def texts(work: Work) -> list[str]:
        return ["".join(document.pieces) for part in work.parts for document in part.documents(Reading())]

    first, second = "a" * 40, "b" * 40
    is_now(first, TEXTS[:10])
    begun = asked("hf:some/set:poems", "begun")
    assert begun.settings["sources"] == [f"hf:some/set:poems@{first}"] and texts(begun) == TEXTS[:10]
    begun.request.output.mkdir()
    write_plan(begun, find_rule_of(begun))

    is_now(second, TEXTS[10:20])
    again = asked("hf:some/set:poems", "begun")
    assert again.settings == begun.settings and texts(again) == TEXTS[:10] and planned_rule(again)
    for source in ("hf:some/set:poems", "hf:some/set:poems@main", f"hf:some/set:poems@{second}"):
        newer = asked(source)
        assert newer.settings["sources"] == [f"hf:some/set:poems@{second}"] and texts(newer) == TEXTS[10:20]
    assert asked(f"hf:some/set:poems@{first}").settings == begun.settings
    with pytest.raises(InputError, match="is of other settings: sources was"):
        planned_rule(asked("hf:some/set:poems@main", "begun"))
    for source, says in ((f"hf:some/set@{'c' * 40}", "cannot read hf:some/set"), ("hf:a/b@", "must be hf:NAME or")):
        with pytest.raises(InputError, match=says):
            asked(source)


def test_a_missing_library_names_the_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "datasets", None)
    line = failed(capsys, "--source=hf:some/set", "--tokenizer=bytes", f"--output={tmp_path / 'out'}")
    assert "pip install growlm[data]" in line


# --- parquet


def write_parquet(file: Path, rows: list[dict], **options) -> Path:
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(sys.modules["pyarrow"].Table.from_pylist(rows), file, **options)
    return file


def records() -> list[dict]:
    return [{"id": i, "text": text, "meta": {"third": i % 3, "set": "ab"[i % 2], "none": None}} for i, text in PLACED]


@pytest.mark.parametrize("size", [100, 2000, 10**6])
def test_a_row_is_read_once_wherever_a_range_begins(tmp_path, monkeypatch, size):
    (tmp_path / "text").mkdir()
    write_parquet(tmp_path / "text" / "a.parquet", records()[:250], row_group_size=7)
    write_parquet(tmp_path / "text" / "b.PARQUET", records()[250:], row_group_size=1000)
    monkeypatch.setattr("growlm.data.textfiles.MOST_PARTS", 10**6)
    small_parts(monkeypatch, size)
    assert (len(list_parts([str(tmp_path / "text")], "train")) > 10) == (size < 10**6)
    assert read(tmp_path / "text") == TEXTS
    assert read(tmp_path / "text" / "a.parquet", filters=FIRST_THIRD.filters) == TEXTS[:250:3]


def test_shards_of_parquet_are_those_of_lines(tmp_path, monkeypatch):
    small_parts(monkeypatch)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records()))
    write_parquet(tmp_path / "a.parquet", records(), row_group_size=20)
    folders = [prepared(tmp_path / f"a.{kind}", tmp_path / kind, workers=2) for kind in ("jsonl", "parquet")]
    for split in ("train", "validation"):
        lines, rows = (documents(folder, split) for folder in folders)
        assert lines == rows


def test_memory_does_not_grow_with_a_row_group(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    rows = [{"text": f"{i} " * 4000, "other": "x" * 4000} for i in range(1500)]
    file = write_parquet(tmp_path / "a.parquet", rows, compression="none", use_dictionary=False, write_batch_size=32)
    assert file.stat().st_size > 30e6
    before, most = arrow.total_allocated_bytes(), 0
    for _ in (document for part in list_parts([str(file)], "train") for document in part.documents(Reading())):
        most = max(most, arrow.total_allocated_bytes() - before)
    assert 0 < most < 8e6


def test_a_text_that_a_page_holds_once_is_in_memory_once(tmp_path, monkeypatch):
    """Files of a few kB: written out, the rows of one are 120 MB, and so is the list in a row of the other."""
    arrow, text = pytest.importorskip("pyarrow"), "ab " * 133_000
    once = {"compression": "zstd", "dictionary_pagesize_limit": 2**30}
    file = write_parquet(tmp_path / "a.parquet", [{"text": text}] * 300, **once)
    before, most, rows = arrow.total_allocated_bytes(), 0, 0
    for document in (document for part in list_parts([str(file)], "train") for document in part.documents(Reading())):
        most, rows = max(most, arrow.total_allocated_bytes() - before), rows + 1
        assert sum(len(piece) for piece in document.pieces) == len(text)
    assert file.stat().st_size < 5000 and rows == 300 and len(text) < most < 8 * len(text)

    monkeypatch.setattr("growlm.data.parquet.MAX_ROW", 2**22)
    said = [{"role": role, "content": text} for role in ("user", "assistant")]
    talk = write_parquet(tmp_path / "talk.parquet", [{"messages": said}, {"messages": said * 150}], **once)
    before, most, rows = arrow.total_allocated_bytes(), 0, 0
    with pytest.raises(
        InputError, match=r"row 2 of .*talk\.parquet must have at most 4,194,304 bytes, got 119,701,950"
    ):
        for part in list_parts([str(talk)], "train"):
            for document in part.documents(Reading(chat=True)):
                most, rows = max(most, arrow.total_allocated_bytes() - before), rows + 1
                assert sum(len(piece) for piece in document.pieces) > 2 * len(text)
    assert talk.stat().st_size < 5000 and rows == 1 and most < 8 * len(text)


@pytest.mark.parametrize("kind", ["string", "large_string", "binary", "large_binary", "dictionary"])
def test_every_kind_of_text_is_read_and_one_of_nothing(tmp_path, kind):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    texts = arrow.array(["one", "", "é", "one"])
    texts = texts.dictionary_encode() if kind == "dictionary" else texts.cast(getattr(arrow, kind)())
    parquet.write_table(arrow.table({"text": texts}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == ["one", "", "é", "one"]


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        ([{"txt": "x", "n": 1}], [], "a.parquet has no text in field 'text': its columns are txt, n (--field=NAME)"),
        ([{"text": 5}], [], "a.parquet column 'text' must be text, got int64 (--field=NAME)"),
        ([{"text": ["x"]}], [], "column 'text' must be text, got list<"),
        ([{"text": "x"}, {"text": None}], [], "row 2 of "),
        ([{"text": b"x"}, {"text": b"ab\xff"}], [], "a.parquet must be UTF-8 (or --errors=replace), got byte 0xff at"),
        (
            [{"text": "x", "meta": {"a": 1}}],
            ["--filter=meta.b=1"],
            "has no field 'b' of --filter=meta.b=1: there are a",
        ),
        (
            [{"text": "x", "meta": {"a": 1}}],
            ["--filter=b.a=1"],
            "has no field 'b' of --filter=b.a=1: there are text, meta",
        ),
        (b"PAR1 no parquet", [], "a.parquet must be a whole .parquet file, got ArrowInvalid"),
        (b"", [], "a.parquet must be a whole .parquet file, got ArrowInvalid"),
    ],
)
def test_bad_parquet_is_one_line_and_nothing_is_written(tmp_path, capsys, content, options, says):
    file = tmp_path / "a.parquet"
    file.write_bytes(content) if isinstance(content, bytes) else write_parquet(file, content)
    line = failed(capsys, f"--source={file}", "--tokenizer=bytes", f"--output={tmp_path / 'out'}", *options)
    assert says in line
    assert not (tmp_path / "out").exists()


def test_a_page_that_is_broken_is_one_line(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", records())
    data = file.read_bytes()
    file.write_bytes(data[:500] + b"\xff" * 2000 + data[2500:])
    with pytest.raises(InputError, match=r"a\.parquet must be a whole \.parquet file, got"):
        read(file)


# --- filters


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet"])
@pytest.mark.parametrize(
    ("filters", "keeps"),
    [
        (["meta.set=a"], lambda i: i % 2 == 0),
        (["meta.set!=a"], lambda i: i % 2 == 1),
        (["meta.set!=a", "meta.third=2", "id!=5"], lambda i: i % 2 == 1 and i % 3 == 2 and i != 5),
        (["meta.none=null", "id=7"], lambda i: i == 7),
        ([f"text={TEXTS[9]}"], lambda i: i == 9),
        (["meta.set!="], lambda i: True),
    ],
)
def test_a_filter_keeps_records_by_their_fields(tmp_path, kind, filters, keeps):
    file = tmp_path / f"a.{kind}"
    lines = "".join(json.dumps(record) + "\n" for record in records()).encode()
    if kind == "parquet":
        write_parquet(file, records(), row_group_size=9)
    else:
        file.write_bytes(lines if kind == "jsonl" else gzip.compress(lines))
    kept = read(file, filters=tuple(map(Filter.of, filters)))
    assert kept == [text for i, text in PLACED if keeps(i)] and kept


def test_a_filter_is_kept_and_a_folder_of_another_is_refused(tmp_path, monkeypatch):
    small_parts(monkeypatch)
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records()))
    kept = prepared(file, tmp_path / "kept", reading=FIRST_THIRD, validation="9")
    alone = tmp_path / "alone.jsonl"
    alone.write_text("".join(json.dumps(record) + "\n" for record in records()[::3]))
    same = prepared(alone, tmp_path / "same", validation="9")
    assert [documents(kept, split) for split in ("train", "validation")] == [
        documents(same, split) for split in ("train", "validation")
    ]
    assert verify(kept)["settings"]["filters"] == ["meta.third=0"]
    assert "filters" not in verify(same)["settings"]
    assert prepare(request(file, kept, reading=FIRST_THIRD, validation="9")) == verify(kept)
    before = shard_bytes(kept)
    for reading in (Reading(), Reading(filters=(Filter.of("meta.third!=0"),))):
        with pytest.raises(InputError, match=r"is of other settings: filters was \['meta.third=0'\], not"):
            prepare(request(file, kept, reading=reading, validation="9"))
    with pytest.raises(InputError, match=r"filters was None, not \['meta.third=0'\]"):
        prepare(request(alone, same, reading=FIRST_THIRD, validation="9"))
    assert shard_bytes(kept) == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--filter=meta.set=c"], "--filter=meta.set=c must keep a record of the source, it keeps none"),
        (["--filter=id!=1", "--filter=meta.set=c"], "--filter=id!=1 --filter=meta.set=c must keep a record"),
        (["--filter=met.set!=c"], "a.jsonl has no field 'met' of --filter=met.set!=c: there are id, text, meta"),
        (["--filter=meta.sett!=c"], "has no field 'sett' of --filter=meta.sett!=c: there are third, set, none"),
        (["--filter=text.set!=c"], "has no field 'set' of --filter=text.set!=c: there are none"),
        (["--filter=meta!=c"], "field 'meta' must be text or a number for --filter, got dict"),
        (["--filter=meta"], "--filter must be FIELD=VALUE or FIELD!=VALUE, such as meta.source!=web, got 'meta'"),
        (["--filter==x"], "--filter must be FIELD=VALUE"),
        (["--filter=meta..set=x"], "--filter must be FIELD=VALUE"),
        (["--filter=id=1", "--source=README.md"], "--filter=id=1 needs records with fields, "),
    ],
)
def test_a_wrong_filter_is_one_line_and_nothing_is_written(tmp_path, capsys, options, says):
    file, output = tmp_path / "a.jsonl", tmp_path / "out"
    file.write_text("".join(json.dumps(record) + "\n" for record in records()))
    if options[-1].startswith("--source"):
        options = [*options[:-1], f"--source={Path(__file__).parents[1] / 'README.md'}"]
    assert says in failed(capsys, f"--source={file}", "--tokenizer=bytes", f"--output={output}", *options)
    assert not output.exists()
