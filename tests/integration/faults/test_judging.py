"""Judging with servers that are killed."""

import json
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from operator import itemgetter
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.storage.index import Index
from sgpipe.storage.judgement_lines import Judgement, RelationKey
from sgpipe.storage.judgements import JUDGEMENTS, JudgementLog
from sgpipe.utils.console import Progress
from sgpipe.view.app import LOCAL, create_app, listen, serve
from sgpipe.view.pages import Viewer
from tests.integration.faults.runs import FIFTY, SERVER
from tests.sgpipe.training.data.runs import make_run, plain_record
from tests.values import values_of

KILLS = 15
PEOPLE = ("anna", "ben", "cleo")
IMAGES = 10
SCENES = 3000  # of the run with a certificate: people must not run out of questions
RUN = "drawn"
QUIET = Progress(Console(quiet=True))


def run_server(root: Path, port: int, pipe: Connection) -> None:
    """The body of a process that serves a run."""
    address = listen(LOCAL, port)
    index = Index(root, QUIET)
    log = JudgementLog(root / JUDGEMENTS, index.fingerprint)
    pipe.send(address.port)
    serve(create_app(Viewer("run", index, log)), address)


class Servers:
    """Two servers on one run, either of which may be killed: their ports and processes."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self.running = [self._start(0) for _ in range(2)]

    def _start(self, port: int) -> tuple[int, Any]:
        port_of, pipe = SERVER.Pipe(duplex=False)
        process = SERVER.Process(target=run_server, args=(self._run, port, pipe))
        process.start()
        return port_of.recv(), process

    def kill(self, number: int) -> int:
        port, process = self.running[number]
        process.kill()
        process.join()
        return port

    def kill_and_restart(self, number: int) -> None:
        self.running[number] = self._start(self.kill(number))


@pytest.fixture
def servers(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Servers]:
    records = [
        plain_record(str(number), "on", (number % 9 + 1) / 10) for number in range(request.param)
    ]
    make_run(tmp_path / "run", records)
    Index(tmp_path / "run", QUIET).close()
    servers = Servers(tmp_path / "run")
    yield servers
    for number in (0, 1):
        servers.kill(number)


class Person(threading.Thread):
    """Somebody who judges until told to stop, and sends each answer until a server acknowledges
    it.
    """

    def __init__(self, name: str, servers: Servers) -> None:
        super().__init__(name=name, daemon=True)
        self.acknowledged: list[dict] = []
        self.sent = 0
        self.finished = threading.Event()
        self._servers = servers
        self._client = httpx.Client(timeout=30)
        self._random = random.Random(name)

    def run(self) -> None:
        while not self.finished.is_set():
            answer = self._answer()
            while (stored := self._post(answer)) is None:
                time.sleep(0.01)
            self.acknowledged.append(stored)

    def _answer(self) -> dict:
        before = [line for line in self.acknowledged if line["undoes"] is None]
        id_ = uuid.uuid4().hex
        if before and self._random.random() < 0.2:
            return {"id": id_, "by": self.name, "undoes": self._random.choice(before)["id"]}
        relation = {
            "split": "train",
            "image_id": str(self._random.randrange(IMAGES)),
            "subject": 0,
            "object": 1,
        }
        answer = self._random.choice(
            [{"judgement": "right"}, {"judgement": "wrong"}, {"change": {"action": "swap"}}]
        )
        return {"id": id_, "by": self.name, **relation, "predicate": "on", **answer}

    def _post(self, answer: dict | None, path: str = "/api/judgements") -> dict | None:
        """The line as a server has stored it, or what it answers at a path; None: no server has
        said so.
        """
        self.sent += 1
        # what one server leaves open is sent to the other
        port, _ = self._servers.running[self.sent % 2]
        try:
            response = self._client.request(
                "POST" if answer else "GET", f"http://127.0.0.1:{port}{path}", json=answer
            )
            content = response.json()
        except (httpx.TransportError, ValueError):
            return None
        assert response.status_code in (200, 201), content
        return content


class Certifier(Person):
    """Somebody who answers a certificate's plan, nine times of ten with right, and blind questions
    in between.
    """

    plan = ""

    def _answer(self) -> dict:
        while True:
            plan = "recall" if self._random.random() < 0.2 else self.plan
            open_plan = self._post(
                None, f"/api/{'recall' if plan == 'recall' else 'plans'}/{plan}?by={self.name}"
            )
            if open_plan and (question := open_plan["question"]):
                break
            time.sleep(0.01)
        common = {"id": uuid.uuid4().hex, "by": self.name, "plan": plan}
        if plan == "recall":
            place = {name: question["image"][name] for name in ("split", "image_id")}
            return common | place | {"relations": [{"subject": 0, "object": 1, "predicate": "on"}]}
        key = {name: question[name] for name in RelationKey._fields}
        return common | key | {"judgement": "right" if self._random.random() < 0.9 else "wrong"}


def final_answers(people: list[Person]) -> dict[tuple[str, RelationKey], str]:
    """What each person says of each relation in the end, from what was acknowledged to them, in
    their own order.
    """
    latest = {}
    for person in people:
        undone = set(values_of(person.acknowledged, "undoes"))
        for judgement in map(Judgement.model_validate, person.acknowledged):
            if judgement.undoes is None and judgement.id not in undone:
                latest[person.name, judgement.key] = judgement.id
    return latest


def judge_through_kills(
    people: list[Person], servers: Servers, run: Path, kills: int
) -> JudgementLog:
    """Return what is written, of which nobody's answer is lost, doubled or another."""
    for person in people:
        person.start()
    dice = random.Random(0)
    for _ in range(kills):
        time.sleep(dice.uniform(0, 0.3))
        servers.kill_and_restart(dice.randrange(2))
    time.sleep(0.5)
    for person in people:
        person.finished.set()
    for person in people:
        person.join(60)
        assert not person.is_alive()
    log = JudgementLog(run / JUDGEMENTS, RUN)
    written = list(map(json.loads, log.file.read_text().splitlines()))
    acknowledged = [line for person in people for line in person.acknowledged]
    assert log.problems == []
    answers = [line for line in written if "questions" not in line]
    assert sorted(answers, key=itemgetter("id")) == sorted(acknowledged, key=itemgetter("id"))
    assert max(Counter(values_of(answers, "id")).values()) == 1
    # kills did interrupt requests
    assert sum(values_of(people, "sent")) > len(acknowledged) > kills
    return log


@pytest.mark.soak
@pytest.mark.parametrize("servers", [SCENES], indirect=True)
def test_fifty_kills_while_three_people_answer_a_certificates_plan(
    servers: Servers, tmp_path: Path
) -> None:
    people = [Certifier(name, servers) for name in PEOPLE]
    people[0]._post({"kind": "recall", "count": SCENES, "id": "recall"}, "/api/plans")
    Certifier.plan = people[0]._post({"kind": "certificate", "precision": 0.97}, "/api/plans")[
        "plan"
    ]
    log = judge_through_kills(people, servers, tmp_path / "run", FIFTY)
    numbers = [plan.certificate.number for plan in log.plans.values() if plan.certificate]
    assert numbers == list(range(len(numbers)))
    assert log.blind_answers("recall")
    assert CliRunner().invoke(
        app, ["certify", str(tmp_path / "run"), "--precision", "0.97"]
    ).exit_code in (0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("servers", [IMAGES], indirect=True)
def test_kills_of_two_servers_while_three_people_judge(servers: Servers, tmp_path: Path) -> None:
    people = [Person(name, servers) for name in PEOPLE]
    log = judge_through_kills(people, servers, tmp_path / "run", KILLS)
    logged = {
        (answer.by, state.key): answer.id for state in log.current() for answer in state.judgements
    }
    assert logged == final_answers(people)
