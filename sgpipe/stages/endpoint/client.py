"""Ask one model of a server with the OpenAI chat API: many requests at once, each until it is answered.

What an answer is never depends on which requests are under way beside it, on retries or on the order of arrival, as
far as the server keeps to the seed of a request. The key is read from the environment; no message contains it.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
import weakref
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import closing
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from sgpipe.errors import EngineError, UserError
from sgpipe.recipe import Requests
from sgpipe.stages.endpoint.cache import CacheFolder, RequestCache
from sgpipe.stages.endpoint.messages import (
    MAX_COMPLETION_TOKENS,
    MAX_TOKENS,
    Answer,
    ChatRequest,
    ChatSampling,
    Choice,
    Refusal,
    conversation,
    quote,
    read_choices,
)
from sgpipe.utils.console import count
from sgpipe.utils.prefetch import start_early

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

_CHAT, _MODELS = "/chat/completions", "/models"
_CONNECT_SECONDS, _PAUSE = 15, 0.5
_AHEAD = 4  # requests that are prepared, or answered out of order, per request under way
_CONTROL = ChatRequest(conversation("Say yes."), ChatSampling(max_tokens=8))
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
_NO_ANSWER, _REJECTED, _LATER, _LIMITED, _UNPAID, _NOT_FOUND = 0, (400, 413, 422), (408, 409, 425), 429, 402, 404
_NAMES_N = re.compile(r"\bn\b")
_NAMES_KEY = re.compile(r"\bAPI[ _]?key\b", re.IGNORECASE)  # some servers refuse a key with HTTP 400

Result = TypeVar("Result")


class RequestError(Exception):
    """A request without an answer. status: of HTTP, or 0 if there is none or the answer cannot be read."""

    def __init__(self, reason: str, status: int = _NO_ANSWER) -> None:
        super().__init__(reason)
        self.status = status


class ChatEndpoint:
    """One model behind an endpoint.

    A `Refusal` concerns one request. Everything else that keeps a request from being answered ends the run:
    UserError if the user has to change something, such as the key; EngineError if the same command can continue later.
    """

    def __init__(self, url: str, model: str, requests: Requests, cache: CacheFolder | None = None) -> None:
        """Sends nothing. Raises UserError if this is not a URL, it contains a password, or the key cannot be sent.

        Args:
            model: its name, as the server lists it.
            cache: where answers are kept, or None.
        """
        self.url, self.model, self.requests = endpoint_url(url), model, requests
        self.cache = RequestCache(cache.file) if cache else None
        self._key = os.environ.get(requests.key, "").strip()
        if not all(" " < character < "\x7f" for character in self._key):
            raise UserError(f"{requests.key} contains characters that are not allowed in an API key")
        self._one_by_one, self._limit = False, MAX_TOKENS
        self._loop: asyncio.AbstractEventLoop | None = None
        self._slots = asyncio.Semaphore(requests.in_flight)

    def check(self, example: ChatRequest | None = None) -> None:
        """Raise UserError if the server does not answer, does not serve the model, or refuses the key or `example`.

        Args:
            example: a request like those that will follow. It is sent once, for one answer, which is not cached.
        """
        self._start(self._check(example)).result()

    def ask_all(self, requests: Iterable[ChatRequest]) -> Iterator[Answer | Refusal]:
        """Yield the answer to each request, in their order. `requests.in_flight` of them are under way at once.

        Requests are taken from the iterable as they are needed. Raises UserError or EngineError, which cut what is
        under way.
        """
        most = _AHEAD * self.requests.in_flight
        started = start_early(lambda each: self._start(self._answer(each)), requests, most, cancel=Future.cancel)
        with closing(started):
            for future in started:
                try:
                    yield future.result()
                finally:
                    future.cancel()  # no effect once there is an answer

    def _start(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Run in the event loop of a thread, because the caller may be in another loop, such as a notebook's."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True).start()
            weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _check(self, example: ChatRequest | None) -> None:
        await self._check_models()
        try:
            if example is not None:
                await self._completion(example.alone())
        except RequestError as error:
            raise UserError(f"{self.model!r} at {self.url} refuses such requests ({error})") from None
        except EngineError as error:
            raise UserError(str(error)) from None

    async def _check_models(self) -> None:
        """Raise UserError if the server does not answer, or does not list the model."""
        try:
            names = [str(each["id"]) for each in (await self._send(_MODELS))["data"]]
        except RequestError as error:
            raise UserError(f"the endpoint {self.url} does not answer: {error}") from None
        except (KeyError, TypeError):
            raise UserError(f"{self.url} does not answer like the OpenAI chat API: it lists no models") from None
        # Servers append a date, a revision or a tag.
        served = re.compile(rf"{re.escape(self.model)}(-\d{{4}}-?\d\d-?\d\d|[@:].+)?")
        if names and not any(map(served.fullmatch, names)):
            raise UserError(f"{self.url} does not serve {self.model!r}, but {quote(', '.join(names))}")

    async def _answer(self, request: ChatRequest) -> Answer | Refusal:
        choices: list[Choice] = []
        async with self._slots:
            try:
                while len(choices) < request.n:
                    choices += await self._some(request.rest(len(choices)))
            except RequestError as error:
                return Refusal(str(error))
        usable = [choice for choice in choices[: request.n] if choice.fault is None]
        if not usable:
            return Refusal(str(choices[0].fault))
        logprobs = tuple(choice.logprobs or () for choice in usable) if request.logprobs else None
        return Answer(tuple(choice.text for choice in usable), logprobs)

    async def _some(self, request: ChatRequest) -> list[Choice]:
        """Return at least one choice, at most as many as asked for. Raises RequestError if it is refused."""
        if request.n > 1 and not self._one_by_one:
            try:
                return await self._kept(request)
            except RequestError as error:
                if not _NAMES_N.search(str(error)):
                    raise
            self._one_by_one = True  # `transformers serve` does not support `n`
        return await self._kept(request.alone())

    async def _kept(self, request: ChatRequest) -> list[Choice]:
        """Return the choices from the cache, or from the server and then into the cache."""
        body = request.body(self.model)
        choices = self.cache.get(body) if self.cache else None
        if choices is None:
            choices = await self._completion(request)
            if self.cache:
                self.cache.put(body, choices)
        return choices

    async def _completion(self, request: ChatRequest) -> list[Choice]:
        """Ask until there is an answer.

        Raises RequestError if the server answers, but not this request, or UserError, EngineError: see the class.
        """
        attempts = self.requests.retries + 1
        try:
            return await self._attempt(request, self.requests.retries)
        except RequestError as error:
            if error.status in _REJECTED:
                raise
            if error.status == _NOT_FOUND:
                await self._check_models()
                raise UserError(f"{self.url} has no chat API ({error}); the URL often ends in /v1") from None
            reason = f"{error}, {count(attempts, 'attempt')}"
            if error.status != _LIMITED and await self._answers_others():
                raise RequestError(reason) from None
            raise EngineError(f"the endpoint {self.url} does not answer: {reason}") from None

    async def _answers_others(self) -> bool:
        """Return whether the server answers another, short request: then it cannot cope with the one that failed."""
        try:
            await self._attempt(_CONTROL, 0)
        except (RequestError, EngineError):
            return False
        return True

    async def _attempt(self, request: ChatRequest, retries: int) -> list[Choice]:
        limit = self._limit
        try:
            completion = await self._send(_CHAT, request.fields(self.model, limit), retries)
            return read_choices(completion, request.logprobs)
        except ValueError as error:  # openai tries again what fails, but not what cannot be read
            if retries == 0:
                raise RequestError(self._hidden(str(error))) from None
            await asyncio.sleep(_PAUSE)
            return await self._attempt(request, retries - 1)
        except RequestError as error:
            if limit == MAX_COMPLETION_TOKENS or MAX_COMPLETION_TOKENS not in str(error):
                raise
            self._limit = MAX_COMPLETION_TOKENS  # newer models of OpenAI require this name
            return await self._attempt(request, retries)

    async def _send(self, path: str, fields: Mapping[str, Any] | None = None, retries: int = 0) -> Any:
        """Return the JSON of an answer to POST with `fields`, or to GET.

        Raises RequestError, or what ends the run: UserError if the key is refused or this is not such an API,
        EngineError if the account is empty. ValueError: the answer is not JSON.
        """
        import openai

        options: openai.RequestOptions = {"max_retries": retries}
        if not self._key:
            options["headers"] = {"Authorization": openai.Omit()}
        try:
            if fields is None:
                return await self._client.get(path, cast_to=object, options=options)
            return await self._client.post(path, cast_to=object, body=fields, options=options)
        except openai.APITimeoutError:
            raise RequestError(f"no answer within {self.requests.timeout:g} seconds") from None
        except openai.APIConnectionError as error:
            reason = self._hidden(str(error.__cause__ or error))
            advice = "; name the file of its authority in SSL_CERT_FILE" if "CERTIFICATE" in reason else ""
            raise RequestError(f"it cannot be reached ({reason}){advice}") from None
        except openai.APIStatusError as error:
            raise self._failure(error) from None

    @cached_property
    def _client(self) -> AsyncOpenAI:
        import openai

        parts = urlsplit(self.url)
        return openai.AsyncOpenAI(
            base_url=self.url,
            api_key=self._key or "none",
            timeout=openai.Timeout(self.requests.timeout, connect=min(self.requests.timeout, _CONNECT_SECONDS)),
            http_client=openai.DefaultAsyncHttpxClient(
                follow_redirects=False,  # they could carry the key to another host
                trust_env=parts.hostname not in _THIS_MACHINE or parts.scheme == "https",  # no proxy to this machine
            ),
        )

    def _failure(self, error: APIStatusError) -> Exception:
        status, message = error.status_code, _message(error.body)
        said = f"HTTP {status}" + (f": {self._hidden(message)}" if message else "")
        if status in (401, 403) or (status == 400 and _NAMES_KEY.search(message)):
            reason = "refuses the key in" if self._key else "requires an API key; set"
            return UserError(f"{self.url} {reason} {self.requests.key} ({said})")
        if status == _UNPAID:
            return EngineError(f"{self.url} reports that payment is required ({said})")
        if status in (*_REJECTED, *_LATER, _LIMITED, _NOT_FOUND) or status >= 500:
            return RequestError(said, status)
        if location := error.response.headers.get("location"):
            return UserError(f"{self.url} redirects to {self._hidden(location)}; set the final URL")
        return UserError(f"{self.url} does not answer like the OpenAI chat API ({said})")

    def _hidden(self, text: str) -> str:
        """Return a text of the server without the key, if it repeats it."""
        return quote(text.replace(self._key, "…") if self._key else text)


def endpoint_url(url: str) -> str:
    """Return the URL of an API in the form that requests are appended to.

    Raises UserError if it is not a URL, or has parts that must not be stored in a run, which are not quoted.
    """
    try:
        parts = urlsplit(url.strip())
        valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        raise UserError(f"{quote(url)!r} is not a URL, such as http://localhost:8000/v1") from None
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UserError(
            "the URL of an endpoint has a name, a password, '?' or '#' in it, which would be stored in the run: put "
            "the key into an environment variable (requests.key)"
        )
    if not valid:
        raise UserError(f"{quote(url)!r} is not a URL, such as http://localhost:8000/v1")
    return parts.geturl().rstrip("/").removesuffix(_CHAT)


def _message(body: Any) -> str:
    """Return what a server writes about an error, however it packs it."""
    for key in ("error", "message", "detail"):
        if isinstance(body, Mapping) and body.get(key):
            body = body[key]
    text = "" if body is None else str(body)
    return "" if text.lstrip().startswith("<") else text
