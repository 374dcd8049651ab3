"""Answers in the store of a run: what one machine has paid for, no other pays for again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sgpipe.errors import EngineError, StoreError, UserError
from sgpipe.files.locations import ObjectInfo, StorePath
from sgpipe.recipe import Requests
from sgpipe.stages.served import segments
from sgpipe.stages.served.answers import CacheFolder, RequestCache
from sgpipe.stages.served.chat import ChatRequest, Refusal
from sgpipe.stages.served.endpoint import ChatEndpoint
from sgpipe.storage.run_folder import ANSWERS
from sgpipe.storage.tokens import COMPLETION, PROMPT
from tests.endpoint_server import EndpointServer, scripted, wait_until

pytestmark = pytest.mark.usefixtures("no_pauses")


class Objects:
    """The objects of a store, each of whose requests takes `seconds`, or fails."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.reads = 0
        self.seconds = 0.0
        self.is_away = False

    def ask(self) -> None:
        time.sleep(self.seconds)
        if self.is_away:
            raise StoreError("the store does not answer")


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> Objects:
    """In the place of any store."""
    held = Objects()

    def put(path: StorePath, data: bytes) -> None:
        held.ask()
        held.contents[path.uri] = data

    def read(path: StorePath) -> bytes | None:
        held.ask()
        held.reads += 1
        return held.contents.get(path.uri)

    def listed(path: StorePath) -> Iterator[ObjectInfo]:
        held.ask()
        for uri, content in list(held.contents.items()):
            name = uri.removeprefix(f"{path.uri}/")
            yield ObjectInfo(name, len(content), None, datetime.now(UTC))

    monkeypatch.setattr(StorePath, "put", put)
    monkeypatch.setattr(StorePath, "read", read)
    monkeypatch.setattr(StorePath, "list", listed)
    monkeypatch.setattr(StorePath, "unlink", lambda path: held.contents.pop(path.uri))
    monkeypatch.setattr(segments, "SECONDS_BETWEEN_SEGMENTS", 0.05)
    return held


STORE = StorePath("s3://bucket/run")


def connect(server: EndpointServer, machine: Path) -> ChatEndpoint:
    machine.mkdir(exist_ok=True)
    requests = Requests(in_flight=8, timeout=20, retries=1)
    return ChatEndpoint(server.url, "tiny-vlm", requests, CacheFolder(machine, store=STORE))


def answers_of(machine: Path) -> RequestCache:
    machine.mkdir(exist_ok=True)
    return CacheFolder(machine, store=STORE).open()


def questions(number: int) -> list[ChatRequest]:
    return [ChatRequest(f"What is in image {index}?", seed=index) for index in range(number)]


def test_what_a_lost_machine_has_paid_for_is_not_paid_for_again(
    tmp_path: Path, objects: Objects
) -> None:
    with EndpointServer() as server:
        first = list(connect(server, tmp_path / "lost").ask_all(questions(30)))
        wait_until(lambda: len(answers_in(objects)) == 30)
        assert list(connect(server, tmp_path / "other").ask_all(questions(40)))[:30] == first
        assert set(server.paid.values()) == {1}
        wait_until(lambda: len(answers_in(objects)) == 40)
    assert answers_of(tmp_path / "third").tokens() == {
        PROMPT: 200,
        "cached_tokens": 0,
        COMPLETION: 120,
    }
    assert answers_of(tmp_path / "other").tokens()[PROMPT] == 200, "its own are not counted twice"
    assert answers_of(tmp_path / "lost").tokens()[PROMPT] == 200
    reads = objects.reads
    assert answers_of(tmp_path / "third").get(b"") is None
    assert objects.reads == reads, "segments are read once"


def test_answers_that_could_not_be_read_at_first_are_not_paid_for_again(
    tmp_path: Path, objects: Objects
) -> None:
    with EndpointServer() as server:
        first = list(connect(server, tmp_path / "lost").ask_all(questions(5)))
        wait_until(lambda: len(answers_in(objects)) == 5)
        endpoint = connect(server, tmp_path / "other")
        objects.is_away = True
        with pytest.raises(StoreError):
            list(endpoint.ask_all(questions(5)))
        objects.is_away = False
        assert list(endpoint.ask_all(questions(5))) == first
        assert set(server.paid.values()) == {1}


def test_answers_are_stored_after_an_error_of_the_cache(
    tmp_path: Path, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> None:
        raise EngineError("the database is locked")

    with EndpointServer() as server:
        endpoint = connect(server, tmp_path / "run")
        assert endpoint.cache is not None
        assert endpoint.cache._stored is not None
        note = endpoint.cache._stored.note
        endpoint.cache._stored.note = fail
        list(endpoint.ask_all(questions(3)))
        with pytest.raises(EngineError):
            endpoint.cache.flush()
        endpoint.cache._stored.note = note
        wait_until(lambda: len(answers_in(objects)) == 3)


def answers_in(objects: Objects) -> set[str]:
    """The hashes of the requests whose answers are in the store."""
    stored: set[str] = set()
    for content in objects.contents.values():
        stored |= {answer.request for answer in segments.Segment.parse(content).answers}
    return stored


@pytest.mark.slow
def test_a_slow_store_keeps_no_request_waiting(tmp_path: Path, objects: Objects) -> None:
    with EndpointServer() as server:
        endpoint = connect(server, tmp_path)
        list(endpoint.ask_all(questions(1)))
        objects.seconds = 5.0
        list(endpoint.ask_all(questions(200)))
        assert len(answers_in(objects)) < 200, "the requests do not wait for the last segment"
        objects.seconds = 0.0
        wait_until(lambda: len(answers_in(objects)) == 200)
    assert len(objects.contents) < 20


def test_answers_wait_for_a_store_that_is_away(tmp_path: Path, objects: Objects) -> None:
    with EndpointServer() as server:
        endpoint = connect(server, tmp_path)
        list(endpoint.ask_all(questions(1)))
        objects.is_away = True
        list(endpoint.ask_all(questions(9)))
        time.sleep(0.2)
        objects.is_away = False
        wait_until(lambda: len(answers_in(objects)) == 9)
        assert (
            sum(
                segments.Segment.parse(content).tokens[PROMPT]
                for content in objects.contents.values()
            )
            == 45
        )


def test_what_ends_a_run_leaves_all_that_was_paid_for(
    tmp_path: Path, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "SECONDS_BETWEEN_SEGMENTS", 3600)
    with EndpointServer(
        faults=lambda body, attempt: "broken" if len(server.requests) > 5 else None
    ) as server:
        with pytest.raises(EngineError, match="does not answer"):
            list(connect(server, tmp_path).ask_all(questions(20)))
        assert len(answers_in(objects)) == len(server.paid) == 5


def test_refusals_are_forgotten_on_all_machines(tmp_path: Path, objects: Objects) -> None:
    with EndpointServer(faults=scripted(None, "refusal", None)) as server:
        endpoint = connect(server, tmp_path / "first")
        endpoint.requests = Requests(in_flight=1)
        assert sum(isinstance(answer, Refusal) for answer in endpoint.ask_all(questions(3))) == 1
        wait_until(lambda: len(answers_in(objects)) == 3)
        answers_of(tmp_path / "first").forget_refusals()
        assert len(answers_in(objects)) == 2
        answers = list(connect(server, tmp_path / "second").ask_all(questions(3)))
        assert all(isinstance(answer, list) for answer in answers)
    assert len(server.requests) == 4


@pytest.mark.parametrize("damage", [b"", b"{}", b"cut"])
def test_a_damaged_segment_is_one_line(tmp_path: Path, objects: Objects, damage: bytes) -> None:
    with EndpointServer() as server:
        list(connect(server, tmp_path / "first").ask_all(questions(3)))
        wait_until(lambda: len(answers_in(objects)) == 3)
        [(uri, content), *_] = objects.contents.items()
        objects.contents[uri] = content[:-9] if damage == b"cut" else damage
        with pytest.raises(UserError, match=f"^{uri} is damaged: delete it, and its answers"):
            list(connect(server, tmp_path / "second").ask_all(questions(3)))
    assert uri.startswith(f"{STORE}/{ANSWERS}/")
