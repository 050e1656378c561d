"""Text to prepare, and readings of what came of it."""

import gzip
import json
from pathlib import Path

import numpy as np

from growlm.__main__ import main
from growlm.data import Request, load_tokenizer, prepare
from growlm.data.documents import Reading
from growlm.data.sources import list_parts

TEXTS = [f"document {i}: " + " ".join(f"word{i * j % 97}" for j in range(1 + i % 40)) for i in range(400)]


def write_sources(folder: Path) -> Path:
    """TEXTS as files of every kind, in the order of their names: 100 each of .txt, .jsonl, .jsonl.gz and .txt."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, text in enumerate(TEXTS[:100]):
        (folder / f"a{i:03}.txt").write_text(text)
    (folder / "b.jsonl").write_text("".join(json.dumps({"id": 1, "text": text}) + "\n" for text in TEXTS[100:200]))
    packed = "\n\n".join(json.dumps({"text": text}) for text in TEXTS[200:300])
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(packed.encode()))
    for i, text in enumerate(TEXTS[300:]):
        (folder / f"d{i:03}.txt").write_text(text)
    return folder


def request(source, output: Path, **options) -> Request:
    options = {"tokenizer": "bytes", "workers": 1} | options
    return Request((str(source),), output, **options)


def prepared(source, output: Path, **options) -> Path:
    """The folder that `prepare` wrote."""
    prepare(request(source, output, **options))
    return output


def tokens(folder: Path, split: str) -> np.ndarray:
    """All tokens of a split, read without growlm."""
    manifest = json.loads((folder / "manifest.json").read_text())
    rows = [row for row in manifest["shards"] if row["split"] == split]
    return np.concatenate([np.fromfile(folder / f"{row['name']}.bin", manifest["dtype"]) for row in rows])


def documents(folder: Path, split: str) -> list[str]:
    """The texts of a split, between its EOS."""
    manifest, tokenizer = json.loads((folder / "manifest.json").read_text()), load_tokenizer(folder)
    found = tokens(folder, split)
    ends = np.flatnonzero(found == manifest["tokenizer"]["eos"])
    assert ends[-1] == len(found) - 1
    return [tokenizer.decode(part[part != tokenizer.eos]) for part in np.split(found, ends + 1)[:-1]]


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in (".bin", ".idx")}


def small_parts(monkeypatch, size=4000):
    """Sources in parts of a few files or lines, as those of real size are in larger ones."""
    monkeypatch.setattr("growlm.data.textfiles.SMALLEST_PART", size)


def read(source, **options):
    """All texts that a source holds."""
    reading = Reading(**options)
    parts = list_parts([str(source)], "train")
    return ["".join(document.pieces) for part in parts for document in part.documents(reading)]


def failed(capsys, *arguments):
    """The one line of a command that is refused."""
    assert main(["prepare", *map(str, arguments)]) == 2
    lines = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.startswith("growlm: ")]
    assert len(lines) == 1
    return lines[0]
