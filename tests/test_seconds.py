"""Seconds on record, by a clock that goes on when a test says so."""

import itertools
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

from growlm.training import growing, loop, metrics
from growlm.training.run import train
from growlm.training.stages import resolve

GO_ON = threading.Event()  # never set


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny.write_corpus(tmp_path_factory.mktemp("corpus"))


class Clock:
    """Stands in for the module time: it goes on when it is told to."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def during(self, seconds, function):
        def slow(*args, **kwargs):
            self.now += seconds
            return function(*args, **kwargs)

        return slow


def test_records_say_how_long_a_step_waits_for_data(corpus, tmp_path, monkeypatch):
    clock, source = Clock(), loop.training_batches

    def slow_batches(*args):
        for tokens_BS in source(*args):
            clock.now += 3
            yield tokens_BS

    monkeypatch.setattr(metrics, "time", clock)
    monkeypatch.setattr(loop, "training_batches", slow_batches)
    monkeypatch.setattr(loop.Steps, "train", clock.during(1, loop.Steps.train))
    train(tiny.run_config(corpus, tiny.stage(6)), tmp_path / "run", GO_ON)
    # The last step is on record as soon as it is done, the others one step late.
    steps = tiny.records(tmp_path / "run")[1:-1]
    assert [record["data_wait"] for record in steps] == [0.75] * 5
    assert [record["seconds"] for record in steps] == [8, 12, 16, 20, 24]
    assert "data_wait" not in tiny.records(tmp_path / "run")[0]


@pytest.mark.parametrize("in_parts", [False, True])
def test_growing_is_training_time_too_but_not_compiling(corpus, tmp_path, monkeypatch, in_parts):
    clock = Clock()
    monkeypatch.setattr(growing, "time", clock)
    monkeypatch.setattr(growing, "apply_growth", clock.during(1000.0, growing.apply_growth))
    monkeypatch.setattr(growing, "prepared_growth", clock.during(50_000.0, growing.prepared_growth))
    config, folder = tiny.run_config(corpus, tiny.stage(2), tiny.grown(2, 1), tiny.grown(2, 1)), tmp_path / "run"
    if in_parts:
        assert tiny.train_in_parts(config, folder) > 3
    else:
        train(config, folder, GO_ON)
    assert [tiny.read_json(folder / f"growth-{n}.json")["seconds"] for n in (1, 2)] == [1000.0, 1000.0]
    recorded = tiny.records(folder)
    seconds = [[r["seconds"] for r in recorded if r["stage"] == stage] for stage in range(3)]
    assert all(one == sorted(one) and 0 <= one[-1] - one[0] < 1000 for one in seconds)
    assert [after[0] - before[-1] for before, after in itertools.pairwise(seconds)] == pytest.approx([1000, 1000])


def test_rates_are_of_as_many_steps_as_lie_between_two_lines_of_the_log():
    clock, still, records = SimpleNamespace(seconds=0.0), SimpleNamespace(seconds=0.0), []
    (stage,) = resolve(tiny.run_config("none", tiny.stage(30), log_every_steps=10), "fingerprint")
    log = SimpleNamespace(write=lambda record, measured: records.append(record | measured))
    display = SimpleNamespace(step=lambda *_, **__: None)
    recorder = loop.Recorder(stage, log=log, display=display, watch=clock, waiting=still, peak=0.0)
    recorder.begin(0)
    for step in range(1, 31):
        clock.seconds += 1.0
        recorder.push(step, {"loss": np.float32(1), "grad_norm": np.float32(1)})
        if step in (11, 25):  # evaluated as soon as the step before is recorded
            recorder.settle({"val_loss": 1.0}, evaluated=True)
    recorder.settle()
    per_step = stage.tokens_at(1)
    # A line is written while the next step is at work: 10, 20 and 30 are of 11, 10 and 10 seconds.
    seconds = {10: 11, 11: 11, 20: 21 - 11, 25: 25 - 11, 30: 30 - 21}
    steps = {10: 10, 11: 11, 20: 10, 25: 14, 30: 10}
    measured = {record["step"]: record["tokens_per_second"] for record in records}
    assert measured == {at: pytest.approx(steps[at] * per_step / seconds[at]) for at in seconds}
