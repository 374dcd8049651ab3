"""Ask one model of a server with the OpenAI chat API: many requests at once, with answers kept on
disk.

A run that is killed and started again pays for none twice. The key is read from the environment and
is in no message.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import socket
import sqlite3
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b, sha256
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from PIL import Image
from pydantic import TypeAdapter

from sgpipe.errors import EngineError, UserError
from sgpipe.files.model_cache import cache_folder
from sgpipe.recipe import Requests
from sgpipe.sources.fields import clean
from sgpipe.storage.run_folder import REQUESTS
from sgpipe.utils.prefetch import start_early

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

MAX_TOKENS = "max_tokens"
MAX_COMPLETION_TOKENS = "max_completion_tokens"
TOP_LOGPROBS = 20  # the most that OpenAI and, unless started otherwise, vLLM return
_SEED_BITS = 31  # llama.cpp and PyTorch take 32 bits
# characters; of an answer that is sent back
_LONGEST_QUOTE = 200
_LONGEST_ANSWER = 4000

Check = Callable[[str], str | None]
_PATIENCE = 60  # seconds to wait for other processes that are writing
_TABLES = """
CREATE TABLE IF NOT EXISTS answers (request BLOB PRIMARY KEY, choices TEXT NOT NULL, usable INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS by_rules (caption BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS usage (asked INTEGER, answered INTEGER);
"""


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
_NAMES_KEY = re.compile(
    r"\bAPI[ _]?key\b", re.IGNORECASE
)  # some servers refuse a key with HTTP 400

Result = TypeVar("Result")


@dataclass(frozen=True)
class ChatRequest:
    """One question. `image`: shown before the text; a string is its data URL. `replies`: answers,
    and what is wrong.

    vLLM and SGLang know `top_k` and `repetition_penalty`, OpenAI does not.
    """

    text: str
    image: Image.Image | str | None = None
    system: str | None = None
    max_tokens: int = 1024
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0  # selects the noise of all `n` answers; servers get 31 bits of it and of `first`
    n: int = 1
    schema: Mapping[str, Any] | None = None  # JSON schema that the server enforces
    logprobs: bool = False  # also return the likeliest first tokens
    first: int = 0  # number of answers that there are already
    check: Check | None = (
        None  # returns what is wrong with a text, which is then requested once more, or None
    )
    replies: Sequence[Mapping[str, Any]] = ()

    @property
    def messages(self) -> list[Mapping[str, Any]]:
        content: Any = self.text
        if self.image is not None:
            content = [
                {"type": "image_url", "image_url": {"url": self.image}},
                {"type": "text", "text": self.text},
            ]
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": content}, *self.replies]

    def fields(self, model: str, limit: str = MAX_TOKENS) -> dict[str, Any]:
        """Return the fields of the HTTP request; `limit`: what the server calls the largest number
        of tokens.
        """
        digest = blake2b(f"{self.seed} {self.first}".encode(), digest_size=8).digest()
        seed = int.from_bytes(digest, "big") >> (64 - _SEED_BITS)
        fields: dict[str, Any] = {"model": model, "messages": self.messages, "seed": seed}
        fields |= {limit: self.max_tokens, "temperature": self.temperature, "top_p": self.top_p}
        others = {"top_k": 0, "repetition_penalty": 1, "n": 1}
        fields |= {
            name: getattr(self, name)
            for name, default in others.items()
            if getattr(self, name) != default
        }
        if self.schema is not None:
            schema = {"name": "answer", "strict": True, "schema": self.schema}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        if self.logprobs:
            fields |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        return fields

    def once_more(self, number: int, text: str, wrong: str) -> ChatRequest:
        """Return the request for another text in place of the one of this number."""
        reply = [
            {"role": "assistant", "content": text[:_LONGEST_ANSWER]},
            {"role": "user", "content": wrong},
        ]
        return replace(self, replies=reply, n=1, first=number)


class Choice(NamedTuple):
    """One of the answers to a request; `check` may still find its text wrong.

    `fault`: why it cannot be used. `logprobs`: natural log-probabilities of the likeliest first
    tokens, if asked for.
    """

    text: str
    fault: str | None = None
    logprobs: dict[str, float] | None = None


@dataclass(frozen=True)
class Refusal:
    """Why there is no answer: the content is filtered, the answer is empty, the prompt too long, a
    box has no area.
    """

    reason: str


def read_choices(completion: Any, logprobs: bool) -> list[Choice]:
    """Return the choices of a chat completion by their index. Raises ValueError: it is none, or
    lacks `logprobs`.
    """
    try:
        error = completion.get("error")
        if error:
            raise ValueError(f"the server answers with an error: {quote(str(error))}")
        ordered = sorted(completion["choices"], key=lambda choice: choice.get("index") or 0)
        return [_read(choice, choice["message"], logprobs) for choice in (ordered[0], *ordered[1:])]
    except (LookupError, TypeError, AttributeError):
        raise ValueError(
            "the answer is not a chat completion; the URL of an API often ends in /v1"
        ) from None


def _read(choice: Mapping[str, Any], message: Mapping[str, Any], logprobs: bool) -> Choice:
    reason = choice.get("finish_reason")
    text = message.get("content") or ""
    refusal = message.get("refusal")
    if refusal:
        return Choice("", f"the model refused: {quote(str(refusal))}")
    if reason == "content_filter":
        return Choice("", "a content filter withheld the answer")
    if isinstance(text, list):  # some servers return it in parts
        text = "".join(str(part.get("text", "")) for part in text)
    if logprobs:  # which tell more than the text: a token that is a space has some, too
        return Choice(clean(text), None, _first_logprobs(choice))
    if not text.strip():
        cause = ": max_tokens are used up" if reason == "length" else ""
        return Choice("", f"the answer is empty{cause}")
    return Choice(clean(text))  # `max_tokens` may cut a character into halves


def _first_logprobs(choice: Mapping[str, Any]) -> dict[str, float]:
    tokens = (choice.get("logprobs") or {}).get("content")
    if not tokens:
        raise ValueError("the answer has no log-probabilities")
    likeliest = [tokens[0], *(tokens[0].get("top_logprobs") or ())]
    return {clean(str(token["token"])): float(token["logprob"]) for token in likeliest}


def quote(text: str) -> str:
    """Return a text of a server for use within a message: one line, not too long."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    line = " ".join(printable.split())
    return line if len(line) <= _LONGEST_QUOTE else line[: _LONGEST_QUOTE - 1] + "…"


def image_url(image: Image.Image, longest_side: int | None = None) -> str:
    """Return an image as the data URL of a PNG; `longest_side`: in pixels, to which a larger image
    is resized.
    """
    if longest_side is not None:
        image = image.copy()
        image.thumbnail((longest_side, longest_side), Image.Resampling.BICUBIC)
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return file_url(buffer.getvalue(), "image/png")


def file_url(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


_CHOICES = TypeAdapter(list[Choice])


@dataclass(frozen=True)
class CacheFolder:
    """The private folder of a run, and the machine that made this object, which is that of the
    run.
    """

    path: Path
    host: str = field(default_factory=socket.gethostname)

    @property
    def file(self) -> Path:
        """The cache; on other machines in the user's own folder: SQLite files cannot be shared over
        a network.
        """
        is_local = self.path.is_dir() and self.host == socket.gethostname()
        return (self.path if is_local else cache_folder()) / REQUESTS


class RequestCache:
    """Choices by the hash of a request, which has neither the address of the server nor the key.

    Several threads and processes may use the file at once. The first answer creates it. Methods
    raise UserError if the file is damaged, EngineError if it cannot be used, such as on a full
    disk.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def get(self, body: bytes) -> list[Choice] | None:
        rows = self._execute(
            "SELECT choices FROM answers WHERE request = ?", [sha256(body).digest()]
        )
        try:
            return _CHOICES.validate_json(rows[0][0]) if rows else None
        except ValueError:
            raise UserError(f"the request cache {self.file} is damaged; delete it") from None

    def put(self, body: bytes, choices: Sequence[Choice], check: Check | None = None) -> None:
        usable = any(
            choice.fault is None and not (check and check(choice.text)) for choice in choices
        )
        row = (sha256(body).digest(), json.dumps(choices), usable)
        self._execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", row, create=True)

    def put_by_rules(self, caption: bytes) -> None:
        """Note that the rules parsed a caption because the model's answer was unusable."""
        self._execute(
            "INSERT OR IGNORE INTO by_rules VALUES (?)", [sha256(caption).digest()], create=True
        )

    def count_by_rules(self) -> int:
        return sum(number for (number,) in self._execute("SELECT COUNT(*) FROM by_rules"))

    def put_usage(self, completion: Mapping[str, Any]) -> None:
        """Note the tokens of a completion, if the server counts them."""
        usage = completion.get("usage")
        if isinstance(usage, Mapping):
            numbers = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
            row = [
                number if isinstance(number, int) and 0 <= number < 2**53 else 0
                for number in numbers
            ]
            self._execute("INSERT INTO usage VALUES (?, ?)", row, create=True)

    def tokens(self) -> int:
        return sum(
            number or 0 for (number,) in self._execute("SELECT SUM(asked + answered) FROM usage")
        )

    def forget_refusals(self) -> None:
        """Forget what was refused or answered unusably, so that it is requested again."""
        self._execute("DELETE FROM answers WHERE NOT usable")

    def _execute(
        self, statement: str, values: Sequence[object] = (), create: bool = False
    ) -> list[Any]:
        try:
            with self._lock:
                if self._connection is None:
                    if not (create or self.file.exists()):
                        return []
                    self.file.parent.mkdir(parents=True, exist_ok=True)
                    # Without isolation level each statement is a transaction.
                    opened = sqlite3.connect(
                        self.file, _PATIENCE, isolation_level=None, check_same_thread=False
                    )
                    with suppress(
                        sqlite3.OperationalError
                    ):  # some network folders cannot; the cache is slower there
                        opened.execute("PRAGMA journal_mode = WAL")
                    opened.execute("PRAGMA synchronous = NORMAL")
                    opened.executescript(_TABLES)
                    self._connection = opened
                return self._connection.execute(statement, values).fetchall()
        except sqlite3.OperationalError as error:
            raise EngineError(f"the request cache {self.file} cannot be used: {error}") from None
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"the request cache {self.file} is damaged; delete it ({error})"
            ) from None


_CONTROL = ChatRequest("Say yes.", max_tokens=8)


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
        """Sends nothing. `model`: its name, as the server lists it. `cache`: where answers are
        kept, or None.

        Raises UserError if this is not a URL, it contains a password, or the key cannot be sent.
        """
        self.url = endpoint_url(url)
        self.model = model
        self.requests = requests
        self.cache = RequestCache(cache.file) if cache else None
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

        `example`: a request like those that will follow, sent for one answer, which is not kept.
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
            choices = await self._completion(request, self.requests.retries)
            self.cache.put(body, choices, request.check)
        return choices

    async def _completion(self, request: ChatRequest, retries: int) -> list[Choice]:
        """Return the choices from the server. Raises RequestError if this request gets none; see
        also the class.
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
            self.cache.put_usage(completion)
        return choices

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
                    async with asyncio.timeout(
                        timeout
                    ):  # openai's limits each read, not all of them
                        answer = await super().send(request, **options)
                except TimeoutError:
                    raise httpx2.ReadTimeout(
                        "", request=request
                    ) from None  # which openai tries again
                if answer.is_success and _IS_ERROR.match(answer.content):
                    answer.status_code = 500  # which openai tries again, too
                return answer

        proxies = (
            parts.hostname not in _THIS_MACHINE or parts.scheme == "https"
        )  # none to this machine
        client = Client(
            follow_redirects=False, trust_env=proxies
        )  # redirects could carry the key to another host
        limits = openai.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS))
        return openai.AsyncOpenAI(
            base_url=self.url, api_key=self._key or "none", timeout=limits, http_client=client
        )

    def _hidden(self, text: str) -> str:
        """Return a text of the server without the key, if it repeats it."""
        return quote(text.replace(self._key, "…") if self._key else text)


def endpoint_url(url: str) -> str:
    """Return the URL of an API in the form that requests are appended to.

    Raises UserError if it is not a URL, or has parts that must not be stored in a run, which are
    not quoted.
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
