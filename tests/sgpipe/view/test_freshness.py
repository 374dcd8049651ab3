"""A run that grows while it is shown."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from sgpipe.storage.manifest import MANIFEST, Manifest
from sgpipe.storage.shards import shard_name, write_shard
from tests.sgpipe.training.data.runs import make_run
from tests.sgpipe.view.gallery_run import open_client, record


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setattr("sgpipe.view.web._SECONDS_LOCAL", 0.0)
    make_run(tmp_path / "run", [record("a", (0, "riding", 1, 0.9))])
    return open_client(tmp_path / "run")


def wait_for(is_so: Callable[[], bool]) -> None:
    for _ in range(600):  # a minute, on a machine that does much else
        if is_so():
            return
        time.sleep(0.1)
    raise AssertionError("it did not happen")


def test_committed_shards_appear_and_others_do_not(client: TestClient, tmp_path: Path) -> None:
    root = tmp_path / "run"
    entry = write_shard(root, shard_name("val", 1, 2), "val", 1, [record("b", (0, "near", 1, 0.8))], {})
    assert client.get("/api/status").json()["images"] == 1
    Manifest.load(root).commit(entry)
    wait_for(lambda: client.get("/api/status").json()["images"] == 2)
    assert "2</span> relations" in client.get("/").text
    assert 'data-size="2 2"' in client.get("/").text


def test_a_run_that_can_no_longer_be_read_is_shown_as_it_was(client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "run" / MANIFEST).write_text("no manifest")
    wait_for(lambda: client.get("/api/status").json()["problems"] != [])
    page = client.get("/").text
    assert "1 problem: the rest is shown" in page
    assert "1</span> relation" in page


def test_the_rows_of_another_shard_are_not_shown_as_those_that_were_indexed(client: TestClient, tmp_path: Path) -> None:
    [shard] = (tmp_path / "run" / "data").iterdir()
    other = make_run(tmp_path / "other", [record("b", (0, "near", 1, 0.5))]).shards / "data" / shard.name
    shard.write_bytes(other.read_bytes())
    page = client.get("/image/val/a")
    assert (page.status_code, "has changed since it was indexed" in page.text) == (422, True)
