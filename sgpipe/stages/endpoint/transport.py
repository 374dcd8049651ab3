"""One HTTP request to an endpoint: what comes back, or which kind of failure it is.

The key is read from the environment and sent in a header; no message contains it. Redirects are not followed: they
could carry the key to another host.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import ssl
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from sgpipe.errors import EngineError, UserError
from sgpipe.recipe import Requests
from sgpipe.stages.endpoint.answers import quote

_LARGEST_ANSWER = 16 << 20  # bytes
_CONNECT_SECONDS = 15
_LONGEST_PAUSE = 300.0  # seconds, whatever a server asks for
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
_LATER = (408, 425, 429)  # and every 5xx
_REJECTED = (400, 413, 422)
_UNPAID = 402
_NAMES_KEY = re.compile(r"\bAPI[ _]?key\b", re.IGNORECASE)  # some servers refuse a key with HTTP 400


class TransientError(Exception):
    """The request may succeed later. wait: seconds that the server asks for. limited: it takes no more for now."""

    def __init__(self, reason: str, wait: float | None = None, *, limited: bool = False) -> None:
        super().__init__(reason)
        self.wait = wait
        self.limited = limited


class RejectedError(Exception):
    """The server does not answer this request, but may answer others."""


class NotFoundError(Exception):
    """The server knows no such address, or no such model."""


def endpoint_url(url: str) -> str:
    """The URL of an API in the form that requests are appended to.

    Raises UserError: it is no URL of a web server, or has parts that must not be stored in a run, which are not quoted.
    """
    try:
        parts = httpx.URL(url.strip())
    except httpx.InvalidURL:
        raise UserError(f"{quote(url)!r} is not a URL, such as http://localhost:8000/v1") from None
    if parts.userinfo or "@" in parts.netloc.decode():
        raise UserError(
            "the URL of an endpoint has a name or password in it, which would be stored in the run: put the key into "
            "an environment variable (requests.key)"
        )
    if parts.query or parts.fragment:
        raise UserError("the URL of an endpoint has a '?' or '#', and what follows would be stored in the run: omit it")
    if parts.scheme not in ("http", "https") or not parts.host:
        raise UserError(f"{quote(url)!r} is not a URL, such as http://localhost:8000/v1")
    return str(parts).rstrip("/").removesuffix("/chat/completions")


class Transport:
    """JSON to and from one server, over connections that are kept open, all in one event loop."""

    def __init__(self, url: str, requests: Requests) -> None:
        """Raises UserError: as `endpoint_url`, or the key cannot be sent."""
        self.url = endpoint_url(url)
        self.timeout = requests.timeout
        self.key_name = requests.key
        self._key = _read_key(requests.key)
        self._connections = requests.in_flight
        self._client: httpx.AsyncClient | None = None

    async def get(self, path: str) -> Any:
        """The JSON at a path below the URL. Raises as `post`."""
        return await self._send("GET", path, None)

    async def post(self, path: str, body: bytes) -> Any:
        """What the server answers.

        Raises:
            TransientError: it may answer later. RejectedError: it rejects this body. NotFoundError: HTTP 404.
            UserError: the key is refused, the certificate is not trusted, or this is no such API.
            EngineError: an account is empty.
        """
        return await self._send("POST", path, body)

    def hidden(self, text: str) -> str:
        """A text of the server, without the key if it repeats it."""
        return quote(text.replace(self._key, "…") if self._key else text)

    async def _send(self, method: str, path: str, body: bytes | None) -> Any:
        try:
            async with asyncio.timeout(self.timeout):
                async with self._opened().stream(method, f"{self.url}/{path}", content=body) as response:
                    content = await _read(response)
        except (httpx.TimeoutException, TimeoutError):
            raise TransientError(f"no answer within {self.timeout:g} seconds") from None
        except httpx.ConnectError as error:
            raise self._unconnected(error) from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            reason = self.hidden(str(error)) or type(error).__name__
            raise TransientError(f"the connection was cut ({reason})") from None
        if response.status_code != 200:
            raise self._failure(response, _message(content))
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise TransientError(_not_json(response, content)) from None

    def _opened(self) -> httpx.AsyncClient:
        if self._client is None:
            url = httpx.URL(self.url)
            headers = {"Content-Type": "application/json", "Accept": "application/json"}
            self._client = httpx.AsyncClient(
                headers=headers | ({"Authorization": f"Bearer {self._key}"} if self._key else {}),
                timeout=httpx.Timeout(self.timeout, connect=min(self.timeout, _CONNECT_SECONDS), pool=None),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=self._connections),
                follow_redirects=False,
                trust_env=url.host not in _THIS_MACHINE or url.scheme == "https",  # no proxy leads to this machine
            )
        return self._client

    def _unconnected(self, error: httpx.ConnectError) -> Exception:
        cause, reason = error.__cause__ or error.__context__, str(error)
        while cause is not None:
            if isinstance(cause, OSError) and cause.errno:  # those of name resolution are negative
                reason = os.strerror(cause.errno) if cause.errno > 0 else str(cause.strerror)
            if isinstance(cause, ssl.SSLCertVerificationError):
                return UserError(
                    f"the certificate of {self.url} is not trusted ({cause.verify_message}); if it is your own, name "
                    "the file of its authority in SSL_CERT_FILE"
                )
            cause = cause.__cause__ or cause.__context__
        return TransientError(f"it cannot be reached ({self.hidden(reason)})")

    def _failure(self, response: httpx.Response, message: str) -> Exception:
        status = response.status_code
        said = f"HTTP {status}" + (f": {self.hidden(message)}" if message else "")
        if status in _LATER or status >= 500:
            return TransientError(said, _retry_after(response), limited=status == 429)
        if status in (401, 403) or (status == 400 and _NAMES_KEY.search(message)):
            key = "refuses the key in" if self._key else "wants a key, and none is in"
            return UserError(f"{self.url} {key} the environment variable {self.key_name} ({said})")
        if status in _REJECTED:
            return RejectedError(said)
        if status == _UNPAID:
            return EngineError(f"{self.url} wants to be paid first ({said})")
        if status == 404:
            return NotFoundError(said)
        if response.is_redirect:
            return UserError(f"{self.url} redirects to {self.hidden(response.headers['location'])}; give the final URL")
        return UserError(f"{self.url} does not answer as the OpenAI chat API does ({said})")


async def _read(response: httpx.Response) -> bytes:
    """The body, unless it is endless."""
    content = bytearray()
    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) > _LARGEST_ANSWER:
            raise TransientError(f"the answer is larger than {_LARGEST_ANSWER >> 20} MiB")
    return bytes(content)


def _read_key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not all(" " < character < "\x7f" for character in key):
        raise UserError(f"the environment variable {variable} holds characters that no key has")
    return key


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds to wait, from a number or a date."""
    value = response.headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = ((date if date.tzinfo else date.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), _LONGEST_PAUSE) if seconds == seconds else None


def _message(content: bytes) -> str:
    """What a server says about an error, however it packs it."""
    try:
        value: Any = json.loads(content)
    except (ValueError, RecursionError):
        text = content[:4096].decode(errors="replace")
        return "" if "<" in text else text
    for key in ("error", "message", "detail"):
        if isinstance(value, dict) and value.get(key):
            value = value[key]
    return value if isinstance(value, str) else json.dumps(value)


def _not_json(response: httpx.Response, content: bytes) -> str:
    if "html" in response.headers.get("content-type", "") or content.lstrip()[:1] == b"<":
        return "the answer is a web page, not JSON; the URL of an API often ends in /v1"
    return "the answer is not complete JSON" if content else "the answer is empty"
