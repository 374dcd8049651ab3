"""Runs that start the servers of their model themselves: servers that are killed, and runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from sgpipe.records import Record
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.shards import iter_records
from tests.detections import make_coco
from tests.endpoint_server import wait_until
from tests.engine_commands import MODEL, servers_of, stand_in
from tests.processes import descendants, is_gone

IMAGES = 80
SAMPLES = 2
PROGRAM = (sys.executable, "-c", "from sgpipe.cli.main import main; main()")


class EngineRun:
    """`sgpipe generate` with two servers, as a process of its own."""

    def __init__(self, folder: Path, data: Sequence[str], kind: str, **replicas: object) -> None:
        self.out = folder / "run"
        self.log = folder / "run.log"
        settings = {
            "caption.engine": stand_in("--seconds", "0.1", "--child"),
            "caption.replicas.min": 2,
            "caption.samples": SAMPLES,
            "caption.requests.in_flight": 4,
            "caption.resources.actors": 1,
            "engine.kind": kind,
            "engine.unit_size": 8,
            "tag.method": "all",
            **replicas,
        }
        words = [*PROGRAM, "generate", "coco", *data, "--split", "val", "--out", str(self.out)]
        words += ["--captioner", MODEL]
        for name, value in settings.items():
            words += ["--set", f"{name}={value}"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log)

    def wait_for_shards(self, number: int) -> None:
        def are_there() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return self.shards() >= number

        wait_until(are_there, 300, every=0.05)

    def shards(self) -> int:
        try:
            return len(Manifest.load(self.out).shards)
        except Exception:  # noqa: BLE001 - there is none yet
            return 0

    def rows(self) -> list[Record]:
        assert self.process.wait(300) == 0, self.log.read_text()
        return sorted(iter_records(self.out), key=lambda record: record.image_id)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return make_coco(tmp_path_factory.mktemp("coco"), IMAGES).options[:4]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: list[str]) -> list[Record]:
    run = EngineRun(tmp_path_factory.mktemp("undisturbed"), data, "local")
    rows = run.rows()
    assert all(len(row.captions) == SAMPLES for row in rows)
    assert len(rows) == IMAGES
    return rows


def test_a_killed_server_returns_and_changes_no_row(
    tmp_path: Path, data: list[str], undisturbed: list[Record]
) -> None:
    run = EngineRun(tmp_path, data, "local")
    run.wait_for_shards(2)
    family = descendants(run.process.pid)
    first, second = servers_of(run.process.pid)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: len(set(servers_of(run.process.pid)) - {first, second}) == 1)
    assert run.rows() == undisturbed
    assert all(map(is_gone, family))
    text = run.log.read_text()
    assert "it ended with exit code 137" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_server_outlives_its_run(
    number: signal.Signals, tmp_path: Path, data: list[str], undisturbed: list[Record]
) -> None:
    run = EngineRun(tmp_path, data, "local")
    run.wait_for_shards(1)
    family = descendants(run.process.pid)
    assert len(servers_of(run.process.pid)) == 2
    run.process.send_signal(number)
    assert run.process.wait(60) != 0
    wait_until(lambda: all(map(is_gone, family)), 30)
    assert EngineRun(tmp_path, data, "local").rows() == undisturbed
    assert "Traceback" not in run.log.read_text()


def test_a_run_that_has_nothing_to_do_starts_no_server(tmp_path: Path, data: list[str]) -> None:
    assert len(EngineRun(tmp_path, data, "local", limit=8).rows()) == 8
    before = (tmp_path / "run.log").read_text().count("starting tiny-vlm")
    assert len(EngineRun(tmp_path, data, "local", limit=8).rows()) == 8
    assert (tmp_path / "run.log").read_text().count("starting tiny-vlm") == before == 1
