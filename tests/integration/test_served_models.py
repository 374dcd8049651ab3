"""Runs with a served captioner or model of marks: faults of the server, and kills of all processes
of a run.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from sgpipe.storage.run_folder import REQUESTS
from sgpipe.storage.run_records import iter_records
from tests.detections import make_coco
from tests.endpoint_server import LASTING, EndpointServer, at_random, wait_until
from tests.marked_model import MarkedWorld
from tests.processes import descendants, is_gone
from tests.values import values_of

KEY = "sk-only-in-the-environment-4f1c"
IMAGES = 120
SAMPLES = 2
IN_FLIGHT = 8


class ServedRun:
    """`sgpipe generate` in processes of its own, with all of Ray's files in `ray`, whose path must
    be short.
    """

    def __init__(
        self, images: list[str], out: Path, ray: Path, values: Mapping[str, object]
    ) -> None:
        values = {"tag.method": "all", "engine.unit_size": 16, **values}
        settings = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
        program = [sys.executable, "-c", "from sgpipe.cli.main import main; main()"]
        self.command = [*program, "generate", "coco", *images, "--out", str(out), *settings]
        self.environment = os.environ | {
            "OPENAI_API_KEY": KEY,
            "RAY_TMPDIR": str(ray),
            "RAY_worker_niceness": "0",
        }
        self.out = out
        self.log = out.with_suffix(".log")

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env=self.environment
            )

    def wait_for(self, server: EndpointServer, answers: int) -> None:
        wait_until(
            lambda: sum(server.paid.values()) >= answers or self.process.poll() is not None, 900
        )
        assert self.process.poll() is None, self.log.read_text()

    def kill_when_paid(self, server: EndpointServer, answers: int) -> None:
        """After this number of answers, while none is on its way: what is then is paid for, but
        lost.
        """
        self.wait_for(server, answers)
        server.pause()
        # the example's answer is not kept
        wait_until(lambda: len(server.paid.keys() - self.kept()) <= 1)
        family = (self.process.pid, *descendants(self.process.pid))
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        wait_until(lambda: all(map(is_gone, family)))
        server.released.set()

    def kept(self) -> set[str]:
        """The hashes of the requests whose answers the run has on disk."""
        with closing(
            sqlite3.connect(f"file:{self.out / '.sgpipe' / REQUESTS}?mode=ro", uri=True)
        ) as connection:
            return {
                request.hex() for (request,) in connection.execute("SELECT request FROM answers")
            }


def files_with(text: str, *folders: Path) -> Iterator[Path]:
    for path in (path for folder in folders for path in folder.rglob("*")):
        with suppress(OSError):
            if path.is_file() and not path.is_symlink() and text.encode() in path.read_bytes():
                yield path


@pytest.fixture
def ray() -> Iterator[Path]:
    """A folder for Ray with a short path: those of sockets have at most 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="sg"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_nothing_is_lost_or_paid_twice_when_a_run_is_killed(tmp_path: Path, ray: Path) -> None:
    faults = at_random(6, share=0.15, lasting=0.05)
    with EndpointServer(faults=faults, seconds=0.05, key=KEY) as server:
        values = {
            "caption.endpoint": server.url, "caption.captioner": "tiny-vlm", "caption.samples": SAMPLES,
            "caption.requests.in_flight": IN_FLIGHT, "caption.resources.actors": 1,
        }  # fmt: skip
        images = [*make_coco(tmp_path / "coco", IMAGES).options[:4], "--split", "val"]
        run = ServedRun(images, tmp_path / "run", ray, values)
        for kills in range(1, 4):
            run.start()
            if kills == 1:
                run.wait_for(server, 1)  # for the example
                server.pause()
                wait_until(
                    lambda: server.at_once == IN_FLIGHT or run.process.poll() is not None, 300
                )
                server.released.set()
            run.kill_when_paid(server, IMAGES * kills // 4)
        run.start()
        assert run.process.wait(900) == 0, run.log.read_text()
        refused = {name for name in server.attempts if faults(name, 9) in LASTING}
    assert server.most_at_once == IN_FLIGHT
    example = 4  # before the work of each run; its answer is not kept
    assert sorted(server.paid.values())[-2:] == [1, example]
    rows = list(iter_records(run.out))
    assert len(set(values_of(rows, "image_id"))) == len(rows) == IMAGES
    failed = [row for row in rows if not row.ok]
    assert all(len(row.captions) == SAMPLES and row.triplets for row in rows if row.ok)
    assert 0 < len(failed) < IMAGES / 5
    assert {(row.error or "").partition(":")[0] for row in failed} == {"caption"}
    assert len(refused) >= len(failed)
    assert "Traceback" not in run.log.read_text()
    assert list(files_with(KEY, tmp_path, ray)) == []


def test_marks_are_exact_and_paid_once_when_a_run_is_killed(tmp_path: Path, ray: Path) -> None:
    """The model relates numbered boxes and errs in three of ten; every fourth image it answers at a
    second try.
    """
    world = MarkedWorld(tmp_path / "images", IMAGES, rate=0.3, seed=1)

    def answer(body: dict[str, Any]) -> list[str]:
        is_second_question = len(body["messages"]) > 1
        return (
            world(body)
            if is_second_question or int(world.shown(body).image_id) % 4
            else ["1 is on 2"]
        )

    with EndpointServer(answer, at_random(1, share=0.15), seconds=0.02, key=KEY) as server:
        values = {
            "pair.candidates": "marks", "pair.model": "tiny-vlm", "pair.endpoint": server.url, "engine.kind": "local",
            "caption.captioner": "null", "pair.requests.in_flight": IN_FLIGHT, "pair.resources.actors": 1,
        }  # fmt: skip
        run = ServedRun(world.options(), tmp_path / "run", ray, values)
        for kills in range(1, 3):
            run.start()
            run.kill_when_paid(server, IMAGES * kills // 3)
        run.start()
        assert run.process.wait(900) == 0, run.log.read_text()
    # the example is asked for by each worker as it starts
    *images, example = sorted(server.paid.values())
    assert set(images) == {1}
    assert len(images) == IMAGES + IMAGES // 4
    assert example <= 2 * 3
    rows = {row.image_id: row for row in iter_records(run.out)}
    assert len(rows) == IMAGES
    for record in world.records:
        row = rows[str(int(record.image_id))]
        predicates = {(pair.subject, pair.object): set(pair.predicates) for pair in row.pairs}
        related = {
            (relation.subject, relation.predicate, relation.object)
            for relation in row.relations
            if relation.origin == "marks"
        }
        assert (row.ok, row.captions, predicates) == (True, [], world.expected(record))
        assert related == set(world.stated(record))
    assert "Traceback" not in run.log.read_text()
    assert list(files_with(KEY, tmp_path, ray)) == []
