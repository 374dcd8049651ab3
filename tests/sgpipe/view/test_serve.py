"""The address at which the server listens."""

import socket

import pytest

from sgpipe.errors import UserError
from sgpipe.view.app import Address, listen


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
