"""Servers of models on a Ray cluster: an actor holds each, Ray places it, also when its machine is
lost, and workers learn where it is.
"""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayError

from sgpipe.errors import UserError
from sgpipe.recipe import ENGINE_KEY, StagePlan
from sgpipe.stages.served.engines.addresses import forget_urls, moving_endpoint, write_urls
from sgpipe.stages.served.engines.commands import (
    ModelServer,
    key_variables,
    model_servers,
    replica_counts,
)
from sgpipe.stages.served.engines.local import wait_until_ready
from sgpipe.stages.served.engines.process import free_port
from sgpipe.stages.served.engines.replica import Replica
from sgpipe.utils.console import count
from sgpipe.utils.ray_cluster import on_driver_node, worker_failure

_LOOK_SECONDS = 0.5
_POLL_SECONDS = 2.0
_PLACING_SECONDS = 60.0  # in which Ray finds room for a server
_CLOSING_SECONDS = 20.0
_VISIBLE = "CUDA_VISIBLE_DEVICES"
# Another machine gets an actor that is lost; a question is not repeated there.
_OPTIONS = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": 0}
# The driver's machine keeps the addresses, as long as the driver lives.
_BOOK_OPTIONS = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}


@dataclass(frozen=True)
class ReplicaState:
    """What an actor tells of its server.

    Attributes:
        url: of the server.
        node: the machine, by Ray's id.
        is_ready: it answers.
        failure: why it has ended last; None: it never has.
        log: its log, on that machine.
        lines: what happened since the last state.
    """

    url: str
    node: str
    is_ready: bool
    failure: str | None
    log: Path
    lines: list[str]


class ReplicaActor:
    """Holds a server on the machine where Ray places it, and starts it again when it ends."""

    def __init__(self, server: ModelServer, name: str, gpus: int, key: str, logs: Path) -> None:
        """
        Args:
            logs: the folder for them, if this machine shares it.
        """
        host = ray.util.get_node_ip_address()
        port = free_port(host)
        folder = logs if logs.is_dir() else Path(tempfile.mkdtemp(prefix="sgpipe-engines-"))
        environment = key_variables(key)
        if not gpus:
            environment[_VISIBLE] = ""
        self._lines: list[str] = []
        self._replica = Replica(
            f"{name} on {socket.gethostname()}",
            server.command(host, port, gpus),
            environment,
            f"http://{host}:{port}/v1",
            key,
            folder / f"{server.section}-{uuid4().hex[:8]}.log",
            server.replicas.ready_timeout,
            self._lines.append,
        )
        self._replica.speak()
        self._closed = threading.Event()
        self._watching = threading.Thread(target=self._watch, name="engine", daemon=True)
        self._watching.start()

    def _watch(self) -> None:
        while not self._closed.wait(_LOOK_SECONDS):
            self._replica.look()

    def state(self) -> ReplicaState:
        number = len(self._lines)
        lines = self._lines[:number]
        del self._lines[:number]
        return ReplicaState(
            self._replica.url,
            ray.get_runtime_context().get_node_id(),
            self._replica.is_ready,
            self._replica.failure,
            self._replica.log,
            lines,
        )

    def end(self) -> None:
        """End the server; this actor may then be killed."""
        self._closed.set()
        self._watching.join()
        self._replica.end()


class AddressBook:
    """The actor that workers ask where servers are: the URLs of each endpoint."""

    def __init__(self) -> None:
        self._urls: dict[str, list[str]] = {}

    def put(self, urls: dict[str, list[str]]) -> None:
        self._urls = urls

    def urls(self) -> dict[str, list[str]]:
        return self._urls


@dataclass(frozen=True)
class Directory:
    """How a worker learns where servers are.

    Attributes:
        book: an `AddressBook`.
        key: of all servers; Ray may print what a worker gets.
    """

    book: ActorHandle
    key: str = field(repr=False)

    def follow(self) -> None:
        """Write the addresses to the files of this machine, now and while this process lives."""
        os.environ[ENGINE_KEY] = self.key
        self._write()
        threading.Thread(target=self._keep_writing, name="addresses", daemon=True).start()

    def _write(self) -> None:
        question: ray.ObjectRef[dict[str, list[str]]] = self.book.urls.remote()
        for endpoint, urls in ray.get(question).items():
            write_urls(endpoint, urls)

    def _keep_writing(self) -> None:
        while True:
            time.sleep(_POLL_SECONDS)
            with suppress(RayError, OSError):
                self._write()


class RayReplica:
    """An actor with a server, as the driver sees it. Attributes as of `Replica`, and:

    Attributes:
        node: the machine, by Ray's id; "": it has none.
    """

    def __init__(
        self, name: str, actor: ActorHandle, logs: Path, say: Callable[[str], None]
    ) -> None:
        self.name = name
        self.url = ""
        self.node = ""
        self.is_ready = False
        self.failure: str | None = None
        self.log = logs
        self.actor = actor
        self._say = say
        self._is_quiet = True
        self._lines: list[str] = []
        self._ask()

    def _ask(self) -> None:
        self._asked = time.monotonic()
        self._question: ray.ObjectRef[ReplicaState] = self.actor.state.remote()

    def look(self) -> None:
        """Take over the state of the actor, if it has answered, and ask it again."""
        answered, _ = ray.wait([self._question], timeout=0)
        if answered:
            self._take_answer()
            self._ask()
        elif not self.node and time.monotonic() - self._asked > _PLACING_SECONDS:
            self.failure = f"no machine has had room for it for {_PLACING_SECONDS:.0f} seconds"

    def _take_answer(self) -> None:
        try:
            state = ray.get(self._question)
        except ActorDiedError as error:
            self.failure = worker_failure(error)
            self._lose()
            return
        except RayError:
            self._lose()
            return
        if state.url != self.url:  # it has already been placed anew
            self._lose()
        self.url = state.url
        self.node = state.node
        self.is_ready = state.is_ready
        self.failure = state.failure
        self.log = state.log
        self._lines += state.lines
        if not self._is_quiet:
            self.speak()

    def _lose(self) -> None:
        """Note that the actor has ended."""
        if self.is_ready:
            self._say(f"NOTE: {self.name} is lost with its process or machine; Ray places it anew")
        self.is_ready = False
        self.node = ""

    def speak(self) -> None:
        """Say what has happened, and from now on what happens."""
        self._is_quiet = False
        for line in self._lines:
            self._say(line)
        self._lines.clear()


class RayReplicas:
    """The servers of all models that the stages of a run ask, as actors of a cluster.

    Attributes:
        directory: tells workers where the servers are.
    """

    def __init__(self, stages: StagePlan, logs: Path, say: Callable[[str], None]) -> None:
        """Join the cluster first.

        Args:
            logs: folder for the logs of servers on machines that share it.
            say: gets lines about servers that start and end.

        Raises:
            UserError: there are too few GPUs.
        """
        self._servers = model_servers(stages.with_engines)
        self._gpus_of_others = _gpus_without_engines(stages)
        self._logs = logs.absolute()
        self._say = say
        self._run = uuid4().hex
        self._replicas: dict[ModelServer, list[RayReplica]] = {}
        self._urls: dict[str, list[str]] = {}
        self._sizes = {server: server.gpus(self._gpus()) for server in self._servers}
        book: Any = ray.remote(AddressBook).options(
            scheduling_strategy=on_driver_node(), **_BOOK_OPTIONS
        )
        self.directory = Directory(book.remote(), secrets.token_hex(32))
        self._closed = threading.Event()
        self._watching = threading.Thread(target=self._watch, name="engines", daemon=True)

    def start(self) -> dict[str, str]:
        """Start all replicas that there is room for, wait for as many as the recipe requires, and
        return what each stage asks.

        Raises:
            UserError: too few of them answer.
        """
        os.environ[ENGINE_KEY] = self.directory.key
        self._logs.mkdir(parents=True, exist_ok=True)
        self._grow()
        for server, replicas in self._replicas.items():
            self._say(
                f"starting {server.model} on {count(len(replicas), 'server')} of {server.name}"
                f" (logs: {self._logs})"
            )
        self._watching.start()
        for server, replicas in self._replicas.items():
            wait_until_ready(server, replicas, self._say)
        self._publish()
        endpoints: dict[str, str] = {}
        for server, names in self._servers.items():
            endpoints |= dict.fromkeys(names, self._endpoint(server))
        return endpoints

    def nodes_left(self) -> list[dict[str, Any]]:
        """Return `ray.nodes()` without the GPUs of the servers."""
        taken = Counter[str]()
        for server, replicas in self._replicas.items():
            for replica in replicas:
                taken[replica.node] += self._sizes[server]
        nodes: list[dict[str, Any]] = ray.nodes()
        for node in nodes:
            resources = node["Resources"]
            resources["GPU"] = resources.get("GPU", 0) - taken[node["NodeID"]]
        return nodes

    def _endpoint(self, server: ModelServer) -> str:
        return moving_endpoint(self._run, server.section)

    def _gpus(self) -> int:
        """Return the number of GPUs that servers may have, with those of machines that came."""
        return int(ray.cluster_resources().get("GPU", 0) - self._gpus_of_others)

    def _grow(self) -> None:
        """Start as many replicas as there is room for now.

        Raises:
            UserError: there are too few GPUs.
        """
        counts = replica_counts(list(self._servers), self._gpus())
        for server, number in zip(self._servers, counts, strict=True):
            replicas = self._replicas.setdefault(server, [])
            while len(replicas) < number:
                replica = self._new(server, len(replicas) + 1)
                replicas.append(replica)
                if self._watching.is_alive():  # the run does not wait for it
                    replica.speak()

    def _new(self, server: ModelServer, number: int) -> RayReplica:
        """Start a replica where Ray places it."""
        name = f"{server.name} {number}"
        gpus = self._sizes[server]
        actor: Any = ray.remote(ReplicaActor).options(
            num_gpus=gpus, scheduling_strategy="SPREAD", **_OPTIONS
        )
        handle = actor.remote(server, name, gpus, self.directory.key, self._logs)
        return RayReplica(name, handle, self._logs, self._say)

    def _watch(self) -> None:
        while not self._closed.wait(_POLL_SECONDS):
            with suppress(RayError, OSError):
                for replica in self._all():
                    replica.look()
                with suppress(UserError):  # machines are lost: fewer have to do
                    self._grow()
                self._publish()

    def _publish(self) -> None:
        """Tell this machine and the others which servers answer."""
        endpoints = self._urls.copy()
        for server, replicas in self._replicas.items():
            ready = [replica.url for replica in replicas if replica.is_ready]
            if ready:  # else those before: they may return
                endpoints[self._endpoint(server)] = ready
        self._urls = endpoints
        ray.get(self.directory.book.put.remote(endpoints))
        for endpoint, urls in endpoints.items():
            write_urls(endpoint, urls)

    def _all(self) -> list[RayReplica]:
        return [replica for replicas in self._replicas.values() for replica in replicas]

    def close(self) -> None:
        """End all servers."""
        self._closed.set()
        if self._watching.is_alive():
            self._watching.join()
        ending: list[ray.ObjectRef[None]] = []
        with suppress(RayError):
            for replica in self._all():
                if replica.node:
                    ending.append(replica.actor.end.remote())
            ray.wait(ending, num_returns=len(ending), timeout=_CLOSING_SECONDS)
        actors = [replica.actor for replica in self._all()]
        for actor in (self.directory.book, *actors):
            with suppress(RayError):
                ray.kill(actor)
        for server in self._servers:
            forget_urls(self._endpoint(server))


def _gpus_without_engines(stages: StagePlan) -> float:
    """Return the GPUs of the fewest actors of the stages without engines."""
    gpus = 0.0
    for name in stages.names:
        section = stages.section(name)
        if not section.has_engine:
            gpus += (section.resources.gpus or 0) * section.resources.fewest_actors
    return gpus
