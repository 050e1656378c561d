"""Inputs that want to break their reader, made at random of good ones, with a seed: see `hostile`.

Each is refused in one line or read for what it is. Nothing hangs, grows beyond four times the files' size, leaves its
folder, or runs what a file names.
"""

import contextlib
import dataclasses
import gzip
import json
import os
import pickle
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import hostile
import jax
import numpy as np
import pytest
import test_chat
import tiny
from hostile import watched
from trees import noisy

import growlm
from growlm.checked import DamagedError
from growlm.commands.grow_checkpoint import plan_undone
from growlm.data import load_corpus, load_tokenizer
from growlm.data.documents import Reading
from growlm.data.filters import Filter
from growlm.data.prepare import Request, finished, planned_rule, prepare, read_request, recorded, verify
from growlm.data.sources import list_parts
from growlm.errors import InputError
from growlm.formats.folder import open_folder
from growlm.formats.layout import model_of, settings_of
from growlm.hub import local_folder, pinned
from growlm.models import check_params
from growlm.report.records import read
from growlm.report.report import compared
from growlm.training.config import build_run
from growlm.training.run import train
from growlm.training.saved import find_saved
from growlm.training.sweep import plan_sweep, run_sweep
from growlm.training.variants import build_sweep

SEED = 2
MODEL = growlm.ModelConfig(layers=1, embed=8, heads=2, kv_heads=1, head_dim=4, mlp=8, vocab=16)
TEXT = "Over 7 lazy dogs;\n  two  spaces, ünïcode 漢字 <|endoftext|> and </s>"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LINES = [{"text": f"document {n} of ünïcode", "meta": {"source": "web", "n": n}} for n in range(40)]


# --- Good inputs, each in a folder of its own ---


def make_model(folder):
    growlm.write_model(folder, MODEL, noisy(MODEL))
    (folder / "checksums.json").unlink()
    (folder / "evil.py").write_text("import pathlib\npathlib.Path('executed').touch()\nclass Evil: pass\n")


def make_shards(folder):
    growlm.write_model(folder, MODEL, noisy(MODEL), shard=600)
    (folder / "checksums.json").unlink()


def make_export(folder):
    """With its checksums."""
    growlm.write_model(folder, MODEL, noisy(MODEL))


def make_tokenizer(folder):
    library = pytest.importorskip("tokenizers")
    bpe = library.ByteLevelBPETokenizer()
    bpe.train_from_iterator([TEXT] * 9, vocab_size=270, special_tokens=["<|endoftext|>"], show_progress=False)
    folder.mkdir()
    bpe.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>", "bos_token": None}))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|endoftext|>"}}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0]}))
    (folder / "chat_template.jinja").write_text(hostile.TEMPLATE)


def make_two_files(folder):
    library = pytest.importorskip("tokenizers")
    bpe = library.ByteLevelBPETokenizer()
    bpe.train_from_iterator([TEXT] * 9, vocab_size=270, special_tokens=["<|endoftext|>"], show_progress=False)
    folder.mkdir()
    bpe.save_model(str(folder))


def make_sentencepiece(folder):
    library = pytest.importorskip("sentencepiece")
    folder.mkdir()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 9),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=300,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()


def make_chat(folder):
    folder.mkdir()
    test_chat.write(folder / "talk.jsonl", test_chat.records(30))


def make_lines(folder):
    folder.mkdir()
    (folder / "lines.jsonl").write_text("\n".join(map(json.dumps, LINES)))


def make_gz(folder):
    folder.mkdir()
    (folder / "lines.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, LINES)).encode(), mtime=0))


def make_zst(folder):
    from growlm.data.textfiles import _zstd

    folder.mkdir()
    content = "\n".join(map(json.dumps, LINES)).encode()
    library = _zstd()
    pack = library.compress if hasattr(library, "compress") else library.ZstdCompressor().compress
    (folder / "lines.jsonl.zst").write_bytes(pack(content))


def make_parquet(folder):
    arrow, library = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder.mkdir()
    library.write_table(arrow.Table.from_pylist(LINES), folder / "rows.parquet", row_group_size=16)
    talk = [record for record in test_chat.records(30) if "messages" in record]
    library.write_table(arrow.Table.from_pylist(talk), folder / "talk.parquet", compression="zstd")


def make_prepared(folder):
    make_lines(folder.with_name("text"))
    prepare(Request((str(folder.with_name("text") / "lines.jsonl"),), folder, tokenizer="bytes", workers=1))


def make_unfinished(folder):
    """As a kill leaves it: plan, tokenizer and records of parts."""
    make_prepared(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").unlink()
    plan = {key: manifest[key] for key in ("format", "settings", "rule")}
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "parts").mkdir()
    (folder / "parts" / "00000.json").write_text(json.dumps({"shards": manifest["shards"]}))


def make_tokenized(folder):
    """As datatrove writes it."""
    make_tokenizer(folder)
    tokenizer, tokens, ends = load_tokenizer(folder), [], []
    for line in LINES:
        tokens += [*tokenizer.encode(line["text"]), tokenizer.eos]
        ends.append(len(tokens))
    (folder / "some.ds").write_bytes(np.asarray(tokens, "<u2").tobytes())
    (folder / "some.ds.index").write_bytes(np.asarray(ends, "<u8").tobytes())
    (folder / "some.ds.metadata").write_text("tokenizer.json|2\n")


def make_cache(folder):
    """A repository in the hub's cache: blobs, links to them, and a reference to the commit."""
    make_tokenizer(folder.with_name("tokenizer"))
    growlm.write_model(
        folder.with_name("source"), MODEL, noisy(MODEL), carried=[*folder.with_name("tokenizer").glob("*token*.json")]
    )
    home = folder / "models--some--model"
    snapshot = home / "snapshots" / COMMIT
    for part in (snapshot, home / "blobs", home / "refs"):
        part.mkdir(parents=True)
    (home / "refs" / "main").write_text(COMMIT)
    for path in folder.with_name("source").iterdir():
        if path.name != "checksums.json":
            (home / "blobs" / f"blob-{path.name}").write_bytes(path.read_bytes())
            (snapshot / path.name).symlink_to(Path("..", "..", "blobs", f"blob-{path.name}"))


def make_run(folder):
    corpus = tiny.write_corpus(folder.parent)
    run = tiny.run_config(corpus, tiny.stage(2), tiny.grown(2))
    train(run, folder)


def make_sweep(folder):
    corpus = tiny.write_corpus(folder.parent)
    runs = {"base": [tiny.stage(3, 2)], "grown": [tiny.stage(1), tiny.grown(2)]}
    plan = plan_sweep(tiny.sweep_config(corpus, runs, "base", grown=["grown"]))
    run_sweep(plan, folder, threading.Event(), "growlm sweep", ["base", "grown"])


def make_grown(folder):
    from growlm.__main__ import main

    make_run(folder.with_name("run"))
    assert main(["grow", f"--source={folder.with_name('run')}", f"--output={folder}", "--target.layers=4"]) == 0


def make_config(folder):
    """What experiment files return, as JSON."""
    folder.mkdir()
    corpus = tiny.write_corpus(folder.parent)
    growth = {"operator": "direct", "options": {"order": "stack"}, "optimizer_state": "map"}
    run = tiny.run(corpus, tiny.stage(2), tiny.grown(2, growth=growth), checkpoint={"every_tokens": 64}, seed=3)
    (folder / "run.json").write_text(json.dumps(run))
    runs = {"base": [tiny.stage(3, 2)], "grown": [tiny.stage(1), tiny.grown(2)]}
    sweep = tiny.sweep(corpus, runs, "base", grown=["grown"], seeds=[0, 1], controls={})
    (folder / "sweep.json").write_text(json.dumps(sweep))


# --- What reads them ---


def read_model(folder):
    config, params = growlm.read_model(folder)
    check_params(config, params)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
    deeper, source = dataclasses.replace(config, layers=config.layers + 1), open_folder(folder)
    assert model_of(json.loads(json.dumps(settings_of(deeper, source.settings)))) == deeper


def read_tokenizer(folder):
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode(TEXT)
    assert all(0 <= one < tokenizer.vocab for one in ids) and isinstance(tokenizer.decode(ids), str)
    assert 0 <= tokenizer.eos < tokenizer.vocab


def read_documents(**options) -> Callable:
    def of(folder):
        reading = Reading(**options)
        for part in list_parts([str(folder)], "train"):
            for document in part.documents(reading):
                assert all(isinstance(piece, str) for piece in document.pieces)

    return of


def read_talk(folder):
    for path in folder.glob("talk*"):
        read_documents(chat=True)(path)


def read_rows(folder):
    read_documents(filters=(Filter.of("meta.source=web"),))(folder / "rows.parquet")


def read_prepared(folder):
    load_corpus(str(folder)).train[:100].sum()


def go_on(folder):
    """What prepare reads of a folder that a kill has left, before it goes on."""
    work = read_request(Request((str(folder.with_name("text") / "lines.jsonl"),), folder, tokenizer="bytes"))
    assert finished(work) is None
    if planned_rule(work):
        recorded(folder)


def read_tokenized(folder):
    corpus = load_corpus(str(folder))
    assert len(corpus.train[:]) and len(corpus.validation[:])


def read_snapshot(folder):
    snapshot = folder / "models--some--model" / "snapshots" / COMMIT
    read_model(snapshot)
    assert pinned(snapshot) == f"hf:some/model@{COMMIT}"


def read_by_name(folder):
    constants = {"HF_HUB_OFFLINE": True, "HF_HUB_CACHE": str(folder), "HF_TOKEN_PATH": str(folder / "token")}
    with mock.patch.multiple("huggingface_hub.constants", **constants), hostile.unwatched():
        place = local_folder("hf:some/model")
    assert place.resolve().is_relative_to(folder.resolve())
    growlm.read_config(place)


def read_config(folder):
    build_run(json.loads((folder / "run.json").read_text()))


def read_sweep_config(folder):
    build_sweep(json.loads((folder / "sweep.json").read_text()))


def parsed(reader):
    """Of a config, which is a Python value: whether the JSON of a test's file is any is not the question."""

    def of(folder):
        try:
            value = [json.loads(path.read_text()) for path in folder.iterdir()]
        except (ValueError, RecursionError):
            return
        if all(isinstance(one, dict) for one in value):
            reader(folder)

    return of


@dataclasses.dataclass(frozen=True)
class Kind:
    """A good input, what reads it, and how many cases make 10,000 of all kinds.

    touch: the names of the files that are altered.
    """

    make: Callable[[Path], None]
    readers: tuple[Callable[[Path], object], ...]
    cases: int
    touch: str = "*"


KINDS = {
    "model": Kind(make_model, (read_model,), 1500, "*[!y]"),
    "shards": Kind(make_shards, (read_model,), 800),
    "export": Kind(make_export, (read_model,), 300),
    "tokenizer": Kind(make_tokenizer, (read_tokenizer,), 800),
    "two files": Kind(make_two_files, (read_tokenizer,), 300),
    "sentencepiece": Kind(make_sentencepiece, (read_tokenizer,), 500),
    "chat": Kind(make_chat, (read_talk,), 700),
    "lines": Kind(make_lines, (read_documents(), read_documents(errors="replace")), 500),
    "gz": Kind(make_gz, (read_documents(),), 500),
    "zst": Kind(make_zst, (read_documents(),), 500),
    "parquet": Kind(make_parquet, (read_rows, read_talk), 1200),
    "prepared": Kind(make_prepared, (verify, read_prepared), 700),
    "unfinished": Kind(make_unfinished, (go_on,), 300),
    "tokenized": Kind(make_tokenized, (read_tokenized,), 500, "*.ds*"),
    "snapshot": Kind(make_cache, (read_snapshot,), 500),
    "by name": Kind(make_cache, (read_by_name,), 200),
    "run": Kind(make_run, (read, find_saved), 200, "*.json*"),
    "sweep": Kind(make_sweep, (compared,), 600, "*.json*"),
    "grown": Kind(make_grown, (find_saved, plan_undone), 400, "*.json*"),
    "config": Kind(make_config, (parsed(read_config), parsed(read_sweep_config)), 1000),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Makes a good input of a kind, once, in a folder of its own: its path."""
    folders = {}

    def make(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp("hostile") / "in" / "good"
            folders[name].parent.mkdir()
            KINDS[name].make(folders[name])
        return folders[name]

    return make


def replaced(folder: Path, path: Path, draw: random.Random) -> None:
    """In place of a file or a link: a link, a folder, a pipe."""
    path.unlink()
    outside = folder.parents[1] / "outside"
    outside.write_text("{}")
    inward = (path.name, "..", "../../blobs/nothing", "")
    target = draw.choice(("/etc/passwd", "/dev/zero", str(outside), "../../../../outside", *inward))
    if target:
        path.symlink_to(target)
    elif draw.randrange(2):
        path.mkdir()
    else:
        os.mkfifo(path)


def cases_of(name: str, kind: Kind, folder: Path, cases: int) -> Iterator[str]:
    """Alter a file of the folder, so many times, and make it good again after each: what was altered, in words."""
    draw = random.Random(f"{SEED} {name}")
    files = sorted(path for path in folder.rglob(kind.touch) if path.is_file() and not path.name.startswith("."))
    whole = folder.with_name("whole")
    if not whole.exists():
        shutil.copytree(folder, whole, symlinks=True)
    for case in range(cases):
        path = draw.choice(files)
        if path.is_symlink() and draw.randrange(3) == 0:
            replaced(folder, path, draw)
        else:
            hostile.put(path, draw.choice(hostile.mutations_of(path.name))(path.read_bytes(), draw))
        yield f"case {case} of {name!r}, seed {SEED}: {path.relative_to(folder)}"
        made_good(path, whole / path.relative_to(folder))


def made_good(path: Path, whole: Path) -> None:
    """Make a file, or a link and the file that it leads to, what it was."""
    link = whole.is_symlink() and whole.readlink()
    if path.is_symlink() != whole.is_symlink() or not path.is_file() or (link and path.readlink() != link):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if link:
            path.symlink_to(link)
    hostile.put(path, whole.read_bytes())


def attack(name: str, kind: Kind, folder: Path, cases: int) -> None:
    """Read each of the cases under watch."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    for reader in kind.readers:
        reader(folder)
    hostile.forget_memory()
    for said in cases_of(name, kind, folder, cases):
        try:
            for reader in kind.readers:
                with watched(folder.parent, 4 * size + hostile.BYTES):
                    reader(folder)
        except BaseException as error:
            error.add_note(said)
            raise


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_what_wants_to_break_its_reader_does_not(made, name):
    attack(name, KINDS[name], made(name), KINDS[name].cases)


def test_there_are_ten_thousand():
    assert sum(kind.cases for kind in KINDS.values()) >= 10_000


@pytest.mark.parametrize("name", ["model", "tokenizer", "chat", "config"])
def test_some_of_it_with_every_change(made, name):
    attack(name, KINDS[name], made(name), 60)


# What the fuzzer found: a file, what was in it, and what is said of it now.
FOUND = {
    "no content": ("tokenizer", "tokenizer_config.json", {"eos_token": {"no": 1}, "bos_token": None}, None),
    "a number": ("tokenizer", "tokenizer_config.json", {"eos_token": 1.5}, "must be a token's text or number, got 1.5"),
    "half a pair": ("tokenizer", "tokenizer_config.json", {"eos_token": "\ud800"}, "half of a surrogate pair"),
    "a plan": ("unfinished", "plan.json", {"rule": {"below": 3}}, "must be what growlm prepare wrote"),
    "a rule": ("unfinished", "plan.json", {"rule": {"unit": "word", "below": 3}}, "unit must be one of chunk"),
    "a part": ("unfinished", "parts/00000.json", {"shards": None}, "must be what growlm prepare wrote"),
    "a row": ("unfinished", "parts/00000.json", {"shards": [{"name": "../a"}]}, "must be what growlm prepare wrote"),
    "a split": ("prepared", "manifest.json", {"splits": {"other": {}}}, None),
    "a name": ("tokenized", "some.ds.metadata", b"\xee|2\n", "must be UTF-8"),
    "a long name": ("tokenized", "some.ds.metadata", b"[" * 10**5, "must be TOKENIZER|2 or TOKENIZER|4"),
    "no end": ("tokenized", "some.ds.index", np.arange(1, 9, dtype="<u8"), "of 8 tokens"),
    "an end": ("tokenized", "some.ds.index", lambda ends: [2**40, *ends[1:]], "the end of a document in"),
    "a border": ("tokenized", "some.ds.index", lambda ends: [*ends[:-2], 3, ends[-1]], "must be its tokenizer's EOS"),
    "a line": ("lines", "lines.jsonl", b'{"a\\nb": 1}', r"its fields are a\\nb"),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_is_one_line(made, name):
    which, file, value, said = FOUND[name]
    kind, folder = KINDS[which], made(which)
    path, content = folder / file, (folder / file).read_bytes()
    if isinstance(value, dict):
        before = {key: item for key, item in json.loads(content).items() if key != "crc32"}
        merged = {key: before[key] | item if key == "splits" else item for key, item in value.items()}
        value = json.dumps(before | merged).encode()
    elif callable(value):
        value = np.asarray(value(np.frombuffer(content, "<u8").tolist()), "<u8").tobytes()
    hostile.put(path, value if isinstance(value, bytes) else value.tobytes())
    try:
        with pytest.raises(InputError, match=said) if said else contextlib.nullcontext():
            for reader in kind.readers:
                reader(folder)
    finally:
        hostile.put(path, content)


def test_a_message_is_one_line_that_can_be_printed_whatever_it_quotes():
    assert str(InputError("a\nb\x1b[2J\udcffé\u2028")) == "a\\nb\\x1b[2J\\udcffé\\u2028"
    assert str(InputError("a" * 5000)) == "a" * 2000 + " ..."
    assert str(pickle.loads(pickle.dumps(DamagedError("a\\nb")))) == "a\\nb"  # as it comes from a worker


def test_a_config_that_leads_out_of_its_folder_is_not_even_looked_at(tmp_path):
    (tmp_path / "else.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").symlink_to(tmp_path / "else.json")
    with pytest.raises(InputError, match="leads out of its folder"):
        growlm.read_config(tmp_path / "model")


def test_the_watch_sees_what_it_is_for(tmp_path):
    """A watch that sees nothing would pass everything."""
    for wrong, said in (
        (lambda: os.system("true"), "os.system"),
        (lambda: exec(compile("1", "evil.py", "exec")), "evil.py"),
        (lambda: Path("/etc/passwd").read_bytes(), "/etc/passwd"),
        (lambda: b"a" * 2**28, "bytes of memory"),
        (lambda: json.loads("{"), "Expecting property name"),
    ):
        hostile.forget_memory()
        with pytest.raises((AssertionError, ValueError), match=said), watched(tmp_path, 2**27):
            wrong()
