"""An object store: a server of moto's that speaks S3."""

import re
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication
from moto.server import ThreadedMotoServer
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.files.stores import StorePath, connect
from sgpipe.storage.manifest import MANIFEST, Manifest
from tests.values import values_of


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def store(
    server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> StorePath:
    """A place of its own in a bucket of its own."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    connect.cache_clear()
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = (
        re.sub("[^a-z0-9]+", "-", request.node.name)[:50].strip("-") + f"-{uuid.uuid4().hex[:8]}"
    )
    urllib.request.urlopen(urllib.request.Request(f"{server}/{bucket}", method="PUT"))
    return StorePath(f"s3://{bucket}/some/labels")


def upload(root: Path, store: StorePath) -> None:
    """Put the manifest of a run and its shards into a store."""
    for name in (*values_of(Manifest.load(root).shards, "file"), MANIFEST):
        (store / name).put(root / name)


class Faults:
    """What goes wrong with requests to the server: `fault` gets the method and path of each, and
    says what.
    """

    def __init__(self) -> None:
        self.fault: Callable[[str, str], str | None] = lambda method, path: None
        self.requests: list[tuple[str, str]] = []

    def answer(self, application: Any, environ: Any, start_response: Any) -> Iterable[bytes]:
        """A fault is "cut" (half of the body), or a status and a code of S3 ("503 SlowDown")."""
        method = environ["REQUEST_METHOD"]
        path = environ["PATH_INFO"]
        self.requests.append((method, path))
        fault = self.fault(method, path)
        if fault in (None, "cut"):
            body = b"".join(application(environ, start_response))
            return [body[: len(body) // 2] if fault else body]
        status, code = fault.split()
        start_response(
            f"{status} Error", [("Content-Type", "application/xml"), ("Connection", "close")]
        )
        return [f"<Error><Code>{code}</Code><Message>as asked for</Message></Error>".encode()]


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    """Faults of the server, which answers as asked for until the test ends."""
    faults = Faults()
    original = DomainDispatcherApplication.__call__
    monkeypatch.setattr(
        DomainDispatcherApplication,
        "__call__",
        lambda self, environ, start: faults.answer(
            lambda *request: original(self, *request), environ, start
        ),
    )
    return faults


def sgpipe(*words: object, code: int = 0) -> str:
    """What a command prints; on standard error, if it fails."""
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    return done.stderr if code else done.stdout
