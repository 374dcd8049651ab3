"""The process of `sgpipe view`: how it ends."""

import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.sgpipe.training.data.runs import make_run, plain_record


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_in_order_with_one_line(tmp_path: Path, number: signal.Signals) -> None:
    make_run(tmp_path / "run", [plain_record("a", "riding")])
    command = [
        Path(sys.executable).parent / "sgpipe",
        "view",
        tmp_path / "run",
        "--no-browser",
        "--port",
        "0",
    ]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert server.stdout is not None
    # its connection stays open
    with urllib.request.urlopen(server.stdout.readline().strip()) as page:
        assert b"riding" in page.read()
    server.send_signal(number)
    _, errors = server.communicate(timeout=60)
    assert server.returncode == 0
    assert errors.endswith("Ctrl-C ends the server\nstopped\n")
