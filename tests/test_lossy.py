"""The file system that forgets: what a loss of power leaves on it is what a disk may leave, and nothing else."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RELIABILITY = ROOT / "experiments" / "reliability"
LOSSES = 60
CONTENT = bytes(range(1, 251)) * 40  # three pages, the last one not full
IN_ORDER, BY_FOLDER = "in order", "by folder"


@pytest.fixture
def losses(monkeypatch, tmp_path):
    """Makes a change on new disks, and says of each how names came to it and which files, with what, a loss left."""
    monkeypatch.syspath_prepend(str(RELIABILITY))
    lossy = importlib.import_module("lossy")

    def lose(change):
        found = []
        for seed in range(LOSSES):
            place = tmp_path / change.__name__ / str(seed)
            disk = lossy.Disk(None, place, set(), seed)
            change(disk)
            disk.lose("the end")
            files = {path.name: path.read_bytes() for path in (place / "0").rglob("*") if path.is_file()}
            found.append((json.loads((place / "0.json").read_text())["names"], files))
        return found

    return lose


def write(disk, path, synced):
    handle = disk.create(path, 0o600)
    disk.write(None, CONTENT, 0, handle)
    if synced:
        disk.fsync(None, 0, handle)


def test_what_is_renamed_without_fsync_may_be_empty_zeros_or_torn(losses):
    def renamed(disk):
        write(disk, "/a.part", synced=False)
        disk.rename("/a.part", "/a")
        disk.fsyncdir(None, 0, disk.opendir("/"))

    found = losses(renamed)
    assert all([*files] == ["a"] for _, files in found)
    left = {files["a"] for _, files in found}
    assert {b"", bytes(len(CONTENT)), CONTENT} <= left
    assert CONTENT[:4096] + bytes(len(CONTENT) - 4096) in left


def test_what_is_synced_before_its_rename_is_whole_under_the_one_name_or_the_other(losses):
    def renamed(disk):
        write(disk, "/a.part", synced=True)
        disk.rename("/a.part", "/a")

    found = losses(renamed)
    assert {way for way, _ in found} == {IN_ORDER, BY_FOLDER}
    assert all({*files.values()} <= {CONTENT} for _, files in found)
    names = {way: {tuple(files) for one, files in found if one == way} for way, _ in found}
    assert names[IN_ORDER] == {("a.part",), ("a",)}  # its fsync has the journal until there on the disk
    assert names[BY_FOLDER] == {(), ("a.part",), ("a",)}


def test_a_rename_between_folders_is_in_both_or_in_none(losses):
    def moved(disk):
        for folder in ("/one", "/two"):
            disk.mkdir(folder, 0o700)
        disk.fsyncdir(None, 0, disk.opendir("/"))
        write(disk, "/one/a", synced=True)
        disk.fsyncdir(None, 0, disk.opendir("/one"))
        disk.rename("/one/a", "/two/b")
        write(disk, "/two/c", synced=True)

    names = {(way, *sorted(files)) for way, files in losses(moved)}
    assert names == {(IN_ORDER, "b", "c"), *((BY_FOLDER, *of) for of in ("a", "b", "bc"))}


@pytest.mark.slow
def test_commands_whose_power_is_cut_end_as_those_that_were_left_alone(tmp_path):
    command = [sys.executable, RELIABILITY / "power_loss.py", "--tries=18", "--seed=0"]
    ended = subprocess.run(
        [*command, f"--workdir={tmp_path / 'power'}"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    if ended.returncode == 2:
        pytest.skip(ended.stderr.splitlines()[-1])
    assert ended.returncode == 0, ended.stdout + ended.stderr[-3000:]
    (row,) = [line.split("|") for line in ended.stdout.splitlines() if line.startswith("| train")]
    assert int(row[2]) == 18 and int(row[3]) >= 1 and int(row[-2]) == 0  # tries, after another loss, wrong
