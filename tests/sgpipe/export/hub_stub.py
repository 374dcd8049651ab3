"""A stub of the Hugging Face hub on loopback: the part of its API for making, filling and reading
repositories.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.values import values_of

TOKEN = "hf_secretsecretsecret"
COMMIT = "0" * 40


@dataclass
class HubStub:
    """One user's datasets, by name, and models, by "models/" and name."""

    # how Parquet files are sent: in the commit, or (lfs) by themselves, then named by it
    mode: str = "regular"
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    # the files of a model by commit
    versions: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    # the next answers by words in the path; 0: none
    failures: dict[str, list[int]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    # commit and name of the files that were asked for
    downloads: list[str] = field(default_factory=list)
    url: str = ""

    def answer(self, method: str, path: str, body: bytes, token: str | None) -> tuple[int, Any]:
        for word, statuses in self.failures.items():
            if word in path and statuses and (status := statuses.pop(0)):
                return status, {"error": "no"}
        if method == "PUT" and path.startswith("/upload/"):
            self.objects[path.removeprefix("/upload/")] = body
            return 200, {}
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid credentials"}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        match = re.match(r"/(?:api/)?(datasets/|models/|)([\w-]+/[\w-]+)(?:\.git)?(/.*)?$", path)
        name = match and (match[2] if match[1] == "datasets/" else f"models/{match[2]}")
        if match is None or name not in self.repositories:
            return 404, {"error": "Repository not found"}
        return self._of(name, match[3] or "", body)

    def commit_of(self, path: str) -> str:
        """The commit of the repository that a path is in, or the one that the path names."""
        match = re.search(r"/resolve/([0-9a-f]{40})/", path)
        if match:
            return match[1]
        match = re.match(r"/([\w-]+/[\w-]+)/resolve/", path)
        return self._sha(f"models/{match[1]}") if match else COMMIT

    def _sha(self, name: str) -> str:
        if not name.startswith("models/"):
            return COMMIT
        sha = hashlib.sha1(repr(sorted(self.repositories[name].items())).encode()).hexdigest()
        self.versions[sha] = dict(self.repositories[name])
        return sha

    def _create(self, wanted: dict[str, Any]) -> tuple[int, Any]:
        name = f"{wanted.get('organization') or 'anna'}/{wanted['name']}"
        if not name.startswith("anna/"):
            return 403, {
                "error": "You don't have the rights to create a dataset under this namespace"
            }
        if wanted.get("type", "model") == "model":
            name = f"models/{name}"
        self.repositories.setdefault(name, {".gitattributes": b"*.parquet filter=lfs"})
        self.private[name] = wanted.get("private", wanted.get("visibility") == "private")
        return 200, {"url": self._page(name), "id": name.removeprefix("models/")}

    def _page(self, name: str) -> str:
        is_model = name.startswith("models/")
        return f"{self.url}/{name.removeprefix('models/') if is_model else f'datasets/{name}'}"

    def _of(self, name: str, rest: str, body: bytes) -> tuple[int, Any]:
        files = self.repositories[name]
        if rest.startswith("/preupload"):
            paths = values_of(json.loads(body)["files"], "path")
            large = (".parquet", ".safetensors")
            modes = {path: self.mode if path.endswith(large) else "regular" for path in paths}
            plain = {"shouldIgnore": False, "oid": None}
            return 200, {
                "files": [
                    {"path": path, "uploadMode": mode} | plain for path, mode in modes.items()
                ]
            }
        if rest.startswith("/commit"):
            return self._commit(name, list(map(json.loads, body.splitlines())))
        if rest.startswith("/tree"):
            return 200, [
                {"type": "file", "path": path, "size": len(data), "oid": "0"}
                for path, data in files.items()
            ]
        if rest.startswith("/info/lfs"):
            objects = json.loads(body)["objects"]
            for lfs_object in objects:
                lfs_object["actions"] = {
                    "upload": {"href": f"{self.url}/upload/{lfs_object['oid']}"}
                }
            return 200, {"objects": objects}
        if rest.startswith("/resolve/"):
            _, _, revision, file = rest.split("/", 3)
            files = self.versions.get(revision, files)
            return (200, files[file]) if file in files else (404, {"error": "Entry not found"})
        tags = ["sgpipe"] if b"- sgpipe\n" in files.get("README.md", b"") else []
        siblings = [{"rfilename": path, "size": len(data)} for path, data in files.items()]
        described = {
            "id": name.removeprefix("models/"),
            "sha": self._sha(name),
            "siblings": siblings,
            "tags": tags,
        }
        return 200, {
            **described,
            "private": self.private.get(name, False),
            "downloads": 0,
            "likes": 0,
        }

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        files = self.repositories[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.commits.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        return 200, {"commitUrl": f"{self._page(name)}/commit/{'1' * 40}", "commitOid": "1" * 40}


@contextmanager
def serving(stub: HubStub) -> Iterator[HubStub]:
    """The stub, which answers at its `url`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # else the body of an answer waits 40 ms for the receipt of its header
        disable_nagle_algorithm = True

        def _serve(self) -> None:
            path = self.path.partition("?")[0]
            status, value = stub.answer(
                self.command, path, self._body(), self.headers.get("Authorization")
            )
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            if status == 404:
                self.send_header(
                    "X-Error-Code", "EntryNotFound" if "Entry" in value["error"] else "RepoNotFound"
                )
            elif "/resolve/" in path:
                self.send_header("X-Repo-Commit", stub.commit_of(path))
                self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
                stub.downloads.append(path.rpartition("/resolve/")[2])
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                chunks = []
                while size := int(self.rfile.readline(), 16):
                    chunks.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(chunks)
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        do_GET = do_HEAD = do_POST = do_PUT = _serve  # noqa: N815 - names of http.server

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()


def answer_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have huggingface_hub ask this address."""
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubStub]:
    """A stub that a user who is logged in asks, with an empty cache."""
    cache = str(tmp_path / "cache")
    with serving(HubStub(mode="lfs")) as stub:
        answer_at(stub.url, monkeypatch)
        for name, value in {
            "HF_HUB_OFFLINE": False,
            "HF_HUB_CACHE": cache,
            "HF_HUB_DISABLE_XET": True,
        }.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_HUB_CACHE", cache)  # of workers
        yield stub
