"""Checksums: what was written is checked when it is read, damage is named, and an older whole checkpoint is used."""

import json
import random
import shutil
import threading
import zlib

import pytest
import tensorstore as ts
import tiny
from oracle import noisy

import growlm
from growlm.__main__ import main
from growlm.checked import CHECKSUMS, DamagedError, write_checksums
from growlm.commands.convert import convert_folder
from growlm.errors import InputError
from growlm.report.records import read
from growlm.training import checkpoint, saved
from growlm.training.checkpoint import check_whole
from growlm.training.run import train
from growlm.training.saved import read_model

STEPS = 8


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A config and a whole run of it, in two stages with checkpoints at 4, 8 and 12, 16."""
    folder = tmp_path_factory.mktemp("checksums")
    every = {"checkpoint": {"every_tokens": 4 * tiny.STEP, "max_to_keep": 2}}
    config = tiny.run_config(tiny.write_corpus(folder), tiny.stage(STEPS), tiny.grown(STEPS), **every)
    train(config, folder / "whole")
    return config, folder / "whole"


def flip(path, place=None):
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    place = len(content) // 2 if place is None else place
    content[place] ^= 4
    path.write_bytes(content)


def data_of(checkpoint):
    """The files of a checkpoint with checksums, in order."""
    beside = (CHECKSUMS, "commit_success.txt")  # orbax's mark, whose content says nothing
    return sorted(path for path in (checkpoint / "default").rglob("*") if path.is_file() and path.name not in beside)


def test_a_flipped_bit_anywhere_in_a_checkpoint_is_found_and_its_file_named(runs, tmp_path):
    _, whole = runs
    folder = shutil.copytree(whole, tmp_path / "run")
    checkpoint = tiny.checkpoints(folder)[STEPS, 2 * STEPS]
    check_whole(checkpoint.parent, 2 * STEPS)
    draw = random.Random(0)
    for path in [*data_of(checkpoint), checkpoint / "default" / CHECKSUMS]:
        content = path.read_bytes()
        for _ in range(5):
            flip(path, draw.randrange(len(content)))
            if path.name != CHECKSUMS:  # there a blank may become another
                with pytest.raises(DamagedError, match=f"{path.name} is damaged"):
                    check_whole(checkpoint.parent, 2 * STEPS)
            path.write_bytes(content)
        path.write_bytes(content[:-2])
        with pytest.raises(DamagedError, match=f"{path.name} is damaged"):
            check_whole(checkpoint.parent, 2 * STEPS)
        path.write_bytes(content)
    flip(data_of(checkpoint)[-1])
    with pytest.raises(DamagedError) as refused:
        read_model(folder)
    assert len(str(refused.value).splitlines()) == 1 and "must have" in str(refused.value)


def test_a_chunk_that_is_larger_than_its_array_is_not_unpacked(runs, tmp_path):
    """A chunk is unpacked whole: 32 kB of zeros, packed, took 1 GiB."""
    folder = shutil.copytree(runs[1], tmp_path / "run")
    written = tiny.checkpoints(folder)[STEPS, 2 * STEPS] / "default"
    stored = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{written}/"}).result()
    metadata = json.loads(stored.read("params.embedding/.zarray").result().value)
    metadata |= {"chunks": [2**16, 16], "compressor": {"id": "zlib", "level": 1}}
    stored.write("params.embedding/.zarray", json.dumps(metadata).encode()).result()
    stored.write("params.embedding/0.0", zlib.compress(bytes(2**16 * 16 * 4))).result()
    write_checksums(written)
    with pytest.raises(InputError, match=r"a chunk of params/embedding of checkpoint .* got \(65536, 16\)"):
        saved.read_state(saved.find_saved(folder))


@pytest.mark.slow
@pytest.mark.parametrize("damaged", [[16], [12, 16], [8, 12, 16]])
def test_an_older_whole_checkpoint_is_used_and_said_and_the_run_ends_with_the_same_bits(
    runs, tmp_path, capsys, monkeypatch, damaged
):
    (config, whole), checked = runs, []

    def counted(folder, step):
        checked.append(step)
        check_whole(folder, step)

    monkeypatch.setattr("growlm.training.checkpoint.check_whole", counted)
    folder = shutil.copytree(whole, tmp_path / "run")
    for path in folder.glob("checkpoints/*/checkpoints/*"):
        if int(path.name) in damaged:
            flip(max(data_of(path), key=lambda file: file.stat().st_size))
    train(config, folder)
    said = capsys.readouterr().err
    assert checked.count(damaged[0] - 4) == 1  # all of its bytes are read for it
    assert f"the checkpoint of step {damaged[-1]} is left out" in said
    assert f"goes on from step {damaged[0] - 4}" in said or damaged == [12, 16]
    assert tiny.timeless(folder) == tiny.timeless(whole)
    have, want = tiny.checkpoints(folder), tiny.checkpoints(whole)
    for stage, path in want.items():
        check_whole(path.parent, stage[1])
        tiny.assert_same_arrays(tiny.read_checkpoint(have[stage]), tiny.read_checkpoint(path))


def test_where_no_checkpoint_is_whole_nothing_is_begun_anew(runs, tmp_path):
    config, whole = runs
    folder = shutil.copytree(whole, tmp_path / "run")
    for path in folder.glob("checkpoints/*/checkpoints/*"):
        flip(max(data_of(path), key=lambda file: file.stat().st_size))
    before = tiny.snapshot(folder)
    with pytest.raises(DamagedError, match="no older one is whole"):
        train(config, folder, threading.Event())
    after = tiny.snapshot(folder)
    assert {name: content for name, content in after.items() if "/checkpoints/" in name} == {
        name: content for name, content in before.items() if "/checkpoints/" in name
    }


def records_of(folder):
    """The files of records of the stages, in order."""
    return list(
        dict.fromkeys(path.parents[1] / "metrics.jsonl" for _, path in sorted(tiny.checkpoints(folder).items()))
    )


LOSSES = {
    "gone": lambda path: path.unlink(),
    "half": lambda path: path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3])),
    "flipped": lambda path: flip(path),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_records_that_a_stage_has_lost_come_back_from_the_run_and_that_is_said(runs, tmp_path, capsys, loss):
    config, whole = runs
    folder = shutil.copytree(whole, tmp_path / "run")
    for path in records_of(folder):
        LOSSES[loss](path)
    train(config, folder)
    said = capsys.readouterr().err
    assert said.count("records are lost") == 2 and "came back" in said
    assert tiny.records(folder) == tiny.records(whole)
    assert [path.read_bytes() for path in records_of(folder)] == [path.read_bytes() for path in records_of(whole)]


def test_records_that_are_nowhere_are_said_to_be_lost(runs, tmp_path, capsys):
    config, whole = runs
    folder = shutil.copytree(whole, tmp_path / "run")
    first, *_ = records_of(folder)
    first.unlink()
    (folder / "metrics.jsonl").unlink()
    train(config, folder)
    assert f"records are lost: {first} must have records" in capsys.readouterr().err


def test_a_flipped_bit_in_any_record_of_a_run_is_said_and_never_taken_for_another_number(runs, tmp_path):
    _, whole = runs
    names = ["metrics.jsonl", "config.json", "growth-1.json"]
    draw = random.Random(1)
    for name in names:
        content = (whole / name).read_bytes()
        for _ in range(40):
            folder = tmp_path / "report"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            for each in names:
                shutil.copyfile(whole / each, folder / each)
            changed = bytearray(content)
            changed[draw.randrange(len(content) - 1)] ^= 1 << draw.randrange(8)
            (folder / name).write_bytes(changed)
            try:
                found = read(folder).runs["report"]
            except InputError as error:
                assert str(folder / name) in str(error) and len(str(error).splitlines()) == 1
            else:
                want = read(whole).runs["whole"]
                assert found.config.items() >= want.config.items()  # a blank that became another, or the key's own name
                assert [{**a, **b} for a, b in zip(found.metrics, want.metrics, strict=True)] == found.metrics


def test_a_run_that_goes_on_reads_the_files_of_its_checkpoint_once_to_check_them(runs, tmp_path, monkeypatch):
    config, whole = runs
    folder = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tiny.checkpoints(folder)[STEPS, 2 * STEPS])
    check, checked = checkpoint.check_files, []
    monkeypatch.setattr(checkpoint, "check_files", lambda item: (checked.append(item.parent.name), check(item)))
    train(config, folder)
    assert checked == ["12"]


def test_what_reads_a_run_that_trains_takes_the_newest_again_when_a_checkpoint_is_removed(runs, tmp_path, monkeypatch):
    _, whole = runs
    folder = shutil.copytree(whole, tmp_path / "run")
    newest = tiny.checkpoints(folder)[STEPS, 2 * STEPS]
    restore, read = saved.restore_checkpoint, []

    def rotating(checkpoints, step, like):
        read.append(step)
        if step == 2 * STEPS:
            shutil.rmtree(newest)  # as the run does that trains there
        return restore(checkpoints, step, like)

    monkeypatch.setattr(saved, "restore_checkpoint", rotating)
    assert read_model(folder)[0].layers == 2
    assert read == [16, 12]
    convert_folder(folder, tmp_path / "out", "huggingface")
    read.clear()
    shutil.copytree(tiny.checkpoints(folder)[STEPS, 12], newest)
    with pytest.raises(InputError, match=r"step of .* must be one of its checkpoints"):
        convert_folder(folder, tmp_path / "named", "huggingface", step=16)
    assert read == [16]


def test_a_config_that_was_edited_is_taken_when_one_says_so_and_what_else_was_changed_is_not(tmp_path, capsys):
    config = growlm.ModelConfig(layers=1, embed=8, heads=1, kv_heads=1, head_dim=8, mlp=8, vocab=8)
    growlm.write_model(tmp_path, config, noisy(config))
    settings = tiny.read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text(json.dumps(settings | {"rope_theta": 5e5}))
    accept = ["convert", f"--source={tmp_path}", "--accept"]
    with pytest.raises(DamagedError, match=r"config.json is damaged: .* it yourself: growlm convert .* --accept$"):
        read_model(tmp_path)
    assert main(accept) == 0 and capsys.readouterr().out == "taken as you changed them: config.json\n"
    assert read_model(tmp_path)[0].rope_theta == 5e5
    assert main(accept) == 0 and "no file was changed" in capsys.readouterr().out
    before = (tmp_path / CHECKSUMS).read_bytes()
    flip(tmp_path / "model.safetensors")
    flip(tmp_path / "config.json")
    assert main(accept) == 2 and "model.safetensors is damaged" in capsys.readouterr().err
    assert (tmp_path / CHECKSUMS).read_bytes() == before
    (tmp_path / CHECKSUMS).unlink()
    assert main(accept) == 2 and "must be a folder with checksums.json" in capsys.readouterr().err


ALTERED = {
    "a list": ("sweep.json", []),
    "runs": ("sweep.json", {"runs": []}),
    "a run": ("sweep.json", {"runs": {"a": 1}}),
    "stages": ("sweep.json", {"runs": {"a": {"stages": 5}}}),
    "title": ("sweep.json", {"title": 3, "runs": {}}),
    "step": ("metrics.jsonl", {"stage": 0, "step": "1"}),
    "loss": ("metrics.jsonl", {"stage": 0, "step": 1, "loss": [1]}),
    "growth": ("growth-1.json", [1]),
}


@pytest.mark.parametrize("name", ALTERED)
def test_a_record_that_is_none_is_one_line_in_a_report(tmp_path, capsys, name):
    file, value = ALTERED[name]
    (tmp_path / "metrics.jsonl").write_text('{"stage": 0, "step": 0}\n')
    (tmp_path / file).write_text(json.dumps(value) + "\n")
    assert main(["report", f"--workdir={tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("growlm: ") and file in line
