"""Every wrong endpoint is one line, and no line holds the key."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from sgpipe.errors import EngineError, UserError
from sgpipe.stages.endpoint.client import ChatEndpoint
from sgpipe.stages.endpoint.messages import Answer, ChatRequest, ChatSampling, conversation
from sgpipe.stages.endpoint.transport import endpoint_url
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
    ("url", "message"),
    [
        ("localhost:8000", "'localhost:8000' is not a URL, such as http://localhost:8000/v1"),
        ("ftp://host/v1", "'ftp://host/v1' is not a URL, such as http://localhost:8000/v1"),
        ("http://", "'http://' is not a URL, such as http://localhost:8000/v1"),
        ("http://host:port/v1", "'http://host:port/v1' is not a URL, such as http://localhost:8000/v1"),
        (f"http://user:{KEY}@host/v1", "has a name or password in it"),
        (f"http://{KEY}@host/v1", "has a name or password in it"),
        (f"http://host/v1?key={KEY}", "has a '?' or '#'"),
    ],
)
def test_no_url(connect: Connect, url: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        connect(url)
    assert message in str(raised.value)
    assert KEY not in str(raised.value)


@pytest.mark.parametrize("suffix", ["", "/", "/chat/completions"])
def test_ways_to_write_the_url(suffix: str) -> None:
    assert endpoint_url(f"http://host:8000/v1{suffix}") == "http://host:8000/v1"


def test_down(connect: Connect) -> None:
    with EndpointServer() as server:
        url = server.url
    assert refused(connect(url)) == f"the endpoint {url} does not answer: it cannot be reached (Connection refused)"


def test_no_such_host(connect: Connect) -> None:
    assert "does not answer: it cannot be reached" in refused(connect("http://no-such-host.invalid/v1"))


def test_another_model(connect: Connect) -> None:
    with EndpointServer(models=["llava", "qwen"]) as server:
        assert refused(connect(server.url)) == f"{server.url} does not serve 'tiny-vlm', but llava, qwen"


def test_another_model_in_the_middle(connect: Connect) -> None:
    with EndpointServer() as server:
        endpoint = connect(server.url)
        assert isinstance(endpoint.ask(EXAMPLE.messages, sampling=SAMPLING), Answer)
        server.models = ["llava"]
        with pytest.raises(UserError, match="does not serve 'tiny-vlm', but llava"):
            endpoint.ask(EXAMPLE.messages, sampling=SAMPLING)


def test_a_server_that_mixes_up_its_models(connect: Connect) -> None:
    error = pytest.raises(EngineError, match="the answer is of another model, 'another-model', 4 attempts")
    with EndpointServer(faults=lambda body, attempt: "mixed") as server, error:
        connect(server.url).ask(EXAMPLE.messages, sampling=SAMPLING)


def test_no_key(connect: Connect) -> None:
    with EndpointServer(key=KEY) as server:
        assert f"{server.url} wants a key, and none is in the environment variable OPENAI_API_KEY" in refused(
            connect(server.url)
        )


def test_wrong_key(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server repeats it."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with EndpointServer(key="another") as server:
        message = refused(connect(server.url))
    assert (
        "refuses the key in the environment variable OPENAI_API_KEY (HTTP 401: Incorrect API key provided: Bearer …)"
        in message
    )


def test_a_key_that_expires_in_the_middle(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with EndpointServer(key=KEY) as server:
        endpoint = connect(server.url)
        endpoint.check(EXAMPLE)
        assert isinstance(endpoint.ask(EXAMPLE.messages, sampling=SAMPLING), Answer)
        server.key = "renewed"
        with pytest.raises(UserError, match="refuses the key"):
            endpoint.ask(EXAMPLE.messages, sampling=SAMPLING)


def test_a_server_that_repeats_the_key_in_another_error(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with EndpointServer(faults=lambda body, attempt: "broken") as server:
        assert "request had Bearer …" in refused(connect(server.url))


def test_a_key_that_cannot_be_sent(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nX-Other: 1")
    with pytest.raises(UserError, match="the environment variable OPENAI_API_KEY holds characters that no key has"):
        connect("http://localhost:1/v1")


def test_a_web_page(connect: Connect) -> None:
    with EndpointServer(faults=scripted(*["page"] * 4)) as server:
        assert "the answer is a web page, not JSON" in refused(connect(server.url))


def test_a_url_without_v1(connect: Connect) -> None:
    with EndpointServer() as server:
        assert "does not answer: HTTP 404: Not Found" in refused(connect(server.url.removesuffix("/v1")))


def test_requests_that_are_never_answered(connect: Connect) -> None:
    with EndpointServer(faults=lambda body, attempt: "rejected") as server:
        assert "'tiny-vlm' at" in (message := refused(connect(server.url)))
        assert "refuses such requests (HTTP 400: The prompt is longer than the maximum model length)" in message


def test_redirects_are_not_followed(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with EndpointServer() as other, EndpointServer() as server:
        server.redirect = other.url
        assert refused(connect(server.url)) == f"{server.url} redirects to {other.url}/models; give the final URL"
        assert not other.headers


def test_a_certificate_of_nobody(connect: Connect, tmp_path: Path) -> None:
    with EndpointServer() as server:
        server.encrypt(tmp_path)
        message = refused(connect(server.url))
    assert message.startswith(f"the certificate of {server.url} is not trusted (self-signed certificate")
    assert "SSL_CERT_FILE" in message


def test_a_certificate_of_ones_own(connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with EndpointServer() as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(server.encrypt(tmp_path)))
        assert ssl.get_default_verify_paths().cafile
        connect(server.url).check(EXAMPLE)


def test_an_endless_answer_is_cut(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sgpipe.stages.endpoint.transport._LARGEST_ANSWER", 1000)
    with EndpointServer(lambda body: ["a" * 2000]) as server:
        assert "the answer is larger than" in refused(connect(server.url))
