"""A clock that jumps by hours, forwards and backwards, changes nothing: what is measured is measured by another."""

import random
import time

import pytest
import tiny

from growlm.__main__ import main
from growlm.training.progress import run_status
from growlm.training.run import plan_run, train


@pytest.fixture
def jumping(monkeypatch):
    """The time of day is another one whenever it is asked for, by up to nine hours; the count of how often it was."""
    draw, now, asked = random.Random(0), time.time, []

    def jumped() -> float:
        asked.append(draw.uniform(-9, 9) * 3600)
        return now() + asked[-1]

    monkeypatch.setattr(time, "time", jumped)
    monkeypatch.setattr(time, "time_ns", lambda: int(jumped() * 1e9))
    return asked


@pytest.mark.slow
def test_a_run_under_a_clock_that_jumps_ends_with_the_same_records(tmp_path, request):
    stages = tiny.stage(3), tiny.grown(2, growth={"operator": "direct", "optimizer_state": "map"})
    config = tiny.run_config(tiny.write_corpus(tmp_path), *stages)
    train(config, tmp_path / "whole")

    asked = request.getfixturevalue("jumping")
    assert tiny.train_in_parts(config, tmp_path / "run") == 5  # so files of another hour are read, and locks taken
    assert asked, "nobody asks for the time: the test shows nothing"
    assert tiny.timeless(tmp_path / "run") == tiny.timeless(tmp_path / "whole")
    records = tiny.records(tmp_path / "run")
    seconds = [record["seconds"] for record in records]
    assert seconds == sorted(seconds) and 0 <= seconds[-1] < 3600
    assert all(0 <= spent < 3600 for record in records for spent in record["time"].values())
    for record in records:
        assert record.get("tokens_per_second", 1.0) > 0 and 0 <= record.get("data_wait", 0.0) <= 1
    left = run_status(tmp_path / "run", plan_run(config).stages, tmp_path / "run" / "checkpoints").seconds_left
    assert left == 0
    assert main(["report", f"--workdir={tmp_path / 'run'}", "--json"]) == 0
