"""A run that grows while it is shown."""

import random
import threading
import time
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from sgpipe.storage.manifest import MANIFEST, Manifest
from sgpipe.storage.shards import shard_name, write_shard
from sgpipe.storage.verify import verify
from tests.endpoint_server import wait_until
from tests.sgpipe.training.data.runs import make_run
from tests.sgpipe.view.gallery_run import open_client, record


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setattr("sgpipe.view.pages._SECONDS_LOCAL", 0.0)
    make_run(tmp_path / "run", [record("a", (0, "riding", 1, 0.9))])
    return open_client(tmp_path / "run")


def test_committed_shards_appear_and_others_do_not(client: TestClient, tmp_path: Path) -> None:
    root = tmp_path / "run"
    entry = write_shard(
        root, shard_name("val", 1, 2), "val", 1, [record("b", (0, "near", 1, 0.8))], {}
    )
    assert client.get("/api/status").json()["images"] == 1
    Manifest.load(root).commit(entry)
    wait_until(lambda: client.get("/api/status").json()["images"] == 2)
    assert "2</span> relations" in client.get("/").text
    assert 'data-size="2 2"' in client.get("/").text


def test_a_run_that_can_no_longer_be_read_is_shown_as_it_was(
    client: TestClient, tmp_path: Path
) -> None:
    (tmp_path / "run" / MANIFEST).write_text("no manifest")
    wait_until(lambda: client.get("/api/status").json()["problems"] != [])
    page = client.get("/").text
    assert "1 problem: the rest is shown" in page
    assert "1</span> relation" in page


def test_the_rows_of_another_shard_are_not_shown_as_those_that_were_indexed(
    client: TestClient, tmp_path: Path
) -> None:
    [shard] = (tmp_path / "run" / "data").iterdir()
    other = (
        make_run(tmp_path / "other", [record("b", (0, "near", 1, 0.5))]).shards
        / "data"
        / shard.name
    )
    shard.write_bytes(other.read_bytes())
    page = client.get("/image/val/a")
    assert (page.status_code, "has changed since it was indexed" in page.text) == (422, True)


@pytest.mark.slow
@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_pages_read_one_state_of_the_index_while_shards_are_damaged_and_dropped(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("sgpipe.view.pages._SECONDS_LOCAL", 0.0)
    root = tmp_path / "run"
    make_run(
        root, [record(f"n{number}", (0, "near", 1, number / 40)) for number in range(40)], rows=2
    )
    client = open_client(root)
    statuses = set()
    done = threading.Event()
    pages = ("/", "/?order=shuffle&seed={}", "/?predicate=near&low=0.{}", "/image/val/n{}?relation=0-1-near", "/judge",
             "/api/neighbours/val/n{}?relation=0-1-near", "/photo/val/n{}?width=320")  # fmt: skip

    def read(seed: int) -> None:
        rng = random.Random(seed)
        while not done.is_set():
            page = rng.choice(pages).format(rng.randrange(40))
            statuses.add((page, client.get(page).status_code))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for number, shard in enumerate(sorted((root / "data").iterdir())[:12]):
        shard.write_bytes(shard.read_bytes()[:-9]) if number % 2 else shard.unlink()
        time.sleep(0.05)
        if number % 3 == 2:
            verify(root, repair=True)
    done.set()
    for thread in threads:
        thread.join()
    assert {status for page, status in statuses if "/n" not in page} == {200}
    assert {status for _, status in statuses} <= {200, 404, 422}
    wait_until(
        lambda: client.get("/api/status").json() == {"images": 16, "relations": 16, "problems": []}
    )
