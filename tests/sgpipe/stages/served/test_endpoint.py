"""A served model: requests in order, each until it is answered and paid once; a wrong endpoint is
one line.
"""

from __future__ import annotations

import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from sgpipe.errors import EngineError, UserError
from sgpipe.recipe import Requests
from sgpipe.stages.served import endpoint as served
from sgpipe.stages.served.answers import CacheFolder, RequestCache
from sgpipe.stages.served.chat import ChatRequest, Choice, Refusal
from sgpipe.stages.served.endpoint import ChatEndpoint
from sgpipe.storage.tokens import CACHED, COMPLETION, PROMPT
from tests.endpoint_server import EndpointServer, Fault, at_random, scripted
from tests.values import values_of

pytestmark = pytest.mark.usefixtures("no_pauses")

SCHEMA = {"type": "object", "properties": {}, "additionalProperties": False}
KEY = "sk-secret-0123456789"


def connect(
    url: str, cache: Path | None = None, in_flight: int = 8, timeout: float = 20
) -> ChatEndpoint:
    requests = Requests(in_flight=in_flight, timeout=timeout, retries=3)
    return ChatEndpoint(url, "tiny-vlm", requests, CacheFolder(cache) if cache else None)


def question(number: int, n: int = 1) -> ChatRequest:
    return ChatRequest(
        f"What is in image {number}?", max_tokens=16, temperature=1.0, seed=number, n=n
    )


def ask(endpoint: ChatEndpoint, request: ChatRequest) -> list[Choice] | Refusal:
    (answer,) = endpoint.ask_all([request])
    return answer


def refused(endpoint: ChatEndpoint) -> str:
    with pytest.raises(UserError) as raised:
        endpoint.check(question(1))
    message = str(raised.value)
    assert "\n" not in message
    assert KEY not in message
    return message


def test_requests_are_taken_as_they_are_needed() -> None:
    """Each may carry an image of megabytes."""
    taken = []
    with EndpointServer() as server:
        answers = connect(server.url, in_flight=2).ask_all(
            taken.append(n) or question(n) for n in range(100)
        )  # type: ignore[func-returns-value]
        next(answers)
        assert len(taken) == 8
        assert len(list(answers)) == 99


@pytest.mark.parametrize(("fault", "asked"), [
    ("limited", 3), ("broken", 3), ("cut", 3), ("error", 3), ("parts", 1), ("plain", 1), ("silent", 2), ("slow", 2),
])  # fmt: skip
def test_a_fault_that_passes_and_another_form_change_no_answer(fault: Fault, asked: int) -> None:
    silent = fault in ("silent", "slow")
    with EndpointServer(
        lambda body: ["a dog on grass"] * 3, scripted(*[fault] * max(1, asked - 1))
    ) as server:
        answer = ask(connect(server.url, timeout=0.5 if silent else 20), question(1, n=3))
    assert answer == [Choice("a dog on grass")] * 3
    # a busy machine is late again
    assert len(server.requests) == asked or (silent and len(server.requests) > asked)


@pytest.mark.parametrize(("fault", "reason"), [
    ("refusal", "the model refused: I cannot describe people."), ("filtered", "a content filter withheld the answer"),
    ("empty", "the answer is empty"), ("rejected", "HTTP 400: The prompt is longer than the maximum model length"),
    ("garbled", "the answer is not a chat completion; the URL of an API often ends in /v1"),
    ("nested", "maximum recursion depth exceeded"),
])  # fmt: skip
def test_a_refusal_concerns_one_request(fault: Fault, reason: str) -> None:
    with EndpointServer(faults=scripted(fault)) as server:
        answers = list(connect(server.url, in_flight=1).ask_all([question(1), question(2)]))
    assert isinstance(answers[0], Refusal)
    assert answers[0].reason.startswith(reason)
    assert isinstance(answers[1], list)
    # another, to see whether it answers any
    assert len(server.requests) == 2 + (fault in ("garbled", "nested"))


def test_a_request_that_always_breaks_is_refused_if_others_are_answered() -> None:
    def answer(body: dict) -> list[str]:
        if "image 1?" in body["messages"][-1]["content"]:
            raise BrokenPipeError
        return ["fine"]

    with EndpointServer(answer) as server:
        refused, answered = connect(server.url).ask_all([question(1), question(2)])
    assert isinstance(refused, Refusal)
    assert refused.reason.startswith("it cannot be reached")
    assert answered == [Choice("fine")]


@pytest.mark.parametrize(("fault", "reason"), [
    ("broken", "HTTP 500: "), ("limited", "HTTP 429: Rate limit"), ("page", "not a chat"), ("unpaid", "HTTP 402"),
])  # fmt: skip
def test_an_endpoint_that_answers_nothing_ends_the_run(fault: Fault, reason: str) -> None:
    with (
        EndpointServer(faults=lambda body, attempt: fault) as server,
        pytest.raises(EngineError, match=reason),
    ):
        list(connect(server.url).ask_all([question(1), question(2)]))


def test_nothing_but_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer of-another-server")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-another-server")
    with EndpointServer() as server:
        assert isinstance(ask(connect(server.url), question(1)), list)
    assert "of-another-server" not in repr(list(map(dict, server.headers)))


def test_a_server_with_few_choices_is_asked_for_the_rest_with_other_seeds() -> None:
    with EndpointServer() as server:
        server.most_choices = 1  # llama.cpp
        answer = ask(connect(server.url), question(7, n=4))
    assert (len(answer), len(set(values_of(answer, "text"))) > 1) == (4, True)
    assert [body.get("n", 1) for body in server.requests] == [4, 3, 2, 1]
    assert len(set(values_of(server.requests, "seed"))) == 4


def test_a_server_that_rejects_n_is_asked_one_by_one() -> None:
    def faults(body: str, attempt: int) -> Fault | None:
        return "rejected" if server.requests[-1].get("n", 1) > 1 else None

    with EndpointServer(faults=faults) as server:
        server.rejection = "Unexpected fields in the request: {'n'}"
        answers = list(
            connect(server.url, in_flight=1).ask_all([question(1, n=2), question(2, n=2)])
        )
        assert [len(answer) for answer in answers if isinstance(answer, list)] == [2, 2]
        assert [body.get("n", 1) for body in server.requests] == [2, 1, 1, 1, 1]


def test_a_server_that_calls_the_limit_by_its_newer_name(tmp_path: Path) -> None:
    """Its answers are kept as those of any other."""

    def faults(body: str, attempt: int) -> Fault | None:
        return "rejected" if "max_tokens" in server.requests[-1] else None

    with EndpointServer(faults=faults) as server:
        server.rejection = (
            "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        )
        requests = list(map(question, range(8)))
        first = list(connect(server.url, cache=tmp_path).ask_all(requests))
        assert list(map(type, first)) == [list] * 8
        assert server.requests[-1]["max_completion_tokens"] == 16
        asked = len(server.requests)
        assert list(connect(server.url, cache=tmp_path).ask_all(requests)) == first
        assert len(server.requests) == asked


def test_log_probabilities() -> None:
    with EndpointServer(lambda body: ["Yes"]) as server:
        answer = ask(connect(server.url), replace(question(1), logprobs=True))
    assert answer == [Choice("Yes", None, {"Yes": -0.25, "No": -1.5})]
    assert (server.requests[0]["logprobs"], server.requests[0]["top_logprobs"]) == (True, 20)
    without = EndpointServer(lambda body: body.pop("logprobs") and ["Yes"])
    with without as server, pytest.raises(UserError, match="no log-probabilities"):
        connect(server.url).check(replace(question(1), logprobs=True))


def test_what_is_sent() -> None:
    sampling = {
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 50,
        "repetition_penalty": 1.1,
    }
    with EndpointServer() as server:
        chat_request = ChatRequest(
            "Hello", system="Be brief.", **sampling, seed=1 << 62, n=2, schema=SCHEMA
        )
        ask(connect(server.url), chat_request)
        (body,) = server.requests
    assert 0 <= body.pop("seed") < 1 << 31
    form = {"name": "answer", "strict": True, "schema": SCHEMA}
    assert body == {
        "model": "tiny-vlm", "n": 2, "response_format": {"type": "json_schema", "json_schema": form},
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
        **sampling,
    }  # fmt: skip


def test_nothing_is_paid_twice(tmp_path: Path) -> None:
    """Not even what is left of an answer in two parts, and by another process on another port."""
    requests = [question(number, n=3) for number in range(20)]
    with EndpointServer(faults=at_random(1, share=0.3)) as server:
        server.most_choices = 2
        first = list(connect(server.url, cache=tmp_path).ask_all(requests[:15]))
        ask_all = list(connect(server.url, cache=tmp_path).ask_all(requests))
        assert ask_all[:15] == first
        assert set(server.paid.values()) == {1}
        assert len(server.paid) == 40
    tokens = RequestCache(CacheFolder(tmp_path).file).tokens()
    assert tokens == {PROMPT: 40 * 5, CACHED: 0, COMPLETION: 20 * (6 + 3)}
    with EndpointServer() as server:
        assert list(connect(server.url, cache=tmp_path).ask_all(requests)) == ask_all
        assert not server.requests


@pytest.mark.parametrize(
    "fault",
    [
        "half",
        "[1]",
        '{"prompt_tokens": {"a": 1}}',
        f'{{"prompt_tokens": {2**70}, "completion_tokens": -1}}',
    ],
)
def test_odd_answers_are_kept(tmp_path: Path, fault: Fault) -> None:
    with EndpointServer(lambda body: ["a dog ?"], faults=scripted(fault)) as server:
        for _ in range(2):
            assert ask(connect(server.url, cache=tmp_path), question(1)) == [Choice("a dog ?")]
    assert len(server.requests) == 1
    tokens = RequestCache(CacheFolder(tmp_path).file).tokens()
    assert tokens.total() == (8 if fault == "half" else 0)


def test_a_damaged_answer_is_one_line(tmp_path: Path) -> None:
    cache = RequestCache(tmp_path / "requests")
    cache._execute("INSERT INTO answers VALUES (?, '[1]', 1)", [sha256(b"").digest()], create=True)
    with pytest.raises(UserError, match=r"is damaged; delete it$"):
        cache.get(b"")


def test_an_error_ends_at_once() -> None:
    """What is under way is cut, not waited for."""

    def faults(body: str, attempt: int) -> Fault:
        return "refusal" if "image 0?" in str(server.requests[-1]) else "silent"

    with EndpointServer(faults=faults) as server:
        answers = connect(server.url, in_flight=4).ask_all(map(question, range(10)))
        assert isinstance(next(answers), Refusal)
        began = time.monotonic()
        answers.close()  # type: ignore[attr-defined]
        assert time.monotonic() - began < 5
        assert len(list(connect(server.url).ask_all([]))) == 0


@pytest.mark.parametrize("url", [
    "localhost:8000", "ftp://host/v1", "http://", "http://host:port/v1", f"http://user:{KEY}@host/v1",
    f"https://user:{KEY}/x@host/v1", f"https://user:12/{KEY}@host", f"http:/user:{KEY}@host/v1",
    f"http://{KEY}@host/v1", f"http://host/v1?key={KEY}", f"http://host/v1#{KEY}",
])  # fmt: skip
def test_not_a_url(url: str) -> None:
    with pytest.raises(UserError) as raised:
        served.endpoint_url(url)
    assert KEY not in str(raised.value)


def test_ways_to_write_the_url() -> None:
    for suffix in ("", "/", "/chat/completions"):
        assert served.endpoint_url(f"http://host:8000/v1{suffix}") == "http://host:8000/v1"


def test_wrong_endpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    with EndpointServer(models=["llava", "qwen"], key=KEY) as server:
        url = server.url
        assert f"{url} requires an API key; set OPENAI_API_KEY" in refused(connect(url))
        server.key = None
        assert refused(connect(url)) == f"{url} does not serve 'tiny-vlm', but llava, qwen"
        server.models = ["tiny-vlm:latest"]
        connect(url).check()
        server.models = ["tiny-vlm"]
        connect(url).check(question(1))
        assert "Authorization" not in server.headers[-1]
        assert "HTTP 404: Not Found" in refused(connect(url.removesuffix("/v1")))
        server.faults = lambda body, attempt: "page"
        assert "not a chat completion" in refused(connect(url))
    assert refused(connect(url)).startswith(
        f"the endpoint {url} does not answer: it cannot be reached"
    )
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nX-Other: 1")
    with pytest.raises(UserError, match=r"^OPENAI_API_KEY contains"):
        connect("http://localhost:1/v1")


def test_the_key_is_neither_shown_nor_sent_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with EndpointServer() as other, EndpointServer(faults=scripted(*["broken"] * 9)) as server:
        assert "request had Bearer …" in refused(connect(server.url))
        server.key = "another"
        assert "refuses the key in OPENAI_API_KEY (HTTP 401" in refused(connect(server.url))
        server.redirect = other.url
        assert (
            refused(connect(server.url))
            == f"{server.url} redirects to {other.url}/models; set the final URL"
        )
        assert not other.headers
