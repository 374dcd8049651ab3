"""Judging with servers that are killed, on a disk that is full, and on a run in an object store."""

import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from rich.console import Console

from sgpipe.storage.index import Index
from sgpipe.storage.judgements import JUDGEMENTS, Judgement, JudgementLog, RelationKey
from sgpipe.utils.console import Progress
from tests.integration.faults.test_disk import disk as disk
from tests.sgpipe.training.data.runs import make_run, plain_record

KILLS, PEOPLE, IMAGES = 15, ("anna", "ben", "cleo"), 10
RUN = "drawn"


class Servers:
    """Two servers on one run, either of which may be killed."""

    def __init__(self, run: Path) -> None:
        command = [sys.executable, "-m", "tests.integration.faults.judging_server", str(run)]
        self._maker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.running = [self._start(0) for _ in range(2)]

    def _start(self, port: int) -> tuple[int, int]:
        assert self._maker.stdin is not None
        assert self._maker.stdout is not None
        print(port, file=self._maker.stdin, flush=True)
        port, process = map(int, self._maker.stdout.readline().split())
        return port, process

    def kill_and_restart(self, number: int) -> None:
        port, process = self.running[number]
        os.kill(process, signal.SIGKILL)
        self.running[number] = self._start(port)

    def stop(self) -> None:
        for _, process in self.running:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        assert self._maker.stdin is not None
        self._maker.stdin.close()
        self._maker.wait()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    records = [plain_record(str(number), "on", (number % 9 + 1) / 10) for number in range(IMAGES)]
    make_run(tmp_path / "run", records)
    Index.open(tmp_path / "run", Progress(Console(quiet=True))).close()
    return tmp_path / "run"


@pytest.fixture
def servers(run: Path) -> Iterator[Servers]:
    servers = Servers(run)
    yield servers
    servers.stop()


class Person(threading.Thread):
    """Somebody who judges until told to stop, and sends each answer until a server acknowledges it."""

    def __init__(self, name: str, servers: Servers) -> None:
        super().__init__(name=name, daemon=True)
        self.acknowledged: list[dict] = []
        self.sent = 0
        self.finished = threading.Event()
        self._servers = servers
        self._random = random.Random(name)

    def run(self) -> None:
        while not self.finished.is_set():
            answer = self._answer()
            while (stored := self._post(answer)) is None:
                time.sleep(0.01)
            self.acknowledged.append(stored)

    def _answer(self) -> dict:
        before = [each for each in self.acknowledged if each["undoes"] is None]
        id_ = uuid.uuid4().hex
        if before and self._random.random() < 0.2:
            return {"id": id_, "by": self.name, "undoes": self._random.choice(before)["id"]}
        relation = {"split": "train", "image_id": str(self._random.randrange(IMAGES)), "subject": 0, "object": 1}
        said = self._random.choice([{"judgement": "right"}, {"judgement": "wrong"}, {"change": {"action": "swap"}}])
        return {"id": id_, "by": self.name, **relation, "predicate": "on", **said}

    def _post(self, answer: dict) -> dict | None:
        """The line as a server has stored it; None: no server has said so."""
        self.sent += 1
        port, _ = self._servers.running[self.sent % 2]  # what one server leaves open is sent to the other
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            body = json.dumps(answer)
            connection.request("POST", "/api/judgements", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            connection.close()
        assert response.status in (200, 201), content
        return content


def final_answers(people: list[Person]) -> dict[tuple[str, RelationKey], str]:
    """What each person says of each relation in the end, from what was acknowledged to them, in their own order."""
    latest = {}
    for person in people:
        undone = {each["undoes"] for each in person.acknowledged}
        for each in map(Judgement.model_validate, person.acknowledged):
            if each.undoes is None and each.id not in undone:
                latest[person.name, each.key] = each.id
    return latest


@pytest.mark.slow
def test_kills_of_two_servers_while_three_people_judge(run: Path, servers: Servers) -> None:
    people = [Person(name, servers) for name in PEOPLE]
    for person in people:
        person.start()
    dice = random.Random(0)
    for _ in range(KILLS):
        time.sleep(dice.uniform(0, 0.3))
        servers.kill_and_restart(dice.randrange(2))
    time.sleep(0.5)
    for person in people:
        person.finished.set()
    for person in people:
        person.join(60)
        assert not person.is_alive()
    log = JudgementLog(run / JUDGEMENTS, RUN)
    written = [json.loads(line) for line in log.file.read_text().splitlines()]
    acknowledged = [each for person in people for each in person.acknowledged]
    assert log.problems == []
    assert max(Counter(each["id"] for each in written).values()) == 1
    assert sorted(written, key=lambda each: each["id"]) == sorted(acknowledged, key=lambda each: each["id"])
    found = {(answer.by, state.key): answer.id for state in log.current() for answer in state.judgements}
    assert found == final_answers(people)
    assert len(acknowledged) > KILLS
    assert sum(person.sent for person in people) > len(acknowledged)  # kills did interrupt requests
