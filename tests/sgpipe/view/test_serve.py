"""`sgpipe view`: what it prints, where it listens, and connections that are slow or end early."""

import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from starlette.testclient import TestClient
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.errors import UserError
from sgpipe.view.app import Address, listen, server_of
from tests.sgpipe.training.data.runs import make_run
from tests.sgpipe.view.gallery_run import open_client, record

Start = Callable[..., tuple[Result, TestClient]]
LARGE = 40_000_000  # bytes of an image, more than the system's buffers
HEADERS = b"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: 999"
POST = b"POST /api/judgements HTTP/1.1\r\n" + HEADERS + b"\r\n\r\n{"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("view") / "run"
    make_run(root, [record("a", (0, "riding", 1, 0.9))])
    return root


@pytest.fixture
def start(root: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """A function that runs the command; instead of serving, it hands over the application."""
    served: list[Any] = []

    def serve(application: Any, address: Address) -> None:
        served.append(application)
        address.socket.close()

    monkeypatch.setattr("sgpipe.view.app.serve", serve)
    monkeypatch.setattr("sgpipe.view.app.open_browser", None)

    def start_(*options: str) -> tuple[Result, TestClient]:
        result = CliRunner().invoke(
            app, ["view", str(root), "--no-browser", *options], catch_exceptions=False
        )
        assert result.exit_code == 0, result.stderr
        return result, TestClient(served.pop(), base_url="http://localhost")

    return start_


def test_it_prints_the_address_alone_and_says_the_rest(start: Start, root: Path) -> None:
    result, client = start("--port", "0")
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\n", result.stdout)
    assert f"{root}: 1 image, 1 relation\n" in result.stderr
    assert result.stderr.endswith("Ctrl-C ends the server\nstopped\n")
    assert "<bdi>run</bdi>" in client.get("/").text


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
def test_with_a_host_everybody_needs_the_token_that_is_printed(start: Start, host: str) -> None:
    result, client = start("--host", host, "--port", "0")
    [token] = re.findall(r"\?token=([\w-]{32})\n", result.stdout)
    assert client.get("/").status_code == 401
    assert client.get(f"/?token={token}").status_code == 200


def test_a_name_and_reading_only_reach_the_pages(start: Start) -> None:
    _, client = start("--port", "0", "--as", "<anna>", "--read-only")
    assert 'data-name="&lt;anna&gt;" data-read-only="true"' in client.get("/").text
    assert client.post("/api/judgements", json={}).status_code == 403


def test_the_next_free_port_is_taken() -> None:
    first = listen("127.0.0.1", 0)
    second = listen("127.0.0.1", first.port)
    try:
        assert first.port < second.port < first.port + 50
        assert second.url() == f"http://127.0.0.1:{second.port}/"
        with socket.create_connection(("127.0.0.1", second.port), timeout=5):
            pass  # also before the server runs
    finally:
        first.socket.close()
        second.socket.close()


def test_a_host_that_is_not_of_this_machine_is_refused() -> None:
    for host in ("no such host", "192.0.2.1"):  # the second is reserved for documentation
        with pytest.raises(UserError, match=f"^--host {host} ") as refused:
            listen(host, 0)
        assert "\n" not in str(refused.value)


@pytest.fixture
def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a running server, whose requests must arrive within a second."""
    monkeypatch.setattr("sgpipe.view.app._REQUEST_SECONDS", 1.0)
    monkeypatch.setattr("sgpipe.view.app._STALLED_SECONDS", 1.0)
    monkeypatch.setattr("sgpipe.view.gallery._jpeg", lambda *_: bytes(LARGE))
    make_run(tmp_path / "run", [record("a", (0, "riding", 1, 0.9), file_name="a.png")])
    server = server_of(open_client(tmp_path / "run").app)
    address = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [address.socket]})
    thread.start()
    yield address.port
    server.should_exit = True
    thread.join()


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


@pytest.mark.slow
@pytest.mark.parametrize("start", [b"", b"GET / HTTP/1.1\r\nX: ", POST])
def test_a_connection_whose_request_does_not_arrive_is_closed(port: int, start: bytes) -> None:
    with connected(port) as connection:
        connection.sendall(start)
        connection.settimeout(0.2)
        for _ in range(150):
            try:
                assert connection.recv(100) == b""
                break
            except TimeoutError:
                connection.sendall(b"1" if start else b"")
            except ConnectionError:
                break
        else:
            raise AssertionError("it stays open")


@pytest.mark.slow
def test_a_whole_request_is_answered_and_its_connection_serves_the_next(port: int) -> None:
    with connected(port) as connection:
        for part in (b"GET /api/status HTTP/1.1\r\n", b"Host: localhost\r\n\r\n") * 2:
            connection.sendall(part)
            time.sleep(0.6)
            assert b"Host" not in part or connection.recv(10_000).startswith(b"HTTP/1.1 200")


def test_a_browser_that_goes_away_while_it_sends_is_not_a_bug(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bugs: list[object] = []
    monkeypatch.setattr(sys, "excepthook", lambda *error: bugs.append(error))
    with connected(port) as connection:
        connection.sendall(POST)
        time.sleep(0.3)
    with connected(port) as connection:
        connection.sendall(b"GET /api/status HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(10_000).startswith(b"HTTP/1.1 200")
    time.sleep(0.5)  # errors are described in a thread
    assert not bugs


@pytest.mark.slow
def test_a_connection_that_reads_nothing_is_closed_and_one_that_reads_is_served(port: int) -> None:
    request = b"GET /photo/val/a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    sizes = []
    for wait in (3.0, 0.0):
        with connected(port) as connection:
            connection.sendall(request)
            time.sleep(wait)
            size = 0
            with suppress(ConnectionError):
                while data := connection.recv(1_000_000):
                    size += len(data)
            sizes.append(size)
    assert sizes[0] < LARGE < sizes[1]
