"""Runs in a bucket of a real server: killed and resumed, swept, begun from, and refused where they cannot be."""

import json
import signal

import fsspec
import pytest
import tiny
from bucket_servers import objects
from test_restart import STEPS, TOTAL, Bench, assert_as_reference
from test_trackers import events

from growlm import leases
from growlm.__main__ import main
from growlm.buckets import LEASE, location
from growlm.commands import doctor

pytestmark = pytest.mark.slow


# In stage 1, while the checkpoint of step 4 may be on its way; between its end and growth; in stage 2, likewise.
KILLS = ({"kind": "batch", "n": 6}, {"kind": "grow", "where": "before"}, {"kind": "batch", "n": 6})


def test_a_run_in_a_bucket_that_is_killed_ends_with_the_bits_of_one_on_a_disk(buckets, tmp_path):
    bench = Bench(tmp_path)
    code, said = bench.finish("reference")
    assert code == 0, said
    bench.place, bench.options = "gs://bucket/killed", ["--track=tensorboard"]
    for moment in KILLS:
        code, said = bench.finish("run", moment)
        assert code == -signal.SIGKILL, said
        there = objects(f"{bench.place}/run")
        assert LEASE in there, "a killed process gives nothing back"
        # No checkpoint is without the records until there.
        whole = [name.split("/") for name in there if name.endswith("/commit_success.txt") and "/default/" not in name]
        for _, stage, _, step, _ in whole:
            lines = there[f"checkpoints/{stage}/metrics.jsonl"].decode().splitlines()
            assert json.loads(lines[-1])["step"] >= int(step)
    code, said = bench.finish("run")
    assert code == 0, said
    files = objects(f"{bench.place}/run")
    assert LEASE not in files
    fsspec.filesystem("gs").get(f"{bench.place}/run/", f"{tmp_path}/copy/", recursive=True)
    assert_as_reference(bench, "copy")
    records = tiny.records(tmp_path / "copy")
    assert [step for step, _ in events(tmp_path / "copy")] == [record["step"] for record in records]
    steps = {name.split("/")[3] for name in files if name.startswith("checkpoints/") and name.count("/") > 3}
    assert steps == {str(STEPS), str(TOTAL)}  # nothing is left of others


def test_a_sweep_in_a_bucket_and_a_run_that_begins_from_one_there(buckets, tmp_path, capsys):
    corpus = tiny.write_corpus(tmp_path)
    runs = {"base": [tiny.stage(3)], "grown": [tiny.stage(3), tiny.grown(2)]}
    tiny.write_config(tmp_path / "sweep.py", tiny.sweep(corpus, runs, "base", grown=("grown",)))
    command = ["sweep", f"--config={tmp_path / 'sweep.py'}", "--workdir=gs://bucket/sweep"]
    assert main([*command, "--list"]) == 0
    assert objects("gs://bucket/sweep") == {}  # nothing is written
    assert main(command) == 0
    assert "report: gs://bucket/sweep/report.html" in capsys.readouterr().out
    files = objects("gs://bucket/sweep")
    entries = json.loads(files["sweep.json"])["runs"]
    assert {entry["status"] for entry in entries.values()} == {"done"} and entries["grown"]["stages"][0]["reused"]
    assert files["report.html"].startswith(b"<!") and b'"step": 5' in files["grown/metrics.jsonl"]

    assert main(command) == 0  # there is nothing left to train
    assert objects("gs://bucket/sweep")["grown/metrics.jsonl"] == files["grown/metrics.jsonl"]
    assert main(["report", "--workdir=gs://bucket/sweep"]) == 0
    assert main(["archive", "--workdir=gs://bucket/sweep", "--output=gs://bucket/archive"]) == 0
    kept = objects("gs://bucket/archive")
    assert kept["grown/metrics.jsonl"] == files["grown/metrics.jsonl"] and "report.html" not in kept
    assert main(["convert", "--source=gs://bucket/sweep/grown", "--to=huggingface", f"--output={tmp_path}/hf"]) == 0

    begun = tiny.run(corpus, tiny.stage(2, layers=2, init_from="gs://bucket/sweep/grown"))
    tiny.write_config(tmp_path / "begun.py", begun)
    assert main(["train", f"--config={tmp_path / 'begun.py'}", f"--workdir={tmp_path / 'begun'}"]) == 0
    source = json.loads((tmp_path / "begun" / "init_from.json").read_text())
    assert (source["folder"], source["step"]) == ("gs://bucket/sweep/grown", 5)


def test_what_a_bucket_cannot_do_is_one_line_and_writes_nothing(buckets, tmp_path, capsys, monkeypatch):
    tiny.write_config(tmp_path / "run.py", tiny.run(tiny.write_corpus(tmp_path), tiny.stage(2)))
    command = ["train", f"--config={tmp_path / 'run.py'}"]
    cases = {
        ("--workdir=s3://bucket/run",): "must be on a local disk or at gs://, where orbax writes checkpoints",
        ("--workdir=gs://bucket/none", "--profile_steps=1:2"): "--workdir/profile, must be on a local disk",
        ("--workdir=gs://bucket/none", "--config.stages[0].batch=0"): "batch",
        ("--workdir=gs://bucket/none", "--compilation_cache=gs://bucket/cache"): "must be on a local disk",
    }
    for options, says in cases.items():
        assert main([*command, *options]) == 2
        assert says in capsys.readouterr().err.splitlines()[-1]
    assert objects("gs://bucket/none") == {} == objects("s3://bucket/run")

    assert doctor._not_writable(location("gs://bucket/none")) == "" and objects("gs://bucket/none") == {}
    assert "where orbax writes checkpoints" in doctor._not_writable(location("s3://bucket/run"))
    assert "cannot be reached" in doctor._not_writable(location("gs://no-such-bucket/run"))

    monkeypatch.setattr(leases, "SECONDS", 1.0)
    with leases.leased(location("gs://bucket/held"), lost=lambda: None):
        assert main([*command, "--workdir=gs://bucket/held"]) == 2
        assert "gs://bucket/held is in use by process" in capsys.readouterr().err
        assert objects("gs://bucket/held").keys() == {LEASE}
