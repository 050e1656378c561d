"""Goodput: every second of a run's processes is on record under one cause, over stages and starts, and reported."""

import contextlib
import json
import threading
import time

import pytest
import tiny

from growlm.__main__ import main
from growlm.report.goodput import goodput
from growlm.report.records import Run
from growlm.training import goodput as counted
from growlm.training.metrics import MetricsLog
from growlm.training.run import train


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on when it is told."""
    now = [100.0]
    monkeypatch.setattr(counted.time, "perf_counter", lambda: now[0])

    def passes(seconds: float) -> None:
        now[0] += seconds

    return passes


def test_every_second_counts_once_under_the_innermost_cause(clock):
    with counted.time_counted(before=4.0):
        clock(1)
        with counted.spending(counted.TRAIN):
            clock(2)
            with counted.spending(counted.DATA):
                clock(3)
            with contextlib.suppress(ValueError), counted.spending(counted.SAVE):
                clock(0.5)
                raise ValueError
            clock(5)
        assert counted.with_new({"train": 1.0}) == {"data": 3.0, "save": 0.5, "start": 5.0, "train": 8.0}
        assert counted.with_new({}) == {}
        clock(1)
        threading.Thread(target=lambda: counted.spending(counted.COMPILE).__enter__()).start()
        assert counted.with_new({}) == {"start": 1.0}  # what another thread does takes none of this one's time
    with counted.spending(counted.TRAIN):  # nothing counts here
        assert counted.with_new({"train": 1.0}) == {"train": 1.0}


def test_what_is_trained_again_was_lost():
    kept = {"start": 2.0, "compile": 1.0, "train": 10.0, "save": 1.0}
    last = {"start": 5.0, "compile": 4.0, "train": 16.0, "save": 1.5, "data": 0.5, "lost": 2.0}
    assert counted.gone_on(last, kept) == {"start": 5.0, "compile": 4.0, "train": 10.0, "save": 1.0, "lost": 9.0}
    assert counted.gone_on(kept, kept) == kept | {"lost": 0.0}
    assert counted.gone_on({}, kept) == kept | {"lost": 0.0}  # records that another wrote


def test_records_after_the_checkpoint_are_lost_time(tmp_path, clock):
    path = tmp_path / "metrics.jsonl"
    with counted.time_counted(), contextlib.closing(MetricsLog(path, -1, {"train": 7.0})) as log:
        for step in (0, 1, 2):
            with counted.spending(counted.TRAIN):
                clock(1)
            log.write({"stage": 0, "step": step, "seconds": 0.0}, {})
    clock(1000)  # no process runs
    with counted.time_counted(before=3.0), contextlib.closing(MetricsLog(path, 1, {})) as log:
        log.write({"stage": 0, "step": 2, "seconds": 0.0}, {})
    assert [one["time"] for one in tiny.read_lines(path)] == [
        {"train": 8.0},
        {"train": 9.0},
        {"train": 9.0, "lost": 1.0, "start": 3.0},
    ]
    with contextlib.closing(MetricsLog(path, -1, {"train": 7.0})):
        assert tiny.read_lines(path) == []


@pytest.mark.slow
def test_a_run_in_parts_has_all_of_its_time_on_record(tmp_path, capsys):
    config = tiny.run_config(tiny.write_corpus(tmp_path), tiny.stage(2), tiny.grown(1))
    began = time.perf_counter()
    assert tiny.train_in_parts(config, tmp_path / "run") == 3
    took = time.perf_counter() - began
    found = [record["time"] for record in tiny.records(tmp_path / "run")]
    sums = [sum(one.values()) for one in found]
    assert sums == sorted(sums) and sums[-1] <= took  # less what came after the last record of each part
    assert {"start", "compile", "train", "data", "evaluate", "grow"} <= found[-1].keys()
    assert all(seconds > 0 for one in found for seconds in one.values())

    assert main(["report", f"--workdir={tmp_path / 'run'}", "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)["sweeps"]
    assert shown["goodput"]["run"]["seconds"] == found[-1]
    assert shown["goodput"]["run"]["goodput"] == pytest.approx(found[-1]["train"] / sums[-1])
    assert main(["report", f"--workdir={tmp_path / 'run'}"]) == 0
    assert f"{found[-1]['train'] / sums[-1]:.1%}" in capsys.readouterr().out
    assert ">Goodput</a>" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.slow
def test_python_counts_from_where_it_is_asked_to_train(tmp_path):
    every = {"checkpoint": {"every_tokens": tiny.STEP}}
    config = tiny.run_config(tiny.write_corpus(tmp_path), tiny.stage(2), **every)
    train(config, tmp_path / "alone")
    assert "save" in tiny.records(tmp_path / "alone")[-1]["time"]
    train(config, tmp_path / "late", seconds_before=1000.0)
    starts = [tiny.records(tmp_path / name)[-1]["time"]["start"] for name in ("alone", "late")]
    assert starts[0] < 1000.0 < starts[1]
    assert 0.0 < counted.process_seconds() < 1e6


def test_records_that_say_no_time_have_no_goodput():
    record = {"stage": 0, "step": 1, "tokens": 64, "flops": 1.0, "seconds": 1.0, "loss": 1.0}
    for said in ({}, {"time": {}}, {"time": 7}, {"time": {"train": "much"}}):
        assert goodput(Run("run", {}, [record | said], [])) is None
    found = goodput(Run("run", {}, [record | {"time": {"train": 3.0, "save": 1.0}}], []))
    assert found is not None and (found.share, found.all_seconds) == (0.75, 4.0)
