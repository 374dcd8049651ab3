"""The Starlette application of `sgpipe view`: who may ask it what, the pages of all modules, and
its server.

Every web page that a user visits can reach a server on this machine. Three checks keep these out:
the name by which it was called (DNS rebinding), the page that a write comes from, and, where other
machines can reach it, a token.
"""

import asyncio
import errno
import hmac
import ipaddress
import os
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from sgpipe.errors import UserError, format_os_error
from sgpipe.view import gallery, image_page, judging
from sgpipe.view.pages import FOLDER, Freshness, Viewer, render

LARGEST_BODY = 64 * 1024  # bytes
_READS = ("GET", "HEAD")
_COOKIE_SECONDS = 30 * 24 * 3600

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src"
        " 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

LOCAL = "127.0.0.1"
_PORTS = 50  # that are tried, from the one asked for on
_GRACE_SECONDS = 3
# for a request, and for what waits to be sent
_REQUEST_SECONDS = 20.0
_STALLED_SECONDS = 60.0


@dataclass(frozen=True)
class Guard:
    """The middleware: refuses requests, and adds the headers to every answer.

    A request must bring one of the `names` of this machine ("localhost" and IP addresses always
    do), and a token, if any, which is in the address that the command prints, then in a cookie.
    `read_only`: refuse every write.
    """

    app: ASGIApp
    names: Collection[str] = ()
    token: str | None = None
    read_only: bool = False

    def refusal(self, request: Request) -> tuple[HTTPStatus, str] | None:
        """Why a request is refused, as status and message; None: it is not."""
        host = request.headers.get("host", "")
        if not self._knows(host):
            return (
                HTTPStatus.MISDIRECTED_REQUEST,
                "this server was called by a name that it does not have",
            )
        shown = [request.query_params.get("token"), request.cookies.get(_cookie(request))]
        if self.token is not None and not any(map(self.is_token, shown)):
            return (
                HTTPStatus.UNAUTHORIZED,
                "open the address that `sgpipe view` printed: its token is needed here",
            )
        if request.method in _READS:
            return None
        if self.read_only:
            return HTTPStatus.FORBIDDEN, "the server is read-only"
        # A page of this server, or a program, which sends neither header.
        origin = request.headers.get("origin")
        site = request.headers.get("sec-fetch-site", "none")
        is_own_page = site in ("same-origin", "none")
        if origin is not None:
            is_own_page = origin in (f"http://{host}", f"https://{host}")
        if not is_own_page:
            return HTTPStatus.FORBIDDEN, "writes are only accepted from the pages of this server"
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            return HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body must be application/json"
        return None

    def _knows(self, host: str) -> bool:
        """Return whether a host is an address or a name of this machine: DNS rebinding needs
        another name.
        """
        known = {"localhost", *map(str.lower, self.names)}
        try:
            parts = urlsplit(f"//{host}")
            name = parts.hostname or ""
            _ = parts.port
            if name in known or name.endswith(".localhost"):
                return True
            return bool(ipaddress.ip_address(name))
        except ValueError:  # of any of them
            return False

    def is_token(self, shown: str | None) -> bool:
        """Return whether this is the token, compared in constant time."""
        if not shown or not self.token:
            return False
        return hmac.compare_digest(shown.encode(), self.token.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        refused = self.refusal(request)
        if refused:
            status, message = refused
            is_api = request.url.path.startswith("/api/")
            answer = (
                JSONResponse({"error": message}, status)
                if is_api
                else PlainTextResponse(f"{message}\n", status)
            )
            await answer(scope, receive, _with_headers(send))
        elif (
            self.token is not None and "token" in request.query_params and request.method in _READS
        ):
            # The same address without the token, which moves into a cookie: it shall not stay in
            # the history.
            query = request.url.remove_query_params("token").query
            # "//" names a host
            moved = RedirectResponse("/" + request.url.path.lstrip("/") + (query and f"?{query}"))
            if self.is_token(request.query_params["token"]):
                # "strict" would refuse whoever follows a link from another site; writes are checked
                # by their origin.
                moved.set_cookie(
                    _cookie(request),
                    self.token,
                    max_age=_COOKIE_SECONDS,
                    httponly=True,
                    samesite="lax",
                )
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


def create_app(viewer: Viewer, names: Collection[str] = (), token: str | None = None) -> Starlette:
    """Return the application; `names`, `token`: see `Guard`."""
    static = Mount("/static", StaticFiles(directory=FOLDER / "static"))
    guard = Middleware(Guard, names, token, viewer.read_only)
    app = Starlette(
        routes=[*gallery.ROUTES, *image_page.ROUTES, *judging.ROUTES, static],
        middleware=[guard, Middleware(RequestBodyLimitMiddleware, LARGEST_BODY)],
        exception_handlers=dict.fromkeys(
            (UserError, HTTPException, OSError, ClientDisconnect, Exception), _refuse
        ),
    )
    app.state.freshness = Freshness(viewer)
    return app


def _refuse(request: Request, error: Exception) -> Response:
    """Return one line about what is wrong, as a page, or as JSON below /api/."""
    if isinstance(error, HTTPException):
        status = error.status_code
        message = str(error.detail)
    elif isinstance(error, UserError):
        status = 422
        message = str(error)
    elif isinstance(error, ClientDisconnect):
        # nobody reads it
        status = 400
        message = "the connection ended before the request did"
    elif isinstance(error, OSError):
        status = 507 if error.errno in (errno.ENOSPC, errno.EDQUOT) else 503
        message = format_os_error(error)
    else:  # as for the commands: one line, or with --verbose all
        sys.excepthook(type(error), error, error.__traceback__)
        status = 500
        message = f"internal error: {type(error).__name__}; the terminal of `sgpipe view` says more"
    is_api = request.url.path.startswith("/api/")
    values = {"message": message, "status": status}
    response: Response = JSONResponse({"error": message}, status)
    if not is_api:
        response = render(request, "error", values, status)
    # Starlette answers unexpected errors outside of all middleware
    response.headers.update(HEADERS)
    return response


@dataclass(frozen=True)
class Address:
    """Where the server listens: its socket does already, so that the first request waits instead of
    failing.
    """

    socket: socket.socket
    host: str
    port: int

    def url(self, token: str | None = None) -> str:
        """Return the first page, with the token that it needs."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/{f'?token={token}' if token else ''}"


def listen(host: str, port: int) -> Address:
    """Listen at the first free port from `port` on; 0: any.

    Raises:
        UserError: no such host, or no port is free.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise UserError(f"--host {host} is not an address of this machine") from None
    family, _, _, _, address = addresses[0]
    for number in range(port, min(port + _PORTS, 65536) if port else 1):
        try:
            listener = socket.create_server((address[0], number), family=family, backlog=128)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise UserError(
                    f"--host {host} --port {number} cannot be used: {error.strerror}"
                ) from None
            continue
        with suppress(ValueError):  # a name
            # 0.0.0.0 and :: are all addresses; browsers accept a name
            if ipaddress.ip_address(host).is_unspecified:
                host = socket.gethostname()
        return Address(listener, host, listener.getsockname()[1])
    raise UserError(
        f"no port from {port} to {number} is free; choose another --port, or --port 0 for any"
    )


class _Protocol(H11Protocol):
    """HTTP/1.1 that closes connections whose request arrives, or whose answer is read, too
    slowly.
    """

    _timer: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(_STALLED_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stalled.cancel()

    def _watch(self) -> None:
        arriving = self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
        if self._timer and not arriving:
            self._timer.cancel()
            self._timer = None
        elif arriving and not self._timer:
            self._timer = self.loop.call_later(_REQUEST_SECONDS, self.transport.close)


def server_of(app: ASGIApp) -> uvicorn.Server:
    """Return the server of the application, which says itself what goes wrong."""
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    return uvicorn.Server(config)


def serve(app: ASGIApp, address: Address) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    # uvicorn, once it has stopped, raises the signals again that stopped it; here they have done
    # what they should.
    before = {
        number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        server_of(app).run(sockets=[address.socket])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def open_browser(url: str) -> None:
    """Open a page in the user's browser, but in none for terminals, which would take the terminal
    from the server.
    """
    has_windows = any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")))
    if has_windows or not sys.platform.startswith("linux"):
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
