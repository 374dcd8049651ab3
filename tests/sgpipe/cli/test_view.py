"""`sgpipe view`: what it prints, where it listens, and what it refuses."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from starlette.testclient import TestClient
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.view.app import Address
from tests.sgpipe.training.data.runs import make_run
from tests.sgpipe.view.gallery_run import record

Start = Callable[..., tuple[Result, TestClient]]


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
        result = CliRunner().invoke(app, ["view", str(root), "--no-browser", *options], catch_exceptions=False)
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


@pytest.mark.parametrize("options", [["--as", "x" * 201], ["--host", "no such host", "--port", "0"]])
def test_what_cannot_be_is_refused_in_one_line(root: Path, options: list[str]) -> None:
    result = CliRunner().invoke(app, ["view", str(root), "--no-browser", *options])
    assert (result.exit_code, options[0] in result.stderr.splitlines()[-1]) == (2, True), result.stderr
