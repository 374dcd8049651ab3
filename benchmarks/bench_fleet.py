"""A fleet of model servers on this machine: which share of its capacity a run uses.

    python -m benchmarks.bench_fleet [--requests N] [--seconds S]

Eight scripted servers of one process, each with 32 requests at once (others wait in it) and
latencies from a log-normal distribution (sigma 0.5, mean S seconds); one client process asks about
images in units of 512, each a JPEG of 174 KB. "One unit after the other" is what a worker did
before requests streamed across units. Used: seconds of work of all servers, of what they could
have worked while the client ran. CPU: of the client, with the time of its threads. A server that
hangs, or lies about its model, does so after 30 seconds, for good; requests time out after 120 (the
default). Answers of another model count as paid twice, as their requests are asked again. If all
are away, it is after 30 seconds, for 5 minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import re
import resource
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Literal

from rich.table import Table

from benchmarks.measure import report
from sgpipe.recipe import Requests
from sgpipe.stages.served.chat import ChatRequest
from sgpipe.stages.served.endpoint import ChatEndpoint
from sgpipe.stages.served.images import file_url

SERVERS = 8
CAPACITY = 32
UNIT = 512
OPEN_UNITS = 4  # of a worker with 512 requests under way
SIGMA = 0.5
MODEL = "scripted"
JPEG_BYTES = 174 * 1024
CONTENT_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
DOWN_EVERY = 30.0  # seconds
DOWN_FOR = 5.0
FAULT_AFTER = 30.0
ALL_AWAY_FOR = 300.0
CAPTION = {"message": {"role": "assistant", "content": "a dog on grass"}}
Fault = Literal["none", "killed", "hangs", "lies", "all away"]


@dataclass
class Replica:
    """A server. `model`: that its answers name; `busy`: seconds of work; `answers`: that were read
    to the end; `dropped`: requests that it had when it was killed; `choice`: what it answers.
    """

    seconds: float
    noise: random.Random
    choice: Mapping[str, object] = field(default_factory=lambda: CAPTION)
    places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CAPACITY))
    connections: set[asyncio.StreamWriter] = field(default_factory=set)
    is_down: bool = False
    hangs: bool = False
    model: str = MODEL
    busy: float = 0.0
    answers: int = 0
    dropped: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.add(writer)
        try:
            while not self.is_down:
                head = await reader.readuntil(b"\r\n\r\n")
                await self._answer(head, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.connections.discard(writer)
            writer.close()

    async def _answer(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        if head.startswith(b"GET"):
            send(writer, {"data": [{"id": self.model}]})
            return
        length = CONTENT_LENGTH.search(head)
        assert length is not None
        await reader.readexactly(int(length[1]))
        async with self.places:
            seconds = self.seconds * self.noise.lognormvariate(-SIGMA * SIGMA / 2, SIGMA)
            await asyncio.sleep(seconds)
            if self.is_down or self.hangs:
                self.dropped += 1
                raise ConnectionError
            self.busy += seconds
            self.answers += 1
        choice = {"index": 0, "finish_reason": "stop", **self.choice}
        send(writer, {"model": self.model, "choices": [choice], "usage": {}})

    async def go_down_and_up(self, after: float, seconds: float) -> None:
        await asyncio.sleep(after)
        self.is_down = True
        for writer in list(self.connections):
            writer.close()
        await asyncio.sleep(seconds)
        self.is_down = False

    async def hang(self) -> None:
        await asyncio.sleep(FAULT_AFTER)
        self.hangs = True

    async def lie(self) -> None:
        await asyncio.sleep(FAULT_AFTER)
        self.model = "another-model"


def faults(fault: Fault, replicas: Sequence[Replica]) -> list[Coroutine[None, None, None]]:
    """Return what happens to the replicas while they serve."""
    if fault == "killed":  # one after the other
        kills = []
        for number in range(1000):
            replica = replicas[number % SERVERS]
            kills.append(replica.go_down_and_up(DOWN_EVERY * (number + 1), DOWN_FOR))
        return kills
    if fault == "hangs":
        return [replicas[0].hang()]
    if fault == "lies":
        return [replicas[0].lie()]
    if fault == "all away":
        return [replica.go_down_and_up(FAULT_AFTER, ALL_AWAY_FOR) for replica in replicas]
    return []


def send(writer: asyncio.StreamWriter, answer: dict[str, object]) -> None:
    content = json.dumps(answer).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    writer.write(f"{head}\r\n\r\n".encode() + content)


def run_fleet(pipe: Connection, seconds: float, fault: Fault, choice: Mapping[str, object]) -> None:
    """Send the ports; serve until a message comes; send busy seconds, answers and dropped
    requests.
    """

    async def run() -> None:
        replicas = [Replica(seconds, random.Random(number), choice) for number in range(SERVERS)]
        servers = []
        for replica in replicas:
            servers.append(await asyncio.start_server(replica.serve, "127.0.0.1", 0, limit=1 << 20))
        pipe.send([server.sockets[0].getsockname()[1] for server in servers])
        tasks = [asyncio.create_task(happening) for happening in faults(fault, replicas)]
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        busy = sum(replica.busy for replica in replicas)
        answers = sum(replica.answers for replica in replicas)
        pipe.send((busy, answers, sum(replica.dropped for replica in replicas)))
        del tasks
        os._exit(0)

    with suppress(EOFError):
        asyncio.run(run())


@contextmanager
def fleet(
    seconds: float, fault: Fault = "none", choice: Mapping[str, object] = CAPTION
) -> Iterator[tuple[list[str], Connection]]:
    """Yield the URLs of the servers, and what `run_fleet` answers by.

    Args:
        choice: what all answers say.
    """
    pipe, servers_end = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=run_fleet, args=(servers_end, seconds, fault, choice), daemon=True
    )
    process.start()
    urls = [f"http://127.0.0.1:{port}/v1" for port in pipe.recv()]
    try:
        yield urls, pipe
    finally:
        process.kill()


def ask(endpoint: ChatEndpoint, image: str, start: int, stop: int) -> int:
    """Return how many of the requests of a unit were answered."""
    requests = (
        ChatRequest("Describe the image.", image, seed=seed, max_tokens=20)
        for seed in range(start, stop)
    )
    return sum(isinstance(answer, list) for answer in endpoint.ask_all(requests))


def measure(requests: int, seconds: float, open_units: int, fault: Fault) -> list[str]:
    """Return the cells of a row."""
    image = file_url(os.urandom(JPEG_BYTES), "image/jpeg")
    with fleet(seconds, fault) as (urls, pipe):
        endpoint = ChatEndpoint(urls, MODEL, Requests())
        used = resource.getrusage(resource.RUSAGE_SELF)
        cpu = used.ru_utime + used.ru_stime
        began = time.monotonic()
        with ThreadPoolExecutor(open_units) as threads:
            units = [
                threads.submit(ask, endpoint, image, start, min(start + UNIT, requests))
                for start in range(0, requests, UNIT)
            ]
            answered = sum(unit.result() for unit in units)
        wall = time.monotonic() - began
        used = resource.getrusage(resource.RUSAGE_SELF)
        cpu = used.ru_utime + used.ru_stime - cpu
        pipe.send("end")
        busy, answers, dropped = pipe.recv()
    return [
        f"{answered:,} of {requests:,}",
        f"{wall:.0f}",
        f"{busy / (wall * SERVERS * CAPACITY):.1%}",
        f"{requests / wall:.0f}",
        f"{1000 * cpu / requests:.2f}",
        f"{answers - answered:,}",
        f"{dropped:,}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    columns = ("way", "answered", "seconds", "used", "requests/s", "CPU ms", "paid twice", "lost")
    table = Table(*columns)
    table.add_row(
        "one unit after the other", *measure(arguments.requests, arguments.seconds, 1, "none")
    )
    ways: dict[str, Fault] = {
        "": "none",
        ", a replica is down for 5 s every 30 s": "killed",
        ", a replica hangs": "hangs",
        ", a replica lies about its model": "lies",
        ", all are away for 5 minutes": "all away",
    }
    for name, fault in ways.items():
        row = measure(arguments.requests, arguments.seconds, OPEN_UNITS, fault)
        table.add_row(f"{OPEN_UNITS} units open{name}", *row)
    report(__doc__, table)


if __name__ == "__main__":
    main()
