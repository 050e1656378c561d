"""growlm prepare: every document once, on one side, whole; the same bytes however often it is stopped."""

import gzip
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from prepared import TEXTS, documents, failed, prepared, read, request, shard_bytes, small_parts, tokens, write_sources

from growlm.data import load_corpus, load_tokenizer, prepare, verify
from growlm.data.documents import Reading
from growlm.data.shards import read_manifest
from growlm.errors import InputError


@pytest.fixture
def source(tmp_path):
    return write_sources(tmp_path / "text")


# --- what comes out


def test_every_document_comes_once_whole_and_in_order(source, tmp_path, monkeypatch):
    small_parts(monkeypatch)
    folder = prepared(source, tmp_path / "out", validation="0.1", workers=2)
    train, validation = documents(folder, "train"), documents(folder, "validation")
    assert train == [text for text in TEXTS if text not in validation]
    assert validation == [text for text in TEXTS if text in validation]
    assert 10 < len(validation) < 80
    manifest = verify(folder)
    assert manifest["splits"]["train"]["documents"] == len(train)
    assert manifest["splits"]["train"]["bytes"] == sum(len(text.encode()) for text in train)
    assert manifest["splits"]["train"]["tokens"] == sum(len(text.encode()) + 1 for text in train)
    left = {path.name for path in folder.iterdir() if path.suffix not in (".bin", ".idx")}
    assert left == {".lock", "manifest.json", "tokenizer_config.json"}


def test_shards_are_those_of_one_process(source, tmp_path, monkeypatch):
    small_parts(monkeypatch)
    one, three = (shard_bytes(prepared(source, tmp_path / f"{n}", workers=n)) for n in (1, 3))
    assert one == three and len(one) > 8


def test_tokens_are_those_of_the_tokenizer(source, tmp_path):
    made = prepared(source, tmp_path / "made", tokenizer=None, train_tokenizer="bpe", vocab=400)
    tokenizer = load_tokenizer(made)
    assert tokenizer.vocab == 400
    held = documents(made, "validation")
    expected = [id for text in TEXTS if text not in held for id in [*tokenizer.encode(text), tokenizer.eos]]
    assert tokens(made, "train").tolist() == expected and tokens(made, "train").dtype == np.uint16
    again = prepared(source, tmp_path / "again", tokenizer=str(made))
    assert shard_bytes(made) == shard_bytes(again)
    assert load_corpus(str(again)).fingerprint == load_corpus(str(made)).fingerprint


def test_a_sentencepiece_model_is_trained(source, tmp_path):
    pytest.importorskip("sentencepiece")
    folder = prepared(source, tmp_path / "out", tokenizer=None, train_tokenizer="sentencepiece", vocab=300)
    tokenizer, manifest = load_tokenizer(folder), verify(folder)
    assert tokenizer.vocab == manifest["tokenizer"]["vocab"] == 300
    assert sorted(documents(folder, "train") + documents(folder, "validation")) == sorted(TEXTS)
    unknown = "漢字 99\n  two"
    assert tokenizer.decode(tokenizer.encode(unknown)) == unknown


def test_a_tokenizer_is_trained_on_the_training_split(tmp_path, monkeypatch):
    seen = []

    def remember(kind, vocab, texts, folder):
        seen.extend(texts)
        load_tokenizer("bytes").save(folder)

    monkeypatch.setattr(sys.modules["growlm.data.prepare"], "train_tokenizer", remember)
    source = write_sources(tmp_path / "text")
    folder = prepared(source, tmp_path / "out", tokenizer=None, train_tokenizer="bpe", vocab=400, validation="50")
    assert sorted(seen) == sorted(documents(folder, "train"))
    assert len(documents(folder, "validation")) == 50


def test_a_large_vocabulary_takes_four_bytes(tmp_path, source):
    tokenizers = pytest.importorskip("tokenizers")
    words = {f"word{i}": i for i in range(97)} | {"</s>": 70_000, "?": 98}
    model = tokenizers.models.WordLevel(words, unk_token="?")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    folder = prepared(source, tmp_path / "out", tokenizer=str(tmp_path / "tokenizer.json"))
    corpus = load_corpus(str(folder))
    assert (corpus.vocab, corpus.eos, corpus.train[:].dtype) == (70_001, 70_000, np.uint32)
    assert (corpus.train[:] == 70_000).sum() + (corpus.validation[:] == 70_000).sum() == len(TEXTS)


# --- stopped and resumed


def start(source, output, *options, largest_file=resource.RLIM_INFINITY):
    """The command as a process of its own, with parts of 400 kB, of which it takes a part of a second for each."""
    code = (
        f"import resource, signal, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({largest_file}, {largest_file}));"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"  # background jobs of a shell begin ignoring it
        "from growlm import __main__, data; data.textfiles.SMALLEST_PART = 400_000; sys.exit(__main__.main())"
    )
    command = [sys.executable, "-c", code, "prepare", f"--source={source}", f"--output={output}", *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def long(tmp_path, monkeypatch):
    """2.4 MB in six parts: seconds of work."""
    small_parts(monkeypatch, 400_000)
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path / "long"
    folder.mkdir()
    rng = np.random.default_rng(0)
    with (folder / "a.jsonl").open("w") as file:
        for _ in range(400):
            file.write(json.dumps({"text": " ".join(f"{n:x}" for n in rng.integers(1 << 20, size=1000))}) + "\n")
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(["0123456789abcdef " * 9], vocab_size=280, special_tokens=["<eos>"])
    bpe.save(str(tmp_path / "bpe.json"))
    return folder


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_command_goes_on_with_the_same_shards(long, tmp_path, how):
    options = (f"--tokenizer={tmp_path / 'bpe.json'}", "--workers=2")
    output, parts = tmp_path / "out", tmp_path / "out" / "parts"
    process = start(long, output, *options)
    wait_until(lambda: list(parts.glob("[0-9]*.json")) or process.poll() is not None)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (-9 if how == signal.SIGKILL else 130), err
    done = {path.stem: path.stat().st_mtime_ns for path in parts.glob("*.json")}
    assert 0 < len(done) < 6
    shards = {number: (output / f"train-{number}.bin").stat().st_mtime_ns for number in done}
    with pytest.raises(InputError, match="not finished"):
        load_corpus(str(output))
    for left in (output / ".train-00005.bin.99.part", parts / ".00005.json.99.part"):
        left.write_text("what a kill leaves at another moment")
    manifest = prepare(request(long, output, tokenizer=str(tmp_path / "bpe.json")))
    assert shards == {number: (output / f"train-{number}.bin").stat().st_mtime_ns for number in done}
    through = prepare(request(long, tmp_path / "through", tokenizer=str(tmp_path / "bpe.json"), workers=2))
    assert shard_bytes(output) == shard_bytes(tmp_path / "through")
    assert manifest == through and verify(output)
    assert not [path for path in output.iterdir() if path.name.endswith(".part")]


def children(pid):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked up in /proc")
def test_workers_end_with_their_parent(long, tmp_path):
    process = start(long, tmp_path / "out", f"--tokenizer={tmp_path / 'bpe.json'}", "--workers=2")
    wait_until(lambda: list((tmp_path / "out").glob(".train*.part")) or process.poll() is not None)
    workers = children(process.pid)
    assert len(workers) >= 2
    process.kill()
    process.communicate(timeout=60)
    wait_until(lambda: not [pid for pid in workers if Path(f"/proc/{pid}").exists()], seconds=20)


def test_a_killed_worker_is_told_of_and_the_command_goes_on(long, tmp_path):
    output = tmp_path / "out"
    process = start(long, output, f"--tokenizer={tmp_path / 'bpe.json'}", "--workers=1")
    wait_until(lambda: list(output.glob(".train*.part")) or process.poll() is not None)
    (part,) = output.glob(".train*.part")
    os.kill(int(part.name.split(".")[-2]), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "growlm: a worker was killed, perhaps for its memory: the same command goes on" in err
    prepare(request(long, output, tokenizer=str(tmp_path / "bpe.json")))
    assert verify(output)["splits"]["train"]["documents"] > 350


def test_a_full_disk_is_one_line_and_the_command_goes_on(long, tmp_path):
    output = tmp_path / "out"

    # The nearest to a full disk that every machine can make: no file may be larger than this.
    process = start(long, output, f"--tokenizer={tmp_path / 'bpe.json'}", "--workers=1", largest_file=200_000)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("growlm: ")]
    assert len(lines) == 1 and "cannot write" in lines[0] and "File too large" in lines[0]
    assert "Traceback" not in err
    assert not [path for path in output.iterdir() if path.suffix in (".bin", ".part") or path.name == "manifest.json"]
    assert prepare(request(long, output, tokenizer=str(tmp_path / "bpe.json")))


def test_a_folder_that_is_done_is_left_as_it_is(source, tmp_path):
    folder = prepared(source, tmp_path / "out")
    before = tiny.snapshot(folder)
    assert prepare(request(source, folder, workers=3)) == read_manifest(folder)
    assert tiny.snapshot(folder) == before


# --- bad input


@pytest.mark.parametrize(
    ("name", "content", "options", "says"),
    [
        ("a.txt", b"ab\xffcd", [], ["a.txt must be UTF-8", "0xff at position 2", "--errors=replace"]),
        ("a.txt", b"x" * 3_000_000 + b"\n\xc3", [], ["0xc3 at position 3000001"]),
        ("a.txt", "é".encode() * 1_000_000 + b"\xe9", [], ["0xe9 at position 2000000"]),
        (
            "a.jsonl",
            b'{"text": "x"}\n\n{"txt": "y", "b": 2}\n',
            [],
            ["line 3 of ", "a.jsonl has no text in field 'text'", "txt, b"],
        ),
        ("a.jsonl", b'{"text": "x"}\n{"text": 5}\n', [], ["line 2 of ", "has no text in field 'text'"]),
        ("a.jsonl", b'{"text": "x"}\n', ["--field=body"], ["line 1 of ", "has no text in field 'body'", "are text"]),
        ("a.jsonl", b'{"text": "x"}\n[1]\n', [], ["line 2 of ", "has no text", "fields are none"]),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\n', [], ["line 2 of ", "a.jsonl must be JSON"]),
        (
            "a.jsonl",
            b'{"text": "x"}\n{"text": "\xff"}\n',
            [],
            ["line 2 of ", "must be UTF-8", "byte 0xff at position 10"],
        ),
        (
            "a.jsonl",
            b'{"text": "ab\\ud800"}\n',
            [],
            ["line 1 of ", "must be UTF-8", "half a character, U+D800 at position 2"],
        ),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n{}', mtime=0)[:-9], [], ["a.jsonl.gz must be a whole .gz file"]),
        ("a.txt.gz", b"no gzip", [], ["a.txt.gz"]),
        ("a.txt.zst", b"no zstandard", [], ["a.txt.zst must be a whole .zst file"]),
        ("a.txt", b"", [], ["holds no text"]),
        ("a.bin", b"x", [], ["must hold text files"]),
        (
            "a.txt",
            b"text " * 2000,
            ["--validation=3"],
            ["--validation=3 leaves nothing to train on", "there are 3 chunks"],
        ),
        ("a.txt", b"text", ["--errors=ignore"], ["'ignore'", "strict"]),
        ("a.txt", b"text", ["--workers=0"], ["--workers must be >= 1, got 0"]),
        ("a.txt", b"text", ["--vocab=300"], ["--vocab=N and --train_tokenizer go together"]),
        ("a.txt", b"text", ["--eos=x"], ["--eos must be left out with the tokenizer bytes"]),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, capsys, name, content, options, says):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / name).write_bytes(content)
    output = tmp_path / "out"
    line = failed(capsys, f"--source={tmp_path / 'text'}", "--tokenizer=bytes", f"--output={output}", *options)
    assert [part for part in says if part not in line] == []
    assert not output.exists()


def test_text_that_is_not_utf8_can_be_replaced(tmp_path):
    texts = tmp_path / "text"
    texts.mkdir()
    (texts / "a.txt").write_bytes(b"x" * 5000 + b"\xff\0")
    (texts / "b.jsonl").write_bytes(b'{"text": "\xff \\ud800 \\u0000"}\n')
    assert read(texts, errors="replace") == ["x" * 5000 + "\ufffd\ufffd", "\ufffd \ufffd \ufffd"]
    assert verify(prepared(texts, tmp_path / "out", reading=Reading(errors="replace")))


def test_a_wrong_line_is_named_from_wherever_its_range_begins(tmp_path, monkeypatch):
    lines = [json.dumps({"text": text}) for text in TEXTS]
    lines[333] = '{"no": 1}'
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    for size in (100, 10_000):
        small_parts(monkeypatch, size)
        with pytest.raises(InputError, match=r"line 334 of .*a\.jsonl has no text"):
            read(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"ab\xff", "d050.txt must be UTF-8 (or --errors=replace), got byte 0xff at position 2"),
        (b"ab\0", "d050.txt: text for the tokenizer bytes must have no NUL, got one at position 2"),
    ],
)
def test_an_error_within_a_worker_is_one_line(source, tmp_path, capsys, monkeypatch, text, says):
    small_parts(monkeypatch)
    monkeypatch.setattr("growlm.data.holdout.SURVEYED", 5)  # the first look does not come so far
    (source / "d050.txt").write_bytes(text)
    output = tmp_path / "out"
    options = (f"--source={source}", "--tokenizer=bytes", f"--output={output}", "--validation=0.1")
    assert says in failed(capsys, *options)
    assert says in failed(capsys, *options)
    assert not (output / "manifest.json").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"validation": "0.3"}, "validation was None, not 0.3"),
        ({"split": "test"}, "split was train, not test"),
        ({"reading": Reading(errors="replace")}, "errors was strict, not replace"),
        ({"tokenizer": None, "train_tokenizer": "bpe", "vocab": 300}, "tokenizer was"),
    ],
)
def test_other_settings_need_another_folder(source, tmp_path, change, says):
    folder = prepared(source, tmp_path / "out")
    before = tiny.snapshot(folder)
    with pytest.raises(InputError, match=f"is of other settings: {says}"):
        prepare(request(source, folder, **change))
    assert tiny.snapshot(folder) == before


def test_the_shards_are_those_of_earlier_releases(source, tmp_path):
    """The hashes of stages hold the fingerprint, so that a new way to split or to pack must be a decision."""
    names = [load_corpus(str(prepared(source, tmp_path / f"{v}", validation=v))).fingerprint for v in (None, "50")]
    assert names == [
        "2c2c806f9be3519a3b6cf6b6f16ed7161033538241d4dba315399bcc2a589b62",
        "892cdc2c59c1164477ae55a9390b29e5a7cffbb478af5a8e79b25800d69d4d6d",
    ]


def test_the_folder_of_a_run_is_no_source(tmp_path, capsys):
    for name in ("config.json", "metrics.jsonl"):
        (tmp_path / name).write_text('{"text": "{}"}')
    line = failed(capsys, f"--source={tmp_path}", "--tokenizer=bytes", f"--output={tmp_path.parent / 'out'}")
    assert "must be text, got the folder of a run" in line


def test_a_changed_source_is_noticed(source, tmp_path):
    folder = prepared(source, tmp_path / "out")
    (source / "e.txt").write_text("more")
    with pytest.raises(InputError, match="the source's files changed since"):
        prepare(request(source, folder))


def test_a_copy_of_the_source_is_the_source(source, tmp_path):
    """A machine that is made anew has the same text at the same place, with the time of the copying."""
    folder = prepared(source, tmp_path / "out")
    for path in source.iterdir():
        os.utime(path, (1, 1))
    assert prepare(request(source, folder)) == read_manifest(folder)


@pytest.mark.parametrize("at", [0, 300_000, 600_000])
def test_another_text_of_the_same_size_and_time_is_noticed(tmp_path, at):
    text = tmp_path / "a.txt"
    text.write_bytes(b"x" * 600_001)
    folder = prepared(text, tmp_path / "out")
    time = text.stat().st_mtime_ns
    text.write_bytes(b"x" * at + b"y" + b"x" * (600_000 - at))
    os.utime(text, ns=(time, time))
    with pytest.raises(InputError, match="the source's files changed since"):
        prepare(request(text, folder))


def test_a_folder_with_something_else_is_refused(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("")
    with pytest.raises(InputError, match=r"out must be a new or empty folder, it holds mine\.txt"):
        prepare(request(source, tmp_path / "out"))
    with pytest.raises(InputError, match="output must be a new or empty folder, got"):
        prepare(request(source, tmp_path / "out" / "mine.txt"))


@pytest.mark.parametrize("name", [".filelock-probe-0e99", ".plan.json.7.part"])
def test_what_a_process_leaves_that_ended_as_it_began_is_removed(source, tmp_path, name):
    (tmp_path / "out").mkdir()
    left = tmp_path / "out" / name
    left.write_text("")
    assert prepare(request(source, tmp_path / "out"))
    assert not left.exists()


def test_what_is_written_is_not_read(source, monkeypatch):
    monkeypatch.chdir(source)
    with pytest.raises(InputError, match=r"output must be outside of source \., got 'runs/out'"):
        prepare(request(".", Path("runs/out")))
    assert not (source / "runs").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--tokenizer=bytes"], "prepare needs --source"),
        (["--source=x"], "one of --tokenizer"),
        (["--source=x", "--tokenizer=bytes", "--train_tokenizer=bpe"], "one of --tokenizer"),
        (["--source=x", "--train_tokenizer=bpe"], "--vocab=N"),
        (
            ["--source=missing", "--tokenizer=bytes"],
            "--source must be a file, a folder, tfds:NAME or hf:NAME, got 'missing'",
        ),
        (["--source=hf:", "--tokenizer=bytes"], "--source must be hf:NAME, got 'hf:'"),
    ],
)
def test_incomplete_requests(tmp_path, capsys, options, says):
    assert says in failed(capsys, f"--output={tmp_path / 'out'}", *options)


def test_prepare_needs_an_output(capsys):
    assert "prepare needs --output" in failed(capsys, "--source=x")


@pytest.mark.parametrize(
    ("kind", "vocab", "says"),
    [
        ("word", 300, "--train_tokenizer must be one of bpe, sentencepiece, got 'word'"),
        ("bpe", 256, "--vocab must be > 256"),
        ("bpe", 100_000, "--vocab=100000 is more than this text gives: it has"),
        ("sentencepiece", 100_000, "--vocab=100000 does not fit this text"),
    ],
)
def test_tokenizers_that_cannot_be_trained(source, tmp_path, kind, vocab, says):
    with pytest.raises(InputError, match=says):
        prepare(request(source, tmp_path / "out", tokenizer=None, train_tokenizer=kind, vocab=vocab))
