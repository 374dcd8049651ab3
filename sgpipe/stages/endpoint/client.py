"""Ask one model of a server with the OpenAI chat API: many requests at once, each until it is answered.

What an answer is never depends on which requests are under way beside it, on retries or on the order of arrival, as
far as the server keeps to the seed of a request.
"""

from __future__ import annotations

import asyncio
import random
import re
import threading
import weakref
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from sgpipe.errors import EngineError, UserError
from sgpipe.recipe import Requests
from sgpipe.stages.endpoint.answers import Choice, quote, read_choices, same_model
from sgpipe.stages.endpoint.cache import RequestCache, cache_file
from sgpipe.stages.endpoint.messages import (
    MAX_COMPLETION_TOKENS,
    MAX_TOKENS,
    Answer,
    ChatRequest,
    ChatSampling,
    Refusal,
    conversation,
)
from sgpipe.stages.endpoint.transport import NotFoundError, RejectedError, TransientError, Transport
from sgpipe.utils.console import count
from sgpipe.utils.prefetch import start_early

_CHAT, _MODELS = "chat/completions", "models"
_FIRST_PAUSE, _LONGEST_BACKOFF = 0.5, 30.0  # seconds
_AHEAD = 4  # requests that are prepared, or answered out of order, per request under way
_CONTROL = ChatRequest(conversation("Say yes."), ChatSampling(max_tokens=8))
_NAMES_N = re.compile(r"\bn\b")

Result = TypeVar("Result")


class ChatEndpoint:
    """One model behind an endpoint.

    A `Refusal` concerns one request. Everything else that keeps a request from being answered ends the run:
    UserError if the user has to change something, such as the key; EngineError if the same command can go on later.
    """

    def __init__(self, url: str, model: str, requests: Requests, cache: Path | None = None) -> None:
        """Sends nothing. Raises UserError: this is no URL, it contains a password, or the key cannot be sent.

        Args:
            model: its name, as the server lists it.
            cache: the folder in which answers are kept; None: nowhere.
        """
        self.model = model
        self.requests = requests
        self.cache = RequestCache(cache_file(cache)) if cache else None
        self.transport = Transport(url, requests)
        self._one_by_one = False
        self._limit = MAX_TOKENS
        self._loop: asyncio.AbstractEventLoop | None = None
        self._slots = asyncio.Semaphore(requests.in_flight)

    def check(self, example: ChatRequest | None = None) -> None:
        """Raises UserError: the server does not answer, does not serve the model, or refuses the key or `example`.

        Args:
            example: a request like those that will follow. It is asked once, for one answer, which is not cached.
        """
        self._start(self._check(example)).result()

    def ask(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        sampling: ChatSampling,
        n: int = 1,
        seed: int = 0,
        schema: Mapping[str, Any] | None = None,
        logprobs: bool = False,
    ) -> Answer | Refusal:
        """The answer to one question; the arguments are those of `ChatRequest`. Raises UserError, EngineError."""
        (answer,) = self.ask_all([ChatRequest(messages, sampling, seed, n, schema, logprobs)])
        return answer

    def ask_all(self, requests: Iterable[ChatRequest]) -> Iterator[Answer | Refusal]:
        """The answer to each request, in their order. `requests.in_flight` of them are under way at once.

        Requests are taken from the iterable as they are needed. Raises as `ask`; what is under way is cut then.
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
        """Run in the event loop of a thread, because the caller may be in a loop of its own, such as a notebook's."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True).start()
            weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _check(self, example: ChatRequest | None) -> None:
        await self._check_models()
        if example is None:
            return
        try:
            await self._completion(example.alone())
        except RejectedError as error:
            raise UserError(f"{self.model!r} at {self.transport.url} refuses such requests ({error})") from None
        except EngineError as error:
            raise UserError(str(error)) from None

    async def _check_models(self) -> None:
        """Raises UserError: see `check`."""
        try:
            listed = await self.transport.get(_MODELS)
            names = [each["id"] for each in listed["data"]]
        except (TransientError, RejectedError, NotFoundError) as error:
            raise UserError(f"the endpoint {self.transport.url} does not answer: {error}") from None
        except (KeyError, TypeError):
            raise UserError(f"{self.transport.url} does not answer as the OpenAI chat API does: no models") from None
        if names and not any(same_model(self.model, name) for name in names):
            there = quote(", ".join(map(str, names)))
            raise UserError(f"{self.transport.url} does not serve {self.model!r}, but {there}")

    async def _answer(self, request: ChatRequest) -> Answer | Refusal:
        choices: list[Choice] = []
        async with self._slots:
            try:
                while len(choices) < request.n:
                    choices += await self._some(request.rest(len(choices)))
            except RejectedError as error:
                return Refusal(str(error))
        usable = [choice for choice in choices[: request.n] if choice.fault is None]
        if not usable:
            return Refusal(str(choices[0].fault))
        logprobs = tuple(choice.logprobs or () for choice in usable) if request.logprobs else None
        return Answer(tuple(choice.text for choice in usable), logprobs)

    async def _some(self, request: ChatRequest) -> list[Choice]:
        """At least one choice, at most as many as asked for. Raises RejectedError: the server rejects the request."""
        if request.n == 1 or self._one_by_one:
            return await self._kept(request.alone())
        try:
            return await self._kept(request)
        except RejectedError as error:
            if not _NAMES_N.search(str(error)):
                raise
        self._one_by_one = True  # `transformers serve` knows no `n`
        return await self._kept(request.alone())

    async def _kept(self, request: ChatRequest) -> list[Choice]:
        """From the cache, or from the server and then into the cache."""
        if self.cache is None:
            return await self._completion(request)
        body = request.body(self.model)
        choices = self.cache.get(body)
        if choices is None:
            choices = await self._completion(request)
            self.cache.put(body, choices)
        return choices

    async def _completion(self, request: ChatRequest) -> list[Choice]:
        """Ask until there is an answer.

        Raises:
            RejectedError: the server answers, but not this request.
            UserError, EngineError: see `ChatEndpoint`.
        """
        attempts = self.requests.retries + 1
        for attempt in range(attempts):
            try:
                return await self._attempt(request)
            except TransientError as error:
                last = error
            if attempt + 1 < attempts:
                backoff = min(_LONGEST_BACKOFF, _FIRST_PAUSE * 2**attempt) * random.uniform(0.5, 1)
                await asyncio.sleep(max(backoff, last.wait or 0))
        if not last.limited and await self._answers_others():
            raise RejectedError(f"{last}, {count(attempts, 'attempt')}")
        raise EngineError(f"the endpoint {self.transport.url} does not answer: {last}, {count(attempts, 'attempt')}")

    async def _attempt(self, request: ChatRequest) -> list[Choice]:
        limit = self._limit
        try:
            completion = await self.transport.post(_CHAT, request.body(self.model, limit))
        except NotFoundError as error:
            await self._check_models()
            raise UserError(f"{self.transport.url} has no chat API ({error}); the URL often ends in /v1") from None
        except RejectedError as error:
            if limit == MAX_COMPLETION_TOKENS or MAX_COMPLETION_TOKENS not in str(error):
                raise
            self._limit = MAX_COMPLETION_TOKENS  # newer models of OpenAI know no other name
            return await self._attempt(request)
        answered = completion.get("model") if isinstance(completion, dict) else None
        if not same_model(self.model, answered):
            await self._check_models()  # the server may have changed its model; otherwise it mixes up its answers
            raise TransientError(f"the answer is of another model, {quote(str(answered))!r}")
        try:
            return read_choices(completion, request.logprobs)
        except ValueError as error:
            raise TransientError(self.transport.hidden(str(error))) from None

    async def _answers_others(self) -> bool:
        """Whether the server answers another, short request: then it cannot cope with the one that failed."""
        try:
            await self._attempt(_CONTROL)
        except (TransientError, RejectedError, EngineError):
            return False
        return True
