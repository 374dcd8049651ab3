"""Shards in an object store: a server of moto's that speaks S3."""

import os
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

from sgpipe.errors import StoreError, UserError
from sgpipe.files.object_store import StorePath
from sgpipe.storage.manifest import MANIFEST, Manifest, WriterClaim
from sgpipe.storage.mirror import fetch
from tests.integration.faults.runs import Run, assert_whole, make_dataset, rows
from tests.integration.faults.stage import SECONDS
from tests.integration.faults.stub import COPIES


def test_objects_come_back_as_they_were_put(store: StorePath, tmp_path: Path) -> None:
    store.put("data/a", b"first")
    store.put("data/a", b"second")
    (tmp_path / "b").write_bytes(bytes(range(256)) * 50_000)
    store.put("data/b", tmp_path / "b")
    assert store.read("data/a") == b"second"
    assert store.sizes("data") == {"a": 6, "b": 12_800_000}
    store.get_file("data/b", tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == (tmp_path / "b").read_bytes()
    store.delete("data/a")
    store.delete("data/a")
    assert store.read("data/a") is None
    assert store.sizes("nowhere") == {}


def test_a_store_that_is_not_there_is_told_in_one_line(store: StorePath) -> None:
    with pytest.raises(StoreError, match=r"^s3://no-such-bucket/x: ") as caught:
        StorePath("s3://no-such-bucket/x").put("a", b"")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("point", ["mid write", "mid upload"])
def test_a_worker_killed_while_writing_leaves_nothing_behind(
    store: StorePath, server: str, tmp_path: Path, point: str
) -> None:
    """Neither in the folder for temporary files, nor in the store: what is uploaded in parts stays there invisibly."""
    (place := tmp_path / "temporary").mkdir()
    (charge := tmp_path / "charge").touch()
    code = (
        "import os, sys; from sgpipe.files import object_store; from sgpipe.records import Record\n"
        "from sgpipe.storage.shards import write_shard\n"
        "if sys.argv[2] == 'mid upload':\n    object_store.obstore.put = lambda *_, **__: os.kill(os.getpid(), 9)\n"
        "write_shard(object_store.StorePath(sys.argv[1]), 'data/val-000000000-000000001.parquet', 'val', 0,"
        " [Record('1', 'COCO', 'val', '1.png', 8, 8)], {})\n"
    )
    environment = {**os.environ, "TMPDIR": str(place), "SGPIPE_FAULT": f"{point}:{charge}"}
    killed = subprocess.run([sys.executable, "-c", code, store.uri, point], env=environment)
    assert killed.returncode == -signal.SIGKILL
    assert not any(place.iterdir())
    bucket = store.uri.split("/")[2]
    assert "<Upload>" not in urllib.request.urlopen(f"{server}/{bucket}?uploads").read().decode()
    assert store.sizes("data") == {}


@pytest.mark.slow
def test_a_killed_run_resumes_on_another_machine(store: StorePath, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", 40)
    options = ("--set", "engine.unit_size=1", "--set", "engine.cpus=2", "--store", store.uri)
    keys = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    run = Run(dataset, tmp_path / "killed", options, {SECONDS: "0.2", COPIES: "0.1", **keys})
    run.start()
    assert run.wait_for(lambda: run.committed > 6), run.said
    run.process.kill()
    run.process.join()
    assert 0 < len(Manifest.load(store).shards) <= run.committed
    again = Run(dataset, tmp_path / "again", options, keys)
    again.start()
    assert again.wait() == 0, again.said
    assert store.read(MANIFEST) == (again.out / MANIFEST).read_bytes()
    whole = Run(dataset, tmp_path / "whole")
    whole.start()
    assert whole.wait() == 0, whole.said
    fetch(store, tmp_path / "fetched", lambda images, counts: None)
    assert_whole(tmp_path / "fetched", rows(whole.out))


def test_of_runs_that_claim_a_store_at_once_one_keeps_it(store: StorePath) -> None:
    for number in range(10):
        claims = [WriterClaim(store) for _ in range(2 + number % 3)]
        start, kept = threading.Barrier(len(claims)), list[WriterClaim]()

        def claim(claim: WriterClaim, start: threading.Barrier = start, kept: list[WriterClaim] = kept) -> None:
            start.wait()
            try:
                claim.make()
            except (UserError, StoreError):
                return
            kept.append(claim)

        threads = [threading.Thread(target=claim, args=(each,)) for each in claims]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        holders = 0
        for each in kept:  # one that was claimed a moment before another began has lost it
            try:
                each.check()
                holders += 1
            except StoreError:
                pass
        assert holders == 1
