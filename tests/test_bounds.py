"""What has no end, or asks for more than there is, is refused in a line before it is read or counted to."""

import gzip
import json
import os
import re

import pytest
import tiny

from growlm import ModelConfig, read_model
from growlm.__main__ import main
from growlm.checked import parse_json
from growlm.commands.evaluate import read_text
from growlm.data import load_corpus, load_tokenizer, textfiles
from growlm.data.documents import Reading
from growlm.data.sources import list_parts
from growlm.errors import InputError
from growlm.formats.safetensors import MAX_HEADER, stored_tensors

PLACES = {
    "config.json": read_model,
    "tokenizer.json": load_tokenizer,
    "text.txt": lambda folder: load_corpus(str(folder)),
    "read.txt": lambda folder: read_text(folder / "read.txt"),
}


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "zeros"])
def test_a_pipe_or_a_device_is_refused_and_not_waited_for(tmp_path, name, make):
    make(tmp_path / name)
    with pytest.raises(InputError) as refused:
        PLACES[name](tmp_path)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    "change",
    [{"layers": 10**9}, {"heads": 2**31}, {"mlp": 10**9}, {"vocab": 10**400}, {"norm_eps": 1e308}, {"norm_eps": 2.0}],
    ids=lambda change: "-".join(change),
)
def test_a_size_that_is_a_slip_is_refused(change):
    with pytest.raises(InputError, match=f"model.{next(iter(change))} must be"):
        ModelConfig(**tiny.MODEL | {"heads": 2, "kv_heads": 1} | change)


TEXTS = {
    "brackets": "[" * 10**5,
    "half a pair": '{"a": "\\ud800"}',
    "digits": '{"a": %s}' % ("1" * 400),
    "bytes": "\xff",
}


@pytest.mark.parametrize("name", TEXTS)
def test_json_that_cannot_be_meant_is_one_line(tmp_path, name):
    (tmp_path / "config.json").write_bytes(TEXTS[name].encode("latin1"))
    with pytest.raises(InputError, match=r"config\.json") as refused:
        read_model(tmp_path)
    assert len(str(refused.value)) < 300


def test_a_line_without_end_is_refused_where_it_is_too_long(tmp_path, monkeypatch):
    for module in ("growlm.checked", "growlm.data.textfiles"):
        monkeypatch.setattr(f"{module}.MAX_JSON", 10_000)
    path = tmp_path / "long.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write(json.dumps({"text": "a"}) + "\n" + json.dumps({"text": "b" * 10**7}))
    (part,) = list_parts([str(path)], "train")
    documents = part.documents(Reading())
    next(documents)
    with pytest.raises(InputError, match=r"line 2 of .* more than 10,000 bytes"):
        next(documents)
    assert textfiles.MAX_JSON == 10_000


@pytest.mark.parametrize("unit", ["[],", '{"a":0},', "0,", '"\\\\","\\"[,",', '"",[{}],'])
def test_json_of_more_values_than_it_has_memory_for_is_refused_unread(monkeypatch, unit):
    text = f"[{unit * (2**18 // len(unit))}0]"
    assert len(parse_json(text.encode())) > 2**14
    monkeypatch.setattr("growlm.checked.MAX_VALUES", 100)
    monkeypatch.setattr("growlm.checked.PIECE_BYTES", 1000)  # quotes lie across them
    for encoding in ("utf-8", "utf-16"):
        with pytest.raises(ValueError, match=r"more than 16,\d+ values"):
            parse_json(text.encode(encoding))


def test_marks_in_a_text_are_no_values(monkeypatch):
    monkeypatch.setattr("growlm.checked.MAX_VALUES", 100)
    monkeypatch.setattr("growlm.checked.PIECE_BYTES", 1000)
    value = {"text": 'a "quoted", [list]\\' * 10_000, "日": ["{[,", "\\"] * 30}
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        assert parse_json(text) == parse_json(text.encode()) == value


def test_a_header_of_a_million_tensors_is_not_read(tmp_path):
    (tmp_path / "model.safetensors").write_bytes((2 * MAX_HEADER).to_bytes(8, "little") + b" " * 2 * MAX_HEADER)
    with pytest.raises(InputError, match="header must have at most"):
        stored_tensors(tmp_path, re.compile("none"))


def test_a_folder_whose_name_is_no_utf8_is_one_line(capsys):
    assert main(["train", "--config=growlm:quickstart", "--workdir=runs/\udcff"]) == 2
    assert "--workdir must be a text in UTF-8" in capsys.readouterr().err
