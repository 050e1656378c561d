"""Runs in a bucket of a real server: killed and resumed, swept, begun from, and refused where they cannot be."""

import json
import re
import signal
from pathlib import Path

import fsspec
import pytest
import tiny
from bucket_servers import objects, put
from test_restart import STEPS, TOTAL, Bench, assert_as_reference
from test_trackers import events

from growlm import leases
from growlm.__main__ import main
from growlm.buckets import LEASE, SCHEMES, UNFINISHED, check_states, location
from growlm.commands import doctor
from growlm.errors import InputError
from growlm.training import checkpoint

pytestmark = pytest.mark.slow


# In stage 1, while the checkpoint of step 4 may be on its way; between its end and growth; in stage 2, likewise.
KILLS = [
    ({"kind": "batch", "n": 6}, None),
    ({"kind": "grow", "where": "before"}, [STEPS]),
    ({"kind": "batch", "n": 6}, None),
]
# Where checkpoints are uploaded: in the middle of the first; before it is removed, when the second is there; and when
# all of one is there but the word that it is whole. Beside each: the steps that are whole then.
UPLOADS = [
    ({"kind": "upload", "where": "/checkpoints/4/", "n": 4}, []),
    ({"kind": "unload", "where": "/checkpoints/4/", "n": 4}, [8]),
    ({"kind": "unload", "where": "/checkpoints/16/", "n": 1}, [STEPS, 12]),
]


def whole(files: dict[str, bytes], scheme: str) -> set[tuple[str, int]]:
    """The stages and steps of the checkpoints in a run's folder of a bucket that are there to be read."""
    steps = {tuple(name.split("/")[1:4:2]) for name in files if re.match("checkpoints/[^/]+/checkpoints/[0-9]+/", name)}
    if scheme == "gs":
        return {(a, int(n)) for a, n in steps if f"checkpoints/{a}/checkpoints/{n}/commit_success.txt" in files}
    return {(a, int(n)) for a, n in steps if f"checkpoints/{a}/checkpoints/{n}/{UNFINISHED}" not in files}


@pytest.mark.parametrize("scheme, kills", [("gs", KILLS), ("s3", UPLOADS)], ids=["gs", "s3"])
def test_a_run_in_a_bucket_that_is_killed_ends_with_the_bits_of_one_on_a_disk(buckets, tmp_path, scheme, kills):
    bench = Bench(tmp_path)
    code, said = bench.finish("reference")
    assert code == 0, said
    bench.place, bench.options = f"{scheme}://bucket/killed", ["--track=tensorboard"]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    bench.environment = bench.environment | {"TMPDIR": str(scratch)}
    for moment, steps in kills:
        code, said = bench.finish("run", moment)
        assert code == -signal.SIGKILL, said
        there = objects(f"{bench.place}/run")
        assert LEASE in there, "a killed process gives nothing back"
        for stage, step in whole(there, scheme):  # no checkpoint is without the records until there
            lines = there[f"checkpoints/{stage}/metrics.jsonl"].decode().splitlines()
            assert json.loads(lines[-1])["step"] >= step
        assert steps in (None, sorted(step for _, step in whole(there, scheme)))
    code, said = bench.finish("run")
    assert code == 0, said
    assert not any(scratch.iterdir()), "what killed processes left on the disk is removed by the next"
    files = objects(f"{bench.place}/run")
    assert LEASE not in files and not any(UNFINISHED in name for name in files)
    fsspec.filesystem(scheme).get(f"{bench.place}/run/", f"{tmp_path}/copy/", recursive=True)
    assert_as_reference(bench, "copy")
    records = tiny.records(tmp_path / "copy")
    assert [step for step, _ in events(tmp_path / "copy")] == [record["step"] for record in records]
    assert sorted(step for _, step in whole(files, scheme)) == [STEPS, TOTAL]
    steps = {name.split("/")[3] for name in files if name.startswith("checkpoints/") and name.count("/") > 3}
    assert steps == {str(STEPS), str(TOTAL)}  # nothing is left of others


def test_a_damaged_upload_is_left_out_for_an_older_one_and_one_that_fails_is_a_line(
    buckets, tmp_path, capsys, monkeypatch
):
    corpus = tiny.write_corpus(tmp_path)
    settings = tiny.run(corpus, tiny.stage(5), checkpoint={"every_tokens": tiny.STEP, "max_to_keep": 2})
    command = ["train", f"--config={tiny.write_config(tmp_path / 'run.py', settings)}"]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "upload", lambda *where: put("s3://no-such-bucket/object", b""))
        assert main([*command, "--workdir=s3://bucket/damaged"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert (
        line.startswith("growlm: cannot write a checkpoint in s3://bucket/damaged/checkpoints/") and "goes on" in line
    )
    assert not whole(objects("s3://bucket/damaged"), "s3")

    assert main([*command, "--workdir=s3://bucket/damaged"]) == 0
    files = objects("s3://bucket/damaged")
    assert sorted(step for _, step in whole(files, "s3")) == [4, 5]
    name = max((name for name in files if "/5/default/" in name), key=lambda name: len(files[name]))
    put(f"s3://bucket/damaged/{name}", files[name][:-1] + bytes([files[name][-1] ^ 1]))
    assert main(["sample", "--checkpoint=s3://bucket/damaged", "--prompt=a"]) == 2
    assert f"{Path(name).name} is damaged" in capsys.readouterr().err.splitlines()[-1]

    assert main([*command, "--workdir=s3://bucket/damaged"]) == 0
    said = "".join(capsys.readouterr())
    assert "the checkpoint of step 5 is left out" in said and "goes on from step 4" in said
    again = objects("s3://bucket/damaged")
    assert sorted(step for _, step in whole(again, "s3")) == [4, 5] and name not in again
    main(["train", command[1], f"--workdir={tmp_path / 'disk'}"])
    fsspec.filesystem("s3").get("s3://bucket/damaged/", f"{tmp_path}/copy/", recursive=True)
    have, want = (tiny.checkpoints(tmp_path / home)[0, 5] for home in ("copy", "disk"))
    tiny.assert_same_arrays(tiny.read_checkpoint(have), tiny.read_checkpoint(want))

    capsys.readouterr()
    assert main([*command, "--workdir=s3://no-such-bucket/run"]) == 2
    assert "s3://no-such-bucket/run" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_sweep_in_a_bucket_and_a_run_that_begins_from_one_there(buckets, tmp_path, capsys, scheme):
    place = f"{scheme}://bucket"
    corpus = tiny.write_corpus(tmp_path)
    runs = {"base": [tiny.stage(3)], "grown": [tiny.stage(3), tiny.grown(2)]}
    tiny.write_config(tmp_path / "sweep.py", tiny.sweep(corpus, runs, "base", grown=("grown",)))
    command = ["sweep", f"--config={tmp_path / 'sweep.py'}", f"--workdir={place}/sweep"]
    assert main([*command, "--list"]) == 0
    assert objects(f"{place}/sweep") == {}  # nothing is written
    assert main(command) == 0
    assert f"report: {place}/sweep/report.html" in capsys.readouterr().out
    files = objects(f"{place}/sweep")
    entries = json.loads(files["sweep.json"])["runs"]
    assert {entry["status"] for entry in entries.values()} == {"done"} and entries["grown"]["stages"][0]["reused"]
    assert files["report.html"].startswith(b"<!") and b'"step": 5' in files["grown/metrics.jsonl"]

    assert main(command) == 0  # there is nothing left to train
    assert objects(f"{place}/sweep")["grown/metrics.jsonl"] == files["grown/metrics.jsonl"]
    assert main(["report", f"--workdir={place}/sweep"]) == 0
    assert main(["archive", f"--workdir={place}/sweep", f"--output={place}/archive"]) == 0
    kept = objects(f"{place}/archive")
    assert kept["grown/metrics.jsonl"] == files["grown/metrics.jsonl"] and "report.html" not in kept
    assert main(["convert", f"--source={place}/sweep/grown", "--to=huggingface", f"--output={tmp_path}/hf"]) == 0

    begun = tiny.run(corpus, tiny.stage(2, layers=2, init_from=f"{place}/sweep/grown"))
    tiny.write_config(tmp_path / "begun.py", begun)
    assert main(["train", f"--config={tmp_path / 'begun.py'}", f"--workdir={tmp_path / 'begun'}"]) == 0
    source = json.loads((tmp_path / "begun" / "init_from.json").read_text())
    assert (source["folder"], source["step"]) == (f"{place}/sweep/grown", 5)


def test_what_a_bucket_cannot_do_is_one_line_and_writes_nothing(buckets, tmp_path, capsys, monkeypatch):
    tiny.write_config(tmp_path / "run.py", tiny.run(tiny.write_corpus(tmp_path), tiny.stage(2)))
    command = ["train", f"--config={tmp_path / 'run.py'}"]
    cases = {
        ("--workdir=gs://bucket/none", "--profile_steps=1:2"): "--workdir/profile, must be on a local disk",
        ("--workdir=gs://bucket/none", "--config.stages[0].batch=0"): "batch",
        ("--workdir=gs://bucket/none", "--compilation_cache=gs://bucket/cache"): "must be on a local disk",
    }
    for options, says in cases.items():
        assert main([*command, *options]) == 2
        assert says in capsys.readouterr().err.splitlines()[-1]
    assert objects("gs://bucket/none") == {}
    check_states(location("gs://bucket/none"), processes=2)
    with pytest.raises(InputError, match="must be on a disk that they share or at gs://, got 's3://bucket/run'"):
        check_states(location("s3://bucket/run"), processes=2)

    for scheme in SCHEMES:
        assert (
            doctor._not_writable(location(f"{scheme}://bucket/none")) == "" and objects(f"{scheme}://bucket/none") == {}
        )
    assert "cannot be reached" in doctor._not_writable(location("gs://no-such-bucket/run"))

    monkeypatch.setattr(leases, "SECONDS", 1.0)
    with leases.leased(location("gs://bucket/held"), lost=lambda: None):
        assert main([*command, "--workdir=gs://bucket/held"]) == 2
        assert "gs://bucket/held is in use by process" in capsys.readouterr().err
        assert objects("gs://bucket/held").keys() == {LEASE}
