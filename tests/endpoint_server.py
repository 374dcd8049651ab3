"""A server with the OpenAI chat API on this machine, which fails when and how a test wants it
to.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import math
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image

# of `_ERRORS` or `LASTING`; or cut, silent, slow, nested, page, parts, plain, half, or the JSON of
# `usage`
Fault = str
PASSING: tuple[Fault, ...] = ("limited", "broken", "cut")
LASTING: tuple[Fault, ...] = ("refusal", "filtered", "empty", "rejected")
FEW = 10  # answers before a server waits
CHILD = "import time; time.sleep(600)"  # what a server has started
_ERRORS: dict[Fault | None, tuple[int, str]] = {
    "limited": (429, "Rate limit reached"), "broken": (500, "worker lost; request had {key}"),
    "rejected": (400, "{rejection}"), "unpaid": (402, "Insufficient credits"),
    "away": (503, "restarting"), "error": (200, "Rate limit reached"),
}  # fmt: skip

Answerer = Callable[[dict[str, Any]], Sequence[str]]
Faults = Callable[[str, int], "Fault | None"]


def scripted(*faults: Fault | None) -> Faults:
    """These, one per request in the order of arrival; then none."""
    left = iter(faults)
    return lambda body, attempt: next(left, None)


def at_random(seed: int, share: float, lasting: float = 0.0) -> Faults:
    """For a share of all attempts a fault that passes; for a share of all requests one that lasts;
    in any order.
    """

    def choose(body: str, attempt: int) -> Fault | None:
        of_request = random.Random(f"{seed} {body}")
        of_attempt = random.Random(f"{seed} {body} {attempt}")
        if of_request.random() < lasting:
            return of_request.choice(LASTING)
        return of_attempt.choice(PASSING) if attempt < 4 and of_attempt.random() < share else None

    return choose


def shown_image(body: Mapping[str, Any]) -> Image.Image | None:
    """The image of a request, if it has one."""
    content = body["messages"][-1]["content"]
    parts = [] if isinstance(content, str) else content
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return Image.open(BytesIO(base64.b64decode(urls[0].partition(",")[2]))) if urls else None


def say_seed(body: Mapping[str, Any]) -> list[str]:
    """A caption per answer that depends on nothing but the seed."""
    things = ("dog", "cat", "person", "horse", "ball", "car")
    noise = random.Random(body["seed"])
    return [
        f"a {noise.choice(things)} next to a {noise.choice(things)}"
        for _ in range(body.get("n", 1))
    ]


class EndpointServer:
    """Serves `models` at `url` within a `with` statement, to requests that carry `key`, if it is
    set.

    Attributes:
        requests: the bodies of all requests for a completion, in the order of arrival.
        paid: how often each of them (by hash) was answered completely.
        most_choices: the most choices of an answer, whatever is asked for.
        redirect: where all requests are sent on to.
        away: it restarts.
        released: while it is not set, no request is answered; see `pause`.
    """

    def __init__(
        self,
        answer: Answerer = say_seed,
        faults: Faults = lambda body, attempt: None,
        *,
        models: Sequence[str] = ("tiny-vlm",),
        key: str | None = None,
        seconds: float = 0.0,
        address: tuple[str, int] = ("127.0.0.1", 0),
    ) -> None:
        self.answer = answer
        self.faults = faults
        self.models = list(models)
        self.key = key
        self.seconds = seconds
        self.requests: list[dict[str, Any]] = []
        self.paid = Counter[str]()
        self.attempts = Counter[str]()
        self.headers: list[dict[str, str]] = []
        self.most_at_once = self.at_once = 0
        self.most_choices: int | None = None
        self.rejection = "The prompt is longer than the maximum model length"
        self.redirect: str | None = None
        self.away = False
        self.lock = threading.Lock()
        self.released = threading.Event()
        self.ended = threading.Event()
        self.released.set()
        self.answering = 0
        self.server = _Server(address, type("Bound", (_Handler,), {"endpoint": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self) -> EndpointServer:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.ended.set()
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    def pause(self) -> None:
        """Answer no request until `released` is set; returns when none is being answered."""
        with self.lock:
            self.released.clear()
        wait_until(lambda: self.answering == 0)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Wait until requests may be answered, and count one that is."""
        while True:
            self.released.wait()
            with self.lock:
                if self.released.is_set():
                    self.answering += 1
                    break
        try:
            yield
        finally:
            with self.lock:
                self.answering -= 1

    def completion(self, body: dict[str, Any], fault: Fault | None) -> dict[str, Any]:
        """The JSON of an answer."""
        texts = list(self.answer(body))[: self.most_choices]
        choices = []
        for index, text in enumerate(texts):
            message: dict[str, Any] = {
                "role": "assistant",
                "content": "" if fault in ("empty", "filtered") else text,
            }
            if fault == "refusal":
                message |= {"content": None, "refusal": "I cannot describe people."}
            if fault == "half":
                message["content"] = "a dog \ud83d"
            if fault == "parts":
                message["content"] = [
                    {"type": "text", "text": text[:4]},
                    {"type": "text", "text": text[4:]},
                ]
            reason = "content_filter" if fault == "filtered" else "stop"
            choice = {"index": index, "message": message, "finish_reason": reason}
            if body.get("logprobs"):
                likeliest = [{"token": text, "logprob": -0.25}, {"token": "No", "logprob": -1.5}]
                choice["logprobs"] = {"content": [likeliest[0] | {"top_logprobs": likeliest}]}
            choices.append(choice)
        usage: Any = {"prompt_tokens": 5, "completion_tokens": 3 * len(choices)}
        if fault is not None and fault[0] in "[{":
            usage = json.loads(fault)
        return {
            "object": "chat.completion",
            "model": body["model"],
            "choices": choices[::-1],
            "usage": usage,
        }


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that have been killed."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    endpoint: EndpointServer
    protocol_version = "HTTP/1.1"
    # else the body of an answer waits 40 ms for the receipt of its header
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        if self._is_refused():
            return
        models = [{"id": name, "object": "model"} for name in self.endpoint.models]
        known = self.path == "/v1/models"
        self._send(
            200 if known else 404,
            {"object": "list", "data": models} if known else {"detail": "Not Found"},
        )

    def do_POST(self) -> None:
        server = self.endpoint
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        with server.lock:
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
            server.headers.append(dict(self.headers))
        try:
            if not self._is_refused():
                with server.admitted():
                    server.ended.wait(server.seconds)
                    if not self._is_alone():
                        self._answer(raw)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with server.lock:
                server.at_once -= 1

    def _answer(self, raw: bytes) -> None:
        server = self.endpoint
        body = json.loads(raw)
        # as in the cache of requests
        name = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        with server.lock:
            server.requests.append(body)
            server.attempts[name] += 1
            fault = server.faults(name, server.attempts[name])
        if body["model"] not in server.models:
            self._send(
                404,
                {"error": {"message": f"The model `{body['model']}` does not exist.", "code": 404}},
            )
        elif fault in _ERRORS:
            status, message = _ERRORS[fault]
            error = message.format(
                key=self.headers.get("Authorization"), rejection=server.rejection
            )
            self._send(status, {"error": {"message": error}})
        elif fault == "silent":
            server.ended.wait(60)
            self.close_connection = True
        elif fault == "slow":  # each byte comes in time
            self._send(200, b" ", {"Content-Length": "1000"})
            while not server.ended.wait(0.1):
                self.wfile.write(b" ")
        elif fault == "page":
            self._send(
                200, b"<html><body>Please log in</body></html>", {"Content-Type": "text/html"}
            )
        elif fault == "nested":
            self._send(200, b"[" * 200_000)
        elif fault == "garbled":
            self._send(
                200,
                {"object": "chat.completion", "model": body["model"], "choices": [{"index": 0}]},
            )
        else:
            self._complete(name, server.completion(body, fault), fault)

    def _complete(self, name: str, completion: dict[str, Any], fault: Fault | None) -> None:
        content = json.dumps(completion).encode()
        if fault == "cut":
            self._send(200, content[: len(content) // 2], {"Content-Length": str(len(content))})
            self.close_connection = True
            return
        self._count(name, 1)  # before it is sent, because who gets it may look at once
        try:
            self._send(200, content, {"Content-Type": "text/plain"} if fault == "plain" else None)
        except OSError:
            self._count(name, -1)
            raise

    def _count(self, name: str, answers: int) -> None:
        with self.endpoint.lock:
            self.endpoint.paid[name] += answers
            self.endpoint.paid = +self.endpoint.paid  # without those that nobody got

    def _is_alone(self) -> bool:
        """Whether who asked has gone: servers stop what they do for it."""
        try:
            self.close_connection = (
                self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
            )
        except BlockingIOError:
            return False
        return self.close_connection

    def _is_refused(self) -> bool:
        server = self.endpoint
        if server.redirect is not None:
            self._send(307, b"", {"Location": f"{server.redirect}/models"})
            return True
        if server.away:
            self._send(503, {"error": {"message": "restarting"}})
            return True
        if server.key is None or self.headers.get("Authorization") == f"Bearer {server.key}":
            return False
        self._send(
            401,
            {
                "error": {
                    "message": f"Incorrect API key provided: {self.headers.get('Authorization')}"
                }
            },
        )
        return True

    def _send(
        self, status: int, content: bytes | dict[str, Any], headers: Mapping[str, str] | None = None
    ) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        standard = {"Content-Type": "application/json", "Content-Length": str(len(data))}
        for name, value in {**standard, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()


def wait_until(condition: Callable[[], bool], seconds: float = 60.0, every: float = 0.01) -> None:
    """Ask again after `every` seconds. Raises TimeoutError: it does not come true."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(every)


def main() -> None:
    """Serve a model as an engine's own server does, until the process is killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="tiny-vlm")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=0.0, help="before each answer")
    parser.add_argument("--loading", type=float, default=0.0, help="seconds before it listens")
    parser.add_argument("--failure", help="the last line before it ends, after loading")
    parser.add_argument("--child", action="store_true", help="start a process, as engines do")
    parser.add_argument("--go", type=Path, help="a file: before it is there, few are answered")
    options = parser.parse_args()
    if options.child:
        subprocess.Popen([sys.executable, "-c", CHILD])
    time.sleep(options.loading)
    if options.failure:
        sys.exit(options.failure)
    server = EndpointServer(
        models=[options.model],
        key=os.environ.get("VLLM_API_KEY"),
        seconds=options.seconds,
        address=(options.host, options.port),
    )
    if options.go:
        threading.Thread(target=_wait_for, args=(server, options.go), daemon=True).start()
    server.server.serve_forever()


def _wait_for(server: EndpointServer, go: Path) -> None:
    """Answer no more requests until a file is there."""
    wait_until(lambda: server.paid.total() >= FEW, math.inf)
    server.released.clear()
    wait_until(go.exists, math.inf)
    server.released.set()


if __name__ == "__main__":
    main()
