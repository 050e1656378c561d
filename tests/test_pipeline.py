"""prepare as steps of datatrove: the bytes of one machine, whatever is read, and however often tasks are killed."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from prepared import TEXTS, shard_bytes, small_parts, write_sources

from growlm.buckets import location
from growlm.data import Request, prepare, verify
from growlm.data.documents import Reading
from growlm.data.filters import Filter
from growlm.data.sources import list_parts, listing
from growlm.errors import InputError

pytest.importorskip("datatrove", reason="needs the extra data: pip install growlm[data]")
from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.filters import LambdaFilter, SamplerFilter
from datatrove.pipeline.readers import JsonlReader, ParquetReader, WarcReader

from growlm.data.pipeline import MergeShards, TokenShards, begin

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """TEXTS in `text`, and in `one` the folder of `growlm prepare` in parts of 4 kB."""
    folder = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        small_parts(patch)
        prepare(Request((str(write_sources(folder / "text")),), folder / "one", "bytes", workers=1))
    return folder


@pytest.fixture
def source(small, monkeypatch):
    small_parts(monkeypatch)
    return small / "text"


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """9 MB, which are three parts, and the folder of `growlm prepare`."""
    folder = tmp_path_factory.mktemp("large")
    with (folder / "a.jsonl").open("w") as file:
        for number in range(9000):
            file.write(json.dumps({"text": f"{number} " + "some words " * 90}) + "\n")
    prepare(Request((str(folder / "a.jsonl"),), folder / "one", "bytes", workers=1))
    return folder


def shards_of(request, logs, tasks, **options):
    return LocalPipelineExecutor([TokenShards(request)], tasks=tasks, logging_dir=str(logs), **options)


def merge(request, logs):
    LocalPipelineExecutor([MergeShards(request)], workers=1, logging_dir=str(logs)).run()


def made(sources, output, tasks=1, **options):
    """The folder that tasks and their merge have written."""
    request = Request(tuple(sources), output, "bytes", **options)
    begin(request)
    shards_of(request, output.with_name(f"{output.name}-logs"), tasks, workers=1).run()
    merge(request, output.with_name(f"{output.name}-merge"))
    return output


def equal(one, other):
    return shard_bytes(one) == shard_bytes(other) and verify(one)["shards"] == verify(other)["shards"]


def texts(sources, **reading):
    parts = list_parts(sources, "train")
    return ["".join(each.pieces) for part in parts for each in part.documents(Reading(**reading))]


# --- the bytes


@pytest.mark.parametrize(
    "tasks", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 40))]
)  # 40: more than parts
def test_tasks_write_what_one_machine_writes(small, source, tmp_path, tasks):
    one, folder = small / "one", made([str(source)], tmp_path / "out", tasks)
    assert equal(one, folder) and verify(folder) == verify(one)
    assert len(shard_bytes(folder)) > 8
    assert {path.name for path in folder.iterdir()} == {path.name for path in one.iterdir()}


KILLED = """
import sys
from pathlib import Path
from growlm.data import Request, textfiles
from growlm.data.pipeline import TokenShards, begin
from datatrove.executor import LocalPipelineExecutor
request = Request((sys.argv[1],), Path(sys.argv[2]), "bytes")
begin(request)
LocalPipelineExecutor([TokenShards(request)], tasks=2, workers=1, logging_dir=sys.argv[3]).run()
"""


@pytest.mark.slow
def test_a_killed_job_goes_on(large, tmp_path):
    output, logs = tmp_path / "out", tmp_path / "logs"
    command = [sys.executable, "-c", KILLED, str(large / "a.jsonl"), str(output), str(logs)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    end = time.monotonic() + 60
    while not list(output.glob("parts/*.json")):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)  # datatrove has a process of its own for queues
    process.wait()
    (done,) = output.glob("train-*.bin")
    before = done.stat().st_mtime_ns
    request = Request((str(large / "a.jsonl"),), output, "bytes")
    with pytest.raises(InputError, match="must have all its 3 parts, got none of number"):
        merge(request, tmp_path / "early")
    shards_of(request, logs, tasks=2, workers=2).run()
    merge(request, tmp_path / "merge")
    assert done.stat().st_mtime_ns == before  # its shard was not written again
    assert equal(large / "one", output)
    assert not [path for path in output.iterdir() if path.name.endswith(".part")]


@pytest.mark.slow
def test_one_machine_goes_on_with_what_a_job_has_left(small, source, tmp_path):
    request = Request((str(source),), tmp_path / "out", "bytes", workers=1)
    begin(request)
    TokenShards(request).run(rank=1, world_size=2)  # the other task was never started
    prepare(request)
    assert equal(small / "one", tmp_path / "out")
    TokenShards(request).run()  # what is done stays as it is
    MergeShards(request).run()
    assert equal(small / "one", tmp_path / "out")


SBATCH = """#!/bin/bash
# A stand-in for SLURM: the tasks of an array one after the other, with the variables that they have there.
for argument; do case $argument in --export=*) export "${argument##*,}" ;; --*) ;; *) script=$argument ;; esac; done
[[ $(<"$script") == *merge_stats* ]] && { echo "Submitted batch job 2"; exit; }
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
for ((task = 0; task <= last; task++)); do
    SLURM_ARRAY_TASK_ID=$task SLURM_NODELIST=localhost bash "$script" >&2
done
echo "Submitted batch job 1"
"""
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == -n ]] && shift; shift; done
exec "$@"
"""


@pytest.mark.slow
def test_a_slurm_array_writes_the_same(large, tmp_path, monkeypatch):
    """datatrove's own scripts and pickles, on a stand-in for sbatch and srun."""
    (tmp_path / "bin").mkdir()
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", "#!/bin/bash\necho localhost\n")):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    path = os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    monkeypatch.setenv("PATH", path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    request = Request((str(large / "a.jsonl"),), tmp_path / "out", "bytes")
    begin(request)
    slurm = {"time": "1:00:00", "partition": "cpu"}
    shards = SlurmPipelineExecutor([TokenShards(request)], tasks=2, logging_dir=str(tmp_path / "logs"), **slurm)
    SlurmPipelineExecutor(
        [MergeShards(request)], tasks=1, logging_dir=str(tmp_path / "merge"), depends=shards, **slurm
    ).run()
    assert equal(large / "one", tmp_path / "out")


# --- its readers


def even(document):
    return document.metadata["number"] % 2 == 0


@pytest.fixture
def steps(tmp_path, monkeypatch):
    """Every other of TEXTS, from four parts of parquet."""
    small_parts(monkeypatch, 2000)
    rows = [{"text": text, "number": number} for number, text in enumerate(TEXTS)]
    for start in range(0, 400, 100):
        name = f"{start:03}.parquet"
        (tmp_path / "web").mkdir(exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[start : start + 100]), tmp_path / "web" / name)
    return [ParquetReader(str(tmp_path / "web")), LambdaFilter(even)]


def test_readers_and_filters_of_datatrove_are_sources(steps, tmp_path):
    assert texts([steps]) == TEXTS[::2] == texts([steps])
    assert texts([steps], filters=(Filter.of("number!=4"),)) == [*TEXTS[:4:2], *TEXTS[6::2]]
    assert len(list_parts([steps], "train")) == 4
    made([steps], tmp_path / "out", tasks=3)
    with pytest.raises(InputError, match="of other settings: sources was"):
        begin(Request((steps[:1],), tmp_path / "out", "bytes"))


def test_a_sampler_draws_for_a_part_what_it_draws_in_any_task(steps):
    sampled = [*steps, SamplerFilter(0.5, seed=0)]
    *_, last = list_parts([sampled], "train")
    drawn = texts([sampled])
    assert 60 < len(drawn) < 140 and drawn == texts([sampled])
    alone = ["".join(each.pieces) for each in last.documents(Reading())]
    assert alone == drawn[-len(alone) :]


@pytest.mark.slow
def test_one_machine_reads_by_steps_too(steps, tmp_path):
    prepare(Request((steps,), tmp_path / "one", "bytes", workers=2))
    assert equal(tmp_path / "one", made([steps], tmp_path / "three", tasks=3))


def test_a_bucket_is_read_by_fsspec(source, tmp_path):
    bucket = fsspec.filesystem("memory")
    packed = (source / "c.jsonl.gz").read_bytes()
    for number in range(3):
        bucket.pipe(f"/bucket/web/{number}.jsonl.gz", packed)
    try:
        reader = JsonlReader("memory://bucket/web")
        assert texts([[reader]]) == TEXTS[200:300] * 3
        folder = made([[reader]], tmp_path / "out", tasks=2)
        for number in range(3):
            (tmp_path / "copy" / f"{number}.jsonl.gz").parent.mkdir(exist_ok=True)
            (tmp_path / "copy" / f"{number}.jsonl.gz").write_bytes(packed)
        assert equal(folder, made([[JsonlReader(str(tmp_path / "copy"))]], tmp_path / "local"))
    finally:
        bucket.rm("/bucket", recursive=True)


def test_warc_is_read(tmp_path):
    pytest.importorskip("magic", reason="needs the library libmagic", exc_type=ImportError)
    from warcio.warcwriter import WARCWriter

    with (tmp_path / "a.warc.gz").open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        for text in TEXTS[:20]:
            options = {"warc_content_type": "text/plain", "payload": io.BytesIO(text.encode())}
            record = writer.create_warc_record("https://example.org", "conversion", **options)
            record.rec_headers.add_header("WARC-Identified-Payload-Type", "text/plain")
            writer.write_record(record)
    assert texts([[WarcReader(str(tmp_path), glob_pattern="*.warc.gz")]]) == TEXTS[:20]


class Tagged(JsonlReader):
    """A file system that says which version of a file this is."""

    tag = "1"

    def __init__(self, folder):
        super().__init__(folder)
        info = self.data_folder.info
        self.data_folder.info = lambda name: {**info(name), "ETag": self.tag}


def test_what_a_bucket_says_of_its_files_is_part_of_their_listing(source, monkeypatch):
    monkeypatch.setattr("growlm.data.readers.pickle.dumps", lambda steps: None)
    first = listing(list_parts([[Tagged(str(source))]], "train"))
    assert first == listing(list_parts([[Tagged(str(source))]], "train"))
    monkeypatch.setattr(Tagged, "tag", "2")
    assert first != listing(list_parts([[Tagged(str(source))]], "train"))


# --- bad input


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ([], "the first step of a source must be a reader of files of datatrove, got 'NoneType'"),
        ([LambdaFilter(even)], "must be a reader of files of datatrove, got 'LambdaFilter'"),
        ([JsonlReader("no/such/folder")], "no/such/folder must hold files to read, got none"),
        ([JsonlReader("docs", glob_pattern="*.md"), LambdaFilter(lambda document: True)], "must be picklable"),
    ],
)
def test_steps_that_are_no_source_are_one_line(tmp_path, steps, says):
    with pytest.raises(InputError, match=says) as error:
        begin(Request((steps,), tmp_path / "out", "bytes"))
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_step_that_fails_is_one_line(source, tmp_path):
    steps = [JsonlReader(str(source), glob_pattern="*.jsonl"), LambdaFilter(even)]  # its records have no number
    with pytest.raises(InputError, match=r"cannot read .*text: KeyError: 'number'"):
        begin(Request((steps,), tmp_path / "out", "bytes"))


def test_what_was_not_begun_and_steps_in_the_wrong_place_are_one_line(source, tmp_path):
    request = Request((str(source),), tmp_path / "out", "bytes")
    for step in (TokenShards(request), MergeShards(request)):
        with pytest.raises(InputError, match=r"out must be begun by growlm\.data.pipeline\.begin"):
            step.run()
    with pytest.raises(InputError, match="the output of a job of several machines must be"):
        begin(dataclasses.replace(request, output=location("gs://bucket/out")))
    with pytest.raises(InputError, match="TokenShards must be the first step"):
        TokenShards(request).run(iter([]))
    with pytest.raises(InputError, match="tasks of MergeShards must be 1, got 2"):
        MergeShards(request).run(world_size=2)
    begin(request)
    with pytest.raises(InputError, match=r"of other settings: validation was None, not 0\.3"):
        TokenShards(Request((str(source),), tmp_path / "out", "bytes", validation="0.3")).run()
