"""Replicas on this machine, for a run whose stages have engines."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from sgpipe.errors import UserError
from sgpipe.recipe import StageConfig
from sgpipe.stages.served.engines.commands import (
    LOOPBACK,
    ModelServer,
    model_servers,
    replica_counts,
)
from sgpipe.stages.served.engines.process import free_port
from sgpipe.stages.served.engines.replica import Replica
from sgpipe.utils.console import count
from sgpipe.utils.devices import usable_gpus

LOGS = "engines"  # folder within the run's private one
_LOOK_SECONDS = 0.5
_VISIBLE = "CUDA_VISIBLE_DEVICES"


class LocalReplicas:
    """The servers of all models that the stages of a run ask, as processes of this machine."""

    def __init__(
        self, sections: Mapping[str, StageConfig], logs: Path, say: Callable[[str], None]
    ) -> None:
        """
        Args:
            sections: of the stages that have engines.
            logs: folder for the logs of the servers.
            say: gets lines about servers that start and end.

        Raises:
            UserError: an engine is not installed, or there are too few GPUs.
        """
        self._logs = logs
        self._say = say
        self._servers = model_servers(sections)
        for server in self._servers:
            server.check_installed()
        self._gpus = visible_gpus()
        self._counts = replica_counts(list(self._servers), len(self._gpus))
        self._replicas: dict[ModelServer, list[Replica]] = {}
        self._closed = threading.Event()
        self._watching = threading.Thread(target=self._watch, name="engines", daemon=True)

    def start(self) -> dict[str, list[str]]:
        """Start all replicas, wait for as many as the recipe requires, and return the URLs that
        each stage asks.

        Raises:
            UserError: too few of them answer.
        """
        self._logs.mkdir(parents=True, exist_ok=True)
        gpus = iter(self._gpus)
        for server, number in zip(self._servers, self._counts, strict=True):
            self._say(
                f"starting {server.model} on {count(number, 'server')} of {server.name} (logs:"
                f" {self._logs})"
            )
            size = server.gpus(len(self._gpus))
            replicas = self._replicas.setdefault(server, [])
            for index in range(number):
                replicas.append(self._new(server, index, number, [next(gpus) for _ in range(size)]))
        self._watching.start()
        endpoints: dict[str, list[str]] = {}
        for server, replicas in self._replicas.items():
            wait_until_ready(server, replicas, self._say)
            for stage in self._servers[server]:
                endpoints[stage] = [replica.url for replica in replicas]
        return endpoints

    def _new(self, server: ModelServer, index: int, number: int, gpus: Sequence[str]) -> Replica:
        """Start a replica, on these GPUs."""
        port = free_port(LOOPBACK)
        return Replica(
            f"{server.name} {index + 1} of {number}",
            server.command(LOOPBACK, port, len(gpus)),
            {_VISIBLE: ",".join(gpus)},
            f"http://{LOOPBACK}:{port}/v1",
            key="",
            log=self._logs / f"{server.section}-{index + 1}.log",
            ready_timeout=server.replicas.ready_timeout,
            say=self._say,
        )

    def _watch(self) -> None:
        while not self._closed.wait(_LOOK_SECONDS):
            for replica in self._all():
                replica.look()

    def _all(self) -> list[Replica]:
        return [replica for replicas in self._replicas.values() for replica in replicas]

    def close(self) -> None:
        """End all servers."""
        self._closed.set()
        if self._watching.is_alive():
            self._watching.join()
        for replica in self._all():
            replica.ask_to_end()
        for replica in self._all():
            replica.end()


class AnyReplica(Protocol):
    """A replica here or on a cluster. Attributes as of `Replica`."""

    name: str
    is_ready: bool
    failure: str | None
    log: Path

    def speak(self) -> None: ...


def wait_until_ready(
    server: ModelServer, replicas: Sequence[AnyReplica], say: Callable[[str], None]
) -> None:
    """Wait until as many replicas answer as a recipe requires.

    Raises:
        UserError: so many have ended that these will not.
    """
    began = time.monotonic()
    while True:
        ready = sum(replica.is_ready for replica in replicas)
        if ready >= server.replicas.min:
            break
        failed = [replica for replica in replicas if replica.failure is not None]
        if len(replicas) - len(failed) < server.replicas.min:
            first = failed[0]
            raise UserError(
                f"{server.section}.engine: {first.name} did not start: {first.failure} (log:"
                f" {first.log})"
            )
        time.sleep(_LOOK_SECONDS)
    seconds = time.monotonic() - began
    servers = count(len(replicas), "server")
    say(f"{ready} of {servers} of {server.name} ready after {seconds:.0f} seconds")
    for replica in replicas:
        replica.speak()


def visible_gpus() -> list[str]:
    """Return the GPUs of this machine that may be used, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get(_VISIBLE) or ",".join(map(str, range(usable_gpus())))
    return [gpu for gpu in visible.split(",") if gpu][: usable_gpus()]
