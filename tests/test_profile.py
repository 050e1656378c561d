"""A trace of the steps asked for has those steps in it, and not the calls of Python that would fill it first."""

import gzip
import json

import tiny

from growlm.__main__ import main
from growlm.training.metrics import read_records


def trace(workdir):
    (path,) = (workdir / "profile").glob("plugins/profile/*/*.trace.json.gz")
    with gzip.open(path) as file:
        return json.load(file)["traceEvents"]


def test_the_steps_asked_for_are_traced(tmp_path):
    settings = tiny.run(tiny.write_corpus(tmp_path), tiny.stage(8))
    config = tiny.write_config(tmp_path / "run.py", settings)
    assert main(["train", f"--config={config}", f"--workdir={tmp_path / 'run'}", "--profile_steps=3:5"]) == 0
    events = trace(tmp_path / "run")
    steps = [event["args"]["step_num"] for event in events if event.get("name") == "step"]
    assert sorted(set(map(int, steps))) == [3, 4, 5]
    assert any("train_step" in str(event) for event in events)
    assert not [event["name"] for event in events if event.get("name", "").startswith("$")]
    assert len(read_records(tmp_path / "run" / "metrics.jsonl")) == 9
