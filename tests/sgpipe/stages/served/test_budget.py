"""Requests are sent while a budget lasts: those under way are answered and kept, none after it."""

from __future__ import annotations

import json
import multiprocessing
import threading
from pathlib import Path

import pytest

from sgpipe.errors import EngineError, UserError
from sgpipe.recipe import Requests
from sgpipe.stages.served.answers import CacheFolder
from sgpipe.stages.served.chat import ChatRequest
from sgpipe.stages.served.endpoint import ChatEndpoint
from sgpipe.storage.tokens import CACHED, COMPLETION, PROMPT, Prices, Spending
from tests.endpoint_server import EndpointServer

pytestmark = pytest.mark.usefixtures("no_pauses")

IN_FLIGHT = 8
PRICES = Prices(prompt=1_000, completion=2_000, cached=500)
USAGE = {PROMPT: 8, COMPLETION: 1, "prompt_tokens_details": {CACHED: 4}}
COST = 0.008  # of such a request


def folder(path: Path, max_cost: float | None = None, paid_before: float = 0.0) -> CacheFolder:
    return CacheFolder(path, spending=Spending(PRICES, max_cost, paid_before))


def connect(server: EndpointServer, answers: CacheFolder) -> ChatEndpoint:
    requests = Requests(in_flight=IN_FLIGHT, timeout=20)
    return ChatEndpoint(server.url, "tiny-vlm", requests, answers)


def counting(**usage: object) -> EndpointServer:
    """A server whose answers have these tokens."""
    counted = json.dumps(USAGE | usage)
    return EndpointServer(faults=lambda body, attempt: counted, seconds=0.02)


def questions(number: int) -> list[ChatRequest]:
    return [ChatRequest(f"What is in image {index}?", seed=index) for index in range(number)]


def test_tokens_of_this_process_are_taken_once(tmp_path: Path) -> None:
    answers = folder(tmp_path)
    with counting() as server:
        list(connect(server, answers).ask_all(questions(3)))
        assert answers.take_tokens() == {PROMPT: 24, CACHED: 12, COMPLETION: 3}
        list(connect(server, answers).ask_all(questions(3)))  # which are kept
    assert not answers.take_tokens()
    assert answers.open().cost() == pytest.approx(3 * COST)


@pytest.mark.parametrize("bought", [1, 7, 20.5])
def test_no_request_exceeds_the_budget_and_all_that_are_paid_are_kept(
    tmp_path: Path, bought: float
) -> None:
    paid_before = 5.0
    max_cost = paid_before + bought * COST + COST / 100
    answers = folder(tmp_path, max_cost, paid_before)
    with counting() as server:
        with pytest.raises(EngineError, match=f"^--max-cost {max_cost:g} is used up: the run has"):
            list(connect(server, answers).ask_all(questions(40)))
        assert len(server.paid) == int(bought)
        assert server.most_at_once <= IN_FLIGHT
        assert answers.open().requests_under_way() == 0
        more = folder(tmp_path, 9.0, 5 + bought * COST)
        assert len(list(connect(server, more).ask_all(questions(40)))) == 40
        assert set(server.paid.values()) == {1}


def test_what_a_killed_process_reserved_is_free_again(tmp_path: Path) -> None:
    """Also before the first answer, for which all others wait."""
    answers = folder(tmp_path, max_cost=10 * COST)
    reserve = multiprocessing.Process(target=answers.open().reserve_request)
    reserve.start()
    reserve.join()
    cache = answers.open()
    assert not cache.reserve_request()
    with counting() as server:
        assert len(list(connect(server, answers).ask_all(questions(3)))) == 3
    assert cache.requests_under_way() == 0


def test_an_answer_may_take_longer_than_others_wait_for_it(tmp_path: Path) -> None:
    """The first request goes alone, and a server may be away for an hour."""
    answers = folder(tmp_path, max_cost=10 * COST)
    with counting() as server:
        server.away = True
        endpoint = connect(server, answers)
        endpoint.requests = Requests(timeout=0.1)
        asked = endpoint.ask_all(questions(4))
        threading.Timer(1.0, setattr, (server, "away", False)).start()
        assert len(list(asked)) == 4


def test_a_failed_request_is_not_under_way(tmp_path: Path) -> None:
    answers = folder(tmp_path, max_cost=1.0)
    with EndpointServer(faults=lambda body, attempt: "rejected") as server:
        list(connect(server, answers).ask_all(questions(3)))
    assert answers.open().requests_under_way() == 0


def test_a_price_without_tokens_is_one_line(tmp_path: Path) -> None:
    with EndpointServer(faults=lambda body, attempt: "[1]") as server:
        list(connect(server, CacheFolder(tmp_path / "unpriced")).ask_all(questions(1)))
        message = f"^the endpoint {server.url} does not count tokens, so that their cost is unknown"
        with pytest.raises(UserError, match=message):
            list(connect(server, folder(tmp_path)).ask_all(questions(1)))
