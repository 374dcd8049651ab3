"""Who may ask the server what: checks of every request before a page sees it, and the headers of every answer.

Every web page that a user visits can reach a server on this machine. Three checks keep these out: the name by which it
was called (DNS rebinding), the page that a write comes from, and, where other machines can reach it, a token.
"""

import hmac
import ipaddress
from collections.abc import Collection
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_BODY = 64 * 1024  # bytes
_READS = ("GET", "HEAD")
_COOKIE_SECONDS = 30 * 24 * 3600

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True)
class Access:
    """What a request must bring: a name of this machine ("localhost" and IP addresses always do), and a token, if any.

    The token is in the address that the command prints, then in a cookie. `read_only`: refuse every write.
    """

    names: Collection[str] = ()
    token: str | None = None
    read_only: bool = False

    def refusal(self, request: Request) -> tuple[HTTPStatus, str] | None:
        """Why a request is refused, as status and message; None: it is not."""
        host = request.headers.get("host", "")
        if not self._knows(host):
            return HTTPStatus.MISDIRECTED_REQUEST, "this server was called by a name that it does not have"
        shown = [request.query_params.get("token"), request.cookies.get(_cookie(request))]
        if self.token is not None and not any(map(self.is_token, shown)):
            return HTTPStatus.UNAUTHORIZED, "open the address that `sgpipe view` printed: its token is needed here"
        if request.method in _READS:
            return None
        if self.read_only:
            return HTTPStatus.FORBIDDEN, "the server is read-only"
        # A page of this server, or a program, which sends neither header.
        origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "none")
        own = site in ("same-origin", "none") if origin is None else origin in (f"http://{host}", f"https://{host}")
        if not own:
            return HTTPStatus.FORBIDDEN, "writes are only accepted from the pages of this server"
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body must be application/json"
        return None

    def _knows(self, host: str) -> bool:
        """Return whether a host is an address or a name of this machine: DNS rebinding needs another name."""
        try:
            parts = urlsplit(f"//{host}")
            name, _ = parts.hostname or "", parts.port
            if name == "localhost" or name.endswith(".localhost") or name in (known.lower() for known in self.names):
                return True
            return bool(ipaddress.ip_address(name))
        except ValueError:  # of any of them
            return False

    def is_token(self, shown: str | None) -> bool:
        """Return whether this is the token, compared in constant time."""
        return bool(shown and self.token) and hmac.compare_digest(str(shown).encode(), str(self.token).encode())


class Guard:
    """The middleware: refuses requests as `access` says, and adds the headers to every answer."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        if refused := self.access.refusal(request):
            status, message = refused
            is_api = request.url.path.startswith("/api/")
            answer = JSONResponse({"error": message}, status) if is_api else PlainTextResponse(f"{message}\n", status)
            await answer(scope, receive, _with_headers(send))
        elif self.access.token is not None and "token" in request.query_params and request.method in _READS:
            # The same address without the token, which moves into a cookie: it shall not stay in the history.
            query = request.url.remove_query_params("token").query
            moved = RedirectResponse("/" + request.url.path.lstrip("/") + (query and f"?{query}"))  # "//" names a host
            if self.access.is_token(request.query_params["token"]):
                # "strict" would refuse whoever follows a link from another site; writes are checked by their origin.
                secret = str(self.access.token)
                moved.set_cookie(_cookie(request), secret, max_age=_COOKIE_SECONDS, httponly=True, samesite="lax")
            await moved(scope, receive, _with_headers(send))
        else:
            await self.app(scope, receive, _with_headers(send))


def _cookie(request: Request) -> str:
    """Return the name of the cookie, one for each port: browsers keep cookies by host."""
    return f"sgpipe-view-{request.url.port or 80}"


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.update(HEADERS)
            headers.setdefault("Cache-Control", "no-cache")
        await send(message)

    return send_with_headers
