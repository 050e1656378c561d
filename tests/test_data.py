"""Text in, batches out: what is read, what is held out, and which example stands at which position."""

import gc
import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from growlm.data import batches, load_corpus, validation_batches
from growlm.errors import InputError

# 100 windows of 9 tokens that hold the number of the window, so that a batch says what it is made of.
WINDOWS = 100
LENGTH = 8
TOKENS = np.repeat(np.arange(WINDOWS, dtype=np.uint8), LENGTH + 1)


def rows(count, **options):
    """The first `count` examples of a stream, one below another."""
    options = {"seed": 0, "batch": 5, "length": LENGTH, "start": 0} | options
    stream = batches(options.pop("tokens", TOKENS), **options)
    return np.concatenate(list(itertools.islice(stream, count // options["batch"])))


def names(count, **options):
    return rows(count, **options)[:, 0].tolist()


def write(folder, texts):
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(folder)


def many(first, last):
    return {f"part{i % 7}/{i:04}.txt": f"document {i}\n" for i in range(first, last)}


def documents(tokens):
    assert bytes(tokens)[-1:] == b"\0"
    return bytes(tokens).split(b"\0")[:-1]


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    return message


# --- corpora


def test_every_document_is_on_one_side_and_ends_with_eos(tmp_path):
    corpus = load_corpus(write(tmp_path, many(0, 400)))
    train, validation = documents(corpus.train), documents(corpus.validation)
    # The order is that of the paths: part0/0000, part0/0007, ..., part6/0398.
    expected = [f"document {i}\n".encode() for part in range(7) for i in range(part, 400, 7)]
    assert train == [text for text in expected if text not in validation]
    assert validation == [text for text in expected if text not in train]
    assert 2 <= len(validation) <= 20
    assert (corpus.documents, corpus.vocab, corpus.eos, corpus.train.dtype) == (400, 256, 0, np.uint8)


def test_more_files_leave_the_held_out_files_held_out(tmp_path):
    before = load_corpus(write(tmp_path, many(100, 400)))
    after = load_corpus(write(tmp_path, many(0, 1000)))
    kept = [text for text in documents(after.validation) if text in documents(before.train)]
    assert kept == [] and set(documents(before.validation)) < set(documents(after.validation))


@pytest.mark.parametrize("files", [1, 3])
def test_few_files_are_split_by_chunks(tmp_path, files):
    lines = [f"{i:09}\n" for i in range(60_000)]
    write(tmp_path, {f"{i}.txt": "".join(lines[i::files]) for i in range(files)})
    corpus = load_corpus(str(tmp_path / "0.txt" if files == 1 else tmp_path))
    train, validation = (set(bytes(side).replace(b"\0", b"\n").split()) for side in (corpus.train, corpus.validation))
    # Only a line cut at the border of a chunk may be on neither side as a whole.
    whole = {line for line in train | validation if len(line) == 9}
    assert not train & validation & whole
    assert len(whole) > 0.99 * len(lines)
    assert 0.02 < corpus.validation.size / (len(lines) * 10) < 0.1
    assert corpus.documents == files
    # Neighbouring chunks stay joined: there are fewer runs than there are chunks.
    assert len(documents(corpus.train)) <= len(documents(corpus.validation)) + files


@pytest.mark.parametrize("size", [4097, 9000, 20_000])
def test_a_small_file_has_both_sides(tmp_path, size):
    for name in "abcdefgh":
        path = tmp_path / f"{name}.txt"
        path.write_text("x" * size)
        corpus = load_corpus(str(path))
        text = np.concatenate([corpus.train, corpus.validation])
        assert np.count_nonzero(text) == size
        assert min(np.count_nonzero(corpus.train), np.count_nonzero(corpus.validation)) > 0


def test_not_everything_is_held_out(tmp_path, monkeypatch):
    monkeypatch.setattr("growlm.data.corpus.CHUNKS_HELD_OUT", 1.0)  # as two chunks are by chance, now and then
    corpus = load_corpus(write(tmp_path, {"a.txt": "x" * 8192}))
    assert corpus.train.size == corpus.validation.size == 4097


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the name of a file must be Unicode")
def test_the_name_of_a_file_may_be_any_bytes(tmp_path):
    (tmp_path / os.fsdecode(b"na\xefve.txt")).write_text("x" * 5000)
    assert load_corpus(str(tmp_path)).documents == 1


def test_fifty_files_have_both_sides(tmp_path):
    for i in range(8):
        corpus = load_corpus(write(tmp_path / str(i), many(50 * i, 50 * i + 50)))
        assert documents(corpus.validation) and len(documents(corpus.train)) < 50


def test_the_fingerprint_is_of_the_split_tokens(tmp_path):
    first = load_corpus(write(tmp_path / "a", many(0, 60)))
    again = load_corpus(write(tmp_path / "b", many(0, 60)))
    other = load_corpus(write(tmp_path / "c", many(0, 60) | {"part0/0000.txt": "document X\n"}))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    # The addresses of stages hold it, so that a new way to split or to pack must be a decision.
    assert first.fingerprint == "05400410e854f0e635abd327deafe578418a88bbeb72cb6cc7ae4ae2bad40cd6"
    lines = [f"{i:09}\n" for i in range(60_000)]
    few = load_corpus(write(tmp_path / "few", {f"{i}.txt": "".join(lines[i::3]) for i in range(3)}))
    assert few.fingerprint == "e05dce059b228d2f9ff0054086e60250137567606a3bb6eff98aabd91861c506"
    assert (first.train == again.train).all() and first.name != again.name
    assert not first.train.flags.writeable


def test_a_folder_gives_its_visible_text_files_only(tmp_path):
    text = "z" * 5000
    skipped = {
        ".hidden/a.txt": "bad",
        ".b.txt": "bad",
        "c.bin": b"\xff",
        "site-packages/d.py": "bad",
        "e.txt": "",
    }
    corpus = load_corpus(write(tmp_path, {"READ.TXT": text, "sub/folder/code.py": "ok", **skipped}))
    assert corpus.documents == 2
    assert b"bad" not in bytes(corpus.train) + bytes(corpus.validation)


def test_the_standard_library_leaves_out_packages_and_what_is_not_text(tmp_path, monkeypatch):
    skipped = {
        "site-packages/numpy/a.py": "bad",
        "dist-packages/b.py": "bad",
        "os/__pycache__/c.py": "bad",
        "_sysconfigdata__linux.py": "bad",
        "config-3.11-linux/d.py": "bad",
        "test/latin.py": b"bad \xe9",
        "test/nul.py": b"bad \0",
        "test/empty.py": "",
    }
    write(tmp_path, many(0, 60) | skipped)
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere")
    monkeypatch.setattr("sysconfig.get_path", lambda name: {"stdlib": str(tmp_path)}[name])
    corpus = load_corpus("stdlib")
    assert corpus.documents == 60
    assert b"bad" not in bytes(corpus.train) + bytes(corpus.validation)


def test_the_real_standard_library_is_enough_to_train_on():
    corpus = load_corpus("stdlib")
    assert Path(os.__file__).read_bytes() in documents(corpus.train) + documents(corpus.validation)
    assert corpus.train.size > 5e6 and corpus.documents > 400
    assert 0.005 < corpus.validation.size / corpus.train.size < 0.05


@pytest.mark.parametrize(
    ("texts", "source", "says"),
    [
        ({}, "missing", ["missing", "'stdlib'", "a text file"]),
        ({}, "", ["must hold text", ".txt"]),
        ({"a.bin": "text"}, "", ["must hold text", ".txt"]),
        ({"a.txt": ""}, "a.txt", ["a.txt", "must hold text"]),
        ({"a.txt": ""}, "", ["must hold text"]),
        ({"a.txt": b"ab\xffcd"}, "a.txt", ["a.txt", "0xff at position 2", "UTF-8"]),
        ({"s/a.py": b"ab\xc3"}, "", ["s/a.py", "0xc3 at position 2", "UTF-8"]),
        ({"a.txt": b"abc\0d"}, "a.txt", ["a.txt", "0x00 at position 3", "NUL"]),
        ({"a.txt": b"a\0b\xff"}, "a.txt", ["0x00 at position 1"]),
        ({"a.txt": b"a\xffb\0"}, "a.txt", ["0xff at position 1"]),
        ({"a.txt": "x" * 4096}, "a.txt", ["a.txt", "4096", "4097"]),
        ({"config.json": "{}", "metrics.jsonl": "{}"}, "", ["must be text, got the folder of a run"]),
        ({"config.json": "{}", "sweep.json": "{}"}, "", ["must be text, got the folder of a run"]),
        ({"config.json": "{}", "checkpoints/1/a": "{}", "a.txt": "x"}, "", ["must be text, got the folder of a run"]),
    ],
)
def test_wrong_sources(tmp_path, texts, source, says):
    write(tmp_path, texts)
    with pytest.raises(InputError) as error:
        load_corpus(str(tmp_path / source))
    assert [part for part in says if part not in one_line(error)] == []


def test_an_empty_source_is_not_the_current_folder():
    with pytest.raises(InputError, match="''"):
        load_corpus("")


def test_what_cannot_be_read_is_not_left_out(tmp_path, monkeypatch):
    write(tmp_path, {"a.txt": "x" * 5000})
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"cannot read .*gone\.txt: No such file"):
        load_corpus(str(tmp_path))
    (tmp_path / "gone.txt").unlink()

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(InputError, match=r"cannot read .*: Permission denied"):
        load_corpus(str(tmp_path))


# --- training batches


def test_an_epoch_is_every_window_once_in_an_order_that_is_new_each_time():
    both = names(2 * WINDOWS)
    first, second = both[:WINDOWS], both[WINDOWS:]
    assert sorted(first) == sorted(second) == list(range(WINDOWS))
    in_place = [
        sum(a == b for a, b in zip(order, other, strict=True))
        for order, other in [(first, range(WINDOWS)), (second, range(WINDOWS)), (first, second)]
    ]
    assert max(in_place) < 10  # of 100; a random order has about 1


def test_a_window_is_whole_and_the_rest_of_the_text_is_left():
    tokens = np.arange(10 * (LENGTH + 1) + 5)
    windows = rows(10, tokens=tokens)
    assert windows.dtype == np.int32 and windows.shape == (10, LENGTH + 1)
    assert (windows[:, 1:] == windows[:, :-1] + 1).all()
    assert sorted(windows[:, 0].tolist()) == list(range(0, 10 * (LENGTH + 1), LENGTH + 1))


def test_the_order_is_that_of_earlier_releases():
    # A resumed stage, and one shared by its address, count on it: a grain that shuffles otherwise must show.
    assert names(10) == [87, 61, 50, 7, 70, 72, 24, 52, 93, 51]
    assert names(10, seed=1, start=WINDOWS) == [68, 21, 18, 85, 66, 97, 53, 13, 40, 96]


@pytest.fixture(scope="module")
def through():
    """A run over 14 epochs without a restart."""
    return rows(1400, batch=5)


@pytest.mark.parametrize("batch", [1, 4, 7, 20])
@pytest.mark.parametrize("start", [0, 3, 95, 100, 1234])
def test_a_restart_is_exact_at_any_example_and_any_batch_size(through, start, batch):
    resumed = rows(140, batch=batch, start=start)
    assert np.array_equal(resumed, through[start : start + 140])


def test_seeds_give_different_orders_in_all_epochs():
    orders = [tuple(names(WINDOWS, seed=seed, start=epoch * WINDOWS)) for seed in range(4) for epoch in range(4)]
    assert len(set(orders)) == 16


def test_another_length_reads_its_own_windows():
    tokens = np.arange(1000)
    windows = rows(50, tokens=tokens, length=19)
    assert sorted(windows[:, 0].tolist()) == list(range(0, 1000, 20))


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_the_shards_of_a_batch_are_the_batch(processes):
    whole = batches(TOKENS, seed=0, batch=6, length=LENGTH, start=7)
    parts = [
        batches(TOKENS, seed=0, batch=6, length=LENGTH, start=7, shard=(process, processes))
        for process in range(processes)
    ]
    for _ in range(40):
        assert np.array_equal(next(whole), np.concatenate([next(part) for part in parts]))


def test_one_window_is_enough():
    assert names(20, tokens=TOKENS[: LENGTH + 1]) == [0] * 20


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"length": 900}, ["901", "900"]),
        ({"length": 0}, ["length must be >= 1"]),
        ({"batch": 0}, ["batch must be >= 1"]),
        ({"seed": -1}, ["seed must be >= 0"]),
        ({"start": -5}, ["start", "-5"]),
        ({"shard": (0, 2)}, ["multiple of 2 processes, got 5"]),
        ({"shard": (5, 5)}, ["<= 4", "got 5"]),
        ({"shard": (0, 0)}, ["processes must be >= 1"]),
    ],
)
def test_wrong_batches(options, says):
    with pytest.raises(InputError) as error:
        batches(TOKENS, **({"seed": 0, "batch": 5, "length": LENGTH, "start": 0} | options))
    assert [part for part in says if part not in one_line(error)] == []


def prefetch_threads():
    return {thread for thread in threading.enumerate() if "grain" in thread.name}


def test_the_background_thread_ends_with_its_stream():
    others = prefetch_threads()
    stream = batches(TOKENS, seed=0, batch=5, length=LENGTH, start=0)
    next(stream)
    (thread,) = prefetch_threads() - others
    del stream
    gc.collect()
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_an_unfinished_stream_does_not_hold_up_the_exit():
    code = (
        "import numpy as np; from growlm.data import batches\n"
        "stream = batches(np.zeros(10**6, np.uint8), seed=0, batch=64, length=128, start=0)\n"
        "print(next(stream).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "(64, 129)\n" and "Traceback" not in done.stderr


# --- validation batches


def test_validation_is_the_same_distinct_windows_spread_evenly():
    first = validation_batches(TOKENS, batch=4, length=LENGTH, count=5)
    assert first.shape == (5, 4, LENGTH + 1) and first.dtype == np.int32
    assert first[:, :, 0].ravel().tolist() == list(range(0, WINDOWS, 5))
    assert np.array_equal(first, validation_batches(TOKENS, batch=4, length=LENGTH, count=5))


@pytest.mark.parametrize(("batch", "count"), [(7, 1000), (100, 2), (51, 2), (33, 3)])
def test_validation_takes_no_window_twice(batch, count):
    found = validation_batches(TOKENS, batch=batch, length=LENGTH, count=count)
    assert len(found) == min(count, WINDOWS // batch)
    assert len(np.unique(found[:, :, 0])) == len(found) * batch


def test_the_shards_of_validation_are_validation():
    whole = validation_batches(TOKENS, batch=6, length=LENGTH, count=5)
    parts = [validation_batches(TOKENS, batch=6, length=LENGTH, count=5, shard=(i, 3)) for i in range(3)]
    assert np.array_equal(whole, np.concatenate(parts, axis=1))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch": 101}, ["101 x 9 = 909", "900"]),
        ({"batch": 1, "length": 900}, ["901", "900"]),
        ({"count": 0}, ["count must be >= 1"]),
        ({"shard": (1, 3)}, ["multiple of 3 processes, got 4"]),
    ],
)
def test_wrong_validation(options, says):
    with pytest.raises(InputError) as error:
        validation_batches(TOKENS, **({"batch": 4, "length": LENGTH, "count": 5} | options))
    assert [part for part in says if part not in one_line(error)] == []
