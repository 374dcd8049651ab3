"""Runs with a served captioner, or a model that relates numbered boxes: faults of the server, and kills."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sgpipe.storage.shards import iter_records
from tests.endpoint_server import LASTING, EndpointServer, at_random, wait_until
from tests.integration.served_runs import KEY, ServedRun, files_with, make_images
from tests.marked_model import MarkedWorld

IMAGES, SAMPLES, IN_FLIGHT = 120, 2, 16
SETTINGS = (f"caption.samples={SAMPLES}", f"caption.requests.in_flight={IN_FLIGHT}", "caption.resources.actors=1")


@pytest.fixture
def ray() -> Iterator[Path]:
    """A folder for Ray with a short path: those of sockets have at most 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="sg"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_nothing_is_lost_or_paid_twice_when_a_run_is_killed(tmp_path: Path, ray: Path) -> None:
    faults = at_random(5, share=0.15, lasting=0.05)
    with EndpointServer(faults=faults, seconds=0.05, key=KEY) as server:
        run = ServedRun(make_images(tmp_path / "images", IMAGES), tmp_path / "run", ray, server.url, SETTINGS)
        for kills in range(1, 4):
            run.start()
            if kills == 1:
                wait_until(lambda: bool(server.paid) or run.process.poll() is not None, 900)  # for the example
                server.pause()
                wait_until(lambda: server.at_once == IN_FLIGHT or run.process.poll() is not None, 300)
                server.released.set()
            assert run.kill_when_paid(server, IMAGES * kills // 4, settled=True), run.log.read_text()
        assert run.run()[0] == 0, run.log.read_text()
        refused = {name for name in server.attempts if faults(name, 9) in LASTING}
    assert server.most_at_once == IN_FLIGHT
    example = 4  # before the work of each run; its answer is not kept
    assert sorted(server.paid.values())[-2:] == [1, example]
    rows = list(iter_records(run.out))
    assert len({row.image_id for row in rows}) == len(rows) == IMAGES
    failed = [row for row in rows if not row.ok]
    assert all(len(row.captions) == SAMPLES and row.triplets for row in rows if row.ok)
    assert 0 < len(failed) < IMAGES / 5
    assert {(row.error or "").partition(":")[0] for row in failed} == {"caption"}
    assert len(refused) >= len(failed)
    assert "Traceback" not in run.log.read_text()
    assert list(files_with(KEY, tmp_path, ray)) == []


@pytest.mark.parametrize(("rate", "seed"), [(0.0, 0), (0.3, 1)])
def test_marks_are_exact_and_paid_once_when_a_run_is_killed(tmp_path: Path, ray: Path, rate: float, seed: int) -> None:
    world = MarkedWorld(tmp_path / "images", IMAGES, rate, seed)

    def answer(body: dict[str, Any]) -> list[str]:
        again = len(body["messages"]) > 1
        return world(body) if again or int(world.shown(body).image_id) % 4 else ["1 is on 2"]

    settings = ("engine.kind=local", f"pair.requests.in_flight={IN_FLIGHT}", "pair.resources.actors=1")
    with EndpointServer(answer, at_random(seed, share=0.15), seconds=0.02, key=KEY) as server:
        run = ServedRun(world.options(), tmp_path / "run", ray, server.url, settings, marks=True)
        for kills in range(1, 3):
            run.start()
            assert run.kill_when_paid(server, IMAGES * kills // 3, settled=True), run.log.read_text()
        assert run.run()[0] == 0, run.log.read_text()
    *images, example = sorted(server.paid.values())  # the example is asked for by each worker as it starts
    assert set(images) == {1}
    assert len(images) == IMAGES + IMAGES // 4  # every fourth once more
    assert example <= 2 * 3
    rows = {row.image_id: row for row in iter_records(run.out)}
    assert len(rows) == IMAGES
    for record in world.records:
        row = rows[str(int(record.image_id))]
        found = {(pair.subject, pair.object): set(pair.predicates) for pair in row.pairs}
        related = {(each.subject, each.predicate, each.object) for each in row.relations if each.origin == "marks"}
        assert (row.ok, row.captions, found) == (True, [], world.expected(record))
        assert related == set(world.stated(record))
    assert "Traceback" not in run.log.read_text()
    assert list(files_with(KEY, tmp_path, ray)) == []
