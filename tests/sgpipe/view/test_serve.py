"""The address at which the server listens, and connections that end early."""

import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sgpipe.errors import UserError
from sgpipe.view.app import Address, listen, server_of
from tests.sgpipe.training.data.runs import make_run
from tests.sgpipe.view.gallery_run import open_client, record


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


def test_the_address_that_is_printed_works_in_a_browser() -> None:
    with socket.socket() as unused:
        assert Address(unused, "::1", 80).url("secret") == "http://[::1]:80/?token=secret"
    everywhere = listen("0.0.0.0", 0)
    everywhere.socket.close()
    assert everywhere.host == socket.gethostname()


HEADERS = b"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: 999"
POST = b"POST /api/judgements HTTP/1.1\r\n" + HEADERS + b"\r\n\r\n{"


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """The port of a running server."""
    make_run(tmp_path / "run", [record("a", (0, "riding", 1, 0.9))])
    server, address = server_of(open_client(tmp_path / "run").app), listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [address.socket]})
    thread.start()
    yield address.port
    server.should_exit = True
    thread.join()


def test_a_browser_that_goes_away_while_it_sends_is_not_a_bug(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bugs: list[object] = []
    monkeypatch.setattr(sys, "excepthook", lambda *error: bugs.append(error))
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(POST)
        time.sleep(0.3)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"GET /api/status HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(10_000).startswith(b"HTTP/1.1 200")
    time.sleep(0.5)  # errors are described in a thread
    assert not bugs
