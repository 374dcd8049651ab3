"""Every wrong endpoint is one line, and no line contains the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from sgpipe.errors import EngineError, UserError
from sgpipe.stages.endpoint import ChatEndpoint, ChatRequest, ChatSampling, RequestCache, conversation, endpoint_url
from tests.endpoint_server import EndpointServer, scripted
from tests.sgpipe.stages.endpoint.conftest import Connect

SAMPLING = ChatSampling(max_tokens=16)
EXAMPLE = ChatRequest(conversation("What is in the image?"), SAMPLING)
KEY = "sk-secret-0123456789"


def refused(endpoint: ChatEndpoint) -> str:
    with pytest.raises(UserError) as raised:
        endpoint.check(EXAMPLE)
    message = str(raised.value)
    assert "\n" not in message
    assert KEY not in message
    return message


@pytest.mark.parametrize(
    "url",
    [
        *("localhost:8000", "ftp://host/v1", "http://", "http://host:port/v1", f"http://user:{KEY}@host/v1"),
        *(f"https://user:{KEY}/x@host/v1", f"http:/user:{KEY}@host/v1"),
        *(f"http://{KEY}@host/v1", f"http://host/v1?key={KEY}", f"http://host/v1#{KEY}"),
    ],
)
def test_not_a_url(connect: Connect, url: str) -> None:
    with pytest.raises(UserError) as raised:
        connect(url)
    assert KEY not in str(raised.value)


@pytest.mark.parametrize("suffix", ["", "/", "/chat/completions"])
def test_ways_to_write_the_url(suffix: str) -> None:
    assert endpoint_url(f"http://host:8000/v1{suffix}") == "http://host:8000/v1"


def test_only_counts_of_tokens_are_counted(tmp_path: Path) -> None:
    cache = RequestCache(tmp_path / "cache.sqlite")
    for number in (10**30, -5, "7", 3):
        cache.put_usage({"usage": {"prompt_tokens": number}})
    assert cache.tokens() == 3


def test_down(connect: Connect) -> None:
    with EndpointServer() as server:
        url = server.url
    assert refused(connect(url)).startswith(f"the endpoint {url} does not answer: it cannot be reached")
    assert "it cannot be reached" in refused(connect("http://no-such-host.invalid/v1"))


def test_another_model(connect: Connect) -> None:
    with EndpointServer(models=["llava", "qwen"]) as server:
        assert refused(connect(server.url)) == f"{server.url} does not serve 'tiny-vlm', but llava, qwen"
        server.models = ["tiny-vlm:latest"]
        connect(server.url).check()


def test_no_key(connect: Connect) -> None:
    with EndpointServer(key=KEY) as server:
        assert f"{server.url} requires an API key; set OPENAI_API_KEY" in refused(connect(server.url))
        server.key = None
        connect(server.url).check(EXAMPLE)
        assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize(
    ("server", "message"),
    [
        (lambda: EndpointServer(key="another"), "refuses the key in OPENAI_API_KEY (HTTP 401"),
        (lambda: EndpointServer(faults=lambda body, attempt: "broken"), "request had Bearer …"),
    ],
)
def test_errors_that_repeat_the_key(connect: Connect, monkeypatch: pytest.MonkeyPatch, server, message) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with server() as running:
        assert message in refused(connect(running.url))


def test_a_key_that_cannot_be_sent(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nX-Other: 1")
    with pytest.raises(UserError, match=r"^OPENAI_API_KEY contains"):
        connect("http://localhost:1/v1")


def test_a_web_page(connect: Connect) -> None:
    with EndpointServer(faults=scripted(*["page"] * 4)) as server:
        assert "not JSON" in refused(connect(server.url))
        assert "HTTP 404: Not Found" in refused(connect(server.url.removesuffix("/v1")))


def test_redirects_are_not_followed(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with EndpointServer() as other, EndpointServer() as server:
        server.redirect = other.url
        assert refused(connect(server.url)) == f"{server.url} redirects to {other.url}/models; set the final URL"
        assert not other.headers


def test_an_account_without_money_ends_the_run(connect: Connect) -> None:
    with EndpointServer(faults=scripted("unpaid")) as server, pytest.raises(EngineError, match="payment is required"):
        list(connect(server.url).ask_all([EXAMPLE]))


def test_certificates(connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with EndpointServer() as server:
        certificate = server.encrypt(tmp_path)
        assert "SSL_CERT_FILE" in refused(connect(server.url))
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        connect(server.url).check(EXAMPLE)
