"""Ask one model of a server with the OpenAI chat API: many requests at once.

The key is read from the environment and is in no message.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
import weakref
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from sgpipe.errors import EngineError, UserError
from sgpipe.recipe import Requests
from sgpipe.stages.served.answers import CacheFolder, RequestCache
from sgpipe.stages.served.budget import within_budget
from sgpipe.stages.served.chat import (
    MAX_COMPLETION_TOKENS,
    MAX_TOKENS,
    ChatRequest,
    Choice,
    Refusal,
    quote,
    read_choices,
    read_tokens,
)
from sgpipe.utils.prefetch import start_early

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

_CHAT = "/chat/completions"
_MODELS = "/models"
_CONNECT_SECONDS = 15
_RETRIES_OF_CHECK = 2
_AHEAD = 4  # requests that are prepared, or answered out of order, per request under way
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
_REJECTED = (400, 413, 422)
_LIMITED = (402, 429)
_NOT_FOUND = 404
_IS_ERROR = re.compile(rb'\s*\{\s*"error"\s*:\s*[{"]')  # proxies send such with HTTP 200
_NAMES_N = re.compile(r"\bn\b")
# some servers refuse a key with HTTP 400
_NAMES_KEY = re.compile(r"\bAPI[ _]?key\b", re.IGNORECASE)
_CONTROL = ChatRequest("Say yes.", max_tokens=8)

Result = TypeVar("Result")


class RequestError(Exception):
    """A request without an answer. `status`: of HTTP, or 0 if there is none or the answer cannot be
    read.
    """

    def __init__(self, reason: str, status: int = 0) -> None:
        super().__init__(reason)
        self.status = status


class ChatEndpoint:
    """One model behind an endpoint.

    A `Refusal` concerns one request. Everything else ends the run: UserError if the user has to
    change something, such as the key; EngineError if the same command can continue later.
    """

    def __init__(
        self, url: str, model: str, requests: Requests, cache: CacheFolder | None = None
    ) -> None:
        """Sends nothing.

        Args:
            model: its name, as the server lists it.
            cache: where answers are kept, or None.

        Raises:
            UserError: if this is not a URL, it contains a password, or the key cannot be sent.
        """
        self.url = endpoint_url(url)
        self.model = model
        self.requests = requests
        self.cache = cache.open() if cache else None
        self._key = os.environ.get(requests.key, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise UserError(
                f"{requests.key} contains characters that are not allowed in an API key"
            )
        self._one_by_one = False
        self._limit = MAX_TOKENS
        self._loop: asyncio.AbstractEventLoop | None = None
        self._slots = asyncio.Semaphore(requests.in_flight)

    def check(self, example: ChatRequest | None = None) -> None:
        """Raise UserError if the server does not answer, does not serve the model, or refuses the
        key or `example`.

        Args:
            example: a request like those that will follow, sent for one answer, which is not kept.
        """
        try:
            self._start(self._check_models()).result()
            if example is not None:
                retries = min(self.requests.retries, _RETRIES_OF_CHECK)
                self._start(self._completion(replace(example, n=1), retries)).result()
        except RequestError as error:
            raise UserError(
                f"{self.model!r} at {self.url} refuses such requests ({error})"
            ) from None
        except EngineError as error:
            raise UserError(str(error)) from None

    def ask_all(self, requests: Iterable[ChatRequest]) -> Iterator[list[Choice] | Refusal]:
        """Yield the usable answers to each request, in order; `requests.in_flight` requests are
        under way at once.

        Requests are taken as they are needed. Raises UserError or EngineError, which cut what is
        under way.
        """
        most = _AHEAD * self.requests.in_flight
        started = start_early(
            lambda each: self._start(self._answer(each)), requests, most, cancel=Future.cancel
        )
        with closing(started):
            for future in started:
                try:
                    yield future.result()
                except EngineError:
                    if self.cache:  # what is paid for outlives this machine
                        self.cache.flush()
                    raise
                finally:
                    future.cancel()  # no effect once there is an answer

    def _start(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Run in the event loop of a thread, because the caller may be in another loop, such as a
        notebook's.
        """
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True).start()
            weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _check_models(self) -> None:
        """Raise UserError if the server does not answer, or does not list the model."""
        try:
            answer = await self._send(_MODELS, None, _RETRIES_OF_CHECK)
            names = [str(model["id"]) for model in answer["data"]]
        except RequestError as error:
            raise UserError(f"the endpoint {self.url} does not answer: {error}") from None
        except (KeyError, TypeError, ValueError, RecursionError):
            raise UserError(
                f"{self.url} does not answer like the OpenAI chat API: it lists no models"
            ) from None
        # Servers append a date, a revision or a tag.
        served = re.compile(rf"{re.escape(self.model)}(-\d{{4}}-?\d\d-?\d\d|[@:].+)?")
        if names and not any(map(served.fullmatch, names)):
            raise UserError(
                f"{self.url} does not serve {self.model!r}, but {quote(', '.join(names))}"
            )

    async def _answer(self, request: ChatRequest) -> list[Choice] | Refusal:
        async with self._slots:
            try:
                answered = await self._choices(request)
            except RequestError as error:
                return Refusal(str(error))
            choices = []
            for number, choice in enumerate(answered):
                choices.append(await self._corrected(request, number, choice))
        usable = [choice for choice in choices if choice.fault is None]
        return usable or Refusal(str(choices[0].fault))

    async def _choices(self, request: ChatRequest) -> list[Choice]:
        """Return as many choices as a request wants. Raises RequestError."""
        choices: list[Choice] = []
        while len(choices) < request.n:
            first = len(choices)
            number = 1 if self._one_by_one else request.n - first
            try:
                # `first` gives those that come later another noise
                choices += await self._kept(replace(request, first=first, n=number))
            except RequestError as error:
                if number == 1 or not _NAMES_N.search(str(error)):
                    raise
                self._one_by_one = True  # `transformers serve` does not support `n`
        return choices[: request.n]

    async def _corrected(self, request: ChatRequest, number: int, choice: Choice) -> Choice:
        """Return a choice, or what the model answers when it is told what is wrong with it."""
        if request.check is None or choice.fault is not None:
            return choice
        wrong = request.check(choice.text)
        if not wrong:
            return choice
        try:
            corrected = await self._kept(request.once_more(number, choice.text, wrong))
        except RequestError as error:
            return Choice("", str(error))
        return corrected[0]

    async def _kept(self, request: ChatRequest) -> list[Choice]:
        if self.cache is None:
            return await self._completion(request, self.requests.retries)
        body = json.dumps(request.fields(self.model), sort_keys=True).encode()
        choices = self.cache.get(body)
        if choices is None:
            async with within_budget(self.cache, self.requests.timeout):
                choices = await self._completion(request, self.requests.retries)
            self.cache.put(body, choices, request.check)
        return choices

    async def _completion(self, request: ChatRequest, retries: int) -> list[Choice]:
        """Return the choices from the server.

        Raises:
            RequestError: if this request gets none; see also the class.
        """
        try:
            return await self._attempt(request, retries)
        except RequestError as error:
            failed = error
        if failed.status == _NOT_FOUND:
            await self._check_models()
            raise UserError(f"{self.url} has no chat API ({failed}); the URL often ends in /v1")
        answers_others = failed.status in _REJECTED
        if not answers_others and failed.status not in _LIMITED:
            with suppress(RequestError, EngineError):
                answers_others = bool(await self._attempt(_CONTROL))
        if answers_others:
            raise failed
        raise EngineError(f"the endpoint {self.url} does not answer: {failed}")

    async def _attempt(self, request: ChatRequest, retries: int = 0) -> list[Choice]:
        limit = self._limit
        try:
            completion = await self._send(_CHAT, request.fields(self.model, limit), retries)
            choices = read_choices(completion, request.logprobs)
        except (ValueError, RecursionError) as error:
            raise RequestError(self._hidden(str(error))) from None
        except RequestError as error:
            if limit == MAX_COMPLETION_TOKENS or MAX_COMPLETION_TOKENS not in str(error):
                raise
            self._limit = MAX_COMPLETION_TOKENS  # newer models of OpenAI require this name
            return await self._attempt(request, retries)
        if self.cache:
            self._count_tokens(self.cache, completion)
        return choices

    def _count_tokens(self, cache: RequestCache, completion: Mapping[str, Any]) -> None:
        """Raises UserError: there are prices, but no tokens."""
        tokens = read_tokens(completion)
        if tokens is not None:
            cache.put_tokens(tokens)
        elif cache.spending.prices is not None:
            raise UserError(
                f"{self.url} does not count tokens, so that their cost is unknown: omit"
                " --prompt-price, --completion-price and --max-cost"
            )

    async def _send(self, path: str, fields: Mapping[str, Any] | None, retries: int) -> Any:
        """Return the JSON of an answer to POST with `fields`, or to GET. Raises as `_completion`,
        or ValueError.
        """
        import openai

        # Of OPENAI_… variables, which may be meant for another server, nothing but the key is sent.
        headers: dict[str, str | openai.Omit] = {
            "Authorization": f"Bearer {self._key}" if self._key else openai.Omit(),
            "OpenAI-Organization": openai.Omit(),
            "OpenAI-Project": openai.Omit(),
        }
        options: openai.RequestOptions = {"max_retries": retries, "headers": headers}
        try:
            if fields is None:
                answer = await self._client.get(path, cast_to=object, options=options)
            else:
                answer = await self._client.post(path, cast_to=object, body=fields, options=options)
        except openai.APITimeoutError:
            raise RequestError(f"no answer within {self.requests.timeout:g} seconds") from None
        except openai.APIConnectionError as error:
            cause = self._hidden(str(error.__cause__ or error))
            raise RequestError(f"it cannot be reached ({cause})") from None
        except openai.APIStatusError as error:
            raise self._explained(error) from None
        if isinstance(answer, str):
            with suppress(ValueError):  # JSON of another content type
                return json.loads(answer)
        return answer

    def _explained(self, error: APIStatusError) -> Exception:
        """Return what a status means for the user, or else for this request."""
        status = error.status_code
        message = error.body
        if isinstance(message, Mapping):
            message = message.get("message") or message.get("detail")
        answer = f"HTTP {status}"
        if message:
            answer += f": {self._hidden(str(message))}"
        if status in (401, 403) or (status == 400 and _NAMES_KEY.search(answer)):
            reason = "refuses the key in" if self._key else "requires an API key; set"
            return UserError(f"{self.url} {reason} {self.requests.key} ({answer})")
        location = error.response.headers.get("location")
        if location:
            target = self._hidden(location)
            return UserError(f"{self.url} redirects to {target}; set the final URL")
        return RequestError(answer, status)

    @cached_property
    def _client(self) -> AsyncOpenAI:
        import httpx2
        import openai

        timeout = self.requests.timeout
        parts = urlsplit(self.url)

        class Client(openai.DefaultAsyncHttpxClient):
            async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
                try:
                    # openai's limits each read, not all of them
                    async with asyncio.timeout(timeout):
                        answer = await super().send(request, **options)
                except TimeoutError:
                    # which openai tries again
                    raise httpx2.ReadTimeout("", request=request) from None
                if answer.is_success and _IS_ERROR.match(answer.content):
                    answer.status_code = 500  # which openai tries again, too
                return answer

        # none to this machine
        proxies = parts.hostname not in _THIS_MACHINE or parts.scheme == "https"
        # redirects could carry the key to another host
        client = Client(follow_redirects=False, trust_env=proxies)
        limits = openai.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS))
        return openai.AsyncOpenAI(
            base_url=self.url, api_key=self._key or "none", timeout=limits, http_client=client
        )

    def _hidden(self, text: str) -> str:
        """Return a text of the server without the key, if it repeats it."""
        return quote(text.replace(self._key, "…") if self._key else text)


def endpoint_url(url: str) -> str:
    """Return the URL of an API in the form that requests are appended to.

    Raises:
        UserError: if it is not a URL, or has parts that must not be stored in a run, which are not
            quoted.
    """
    if set("?#@") & set(url):
        raise UserError(
            "the URL of an endpoint has '@', '?' or '#' in it, as with a password, which the run"
            " would store: put the key into an environment variable (requests.key)"
        )
    with suppress(ValueError):
        parts = urlsplit(url.strip())
        if (
            parts.scheme in ("http", "https")
            and parts.hostname
            and (parts.port is None or parts.port)
        ):
            return parts.geturl().rstrip("/").removesuffix(_CHAT)
    raise UserError(f"{quote(url)!r} is not a URL, such as http://localhost:8000/v1")
