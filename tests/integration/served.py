"""Servers of other programs in processes of their own."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from tests.endpoint_server import wait_until


@contextmanager
def served(command: Sequence[object], log: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """The address of a server that answers at /health. `command`: without its last option, the
    port.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = [*map(str, command), "--port", port]
    address = f"http://127.0.0.1:{port}"
    with log.open("w") as file:
        process = subprocess.Popen(words, stdout=file, stderr=file, env=os.environ | environment)

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        with suppress(httpx.TransportError):
            return httpx.get(f"{address}/health").is_success
        return False

    try:
        wait_until(answers, seconds=300, every=1)
        yield address
    finally:
        process.terminate()
        process.wait(60)
