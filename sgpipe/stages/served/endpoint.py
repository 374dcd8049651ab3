"""Ask one model, of one or several servers with the OpenAI chat API: many requests at once.

The key is read from the environment and is in no message.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import threading
import time
import weakref
from collections.abc import Coroutine, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import replace
from hashlib import sha256
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from sgpipe.errors import EngineError, StoreError, UserError
from sgpipe.recipe import Requests
from sgpipe.stages.served import waiting
from sgpipe.stages.served.answers import CacheFolder
from sgpipe.stages.served.batch import UnansweredError
from sgpipe.stages.served.batch_answers import ANSWERED, REJECTED, BatchAnswer
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
from sgpipe.stages.served.engines.addresses import moves
from sgpipe.stages.served.moving import MovingServers
from sgpipe.stages.served.server import MODELS, ChatServer, RequestError, ServerGroup, new_session
from sgpipe.stages.served.slots import Slots
from sgpipe.utils.prefetch import start_early

if TYPE_CHECKING:
    from aiohttp import ClientSession

_CHAT = "/chat/completions"
_RETRIES_OF_CHECK = 2
_AHEAD = 4  # answers that wait for an earlier one, per request under way
_MOST_PREPARED = 64  # requests, which hold an image in memory, besides those under way
_FIRST_PAUSE = 0.5  # seconds before a request is sent again; then twice as long, and so on
_LONGEST_PAUSE = 8.0
_CLOSING_SECONDS = 1.0
_MOST_OUTAGES = 10  # of servers, during a request, which may be what makes them crash
_TOO_MANY = (429, 503)
_LIMITED = (402, 429)
_NOT_FOUND = 404
_NAMES_N = re.compile(r"\bn\b")
_CONTROL = ChatRequest("Say yes.", max_tokens=8)

Answer = list[Choice] | Refusal
Result = TypeVar("Result")


class ChatEndpoint:
    """One model behind an endpoint, or behind several that serve the same.

    A `Refusal` concerns one request. Everything else ends the run: UserError if the user has to
    change something, such as the key; EngineError if the same command can continue later.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        model: str,
        requests: Requests,
        cache: CacheFolder | None = None,
    ) -> None:
        """Sends nothing.

        Args:
            urls: of the servers.
            model: its name, as the servers list it.
            cache: where answers are kept; None: nowhere.

        Raises:
            UserError: this is not a URL, it contains a password, or the key cannot be sent.
        """
        self.model = model
        self.requests = requests
        self.cache = cache.open() if cache else None
        self.batch = cache.batch if cache else None
        key = os.environ.get(requests.key, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise UserError(
                f"{requests.key} contains characters that are not allowed in an API key"
            )
        self._servers = _server_group(urls, key, requests)
        # Servers append a date, a revision or a tag.
        self._served_name = re.compile(rf"{re.escape(model)}(-\d{{4}}-?\d\d-?\d\d|[@:].+)?")
        self._names_model = False  # answers name the model as the recipe does
        self._one_by_one = False
        self._limit = MAX_TOKENS
        self._session: ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._slots = Slots(requests.in_flight)
        self._streams = count()
        self._room = threading.Semaphore(
            requests.in_flight + min((_AHEAD - 1) * requests.in_flight, _MOST_PREPARED)
        )
        self._starting = threading.Lock()
        self._turn = asyncio.Lock()  # to look at the budget

    def check(self, example: ChatRequest | None = None) -> None:
        """Raise UserError if the server does not answer, does not serve the model, or refuses the
        key or `example`.

        Args:
            example: a request like those that will follow, sent for one answer, which is not kept.
        """
        self._check_servers()
        if example is None:
            return
        retries = min(self.requests.retries, _RETRIES_OF_CHECK)
        try:
            self._start(self._completion(replace(example, n=1), retries)).result()
        except RequestError as error:
            url = error.server.url if error.server else self._servers.servers[0].url
            raise UserError(f"{self.model!r} at {url} refuses such requests ({error})") from None
        except EngineError as error:
            raise UserError(str(error)) from None

    def _check_servers(self) -> None:
        """Check that all servers that answer list the model; others get no requests until they do.

        Raises:
            UserError: one does not list it, or none answers.
        """
        present = 0
        refusal: UserError | None = None
        for server in self._servers.servers:
            try:
                self._start(self._check_models(server, _RETRIES_OF_CHECK)).result()
                present += 1
            except RequestError as error:
                server.put_away(str(error))
                refusal = refusal or UserError(
                    f"the endpoint {server.url} does not answer: {error}"
                )
        if refusal is not None and not present:
            raise refusal
        if refusal is not None:
            waiting.say(f"{refusal}; it gets no requests until it does")

    def ask_all(self, requests: Iterable[ChatRequest]) -> Iterator[Answer]:
        """Yield the usable answers to each request, in order; up to `requests.in_flight` requests
        are under way at once, of all threads that ask; the thread that asked first has priority.

        Requests are taken as they are needed.

        Raises:
            UserError, EngineError: no request can be answered; what is under way is cut.
            UnansweredError: nothing is sent, and one has no answer yet; all have been taken.
        """
        with closing(self.ask_groups([request] for request in requests)) as groups:
            for [answer] in groups:
                yield answer

    def ask_groups(
        self, groups: Iterable[Sequence[ChatRequest]]
    ) -> Generator[list[Answer], None, None]:
        """Yield the answers to each group of requests, in order, as `ask_all`.

        The first of a group is asked alone: a server that keeps what it computed of a beginning
        then has it for the others. A group shows one image.
        """
        unanswered: UnansweredError | None = None
        most = _AHEAD * self.requests.in_flight
        stream = next(self._streams)
        started = start_early(
            lambda group: self._start_answers(group, stream),
            self._prepared(groups),
            most,
            lambda pending: sum(size for size, _ in pending) >= most,
            cancel=lambda work: work[1].cancel(),
        )
        with closing(started):
            for _, future in started:
                try:
                    answers = future.result()
                except UnansweredError as error:
                    unanswered = error
                    continue
                except EngineError:
                    if self.cache:  # what is paid for outlives this machine
                        with suppress(StoreError):
                            self.cache.flush()
                    raise
                finally:
                    future.cancel()  # no effect once there is an answer
                if unanswered is None:
                    yield answers
        if unanswered is not None:
            raise unanswered

    def _prepared(self, groups: Iterable[Sequence[ChatRequest]]) -> Iterator[Sequence[ChatRequest]]:
        """Yield groups while there is room: those of all threads hold images in memory."""
        remaining = iter(groups)
        while True:
            self._room.acquire()
            try:
                group = next(remaining, None)
            except BaseException:
                self._room.release()
                raise
            if group is None:
                self._room.release()
                return
            yield group

    def _start_answers(
        self, group: Sequence[ChatRequest], stream: int
    ) -> tuple[int, Future[list[Answer]]]:
        """Return the number of requests, and what will be their answers."""
        answers = self._start(self._answers(group, stream))
        answers.add_done_callback(lambda _: self._room.release())
        return len(group), answers

    def _start(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Run in the event loop of a thread, because the caller may be in another loop, such as a
        notebook's.
        """
        with self._starting:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                threading.Thread(target=loop.run_forever, name="endpoint", daemon=True).start()
                self._loop = loop
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _check_models(self, server: ChatServer, retries: int = 0) -> None:
        """Check that a server lists the model.

        Raises:
            UserError: it does not.
            RequestError: it does not answer.
        """
        try:
            answer = await self._send(MODELS, None, retries, server)
        except RecursionError:
            answer = None
        names = _listed_models(answer)
        if names is None:
            raise UserError(
                f"{server.url} does not answer like the OpenAI chat API: it lists no models"
            )
        if names and not any(map(self._served_name.fullmatch, names)):
            raise UserError(
                f"{server.url} does not serve {self.model!r}, but {quote(', '.join(names))}"
            )

    async def _check_return(self, server: ChatServer) -> None:
        """Raise RequestError or UserError if a server that was away does not answer yet."""
        await self._check_models(server)
        await self._read_completion(_CONTROL, only=server)

    async def _answers(self, group: Sequence[ChatRequest], stream: int) -> list[Answer]:
        """Return the answers to a group.

        Raises:
            UnansweredError: some have no answer yet; all have been asked for.
        """
        outcomes = [await self._outcome(group[0], stream)]
        if len(group) > 1:
            others = [asyncio.create_task(self._outcome(request, stream)) for request in group[1:]]
            try:
                outcomes += await asyncio.gather(*others)
            finally:
                for task in others:
                    task.cancel()  # no effect once it is done
        answers: list[Answer] = []
        for outcome in outcomes:
            if isinstance(outcome, UnansweredError):
                raise outcome
            answers.append(outcome)
        return answers

    async def _outcome(self, request: ChatRequest, stream: int) -> Answer | UnansweredError:
        """Return the answer to a request, or that there is none yet."""
        try:
            return await self._answer(request, stream)
        except UnansweredError as error:
            return error

    async def _answer(self, request: ChatRequest, stream: int) -> Answer:
        async with self._slots.place(stream):
            try:
                answered = await self._choices(request)
            except RequestError as error:
                return Refusal(str(error))
            choices = await self._all_corrected(request, answered)
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
                choices += await self._cached_completion(replace(request, first=first, n=number))
            except RequestError as error:
                if number == 1 or not _NAMES_N.search(str(error)):
                    raise
                self._one_by_one = True  # `transformers serve` does not support `n`
        return choices[: request.n]

    async def _all_corrected(
        self, request: ChatRequest, answered: Sequence[Choice]
    ) -> list[Choice]:
        """Return the choices, corrected as `_corrected` does.

        Raises:
            UnansweredError: some corrections have no answer yet; all have been asked for.
        """
        choices = []
        unanswered: UnansweredError | None = None
        for number, choice in enumerate(answered):
            try:
                choices.append(await self._corrected(request, number, choice))
            except UnansweredError as error:
                unanswered = error
        if unanswered is not None:
            raise unanswered
        return choices

    async def _corrected(self, request: ChatRequest, number: int, choice: Choice) -> Choice:
        """Return a choice, or what the model answers when it is told what is wrong with it."""
        if request.check is None or choice.fault is not None:
            return choice
        wrong = request.check(choice.text)
        if not wrong:
            return choice
        try:
            corrected = await self._cached_completion(request.once_more(number, choice.text, wrong))
        except RequestError as error:
            return Choice("", str(error))
        return corrected[0]

    async def _cached_completion(self, request: ChatRequest) -> list[Choice]:
        if self.cache is None:
            return await self._completion(request, self.requests.retries)
        body = json.dumps(request.fields(self.model), sort_keys=True).encode()
        batched = self.cache.batch_answer(body)  # first: another process may just use it
        choices = self.cache.get(body)
        if choices is None and batched is not None:
            return self._use_batch_answer(request, body, batched)
        if choices is None and self.batch is not None:
            key = sha256(body).hexdigest()
            raise self.batch.miss(key, request.fields(self.model, MAX_COMPLETION_TOKENS))
        if choices is None:
            async with within_budget(self.cache, self._turn):
                choices = await self._completion(request, self.requests.retries)
            self.cache.put(body, choices, request.check)
        return choices

    def _use_batch_answer(
        self, request: ChatRequest, body: bytes, answer: BatchAnswer
    ) -> list[Choice]:
        """Return the choices of a batch's answer, which is kept like one that was sent for.

        Raises:
            RequestError: the request was refused, or its answer cannot be read.
        """
        assert self.cache is not None
        if answer.status != ANSWERED:
            self.cache.use_batch_answer(body)
            raise RequestError(answer.content, answer.status)
        completion = answer.completion()
        try:
            choices = read_choices(completion, request.logprobs)
        except ValueError as error:
            self.cache.use_batch_answer(body)
            raise RequestError(str(error)) from None
        self.cache.put(body, choices, request.check)
        if self.cache.use_batch_answer(body):
            self._count_tokens(self._servers.servers[0], completion)
        return choices

    async def _completion(self, request: ChatRequest, retries: int) -> list[Choice]:
        """Return the choices from the server.

        Raises:
            RequestError: if this request gets none; see also the class.
        """
        try:
            return await self._read_completion(request, retries)
        except RequestError as error:
            failed = error
        server = failed.server or self._servers.servers[0]
        if failed.status == _NOT_FOUND:
            await self._check_models(server)
            raise UserError(f"{server.url} has no chat API ({failed}); the URL often ends in /v1")
        answers_others = failed.status in REJECTED
        if not answers_others and failed.status not in _LIMITED:
            with suppress(RequestError, EngineError):
                answers_others = bool(await self._read_completion(_CONTROL))
        if answers_others:
            raise failed
        raise EngineError(f"the endpoint {server.url} does not answer: {failed}")

    async def _read_completion(
        self, request: ChatRequest, retries: int = 0, only: ChatServer | None = None
    ) -> list[Choice]:
        """Send a request, and return the choices of its answer.

        Raises:
            RequestError: there is no answer, or it cannot be read; see also the class.
        """
        limit = self._limit
        try:
            completion = await self._send(_CHAT, request.fields(self.model, limit), retries, only)
            return read_choices(completion, request.logprobs)
        except (ValueError, RecursionError) as error:
            raise RequestError(self._servers.servers[0].without_key(str(error))) from None
        except RequestError as error:
            if limit == MAX_COMPLETION_TOKENS or MAX_COMPLETION_TOKENS not in str(error):
                raise
            self._limit = MAX_COMPLETION_TOKENS  # newer models of OpenAI require this name
            return await self._read_completion(request, retries, only)

    def _count_tokens(self, server: ChatServer, completion: object) -> None:
        """Raises UserError: there are prices, but the server counts no tokens."""
        if self.cache is None or not isinstance(completion, Mapping):
            return
        tokens = read_tokens(completion)
        if tokens is not None:
            self.cache.put_tokens(tokens)
        elif "choices" in completion and self.cache.spending.prices is not None:
            raise UserError(
                f"the endpoint {server.url} does not count tokens, so that their cost is unknown:"
                " omit --prompt-price, --completion-price and --max-cost"
            )

    async def _send(
        self,
        path: str,
        fields: Mapping[str, object] | None,
        retries: int,
        only: ChatServer | None = None,
    ) -> object:
        """Return the JSON of an answer to POST with `fields`, or to GET.

        Args:
            only: the server to ask; None: any.

        Raises:
            UserError, EngineError, RequestError: as `_completion`.
            RecursionError: the JSON is too deep.
        """
        if self._session is None:
            self._session = new_session()
            weakref.finalize(self, _close, asyncio.get_running_loop(), self._session)
        pause = _FIRST_PAUSE
        failures = 0
        outages = 0
        while True:
            server = only or await self._servers.choose(self._check_return)
            try:
                return await self._exchange(server, path, fields)
            except RequestError as error:
                # While a server is away, patience is what limits the attempts.
                is_outage = only is None and server.away is not None
                failures += not is_outage
                outages += is_outage
                is_last = failures > retries or outages > _MOST_OUTAGES
                if not error.is_passing or is_last:
                    raise
                await asyncio.sleep(error.pause or pause * random.uniform(0.75, 1.0))
                pause = min(2 * pause, _LONGEST_PAUSE)

    async def _exchange(
        self, server: ChatServer, path: str, fields: Mapping[str, object] | None
    ) -> object:
        """Send a request once, and note what its answer tells of the server.

        Raises:
            UserError: as `_count_tokens` and `ChatServer.send`.
            RequestError: there is no answer to this request, or one of another model.
        """
        assert self._session is not None
        began = time.monotonic()
        try:
            answer = await server.send(self._session, path, fields)
        except RequestError as error:
            if error.status in _TOO_MANY:
                self._slots.refused(began)
            raise
        if path == _CHAT:
            self._slots.answered(began)
            self._count_tokens(server, answer)
            self._check_name(server, answer)
        return answer

    def _check_name(self, server: ChatServer, answer: object) -> None:
        """Raise RequestError, and put the server away, if its answer is that of another model, as
        no other server's is.
        """
        name = answer.get("model") if isinstance(answer, Mapping) else None
        if not isinstance(name, str):
            return
        if self._served_name.fullmatch(name):
            self._names_model = True
        elif self._names_model:
            error = RequestError(f"it answers for the model {quote(name)!r}", is_passing=True)
            error.server = server
            server.put_away(str(error))
            raise error


def _server_group(urls: str | Sequence[str], key: str, requests: Requests) -> ServerGroup:
    """Return the servers at these URLs, or those of an engine on a cluster.

    Raises:
        UserError: as `endpoint_url`.
    """

    def server(url: str) -> ChatServer:
        return ChatServer(endpoint_url(url), key, requests.key, requests.timeout)

    if isinstance(urls, str) and moves(urls):
        return MovingServers(urls, server, requests.patience, waiting.say)
    servers = [server(url) for url in ([urls] if isinstance(urls, str) else urls)]
    return ServerGroup(servers, requests.patience, waiting.say)


def _close(loop: asyncio.AbstractEventLoop, session: ClientSession) -> None:
    """Cut all connections, and end the thread of an event loop."""

    async def end() -> None:
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                task.cancel()
        await session.close()
        loop.call_soon(loop.stop)

    ended = asyncio.run_coroutine_threadsafe(end(), loop)
    with suppress(RuntimeError):
        if asyncio.get_running_loop() is loop:  # which the garbage collector has interrupted
            return
    with suppress(TimeoutError):
        ended.result(_CLOSING_SECONDS)


def _listed_models(answer: object) -> list[str] | None:
    """Return the names of the models that a server lists; None: it does not list models."""
    models = answer.get("data") if isinstance(answer, Mapping) else None
    if not isinstance(models, list):
        return None
    names = [model.get("id") for model in models if isinstance(model, Mapping)]
    return [str(name) for name in names] if len(names) == len(models) else None


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
