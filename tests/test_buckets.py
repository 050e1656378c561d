"""Buckets: paths and what is refused of them; copies, mirrors, whole folders and leases on servers of this machine."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path, PurePosixPath

import jax
import numpy as np
import pytest
import tiny
from bucket_servers import SCHEMES, objects, put
from prepared import TEXTS, write_sources
from test_accelerator import gone

import growlm
from growlm import buckets as places
from growlm import leases
from growlm.__main__ import main
from growlm.data import load_corpus
from growlm.errors import InputError, InUseError
from growlm.formats.export import write_model
from growlm.models import ARCHITECTURES
from growlm.training.config import load_config
from growlm.training.saved import read_model

MODEL = growlm.ModelConfig(layers=1, embed=8, heads=2, kv_heads=1, head_dim=4, mlp=12, vocab=16)
SERVED = pytest.mark.slow  # the servers take seconds to start


@pytest.fixture(params=SCHEMES)
def url(request, buckets):
    """A place in a bucket that no other test has."""
    return f"{request.param}://bucket/{os.environ['PYTEST_CURRENT_TEST'].split('::')[-1].split('[')[0]}-{request.param}"


def test_a_server_beside_tests_that_are_killed_ends_with_them(tmp_path):
    begin = ["sh", "-c", f"echo $$ > {tmp_path}/part; mv {tmp_path}/part {tmp_path}/pid; exec sleep 600"]
    code = f"import time, bucket_servers; server = bucket_servers.beside_us(*{begin}); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent) as tests:
        while not (tmp_path / "pid").exists():
            time.sleep(0.05)
        pid = (tmp_path / "pid").read_text().strip()
        assert Path(f"/proc/{pid}").exists()
        tests.kill()
    assert gone(pid)


@pytest.mark.parametrize("text", ["foo://bucket/run", "file:///tmp/run", "gs://", "s3:///"])
def test_another_scheme_is_refused_in_one_line(text):
    with pytest.raises(
        InputError, match=r"a path must be on a local disk, or gs://BUCKET/PATH or s3://BUCKET/PATH, got"
    ):
        places.location(text)


OPTIONS_WITH_PATHS = [
    ["train", "--config=growlm:quickstart", "--workdir=foo://b/run"],
    ["train", "--config=foo://b/experiment.py:tiny", "--workdir=run"],
    ["train", "--config=growlm:quickstart", "--workdir=run", "--compilation_cache=foo://b/c"],
    ["sweep", "--config=growlm:quickstart:tiny", "--workdir=foo://b/run"],
    ["sweep", "--config=growlm:quickstart:tiny", "--workdir=run", "--config.corpus=foo://b/c"],
    ["prepare", "--source=foo://b/texts", "--tokenizer=bytes", "--output=out"],
    ["prepare", "--source=a.txt", "--tokenizer=foo://b/tokenizer", "--output=out"],
    ["prepare", "--source=a.txt", "--tokenizer=bytes", "--output=foo://b/out"],
    ["grow", "--source=foo://b/run", "--factor=2"],
    ["grow", "--source=run", "--output=foo://b/run", "--factor=2"],
    ["convert", "--source=foo://b/run", "--describe"],
    ["convert", "--source=run", "--to=growlm", "--output=foo://b/run"],
    ["evaluate", "--checkpoint=foo://b/run", "--tasks=piqa"],
    ["evaluate", "--checkpoint=run", "--perplexity=foo://b/text"],
    ["evaluate", "--checkpoint=run", "--tasks=piqa", "--data_dir=foo://b/tasks"],
    ["evaluate", "--checkpoint=run", "--tasks=piqa", "--output=foo://b/scores"],
    ["sample", "--checkpoint=foo://b/run"],
    ["sample", "--checkpoint=run", "--prompts=foo://b/prompts"],
    ["probe", "--config=growlm:decide", "--checkpoint=foo://b/run"],
    ["probe", "--config=growlm:decide", "--checkpoint=run", "--workdir=foo://b/run"],
    ["report", "--workdir=foo://b/run"],
    ["report", "--runs=foo://b/run"],
    ["archive", "--workdir=foo://b/run", "--output=out"],
    ["archive", "--workdir=run", "--output=foo://b/out"],
    ["fit", "--law=timing", "--runs=foo://b/runs"],
    ["fit", "--law=timing", "--runs=run", "--figures=foo://b/out"],
    ["plan", "--params=7B", "--tokens=1T", "--records=foo://b/runs"],
    ["plan", "--params=7B", "--tokens=1T", "--figure=foo://b/a.png"],
    ["plan", "--params=7B", "--tokens=1T", "--write=foo://b/a.py"],
    ["doctor", "--workdir=foo://b/run"],
]


@pytest.mark.parametrize("arguments", OPTIONS_WITH_PATHS, ids=" ".join)
def test_every_option_that_takes_a_path_refuses_another_scheme_and_writes_nothing(
    arguments, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text(tiny.WORDS[0] * 9000)
    assert main(arguments) == 2
    said = capsys.readouterr().err.splitlines()
    wrong = [text for text in said if "://b/" in text]
    assert len(wrong) == 1 and wrong[0].startswith("growlm: ") and "gs://BUCKET/PATH" in wrong[0], said
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_setting_with_a_path_refuses_another_scheme(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    corpus = tiny.write_corpus(tmp_path)
    tiny.write_config(tmp_path / "run.py", tiny.run(corpus, tiny.stage(1, init_from="foo://b/model")))
    assert main(["train", "--config=run.py", "--workdir=run"]) == 2
    assert capsys.readouterr().err.count("gs://BUCKET/PATH") == 1


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(places.SCHEMES, "gs", places.Scheme("gcs", "no_such_module", states=True))
    with pytest.raises(InputError, match=r"^gs://b/run needs the library no_such_module: pip install growlm\[gcs\]$"):
        places.location("gs://b/run")


@SERVED
def test_the_library_of_a_bucket_prints_no_tracebacks_of_its_own():
    code = """if True:
        import logging
        from growlm.buckets import location
        for scheme, name in (("gs", "gcsfs"), ("s3", "s3fs")):
            location(f"{scheme}://bucket/run")
            logging.getLogger(name).error("a traceback")
        """
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


@SERVED
def test_a_path_that_pathlib_has_mangled_is_still_one_of_a_bucket(buckets):
    path = places.location(Path("gs://b/run"))
    assert str(path) == "gs://b/run" and places.is_bucket(path) and places.absolute(path) == path
    assert places.location("b/run") == Path("b/run") and not places.is_bucket(Path("b/run"))


def test_a_local_folder_is_its_own_copy_and_its_own_mirror(tmp_path):
    assert places.here(tmp_path) == tmp_path
    with places.mirrored(tmp_path) as mirror, leases.leased(tmp_path, lost=pytest.fail):
        assert mirror.folder == tmp_path
        mirror.push()
    assert not list(tmp_path.iterdir())


@SERVED
def test_a_copy_follows_the_bucket_and_fetches_only_what_changed(url):
    for name, content in {"a.txt": b"one", "deep/b.txt": b"two"}.items():
        put(f"{url}/{name}", content)
    folder = places.here(url)
    assert folder.name == PurePosixPath(url).name
    assert {path.read_bytes() for path in folder.rglob("*.txt")} == {b"one", b"two"}
    kept = (folder / "a.txt").stat().st_ino
    put(f"{url}/deep/b.txt", b"six")  # as many bytes
    put(f"{url}/c.txt", b"three")
    assert places.here(url) == folder and (folder / "deep" / "b.txt").read_bytes() == b"six"
    assert (folder / "c.txt").read_bytes() == b"three" and (folder / "a.txt").stat().st_ino == kept
    (folder / "a.txt").write_bytes(b"spoilt")
    assert (places.here(url) / "a.txt").read_bytes() == b"one"
    assert places.here(f"{url}/c.txt").read_bytes() == b"three"  # a file alone
    assert not places.here(f"{url}/none").exists()


@SERVED
def test_a_mirror_brings_to_the_bucket_what_changed_and_leaves_checkpoints_where_they_are(url):
    state = "checkpoints/0a/checkpoints/4/data"
    put(f"{url}/{state}", b"large")
    put(f"{url}/config.json", b"{}")
    put(f"{url}/old.json", b"{}")
    with places.mirrored(places.location(url)) as mirror:
        assert sorted(path.name for path in mirror.folder.rglob("*.*")) == ["config.json", "old.json"]
        (mirror.folder / "old.json").unlink()
        (mirror.folder / "checkpoints" / "0a").mkdir(parents=True)
        (mirror.folder / "checkpoints" / "0a" / "stage.json").write_bytes(b"1")
        (mirror.folder / ".lock").write_bytes(b"")
        (mirror.folder / ".metrics.jsonl.7.part").write_bytes(b"half")
        mirror.push()
        expected = {state: b"large", "config.json": b"{}", "checkpoints/0a/stage.json": b"1"}
        assert objects(url) == expected
        (mirror.folder / "metrics.jsonl").write_bytes(b"2")
    assert objects(url) == expected | {"metrics.jsonl": b"2"}
    assert not mirror.folder.exists()


@SERVED
def test_a_folder_is_whole_in_the_bucket_or_is_taken_for_none(url, monkeypatch):
    path = places.location(url)
    with pytest.raises(RuntimeError), places.whole(path) as part:
        (part / "config.json").write_bytes(b"{}")
        raise RuntimeError
    assert objects(url) == {}

    with monkeypatch.context() as patch:  # killed while it uploads
        patch.setattr(places._Copy, "push", lambda self: (put(f"{url}/left.json", b"{}"), 1 / 0))
        with pytest.raises(ZeroDivisionError), places.whole(path) as part:
            (part / "config.json").write_bytes(b"{}")
    assert places.UNFINISHED in objects(url) and not places.holds_something(path)
    with pytest.raises(InputError, match="is not whole"):
        places.here(url)

    with places.whole(path) as part:
        (part / "config.json").write_bytes(b"{}")
    assert objects(url) == {"config.json": b"{}"}
    with pytest.raises(InputError, match="must be a new or empty folder"), places.whole(path):
        pass


@SERVED
def test_folders_are_whole_each_by_itself_and_are_removed_from_the_first_moment_on(url, tmp_path, monkeypatch):
    place = places.location(url)
    assert places.whole_folders(place) == set()
    for name in ("4", "8"):
        (tmp_path / name / "default").mkdir(parents=True)
        (tmp_path / name / "default" / "data").write_bytes(name.encode())
        places.upload(tmp_path / name, place / name)
    with monkeypatch.context() as patch:  # killed in the middle of a removal, and of an upload
        patch.setattr(places, "_listing", lambda folder: 1 / 0)
        with pytest.raises(InputError), places.reaching(place):
            places.remove(place / "4")
    put(f"{url}/12/{places.UNFINISHED}", b"")
    put(f"{url}/12/default/data", b"1")
    assert places.whole_folders(place) == {"8"}
    with pytest.raises(InputError, match="4 is not whole"), places.fetched(place / "4"):
        pass
    with places.fetched(place / "8") as folder:
        assert (folder / "default" / "data").read_bytes() == b"8"
    assert not folder.exists()
    with pytest.raises(InputError, match="16 is not there"), places.fetched(place / "16"):
        pass
    places.clear_unfinished(place)
    assert objects(url) == {"8/default/data": b"8"}
    places.remove(place / "8")
    assert objects(url) == {}


def test_what_a_killed_process_left_of_temporary_files_is_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = """if True:
        import os, signal
        from growlm.buckets import scratch
        with scratch() as folder:
            (folder / "state").write_bytes(b"large")
            os.kill(os.getpid(), signal.SIGKILL)
        """
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(tmp_path)}, check=False)
    (left,) = tmp_path.iterdir()
    assert (left / "state").exists()
    (tmp_path / "growlm-of-others").mkdir()
    with places.scratch() as folder:
        assert not left.exists() and folder.parent == tmp_path
        with places.scratch() as other:  # the first is in use, and stays
            assert folder.is_dir() and other.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["growlm-of-others"]


@SERVED
def test_a_lease_is_one_process_s_and_outlives_none(url, monkeypatch):
    monkeypatch.setattr(leases, "SECONDS", 2.0)
    path = places.location(url)
    with leases.leased(path, lost=lambda: None):
        held = json.loads(objects(url)[places.LEASE])
        assert (held["process"], held["host"]) == (os.getpid(), socket.gethostname())
        with (
            pytest.raises(InUseError, match=f"{url} is in use by process {os.getpid()} on"),
            leases.leased(path, print),
        ):
            pass
    assert objects(url) == {}

    with subprocess.Popen([sys.executable, "-c", ""]) as process:  # the holder's process on this machine has ended
        process.wait()
    put(f"{url}/{places.LEASE}", json.dumps(held | {"process": process.pid}).encode())
    begun = time.monotonic()
    with leases.leased(path, lost=lambda: None):
        assert time.monotonic() - begun < 2.0
    put(f"{url}/{places.LEASE}", json.dumps(held | {"host": "another"}).encode())  # one elsewhere renews it no more
    with leases.leased(path, lost=lambda: None):
        assert time.monotonic() - begun > 2.0


@SERVED
def test_who_was_taken_for_dead_hears_of_it(url, monkeypatch):
    monkeypatch.setattr(leases, "SECONDS", 0.6)
    heard = []
    with leases.leased(places.location(url), lost=lambda: heard.append(True)):
        other = json.dumps({"holder": "another"}).encode()
        put(f"{url}/{places.LEASE}", other)
        while not heard:
            time.sleep(0.05)
    assert objects(url)[places.LEASE] == other  # which is not given back


@SERVED
def test_token_shards_are_prepared_into_a_bucket_and_trained_on_from_there(url, tmp_path, capsys):
    source = write_sources(tmp_path / "texts")
    command = ["prepare", f"--source={source}", "--tokenizer=bytes", "--workers=1"]
    assert main([*command, f"--output={tmp_path / 'local'}"]) == 0
    assert main([*command, f"--output={url}/shards"]) == 0
    assert f"written: {url}/shards" in capsys.readouterr().out
    want, have = load_corpus(str(tmp_path / "local")), load_corpus(f"{url}/shards")
    assert have.fingerprint == want.fingerprint and have.name == f"{url}/shards"
    assert bytes(np.asarray(have.train[:])) == bytes(np.asarray(want.train[:]))
    assert main(["prepare", "--verify", f"--output={url}/shards"]) == 0
    assert main([*command, f"--output={url}/shards"]) == 0  # it is there, and stays
    put(f"{url}/texts/a.txt", "\n".join(TEXTS).encode())
    assert main(["prepare", f"--source={url}/texts", "--tokenizer=bytes", "--workers=1", f"--output={url}/b"]) == 0
    assert load_corpus(f"{url}/b").train[:20].tobytes().startswith(np.array([*TEXTS[0].encode()], "<u2").tobytes()[:20])
    settings = tiny.run(f"{url}/shards", tiny.stage(2))
    tiny.write_config(tmp_path / "run.py", settings)
    put(f"{url}/run.py", (tmp_path / "run.py").read_bytes())
    assert load_config(f"{url}/run.py", ["seed=3"]) == settings | {"seed": 3}


@SERVED
def test_hugging_face_folders_and_grown_ones_in_a_bucket(url, capsys):
    params = growlm.init(MODEL, jax.random.key(0))
    write_model(f"{url}/hf", MODEL, params)
    config, read = read_model(f"{url}/hf")
    assert config == MODEL and config.architecture is ARCHITECTURES["llama"]
    jax.tree.map(np.testing.assert_array_equal, read, params)
    put(f"{url}/hf/pytorch_model.bin", b"never fetched")
    grow = ["grow", f"--source={url}/hf", "--factor=2"]
    assert main([*grow, f"--output={url}/grown"]) == 0, capsys.readouterr().err
    assert main([*grow, f"--output={url}/grown"]) == 2 and "is not empty" in capsys.readouterr().err
    assert main(["sample", f"--checkpoint={url}/hf", "--prompt=a"]) == 2
    assert f"folder {url}/hf must hold one tokenizer" in capsys.readouterr().err  # nor is it named
    assert read_model(f"{url}/grown")[0].layers == 2
    report = json.loads(objects(f"{url}/grown")["growth.json"])
    assert report["grown_from"]["folder"] == f"{url}/hf"  # not the copy that was read
    assert main(["convert", f"--source={url}/hf", "--to=growlm", f"--output={url}/ours"]) == 0
    jax.tree.map(np.testing.assert_array_equal, read_model(f"{url}/ours")[1], params)
    assert not [name for name in objects(url) if name.endswith(places.UNFINISHED)]
