"""Several servers of one model: one that is away, hangs or lies is not asked; if all are away, the
run waits.
"""

from __future__ import annotations

import shutil
import ssl
import subprocess
import threading
from collections import Counter
from itertools import count
from pathlib import Path

import pytest

from sgpipe.errors import EngineError, UserError
from sgpipe.recipe import Requests
from sgpipe.stages.served import server as servers
from sgpipe.stages.served import waiting
from sgpipe.stages.served.chat import ChatRequest, Choice, Refusal
from sgpipe.stages.served.endpoint import ChatEndpoint
from tests.endpoint_server import EndpointServer, wait_until

pytestmark = pytest.mark.usefixtures("no_pauses")


@pytest.fixture(autouse=True)
def quick_health_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(servers, "_LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(servers, "_SECONDS_WITHOUT_ANSWER", 0.0)


def connect(
    *urls: str, in_flight: int = 8, timeout: float = 20, patience: float = 60
) -> ChatEndpoint:
    requests = Requests(in_flight=in_flight, timeout=timeout, patience=patience)
    return ChatEndpoint(urls, "tiny-vlm", requests)


def questions(number: int) -> list[ChatRequest]:
    return [ChatRequest(f"What is in image {seed}?", seed=seed) for seed in range(number)]


def texts(endpoint: ChatEndpoint, number: int) -> list[str]:
    answers = []
    for answer in endpoint.ask_all(questions(number)):
        assert isinstance(answer, list)
        answers.append(answer[0].text)
    return answers


def test_all_servers_get_requests_and_the_answers_are_those_of_one() -> None:
    with EndpointServer(seconds=0.01) as one, EndpointServer(seconds=0.01) as other:
        answers = texts(connect(one.url, other.url), 40)
        assert min(len(one.requests), len(other.requests)) >= 10
        assert answers == texts(connect(one.url), 40)


def test_a_server_that_is_not_there_is_no_longer_asked() -> None:
    with EndpointServer() as gone:
        pass
    with EndpointServer() as server:
        assert len(texts(connect(gone.url, server.url), 40)) == 40
        assert len(server.requests) == 40


def test_a_server_that_hangs_costs_a_few_requests_their_time_and_the_rest_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(servers, "_FIRST_PAUSE", 60.0)
    with (
        EndpointServer(faults=lambda body, attempt: "silent") as hanging,
        EndpointServer() as server,
    ):
        assert len(texts(connect(hanging.url, server.url, timeout=0.5), 40)) == 40
        assert len(hanging.requests) < 20


def test_a_server_that_answers_for_another_model_is_not_believed() -> None:
    def lie(completion: dict[str, object]) -> dict[str, object]:
        return completion | {"model": "another"}

    with EndpointServer() as liar, EndpointServer(lambda body: ["the truth"]) as server:
        endpoint = connect(server.url, liar.url)
        assert texts(endpoint, 1) == ["the truth"]
        complete = liar.completion
        liar.completion = lambda body, fault: lie(complete(body, fault))  # type: ignore[method-assign]
        assert Counter(texts(endpoint, 30)) == {"the truth": 30}


def test_each_server_of_a_list_is_checked() -> None:
    with EndpointServer() as server, EndpointServer(models=["llava"]) as other:
        with pytest.raises(UserError, match=f"^{other.url} does not serve 'tiny-vlm', but llava$"):
            connect(server.url, other.url).check()
        with pytest.raises(UserError, match="is not a URL"):
            connect(server.url, "localhost")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_a_certificate_of_an_unknown_authority_is_refused_unless_it_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key = tmp_path / "key.pem"
    certificate = tmp_path / "certificate.pem"
    made = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
    subprocess.run([*made.split(), *names], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = EndpointServer()
    server.server.socket = context.wrap_socket(server.server.socket, server_side=True)
    url = server.url.replace("http:", "https:")
    with server:
        with pytest.raises(UserError, match=r"certificate is not trusted: self.signed.*SSL_CERT"):
            connect(url).check()
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        connect(url).check()


def test_a_server_that_closes_after_few_answers_changes_none() -> None:
    answered = count(1)

    def close_at_times(body: str, attempt: int) -> str | None:
        return "cut" if next(answered) % 5 == 0 else None

    with EndpointServer(faults=close_at_times) as closing, EndpointServer() as server:
        assert texts(connect(closing.url), 40) == texts(connect(server.url), 40)


def test_while_all_servers_are_away_requests_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    notices: list[str] = []
    monkeypatch.setattr(waiting, "_LISTENERS", [notices.append])
    answers: list[list[Choice]] = []
    with EndpointServer() as server:
        server.away = True
        endpoint = connect(server.url)

        def ask() -> None:
            answers.extend(endpoint.ask_all(questions(20)))  # type: ignore[arg-type]

        asking = threading.Thread(target=ask)
        asking.start()
        wait_until(lambda: len(notices) == 1)
        assert not answers
        server.away = False
        asking.join(60)
    assert len(answers) == 20
    assert len(server.requests) == 1 + 20, "with one that asks whether it is back"
    assert notices == [
        f"the endpoint {server.url} does not answer: HTTP 503: restarting; waiting for at most 60"
        " seconds",
        f"the endpoint {server.url} answers again",
    ]


def test_an_outage_is_no_attempt_of_the_requests_that_it_hits() -> None:
    """Not even where only chats fail: a gateway lists models while there is no server behind it."""
    outages = iter([True] * 30)
    with EndpointServer(faults=lambda body, attempt: "away" if next(outages, False) else None) as (
        server
    ):
        # The third failure shows that the server is away, even if all are of one request.
        endpoint = ChatEndpoint(server.url, "tiny-vlm", Requests(in_flight=2, retries=2))
        assert len(texts(endpoint, 6)) == 6


def test_a_request_that_makes_the_server_crash_is_refused_at_last() -> None:
    def faults(body: str, attempt: int) -> str | None:
        return "away" if "image 0?" in str(server.requests[-1]) else None

    with EndpointServer(faults=faults) as server:
        endpoint = ChatEndpoint(server.url, "tiny-vlm", Requests(in_flight=1, retries=1))
        refused, *answered = endpoint.ask_all(questions(3))
    assert isinstance(refused, Refusal)
    assert all(isinstance(answer, list) for answer in answered)


def test_a_list_may_have_servers_that_are_away_but_none_that_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    notices: list[str] = []
    monkeypatch.setattr(waiting, "_LISTENERS", [notices.append])
    with EndpointServer() as server, EndpointServer() as other:
        other.away = True
        endpoint = connect(server.url, other.url)
        endpoint.check()
        assert notices == [
            f"the endpoint {other.url} does not answer: HTTP 503: restarting; it gets no requests"
            " until it does"
        ]
        assert len(texts(endpoint, 8)) == 8
        assert not other.requests
        server.away = True
        with pytest.raises(UserError, match="does not answer: HTTP 503"):
            connect(server.url, other.url).check()


def test_patience_has_an_end() -> None:
    with EndpointServer() as server:
        server.away = True
        endpoint = connect(server.url, patience=0.05)
        with pytest.raises(EngineError, match="does not answer: HTTP 503: restarting"):
            texts(endpoint, 4)
