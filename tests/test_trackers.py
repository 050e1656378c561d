"""Trackers: what is sent of a run's records, and read back from TensorBoard, wandb and trackio."""

import json
import signal
import struct
import textwrap
from pathlib import Path

import pytest
import tiny
from test_restart import Bench

from growlm.errors import InputError
from growlm.training import trackers
from growlm.training.metrics import write_records
from growlm.training.trackers import TRACKERS, Kind, Library, check_trackers, tracked

# A growth at step 2 has two records there.
RECORDS = [
    {"stage": 0, "step": 0, "tokens": 0, "loss": None, "val_loss": 5.0, "samples": [{"prompt": "a", "text": "b"}]},
    {"stage": 0, "step": 2, "tokens": 128, "loss": 4.0},
    {"stage": 1, "step": 2, "tokens": 128, "loss": None, "val_loss": 4.5},
    {"stage": 1, "step": 4, "tokens": 256, "loss": 3.0, "NAME/SOURCE": 2.5},
]


class Session(list):
    def finish(self):
        pass


class Noted:
    """A library that notes what it gets by run."""

    def __init__(self):
        self.runs: dict[str, Session] = {}

    def begin(self, run, config):
        return self.runs.setdefault(f"{run.group}: {run.name}", Session())

    def has(self, session, run, number):
        return len(session)

    def log(self, session, record):
        session.append(record["step"])

    def row(self, name: str) -> Kind:
        return trackers._with_sessions(name, "json", Library(self.begin, self.has, self.log))


@pytest.fixture
def noted(monkeypatch):
    noted = Noted()
    monkeypatch.setitem(TRACKERS, "noted", noted.row("noted"))  # adding a tracker is one row
    return noted


def write_run(folder: Path, records) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    write_records(folder / "metrics.jsonl", records)
    return folder


def test_a_run_sends_each_record_once_whatever_it_goes_on_from(noted, tmp_path):
    with tracked(["noted"], tmp_path, tmp_path) as follow:
        follow(write_run(tmp_path, RECORDS[:2]))
        follow(tmp_path)
        follow(write_run(tmp_path, RECORDS[:3]))
    with tracked(["noted"], tmp_path, tmp_path) as follow:  # it goes on from a checkpoint before
        for count in (1, 2, 3, 4):
            follow(write_run(tmp_path, RECORDS[:count]))
    assert noted.runs == {f"{tmp_path.name}: {tmp_path.name}": [0, 2, 2, 4]}


@pytest.mark.parametrize("lost", [0, 1, 3])
def test_what_a_killed_session_lost_is_sent_again_and_nothing_else(noted, tmp_path, lost):
    killed = tracked(["noted"], tmp_path, tmp_path)
    killed.__enter__()(write_run(tmp_path, RECORDS[:3]))
    (session,) = noted.runs.values()
    del session[len(session) - lost :]
    with tracked(["noted"], tmp_path, tmp_path) as follow:
        for count in (1, 3, 4):
            follow(write_run(tmp_path, RECORDS[:count]))
    assert noted.runs == {f"{tmp_path.name}: {tmp_path.name}": [0, 2, 2, 4]}


def test_runs_that_share_a_stage_have_each_its_whole_curve(noted, tmp_path):
    with tracked(["noted"], tmp_path, tmp_path, "A sweep") as follow:
        follow(write_run(tmp_path / "seed-0" / "base", RECORDS[:2]))
        follow(write_run(tmp_path / "seed-0" / "grown", RECORDS))
        follow(write_run(tmp_path / "seed-0" / "base", RECORDS[:2]))
    assert noted.runs == {"A sweep: seed-0/base": [0, 2], "A sweep: seed-0/grown": [0, 2, 2, 4]}


def test_a_tracker_that_fails_is_said_once_and_the_others_go_on(noted, tmp_path, monkeypatch, capsys):
    fails = Noted()
    fails.log = lambda session, record: (_ for _ in ()).throw(ConnectionError("no\nnetwork"))
    monkeypatch.setitem(TRACKERS, "fails", fails.row("fails"))
    with tracked(["fails", "noted"], tmp_path, tmp_path) as follow:
        for name in ("a", "b"):
            follow(write_run(tmp_path / name, RECORDS[:2]))
            follow(write_run(tmp_path / name, RECORDS))
    said = capsys.readouterr().err
    assert said == "growlm: training goes on without the tracker fails: ConnectionError: no network\n"
    assert [steps for _, steps in sorted(noted.runs.items())] == [[0, 2, 2, 4]] * 2


def test_a_tracker_that_is_none_or_whose_library_is_missing(monkeypatch):
    with pytest.raises(InputError, match="track must be one of tensorboard, trackio, wandb, got 'wand'; did you mean"):
        check_trackers(["tensorboard", "wand"])
    monkeypatch.setitem(TRACKERS, "other", Kind("no_such_module", Session))
    with pytest.raises(InputError, match=r"library no_such_module: pip install growlm\[tracking\]"):
        check_trackers(["other"])


def events(folder: Path) -> list[tuple[int, dict[str, float | str]]]:
    """(step, values and texts by tag) of all event files, as TensorBoard reads them: in the order of their names."""
    from tensorboardX.crc32c import crc32c
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        content, read = path.read_bytes(), []
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            body, (said,) = content[12 : 12 + length], struct.unpack("<I", content[12 + length : 16 + length])
            crc = crc32c(body)
            assert said == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
            read.append(Event.FromString(body))
            content = content[16 + length :]
        assert read[0].file_version == "brain.Event:2"
        found += [(event.step, {value.tag: value_of(value) for value in event.summary.value}) for event in read[1:]]
    return found


def value_of(value) -> float | str:
    return value.tensor.string_val[0].decode() if value.tensor.string_val else value.simple_value


@pytest.mark.slow  # it imports PyTorch where that is installed
def test_tensorboard_has_every_record_once_and_a_killed_one_leaves_no_half(tmp_path):
    pytest.importorskip("tensorboardX")
    with tracked(["tensorboard"], tmp_path, tmp_path) as follow:
        follow(write_run(tmp_path, RECORDS[:2]))
        (tmp_path / "tensorboard" / ".events.out.tfevents.000000002-000000003.7.part").write_bytes(b"half")
    with tracked(["tensorboard"], tmp_path, tmp_path) as follow:
        for count in (1, 4):
            follow(write_run(tmp_path, RECORDS[:count]))
    (tmp_path / "tensorboard" / ".events.out.tfevents.000000002-000000003.7.part").unlink()
    expected = [(record["step"], trackers._numbers(record)) for record in RECORDS]
    assert expected[0] == (0, {"stage": 0, "tokens": 0, "val_loss": 5.0})
    expected[0][1]["samples/text_summary"] = "    ab"  # verbatim in Markdown, whatever is in it
    assert events(tmp_path) == expected


def logged_by_wandb(folder: Path) -> list[tuple[int, float]]:
    """(step, learning rate) of all offline runs in a folder, in the order in which they were begun; of one id."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows, paths = [], sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    for path in paths:
        for entry in leveldb(path.read_bytes()):
            if (record := Record.FromString(entry)).WhichOneof("record_type") == "history":
                values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                rows.append((values["step"], values["learning_rate"]))
    assert len(paths) == 3 and len({path.stem for path in paths}) == 1
    return rows


def leveldb(content: bytes):
    """The entries of a log, after the 7 bytes of wandb: blocks of 32 KiB of pieces of (checksum, length, kind)."""
    entry = b""
    for start in range(0, len(content), 32768):
        block = content[start : start + 32768][0 if start else 7 :]
        while len(block) > 7:
            length, kind = struct.unpack("<HB", block[4:7])
            if len(block) < 7 + length or not kind:
                return
            entry, block = entry + block[7 : 7 + length], block[7 + length :]
            if kind in (1, 4):
                yield entry
                entry = b""


@pytest.mark.slow
def test_all_trackers_have_the_curve_of_a_killed_run_once(tmp_path, monkeypatch):
    for module in ("tensorboardX", "wandb", "trackio"):
        pytest.importorskip(module)
    bench = Bench(tmp_path)
    bench.options = ["--track=tensorboard,wandb,trackio"]
    bench.settings["evaluation"] |= {"prompts": ("alpha ",), "prompt_tokens": 3}
    bench.write("train", bench.settings)
    bench.environment |= {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    for moment in ({"kind": "batch", "n": 6}, {"kind": "grow", "where": "after"}):
        code, said = bench.finish("run", moment)
        assert code == -signal.SIGKILL, said
    code, said = bench.finish("run")
    assert code == 0 and "goes on without" not in said, said
    records = tiny.records(tmp_path / "run")
    steps = [record["step"] for record in records]
    curve = [(record["step"], record["learning_rate"]) for record in records]
    written = [sample["prompt"] + sample["text"] for record in records for sample in record.get("samples", ())]
    assert len(written) == 3  # at both ends of the growth, and at the run's
    shown = [textwrap.indent(text, "    ", lambda line: True) for text in written]
    found = events(tmp_path / "run")
    assert [step for step, _ in found] == steps
    assert [values["samples/text_summary"] for _, values in found if "samples/text_summary" in values] == shown
    assert [(step, pytest.approx(values["learning_rate"])) for step, values in found] == curve
    assert logged_by_wandb(tmp_path / "run") == curve
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    from trackio.sqlite_storage import SQLiteStorage

    (name,) = SQLiteStorage.get_runs("growlm")
    logs = SQLiteStorage.get_logs("growlm", name)
    assert sorted((log["step"], log["learning_rate"]) for log in logs) == sorted(curve)
    assert sorted(log["samples"]["_value"] for log in logs if "samples" in log) == sorted(shown)
    tables = (tmp_path / "run" / "wandb").glob("offline-run-*/files/media/table/samples_*.table.json")
    rows = [row for path in tables for row in json.loads(path.read_text())["data"]]
    assert set(map("".join, rows)) == set(written)  # what a killed session lost has left its file
