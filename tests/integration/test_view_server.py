"""The process of `sgpipe view`: how it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.sgpipe.training.data.runs import make_run
from tests.sgpipe.view.gallery_run import record

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("view") / "run"
    make_run(root, [record("a", (0, "riding", 1, 0.9))])
    return root


def start(root: Path) -> tuple[subprocess.Popen[str], str]:
    command = [Path(sys.executable).parent / "sgpipe", "view", root, "--no-browser", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert server.stdout is not None
    return server, server.stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_in_order_with_one_line(root: Path, number: signal.Signals) -> None:
    server, url = start(root)
    with urllib.request.urlopen(url) as page:  # its connection stays open
        assert b"riding" in page.read()
    server.send_signal(number)
    _, said = server.communicate(timeout=60)
    assert server.returncode == 0
    assert said.endswith("Ctrl-C ends the server\nstopped\n")
