"""A Hugging Face hub on loopback: what huggingface_hub asks of one to download a snapshot and to push a folder."""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest


class Hub:
    """Repositories by ORG/NAME: commits, the last one first, and whether they are private.

    asked: the files of repositories that were downloaded.
    """

    def __init__(self):
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.asked: list[str] = []

    def commit(self, name: str, files: dict[str, bytes]) -> str:
        """A commit with these files, which is `main` from now on."""
        said = json.dumps({path: hashlib.sha1(content).hexdigest() for path, content in files.items()})
        oid = hashlib.sha1(said.encode()).hexdigest()
        self.commits[name] = {oid: files} | self.commits.get(name, {})
        self.private.setdefault(name, False)
        return oid

    def commit_folder(self, name: str, folder: Path, **more: bytes) -> str:
        return self.commit(name, {path.name: path.read_bytes() for path in folder.iterdir()} | more)

    def find(self, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        commits = self.commits[name]
        oid = next(iter(commits)) if revision == "main" else revision
        return oid, commits[oid]


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, value, status=200, headers=()):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for header in (*headers, ("Content-Length", str(len(body)))):
            self.send_header(*header)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        path = urlsplit(self.path).path.removeprefix("/")
        try:
            if path.startswith(("api/models/", "api/datasets/")):
                org, repo, *rest = path.split("/")[2:]
                self.describe(f"{org}/{repo}", *rest)
            else:
                org, repo, _, revision, file = path.split("/", 4)
                self.file(f"{org}/{repo}", revision, file)
        except KeyError as error:
            kind = "RepoNotFound" if "/" in str(error) else "RevisionNotFound"
            self.answer({"error": "not found"}, 404, [("X-Error-Code", kind)])

    do_HEAD = do_GET

    def describe(self, name, kind="revision", revision="main"):
        oid, files = self.hub.find(name, revision)
        if kind == "tree":
            rows = [(path, len(content), hashlib.sha1(content).hexdigest()) for path, content in files.items()]
            self.answer([{"type": "file", "path": path, "size": size, "oid": blob} for path, size, blob in rows])
            return
        siblings = [{"rfilename": path} for path in files]
        self.answer({"id": name, "sha": oid, "private": self.hub.private[name], "siblings": siblings})

    def file(self, name, revision, file):
        oid, files = self.hub.find(name, revision)
        self.hub.asked.append(file)
        tag = hashlib.sha1(files[file]).hexdigest()
        self.answer(files[file], headers=[("ETag", f'"{tag}"'), ("X-Repo-Commit", oid)])

    def do_POST(self):
        here = f"http://{self.headers['Host']}"
        body, path = self.rfile.read(int(self.headers["Content-Length"])), urlsplit(self.path).path
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.hub.commits:
                self.answer({"error": "there is one"}, 409)
                return
            self.hub.private[name] = asked.get("private", asked.get("visibility") == "private")
            self.hub.commit(name, {".gitattributes": b""})
            self.answer({"url": f"{here}/{name}"})
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        else:
            name = "/".join(path.removeprefix("/api/models/").split("/")[:2])
            rows = [json.loads(line) for line in body.splitlines()]
            files = {
                row["value"]["path"]: base64.b64decode(row["value"]["content"]) for row in rows if row["key"] == "file"
            }
            oid = self.hub.commit(name, self.hub.find(name, "main")[1] | files)
            self.answer({"commitUrl": f"{here}/{name}/commit/{oid}", "commitOid": oid, "success": True})


@contextlib.contextmanager
def serving() -> Iterator[tuple[Hub, str]]:
    """(hub, its address)."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Of", (Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub to which this process's huggingface_hub turns, with a cache of its own and somebody logged in."""
    constants = pytest.importorskip("huggingface_hub.constants")
    with serving() as (hub, address):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield hub
