"""Servers of one model: each gets as many requests as the others, and none while it is away."""

from __future__ import annotations

import asyncio
import json
import math
import re
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from sgpipe.errors import EngineError, UserError
from sgpipe.stages.served.chat import quote

if TYPE_CHECKING:
    from aiohttp import ClientError, ClientResponse, ClientSession

MODELS = "/models"
_CONNECT_SECONDS = 15
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
_IS_ERROR = re.compile(rb'\s*\{\s*"error"\s*:\s*[{"]')  # proxies send such with HTTP 200
# some servers refuse a key with HTTP 400
_NAMES_KEY = re.compile(r"\bAPI[ _]?key\b", re.IGNORECASE)
# after these the same request may be answered
_PASSING = (408, 409, 429)
_SERVER_ERROR = 500
_AWAY = (502, 503, 504)
# A server is away after this many failures in a row, unless it answered within these seconds.
_FAILURES = 3
_SECONDS_WITHOUT_ANSWER = 1.0
_HEALTH_SECONDS = 10
_FIRST_PAUSE = 1.0  # seconds; before a server that is away is asked whether it is back
_LONGEST_PAUSE = 30.0


class RequestError(Exception):
    """A request without an answer.

    Attributes:
        status: of HTTP; 0: there is no answer, or it cannot be read.
        is_passing: the same request may be answered later, or by another server.
        pause: seconds after which the server wants to be asked again; None: it does not say.
        server: that was asked last; None: none was.
    """

    server: ChatServer | None = None

    def __init__(
        self,
        reason: str,
        status: int = 0,
        *,
        is_passing: bool = False,
        pause: float | None = None,
    ) -> None:
        super().__init__(reason)
        self.status = status
        self.is_passing = is_passing
        self.pause = pause


class ChatServer:
    """One server, and whether it answers.

    Attributes:
        url: without the path of a request.
        under_way: how many requests it is answering.
        away: why it gets no requests; None: it gets some.
    """

    def __init__(self, url: str, key: str, key_name: str, timeout: float) -> None:
        """`key`: sent with each request, and in no message; "": none. `key_name`: the variable it is
        read from. `timeout`: seconds to wait for an answer.
        """
        self.url = url
        self.under_way = 0
        self.away: str | None = None
        self._key = key
        self._key_name = key_name
        self._timeout = timeout
        self._proxy = _proxy_of(url)
        self._failures = 0
        self._answered = -math.inf

    async def send(
        self, session: ClientSession, path: str, fields: Mapping[str, object] | None = None
    ) -> object:
        """Return the JSON of an answer to POST with `fields`, or to GET; other text is returned as
        it is.

        Raises:
            UserError: the server refuses the key, or redirects.
            RequestError: there is no answer to this request.
        """
        self.under_way += 1
        try:
            async with asyncio.timeout(self._timeout):
                return await self._exchange(session, path, fields)
        except TimeoutError:
            reason = f"no answer within {self._timeout:g} seconds"
            raise self._failed(RequestError(reason, is_passing=True)) from None
        except OSError as error:
            reason = f"it cannot be reached ({self.without_key(str(error))})"
            raise self._failed(RequestError(reason, is_passing=True)) from None
        except RequestError as error:
            if error.status in _AWAY:
                self._failed(error)
            error.server = self
            raise
        finally:
            self.under_way -= 1

    async def _exchange(
        self, session: ClientSession, path: str, fields: Mapping[str, object] | None
    ) -> object:
        """Raises as `send`; also OSError."""
        import aiohttp

        headers = {"Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        body = None
        if fields is not None:
            headers["Content-Type"] = "application/json"
            body = json.dumps(fields).encode()
        method = "GET" if fields is None else "POST"
        url = self.url + path
        try:
            # a redirect could carry the key to another host
            async with session.request(
                method, url, data=body, headers=headers, proxy=self._proxy, allow_redirects=False
            ) as answer:
                content = await answer.read()
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
            raise ConnectionError(_cause(error)) from None
        except (aiohttp.ClientError, ValueError) as error:
            raise ConnectionError(f"its answer is not HTTP: {error}") from None
        self._check_status(answer, content)
        self._failures = 0
        self._answered = time.monotonic()
        text = content.decode(errors="replace")
        with suppress(ValueError):
            return json.loads(text)
        return text

    def _check_status(self, answer: ClientResponse, content: bytes) -> None:
        """Raises as `send`: the status of an answer is that of an error."""
        is_error = _IS_ERROR.match(content) is not None
        if 200 <= answer.status < 300 and not is_error:
            return
        status = _SERVER_ERROR if answer.ok and is_error else answer.status
        message = _message_of(content)
        reason = f"HTTP {status}: {self.without_key(message)}" if message else f"HTTP {status}"
        if status in (401, 403) or (status == 400 and _NAMES_KEY.search(reason)):
            refusal = "refuses the key in" if self._key else "requires an API key; set"
            raise UserError(f"{self.url} {refusal} {self._key_name} ({reason})")
        location = answer.headers.get("location")
        if location:
            target = self.without_key(location)
            raise UserError(f"{self.url} redirects to {target}; set the final URL")
        is_passing = status in _PASSING or status >= _SERVER_ERROR
        raise RequestError(reason, status, is_passing=is_passing, pause=_pause_of(answer))

    def put_away(self, reason: str) -> None:
        """Send it nothing until it is back."""
        self.away = reason

    def put_back(self) -> None:
        """Try it: it is away again after one more failure."""
        self.away = None
        self._failures = _FAILURES - 1

    def _failed(self, error: RequestError) -> RequestError:
        """Count a failure of the server, and return it."""
        error.server = self
        self._failures += 1
        seconds = time.monotonic() - self._answered
        if self._failures >= _FAILURES and seconds >= _SECONDS_WITHOUT_ANSWER:
            self.put_away(str(error))
        return error

    def without_key(self, text: str) -> str:
        """Return a text of the server for a message, without the key, if it repeats it."""
        return quote(text.replace(self._key, "…") if self._key else text)


class ServerGroup:
    """All servers of a model. To be used in one event loop.

    Attributes:
        servers: in the order of the recipe.
    """

    def __init__(
        self,
        servers: Sequence[ChatServer],
        patience: float,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """
        Args:
            patience: seconds to wait while all servers are away.
            say: gets a line when all servers are away, and when one is back.
        """
        self.servers = servers
        self._patience = patience
        self._say = say
        self._watches: dict[ChatServer, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._all_away = False

    async def choose(self, check: Callable[[ChatServer], Awaitable[None]]) -> ChatServer:
        """Return the server with the fewest requests, once one is not away.

        Args:
            check: raises RequestError or UserError if a server is still away.

        Raises:
            EngineError: all were away for longer than the patience.
        """
        loop = asyncio.get_running_loop()
        ends = loop.time() + self._patience
        while True:
            for server in self.servers:
                if server.away is not None:
                    self._watch(server, check)
            present = [server for server in self.servers if server.away is None]
            if present:
                self._tell_of_return(present[0])
                return min(present, key=lambda server: server.under_way)
            self._tell_of_absence()
            self._changed.clear()
            try:
                async with asyncio.timeout_at(ends):
                    await self._changed.wait()
            except TimeoutError:
                raise EngineError(self._absence()) from None

    def _absence(self) -> str:
        """Return that no server answers, and why."""
        first = self.servers[0]
        if len(self.servers) == 1:
            return f"the endpoint {first.url} does not answer: {first.away}"
        return f"none of {len(self.servers)} endpoints answers: {first.url}: {first.away}"

    def _tell_of_absence(self) -> None:
        if not self._all_away:
            self._all_away = True
            self._say(f"{self._absence()}; waiting for at most {self._patience:,.0f} seconds")

    def _tell_of_return(self, server: ChatServer) -> None:
        if self._all_away:
            self._all_away = False
            self._say(f"the endpoint {server.url} answers again")

    def _watch(self, server: ChatServer, check: Callable[[ChatServer], Awaitable[None]]) -> None:
        """Ask a server that is away again and again whether it is back."""
        if server not in self._watches:
            self._watches[server] = asyncio.create_task(self._wait_for(server, check))

    async def _wait_for(
        self, server: ChatServer, check: Callable[[ChatServer], Awaitable[None]]
    ) -> None:
        pause = _FIRST_PAUSE
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            try:
                async with asyncio.timeout(_HEALTH_SECONDS):
                    await check(server)
            except (RequestError, UserError, TimeoutError):
                continue
            server.put_back()
            del self._watches[server]
            self._changed.set()
            return


def new_session() -> ClientSession:
    """Return what holds the connections; to be called in the event loop that uses them."""
    import aiohttp
    import certifi

    trusted = ssl.create_default_context()
    trusted.load_verify_locations(certifi.where())
    connector = aiohttp.TCPConnector(limit=0, ssl=trusted)
    limits = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS)
    return aiohttp.ClientSession(connector=connector, timeout=limits)


def _cause(error: ClientError) -> str:
    """Return why there is no connection."""
    refused = error.__cause__
    if isinstance(refused, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not trusted: {refused.verify_message}; for a server of your own set"
            " SSL_CERT_FILE to the certificate of its authority"
        )
    return str(error) or "the connection was cut"


def _message_of(content: bytes) -> str:
    """Return what the body of an error says; "": nothing."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return ""
    error = body.get("error", body) if isinstance(body, Mapping) else body
    if isinstance(error, Mapping):
        error = error.get("message") or error.get("detail")
    return str(error) if error else ""


def _pause_of(answer: ClientResponse) -> float | None:
    """Return the seconds of the Retry-After of an answer."""
    with suppress(ValueError):
        return min(float(answer.headers.get("retry-after", "")), 60.0)
    return None


def _proxy_of(url: str) -> str | None:
    """Return the proxy that the environment names for a URL; none to this machine."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if (host in _THIS_MACHINE and parts.scheme != "https") or proxy_bypass(host):
        return None
    proxies = getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")
