"""Who may ask the server what, whatever the pages are."""

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from sgpipe.view.app import Guard

JSON = {"content-type": "application/json"}
OWN = ("localhost", "127.0.0.1:8765", "[::1]:8765", "view.localhost:80", "10.0.0.7", "MyBox:1")
FOREIGN = (
    "evil.example",
    "localhost.evil.example",
    "127.0.0.1.evil.example:8765",
    "[::1",
    "localhost:x",
    "",
)


async def echo(request: Request) -> Response:
    return PlainTextResponse(f"{request.method} {len(await request.body())}")


def client(host: str = "localhost:8765", **access: object) -> TestClient:
    routes = [Route("/{path:path}", echo, methods=["GET", "POST", "DELETE"])]
    middleware = [Middleware(Guard, **access), Middleware(RequestBodyLimitMiddleware, 100)]
    return TestClient(Starlette(routes=routes, middleware=middleware), base_url=f"http://{host}")


@pytest.mark.parametrize("host", [*OWN, *FOREIGN])
def test_the_server_answers_to_addresses_and_its_own_names_alone(host: str) -> None:
    """DNS rebinding: a page of evil.example makes its name lead to 127.0.0.1 and reads what the
    server answers.
    """
    answer = client(names={"mybox"}).get("/", headers={"host": host})
    assert answer.status_code == (200 if host in OWN else 421)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200), ({"origin": "http://localhost:8765"}, 200), ({"sec-fetch-site": "same-origin"}, 200),
        ({"origin": "http://evil.example"}, 403), ({"origin": "http://localhost:1"}, 403), ({"origin": "null"}, 403),
        ({"origin": "http://["}, 403), ({"sec-fetch-site": "cross-site"}, 403), ({"content-type": "text/plain"}, 415),
    ],
)  # fmt: skip
def test_only_pages_of_the_server_write(headers: dict[str, str], status: int) -> None:
    for method in ("POST", "DELETE"):
        assert client().request(method, "/api/x", headers={**JSON, **headers}).status_code == status
    assert client().get("/api/x", headers=headers).status_code == 200


def test_a_read_only_server_refuses_every_write() -> None:
    refused = client(read_only=True).post("/api/x", headers=JSON)
    assert (refused.status_code, refused.json()) == (403, {"error": "the server is read-only"})


def test_the_token_moves_from_the_address_into_a_cookie() -> None:
    browser = client(token="secret")
    assert browser.get("/").status_code == 401
    assert browser.get("/?token=wrong").status_code == 401
    moved = browser.get("/image/a?q=dog&token=secret", follow_redirects=False)
    assert (moved.status_code, moved.headers["location"]) == (307, "/image/a?q=dog")
    assert moved.headers["set-cookie"].endswith("; HttpOnly; Max-Age=2592000; Path=/; SameSite=lax")
    assert browser.get("/").status_code == 200
    address = "http://localhost:8765//evil.example/?token=secret"  # leads to no other server
    moved = client(token="secret").get(address, follow_redirects=False)
    assert moved.headers["location"] == "/evil.example/"


@pytest.mark.parametrize("host", ["localhost", "evil.example"])
def test_every_answer_tells_the_browser_what_the_page_may_load(host: str) -> None:
    headers = client(host=host).get("/").headers
    assert headers["content-security-policy"].startswith(
        "default-src 'none'; script-src 'self'; style-src 'self'; "
    )
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


def test_a_large_body_is_refused() -> None:
    assert client().post("/api/x", headers=JSON, content=b"x" * 100).status_code == 200
    assert client().post("/api/x", headers=JSON, content=b"x" * 101).status_code == 413
    assert (
        client().post("/api/x", headers=JSON, content=iter([b"x" * 60, b"x" * 60])).status_code
        == 413
    )


def test_a_program_sends_the_token_in_the_address() -> None:
    program = client(token="secret")
    for token, status in (("secret", 200), ("wrong", 401)):
        assert program.post(f"/api/x?token={token}", headers=JSON).status_code == status
